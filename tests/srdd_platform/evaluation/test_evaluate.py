"""Rows of settings: what they hold, what they do not depend on, and what their key does."""

import contextlib
import math
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from srdd import SamplerConfig, image_seed, load_pipeline, sample
from srdd.checkpoint import save_model
from srdd.errors import UserError
from srdd.metrics.classifier import Classifier, ClassifierConfig
from srdd.var.pipeline import save_pipeline
from srdd_platform.core.images import grid, to_png, to_uint8
from srdd_platform.data.dataset import load_arrays
from srdd_platform.data.shards import prepare
from srdd_platform.evaluation.evaluator import (
    EvaluationConfig,
    Evaluator,
    row_key,
    weights_digest,
)
from srdd_platform.evaluation.generate import GRID_IMAGES, draw_batches
from srdd_platform.evaluation.protocol import FIRST_PROTOCOL
from srdd_platform.evaluation.rows import Row, settings_columns, to_json
from srdd_platform.sweep.references import ReferenceSpec, before_search, spec_key

REFINED = SamplerConfig(cfg=1.0, refine_steps=2, resample_threshold=0.05)
MEASURED = (
    "fid", "fid_se", "inception_score", "kid", "kid_raw", "precision", "recall", "accuracy", "nfe",
    "gflops_per_image",
)  # fmt: skip


@pytest.fixture(scope="module")
def evaluation(digits_shards: Path, classifier_dir: Path) -> EvaluationConfig:
    return EvaluationConfig(
        data=str(digits_shards), extractor="classifier", weights=str(classifier_dir), num=60
    )


@pytest.fixture(scope="module")
def evaluator(tiny_pipeline: Path, evaluation: EvaluationConfig) -> Evaluator:
    return Evaluator(tiny_pipeline, evaluation)


@pytest.fixture
def batched(evaluator: Evaluator, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Evaluator]:
    """The evaluator at another batch size, without loading everything again."""

    def at(size: int) -> Evaluator:
        monkeypatch.setattr(evaluator, "evaluation", replace(evaluator.evaluation, batch_size=size))
        return evaluator

    return at


def values(row: Row, *names: str) -> dict[str, Any]:
    return {name: getattr(row, name) for name in names}


def test_a_row_s_numbers_do_not_depend_on_the_batch(batched: Callable[[int], Evaluator]) -> None:
    small = batched(7).trial(REFINED, order=0)
    large = batched(250).trial(REFINED, order=0)
    assert values(small, *MEASURED) == values(large, *MEASURED)
    assert small.key == large.key
    assert (small.batch_size, large.batch_size) == (7, 60)


@pytest.fixture(scope="module")
def row(evaluator: Evaluator, tmp_path_factory: pytest.TempPathFactory) -> tuple[Row, Path]:
    """A row of refined samples and its grid."""
    path = tmp_path_factory.mktemp("row") / "grids" / "row.png"
    return evaluator.trial(REFINED, order=5, grid=path), path


def test_a_row_says_what_was_measured_on_what(row: tuple[Row, Path], evaluator: Evaluator) -> None:
    found = row[0]
    assert found.status == "ok"
    assert found.error is None
    assert (found.kind, found.order, found.tags) == ("trial", 5, {"mask": "markov"})
    assert (found.n, found.seed, found.device, found.dtype) == (60, 0, "cpu", "float32")
    assert found.extractor == evaluator.extractor.name
    assert found.extractor.startswith("classifier-")
    assert found.reference == "train n=1437"
    assert found.settings == settings_columns(REFINED)
    assert (found.settings["cfg"], found.settings["resample_threshold"]) == (1.0, 0.05)
    assert found.key == evaluator.key(REFINED)
    for name in ("latency_ms", "images_per_s", "peak_memory_mb", "fid", "fid_se"):
        assert getattr(found, name) > 0, name
        assert math.isfinite(getattr(found, name)), name


