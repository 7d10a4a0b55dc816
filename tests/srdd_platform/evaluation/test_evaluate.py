"""Rows of settings: what they hold, what they do not depend on, and what their key does."""

import itertools
import logging
import math
import weakref
from collections.abc import Iterator
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from generators import (
    Colours,
    ColourSettings,
    ColourState,
    load_colours,
    make_colours,
    save_colours,
)
from torch import Tensor

from srdd import Pipeline, SamplerConfig, image_seed, load_pipeline, sample
from srdd.checkpoint import save_model
from srdd.errors import UserError
from srdd.images import grid, to_uint8
from srdd.load import load_var
from srdd.metrics.classifier import Classifier, ClassifierConfig
from srdd.var.pipeline import save_pipeline
from srdd_platform.core.images import to_png
from srdd_platform.core.runs import model_dir
from srdd_platform.data.dataset import load_arrays
from srdd_platform.data.shards import prepare
from srdd_platform.evaluation.evaluator import Evaluator, load_evaluator
from srdd_platform.evaluation.generate import (
    COSTS,
    GRID_IMAGES,
    Batch,
    Samples,
    load_generator,
    sample_batches,
)
from srdd_platform.evaluation.protocol import (
    FIRST_PROTOCOL,
    EvaluationConfig,
    row_key,
    weights_digest,
)
from srdd_platform.evaluation.rows import Row, read_rows, settings_columns, to_json
from srdd_platform.evaluation.runner import make_rows
from srdd_platform.sweep.definition import MODEL, Reference, epsilon, plain
from srdd_platform.sweep.references import (
    ReferenceSpec,
    after_search,
    before_search,
    load_maker,
    missing_references,
    spec_key,
)

REFINED = SamplerConfig(cfg=1.0, refine_steps=2, resample_threshold=0.05)
MEASURED = (
    "fid", "fid_se", "inception_score", "kid", "kid_raw", "precision", "recall", "accuracy", "nfe",
    "gflops_per_image",
)  # fmt: skip
RENAMED = {"inception_score": "is"}


@pytest.fixture(scope="module")
def evaluation(digits_shards: Path, classifier_dir: Path) -> EvaluationConfig:
    return EvaluationConfig(
        data=str(digits_shards), extractor="classifier", weights=str(classifier_dir), num=60
    )


@pytest.fixture(scope="module")
def evaluator(evaluation: EvaluationConfig) -> Evaluator:
    return load_evaluator(evaluation)


@pytest.fixture(scope="module")
def pipeline(tiny_pipeline: Path) -> Pipeline:
    return load_var(tiny_pipeline)


def trial(evaluator: Evaluator, pipeline: Any, config: Any, order: int = 0, **values: Any) -> Row:
    return evaluator.row(pipeline, config, **{"key": "k", "order": order, **values})


def values(row: Row, *names: str) -> dict[str, Any]:
    return {name: getattr(row, name) for name in names}


def test_a_row_s_numbers_do_not_depend_on_the_batch(
    evaluator: Evaluator, pipeline: Pipeline
) -> None:
    sized = replace(evaluator, evaluation=replace(evaluator.evaluation, batch_size=7))
    small, large = (trial(judge, pipeline, REFINED) for judge in (sized, evaluator))
    assert values(small, *MEASURED) == values(large, *MEASURED)
    assert sized.key("m", REFINED) == evaluator.key("m", REFINED)
    assert (small.batch_size, large.batch_size) == (7, 60)


@pytest.fixture(scope="module")
def row(
    evaluator: Evaluator, pipeline: Pipeline, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Row, Path]:
    """A row of refined samples and its grid."""
    path = tmp_path_factory.mktemp("row") / "grids" / "row.png"
    return trial(evaluator, pipeline, REFINED, order=5, grid=path), path


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
    assert (found.key, found.name) == ("k", "")
    for name in ("latency_ms", "images_per_s", "peak_memory_mb", "fid", "fid_se"):
        assert getattr(found, name) > 0, name
        assert math.isfinite(getattr(found, name)), name


def test_cost_is_that_of_the_loop_really_run(
    row: tuple[Row, Path], evaluator: Evaluator, pipeline: Pipeline
) -> None:
    """Two halves a scale, then passes while something is left to redraw; scale 1 runs none."""
    result = sample(pipeline, torch.arange(60) % 10, REFINED, [image_seed(0, i) for i in range(60)])
    assert row[0].nfe == float(result.nfe.double().mean())
    assert row[0].gflops_per_image == pytest.approx(float(result.gflops.mean()), rel=1e-12)
    plain = trial(evaluator, pipeline, SamplerConfig())
    assert plain.nfe == 4.0
    assert 4.0 < row[0].nfe <= 2 + 3 * 2 * 3


