"""CIFAR-10's Python batches: read as they are, and never run."""

import io
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from srdd.errors import UserError
from srdd_platform.data.cifar import cifar10

NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
FILES = ("data_batch_1", "data_batch_2", "test_batch")


def python2(value: Any) -> bytes:
    """A pickle as Python 2 wrote the official files: byte strings, and numpy's old module."""
    out = io.BytesIO()

    def write(item: Any) -> None:
        if isinstance(item, dict):
            out.write(b"}(")
            for key, entry in item.items():
                write(key)
                write(entry)
            out.write(b"u")
        elif isinstance(item, list):
            out.write(b"](")
            for entry in item:
                write(entry)
            out.write(b"e")
        elif isinstance(item, bytes):
            out.write(b"T" + struct.pack("<I", len(item)) + item)
        elif isinstance(item, int):
            out.write(b"J" + struct.pack("<i", item))
        else:
            out.write(
                b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
            )
            out.write(b"(K\x01")
            for length in item.shape:
                write(length)
            out.write(b"\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xff")
            out.write(b"J\xff\xff\xff\xffK\x00tb\x89")
            write(item.tobytes())
            out.write(b"tb")

    out.write(b"\x80\x02")
    write(value)
    out.write(b".")
    return out.getvalue()


def batch(number: int) -> tuple[np.ndarray, list[int]]:
    rng = np.random.default_rng(number)
    return rng.integers(0, 256, (4, 3072), dtype=np.uint8), rng.integers(0, 10, 4).tolist()


@pytest.fixture(params=["python2", "protocol 2", "protocol 4"])
def batches(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    def dump(name: str, value: dict[str, Any]) -> None:
        if request.param == "python2":
            data = python2({key.encode(): item for key, item in value.items()})
        else:
            data = pickle.dumps(value, protocol=int(request.param[-1]))
        (tmp_path / "cifar-10-batches-py" / name).write_bytes(data)

    (tmp_path / "cifar-10-batches-py").mkdir()
    dump("batches.meta", {"label_names": [name.encode() for name in NAMES]})
    for number, name in enumerate(FILES):
        data, labels = batch(number)
        dump(name, {"batch_label": b"a batch", "labels": labels, "data": data})
    return tmp_path


@pytest.mark.parametrize("below", ["", "cifar-10-batches-py"])
def test_pixels_and_labels(batches: Path, below: str) -> None:
    listing = cifar10(batches / below)
    assert {part: len(images) for part, images in listing.parts.items()} == {"train": 8, "test": 4}
    for number, name in enumerate(FILES):
        data, labels = batch(number)
        for i in range(4):
            planes = data[i].reshape(3, 32, 32)
            pixels = listing.read(f"{name}/{i:05d}", 32).pixels
            np.testing.assert_array_equal(pixels, planes.transpose(1, 2, 0))
        found = [image.name for image in listing.images if image.origin.startswith(name)]
        assert found == [NAMES[label] for label in labels]
    assert listing.read("test_batch/00000", 16).pixels.shape == (16, 16, 3)
    assert listing.read("test_batch/00000", 32, 1.125).pixels.shape == (36, 36, 3)


class Evil:
    """Unpickled by an ordinary unpickler it writes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.target), "w")


@pytest.mark.parametrize("where", ["batches.meta", "data_batch_2"])
def test_a_pickle_that_runs_code_does_not_run(tmp_path: Path, where: str) -> None:
    for name in ("batches.meta", *FILES):
        data, labels = batch(0)
        value: dict[str, Any] = {"label_names": NAMES, "data": data, "labels": labels}
        if name == where:
            value["extra"] = Evil(tmp_path / "pwned")
        (tmp_path / name).write_bytes(pickle.dumps(value, protocol=2))
    with pytest.raises(UserError, match=rf"{where} holds .*open, .*nothing of it was run"):
        cifar10(tmp_path)
    assert not (tmp_path / "pwned").exists()
    pickle.loads((tmp_path / where).read_bytes())["extra"].close()
    assert (tmp_path / "pwned").exists()  # it would have


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (b"\x80\x02garbage", r"data_batch_1 is damaged"),
        (b"", r"data_batch_1 is damaged"),
        (pickle.dumps([1, 2]), r"data_batch_1 is damaged"),
        (pickle.dumps({"data": "x", "labels": []}), "is not a CIFAR-10 batch"),
        (pickle.dumps({"data": b"x" * 3072, "labels": [1]}), "is not a CIFAR-10 batch"),
    ],
)
def test_a_damaged_batch_is_named(tmp_path: Path, value: bytes, message: str) -> None:
    (tmp_path / "batches.meta").write_bytes(pickle.dumps({"label_names": NAMES}))
    (tmp_path / "data_batch_1").write_bytes(value)
    with pytest.raises(UserError, match=message) as caught:
        cifar10(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("labels", [[1], [1, 2, 3, 10], [1, 2, 3, -1], [1, 2, 3, "4"]])
def test_labels_that_do_not_fit_are_refused(tmp_path: Path, labels: list[Any]) -> None:
    (tmp_path / "batches.meta").write_bytes(pickle.dumps({"label_names": NAMES}, protocol=4))
    value = {"data": batch(0)[0], "labels": labels}
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps(value, protocol=4))
    with pytest.raises(UserError, match="labels that do not fit"):
        cifar10(tmp_path)
