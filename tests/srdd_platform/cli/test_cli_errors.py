"""Wrong input on the command line: one line that says what is wrong, exit 2, nothing written."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from ray.exceptions import RayTaskError

from srdd import load_pipeline
from srdd.errors import UserError
from srdd.var.pipeline import load_tokenizer, save_pipeline, save_tokenizer
from srdd_platform.cli import main as cli
from srdd_platform.cli.command_errors import guarded
from srdd_platform.core.files import write_json
from srdd_platform.sweep.options import SweepArgs

ROOT = Path(__file__).resolve().parents[3]
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "platform")]),
    "COLUMNS": "200",
}

Refused = Callable[..., str]


def snapshot(directory: Path) -> dict[str, bytes]:
    """Every file and folder below a directory."""
    return {
        str(path.relative_to(directory)): path.read_bytes() if path.is_file() else b""
        for path in sorted(directory.rglob("*"))
    }


@pytest.fixture
def refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Refused:
    """Run a command that must be refused, in ``tmp_path``; returns its one line."""

    def run(*arguments: object) -> str:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["srdd", *map(str, arguments)])
        before = snapshot(tmp_path)
        with pytest.raises(SystemExit) as caught:
            cli.main()
        printed = capsys.readouterr()
        assert caught.value.code == 2
        assert printed.err.startswith("srdd: "), printed.err
        assert printed.err.count("\n") == 1, printed.err
        assert len(printed.err) < 400, printed.err
        assert printed.out == ""
        assert snapshot(tmp_path) == before
        return printed.err

    return run


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--classes", "3,ten"], "no class 'ten': give an index below 10 or one of \"zero\", "),
        (["--classes", ""], "no class ''"),
        (["--classes", "10"], "no class '10'"),
        (["--classes", "-1"], "no class '-1'"),
        (["--classes", "3,"], "no class ''"),
        (["--cfg", "-1"], "--cfg must be"),
        (["--cfg", "nan"], "--cfg must be"),
        (["--cfg", "inf"], "--cfg must be"),
        (["--top-k", "33"], "--top-k 33 exceeds the vocabulary of 32 codes"),
        (["--top-k", "-1"], "--top-k must be >= 0"),
        (["--top-p", "0"], "--top-p must be in (0, 1], got 0.0"),
        (["--epsilon", "1"], "--epsilon must be in [0, 1)"),
        (["--refine-steps", "-1"], "--refine-steps must be >= 0, got -1"),
        (["--resample-threshold", "1.5"], "--resample-threshold must be a probability"),
        (["--patch-nums", "1,3,2,4"], "strictly increasing, got [1, 3, 2, 4]"),
        (["--patch-nums", "1,5"], "[5] are no scales of the model, which knows [1, 2, 3, 4]"),
        (["--patch-nums", "1,2"], "--patch-nums [1, 2] must end at the latent side 4"),
        (["--patch-nums", "2,4"], "--patch-nums must begin at scale 1"),
        (["--patch-nums", "1,x"], "--patch-nums takes integers like 1,2,3, got '1,x'"),
        (["--num", "0"], "--num"),
        (["--num", "-3"], "got -3"),
        (["--batch-size", "0"], "--batch-size"),
        (["--device", "gpu"], "no device 'gpu': use cpu, cuda"),
    ],
    ids=lambda value: "".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_option_of_sample(
    refused: Refused, tiny_pipeline: Path, options: list[str], message: str
) -> None:
    assert message in refused("sample", "--model", tiny_pipeline, "--out", "grid.png", *options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_a_device_that_is_not_there(refused: Refused, tiny_pipeline: Path, device: str) -> None:
    found = refused("sample", "--model", tiny_pipeline, "--out", "g.png", "--device", device)
    assert f"--device {device}: torch finds no CUDA device here" in found


def test_a_missing_model(refused: Refused, tmp_path: Path) -> None:
    missing = tmp_path / "gone"
    assert f"{missing} does not exist" in refused("sample", "--model", missing, "--out", "out")


def test_a_directory_of_another_kind_is_no_pipeline(
    refused: Refused, tiny_pipeline: Path, digits_shards: Path, classifier_dir: Path
) -> None:
    for other in (tiny_pipeline / "tokenizer", digits_shards, classifier_dir):
        found = refused("sample", "--model", other, "--out", "grid.png")
        assert f"{other} is no pipeline directory" in found


def test_parts_in_the_wrong_place_are_named(
    refused: Refused, tiny_pipeline: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(tiny_pipeline / "tokenizer", broken / "transformer")
    found = refused("sample", "--model", broken, "--out", "grid.png")
    assert "transformer holds a tokenizer, not a transformer" in found


def test_a_truncated_model_is_named(refused: Refused, tiny_pipeline: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(tiny_pipeline, broken)
    path = broken / "transformer" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    found = refused("sample", "--model", broken, "--out", "grid.png")
    assert f"{path} is a safetensors file that is damaged or cut short" in found


def test_an_incomplete_pipeline_is_named(
    refused: Refused, tiny_pipeline: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(tiny_pipeline, broken)
    (broken / "classes.json").unlink()
    assert "classes.json does not exist" in refused("sample", "--model", broken, "--out", "g.png")
    (broken / "classes.json").write_text('["a", "b"]')
    assert "2 class names for 10" in refused("sample", "--model", broken, "--out", "g.png")
    shutil.copy(tiny_pipeline / "classes.json", broken)
    (broken / "sampler.json").write_text(json.dumps({"cgf": 1.0}))
    assert "unknown setting 'cgf'" in refused("sample", "--model", broken, "--out", "g.png")


def test_a_tokenizer_that_does_not_fit_is_refused(
    refused: Refused, tiny_pipeline: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(tiny_pipeline, broken)
    tokenizer = load_tokenizer(broken / "tokenizer")
    with torch.no_grad():
        tokenizer.quantizer.phi.convs[0].bias[0] += 1
    save_tokenizer(tokenizer, broken / "tokenizer")
    found = refused("sample", "--model", broken, "--out", "grid.png")
    assert "trained for another tokenizer" in found


def test_weights_that_give_nan_are_one_line(
    refused: Refused, tiny_pipeline: Path, tmp_path: Path
) -> None:
    pipeline = load_pipeline(tiny_pipeline)
    with torch.no_grad():
        pipeline.transformer.level_embed.weight[1, 0] = float("nan")
    save_pipeline(pipeline, tmp_path / "poisoned")
    found = refused("sample", "--model", tmp_path / "poisoned", "--out", "grid.png")
    assert "non-finite logits at scale 2x2" in found


def test_a_directory_with_foreign_files_is_kept(
    refused: Refused, tiny_pipeline: Path, tmp_path: Path
) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "me.jpg").write_bytes(b"jpg")
    found = refused("sample", "--model", tiny_pipeline, "--out", "photos")
    assert "photos exists and has no samples" in found
    (tmp_path / "file").write_text("words")
    assert "file exists" in refused("sample", "--model", tiny_pipeline, "--out", "file")


def test_a_directory_named_like_a_grid_is_kept(
    refused: Refused, tiny_pipeline: Path, tmp_path: Path
) -> None:
    (tmp_path / "d.png").mkdir()
    (tmp_path / "d.png" / "note").write_text("words")
    refused("sample", "--model", tiny_pipeline, "--num", 1, "--out", "d.png")


def sampled(monkeypatch: pytest.MonkeyPatch, model: Path, out: str | Path) -> object:
    """Sample one image; returns the exit code. Any other end is a traceback."""
    line = ["srdd", "sample", "--model", str(model), "--num", "1", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", line)
    code: object = 0
    try:
        cli.main()
    except SystemExit as end:
        code = end.code
    return code


def test_foreign_files_beside_earlier_samples_are_kept(
    tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "samples.csv").write_text("file,label,class,seed\n")
    (tmp_path / "notes.txt").write_text("words")
    assert sampled(monkeypatch, tiny_pipeline, tmp_path) in (0, 2)
    assert (tmp_path / "notes.txt").read_text() == "words"


@pytest.mark.parametrize("out", [".", "link"])
def test_a_directory_under_another_name(
    tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "samples.csv").write_text("file,label,class,seed\n")
    monkeypatch.chdir(home if out == "." else tmp_path)
    (tmp_path / "link").symlink_to("home")
    assert sampled(monkeypatch, tiny_pipeline, out) in (0, 2)
    assert (home / "samples.csv").exists()


@pytest.mark.parametrize("out", ["file/grid.png", "file/deep/out"])
def test_an_output_that_cannot_be_made(
    refused: Refused, tiny_pipeline: Path, tmp_path: Path, out: str
) -> None:
    (tmp_path / "file").write_text("words")
    refused("sample", "--model", tiny_pipeline, "--num", 1, "--out", out)


@pytest.mark.parametrize(
    "options",
    [["--seed", str(2**70)], ["--device", "meta"], ["--device", "mps"]],
    ids=" ".join,
)
def test_more_wrong_options_of_sample(
    refused: Refused, tiny_pipeline: Path, options: list[str]
) -> None:
    refused("sample", "--model", tiny_pipeline, "--num", 1, "--out", "grid.png", *options)


def test_a_report_of_nothing(refused: Refused, tmp_path: Path, digits_shards: Path) -> None:
    assert "gone" in refused("report", "gone")
    assert str(digits_shards) in refused("report", digits_shards)
    (tmp_path / "empty").mkdir()
    assert "empty" in refused("report", "empty")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--preset", "cifar"], "no preset 'cifar'; there are digits"),
        (["--max-steps", "0"], "--max-steps must be positive, got 0"),
        (["--batch-size", "0"], "--batch-size must be positive, got 0"),
        (["--lr", "-1"], "--lr must be"),
        (["--lr", "nan"], "--lr must be"),
        (["--workers", "0"], "--workers must be N or A:B with 1 <= A <= B, got 0"),
        (["--seed", "-1"], "--seed must be >= 0"),
    ],
    ids=lambda value: "".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_option_of_train(
    refused: Refused, digits_shards: Path, options: list[str], message: str
) -> None:
    line = ["train", "tokenizer", "--data", digits_shards, "--out", "run", *options]
    assert message in refused(*line)


def test_wrong_data_for_training(
    refused: Refused, tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = ["train", "tokenizer", "--out", "run", "--data"]
    assert "gone is not a directory" in refused(*line, "gone")
    assert "holds no manifest.json" in refused(*line, tiny_pipeline)
    from srdd_platform.data.shards import prepare

    prepare(source="digits", resolution=8, out=tmp_path / "small", workers=1)
    found = refused(*line, "small")
    assert "the preset takes 16 px images, small holds 8 px ones" in found


def test_an_unfinished_or_foreign_tokenizer(
    refused: Refused, digits_shards: Path, tmp_path: Path, tiny_pipeline: Path
) -> None:
    (tmp_path / "half").mkdir()
    write_json(tmp_path / "half" / "config.json", {"kind": "train tokenizer"})
    for command in (["data", "encode"], ["train", "transformer", "--out", "run"]):
        line = [*command, "--data", digits_shards, "--tokenizer"]
        assert "half holds no finished tokenizer: train it first" in refused(*line, "half")
        assert "gone holds no finished tokenizer" in refused(*line, "gone")
    line = ["train", "transformer", "--out", "run", "--data", digits_shards]
    found = refused(*line, "--tokenizer", tiny_pipeline / "transformer")
    assert "holds a transformer, not a tokenizer" in found


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--resolution", "0"], "resolution is a side in pixels, 1 to 8192, got 0"),
        (["--resolution", "8", "--path", "x"], "digits"),
        (["--resolution", "8", "--seed", "-1"], "seed counts from 0"),
        (["--resolution", "8", "--max-bad", "-1"], "--max-bad counts from 0"),
    ],
)
def test_a_wrong_option_of_prepare(refused: Refused, options: list[str], message: str) -> None:
    assert message in refused("data", "prepare", "--source", "digits", "--out", "data", *options)


def test_a_wrong_option_of_fetch_and_encode(
    refused: Refused, digits_shards: Path, tiny_pipeline: Path
) -> None:
    fetch = ["data", "fetch", "--uri", digits_shards, "--out", "copy"]
    assert "--workers counts from 1, got 0" in refused(*fetch, "--workers", "0")
    encode = ["data", "encode", "--data", digits_shards, "--tokenizer", tiny_pipeline]
    assert "--views counts from 1 to 1024, got 0" in refused(*encode, "--views", "0")


def test_preparing_a_folder_that_is_not_there(refused: Refused, tmp_path: Path) -> None:
    line = ["data", "prepare", "--source", "folder", "--resolution", "8", "--out", "data"]
    assert "gone does not exist" in refused(*line, "--path", "gone")
    assert "--path" in refused(*line) or "path" in refused(*line)
    (tmp_path / "images" / "cat").mkdir(parents=True)
    assert "cat has no images" in refused(*line, "--path", "images")


def test_preparing_into_a_foreign_directory(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("words")
    line = ["data", "prepare", "--source", "digits", "--resolution", "8", "--out", "mine"]
    assert "mine is not empty and holds no shards" in refused(*line)


def run_script(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_a_sweep_without_its_data(tiny_pipeline: Path, tmp_path: Path) -> None:
    script = ROOT / "sweeps" / "resample_threshold.py"
    found = run_script(script, "--model", tiny_pipeline, cwd=tmp_path)
    assert found.returncode == 2
    assert "--model and --data go together" in found.stderr
    assert "Traceback" not in found.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_keeps_the_old_grid(tiny_pipeline: Path, tmp_path: Path) -> None:
    """In a process of its own: a file may hold 500 bytes."""
    (tmp_path / "grid.png").write_bytes(b"old")
    code = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))
from srdd_platform.cli.main import main
main()
"""
    (tmp_path / "limited.py").write_text(code)
    found = run_script(
        tmp_path / "limited.py", "sample", "--model", tiny_pipeline, "--out", "grid.png",
        cwd=tmp_path,
    )  # fmt: skip
    assert found.returncode == 2, found.stderr
    assert found.stderr.startswith("srdd: no space left")
    assert found.stderr.count("\n") == 1
    assert snapshot(tmp_path) == {"grid.png": b"old", "limited.py": code.encode()}


