"""Devices by name."""

import torch

from srdd.errors import UserError


def find_device(name: str) -> torch.device:
    """A torch device that is there.

    Raises:
        UserError: the name is unknown, or this machine has none.
    """
    try:
        found = torch.device(name)
    except RuntimeError:
        raise UserError(f"no device {name!r}: use cpu, cuda or cuda:1") from None
    if found.type not in ("cpu", "cuda"):
        raise UserError(f"no device {name!r}: use cpu, cuda or cuda:1")
    if found.type == "cpu":
        return found
    if not torch.backends.cuda.is_built() and torch.version.hip is None:
        raise UserError(
            f"--device {name}: this torch {torch.__version__} was built without CUDA: install one "
            "with it, or use --device cpu"
        )
    count = torch.cuda.device_count()
    if (found.index or 0) >= count:
        there = "no CUDA device" if not count else f"{count} CUDA device(s), from cuda:0,"
        raise UserError(f"--device {name}: torch finds {there} here")
    return found
