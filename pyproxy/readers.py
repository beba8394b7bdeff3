"""Readers of settings: a JSON value in, a checked value out, or a ``ValueError`` that says what was
expected (``Problems``, if there are several). For the JSON Schema of the settings a reader also
tells what it takes (``described``)."""

import difflib
import ipaddress
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar
from urllib.parse import urlsplit

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Json = Any
T = TypeVar("T")


class Text(str):
    """A value from the environment or the command line, where everything is text."""

    __slots__ = ()


Schema = Mapping[str, Any]  # JSON Schema; and {"object": kind} for what a section declares


class Reader(Generic[T]):
    """A function that reads, and what values it takes. The schema is what an editor needs, and may
    take a bit more."""

    def __init__(self, read: Callable[[Json], T], schema: Schema) -> None:
        self._read = read
        self.schema = schema

    def __call__(self, value: Json) -> T:
        return self._read(value)


def described(schema: Schema) -> Callable[[Callable[[Json], T]], Reader[T]]:
    """Says of a function what it takes."""
    return lambda read: Reader(read, schema)


def schema_of(read: Callable[[Json], Any]) -> Schema:
    """What a reader takes: anything, if it doesn't tell."""
    return read.schema if isinstance(read, Reader) else {}


def unknown_setting(key: str, known: list[str]) -> str:
    near = difflib.get_close_matches(key, known, 1, 0.5)
    return f'unknown setting (did you mean "{near[0]}"?)' if near else "unknown setting"


def literal(value: Json) -> Json:
    if isinstance(value, Text):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return str(value)
    return value


def whole(least: int, most: int | None = None) -> Reader[int]:
    between = f"from {least} to {most}" if most is not None else f"of at least {least}"

    @described({"type": "integer", "minimum": least} | ({"maximum": most} if most else {}))
    def read(value: Json) -> int:
        value = literal(value)
        if type(value) is not int or value < least or (most is not None and value > most):
            raise ValueError(f"expected a whole number {between}")
        return value

    return read


_MOST = sys.float_info.max


def number(least: float, most: float | None = None, *, above: bool = False) -> Reader[float]:
    """``above``: ``least`` itself is too little."""
    between = f"{'above' if above else 'from'} {least:g}" + (f" to {most:g}" if most else "")
    lowest = {"exclusiveMinimum" if above else "minimum": least}

    @described({"type": "number", **lowest, **({"maximum": most} if most else {})})
    def read(value: Json) -> float:
        value = literal(value)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"expected a number {between}")
        if not (value > least if above else value >= least) or value > (most or _MOST):
            raise ValueError(f"expected a number {between}")
        return float(value)

    return read


@described({"type": "boolean"})
def boolean(value: Json) -> bool:
    value = literal(value)
    if not isinstance(value, bool):
        raise ValueError("expected true or false")
    return value


@described({"type": "string"})
def text(value: Json) -> str:
    if not isinstance(value, str):
        raise ValueError("expected a text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("half of a surrogate pair is no text") from None
    return str(value)


_DURATIONS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}
_SIZES = {"B": 1, "KB": 1024, "MB": 1024**2, "GB": 1024**3}


def _measure(units: Mapping[str, float]) -> Schema:
    pattern = rf"^[0-9]+(\.[0-9]+)? ?({'|'.join(units)})$"
    return {"type": ["number", "string"], "minimum": 0, "pattern": pattern}


def _measured(value: Json, units: Mapping[str, float]) -> float | None:
    value = literal(value)
    if isinstance(value, str):
        match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([A-Za-z]+)", value)
        if match and match[2] in units:
            return float(match[1]) * units[match[2]]
    elif isinstance(value, int | float) and not isinstance(value, bool):
        return value
    return None


@described({**_measure(_DURATIONS), "examples": ["500ms", "10s", "5m", "1h"]})
def duration(value: Json) -> float:
    seconds = _measured(value, _DURATIONS)  # NaN is refused too
    if seconds is None or not 0 < seconds < 10**9:
        raise ValueError(
            'expected a duration above 0: seconds, or a text like "500ms", "10s", "5m"'
        )
    return seconds


@described({**_measure(_SIZES), "examples": ["64KB", "1MB"]})
def size(value: Json) -> int:
    found = _measured(value, _SIZES)
    if found is None or not 0 <= found < 2**63 or found != int(found):
        raise ValueError('expected a size: bytes, or a text like "64KB", "1MB"')
    return int(found)


def optional(read: Callable[[Json], T]) -> Reader[T | None]:
    @described(_or_null(schema_of(read)))
    def read_optional(value: Json) -> T | None:
        return None if literal(value) is None else read(value)

    return read_optional


