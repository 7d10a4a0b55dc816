"""Residual convolutions that smooth each scale's upsampled codes (VAR's phi)."""

import numpy as np
import torch
from torch import Tensor, nn

from srdd.var.scales import ScaleSchedule


def phi_of_scale(patch_nums: tuple[int, ...], num_phi: int) -> dict[int, int]:
    """Which of K convolutions each scale of an unpruned schedule takes, by its side: VAR's rule."""
    edge = 1 / num_phi / (3 if num_phi == 4 else 2)  # VAR's ticks, which its weights assume
    ticks_K = np.linspace(edge, 1 - edge, num_phi)
    places_S = np.arange(len(patch_nums)) / max(1, len(patch_nums) - 1)
    nearest_S = np.abs(places_S[:, None] - ticks_K).argmin(axis=1)  # [S, K] -> [S]
    return dict(zip(patch_nums, nearest_S.tolist(), strict=True))


class PhiBank(nn.Module):
    """K residual 3x3 convolutions shared by the S scales of a schedule.

    A scale keeps the convolution it had in the parent schedule, so pruning scales (paper,
    Sec. 3.3) leaves the survivors wired as they were trained.

    Shapes:
        h: [B, C, N, N], the codes of one scale, embedded and upsampled to the finest grid.
        returns: [B, C, N, N], the increment to f_hat.
    """

    def __init__(self, parent: ScaleSchedule, channels: int, num_phi: int = 4) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, padding=1) for _ in range(num_phi)
        )
        self.conv_of = phi_of_scale(parent.patch_nums, num_phi)
        for k, conv in enumerate(self.convs):  # few scales may leave some unused
            conv.requires_grad_(k in self.conv_of.values())

    def forward(self, h: Tensor, patch_num: int) -> Tensor:
        """Blend the map half and half with its convolution."""
        conv = self.convs[self.conv_of[patch_num]]
        if len(h) == 1 and h.is_cpu and not torch.is_grad_enabled():
            # One map alone takes another CPU kernel, which rounds otherwise than a batch's.
            smooth: Tensor = conv(torch.cat((h, h)))[:1]
        else:
            smooth = conv(h)
        return (h + smooth) * 0.5  # [B, C, N, N]
