"""Where the codes of a data set under a tokenizer are.

::

    <tokenizer run>/codes/<key>   beside the tokenizer, so that all trainings find them
    DIR/<key>                     with ``--codes DIR``
    <run>/codes/<key>             of a training that finds none, where the tokenizer's folder
                                  cannot be written

``<key>`` is explained in :mod:`srdd_platform.data.codes`.
"""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from srdd.checkpoint import read_config
from srdd.errors import UserError
from srdd.load import is_pipeline
from srdd.var.config import TokenizerConfig
from srdd_platform.core.files import can_write, digest, read_json, sha256_file
from srdd_platform.core.runs import CONFIG, tokenizer_dir
from srdd_platform.data.augment import Augmentation
from srdd_platform.data.damage import Skipped
from srdd_platform.data.manifest import Manifest
from srdd_platform.data.options import DataOptions
from srdd_platform.data.store import Store

MAX_VIEWS = 1024


def codes_dir(
    data: Store | Path,
    tokenizer: Path,
    *,
    views: int = 1,
    flip: bool = False,
    skipped: Mapping[str, Skipped] | None = None,
    place: Path | None = None,
    run: Path | None = None,
) -> Path:
    """Where the codes of ``data`` under ``tokenizer`` are, or go where there are none.

    Args:
        data: the shards, or their directory.
        tokenizer: run, model or pipeline directory.
        views: codes of each training image.
        flip: whether half of the views are flipped.
        skipped: damaged samples of each split that are left out.
        place: folder for codes, instead of one beside the tokenizer.
        run: run directory that trains on them: what it used before is found again, and it takes
            them where the tokenizer's folder cannot be written.

    Raises:
        UserError: there is no finished tokenizer, or the views of an image could not differ.
    """
    weights = tokenizer_dir(tokenizer) / "model.safetensors"
    if not weights.exists():
        raise UserError(f"{tokenizer} holds no finished tokenizer: train it first")
    manifest = Manifest.load(data) if isinstance(data, Path) else data.manifest
    key = _key(manifest, weights, views, flip, skipped)
    model = weights.parent.parent if is_pipeline(weights.parent.parent) else weights.parent
    beside = (model.parent if model.name == "model" else model) / "codes" / key
    if place is not None:
        return place / key
    return beside if run is None else _for_run(run, beside)


def _key(
    manifest: Manifest, weights: Path, views: int, flip: bool, skipped: Mapping[str, Skipped] | None
) -> str:
    """Names all that decides the codes."""
    augmentation = view_augmentation(manifest, views, flip)
    about = None if augmentation is None else {**asdict(augmentation), "views": views}
    config = read_config(weights.parent, "tokenizer", TokenizerConfig)
    return digest(
        {
            "data": manifest.fingerprint,
            "tokenizer": sha256_file(weights),
            "augmentation": about,
            # A pruned tokenizer has its parent's weights and other codes.
            **({"scales": config.patch_nums, "parent": config.parent} if config.parent else {}),
            **({"skipped": skipped} if skipped else {}),
        }
    )


def _for_run(run: Path, beside: Path) -> Path:
    """The codes of a run: those that are there, or where they go. ``beside``: the tokenizer."""
    own = run / "codes" / beside.name
    for known in (_recorded(run), beside, own):
        if known is not None and known.name == own.name and (known / "manifest.json").exists():
            return known
    return beside if can_write(beside) else own


def _recorded(run: Path) -> Path | None:
    """The codes that a run directory's configuration names."""
    config = read_json(run / CONFIG) if (run / CONFIG).exists() else None
    runtime = config.get("runtime") if isinstance(config, dict) else None
    codes = runtime.get("codes") if isinstance(runtime, dict) else None
    return Path(codes) if codes else None


def view_augmentation(manifest: Manifest, views: int, flip: bool) -> Augmentation | None:
    """What sets the views of a training image apart; None where there is one.

    Raises:
        UserError: they could not differ, or there would be none.
    """
    if not 1 <= views <= MAX_VIEWS:
        raise UserError(f"views counts from 1 to {MAX_VIEWS}, got {views}", field="views")
    if views == 1:
        if flip:
            raise UserError("one view of an image is its centre as it is: raise --views to flip")
        return None
    augmentation = Augmentation(crop=not flip or manifest.settings.keep > 1, flip=flip)
    augmentation.check(manifest)
    return augmentation


def code_settings(options: DataOptions, views: int) -> dict[str, Any]:
    """The settings of a training on codes; none where every image has one view.

    Raises:
        UserError: a crop is chosen, which views make by themselves.
    """
    if options.crop is not None:
        raise UserError("--crop is for trainings on pixels: a transformer trains on codes, whose "
                        "views are crops (--views)")  # fmt: skip
    return {"codes": {"views": views, "flip": options.flip}} if views > 1 else {}
