"""How a row's numbers and settings are written, the same in figures, tables and panels."""

import math
from collections.abc import Iterable
from typing import Any

from srdd_platform.evaluation.rows import model_columns
from srdd_platform.report.columns import COSTS, METRICS

Record = dict[str, Any]  # a row of trials.parquet: column name -> value, None where null

MISSING = "—"  # in a table's cell
SHORT_NAMES = {"resample_threshold": "threshold"}  # in headings; other settings have their own
VALUE_NAMES = {("refine_steps", 0): "no refinement (plain)"}


def number(value: Any) -> str:
    """A number to four significant digits, an integer in full, "" for null, text unchanged."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value)


def plus_minus(value: float | None, error: float | None) -> str:
    """A value to the digits that its standard error leaves certain: ``0.0853 ± 0.0021``."""
    if value is None or error is None or error <= 0:
        return number(value)
    decimals = min(max(1 - math.floor(math.log10(error)), 0), 8)
    return f"{value:,.{decimals}f} ± {error:,.{decimals}f}"


def label(row: Record) -> str:
    """What a row is called: a reference by its name, a trial by its number."""
    return str(row["name"]) if row["name"] else f"{row['kind']} {row['order']}"


def active_settings(row: Record) -> dict[str, str]:
    """The settings that acted in a row, in the order of its columns."""
    return {name: number(row[name]) for name in model_columns(row) if row[name] is not None}


def setting_text(name: str, value: Any, none: str = "inactive") -> str:
    """A setting with its value."""
    return VALUE_NAMES.get((name, value)) or f"{name} {number(value) or none}"


def short_name(name: str) -> str:
    """A setting's name in a heading."""
    return SHORT_NAMES.get(name, name)


def settings_text(row: Record) -> str:
    """The active settings on one line."""
    return "; ".join(f"{name} {value}" for name, value in active_settings(row).items())


def model_text(row: Record, columns: Iterable[str]) -> str:
    """What tells a row's model from others, by its columns."""
    return ", ".join(f"{name} {number(row[name])}" for name in columns if row[name] is not None)


def of_extractor(name: str, extractor: str) -> str:
    """A quality's title with whose features it was measured on."""
    return f"{name} ({extractor})"


def is_inception(extractor: str) -> bool:
    """Whether numbers on this extractor may stand beside published Inception numbers."""
    return extractor.lower().startswith("inception")


def fingerprint_text(row: Record) -> str:
    """Where a row's measured costs were measured."""
    return ", ".join(str(row[name] or "unknown " + name) for name in ("device", "dtype"))


def facts(row: Record) -> dict[str, str]:
    """Everything a hover box or a panel tells of a row, in order; nulls are left out."""
    extractor = row["extractor"]
    quality = {
        of_extractor(column.title, extractor): number(row[name])
        for name, column in METRICS.items()
        if name not in ("fid", "accuracy")
    }
    cells = {
        of_extractor("FID", extractor): plus_minus(row["fid"], row["fid_se"]),
        **quality,
        "accuracy": number(row["accuracy"]),
        **active_settings(row),
        **{column.title: number(row[name]) for name, column in COSTS.items()},
        "device, dtype": fingerprint_text(row) if row["device"] else "",
        "images": number(row["n"]),
        "compared with": row["reference"],
        "seed": "" if row["seed"] is None else str(row["seed"]),
        "protocol": row["protocol"] or "",
        "status": "" if row["status"] == "ok" else row["status"],
        "error": row["error"] or "",
    }
    return {title: str(text) for title, text in cells.items() if text}
