"""Evaluation protocols: what two rows must share so that their numbers compare.

``fid@2`` subtracts from KID the bias that images with fixed numbers of each class cause; column
``kid_raw`` keeps torch-fidelity's value. ``fid@1`` has that value in column ``kid``. All else is
equal. A directory keeps the protocol that it was begun under.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from srdd.errors import UserError
from srdd_platform.core.files import read_json

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
