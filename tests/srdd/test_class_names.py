"""Class names: which class a text means, in every spelling, and which texts are refused."""

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srdd.class_names import classes_of_folders, escaped, find, find_all, normalise, quoted
from srdd.errors import UserError

IMAGENET = ("tench, Tinca tinca", "great white shark, white shark, man-eater", "hen", "crane")
SHOP = ("desk", "lamp", "lamp, desk", "a", "b", "a, b", "b, c")
TWELVE = tuple(sorted(str(i) for i in range(12)))  # 0, 1, 10, 11, 2, ...
FLOWERS = tuple(sorted(str(i) for i in range(1, 13)))
ODD = ("index:2", 'the "big" one', '"quoted"', "index:9", "o'clock", "3 rd", "quoted")


@pytest.mark.parametrize(
    ("names", "text", "label"),
    [
        (IMAGENET, "tench, Tinca tinca", 0),  # openai/CLIP#465: ImageNet's own names
        (IMAGENET, ' "hen" ', 2),
        (IMAGENET, "3", 3),
        (IMAGENET, "03", 3),
        (IMAGENET, "index:0", 0),
        (TWELVE, "2", 4),  # pytorch/vision#714: folder 10 sorts before folder 2
        (TWELVE, "index:2", 2),
        (FLOWERS, "1", 0),
        (("01", "02"), "02", 1),
        (("-1", "one"), "-1", 0),
        (("caf\u00e9", "tea"), "cafe\u0301", 0),  # as macOS writes folders
        (("a b", "c"), "\ufeffa b\r\n", 0),
        (("a b", "c"), "a\r\nb", 0),
        (ODD, "index:2", 2),
        (ODD, '"index:2"', 0),
        (ODD, '"index:9"', 3),
        (ODD, '"quoted"', 2),
        (ODD, '"""quoted"""', 2),
        (ODD, '"the ""big"" one"', 1),
        (ODD, "3 rd", 5),
        (ODD, "1", 1),
        (("٣", "x"), "٣", 0),
        (("caf\\xe9", "tea"), "caf\udce9", 0),  # a terminal that is not UTF-8
    ],
)
def test_a_text_means_one_class(names: tuple[str, ...], text: str, label: int) -> None:
    assert find(names, text) == label
    assert find_all(names, text) == [label]


@pytest.mark.parametrize(
    ("names", "text", "message"),
    [
        (IMAGENET, "4", "no class '4': give an index below 4 or one of \"tench, Tinca tinca\", "),
        (IMAGENET, "SHARK", 'below 4 or one of "great white shark, white shark, man-eater", "ten'),
        (IMAGENET, "-1", "no class '-1'"),
        (IMAGENET, "index:4", "no class 'index:4'"),
        (IMAGENET, "1" * 5000, "no class '1111"),
        (IMAGENET, "index:" + "1" * 5000, "no class 'index:1111"),
        (FLOWERS, "0", 'give index:N with N below 12 or one of "10", "1", "11", "12"'),
        (("01", "02"), "1", "no class '1': give index:N with N below 2 or one of \"01\""),
        (("1.5", "small"), "1", "no class '1': give index:N with N below 2"),
        (ODD, "index:9", "no class 'index:9'"),
        (("crane", "hen", "crane"), "crane", "2 classes are called 'crane': give index:0 or "),
        (("a", "b"), "", "no class ''"),
        (("a", "b"), "\ud800\x1b[31m", r"no class '\ud800\x1b[31m': give"),
        (tuple(f"n{i}" for i in range(99)), "x", '"n0", "n1", "n2", "n3", "n4", "n5", '),
        (tuple(f"n{i}" for i in range(99)), "N98", 'one of "n98", "n0"'),
        (tuple(f"n{i}" for i in range(99)), "98x", '"n10", "n11" ...'),
    ],
)
def test_a_text_that_means_no_class_is_refused_with_what_there_is(
    names: tuple[str, ...], text: str, message: str
) -> None:
    for look_up in (find, find_all):
        with pytest.raises(UserError) as caught:
            look_up(names, text)
        assert message in str(caught.value)
        assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("names", "text", "labels"),
    [
        (SHOP, "lamp, desk", [2]),
        (SHOP, "lamp,desk", [1, 0]),
        (SHOP, '"lamp", desk', [1, 0]),
        (SHOP, '"lamp, desk",lamp', [2, 1]),
        (SHOP, "desk,lamp, desk, lamp", [0, 2, 1]),
        (SHOP, "a, b, c", [3, 6]),  # the longest first would leave c over
        (SHOP, "0, index:1,lamp", [0, 1, 1]),
        (IMAGENET, "hen, tench, Tinca tinca,3", [2, 0, 3]),
        (IMAGENET, ",".join(map(quoted, IMAGENET)), [0, 1, 2, 3]),
        (FLOWERS, "1,10,2", [0, 1, 4]),
        (ODD, '"index:2",index:2,"quoted", quoted', [0, 2, 2, 6]),
    ],
)
def test_a_list_is_cut_where_names_end(
    names: tuple[str, ...], text: str, labels: list[int]
) -> None:
    assert find_all(names, text) == labels


