"""The report of a sweep: one page that works offline, from ``trials.parquet`` alone."""

from srdd_platform.report.page import build_report

__all__ = ["build_report"]
