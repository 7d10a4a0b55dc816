"""The transformer's recipe on Ray Train: averages, extension, warm start, no classes."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import srdd
from srdd.errors import UserError
from srdd.presets import Preset, digits
from srdd_platform.core.ray_session import Session
from srdd_platform.core.runs import read_metrics
from srdd_platform.data.codes import encode, load_codes
from srdd_platform.train.extend import extends, is_finished
from srdd_platform.train.job import Job, make_job
from srdd_platform.train.launcher import train
from srdd_platform.train.options import TransformerOptions

pytestmark = pytest.mark.ray
STEPS, LONGER = 20, 30
RECIPE: dict[str, Any] = {
    "checkpoint_every": 5, "ema": 0.8, "accumulate": 2, "refine_share": 0.5, "validate_every": 8,
    "lr_batch": 64, "final_weight_decay": 0.2, "lr_schedule": "linear", "hold": 0.05,
}  # fmt: skip


@pytest.fixture(scope="module")
def preset() -> Preset:
    """The digits preset with a transformer of the tiny pipelines' size."""
    base = digits()
    return replace(
        base,
        transformer=replace(base.transformer, depth=2, width=32, num_heads=4, drop_path=0.1),
        transformer_optim=replace(base.transformer_optim, steps=STEPS, batch_size=33),
    )


