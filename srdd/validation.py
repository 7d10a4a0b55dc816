"""Checking the fields of configurations, and configurations as JSON."""

import math
from dataclasses import asdict, fields
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from srdd.errors import UserError

C = TypeVar("C")
SPARSE = {"sparse": True}  # metadata of a field that JSON holds only where it is not the default


def require(condition: bool, field: str, value: object, allowed: str) -> None:
    """Raise a :class:`UserError` that names the field and what it may be."""
    if not condition:
        raise UserError(f"{field} must be {allowed}, got {value!r}", field=field)


def settle(config: Any) -> None:
    """Check every field's type; make tuples of lists and floats of integers where they belong.

    Called first in a frozen dataclass's ``__post_init__``, so that equal settings are equal values.

    Raises:
        UserError: a field has another type, or a number is not finite; the field is named.
    """
    hints = get_type_hints(type(config))
    for field in fields(config):
        value = _settled(hints[field.name], getattr(config, field.name))
        allowed = _allowed(hints[field.name])
        require(_accepts(hints[field.name], value), field.name, value, allowed)
        object.__setattr__(config, field.name, value)


def from_dict(kind: type[C], values: Any, where: str = "") -> C:
    """Build a configuration from JSON values.

    Raises:
        UserError: a field is unknown, missing, of the wrong type or out of range, by name.
    """
    prefix = f"{where}: " if where else ""
    if not isinstance(values, dict):
        raise UserError(f"{prefix}an object with settings is needed, got {values!r}")
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise UserError(f"{prefix}unknown setting {unknown[0]!r}; known: {', '.join(known)}")
    try:
        return kind(**values)
    except UserError as error:
        raise (UserError(f"{prefix}{error}") if prefix else error) from None
    except TypeError as error:  # a field without a default is missing
        raise UserError(f"{prefix}{str(error).rsplit('()', 1)[-1].strip()}") from None


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration as JSON values: tuples become lists, ``SPARSE`` defaults are left out."""
    values = asdict(config)
    for field in fields(config):
        if field.metadata.get("sparse") and values[field.name] == field.default:
            del values[field.name]
    return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


def _settled(annotation: Any, value: Any) -> Any:
    origin = get_origin(annotation)
    if origin in (Union, UnionType):
        options = [option for option in get_args(annotation) if option is not type(None)]
        return value if value is None or len(options) != 1 else _settled(options[0], value)
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(_settled(get_args(annotation)[0], item) for item in value)
    if annotation is float and type(value) is int:
        return float(value)
    return value


def _accepts(annotation: Any, value: Any) -> bool:
    """Whether a settled value has the annotated type; a bool is no number."""
    origin = get_origin(annotation)
    if origin in (Union, UnionType):
        return any(_accepts(option, value) for option in get_args(annotation))
    if origin is Literal:
        return value in get_args(annotation)
    if origin is tuple:
        inner = get_args(annotation)
        fits = isinstance(value, tuple) and (inner[-1] is Ellipsis or len(value) == len(inner))
        return fits and all(_accepts(inner[0], item) for item in value)
    if annotation is float:
        return isinstance(value, float) and math.isfinite(value)
    return type(value) is annotation


def _allowed(annotation: Any) -> str:
    origin = get_origin(annotation)
    if origin in (Union, UnionType):
        return " or ".join(_allowed(option) for option in get_args(annotation))
    if origin is Literal:
        return f"one of {', '.join(str(value) for value in get_args(annotation))}"
    if origin is tuple:
        inner = get_args(annotation)
        what = {int: "integers", float: "finite numbers"}.get(inner[0], "values")
        return f"a list of {what}" if inner[-1] is Ellipsis else f"{len(inner)} {what}"
    names = {int: "an integer", float: "a finite number", bool: "true or false", str: "text"}
    return "null" if annotation is type(None) else names.get(annotation, str(annotation))
