"""The loss of the transformer on codes, and VAR's way to initialise and run its blocks."""

import math
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from srdd.compiling import compile_function
from srdd.nn.linear import RowLinear
from srdd.rng import Stream, hash_counters, uniform
from srdd.train.config import OptimConfig, ScaleWeights, TransformerLossConfig
from srdd.train.task import Batch
from srdd.train.var.refine import Hidden, draw_hidden, refined_input
from srdd.var.block import Block
from srdd.var.prune import teacher_kl
from srdd.var.scales import ScaleSchedule
from srdd.var.transformer import ScaleTransformer


def nll_per_scale(
    model: ScaleTransformer, logits_BLV: Tensor, codes_BL: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Negative log-likelihood in nats a code: [B, L], and its mean on each scale."""
    flat = F.cross_entropy(logits_BLV.flatten(0, 1), codes_BL.flatten(), reduction="none")
    nll_BL = flat.view(codes_BL.shape)
    means = {}
    for side, (begin, end) in zip(model.schedule.patch_nums, model.schedule.spans, strict=True):
        means[f"nll_{side}x{side}"] = nll_BL[:, begin:end].detach().mean()
    return nll_BL, means


def scale_masses(schedule: ScaleSchedule, weights: ScaleWeights) -> list[float]:
    """How much each scale's mean counts in the loss; the sum is 1.

    "uniform" counts each code alike. "lognorm" is HMAR's (``trainer.py``): the normal density of
    the sides' z-scores, given to the scales in reverse.
    """
    sides = schedule.patch_nums
    if weights == "uniform" or len(sides) < 2:
        return [side * side / schedule.length for side in sides]
    mean, spread = statistics.fmean(sides), statistics.stdev(sides)
    bell = [math.exp(-(((side - mean) / spread) ** 2) / 2) for side in reversed(sides)]
    return [height / sum(bell) for height in bell]


class TransformerLoss(nn.Module):
    """Cross-entropy: each scale's mean over the codes that are scored, weighted.

    With ``config.teacher_kl``, that many times KL(teacher || student) over all codes is added, each
    scale's mean weighted alike. The teacher has the student's scales and sees the same input and
    labels; it is none of the module's weights, but moves with it.
    """

    def __init__(
        self,
        model: ScaleTransformer,
        config: TransformerLossConfig,
        seed: int,
        teacher: ScaleTransformer | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.config = config
        self.seed = seed
        self.masses = scale_masses(model.schedule, config.scale_weights)
        self._teacher = (teacher,)  # in a tuple, which hides it

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self._teacher[0] is not None:
            self._teacher[0].to(self.model.pos_embed.device)
        return self

    @property
    def teacher(self) -> ScaleTransformer | None:
        """The frozen model that is followed, or none."""
        return self._teacher[0]

    def forward(self, batch: Batch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch's share, with the mean of each scale."""
        schedule, device = self.model.schedule, batch.inputs.device
        hidden = None
        with torch.autocast(device.type, enabled=False):  # the map is summed in float32
            if self.config.refine_share > 0:
                share = self.config.refine_share
                hidden = draw_hidden(schedule, batch.index_b, share, self.seed, step)
                tokens = refined_input(self.model.quantizer, batch.inputs, hidden)
            else:
                with torch.no_grad():
                    tokens = self.model.quantizer.teacher_input(batch.inputs)
        keys = None
        if self.model.config.drop_path > 0:
            keys = hash_counters(batch.index_b, self.seed, step, Stream.PATHS)
        labels_b = self._labels(batch, step)
        logits = self.model(labels_b, batch.inputs, tokens, keys)
        nll_BL, means = nll_per_scale(self.model, logits, batch.inputs)
        loss, metrics = self._scored(nll_BL, means, hidden)
        teacher = self.teacher
        if teacher is not None:
            with torch.no_grad():
                target = teacher(labels_b, batch.inputs, tokens)
            kl_BL = teacher_kl(logits, target)
            means_S = torch.stack([kl_BL[:, begin:end].mean() for begin, end in schedule.spans])
            kl = (means_S * kl_BL.new_tensor(self.masses)).sum()
            loss = loss + self.config.teacher_kl * kl
            metrics["teacher_kl"] = kl.detach()
        return loss, {"loss": loss, **metrics}

    def _scored(
        self, nll_BL: Tensor, means: dict[str, Tensor], hidden: Hidden | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The cross-entropy, and the mean of each scale over the codes that are scored."""
        if hidden is None and self.config.scale_weights == "uniform":
            return nll_BL.mean(), means
        loss, metrics = nll_BL.new_zeros(()), {}
        for (name, mean), mass, (begin, end) in zip(
            means.items(), self.masses, self.model.schedule.spans, strict=True
        ):
            if hidden is None:
                scored = nll_BL[:, begin:end].mean()
            else:
                scored_Bl = hidden.hidden_BL[:, begin:end]
                nll_B = (nll_BL[:, begin:end] * scored_Bl).sum(1) / scored_Bl.sum(1)
                scored = nll_B.mean()
                mean = scored.detach()
            loss = loss + mass * scored
            metrics[name] = mean
        return loss, metrics

    def _labels(self, batch: Batch, step: int) -> Tensor:
        """The classes fed: for some images the null class; always in an unconditional model."""
        if self.model.config.unconditional:
            return torch.full_like(batch.labels_b, self.model.null_class)
        dropped = uniform(batch.index_b, self.seed, step, Stream.LABELS) < self.config.label_drop
        return torch.where(dropped, self.model.null_class, batch.labels_b)


def arrange(model: ScaleTransformer, optim: OptimConfig, backend: str = "inductor") -> None:
    """Let the blocks run as ``optim`` says: compiled, computed again in the backward pass.

    Both apply to the two halves of a block around attention, which keeps its own inputs. With
    products in bfloat16 the head stays in float32.
    """
    if optim.precision == "bfloat16":
        object.__setattr__(model.head, "forward", partial(_in_float32, model.head))
    if not (optim.compile or optim.recompute):
        return
    halves: dict[str, Any] = {"project": Block.project, "finish": Block.finish}
    if optim.compile:
        halves = {
            name: compile_function(function, dynamic=True, backend=backend)
            for name, function in halves.items()
        }
    for block in model.layers:
        for name, function in halves.items():
            bound = partial(function, block)
            if optim.recompute:  # nothing in a block draws random numbers
                bound = partial(checkpoint, bound, use_reentrant=False, preserve_rng_state=False)
            object.__setattr__(block, name, bound)


def _in_float32(head: RowLinear, h_BlW: Tensor) -> Tensor:
    with torch.autocast(h_BlW.device.type, enabled=False):
        return RowLinear.forward(head, h_BlW.float())
