"""Pruned models against their parents: what stays the same to the bit, and what is refused."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from srdd import Pipeline, SamplerConfig, load_pipeline, sample
from srdd.errors import UserError
from srdd.train.config import OptimConfig, TransformerLossConfig
from srdd.train.loop import Log, fit
from srdd.train.task import Batch
from srdd.train.var.transformer_task import TransformerTask
from srdd.validation import from_dict, to_dict
from srdd.var.config import TokenizerConfig, TransformerConfig
from srdd.var.guidance import weights
from srdd.var.masks import MASKS, Mask
from srdd.var.official.names import to_vqvae
from srdd.var.phi import phi_of_scale
from srdd.var.pipeline import save_pipeline
from srdd.var.prune import (
    check_stages,
    check_teacher,
    prune_pipeline,
    prune_tokenizer,
    prune_transformer,
    teacher_kl,
)
from srdd.var.quantize import MultiScaleQuantizer
from srdd.var.scales import ScaleSchedule
from srdd.var.tokenizer import Tokenizer

MakePipeline = Callable[..., Pipeline]
VAR_256 = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
STAGES = ((1, 3, 5, 8, 13, 16), (1, 5, 8, 13, 16))  # the paper's
LABELS, SEEDS = torch.tensor([0, 3, 4]), torch.tensor([11, 12, 13])
SAMPLERS = [
    SamplerConfig(cfg=1.5, top_k=9),
    SamplerConfig(cfg=2.0, cfg_ramp="window", refine_steps=2, resample_threshold=0.2),
]


@pytest.mark.parametrize("mask", MASKS)
def test_pruning_nothing_is_the_identity(make_pipeline: MakePipeline, mask: Mask) -> None:
    parent = make_pipeline(mask)
    same = prune_pipeline(parent, (1, 2, 3, 4))
    assert same.tokenizer.config == parent.tokenizer.config
    assert same.transformer.config == parent.transformer.config
    images = torch.rand(5, 3, 8, 8) * 2 - 1
    codes_BL = parent.tokenizer.encode(images)
    assert torch.equal(same.tokenizer.encode(images), codes_BL)
    labels_B = torch.arange(5)
    assert torch.equal(same.transformer(labels_B, codes_BL), parent.transformer(labels_B, codes_BL))
    for config in SAMPLERS:
        assert torch.equal(
            sample(same, LABELS, config, SEEDS).images, sample(parent, LABELS, config, SEEDS).images
        )


@pytest.mark.parametrize("config", SAMPLERS, ids=["guided", "refined"])
@pytest.mark.parametrize("mask", MASKS)
def test_a_pruned_pipeline_draws_what_its_parent_draws_at_those_scales(
    make_pipeline: MakePipeline, mask: Mask, config: SamplerConfig
) -> None:
    """Phi (by its own count 2 would flip), rows, ramp, windows and random numbers."""
    parent = make_pipeline(mask)
    pruned = prune_pipeline(parent, (1, 2, 4))
    found = sample(pruned, LABELS, config, SEEDS)
    expected = sample(parent, LABELS, replace(config, patch_nums=(1, 2, 4)), SEEDS)
    assert found.codes_BL.shape == (3, 21)
    for name in ("codes_BL", "images", "nfe", "gflops"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    assert not torch.equal(
        found.codes_BL[:, 5:], sample(parent, LABELS, config, SEEDS).codes_BL[:, 14:]
    )
    # And further: the sampler prunes what is left.
    again = sample(pruned, LABELS, replace(config, patch_nums=(1, 4)), SEEDS)
    direct = sample(parent, LABELS, replace(config, patch_nums=(1, 4)), SEEDS)
    assert torch.equal(again.images, direct.images)
    twice = sample(prune_pipeline(pruned, (1, 4)), LABELS, config, SEEDS)
    assert torch.equal(twice.images, direct.images)
    with pytest.raises(UserError, match=r"\[3\] are no scales of the model, which knows \[1, 2"):
        sample(pruned, LABELS, SamplerConfig(patch_nums=(1, 3, 4)), SEEDS)


def test_markov_logits_of_a_scale_are_the_parents_for_the_same_map(
    make_pipeline: MakePipeline,
) -> None:
    """Teacher forcing, before any training: the block of scale s knows its own input alone."""
    parent = make_pipeline("markov").transformer
    pruned = prune_transformer(parent, (1, 3, 4))
    codes_BL = torch.randint(32, (4, 26))
    labels_B = torch.tensor([0, 1, 2, 5])  # the last is the null class
    tokens_BlC = pruned.quantizer.teacher_input(codes_BL)  # scales 3 and 4
    own_BLV = pruned(labels_B, codes_BL, tokens_BlC)
    # The parent sees noise at scale 2, and elsewhere what the pruned model sees.
    whole_BL = torch.randint(32, (4, 30))
    seen_BlC = torch.cat((torch.randn(4, 4, 8), tokens_BlC), dim=1)
    parents_BLV = parent(labels_B, whole_BL, seen_BlC)
    torch.testing.assert_close(own_BLV[:, :1], parents_BLV[:, :1])
    torch.testing.assert_close(own_BLV[:, 1:], parents_BLV[:, 5:])
    causal = make_pipeline("block_causal").transformer
    own_BLV = prune_transformer(causal, (1, 3, 4))(labels_B, codes_BL, tokens_BlC)
    difference = own_BLV[:, 1:] - causal(labels_B, whole_BL, seen_BlC)[:, 5:]
    assert difference.abs().max() > 0.1  # there the scale that is gone is missed


@pytest.mark.parametrize("sides", STAGES)
def test_every_scale_keeps_its_parents_phi_level_and_positions(sides: tuple[int, ...]) -> None:
    """By the scales' own count 3 would flip in the first stage, and 13 in the second."""
    torch.manual_seed(0)
    whole = MultiScaleQuantizer(ScaleSchedule(VAR_256), 16, 4)
    config = TokenizerConfig(
        resolution=32, patch_nums=VAR_256, vocab_size=16, z_channels=4, ch=8, ch_mult=(1, 1),
        num_res_blocks=1,
    )  # fmt: skip
    tokenizer = Tokenizer(config).eval()
    tokenizer.quantizer.load_state_dict(whole.state_dict())
    pruned = prune_tokenizer(tokenizer, sides)
    parents, own = phi_of_scale(VAR_256, 4), phi_of_scale(sides, 4)
    flipped = {6: [3], 5: [13]}[len(sides)]  # of ticks 1/12, 13/36, 23/36, 11/12
    assert [side for side in sides if parents[side] != own[side]] == flipped
    h = torch.randn(2, 4, 16, 16)
    for side in sides:
        expected = (h + whole.phi.convs[parents[side]](h)) / 2
        torch.testing.assert_close(pruned.quantizer.phi(h, side), expected)

    transformer = TransformerConfig(
        patch_nums=VAR_256, vocab_size=16, z_channels=4, depth=1, width=8, num_heads=1,
        num_classes=2,
    )  # fmt: skip
    parent = TransformerTask(
        transformer, TransformerLossConfig(), OptimConfig(steps=1), tokenizer
    ).model
    student = prune_transformer(parent, sides)
    assert student.pos_embed.shape[1] == sum(side * side for side in sides)
    for scale, side in enumerate(sides):
        assert torch.equal(student.position(scale), parent.position(VAR_256.index(side)))
    ramp = weights(SamplerConfig(cfg=9.0), student.schedule)
    assert ramp == pytest.approx([VAR_256.index(side) for side in sides])


