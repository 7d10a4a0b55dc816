import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from srdd import Pipeline, SamplerConfig, sample
from srdd.generator import Given
from srdd.nn.autoencoder import Decoder, Upsample
from srdd.var.attention import KVCache
from srdd.var.config import TokenizerConfig, TransformerConfig
from srdd.var.cost import conditioning_flops, decoder_flops, increment_flops, pass_flops
from srdd.var.masks import MASKS, Mask, attention_spans
from srdd.var.transformer import Conditioning, ScaleTransformer

MakePipeline = Callable[..., Pipeline]
LABELS = torch.tensor([0, 1, 2, 3])
SEEDS = [5, 6, 7, 8]


def _sdpa_flops(q: Any, k: Any, v: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    """The CPU's fused attention, which torch's counter does not know."""
    return 4 * math.prod(q[:-1]) * k[-2] * q[-1]


_CPU_SDPA = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _sdpa_flops}


def _count() -> FlopCounterMode:
    return FlopCounterMode(display=False, custom_mapping=_CPU_SDPA)


@pytest.mark.parametrize("mask", ["block_causal", "markov"])
@pytest.mark.parametrize("scale", [0, 2, 9])
def test_a_pass_costs_what_torch_counts(mask: Mask, scale: int) -> None:
    """VAR-d16's widths, on the meta device, attention included."""
    sides = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
    config = TransformerConfig(patch_nums=sides, mask=mask, depth=2)
    model = ScaleTransformer(config).to("meta").train()  # no rows are padded in training
    begin, end = config.schedule.spans[scale]
    conditioning = Conditioning(
        torch.empty(1, 1024, device="meta"),
        torch.empty(1, 2, 6, 1024, device="meta"),
        torch.empty(1, 2, 1024, device="meta"),
    )
    seen = attention_spans(mask, config.schedule)
    cache = KVCache.empty((2, 1, 1, 16, 64), seen[-1].end, model.pos_embed)
    tokens = torch.empty(1, end - begin, 32, device="meta")
    with torch.no_grad(), _count() as counter:
        x = model.start(conditioning) if scale == 0 else model.embed(tokens, scale)
        x = model.hidden(x, conditioning, model.constants(), seen[scale], cache)
        model.head(model.before_head(x, conditioning))
    keys = end if mask == "block_causal" else end - begin
    found = pass_flops(config, end - begin, keys, guided=False, first=scale == 0)
    assert found == counter.get_total_flops()


def test_the_second_half_shares_embedding_and_head() -> None:
    config = TransformerConfig(patch_nums=(1, 2, 3, 4))
    one = pass_flops(config, 16, 16, guided=False, first=False)
    two = pass_flops(config, 16, 16, guided=True, first=False)
    shared = 2 * 16 * 1024 * (4096 + 32)
    assert two - shared == 2 * (one - shared)


@pytest.mark.parametrize("shared_aln", [False, True])
def test_conditioning_costs_what_torch_counts(shared_aln: bool) -> None:
    config = TransformerConfig(
        patch_nums=(1, 2), depth=3, width=64, num_heads=2, vocab_size=16, shared_aln=shared_aln
    )
    model = ScaleTransformer(config).train()
    with _count() as counter:
        model.conditioning(torch.tensor([1]))
    assert counter.get_total_flops() == conditioning_flops(config)


def test_decoding_costs_what_torch_counts(make_pipeline: MakePipeline) -> None:
    """As sampling decodes, without gradients, in a chunk that is full."""
    tokenizer = make_pipeline().tokenizer
    with _count() as counter:
        tokenizer.decode_latent(torch.zeros(32, 8, 4, 4))
    # Attention is a fused kernel here and two products on the meta device: the same count.
    assert 32 * decoder_flops(tokenizer.config) == counter.get_total_flops()


def test_the_published_decoder_costs_what_its_layers_do() -> None:
    """The convolutions of VAR's decoder, summed by hand from its shapes."""
    config = TokenizerConfig(resolution=256, patch_nums=(1, 16))
    with torch.device("meta"):
        decoder = Decoder(config)
    doubled = {id(m.conv) for m in decoder.modules() if isinstance(m, Upsample)}
    total = 2 * 9 * 32 * 32 * 256  # post_quant_conv
    side = {"conv_in": 16, "mid": 16, "norm_out": 256, "conv_out": 256}
    for name, module in decoder.named_modules():
        if isinstance(module, torch.nn.Conv2d):
            parts = name.split(".")
            here = side.get(parts[0]) or 256 >> int(parts[1])
            if id(module) in doubled:  # four phases of 2x2 taps over the padded input
                total += 2 * 4 * 4 * module.in_channels * module.out_channels * (here + 1) ** 2
            else:
                total += 2 * module.weight.numel() * here * here
    total += 4 * 4 * 256 * 256 * 640  # attention: one in the middle, three at the lowest level
    assert decoder_flops(config) == total


