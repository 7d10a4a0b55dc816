"""Multi-scale residual vector quantisation (VAR, Algorithms 1 and 2).

Letters: B images, L codes of all scales, l of one, S scales, C latent channels, N latent side,
V vocabulary. All sums are in float32.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srdd.var.phi import PhiBank
from srdd.var.scales import ScaleSchedule


@dataclass(frozen=True, slots=True)
class Quantized:
    """What training needs of one pass through the scales."""

    codes_BL: Tensor  # int64
    f_hat: Tensor  # [B, C, N, N], the sum of all increments
    loss_S: Tensor  # VQ loss of each scale
    f_rest: Tensor  # [B, C, N, N], what the scales left


class MultiScaleQuantizer(nn.Module):
    """f <-> codes. ``codebook`` is [V, C]; ``phi`` belongs to the parent schedule's scales."""

    def __init__(
        self, schedule: ScaleSchedule, vocab_size: int, channels: int, num_phi: int = 4
    ) -> None:
        super().__init__()
        self.schedule = schedule
        self.codebook = nn.Embedding(vocab_size, channels)
        self.phi = PhiBank(ScaleSchedule(schedule.parent), channels, num_phi)

    def nearest(self, z_nC: Tensor) -> Tensor:
        """Index of the nearest code, squared Euclidean distance: [n, C] -> int64 [n]."""
        codebook_VC = self.codebook.weight
        squares_nV = z_nC.square().sum(1, keepdim=True) + codebook_VC.square().sum(1)
        return torch.addmm(squares_nV, z_nC, codebook_VC.T, alpha=-2).argmin(1)

    def to_scale(self, f: Tensor, patch_num: int) -> Tensor:
        """Area-average a latent map to a scale: [B, C, N, N] -> [B, C, p, p]."""
        if patch_num == f.shape[-1]:
            return f
        return F.interpolate(f, size=(patch_num, patch_num), mode="area")

    def grid(self, codes_Bl: Tensor, patch_num: int) -> Tensor:
        """Embed one scale's codes as a map: int64 [B, l] -> [B, C, p, p]."""
        h_BlC: Tensor = self.codebook(codes_Bl)
        h: Tensor = h_BlC.transpose(1, 2).contiguous().unflatten(2, (patch_num, patch_num))
        return h

    def increment(self, h: Tensor, patch_num: int) -> Tensor:
        """What one scale adds to f_hat: bicubic up to N, then phi. [B, C, p, p] -> [B, C, N, N]."""
        side = self.schedule.side
        if patch_num != side:
            h = F.interpolate(h, size=(side, side), mode="bicubic")
        out: Tensor = self.phi(h, patch_num)
        return out

    def encode(self, f: Tensor) -> Tensor:
        """Latents to the codes of every scale: [B, C, N, N] -> int64 [B, L]."""
        f_rest, codes = f.float(), []
        for patch_num in self.schedule.patch_nums:
            codes_Bl = self._nearest_grid(f_rest, patch_num)
            f_rest = f_rest - self.increment(self.grid(codes_Bl, patch_num), patch_num)
            codes.append(codes_Bl)
        return torch.cat(codes, dim=1)

    def increments(self, codes_BL: Tensor) -> list[Tensor]:
        """Each scale's increment to f_hat: S maps [B, C, N, N]."""
        sides = self.schedule.patch_nums
        return [
            self.increment(self.grid(codes_BL[:, begin:end], side), side)
            for side, (begin, end) in zip(sides, self.schedule.spans, strict=True)
        ]

    def decode(self, codes_BL: Tensor) -> Tensor:
        """Codes to the latent they stand for, f_hat: int64 [B, L] -> [B, C, N, N]."""
        f_hat = torch.zeros(())
        for increment in self.increments(codes_BL):
            f_hat = f_hat + increment if f_hat.dim() else increment
        return f_hat

    def teacher_input(self, codes_BL: Tensor) -> Tensor:
        """The transformer's input below the start token: cumulative f_hat, down to each scale.

        Returns:
            [B, L - l_1, C]: block s is the sum of the increments of scales < s at scale s.
        """
        blocks: list[Tensor] = []
        f_hat: Tensor | None = None
        sides = self.schedule.patch_nums
        for side, increment in zip(sides[1:], self.increments(codes_BL)[:-1], strict=True):
            f_hat = increment if f_hat is None else f_hat + increment
            blocks.append(self.to_scale(f_hat, side).flatten(2).transpose(1, 2))
        if not blocks:
            return self.codebook.weight.new_zeros(len(codes_BL), 0, self.codebook.embedding_dim)
        return torch.cat(blocks, dim=1)

    def forward(self, f: Tensor, beta: float = 0.25) -> Quantized:
        """Quantise for training.

        The VQ loss of a scale compares the map built so far with f (VAR, ``quant.py``): it trains
        codebook and phi, and with weight ``beta`` the encoder. ``f_hat`` carries no gradient to
        the codebook: the caller passes the decoder's straight through to f.
        """
        f = f.float()
        f_rest, f_hat, losses, codes = f.detach(), torch.zeros_like(f), [], []
        for patch_num in self.schedule.patch_nums:
            codes_Bl = self._nearest_grid(f_rest, patch_num)
            increment = self.increment(self.grid(codes_Bl, patch_num), patch_num)
            f_hat = f_hat + increment
            f_rest = f_rest - increment.detach()
            losses.append(F.mse_loss(f_hat, f.detach()) + beta * F.mse_loss(f_hat.detach(), f))
            codes.append(codes_Bl)
        return Quantized(torch.cat(codes, dim=1), f_hat, torch.stack(losses), f_rest)

    @torch.no_grad()
    def _nearest_grid(self, f_rest: Tensor, patch_num: int) -> Tensor:
        z = self.to_scale(f_rest, patch_num)
        z_nC = z.permute(0, 2, 3, 1).reshape(-1, z.shape[1])
        return self.nearest(z_nC).view(len(f_rest), patch_num * patch_num)