def test_the_grid_shows_the_first_samples(row: tuple[Row, Path], pipeline: Pipeline) -> None:
    labels = torch.arange(GRID_IMAGES) % 10
    seeds = [image_seed(0, i) for i in range(GRID_IMAGES)]
    images = sample(pipeline, labels, REFINED, seeds).images
    assert row[1].read_bytes() == to_png(grid(to_uint8(images)))


def test_samples_are_balanced_over_the_classes(pipeline: Pipeline) -> None:
    drawn = list(sample_batches(pipeline, SamplerConfig(), 25, seed=3, batch_size=10))
    labels = torch.cat([labels for labels, _ in drawn])
    assert torch.bincount(labels).tolist() == [3] * 5 + [2] * 5
    assert sum(len(result.images) for _, result in drawn) == 25


def test_another_seed_or_number_may_be_asked_for(
    evaluator: Evaluator, pipeline: Pipeline, row: Any
) -> None:
    other = trial(evaluator, pipeline, REFINED, n=50, seed=9, key="mine")
    assert (other.n, other.seed, other.key) == (50, 9, "mine")
    assert other.fid != row[0].fid


def test_inactive_settings_change_neither_key_nor_numbers(
    evaluator: Evaluator, pipeline: Pipeline
) -> None:
    plain = SamplerConfig(cfg=0.5)
    same = replace(plain, resample_threshold=0.5, feedback="none", resample="simple")
    assert evaluator.key("m", plain) == evaluator.key("m", same)
    masked_off = replace(plain, refine_steps=3, resample_threshold=0.0)
    assert evaluator.key("m", plain) == evaluator.key("m", masked_off)
    unguided = SamplerConfig()
    assert evaluator.key("m", unguided) == evaluator.key(
        "m", replace(unguided, cfg_ramp="constant")
    )
    assert settings_columns(plain) == settings_columns(same) == settings_columns(masked_off)
    rows = [trial(evaluator, pipeline, config) for config in (plain, masked_off)]
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
    assert evaluator.key("m", replace(REFINED, **change)) != evaluator.key("m", REFINED)


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
    row = trial(evaluator, poisoned, SamplerConfig(), order=2, grid=tmp_path / "grid.png")
    assert row.status == "failed"
    assert row.error == "non-finite logits at scale 3x3"
    assert row.fid is None
    assert row.gflops_per_image is None
    assert (row.order, row.n, row.settings["cfg"]) == (2, 60, 0.0)
    assert to_json(row)["status"] == "failed"
    assert not (tmp_path / "grid.png").exists()


def test_real_images_and_reconstructions_are_judged_as_references(
    evaluator: Evaluator, pipeline: Pipeline, digits_shards: Path, tmp_path: Path
) -> None:
    images, labels = load_arrays(digits_shards, "val")
    rebuilt = pipeline.reconstruct(images)
    real = evaluator.images_row(
        [(images, labels)], beside=pipeline, key="k", name="real", order=1, n=360,
        grid=tmp_path / "real.png",
    )  # fmt: skip
    assert (real.kind, real.name, real.order, real.n) == ("reference", "real", 1, 360)
    assert (real.tags, set(real.settings.values())) == ({"mask": None}, {None})
    assert list(real.settings) == list(settings_columns(REFINED))
    assert real.nfe is None
    assert real.gflops_per_image is None
    assert real.accuracy is not None
    assert real.accuracy > 0.9
    worse = evaluator.evaluate_images([(rebuilt, labels)])
    assert worse["fid"] > real.fid  # of a tokenizer that was never trained
    assert (tmp_path / "real.png").read_bytes() == to_png(grid(images[:GRID_IMAGES]))


def odd_batches(images: Tensor, labels: Tensor | None) -> Iterator[Batch]:
    """Batches of 1, 2, 3, ... images."""
    first = 0
    for size in itertools.count(1):
        if first >= len(images):
            return
        part = slice(first, first + size)
        yield images[part], None if labels is None else labels[part]
        first += size


