"""The columns of a sweep's table that figures and tables know: metrics and costs.

Every other column is a setting of the sampler, a column that tells models apart, or says how a
row was measured.
"""

from collections.abc import Mapping
from typing import NamedTuple


class Column(NamedTuple):
    """A number that a row has."""

    title: str
    higher_is_better: bool = False
    measured: bool = False  # it depends on the device and the dtype that it was measured with


METRICS: Mapping[str, Column] = {
    "fid": Column("FID"),
    "is": Column("IS", higher_is_better=True),
    "kid": Column("KID"),
    "kid_raw": Column("KID raw"),
    "precision": Column("precision", higher_is_better=True),
    "recall": Column("recall", higher_is_better=True),
    "accuracy": Column("accuracy", higher_is_better=True),
}
COSTS: Mapping[str, Column] = {
    "nfe": Column("NFE"),
    "gflops_per_image": Column("GFLOPs per image"),
    "latency_ms": Column("latency (ms)", measured=True),
    "images_per_s": Column("images/s", higher_is_better=True, measured=True),
    "peak_memory_mb": Column("peak memory (MB)", measured=True),
}
HIGHER_IS_BETTER = frozenset(
    name for name, column in {**METRICS, **COSTS}.items() if column.higher_is_better
)


def better_sign(name: str) -> int:
    """1 for a column whose low values are better, -1 for one whose high values are."""
    return -1 if name in HIGHER_IS_BETTER else 1