@pytest.mark.parametrize(
    ("names", "text", "wrong"),
    [
        (SHOP, "lamp, desk, chair", "chair"),
        (SHOP, "lamp,,desk", ""),
        (SHOP, "lamp,", ""),
        (SHOP, '"lamp, desk', '"lamp'),
        (IMAGENET, "tench", "tench"),
        (IMAGENET, "ten, tench, Tinca tinca", "ten"),
        (FLOWERS, "0,1", "0"),
    ],
)
def test_a_list_is_refused_by_the_part_that_means_nothing(
    names: tuple[str, ...], text: str, wrong: str
) -> None:
    with pytest.raises(UserError, match=f"no class '{wrong}'"):
        find_all(names, text)


PARTS = [*'",:01 aé\u0301\ufeff\n\u2028', "index:", '","']
WORDS = st.lists(st.sampled_from(PARTS), max_size=5).map("".join)
NAMES = st.lists(
    (WORDS | st.text(max_size=8)).map(lambda text: normalise(escaped(text))).filter(bool),
    min_size=1,
    max_size=6,
    unique=True,
)


@settings(max_examples=60, deadline=None)
@given(names=NAMES, data=st.data())
def test_every_class_can_be_asked_for(names: list[str], data: st.DataObject) -> None:
    for index, name in enumerate(names):
        assert find_all(names, f"index:{index}") == [index]
        if not name.startswith("index:"):
            assert find(names, name) == index
            assert find_all(names, f" {unicodedata.normalize('NFD', name)}\r\n") == [index]
        if quoted(name) not in names:
            assert find_all(names, quoted(name)) == [index]
    plain = [name for name in names if not name.startswith('"')]
    if plain:
        order = data.draw(st.lists(st.sampled_from(range(len(plain))), min_size=1, max_size=5))
        assert find_all(plain, " , ".join(quoted(plain[i]) for i in order)) == order


@settings(max_examples=150, deadline=None)
@given(text=WORDS | st.text(max_size=12))
def test_the_one_form_of_a_name_is_the_same_for_all_its_spellings(text: str) -> None:
    name = normalise(text)
    for form in ("NFC", "NFD"):
        spelled = unicodedata.normalize(form, name)
        assert normalise(f"\ufeff {spelled}\r\n\ufeff") == name
    assert not name[:1].isspace()
    assert not name[-1:].isspace()
    assert len(name.splitlines()) <= 1


@settings(max_examples=100, deadline=None)
@given(raw=st.binary(max_size=12))
def test_a_file_name_of_any_bytes_can_be_shown(raw: bytes) -> None:
    shown = escaped(raw.decode("utf-8", "surrogateescape"))
    assert escaped(shown) == shown
    assert shown == raw.decode("utf-8", "backslashreplace")


def test_the_classes_of_folders_are_in_the_order_of_their_names() -> None:
    folders = ["zebra ", "cafe\u0301", "caf\u00e8", "\ufeffant"]
    found = classes_of_folders(folders, "train")
    assert list(found) == ["ant", "caf\u00e8", "caf\u00e9", "zebra"]
    assert list(found.values()) == ["\ufeffant", "caf\u00e8", "cafe\u0301", "zebra "]


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (["caf\udce9"], r"class folder 'caf\\xe9' in z has a name that is not UTF-8: rename it"),
        (["caf\udc82"], r"class folder 'caf\\x82' in z has"),  # python/cpython#83042
        (["\udce3\udc81"], r"class folder '\\xe3\\x81' in z has"),  # half a letter
        (["a\n\udce9"], r"class folder 'a\\n\\xe9' in z has"),
        (["  "], "class folder '  ' in z has a blank name: rename it"),
        (["cat", "cat "], "class folders 'cat' and 'cat ' in z are both class 'cat': rename one"),
        (["caf\u00e9", "cafe\u0301"], r"'caf\\xe9' and 'cafe\\u0301' in z are both class 'café'"),
    ],
)
def test_folders_that_give_no_name_of_their_own_are_refused(
    folders: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        classes_of_folders(folders, "z")
