"""What parity compares with: VAR's own code, or the plain loop where there is no checkout of it."""

from typing import Protocol

import torch
from torch import Tensor

from benchmarks import official, plain_var
from benchmarks.official import Greedy, Official
from benchmarks.sizes import Size
from srdd import Pipeline
from srdd.var.masks import Mask


class Oracle(Protocol):
    """The same functions as ours, by other code on the same weights, in float32."""

    def latent(self, images: Tensor) -> Tensor:
        """Images [B, 3, R, R] in [-1, 1] to latents before quantisation [B, C, N, N]."""
        ...

    def codes(self, images: Tensor) -> Tensor:
        """Images to codes: int64 [B, L]."""
        ...

    def fed(self, codes_BL: Tensor) -> Tensor:
        """What the transformer is fed below the start token: [B, L - 1, C]."""
        ...

    def reconstruct(self, codes_BL: Tensor) -> Tensor:
        """Codes to images [B, 3, R, R] in [-1, 1]."""
        ...

    def logits(self, mask: Mask, labels_B: Tensor, codes_BL: Tensor) -> Tensor:
        """Teacher-forced logits [B, L, V]."""
        ...

    def greedy(self, mask: Mask, labels_B: Tensor, cfg: float) -> Greedy:
        """The likeliest code everywhere, and its images in [0, 1]."""
        ...


class OfficialOracle(Oracle):
    """VAR from a checkout; ``markov`` is its code with a block-diagonal bias and no cache."""

    def __init__(self, theirs: Official, size: Size) -> None:
        self.theirs, self.size = theirs, size

    def latent(self, images: Tensor) -> Tensor:
        """Encoder and the convolution after it."""
        latent: Tensor = self.theirs.vae.quant_conv(self.theirs.vae.encoder(images))
        return latent

    def codes(self, images: Tensor) -> Tensor:
        """The nearest codes, scale by scale."""
        return torch.cat(self.theirs.vae.img_to_idxBl(images), 1)

    def fed(self, codes_BL: Tensor) -> Tensor:
        """The map built so far, down to each scale."""
        codes = official.split(self.size, codes_BL)
        fed: Tensor = self.theirs.vae.quantize.idxBl_to_var_input(codes)
        return fed

    def reconstruct(self, codes_BL: Tensor) -> Tensor:
        """The last scale's images."""
        codes = official.split(self.size, codes_BL)
        images: Tensor = self.theirs.vae.idxBl_to_img(codes, same_shape=True, last_one=True)
        return images

    def logits(self, mask: Mask, labels_B: Tensor, codes_BL: Tensor) -> Tensor:
        """All scales at once, under a dense bias."""
        with official.masked(self.theirs, self.size, mask):
            logits: Tensor = self.theirs.var(labels_B, self.fed(codes_BL))
        return logits

    def greedy(self, mask: Mask, labels_B: Tensor, cfg: float) -> Greedy:
        """The whole sampling loop."""
        with official.masked(self.theirs, self.size, mask):
            return official.greedy(self.theirs, labels_B, cfg)


class PlainOracle(Oracle):
    """The plain loop on the weights of our pipelines."""

    def __init__(self, pipelines: dict[Mask, Pipeline]) -> None:
        self.models = {mask: plain_var.plain(pipeline) for mask, pipeline in pipelines.items()}
        self.any = self.models["markov"]  # the tokenizer is that of every mask

    def latent(self, images: Tensor) -> Tensor:
        """Encoder and the convolution after it."""
        return plain_var.latent(self.any, images)

    def codes(self, images: Tensor) -> Tensor:
        """The nearest codes, scale by scale."""
        return plain_var.encode(self.any, images)

    def fed(self, codes_BL: Tensor) -> Tensor:
        """The map built so far, down to each scale."""
        return plain_var.teacher_input(self.any, codes_BL)

    def reconstruct(self, codes_BL: Tensor) -> Tensor:
        """The last scale's images."""
        return plain_var.reconstruct(self.any, codes_BL)

    def logits(self, mask: Mask, labels_B: Tensor, codes_BL: Tensor) -> Tensor:
        """All scales at once, under a dense bias."""
        model = self.models[mask]
        return plain_var.teacher_logits(model, labels_B, self.fed(codes_BL), mask)

    def greedy(self, mask: Mask, labels_B: Tensor, cfg: float) -> Greedy:
        """The whole sampling loop."""
        return plain_var.draw(self.models[mask], labels_B, cfg, 1, 0.0, leads=True).greedy
