"""Images into WebDataset shards, and out of them into training, extraction and evaluation."""

from srdd_platform.data.augment import Augmentation
from srdd_platform.data.dataset import (
    GlobalBatchSampler,
    Sample,
    ShardDataset,
    global_indices,
    load_arrays,
    steps_per_epoch,
    stream,
)
from srdd_platform.data.manifest import Manifest
from srdd_platform.data.recipes import RECIPES, Recipe
from srdd_platform.data.shards import prepare

__all__ = [
    "RECIPES",
    "Augmentation",
    "GlobalBatchSampler",
    "Manifest",
    "Recipe",
    "Sample",
    "ShardDataset",
    "global_indices",
    "load_arrays",
    "prepare",
    "steps_per_epoch",
    "stream",
]
