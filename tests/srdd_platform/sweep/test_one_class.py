"""One class, and models without classes: what is refused, and what goes on without labels."""

import io
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from PIL import Image
from rich.console import Console

from srdd import SamplerConfig
from srdd.checkpoint import save_model
from srdd.errors import UserError
from srdd.load import load_pipeline
from srdd.metrics.classifier import Classifier, ClassifierConfig
from srdd.presets import digits
from srdd.var.pipeline import Pipeline, save_pipeline
from srdd.var.transformer import ScaleTransformer
from srdd_platform.cli import main as cli
from srdd_platform.data.manifest import Manifest
from srdd_platform.data.shards import prepare
from srdd_platform.distill.run import Distillation, distill
from srdd_platform.evaluation.evaluator import load_evaluator
from srdd_platform.evaluation.extractors import load_extractor
from srdd_platform.evaluation.protocol import EvaluationConfig
from srdd_platform.sweep.options import SweepArgs
from srdd_platform.sweep.run import run_sweep, searchable
from srdd_platform.sweep.space import Grid
from srdd_platform.train.options import TransformerOptions

NOTHING = "has one class, so a classifier has nothing to tell apart: give sweeps and distill --ext"
SPACE = {
    "cfg": FloatDistribution(0.0, 3.0),
    "refine_steps": IntDistribution(0, 4),
    "resample_threshold": FloatDistribution(0.01, 0.3),
    "feedback": CategoricalDistribution(("updated", "none")),
}
GRID = Grid(cfg=0.5, feedback="updated", thresholds=(0.1,), refine_steps=(1,))


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
        run_sweep("sweep", SPACE, GRID, args, Console(file=io.StringIO()))
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


def test_a_model_without_classes_is_searched_without_guidance(model: Path) -> None:
    config = load_pipeline(model).transformer.config
    space, grid = searchable(SPACE, GRID, config)
    assert set(space) == {"refine_steps", "resample_threshold", "feedback"}
    assert grid == replace(GRID, cfg=0.0)
    assert searchable(SPACE, GRID, replace(config, unconditional=False)) == (SPACE, GRID)
