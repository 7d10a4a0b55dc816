"""The data commands: recipes, and options that do not go together."""

import sys
from pathlib import Path

import pytest
from PIL import Image

from srdd_platform.cli import main as cli
from srdd_platform.data.manifest import Manifest


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """CIFAR-10's classes, one image each in train and test."""
    for part in ("train", "test"):
        for name in "abcdefghij":
            (tmp_path / "tree" / part / name).mkdir(parents=True)
            Image.new("RGB", (32, 32)).save(tmp_path / "tree" / part / name / "0.jpg")
    return tmp_path / "tree"


def srdd(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    return command(monkeypatch, "data", "prepare", *arguments)


def command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["srdd", *map(str, arguments)])
    try:
        cli.main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_a_recipe_has_its_own_size(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["--recipe", "cifar10", "--path", tree, "--out", tmp_path / "out"]
    assert srdd(monkeypatch, *line) == 2
    printed = capsys.readouterr()
    assert "expects 10 classes, 50,000 training and 10,000 held-out images" in printed.err
    assert printed.err.count("\n") == 1
    assert not (tmp_path / "out").exists()
    assert srdd(monkeypatch, *line, "--allow-counts", "--keep", "1.125") == 0
    printed = capsys.readouterr()
    assert "10 classes, train 10, val 10 images" in printed.out
    assert "not the published set" in printed.out
    manifest = Manifest.load(tmp_path / "out")
    assert (manifest.settings.source, manifest.resolution, manifest.stored_side) == (
        "cifar10", 32, 36,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "give either --source or --recipe"),
        (["--source", "folder", "--recipe", "ffhq"], "give either --source or --recipe"),
        (["--source", "digits"], "source digits has no size of its own: give --resolution"),
        (["--recipe", "ffhq"], "recipe ffhq needs a path"),
        (["--recipe", "ffhq", "--path", "x", "--keep", "9"], "keep lies between 1 and 4, got 9"),
    ],
)
def test_options_that_do_not_go_together(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    options: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert srdd(monkeypatch, "--out", "out", *options) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "line", [("train", "classifier", "--out", "run"), ("data", "encode", "--tokenizer", "model")]
)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data", "file:///nowhere/x"], "cannot read file:///nowhere/x/manifest.json"),
        (["--data", "s3://me:hidden@bucket/x"], "--data has credentials in it"),
        (["--data", "x", "--cache-gb", "0"], "--cache-gb must be positive, got 0"),
        (["--data", "x", "--max-bad", "-1"], "--max-bad must be >= 0, got -1"),
    ],
)
def test_shards_that_cannot_be_read(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    line: tuple[str, ...],
    options: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command(monkeypatch, *line, *options) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert "hidden" not in printed.err
    assert printed.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_what_is_left_aside_is_printed_on_lines_that_are_not_wrapped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Through a pipe, where a terminal is taken to have 80 columns."""
    name = "a_folder_with_a_name_that_is_as_long_as_a_line_on_a_terminal_and_longer_than_that"
    for part, num in (("train", 6), ("valid", 2), ("test", 3)):
        (tmp_path / "in" / part / name).mkdir(parents=True)
        for i in range(num):
            Image.new("RGB", (8, 8)).save(tmp_path / "in" / part / name / f"{i}.png")
    (tmp_path / "in" / "train" / name / "5.png").write_bytes(b"<html>")
    Image.new("RGB", (8, 8)).save(
        tmp_path / "in" / "train" / name / "4.png",
        save_all=True,
        append_images=[Image.new("RGB", (8, 8), "red")],
    )
    (tmp_path / "in" / ".DS_Store").touch()
    line = ["--source", "folder", "--path", tmp_path / "in", "--resolution", 8]
    for _ in range(2):  # given again it prints the same
        assert srdd(monkeypatch, *line, "--out", tmp_path / "out") == 0
        printed = capsys.readouterr()
        assert printed.out.splitlines() == [
            f"{tmp_path / 'out'}: 1 class, train 5, val 2 images",
            "Split: train/ is trained on, valid/ is held out",
            "Note: 3 images in test/, not used: valid/ is held out instead",
            "Note: 1 hidden or of the system (.DS_Store)",
            "Note: 1 animated or of many pages: the first image is taken",
            f"skipped train/{name}/5.png: an HTML page, not an image: download it again",
        ]
        assert printed.err == ""


def test_the_limit_on_damage_is_named_as_its_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The advice given works."""
    (tmp_path / "in" / "cat").mkdir(parents=True)
    for i in range(6):
        Image.new("RGB", (8, 8)).save(tmp_path / "in" / "cat" / f"{i}.png")
    (tmp_path / "in" / "cat" / "6.png").touch()
    line = ["--source", "folder", "--path", tmp_path / "in", "--resolution", 8, "--out",
            tmp_path / "out", "--max-bad"]  # fmt: skip
    assert srdd(monkeypatch, *line, 0) == 2
    assert "or allow more by --max-bad (first: cat/6.png: not an" in capsys.readouterr().err
    assert srdd(monkeypatch, *line, 1) == 0
