"""One class, and models without classes: what is refused, and what goes on without labels."""

import logging
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from srdd import SamplerConfig
from srdd.checkpoint import save_model
from srdd.errors import UserError
from srdd.load import load_pipeline
from srdd.metrics.classifier import Classifier, ClassifierConfig
from srdd.presets import digits
from srdd.var.pipeline import Pipeline, save_pipeline
from srdd.var.transformer import ScaleTransformer
from srdd_platform.cli import main as cli
from srdd_platform.core.files import read_json
from srdd_platform.core.ray_session import Session
from srdd_platform.data.manifest import Manifest
from srdd_platform.data.shards import prepare
from srdd_platform.distill.run import Distillation, distill
from srdd_platform.evaluation.evaluator import load_evaluator
from srdd_platform.evaluation.extractors import load_extractor
from srdd_platform.evaluation.protocol import EvaluationConfig
from srdd_platform.report.specs import Frontier, Lines
from srdd_platform.sweep.definition import (
    Categorical,
    Float,
    Int,
    Sweep,
    epsilon,
    plain,
    product,
)
from srdd_platform.sweep.options import SweepArgs
from srdd_platform.sweep.run import run_sweep
from srdd_platform.train.options import TransformerOptions

NOTHING = "has one class, so a classifier has nothing to tell apart: give sweeps and distill --ext"
SWEEP = Sweep(
    name="sweep",
    space={
        "cfg": Float(0.0, 3.0),
        "refine_steps": Int(0, 4),
        "resample_threshold": Float(0.01, 0.3),
        "feedback": Categorical(("updated", "none")),
    },
    first=product(cfg=[0.5], feedback=["updated"], refine_steps=[1], resample_threshold=[0.1]),
    references=[*plain(cfg=[0, 0.5, 1, 2]), *epsilon(1e-3, 1e-2, cfg=0.5)],
    figures=[
        Frontier(),
        Lines(x="resample_threshold", series="refine_steps", fixed={"cfg": 0.5}),
    ],
)


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of one class (DiT#18, DEIM#12): enough held-out images for a sweep."""
    root = tmp_path_factory.mktemp("one")
    (root / "in" / "face").mkdir(parents=True)
    for i in range(250):
        Image.new("RGB", (16, 16), (i, i, i)).save(root / "in" / "face" / f"{i}.png")
    prepare(source="folder", path=root / "in", resolution=16, out=root / "data")
    return root / "data"


@pytest.fixture(scope="module")
def model(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline without classes."""
    whole = load_pipeline(tiny_pipeline)
    config = replace(whole.transformer.config, num_classes=1, unconditional=True)
    with torch.random.fork_rng(devices=[]):
        transformer = ScaleTransformer(config)
    transformer.quantizer.load_state_dict(whole.tokenizer.quantizer.state_dict())
    directory = tmp_path_factory.mktemp("model") / "model"
    save_pipeline(
        Pipeline(whole.tokenizer, transformer.eval(), SamplerConfig(), ("image",)), directory
    )
    return directory


@pytest.fixture(scope="module")
def one_class_classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = ClassifierConfig(num_classes=1, resolution=16)
    directory = tmp_path_factory.mktemp("classifier") / "model"
    save_model(directory, "classifier", config, Classifier(config).state_dict())
    return directory


def test_one_class_is_prepared(faces: Path) -> None:
    manifest = Manifest.load(faces)
    assert manifest.classes == ("face",)
    assert [split.num for split in manifest.splits.values()] == [200, 50]


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_its_classifier_is_refused(
    faces: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    more: tuple[str, ...],
) -> None:
    line = ["train", "classifier", "--data", faces, "--out", tmp_path / "run", *more]
    monkeypatch.setattr(sys, "argv", ["srdd", *map(str, line)])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 2
    printed = capsys.readouterr()
    assert NOTHING in printed.err
    assert printed.err.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("given", [True, False])
def test_a_sweep_by_a_classifier_is_refused_before_it_trains(
    faces: Path, model: Path, classifier_dir: Path, tmp_path: Path, given: bool
) -> None:
    weights = classifier_dir if given else None
    args = SweepArgs(model=model, data=faces, out=tmp_path / "sweep", weights=weights)
    with pytest.raises(UserError, match=NOTHING):
        run_sweep(SWEEP, args)
    assert list(tmp_path.iterdir()) == []


def test_a_distillation_by_a_classifier_is_refused_before_it_trains(
    faces: Path, model: Path, classifier_dir: Path, tmp_path: Path
) -> None:
    evaluation = EvaluationConfig(
        data=str(faces), extractor="classifier", weights=str(classifier_dir)
    )
    job = Distillation(
        model=model, data=str(faces), out=tmp_path / "run", stages=((1, 4),), steps=2,
        options=TransformerOptions(), evaluation=evaluation,
    )  # fmt: skip
    with pytest.raises(UserError, match=NOTHING):
        distill(job, digits(), None)
    assert list(tmp_path.iterdir()) == []


def test_a_classifier_of_one_class_is_no_extractor(one_class_classifier: Path) -> None:
    with pytest.raises(UserError, match=NOTHING):
        load_extractor("classifier", one_class_classifier)


def test_a_model_without_classes_is_compared_with_images_of_several(
    model: Path, digits_shards: Path, classifier_dir: Path
) -> None:
    """FID needs no labels; an accuracy would, and there is none."""
    evaluation = EvaluationConfig(
        data=str(digits_shards), extractor="classifier", weights=str(classifier_dir), num=50
    )
    row = load_evaluator(evaluation).row(load_pipeline(model), SamplerConfig(), key="k", order=0)
    assert row.status == "ok"
    assert row.fid is not None
    assert row.fid > 0
    assert row.accuracy is None


@pytest.mark.ray
def test_a_model_without_classes_is_searched_without_guidance(
    model: Path,
    digits_shards: Path,
    classifier_dir: Path,
    tmp_path: Path,
    ray_session: Session,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    out = tmp_path / "sweep"
    args = SweepArgs(
        model=model, data=digits_shards, weights=classifier_dir, out=out, trials=2, num=50
    )
    outcome = run_sweep(SWEEP, args)
    trials = [row for row in outcome.rows if row["kind"] == "trial"]
    assert [row["status"] for row in trials] == ["ok", "ok"]
    assert [row["cfg"] for row in trials] == [0.0, 0.0]
    assert [row["refine_steps"] for row in trials][:1] == [1]
    references = [row["name"] for row in outcome.rows if row["kind"] == "reference"]
    assert [name for name in references if "cfg" in name] == ["plain SDD (markov), cfg 0"]
    settings = read_json(out / "config.json")["settings"]
    assert set(settings["space"]) == {"refine_steps", "resample_threshold", "feedback"}
    first = {"feedback": "updated", "refine_steps": 1, "resample_threshold": 0.1}
    assert settings["first"] == [first]
    why = "cfg must be 0: an unconditional model has nothing to guide"
    assert f"cfg is not searched: {why}" in caplog.messages
    assert f"The reference plain SDD (markov), cfg 0.5 is left out: {why}" in caplog.messages
    assert load_pipeline(out / "best").card.unconditional
    assert 'id="frontier-0-0"' in outcome.report.read_text()
