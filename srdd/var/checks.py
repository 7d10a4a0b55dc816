"""What a request for images must satisfy: settings, classes and seeds that fit the model."""

from collections.abc import Sequence

import torch
from torch import Tensor

from srdd.errors import UserError
from srdd.var.config import SamplerConfig
from srdd.var.scales import ScaleSchedule
from srdd.var.transformer import ScaleTransformer


def _integers(name: str, values: Tensor | Sequence[int]) -> Tensor:
    """Integers as int64.

    Raises:
        UserError: they are no integers, or do not fit into 64 bits.
    """
    try:
        tensor = torch.as_tensor(values)
    except (ValueError, TypeError, RuntimeError, OverflowError):
        raise UserError(f"{name} must be integers of at most 64 bits") from None
    if tensor.numel() and (tensor.is_floating_point() or tensor.dtype == torch.bool):
        raise UserError(f"{name} must be integers, got {tensor.dtype}")
    return tensor.to(torch.int64)


def visited(model: ScaleTransformer, config: SamplerConfig) -> ScaleSchedule:
    """The scales that ``config`` visits of those ``model`` knows.

    Raises:
        UserError: a scale is unknown, or the first or last one is left out.
    """
    if config.top_k > model.config.vocab_size:
        raise UserError(
            f"top_k {config.top_k} exceeds the vocabulary of {model.config.vocab_size} codes",
            field="top_k",
        )
    if config.patch_nums is None:
        return model.schedule
    schedule, first = model.schedule.prune(config.patch_nums), model.schedule.patch_nums[0]
    if schedule.patch_nums[0] != first:
        raise UserError(
            f"patch_nums must begin at scale {first}, the start token's", field="patch_nums"
        )
    return schedule


def check_fits(model: ScaleTransformer, config: SamplerConfig) -> ScaleSchedule:
    """The scales visited, if the settings fit the model.

    Raises:
        UserError: a scale is unknown, top_k too large, or there is nothing to guide.
    """
    if model.config.unconditional and config.cfg > 0:
        raise UserError("cfg must be 0: an unconditional model has nothing to guide", field="cfg")
    return visited(model, config)


def check_request(
    model: ScaleTransformer,
    labels_B: Tensor | Sequence[int],
    config: SamplerConfig,
    seeds_B: Tensor | Sequence[int],
) -> tuple[Tensor, Tensor]:
    """Labels and seeds as int64 [B].

    Raises:
        UserError: a class, a seed count or a setting does not fit the model.
    """
    labels_B, seeds_B = _integers("labels", labels_B), _integers("seeds", seeds_B)
    if labels_B.shape != seeds_B.shape or labels_B.dim() != 1:
        raise UserError(
            f"give one seed an image: {list(labels_B.shape)} labels, {list(seeds_B.shape)} seeds"
        )
    model.check_labels(labels_B)
    check_fits(model, config)
    return labels_B, seeds_B
