"""Training the multi-scale tokenizer: its loss, and a codebook that stays in use."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srdd.config import TokenizerConfig
from srdd.quantize import MultiScaleQuantizer
from srdd.rng import hash_counters
from srdd.tokenizer import Tokenizer
from srdd.train.config import OptimConfig, TokenizerLossConfig
from srdd.train.loop import Batch, Reduce

_SEED, _RESTART = 0x5EED, 0xDEAD  # streams of random numbers


def to_float(images: Tensor) -> Tensor:
    """uint8 [B, 3, R, R] -> float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


class TokenizerLoss(nn.Module):
    """Reconstruction plus VQ loss."""

    def __init__(self, tokenizer: Tokenizer, config: TokenizerLossConfig) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.config = config
        vocab, scales = tokenizer.config.vocab_size, tokenizer.schedule.num_scales
        counts_SV = torch.zeros(scales, vocab, dtype=torch.int64)
        self.register_buffer("used_SV", counts_SV, persistent=False)
        self.used_SV: Tensor

    def forward(self, batch: Batch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch's share and its parts."""
        images = to_float(batch.inputs)
        reconstruction, quantized = self.tokenizer(images)
        l1, l2 = F.l1_loss(reconstruction, images), F.mse_loss(reconstruction, images)
        vq = quantized.loss_S.mean()
        loss = self.config.l1 * l1 + self.config.l2 * l2 + self.config.vq * vq
        with torch.no_grad():
            clamped = reconstruction.clamp(-1, 1)
            error_B = (clamped - images).square().flatten(1).mean(1) / 4
            psnr = (-10 * error_B.clamp_min(1e-10).log10()).mean()
            metrics = {"loss": loss, "l1": l1, "l2": l2, "vq": vq, "psnr": psnr}
            for scale, (begin, end) in enumerate(self.tokenizer.schedule.spans):
                side = self.tokenizer.schedule.patch_nums[scale]
                metrics[f"vq_{side}x{side}"] = quantized.loss_S[scale]
                used = quantized.codes_BL[:, begin:end].flatten()
                self.used_SV[scale] += torch.bincount(used, minlength=self.used_SV.shape[1])
        return loss, metrics


class TokenizerTask:
    """The tokenizer's training: restarts codes that hardly any image uses."""

    def __init__(
        self, config: TokenizerConfig, loss: TokenizerLossConfig, optim: OptimConfig
    ) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(optim.seed)
            self.tokenizer = Tokenizer(config)
        self.module = TokenizerLoss(self.tokenizer, loss)
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

    @torch.no_grad()
    def after_step(self, batch: Batch, step: int, reduce: Reduce) -> None:
        """Every ``restart_every`` updates: dead codes move to residuals just seen."""
        every, done = self.loss.restart_every, step + 1
        if not every or done % every:
            return
        used_SV = reduce.sum(self.module.used_SV.clone())
        self.module.used_SV.zero_()
        if done > self.loss.restart_until * self.optim.steps:
            return
        used_V = used_SV.sum(0)
        even = used_V.sum() / len(used_V)
        dead = (used_V <= self.loss.restart_below * even).nonzero()[:, 0]
        if not len(dead):
            return
        f = self.tokenizer.latent(to_float(batch.inputs))
        shape = _shape(f, self.tokenizer)
        picks = _picks(self.optim.seed, _RESTART, step, dead, f.device)
        # The picked sample is one of the global batch; the worker that holds it tells the rest.
        place = picks[:, 0] % batch.global_size
        mine = place % reduce.world == reduce.rank
        own = torch.stack((place // reduce.world, picks[:, 1] % shape[1], picks[:, 2]), dim=1)
        rows = _pick_vectors(self.tokenizer.quantizer, f, own % shape, residual=True)
        rows = reduce.sum(torch.where(mine[:, None], rows, 0.0))
        self.tokenizer.quantizer.codebook.weight[dead] = rows

    def metrics(self, reduce: Reduce) -> dict[str, float]:
        """How each scale uses the codebook since the last restart."""
        used_SV = reduce.sum(self.module.used_SV.clone())
        found: dict[str, float] = {}
        for side, used_V in zip(self.tokenizer.schedule.patch_nums, used_SV, strict=True):
            usage, perplexity = codebook_usage(used_V)
            found |= {f"usage_{side}x{side}": usage, f"perplexity_{side}x{side}": perplexity}
        return found

    def state_dict(self, reduce: Reduce) -> dict[str, Tensor]:
        """How often each code was used since the last restart, by all workers."""
        return {"used_SV": reduce.sum(self.module.used_SV.clone())}

    def load_state_dict(self, state: dict[str, Tensor], reduce: Reduce) -> None:
        """The first worker goes on with the counts, the others from zero."""
        own = state["used_SV"] if reduce.rank == 0 else torch.zeros_like(state["used_SV"])
        self.module.used_SV.copy_(own)


def codebook_usage(counts_V: Tensor) -> tuple[float, float]:
    """The share of codes used at all, and the perplexity of their use: V if all are used alike."""
    share_V = counts_V.double() / counts_V.sum().clamp_min(1)
    used = (counts_V > 0).double().mean()
    return float(used), float(torch.special.entr(share_V).sum().exp())


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
