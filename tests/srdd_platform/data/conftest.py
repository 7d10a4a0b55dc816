"""What tests of data share."""

import sys
from collections.abc import Iterator

import pytest

from srdd_platform.data import formats


@pytest.fixture
def without_heif(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine on which pillow-heif is not installed."""
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    formats.reads_heif.cache_clear()
    yield
    formats.reads_heif.cache_clear()
