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
    count = torch.cuda.device_count()
    if not count:
        built = torch.version.cuda or torch.version.hip
        why = "" if built else f": torch {torch.__version__} was built without CUDA"
        raise UserError(f"--device {name}: torch finds no CUDA device here{why}")
    if (found.index or 0) >= count:
        raise UserError(f"--device {name}: torch finds no CUDA device here above cuda:{count - 1}")
    return found
