"""Values written as text on the command line."""

from srdd.errors import UserError


def integers(text: str, name: str) -> tuple[int, ...]:
    """Integers of "1,2,3".

    Raises:
        UserError: something else stands there.
    """
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"{name} takes integers like 1,2,3, got {text!r}", field=name) from None
