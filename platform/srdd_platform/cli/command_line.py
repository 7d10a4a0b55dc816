"""Read the command line into dataclasses; paths follow :mod:`srdd_platform.core.location`."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from srdd_platform.core.location import parse_path


def parse_command(command: Any, **settings: Any) -> Any:
    """What the command line says, as an object of a type.

    Args:
        command: a dataclass, or a union of them.
        settings: of ``tyro.cli``.

    Raises:
        UserError: an option that takes a path has something else.
        SystemExit: an option is unknown, missing or malformed, or help was asked for.
    """
    arguments = sys.argv[1:]
    registry = ConstructorRegistry()

    @registry.primitive_rule
    def path_rule(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Path] | None:
        if info.type is not Path:
            return None
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar="PATH",
            instance_from_str=lambda texts: parse_path(texts[0], option_of(texts[0], arguments)),
            is_instance=lambda value: isinstance(value, Path),
            str_from_instance=lambda value: [str(value)],
        )

    plain = (tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes)
    return tyro.cli(command, args=arguments, registry=registry, config=plain, **settings)


def option_of(text: str, arguments: Sequence[str]) -> str:
    """The option that has a text as its value, as it was typed; "" for one without a name."""
    for before, argument in zip(["", *arguments], arguments, strict=False):
        if argument == text and before.startswith("--") and "=" not in before:
            return before
        if argument.startswith("--") and argument.endswith(f"={text}"):
            return argument.partition("=")[0]
    return ""
