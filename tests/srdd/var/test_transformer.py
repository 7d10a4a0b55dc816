import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from srdd import Pipeline
from srdd.errors import UserError
from srdd.var.attention import KVCache, RowLinear, attention_constants
from srdd.var.config import TransformerConfig
from srdd.var.init import init_weights
from srdd.var.mask_tensors import build_mask
from srdd.var.masks import MASKS, Mask, attention_spans
from srdd.var.scales import ScaleSchedule
from srdd.var.transformer import ScaleTransformer

MakePipeline = Callable[..., Pipeline]
RunWhole = Callable[..., Tensor]
VARIANTS: list[dict[str, Any]] = [{}, {"shared_aln": True}, {"attn_l2_norm": False}]


def _inputs(model: ScaleTransformer, batch: int = 3) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    codes_BL = torch.randint(
        model.config.vocab_size, (batch, model.schedule.length), generator=draw
    )
    return torch.arange(batch) % (model.null_class + 1), codes_BL


def _dense_logits(model: ScaleTransformer, labels_B: Tensor, tokens_BlC: Tensor) -> Tensor:
    """VAR's forward pass in one piece: dense softmax under a bias, no cache, no blocks."""
    config, schedule = model.config, model.schedule
    W, H = config.width, config.num_heads
    p = dict(model.named_parameters())
    mask_LL = build_mask(config.mask, schedule)
    bias_LL = torch.zeros(mask_LL.shape).masked_fill(~mask_LL, -torch.inf)
    class_BW = p["class_emb.weight"][labels_B]
    start = class_BW[:, None] + p["pos_start"]
    x = torch.cat((start, tokens_BlC @ p["word_embed.weight"].T + p["word_embed.bias"]), 1)
    levels = [s for s, side in enumerate(schedule.patch_nums) for _ in range(side * side)]
    x = x + p["pos_embed"] + p["level_embed.weight"][levels]
    act = F.silu(class_BW)

    def norm(y: Tensor) -> Tensor:
        mean, var = y.mean(-1, keepdim=True), y.var(-1, unbiased=False, keepdim=True)
        return (y - mean) / (var + 1e-6).sqrt()

    for d in range(config.depth):
        b = {
            n.removeprefix(f"blocks.{d}."): t for n, t in p.items() if n.startswith(f"blocks.{d}.")
        }
        if config.shared_aln:
            ada = (act @ p["shared_ada_lin.weight"].T + p["shared_ada_lin.bias"]).view(-1, 1, 6, W)
            ada = ada + b["ada_gss"]
        else:
            ada = (act @ b["ada_lin.weight"].T + b["ada_lin.bias"]).view(-1, 1, 6, W)
        g1, g2, s1, s2, t1, t2 = ada.unbind(2)
        y = norm(x) * (1 + s1) + t1
        k_bias = torch.zeros(W)
        qkv = y @ b["attn.qkv.weight"].T + torch.cat((b["attn.q_bias"], k_bias, b["attn.v_bias"]))
        q, k, v = qkv.view(*y.shape[:2], 3, H, W // H).permute(2, 0, 3, 1, 4)
        if config.attn_l2_norm:
            scale = b["attn.log_scale"].clamp(max=math.log(100)).exp()
            scores = (q / q.norm(dim=-1, keepdim=True) * scale) @ (
                k / k.norm(dim=-1, keepdim=True)
            ).transpose(-1, -2)
        else:
            scores = q @ k.transpose(-1, -2) * 0.25 / math.sqrt(W // H)
        out = ((scores + bias_LL).softmax(-1) @ v).transpose(1, 2).reshape(y.shape)
        x = x + g1 * (out @ b["attn.proj.weight"].T + b["attn.proj.bias"])
        y = norm(x) * (1 + s2) + t2
        y = F.gelu(y @ b["ffn.fc1.weight"].T + b["ffn.fc1.bias"], approximate="tanh")
        x = x + g2 * (y @ b["ffn.fc2.weight"].T + b["ffn.fc2.bias"])
    scale, shift = (act @ p["head_ada.weight"].T + p["head_ada.bias"]).view(-1, 1, 2, W).unbind(2)
    return (norm(x) * (1 + scale) + shift) @ p["head.weight"].T + p["head.bias"]


def _cache(model: ScaleTransformer, batch: int) -> KVCache:
    config = model.config
    shape = (config.depth, 1, batch, config.num_heads, config.width // config.num_heads)
    cache = KVCache.empty(shape, model.schedule.length, model.pos_embed)
    cache.keys.zero_()  # or what is not written yet may be NaN
    cache.values.zero_()
    return cache


def _stepwise_logits(model: ScaleTransformer, labels_B: Tensor, codes_BL: Tensor) -> Tensor:
    """One scale at a time from the true codes, with a cache."""
    config, schedule = model.config, model.schedule
    conditioning = model.conditioning(labels_B)
    tokens_BlC = model.quantizer.teacher_input(codes_BL)
    cache, constants = _cache(model, len(labels_B)), model.constants()
    logits = []
    for scale, view in enumerate(attention_spans(config.mask, schedule)):
        if scale == 0:
            x = model.start(conditioning)
        else:
            x = model.embed(tokens_BlC[:, view.begin - 1 : view.end - 1], scale)
        x = model.hidden(x, conditioning, constants, view, cache)
        logits.append(model.head(model.before_head(x, conditioning)))
    return torch.cat(logits, dim=1)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("mask", MASKS)
def test_logits_and_gradients_equal_dense_masked_attention(
    make_pipeline: MakePipeline, mask: Mask, variant: dict[str, Any]
) -> None:
    model = make_pipeline(mask, fresh=True, **variant).transformer
    model.requires_grad_(True).quantizer.requires_grad_(False)
    labels_B, codes_BL = _inputs(model)
    tokens_BlC = model.quantizer.teacher_input(codes_BL)
    weight_BLV = torch.randn(3, model.schedule.length, model.config.vocab_size)
    parameters = [p for p in model.parameters() if p.requires_grad]
    found = model(labels_B, codes_BL)
    expected = _dense_logits(model, labels_B, tokens_BlC)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)
    assert found.std() > 1  # or any mask would do
    for own, dense in zip(
        torch.autograd.grad((found * weight_BLV).sum(), parameters),
        torch.autograd.grad((expected * weight_BLV).sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(own, dense, atol=2e-4 * float(dense.abs().max()), rtol=1e-3)


def test_the_masks_give_different_logits(make_pipeline: MakePipeline) -> None:
    labels_B, codes_BL = _inputs(make_pipeline("markov").transformer)
    logits = {}
    for mask in MASKS:
        logits[mask] = make_pipeline(mask).transformer(labels_B, codes_BL)  # one set of weights
    last = slice(make_pipeline("markov").transformer.schedule.spans[-1][0], None)
    first = slice(0, 1)
    for a, b in (("markov", "previous"), ("previous", "block_causal")):
        assert (logits[a] - logits[b])[:, last].abs().mean() > 0.05
        torch.testing.assert_close(logits[a][:, first], logits[b][:, first])


@pytest.mark.parametrize("mask", MASKS)
def test_teacher_forcing_equals_one_scale_at_a_time(
    make_pipeline: MakePipeline, mask: Mask
) -> None:
    model = make_pipeline(mask).transformer
    labels_B, codes_BL = _inputs(model)
    whole = model(labels_B, codes_BL)
    torch.testing.assert_close(
        _stepwise_logits(model, labels_B, codes_BL), whole, atol=2e-5, rtol=1e-4
    )


@pytest.mark.parametrize("mask", ["markov", "markov_local"])
def test_markov_needs_no_cache(make_pipeline: MakePipeline, mask: Mask) -> None:
    model = make_pipeline(mask).transformer
    labels_B, codes_BL = _inputs(model)
    conditioning = model.conditioning(labels_B)
    tokens_BlC = model.quantizer.teacher_input(codes_BL)
    cached = _stepwise_logits(model, labels_B, codes_BL)
    constants, seen = model.constants(), attention_spans(mask, model.schedule)
    for scale, (begin, end) in list(enumerate(model.schedule.spans))[1:]:
        x = model.embed(tokens_BlC[:, begin - 1 : end - 1], scale)
        x = model.hidden(x, conditioning, constants, seen[scale])
        alone = model.head(model.before_head(x, conditioning))
        assert torch.equal(alone, cached[:, begin:end])


@pytest.mark.parametrize("mask", ["block_causal", "previous"])
def test_a_cache_equals_running_the_prefix_again(
    make_pipeline: MakePipeline, run_whole: RunWhole, mask: Mask
) -> None:
    model = make_pipeline(mask).transformer
    labels_B, codes_BL = _inputs(model)
    cached = _stepwise_logits(model, labels_B, codes_BL)
    conditioning = model.conditioning(labels_B)
    tokens_BlC = model.quantizer.teacher_input(codes_BL)
    x_BLW = model.start(conditioning)
    for scale, (begin, end) in list(enumerate(model.schedule.spans))[1:]:
        block = model.embed(tokens_BlC[:, begin - 1 : end - 1], scale)
        x_BLW = torch.cat((x_BLW, block), dim=1)
        done = ScaleSchedule(model.schedule.patch_nums[: scale + 1])
        prefix = run_whole(model, x_BLW, conditioning, done)
        logits = model.head(model.before_head(prefix, conditioning))
        torch.testing.assert_close(logits[:, begin:], cached[:, begin:end], atol=2e-5, rtol=1e-4)


def test_a_pass_that_does_not_write_sees_its_own_keys_and_leaves_the_cache(
    make_pipeline: MakePipeline, run_whole: RunWhole
) -> None:
    model = make_pipeline("block_causal").transformer
    labels_B, codes_BL = _inputs(model)
    conditioning = model.conditioning(labels_B)
    cache, constants = _cache(model, 3), model.constants()
    first, second, *_ = attention_spans("block_causal", model.schedule)
    model.hidden(model.start(conditioning), conditioning, constants, first, cache)
    tokens_BlC = model.quantizer.teacher_input(codes_BL)[:, :4]
    model.hidden(model.embed(tokens_BlC, 1), conditioning, constants, second, cache)
    kept = cache.keys.clone(), cache.values.clone()
    other = model.embed(torch.randn_like(tokens_BlC), 1)
    found = model.hidden(other, conditioning, constants, second, cache, write=False)
    assert torch.equal(cache.keys, kept[0])
    assert torch.equal(cache.values, kept[1])
    prefix = torch.cat((model.start(conditioning), other), dim=1)
    expected = run_whole(model, prefix, conditioning, ScaleSchedule((1, 2)))[:, 1:]
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("scale", [1, 2, 3])
def test_markov_forgets_the_input_before_a_scale(make_pipeline: MakePipeline, scale: int) -> None:
    """The Markov property: bit-equal for markov, changed for block_causal."""
    for mask in MASKS:
        model = make_pipeline(mask).transformer
        labels_B, codes_BL = _inputs(model)
        begin, end = model.schedule.spans[scale]
        tokens_BlC = model.quantizer.teacher_input(codes_BL)
        changed = tokens_BlC.clone()
        changed[:, : begin - 1] = torch.randn_like(changed[:, : begin - 1])
        before = model(labels_B, codes_BL, tokens_BlC)[:, begin:end]
        after = model(labels_B, codes_BL, changed)[:, begin:end]
        if (
            mask.startswith("markov") or scale == 1
        ):  # the start token stands before scale 1, unchanged
            assert torch.equal(before, after)
        else:
            assert (before - after).abs().mean() > 1e-3


@pytest.mark.parametrize("mask", MASKS)
def test_a_scale_sees_nothing_finer(make_pipeline: MakePipeline, mask: Mask) -> None:
    model = make_pipeline(mask).transformer
    labels_B, codes_BL = _inputs(model)
    whole = model(labels_B, codes_BL)
    for scale, (begin, end) in enumerate(model.schedule.spans):
        other = codes_BL.clone()
        other[:, begin:] = (other[:, begin:] + 7) % model.config.vocab_size
        assert torch.equal(model(labels_B, other)[:, :end], whole[:, :end])
        if scale + 1 < model.schedule.num_scales:
            nxt = slice(end, model.schedule.spans[scale + 1][1])
            assert not torch.allclose(model(labels_B, other)[:, nxt], whole[:, nxt])


def test_masks_are_no_part_of_the_weights(make_pipeline: MakePipeline) -> None:
    """A causal mask in a checkpoint would undo the Markov property."""
    states = [make_pipeline(mask).transformer.state_dict().keys() for mask in MASKS]
    assert states[0] == states[1] == states[2]
    assert not [name for name in states[0] if "mask" in name or "bias_for" in name]
    assert not [n for n, _ in make_pipeline().transformer.named_buffers()]


def test_the_class_and_the_null_class_bear_on_the_logits(make_pipeline: MakePipeline) -> None:
    model = make_pipeline().transformer
    _, codes_BL = _inputs(model, 1)
    logits = [model(torch.tensor([c]), codes_BL) for c in (0, 1, model.null_class)]
    assert (logits[0] - logits[1]).abs().mean() > 0.05
    assert (logits[0] - logits[2]).abs().mean() > 0.05


def test_an_unconditional_model_has_one_class(make_pipeline: MakePipeline) -> None:
    model = make_pipeline(num_classes=1, unconditional=True).transformer
    _, codes_BL = _inputs(model, 1)
    assert torch.equal(model(torch.tensor([0]), codes_BL), model(torch.tensor([1]), codes_BL))


@pytest.mark.parametrize("label", [-1, 6])
def test_a_class_out_of_range_is_refused(make_pipeline: MakePipeline, label: int) -> None:
    model = make_pipeline().transformer
    with pytest.raises(UserError, match=r"classes must lie in \[0, 5\).*got \[0, " + str(label)):
        model(torch.tensor([0, label]), torch.zeros(2, model.schedule.length, dtype=torch.int64))


def test_a_scale_has_its_own_positions_and_level(make_pipeline: MakePipeline) -> None:
    model = make_pipeline().transformer
    begin, end = model.schedule.spans[2]
    expected = model.pos_embed[:, begin:end] + model.level_embed.weight[2]
    assert torch.equal(model.position(2), expected)
    assert model.position(2).shape == (1, 9, 32)


@pytest.mark.parametrize("gradients", [True, False])
def test_the_attentions_temperature_is_bounded_at_100(
    make_pipeline: MakePipeline, gradients: bool
) -> None:
    attention = make_pipeline(fresh=True).transformer.layers[0].attn
    attention.log_scale.fill_(9.0)
    with torch.set_grad_enabled(gradients):  # without them the lengths are set in place
        q, k, _ = attention.project(torch.randn(1, 4, 32), *attention_constants([attention]))
    torch.testing.assert_close(q.norm(dim=-1), torch.full((1, 4, 4), 100.0))
    torch.testing.assert_close(k.norm(dim=-1), torch.ones(1, 4, 4))


@pytest.mark.parametrize("shape", [(), (1,), (2,), (3,), (1, 1), (3, 1), (0,), (1, 3), (4,), (33,)])
def test_a_rows_product_does_not_depend_on_the_others(shape: tuple[int, ...]) -> None:
    layer = RowLinear(48, 40).eval()
    x = torch.randn(64, 48)
    rows = math.prod(shape)
    found = layer(x[:rows].reshape(*shape, 48))
    assert found.shape == (*shape, 40)
    assert torch.equal(found.reshape(rows, 40), layer(x)[:rows])


def test_stochastic_depth_is_keyed_by_the_image(make_pipeline: MakePipeline) -> None:
    model = make_pipeline(drop_path=0.6, seed=3).transformer
    assert [block.drop_path for block in model.layers] == pytest.approx([0, 0.3, 0.6])
    labels_B, codes_BL = _inputs(model, 4)
    keys_B = torch.tensor([11, 22, 33, 44])
    dropped = model(labels_B, codes_BL, path_keys_B=keys_B)
    order = torch.tensor([2, 0, 3, 1])
    moved = model(labels_B[order], codes_BL[order], path_keys_B=keys_B[order])
    torch.testing.assert_close(moved, dropped[order])
    assert not torch.allclose(dropped, model(labels_B, codes_BL))
    last, one, keys = model.layers[-1], torch.ones(20_000, 1, 1), torch.arange(20_000)
    kept = [last.add_branch(0 * one, one, one[:, 0], keys, i).flatten() for i in (0, 1)]
    for found in kept:
        assert sorted(found.unique().tolist()) == pytest.approx([0, 1 / 0.4])
        assert float(found.mean()) == pytest.approx(1, abs=0.04)
    assert float((kept[0] * kept[1]).mean()) == pytest.approx(1, abs=0.06)  # two coins an image


def test_initial_weights_are_vars() -> None:
    """Spread of each kind of weight (``var.py``, ``init_weights``)."""
    torch.manual_seed(0)
    config = TransformerConfig(patch_nums=(1, 2, 3), depth=8, width=128, num_heads=2, vocab_size=64)
    model = ScaleTransformer(config)
    init_weights(model, gate=1e-3, head=0.02)
    std = math.sqrt(1 / 128 / 3)
    block = model.layers[3]
    spreads = {
        "class_emb": (model.class_emb.weight, 1),
        "word_embed": (model.word_embed.weight, 1),
        "positions": (model.pos_embed, 1),
        "qkv": (block.attn.qkv.weight, 1),
        "fc1": (block.ffn.fc1.weight, 1),
        "proj": (block.attn.proj.weight, 1 / 4),
        "fc2": (block.ffn.fc2.weight, 1 / 4),
        "gates": (block.ada_lin.weight[: 2 * 128], 1e-3),
        "scales": (block.ada_lin.weight[2 * 128 :], 0.5),
        "head": (model.head.weight, 0.02),
        "head_ada": (model.head_ada.weight, 0.5),
    }
    found = {name: float(tensor.detach().std()) / std for name, (tensor, _) in spreads.items()}
    assert found == pytest.approx({name: factor for name, (_, factor) in spreads.items()}, rel=0.1)
    assert torch.equal(block.ada_lin.bias, torch.zeros(768))
    torch.testing.assert_close(block.attn.log_scale, torch.full((2, 1, 1), math.log(4)))
