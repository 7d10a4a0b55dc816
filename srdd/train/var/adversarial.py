"""The adversarial loss of VQGAN (Esser et al. 2021): PatchGAN, hinge, adaptive weight, DiffAug.

The discriminator is no part of the trained module: it has its own optimizer and is updated after
the tokenizer, from the images and reconstructions of the same step. Gradients are summed over
workers, and nothing in it mixes images, so a run does not depend on their number.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srdd.errors import UserError
from srdd.rng import Stream, uniform
from srdd.train.config import OptimConfig, TokenizerLossConfig
from srdd.train.optim import lr_at
from srdd.train.workers import Reduce

_BETAS = (0.5, 0.9)  # VQGAN's and vaex's
_LEAST, _MOST = 0.015, 1e4  # of the ratio of gradients (vaex's clamp, the upper one VQGAN's)
_TRANSLATION, _CUTOUT = 0.125, 0.2  # shares of the side


class Discriminator(nn.Module):
    """PatchGAN: a logit for each patch, [B, 3, R, R] -> [B, 1, h, w].

    As in pix2pix, with GroupNorm for BatchNorm: an image's logits do not depend on its neighbours.
    """

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        blocks: list[nn.Module] = [nn.Conv2d(3, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        previous = width
        for i in range(1, layers + 1):
            channels, stride = width * min(2**i, 8), 2 if i < layers else 1
            groups = 32 if channels % 32 == 0 else math.gcd(channels, 8)
            blocks += [
                nn.Conv2d(previous, channels, 4, stride, 1, bias=False),
                nn.GroupNorm(groups, channels),
                nn.LeakyReLU(0.2),
            ]
            previous = channels
        self.main = nn.Sequential(*blocks, nn.Conv2d(previous, 1, 4, 1, 1))
        for module in self.main:
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, images: Tensor) -> Tensor:
        """Judge."""
        out: Tensor = self.main(images)
        return out


def hinge_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """What the discriminator minimises: the mean over all logits, halved as in VQGAN."""
    loss: Tensor = 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())
    return loss


def gradient_ratio(reconstruction: Tensor, adversarial: Tensor) -> Tensor:
    """The adaptive weight: the norm of the first gradient over that of the second, clamped."""
    ratio: Tensor = reconstruction.norm() / (adversarial.norm() + 1e-4)
    return ratio.clamp(_LEAST, _MOST)


def diff_augment(
    images: Tensor, index_b: Tensor, seed: int, step: int, probability: float = 1.0
) -> Tensor:
    """DiffAug (Zhao et al. 2020): colour, translation and cutout, each with ``probability``.

    Args:
        images: [B, 3, R, R]; the gradient flows through.
        index_b: the samples' numbers; with ``seed`` and ``step`` they decide what is done, so a
            reconstruction is changed as its original is.
        seed: the run's.
        step: the update's number.
        probability: of each of the three changes, for each image.
    """
    batch, _, side, _ = images.shape
    which = torch.arange(10, device=index_b.device)
    draws_B10 = uniform(index_b[:, None], which, seed, step, Stream.AUGMENTATION)
    colour_B, move_B, cut_B = (draws_B10[:, :3] < probability).unbind(1)
    axis = torch.arange(side, device=images.device)

    def factor(i: int, centre: float, span: float) -> Tensor:
        drawn = torch.where(colour_B, (draws_B10[:, i] - 0.5) * span, 0.0)
        return (centre + drawn).to(images.dtype)[:, None, None, None]

    x = images + factor(3, 0.0, 1.0)  # brightness, by up to a half
    grey = x.mean(1, keepdim=True)
    x = (x - grey) * factor(4, 1.0, 2.0) + grey  # saturation, 0 to 2 times
    mean = x.mean((1, 2, 3), keepdim=True)
    x = (x - mean) * factor(5, 1.0, 1.0) + mean  # contrast, 0.5 to 1.5 times

    reach = round(side * _TRANSLATION)
    shift_B2 = (draws_B10[:, 6:8] * (2 * reach + 1)).long() - reach
    shift_B2 = torch.where(move_B[:, None], shift_B2, 0)
    rows_BR, cols_BR = ((axis + shift + 1).clamp(0, side + 1) for shift in shift_B2.T[:, :, None])
    image_B = torch.arange(batch, device=images.device)[:, None, None]
    padded = F.pad(x, (1, 1, 1, 1)).permute(0, 2, 3, 1)
    x = padded[image_B, rows_BR[:, :, None], cols_BR[:, None, :]].permute(0, 3, 1, 2)

    hole = round(side * _CUTOUT)
    begin_B2 = (draws_B10[:, 8:10] * (side + 1 - hole % 2)).long() - hole // 2
    inside_B2R = (axis >= begin_B2[:, :, None]) & (axis < begin_B2[:, :, None] + hole)
    holes = inside_B2R[:, 0, :, None] & inside_B2R[:, 1, None, :] & cut_B[:, None, None]
    return x * (~holes[:, None]).to(x.dtype)


def patch_layers(loss: TokenizerLossConfig, resolution: int) -> int:
    """The discriminator's levels for images of a size: what is left of a side must be 3 or more.

    Raises:
        UserError: the images are too small for it; the field is named.
    """
    most = int(math.log2(max(resolution, 3) / 3))
    if loss.gan_layers > most or most < 1:
        raise UserError(
            f"gan_layers must be at most {most} for {resolution} px images, got "
            f"{loss.gan_layers}: the side halved so often must be at least 3"
        )
    return loss.gan_layers or min(3, most)


class Adversary:
    """The discriminator with its optimizer, and the weight of its loss.

    The weight of a step is the ratio of gradients that VQGAN takes, at the decoder's last
    convolution, of the step before: then it is that of the whole global batch, and the same for
    all workers and all parts of a batch.
    """

    def __init__(self, loss: TokenizerLossConfig, optim: OptimConfig, resolution: int) -> None:
        layers = patch_layers(loss, resolution)
        self.loss = loss
        self.optim = optim
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(optim.seed ^ Stream.DISCRIMINATOR)
            self.discriminator = Discriminator(loss.gan_width, layers)
        self.discriminator.requires_grad_(False)
        self.optimizer = torch.optim.AdamW(
            self.discriminator.parameters(), lr=loss.gan_lr, betas=_BETAS, weight_decay=0.0
        )
        self.ratio = 0.0  # none before the first gradients
        self.logged = {"gan_d_loss": 0.0, "gan_real": 0.0, "gan_fake": 0.0}
        self.begin()

    def begin(self) -> None:
        """Before the first part of a step's batch."""
        self._parts: list[tuple[Tensor, Tensor, Tensor, float]] = []
        self._gradients: tuple[Tensor, Tensor] | None = None

    def to(self, device: torch.device) -> None:
        """Move to where the images are."""
        self.discriminator.to(device)

    def active(self, step: int) -> bool:
        """Whether the discriminator has begun."""
        return step >= round(self.loss.gan_start * self.optim.steps)

    def weight(self, step: int) -> float:
        """The weight of the adversarial loss at a step."""
        begin = round(self.loss.gan_start * self.optim.steps)
        length = round(self.loss.gan_warmup * self.optim.steps)
        ramp = min(1.0, max(0.0, (step - begin + 1) / (length + 1)))
        return self.loss.gan * ramp * self.ratio

    def generator_loss(self, reconstruction: Tensor, index_b: Tensor, step: int) -> Tensor:
        """What the tokenizer minimises: minus the logits' mean."""
        with torch.autocast(reconstruction.device.type, enabled=False):
            seed, probability = self.optim.seed, self.loss.gan_augment
            seen = diff_augment(reconstruction.float(), index_b, seed, step, probability)
            logits: Tensor = self.discriminator(seen)
        return -logits.mean()

    def observe(
        self,
        images: Tensor,
        reconstruction: Tensor,
        index_b: Tensor,
        share: float,
        losses: tuple[Tensor, Tensor],
        last_layer: Tensor,
    ) -> None:
        """Keep what :meth:`update` needs of one part of a batch.

        Args:
            images: [b, 3, R, R] in [-1, 1].
            reconstruction: the same images out of the tokenizer.
            index_b: the samples' numbers.
            share: of the part in the global batch.
            losses: of reconstruction, and :meth:`generator_loss`.
            last_layer: the weight at which their gradients are compared.
        """
        first, second = (
            torch.autograd.grad(loss, last_layer, retain_graph=True)[0] * share for loss in losses
        )
        if self._gradients is not None:
            first, second = first + self._gradients[0], second + self._gradients[1]
        self._gradients = (first, second)
        self._parts.append((images.detach(), reconstruction.detach().float(), index_b, share))

    def update(self, step: int, reduce: Reduce) -> None:
        """One step of the discriminator, and the next step's weight; the same on all workers.

        Gradients that are not finite are left out, as the loop leaves out the tokenizer's.
        """
        if self._gradients is None:
            return
        weights = list(self.discriminator.parameters())
        total = [torch.zeros_like(weight) for weight in weights]
        logged = weights[0].new_zeros(3)
        self.discriminator.requires_grad_(True)
        for images, fakes, index_b, share in self._parts:
            both = [
                self.discriminator(
                    diff_augment(x, index_b, self.optim.seed, step, self.loss.gan_augment)
                )
                for x in (images, fakes)
            ]
            loss = hinge_discriminator(*both)
            for so_far, own in zip(total, torch.autograd.grad(loss * share, weights), strict=True):
                so_far += own
            logged += torch.stack([x.detach() for x in (loss, both[0].mean(), both[1].mean())]) * (
                share
            )
        self.discriminator.requires_grad_(False)
        parts = [*total, *self._gradients, logged]
        summed = reduce.sum(torch.cat([part.flatten().float() for part in parts]))
        self.begin()
        if not torch.isfinite(summed).all():
            return
        *gradients, first, second, logged = summed.split([part.numel() for part in parts])
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = gradient.view_as(weight)
        for group in self.optimizer.param_groups:
            group["lr"] = self.loss.gan_lr * lr_at(self.optim, step) / self.optim.peak_lr
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ratio = float(gradient_ratio(first, second))
        self.logged = dict(zip(self.logged, logged.tolist(), strict=True))

    def state_dict(self) -> dict[str, Any]:
        """All that resuming needs; the same on every worker."""
        return {
            "discriminator": self.discriminator.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ratio": self.ratio,
            "logged": dict(self.logged),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Undo :meth:`state_dict`."""
        self.discriminator.load_state_dict(state["discriminator"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.ratio = float(state["ratio"])
        self.logged = dict(state["logged"])
