"""The script in this process, on models that are there."""

import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

from srdd.load import load_pipeline
from srdd_platform.core.files import read_json
from srdd_platform.core.ray_session import Session
from srdd_platform.evaluation.rows import read_rows

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.ray


def trials_of(directory: Path) -> list[dict[str, Any]]:
    return [row for row in read_rows(directory) if row["kind"] == "trial"]


def test_guidance_is_swept_over_two_masks(
    runs: Path, ray_session: Session, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    script = ROOT / "sweeps" / "cfg_scale.py"
    monkeypatch.setattr(sys, "argv", [str(script), "--num", "50", "--trials", "3"])
    runpy.run_path(str(script), run_name="__main__")
    out = runs / "cfg_scale"
    trials = trials_of(out)
    found = {(row["order"], row["mask"], row["cfg"], row["refine_steps"]) for row in trials}
    assert found == {(0, "markov", 0.0, 0), (1, "block_causal", 0.0, 0), (2, "markov", 0.5, 0)}
    assert all(row["status"] == "ok" for row in trials)
    causal = next(row for row in trials if row["mask"] == "block_causal")
    assert causal["fid"] != next(row for row in trials if row["cfg"] == 0)["fid"]
    names = [row["name"] for row in read_rows(out) if row["kind"] == "reference"]
    assert {"plain SDD (markov), cfg 0", "plain VAR (block_causal), cfg 0"} <= set(names)
    config = read_json(out / "config.json")
    assert config["settings"]["models"] == {"mask": ["markov", "block_causal"]}
    assert set(config["hypervolume_reference"]) == {"fid", "gflops_per_image"}
    best = min(trials, key=lambda row: (row["fid"], row["gflops_per_image"]))
    assert load_pipeline(out / "best").card.tags == {"mask": best["mask"]}
    printed = capsys.readouterr().out
    assert "Training" not in printed  # the models were there
    assert "[3/3]" in printed
    page = (out / "report" / "index.html").read_text()
    assert page.count('class="plotly-graph-div"') >= 4
