"""Locations: what each form means, what is refused, and that no two places are taken for one."""

import io
import os
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from srdd.errors import UserError
from srdd.presets import digits
from srdd_platform.cli.command_line import option_of, parse_command
from srdd_platform.cli.main import Command
from srdd_platform.core.location import parse_location, parse_path
from srdd_platform.core.storage import open_storage
from srdd_platform.data.manifest import Manifest
from srdd_platform.data.remote import fetch
from srdd_platform.data.store import open_store
from srdd_platform.train.checkpoints import last_step
from srdd_platform.train.job import make_job
from srdd_platform.train.options import Options

# Names that a folder can have: no slash, nothing that no location has, not "." or "..".
NAMES = st.text(
    st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="/"), min_size=1, max_size=40
).filter(lambda name: name.strip(". ") and len(name.encode()) < 250)


@settings(max_examples=80, deadline=None)
@given(NAMES, NAMES)
def test_every_form_of_a_folder_reaches_that_folder(first: str, second: str) -> None:
    """intellij-lsp#163: "a file" and "a%20file" were treated as one."""
    with TemporaryDirectory() as root:
        folder = Path(root).resolve() / first / second
        folder.mkdir(parents=True)
        (folder / "here").touch()
        uri = folder.as_uri()
        forms = [
            str(folder), f"{folder}/", uri, f"{uri}/", uri.replace("file://", "FILE:"),
            uri.replace("file://", "file://localhost"), str(folder).replace("/", "//"),
        ]  # fmt: skip
        if "%" not in str(folder):  # as a person writes it, without encoding
            forms.append(f"file://{folder}".replace("?", "%3F"))
        for form in forms:
            location = parse_location(form)
            assert location.local is not None
            assert (location.local / "here").exists(), form
            assert str(parse_location(str(location))) == str(location)
        assert str(parse_location(str(folder))) == str(folder)
        assert str(parse_location(uri)) == uri


@settings(max_examples=80, deadline=None)
@given(st.lists(NAMES, min_size=1, max_size=3), st.lists(NAMES, min_size=1, max_size=3))
def test_two_folders_of_a_store_are_never_taken_for_one(one: list[str], other: list[str]) -> None:
    def text(parts: list[str]) -> str:
        return "s3://bucket/" + "/".join(parts).replace("%", "%25").replace("?", "%3F")

    first, second = (parse_location(text(parts)) for parts in (one, other))
    assert first.path == "/".join(one)
    assert (str(first) == str(second)) == (one == other)
    assert parse_location(str(first)) == first


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(["", "s3://", "file:", "FILE://", "s3:", "gs://b/", "x://", "C:", "~", " "]),
    st.text(max_size=30),
)
def test_any_text_is_a_location_or_refused_in_one_line(start: str, rest: str) -> None:
    message = "--data"
    try:
        parse_location(start + rest, "--data")
    except UserError as error:
        message = str(error)
    assert "--data" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("s3://b/x", "s3://b/x"),
        ("S3://b/x//", "s3://b/x"),
        ("s3://b/a b", "s3://b/a%20b"),
        ("s3://b/a%20b", "s3://b/a%20b"),
        ("s3://b/run#3", "s3://b/run%233"),
        ("s3://b/größe", "s3://b/gr%C3%B6%C3%9Fe"),
        ("s3://b/a+b%2Bc", "s3://b/a%2Bb%2Bc"),
        ("s3://b/100%25?region=eu-west-1", "s3://b/100%25?region=eu-west-1"),
        ("s3://b/a?region=x#y", "s3://b/a?region=x%23y"),
        ("gs://anonymous@b/x", "gs://anonymous@b/x"),
        ("hdfs://user@host:8020/x", "hdfs://user@host:8020/x"),
        ("hf://datasets/o/n@refs%2Fpr", "hf://datasets/o/n@refs%2Fpr"),
        ("file:/x/y", "file:///x/y"),
        ("file:////x//y", "file:///x/y"),
        ("file://LOCALHOST/x", "file:///x"),
        ("file:///x?y=1#z", "file:///x%3Fy%3D1%23z"),
        ("/x//y/", "/x/y"),
        ("/x/a%20b#c?d", "/x/a%20b#c?d"),
        ("/C:/data", "/C:/data"),
        ("/x/ ", "/x/ "),
    ],
)
def test_a_location_has_one_normal_form(text: str, normal: str) -> None:
    assert str(parse_location(text)) == normal
    assert str(parse_location(normal)) == normal


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "--data is empty: give a path or a URI"),
        ("  ", "--data is empty"),
        ("a\0b", "control character"),
        ("runs/a\n", "line break"),
        ("file:///a%0Ab", "line break"),
        ("caf\udce9", "is not UTF-8"),
        ("s3://b/caf%E9", "what % stands for is not UTF-8"),
        ("s3://b/100%", "write %25 for a % in a URI"),
        ("s3://b/what?", "write %3F for a \\? in a name"),
        ("s3://b/a?b/c", "write %3F for a \\? in a name"),
        ("s3://b/a//b", "look for doubled slashes"),
        ("s3://b/../a", "'', '.' or '..'"),
        ("s3:///a", "'' is not the name of a bucket: give s3://BUCKET/FOLDER"),
        ("s3://b:80/a", "'b:80' is not the name of a bucket"),
        ("s3:/b/a", "a URI has two slashes: s3://b/a"),
        (" s3://b/a", "remove the blanks before the URI"),
        ("file://data/a", "'data' is in the place of a host: give file:///FOLDER"),
        ("file://~/a", "'~' is in the place of a host"),
        ("file:a", "give file:///FOLDER with three slashes"),
        ("https://host/a", "the scheme https is not known; known are file, s3"),
        ("C:\\data", "is a path of Windows"),
        ("d:/data", "is a path of Windows"),
        ("\\\\server\\share", "is a path of Windows"),
    ],
)
def test_what_is_no_location_is_refused_with_what_to_do(text: str, why: str) -> None:
    with pytest.raises(UserError, match=why.replace("(", r"\(")) as caught:
        parse_location(text, "--data")
    assert str(caught.value).startswith(("--data", "'--data"))