def _or_null(schema: Schema) -> Schema:
    if "enum" in schema:
        return {**schema, "enum": [*schema["enum"], None]}
    if "type" in schema:
        types = schema["type"]
        return {**schema, "type": [*([types] if isinstance(types, str) else types), "null"]}
    return either(schema, {"type": "null"})


def one_of(*names: str) -> Reader[str]:
    @described({"enum": list(names)})
    def read(value: Json) -> str:
        if value not in names:
            raise ValueError(f"expected {' or '.join(json.dumps(name) for name in names)}")
        return str(value)

    return read


def items(value: Json) -> list[Json]:
    """A list; one thing stands for a list of it, and a text may hold several, with commas."""
    kind = type(value)
    value = literal(value)
    if isinstance(value, str):
        return [kind(part.strip()) for part in value.split(",") if part.strip()]
    return value if isinstance(value, list) else [value]


def list_of(read: Callable[[Json], T]) -> Reader[tuple[T, ...]]:
    @described(schema_of_list(schema_of(read)))
    def read_list(value: Json) -> tuple[T, ...]:
        found, problems = [], []
        for at, item in enumerate(items(value)):
            try:
                found.append(read(item))
            except ValueError as error:
                problems += [(f"[{at}]", error)]
        if problems:
            raise Problems(
                [(at + path, said) for at, error in problems for path, said in parts(error)]
            )
        return tuple(found)

    return read_list


def schema_of_list(item: Schema, least: int = 0) -> Schema:
    return either({"type": "array", "items": item, "minItems": least}, item)


def either(*schemas: Schema) -> Schema:
    return {"anyOf": [one for schema in schemas for one in schema.get("anyOf", [schema])]}


class Problems(ValueError):
    """Several problems below one path: ``[(path, text), …]``."""

    def __init__(self, found: list[tuple[str, str]]) -> None:
        super().__init__("; ".join(text for _, text in found))
        self.found = found


def parts(error: ValueError) -> list[tuple[str, str]]:
    return error.found if isinstance(error, Problems) else [("", str(error))]


@described({"type": "string", "pattern": r"^[0-9A-Fa-f:.]+(/|,|$)"})
def network(value: Json) -> Network:
    try:
        return ipaddress.ip_network(text(value))
    except ValueError:
        raise ValueError('expected an address or a network like "10.0.0.0/8"') from None


# A name of labels up to 63 characters, an IPv4 address, or (urlsplit checks it) an IPv6 one.
_HOST = re.compile(
    r"(?:[A-Za-z0-9_-]{1,63}\.)*[A-Za-z0-9_-]{1,63}\.?|[0-9A-Fa-f:.]*:[^/\ud800-\udfff]*"
)


def address(
    value: Json, schemes: tuple[str, ...], default_host: str, default_port: int | None
) -> tuple[str, str, int]:
    """``(scheme, host, port)`` of a URL or a bare port."""
    value = literal(Text(value)) if isinstance(value, str) and value.isdigit() else value
    if type(value) is int:
        if not 0 <= value <= 65535:
            raise ValueError("expected a port from 0 to 65535")
        return schemes[0], default_host, value
    example = f'expected a URL like "{schemes[0]}://{default_host}:8001", or a port'
    if not isinstance(value, str):
        raise ValueError(example)
    url = str(value)
    try:
        split = urlsplit(url)
        host, port = split.hostname, split.port
    except ValueError as error:
        raise ValueError(f"{example}: {str(error).lower()}") from None
    if split.scheme not in schemes or not split.netloc:
        raise ValueError(f'{example}, not "{url}"')
    if not host or not _HOST.fullmatch(host) or len(host) > 253:
        raise ValueError(f'{example}: "{url}" has no valid host')
    if split.username is not None or split.path not in ("", "/") or split.query or split.fragment:
        raise ValueError(f'{example}: nothing may follow the port in "{url}"')
    if port is None:
        port = 443 if split.scheme == "https" else default_port
    if port is None:
        raise ValueError(f'"{url}" needs a port')
    return split.scheme, host.lower(), port


def url_of(scheme: str, host: str, port: int) -> str:
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def few(names: Sequence[str], most: int = 5) -> str:
    """The first of them, and how many more there are."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def is_loopback(host: str) -> bool:
    """Whether only this machine is meant: ``localhost``, or such an address, without brackets."""
    try:
        return host.lower() == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def wildcards(host: str) -> list[str]:
    """``a.b.c`` -> ``*.b.c``, ``*.c``"""
    labels = host.split(".")
    return [f"*.{'.'.join(labels[at:])}" for at in range(1, len(labels))]


def refuse_duplicates(names: list[str]) -> None:
    """Empty ones may stand there several times."""
    first = {name: at for at, name in reversed([*enumerate(names)])}
    again = [
        (f"[{at}]", f"{name} stands here twice")
        for at, name in enumerate(names)
        if name and first[name] < at
    ]
    if again:
        raise Problems(again)
