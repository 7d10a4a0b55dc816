"""The best sampler of a sweep: which row it is, and the pipeline directory that serves it."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from srdd.errors import UserError
from srdd.validation import from_dict, to_dict
from srdd_platform.core.files import atomic_path, read_json, write_json
from srdd_platform.core.runs import model_dir
from srdd_platform.evaluation.protocol import weights_digest
from srdd_platform.evaluation.rows import read_rows, settings_of
from srdd_platform.report.columns import COSTS, METRICS, better_sign


def trial_rows(directory: Path) -> list[dict[str, Any]]:
    """The finished trials of a sweep directory."""
    return [row for row in read_rows(directory) if row["kind"] == "trial"]


def best_rule(objectives: Sequence[str]) -> str:
    """The rule by which a trial is the best, in words."""
    if tuple(objectives[:2]) == ("fid", "gflops_per_image"):
        return "lowest FID of all trials; the cheaper one of equals"
    words = [
        f"{'lowest' if better_sign(name) > 0 else 'highest'} {({**METRICS, **COSTS})[name].title}"
        for name in objectives
    ]
    return "; among equals ".join([f"{words[0]} of all trials", *words[1:]])


def best_row(directory: Path, objectives: Sequence[str]) -> dict[str, Any] | None:
    """The trial that is best in the first objective, then in the next; None if none succeeded."""
    good = [
        row for row in trial_rows(directory)
        if row["status"] == "ok" and all(row[name] is not None for name in objectives)
    ]  # fmt: skip

    def rank(row: Mapping[str, Any]) -> tuple[Any, ...]:
        return (*(better_sign(name) * row[name] for name in objectives), row["key"])

    return min(good, key=rank, default=None)


def row_config(row: Mapping[str, Any], settings_type: type[Any]) -> Any:
    """The sampler settings of a row; inactive ones take their defaults."""
    return from_dict(settings_type, settings_of(row, settings_type), "row")


def save_best(
    directory: Path, pipeline: Path, row: Mapping[str, Any], config: Any, rule: str
) -> None:
    """Write ``best/``: the row's pipeline with its settings, and why it is the best."""
    target = directory / "best"
    selection = {
        "rule": rule,
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