@pytest.fixture(scope="module")
def tokenizer(
    tiny_pipeline: Path,
    digits_shards: Path,
    ray_session: Session,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A pipeline's directory, whose tokenizer is trained on, with the digits' codes."""
    directory = tmp_path_factory.mktemp("tokenizer") / "pipeline"
    shutil.copytree(tiny_pipeline, directory)
    encode(digits_shards, directory)
    return directory


class Make:
    """Jobs that share a preset, data and tokenizer."""

    def __init__(self, preset: Preset, data: Path, tokenizer: Path) -> None:
        self.preset, self.data, self.tokenizer = preset, data, tokenizer

    def __call__(self, run: Path, **options: Any) -> Job:
        given = TransformerOptions(**{**RECIPE, **options})
        return make_job("transformer", self.preset, self.data, run, given, tokenizer=self.tokenizer)


@pytest.fixture(scope="module")
def make(preset: Preset, digits_shards: Path, tokenizer: Path) -> Make:
    return Make(preset, digits_shards, tokenizer)


@pytest.fixture(scope="module")
def whole(make: Make, ray_session: Session, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the whole recipe, without interruption, by one worker."""
    run = tmp_path_factory.mktemp("recipe") / "whole"
    train([make(run)], ray_session)
    return run


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "transformer" / "model.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[name].equal(b[name]) for name in a)


def final_state(run: Path, step: int) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(run / "checkpoints" / f"step_{step:06d}" / "state.pt")
    return state


def test_the_model_holds_the_averages_and_is_validated_with_them(make: Make, whole: Path) -> None:
    state, model = final_state(whole, STEPS), weights(whole)
    head = "head.weight"
    assert torch.equal(model[head], state["ema"][f"model.{head}"])
    assert not torch.equal(model[head], state["module"][f"model.{head}"])
    lines = {int(line["step"]): line for line in read_metrics(whole)}
    assert sorted(lines) == [8, 10, 16, 20]
    assert [step for step, line in lines.items() if "val_nll" in line] == [8, 16]
    validation = json.loads((whole / "validation.json").read_text())
    pipeline = srdd.load_pipeline(whole)
    assert validation["nll"] < lines[8]["val_nll"]
    assert {f"nll_{side}x{side}" for side in pipeline.transformer.schedule.patch_nums} < (
        validation.keys()
    )
    codes_nL, _ = load_codes(Path(make(whole).inputs.codes), "train")
    used = torch.bincount(codes_nL.long().flatten()).double()
    entropy = float(-(used / used.sum()).xlogy(used / used.sum()).sum())
    assert validation["entropy"] == pytest.approx(entropy)  # beside it, of the train codes
    assert "entropy_4x4" in validation
    optim = json.loads((whole / "config.json").read_text())["settings"]["optim"]
    assert (optim["ema"], optim["accumulate"], optim["lr_batch"]) == (0.8, 2, 64)


def test_a_killed_worker_changes_nothing(
    make: Make, whole: Path, ray_session: Session, tmp_path: Path,
    kill_worker_after: Callable[[Path, int], Any],
) -> None:  # fmt: skip
    run = tmp_path / "killed"
    run.mkdir()
    kill = kill_worker_after(run, 16)
    train([make(run, max_failures=0)], ray_session)  # it got to a new checkpoint before
    kill.close()
    assert same(weights(run), weights(whole))
    assert (run / "metrics.jsonl").read_text() == (whole / "metrics.jsonl").read_text()
    assert (run / "validation.json").read_text() == (whole / "validation.json").read_text()


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_workers_train_the_same_model(
    make: Make, whole: Path, ray_session: Session, tmp_path: Path, parallel: str
) -> None:
    """Shares of 17 and 16 of 33 samples, each in two parts."""
    run = tmp_path / "two"
    train([make(run, workers=2, parallel=parallel)], ray_session)
    assert json.loads((run / "config.json").read_text())["runtime"]["parallel"] == parallel
    for one, two in zip(read_metrics(whole), read_metrics(run), strict=True):
        assert two == pytest.approx(one, rel=2e-3)
    for name, tensor in weights(whole).items():
        torch.testing.assert_close(weights(run)[name], tensor, atol=2e-3, rtol=0)


def test_a_finished_run_is_extended(
    make: Make, whole: Path, ray_session: Session, tmp_path: Path
) -> None:
    run = tmp_path / "extended"
    shutil.copytree(whole, run)
    before = (run / "metrics.jsonl").read_text()
    with pytest.raises(UserError, match="has 20 steps: --extend-to must exceed them"):
        train([make(run, extend_to=STEPS)], ray_session)
    assert is_finished(run)
    job = make(run, extend_to=LONGER)
    assert extends(job)
    train([job], ray_session)
    config = json.loads((run / "config.json").read_text())
    assert config["extensions"] == [{"from": STEPS, "to": LONGER, "finished": True}]
    assert config["settings"]["optim"]["steps"] == STEPS
    assert (run / "metrics.jsonl").read_text().startswith(before)
    lines = {int(line["step"]): line for line in read_metrics(run)}
    assert sorted(lines) == [8, 10, 16, 20, 24, 30]
    assert lines[24]["lr"] == lines[30]["lr"] == lines[20]["lr"]
    assert not same(weights(run), weights(whole))
    assert int(final_state(run, LONGER)["step"]) == LONGER

    for again in (make(run), make(run, extend_to=LONGER)):  # finished: nothing to do
        assert not extends(again)
        train([again], None)
    with pytest.raises(UserError, match="has 30 steps"):
        train([make(run, extend_to=25)], None)


def test_a_model_without_classes_begins_with_one_that_has_them(
    make: Make, whole: Path, ray_session: Session, tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """``--init-from`` and ``--unconditional``; the source may move, and is told by its content."""
    source, run = tmp_path / "source", tmp_path / "alone"
    caplog.set_level("INFO", "srdd_platform")
    shutil.copytree(whole / "model", source)
    settings: dict[str, Any] = {
        "unconditional": True, "init_from": source, "max_steps": 2, "lr": 1e-9, "ema": 0.0,
    }  # fmt: skip
    train([make(run, **settings)], ray_session)
    pipeline = srdd.load_pipeline(run)
    assert pipeline.class_names == ("image",)
    assert pipeline.transformer.config.unconditional
    given, own = weights(whole), weights(run)
    torch.testing.assert_close(own["class_emb.weight"][1], given["class_emb.weight"][10])
    torch.testing.assert_close(own["head.weight"], given["head.weight"])
    assert srdd.sample(pipeline, [0], None, [3]).images.isfinite().all()
    init = json.loads((run / "config.json").read_text())["init"]
    assert "class_emb.weight (null class)" in init["taken"]
    assert init["new"] == ["class_emb.weight (others)"]
    text = caplog.text
    assert "begins with" in text
    assert "new: class_emb.weight (others)" in text

    moved = tmp_path / "moved"
    source.rename(moved)
    train([make(run, **{**settings, "init_from": moved})], None)
    with pytest.raises(UserError, match=r"init: .* -> absent"):
        train([make(run, **{**settings, "init_from": None})], None)
    with pytest.raises(UserError, match=r"--init-from .* neither a pipeline nor a finished"):
        make(tmp_path / "x", init_from=tmp_path)


def test_weights_of_another_tokenizer_are_refused(
    make: Make, whole: Path, ray_session: Session, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    shutil.copytree(whole / "model", source)
    pipeline = srdd.load_pipeline(source)
    for part in (pipeline.tokenizer, pipeline.transformer):
        with torch.no_grad():
            part.quantizer.codebook.weight[0, 0] += 1
    srdd.var.pipeline.save_pipeline(pipeline, source)
    with pytest.raises(UserError, match=r"another tokenizer: quantizer\.codebook\.weight differs"):
        train([make(tmp_path / "run", init_from=source)], ray_session)
