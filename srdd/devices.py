"""Devices and dtypes by the names that options have.

torch is imported where one is looked up, so that options can be read without it.
"""

from typing import TYPE_CHECKING, Literal, get_args

from srdd.errors import UserError

if TYPE_CHECKING:
    import torch

Dtype = Literal["float32", "bfloat16", "float16"]
DTYPES: tuple[Dtype, ...] = get_args(Dtype)  # of a model's weights while it samples


def check_dtype(name: str) -> None:
    """Refuse a dtype that no model samples in.

    Raises:
        UserError: its name is not in :data:`DTYPES`.
    """
    if name not in DTYPES:
        raise UserError(f"--dtype must be one of {', '.join(DTYPES)}, got {name!r}")


def find_dtype(name: str) -> "torch.dtype":
    """A torch dtype.

    Raises:
        UserError: its name is not in :data:`DTYPES`.
    """
    import torch

    check_dtype(name)
    found: torch.dtype = getattr(torch, name)
    return found


def find_device(name: str) -> "torch.device":
    """A torch device that is there.

    Raises:
        UserError: the name is unknown, or this machine has none.
    """
    import torch

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
