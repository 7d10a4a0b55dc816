"""Sweep directories that an earlier version began."""

from pathlib import Path
from typing import Any

import pytest

from srdd.errors import UserError
from srdd_platform.core.files import write_json
from srdd_platform.sweep.begun import as_begun
from srdd_platform.sweep.definition import product

GRID = {"cfg": 0.5, "feedback": "updated", "thresholds": [0.01, 0.1], "refine_steps": [1, 2]}
SPACE = {key: {"low": 0} for key in ("resample_threshold", "refine_steps", "feedback", "cfg")}
SHARED = {"sweep": "resample_threshold", "space": SPACE, "num": 60}
FIRST = product(
    cfg=[0.5], feedback=["updated"], refine_steps=[1, 2], resample_threshold=[0.01, 0.1]
)
OBJECTIVES = ["fid", "gflops_per_image"]
NOW = {**SHARED, "first": FIRST, "objectives": OBJECTIVES}


def begun(directory: Path, settings: Any) -> Path:
    write_json(directory / "config.json", {"kind": "sweep", "settings": settings, "runtime": {}})
    return directory


def test_a_new_directory_has_the_new_form(tmp_path: Path) -> None:
    assert as_begun(tmp_path / "new", NOW) == NOW
    assert as_begun(begun(tmp_path, NOW), NOW) == NOW


def test_a_directory_of_grids_keeps_its_form(tmp_path: Path) -> None:
    before = {**SHARED, "grid": GRID}
    assert as_begun(begun(tmp_path, before), NOW) == before


def test_a_grid_without_guidance_is_read_as_it_was_meant(tmp_path: Path) -> None:
    """A model without classes had a grid at cfg 0, and cfg was not in its space."""
    space = {name: axis for name, axis in SPACE.items() if name != "cfg"}
    before = {**SHARED, "space": space, "grid": {**GRID, "cfg": 0.0}}
    first = product(feedback=["updated"], refine_steps=[1, 2], resample_threshold=[0.01, 0.1])
    now = {**NOW, "space": space, "first": first}
    assert as_begun(begun(tmp_path, before), now) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num": 50}, "num: 60 -> 50"),
        ({"first": FIRST[1:]}, "first: 4 entries -> 3"),
        (
            {"first": [*FIRST[:3], {**FIRST[3], "cfg": 1.0}]},
            r"first 4\.cfg: 0\.5 -> 1\.0",
        ),
        ({"objectives": ["kid", "nfe"]}, "objectives: "),
    ],
)
def test_other_settings_are_refused_with_the_difference(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=f"holds a run with other settings .{message}"):
        as_begun(begun(tmp_path, {**SHARED, "grid": GRID}), {**NOW, **change})


@pytest.mark.parametrize("config", [[], {"settings": None}, {"settings": {"grid": None}}])
def test_what_is_no_configuration_is_left_to_the_run_directory(tmp_path: Path, config: Any) -> None:
    write_json(tmp_path / "config.json", config)
    assert as_begun(tmp_path, NOW) == NOW
