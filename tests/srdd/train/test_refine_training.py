"""Refinement-aware training: what is hidden, what is fed, what is scored."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from srdd import Pipeline, SamplerConfig, sample
from srdd.train.config import OptimConfig, TransformerLossConfig
from srdd.train.task import Batch
from srdd.train.var.refine import Hidden, draw_hidden, refined_input
from srdd.train.var.transformer import TransformerLoss, scale_masses
from srdd.train.var.transformer_task import TransformerTask
from srdd.var import sampling
from srdd.var.categorical import Categorical
from srdd.var.resample import RESAMPLE
from srdd.var.scales import ScaleSchedule

MakePipeline = Callable[..., Pipeline]
SCHEDULE = ScaleSchedule((1, 2, 4))


def test_what_is_hidden_is_keyed_by_seed_step_and_sample() -> None:
    index = torch.arange(4000)
    refined, hidden = draw_hidden(SCHEDULE, index, 0.5, seed=1, step=3)
    assert float(refined.double().mean()) == pytest.approx(0.5, abs=0.03)
    assert hidden[~refined].all()
    assert hidden[:, 0].all()  # the first scale
    counts = hidden[refined, 5:].sum(1)
    shares = torch.bincount(counts, minlength=17)[1:] / len(counts)
    assert int(counts.min()) == 1
    assert shares.tolist() == pytest.approx([1 / 16] * 16, abs=0.025)  # any number as likely
    places = hidden[refined, 5:].double().mean(0)
    assert places.tolist() == pytest.approx([17 / 32] * 16, abs=0.04)
    coarse = hidden[refined, 1:5].sum(1).double()  # drawn apart on each scale
    assert abs(float(torch.corrcoef(torch.stack((coarse, counts.double())))[0, 1])) < 0.1
    order = torch.randperm(4000)[:9]
    part = draw_hidden(SCHEDULE, order, 0.5, seed=1, step=3)
    assert torch.equal(part.refined_B, refined[order])
    assert torch.equal(part.hidden_BL, hidden[order])
    for seed, step in ((2, 3), (1, 4)):
        other = draw_hidden(SCHEDULE, index, 0.5, seed, step)
        both = float((other.refined_B & refined).double().mean())
        assert both == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_all_or_no_images_are_refined(share: float) -> None:
    refined, hidden = draw_hidden(SCHEDULE, torch.arange(50), share, 0, 0)
    assert bool(refined.all()) == bool(refined.any()) == (share == 1.0)
    assert bool(hidden.all()) == (share == 0.0)


@torch.no_grad()
def test_the_input_is_that_of_samplings_kept_feedback(
    make_pipeline: MakePipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sampler's own passes are recorded: what it kept and fed must come out of the codes."""
    pipeline = make_pipeline()
    schedule = pipeline.transformer.schedule
    config = SamplerConfig(
        refine_steps=1, resample="masked", resample_threshold=0.06, feedback="kept"
    )
    fed: list[tuple[int, Tensor]] = []
    drawn: list[Tensor] = []
    redrawn: list[Tensor] = []
    predict, draw, choose = sampling._predict, Categorical.draw, RESAMPLE["masked"]

    def watch_fed(model, state, f_hat, *, first):  # type: ignore[no-untyped-def]
        if not first:
            small = model.quantizer.to_scale(f_hat, state.scale.side)
            fed.append((state.step, small.flatten(2).transpose(1, 2)))
        return predict(model, state, f_hat, first=first)

    def watch_drawn(self, uniforms, conf, old, redraw):  # type: ignore[no-untyped-def]
        codes, likely = draw(self, uniforms, conf, old, redraw)
        drawn.append(codes.clone())
        return codes, likely

    def watch_redrawn(likely, conf):  # type: ignore[no-untyped-def]
        redraw = choose(likely, conf)
        redrawn.append(redraw.clone())
        return redraw

    monkeypatch.setattr(sampling, "_predict", watch_fed)
    monkeypatch.setattr(Categorical, "draw", watch_drawn)
    monkeypatch.setitem(RESAMPLE, "masked", watch_redrawn)
    result = sample(pipeline, torch.tensor([2]), config, torch.tensor([11]))
    assert len(fed) >= 2
    for scale, tokens in fed:
        begin, end = schedule.spans[scale]
        # Codes of one image when the pass ran: final ones before this scale, then its first draw.
        first = next(codes for codes in drawn if codes.shape[1] == end - begin)
        redraw = next(mask for mask in redrawn if mask.shape[1] == end - begin)
        assert redraw.any()
        codes = result.codes_BL.clone()
        codes[:, begin:end] = first
        hidden = torch.ones_like(codes, dtype=torch.bool)
        hidden[:, begin:end] = redraw
        told = Hidden(torch.tensor([True]), hidden)
        given = refined_input(pipeline.transformer.quantizer, codes, told)
        offset = schedule.spans[0][1]
        assert torch.allclose(given[:, begin - offset : end - offset], tokens, atol=1e-6, rtol=0)
    some = [mask for mask in redrawn if mask.any() and not mask.all()]
    assert some, "every pass redrew all or nothing: the test shows little"


