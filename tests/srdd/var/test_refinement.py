from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from srdd import Pipeline, SamplerConfig, sample
from srdd.var import sampling
from srdd.var.categorical import code_probs
from srdd.var.masks import MASKS, Mask, attention_spans
from srdd.var.resample import RESAMPLE, Policy, masked, simple
from srdd.var.state import SampleState
from srdd.var.transformer import Conditioning, ScaleTransformer

MakePipeline = Callable[..., Pipeline]
Under = Callable[[Pipeline, SampleState, SamplerConfig], SampleState]
LABELS = torch.tensor([0, 1, 2, 3, 4, 0, 1])
SEEDS = list(range(100, 107))
MR = SamplerConfig(refine_steps=3, resample_threshold=0.1)


class Spy:
    """What refinement did: each pass's input, probabilities of the codes and choice."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tokens: list[Tensor | None] = []  # the input of every pass
        self.choices: list[tuple[Tensor, Tensor]] = []  # probabilities of codes, redraw
        embed, start = ScaleTransformer.embed, ScaleTransformer.start

        def spy_embed(model: ScaleTransformer, tokens_BlC: Tensor, parent: int) -> Tensor:
            self.tokens.append(tokens_BlC.clone())
            return embed(model, tokens_BlC, parent)

        def spy_start(model: ScaleTransformer, conditioning: object) -> Tensor:
            self.tokens.append(None)
            return start(model, conditioning)

        monkeypatch.setattr(ScaleTransformer, "embed", spy_embed)
        monkeypatch.setattr(ScaleTransformer, "start", spy_start)
        for name, policy in RESAMPLE.items():
            monkeypatch.setitem(RESAMPLE, name, partial(self._choose, policy))

    def _choose(self, policy: Policy, probs_Bl: Tensor, config: SamplerConfig) -> Tensor:
        redraw = policy(probs_Bl, config)
        self.choices.append((probs_Bl.clone(), redraw.clone()))
        return redraw


def _at(pipeline: Pipeline, scale: int) -> SampleState:
    """The state before ``scale``, drawn without refinement."""
    state = pipeline.begin(LABELS, SamplerConfig(), SEEDS)
    for _ in range(scale):
        state = pipeline.advance(state)
    return state


def test_candidates_lie_strictly_below_the_threshold() -> None:
    probs = torch.tensor([[0.0, 0.25, 0.2499999, 0.5, 1.0]])
    found = masked(probs, SamplerConfig(resample_threshold=0.25))
    assert found.tolist() == [[True, False, True, False, False]]
    assert not masked(probs, SamplerConfig(resample_threshold=0.0)).any()
    sure = masked(probs, SamplerConfig(resample_threshold=1.0))
    assert sure.tolist() == [[True, True, True, True, False]]
    every = simple(probs, SamplerConfig(resample="simple", resample_threshold=0.0))
    assert every.all()


@pytest.mark.parametrize("mask", MASKS)
def test_threshold_zero_is_plain_sampling(make_pipeline: MakePipeline, mask: Mask) -> None:
    pipeline = make_pipeline(mask)
    plain = sample(pipeline, LABELS, SamplerConfig(cfg=1.0), SEEDS)
    never = SamplerConfig(cfg=1.0, refine_steps=5, resample_threshold=0.0)
    found = sample(pipeline, LABELS, never, SEEDS)
    assert torch.equal(found.images, plain.images)
    assert torch.equal(found.codes_BL, plain.codes_BL)
    assert torch.equal(found.nfe, plain.nfe)
    assert torch.equal(found.gflops, plain.gflops)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("feedback", ["updated", "kept", "none"])
def test_threshold_one_is_simple_resampling(
    make_pipeline: MakePipeline, mask: Mask, feedback: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = make_pipeline(mask)
    config = SamplerConfig(refine_steps=2, resample_threshold=1.0, feedback=feedback)
    spy = Spy(monkeypatch)
    masked = sample(pipeline, LABELS, config, SEEDS)
    assert all((probs < 1).all() and redraw.all() for probs, redraw in spy.choices)
    simple = sample(pipeline, LABELS, replace(config, resample="simple"), SEEDS)
    assert torch.equal(masked.codes_BL, simple.codes_BL)
    assert torch.equal(masked.nfe, simple.nfe)
    assert not torch.equal(
        simple.codes_BL, sample(pipeline, LABELS, SamplerConfig(), SEEDS).codes_BL
    )


@pytest.mark.parametrize("scale", [0, 2])
def test_simple_resampling_redraws_every_code(
    make_pipeline: MakePipeline, under: Under, scale: int
) -> None:
    """All of them from the last pass's uniforms, so none of the first draw is left by intent."""
    pipeline = make_pipeline()
    state = _at(pipeline, scale)
    config = SamplerConfig(refine_steps=1, resample="simple", feedback="none")
    again = pipeline.advance(under(pipeline, state, config))
    first = pipeline.advance(state)
    probs = _probs(pipeline, state)
    side = pipeline.transformer.schedule.patch_nums[scale]
    for step, found in ((0, first), (1, again)):
        u = sampling.uniform(state.seeds_B[:, None], 0x5A, scale, step, torch.arange(side * side))
        expected = torch.searchsorted(
            probs.double().cumsum(-1), u[..., None] * probs.double().sum(-1, keepdim=True)
        )
        assert torch.equal(found.codes_BL[:, -side * side :], expected[..., 0])