@pytest.mark.parametrize(
    "text",
    [
        "s3://key:hunter2@b/x",
        "s3://key:hun/ter2@b/x",  # a secret of AWS may have a slash
        "s3://hunter2@b/x",
        "S3://b/x?secret_key=hunter2",
        "s3://b/x?region=a&session_token=hunter2",
        "https://b.host/x?X-Amz-Signature=hunter2",
        "abfs://:hunter2@account/x",
        "file:///x?password=hunter2",
    ],
)
def test_credentials_are_refused_and_not_repeated(text: str) -> None:
    for parse in (parse_location, parse_path):
        with pytest.raises(UserError, match="--data has credentials in it") as caught:
            parse(text, "--data")
        assert "hun" not in str(caught.value)


def test_a_path_that_only_looks_like_something_else_is_a_path_where_it_exists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("C:\\data", "D:/data", "s3:/b", "file:x"):
        Path(name).mkdir(parents=True)
        assert str(parse_location(name)) == str(tmp_path / name)
    for name in ("run:1", "foo:/bar", "~user", "a~/b", "./~/x"):
        assert str(parse_location(name)) == os.path.abspath(name)
    assert str(parse_location("~/x y")) == str(tmp_path / "home" / "x y")
    assert str(parse_location("~")) == str(tmp_path / "home")
    Path("loop").symlink_to("loop")
    with pytest.raises(UserError, match="--out loop/x is a symbolic link that leads back"):
        parse_path("loop/x", "--out")


def test_the_option_of_a_value_is_the_one_that_was_typed() -> None:
    arguments = ["sample", "--model", "a", "--init_from=b=c", "d"]
    assert [option_of(text, arguments) for text in ("a", "b=c", "d")] == [
        "--model", "--init_from", "",
    ]  # fmt: skip


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["srdd", *arguments])
    parse_command(Command).run(Console(file=io.StringIO()))


