"""Class names: the one form of a name, and the one order of rules by which a text means a class.

Folders, tables, label files, the command line and requests spell a name in different ways. Each
spelling is brought to one form first: NFC, on one line, without blanks or a byte order mark around
it. Then a text means a class by the first of these rules that applies:

1. ``index:2`` is always the class of index 2.
2. A class's name means that class, with its commas, quotes, digits and blanks.
3. A text in double quotes means what is inside them, by rules 2, 1 and 4 (``""`` is one quote).
   Quotes ask for a class that is called ``index:2``.
4. A number is an index where no class's name is a number.

Everything else is refused, and so is a name that several classes have.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from srdd.errors import UserError

_LINE_END = re.compile("\r\n|[\n\v\f\r\x1c-\x1e\x85\u2028\u2029]")
_INDEX = re.compile(r"index:(\d+)")
_NUMBER = re.compile(r"[+-]?\d+([.,]\d+)?")
_QUOTED = re.compile(r'"((?:[^"]|"")*)"')
_SHOWN = 12  # names in a message


def normalise(text: str) -> str:
    """The one form of a name: NFC, on one line, no blanks or byte order mark around it."""
    before, name = "", unicodedata.normalize("NFC", _LINE_END.sub(" ", text))
    while name != before:
        before, name = name, name.strip().strip("\ufeff")
    return name


def escaped(text: str) -> str:
    r"""A text that UTF-8 can hold: "café" with a Latin-1 byte for its é is shown as ``caf\xe9``.

    Python reads bytes of a file name that are not UTF-8 as lone surrogates; no file or terminal
    takes those. Any other text is returned as it is.
    """
    try:
        raw = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raw = text.encode("utf-8", "backslashreplace")
    return raw.decode("utf-8", "backslashreplace")


def readable(text: str) -> str:
    """The one form of a name, escaped where UTF-8 cannot hold it."""
    return normalise(escaped(text))


def shown(text: str) -> str:
    """A text for a message: on one line, with what cannot be printed escaped."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in escaped(text)
    )


def quoted(name: str) -> str:
    """A name in double quotes, as :func:`find` and :func:`find_all` take it."""
    return '"' + name.replace('"', '""') + '"'


def unquoted(text: str) -> str:
    """What is inside a text that is in double quotes as a whole; any other text as it is."""
    inside = _QUOTED.fullmatch(text)
    return text if inside is None else inside[1].replace('""', '"')


def classes_of_folders(folders: Iterable[str], where: str) -> dict[str, str]:
    """The class that each folder of one split holds.

    Args:
        folders: their names.
        where: the folder that they are in, for messages.

    Returns:
        Class name -> folder, in the order of the class names.

    Raises:
        UserError: a name is blank or cannot be written as UTF-8, or two folders have one name.
    """
    found: dict[str, str] = {}
    for folder in folders:
        this = f"class folder '{shown(folder)}' in {shown(where)}"
        try:
            name = normalise(folder.encode("utf-8", "surrogateescape").decode("utf-8"))
        except UnicodeError:
            raise UserError(f"{this} has a name that is not UTF-8: rename it") from None
        if not name:
            raise UserError(f"{this} has a blank name: rename it")
        if name in found:
            raise UserError(
                f"class folders {found[name]!a} and {folder!a} in {shown(where)} are both class "
                f"'{shown(name)}': rename one, or put their images together"
            )
        found[name] = folder
    return dict(sorted(found.items()))


def find(names: Sequence[str], text: str) -> int:
    """The index of the class that a text means, by the rules of this module.

    Args:
        names: of all classes in label order, in their one form.
        text: as a user typed it.

    Raises:
        UserError: the text means no class, or several.
    """
    return _Lookup.of(names).one(text)


def find_all(names: Sequence[str], text: str) -> list[int]:
    """The indices of the classes that a comma-separated list means.

    Names may have commas themselves: from left to right the longest text that means a class is
    taken, if the rest of the list can be read after it. So a list that is a class's name as a
    whole means that class alone.

    Raises:
        UserError: a part of the list means no class, or several.
    """
    lookup, pieces = _Lookup.of(names), text.split(",")
    widest = 1 + max(name.count(",") for name in names)

    def ends(begin: int) -> list[int]:
        """Where texts that begin at a piece and mean a class end, the longest first."""
        last = min(len(pieces), begin + widest)
        return [e for e in range(last, begin, -1) if lookup.meant(",".join(pieces[begin:e]))]

    following: dict[int, list[int]] = {}
    rest_is_read = {len(pieces)}  # where the rest of the list can be read from
    for begin in reversed(range(len(pieces))):
        following[begin] = ends(begin)
        if rest_is_read.intersection(following[begin]):
            rest_is_read.add(begin)
    found, begin = [], 0
    while begin < len(pieces):
        choices = following[begin]
        end = next((e for e in choices if e in rest_is_read), choices[0] if choices else begin + 1)
        found.append(lookup.one(",".join(pieces[begin:end])))
        begin = end
    return found


@dataclass(frozen=True, slots=True)
class _Lookup:
    """Class names, ready to be looked up."""

    names: Sequence[str]
    by_name: dict[str, list[int]]
    counts: bool  # whether a number is an index

    @classmethod
    def of(cls, names: Sequence[str]) -> "_Lookup":
        by_name: dict[str, list[int]] = {}
        for index, name in enumerate(names):
            by_name.setdefault(name, []).append(index)
        return cls(names, by_name, not any(_NUMBER.fullmatch(name) for name in by_name))

    def meant(self, text: str) -> list[int]:
        """The classes that a text means: none, one, or all of one name."""
        text = readable(text)
        if index := _INDEX.fullmatch(text):
            return self._at(index[1])
        if text in self.by_name:
            return self.by_name[text]
        if (inside := unquoted(text)) != text:
            text = normalise(inside)
            if text in self.by_name:
                return self.by_name[text]
            if index := _INDEX.fullmatch(text):
                return self._at(index[1])
        return self._at(text) if self.counts and text.isdecimal() else []

    def _at(self, digits: str) -> list[int]:
        """The class of an index, if there is one."""
        index = int(digits[-18:]) if not digits[:-18].strip("0") else len(self.names)
        return [index] if index < len(self.names) else []

    def one(self, text: str) -> int:
        """The class that a text means.

        Raises:
            UserError: none, or several.
        """
        found, text = self.meant(text), readable(text)
        if len(found) == 1:
            return found[0]
        asked = f"'{shown(text if len(text) < 80 else text[:80] + '...')}'"
        if found:
            raise UserError(f"{len(found)} classes are called {asked}: give "
                            f"{' or '.join(f'index:{i}' for i in found[:_SHOWN])}")  # fmt: skip
        # Names that contain the text come first: "tench" is answered with "tench, Tinca tinca".
        names = sorted(self.names, key=lambda name: text.casefold() not in name.casefold())
        known = shown(", ".join(map(quoted, names[:_SHOWN])))
        known += " ..." if len(names) > _SHOWN else ""
        index = "an index below" if self.counts else "index:N with N below"
        raise UserError(f"no class {asked}: give {index} {len(self.names)} or one of {known}")
