"""What sampling does at each scale, as it is decided before the first one."""

from typing import Any, get_args

import pytest
import torch

from srdd.generator import Given
from srdd.var.config import (
    CfgRamp,
    Feedback,
    Resample,
    SamplerConfig,
    TokenizerConfig,
    TransformerConfig,
)
from srdd.var.feedback import FEEDBACK
from srdd.var.guidance import RAMPS
from srdd.var.plan import Plan, make_plan
from srdd.var.resample import RESAMPLE

SIDES = (1, 2, 3, 4)
ENDS = (1, 5, 14, 30)
TOKENIZER = TokenizerConfig(resolution=8, patch_nums=SIDES, ch_mult=(1, 1))


def _plan(mask: Any = "markov", given: Given | None = None, **settings: Any) -> Plan:
    model = TransformerConfig(patch_nums=SIDES, mask=mask)
    return make_plan(model, TOKENIZER, SamplerConfig(**settings), given)


def _keep(*scales: int) -> Given:
    keep_BL = torch.zeros(2, 30, dtype=torch.bool)
    for scale in scales:
        keep_BL[:, ([0, *ENDS])[scale] : ENDS[scale]] = True
    return Given(torch.zeros(2, 30, dtype=torch.int64), keep_BL)


@pytest.mark.parametrize(
    ("table", "names"), [(RESAMPLE, Resample), (FEEDBACK, Feedback), (RAMPS, CfgRamp)]
)
def test_each_choice_of_a_setting_has_a_function(table: dict[str, object], names: Any) -> None:
    assert tuple(table) == get_args(names)


def test_a_scale_knows_its_place_in_the_models_and_in_the_parents_schedule() -> None:
    model = TransformerConfig(patch_nums=(1, 3, 4), parent=(1, 2, 3, 4))
    tokenizer = TokenizerConfig(
        resolution=8, patch_nums=(1, 3, 4), parent=(1, 2, 3, 4), ch_mult=(1, 1)
    )
    plan = make_plan(model, tokenizer, SamplerConfig(patch_nums=(1, 4), cfg=3.0))
    assert [scale.side for scale in plan.scales] == [1, 4]
    assert [scale.known for scale in plan.scales] == [0, 2]
    assert [scale.parent for scale in plan.scales] == [0, 3]
    assert [scale.weight for scale in plan.scales] == [0.0, 3.0]
    assert [(scale.span.begin, scale.span.end) for scale in plan.scales] == [(0, 1), (1, 17)]
    assert plan.length == 17


@pytest.mark.parametrize(
    ("mask", "settings", "halves", "pass_halves"),
    [
        ("markov", {}, [1, 1, 1, 1], [0, 1, 1, 1]),
        ("markov", {"cfg": 1.0}, [1, 2, 2, 2], [0, 2, 2, 2]),
        ("markov", {"cfg": 1.0, "feedback": "none"}, [1, 2, 2, 2], [0, 0, 0, 0]),
        ("block_causal", {"cfg": 1.0}, [2, 2, 2, 2], [0, 2, 2, 2]),
        ("previous", {"cfg": 1.0}, [2, 2, 2, 2], [0, 2, 2, 2]),
        (  # no scale after the third is guided, nor does the last one's cache matter
            "block_causal",
            {"cfg": 1.0, "cfg_ramp": "window", "cfg_window": (0.5, 0.7)},
            [2, 2, 2, 1],
            [0, 1, 2, 1],
        ),
    ],
)
def test_the_half_without_class_runs_where_it_is_needed(
    mask: str, settings: dict[str, Any], halves: list[int], pass_halves: list[int]
) -> None:
    plan = _plan(mask, refine_steps=2, **settings)
    assert [scale.halves for scale in plan.scales] == halves
    assert [scale.pass_halves for scale in plan.scales] == pass_halves
    assert [scale.passes for scale in plan.scales] == [2, 2, 2, 2]
    assert plan.looks_back == (mask != "markov")


@pytest.mark.parametrize(
    ("mask", "kept", "halves"),
    [
        ("markov", [0, 2], [0, 2, 0, 2]),
        ("markov", [1, 2, 3], [1, 0, 0, 0]),
        ("block_causal", [0, 2], [2, 2, 2, 2]),  # the last scale attends to all
        ("block_causal", [2, 3], [2, 2, 0, 0]),  # nothing that is drawn attends to the last two
        ("previous", [0, 1, 2], [2, 2, 2, 2]),  # the last to the third, the third to the second
    ],
)
def test_a_scale_given_whole_runs_where_a_drawn_one_attends_to_it(
    mask: str, kept: list[int], halves: list[int]
) -> None:
    plan = _plan(mask, _keep(*kept), cfg=1.0, refine_steps=2)
    drawn = [scale not in kept for scale in range(4)]
    assert [scale.drawn for scale in plan.scales] == drawn
    assert [scale.halves for scale in plan.scales] == halves
    assert [scale.passes for scale in plan.scales] == [2 * own for own in drawn]
    assert [scale.flops > 0 for scale in plan.scales] == [True] * 4


def test_a_scale_given_for_some_images_is_drawn() -> None:
    given = _keep(0, 1)
    given.keep_BL[1, 0] = False
    assert [scale.drawn for scale in _plan(given=given).scales] == [True, False, True, True]


def test_settings_that_refine_nothing_make_a_plan_without_passes() -> None:
    assert [scale.passes for scale in _plan(refine_steps=3, resample_threshold=0.0).scales] == [
        0
    ] * 4
