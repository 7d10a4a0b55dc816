"""Thirty images of each digit and the digits preset with small models: trained in seconds."""

from dataclasses import replace
from typing import Any

import sklearn.datasets

from srdd.presets import Preset, digits

IMAGES = 30  # of each class
_load_digits = sklearn.datasets.load_digits


def few_digits() -> Any:
    """The first images of each class, in the place of ``sklearn.datasets.load_digits``."""
    bunch = _load_digits()
    rows = [row for c in range(10) for row in (bunch.target == c).nonzero()[0][:IMAGES]]
    bunch.images, bunch.target = bunch.images[rows], bunch.target[rows]
    return bunch


def tiny_preset() -> Preset:
    """8 px images, codes of 1x1, 2x2 and 4x4."""
    full = digits()
    codes = {"patch_nums": (1, 2, 4), "vocab_size": 16, "z_channels": 4}
    return replace(
        full,
        tokenizer=replace(full.tokenizer, resolution=8, ch=4, ch_mult=(1, 1), **codes),
        tokenizer_optim=replace(full.tokenizer_optim, steps=300),
        transformer=replace(full.transformer, depth=2, width=16, num_heads=2, **codes),
        transformer_optim=replace(full.transformer_optim, steps=100, lr=1e-2),
        classifier_optim=replace(full.classifier_optim, steps=100),
        checkpoint_every=80,
    )
