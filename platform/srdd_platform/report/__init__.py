"""The report of a sweep: one page that works offline, from ``trials.parquet`` alone."""
