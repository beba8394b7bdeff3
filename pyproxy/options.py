"""Options: how a setting is declared, once, with its default, unit and a line of explanation.

A frozen dataclass is a section; its fields are ``option(...)`` or ``section(...)``. The command
line's help and docs/configuration.md are made from these declarations.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pyproxy.readers import Json, Problems, literal, parts, unknown_setting

T = TypeVar("T")

HIDDEN = "(hidden)"  # shown instead of a secret

REQUIRED: Any = object()  # a default that isn't one


@dataclass(frozen=True)
class Option:
    """How a setting is read and explained. ``read`` raises ``ValueError``: what it expects."""

    help: str
    read: Callable[[Json], Any]
    unit: str = ""
    secret: bool = False  # never shown


def option(
    default: Any, help: str, read: Callable[[Json], Any], unit: str = "", *, secret: bool = False
) -> Any:
    return field(default=default, metadata={"option": Option(help, read, unit, secret)})


def section(kind: Callable[[], Any]) -> Any:
    return field(default_factory=kind)


def declared(kind: type, path: str = "") -> list[tuple[str, Option, Any]]:
    """Every option of a section: ``(path, option, default)``, in the order of declaration."""
    found = []
    for one in dataclasses.fields(kind):
        if "option" in one.metadata:
            found.append((path + one.name, one.metadata["option"], one.default))
        elif one.default_factory is not dataclasses.MISSING:
            found += declared(one.default_factory, f"{path}{one.name}.")  # type: ignore[arg-type]
    return found


def read_object(kind: type[T], data: Mapping[str, Json]) -> T:
    """A section from its JSON object. Raises ``Problems``, with all of them."""
    fields = {one.name: one for one in dataclasses.fields(kind)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    problems: list[tuple[str, str]] = []
    for key, value in data.items():
        if key not in fields:
            problems.append((f".{key}", unknown_setting(key, list(fields))))
            continue
        one = fields[key]
        try:
            if "option" in one.metadata:
                values[key] = one.metadata["option"].read(value)
                if one.metadata["option"].secret and values[key] == HIDDEN:
                    raise ValueError("that stands for a secret that isn't shown: say the secret")
            elif isinstance(value := literal(value), dict):
                values[key] = read_object(one.default_factory, value)  # type: ignore[arg-type]
            else:
                raise ValueError("expected an object")
        except ValueError as error:
            problems += [(f".{key}{below}", said) for below, said in parts(error)]
    missing = [one.name for one in fields.values() if one.default is REQUIRED]
    if not problems and (missing := [name for name in missing if name not in data]):
        raise ValueError(f"an object needs its {', '.join(missing)}")
    if problems:
        raise Problems(problems)
    return kind(**values)
