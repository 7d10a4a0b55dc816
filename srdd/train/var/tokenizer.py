"""Training the multi-scale tokenizer: its loss, and a codebook that stays in use."""

from collections.abc import Callable
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srdd.errors import UserError
from srdd.images import to_float
from srdd.rng import hash_counters
from srdd.train.config import OptimConfig, TokenizerLossConfig
from srdd.train.loop import Batch, Reduce
from srdd.train.var.adversarial import Adversary
from srdd.train.var.codebook import (
    DROPPED,
    EntropyTerm,
    codebook_usage,
    dead_codes,
    keep_scales,
    needy_scales,
    quantize,
)
from srdd.train.var.perceptual import Lpips
from srdd.var.config import TokenizerConfig
from srdd.var.quantize import MultiScaleQuantizer
from srdd.var.tokenizer import Tokenizer

_SEED, _RESTART = 0x5EED, 0xDEAD  # streams of random numbers


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
        with torch.no_grad():
            clamped = reconstruction.clamp(-1, 1)
            error_B = (clamped - images).square().flatten(1).mean(1) / 4
            metrics["psnr"] = (-10 * error_B.clamp_min(1e-10).log10()).mean()
            for scale, (begin, end) in enumerate(self.tokenizer.schedule.spans):
                side = self.tokenizer.schedule.patch_nums[scale]
                metrics[f"vq_{side}x{side}"] = quantized.loss_S[scale]
                used_Bl = quantized.codes_BL[:, begin:end]
                counts_Bl = torch.ones_like(used_Bl)
                if keep_BS is not None:
                    counts_Bl *= keep_BS[:, scale, None]
                # A sum over indices, of integers: it does not wait for the device, as a count does.
                self.used_SV[scale].scatter_add_(0, used_Bl.flatten(), counts_Bl.flatten())
        return loss, metrics

    def _perceptual(self, reconstruction: Tensor, images: Tensor) -> Tensor:
        lpips = self.lpips
        if lpips is None:
            raise UserError(f"lpips is {self.config.lpips}, but no weights of LPIPS were given")
        distance_B: Tensor = lpips(reconstruction, images)
        return distance_B.mean()


