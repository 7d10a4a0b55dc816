"""The form that every message about wrong input has, whoever raises it."""

import re
from dataclasses import fields, is_dataclass
from typing import Any, get_args, get_type_hints

MOST_CHARACTERS = 400
_PATH = re.compile(r"(?:[a-z][a-z0-9+.-]*:/)?(?:/[^\s:,;'\"]+)+/?")
_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"|`[^`]*`")
_LIBRARY = (  # words of Python and of libraries, which say nothing to a user of ours
    r"\[Errno \d+\]",
    r"Traceback",
    r"\b[A-Z]\w*(?:Error|Exception)\b",
    r"<class '",
    r"\bat 0x[0-9a-f]{6,}",
    r"object has no attribute",
    r"NoneType",
    r"size mismatch for",
    r"unexpected keyword argument",
    r"invalid literal for",
    r"could not convert string",
    r"not subscriptable",
    r"codec can't (?:de|en)code",
    r"Weights only load failed",
    r"list index out of range",
)


def faults(message: str) -> list[str]:
    """What is wrong with the form of a message: it must be one line that a person can act on."""
    found = []
    if "\n" in message or "\r" in message:
        found.append("it has more than one line")
    if message != message.strip():
        found.append("it begins or ends with blanks")
    text = re.sub(r"\S{60,}", "NAME", _PATH.sub("PATH", message))
    if len(text) > MOST_CHARACTERS:
        found.append(f"it has {len(text)} characters without paths and long names")
    if len(re.findall(r"[a-zA-Z]{2,}", text.replace("PATH", ""))) < 2:
        found.append("it has a path or a name and no words")
    bare = _QUOTED.sub("QUOTED", text)
    found += [f"a library speaks: {each[0]!r}" for each in _matches(bare)]
    return found


def field_names_in(line: str, names: frozenset[str]) -> list[str]:
    """Options that a line of the command line calls by their fields' names."""
    if ".json" in line:  # there the setting has this name
        return []
    bare = _QUOTED.sub("QUOTED", _PATH.sub("PATH", line))
    return sorted(names & set(re.findall(r"(?<![\w-])[a-z]+(?:_[a-z]+)+\b", bare)))


def option_fields(command: Any) -> frozenset[str]:
    """Names with an underscore of all options of a command line's types."""
    found: set[str] = set()
    for kind in get_args(command) or (command,):
        if isinstance(kind, type) and is_dataclass(kind):
            hints = get_type_hints(kind)
            for field in fields(kind):
                inner = option_fields(hints[field.name])
                found |= inner or ({field.name} if "_" in field.name else set())
        elif get_args(kind):
            found |= option_fields(kind)
    return frozenset(found)


def _matches(text: str) -> list[re.Match[str]]:
    return [match for pattern in _LIBRARY if (match := re.search(pattern, text))]
