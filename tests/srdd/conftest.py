"""Small models with open gates: with VAR's initialisation any mask would pass a parity test."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from srdd import Pipeline, SamplerConfig
from srdd.var.attention import attend_scales
from srdd.var.config import TokenizerConfig, TransformerConfig
from srdd.var.init import init_weights
from srdd.var.masks import Mask
from srdd.var.plan import make_plan
from srdd.var.scales import ScaleSchedule
from srdd.var.state import SampleState
from srdd.var.tokenizer import Tokenizer
from srdd.var.transformer import Conditioning, ScaleTransformer


@torch.no_grad()
def _open(model: ScaleTransformer) -> None:
    """Random weights of order one everywhere: gates, biases, classes, scales of attention."""
    init_weights(model, gate=1.0, head=6.0)
    width = model.config.width
    for name, parameter in model.named_parameters():
        if not name.startswith("quantizer."):
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    model.class_emb.weight.normal_()
    for block in model.layers:
        if model.config.shared_aln:
            block.ada_gss[:, :, :2] += 1
        else:
            block.ada_lin.bias[: 2 * width] += 1


def _build(mask: Mask, patch_nums: tuple[int, ...], seed: int, **settings: Any) -> Pipeline:
    torch.manual_seed(seed)
    shared = {"patch_nums": patch_nums, "z_channels": 8, "vocab_size": 32}
    tokenizer = Tokenizer(
        TokenizerConfig(
            resolution=2 * patch_nums[-1], ch=8, ch_mult=(1, 2), num_res_blocks=1, **shared
        )
    )
    with torch.no_grad():
        for conv in tokenizer.quantizer.phi.convs:
            conv.weight.mul_(2)
    config = {"num_classes": 5, "depth": 3, "width": 32, "num_heads": 4, **settings}
    model = ScaleTransformer(TransformerConfig(mask=mask, **shared, **config))
    _open(model)
    model.quantizer.load_state_dict(tokenizer.quantizer.state_dict())
    names = tuple(f"class {i}" for i in range(config["num_classes"]))
    tokenizer.eval().requires_grad_(False)
    return Pipeline(tokenizer, model.eval().requires_grad_(False), SamplerConfig(), names)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Each test draws the same numbers, whichever ran before it."""
    torch.manual_seed(0)


@cache
def _shared(mask: Mask, patch_nums: tuple[int, ...], seed: int, settings: Any) -> Pipeline:
    return _build(mask, patch_nums, seed, **dict(settings))


@pytest.fixture(scope="session")
def make_pipeline() -> Callable[..., Pipeline]:
    """A small pipeline by mask, schedule and transformer settings.

    It is shared by the tests that ask for the same: ``fresh=True`` gives one that may be changed.
    """

    def make(
        mask: Mask = "markov",
        patch_nums: tuple[int, ...] = (1, 2, 3, 4),
        *,
        seed: int = 0,
        fresh: bool = False,
        **settings: Any,
    ) -> Pipeline:
        if fresh:
            return _build(mask, patch_nums, seed, **settings)
        return _shared(mask, patch_nums, seed, tuple(sorted(settings.items())))

    return make


@pytest.fixture(scope="session")
def run_whole() -> Callable[..., Tensor]:
    """A model's blocks on some scales in one piece, under the dense mask: no cache, no spans."""

    def run(
        model: ScaleTransformer, x_BlW: Tensor, conditioning: Conditioning, schedule: ScaleSchedule
    ) -> Tensor:
        constants = model.constants()
        for depth, block in enumerate(model.layers):
            ada_B6W = conditioning.blocks_BD6W[:, depth]
            q, k, v = block.project(x_BlW, ada_B6W, constants[depth])
            scale = block.attn.softmax_scale
            attended = attend_scales(q, k, v, model.config.mask, schedule, "dense", scale)
            x_BlW = block.finish(x_BlW, attended, ada_B6W)
        return x_BlW

    return run


@pytest.fixture(scope="session")
def under() -> Callable[[Pipeline, SampleState, SamplerConfig], SampleState]:
    """A state that goes on under other settings, of the same scales."""

    def other(pipeline: Pipeline, state: SampleState, config: SamplerConfig) -> SampleState:
        model, tokenizer = pipeline.transformer.config, pipeline.tokenizer.config
        return replace(state, plan=make_plan(model, tokenizer, config))

    return other


def _assert_same(a: Any, b: Any) -> None:
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            _assert_same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            _assert_same(x, y)
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    else:
        assert a == b


@pytest.fixture(scope="session")
def assert_same() -> Callable[[Any, Any], None]:
    """Asserts that two states are equal bit for bit, through dicts and lists."""
    return _assert_same