@pytest.mark.parametrize(
    "arguments",
    [["sample", "--bogus", "1"], ["paint"], ["sample"], ["sample", "--num", "few"], ["data"]],
    ids=" ".join,
)
def test_what_the_parser_does_not_know(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["srdd", *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"trials": 0}, "--trials must be positive, got 0"),
        ({"num": -1}, "--num must be positive"),
        ({"slots": 0}, "--slots must be positive"),
        ({"batch_size": 0}, "--batch-size must be positive"),
        ({"extractor": "clip"}, "--extractor must be classifier or inception"),
        ({"weights": Path("w")}, "--weights goes with --model"),
        ({"extractor": "inception"}, "--extractor inception needs --weights"),
        ({"model": Path("gone"), "data": Path("gone")}, "--model gone does not exist"),
        ({"data": Path("gone")}, "--model and --data go together"),
    ],
    ids=lambda value: "".join(value) if isinstance(value, dict) else "",
)
def test_a_wrong_option_of_a_sweep(values: dict[str, object], message: str) -> None:
    with pytest.raises(UserError) as caught:
        SweepArgs(**values)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "values", [{"dtype": "float3"}, {"device": "gpu"}, {"num": 49}, {"seed": -1}], ids="".join
)
def test_more_wrong_options_of_a_sweep(values: dict[str, object]) -> None:
    with pytest.raises(UserError):
        SweepArgs(**values)


