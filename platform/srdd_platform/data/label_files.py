"""Class names from a label file, in every form in which such files are handed out.

The text is UTF-8, with or without a byte order mark, or UTF-16 with one. It is read by the first
of these rules that fits:

1. JSON, or a Python literal: a list of names; an object from index to name or from name to index;
   or an object with one of these under ``id2label``, ``label2id``, ``class_to_idx`` or ``names``.
   A name may be a pair of an identifier and a name: ``{"0": ["n01440764", "tench"]}``.
2. Lines of an index and a name (``0 tench``, ``0: tench``, ``0,"tench, Tinca tinca"``) or of a name
   and an index (``tench,0``), below a header or not. Indices count from 0 or 1, without gaps.
3. Lines of a name each.

Lines are then freed of ImageNet's identifiers (``n01440764 tench, Tinca tinca``), where all have
one and a name behind it, and of the double quotes of CSV.
"""

import ast
import json
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from srdd.class_names import readable, unquoted
from srdd.errors import UserError
from srdd_platform.core.files import read_text

_KEYS = ("id2label", "label2id", "class_to_idx", "names")
_INDEX_FIRST = re.compile(r'"?(?P<index>\d{1,9})"?\s*[\s,;:]\s*(?P<name>\S.*)')
_INDEX_LAST = re.compile(r'(?P<name>.*\S)\s*[\s,;:]\s*"?(?P<index>\d{1,9})"?')
_WNID_FIRST = re.compile(r'"?(?P<wnid>n\d{8})"?\s*[\s,;:]\s*(?P<name>\S.*)')


def read_class_names(path: Path) -> list[str]:
    """Class names in label order, each in its one form.

    Raises:
        UserError: the file is missing or no text, an index is missing, a name is blank, or
            ImageNet's identifiers are in another order than labels are.
    """
    text = read_text(path)
    value = _parsed(text)
    if value is None and path.suffix.lower() == ".json":
        raise UserError(f"{path} is not valid JSON: write a list of names, or an object from index "
                        "to name")  # fmt: skip
    if value is None:
        wnids, names = _of_lines(text)
    else:
        wnids, names = _of_value(path, value)
    if wnids != sorted(wnids):
        raise UserError(f"{path} is not in the order of ImageNet's identifiers ({wnids[0]} ...), "
                        "which is the order of labels: sort its lines by them")  # fmt: skip
    if not names or not all(isinstance(name, str) and readable(name) for name in names):
        raise UserError(f"{path} must hold class names in label order, none of them empty")
    return [readable(name) for name in names]


def _parsed(text: str) -> Any:
    """A list or an object written as JSON or as a Python literal; None for another text."""
    text = text.strip()
    if not text.startswith(("[", "{")):
        return None
    for parse in (json.loads, ast.literal_eval):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", SyntaxWarning)
                value = parse(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(value, list | dict):  # a Python set has no order
            return value
    return None


def _of_value(path: Path, value: Any) -> tuple[list[str], list[Any]]:
    """ImageNet's identifiers, where there are any, and names."""
    if isinstance(value, dict):
        value = next((value[k] for k in _KEYS if isinstance(value.get(k), dict | list)), value)
    if isinstance(value, dict):
        backwards = all(type(index) is int for index in value.values())
        names, keys = list(value), list(value.values())
        if not backwards:
            names, keys = keys, names
        indices = [int(key) if re.fullmatch(r"\d{1,9}", str(key)) else -1 for key in keys]
        value = _ordered(indices, names)
        if value is None:
            raise UserError(f"{path} must name the indices 0 to {len(keys) - 1}, or 1 to "
                            f"{len(keys)}, each once")  # fmt: skip
    pairs = [e if isinstance(e, list | tuple) and len(e) == 2 else (None, e) for e in value]
    wnids = [str(first) for first, _ in pairs if re.fullmatch(r"n\d{8}", str(first))]
    return wnids, [name for _, name in pairs]


def _of_lines(text: str) -> tuple[list[str], list[str]]:
    """ImageNet's identifiers, where there are any, and names."""
    lines = [line.strip() for line in text.strip().splitlines()]
    for form in (_INDEX_FIRST, _INDEX_LAST):
        if indexed := _indexed(form, lines):
            lines = indexed
            break
    wnids: list[str] = []
    found = [_WNID_FIRST.fullmatch(line) for line in lines]
    if lines and all(found):
        wnids = [match["wnid"] for match in found if match]
        lines = [match["name"] for match in found if match]
    return wnids, [unquoted(line) for line in lines]


def _indexed(form: re.Pattern[str], lines: Sequence[str]) -> list[str] | None:
    """The names of lines that have an index each, in their order; None if these are others."""
    for rows in (lines, lines[1:]):  # below a header
        found = [match for line in rows if (match := form.fullmatch(line))]
        names = _ordered([int(m["index"]) for m in found], [m["name"] for m in found])
        if len(found) == len(rows) and names is not None and len(set(names)) > 1:
            return names
    return None


def _ordered(indices: Sequence[int], names: Sequence[Any]) -> list[Any] | None:
    """Names by their indices, which count from 0 or from 1; None if they do not."""
    first = min(indices, default=0)
    if first not in (0, 1) or sorted(indices) != list(range(first, first + len(indices))):
        return None
    return [name for _, name in sorted(zip(indices, names, strict=True), key=lambda row: row[0])]