def test_what_is_dropped_is_encoded_by_the_scales_that_stay(make_pipeline: MakePipeline) -> None:
    """Residuals are computed anew: the pruned codes are none of the parent's with a gap."""
    parent = make_pipeline().tokenizer
    pruned = prune_tokenizer(parent, (1, 3, 4))
    images = torch.rand(6, 3, 8, 8) * 2 - 1
    codes_BL, gap_BL = pruned.encode(images), parent.encode(images)[:, [0, *range(5, 30)]]
    assert torch.equal(codes_BL[:, 0], gap_BL[:, 0])
    assert (codes_BL != gap_BL)[:, 1:].double().mean() > 0.1
    f = parent.latent(images)

    def error(codes_BL: torch.Tensor) -> torch.Tensor:
        return (pruned.quantizer.decode(codes_BL) - f).square().mean()

    assert error(codes_BL) < error(gap_BL)


def test_a_pruned_pipeline_survives_its_directory(
    make_pipeline: MakePipeline, tmp_path: Path
) -> None:
    parent = make_pipeline("markov_local")
    pruned = prune_pipeline(parent, (1, 3, 4))
    save_pipeline(pruned, tmp_path)
    loaded = load_pipeline(tmp_path)
    assert loaded.transformer.schedule == ScaleSchedule((1, 3, 4), (1, 2, 3, 4))
    assert loaded.tokenizer.config == pruned.tokenizer.config
    expected, found = (sample(p, LABELS, SAMPLERS[0], SEEDS) for p in (pruned, loaded))
    assert torch.equal(found.images, expected.images)
    # The same scales without the parent are another model.
    orphan = replace(pruned.transformer.config, parent=())
    assert orphan != pruned.transformer.config
    stranger = Tokenizer(replace(pruned.tokenizer.config, parent=()))
    with pytest.raises(UserError, match="another tokenizer"):
        Pipeline(stranger, pruned.transformer, SamplerConfig(), parent.class_names)


