"""Evaluation protocols: what two rows must share so that their numbers compare, and their keys.

``fid@2`` subtracts from KID the bias that images with fixed numbers of each class cause; column
``kid_raw`` keeps torch-fidelity's value. ``fid@1`` has that value in column ``kid``. All else is
equal. A directory keeps the protocol that it was begun under.

A row's key is a digest of all that decides its numbers. Keys are file names: they never change.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from srdd.errors import UserError
from srdd_platform.core.files import digest, read_json, sha256_file

PROTOCOL = "fid@2 uint8-round balanced kid50x250-unbiased prc3 is1 jackknife10"
FIRST_PROTOCOL = "fid@1 uint8-round balanced kid50x250 prc3 is1 jackknife10"
MIN_IMAGES = 50  # fewer give no useful covariance
NEW_COLUMNS = ("kid_raw", "protocol")  # that rows of fid@1 do not have

KID_MEANING = (
    "KID estimates a squared distance from the real images: lower is better, 0 means equal, and "
    "noise can take it below 0. "
)
KID_NOTE = KID_MEANING + (
    "Images with fixed numbers of each class make torch-fidelity's value (KID raw) read too low; "
    "the column KID has that bias subtracted. KID is empty where no class has two images."
)
FIRST_KID_NOTE = KID_MEANING + (
    "This directory was begun under fid@1, whose KID is biased: images with fixed numbers of each "
    "class make it read too low, the more so the fewer the images. Compare it only between rows "
    "of equally many images."
)


def begun_under(directory: Path) -> str:
    """The protocol of a sweep's or a distillation's rows: the one that it was begun under.

    Raises:
        UserError: its configuration is not valid JSON, or names a protocol that is not known.
    """
    path = directory / "config.json"
    config = read_json(path) if path.exists() else None
    if not isinstance(config, dict):
        return PROTOCOL
    parts = [config.get(name) for name in ("settings", "runtime")]
    named = [part["protocol"] for part in parts if isinstance(part, dict) and "protocol" in part]
    found = str(named[0]) if named else FIRST_PROTOCOL  # a distillation did not name it then
    if found not in (FIRST_PROTOCOL, PROTOCOL):
        raise UserError(
            f"{directory} was begun under the evaluation protocol {found!r}, which this version "
            "does not know: go on with the version that began it, or give another directory"
        )
    return found


def under(protocol: str, measured: Mapping[str, Any]) -> dict[str, Any]:
    """Values measured now, in the columns of a protocol."""
    if protocol != FIRST_PROTOCOL:
        return {**measured, "protocol": protocol}
    return {"kid" if k == "kid_raw" else k: v for k, v in measured.items() if k != "kid"}


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationConfig:
    """What all rows of a directory share."""

    data: str  # shard directory; its train split is the reference
    extractor: str  # "classifier" or "inception"
    weights: str  # the extractor's
    num: int = 1000  # images a row
    seed: int = 0
    batch_size: int = 250
    device: str = "cpu"
    dtype: str = "float32"
    protocol: str = PROTOCOL  # of a directory begun earlier: the one it was begun under


def weights_digest(directory: Path) -> str:
    """Names the weights in a pipeline directory of any family, whatever its sampler settings."""
    return digest([sha256_file(path) for path in sorted(directory.glob("*/model.safetensors"))])


def extractor_sha256(weights: Path) -> str:
    """The SHA-256 of an extractor's weights: a file, or a model or run directory.

    Raises:
        UserError: there are none.
    """
    from srdd_platform.core.runs import model_dir  # imports torch: options are parsed without it

    path = weights if weights.is_file() else model_dir(weights) / "model.safetensors"
    if not path.exists():
        raise UserError(f"{weights} has no finished classifier")
    return sha256_file(path)


def extractor_name(prefix: str, weights: Path) -> str:
    """The name under which an extractor's numbers stand: it changes with its file of weights."""
    return f"{prefix}-{sha256_file(weights)[:8]}"


def row_key(model: str, settings: Any, evaluation: EvaluationConfig, extractor: str) -> str:
    """The key of a trial's row: equal for settings that differ in an inactive one only.

    Args:
        model: its :func:`weights_digest`.
        settings: the sampler's.
        evaluation: how the row is made.
        extractor: its name, as :func:`extractor_name`.
    """
    return digest(
        {
            "model": model,
            "parameters": settings.active(),
            "n": evaluation.num,
            "seed": evaluation.seed,
            "extractor": extractor,
            "protocol": evaluation.protocol,
        }
    )


def reference_key(
    asked: Sequence[Any], model: str, settings: Any, evaluation: EvaluationConfig, weights: str
) -> str:
    """The key of a reference row.

    Args:
        asked: its name, what it shows, and the number of images and the seed where it has its own.
        model: its :func:`weights_digest`.
        settings: the sampler's.
        evaluation: how the row is made.
        weights: of the extractor, as :func:`extractor_sha256` begins.
    """
    return digest(
        {
            "reference": asked,
            "model": model,
            "parameters": settings.active(),
            "n": evaluation.num,
            "seed": evaluation.seed,
            "weights": weights,
            "protocol": evaluation.protocol,
        }
    )


def stage_key(
    asked: Sequence[Any], model: Mapping[str, Any], settings: Any, evaluation: Mapping[str, Any]
) -> str:
    """The key of a row of a distillation's table.

    Args:
        asked: its name, order, scales and steps.
        model: its ``model``, a :func:`weights_digest`, and its ``config``.
        settings: the sampler's.
        evaluation: the fields of an :class:`EvaluationConfig`, where ``data`` names the images
            and ``weights`` is the extractor's :func:`extractor_sha256`, or "" without one.
    """
    return digest({**evaluation, **model, "parameters": settings.active(), "row": asked})
