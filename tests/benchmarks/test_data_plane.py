"""The data plane's benchmark: its parts add up, and its report is what it measured."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import data_plane
from benchmarks.data_plane import PARTS, Parts
from srdd_platform.data.shards import prepare


def test_a_part_is_without_those_inside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(0, 1000, 10))
    parts = Parts(torch.device("cpu"))
    monkeypatch.setattr(parts, "_now", lambda: next(now))
    double = parts.wrapped("inner", lambda x: 2 * x)
    with parts.timed("outer"):  # 0 to 50
        assert double(3) == 6  # 10 to 20
        assert double(4) == 8  # 30 to 40
    with parts.timed("upkeep"):  # 60 to 70
        assert double(5) == 10  # upkeep too
    assert parts.seconds == {"outer": 30, "inner": 20, "upkeep": 10}


def test_the_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_plane, "IMAGES", 64)
    prepare(source="digits", resolution=16, out=tmp_path / "digits", workers=1)
    out = tmp_path / "report.json"
    data_plane.main(["--data", str(tmp_path / "digits"), "--preset", "digits", "--size", "tiny",
                     "--repeats", "2", "--steps", "1", "--out", str(out)])  # fmt: skip
    printed = capsys.readouterr().out
    report = json.loads(out.read_text())
    assert [row["kind"] for row in report["rates"]] == ["tokenizer", "classifier"]
    for row in report["rates"]:
        assert row["batch"] == 64
        assert row["ok"] == (row["share"][0] >= 0.95)
    assert [(row["model"], row["batch"], row["update"]) for row in report["codes"]] == [
        ("digits", 64, True), ("tiny", 2, False),
    ]  # fmt: skip
    for row in report["codes"]:
        assert row["ok"] == (row["saved"] >= row["encoder_share"][0] - 0.02)
        assert 0 < row["encoder_s"][0] < row["pixels_s"][0]
    assert sum(report["parts"]["shares"].values()) == pytest.approx(1)
    assert set(report["parts"]["shares"]) == set(PARTS)
    assert min(report["parts"]["shares"].values()) > 0
    assert report["parts"]["steps"] == 50
    for text in ("delivered, CPU time", "codes are faster", "| quantizer", "of 1 updates"):
        assert text in printed
    assert data_plane.main(["--markdown", str(out)]) == 0
    assert capsys.readouterr().out == printed


def test_shards_are_needed(capsys: pytest.CaptureFixture[str]) -> None:
    assert data_plane.main([]) == 2
    assert "--data DIR is needed" in capsys.readouterr().err
