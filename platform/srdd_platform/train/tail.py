"""Reading a run's lines as they are written."""

import os
from pathlib import Path
from typing import BinaryIO, NamedTuple

from srdd_platform.core.runs import parse_lines


class News(NamedTuple):
    """What a file holds that was not seen before."""

    anew: bool  # what was seen before is void: the file has been replaced
    lines: list[dict[str, float]]


class Follower:
    """A file of JSON lines that grows, and is replaced where a run goes back to a checkpoint."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: BinaryIO | None = None  # kept open, so that no other gets its inode

    def read(self) -> News:
        """The whole lines since the last call; all of them where the file is another one."""
        anew = self._file is not None and self._replaced(self._file)
        if anew:
            self.close()
        if self._file is None:
            if not self.path.exists():
                return News(anew, [])
            self._file = self.path.open("rb")
        begin = self._file.tell()
        data = self._file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._file.seek(begin + len(whole))
        return News(anew, parse_lines(whole.decode(errors="replace")))

    def close(self) -> None:
        """Let the file go; the next read begins anew."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _replaced(self, file: BinaryIO) -> bool:
        try:
            return not os.path.samestat(os.stat(self.path), os.fstat(file.fileno()))
        except FileNotFoundError:
            return True