def test_only_a_pruned_configuration_names_its_parent() -> None:
    shared: dict[str, Any] = {"vocab_size": 16, "z_channels": 4}
    for config in (
        TransformerConfig(patch_nums=(1, 2, 4), **shared),
        TokenizerConfig(resolution=64, patch_nums=(1, 2, 4), **shared),
        TransformerConfig(patch_nums=(1, 2, 4), parent=(1, 2, 4), **shared),
    ):
        assert config.parent == ()
        assert "parent" not in to_dict(config)
        pruned = replace(config, patch_nums=(1, 4), parent=(1, 2, 4))
        assert to_dict(pruned)["parent"] == [1, 2, 4]
        assert from_dict(type(pruned), to_dict(pruned)) == pruned
        assert pruned.schedule == config.schedule.prune((1, 4))
    assert "teacher_kl" not in to_dict(TransformerLossConfig())
    assert to_dict(TransformerLossConfig(teacher_kl=0.5))["teacher_kl"] == 0.5
    with pytest.raises(UserError, match=r"\[3\] are no scales of the model"):
        TransformerConfig(patch_nums=(1, 3, 4), parent=(1, 2, 4))
    with pytest.raises(UserError, match="must end at the latent side 8"):
        TransformerConfig(patch_nums=(1, 4), parent=(1, 4, 8))


