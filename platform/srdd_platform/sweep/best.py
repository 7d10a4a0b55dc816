"""The best sampler of a sweep: which row it is, and the pipeline directory that serves it."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from srdd.errors import UserError
from srdd.validation import from_dict, to_dict
from srdd.var.config import SamplerConfig
from srdd_platform.core.files import atomic_path, read_json, write_json
from srdd_platform.core.runs import model_dir
from srdd_platform.evaluation.protocol import weights_digest
from srdd_platform.evaluation.rows import settings_of
from srdd_platform.sweep.search import trial_rows

BEST_RULE = "lowest FID of all trials; the cheaper one of equals"


def best_row(directory: Path) -> dict[str, Any] | None:
    """The trial of lowest FID, if any succeeded."""
    good = [row for row in trial_rows(directory) if row["status"] == "ok"]
    return min(good, key=lambda r: (r["fid"], r["gflops_per_image"], r["key"]), default=None)


def row_config(row: Mapping[str, Any]) -> SamplerConfig:
    """The sampler settings of a row; inactive ones take their defaults."""
    return from_dict(SamplerConfig, settings_of(row, SamplerConfig), "row")


def save_best(
    directory: Path, pipeline: Path, row: Mapping[str, Any], config: SamplerConfig
) -> None:
    """Write ``best/``: the searched pipeline with the best trial's settings, and why it is."""
    target = directory / "best"
    selection = {
        "rule": BEST_RULE,
        "row": row["key"],
        "fid": row["fid"],
        "extractor": row["extractor"],
        "model": weights_digest(model_dir(pipeline)),
    }
    path = target / "selection.json"
    if _read_selection(path) == selection:
        return
    with atomic_path(target, replace_directory=True) as temporary:
        shutil.copytree(model_dir(pipeline), temporary)
        write_json(temporary / "sampler.json", to_dict(config))
        write_json(temporary / "selection.json", selection)


def _read_selection(path: Path) -> Any:
    """The selection that is kept; None where there is none or it is damaged."""
    try:
        return read_json(path)
    except UserError:
        return None
