"""Code shards: every image's multi-scale codes, extracted once and trained on many times.

::

    <tokenizer run>/codes/<key>/manifest.json
    <tokenizer run>/codes/<key>/train-000000.safetensors   one for each image shard:
        codes   uint16 [n, L]
        labels  int32 [n]
        keys    uint8 [n, w], the samples' keys in the image shards, padded with zeros

``<key>`` is a hash of the data's manifest and the tokenizer's weights, so codes never outlive
either; both masks train on the same ones.
"""

from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from srdd.checkpoint import save_tensors
from srdd.errors import UserError
from srdd.pipeline import load_tokenizer
from srdd.train.tokenizer import to_float
from srdd_platform.data import Manifest, stream
from srdd_platform.files import atomic_path, digest, read_json, sha256_file, write_json
from srdd_platform.runs import model_dir

FORMAT = "srdd-codes-1"
BATCH = 64
MAX_VOCAB = 2**16


def codes_dir(data: Path, tokenizer: Path) -> Path:
    """Where the codes of ``data`` under ``tokenizer`` (a run or model directory) lie."""
    weights = model_dir(tokenizer) / "model.safetensors"
    if not weights.exists():
        raise UserError(f"{tokenizer} holds no finished tokenizer: train it first")
    fingerprint = Manifest.load(data).fingerprint
    key = digest({"data": fingerprint, "tokenizer": sha256_file(weights), "augmentation": None})
    run = tokenizer.parent if tokenizer.name == "model" else tokenizer  # beside the model
    return run / "codes" / key


def encode_shard(data: Path, tokenizer: Path, split: str, name: str, out: Path) -> int:
    """Encode one image shard into one code shard; returns its number of images."""
    model = load_tokenizer(model_dir(tokenizer))
    keys: list[str] = []
    labels: list[int] = []
    codes: list[Tensor] = []
    batch: list[Tensor] = []

    def flush() -> None:
        if batch:
            codes.append(model.encode(to_float(torch.stack(batch))))
            batch.clear()

    for key, image, label in stream(data, split, [name]):
        keys.append(key)
        labels.append(label)
        batch.append(image)
        if len(batch) == BATCH:
            flush()
    flush()
    width = max(len(key) for key in keys)
    padded = np.array([list(key.encode().ljust(width, b"\0")) for key in keys], dtype=np.uint8)
    tensors = {
        "codes": torch.cat(codes).to(torch.uint16),
        "labels": torch.tensor(labels, dtype=torch.int32),
        "keys": torch.from_numpy(padded),
    }
    with atomic_path(out) as temporary:
        save_tensors(temporary, tensors)
    return len(keys)


def encode(data: Path, tokenizer: Path) -> Path:
    """Make the code shards of ``data`` if they are not there: a Ray task an image shard.

    Returns:
        The directory of the code shards.

    Raises:
        UserError: data or tokenizer is missing, or they do not fit.
    """
    directory = codes_dir(data, tokenizer)
    if (directory / "manifest.json").exists():
        return directory
    manifest = Manifest.load(data)
    config = load_tokenizer(model_dir(tokenizer)).config
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
                job = task.remote(data, tokenizer, split, shard.name, directory / name)
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
    return codes, torch.cat([shard["labels"] for shard in shards]).long()
