"""Code shards: every image's multi-scale codes, extracted once and trained on many times.

::

    <tokenizer run>/codes/<key>/manifest.json
    <tokenizer run>/codes/<key>/train-000000.safetensors   one for each image shard:
        codes   uint16 [n, L]; of a training split with V > 1 views [n, V, L]
        labels  int32 [n]
        keys    uint8 [n, w], the samples' keys in the image shards, padded with zeros

They may be elsewhere (:mod:`srdd_platform.data.code_places`). ``<key>`` is a hash of the data's
manifest, the tokenizer's weights, the scales where they were pruned, the augmentation, and damaged
samples that were left out, so codes never outlive any of them; both masks train on the same ones.
View v of a training image is its random crop (and flip) number v, of shards prepared with ``keep``;
held-out images have one, the centre. An extraction that was stopped goes on with the shards that
are missing.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import ray
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from srdd.checkpoint import save_tensors
from srdd.errors import UserError
from srdd.images import to_float
from srdd.var.config import TokenizerConfig
from srdd.var.pipeline import load_tokenizer
from srdd_platform.core.files import atomic_path, can_write, read_json, write_json
from srdd_platform.core.location import parse_location
from srdd_platform.core.runs import tokenizer_dir
from srdd_platform.data.ahead import read_ahead
from srdd_platform.data.code_places import codes_dir, view_augmentation
from srdd_platform.data.damage import Skipped
from srdd_platform.data.dataset import ShardDataset, stacked
from srdd_platform.data.manifest import Manifest, Shard, Split
from srdd_platform.data.options import ReadOptions
from srdd_platform.data.sources import VIEW_DRAWS
from srdd_platform.data.store import inspected, open_store

FORMAT = "srdd-codes-1"
BATCH = 64
MAX_VOCAB = 2**16
THREADS = {"cpu": 1, "cuda": 4}  # that read and decode for a task


@dataclass(frozen=True, kw_only=True, slots=True)
class Extraction:
    """What is encoded, by what, and how: all that a task on any machine needs."""

    data: str  # shard directory, or its URI
    tokenizer: str  # run, model or pipeline directory
    views: int = 1  # codes of each training image
    flip: bool = False  # half of the views
    skipped: Mapping[str, Skipped] = field(default_factory=dict)  # by split
    reading: ReadOptions = field(default_factory=ReadOptions)
    device: Literal["cpu", "cuda"] = "cpu"


def encode_shard(extraction: Extraction, split: str, name: str, out: Path) -> int:
    """Encode one image shard into one code shard; returns its number of images."""
    own, device = extraction, torch.device(extraction.device)
    model = load_tokenizer(tokenizer_dir(Path(own.tokenizer))).to(device)
    store = open_store(own.data, own.reading.cache, own.reading.cache_gb)
    dataset = ShardDataset(store, split, own.skipped.get(split, {}), shards=[name])
    augmentation, views = view_augmentation(store.manifest, own.views, own.flip), own.views
    if augmentation is None or split != "train":
        augmentation, views = None, 1

    def read(rows: range) -> Tensor:
        """Images of rows of all views: row r is view r % views of sample r // views."""
        indices = [row // views for row in rows]
        cuts = None
        if augmentation is not None:  # by the sample's number: not by what else is left out
            cuts = [augmentation.cut(r % views, int(dataset.numbers[r // views])) for r in rows]
        return stacked(dataset.samples(indices, cuts))

    total = len(dataset) * views
    parts = (range(first, min(first + BATCH, total)) for first in range(0, total, BATCH))
    with store.filling(dataset.whole_shards):
        codes = torch.cat([
            model.encode(to_float(images.to(device))).cpu()
            for images in read_ahead(parts, read, THREADS[own.device])
        ])  # fmt: skip
    keys = [dataset.key(i).encode() for i in range(len(dataset))]
    tensors = {
        "codes": codes.to(torch.uint16).view(len(keys), *([views] * (views > 1)), -1),
        "labels": torch.from_numpy(dataset.labels).to(torch.int32),
        "keys": torch.from_numpy(np.array([list(key) for key in keys], dtype=np.uint8)),
    }
    with atomic_path(out) as temporary:
        save_tensors(temporary, tensors)
    return len(keys)


def encode(
    data: str | Path,
    tokenizer: Path,
    *,
    views: int = 1,
    flip: bool = False,
    reading: ReadOptions | None = None,
    device: Literal["cpu", "cuda"] = "cpu",
    out: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Make the code shards of ``data`` if they are not there: a Ray task an image shard.

    Args:
        data: shard directory, or its URI.
        tokenizer: run, model or pipeline directory.
        views: codes of each training image.
        flip: whether half of the views are flipped, beside the crop.
        reading: how shards are read, and how much damage is left out.
        device: of the tasks: one CPU each, or one GPU.
        out: their directory, of :func:`codes_dir`; by default beside the tokenizer.
        progress: called with (shards done, shards in all).

    Returns:
        The directory of the code shards.

    Raises:
        UserError: data or tokenizer is missing or damaged, they do not fit, there is no GPU, or
            codes cannot be written there.
    """
    reading = reading or ReadOptions()
    store = open_store(data, reading.cache, reading.cache_gb)
    manifest = store.manifest
    skipped = inspected(store, reading.max_bad)
    directory = out or codes_dir(store, tokenizer, views=views, flip=flip, skipped=skipped)
    if (directory / "manifest.json").exists():
        return directory
    if not can_write(directory):
        raise UserError(f"codes cannot be written to {directory.parent}: give --codes DIR")
    config = load_tokenizer(tokenizer_dir(tokenizer)).config
    _check_fit(config, manifest, str(data))
    extraction = Extraction(
        data=str(parse_location(str(data), "--data")), tokenizer=str(tokenizer.resolve()),
        views=views, flip=flip, skipped=skipped, reading=reading.alone(), device=device,
    )  # fmt: skip
    _encode_shards(extraction, manifest, directory, progress)
    write_json(directory / "manifest.json", _manifest(extraction, manifest, config))
    return directory


def _check_fit(config: TokenizerConfig, manifest: Manifest, data: str) -> None:
    """Refuse a tokenizer for other images, or with more codes than a shard can hold."""
    if config.resolution != manifest.resolution:
        raise UserError(
            f"the tokenizer takes {config.resolution} px images, {data} holds "
            f"{manifest.resolution} px ones"
        )
    if config.vocab_size > MAX_VOCAB:
        raise UserError(f"codes are uint16: vocab_size {config.vocab_size} exceeds {MAX_VOCAB}")


def _manifest(
    extraction: Extraction, manifest: Manifest, config: TokenizerConfig
) -> dict[str, Any]:
    """What a directory of code shards says of itself."""
    views, skipped = extraction.views, extraction.skipped
    return {
        "format": FORMAT,
        "classes": list(manifest.classes),
        "length": config.schedule.length,
        "vocab_size": config.vocab_size,
        **({"views": views} if views > 1 else {}),
        "splits": {
            name: {
                "num": split.num - sum(skipped.get(name, {}).values()),
                "shards": [_codes_of(one.name) for one in _usable(split, skipped.get(name, {}))],
            }
            for name, split in manifest.splits.items()
        },
    }


def _usable(split: Split, skipped: Skipped) -> list[Shard]:
    """The shards of a split that are not lost as a whole."""
    return [shard for shard in split.shards if shard.name not in skipped]


def _codes_of(shard: str) -> str:
    """The name of the codes of an image shard."""
    return shard.removesuffix(".tar") + ".safetensors"


def _encode_shards(
    extraction: Extraction,
    manifest: Manifest,
    directory: Path,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Make the code shards that are not there: a Ray task each."""
    task = ray.remote(encode_shard).options(
        num_cpus=1, num_gpus=int(extraction.device == "cuda"), name="encode codes"
    )
    pending = [
        task.remote(extraction, split, shard.name, directory.resolve() / _codes_of(shard.name))
        for split, content in manifest.splits.items()
        for shard in _usable(content, extraction.skipped.get(split, {}))
        if not (directory / _codes_of(shard.name)).exists()
    ]
    for done, job in enumerate(pending, start=1):
        ray.get(job)
        if progress is not None:
            progress(done, len(pending))


def _load_shard(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError):
        raise UserError(
            f"{path} is missing or damaged: delete {path.parent}, and the codes are extracted again"
        ) from None


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
