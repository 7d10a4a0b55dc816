import math

import pytest
import torch
from torch import Tensor

from srdd.metrics.quality import psnr, ssim


def _pair(side: int = 16) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    a = torch.randint(256, (3, 3, side, side), generator=draw, dtype=torch.uint8)
    noise = torch.randint(-60, 60, a.shape, generator=draw)
    return a, (a.long() + noise).clamp(0, 255).to(torch.uint8)


def test_psnr_is_each_images_own() -> None:
    a = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    b = a.clone()
    b[0] = 51  # a fifth of the range
    b[1, 0, 0, 0] = 255
    expected = [20 * math.log10(5), 10 * math.log10(48)]
    assert psnr(a, b).tolist() == pytest.approx(expected)
    assert psnr(a, a).tolist() == [100, 100]


def test_ssim_by_windows() -> None:
    """Window by window, from the definition with weighted moments."""
    a, b = _pair()
    line = torch.tensor([math.exp(-((i - 5) ** 2) / 4.5) for i in range(11)], dtype=torch.float64)
    weight = line[:, None] * line / line.sum() ** 2
    expected = []
    for x, y in zip(a.double() / 255, b.double() / 255, strict=True):
        values = []
        for channel in range(3):
            for top in range(6):
                for left in range(6):
                    p = x[channel, top : top + 11, left : left + 11]
                    q = y[channel, top : top + 11, left : left + 11]
                    mp, mq = (weight * p).sum(), (weight * q).sum()
                    vp, vq = (weight * (p - mp) ** 2).sum(), (weight * (q - mq) ** 2).sum()
                    cov = (weight * (p - mp) * (q - mq)).sum()
                    top_part = (2 * mp * mq + 1e-4) * (2 * cov + 9e-4)
                    values.append(top_part / ((mp**2 + mq**2 + 1e-4) * (vp + vq + 9e-4)))
        expected.append(float(torch.stack(values).mean()))
    assert ssim(a, b).tolist() == pytest.approx(expected)
    assert ssim(a, a).tolist() == pytest.approx([1, 1, 1])


def test_images_smaller_than_a_window_have_no_ssim() -> None:
    assert ssim(*_pair(8)).isnan().all()
