"""Axes of models: which model each value means, and what is refused. No Ray."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from srdd.errors import UserError
from srdd.load import load_pipeline, load_var
from srdd.presets import digits
from srdd.var.pipeline import save_pipeline
from srdd_platform.evaluation.protocol import weights_digest
from srdd_platform.sweep import axes
from srdd_platform.sweep.axes import Source, check_axes, make_models, train_masks
from srdd_platform.sweep.trainer import Trainer
from srdd_platform.train.options import Options
from srdd_platform.train.progress import no_display


def source_of(folder: Path, **more: Any) -> Source:
    trainer = Trainer(preset=digits(), options=Options(), cluster=cast(Any, None),
                      display=no_display)  # fmt: skip
    return Source(folder=folder, data=folder, load=load_pipeline, trainer=trainer, **more)


def test_without_an_axis_there_is_one_model(tmp_path: Path) -> None:
    assert make_models({}, tmp_path / "model", source_of(tmp_path)) == {(): tmp_path / "model"}


def test_each_combination_of_values_is_made_from_the_axis_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In whatever order a sweep names its axes, masks are trained before they are shortened."""

    def made(parent: Path, values: Sequence[str], source: Source) -> list[Path]:
        return [parent / value for value in values]

    monkeypatch.setattr(axes, "AXES", {"mask": made, "schedule": made})
    found = make_models(
        {"schedule": ["1,2", "1"], "mask": ["markov", "causal"]}, Path("root"), source_of(tmp_path)
    )
    assert found == {
        ("1,2", "markov"): Path("root/markov/1,2"),
        ("1,2", "causal"): Path("root/causal/1,2"),
        ("1", "markov"): Path("root/markov/1"),
        ("1", "causal"): Path("root/causal/1"),
    }


def test_a_given_model_is_pruned_to_each_schedule(tiny_pipeline: Path, tmp_path: Path) -> None:
    source = source_of(tmp_path)
    schedules = {"schedule": ["1,2,3,4", "1,4", "1,2,4"]}
    found = make_models(schedules, tiny_pipeline, source)
    digest = weights_digest(tiny_pipeline)[:8]
    assert found == {
        ("1,2,3,4",): tiny_pipeline,
        ("1,4",): tmp_path / f"markov-1-4-{digest}",
        ("1,2,4",): tmp_path / f"markov-1-2-4-{digest}",
    }
    pruned, parent = load_pipeline(found["1,4",]), load_pipeline(tiny_pipeline)
    assert pruned.card.defaults["patch_nums"] == (1, 4)
    labels, seeds = [0, 1], [5, 6]
    short = [pruned.begin(labels, pruned.sampler, seeds)]
    for _ in range(2):
        short.append(pruned.advance(short[-1]))
    config = type(parent.sampler)(patch_nums=(1, 4))
    state = parent.begin(labels, config, seeds)
    while state.step < state.num_steps:
        state = parent.advance(state)
    assert torch.equal(short[-1].codes_BL, state.codes_BL)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    make_models(schedules, tiny_pipeline, source)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_model_with_other_weights_is_pruned_anew(tiny_pipeline: Path, tmp_path: Path) -> None:
    parent, found = tmp_path / "mine", []
    pipeline = load_var(tiny_pipeline)
    for factor in (1.0, 2.0):
        with torch.no_grad():
            pipeline.transformer.pos_embed *= factor
        save_pipeline(pipeline, parent)
        pruned = make_models({"schedule": ["1,4"]}, parent, source_of(tmp_path))["1,4",]
        found.append(load_var(pruned).transformer.pos_embed)
    assert torch.equal(2 * found[0], found[1])


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ("1,5", "1, 2, 3, 4"),
        ("1;4", "schedule takes integers like 1,2,3, got '1;4'"),
        ("2,4", "patch_nums must begin at scale 1"),
    ],
)
def test_a_schedule_that_is_no_part_of_the_model_s_is_refused(
    tiny_pipeline: Path, tmp_path: Path, schedule: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        make_models({"schedule": [schedule]}, tiny_pipeline, source_of(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_masks_of_a_given_model_are_refused(tiny_pipeline: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="trains its models: leave out --model and --data"):
        train_masks(tiny_pipeline, ["markov"], source_of(tmp_path))


def test_unknown_axes_and_masks_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="models: unknown axis 'depth'; there are mask, schedule"):
        check_axes({"depth": ["16"]})
    source = source_of(tmp_path, tokenizer=tmp_path)
    with pytest.raises(UserError, match="models: unknown mask 'full'; there are block_causal, mar"):
        train_masks(tmp_path, ["full"], source)
