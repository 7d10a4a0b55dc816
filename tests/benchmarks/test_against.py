"""The comparison of two checkouts: its statistic, and its processes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.against import CASES, ROOT, Checkout, compare, main, save_models


class Fake:
    """A checkout whose calls take what it is told."""

    def __init__(self, seconds: Callable[[int], float]) -> None:
        self.given, self.calls = seconds, 0

    def seconds(self, case: object, count: int) -> float:
        self.calls += 1
        return self.given(self.calls)


@pytest.mark.parametrize(
    ("new_s", "ratio", "ok"), [(0.01, 1.0, True), (0.0125, 0.8, False), (0.0103, 0.971, False)]
)
def test_a_ratio_is_old_by_new_and_needs_both_bounds(new_s: float, ratio: float, ok: bool) -> None:
    old, new = Fake(lambda _: 0.01), Fake(lambda _: new_s)
    row: dict[str, Any] = compare(old, new, CASES[0], 15)  # type: ignore[arg-type]
    assert row["ratio"] == pytest.approx(ratio, abs=1e-3)
    assert row["interval"] == pytest.approx([row["ratio"]] * 2)
    assert row["ok"] == ok
    assert (old.calls, new.calls) == (16, 16)  # one to learn how often a turn calls


def test_an_interval_that_reaches_one_is_enough() -> None:
    old, new = Fake(lambda _: 0.01), Fake(lambda call: 0.0103 if call % 3 else 0.0098)
    row = compare(old, new, CASES[0], 15)  # type: ignore[arg-type]
    assert 0.95 <= row["ratio"] < 1
    assert row["interval"][0] < 1 <= row["interval"][1]
    assert row["ok"]


def test_a_checkouts_process_times_its_own_code(tmp_path: Path) -> None:
    save_models(tmp_path)
    checkout = Checkout(ROOT, str(tmp_path))
    try:
        for case in (CASES[0], next(case for case in CASES if case.trains)):
            assert 1e-4 < checkout.seconds(case, 1) < 60
    finally:
        checkout.close()


def test_a_checkout_whose_code_is_not_imported_ends(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """An installed srdd would be timed in its place."""
    (tmp_path / "benchmarks").symlink_to(ROOT / "benchmarks")
    checkout = Checkout(tmp_path, str(tmp_path))
    try:
        with pytest.raises(RuntimeError, match=f"the process of {tmp_path} ended with 1"):
            checkout.seconds(CASES[0], 1)
    finally:
        checkout.close()
    assert f"{tmp_path}: srdd comes from " in capfd.readouterr().err


def test_a_folder_that_is_no_checkout_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--old", str(tmp_path)])
    assert "--old must be a checkout: it has a folder srdd" in capsys.readouterr().err
