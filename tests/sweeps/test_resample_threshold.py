"""The sweep script as a user runs it: interrupted, killed, finished, run again."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pandas as pd
import pytest
import torch

from srdd.checkpoint import save_model
from srdd.load import load_pipeline
from srdd.metrics.classifier import Classifier, ClassifierConfig
from srdd.var.config import SamplerConfig, TokenizerConfig, TransformerConfig
from srdd.var.init import init_weights
from srdd.var.pipeline import Pipeline, save_pipeline
from srdd.var.tokenizer import Tokenizer
from srdd.var.transformer import ScaleTransformer
from srdd_platform.data.shards import prepare
from srdd_platform.evaluation.protocol import PROTOCOL

ROOT = Path(__file__).resolve().parents[2]
TRIALS = 14
LIMIT_S = 400
pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits, a pipeline with random weights and open gates, and a classifier."""
    root = tmp_path_factory.mktemp("inputs")
    prepare(source="digits", resolution=16, out=root / "data")
    torch.manual_seed(0)
    patch_nums = (1, 2, 4)
    tokenizer = Tokenizer(
        TokenizerConfig(
            resolution=16, patch_nums=patch_nums, vocab_size=32, z_channels=8, ch=8,
            ch_mult=(1, 1, 2), num_res_blocks=1,
        )
    ).eval()  # fmt: skip
    model = ScaleTransformer(
        TransformerConfig(
            patch_nums=patch_nums, num_classes=10, depth=2, width=32, num_heads=2, vocab_size=32,
            z_channels=8,
        )
    ).eval()  # fmt: skip
    init_weights(model, gate=1.0, head=1.0)
    model.quantizer.load_state_dict(tokenizer.quantizer.state_dict())
    names = tuple("0123456789")
    save_pipeline(Pipeline(tokenizer, model, SamplerConfig(), names), root / "model")
    classifier = Classifier(ClassifierConfig(num_classes=10, resolution=16, ch=8))
    save_model(root / "classifier", "classifier", classifier.config, classifier.state_dict())
    return root


def start(inputs: Path, out: Path, *more: str) -> subprocess.Popen[str]:
    command = [
        sys.executable, str(ROOT / "sweeps" / "resample_threshold.py"),
        "--model", str(inputs / "model"), "--data", str(inputs / "data"),
        "--weights", str(inputs / "classifier"), "--out", str(out),
        "--trials", str(TRIALS), "--num", "60", *more,
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "COLUMNS": "200"}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # as from a terminal
    )  # fmt: skip
    watchdog = threading.Timer(LIMIT_S, process.kill)  # a sweep that hangs fails the test
    watchdog.daemon = True
    watchdog.start()
    return process


def read_until(process: subprocess.Popen[str], trials: int) -> list[str]:
    """Read the sweep's output until it says that a number of trials is done."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if f"[{trials}/{TRIALS}]" in line:
            return lines
    raise AssertionError("the sweep ended early:\n" + "".join(lines))


def rows(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (out / "rows").glob("*.json")}


def test_interrupted_and_killed_it_goes_on_from_its_rows(inputs: Path, tmp_path: Path) -> None:
    out = tmp_path / "sweep"

    process = start(inputs, out)
    read_until(process, 3)
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=120)
    assert process.returncode == 130, rest
    assert "interrupted; give the same command again" in rest
    assert "Traceback" not in rest
    first = rows(out)

    process = start(inputs, out)
    read_until(process, 8)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=120)
    second = rows(out)
    assert first.items() <= second.items(), "a finished row changed"

    process = start(inputs, out)
    text, _ = process.communicate(timeout=300)
    assert process.returncode == 0, text
    final = rows(out)
    assert second.items() <= final.items(), "a finished row changed"
    table = pd.read_parquet(out / "trials.parquet")
    trials = table[table["kind"] == "trial"]
    assert len(trials) == TRIALS
    assert trials["key"].is_unique
    assert set(table["protocol"]) == {PROTOCOL}
    measured = table[table["status"] == "ok"]
    assert measured[["kid", "kid_raw"]].notna().all(axis=None)
    settings = ["cfg", "refine_steps", "resample_threshold", "feedback"]
    assert not trials[settings].duplicated().any()
    grid = trials[(trials["cfg"] == 0.5) & (trials["feedback"] == "updated")]
    assert {1e-4, 1e-3, 1e-2, 1e-1} <= set(grid["resample_threshold"])
    assert {1, 2, 4} <= set(grid["refine_steps"])
    names = set(table[table["kind"] == "reference"]["name"])
    assert {"real, held out", "untrained", "plain SDD (markov), cfg 0.5"} <= names
    best = trials.sort_values(["fid", "gflops_per_image"]).iloc[0]
    sampler = load_pipeline(out / "best").sampler
    assert sampler.cfg == best["cfg"]
    assert sampler.refine_steps == best["refine_steps"]
    assert (out / "report" / "index.html").stat().st_size > 10_000
    assert f"srdd serve {out / 'best'}" in text
    assert "http://127.0.0.1:" in text, "the dashboard's address is printed"

    stamps = {path: path.stat().st_mtime_ns for path in (out / "rows").iterdir()}
    process = start(inputs, out)
    again, _ = process.communicate(timeout=120)
    assert process.returncode == 0, again
    assert {path: path.stat().st_mtime_ns for path in (out / "rows").iterdir()} == stamps
    assert "Ray dashboard" not in again, "a finished sweep needs no Ray"


def test_bad_options_end_in_one_line(inputs: Path, tmp_path: Path) -> None:
    process = start(inputs, tmp_path / "none", "--extractor", "inception-v4")
    text, _ = process.communicate(timeout=120)
    assert process.returncode == 2
    assert text.splitlines() == [
        "srdd: --extractor must be classifier or inception, got 'inception-v4'"
    ]
    assert not (tmp_path / "none").exists()


def test_a_sweep_with_other_settings_is_refused(inputs: Path, tmp_path: Path) -> None:
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "notes.txt").write_text("mine")
    process = start(inputs, tmp_path / "sweep")
    text, _ = process.communicate(timeout=120)
    assert process.returncode == 2
    assert len(text.splitlines()) == 1
    assert "is not empty and holds no run" in text
    assert (tmp_path / "sweep" / "notes.txt").read_text() == "mine"
