"""Where codes go when the tokenizer's folder cannot be written, and that they are found again."""

import os
import shutil
from pathlib import Path

import pytest

from srdd.errors import UserError
from srdd.presets import digits
from srdd.var.pipeline import load_tokenizer, save_tokenizer
from srdd_platform.core.files import can_write, write_json
from srdd_platform.core.runs import open_run, refuse_foreign
from srdd_platform.data.code_places import codes_dir
from srdd_platform.data.codes import encode
from srdd_platform.data.store import open_store
from srdd_platform.train.job import make_job
from srdd_platform.train.options import TransformerOptions


@pytest.fixture
def shared(tiny_pipeline: Path, tmp_path: Path) -> Path:
    """A tokenizer's run that others own: nothing can be put beside its model."""
    run = tmp_path / "shared"
    save_tokenizer(load_tokenizer(tiny_pipeline / "tokenizer"), run / "model")
    write_json(run / "config.json", {"kind": "train tokenizer"})
    (run / "codes").write_text("a file in the place of the folder")
    return run


def whole(directory: Path) -> Path:
    """Codes that are there."""
    write_json(directory / "manifest.json", {})
    return directory


def test_a_folder_can_be_written_where_its_nearest_parent_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "locked").mkdir()
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: "locked" not in str(path)
                        and access(path, mode))  # fmt: skip
    monkeypatch.chdir(tmp_path)
    places = {
        Path("new/below"): True, tmp_path: True, tmp_path / "file": False,
        tmp_path / "file" / "below": False, tmp_path / "locked" / "a" / "b": False,
    }  # fmt: skip
    assert {path: can_write(path) for path in places} == places
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "locked"]


def test_codes_go_into_the_run_where_the_tokenizer_s_folder_cannot_be_written(
    digits_shards: Path, shared: Path, tmp_path: Path
) -> None:
    """tao-skill-bank#150: weights that are shared read-only."""
    run, place = tmp_path / "run", tmp_path / "codes"
    beside = codes_dir(open_store(digits_shards), shared)
    key = beside.name
    assert beside == shared / "codes" / key

    def found(**options: Path) -> Path:
        return codes_dir(open_store(digits_shards), shared, **options)

    assert found(run=run) == run / "codes" / key
    assert found(run=run, place=place) == place / key
    (shared / "codes").unlink()  # the folder can be written now
    assert found(run=run) == beside
    whole(run / "codes" / key)
    assert found(run=run) == run / "codes" / key
    whole(beside)
    assert found(run=run) == beside


def test_a_resumed_run_finds_its_codes_again(
    digits_shards: Path, shared: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"

    def job(codes: Path | None, views: int = 1) -> Path:
        options = TransformerOptions(codes=codes, views=views, flip=views > 1)
        made = make_job("transformer", digits(), digits_shards, run, options, tokenizer=shared)
        with open_run(run / f"views{views}", "train transformer", *made.config):
            shutil.copy(run / f"views{views}" / "config.json", run)
        return Path(made.inputs.codes)

    given = job(tmp_path / "elsewhere")
    assert given.parent == tmp_path / "elsewhere"
    whole(given)
    assert job(None) == given  # without --codes, by what the run recorded
    assert job(None, views=2).parent == run / "codes"  # other codes than those recorded
    (run / "config.json").write_text('["no run"]')
    assert job(None).parent == run / "codes"


def test_codes_in_a_run_directory_are_no_strangers_to_it(tmp_path: Path) -> None:
    whole(tmp_path / "codes" / "key")
    refuse_foreign(tmp_path)
    (tmp_path / "photo.jpg").touch()
    with pytest.raises(UserError, match="is not empty and holds no run"):
        refuse_foreign(tmp_path)


def test_an_extraction_that_cannot_write_says_what_to_give(
    digits_shards: Path, shared: Path
) -> None:
    with pytest.raises(UserError, match=r"codes cannot be written to .*/shared/codes: .*--codes"):
        encode(digits_shards, shared)