@torch.no_grad()
def test_images_that_are_not_refined_are_fed_as_ever(make_pipeline: MakePipeline) -> None:
    model = make_pipeline().transformer
    codes = torch.randint(32, (6, 30))
    hidden = draw_hidden(model.schedule, torch.arange(6), 0.5, 0, 0)
    assert hidden.refined_B.any()
    assert not hidden.refined_B.all()
    given = refined_input(model.quantizer, codes, hidden)
    plain = model.quantizer.teacher_input(codes)
    same = (given == plain).flatten(1).all(1)
    assert torch.equal(same, ~hidden.refined_B)


def _loss(pipeline: Pipeline, share: float) -> TransformerLoss:
    config = TransformerLossConfig(label_drop=0.0, refine_share=share)
    return TransformerLoss(pipeline.transformer, config, seed=4)


@torch.no_grad()
def test_only_hidden_codes_are_scored(make_pipeline: MakePipeline) -> None:
    """Each image's mean over a scale's hidden codes, weighted by the scale's length."""
    pipeline = make_pipeline()
    model, schedule = pipeline.transformer, pipeline.transformer.schedule
    codes = torch.randint(32, (7, 30))
    batch = Batch(codes, torch.arange(7) % 5, torch.arange(7), 7)
    loss, metrics = _loss(pipeline, 0.5)(batch, 2)
    hidden = draw_hidden(schedule, batch.index_b, 0.5, 4, 2)
    logits = model(batch.labels_b, codes, refined_input(model.quantizer, codes, hidden))
    nll = F.cross_entropy(logits.transpose(1, 2), codes, reduction="none")
    total = torch.zeros(())
    for side, mass, (begin, end) in zip(
        schedule.patch_nums, scale_masses(schedule, "uniform"), schedule.spans, strict=True
    ):
        rows = [nll[b, begin:end][hidden.hidden_BL[b, begin:end]].mean() for b in range(7)]
        mean = torch.stack(rows).mean()
        torch.testing.assert_close(metrics[f"nll_{side}x{side}"], mean)
        total = total + mass * mean
    torch.testing.assert_close(loss, total)
    plain, _ = _loss(pipeline, 0.0)(batch, 2)
    assert float(plain) != pytest.approx(float(loss), abs=1e-4)


@torch.no_grad()
def test_visible_codes_reach_their_scale_and_hidden_ones_do_not(
    make_pipeline: MakePipeline,
) -> None:
    pipeline = make_pipeline()
    quantizer, schedule = pipeline.transformer.quantizer, pipeline.transformer.schedule
    begin, end = schedule.spans[-1]
    codes = torch.randint(32, (1, 30))
    hidden = draw_hidden(schedule, torch.tensor([0]), 1.0, 0, 0)
    block = slice(begin - schedule.spans[0][1], end - schedule.spans[0][1])
    base = refined_input(quantizer, codes, hidden)[:, block]
    for place in range(begin, end):
        changed = codes.clone()
        changed[0, place] = (codes[0, place] + 1) % 32
        moved = not torch.equal(refined_input(quantizer, changed, hidden)[:, block], base)
        assert moved == (not hidden.hidden_BL[0, place])


def test_a_refined_step_trains(make_pipeline: MakePipeline) -> None:
    pipeline = make_pipeline()
    task = TransformerTask(
        replace(pipeline.transformer.config, mask="block_causal"),
        TransformerLossConfig(refine_share=1.0),
        OptimConfig(steps=1),
        pipeline.tokenizer,
    )
    batch = Batch(torch.randint(32, (3, 30)), torch.arange(3), torch.arange(3), 3)
    task.module(batch, 0)[0].backward()
    assert all(p.grad is not None for p in task.module.parameters() if p.requires_grad)
