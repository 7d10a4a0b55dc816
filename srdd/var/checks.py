"""What a request for images must satisfy: settings, classes, seeds and codes that fit the model."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from srdd.batch import as_integers, check_batch
from srdd.errors import UserError
from srdd.generator import Given
from srdd.var.config import SamplerConfig, TransformerConfig
from srdd.var.transformer import ScaleTransformer


def check_settings(model: TransformerConfig, config: SamplerConfig) -> None:
    """Refuse settings that do not fit the model.

    Raises:
        UserError: there is nothing to guide, top_k is too large, or a scale is unknown.
    """
    if model.unconditional and config.cfg > 0:
        raise UserError("cfg must be 0: an unconditional model has nothing to guide", field="cfg")
    if config.top_k > model.vocab_size:
        raise UserError(
            f"top_k {config.top_k} exceeds the vocabulary of {model.vocab_size} codes",
            field="top_k",
        )
    model.schedule.visit(config.patch_nums)


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
    labels_B, seeds_B = check_batch(labels_B, seeds_B)
    model.check_labels(labels_B)
    check_settings(model.config, config)
    return labels_B, seeds_B


def check_given(model: TransformerConfig, config: SamplerConfig, given: Given, batch: int) -> Given:
    """Given codes as int64 [B, L] and bool [B, L], where L counts the codes of all scales visited.

    Codes beyond those given are not kept. A code that is not kept becomes 0.

    Raises:
        UserError: the codes are not those of so many images and of the scales visited, or one
            that is kept is not in the vocabulary.
    """
    schedule = model.schedule.visit(config.patch_nums)
    codes_Bl = as_integers("given codes", given.codes_BL)
    keep_Bl = torch.as_tensor(given.keep_BL, device=codes_Bl.device)
    shape, length = list(codes_Bl.shape), schedule.length
    if len(shape) != 2 or shape[0] != batch or shape[1] > length:
        raise UserError(
            f"given codes must be [{batch}, {length}], or fewer codes an image, for scales "
            f"{','.join(map(str, schedule.patch_nums))}: got {shape}"
        )
    if keep_Bl.dtype != torch.bool or list(keep_Bl.shape) != shape:
        raise UserError(
            f"which codes are kept must be booleans {shape}, one a code: got {keep_Bl.dtype} "
            f"{list(keep_Bl.shape)}"
        )
    kept_n = codes_Bl[keep_Bl]
    if len(kept_n) and not 0 <= int(kept_n.min()) <= int(kept_n.max()) < model.vocab_size:
        raise UserError(
            f"given codes must lie in [0, {model.vocab_size}): got {int(kept_n.min())} to "
            f"{int(kept_n.max())}"
        )
    missing = (0, length - shape[1])
    return Given(F.pad(codes_Bl * keep_Bl, missing), F.pad(keep_Bl, missing))
