"""Code shards: every image's multi-scale codes, extracted once and trained on many times.

::

    <tokenizer run>/codes/<key>/manifest.json
    <tokenizer run>/codes/<key>/train-000000.safetensors   one for each image shard:
        codes   uint16 [n, L]; of a training split with V > 1 views [n, V, L]
        labels  int32 [n]
        keys    uint8 [n, w], the samples' keys in the image shards, padded with zeros

``<key>`` is a hash of the data's manifest, the tokenizer's weights, the scales where they were
pruned, and the augmentation, so codes never outlive any of them; both masks train on the same
ones. View v of a training image is its random crop (and flip) number v, of shards prepared with
``keep``; held-out images have one, the centre. An extraction that was stopped goes on with the
shards that are missing.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from srdd.checkpoint import read_config, save_tensors
from srdd.config import TokenizerConfig
from srdd.errors import UserError
from srdd.pipeline import is_pipeline, load_tokenizer
from srdd.train.tokenizer import to_float
from srdd_platform.data import Augmentation, Manifest, ShardDataset, stream
from srdd_platform.data.sources import VIEW_DRAWS
from srdd_platform.files import atomic_path, digest, read_json, sha256_file, write_json
from srdd_platform.runs import tokenizer_dir

FORMAT = "srdd-codes-1"
BATCH = 64
MAX_VOCAB = 2**16
MAX_VIEWS = 1024


def codes_dir(data: Path, tokenizer: Path, *, views: int = 1, flip: bool = False) -> Path:
    """Where the codes of ``data`` under ``tokenizer`` (a run, model or pipeline directory) lie.

    Raises:
        UserError: there is no finished tokenizer, or the views of an image could not differ.
    """
    weights = tokenizer_dir(tokenizer) / "model.safetensors"
    if not weights.exists():
        raise UserError(f"{tokenizer} holds no finished tokenizer: train it first")
    manifest = Manifest.load(data)
    augmentation = view_augmentation(manifest, views, flip)
    about = None if augmentation is None else {**asdict(augmentation), "views": views}
    config = read_config(weights.parent, "tokenizer", TokenizerConfig)
    key = digest(
        {
            "data": manifest.fingerprint,
            "tokenizer": sha256_file(weights),
            "augmentation": about,
            # A pruned tokenizer has its parent's weights and other codes.
            **({"scales": config.patch_nums, "parent": config.parent} if config.parent else {}),
        }
    )
    model = weights.parent.parent if is_pipeline(weights.parent.parent) else weights.parent
    run = model.parent if model.name == "model" else model  # beside the model
    return run / "codes" / key


def view_augmentation(manifest: Manifest, views: int, flip: bool) -> Augmentation | None:
    """What sets the views of a training image apart; None where there is one.

    Raises:
        UserError: they could not differ, or there would be none.
    """
    if not 1 <= views <= MAX_VIEWS:
        raise UserError(f"views counts from 1 to {MAX_VIEWS}, got {views}")
    if views == 1:
        if flip:
            raise UserError("one view of an image is its centre as it is: raise --views to flip")
        return None
    augmentation = Augmentation(crop=not flip or manifest.settings.keep > 1, flip=flip)
    augmentation.check(manifest)
    return augmentation


def encode_shard(
    data: Path, tokenizer: Path, split: str, name: str, out: Path, *, views: int = 1,
    flip: bool = False,
) -> int:  # fmt: skip
    """Encode one image shard into one code shard; returns its number of images."""
    model = load_tokenizer(tokenizer_dir(tokenizer))
    augmentation = view_augmentation(Manifest.load(data), views, flip)
    keys: list[str] = []
    labels: list[int] = []
    codes: list[Tensor] = []
    batch: list[Tensor] = []

    def flush() -> None:
        if batch:
            codes.append(model.encode(to_float(torch.stack(batch))))
            batch.clear()

    if augmentation is None or split != "train":
        augmentation, samples = None, stream(data, split, [name])
    else:
        samples = _views(data, split, name, augmentation, views)
    for number, (key, image, label) in enumerate(samples):
        if augmentation is None or number % views == 0:
            keys.append(key)
            labels.append(label)
        batch.append(image)
        if len(batch) == BATCH:
            flush()
    flush()
    width = max(len(key) for key in keys)
    padded = np.array([list(key.encode().ljust(width, b"\0")) for key in keys], dtype=np.uint8)
    all_codes = torch.cat(codes).to(torch.uint16)
    tensors = {
        "codes": all_codes if augmentation is None else all_codes.view(len(keys), views, -1),
        "labels": torch.tensor(labels, dtype=torch.int32),
        "keys": torch.from_numpy(padded),
    }
    with atomic_path(out) as temporary:
        save_tensors(temporary, tensors)
    return len(keys)


def _views(
    data: Path, split: str, name: str, augmentation: Augmentation, views: int
) -> Iterator[tuple[str, Tensor, int]]:
    """Yield (key, image, label) of a shard's samples, each sample's views in turn."""
    dataset = ShardDataset(data, split)
    shards = dataset.manifest.splits[split].shards
    place = [shard.name for shard in shards].index(name)
    first = sum(shard.num for shard in shards[:place])
    for index in range(first, first + shards[place].num):
        for view in range(views):
            sample = dataset.sample(index, augmentation.cut(view, index))
            yield str(dataset.keys[index]), sample["image"], sample["label"]


def encode(data: Path, tokenizer: Path, *, views: int = 1, flip: bool = False) -> Path:
    """Make the code shards of ``data`` if they are not there: a Ray task an image shard.

    Args:
        data: shard directory.
        tokenizer: run, model or pipeline directory.
        views: codes of each training image.
        flip: whether half of the views are flipped, beside the crop.

    Returns:
        The directory of the code shards.

    Raises:
        UserError: data or tokenizer is missing, or they do not fit.
    """
    directory = codes_dir(data, tokenizer, views=views, flip=flip)
    if (directory / "manifest.json").exists():
        return directory
    manifest = Manifest.load(data)
    config = load_tokenizer(tokenizer_dir(tokenizer)).config
    if config.resolution != manifest.resolution:
        raise UserError(
            f"the tokenizer takes {config.resolution} px images, {data} holds "
            f"{manifest.resolution} px ones"
        )
    if config.vocab_size > MAX_VOCAB:
        raise UserError(f"codes are uint16: vocab_size {config.vocab_size} exceeds {MAX_VOCAB}")
    task = ray.remote(encode_shard).options(num_cpus=1, name="encode codes")
    splits: dict[str, Any] = {}
    pending = {}
    for split, content in manifest.splits.items():
        splits[split] = {"num": content.num, "shards": []}
        for shard in content.shards:
            name = shard.name.removesuffix(".tar") + ".safetensors"
            splits[split]["shards"].append(name)
            if not (directory / name).exists():
                target = directory / name
                job = task.remote(
                    data, tokenizer, split, shard.name, target, views=views, flip=flip
                )
                pending[job] = shard
    for job, shard in pending.items():
        if ray.get(job) != shard.num:
            raise UserError(f"{shard.name} holds fewer samples than its manifest says")
    write_json(
        directory / "manifest.json",
        {
            "format": FORMAT,
            "classes": list(manifest.classes),
            "length": config.schedule.length,
            "vocab_size": config.vocab_size,
            **({"views": views} if views > 1 else {}),
            "splits": splits,
        },
    )
    return directory


def _load_shard(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} is missing or damaged ({error}): delete its directory") from None


def load_codes(directory: Path, split: str) -> tuple[Tensor, Tensor]:
    """Codes uint16 [n, L] and labels int64 [n] of a split.

    Raises:
        UserError: the directory holds no codes, fewer than its manifest says, or several views.
    """
    codes, labels = load_views(directory, split)
    if codes.shape[1] != 1:
        raise UserError(f"{directory} holds {codes.shape[1]} views of each image, one is asked for")
    return codes[:, 0], labels


def load_views(directory: Path, split: str) -> tuple[Tensor, Tensor]:
    """Codes uint16 [n, V, L] and labels int64 [n] of a split, all views of each image.

    Raises:
        UserError: the directory holds no codes, or fewer than its manifest says.
    """
    manifest = read_json(directory / "manifest.json")
    if manifest.get("format") != FORMAT or split not in manifest["splits"]:
        raise UserError(f"{directory} holds no {split} codes: run `srdd data encode`")
    content = manifest["splits"][split]
    shards = [_load_shard(directory / name) for name in content["shards"]]
    codes = torch.cat([shard["codes"] for shard in shards])
    if len(codes) != content["num"]:
        raise UserError(f"{directory} holds {len(codes)} of {content['num']} codes: delete it")
    labels = torch.cat([shard["labels"] for shard in shards]).long()
    return codes if codes.dim() == 3 else codes[:, None], labels


def choose_views(seed: int, epoch: int, samples: Sequence[int], views: int) -> Tensor:
    """The view of each sample that an epoch trains on: int64 [n], by (seed, epoch, sample) alone.

    Each image shows all its views in turn, from one that its own draw sets.
    """
    key = np.array([seed, VIEW_DRAWS << 32], dtype=np.uint64)
    first = [
        int(np.random.Philox(key=key, counter=np.array([0, i, 0, 0], np.uint64)).random_raw())
        for i in samples
    ]
    return torch.tensor([(draw + epoch) % views for draw in first], dtype=torch.int64)
