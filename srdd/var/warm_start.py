"""Begin a transformer with the weights of another: of another mask, schedule or set of classes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from srdd.errors import UserError
from srdd.var.config import TransformerConfig
from srdd.var.scales import ScaleSchedule
from srdd.var.transformer import ScaleTransformer


@dataclass(frozen=True, kw_only=True, slots=True)
class WarmStart:
    """What became of each tensor: names, with the rows meant where it is not all of them."""

    taken: tuple[str, ...]  # copied
    new: tuple[str, ...]  # left as they were initialised
    unused: tuple[str, ...]  # the other model's, with no place here


def warm_start(model: ScaleTransformer, source: ScaleTransformer) -> WarmStart:
    """Copy into ``model`` what fits of ``source``.

    Tensors of equal name and shape are copied. Where the classes differ in number, the null
    class's row of the embedding is; positions and levels are copied for the scales both have.

    Args:
        model: freshly initialised, with its tokenizer's codebook and phi; changed in place.
        source: trained on the same codebook and phi.

    Raises:
        UserError: codebook or phi differ, or the width, the heads or the attention's norm do.
    """
    check_source(model.config, model.state_dict(), source.config, source.state_dict())
    return copy_weights(model, source)


def check_source(
    config: TransformerConfig,
    own: Mapping[str, Tensor],
    other: TransformerConfig,
    given: Mapping[str, Tensor],
) -> None:
    """Refuse a model that another cannot begin from.

    Args:
        config: of the model to train.
        own: tensors with its codebook and phi, ``quantizer.*``.
        other: of the model to begin from.
        given: its tensors.

    Raises:
        UserError: as :func:`warm_start`.
    """
    for name in (name for name in own if name.startswith("quantizer.")):
        if name not in given or not torch.equal(own[name].cpu(), given[name].cpu()):
            raise UserError(f"cannot begin from a model of another tokenizer: {name} differs")
    for field in ("width", "num_heads", "attn_l2_norm"):
        mine, its = getattr(config, field), getattr(other, field)
        if mine != its:
            raise UserError(f"cannot begin from a model of another {field}: {its}, not {mine}")


@torch.no_grad()
def copy_weights(model: ScaleTransformer, source: ScaleTransformer) -> WarmStart:
    """:func:`warm_start` of models that are known to fit, the quantizer left aside.

    It looks at shapes alone, so the models may lie on the meta device.
    """
    own, given = model.state_dict(), source.state_dict()
    shared = {name for name in own if name.startswith("quantizer.")}
    rows = _rows(model, source)
    taken, new, unused = [], [], []
    for name, tensor in own.items():
        if name in shared:
            continue
        if name in rows:
            part = rows[name]
            to, of = tensor.view(-1, model.config.width), given[name].view(-1, model.config.width)
            to[part.own] = of[part.given].to(to)
            taken += [f"{name} ({part.what})"] if part.own else []
            new += [f"{name} (others)"] if len(part.own) < len(to) else []
            unused += [f"{name} (others)"] if len(part.given) < len(of) else []
        elif name in given and given[name].shape == tensor.shape:
            tensor.copy_(given[name])
            taken.append(name)
        else:
            new.append(name)
            unused += [name] if name in given else []
    unused += [name for name in given if name not in own]
    return WarmStart(taken=tuple(taken), new=tuple(new), unused=tuple(unused))


class _Rows(NamedTuple):
    """Rows of an embedding that stand for the same in two models."""

    own: list[int]
    given: list[int]
    what: str


def _rows(model: ScaleTransformer, source: ScaleTransformer) -> dict[str, _Rows]:
    """The embeddings that the models share in part, by name."""
    found: dict[str, _Rows] = {}
    if model.config.num_classes != source.config.num_classes:
        found["class_emb.weight"] = _Rows([model.null_class], [source.null_class], "null class")
    if model.schedule != source.schedule:
        own, given = model.schedule.patch_nums, source.schedule.patch_nums
        sides = [side for side in own if side in given]
        what = "scales " + ", ".join(map(str, sides))
        levels = [own.index(side) for side in sides], [given.index(side) for side in sides]
        found["level_embed.weight"] = _Rows(*levels, what)
        places = _places(model.schedule, levels[0]), _places(source.schedule, levels[1])
        found["pos_embed"] = _Rows(*places, what)
    return found


def _places(schedule: ScaleSchedule, scales: list[int]) -> list[int]:
    """The positions of some scales' codes in the sequence of all."""
    return [place for scale in scales for place in range(*schedule.spans[scale])]
