"""How much of an image is there after each scale (paper, Fig. 3).

Letters as in :mod:`srdd.var.likelihood`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from srdd.var.likelihood import kept_maps
from srdd.var.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Snr:
    """How near each state of the chain is to the image, in dB and float64: [B, S].

    Column n - 1 belongs to x_n. A state equal to the image has an infinite ratio.
    """

    latent_db_BS: Tensor  # ||f||^2 / ||f - f_hat_n||^2, f the encoder's latent
    pixel_db_BS: Tensor  # ||x||^2 / ||x - decode(f_hat_n)||^2, x the image in [-1, 1]
    psnr_db_BS: Tensor  # the same error against the peak, 2 in [-1, 1]


@torch.no_grad()
def snr_per_scale(tokenizer: Tokenizer, images: Tensor) -> Snr:
    """The signal-to-noise ratio after each scale (paper, Fig. 3).

    Nothing forces it to grow: a scale's code is the nearest to the averaged residual, before
    bicubic and phi.

    Args:
        tokenizer: in eval mode.
        images: float [B, 3, R, R] in [-1, 1].

    Raises:
        UserError: the images have another size.
    """
    f = tokenizer.latent(images).float()
    maps = kept_maps(tokenizer.quantizer, tokenizer.quantizer.encode(f))[1:]
    pixels = torch.stack([tokenizer.decode_latent(f_hat) for f_hat in maps])
    error_BS = _energy(pixels.double() - images.double()).T
    peak = 4.0 * images[0].numel()
    return Snr(
        latent_db_BS=_db(_energy(f.double())[:, None], _energy(maps.double() - f.double()).T),
        pixel_db_BS=_db(_energy(images.double())[:, None], error_BS),
        psnr_db_BS=_db(error_BS.new_tensor(peak), error_BS),
    )


def _energy(x: Tensor) -> Tensor:
    """The sum of squares of the last three dimensions."""
    return x.square().sum(dim=(-3, -2, -1))


def _db(signal: Tensor, noise: Tensor) -> Tensor:
    return 10 * (signal / noise).log10()