BUCKET = "s3://bucket/x"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("sample", "--model", "m", "--out"), BUCKET),
        (("sample", "--model", "m", "--out"), "file://host/x"),
        (("sample", "--out", "o", "--model"), "C:\\x"),
        (("report",), ""),
        (("serve",), BUCKET),
        (("data", "prepare", "--source", "digits", "--resolution", "16", "--out"), BUCKET),
        (("data", "encode", "--data", "d", "--tokenizer"), BUCKET),
        (("data", "fetch", "--uri", "file:///d", "--out"), BUCKET),
        (("train", "classifier", "--data", "d", "--out", "o", "--cache"), ""),
        (("train", "tokenizer", "--data", "d", "--out", "o", "--lpips"), BUCKET),
        (("train", "transformer", "--data", "d", "--tokenizer", "t", "--out"), "D:/x"),
    ],
)
def test_every_option_that_takes_a_path_refuses_what_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], text: str
) -> None:
    """whylogs#107: a folder called "s3:" appeared in the working directory."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        run(monkeypatch, *arguments, text)
    option = arguments[-1] if len(arguments) > 1 else text or "a location"
    assert str(caught.value).startswith(option)
    assert text in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("data", "fetch", "--out", "o", "--uri"),
        ("data", "encode", "--tokenizer", "t", "--data"),
        ("train", "classifier", "--out", "o", "--data"),
        ("train", "classifier", "--out", "o", "--data", "d", "--checkpoints"),
        ("sample", "--out", "o", "--model"),
    ],
)
def test_no_command_repeats_credentials_or_takes_an_empty_location(
    monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    for text, why in (("s3://key:hunter2@bucket/x", "has credentials"), ("", "is empty")):
        with pytest.raises(UserError, match=f"{arguments[-1]} {why}") as caught:
            run(monkeypatch, *arguments, text)
        assert "hunter2" not in str(caught.value)


KEYS = ["run#3", "what?", "a b", "100%", "a%20b", "a+b&c=d", "größe/研究", "a;b,c'd", "~"]


def test_keys_of_a_bucket_are_told_apart(bucket: str, tmp_path: Path) -> None:
    """airflow#41796, sagemaker-python-sdk#2229, metaflow#2156: a # cut the key."""
    places = {}
    for number, key in enumerate(KEYS):
        uri = f"{bucket}/{key.replace('%', '%25').replace('?', '%3F')}/c"
        places[key] = storage = open_storage("run", str(parse_location(uri)))
        assert storage.root == f"models/{key}/c"
        storage.check()
        record = {"checkpoint_results": [{"checkpoint_dir_name": f"step_{number:06d}"}]}
        with storage.filesystem.open_output_stream(
            storage.path("checkpoint_manager_snapshot.json")
        ) as stream:
            stream.write(str(record).replace("'", '"').encode())
    assert [last_step(storage) for storage in places.values()] == list(range(len(KEYS)))


@pytest.mark.parametrize("name", ["run #3?", "100% größe"])
def test_data_is_read_from_any_folder_in_any_form(
    name: str, digits_shards: Path, tmp_path: Path
) -> None:
    folder = tmp_path / name / "shards"
    shutil.copytree(digits_shards, folder)
    manifest = Manifest.load(digits_shards)
    for form in (str(folder), folder.as_uri(), f"{folder}/"):
        store = open_store(form, tmp_path / "cache", 1.0)
        assert store.manifest.fingerprint == manifest.fingerprint
        out = tmp_path / f"copy{len(list(tmp_path.iterdir()))}"
        assert fetch(form, out).fingerprint == manifest.fingerprint


def test_a_job_s_locations_are_the_same_as_those_that_old_runs_recorded(
    digits_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for place, kept in (("kept", str(tmp_path / "kept")), ("s3://b/run", "s3://b/run"),
                        ("file:///mnt/run", "file:///mnt/run")):  # fmt: skip
        options = Options(checkpoints=place, cache=Path("c"))
        for data in (str(digits_shards), digits_shards.as_uri()):
            job = make_job("classifier", digits(), data, Path("run"), options)
            assert (job.data, job.runtime.checkpoints, job.run) == (
                data,
                kept,
                str(tmp_path / "run"),
            )