def _classes(state: SampleState) -> Conditioning:
    """The conditional half."""
    return state.conditioning.map(lambda part: part[0])


def _probs(pipeline: Pipeline, state: SampleState, tokens_BlC: Tensor | None = None) -> Tensor:
    """The probabilities of a markov model's next scale, from its map or from ``tokens_BlC``."""
    model, scale, classes = pipeline.transformer, state.step, _classes(state)
    if scale == 0:
        x = model.start(classes)
    else:
        small = model.quantizer.to_scale(state.f_hat, model.schedule.patch_nums[scale])
        own_BlC = small.flatten(2).transpose(1, 2)
        x = model.embed(own_BlC if tokens_BlC is None else tokens_BlC, scale)
    view = attention_spans("markov", model.schedule)[scale]
    x = model.hidden(x, classes, model.constants(), view)
    return model.head(model.before_head(x, classes)).softmax(-1)


@pytest.mark.parametrize("feedback", ["updated", "kept"])
@pytest.mark.parametrize("mask", ["block_causal", "markov"])
@pytest.mark.parametrize("scale", [1, 2, 3])
def test_a_pass_is_shown_the_scales_own_codes(
    make_pipeline: MakePipeline,
    under: Under,
    mask: Mask,
    feedback: str,
    scale: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """f_hat of the scales before plus the increment of all codes, or of those kept alone."""
    pipeline = make_pipeline(mask)
    model = pipeline.transformer
    quantizer, side = model.quantizer, model.schedule.patch_nums[scale]
    state = _at(pipeline, scale)
    config = SamplerConfig(refine_steps=3, resample_threshold=0.4, feedback=feedback)
    shorter = [replace(config, refine_steps=t) for t in range(3)]
    begun = [under(pipeline, state, c) for c in shorter]
    before = [pipeline.advance(each).codes_BL[:, -side * side :] for each in begun]
    spy = Spy(monkeypatch)
    pipeline.advance(under(pipeline, state, config))
    assert len(spy.tokens) == 4
    redraws = []
    for codes_Bl, (_, redraw), shown in zip(before, spy.choices, spy.tokens[1:], strict=True):
        rows = redraw.any(1).nonzero()[:, 0]
        redraw = redraw[rows]  # the others have stopped
        redraws.append(redraw.flatten())
        h = quantizer.codebook(codes_Bl[rows])
        if feedback == "kept":
            h = torch.where(redraw[..., None], 0.0, h)
        h = h.transpose(1, 2).reshape(len(rows), -1, side, side)
        f_hat = state.f_hat[rows] + quantizer.increment(h, side)
        expected = quantizer.to_scale(f_hat, side).flatten(2).transpose(1, 2)
        torch.testing.assert_close(shown, expected)
    assert 0 < torch.cat(redraws).double().mean() < 1


def test_codes_are_scored_under_the_latest_logits(
    make_pipeline: MakePipeline, under: Under, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pass t + 1 chooses by pass t's network output, for redrawn and for kept codes alike."""
    pipeline = make_pipeline()
    state = _at(pipeline, 2)
    config = SamplerConfig(refine_steps=2, resample_threshold=0.9)
    once = under(pipeline, state, replace(config, refine_steps=1))
    codes_Bl = pipeline.advance(once).codes_BL[:, -9:]
    spy = Spy(monkeypatch)
    pipeline.advance(under(pipeline, state, config))
    probs = _probs(pipeline, state, spy.tokens[1])
    torch.testing.assert_close(spy.choices[1][0], code_probs(probs, codes_Bl))


def test_only_candidates_are_redrawn(
    make_pipeline: MakePipeline, under: Under, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = make_pipeline()
    state = _at(pipeline, 3)
    first = pipeline.advance(state).codes_BL[:, -16:]
    spy = Spy(monkeypatch)
    config = SamplerConfig(refine_steps=1, resample_threshold=0.3)
    second = pipeline.advance(under(pipeline, state, config)).codes_BL[:, -16:]
    redraw = spy.choices[0][1]
    assert redraw.any()
    assert not redraw.all()
    assert torch.equal(first[~redraw], second[~redraw])
    assert not torch.equal(first[redraw], second[redraw])


def test_thresholds_are_on_guided_probabilities_before_truncation(
    make_pipeline: MakePipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = make_pipeline()
    model = pipeline.transformer
    config = SamplerConfig(cfg=3.0, top_k=2, top_p=0.5, refine_steps=1, resample_threshold=0.2)
    spy = Spy(monkeypatch)
    sample(pipeline, LABELS, replace(config, feedback="none"), SEEDS)
    monkeypatch.undo()
    plain = sample(pipeline, LABELS, replace(config, refine_steps=0), SEEDS).codes_BL
    null_B = torch.full_like(LABELS, model.null_class)
    logits = model(LABELS, plain), model(null_B, plain)
    first = (logits[0][:, :1]).softmax(-1)  # not guided, nor is its input changed by refinement
    torch.testing.assert_close(spy.choices[0][0], code_probs(first, plain[:, :1]))
    second = (2 * logits[0][:, 1:5] - logits[1][:, 1:5]).softmax(-1)  # a third of 3
    unchanged = ~spy.choices[0][1].any(1)
    assert unchanged.any()
    torch.testing.assert_close(
        spy.choices[1][0][unchanged],
        code_probs(second, plain[:, 1:5])[unchanged],
        atol=1e-5,
        rtol=1e-4,
    )


@pytest.mark.parametrize("mask", MASKS)
def test_without_feedback_no_pass_runs(make_pipeline: MakePipeline, mask: Mask) -> None:
    pipeline = make_pipeline(mask)
    plain = sample(pipeline, LABELS, SamplerConfig(cfg=1.0), SEEDS)
    config = SamplerConfig(cfg=1.0, refine_steps=9, resample_threshold=0.5, feedback="none")
    found = sample(pipeline, LABELS, config, SEEDS)
    assert torch.equal(found.nfe, plain.nfe)
    assert torch.equal(found.gflops, plain.gflops)
    assert not torch.equal(found.codes_BL, plain.codes_BL)


@pytest.mark.parametrize("mask", MASKS)
def test_the_first_scale_is_refined_as_without_feedback(
    make_pipeline: MakePipeline, mask: Mask
) -> None:
    """It has no map as input."""
    pipeline = make_pipeline(mask)
    codes, nfe = [], []
    for feedback in ("updated", "kept", "none"):
        config = SamplerConfig(refine_steps=4, resample_threshold=0.5, feedback=feedback)
        state = pipeline.advance(pipeline.begin(LABELS, config, SEEDS))
        codes.append(state.codes_BL)
        nfe.append(state.cost.nfe_B.tolist())
    assert torch.equal(codes[0], codes[2])
    assert torch.equal(codes[1], codes[2])
    assert nfe == [[1] * 7] * 3
    plain = pipeline.advance(pipeline.begin(LABELS, SamplerConfig(), SEEDS))
    assert not torch.equal(plain.codes_BL, codes[0])


def _tv(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().sum() / 2)


def test_endless_resampling_without_feedback_is_epsilon_truncation(
    make_pipeline: MakePipeline,
) -> None:
    """In law; which is why the latter is the free baseline of every resampling claim."""
    pipeline, n, epsilon = make_pipeline(), 8000, 0.15
    labels_B = torch.zeros(n, dtype=torch.int64)
    endless = SamplerConfig(refine_steps=80, resample_threshold=epsilon, feedback="none")
    truncated = SamplerConfig(epsilon=epsilon)
    states = []
    for config, seed in ((endless, 0), (truncated, n)):
        state = pipeline.begin(labels_B, config, range(seed, seed + n))
        first = _probs(pipeline, state)[0, 0].double()
        states.append(pipeline.advance(pipeline.advance(state)))
    law = torch.where(first >= epsilon, first, 0)
    removed = 1 - float(law.sum())
    law = law / law.sum()
    assert removed > 0.05
    noise = 0.5 * float((2 * law * (1 - law) / (torch.pi * n)).sqrt().sum())  # expected distance
    counts = [torch.bincount(s.codes_BL[:, 0], minlength=32).double() / n for s in states]
    for found in counts:
        assert _tv(found, law) < 2 * noise + 0.002
    assert _tv(counts[0], first) > 5 * noise
    for place in range(1, 5):  # the second scale, over all first codes
        laws = [torch.bincount(s.codes_BL[:, place], minlength=32).double() / n for s in states]
        noise = 0.5 * float((4 * laws[0] / (torch.pi * n)).sqrt().sum())
        assert _tv(*laws) < 2 * noise


@pytest.mark.parametrize("mask", MASKS)
def test_an_image_without_candidates_stops_and_is_not_counted(
    make_pipeline: MakePipeline, mask: Mask
) -> None:
    pipeline = make_pipeline(mask)
    config = replace(MR, cfg=1.0, resample_threshold=0.05)
    whole = sample(pipeline, LABELS, config, SEEDS)
    plain = sample(pipeline, LABELS, SamplerConfig(cfg=1.0), SEEDS)
    assert len(whole.nfe.unique()) > 1
    assert (whole.nfe >= plain.nfe).all()
    for i in range(7):  # whichever neighbours stopped before it
        others = [i, (i + 1) % 7, (i + 3) % 7]
        some = sample(pipeline, LABELS[others], config, [SEEDS[j] for j in others])
        assert torch.equal(some.codes_BL, whole.codes_BL[others])
        assert torch.equal(some.nfe, whole.nfe[others])
        assert torch.equal(some.gflops, whole.gflops[others])
        torch.testing.assert_close(some.images, whole.images[others])


def test_evaluations_equal_the_passes_with_candidates(
    make_pipeline: MakePipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = make_pipeline()
    for i in range(7):
        spy = Spy(monkeypatch)
        result = sample(pipeline, LABELS[i : i + 1], MR, SEEDS[i : i + 1])
        assert result.nfe.tolist() == [len(spy.tokens)]
        monkeypatch.undo()


@pytest.mark.parametrize("mask", ["block_causal", "previous"])
@pytest.mark.parametrize("cfg", [0.0, 2.0])
def test_the_cache_keeps_the_first_pass(
    make_pipeline: MakePipeline, under: Under, mask: Mask, cfg: float
) -> None:
    """Keys and values of a scale stay those of its clean input, however often it is refined."""
    pipeline = make_pipeline(mask)
    plain = SamplerConfig(cfg=cfg)
    refined = replace(plain, refine_steps=3, resample="simple")
    states = []
    for config in (plain, refined):
        state = pipeline.begin(LABELS, plain, SEEDS)
        state = pipeline.advance(pipeline.advance(state))
        states.append(pipeline.advance(under(pipeline, state, config)))
    end = pipeline.transformer.schedule.spans[2][1]
    assert not torch.equal(states[0].codes_BL, states[1].codes_BL)
    first, second = states[0].cache, states[1].cache
    assert first is not None
    assert second is not None
    assert first.keys.shape[:3] == (3, 2 if cfg else 1, 7)  # guidance has a second half
    assert first.keys[..., :end, :].abs().min() > 0
    assert torch.equal(first.keys[..., :end, :], second.keys[..., :end, :])
    assert torch.equal(first.values[..., :end, :], second.values[..., :end, :])


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("feedback", ["updated", "kept", "none"])
def test_a_redrawn_code_replaces_the_old_one(
    make_pipeline: MakePipeline, mask: Mask, feedback: str
) -> None:
    """The map of the scales before stays fixed: images are those of the final codes alone."""
    pipeline = make_pipeline(mask)
    config = SamplerConfig(cfg=1.0, refine_steps=3, resample_threshold=0.3, feedback=feedback)
    result = sample(pipeline, LABELS, config, SEEDS)
    assert torch.equal((pipeline.tokenizer.decode(result.codes_BL) + 1) / 2, result.images)


def test_feedbacks_differ(make_pipeline: MakePipeline) -> None:
    codes = [
        sample(make_pipeline(), LABELS, replace(MR, feedback=feedback), SEEDS).codes_BL
        for feedback in ("updated", "kept", "none")
    ]
    assert torch.equal(codes[0][:, :1], codes[1][:, :1])
    assert not torch.equal(codes[0], codes[1])
    assert not torch.equal(codes[0], codes[2])
    assert not torch.equal(codes[1], codes[2])


def test_more_passes_share_the_random_numbers_of_fewer(make_pipeline: MakePipeline) -> None:
    """An image that stopped early is the same under any larger number of passes."""
    pipeline = make_pipeline()
    few = sample(pipeline, LABELS, replace(MR, refine_steps=30), SEEDS)
    many = sample(pipeline, LABELS, replace(MR, refine_steps=60), SEEDS)
    stopped = few.nfe == many.nfe
    assert stopped.any()
    assert torch.equal(few.codes_BL[stopped], many.codes_BL[stopped])
