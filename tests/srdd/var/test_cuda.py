"""What holds on a CPU holds on a CUDA device: codes, images, losses, gradients, no waiting."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from srdd import Pipeline, SamplerConfig, sample
from srdd.graph import GraphedSampler, run_loop
from srdd.train.config import TransformerLossConfig
from srdd.train.task import Batch
from srdd.train.var.transformer import TransformerLoss

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

MakePipeline = Callable[..., Pipeline]
DEVICE = "cuda"
MASKS = ("markov", "block_causal")
LABELS, SEEDS = [0, 1, 2, 4], [5, 6, 7, 8]
CONFIGS = {
    "greedy": SamplerConfig(cfg=2.0, top_k=1),
    "drawn": SamplerConfig(cfg=2.0, top_k=20, top_p=0.9),
    "refined": SamplerConfig(cfg=2.0, refine_steps=2, resample_threshold=0.05),
    "epsilon": SamplerConfig(cfg=2.0, epsilon=0.01),
}


@pytest.fixture(autouse=True)
def _exact() -> Iterator[None]:
    """Float32 products without TF32."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = False
    yield
    matmul.allow_tf32, cudnn.allow_tf32 = before


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("name", CONFIGS)
def test_the_device_draws_the_images_of_the_cpu(
    make_pipeline: MakePipeline, mask: str, name: str
) -> None:
    """The random numbers are the same, so only a near tie can fall the other way."""
    expected = sample(make_pipeline(mask), LABELS, CONFIGS[name], SEEDS)
    found = sample(make_pipeline(mask, fresh=True).to(DEVICE), LABELS, CONFIGS[name], SEEDS)
    assert found.images.is_cuda
    same_B = (found.codes_BL.cpu() == expected.codes_BL).all(1)
    assert same_B.sum() >= len(LABELS) - 1
    torch.testing.assert_close(
        found.images.cpu()[same_B], expected.images[same_B], atol=1e-4, rtol=0
    )
    assert torch.equal(found.nfe.cpu()[same_B], expected.nfe[same_B])


def test_the_tokenizer_gives_the_codes_and_images_of_the_cpu(make_pipeline: MakePipeline) -> None:
    images = torch.rand(6, 3, 8, 8) * 2 - 1
    ours = make_pipeline().tokenizer
    device = make_pipeline(fresh=True).to(DEVICE).tokenizer
    codes_BL = ours.encode(images)
    assert (device.encode(images.to(DEVICE)).cpu() == codes_BL).double().mean() > 0.98
    decoded = device.decode(codes_BL.to(DEVICE)).cpu()
    torch.testing.assert_close(decoded, ours.decode(codes_BL), atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mask", MASKS)
def test_half_precision_is_near(make_pipeline: MakePipeline, mask: str, dtype: Any) -> None:
    codes_BL, labels_B = torch.randint(32, (4, 30)), torch.tensor(LABELS)
    exact = make_pipeline(mask).transformer(labels_B, codes_BL)
    half = make_pipeline(mask, fresh=True).to(DEVICE, dtype)
    found = half.transformer(labels_B.to(DEVICE), codes_BL.to(DEVICE)).float().cpu()
    error = (found - exact).norm() / exact.norm()
    assert 1e-5 < error < (0.05 if dtype == torch.bfloat16 else 0.01)
    result = sample(half, LABELS, CONFIGS["drawn"], SEEDS)
    assert result.images.isfinite().all()
    assert 0 <= result.images.min() < result.images.max() <= 1


@pytest.mark.parametrize("mask", MASKS)
def test_sampling_never_waits_for_the_device(make_pipeline: MakePipeline, mask: str) -> None:
    pipeline = make_pipeline(mask, fresh=True).to(DEVICE)
    labels_B, seeds_B = (torch.tensor(values, device=DEVICE) for values in (LABELS, SEEDS))
    run_loop(pipeline, labels_B, CONFIGS["drawn"], seeds_B)  # libraries choose their kernels
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        run_loop(pipeline, labels_B, CONFIGS["drawn"], seeds_B)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("mask", MASKS)
def test_a_graph_in_bfloat16_draws_what_the_loop_draws(
    make_pipeline: MakePipeline, mask: str
) -> None:
    pipeline = make_pipeline(mask, fresh=True).to(DEVICE, torch.bfloat16)
    graph = GraphedSampler(pipeline, CONFIGS["drawn"], len(LABELS))
    expected = sample(pipeline, LABELS, CONFIGS["drawn"], SEEDS)
    assert torch.equal(graph(LABELS, SEEDS).codes_BL, expected.codes_BL)


def test_a_graph_takes_its_memory_once(make_pipeline: MakePipeline) -> None:
    pipeline = make_pipeline(fresh=True).to(DEVICE)
    graph = GraphedSampler(pipeline, CONFIGS["drawn"], len(LABELS))
    graph(LABELS, SEEDS)
    before = torch.cuda.memory_allocated()
    for shift in range(20):
        graph(LABELS, [seed + shift for seed in SEEDS])
    assert torch.cuda.memory_allocated() == before


def test_numbers_that_are_not_finite_are_found_on_the_device(make_pipeline: MakePipeline) -> None:
    pipeline = make_pipeline(fresh=True).to(DEVICE)
    with torch.no_grad():
        pipeline.transformer.head.weight.fill_(torch.nan)
    with pytest.raises(FloatingPointError):
        sample(pipeline, LABELS, CONFIGS["drawn"], SEEDS)


def _gradients(pipeline: Pipeline, device: str, low: bool) -> tuple[float, Tensor]:
    """Loss and all gradients, of one step on the same codes."""
    draw = torch.Generator().manual_seed(1)
    codes_BL = torch.randint(32, (4, 30), generator=draw).to(device)
    labels_B = torch.tensor(LABELS, device=device)
    model = pipeline.to(device).transformer.train()
    trained = [p for n, p in model.named_parameters() if not n.startswith("quantizer.")]
    for weight in trained:
        weight.requires_grad_(True)
    module = TransformerLoss(model, TransformerLossConfig(label_drop=0.0), seed=0)
    with torch.autocast(device, torch.bfloat16, enabled=low):
        loss = module(Batch(codes_BL, labels_B, torch.arange(4, device=device), 4), 0)[0]
    loss.backward()
    parts = [weight.grad.flatten() for weight in trained if weight.grad is not None]
    assert len(parts) == len(trained)
    return loss.item(), torch.cat(parts).float().cpu()


@pytest.mark.parametrize(("low", "bound"), [(False, 1e-4), (True, 0.05)])
@pytest.mark.parametrize("mask", MASKS)
def test_a_training_step_has_the_gradients_of_the_cpu(
    make_pipeline: MakePipeline, mask: str, low: bool, bound: float
) -> None:
    """In bfloat16 the Markovian mask takes the packed kernel, whose backward runs nowhere else."""
    expected, exact = _gradients(make_pipeline(mask, fresh=True), "cpu", low=False)
    loss, found = _gradients(make_pipeline(mask, fresh=True), DEVICE, low)
    assert loss == pytest.approx(expected, rel=bound)
    assert (found - exact).norm() / exact.norm() < bound