@pytest.mark.parametrize("labelled", [True, False])
def test_images_in_batches_of_any_sizes_are_judged_like_one_batch(
    evaluator: Evaluator, digits_shards: Path, tmp_path: Path, labelled: bool
) -> None:
    images, given = load_arrays(digits_shards, "val")
    labels = given if labelled else None
    one = evaluator.evaluate_images([(images, labels)], grid=tmp_path / "one.png")
    odd = evaluator.evaluate_images(odd_batches(images, labels), grid=tmp_path / "odd.png")
    assert odd == one
    assert one.keys() >= {"fid", "fid_se", "inception_score", "kid_raw", "precision", "recall"}
    assert ("accuracy" in one, "kid" in one) == (labelled, labelled)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "odd.png").read_bytes()
    assert (tmp_path / "odd.png").read_bytes() == to_png(grid(images[:GRID_IMAGES]))


def test_images_are_judged_without_being_kept(evaluator: Evaluator, tmp_path: Path) -> None:
    """At each batch, at most those that wait for the extractor's next batch are in memory."""
    arrays: list[weakref.ref[Any]] = []  # that hold the images
    seen: list[int] = []

    def alive() -> int:
        return sum(array() is not None for array in arrays)

    def many() -> Iterator[Batch]:
        generator = np.random.default_rng(0)
        for _ in range(30):
            array = generator.integers(256, size=(100, 3, 16, 16), dtype=np.uint8)
            arrays.append(weakref.ref(array))
            images = torch.from_numpy(array)
            del array
            yield images, None
            del images
            seen.append(alive())

    assert evaluator.evaluate_images(many(), grid=tmp_path / "grid.png")["fid"] > 0
    assert len(seen) == 30
    assert max(seen) == 2  # 250 images are judged at once
    assert alive() == 0


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "metrics need images, and there are none"),
        ([(torch.zeros(49, 3, 16, 16).byte(), None)], "at least 50 images .* got 49"),
        ([(torch.zeros(60, 3, 8, 8).byte(), None)], "images are 8x8 px, the data.s are 16x16"),
        (
            [(torch.zeros(60, 3, 16, 8).byte(), None)],
            "the images are 16x8 px, the data's are 16x16",
        ),
        ([(torch.zeros(60, 3, 16, 16), None)], "uint8"),
        (
            [(torch.zeros(60, 3, 16, 16).byte(), torch.arange(59))],
            "a batch has 60 images and 59 classes",
        ),
        (
            [(torch.zeros(60, 3, 16, 16).byte(), labels) for labels in (None, torch.arange(60))],
            "some batches of images have classes, and some have none",
        ),
    ],
)
def test_images_that_cannot_be_judged_are_refused(
    evaluator: Evaluator, batches: list[Batch], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        evaluator.evaluate_images(batches)


def test_a_generator_of_another_family_is_judged(evaluator: Evaluator, tmp_path: Path) -> None:
    colours, config = make_colours(), ColourSettings(noise=0.5, steps=2)
    found = trial(evaluator, colours, config, order=3, grid=tmp_path / "grid.png")
    assert (found.status, found.n, found.order) == ("ok", 60, 3)
    assert found.tags == {"tint": "blue"}
    assert found.settings == {"noise": 0.5, "steps": 2}
    assert (found.nfe, found.gflops_per_image) == (2.0, 2 * 2 * 768 / 1e9)
    labels, seeds = torch.arange(60) % 10, [image_seed(0, i) for i in range(60)]
    images = to_uint8(sample(colours, labels, config, seeds).images)
    judged = evaluator.evaluate_images([(images, labels)])
    assert {name: to_json(found)[RENAMED.get(name, name)] for name in judged} == judged
    assert evaluator.key("m", config) != evaluator.key("m", replace(config, noise=0.25))
    still = [replace(config, noise=0.0, steps=steps) for steps in (2, 3)]
    assert evaluator.key("m", still[0]) == evaluator.key("m", still[1])


def test_costs_are_there_once_all_samples_are_made(pipeline: Pipeline) -> None:
    samples = Samples(pipeline, SamplerConfig(), n=7, seed=0, batch_size=3)
    assert [len(images) for images, _ in samples] == [3, 3, 1]
    assert tuple(samples.cost) == COSTS
    assert samples.cost["nfe"] == 4.0


def test_the_time_of_the_caller_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 0.0

    class Slow(Colours):
        def decode(self, state: ColourState) -> Tensor:
            nonlocal clock
            clock += 2.0
            return super().decode(state)

    monkeypatch.setattr("srdd_platform.evaluation.generate.time.perf_counter", lambda: clock)
    samples = Samples(Slow(make_colours().colours_K3), ColourSettings(), n=6, seed=0, batch_size=3)
    for _ in samples:
        clock += 100.0
    assert samples.cost["images_per_s"] == 6 / 4
    assert samples.cost["latency_ms"] == 2000


def test_a_run_directory_may_be_given(tiny_pipeline: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model").symlink_to(tiny_pipeline)
    assert weights_digest(model_dir(tmp_path)) == weights_digest(tiny_pipeline)


def test_a_reduced_precision_is_recorded(tiny_pipeline: Path, evaluator: Evaluator) -> None:
    evaluation = replace(evaluator.evaluation, dtype="bfloat16", num=50)
    model = load_generator(tiny_pipeline, evaluation)
    assert model.dtype == torch.bfloat16
    row = trial(replace(evaluator, evaluation=evaluation), model, SamplerConfig())
    assert row.status == "ok"
    assert row.dtype == "bfloat16"


def test_real_images_of_another_size_are_refused(
    pipeline: Pipeline, evaluation: EvaluationConfig, tmp_path: Path
) -> None:
    prepare(source="digits", resolution=8, out=tmp_path / "data", workers=1)
    other = load_evaluator(replace(evaluation, data=str(tmp_path / "data")))
    with pytest.raises(UserError, match="the model draws 16 px images, the data's are 8"):
        trial(other, pipeline, SamplerConfig())


def test_a_classifier_of_other_classes_is_refused_and_gives_no_accuracy(
    pipeline: Pipeline, evaluation: EvaluationConfig, digits_shards: Path, tmp_path: Path
) -> None:
    config = ClassifierConfig(num_classes=3, resolution=16, ch=8, features=16)
    torch.manual_seed(0)
    save_model(tmp_path / "model", "classifier", config, Classifier(config).state_dict())
    other = load_evaluator(replace(evaluation, weights=str(tmp_path / "model"), num=50))
    with pytest.raises(UserError, match="the classifier knows 3 classes, the model 10"):
        trial(other, pipeline, SamplerConfig())
    found = other.evaluate_images([load_arrays(digits_shards, "val")])
    assert found["fid"] > 0
    assert "accuracy" not in found


COMPARED = [*plain(cfg=[0.0, 0.5, 1.0]), *epsilon(1e-3, 1e-2, cfg=0.5)]


def test_the_references_are_what_the_trials_are_read_against(
    tiny_pipelines: dict[str, Path],
) -> None:
    models = {path: load_pipeline(path) for path in tiny_pipelines.values()}
    specs = before_search(models, COMPARED)
    assert [spec.order for spec in specs] == list(range(len(specs)))
    assert [(spec.name, spec.what) for spec in specs[:3]] == [
        ("real, held out", "held-out"),
        ("tokenizer reconstruction of held out", "reconstruction"),
        ("untrained", "untrained"),
    ]
    causal = str(tiny_pipelines["block_causal"].resolve())
    assert [(spec.name, spec.pipeline, spec.config) for spec in specs[3:]] == [
        ("plain SDD (markov), cfg 0", "", SamplerConfig()),
        ("plain SDD (markov), cfg 0.5", "", SamplerConfig(cfg=0.5)),
        ("plain SDD (markov), cfg 1", "", SamplerConfig(cfg=1.0)),
        ("plain VAR (block_causal), cfg 0", causal, SamplerConfig()),
        ("plain VAR (block_causal), cfg 0.5", causal, SamplerConfig(cfg=0.5)),
        ("plain VAR (block_causal), cfg 1", causal, SamplerConfig(cfg=1.0)),
        ("epsilon-truncation 0.001, cfg 0.5", "", SamplerConfig(cfg=0.5, epsilon=1e-3)),
        ("epsilon-truncation 0.01, cfg 0.5", "", SamplerConfig(cfg=0.5, epsilon=1e-2)),
    ]
    assert {spec.config for spec in specs[:3]} == {SamplerConfig()}


def test_a_model_is_not_asked_for_what_it_cannot_do() -> None:
    """Another family: it neither reconstructs nor has an untrained twin, and allows 8 steps."""
    allowed = Reference(name=f"{MODEL}, 8 steps", settings={"steps": 8})
    specs = before_search(
        {Path("a"): make_colours()}, [allowed, Reference(name="9 steps", settings={"steps": 9})]
    )
    assert [spec.name for spec in specs] == ["real, held out", "Colours (blue), 8 steps"]
    assert specs[1].config == ColourSettings(steps=8)
    after = after_search(specs, ColourSettings(), "0123456789", 360)
    assert [(spec.name, spec.order, spec.seed) for spec in after] == [
        (f"best setting (012345), n=360, seed {seed}", 2 + seed, seed) for seed in range(3)
    ]


def test_references_that_a_model_cannot_take_are_left_out_with_the_reason(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    specs = before_search({Path("a"): make_colours()}, [*COMPARED[:1], *COMPARED[-1:]])
    assert [spec.name for spec in specs] == ["real, held out"]
    assert [record.getMessage().split(";")[0] for record in caplog.records] == [
        "The reference plain Colours (blue), cfg 0 is left out: unknown setting 'cfg'",
        "The reference epsilon-truncation 0.01, cfg 0.5 is left out: unknown setting 'cfg'",
    ]


def test_reference_rows_of_another_family(evaluation: EvaluationConfig, tmp_path: Path) -> None:
    """Real images, the searched model, and another one: its rows have their own columns."""
    directories = [save_colours(make_colours(seed), tmp_path / f"{seed}") for seed in (0, 1)]
    models: dict[Path, Any] = {path: load_colours(path) for path in directories}
    reference = Reference(name=f"plain {MODEL}", settings={"noise": 0.0})
    specs = before_search(models, [reference])
    items = missing_references(tmp_path, directories[0], evaluation, specs, "weights")
    assert [spec for spec, _ in items] == specs
    load = partial(load_maker, tmp_path, directories[0], evaluation, load_colours)
    make_rows(tmp_path, items, load)
    rows = {row["name"]: row for row in read_rows(tmp_path)}
    own = ("n", "tint", "noise", "steps", "nfe")
    assert {name: tuple(row[column] for column in own) for name, row in rows.items()} == {
        "real, held out": (360, None, None, None, None),
        "plain Colours (blue)": (60, "blue", 0.0, None, 1.0),
        "plain Colours (red)": (60, "red", 0.0, None, 1.0),
    }
    fids = [rows[spec.name]["fid"] for spec in specs]
    assert fids[0] < fids[1] != fids[2]
    assert not missing_references(tmp_path, directories[0], evaluation, specs, "weights")
    assert {path.stem for path in (tmp_path / "grids").iterdir()} == {key for _, key in items}


def test_the_key_of_a_reference_names_all_that_decides_it(evaluation: EvaluationConfig) -> None:
    spec = ReferenceSpec(name="plain", order=3, what="sampler", config=SamplerConfig(cfg=1))
    first = spec_key(spec, "model", evaluation, "weights")
    assert spec_key(replace(spec, order=4), "model", evaluation, "weights") == first
    others = [
        spec_key(replace(spec, config=SamplerConfig(cfg=2)), "model", evaluation, "weights"),
        spec_key(replace(spec, num=50), "model", evaluation, "weights"),
        spec_key(replace(spec, seed=1), "model", evaluation, "weights"),
        spec_key(spec, "other", evaluation, "weights"),
        spec_key(spec, "model", evaluation, "others"),
        spec_key(spec, "model", replace(evaluation, num=61), "weights"),
        spec_key(spec, "model", replace(evaluation, seed=1), "weights"),
    ]
    assert len({first, *others}) == 8


def test_a_reference_is_named_by_the_model_that_it_measures_whose_weights_are_read_once(
    evaluation: EvaluationConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []

    def digest(directory: Path) -> str:
        read.append(directory)
        return weights_digest(directory)

    monkeypatch.setattr("srdd_platform.sweep.references.weights_digest", digest)
    first, second = [save_colours(make_colours(seed), tmp_path / f"{seed}") for seed in (0, 1)]
    own = ReferenceSpec(name="plain", order=0, what="sampler", config=ColourSettings())
    other = replace(own, pipeline=str(second))
    specs = [own, other, replace(own, num=60), replace(other, num=60)]
    keys = [key for _, key in missing_references(tmp_path, first, evaluation, specs, "weights")]
    expected = [weights_digest(second if spec.pipeline else first) for spec in specs]
    assert keys == [
        spec_key(spec, model, evaluation, "weights")
        for spec, model in zip(specs, expected, strict=True)
    ]
    assert len(set(keys)) == 4
    assert sorted(read) == sorted([first, second])


def test_the_key_of_a_reference_depends_on_the_protocol(evaluation: EvaluationConfig) -> None:
    spec = ReferenceSpec(name="plain", order=3, what="sampler", config=SamplerConfig())
    first = replace(evaluation, protocol=FIRST_PROTOCOL)
    keys = [spec_key(spec, "model", e, "weights") for e in (evaluation, first)]
    assert keys[0] != keys[1]