def test_cost_is_that_of_the_loop_really_run(row: tuple[Row, Path], evaluator: Evaluator) -> None:
    """Two halves a scale, then passes while something is left to redraw; scale 1 runs none."""
    result = sample(
        evaluator.pipeline, torch.arange(60) % 10, REFINED, [image_seed(0, i) for i in range(60)]
    )
    assert row[0].nfe == float(result.nfe.double().mean())
    assert row[0].gflops_per_image == pytest.approx(float(result.gflops.mean()), rel=1e-12)
    plain = evaluator.trial(SamplerConfig(), order=0)
    assert plain.nfe == 4.0
    assert 4.0 < row[0].nfe <= 2 + 3 * 2 * 3


def test_the_grid_shows_the_first_samples(row: tuple[Row, Path], evaluator: Evaluator) -> None:
    labels = torch.arange(GRID_IMAGES) % 10
    seeds = [image_seed(0, i) for i in range(GRID_IMAGES)]
    images = sample(evaluator.pipeline, labels, REFINED, seeds).images
    assert row[1].read_bytes() == to_png(grid(to_uint8(images)))


def test_samples_are_balanced_over_the_classes(evaluator: Evaluator) -> None:
    drawn = list(draw_batches(evaluator.pipeline, SamplerConfig(), 25, seed=3, batch_size=10))
    labels = torch.cat([labels for labels, _ in drawn])
    assert torch.bincount(labels).tolist() == [3] * 5 + [2] * 5
    assert sum(len(result.images) for _, result in drawn) == 25


def test_another_seed_or_number_may_be_asked_for(evaluator: Evaluator, row: Any) -> None:
    other = evaluator.trial(REFINED, order=0, n=50, seed=9, key="mine")
    assert (other.n, other.seed, other.key) == (50, 9, "mine")
    assert other.fid != row[0].fid


def test_inactive_settings_change_neither_key_nor_numbers(evaluator: Evaluator) -> None:
    plain = SamplerConfig(cfg=0.5)
    same = replace(plain, resample_threshold=0.5, feedback="none", resample="simple")
    assert evaluator.key(plain) == evaluator.key(same)
    masked_off = replace(plain, refine_steps=3, resample_threshold=0.0)
    assert evaluator.key(plain) == evaluator.key(masked_off)
    unguided = SamplerConfig()
    assert evaluator.key(unguided) == evaluator.key(replace(unguided, cfg_ramp="constant"))
    assert settings_columns(plain) == settings_columns(same) == settings_columns(masked_off)
    rows = [evaluator.trial(config, order=0) for config in (plain, masked_off)]
    assert values(rows[0], *MEASURED) == values(rows[1], *MEASURED)


@pytest.mark.parametrize(
    "change",
    [
        {"cfg": 1.5},
        {"cfg_ramp": "constant"},
        {"refine_steps": 1},
        {"resample_threshold": 0.06},
        {"feedback": "kept"},
        {"resample": "simple"},
        {"top_k": 5},
        {"top_p": 0.9},
        {"epsilon": 0.01},
        {"patch_nums": (1, 2, 4)},
    ],
)
def test_an_active_setting_changes_the_key(evaluator: Evaluator, change: dict[str, Any]) -> None:
    assert evaluator.key(replace(REFINED, **change)) != evaluator.key(REFINED)


def test_model_number_seed_and_extractor_change_the_key(evaluation: EvaluationConfig) -> None:
    keys = {
        row_key("model", REFINED, evaluation, "classifier-1"),
        row_key("other", REFINED, evaluation, "classifier-1"),
        row_key("model", REFINED, evaluation, "classifier-2"),
        row_key("model", REFINED, replace(evaluation, num=61), "classifier-1"),
        row_key("model", REFINED, replace(evaluation, seed=1), "classifier-1"),
    }
    assert len(keys) == 5
    for same in ({"batch_size": 3}, {"data": "elsewhere"}, {"weights": "elsewhere"}):
        assert row_key("model", REFINED, replace(evaluation, **same), "classifier-1") in keys


def test_the_key_depends_on_the_protocol(evaluation: EvaluationConfig) -> None:
    first = replace(evaluation, protocol=FIRST_PROTOCOL)
    assert row_key("model", REFINED, first, "x") != row_key("model", REFINED, evaluation, "x")


