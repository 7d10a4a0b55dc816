"""JSON files: what is read, and where a damaged one is wrong."""

from pathlib import Path

import pytest

from srdd.errors import UserError
from srdd.json_files import parse_json, read_json


@pytest.mark.parametrize(
    ("data", "value"),
    [(b'{"a": [1, null]}', {"a": [1, None]}), (b'\xef\xbb\xbf"caf\xc3\xa9"', "café")],
)
def test_json_is_read_with_or_without_a_byte_order_mark(
    tmp_path: Path, data: bytes, value: object
) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(data)
    assert read_json(path) == value


@pytest.mark.parametrize(
    ("data", "where"),
    [
        (b"", "line 1, column 1"),
        (b'{"a": 1,\n "b"', "line 2, column 5"),
        (b'{"a": "\xff"}', "byte 7 is not UTF-8"),
        (b'{"a": 1}\0\0', "line 1, column 9"),
        (b"[" * 100_000, "its lists are nested too deeply"),
        (b"[" + b"1" * 5000 + b"]", "a number is too long"),
    ],
)
def test_damaged_json_is_refused_with_the_place(data: bytes, where: str) -> None:
    with pytest.raises(UserError) as refused:
        parse_json(data, "config.json")
    assert str(refused.value) == (
        f"config.json is not valid JSON ({where}): it is damaged or cut short, restore it"
    )
