"""Trainings under Ray on damaged shards, from a URI, and on views of codes."""

import io
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from rich.console import Console
from safetensors.torch import load_file

from srdd.errors import UserError
from srdd.presets import digits
from srdd_platform.cli import main as cli
from srdd_platform.cli.log_output import log_to
from srdd_platform.core.ray_session import Session
from srdd_platform.core.runs import read_metrics
from srdd_platform.data.codes import load_views
from srdd_platform.data.dataset import ShardDataset
from srdd_platform.data.manifest import Manifest
from srdd_platform.train.job import Job, make_job
from srdd_platform.train.launcher import train
from srdd_platform.train.options import Options

pytestmark = pytest.mark.ray


def damage(data: Path, index: int) -> None:
    """Flip a bit in one training image."""
    dataset = ShardDataset(data, "train", {})
    shard, offset, _ = dataset._places[index].tolist()
    path = data / f"train-{shard:06d}.tar"
    content = bytearray(path.read_bytes())
    content[offset + 70] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(index, index))  # a file system may keep the time too coarsely


@pytest.fixture(scope="module")
def damaged(digits_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits, prepared before shards had indexes; one image is damaged."""
    data = Path(shutil.copytree(digits_shards, tmp_path_factory.mktemp("damaged") / "data"))
    for path in [*data.glob("*.npz"), data / ".inspected.json"]:
        path.unlink(missing_ok=True)
    damage(data, 700)
    return data


def classifier(data: Path | str, run: Path, **options: object) -> Job:
    given = {"max_steps": 12, "batch_size": 33, "flip": True, "loader_workers": 2, **options}
    return make_job("classifier", digits(), data, run, Options(**given))


def weights(run: Path) -> dict[str, object]:
    return load_file(run / "model" / "model.safetensors")


def test_a_training_goes_on_without_what_is_damaged(
    ray_session: Session, damaged: Path, tmp_path: Path
) -> None:
    """The same from a directory and from a URI; named and counted, and kept in the settings."""
    here, afar = tmp_path / "here", tmp_path / "afar"
    printed = io.StringIO()
    with log_to(Console(file=printed, width=500)):
        train([classifier(damaged, here)], ray_session)
    expected = f"Left out of {damaged}: 1 train images (train-00000700)"
    assert printed.getvalue().count("Left out of") == 1
    assert expected in printed.getvalue()
    cache = tmp_path / "cache"
    remote = classifier(damaged.as_uri(), afar, cache=cache)
    train([remote], ray_session)
    assert all(tensor.equal(weights(here)[name]) for name, tensor in weights(afar).items())
    assert read_metrics(here) == read_metrics(afar)
    config = json.loads((afar / "config.json").read_text())
    assert config["settings"]["skipped"] == {"train": {"train-00000700": 1}}
    assert config["settings"]["augmentation"] == {"crop": False, "flip": True}
    assert config["runtime"]["data"] == damaged.as_uri()
    brought = {path.name for path in cache.glob("*/val-*.tar")}
    assert brought <= {shard.name for shard in Manifest.load(damaged).splits["val"].shards}


def test_other_damage_is_another_run(ray_session: Session, damaged: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(damaged, tmp_path / "data"))
    train([classifier(data, tmp_path / "run", max_steps=1)], ray_session)
    damage(data, 30)
    with pytest.raises(UserError, match="has 2 unusable of 1437 train samples, more than the 1"):
        classifier(data, tmp_path / "run", max_steps=1)
    job = classifier(data, tmp_path / "run", max_steps=1, max_bad=2)
    with pytest.raises(UserError, match=r"skipped\.train\.train-00000030: absent -> 1"):
        train([job], None)


def test_a_transformer_trains_on_views_that_it_makes(
    ray_session: Session, tiny_pipeline: Path, damaged: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """One command; held-out images stay as they are, and what is damaged is in no code."""
    tokenizer = Path(shutil.copytree(tiny_pipeline / "tokenizer", tmp_path / "tokenizer"))
    line = ["train", "transformer", "--data", damaged, "--out", tmp_path / "run", "--tokenizer",
            tokenizer, "--views", 3, "--flip", "--max-steps", 2, "--address", "auto"]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["srdd", *map(str, line)])
    cli.main()
    (codes,) = (tokenizer / "codes").iterdir()
    codes_nVL, labels_n = load_views(codes, "train")
    assert codes_nVL.shape == (1436, 3, 30)
    dataset = ShardDataset(damaged, "train", {"train-00000700": 1})
    assert labels_n.tolist() == dataset.labels.tolist()
    assert load_views(codes, "val")[0].shape == (360, 1, 30)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["settings"]["codes"] == {"views": 3, "flip": True}
    assert json.loads((tmp_path / "run" / "validation.json").read_text())["n"] == 360
