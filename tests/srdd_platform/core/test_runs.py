"""Run directories: who may write, what may change, what a resumed run keeps."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from srdd.errors import UserError
from srdd_platform.core.runs import (
    append_metrics,
    check_place,
    cut_metrics,
    differences,
    model_dir,
    note,
    open_run,
    read_metrics,
)

HOLD = """
import sys
from pathlib import Path
from srdd_platform.core.runs import open_run
with open_run(Path(sys.argv[1]), "train tokenizer", {"lr": 0.1}, {}):
    print("held", flush=True)
    sys.stdin.read()
"""
SETTINGS: dict[str, Any] = {"lr": 0.1}
ENVIRONMENT_PATHS = [str(Path(__file__).resolve().parents[3] / part) for part in (".", "platform")]


def claim(directory: Path, settings: Any = None, runtime: Any = None, kind: str = "") -> None:
    settings = SETTINGS if settings is None else settings
    with open_run(directory, kind or "train tokenizer", settings, runtime or {}):
        pass


def config(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / "config.json").read_text())
    return found


@contextmanager
def holder(directory: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the run directory until the block ends."""
    code = f"import sys; sys.path[:0] = {ENVIRONMENT_PATHS}\n{HOLD}"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(directory)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def test_a_second_process_is_refused_until_the_first_is_killed(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with holder(run) as process:
        before = (run / "config.json").read_bytes()
        with pytest.raises(UserError, match="another process is writing") as caught:
            claim(run)
        assert str(run) in str(caught.value)
        assert "\n" not in str(caught.value)
        assert (run / "config.json").read_bytes() == before
        process.send_signal(signal.SIGKILL)
        process.wait()
        claim(run)  # the lock died with its holder


def test_a_place_is_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    check_place(run)
    assert not run.exists()
    with holder(run), pytest.raises(UserError, match="another process is writing"):
        check_place(run)
    check_place(run)  # nobody holds it now
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        check_place(tmp_path / "file" / "run")
    monkeypatch.setattr(os, "access", lambda *_: False)  # a read-only disk
    with pytest.raises(UserError, match=f"^{re.escape(str(run))} cannot be written"):
        check_place(run)


def test_the_same_process_may_not_enter_twice(tmp_path: Path) -> None:
    with (
        open_run(tmp_path / "run", "train tokenizer", SETTINGS, {}),
        pytest.raises(UserError, match="another process"),
    ):
        claim(tmp_path / "run")
    claim(tmp_path / "run")


def test_the_lock_is_freed_by_an_error(tmp_path: Path) -> None:
    with (
        pytest.raises(KeyboardInterrupt),
        open_run(tmp_path / "run", "train tokenizer", SETTINGS, {}),
    ):
        raise KeyboardInterrupt
    claim(tmp_path / "run")


def test_changed_settings_are_refused_with_the_difference(tmp_path: Path) -> None:
    run = tmp_path / "run"
    claim(run, {"optim": {"lr": 0.1, "steps": 5}, "data": "abc", "sides": (1, 2)})
    before = (run / "config.json").read_bytes()
    with pytest.raises(UserError) as caught:
        claim(run, {"optim": {"lr": 0.2, "steps": 5}, "data": "abc", "sides": (1, 2)})
    text = str(caught.value)
    assert "optim.lr: 0.1 -> 0.2" in text
    assert "steps" not in text
    assert "sides" not in text  # a tuple is read back as a list: no difference
    with pytest.raises(UserError, match=r"data: abc -> absent; optim\.seed: absent -> 1"):
        claim(run, {"optim": {"lr": 0.1, "steps": 5, "seed": 1}, "sides": (1, 2)})
    assert (run / "config.json").read_bytes() == before


def test_another_kind_of_run_is_refused(tmp_path: Path) -> None:
    claim(tmp_path / "run")
    with pytest.raises(UserError, match="holds a run of `train tokenizer`, not of `sweep x`"):
        claim(tmp_path / "run", kind="sweep x")


def test_changed_runtime_is_accepted_and_recorded(tmp_path: Path) -> None:
    run = tmp_path / "run"
    claim(run, runtime={"workers": 1})
    note(run, "hypervolume_reference", 3.0)
    code = config(run)["code"]
    claim(run, runtime={"workers": 2})
    found = config(run)
    assert found["runtime"] == {"workers": 2}
    assert found["settings"] == SETTINGS
    assert found["code"] == code
    assert found["hypervolume_reference"] == 3.0  # what was noted outlives the change
    before = (run / "config.json").stat().st_mtime_ns
    claim(run, runtime={"workers": 2})
    assert (run / "config.json").stat().st_mtime_ns == before


def test_what_is_noted_once_stays(tmp_path: Path) -> None:
    claim(tmp_path / "run")
    note(tmp_path / "run", "point", [1, 2])
    note(tmp_path / "run", "point", [3, 4])
    assert config(tmp_path / "run")["point"] == [1, 2]


def test_a_foreign_directory_is_refused_and_untouched(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("words")
    with pytest.raises(UserError, match="not empty and holds no run"):
        claim(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("words")
    with pytest.raises(UserError, match="is a file"):
        claim(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "words"


def test_an_empty_directory_is_taken(tmp_path: Path) -> None:
    claim(tmp_path)
    assert config(tmp_path)["kind"] == "train tokenizer"


def test_a_damaged_configuration_is_named_and_kept(tmp_path: Path) -> None:
    claim(tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    path.write_text('{"kind": "train')
    with pytest.raises(UserError, match=r"config\.json is not valid JSON"):
        claim(tmp_path / "run")
    assert path.read_text() == '{"kind": "train'


def test_a_run_holds_its_code_version_and_no_path(tmp_path: Path) -> None:
    claim(tmp_path / "run", runtime={"workers": 1})
    text = (tmp_path / "run" / "config.json").read_text()
    assert str(tmp_path) not in text
    assert config(tmp_path / "run")["code"].startswith("0.")


def test_differences_are_named_by_path() -> None:
    old = {"a": {"b": 1, "c": [1]}, "d": 1}
    new = {"a": {"b": 2, "c": [1]}, "e": None}
    assert differences(old, new) == ["a.b: 1 -> 2", "d: 1 -> absent", "e: absent -> None"]
    assert differences(old, json.loads(json.dumps(old))) == []


def test_metrics_are_cut_back_to_the_checkpoint(tmp_path: Path) -> None:
    for step in (10, 20, 30, 40):
        append_metrics(tmp_path, step, {"loss": 1 / step})
    cut_metrics(tmp_path, 20)
    append_metrics(tmp_path, 30, {"loss": 0.5})
    assert [line["step"] for line in read_metrics(tmp_path)] == [10, 20, 30]
    assert read_metrics(tmp_path)[-1] == {"step": 30, "loss": 0.5}
    cut_metrics(tmp_path, 0)
    assert read_metrics(tmp_path) == []


def test_metrics_keep_six_digits(tmp_path: Path) -> None:
    append_metrics(tmp_path, 1, {"loss": 1.23456789, "lr": 1.0e-7, "n": 3})
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 1.23457, "lr": 1.0e-7, "n": 3.0}]


def test_a_half_written_line_is_left_out_and_cut(tmp_path: Path) -> None:
    append_metrics(tmp_path, 10, {"loss": 1.0})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 20, "lo')
    assert [line["step"] for line in read_metrics(tmp_path)] == [10]
    cut_metrics(tmp_path, 20)
    append_metrics(tmp_path, 20, {"loss": 2.0})
    assert [line["step"] for line in read_metrics(tmp_path)] == [10, 20]


def test_no_metrics_yet(tmp_path: Path) -> None:
    assert read_metrics(tmp_path) == []
    cut_metrics(tmp_path, 5)
    assert read_metrics(tmp_path) == []


def test_a_run_directory_stands_for_its_model(tmp_path: Path) -> None:
    assert model_dir(tmp_path) == tmp_path
    claim(tmp_path / "run")
    assert model_dir(tmp_path / "run") == tmp_path / "run"  # not finished
    (tmp_path / "run" / "model").mkdir()
    assert model_dir(tmp_path / "run") == tmp_path / "run" / "model"
    assert model_dir(tmp_path / "run" / "model") == tmp_path / "run" / "model"


def test_a_run_killed_at_its_first_write_can_be_given_again(tmp_path: Path) -> None:
    (tmp_path / ".lock").touch()
    (tmp_path / ".config.json.0123abcd.tmp").write_text('{"kind": "tr')
    claim(tmp_path)
    assert config(tmp_path)["settings"] == SETTINGS


def test_a_configuration_of_another_shape_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[1, 2]")
    with pytest.raises(UserError, match=r"config\.json|holds"):
        claim(tmp_path)


def test_a_run_needs_no_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    claim(tmp_path / "run")
    assert config(tmp_path / "run")["code"].startswith("0.")
