"""What ``torch.save`` wrote, read without running any code that it may carry.

PyTorch's restricted unpickler calls nothing but its own functions that build tensors, and what it
is given here by name. Here a name never leads to the class or function of that name: harmless
types of other libraries, which trainers store beside the tensors, are replaced by stand-ins that
keep nothing. Thus those libraries need not be installed, and nothing in them can be called.
"""

import re
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch

from srdd.errors import UserError


class _StandIn:
    """Made of anything, and empty: its subclasses have the names of the types replaced."""

    def __new__(cls, *_: object) -> "_StandIn":
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        """Keep nothing."""


class _Entries:
    """Stands in for a kind of dictionary: its entries follow in the pickle, and are kept."""

    def __new__(cls, *_: object) -> OrderedDict[Any, Any]:  # type: ignore[misc]
        return OrderedDict()


def _items(*_: object) -> list[Any]:
    """Stands in for a kind of list: its items follow in the pickle."""
    return []


_NAMES = """
argparse.Namespace types.SimpleNamespace functools.partial typing.Any
builtins.bool builtins.int builtins.float builtins.str builtins.bytes builtins.list builtins.tuple
builtins.dict builtins.object builtins.range builtins.slice builtins.frozenset
datetime.date datetime.time datetime.datetime datetime.timedelta datetime.timezone
decimal.Decimal fractions.Fraction uuid.UUID random.Random
pathlib.PosixPath pathlib.PurePosixPath pathlib.WindowsPath pathlib.PureWindowsPath
pathlib._local.PosixPath pathlib._local.PurePosixPath pathlib._local.WindowsPath
pathlib._local.PureWindowsPath
numpy.dtype numpy.ndarray numpy._core.multiarray.scalar numpy.core.multiarray.scalar
numpy._core.multiarray._reconstruct numpy.core.multiarray._reconstruct
numpy.random._pickle.__randomstate_ctor numpy.random._pickle.__generator_ctor
numpy.random._pickle.__bit_generator_ctor numpy.random._mt19937.MT19937 numpy.random._pcg64.PCG64
numpy.random._pcg64.PCG64DXSM numpy.random._philox.Philox numpy.random._sfc64.SFC64
numpy.random.bit_generator.__pyx_unpickle_SeedSequence numpy.random.bit_generator.SeedSequence
numpy.float64 numpy.float32 numpy.float16 numpy.int64 numpy.int32 numpy.uint8 numpy.bool_
torch.nn.modules.normalization.LayerNorm
omegaconf.dictconfig.DictConfig omegaconf.listconfig.ListConfig omegaconf.base.Metadata
omegaconf.base.ContainerMetadata omegaconf.nodes.AnyNode omegaconf.nodes.StringNode
omegaconf.nodes.IntegerNode omegaconf.nodes.FloatNode omegaconf.nodes.BooleanNode
pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint
pytorch_lightning.callbacks.early_stopping.EarlyStopping
lightning.pytorch.callbacks.model_checkpoint.ModelCheckpoint
lightning.pytorch.callbacks.early_stopping.EarlyStopping
""".split()
_DICTIONARIES = """
collections.defaultdict easydict.EasyDict yacs.config.CfgNode ml_collections.ConfigDict
pytorch_lightning.utilities.parsing.AttributeDict lightning_fabric.utilities.data.AttributeDict
lightning.fabric.utilities.data.AttributeDict
""".split()
_SAFE: list[Any] = [
    *((type(name.rsplit(".", 1)[1], (_StandIn,), {}), name) for name in _NAMES),
    *((_Entries, name) for name in _DICTIONARIES),
    (_items, "collections.deque"),
]


def unpickle(path: Path, *, mapped: bool | None = None) -> Any:
    """What a file written by ``torch.save`` holds, on the CPU.

    Args:
        path: the file, in PyTorch's zip format or the one before 2020.
        mapped: whether tensors are mapped from the file, not copied; default: where that can be.

    Raises:
        UserError: the file cannot be read or is damaged, or it needs a function or class that is
            not known to be harmless, which is named.
    """
    try:
        with (
            path.open("rb") as file,
            warnings.catch_warnings(),
            torch.serialization.safe_globals(_SAFE),
        ):
            warnings.simplefilter("ignore")
            if path.name.endswith(".safetensors"):
                mapped = False  # by such a path torch.load would take it for another format
            mmap = _mappable(path) if mapped is None else mapped
            source = path if mmap else file
            return torch.load(source, map_location="cpu", weights_only=True, mmap=mmap)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    except Exception as error:  # a damaged pickle may end in any of them
        text = str(error)
        if found := re.search(r"GLOBAL ([\w.]+)", text):
            raise UserError(
                f"{path} needs {found[1]} to be unpickled, which could run code: refused. "
                "Save its tensors alone, or as safetensors"
            ) from None
        if "Unsupported operand" in text:
            raise UserError(
                f"{path} has a pickle that the safe reader does not know (damaged, or of another "
                "protocol than 2): save it again with torch.save's defaults"
            ) from None
        if "persistent_load" in text:
            raise UserError(
                f"{path} holds a module with its source, not tensors alone: save its state_dict()"
            ) from None
        raise UserError(f"{path} is damaged or cut short: fetch or copy it again") from None


def _mappable(path: Path) -> bool:
    """Whether tensors can be mapped: not in PyTorch's older format, nor where they are packed."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return all(record.compress_type == zipfile.ZIP_STORED for record in archive.infolist())
