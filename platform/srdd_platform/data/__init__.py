"""Images into WebDataset shards, and out of them into training, extraction and evaluation."""

from srdd_platform.data.augment import Augmentation
from srdd_platform.data.damage import Damage, usable
from srdd_platform.data.dataset import (
    GlobalBatchSampler,
    Sample,
    ShardDataset,
    global_indices,
    load_arrays,
    load_images,
    stacked,
    steps_per_epoch,
)
from srdd_platform.data.manifest import Manifest
from srdd_platform.data.recipes import RECIPES, Recipe
from srdd_platform.data.shards import prepare
from srdd_platform.data.store import Store, open_store

__all__ = [
    "RECIPES",
    "Augmentation",
    "Damage",
    "GlobalBatchSampler",
    "Manifest",
    "Recipe",
    "Sample",
    "ShardDataset",
    "Store",
    "global_indices",
    "load_arrays",
    "load_images",
    "open_store",
    "prepare",
    "stacked",
    "steps_per_epoch",
    "usable",
]
