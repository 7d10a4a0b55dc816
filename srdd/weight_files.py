"""Files of weights: their kind is told by their content, whatever their names end in."""

import json
import re
import stat
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from srdd.errors import UserError
from srdd.unpickle import unpickle

WANTED = "weights are a .safetensors file, or one that torch.save wrote"
_TORCH_LEGACY = bytes.fromhex("8a0a6cfc9c46f9206aa85019")  # torch.save's first number before 2020
_SHARD = re.compile(r"-\d{5}-of-(\d{5})\.")
_ARCHIVES = {
    b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"7z\xbc\xaf": "7-Zip",
    b"Rar!": "RAR", b"\x28\xb5\x2f\xfd": "Zstandard",
}  # fmt: skip
_OTHERS = {
    b"version https://git-lfs": "a Git LFS pointer, not the file it stands for (git lfs pull)",
    b"\x93NUMPY": "a NumPy array", b"\x89HDF": "an HDF5 file, as Keras writes",
    b"GGUF": "a GGUF file, as llama.cpp takes", b"\x89PNG": "an image", b"\xff\xd8\xff": "an image",
    b"%PDF": "a PDF document", b"\x7fELF": "a program",
}  # fmt: skip


def read_weights(path: Path, wanted: str = WANTED) -> dict[str, Any]:
    """Read a safetensors file, the index of several, or what ``torch.save`` wrote.

    No code in the file is run (:mod:`srdd.unpickle`). Large files are mapped, not copied.

    Args:
        path: the file.
        wanted: what would be right, for the message about something else: "--vae takes ...".

    Returns:
        What the file holds by name: tensors, and whatever a trainer stored beside them.

    Raises:
        UserError: the file cannot be read, is damaged, or is no file of weights; the message says
            what it is.
    """
    head = _head(path, wanted)
    if path.name.endswith(".index.json") and head.lstrip()[:1] == b"{":
        return _read_shards(path, wanted)
    if (shard := _SHARD.search(path.name)) and int(shard[1]) > 1:
        raise UserError(
            f"{path} is one of {int(shard[1])} shards: give the file that ends in .index.json"
        )
    return _read_one(path, head, wanted)


def _head(path: Path, wanted: str) -> bytes:
    """The first bytes of a file. A pipe or a device is not opened, as that might wait for ever."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise UserError(f"{path} is a directory: name the file in it; {wanted}")
        if not stat.S_ISREG(mode):
            raise UserError(f"{path} is a pipe or a device, not a file on a disk; {wanted}")
        with path.open("rb") as file:
            head = file.read(512)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (OSError, ValueError) as error:  # the latter for a name with a null character
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path} cannot be read: {reason}") from None
    if not head:
        raise UserError(f"{path} is empty: fetch or copy it again")
    return head


def _read_one(path: Path, head: bytes, wanted: str) -> dict[str, Any]:
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 2**27:
        loaded: Any = _read_safetensors(path)
    elif head.startswith(b"PK"):
        _check_zip(path, wanted)
        loaded = unpickle(path)
    elif head.startswith(b"\x80") and _TORCH_LEGACY in head[:32]:
        loaded = unpickle(path)
    else:
        raise UserError(f"{path} is {_what(head)}; {wanted}")
    if not isinstance(loaded, Mapping) or not all(isinstance(name, str) for name in loaded):
        raise UserError(f"{path} holds a {type(loaded).__name__}, not tensors by name; {wanted}")
    return dict(loaded)


def _read_safetensors(path: Path) -> dict[str, Any]:
    try:
        return dict(load_file(path))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    except Exception:  # a damaged header may end in any of them
        raise UserError(
            f"{path} is a safetensors file that is damaged or cut short: fetch or copy it again"
        ) from None


def _read_shards(path: Path, wanted: str) -> dict[str, Any]:
    try:
        places = json.loads(path.read_bytes())["weight_map"]
        files = sorted(set(places.values()))
        plain = bool(files) and all(name and Path(name).name == name for name in files)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        plain = False
    if not plain:
        raise UserError(f"{path} is no index of shards of weights; {wanted}")
    tensors: dict[str, Any] = {}
    for name in files:
        shard = path.parent / name
        tensors |= _read_one(shard, _head(shard, wanted), wanted)
    if missing := sorted(places.keys() - tensors.keys()):
        raise UserError(
            f"{path} names {missing[0]!r}, which {places[missing[0]]} lacks: fetch all of it again"
        )
    return tensors


def _check_zip(path: Path, wanted: str) -> None:
    """Refuse a zip archive that ``torch.save`` did not write."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except Exception:  # zipfile raises many kinds
        raise UserError(
            f"{path} is a zip archive that is damaged or cut short: fetch or copy it again"
        ) from None
    inner = {name.partition("/")[2] for name in names}
    if "constants.pkl" in inner or any(name.startswith("code/") for name in inner):
        raise UserError(f"{path} is a TorchScript program, not a state dict; {wanted}")
    if "data.pkl" in inner:
        return
    if names and all(name.endswith(".npy") for name in names):
        raise UserError(f"{path} is an archive of NumPy arrays; {wanted}")
    raise UserError(f"{path} is a zip archive: unpack it, if weights are in it; {wanted}")


def _what(head: bytes) -> str:
    """What a file is that holds no weights, by its first bytes."""
    for mark, name in _ARCHIVES.items():
        if head.startswith(mark):
            return f"a {name} archive: unpack it"
    if head[257:262] == b"ustar":
        return "a tar archive: unpack it"
    for mark, name in _OTHERS.items():
        if head.startswith(mark):
            return name
    if head[:1] == b"\x80" and head[1:2] <= b"\x05":
        return (
            "a Python pickle that torch.save did not write: load it where it comes from, and save "
            "its tensors with torch.save"
        )
    if not head.strip(b"\0"):
        return "a file of zeros: its download did not finish"
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return "an HTML page: the address led to a page, not to the file"
    if start.startswith(b"<"):
        return "an XML document, such as a server's error message"
    text = (
        head[:-4].decode("utf-8", "replace")
        if len(head) == 512
        else head.decode("utf-8", "replace")
    )
    if all(char.isprintable() or char.isspace() for char in text) and "\ufffd" not in text:
        kind = "a JSON document" if start[:1] in (b"{", b"[") else "a text file"
        return f"{kind}, which begins with {' '.join(text.split())[:40]!r}"
    return "neither a safetensors file nor one of torch.save, or its first bytes are damaged"