def test_the_weights_name_the_model_not_its_settings(
    tiny_pipelines: dict[str, Path], tmp_path: Path
) -> None:
    pipeline = load_pipeline(tiny_pipelines["markov"])
    save_pipeline(replace(pipeline, sampler=REFINED), tmp_path / "same")
    assert weights_digest(tmp_path / "same") == weights_digest(tiny_pipelines["markov"])
    with torch.no_grad():
        pipeline.transformer.head.bias[3] += 1e-3
    save_pipeline(pipeline, tmp_path / "other")
    assert weights_digest(tmp_path / "other") != weights_digest(tiny_pipelines["markov"])


def test_the_settings_columns() -> None:
    assert list(settings_columns(REFINED)) == [field.name for field in fields(SamplerConfig)]
    assert settings_columns(replace(REFINED, patch_nums=(1, 2, 4)))["patch_nums"] == "1,2,4"
    plain = settings_columns(SamplerConfig())
    assert plain["refine_steps"] == 0
    assert plain["cfg"] == 0.0
    inactive = ("cfg_ramp", "resample", "resample_threshold", "feedback", "patch_nums")
    assert [plain[name] for name in inactive] == [None] * 5
    simple = settings_columns(SamplerConfig(refine_steps=1, resample="simple"))
    assert simple["resample_threshold"] is None
    assert simple["feedback"] == "updated"


def test_a_model_whose_logits_are_nan_makes_a_failed_row(
    evaluator: Evaluator, tiny_pipeline: Path, tmp_path: Path
) -> None:
    poisoned = load_pipeline(tiny_pipeline)
    with torch.no_grad():
        poisoned.transformer.level_embed.weight[2, 0] = math.nan
    row = evaluator.trial(SamplerConfig(), order=2, pipeline=poisoned, grid=tmp_path / "grid.png")
    assert row.status == "failed"
    assert row.error == "non-finite logits at scale 3x3"
    assert row.fid is None
    assert row.gflops_per_image is None
    assert (row.order, row.n, row.settings["cfg"]) == (2, 60, 0.0)
    assert to_json(row)["status"] == "failed"
    assert not (tmp_path / "grid.png").exists()


def test_the_untrained_model_is_another_one_of_the_same_shape(evaluator: Evaluator) -> None:
    fresh = evaluator.untrained()
    model, trained = fresh.transformer, evaluator.pipeline.transformer
    assert model.config == trained.config
    assert fresh.tokenizer is evaluator.pipeline.tokenizer
    assert not torch.equal(model.head.weight, trained.head.weight)
    again = evaluator.untrained()
    assert torch.equal(model.head.weight, again.transformer.head.weight)
    assert not model.training
    seeds = [image_seed(0, i) for i in range(4)]
    draws = [sample(p, torch.arange(4), SamplerConfig(), seeds) for p in (fresh, again)]
    assert torch.equal(draws[0].images, draws[1].images)
    here = sample(evaluator.pipeline, torch.arange(4), SamplerConfig(), seeds)
    assert not torch.equal(draws[0].images, here.images)


def test_making_the_untrained_model_leaves_the_random_state(evaluator: Evaluator) -> None:
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    evaluator.untrained()
    assert torch.equal(torch.rand(3), expected)


def test_real_images_and_reconstructions_are_judged_as_references(
    evaluator: Evaluator, digits_shards: Path, tmp_path: Path
) -> None:
    images, labels = load_arrays(digits_shards, "val")
    rebuilt = evaluator.reconstruct(images)
    assert rebuilt.shape == images.shape
    assert rebuilt.dtype == torch.uint8
    assert torch.equal(rebuilt[10:13], evaluator.reconstruct(images[10:13]))
    real = evaluator.judge(
        images, labels, key="k", name="real", order=1, grid=tmp_path / "real.png"
    )
    assert (real.kind, real.name, real.order, real.n) == ("reference", "real", 1, 360)
    assert real.nfe is None
    assert real.gflops_per_image is None
    assert real.accuracy is not None
    assert real.accuracy > 0.9
    worse = evaluator.judge(
        rebuilt, labels, key="r", name="rebuilt", order=2, grid=tmp_path / "rebuilt.png"
    )
    assert worse.fid > real.fid  # of a tokenizer that was never trained
    assert (tmp_path / "real.png").read_bytes() == to_png(grid(images[:GRID_IMAGES]))


