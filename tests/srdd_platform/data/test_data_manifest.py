"""Loading a manifest: what is no shard directory is refused in one line."""

from pathlib import Path

import pytest

from srdd.errors import UserError
from srdd_platform.data.manifest import Manifest
from srdd_platform.data.shards import prepare


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "holds no manifest.json"),
        ("{", "is not valid JSON"),
        ("[]", "has format None"),
        ('{"format": "other-1"}', "has format 'other-1', not 'srdd-shards-1'"),
        ('{"format": "srdd-shards-1", "classes": ["a"]}', "lacks 'splits'"),
    ],
)
def test_another_kind_of_directory(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        Manifest.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_missing_directory(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing is not a directory"):
        Manifest.load(tmp_path / "nothing")


def test_a_manifest_that_does_not_add_up(tmp_path: Path) -> None:
    prepare(source="digits", resolution=8, out=tmp_path / "out")
    path = tmp_path / "out" / "manifest.json"
    good = path.read_text()
    path.write_text(good.replace('"num": 1437,\n   "per', '"num": 33,\n   "per'))
    with pytest.raises(UserError, match="the shards of train do not add up to 33"):
        Manifest.load(tmp_path / "out")
    path.write_text(good.replace("train-000000.tar", "../train-000000.tar"))
    with pytest.raises(UserError, match="lies outside the directory"):
        Manifest.load(tmp_path / "out")