def ends(error: BaseException, capsys: pytest.CaptureFixture[str]) -> tuple[object, str]:
    def action() -> None:
        raise error

    with pytest.raises(SystemExit) as caught:
        guarded(action)
    return caught.value.code, capsys.readouterr().err


def test_an_interrupt_says_how_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    code, line = ends(KeyboardInterrupt(), capsys)
    assert code == 130
    assert line == "srdd: interrupted; give the same command again to go on\n"


def test_a_missing_permission_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert ends(PermissionError(13, "no", "there"), capsys) == (
        2,
        "srdd: there: permission denied: check its owner and mode, or give another path\n",
    )


def test_a_message_of_many_lines_becomes_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert ends(UserError("one\n  line\nonly"), capsys) == (2, "srdd: one line only\n")


def test_a_bug_keeps_its_traceback() -> None:
    def action() -> None:
        raise KeyError("bug")

    with pytest.raises(KeyError, match="bug"):
        guarded(action)


def test_wrong_input_found_by_a_task_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    text = 'Traceback (most recent call last):\n  File "x.py", line 1\nUserError: shard damaged\n'
    wrapped = RayTaskError(
        "encode", text, UserError("shard damaged"), proctitle="p", pid=1, ip="127.0.0.1"
    ).as_instanceof_cause()
    assert ends(wrapped, capsys) == (2, "srdd: shard damaged\n")
