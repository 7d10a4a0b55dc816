"""What makes sampling faster by choice: int8 linears, compiled blocks, CUDA graphs."""

from collections.abc import Callable

import pytest
import torch

from srdd import Pipeline, SamplerConfig, sample
from srdd.errors import UserError
from srdd.graph import GraphedSampler, run_loop
from srdd.nn.int8 import Int8Linear
from srdd.nn.linear import RowLinear
from srdd.var.accelerate import (
    compile_blocks,
    compile_decoder,
    int8_linears,
)

MakePipeline = Callable[..., Pipeline]
LABELS, SEEDS = [0, 1, 2, 4], [5, 6, 7, 8]
CONFIG = SamplerConfig(cfg=2.0, top_k=5, top_p=0.9)

needs_vnni = pytest.mark.skipif(
    not torch.cpu._is_vnni_supported(), reason="this processor has no 8-bit dot product"
)


def test_an_int8_linear_is_the_product_of_the_rounded_factors() -> None:
    linear = RowLinear(64, 48)
    x = torch.randn(3, 5, 64) * torch.logspace(-3, 3, 5)[:, None]  # rows of all sizes
    weight = linear.weight.detach()
    scale_N1 = weight.abs().amax(1, keepdim=True) / 127
    scale_n1 = x.abs().amax(-1, keepdim=True) / 127
    rounded = (x / scale_n1).round().double() @ (weight / scale_N1).round().double().T
    expected = (rounded * scale_n1 * scale_N1[:, 0]).float() + linear.bias.detach()
    torch.testing.assert_close(Int8Linear(linear)(x), expected, rtol=1e-5, atol=1e-6)
    own = torch.randn(48)
    given = Int8Linear(linear)(x, own)
    torch.testing.assert_close(given, expected - linear.bias.detach() + own, rtol=1e-4, atol=1e-4)


def test_an_int8_row_of_zeros_is_the_bias() -> None:
    linear = RowLinear(32, 8)
    assert torch.equal(Int8Linear(linear)(torch.zeros(4, 32)), linear.bias.detach().expand(4, 8))


@needs_vnni
def test_int8_keeps_an_image_independent_of_its_batch(make_pipeline: MakePipeline) -> None:
    pipeline = int8_linears(make_pipeline("block_causal"))
    whole = sample(pipeline, LABELS, CONFIG, SEEDS)
    for i, (label, seed) in enumerate(zip(LABELS, SEEDS, strict=True)):
        alone = sample(pipeline, [label], CONFIG, [seed])
        assert torch.equal(alone.codes_BL, whole.codes_BL[i : i + 1])


@needs_vnni
def test_int8_is_near_and_leaves_the_model_it_came_from(make_pipeline: MakePipeline) -> None:
    pipeline = make_pipeline("markov")
    model = pipeline.transformer
    codes_BL = torch.randint(32, (4, 30))
    labels_B = torch.tensor(LABELS)
    before = model(labels_B, codes_BL)
    found = int8_linears(pipeline).transformer(labels_B, codes_BL)
    assert torch.equal(model(labels_B, codes_BL), before)
    error = (found - before).norm() / before.norm()
    assert 1e-4 < error < 0.05


def test_int8_is_refused_without_the_instructions(
    make_pipeline: MakePipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    with pytest.raises(UserError, match="VNNI"):
        int8_linears(make_pipeline())


@pytest.mark.parametrize("mask", ["markov", "block_causal"])
def test_compiled_blocks_draw_the_same_codes(make_pipeline: MakePipeline, mask: str) -> None:
    """Traced, not lowered: code generation takes minutes and is torch's own."""
    pipeline = make_pipeline(mask)
    compiled = compile_blocks(pipeline, backend="aot_eager")
    config = SamplerConfig(cfg=2.0, top_k=1)
    expected = sample(pipeline, LABELS, config, SEEDS)
    found = sample(compiled, LABELS, config, SEEDS)
    assert torch.equal(found.codes_BL, expected.codes_BL)
    assert "project" in vars(compiled.transformer.layers[0])  # the copy's blocks are replaced
    assert "project" not in vars(pipeline.transformer.layers[0])


def test_a_compiled_decoder_gives_the_same_images(make_pipeline: MakePipeline) -> None:
    pipeline = make_pipeline()
    codes_BL = torch.randint(32, (3, 30))
    found = compile_decoder(pipeline, backend="aot_eager").tokenizer.decode(codes_BL)
    torch.testing.assert_close(found, pipeline.tokenizer.decode(codes_BL), atol=1e-5, rtol=0)


def test_the_loop_that_a_graph_captures_is_sampling(make_pipeline: MakePipeline) -> None:
    pipeline = make_pipeline("block_causal")
    state, images = run_loop(pipeline, torch.tensor(LABELS), CONFIG, torch.tensor(SEEDS))
    expected = sample(pipeline, LABELS, CONFIG, SEEDS)
    assert torch.equal(state.codes_BL, expected.codes_BL)
    assert torch.equal(images, expected.images)


def test_a_graph_is_refused_where_it_cannot_be(make_pipeline: MakePipeline) -> None:
    with pytest.raises(UserError, match="--cuda-graph needs a CUDA device, this is cpu"):
        GraphedSampler(make_pipeline(), CONFIG, 4)
    with pytest.raises(UserError, match="set refine_steps to 0"):
        GraphedSampler(make_pipeline(), SamplerConfig(refine_steps=1), 4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("mask", ["markov", "block_causal"])
def test_a_graph_draws_what_the_loop_draws(make_pipeline: MakePipeline, mask: str) -> None:
    pipeline = make_pipeline(mask, fresh=True).to("cuda")
    graph = GraphedSampler(pipeline, CONFIG, 4)
    for shift in (0, 1):  # a replay must not show the images before it
        labels, seeds = [(label + shift) % 5 for label in LABELS], [seed + shift for seed in SEEDS]
        found, expected = graph(labels, seeds), sample(pipeline, labels, CONFIG, seeds)
        assert torch.equal(found.codes_BL, expected.codes_BL)
        torch.testing.assert_close(found.images, expected.images, atol=1e-3, rtol=0)
        assert torch.equal(found.gflops, expected.gflops)
    assert graph(LABELS[:2], SEEDS[:2]).images.shape[0] == 2
    assert graph.warm_up_s > 0
