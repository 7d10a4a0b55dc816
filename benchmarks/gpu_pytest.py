"""The project's tests that need a CUDA device, run in this process; needs pytest."""

from pathlib import Path

import pytest

from benchmarks.gpu_job import Send
from benchmarks.gpu_results import Row, Status

_STATUS: dict[str, Status] = {"passed": "ok", "failed": "failed", "skipped": "skipped"}


def run_marked(root: Path, send: Send) -> None:
    """Run the tests marked ``gpu`` of the science, which imports no platform; a row for each.

    Args:
        root: of the checkout.
        send: gets a row as soon as a test ends.
    """
    tests = root / "tests" / "srdd"
    files = [path for path in sorted(tests.rglob("test_*.py")) if "mark.gpu" in path.read_text()]
    reporter = _Reporter(send)
    options = ["-m", "gpu", "-p", "no:cacheprovider", "--rootdir", str(root)]
    options += ["--confcutdir", str(tests)]  # the conftest.py above needs the platform and Ray
    if files:
        pytest.main([*map(str, files), *options], plugins=[reporter])
    if not reporter.count:
        note = f"{tests} holds none"
        send(Row(what="tests marked gpu", status="skipped", note=note))


class _Reporter:
    """A pytest plugin that sends each test's end."""

    def __init__(self, send: Send) -> None:
        self.send = send
        self.count = 0

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A file that cannot be imported."""
        if report.failed:
            self._row(report.nodeid, "failed", _last_line(report.longreprtext))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A test's call, or the set-up or the end that failed or skipped it."""
        if report.when != "call" and report.passed:
            return
        note = f"{report.duration:.2g} s"
        if report.skipped and isinstance(report.longrepr, tuple):
            note = report.longrepr[2].removeprefix("Skipped: ")
        elif report.failed:
            note = _last_line(report.longreprtext)
        self._row(report.nodeid, _STATUS[report.outcome], note)

    def _row(self, test: str, status: Status, note: str) -> None:
        self.count += 1
        self.send(Row(what=test.removeprefix("tests/srdd/"), status=status, note=note))


def _last_line(text: str) -> str:
    """The error itself: pytest puts it on the last line that begins with E, or at the end."""
    lines = [line for line in text.strip().splitlines() if line.strip()]
    errors = [line.removeprefix("E").strip() for line in lines if line.startswith("E ")]
    return (errors[0] if errors else lines[-1] if lines else "")[:300]