def test_a_run_directory_may_be_given(
    tiny_pipeline: Path, evaluator: Evaluator, evaluation: EvaluationConfig, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model").symlink_to(tiny_pipeline)
    assert Evaluator(tmp_path, evaluation).model == evaluator.model


def test_a_reduced_precision_is_recorded(tiny_pipeline: Path, evaluation: EvaluationConfig) -> None:
    row = Evaluator(tiny_pipeline, replace(evaluation, dtype="bfloat16", num=50)).trial(
        SamplerConfig(), order=0
    )
    assert row.status == "ok"
    assert row.dtype == "bfloat16"


def test_real_images_of_another_size_are_refused(
    tiny_pipeline: Path, evaluation: EvaluationConfig, tmp_path: Path
) -> None:
    prepare(source="digits", resolution=8, out=tmp_path / "data", workers=1)
    with pytest.raises(UserError, match="16 px"):
        Evaluator(tiny_pipeline, replace(evaluation, data=str(tmp_path / "data")))


def test_a_classifier_of_other_classes_gives_no_accuracy(
    tiny_pipeline: Path, evaluation: EvaluationConfig, tmp_path: Path
) -> None:
    config = ClassifierConfig(num_classes=3, resolution=16, ch=8, features=16)
    torch.manual_seed(0)
    save_model(tmp_path / "model", "classifier", config, Classifier(config).state_dict())
    other = replace(evaluation, weights=str(tmp_path / "model"), num=50)
    accuracy: float | None = None
    with contextlib.suppress(UserError):  # refusing is as good
        accuracy = Evaluator(tiny_pipeline, other).trial(SamplerConfig(), order=0).accuracy
    assert accuracy is None


def test_the_references_are_what_the_trials_are_read_against(
    tiny_pipelines: dict[str, Path],
) -> None:
    specs = before_search(tiny_pipelines["markov"], [tiny_pipelines["block_causal"]], 0.5)
    assert [spec.order for spec in specs] == list(range(len(specs)))
    names = [spec.name for spec in specs]
    assert len(set(names)) == len(names)
    for wanted in ("real, held out", "untrained", "plain SDD (markov), cfg 0"):
        assert wanted in names
    plain = {spec.name: spec for spec in specs if spec.what == "sampler"}
    assert all(spec.config.refine_steps == 0 for spec in plain.values())  # no extra pass
    assert plain["plain VAR (block_causal), cfg 1"].pipeline == str(
        tiny_pipelines["block_causal"].resolve()
    )
    assert {spec.config.epsilon for spec in specs} == {0.0, 1e-3, 1e-2}


def test_a_model_without_classes_is_not_guided(tiny_pipeline: Path) -> None:
    specs = before_search(tiny_pipeline, [], 0.5, guided=False)
    assert {spec.config.cfg for spec in specs} == {0.0}


def test_the_key_of_a_reference_names_all_that_decides_it(
    tiny_pipelines: dict[str, Path], evaluation: EvaluationConfig
) -> None:
    spec = ReferenceSpec(name="plain", order=3, what="sampler", config=SamplerConfig(cfg=1))
    first = spec_key(spec, "model", evaluation, "weights")
    assert spec_key(replace(spec, order=4), "model", evaluation, "weights") == first
    others = [
        spec_key(replace(spec, config=SamplerConfig(cfg=2)), "model", evaluation, "weights"),
        spec_key(replace(spec, num=50), "model", evaluation, "weights"),
        spec_key(replace(spec, seed=1), "model", evaluation, "weights"),
        spec_key(replace(spec, pipeline=str(tiny_pipelines["markov"])), "m", evaluation, "weights"),
        spec_key(spec, "other", evaluation, "weights"),
        spec_key(spec, "model", evaluation, "others"),
        spec_key(spec, "model", replace(evaluation, num=61), "weights"),
        spec_key(spec, "model", replace(evaluation, seed=1), "weights"),
    ]
    assert len({first, *others}) == 9


def test_the_key_of_a_reference_depends_on_the_protocol(evaluation: EvaluationConfig) -> None:
    spec = ReferenceSpec(name="plain", order=3, what="sampler")
    first = replace(evaluation, protocol=FIRST_PROTOCOL)
    keys = [spec_key(spec, "model", e, "weights") for e in (evaluation, first)]
    assert keys[0] != keys[1]
