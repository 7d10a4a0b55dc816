"""Training the transformer on the codes of one tokenizer, with VAR's recipe."""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from srdd.checkpoint import build_empty
from srdd.errors import UserError
from srdd.train.config import OptimConfig, TransformerLossConfig
from srdd.train.previews import class_samples
from srdd.train.task import Batch, HeldOut, Helper, Task
from srdd.train.var.flops import forward_flops, transformer_flops
from srdd.train.var.held_out import transformer_nll, unigram_entropy
from srdd.train.var.transformer import TransformerLoss, arrange
from srdd.var.config import SamplerConfig, TransformerConfig
from srdd.var.init import init_weights
from srdd.var.pipeline import Pipeline, save_pipeline
from srdd.var.prune import check_teacher, prune_transformer
from srdd.var.tokenizer import Tokenizer
from srdd.var.transformer import ScaleTransformer

UNCONDITIONAL = "image"  # the one class of an unconditional model


class TransformerTask(Task):
    """The transformer's training, on the codes of one tokenizer."""

    module: TransformerLoss

    def __init__(
        self,
        config: TransformerConfig,
        loss: TransformerLossConfig,
        optim: OptimConfig,
        tokenizer: Tokenizer,
        *,
        init_gate: float = 1e-3,
        init_head: float = 0.02,
        teacher: ScaleTransformer | None = None,
    ) -> None:
        """Initialise the model.

        Args:
            config: of the model.
            loss: what it is trained for.
            optim: how; its seed decides the first weights.
            tokenizer: whose codebook and phi the model takes.
            init_gate: see :func:`srdd.var.init.init_weights`.
            init_head: likewise.
            teacher: knows the model's scales and maybe more; needed where ``loss.teacher_kl``.

        Raises:
            UserError: tokenizer or teacher do not fit.
        """
        _check_match(config, tokenizer)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(optim.seed)
            self.model = ScaleTransformer(config)
            init_weights(self.model, gate=init_gate, head=init_head)
        self.model.quantizer.load_state_dict(tokenizer.quantizer.state_dict())
        self.tokenizer = tokenizer  # on the CPU, but for what a preview decodes
        arrange(self.model, optim)
        follow = _frozen_teacher(teacher, config, optim) if loss.teacher_kl else None
        self.module = TransformerLoss(self.model, loss, optim.seed, follow)

    def flops(self, step: int) -> int:
        """Of one image's update, the same at every step; a teacher runs forward alone."""
        teacher = self.module.teacher
        followed = 0 if teacher is None else forward_flops(teacher.config)
        return transformer_flops(self.model.config, self.module.config) + followed

    def helpers(self) -> dict[str, Helper]:
        """The teacher."""
        teacher = self.module.teacher
        return {} if teacher is None else {"teacher": Helper(teacher, trained=False)}

    def random_batch(self, num: int, global_size: int) -> Batch:
        """Random codes, all of the first class."""
        config = self.model.config
        generator = torch.Generator().manual_seed(0)
        shape = (num, config.schedule.length)
        codes_bL = torch.randint(config.vocab_size, shape, generator=generator)
        return Batch(codes_bL, torch.zeros(num, dtype=torch.int64), torch.arange(num), global_size)

    def validate(self, held_out: HeldOut) -> dict[str, float]:
        """Negative log-likelihood in nats a code, in all and by scale, without label dropout."""
        return transformer_nll(self.model, held_out.inputs, held_out.labels_n)

    def baseline(self, inputs: Callable[[], Tensor]) -> dict[str, float]:
        """The entropy of the train codes' frequencies, below which the loss must fall."""
        return unigram_entropy(inputs(), self.model.schedule, self.model.config.vocab_size)

    def preview(self, images: Callable[[int], Tensor]) -> Tensor:
        """Class-balanced samples, with the sampler's settings of the finished pipeline."""
        names = tuple(map(str, range(self.model.config.num_classes)))
        tokenizer = self.tokenizer.to(self.device)
        pipeline = Pipeline(tokenizer, self.model, SamplerConfig(), names)
        return class_samples(pipeline, self.module.seed)

    def export(self, directory: Path, class_names: Sequence[str]) -> None:
        """Write a pipeline's directory, with default settings of the sampler."""
        unconditional = self.model.config.unconditional
        names = (UNCONDITIONAL,) if unconditional else tuple(class_names)
        save_pipeline(Pipeline(self.tokenizer, self.model, SamplerConfig(), names), directory)

    def shard_units(self) -> Sequence[nn.Module]:
        """The blocks."""
        return tuple(self.model.layers)

    def replicated(self) -> nn.Module:
        """The quantizer."""
        return self.model.quantizer

    def with_weights(self, state: dict[str, Tensor], device: torch.device) -> Self:
        """A copy with a whole model; it has no teacher."""
        found = copy.copy(self)
        found.model = build_empty(ScaleTransformer, self.model.config)
        found.module = TransformerLoss(found.model, self.module.config, self.module.seed)
        found.module.load_state_dict(state)
        found.module.to(device)
        return found


def _check_match(config: TransformerConfig, tokenizer: Tokenizer) -> None:
    """Refuse a tokenizer whose codes are not the transformer's."""
    shared = ("patch_nums", "parent", "vocab_size", "z_channels", "num_phi")
    wanted = tuple(getattr(config, name) for name in shared)
    found = tuple(getattr(tokenizer.config, name) for name in shared)
    if wanted != found:
        raise UserError(
            f"the transformer's {', '.join(shared)} {wanted} are not the tokenizer's {found}"
        )


def _frozen_teacher(
    teacher: ScaleTransformer | None, config: TransformerConfig, optim: OptimConfig
) -> ScaleTransformer:
    """The teacher with the student's scales alone."""
    if teacher is None:
        raise UserError("teacher_kl needs a teacher: a model to begin with")
    check_teacher(teacher, config)
    pruned = prune_transformer(teacher, config.patch_nums)
    pruned.train()  # in eval mode it would wait for the device, to check the labels
    arrange(pruned, optim)
    return pruned
