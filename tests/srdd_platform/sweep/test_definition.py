"""Sweeps as values."""

from collections.abc import Callable
from typing import Any

import pytest

from srdd.errors import UserError
from srdd_platform.sweep.definition import (
    Categorical,
    Float,
    Int,
    Sweep,
    epsilon,
    plain,
    product,
)


def test_a_product_has_each_combination_and_its_last_axis_changes_fastest() -> None:
    assert product(refine_steps=[1, 2], resample_threshold=[0.1, 0.2]) == [
        {"refine_steps": 1, "resample_threshold": 0.1},
        {"refine_steps": 1, "resample_threshold": 0.2},
        {"refine_steps": 2, "resample_threshold": 0.1},
        {"refine_steps": 2, "resample_threshold": 0.2},
    ]


def test_references_say_their_settings_and_whose_they_are() -> None:
    plains, (truncated,) = plain(cfg=[0, 0.5]), epsilon(1e-3, cfg=0.5)
    assert [one.name for one in plains] == ["plain {model}, cfg 0", "plain {model}, cfg 0.5"]
    assert [one.settings for one in plains] == [{"cfg": 0}, {"cfg": 0.5}]
    assert all(one.every_model for one in plains)
    assert truncated.name == "epsilon-truncation 0.001, cfg 0.5"
    assert truncated.settings == {"cfg": 0.5, "epsilon": 0.001}
    assert not truncated.every_model


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Float(1.0, 0.0), "a range needs low <= high, got 1.0 and 0.0"),
        (lambda: Float(float("nan"), 1.0), "a range needs low <= high"),
        (lambda: Float(0.0, 1.0, log=True), "a logarithmic range needs low above 0"),
        (lambda: Float(0.1, 1.0, log=True, step=0.1), "a logarithmic range needs .* no step"),
        (lambda: Int(1, 8, log=True, step=2), "a logarithmic range needs .* no step"),
        (lambda: Int(0, 4, step=0), "a range needs a positive step, got 0"),
        (lambda: Categorical(()), "at least one choice"),
        (lambda: Sweep(name="s", space={}, objectives=("fidd",)), "unknown objective 'fidd'"),
        (lambda: Sweep(name="s", space={}, objectives=()), "at least one objective"),
        (
            lambda: Sweep(name="s", space={}, models={"mask": ["markov", "markov"]}),
            r"models: mask needs a list of distinct texts, got \['markov', 'markov'\]",
        ),
        (
            lambda: Sweep(name="s", space={}, models={"mask": "markov"}),
            "models: mask needs a list of distinct texts, got 'markov'",
        ),
        (
            lambda: Sweep(name="s", space={}, models={"schedule": [12]}),  # type: ignore[list-item]
            r"models: schedule needs a list of distinct texts, got \[12\]",
        ),
        (
            lambda: Sweep(name="s", space={}, first={"cfg": 1.0}),  # type: ignore[arg-type]
            "first must be a list, got {'cfg': 1.0}",
        ),
        (
            lambda: Sweep(name="s", space={}, first=["cfg"]),  # type: ignore[list-item]
            "first: a dictionary of settings is needed, got 'cfg'",
        ),
        (
            lambda: Sweep(name="s", space={}, references=[{"cfg": 1}]),  # type: ignore[list-item]
            "references: a Reference is needed, got {'cfg': 1}",
        ),
        (
            lambda: Sweep(name="s", space={}, figures=["frontier"]),  # type: ignore[list-item]
            "figures: a Frontier, Lines or Parallel is needed, got 'frontier'",
        ),
        (lambda: Sweep(name="s", space={}, objectives="fid"), "objectives must be a list"),
        (lambda: Sweep(name="s", space={}, trials=0), "trials must be positive, got 0"),
        (
            lambda: Sweep(name="s", space={"mask": Int(0, 1)}, models={"mask": ["markov"]}),
            "'mask' is both a setting of the space and an axis of models",
        ),
    ],
)
def test_what_cannot_be_searched_is_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


def test_a_logarithmic_range_of_integers_has_step_one() -> None:
    assert Int(1, 8, log=True).step == 1
