"""What commit 55e1f42 left on disk, and what it said of that (tests/data/make_55e1f42.py)."""

import json
import tarfile
from pathlib import Path

ARCHIVE = Path(__file__).parent / "data" / "written_by_55e1f42.tar.xz"
EXPECTED = json.loads(ARCHIVE.with_name("written_by_55e1f42.json").read_text())
MASKS = ("markov", "block_causal")


def unpack(root: Path) -> Path:
    """Write the archive's files below a folder; returns the directory of the finished ones."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(root, filter="data")
    return root / "runs" / "digits"
