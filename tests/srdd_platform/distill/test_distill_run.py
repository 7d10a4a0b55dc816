"""Distillation as a command: stages under real Ray, the table, and what is refused."""

import io
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

import srdd
from srdd import SamplerConfig
from srdd.errors import UserError
from srdd.presets import Preset, digits
from srdd.train.config import OptimConfig
from srdd.var.pipeline import save_pipeline, save_tokenizer
from srdd.var.prune import prune_tokenizer
from srdd.var.scales import ScaleSchedule
from srdd_platform.cli.log_output import log_to
from srdd_platform.cli.main import main
from srdd_platform.cli.progress import bars
from srdd_platform.core.files import read_json
from srdd_platform.core.ray_session import Session
from srdd_platform.core.runs import read_metrics
from srdd_platform.data.code_places import codes_dir
from srdd_platform.data.shards import prepare
from srdd_platform.data.store import open_store
from srdd_platform.distill import run as distillation
from srdd_platform.distill.run import (
    Distillation,
    distill,
    dry_run_stages,
    parse_stages,
    stage_steps,
)
from srdd_platform.distill.table import (
    RowSpec,
    load_maker,
    markdown,
    plain_text,
    row_keys,
    table_specs,
)
from srdd_platform.evaluation.protocol import EvaluationConfig
from srdd_platform.evaluation.runner import make_rows
from srdd_platform.train.job import Job
from srdd_platform.train.kind import Settings
from srdd_platform.train.kinds import KINDS
from srdd_platform.train.options import TransformerOptions

STEPS = 12
STAGES = ((1, 2, 4), (1, 4))

Make = Callable[..., Distillation]


@pytest.fixture(scope="module")
def preset() -> Preset:
    """The digits preset, whose own sizes must not matter: the parent's do."""
    base = digits()
    return replace(base, transformer_optim=replace(base.transformer_optim, batch_size=33))


