"""Label files in the forms in which they are handed out; each says the same four classes."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srdd.class_names import normalise, quoted
from srdd.errors import UserError
from srdd_platform.data.label_files import read_class_names

NAMES = ["tench, Tinca tinca", "goldfish", "café", 'the "big" one']
WNIDS = ["n01440764", "n01443537", "n01484850", "n01491361"]
LINES = 'tench, Tinca tinca\ngoldfish\ncafé\nthe "big" one\n'
TABLE = 'index{0}name\n0{0}"tench, Tinca tinca"\n1{0}goldfish\n2{0}café\n3{0}"the ""big"" one"\n'
WORDS = "".join(f"{wnid} {name}\n" for wnid, name in zip(WNIDS, NAMES, strict=True))
JSON = '["tench, Tinca tinca", "goldfish", "caf\\u00e9", "the \\"big\\" one"]'
BY_INDEX = '{"1": "goldfish", "0": "tench, Tinca tinca", "2": "café", "3": "the \\"big\\" one"}'
BACKWARDS = '{"goldfish": 1, "tench, Tinca tinca": 0, "café": 2, "the \\"big\\" one": 3}'
PAIRS = (
    '{"0": ["n01440764", "tench, Tinca tinca"], "1": ["n01443537", "goldfish"],'
    ' "2": ["n01484850", "café"], "3": ["n01491361", "the \\"big\\" one"]}'
)


@pytest.mark.parametrize(
    "content",
    [
        LINES,
        LINES.replace("\n", "\r\n") + "\r\n \r\n",
        f"\ufeff{LINES}",
        LINES.encode("utf-16"),  # as PowerShell's > writes it
        LINES.replace("café", "cafe\u0301"),
        "\n".join(map(quoted, NAMES)),
        TABLE.format(","),
        TABLE.format(";").replace("\n", "\r\n"),
        TABLE.format("\t").removeprefix("index\tname\n"),
        "".join(f"{i} {name}\n" for i, name in enumerate(NAMES)),
        "".join(f"{i}: {name}\n" for i, name in reversed(list(enumerate(NAMES)))),
        "".join(f"{i} {name}\n" for i, name in enumerate(NAMES, start=1)),  # CUB's classes.txt
        "".join(f"{name} {i}\n" for i, name in enumerate(NAMES)),  # categories_places365.txt
        "class,id\n" + "".join(f'{quoted(name)},"{i}"\n' for i, name in enumerate(NAMES)),
        WORDS,  # synset_words.txt
        "".join(f"{i},{line.replace(' ', ',', 1)}\n" for i, line in enumerate(WORDS.splitlines())),
        JSON,
        f"\ufeff{JSON}\r\n",
        BY_INDEX,
        BACKWARDS,  # torchvision's class_to_idx
        PAIRS,  # imagenet_class_index.json
        f'{{"architectures": ["ViT"], "id2label": {BY_INDEX}, "label2id": {BACKWARDS}}}',
        str(dict(enumerate(NAMES))),  # imagenet1000_clsidx_to_labels.txt: a Python literal
    ],
)
def test_every_form_of_a_label_file_gives_the_same_names(
    tmp_path: Path, content: str | bytes
) -> None:
    path = tmp_path / "labels"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert read_class_names(path) == NAMES


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ("0\n1\n2\n", ["0", "1", "2"]),
        ("7 up\n3 rd\n", ["7 up", "3 rd"]),
        ("class 0\nclass 1\n", ["class 0", "class 1"]),
        ("n01440764\nn01443537\n", ["n01440764", "n01443537"]),
        ("[a]\n{b}\n", ["[a]", "{b}"]),
        ("{'a', 'b'}", ["{'a', 'b'}"]),  # a Python set has no order
        ("crane\nhen\ncrane\n", ["crane", "hen", "crane"]),  # ImageNet has two cranes
        ("001.ak47\n002.american-flag\n", ["001.ak47", "002.american-flag"]),  # Caltech-256
    ],
)
def test_a_name_that_looks_like_another_form_stays_whole(
    tmp_path: Path, content: str, names: list[str]
) -> None:
    (tmp_path / "labels.txt").write_text(content)
    assert read_class_names(tmp_path / "labels.txt") == names


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", "must hold class names in label order"),
        ("a.json", b"{}", "must hold class names in label order"),
        ("a.txt", b"a\n\nb\n", "must hold class names in label order, none of them empty"),
        ("a.json", b'["a", "\xc2\xa0"]', "none of them empty"),
        ("a.json", b'["a", 1]', "must hold class names"),
        ("a.json", b'{"0": "a", "2": "b"}', "must name the indices 0 to 1, or 1 to 2, each once"),
        ("a.txt", b'{"a": "b"}', "must name the indices 0 to 0"),
        ("a.txt", b"caf\xe9\n", "is not UTF-8 text: save it as UTF-8"),
        ("a.txt", b"\xff\xfe\x00", "is not UTF-8 text"),
        ("a.txt", b"n02119789 kit fox\nn02100735 setter\n", "in the order of ImageNet's identif"),
        ("a.json", b'[["n02119789", "kit"], ["n02100735", "setter"]]', "ImageNet's identifiers"),
        ("a.json", b"[" * 100_000, "is not valid JSON: write a list of names"),
        ("a.json", b"tench\n", "is not valid JSON"),
    ],
)
def test_another_file_is_refused_in_one_line(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_class_names(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_folder_is_refused_as_a_label_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a directory: give a file"):
        read_class_names(tmp_path)


NAME = st.text(st.sampled_from('abc ,;"é01'), min_size=1, max_size=8).map(normalise).filter(bool)


@settings(max_examples=60, deadline=None)
@given(names=st.lists(NAME, min_size=2, max_size=5, unique=True), mark=st.sampled_from(",;\t "))
def test_names_written_as_a_table_are_read_back(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], mark: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "table.csv"
    path.write_text("".join(f"{i}{mark}{quoted(name)}\n" for i, name in enumerate(names)))
    assert read_class_names(path) == names
