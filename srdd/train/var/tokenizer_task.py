"""Training the multi-scale tokenizer: a codebook that stays in use, and what it is asked."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from srdd.images import to_float
from srdd.rng import Stream, hash_counters
from srdd.train.config import OptimConfig, TokenizerLossConfig
from srdd.train.previews import COLUMNS, above_reconstructions
from srdd.train.task import Batch, HeldOut, Helper, Task, random_images
from srdd.train.var.codebook import codebook_usage, dead_codes, needy_scales
from srdd.train.var.flops import tokenizer_flops
from srdd.train.var.held_out import reconstruct, tokenizer_quality
from srdd.train.var.perceptual import Lpips
from srdd.train.var.tokenizer import TokenizerLoss
from srdd.train.workers import Reduce
from srdd.var.config import TokenizerConfig
from srdd.var.pipeline import save_tokenizer
from srdd.var.quantize import MultiScaleQuantizer
from srdd.var.tokenizer import Tokenizer

SEED_IMAGES = 256  # whose latents seed the codebook


class TokenizerTask(Task):
    """The tokenizer's training: restarts codes that hardly any image uses."""

    module: TokenizerLoss

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

    def flops(self, step: int) -> int:
        """Of one image's update; more once the discriminator has begun."""
        adversary = self.module.adversary
        begun = adversary is not None and adversary.active(step)
        return tokenizer_flops(self.tokenizer.config, self.loss, adversary=begun)

    def helpers(self) -> dict[str, Helper]:
        """LPIPS and the discriminator."""
        found: dict[str, Helper] = {}
        if self.module.lpips is not None:
            found["lpips"] = Helper(self.module.lpips, trained=False)
        if self.module.adversary is not None:
            found["discriminator"] = Helper(self.module.adversary.discriminator, trained=True)
        return found

    def random_batch(self, num: int, global_size: int) -> Batch:
        """Random images."""
        return random_images(num, self.tokenizer.config.resolution, global_size)

    def prepare(self, images: Callable[[int], Tensor]) -> None:
        """Seed the codebook with latents of 256 images."""
        self.seed_codebook(images(SEED_IMAGES).to(self.device))

    def validate(self, held_out: HeldOut) -> dict[str, float]:
        """Means over images of PSNR in dB and of SSIM, rFID, and the use of codes at each scale.

        SSIM needs images of 11 px, rFID a measure of distance; without, they are left out.
        """
        codes_nL, decoded = reconstruct(self.tokenizer, held_out.inputs)
        found = tokenizer_quality(self.tokenizer, held_out.inputs, codes_nL, decoded)
        if held_out.frechet is not None:
            found["rfid"] = held_out.frechet(held_out.inputs, decoded)
        return found

    def preview(self, images: Callable[[int], Tensor]) -> Tensor:
        """Held-out images above their reconstructions."""
        originals = images(COLUMNS)
        return above_reconstructions(originals, reconstruct(self.tokenizer, originals)[1])

    def export(self, directory: Path, class_names: Sequence[str]) -> None:
        """Write the tokenizer's model directory."""
        save_tokenizer(self.tokenizer, directory)

    @torch.no_grad()
    def seed_codebook(self, images: Tensor) -> None:
        """Give every code the value of some latent of ``images`` (uint8), at some scale.

        A codebook far from the latents would leave all but a few codes unused from the start.
        """
        f = self.tokenizer.latent(to_float(images))
        vocab = self.tokenizer.config.vocab_size
        picks_V3 = _picks(self.optim.seed, Stream.CODEBOOK, 0, torch.arange(vocab), f.device)
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
        picks = _picks(self.optim.seed, Stream.RESTART, step, dead, f.device)
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
