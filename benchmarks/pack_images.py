"""Images and labels as one file of arrays, which needs no image library to be read.

    python -m benchmarks.pack_images cifar-10 cifar10.npz
    python -m benchmarks.pack_images cifar-10 some.npz --limit 500    # 31 MB instead of 184

The folder holds ``train/<class>/*`` and ``test/<class>/*``; the images have one size. The file
holds uint8 ``images`` [n, 3, R, R] with int64 ``labels`` [n], ``held_out`` and
``held_out_labels`` of the test split, and ``classes``, the names in label order. Needs Pillow.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from benchmarks import command
from srdd.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png")


def read_split(
    directory: Path, classes: list[str], limit: int | None = None
) -> tuple[npt.NDArray[np.uint8], list[int]]:
    """The images uint8 [n, 3, R, R] of class folders, in the order of their names, and labels.

    ``limit`` keeps so many of each class, the first by name.

    Raises:
        UserError: there are none, or their sizes differ.
    """
    images, labels = [], []
    for label, name in enumerate(classes):
        paths = sorted(p for p in (directory / name).iterdir() if p.suffix.lower() in SUFFIXES)
        for path in paths[:limit]:
            with Image.open(path) as image:
                images.append(np.asarray(image.convert("RGB")).transpose(2, 0, 1))
            labels.append(label)
    if not images:
        raise UserError(f"{directory} holds no images in class folders")
    if shapes := {image.shape for image in images} - {images[0].shape}:
        raise UserError(f"{directory} holds images of several sizes: {images[0].shape}, {shapes}")
    return np.stack(images), labels


def pack(directory: Path, out: Path, limit: int | None = None) -> dict[str, tuple[int, ...]]:
    """Write the file; returns the arrays' shapes."""
    if not (directory / "train").is_dir() or not (directory / "test").is_dir():
        raise UserError(f"{directory} needs train/ and test/, with a folder a class in each")
    classes = sorted(path.name for path in (directory / "train").iterdir() if path.is_dir())
    others = sorted(path.name for path in (directory / "test").iterdir() if path.is_dir())
    if classes != others:
        raise UserError(f"{directory}: train/ has the classes {classes}, test/ has {others}")
    arrays = {"classes": np.array(classes)}
    for split, name in (("train", "images"), ("test", "held_out")):
        images, labels = read_split(directory / split, classes, limit)
        key = "labels" if split == "train" else "held_out_labels"
        arrays |= {name: images, key: np.array(labels, dtype=np.int64)}
    temporary = out.with_name(f".{out.name}.tmp.npz")
    np.savez(temporary, **arrays)  # type: ignore[arg-type]
    temporary.replace(out)
    return {name: array.shape for name, array in arrays.items()}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("directory", type=Path)
    parser.add_argument("out", type=Path, help="FILE.npz")
    parser.add_argument("--limit", type=command.positive, help="images of each class in each split")
    args = parser.parse_args(argv)
    try:
        for name, shape in pack(args.directory, args.out, args.limit).items():
            print(f"{name}: {list(shape)}")
    except UserError as error:
        print(f"pack_images: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
