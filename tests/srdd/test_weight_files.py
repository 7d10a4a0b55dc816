"""One reader for files of weights: what loads, what is refused, and as what."""

import argparse
import collections
import datetime
import decimal
import functools
import gzip
import io
import json
import os
import pathlib
import pickle
import random
import struct
import tarfile
import types
import uuid
import warnings
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file
from torch import Tensor

from srdd.errors import UserError
from srdd.foreign import main_state, owned
from srdd.unpickle import unpickle
from srdd.weight_files import read_weights

STATE = {
    "a.weight": torch.arange(12.0).view(3, 4),
    "b": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "n": torch.tensor(3),
}
WANTED = "--vae takes VAR's"


def saved(value: object = STATE, **options: Any) -> bytes:
    """What ``torch.save`` writes."""
    file = io.BytesIO()
    torch.save(value, file, **options)
    return file.getvalue()


def zipped(files: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return file.getvalue()


def entries(archive: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        return {name: opened.read(name) for name in opened.namelist()}


LEGACY = saved(_use_new_zipfile_serialization=False)
ZIP = saved()
SAFE = save(STATE)
GOOD = {
    "zip.pth": ZIP,
    "legacy.pth": LEGACY,
    "protocol_3.pth": saved(pickle_protocol=3),
    "legacy_protocol_3.pth": saved(pickle_protocol=3, _use_new_zipfile_serialization=False),
    "packed_again.pth": zipped(entries(ZIP), zipfile.ZIP_DEFLATED),
    "s.safetensors": SAFE,
    "safetensors_as.pth": SAFE,
    "safetensors_as.ckpt": SAFE,
    "pickle_as.safetensors": ZIP,
    "legacy_as.safetensors": LEGACY,
    "without_a_suffix": ZIP,
    "OrderedDict.pt": saved(collections.OrderedDict(STATE)),
}


def same(found: dict[str, Any], expected: dict[str, Tensor] = STATE) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


@pytest.mark.parametrize("name", GOOD)
def test_every_form_loads_whatever_its_name_ends_in(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(GOOD[name])
    same(read_weights(tmp_path / name))


def tar_of(content: bytes) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        member = tarfile.TarInfo("model.pth")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


class Double(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2


def script() -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is a format of the past
        torch.jit.save(torch.jit.trace(Double(), torch.ones(1)), file)
    return file.getvalue()


NOT_WEIGHTS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is empty: fetch or copy it again"),
    "one byte": (b"P", "is a text file, which begins with 'P'"),
    "html": (b"<!DOCTYPE html><html><body>Sign in", "is an HTML page"),
    "html after a mark": (b"\xef\xbb\xbf\n <HTML>", "is an HTML page"),
    "s3's error": (b"<?xml version='1.0'?><Error><Code>AccessDenied", "is an XML document"),
    "a server's words": (b"404: Not Found", "is a text file, which begins with '404: Not Found'"),
    "long text": ("Größe ".encode() * 200, "is a text file, which begins with 'Größe Größe"),
    "json": (b'{"error": "Invalid\\ncredentials"}', "is a JSON document, which begins with"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid", "is a Git LFS pointer"),
    "npy": (b"\x93NUMPY\x01\x00v\x00", "is a NumPy array"),
    "npz": (zipped({"images.npy": b"", "labels.npy": b""}), "is an archive of NumPy arrays"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + b"\0" * 64, "is an HDF5 file"),
    "gguf": (b"GGUF\x03\x00\x00\x00", "is a GGUF file"),
    "png": (b"\x89PNG\r\n\x1a\n", "is an image"),
    "gzip": (gzip.compress(ZIP), "is a gzip archive: unpack it"),
    "zstd": (b"\x28\xb5\x2f\xfd\x00", "is a Zstandard archive: unpack it"),
    "tar": (tar_of(ZIP), "is a tar archive: unpack it"),
    "zip of files": (zipped({"a/model.pth": ZIP}), "is a zip archive: unpack it"),
    "empty zip": (zipped({}), "is a zip archive: unpack it"),
    "zip without data.pkl": (
        zipped({n: c for n, c in entries(ZIP).items() if not n.endswith("data.pkl")}),
        "is a zip archive: unpack it",
    ),
    "zip without data": (
        zipped({n: c for n, c in entries(ZIP).items() if "/data/" not in n}),
        "is damaged or cut short",
    ),
    "cut zip": (ZIP[: len(ZIP) // 2], "is a zip archive that is damaged or cut short"),
    "cut legacy": (LEGACY[:-9], "is damaged or cut short"),
    "cut safetensors": (SAFE[:-1], "is a safetensors file that is damaged or cut short"),
    "safetensors' header alone": (SAFE[:100], "is a safetensors file that is damaged or cut"),
    "zeros of a download": (b"\0" * 4096, "is a file of zeros"),
    "bytes": (bytes(range(128, 256)), "is neither a safetensors file nor one of torch.save"),
    "plain pickle": (pickle.dumps({"a": 1}), "is a Python pickle that torch.save did not write"),
    "pickle of protocol 2": (pickle.dumps([1], 2), "is a Python pickle that torch.save did not"),
    "TorchScript": (script(), "is a TorchScript program, not a state dict"),
    "list": (saved([1, 2]), "holds a list, not tensors by name"),
    "tensor": (saved(torch.ones(3)), "holds a Tensor, not tensors by name"),
    "number as a name": (saved({0: torch.ones(3)}), "holds a dict, not tensors by name"),
    "namespace": (saved(argparse.Namespace(a=1)), "holds a Namespace, not tensors by name"),
    "protocol 4": (saved(pickle_protocol=4), "save it again with torch.save's defaults"),
}


def refused(path: Path) -> str:
    """The one line with which a file is refused; it begins with the file's name."""
    with pytest.raises(UserError) as caught:
        read_weights(path, WANTED)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    assert "\x1b" not in message
    assert len(message) < len(str(path)) + 250
    return message.removeprefix(f"{path} ")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("name", NOT_WEIGHTS)
def test_a_file_is_refused_as_what_it_is(tmp_path: Path, name: str, suffix: str) -> None:
    content, said = NOT_WEIGHTS[name]
    path = tmp_path / f"given{suffix}"
    path.write_bytes(content)
    message = refused(path)
    assert message.startswith(said) or said in message
    damaged = ("again" in message) or "unpickled" in message
    assert message.endswith(WANTED) is not damaged


def test_what_is_no_file_on_a_disk_is_refused_unread(tmp_path: Path) -> None:
    """A pipe without a writer would be waited for, a device read, for ever."""
    os.mkfifo(tmp_path / "pipe.pth")
    assert refused(tmp_path / "pipe.pth").startswith("is a pipe or a device")
    assert refused(Path("/dev/zero")).startswith("is a pipe or a device")
    assert refused(tmp_path).startswith("is a directory: name the file in it; --vae takes")
    assert refused(tmp_path / "gone.pth") == "does not exist"
    (tmp_path / "file").touch()
    assert refused(tmp_path / "file" / "x.pth") == "cannot be read: Not a directory"
    (tmp_path / "loop").symlink_to("loop")
    assert refused(tmp_path / "loop").startswith("cannot be read: Too many levels")
    assert refused(Path("a\0b")).startswith("cannot be read")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_permission_is_named(tmp_path: Path) -> None:
    path = tmp_path / "secret.pth"
    path.write_bytes(ZIP)
    path.chmod(0)
    assert refused(path) == "cannot be read: Permission denied"


HARMLESS: dict[str, Any] = {
    "numpy float": np.float64(1), "numpy half": np.float16(1), "numpy long": np.longdouble(1),
    "numpy bool": np.bool_(True), "numpy unsigned": np.uint64(2**63), "numpy text": np.str_("a"),
    "numpy bytes": np.bytes_(b"a"), "numpy complex": np.complex128(1j),
    "numpy complex64": np.complex64(1j), "numpy date": np.datetime64("2026-01-01"),
    "numpy seconds": np.timedelta64(3, "s"), "numpy array": np.arange(3.0),
    "numpy objects": np.array([1, "a", None], dtype=object),
    "numpy records": np.zeros(2, dtype=[("a", "i4")]), "numpy dtype": np.dtype("f4"),
    "numpy type": np.float32, "numpy state": np.random.get_state(),  # noqa: NPY002
    "numpy RandomState": np.random.RandomState(1),
    "numpy Generator": np.random.default_rng(1), "numpy Philox": np.random.Philox(1),
    "numpy generator's state": np.random.default_rng(1).bit_generator.state,
    "numpy SeedSequence": np.random.SeedSequence(3),
    "random's state": random.getstate(), "random's Random": random.Random(3),
    "torch's state": torch.get_rng_state(), "torch dtype": torch.float16,
    "Namespace": argparse.Namespace(a=1, path=Path("x")), "SimpleNamespace":
    types.SimpleNamespace(a=1), "OrderedDict": collections.OrderedDict(a=1),
    "defaultdict": collections.defaultdict(list, {"a": [1]}),
    "deque": collections.deque([1, 2], maxlen=3), "Counter": collections.Counter("aab"),
    "partial of a type": functools.partial(int, base=3),
    "partial of a norm": functools.partial(torch.nn.LayerNorm, eps=1e-6),
    "datetime": datetime.datetime(2026, 1, 2), "date": datetime.date(2026, 1, 2),
    "datetime of a zone": datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC),
    "timedelta": datetime.timedelta(3), "Decimal": decimal.Decimal("1.5"), "UUID": uuid.uuid4(),
    "path": Path("a/b"), "Windows path": pathlib.PureWindowsPath("C:/a"), "complex": 1j,
    "bytes": b"a", "bytearray": bytearray(b"a"), "set": {1, 2}, "frozenset": frozenset([1]),
    "range": range(3), "slice": slice(1, 2), "type": float, "large": 2**100, "nan": float("nan"),
}  # fmt: skip


@pytest.mark.parametrize("name", HARMLESS)
def test_harmless_values_beside_the_tensors_load(tmp_path: Path, name: str) -> None:
    """pytorch#132284 and its like: trainers keep numpy's scalars, dates and random states."""
    path = tmp_path / "checkpoint.pth"
    value = {"model": STATE, "beside": [HARMLESS[name]], HARMLESS[name].__class__.__name__: 1}
    zips = [True] if name == "partial of a norm" else [True, False]  # the older form keeps source
    for new in zips:
        torch.save(value, path, _use_new_zipfile_serialization=new)
        same(main_state(read_weights(path)))


def test_a_stand_in_is_never_the_type_that_it_stands_for(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pth"
    torch.save({"f": functools.partial(int, "7"), "a": np.arange(3), "p": Path("x")}, path)
    for value in read_weights(path).values():
        assert type(value).__module__ == "srdd.unpickle"
        assert not vars(value)
        assert not callable(value)


class Calls:
    """A pickle that calls a function when it is loaded."""

    def __init__(self, function: Callable[..., Any], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[object, ...]]:
        return self.call


def _marks(path: str) -> None:
    Path(path).touch()


EVIL: dict[str, tuple[Callable[..., Any], Callable[[str], tuple[object, ...]], str]] = {
    "os.system": (os.system, lambda p: (f"touch {p}",), "posix.system"),
    "eval": (eval, lambda p: (f"open({p!r}, 'w')",), "eval"),
    "exec": (exec, lambda p: (f"open({p!r}, 'w')",), "exec"),
    "open": (open, lambda p: (p, "w"), "_?io.open|open"),
    "os.mkdir": (os.mkdir, lambda p: (p,), "posix.mkdir"),
    "a test's function": (_marks, lambda p: (p,), ".*_marks"),
    "partial": (functools.partial, lambda p: (os.mkdir, p), "posix.mkdir"),
    "getattr": (getattr, lambda p: (Path(p), "touch"), "getattr"),
}


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("name", EVIL)
def test_no_code_in_a_pickle_is_run(tmp_path: Path, name: str, new: bool) -> None:
    function, arguments, named = EVIL[name]
    path, ran = tmp_path / "evil.pth", tmp_path / "ran"
    beside = {"model": STATE, "args": Calls(function, *arguments(str(ran)))}
    torch.save(beside, path, _use_new_zipfile_serialization=new)
    with pytest.raises(UserError, match=rf"needs ({named}) to be unpickled, which could run code"):
        read_weights(path)
    assert not ran.exists()
    if name not in ("partial", "getattr"):  # these only hand on what another would call
        torch.load(path, weights_only=False)
        assert ran.exists()  # it is a loaded gun


def test_a_module_as_a_whole_is_refused_by_its_class(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save({"model": torch.nn.Linear(2, 2)}, path)
    assert refused(path).startswith("needs torch.nn.modules.linear.Linear to be unpickled")


def test_a_name_alone_calls_nothing(tmp_path: Path) -> None:
    """A stand-in given a state, items or arguments that would be misused keeps none of them."""
    program = (
        b"\x80\x02cargparse\nNamespace\n)\x81}(X\x09\x00\x00\x00__class__X\x01\x00\x00\x00aub."
    )
    data = entries(saved({"a": 1})) | {"archive/data.pkl": program}
    path = tmp_path / "forged.pth"
    path.write_bytes(zipped(data))
    assert vars(unpickle(path)) == {}


# -- shards ----------------------------------------------------------------------------------------


def shards(directory: Path, **changes: Any) -> Path:
    """Two shards of the state, and their index."""
    names = [f"model-{i:05d}-of-00002.safetensors" for i in (1, 2)]
    save_file({"a.weight": STATE["a.weight"]}, directory / names[0])
    save_file({"b": STATE["b"], "n": STATE["n"]}, directory / names[1])
    places = {"a.weight": names[0], "b": names[1], "n": names[1], **changes}
    path = directory / "model.safetensors.index.json"
    path.write_text(json.dumps({"metadata": {"total_size": 60}, "weight_map": places}))
    return path


def test_an_index_brings_its_shards(tmp_path: Path) -> None:
    same(read_weights(shards(tmp_path)))
    shard = tmp_path / "model-00001-of-00002.safetensors"
    assert refused(shard).startswith("is one of 2 shards: give the file that ends in .index.json")
    (tmp_path / "model-00001-of-00001.safetensors").write_bytes(SAFE)
    same(read_weights(tmp_path / "model-00001-of-00001.safetensors"))


@pytest.mark.parametrize("place", ["../x.safetensors", "/etc/passwd", "", 3, None])
def test_an_index_stays_in_its_directory(tmp_path: Path, place: object) -> None:
    assert "is no index of shards of weights" in refused(shards(tmp_path, b=place))


def test_shards_that_are_not_all_there(tmp_path: Path) -> None:
    index = shards(tmp_path, c="model-00002-of-00002.safetensors")
    assert refused(index).startswith("names 'c', which model-00002-of-00002.safetensors lacks")
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match=r"model-00002-of-00002\.safetensors does not exist"):
        read_weights(index)
    for content in ("{}", '{"weight_map": []}', '{"weight_map": ', '{"weight_map": {}}'):
        index.write_text(content)
        assert "is no index of shards of weights" in refused(index), content


# -- mutations of good files -----------------------------------------------------------------------

SMALL = {"zip": ZIP, "legacy": LEGACY, "safetensors": SAFE}
kinds = st.sampled_from(sorted(SMALL))
mutations = settings(
    max_examples=150, deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip


def outcome(path: Path, content: bytes) -> dict[str, Any] | None:
    """What a file holds, used as a checkpoint's weights are; None if it is refused in one line."""
    path.write_bytes(content)
    with suppress(UserError):
        found = read_weights(path)
        owned({n: t for n, t in main_state(found).items() if n != "n"})
        return found
    return None


@mutations
@given(kind=kinds, data=st.data())
def test_a_cut_file_is_refused(tmp_path: Path, kind: str, data: st.DataObject) -> None:
    good = SMALL[kind]
    length = data.draw(st.integers(0, len(good) - 1))
    found = outcome(tmp_path / "cut.pth", good[:length])
    if found is not None:  # what is behind the last tensor is not needed
        same(found)


@mutations
@given(kind=kinds, before=st.binary(min_size=1, max_size=24))
def test_bytes_in_front_are_refused(tmp_path: Path, kind: str, before: bytes) -> None:
    found = outcome(tmp_path / "before.pth", before + SMALL[kind])
    if found is not None:
        same(found)


@mutations
@given(
    kind=kinds,
    flips=st.lists(st.tuples(st.integers(0, 2**20), st.integers(0, 255)), min_size=1, max_size=4),
)
def test_flipped_bytes_are_refused_or_read(
    tmp_path: Path, kind: str, flips: list[tuple[int, int]]
) -> None:
    """No file has a checksum of everything: what loads holds names, and nothing else is raised."""
    good = bytearray(SMALL[kind])
    for place, value in flips:
        good[place % len(good)] = value
    found = outcome(tmp_path / "flipped.pth", bytes(good))
    assert found is None or all(isinstance(name, str) for name in found)


def test_a_safetensors_header_that_claims_more_than_there_is(tmp_path: Path) -> None:
    for dtype, shape, offsets in (
        ("F32", [2**40, 2**40], [0, 4]), ("F32", [1], [0, 2**62]), ("F99", [1], [0, 4]),
        ("F32", [-1], [0, 4]), ("F32", [1], [4, 0]),
    ):  # fmt: skip
        header = {"a": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}
        text = json.dumps(header).encode()
        path = tmp_path / "claims.safetensors"
        path.write_bytes(struct.pack("<Q", len(text)) + text + b"\0" * 4)
        assert refused(path).startswith("is a safetensors file that is damaged or cut short")
