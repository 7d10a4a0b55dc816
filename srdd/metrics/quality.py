"""PSNR and SSIM of 8-bit images, each image's own: means over a batch are the caller's."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

_WINDOW, _SIGMA = 11, 1.5  # Wang et al. 2004
_C1, _C2 = 0.01**2, 0.03**2


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB: uint8 [B, 3, R, R] twice -> [B].

    Over all pixels and channels of an image; equal images give 100 dB.
    """
    error_B = ((a.double() - b.double()) / 255).square().flatten(1).mean(1)
    return -10 * error_B.clamp_min(1e-10).log10()


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity: uint8 [B, 3, R, R] twice -> [B], the mean over channels and windows.

    Gaussian windows of 11 pixels, sigma 1.5, that lie inside the image; variances divide by the
    weights' sum. An image smaller than a window has none: nan.
    """
    if a.shape[-1] < _WINDOW:
        return torch.full((len(a),), math.nan, dtype=torch.float64, device=a.device)
    axis = torch.arange(_WINDOW, dtype=torch.float64, device=a.device) - _WINDOW // 2
    weights = (-(axis**2) / (2 * _SIGMA**2)).exp()
    weights = weights / weights.sum()

    def blur(x: Tensor) -> Tensor:
        x = F.conv2d(x, weights.view(1, 1, 1, -1))
        return F.conv2d(x, weights.view(1, 1, -1, 1))

    x, y = ((image.double() / 255).flatten(0, 1)[:, None] for image in (a, b))
    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    cov = blur(x * y) - mean_x * mean_y
    value = (2 * mean_x * mean_y + _C1) * (2 * cov + _C2)
    value = value / ((mean_x**2 + mean_y**2 + _C1) * (var_x + var_y + _C2))
    return value.view(len(a), -1).mean(1)
