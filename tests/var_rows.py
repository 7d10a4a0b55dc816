"""Rows of scale-wise models, made in tests without a model."""

from dataclasses import fields
from typing import Any

from srdd import SamplerConfig
from srdd_platform.evaluation.rows import COLUMNS, Row

SETTINGS = tuple(field.name for field in fields(SamplerConfig))
BEFORE = ("key", "kind", "name", "order")
NAMES = [*BEFORE, "mask", *SETTINGS, *(name for name in COLUMNS if name not in BEFORE)]


def var_row(key: str, mask: str | None = None, **values: Any) -> Row:
    """A row whose settings are given beside its other columns; those not given are null."""
    settings = {name: values.pop(name, None) for name in SETTINGS}
    made = {"kind": "trial", "name": "", "order": 0, **values}
    return Row(key=key, tags={"mask": mask}, settings=settings, **made)
