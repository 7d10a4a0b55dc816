import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from srdd import Pipeline, SamplerConfig, sample
from srdd.errors import UserError
from srdd.presets import PRESETS, get_preset
from srdd.train.config import OptimConfig, TokenizerLossConfig, TransformerLossConfig
from srdd.validation import from_dict, to_dict
from srdd.var.config import TokenizerConfig, TransformerConfig

MakePipeline = Callable[..., Pipeline]
TOKENIZER: dict[str, Any] = {"resolution": 8, "patch_nums": (1, 2, 4), "ch_mult": (1, 2)}
TRANSFORMER: dict[str, Any] = {"patch_nums": (1, 2, 4)}
NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("patch_nums", (2, 1)),
        ("patch_nums", ()),
        ("cfg", -0.1),
        ("cfg", NAN),
        ("cfg", INF),
        ("cfg_ramp", "cosine"),
        ("cfg_window", (0.5, 0.2)),
        ("cfg_window", (-0.1, 0.2)),
        ("cfg_window", (0.1, 1.2)),
        ("cfg_window", (0.1,)),
        ("cfg_window", (0.1, 0.2, 0.3)),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("top_p", NAN),
        ("epsilon", -0.1),
        ("epsilon", 1.0),
        ("refine_steps", -1),
        ("resample", "all"),
        ("resample_threshold", -0.01),
        ("resample_threshold", 1.01),
        ("resample_threshold", NAN),
        ("feedback", "new"),
    ],
)
def test_a_sampler_setting_out_of_range_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(UserError, match=field):
        SamplerConfig(**{field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("patch_nums", (4, 2)),
        ("resolution", 0),
        ("resolution", 9),
        ("resolution", 16),
        ("vocab_size", 1),
        ("z_channels", 0),
        ("ch", 0),
        ("ch_mult", ()),
        ("ch_mult", (1, 0)),
        ("num_res_blocks", 0),
        ("num_phi", 0),
        ("num_phi", 65),
    ],
)
def test_a_tokenizer_setting_out_of_range_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(UserError, match=field):
        TokenizerConfig(**{**TOKENIZER, field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("patch_nums", (1, 1)),
        ("mask", "causal"),
        ("num_classes", 0),
        ("depth", 0),
        ("width", 1000),
        ("num_heads", 0),
        ("mlp_ratio", 0.0),
        ("mlp_ratio", -1.0),
        ("vocab_size", 0),
        ("z_channels", 0),
        ("num_phi", 0),
        ("norm_eps", -1e-6),
        ("drop_path", 1.0),
        ("drop_path", -0.1),
    ],
)
def test_a_transformer_setting_out_of_range_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(UserError, match=field):
        TransformerConfig(**{**TRANSFORMER, field: value})


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        (OptimConfig, "steps", 0),
        (OptimConfig, "batch_size", 0),
        (OptimConfig, "lr", 0.0),
        (OptimConfig, "lr", NAN),
        (OptimConfig, "lr_schedule", "step"),
        (OptimConfig, "final_lr", 1.5),
        (OptimConfig, "warmup", -0.1),
        (OptimConfig, "betas", (0.9, 1.0)),
        (OptimConfig, "betas", (-0.1, 0.9)),
        (OptimConfig, "betas", (0.9,)),
        (OptimConfig, "weight_decay", -1.0),
        (OptimConfig, "weight_decay", INF),
        (OptimConfig, "clip", -1.0),
        (OptimConfig, "seed", -1),
        (TokenizerLossConfig, "l1", -1.0),
        (TokenizerLossConfig, "l2", NAN),
        (TokenizerLossConfig, "vq", INF),
        (TokenizerLossConfig, "beta", -1.0),
        (TokenizerLossConfig, "restart_every", -1),
        (TokenizerLossConfig, "restart_until", 1.1),
        (TransformerLossConfig, "label_drop", 1.0),
        (TransformerLossConfig, "label_drop", -0.1),
    ],
)
def test_a_training_setting_out_of_range_is_refused_by_name(
    kind: type, field: str, value: Any
) -> None:
    required = {"steps": 10} if kind is OptimConfig else {}
    with pytest.raises(UserError, match=field):
        kind(**{**required, field: value})


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"cfgs": 1.0}, "unknown setting 'cfgs'; known: patch_nums, cfg,"),
        ({"cfg": "3"}, "cfg must be a finite number, got '3'"),
        ({"cfg": True}, "cfg must be a finite number, got True"),
        ({"top_k": True}, "top_k must be an integer, got True"),
        ({"top_k": 1.0}, "top_k must be an integer, got 1.0"),
        ({"top_k": None}, "top_k must be an integer"),
        ({"patch_nums": [1, 2.5]}, "patch_nums must be a list of integers"),
        ({"patch_nums": [1, True]}, "patch_nums must be a list of integers"),
        ({"patch_nums": 4}, "patch_nums must be a list of integers"),
        ({"cfg_ramp": "sine"}, "cfg_ramp must be"),
        ({"cfg_ramp": ["linear"]}, "cfg_ramp must be"),
        ({"cfg_window": [0.5]}, "cfg_window"),
        ({"cfg_window": [0.1, "a"]}, "cfg_window must be 2 finite numbers"),
        ({"top_p": 2.0}, "top_p must be in"),
        ([], "settings|object"),
        (["cfg"], "cfg|object"),
    ],
)
def test_json_of_a_wrong_kind_is_refused_by_name(values: Any, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        from_dict(SamplerConfig, values, where="a/sampler.json")
    assert str(caught.value).startswith("a/sampler.json: ")


def test_a_missing_field_is_named() -> None:
    with pytest.raises(UserError, match="resolution"):
        from_dict(TokenizerConfig, {"patch_nums": [1, 2]})


def test_an_int_passes_for_a_float() -> None:
    assert from_dict(SamplerConfig, {"cfg": 3}).cfg == 3.0


@pytest.mark.parametrize(
    "config",
    [
        SamplerConfig(),
        SamplerConfig(patch_nums=(1, 2, 4), cfg=1.5, cfg_ramp="window", cfg_window=(0.1, 0.5)),
        TokenizerConfig(**TOKENIZER),
        TransformerConfig(**TRANSFORMER, mask="previous", shared_aln=True),
        OptimConfig(steps=3),
    ],
)
def test_json_and_back_is_the_identity(config: Any) -> None:
    values = to_dict(config)
    assert not [value for value in values.values() if isinstance(value, tuple)]
    assert from_dict(type(config), values) == config


def test_presets_fit_together() -> None:
    for name in PRESETS:
        preset = get_preset(name)
        for field in ("patch_nums", "vocab_size", "z_channels", "num_phi"):
            assert getattr(preset.tokenizer, field) == getattr(preset.transformer, field)
    with pytest.raises(UserError, match="no preset 'digit'; there are digits"):
        get_preset("digit")


INACTIVE: list[tuple[dict[str, Any], dict[str, Any], set[str]]] = [
    ({"cfg": 0.0}, {"cfg_ramp": "constant"}, {"cfg_ramp", "cfg_window"}),
    ({"cfg": 0.0, "cfg_ramp": "window"}, {"cfg_window": (0.5, 0.6)}, {"cfg_ramp", "cfg_window"}),
    ({"cfg": 2.0}, {"cfg_window": (0.5, 0.6)}, {"cfg_window"}),
    (
        {"refine_steps": 0},
        {"resample": "simple", "resample_threshold": 0.9, "feedback": "kept"},
        {"resample", "resample_threshold", "feedback"},
    ),
    (
        {"refine_steps": 3, "resample_threshold": 0.0},
        {"refine_steps": 1, "feedback": "kept"},
        {"resample", "resample_threshold", "feedback"},
    ),
    (
        {"refine_steps": 2, "resample": "simple"},
        {"resample_threshold": 0.9},
        {"resample_threshold"},
    ),
]


@pytest.mark.parametrize(("base", "change", "gone"), INACTIVE)
def test_inactive_settings_do_not_bear_on_the_images(
    make_pipeline: MakePipeline, base: dict[str, Any], change: dict[str, Any], gone: set[str]
) -> None:
    one = SamplerConfig(**base)
    two = replace(one, **change)
    assert one != two
    assert one.active() == two.active()
    unguided = {"cfg_ramp", "cfg_window"} if one.cfg == 0 else {"cfg_window"}
    plain = {"resample", "resample_threshold", "feedback"} if not one.refine_steps else set()
    assert set(to_dict(one)) - set(one.active()) == gone | unguided | plain
    labels_B, seeds = torch.arange(5), range(5)
    first = sample(make_pipeline(), labels_B, one, seeds)
    second = sample(make_pipeline(), labels_B, two, seeds)
    assert torch.equal(first.images, second.images)
    assert torch.equal(first.gflops, second.gflops)


@pytest.mark.parametrize(
    ("base", "change"),
    [
        ({}, {"cfg": 1.0}),
        ({"cfg": 2.0}, {"cfg_ramp": "constant"}),
        ({"cfg": 2.0, "cfg_ramp": "window"}, {"cfg_window": (0.5, 1.0)}),
        ({}, {"top_k": 2}),
        ({}, {"top_p": 0.3}),
        ({}, {"epsilon": 0.2}),
        ({}, {"patch_nums": (1, 3, 4)}),
        ({"resample_threshold": 0.2}, {"refine_steps": 1}),
        ({"resample_threshold": 0.2, "refine_steps": 1}, {"resample_threshold": 0.05}),
        ({"resample_threshold": 0.2, "refine_steps": 1}, {"resample": "simple"}),
        ({"resample_threshold": 0.2, "refine_steps": 1}, {"feedback": "none"}),
    ],
)
def test_active_settings_do(
    make_pipeline: MakePipeline, base: dict[str, Any], change: dict[str, Any]
) -> None:
    one = SamplerConfig(**base)
    two = replace(one, **change)
    assert one.active() != two.active()
    labels_B, seeds = torch.arange(5), range(5)
    first = sample(make_pipeline(), labels_B, one, seeds)
    second = sample(make_pipeline(), labels_B, two, seeds)
    assert not torch.equal(first.images, second.images)
