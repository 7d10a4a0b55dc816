"""Sampling that went wrong says where."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from srdd import Pipeline, SamplerConfig, sample, sample_stream
from srdd.var import sampling
from srdd.var.masks import MASKS, Mask
from srdd.var.state import SampleState

MakePipeline = Callable[..., Pipeline]
Under = Callable[[Pipeline, SampleState, SamplerConfig], SampleState]
LABELS = torch.tensor([0, 1, 2])
SEEDS = [7, 8, 9]
SIMPLE = SamplerConfig(refine_steps=3, resample="simple")


class FailingHead(nn.Module):
    """A linear head whose n-th evaluation on has one value of one image that is not finite."""

    def __init__(self, head: nn.Module, fails_at: int, value: float) -> None:
        super().__init__()
        self.head, self.fails_at, self.value, self.calls = head, fails_at, value, 0

    def forward(self, h_nW: Tensor) -> Tensor:
        logits_nV: Tensor = self.head(h_nW).clone()
        self.calls += 1
        if self.calls >= self.fails_at:
            logits_nV[-1, 3] = self.value
        return logits_nV


def _failing(pipeline: Pipeline, fails_at: int, value: float = torch.nan) -> Pipeline:
    pipeline.transformer.head = FailingHead(pipeline.transformer.head, fails_at, value)
    return pipeline


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("mask", ["block_causal", "markov"])
@pytest.mark.parametrize(
    ("fails_at", "said"),
    [
        (1, "non-finite logits at scale 1x1$"),
        (2, "non-finite logits at scale 2x2$"),  # the first scale's passes evaluate nothing
        (3, "non-finite logits at scale 2x2, refinement pass 1$"),
        (5, "non-finite logits at scale 2x2, refinement pass 3$"),
        (6, "non-finite logits at scale 3x3$"),
        (13, "non-finite logits at scale 4x4, refinement pass 3$"),
    ],
)
def test_an_evaluation_that_is_not_finite_is_named(
    make_pipeline: MakePipeline, mask: Mask, fails_at: int, said: str, value: float
) -> None:
    pipeline = _failing(make_pipeline(mask, fresh=True), fails_at, value)
    with pytest.raises(FloatingPointError, match=said):
        sample(pipeline, LABELS, SIMPLE, SEEDS)


def test_the_second_pass_of_one_image_is_named_though_others_have_stopped(
    make_pipeline: MakePipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network's own output is not finite there, guided, at the third scale."""
    pipeline = make_pipeline(fresh=True)
    config = SamplerConfig(cfg=1.0, refine_steps=5, resample_threshold=0.2)
    state = pipeline.begin(LABELS, config, SEEDS)
    for _ in range(2):
        state = pipeline.advance(state)
    before_head, calls = pipeline.transformer.before_head, []

    def failing(x_BlW: Tensor, conditioning: object) -> Tensor:
        calls.append(len(x_BlW))
        h_BlW = before_head(x_BlW, conditioning)
        return h_BlW * torch.nan if len(calls) == 3 else h_BlW

    monkeypatch.setattr(pipeline.transformer, "before_head", failing)
    with pytest.raises(FloatingPointError, match=r"at scale 3x3, refinement pass 2$"):
        pipeline.advance(state)


def test_a_pruned_schedules_scale_is_named_by_its_side(make_pipeline: MakePipeline) -> None:
    pipeline = _failing(make_pipeline(fresh=True), 3)
    with pytest.raises(FloatingPointError, match=r"at scale 4x4$"):
        sample(pipeline, LABELS, SamplerConfig(patch_nums=(1, 2, 4)), SEEDS)


def test_a_stream_stops_at_the_scale_that_failed(make_pipeline: MakePipeline) -> None:
    stream = sample_stream(_failing(make_pipeline(fresh=True), 2), LABELS, SamplerConfig(), SEEDS)
    assert next(stream).scale == 0
    with pytest.raises(FloatingPointError, match="2x2"):
        next(stream)


def _advance_unchecked(pipeline: Pipeline, state: SampleState, scales: int) -> SampleState:
    """As off the CPU, where no scale waits to learn whether it was finite."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "check_finite", lambda *_: None)
        for _ in range(scales):
            state = pipeline.advance(state)
    return state


def test_a_fault_stays_with_its_images(make_pipeline: MakePipeline) -> None:
    pipeline, config = make_pipeline(fresh=True), SamplerConfig()
    start = pipeline.begin(LABELS, config, SEEDS)
    good = pipeline.advance(start)
    bad = _advance_unchecked(_failing(pipeline, 1), start, 1)
    joined = SampleState.join([good, bad])
    first, last = (joined.select(rows) for rows in torch.arange(6).split(3))
    for part in (bad, joined, last):
        with pytest.raises(FloatingPointError, match=r"at scale 1x1$"):
            pipeline.decode(part)
    for part in (good, first):
        assert pipeline.decode(part).isfinite().all()


def test_the_first_fault_is_the_one_named(make_pipeline: MakePipeline) -> None:
    """Later ones follow from it; and the codes stay within the vocabulary."""
    pipeline = _failing(make_pipeline(fresh=True), 4)
    state = pipeline.begin(LABELS, SIMPLE, SEEDS)
    state = _advance_unchecked(pipeline, state, 4)
    assert state.codes_BL.shape == (3, 30)
    assert 0 <= int(state.codes_BL.min()) <= int(state.codes_BL.max()) < 32
    with pytest.raises(FloatingPointError, match=r"at scale 2x2, refinement pass 2$"):
        pipeline.decode(state)


@pytest.mark.parametrize("mask", MASKS)
def test_a_state_begun_with_guidance_may_do_without(
    make_pipeline: MakePipeline, under: Under, mask: Mask
) -> None:
    pipeline = make_pipeline(mask)
    state = pipeline.begin(LABELS, SamplerConfig(cfg=1.0), SEEDS)
    for _ in range(4):
        state = pipeline.advance(under(pipeline, state, SamplerConfig()))
    plain = sample(pipeline, LABELS, SamplerConfig(), SEEDS)
    assert torch.equal(state.codes_BL, plain.codes_BL)
