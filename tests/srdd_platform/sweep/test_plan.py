"""A sweep held against its models, and what config.json keeps of it. No Ray."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from generators import ColourSettings, load_colours, make_colours, save_colours
from var_rows import var_row

from srdd import SamplerConfig
from srdd.errors import UserError
from srdd.load import load_pipeline
from srdd_platform.core.files import write_json
from srdd_platform.evaluation.protocol import FIRST_PROTOCOL, weights_digest
from srdd_platform.evaluation.rows import write_row
from srdd_platform.report.specs import Frontier, Lines
from srdd_platform.sweep.definition import (
    Categorical,
    Float,
    Int,
    Reference,
    Sweep,
    epsilon,
    plain,
    product,
)
from srdd_platform.sweep.models import Inputs
from srdd_platform.sweep.options import Request, SweepArgs
from srdd_platform.sweep.plan import Plan, make_plan
from srdd_platform.sweep.run import keep_best

SWEEP = Sweep(
    name="small",
    space={"cfg": Float(0, 3, step=0.25), "refine_steps": Int(0, 2)},
    first=product(cfg=[0.5], refine_steps=[1, 2]),
    references=[*plain(cfg=[0, 0.5]), *epsilon(1e-3, cfg=0.5)],
    figures=[Frontier(), Lines(x="cfg", series="mask", fixed={"refine_steps": 1})],
)
MASKS = {"mask": ["markov", "block_causal"]}


@pytest.fixture
def inputs(tiny_pipelines: dict[str, Path], digits_shards: Path, classifier_dir: Path) -> Inputs:
    """One model searched, another beside it."""
    return Inputs(
        models={(): tiny_pipelines["markov"]}, others=(tiny_pipelines["block_causal"],),
        data=digits_shards, weights=classifier_dir,
    )  # fmt: skip


@pytest.fixture
def both(inputs: Inputs, tiny_pipelines: dict[str, Path]) -> Inputs:
    """Both models searched."""
    models = {(mask,): path for mask, path in tiny_pipelines.items()}
    return replace(inputs, models=models, others=())


def plan_of(sweep: Sweep, inputs: Inputs, out: Path, **args: Any) -> Plan:
    return make_plan(Request(sweep, SweepArgs(out=out, **args)), inputs, load_pipeline)


def test_a_plan_says_what_decides_its_rows(
    inputs: Inputs, tmp_path: Path, tiny_pipelines: dict[str, Path]
) -> None:
    plan = plan_of(SWEEP, inputs, tmp_path, num=60, seed=3)
    settings = plan.settings
    assert list(settings) == [
        "sweep", "space", "base", "first", "model", "others", "data", "extractor", "num", "seed",
        "device", "dtype", "objectives", "best_rule", "protocol",
    ]  # fmt: skip
    assert settings["space"]["cfg"] == {
        "name": "FloatDistribution",
        "attributes": {"low": 0.0, "high": 3.0, "step": 0.25, "log": False},
    }
    assert settings["first"] == [{"cfg": 0.5, "refine_steps": 1}, {"cfg": 0.5, "refine_steps": 2}]
    assert settings["model"] == weights_digest(tiny_pipelines["markov"])
    assert settings["others"] == [weights_digest(tiny_pipelines["block_causal"])]
    assert (settings["num"], settings["seed"]) == (60, 3)
    assert settings["best_rule"] == "lowest FID of all trials; the cheaper one of equals"
    assert plan.runtime["figures"][1] == {
        "kind": "lines", "x": "cfg", "series": "mask", "fixed": {"refine_steps": 1},
    }  # fmt: skip
    assert plan.request.trials == plan.runtime["trials"] == 24
    assert plan_of(SWEEP, inputs, tmp_path, trials=7).request.trials == 7
    assert plan.bound == "plain SDD (markov), cfg 0.5"


def test_a_plan_goes_on_under_the_protocol_of_its_directory(inputs: Inputs, tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", {"settings": {"protocol": FIRST_PROTOCOL}})
    assert plan_of(SWEEP, inputs, tmp_path).settings["protocol"] == FIRST_PROTOCOL


def test_an_axis_of_models_is_searched_and_kept(both: Inputs, tmp_path: Path) -> None:
    first = product(mask=["block_causal", "markov"], cfg=[0.5])
    plan = plan_of(replace(SWEEP, models=MASKS, first=first), both, tmp_path)
    assert plan.settings["models"] == MASKS
    assert set(plan.settings["model"]) == {"markov", "block_causal"}
    assert plan.settings["first"] == [{"mask": "block_causal", "cfg": 0.5},
                                      {"mask": "markov", "cfg": 0.5}]  # fmt: skip
    assert plan.space.models == {"mask": ("markov", "block_causal")}
    assert [spec.name for spec in plan.references if spec.what == "sampler"] == [
        "plain SDD (markov), cfg 0",
        "plain SDD (markov), cfg 0.5",
        "plain VAR (block_causal), cfg 0",
        "plain VAR (block_causal), cfg 0.5",
        "epsilon-truncation 0.001, cfg 0.5",
    ]


def test_models_that_their_cards_do_not_tell_apart_are_named_by_their_axes(
    both: Inputs, tmp_path: Path, tiny_pipelines: dict[str, Path]
) -> None:
    sweep = replace(SWEEP, models={"schedule": ["1,2,3,4", "1,4"]})
    models = {("1,2,3,4",): tiny_pipelines["markov"], ("1,4",): tiny_pipelines["block_causal"]}
    plan = plan_of(sweep, replace(both, models=models), tmp_path)
    assert plan.bound == "plain SDD (markov) 1,2,3,4, cfg 0.5"
    names = [spec.name for spec in plan.references if spec.what == "sampler"]
    assert names[2] == "plain VAR (block_causal) 1,4, cfg 0"


@pytest.mark.parametrize(
    ("first", "references", "bound"),
    [
        (SWEEP.first, SWEEP.references, "plain SDD (markov), cfg 0.5"),
        (SWEEP.first, plain(cfg=[0, 1]), ""),
        ([], SWEEP.references, ""),
        ([{"refine_steps": 1}], SWEEP.references, "plain SDD (markov), cfg 0"),  # by default
        (SWEEP.first, [Reference(name="one", settings={"cfg": 0.5, "refine_steps": 1})], "one"),
    ],
)
def test_the_hypervolume_is_bound_by_a_reference_like_the_first_trial(
    inputs: Inputs, tmp_path: Path, caplog: pytest.LogCaptureFixture,
    first: Any, references: list[Reference], bound: str,
) -> None:  # fmt: skip
    caplog.set_level(logging.INFO)
    sweep = replace(SWEEP, first=first, references=references)
    assert plan_of(sweep, inputs, tmp_path).bound == bound
    said = [message for message in caplog.messages if "there is no hypervolume" in message]
    why = (
        "No reference has the settings of the first trial" if first else "The sweep lists no first"
    )
    assert [message.startswith(why) for message in said] == [True] * (bound == "")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"space": {"threshold": Float(0, 1)}, "first": []}, "unknown setting 'threshold'"),
        ({"first": [{"cfg": 9.0}]}, r"first: cfg 9\.0 is outside the search space"),
        (
            {"references": [Reference(name="one", settings={"tempo": 1})]},
            "references: one: unknown setting 'tempo'",
        ),
        (
            {"references": [Reference(name="one", settings={"cfg": "1"})]},
            "references: one: cfg must be a finite number, got '1'",
        ),
        ({"figures": [Lines(x="tempo")]}, "figures: lines: unknown setting 'tempo'"),
        ({"space": {"top_k": Int(0, 999)}, "first": []}, "top_k 999 exceeds the vocabulary"),
        (
            {"space": {"patch_nums": Categorical(((1, 2, 4), (1, 5)))}, "first": []},
            "1, 2, 3, 4",
        ),
    ],
)
def test_what_the_model_does_not_have_is_refused(
    inputs: Inputs, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        plan_of(replace(SWEEP, **change), inputs, tmp_path)


def test_an_axis_nobody_swept_needs_its_name_alone(inputs: Inputs, tmp_path: Path) -> None:
    sweep = Sweep(name="nucleus", space={"top_p": Float(0.1, 1.0)}, first=product(top_p=[0.5, 0.9]))
    plan = plan_of(sweep, inputs, tmp_path)
    assert plan.space.config({"top_p": 0.5}) == SamplerConfig(top_p=0.5)
    assert plan.settings["first"] == [{"top_p": 0.5}, {"top_p": 0.9}]


def test_another_family_is_searched_by_its_own_settings(tmp_path: Path, inputs: Inputs) -> None:
    directory = save_colours(make_colours(), tmp_path / "colours")
    sweep = Sweep(
        name="noise", space={"noise": Float(0, 0.5), "steps": Int(1, 8)},
        first=product(noise=[0.1], steps=[2]), figures=[Lines(x="noise", series="steps")],
        references=[Reference(name="{model}, still", settings={"noise": 0.1})],
    )  # fmt: skip
    alone = replace(inputs, models={(): directory}, others=())
    plan = make_plan(Request(sweep, SweepArgs(out=tmp_path / "out")), alone, load_colours)
    assert plan.space.base == ColourSettings()
    assert plan.settings["base"] == {"noise": 0.25, "steps": 3}
    assert [spec.what for spec in plan.references] == ["held-out", "sampler"]
    assert plan.bound.startswith("Colours (")


def test_a_sweep_whose_objective_no_trial_has_says_that_there_is_no_best(
    inputs: Inputs, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plan = plan_of(replace(SWEEP, objectives=("accuracy", "nfe")), inputs, tmp_path)
    write_row(tmp_path, var_row("a", fid=2.0, nfe=4.0))
    keep_best(plan, cast(Any, None), load_pipeline)
    said = "No trial has a value of each objective (accuracy, nfe): there is no best one"
    assert caplog.messages == [said]
    assert not (tmp_path / "best").exists()
