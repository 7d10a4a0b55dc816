"""Settings of Ray's core, as variables: one that it cannot read ends a process without a word."""

import os
import re
import subprocess
import sys

from srdd.errors import UserError

_SETTING = re.compile(r"RAY_[a-z]\w*")
_PLAIN = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?|true|false", re.IGNORECASE)


def check_settings() -> None:
    """Refuse a setting that Ray's core cannot read, before it is imported.

    Which values it takes is not known here, so that those which are neither numbers nor true or
    false are tried in a process of its own.

    Raises:
        UserError: the core cannot read one.
    """
    odd = {
        name: value for name, value in os.environ.items()
        if _SETTING.fullmatch(name) and not _PLAIN.fullmatch(value)
    }  # fmt: skip
    if not odd or _imports(odd):
        return
    for name, value in odd.items():
        if not _imports({name: value}):
            raise UserError(
                f"{name} is {value!r}, which Ray cannot read: give it a number, or unset it"
            )


def _imports(settings: dict[str, str]) -> bool:
    """Whether Ray's core comes up with these settings and no others."""
    rest = {name: value for name, value in os.environ.items() if not _SETTING.fullmatch(name)}
    tried = subprocess.run(
        [sys.executable, "-c", "import ray._raylet"],
        env=rest | settings, capture_output=True, check=False,
    )  # fmt: skip
    return tried.returncode >= 0  # else a signal ended it
