"""Where something is: a path of this machine, or a URI. One rule for every option.

==========================  ====================================================================
what is given               what it means
==========================  ====================================================================
``runs/a``, ``~/a``, ``/a``  a path, character by character: ``%20``, ``#`` and ``?`` are part of
                            its name. A leading ``~/`` is the home directory; ``./~`` is not.
``file:///a``, ``file:/a``  the same path of this machine; ``%XX`` is decoded (``%20`` is a blank),
                            ``#`` and ``?`` are part of the name.
``s3://bucket/folder``      a folder of a store that pyarrow opens (also gs, gcs, abfs, abfss, hdfs,
                            viewfs); ``%XX`` is decoded, ``#`` is part of the name, ``?name=value``
                            begins pyarrow's settings of the store, and ``%3F`` is a ``?``.
``hf://``, ``fsspec+x://``  given to fsspec as it is.
==========================  ====================================================================

Schemes may be in upper case, and slashes at the end do not count. Credentials are refused, because
locations are kept in ``config.json`` and shown in messages.
"""

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote, unquote_to_bytes

from srdd.errors import UserError

STORES = ("s3", "gs", "gcs", "abfs", "abfss", "hdfs", "viewfs")
KNOWN = f"file, {', '.join(STORES)} and hf"
_URI = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(//?)?(.*)", re.DOTALL)  # C: is a drive
_WINDOWS = re.compile(r"[A-Za-z]:[\\/]|\\\\")
_AUTHORITY = re.compile(r"[^/?#]*")
_BUCKET = re.compile(r"(anonymous@)?[A-Za-z0-9._-]+")  # gs://anonymous@bucket reads a public one
_SETTINGS = re.compile(r"\w+=[^&]*(&\w+=[^&]*)*")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_SECRET = re.compile(r"key|secret|token|password|signature|sas|credential", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True, slots=True)
class Location:
    """A place that an option names.

    ``str()`` gives a text that means the same in every process and working directory, and that
    :func:`parse_location` reads back.
    """

    scheme: str  # "" for a path; else in lower case
    authority: str = ""  # the bucket or host of a store
    path: str  # decoded; of a store without a slash at either end
    settings: str = ""  # "region=eu-west-1": pyarrow's settings of the store

    @property
    def local(self) -> Path | None:
        """The path, where it is one of this machine; it may be relative."""
        return Path(self.path) if self.scheme in ("", "file") else None

    def __str__(self) -> str:
        if self.scheme == "":
            return os.path.realpath(self.path)
        if self.scheme == "file":
            return Path(self.path).as_uri()
        if self.scheme not in STORES:
            return f"{self.scheme}://{self.path}"
        settings = f"?{self.settings}" if self.settings else ""
        folder = f"/{quote(self.path)}" if self.path else ""
        return f"{self.scheme}://{self.authority}{folder}{settings}"

    def __truediv__(self, name: str) -> "Location":
        """A folder below it."""
        return replace(self, path=f"{self.path}/{name}" if self.path else name)


def parse_location(text: str, option: str = "") -> Location:
    """What a text given to an option means; nothing is opened.

    Args:
        text: as the user typed it.
        option: its name for messages, such as ``--data``.

    Raises:
        UserError: it is empty, has characters that no location has, credentials, the wrong form or
            a scheme that is not known.
    """
    what = f"{option} {text}".lstrip()
    _check_text(text, option)
    if _WINDOWS.match(text):
        if os.path.exists(text):
            return Location(scheme="", path=text)
        raise UserError(f"{what} is a path of Windows: give the path that it has on this machine")
    found = _URI.fullmatch(text.lstrip())
    scheme, slashes, rest = (found[1].lower(), found[2] or "", found[3]) if found else ("", "", "")
    named = scheme in (*STORES, "file", "hf")
    if not (slashes == "//" or named) or (slashes != "//" and os.path.exists(text)):
        return Location(scheme="", path=_expanded(text))
    if text != text.lstrip():
        raise UserError(f"{what}: remove the blanks before the URI")
    if scheme == "file":
        return _file(slashes, rest, what)
    if slashes != "//":
        raise UserError(f"{what}: a URI has two slashes: {scheme}://{rest} (or ./{text}, a path)")
    if scheme == "hf" or scheme.startswith("fsspec+"):
        return Location(scheme=scheme, path=rest.rstrip("/"))
    if scheme not in STORES:
        raise UserError(f"{what}: the scheme {scheme} is not known; known are {KNOWN}, or a path")
    return _store(scheme, rest, what)


def _check_text(text: str, option: str) -> None:
    """Refuse what can be no location, whatever its scheme."""
    name = option or "a location"
    if not text.strip():
        raise UserError(f"{name} is empty: give a path or a URI")
    if _CONTROL.search(text):
        raise UserError(f"{name} has a line break or another control character in it: {text!r}")
    if not _is_utf8(text):
        what = f"{option} {text}".lstrip()
        raise UserError(
            f"{what!a} is not UTF-8: rename it (or set LC_ALL=C.UTF-8, if the shell's locale is "
            "the reason)"
        )
    if _has_credentials(text):
        raise UserError(
            f"{name} has credentials in it, which would be kept in config.json: give them by the "
            "environment (such as AWS_ACCESS_KEY_ID), on every node"
        )


def parse_path(text: str, option: str = "") -> Path:
    """The path that a text means, for an option that takes no URI of a store.

    Raises:
        UserError: as :func:`parse_location`, or it is the URI of a store, or a loop of links.
    """
    what = f"{option} {text}".lstrip()
    local = parse_location(text, option).local
    if local is None:
        takes = f"{option or 'this'} takes"
        raise UserError(f"{what} is the URI of a store, and {takes} a path of this machine")
    try:
        local.resolve()
    except (OSError, RuntimeError):
        raise UserError(f"{what} is a symbolic link that leads back to itself") from None
    return local


def _file(slashes: str, rest: str, what: str) -> Location:
    """The location of a ``file:`` URI."""
    if slashes == "//":
        host = _AUTHORITY.match(rest)
        assert host is not None
        if host[0] and host[0].lower() != "localhost":
            raise UserError(f"{what}: {host[0]!r} is in the place of a host: give file:///FOLDER "
                            "with three slashes, or a path")  # fmt: skip
        rest = rest[host.end() :]
    path = _decoded(rest if slashes != "/" else f"/{rest}", what)
    if not path.startswith("/"):
        raise UserError(f"{what}: give file:///FOLDER with three slashes, or a path")
    return Location(scheme="file", path=re.sub("/+", "/", path).rstrip("/") or "/")


def _store(scheme: str, rest: str, what: str) -> Location:
    """The location of the URI of a store."""
    body, question, settings = rest.partition("?")
    if question and not _SETTINGS.fullmatch(settings):
        raise UserError(f"{what}: a ? begins settings of the store (?name=value): write %3F for a "
                        "? in a name")  # fmt: skip
    authority, _, path = body.partition("/")
    path = _decoded(path, what).rstrip("/")
    if scheme in ("s3", "gs", "gcs") and not _BUCKET.fullmatch(authority):
        raise UserError(f"{what}: {authority!r} is not the name of a bucket: give {scheme}://BUCKET/"
                        "FOLDER")  # fmt: skip
    if path and any(part in ("", ".", "..") for part in path.split("/")):
        raise UserError(f"{what}: a folder of a store cannot be called '', '.' or '..': look for "
                        "doubled slashes")  # fmt: skip
    settings = settings.replace("#", "%23")  # or pyarrow would cut it off
    return Location(scheme=scheme, authority=authority, path=path, settings=settings)


def _decoded(text: str, what: str) -> str:
    """A name without percent-encoding."""
    if re.search(r"%(?![0-9A-Fa-f]{2})", text):
        raise UserError(f"{what}: write %25 for a % in a URI")
    try:
        decoded = unquote_to_bytes(text).decode()
    except UnicodeDecodeError:
        raise UserError(f"{what}: what % stands for is not UTF-8") from None
    if _CONTROL.search(decoded):
        raise UserError(f"{what} has a line break or another control character in it")
    return decoded


def _has_credentials(text: str) -> bool:
    """Whether a URI has a password or a user of a store in it, or settings named like a secret."""
    found = _URI.fullmatch(text.lstrip())
    if not found or found[2] != "//":
        return False
    scheme, rest = found[1].lower(), found[3]
    authority = _AUTHORITY.match(rest)
    assert authority is not None
    user, at, host = authority[0].rpartition("@")
    if ":" in user or re.search(r":(?!\d*$)", host):  # a secret may have a / in it, before its @
        return True
    if at and scheme == "s3":
        return True
    _, _, settings = rest.partition("?")
    names = [part.partition("=")[0] for part in re.split("[?&]", settings)]
    return any(map(_SECRET.search, names))


def _expanded(text: str) -> str:
    """A path with the home directory in the place of ``~``."""
    if text != "~" and not text.startswith("~/"):
        return text
    try:
        return str(Path(text).expanduser())
    except RuntimeError:
        raise UserError(f"{text}: there is no home directory: give the whole path") from None


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