def test_an_increment_costs_what_torch_counts(make_pipeline: MakePipeline) -> None:
    model = make_pipeline().transformer
    with _count() as counter:
        model.quantizer.increment(torch.zeros(1, 8, 2, 2), 2)
    assert counter.get_total_flops() == increment_flops(model.config)


def _expected(pipeline: Pipeline, config: SamplerConfig, passes: dict[int, int]) -> float:
    """GFLOPs of an image: ``passes`` after the first at each scale; guided ones twice."""
    model = pipeline.transformer.config
    schedule = pipeline.transformer.schedule.visit(config.patch_nums)
    halves = 2 if config.cfg else 1
    total = decoder_flops(pipeline.tokenizer.config) + halves * conditioning_flops(model)
    for scale, (begin, end) in enumerate(schedule.spans):
        seen = {"markov": begin, "markov_local": begin, "block_causal": 0}.get(model.mask)
        seen = schedule.spans[max(0, scale - 1)][0] if seen is None else seen
        length, seen = end - begin, end - seen
        one = (length, seen)
        guided = config.cfg > 0 and scale > 0
        written = guided or (config.cfg > 0 and model.mask in ("block_causal", "previous"))
        total += pass_flops(model, *one, guided=written, first=scale == 0)
        more = pass_flops(model, *one, guided=guided, first=False) + increment_flops(model)
        total += passes.get(scale, 0) * more + increment_flops(model)
    return total / 1e9


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("cfg", [0.0, 2.0])
@pytest.mark.parametrize("patch_nums", [None, (1, 2, 4)])
def test_gflops_are_the_sum_of_the_passes(
    make_pipeline: MakePipeline, mask: Mask, cfg: float, patch_nums: tuple[int, ...] | None
) -> None:
    pipeline = make_pipeline(mask)
    plain = SamplerConfig(cfg=cfg, patch_nums=patch_nums)
    found = sample(pipeline, LABELS, plain, SEEDS)
    assert found.gflops.dtype == torch.float64
    assert found.gflops.tolist() == pytest.approx([_expected(pipeline, plain, {})] * 4, rel=1e-12)
    forced = replace(plain, refine_steps=2, resample="simple")
    found = sample(pipeline, LABELS, forced, SEEDS)
    passes = dict.fromkeys(range(1, 4 if patch_nums is None else 3), 2)  # none at the first scale
    expected = _expected(pipeline, forced, passes)
    assert found.gflops.tolist() == pytest.approx([expected] * 4, rel=1e-12)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(
    "config",
    [
        SamplerConfig(),
        SamplerConfig(cfg=2.0),
        SamplerConfig(cfg=2.0, cfg_ramp="window", cfg_window=(0.0, 0.4)),
        SamplerConfig(cfg=2.0, refine_steps=2, resample="simple"),
        SamplerConfig(refine_steps=3, resample_threshold=0.05),
        SamplerConfig(refine_steps=3, resample_threshold=0.05, feedback="none"),
    ],
    ids=["plain", "guided", "window", "simple", "masked", "unshown"],
)
def test_the_count_is_that_of_the_loop_really_run(
    make_pipeline: MakePipeline, mask: Mask, config: SamplerConfig
) -> None:
    """Torch's counter around the sampler itself, all scales, against what the state says.

    Each image stands twice, so that none is refined alone: a lone row is padded.
    """
    pipeline = make_pipeline(mask)
    state = pipeline.begin(LABELS // 2, config, [5, 5, 6, 6])
    before = int(state.cost.flops_B.sum())
    with _count() as counter:
        for _ in range(4):
            state = pipeline.advance(state)
    assert int(state.cost.flops_B.sum()) - before == counter.get_total_flops()


@pytest.mark.parametrize("mask", ["block_causal", "markov"])
@pytest.mark.parametrize("cfg", [0.0, 2.0])
@pytest.mark.parametrize("steps", [0, 2])
def test_the_reported_cost_is_that_of_a_whole_sample(
    make_pipeline: MakePipeline, mask: Mask, cfg: float, steps: int
) -> None:
    """Torch's counter around all of it: classes, scales, passes, increments and decoder."""
    pipeline = make_pipeline(mask)
    config = SamplerConfig(cfg=cfg, refine_steps=steps, resample="simple")
    labels_B = torch.arange(32) % 5  # a full chunk of the decoder
    with _count() as counter:
        result = sample(pipeline, labels_B, config, range(32))
    reported, total = float(result.gflops.sum()) * 1e9, counter.get_total_flops()
    assert reported == pytest.approx(total, rel=0.01)
    # Each image is charged for its null class, which a batch computes once.
    spared = 31 * conditioning_flops(pipeline.transformer.config) if cfg else 0
    assert reported - spared == pytest.approx(total, rel=1e-9)


@pytest.mark.parametrize("mask", ["block_causal", "markov"])
def test_the_cost_of_each_image_is_that_of_drawing_it_alone(
    make_pipeline: MakePipeline, mask: Mask
) -> None:
    """Where early stopping makes them differ. Alone means four times, or rows would be padded."""
    pipeline = make_pipeline(mask)
    config = SamplerConfig(cfg=1.0, refine_steps=4, resample_threshold=0.04)
    state = pipeline.begin(LABELS, config, SEEDS)
    before_B = state.cost.flops_B
    for _ in range(4):
        state = pipeline.advance(state)
    counts = []
    for i in range(4):
        alone = pipeline.begin(LABELS[[i] * 4], config, [SEEDS[i]] * 4)
        with _count() as counter:
            for _ in range(4):
                alone = pipeline.advance(alone)
        counts.append(counter.get_total_flops() / 4)
    assert len(set(counts)) > 1
    assert (state.cost.flops_B - before_B).tolist() == counts


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("spans", [[(0, 5)], [(1, 5), (14, 30)], [(0, 1), (3, 9)]])
def test_codes_that_are_given_cost_what_still_runs(
    make_pipeline: MakePipeline, mask: Mask, spans: list[tuple[int, int]]
) -> None:
    """Whole scales, which run where others attend to them, and parts of scales."""
    pipeline = make_pipeline(mask)
    keep_BL = torch.zeros(4, 30, dtype=torch.bool)
    for begin, end in spans:
        keep_BL[:, begin:end] = True
    given = Given(torch.arange(30).expand(4, 30), keep_BL)
    for config in (
        SamplerConfig(cfg=1.0, refine_steps=3, resample_threshold=0.1),
        SamplerConfig(cfg=1.0, cfg_ramp="window", cfg_window=(0.3, 0.7)),
        SamplerConfig(refine_steps=2, resample="simple", feedback="none"),
    ):
        state = pipeline.begin([2] * 4, config, [6] * 4, given)
        before_B = state.cost.flops_B
        with _count() as counter:
            for _ in range(4):
                state = pipeline.advance(state)
        spent_B = state.cost.flops_B - before_B
        assert spent_B.tolist() == [counter.get_total_flops() / 4] * 4


def test_stopping_early_makes_cost_a_matter_of_the_image(make_pipeline: MakePipeline) -> None:
    pipeline = make_pipeline()
    config = SamplerConfig(refine_steps=4, resample_threshold=0.04)
    result = sample(pipeline, LABELS, config, SEEDS)
    assert len(result.gflops.unique()) > 1
    plain = sample(pipeline, LABELS, SamplerConfig(), SEEDS)
    assert (result.gflops >= plain.gflops).all()
    order = result.nfe.argsort()
    assert (result.nfe[order] >= 4).all()
    assert result.gflops[order[-1]] > result.gflops[order[0]]


def test_the_cost_of_a_mask_is_what_it_attends_to(make_pipeline: MakePipeline) -> None:
    costs = {
        mask: float(sample(make_pipeline(mask), LABELS, SamplerConfig(), SEEDS).gflops[0])
        for mask in MASKS
    }
    pairs = {"previous": 4 + 4 * 9 + 9 * 16, "block_causal": 4 + 5 * 9 + 14 * 16}
    for mask in MASKS:
        more = pairs.get(mask, 0)  # windowed or not, markov's products are of whole scales
        expected = costs["markov"] + 3 * 4 * more * 32 / 1e9
        assert costs[mask] == pytest.approx(expected, rel=1e-12)
