"""JSON that a program wrote and that something may have happened to since."""

import json
from pathlib import Path
from typing import Any

from srdd.errors import UserError


def parse_json(data: bytes, name: str) -> Any:
    """The value of a JSON text in UTF-8, with or without a byte order mark.

    Args:
        data: the text.
        name: of the file, for messages.

    Raises:
        UserError: it is not UTF-8, not JSON or cut short; the place is named.
    """
    try:
        return json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        where = f"byte {error.start} is not UTF-8"
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
    except RecursionError:
        where = "its lists are nested too deeply"
    except ValueError:  # Python refuses to read an integer of more than 4300 digits
        where = "a number is too long"
    raise UserError(f"{name} is not valid JSON ({where}): it is damaged or cut short, restore it")


def read_json(path: Path) -> Any:
    """The value of a JSON file.

    Raises:
        UserError: as :func:`parse_json`.
        OSError: as the system says.
    """
    return parse_json(path.read_bytes(), str(path))
