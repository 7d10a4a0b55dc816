"""The loss of the multi-scale tokenizer."""

from collections.abc import Callable
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srdd.errors import UserError
from srdd.images import to_float
from srdd.train.config import OptimConfig, TokenizerLossConfig
from srdd.train.task import Batch
from srdd.train.var.adversarial import Adversary
from srdd.train.var.codebook import (
    DROPPED,
    EntropyTerm,
    keep_scales,
    quantize,
)
from srdd.train.var.perceptual import Lpips
from srdd.var.quantize import Quantized
from srdd.var.tokenizer import Tokenizer


class TokenizerLoss(nn.Module):
    """Reconstruction plus VQ loss, and what else the configuration asks for.

    That may be LPIPS, the adversarial loss and the entropy of assignments. The frozen LPIPS and
    the discriminator are none of its weights, but move with it.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        config: TokenizerLossConfig,
        optim: OptimConfig,
        lpips: Lpips | None = None,
    ) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.config = config
        self.seed = optim.seed
        vocab, scales = tokenizer.config.vocab_size, tokenizer.schedule.num_scales
        counts_SV = torch.zeros(scales, vocab, dtype=torch.int64)
        self.register_buffer("used_SV", counts_SV, persistent=False)
        self.used_SV: Tensor
        self._lpips = (lpips,)  # in a tuple, which hides it
        resolution = tokenizer.config.resolution
        self.adversary = Adversary(config, optim, resolution) if config.gan else None
        self.entropy = (
            EntropyTerm(scales, vocab, config.entropy_temperature) if config.entropy else None
        )
        self._step = -1

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for helper in (self._lpips[0], self.adversary, self.entropy):
            if helper is not None:
                helper.to(self.used_SV.device)
        return self

    @property
    def lpips(self) -> Lpips | None:
        """The frozen LPIPS, or none."""
        return self._lpips[0]

    def forward(self, batch: Batch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch's share and its parts."""
        config = self.config
        if step != self._step:  # a step that was not finite has left something behind
            self._step = step
            for helper in (self.adversary, self.entropy):
                if helper is not None:
                    helper.begin()
        images = to_float(batch.inputs)
        f = self.tokenizer.latent(images)
        share = len(images) / batch.global_size
        keep_BS, scales = None, self.tokenizer.schedule.num_scales
        if config.scale_drop:
            keep_BS = keep_scales(batch.index_b, scales, config.scale_drop, self.seed, step)
        with torch.autocast(f.device.type, enabled=False):
            quantized, gap_S = quantize(
                self.tokenizer.quantizer, f, beta=config.beta, keep_BS=keep_BS,
                keep_share=1 - DROPPED * config.scale_drop, entropy=self.entropy, share=share,
            )  # fmt: skip
        reconstruction = self.tokenizer.pixels(f + (quantized.f_hat - f).detach())
        l1, l2 = F.l1_loss(reconstruction, images), F.mse_loss(reconstruction, images)
        vq = quantized.loss_S.mean()
        metrics = {"l1": l1, "l2": l2, "vq": vq}
        seen = config.l1 * l1 + config.l2 * l2
        if config.lpips:
            metrics["lpips"] = self._perceptual(reconstruction, images)
            seen = seen + config.lpips * metrics["lpips"]
        loss = seen + config.vq * vq
        if config.entropy:
            metrics["entropy"] = gap_S.mean()
            loss = loss + config.entropy * metrics["entropy"]
        if self.adversary is not None:
            gan = seen.new_zeros(())
            if self.adversary.active(step):
                gan = self.adversary.generator_loss(reconstruction, batch.index_b, step)
                loss = loss + self.adversary.weight(step) * gan
                if self.training and torch.is_grad_enabled():
                    last = self.tokenizer.decoder.conv_out.weight
                    self.adversary.observe(
                        images, reconstruction, batch.index_b, share, (seen, gan), last
                    )
            metrics["gan"] = gan
        metrics["loss"] = loss
        metrics.update(self._watch(images, reconstruction, quantized, keep_BS))
        return loss, metrics

    @torch.no_grad()
    def _watch(
        self, images: Tensor, reconstruction: Tensor, quantized: Quantized, keep_BS: Tensor | None
    ) -> dict[str, Tensor]:
        """PSNR and each scale's VQ loss; the codes used are counted."""
        error_B = (reconstruction.clamp(-1, 1) - images).square().flatten(1).mean(1) / 4
        metrics = {"psnr": (-10 * error_B.clamp_min(1e-10).log10()).mean()}
        for scale, (begin, end) in enumerate(self.tokenizer.schedule.spans):
            side = self.tokenizer.schedule.patch_nums[scale]
            metrics[f"vq_{side}x{side}"] = quantized.loss_S[scale]
            used_Bl = quantized.codes_BL[:, begin:end]
            counts_Bl = torch.ones_like(used_Bl)
            if keep_BS is not None:
                counts_Bl *= keep_BS[:, scale, None]
            # A sum over indices, of integers: it does not wait for the device, as a count does.
            self.used_SV[scale].scatter_add_(0, used_Bl.flatten(), counts_Bl.flatten())
        return metrics

    def _perceptual(self, reconstruction: Tensor, images: Tensor) -> Tensor:
        lpips = self.lpips
        if lpips is None:
            raise UserError(f"lpips is {self.config.lpips}, but no weights of LPIPS were given")
        distance_B: Tensor = lpips(reconstruction, images)
        return distance_B.mean()