def test_vars_format_holds_a_pruned_tokenizer_only_where_no_phi_moves(
    make_pipeline: MakePipeline,
) -> None:
    tokenizer = make_pipeline().tokenizer  # four phis, one a scale
    assert phi_of_scale((1, 2, 3, 4), 4) == {1: 0, 2: 1, 3: 2, 4: 3}
    state = to_vqvae(prune_tokenizer(tokenizer, (1, 3, 4)))
    assert state["quantize.ema_vocab_hit_SV"].shape == (3, 32)
    with pytest.raises(UserError, match=r"pruned from scales 1,2,3,4: .* another phi to scale 2$"):
        to_vqvae(prune_tokenizer(tokenizer, (1, 2, 4)))


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        ([], "give at least one stage"),
        ([(1, 5, 4)], r"stage 1 \(1,5,4\): patch_nums must be positive and strictly increasing"),
        ([(1, 7, 4)], "stage 1"),
        ([(1, 5, 8)], r"\[5, 8\] are no scales"),
        ([(1, 3)], "must end at the latent side 4"),
        ([(3, 4)], "must begin at scale 1"),
        ([(1, 2, 3, 4)], r"stage 1 .* must drop scales of the model \(1,2,3,4\)"),
        ([(1, 3, 4), (1, 2, 4)], r"stage 2 \(1,2,4\) must drop scales of stage 1 \(1,3,4\)"),
        ([(1, 3, 4), (1, 3, 4)], "stage 2 .* must drop scales of stage 1"),
    ],
)
def test_stages_that_do_not_follow_each_other_are_refused(
    make_pipeline: MakePipeline, stages: list[tuple[int, ...]], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        check_stages(make_pipeline().transformer, tuple(stages))


def test_the_papers_stages_are_stages(make_pipeline: MakePipeline) -> None:
    model = make_pipeline().transformer
    assert check_stages(model, ((1, 3, 4), (1, 4))) == ((1, 3, 4), (1, 4))


def test_the_divergence_is_its_definition() -> None:
    student, teacher = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    p, q = teacher.double().softmax(-1), student.double().softmax(-1)
    expected = (p * (p / q).log()).sum(-1)
    torch.testing.assert_close(teacher_kl(student, teacher).double(), expected, atol=1e-6, rtol=0)
    assert (expected > 0).all()
    assert teacher_kl(teacher, teacher).abs().max() < 1e-6


def _task(parent: Pipeline, kl: float, **loss: Any) -> TransformerTask:
    """A student of scales 1, 3, 4 that begins with its parent's weights."""
    tokenizer = prune_tokenizer(parent.tokenizer, (1, 3, 4))
    config = replace(parent.transformer.config, patch_nums=(1, 3, 4), parent=(1, 2, 3, 4))
    task = TransformerTask(
        config,
        TransformerLossConfig(teacher_kl=kl, **loss),
        OptimConfig(steps=12, batch_size=8, lr=3e-3, warmup=0.0),
        tokenizer,
        teacher=parent.transformer,
    )
    task.model.load_state_dict(prune_transformer(parent.transformer, (1, 3, 4)).state_dict())
    return task


def test_the_teacher_is_the_parent_on_the_students_input(make_pipeline: MakePipeline) -> None:
    """At first they agree; the divergence adds to the cross-entropy with its weight, by scale."""
    parent = make_pipeline("markov")
    batch = Batch(torch.randint(32, (8, 26)), torch.arange(8) % 5, torch.arange(8), 8)
    plain, taught = _task(parent, 0.0), _task(parent, 2.0)
    for task in (plain, taught):
        task.module.train()
    loss, metrics = taught.module(batch, 0)
    assert metrics["teacher_kl"] < 1e-6
    torch.testing.assert_close(loss, plain.module(batch, 0)[0])
    with torch.no_grad():
        for task in (plain, taught):
            task.model.head.bias[:3] += 1.5
    loss, metrics = taught.module(batch, 0)
    cross_entropy = plain.module(batch, 0)[0]
    assert metrics["teacher_kl"] > 0.01
    torch.testing.assert_close(loss, cross_entropy + 2 * metrics["teacher_kl"])
    # It is no part of the model: neither trained nor saved.
    assert taught.module.state_dict().keys() == plain.module.state_dict().keys()
    loss.backward()
    assert all(weight.grad is None for weight in parent.transformer.parameters())
    bell = _task(parent, 1.0, scale_weights="lognorm")
    bell.module.train()
    with torch.no_grad():
        bell.model.head.bias[:3] += 1.5
    assert bell.module(batch, 0)[1]["teacher_kl"] != metrics["teacher_kl"]


def test_a_teacher_holds_the_student_back(make_pipeline: MakePipeline) -> None:
    parent = make_pipeline("markov")
    codes, labels = torch.randint(32, (8, 26)), torch.arange(8) % 5

    def batches(step: int) -> Iterator[Batch]:
        while True:
            yield Batch(codes, labels, torch.arange(8), 8)

    moved = {}
    for kl in (0.0, 20.0):
        task = _task(parent, kl)
        logged: list[dict[str, float]] = []
        log = Log(write=lambda _, metrics: logged.append(metrics), every=12)  # noqa: B023
        optim = OptimConfig(steps=12, batch_size=8, lr=3e-3, warmup=0.0)
        fit(task, optim, batches, log=log)
        assert ("teacher_kl" in logged[0]) == (kl > 0)
        target = prune_transformer(parent.transformer, (1, 3, 4))(labels, codes)
        with torch.no_grad():
            moved[kl] = float(teacher_kl(task.model(labels, codes), target).mean())
    assert moved[20.0] < 0.2 * moved[0.0]


@pytest.mark.parametrize("mask", ["block_causal", "previous"])
def test_a_teacher_needs_a_scale_that_sees_itself_alone(
    make_pipeline: MakePipeline, mask: Mask
) -> None:
    with pytest.raises(UserError, match=f"its mask is {mask}"):
        _task(make_pipeline(mask), 1.0)
    for fine in ("markov", "markov_local"):
        model = make_pipeline(fine).transformer
        check_teacher(model, replace(model.config, mask=mask))  # the student's may be another
        with pytest.raises(UserError, match="the teacher's num_classes is 5, the student's 7"):
            check_teacher(model, replace(model.config, num_classes=7))


def test_a_weight_without_a_teacher_is_refused(make_pipeline: MakePipeline) -> None:
    pipeline = make_pipeline("markov")
    with pytest.raises(UserError, match="teacher_kl needs a teacher"):
        TransformerTask(
            pipeline.transformer.config, TransformerLossConfig(teacher_kl=1.0),
            OptimConfig(steps=1), pipeline.tokenizer,
        )  # fmt: skip
    with pytest.raises(UserError, match="teacher_kl must be >= 0"):
        TransformerLossConfig(teacher_kl=-1.0)
