"""Sweep directories that an earlier version began: they go on, or are refused with the reason.

Until sweeps became values, ``config.json`` held ``grid`` (cfg, feedback, thresholds and
refine_steps of the trials made first) in place of ``first``, and named no objectives.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from srdd.errors import UserError
from srdd_platform.core.files import read_json
from srdd_platform.core.runs import CONFIG, differences
from srdd_platform.sweep.definition import product

GRID = {
    "cfg": "cfg",
    "feedback": "feedback",
    "refine_steps": "refine_steps",
    "thresholds": "resample_threshold",
}  # its keys, the slowest first, and the settings that they stand for


def as_begun(directory: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """A sweep's settings in the form of the version that began its directory.

    Args:
        directory: of the sweep; it may be new.
        settings: as ``config.json`` holds them now.

    Raises:
        UserError: the directory was begun with other settings.
    """
    path = directory / CONFIG
    config = read_json(path) if path.exists() else None
    before = config.get("settings") if isinstance(config, dict) else None
    if not isinstance(before, dict) or not isinstance(before.get("grid"), dict):
        return settings
    changed = differences(_upgraded(before), settings)
    if changed:
        raise UserError(
            f"{directory} holds a run with other settings ({'; '.join(changed[:6])}): "
            "give another directory or the old settings"
        )
    return dict(before)


def _upgraded(before: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as they are written now."""
    grid, space = before["grid"], before.get("space") or {}
    axes = {setting: grid[key] for key, setting in GRID.items() if setting in space and key in grid}
    lists = {name: v if isinstance(v, list) else [v] for name, v in axes.items()}
    return {
        **{name: value for name, value in before.items() if name != "grid"},
        "first": product(**lists),
        "objectives": ["fid", "gflops_per_image"],
    }