class TokenizerTask:
    """The tokenizer's training: restarts codes that hardly any image uses."""

    def __init__(
        self,
        config: TokenizerConfig,
        loss: TokenizerLossConfig,
        optim: OptimConfig,
        lpips: Lpips | None = None,
    ) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(optim.seed)
            self.tokenizer = Tokenizer(config)
        self.module = TokenizerLoss(self.tokenizer, loss, optim, lpips)
        self.loss = loss
        self.optim = optim

    @torch.no_grad()
    def seed_codebook(self, images: Tensor) -> None:
        """Give every code the value of some latent of ``images`` (uint8), at some scale.

        A codebook far from the latents would leave all but a few codes unused from the start.
        """
        f = self.tokenizer.latent(to_float(images))
        vocab = self.tokenizer.config.vocab_size
        picks_V3 = _picks(self.optim.seed, _SEED, 0, torch.arange(vocab), f.device)
        rows = _pick_vectors(self.tokenizer.quantizer, f, picks_V3 % _shape(f, self.tokenizer))
        self.tokenizer.quantizer.codebook.weight.copy_(rows)

    def after_step(self, batch: Batch, step: int, reduce: Reduce) -> None:
        """The discriminator's update, and every ``restart_every`` updates a restart of codes."""
        if self.module.adversary is not None:
            self.module.adversary.update(step, reduce)
        if self.module.entropy is not None:
            self.module.entropy.update(reduce)
        every, done = self.loss.restart_every, step + 1
        if not every or done % every:
            return
        used_SV = reduce.sum(self.module.used_SV.clone())
        self.module.used_SV.zero_()
        if done <= self.loss.restart_until * self.optim.steps:
            self._restart(used_SV, batch, step, reduce)

    @torch.no_grad()
    def _restart(self, used_SV: Tensor, batch: Batch, step: int, reduce: Reduce) -> None:
        """Dead codes move to residuals just seen."""
        dead = dead_codes(used_SV, self.loss.restart_below, self.loss.restart_vote)
        if not len(dead):
            return
        f = self.tokenizer.latent(to_float(batch.inputs))
        shape = _shape(f, self.tokenizer)
        picks = _picks(self.optim.seed, _RESTART, step, dead, f.device)
        if self.loss.restart_vote == "scale":
            draws_n = picks[:, 1].double() / 2**62
            picks[:, 1] = needy_scales(used_SV, self.tokenizer.schedule, draws_n)
        # The picked sample is one of the global batch; the worker that holds it tells the rest.
        place = picks[:, 0] % batch.global_size
        mine = place % reduce.world == reduce.rank
        own = torch.stack((place // reduce.world, picks[:, 1] % shape[1], picks[:, 2]), dim=1)
        rows = _pick_vectors(self.tokenizer.quantizer, f, own % shape, residual=True)
        rows = reduce.sum(torch.where(mine[:, None], rows, 0.0))
        self.tokenizer.quantizer.codebook.weight[dead] = rows

    def metrics(self, reduce: Reduce) -> dict[str, float]:
        """How each scale uses the codebook since the last restart; the discriminator's losses."""
        used_SV = reduce.sum(self.module.used_SV.clone())
        found: dict[str, float] = {}
        for side, used_V in zip(self.tokenizer.schedule.patch_nums, used_SV, strict=True):
            usage, perplexity = codebook_usage(used_V)
            found |= {f"usage_{side}x{side}": usage, f"perplexity_{side}x{side}": perplexity}
        if self.module.adversary is not None:
            found |= {**self.module.adversary.logged, "gan_ratio": self.module.adversary.ratio}
        return found

    def state_dict(self, reduce: Reduce) -> dict[str, Any]:
        """How often each code was used since the last restart, by all workers; the helpers'."""
        state: dict[str, Any] = {"used_SV": reduce.sum(self.module.used_SV.clone())}
        if self.module.adversary is not None:
            state["adversary"] = self.module.adversary.state_dict()
        if self.module.entropy is not None:
            state["entropy_mean_SV"] = self.module.entropy.mean_SV.clone()
        return state

    def load_state_dict(self, state: dict[str, Any], reduce: Reduce) -> None:
        """The first worker goes on with the counts, the others from zero."""
        own = state["used_SV"] if reduce.rank == 0 else torch.zeros_like(state["used_SV"])
        self.module.used_SV.copy_(own)
        if self.module.adversary is not None:
            self.module.adversary.load_state_dict(state["adversary"])
        if self.module.entropy is not None:
            self.module.entropy.mean_SV.copy_(state["entropy_mean_SV"])


def _shape(f: Tensor, tokenizer: Tokenizer) -> Tensor:
    """The numbers of images, scales and cells that a pick chooses from: int64 [3]."""
    side = tokenizer.schedule.side
    return torch.tensor([len(f), tokenizer.schedule.num_scales, side * side], device=f.device)


def _picks(seed: int, stream: int, step: int, codes_n: Tensor, device: torch.device) -> Tensor:
    """Three non-negative random integers a code: int64 [n, 3]."""
    which_3 = torch.arange(3, device=device)
    bits_n3 = hash_counters(codes_n.to(device)[:, None], which_3, seed, stream, step)
    return bits_n3 & ((1 << 62) - 1)


def _pick_vectors(
    quantizer: MultiScaleQuantizer, f: Tensor, picks_n3: Tensor, *, residual: bool = False
) -> Tensor:
    """The latent vectors at (image, scale, cell): [n, C]; ``residual`` takes what scales left."""
    f_rest = f.float()
    rows_nC = f_rest.new_zeros(len(picks_n3), f.shape[1])
    image_n, scale_n, cell_n = picks_n3.unbind(1)
    for scale, side in enumerate(quantizer.schedule.patch_nums):
        z_BlC = quantizer.to_scale(f_rest, side).flatten(2).transpose(1, 2)
        here = scale_n == scale
        rows_nC[here] = z_BlC[image_n[here], cell_n[here] % (side * side)]
        if residual:
            codes_Bl = quantizer.nearest(z_BlC.flatten(0, 1)).view(len(f), -1)
            f_rest = f_rest - quantizer.increment(quantizer.grid(codes_Bl, side), side)
    return rows_nC
