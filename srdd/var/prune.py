"""Fewer scales of a trained model (paper, Sec. 3.3): what a stage of a distillation begins with.

A pruned tokenizer has its parent's weights, and encodes anew: what the dropped scales held is left
in the residual of the next one. A pruned transformer keeps the rows of the scales that stay. Either
knows its parent schedule, so phi, guidance and random numbers stay those of the parent's scales.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from srdd.errors import UserError
from srdd.var.config import TransformerConfig
from srdd.var.masks import first_scale_seen
from srdd.var.pipeline import Pipeline
from srdd.var.tokenizer import Tokenizer
from srdd.var.transformer import ScaleTransformer
from srdd.var.warm_start import copy_weights


def prune_tokenizer(tokenizer: Tokenizer, patch_nums: tuple[int, ...]) -> Tokenizer:
    """The same weights over fewer scales: a frozen copy in eval mode.

    Raises:
        UserError: a scale is unknown, out of order, or the last is not the latent's side.
    """
    schedule = tokenizer.schedule.prune(patch_nums)
    config = replace(tokenizer.config, patch_nums=schedule.patch_nums, parent=schedule.parent)
    with torch.random.fork_rng(devices=[]):
        pruned = Tokenizer(config)
    pruned.load_state_dict(tokenizer.state_dict())
    return pruned.to(tokenizer.quantizer.codebook.weight.device).eval().requires_grad_(False)


def prune_transformer(model: ScaleTransformer, patch_nums: tuple[int, ...]) -> ScaleTransformer:
    """The same weights over fewer scales, their own rows of positions and levels: a frozen copy.

    Under ``markov`` a scale's logits are the parent's for the same input map, since they depend on
    nothing else; under ``block_causal`` they miss the scales dropped.

    Raises:
        UserError: a scale is unknown, out of order, or the first or last one is left out.
    """
    schedule = model.schedule.visit(patch_nums)
    config = replace(model.config, patch_nums=schedule.patch_nums, parent=schedule.parent)
    with torch.random.fork_rng(devices=[]):
        pruned = ScaleTransformer(config, model.backend)
    pruned.quantizer.load_state_dict(model.quantizer.state_dict())
    copy_weights(pruned, model)
    return pruned.to(model.pos_embed.device).eval().requires_grad_(False)


def prune_pipeline(pipeline: Pipeline, patch_nums: tuple[int, ...]) -> Pipeline:
    """A pipeline over fewer scales without any training: what a distilled one must beat.

    It draws what the parent draws with ``SamplerConfig(patch_nums=...)``. The sampler's settings
    are the parent's, and visit all scales that are left.

    Raises:
        UserError: as :func:`prune_transformer`.
    """
    return Pipeline(
        prune_tokenizer(pipeline.tokenizer, patch_nums),
        prune_transformer(pipeline.transformer, patch_nums),
        replace(pipeline.sampler, patch_nums=None),
        pipeline.class_names,
    )


def check_stages(
    model: ScaleTransformer, stages: tuple[tuple[int, ...], ...]
) -> tuple[tuple[int, ...], ...]:
    """Refuse stages that are not each a part of the one before, the first of the model's scales.

    Raises:
        UserError: there is none, or one is wrong; it is named.
    """
    if not stages:
        raise UserError("give at least one stage: the scales that it keeps")
    known = model.schedule.patch_nums
    for number, sides in enumerate(stages, 1):
        where = f"stage {number} ({','.join(map(str, sides))})"
        try:
            model.schedule.visit(sides)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        if not set(sides) < set(known):
            before = "the model" if number == 1 else f"stage {number - 1}"
            raise UserError(
                f"{where} must drop scales of {before} ({','.join(map(str, known))}) and add none"
            )
        known = sides
    return stages


def check_distillation(
    pipeline: Pipeline, stages: tuple[tuple[int, ...], ...], *, taught: bool
) -> TransformerConfig:
    """Refuse stages that a pipeline cannot be distilled to.

    Args:
        pipeline: the parent.
        stages: the scales of each.
        taught: whether the models before are the teachers of those after.

    Returns:
        The parent's configuration, of which every stage keeps all but scales.

    Raises:
        UserError: as :func:`check_stages` and :func:`check_teacher`.
    """
    model = pipeline.transformer
    check_stages(model, stages)
    if taught:
        check_teacher(model, model.config)
    return model.config


def check_teacher(teacher: ScaleTransformer, student: TransformerConfig) -> None:
    """Refuse a teacher whose logits are not a function of a scale's own input, or of other labels.

    Raises:
        UserError: its mask looks back to other scales, or its classes are not the student's.
    """
    config = teacher.config
    if first_scale_seen(config.mask, 1) != 1:
        raise UserError(
            f"a teacher needs a mask under which a scale sees itself alone: its mask is "
            f"{config.mask}, and it would miss the scales that the student has not"
        )
    for name in ("num_classes", "unconditional"):
        own, wanted = getattr(config, name), getattr(student, name)
        if own != wanted:
            raise UserError(f"the teacher's {name} is {own}, the student's {wanted}")


def teacher_kl(student_BLV: Tensor, teacher_BLV: Tensor) -> Tensor:
    """KL(teacher || student) of each code, in nats: logits [B, L, V], twice -> float32 [B, L]."""
    own, target = student_BLV.float().log_softmax(-1), teacher_BLV.float().log_softmax(-1)
    return F.kl_div(own, target, reduction="none", log_target=True).sum(-1)
