"""What the previews of trainings show: samples of each class, or images above reconstructions."""

from typing import Any

import torch
from torch import Tensor

from srdd.generator import Generator, sample
from srdd.images import to_uint8
from srdd.rng import image_seeds

COLUMNS, LINES = 10, 2


def grid_labels(num_classes: int) -> list[int]:
    """The classes of a grid's samples: they take turns, or are spread evenly over many."""
    num = COLUMNS * LINES
    if num_classes > num:
        return [i * num_classes // num for i in range(num)]
    return [i % num_classes for i in range(num)]


def class_samples(generator: Generator[Any], seed: int) -> Tensor:
    """Class-balanced samples, from the same seeds whenever it is called: uint8 [n, 3, R, R]."""
    labels = torch.tensor(grid_labels(len(generator.card.class_names)))
    seeds = image_seeds(seed, 0, len(labels))
    return to_uint8(sample(generator, labels, generator.sampler, seeds).images)


def above_reconstructions(originals: Tensor, decoded: Tensor) -> Tensor:
    """Up to ``COLUMNS`` images in a row above their reconstructions; missing ones are grey."""
    blank = originals.new_full((COLUMNS - len(originals), *originals.shape[1:]), 128)
    return torch.cat((originals, blank, decoded))
