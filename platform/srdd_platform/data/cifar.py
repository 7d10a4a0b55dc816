"""CIFAR-10 as its site hands it out: the Python batches, read without running what they hold.

``cifar-10-batches-py/`` holds ``data_batch_1`` to ``data_batch_5``, ``test_batch`` and
``batches.meta``. Each is a pickled dict: ``data`` uint8 [n, 3072] (red, green and blue planes of
32 x 32), ``labels`` a list of n ints; ``batches.meta`` has ``label_names``. A pickle may call any
function; here it may build numpy arrays, and whatever else it asks for is refused.
"""

import hashlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from srdd.class_names import readable
from srdd.errors import UserError
from srdd_platform.data.layouts import Found, Listing, class_tree
from srdd_platform.data.pixels import Loaded, fit

BATCHES = "cifar-10-batches-py"
META = "batches.meta"
SIDE = 32


def cifar10(path: Path) -> Listing:
    """``cifar-10-batches-py/``, or the images as ``train|test/<class>/``."""
    for root in (path, path / BATCHES):
        if (root / META).is_file():
            return _batches(root)
    return class_tree(path)


def _batches(root: Path) -> Listing:
    names = [readable(_text(name)) for name in _load(root / META, "label_names")]
    hashed = hashlib.sha256("\0".join(names).encode())
    pixels: dict[str, npt.NDArray[np.uint8]] = {}
    parts: dict[str, tuple[Found, ...]] = {}
    for part, files in (("train", "data_batch_*"), ("test", "test_batch")):
        images: list[Found] = []
        for file in sorted(root.glob(files)):
            data, labels = _load(file, "data", "labels")
            _check(file, data, labels, len(names))
            pixels[file.name] = data
            hashed.update(file.name.encode() + data.tobytes() + bytes(labels))
            images += [Found(names[y], f"{file.name}/{i:05d}") for i, y in enumerate(labels)]
        parts[part] = tuple(images)

    def read(origin: str, resolution: int, keep: float = 1.0) -> Loaded:
        file, _, row = origin.partition("/")
        planes = pixels[file][int(row)].reshape(3, SIDE, SIDE)
        image = Image.fromarray(np.ascontiguousarray(planes.transpose(1, 2, 0)))
        return Loaded(np.asarray(fit(image, resolution, keep)))

    return Listing(parts=parts, digest=hashed.hexdigest()[:16], read=read)


def _check(path: Path, data: Any, labels: Any, classes: int) -> None:
    whole = isinstance(data, np.ndarray) and data.dtype == np.uint8 and data.ndim == 2
    if not whole or data.shape[1] != 3 * SIDE * SIDE or not isinstance(labels, list):
        raise UserError(f"{path} is not a CIFAR-10 batch: download it again")
    if len(labels) != len(data) or not all(type(y) is int and 0 <= y < classes for y in labels):
        raise UserError(f"{path} has labels that do not fit its images: download it again")


def _load(path: Path, *fields: str) -> Any:
    """Fields of a pickled dict; one field by itself.

    Raises:
        UserError: the file is damaged, holds something else, or asks for more than arrays.
    """
    try:
        with path.open("rb") as file:
            value = _ArraysOnly(file, encoding="bytes").load()
        found = [value[name if name in value else name.encode()] for name in fields]
    except OSError:
        raise
    except _ForbiddenError as error:
        raise UserError(f"{path} holds {error}, which is not CIFAR-10's: nothing of it was run, "
                        "download it again") from None  # fmt: skip
    except Exception:  # a damaged pickle raises nearly anything
        raise UserError(f"{path} is damaged: download it again") from None
    return found[0] if len(found) == 1 else found


def _text(name: Any) -> str:
    return name.decode("utf-8", "surrogateescape") if isinstance(name, bytes) else str(name)


class _ForbiddenError(Exception):
    """What a pickle asked for, beyond arrays."""


def _latin1(text: str, encoding: str = "latin1") -> bytes:
    """How Python 3 writes bytes into a pickle of Python 2: the one use of ``_codecs.encode``."""
    if encoding not in ("latin1", "latin-1"):
        raise _ForbiddenError(f"bytes as {encoding}")
    return text.encode("latin-1")


def _array(kind: Any, shape: Any, code: Any) -> npt.NDArray[Any]:
    """An empty array, which the pickle then fills: ``numpy.core.multiarray._reconstruct``."""
    if kind is not np.ndarray:
        raise _ForbiddenError("an array of another kind")
    return np.empty(0, dtype=np.uint8)


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name == "_reconstruct" and module in (
            "numpy.core.multiarray", "numpy._core.multiarray",
        ):  # fmt: skip
            return _array
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        if (module, name) == ("_codecs", "encode"):
            return _latin1
        raise _ForbiddenError(f"{module}.{name}")
