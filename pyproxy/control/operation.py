"""Operation: one thing that the admin API can do; how it is asked for, and what it answers."""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import parse_qsl, unquote

from pyproxy.control import schemas
from pyproxy.control.schemas import Schema, misfits
from pyproxy.errors import ControlError
from pyproxy.readers import Json, unknown_setting

JSON = "application/json"


class Stream(Protocol):
    """Is closed when it has been sent, or can't be."""

    def __iter__(self) -> Iterator[bytes]: ...
    def close(self) -> None: ...


@dataclass(frozen=True)
class Answer:
    """A body of bytes, or a stream of them that ends the connection."""

    body: "bytes | Stream" = b""
    status: int = 200
    media_type: str = JSON
    fields: tuple[tuple[str, str], ...] = ()


def told(value: Json, status: int = 200, *fields: tuple[str, str]) -> Answer:
    return Answer(f"{json.dumps(value)}\n".encode(), status, fields=fields)


@dataclass(frozen=True)
class Call:
    """One request, checked: what stood in its path, its query and its body."""

    path: Mapping[str, str] = field(default_factory=dict)
    query: Mapping[str, list[str]] = field(default_factory=dict)
    body: Any = None
    accept: str = ""  # the field
    by_password: bool = False  # who asks has said it

    def one(self, name: str, default: str = "") -> str:
        """A parameter of the query."""
        return self.query.get(name, [default])[0]


@dataclass(frozen=True)
class Parameter:
    """Of a query. ``check`` raises ``ValueError``: what it expects."""

    name: str
    help: str
    schema: Schema = field(default_factory=lambda: schemas.TEXT)
    check: Callable[[str], None] = lambda value: None
    repeated: bool = False


@dataclass(frozen=True)
class Reply:
    """What an operation may answer. A ``schema`` of None stands for no body."""

    help: str
    schema: Schema | None = None
    media_type: str = JSON
    fields: tuple[str, ...] = ()


@dataclass(frozen=True)
class Operation:
    """``path`` may have names of segments in braces. Refusals that any request may get are no part
    of ``replies``; ``is_open``: it needs no password."""

    method: str
    path: str
    summary: str
    run: Callable[[Any, Call], Answer]
    replies: Mapping[int, Reply]
    parameters: tuple[Parameter, ...] = ()
    body: str = ""  # the name of its schema
    is_open: bool = False

    @property
    def name(self) -> str:
        return self.run.__name__

    def read(
        self,
        path: Mapping[str, str],
        query: str,
        body: Json,
        accept: str = "",
        by_password: bool = False,
    ) -> Call:
        """Raises ``ControlError``."""
        problems = misfits(schemas.NAMED[self.body], body) if self.body else []
        known = {one.name: one for one in self.parameters}
        given: dict[str, list[str]] = {}
        for name, value in parse_qsl(query, keep_blank_values=True):
            given.setdefault(name, []).append(value)
        for name, values in given.items():
            if name not in known:
                problems.append(f"{name}: {unknown_setting(name, list(known))}")
                continue
            if len(values) > 1 and not known[name].repeated:
                problems.append(f"{name}: stands there twice")
            for value in values:
                try:
                    known[name].check(value)
                except ValueError as error:
                    problems.append(f"{name}: {error}")
        if problems:
            raise ControlError(422, "\n".join(problems))
        return Call(path, given, body, accept, by_password)


class Table:
    """Finds operations by their path."""

    def __init__(self, operations: Iterable[Operation]) -> None:
        self._by_path: dict[str, dict[str, Operation]] = {}
        for one in operations:
            self._by_path.setdefault(one.path, {})[one.method] = one
        self._patterns = {
            path: re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", path))
            for path in self._by_path
            if "{" in path
        }

    def find(self, path: str) -> tuple[Mapping[str, Operation], Mapping[str, str]]:
        """The operations there, by method, and what stands in the path; nothing, if none is."""
        if path in self._by_path and path not in self._patterns:
            return self._by_path[path], {}
        for template, pattern in self._patterns.items():
            if match := pattern.fullmatch(path):
                found = {name: unquote(value) for name, value in match.groupdict().items()}
                return self._by_path[template], found
        return {}, {}