@pytest.fixture(scope="module")
def parent(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny pipeline with sampler settings of its own."""
    directory = tmp_path_factory.mktemp("parent") / "best"
    pipeline = srdd.load_pipeline(tiny_pipeline)
    sampler = SamplerConfig(cfg=1.0, patch_nums=(1, 3, 4), top_k=20)
    save_pipeline(replace(pipeline, sampler=sampler), directory)
    return directory


@pytest.fixture(scope="module")
def make(parent: Path, digits_shards: Path, classifier_dir: Path) -> Make:
    """A distillation of the parent; changes to it by field, to its options by name."""

    def made(out: Path, weights: str | None = None, num: int = 50, **given: Any) -> Distillation:
        fields = {"model", "data", "stages", "steps", "cfg"}
        changed = {name: given.pop(name) for name in fields & given.keys()}
        options = TransformerOptions(**{"lr": 3e-3, "teacher_kl": 0.1, **given})
        evaluation = EvaluationConfig(
            data=str(changed.get("data", digits_shards)),
            extractor="classifier",
            weights=str(classifier_dir) if weights is None else weights,
            num=num,
        )
        return Distillation(
            model=changed.get("model", parent), data=evaluation.data,
            stages=changed.get("stages", STAGES), steps=changed.get("steps", STEPS),
            cfg=changed.get("cfg"), out=out, options=options, evaluation=evaluation,
        )  # fmt: skip

    return made


class Said(Console):
    """A console that keeps what it prints, and may be interrupted when it says something."""

    def __init__(self, width: int = 200, stop_at: str = "") -> None:
        super().__init__(file=io.StringIO(), width=width)
        self.stop_at = stop_at

    def print(self, *objects: Any, **options: Any) -> None:
        """Print, then stop where asked to."""
        super().print(*objects, **options)
        if self.stop_at and self.stop_at in str(objects[0]):
            raise KeyboardInterrupt

    @property
    def text(self) -> str:
        """All that was printed."""
        return self.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def distill_shown(job: Distillation, preset: Preset, said: Said) -> dict[str, Any]:
    """Distil as the command does, whose terminal is ``said``."""
    with log_to(said):
        return distill(job, preset, None, bars(said))


def stamps(directory: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in directory.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def run(
    make: Make, preset: Preset, ray_session: Session, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Said]:
    """A run that was interrupted between its stages and gone on with."""
    out = tmp_path_factory.mktemp("distill") / "run"
    with pytest.raises(KeyboardInterrupt):
        distill_shown(make(out), preset, Said(stop_at="Stage 2 of 2"))
    assert not (out / "stage_2").exists()
    assert not (out / "model").exists()
    before = stamps(out / "stage_1" / "model") | stamps(out / "tokenizer_1")
    said = Said()
    table = distill_shown(make(out), preset, said)
    assert table == read_json(out / "stages.json")
    assert before.items() <= stamps(out).items()
    return out, said


@pytest.mark.ray
def test_each_stage_begins_where_the_one_before_ended(run: tuple[Path, Said], parent: Path) -> None:
    out, said = run
    source = srdd.load_pipeline(parent)
    for number, sides in enumerate(STAGES, 1):
        stage = srdd.load_pipeline(out / f"stage_{number}")
        assert stage.transformer.schedule == ScaleSchedule(sides, (1, 2, 3, 4))
        settled = ("depth", "width", "num_heads", "mask", "num_classes")
        for name in settled:
            assert getattr(stage.transformer.config, name) == getattr(
                source.transformer.config, name
            )
        for name, tensor in stage.transformer.quantizer.state_dict().items():
            assert torch.equal(tensor, source.transformer.quantizer.state_dict()[name])
        for name, tensor in stage.tokenizer.state_dict().items():
            assert torch.equal(tensor, source.tokenizer.state_dict()[name])
        init = read_json(out / f"stage_{number}" / "config.json")["init"]
        kept = f"scales {', '.join(map(str, sides))}"
        assert f"pos_embed ({kept})" in init["taken"]
        assert init["new"] == []
        logged = read_metrics(out / f"stage_{number}")
        assert [line["step"] for line in logged] == [10, 12]
        assert logged[-1]["teacher_kl"] > 0
    assert "Stage 1 of 2: 1,2,4" in said.text
    assert "transformer stage_2 begins with" in said.text
    assert "transformer stage_1 begins with" not in said.text  # it was done before


@pytest.mark.ray
def test_the_model_is_the_last_stages_with_the_parents_sampler(run: tuple[Path, Said]) -> None:
    out, _ = run
    pipeline = srdd.load_pipeline(out)
    assert pipeline.sampler == SamplerConfig(cfg=1.0, top_k=20)  # pruning was the parent's
    assert pipeline.class_names[3] == "three"
    last, own = (
        load_file(out / folder / "transformer" / "model.safetensors")
        for folder in ("stage_2/model", "model")
    )
    assert all(torch.equal(own[name], last[name]) for name in last)
    result = srdd.sample(pipeline, [3, 4], None, [1, 2])
    assert result.codes_BL.shape == (2, 17)
    assert result.nfe.tolist() == [3, 3]  # one half at scale 1, two at scale 4


@pytest.mark.ray
def test_the_table_compares_parent_pruned_and_distilled(run: tuple[Path, Said]) -> None:
    out, _ = run
    table = read_json(out / "stages.json")
    rows = table["rows"]
    columns = ("name", "steps", "patch_nums", "codes", "nfe")
    assert [tuple(row[name] for name in columns) for row in rows] == [
        ("parent", 0, "1,2,3,4", 30, 7.0),
        ("pruned 1", 0, "1,2,4", 21, 5.0),
        ("stage 1", 12, "1,2,4", 21, 5.0),
        ("pruned 2", 0, "1,4", 17, 3.0),
        ("stage 2", 24, "1,4", 17, 3.0),
    ]
    parent, pruned_1, stage_1, pruned_2, stage_2 = rows
    for pruned, stage, number in ((pruned_1, stage_1, 1), (pruned_2, stage_2, 2)):
        assert stage["psnr"] == pruned["psnr"] != parent["psnr"]  # training leaves the codes
        assert stage["nll"] < pruned["nll"] - 0.01
        assert stage["gflops_per_image"] == pruned["gflops_per_image"] < parent["gflops_per_image"]
        validation = read_json(out / f"stage_{number}" / "validation.json")
        assert stage["nll"] == pytest.approx(validation["nll"], rel=1e-5)
        assert stage["nll_4x4"] == pytest.approx(validation["nll_4x4"], rel=1e-5)
    for row in rows:
        assert row["nll_per_image"] == pytest.approx(row["nll"] * row["codes"])
        assert (row["held_out"], row["n"]) == (360, 50)
        assert math.isfinite(row["fid"])
        assert row["extractor"].startswith("classifier-")
        assert (out / row["grid"]).read_bytes().startswith(b"\x89PNG")
    assert len({row["grid"] for row in rows}) == 5
    text = (out / "stages.md").read_text()
    assert text == markdown(rows, table["note"])
    assert f"FID of 50 images on features of {parent['extractor']}" in text
    lines = plain_text(rows, table["note"]).splitlines()
    assert lines[6:] == [table["note"]]
    assert len({len(line) for line in lines[:6]}) == 1
    assert lines[1].split()[:4] == ["parent", "0", "1,2,3,4", "30"]
    assert lines[5].split()[6:8] == [f"{stage_2['nll']:.3f}", f"{stage_2['nll_per_image']:.1f}"]


@pytest.mark.ray
def test_a_finished_run_prints_its_table_without_ray(
    run: tuple[Path, Said], make: Make, preset: Preset, parent: Path, digits_shards: Path,
    classifier_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out, _ = run
    monkeypatch.setattr(distillation, "session", None)  # nothing may start or join a cluster
    kept = {path: stamp for path, stamp in stamps(out).items() if path.parent.name != out.name}
    command = [
        "srdd", "train", "distill", "--model", parent, "--data", digits_shards, "--out", out,
        "--stages", "1,2,4/1,4", "--stage-steps", STEPS, "--lr", 3e-3, "--teacher-kl", 0.1,
        "--batch-size", 33, "--weights", classifier_dir, "--num", 50,
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", list(map(str, command)))
    main()
    assert kept.items() <= stamps(out).items()
    printed = capsys.readouterr().out
    assert "stage 2" in printed
    assert "NLL per image" in printed
    assert printed.endswith(f"{out} is finished: {out / 'model'}\n")
    for change, named in (
        ({"stages": ((1, 3, 4), (1, 4))}, "stages"),
        ({"lr": 1e-3}, r"optim\.lr"),
        ({"steps": 13}, r"optim\.steps"),
        ({"teacher_kl": 0.2}, r"loss\.teacher_kl"),
    ):
        with pytest.raises(UserError, match=f"other settings .*{named}"):
            distill(make(out, **change), preset, None)


def test_without_weights_there_is_no_fid(parent: Path, digits_shards: Path, tmp_path: Path) -> None:
    evaluation = EvaluationConfig(
        data=str(digits_shards), extractor="classifier", weights="", num=50
    )
    config = SamplerConfig()
    specs = [RowSpec(name="pruned 1", order=1, pipeline=str(parent), pruned=(1, 4))]
    model = srdd.load_pipeline(parent).transformer.config
    settings = Settings(model=model, optim=OptimConfig(steps=1), data="digits")
    job = Job(kind=KINDS["transformer"], run="", data=str(digits_shards), settings=settings)
    keys = row_keys(specs, config, evaluation, job)
    load = partial(load_maker, tmp_path, config, evaluation, job)
    make_rows(tmp_path, list(zip(specs, keys, strict=True)), load)
    row = read_json(tmp_path / "rows" / f"{keys[0]}.json")
    assert (row["codes"], row["nfe"], row["extractor"], row["n"]) == (17, 2.0, None, 40)
    assert "fid" not in row
    table = distillation.write_table(tmp_path, keys, config, evaluation)
    assert "No FID: give --weights" in table["note"]
    assert (tmp_path / "stages.md").read_text().splitlines()[2].split(" | ")[7:9] == ["-", "-"]
    # Another guidance, number or model is another row.
    other = [replace(specs[0], pruned=(1, 3, 4)), replace(specs[0], name="x")]
    found = {*keys, *row_keys(other, config, evaluation, job)}
    found |= {*row_keys(specs, SamplerConfig(cfg=1.0), evaluation, job)}
    found |= {*row_keys(specs, config, replace(evaluation, num=60), job)}
    left_out = replace(job, settings=replace(settings, skipped={"val": {"x": 1}}))
    found |= {*row_keys(specs, config, evaluation, left_out)}
    assert len(found) == 6
    assert row_keys(specs, SamplerConfig(cfg_ramp="constant"), evaluation, job) == keys


def test_the_rows_of_a_table(tmp_path: Path) -> None:
    specs = table_specs(tmp_path, STAGES, [tmp_path / "stage_1", tmp_path / "stage_2"], 7)
    assert [(spec.order, spec.name, spec.pruned, spec.steps) for spec in specs] == [
        (0, "parent", (), 0),
        (1, "pruned 1", (1, 2, 4), 0),
        (2, "stage 1", (), 7),
        (3, "pruned 2", (1, 4), 0),
        (4, "stage 2", (), 14),
    ]


def test_stages_are_written_with_slashes() -> None:
    assert parse_stages("1,3,5/1,5") == ((1, 3, 5), (1, 5))
    for wrong in ("", "1,3/", "1;3", "1,3//1"):
        with pytest.raises(UserError, match="--stages takes integers"):
            parse_stages(wrong)
    assert stage_steps(digits()) == 50


def test_codes_of_a_pruned_tokenizer_have_a_key_of_their_own(
    parent: Path, digits_shards: Path, tmp_path: Path
) -> None:
    """Its weights are the parent's to the byte."""
    tokenizer, store = srdd.load_pipeline(parent).tokenizer, open_store(digits_shards)
    names = {}
    for sides in ((1, 2, 3, 4), (1, 3, 4), (1, 4)):
        save_tokenizer(prune_tokenizer(tokenizer, sides), tmp_path / f"{sides}")
        names[sides] = codes_dir(store, tmp_path / f"{sides}").name
    weights = {(path / "model.safetensors").read_bytes() for path in tmp_path.iterdir()}
    assert len(weights) == 1
    assert len(set(names.values())) == 3
    assert names[1, 2, 3, 4] == codes_dir(store, parent / "tokenizer").name


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"stages": ((1, 5, 4),)}, "stage 1 .* strictly increasing"),
        ({"stages": ((1, 3),)}, r"stage 1 \(1,3\): .* must end at the latent side 4"),
        ({"stages": ((2, 4),)}, "must begin at scale 1"),
        ({"stages": ((1, 3, 4), (1, 2, 4))}, r"stage 2 \(1,2,4\) must drop scales of stage 1"),
        ({"steps": 0}, "--stage-steps must be positive"),
        ({"max_steps": 5}, "--max-steps: a stage's length is --stage-steps"),
        ({"extend_to": 5}, "--extend-to"),
        ({"init_from": Path("x")}, "--init-from: a stage begins"),
        ({"unconditional": True}, "--unconditional"),
        ({"depth": 2}, "--depth"),
        ({"model": Path("nowhere")}, "--model nowhere: neither a pipeline nor a finished"),
        ({"data": Path("nowhere")}, "nowhere"),
        ({"cfg": -1.0}, "cfg must be >= 0"),
        ({"weights": "nowhere"}, "--weights nowhere does not exist"),
        ({"num": 49}, "--num must be at least 50"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(
    make: Make, preset: Preset, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        distill(make(tmp_path / "run", **change), preset, None)
    assert not (tmp_path / "run").exists()


def test_other_images_and_a_teacher_that_looks_back_are_refused(
    make: Make, preset: Preset, tiny_pipelines: dict[Any, Path], tmp_path: Path
) -> None:
    prepare(source="digits", resolution=8, out=tmp_path / "small")
    with pytest.raises(UserError, match=r"draws 16 px images, .* holds 8 px ones"):
        distill(make(tmp_path / "run", data=tmp_path / "small"), preset, None)
    causal = tiny_pipelines["block_causal"]
    with pytest.raises(UserError, match="its mask is block_causal"):
        distill(make(tmp_path / "run", model=causal), preset, None)
    with pytest.raises(UserError, match="is no classifier directory"):
        distill(make(tmp_path / "run", weights=str(tmp_path / "small")), preset, None)
    assert not (tmp_path / "run").exists()


def test_a_dry_run_describes_each_stage_and_writes_nothing(
    make: Make, preset: Preset, tmp_path: Path
) -> None:
    (text,) = dry_run_stages(make(tmp_path / "run", stages=((1, 4),)), preset)
    assert list(tmp_path.iterdir()) == []
    assert text.startswith("Stage 1 of 1: 1,4\n")
    assert f"Nothing was written to {tmp_path / 'run' / 'stage_1'}" in text
    assert '"teacher_kl": 0.1' in text
    assert '"parent": [' in text
