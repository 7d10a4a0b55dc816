"""What a batch of images is asked for: a label and a seed for each image."""

from collections.abc import Sequence

import torch
from torch import Tensor

from srdd.errors import UserError


def as_integers(name: str, values: Tensor | Sequence[int]) -> Tensor:
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


def check_batch(
    labels_B: Tensor | Sequence[int], seeds_B: Tensor | Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Labels and seeds as int64 [B], for :meth:`~srdd.generator.Generator.begin` of any family.

    Raises:
        UserError: they are not integers, or there is not one seed an image.
    """
    labels_B, seeds_B = as_integers("labels", labels_B), as_integers("seeds", seeds_B)
    if labels_B.shape != seeds_B.shape or labels_B.dim() != 1:
        raise UserError(
            f"give one seed an image: {list(labels_B.shape)} labels, {list(seeds_B.shape)} seeds"
        )
    return labels_B, seeds_B
