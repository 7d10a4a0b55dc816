"""What the command line calls a setting: errors name the option that a person typed."""

from dataclasses import fields, is_dataclass
from typing import Any

from srdd.errors import UserError

_OTHER_NAMES = {  # settings whose option has another name
    "steps": "max_steps",
    "lpips": "lpips_weight",
    "gan": "gan_weight",
    "entropy": "entropy_weight",
}


def option(name: str) -> str:
    """``max_bad`` as a person types it: ``--max-bad``."""
    return f"--{name.replace('_', '-')}"


def as_option(error: UserError, command: object) -> UserError:
    """An error about a setting, by the name of the option that gave it.

    Args:
        error: it begins with the setting's name.
        command: the parsed command line. An option that was left out is not at fault: then a
            preset or a file holds the setting, and the error stays as it is.
    """
    given = _given(command)
    for name in (_OTHER_NAMES.get(error.field), error.field):
        if name is not None and given.get(name) is not None:
            return error.renamed(option(name))
    return error


def _given(command: object) -> dict[str, Any]:
    """The options of a command and of the groups inside it, with their values."""
    found: dict[str, Any] = {}
    if not is_dataclass(command):
        return found
    for field in fields(command):
        value = getattr(command, field.name)
        if is_dataclass(value):
            found |= _given(value)
        else:
            found[field.name] = value
    return found
