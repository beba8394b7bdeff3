"""Readers of settings: a JSON value in, a checked value out, or a ``ValueError`` that says what was
expected (``Problems``, if there are several)."""

import difflib
import ipaddress
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Json = Any
T = TypeVar("T")


class Text(str):
    """A value from the environment or the command line, where everything is text."""

    __slots__ = ()


def unknown_setting(key: str, known: list[str]) -> str:
    near = difflib.get_close_matches(key, known, 1, 0.5)
    return f'unknown setting (did you mean "{near[0]}"?)' if near else "unknown setting"


def literal(value: Json) -> Json:
    if isinstance(value, Text):
        try:
            return json.loads(value)
        except ValueError:
            return str(value)
    return value


def whole(least: int, most: int | None = None) -> Callable[[Json], int]:
    between = f"from {least} to {most}" if most is not None else f"of at least {least}"

    def read(value: Json) -> int:
        value = literal(value)
        if type(value) is not int or value < least or (most is not None and value > most):
            raise ValueError(f"expected a whole number {between}")
        return value

    return read


def boolean(value: Json) -> bool:
    value = literal(value)
    if not isinstance(value, bool):
        raise ValueError("expected true or false")
    return value


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


def _measured(value: Json, units: Mapping[str, float]) -> float | None:
    value = literal(value)
    if isinstance(value, str):
        match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([A-Za-z]+)", value)
        if match and match[2] in units:
            return float(match[1]) * units[match[2]]
    elif isinstance(value, int | float) and not isinstance(value, bool):
        return value
    return None


def duration(value: Json) -> float:
    seconds = _measured(value, _DURATIONS)  # NaN is refused too
    if seconds is None or not 0 < seconds < 10**9:
        raise ValueError(
            'expected a duration above 0: seconds, or a text like "500ms", "10s", "5m"'
        )
    return seconds


def size(value: Json) -> int:
    found = _measured(value, _SIZES)
    if found is None or not 0 <= found < 2**63 or found != int(found):
        raise ValueError('expected a size: bytes, or a text like "64KB", "1MB"')
    return int(found)


def optional(read: Callable[[Json], T]) -> Callable[[Json], T | None]:
    def read_optional(value: Json) -> T | None:
        return None if literal(value) is None else read(value)

    return read_optional


def one_of(*names: str) -> Callable[[Json], str]:
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


def list_of(read: Callable[[Json], T]) -> Callable[[Json], tuple[T, ...]]:
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


class Problems(ValueError):
    """Several problems below one path: ``[(path, text), …]``."""

    def __init__(self, found: list[tuple[str, str]]) -> None:
        super().__init__("; ".join(text for _, text in found))
        self.found = found


def parts(error: ValueError) -> list[tuple[str, str]]:
    return error.found if isinstance(error, Problems) else [("", str(error))]


def network(value: Json) -> Network:
    try:
        return ipaddress.ip_network(text(value))
    except ValueError:
        raise ValueError('expected an address or a network like "10.0.0.0/8"') from None


# A name of labels up to 63 characters, an IPv4 address, or (urlsplit checks it) an IPv6 one.
_HOST = re.compile(r"(?:[A-Za-z0-9_-]{1,63}\.)*[A-Za-z0-9_-]{1,63}\.?|[0-9A-Fa-f:.]*:[^/]*")


def _address(value: Json, default_host: str, default_port: int | None) -> tuple[str, int]:
    """``(host, port)`` of a URL, a bare port or an object with ``url``."""
    if isinstance(value, dict):
        unknown = [(f".{key}", unknown_setting(key, ["url"])) for key in value if key != "url"]
        if unknown:
            raise Problems(unknown)
        if "url" not in value:
            raise ValueError("an object needs its url")
        try:
            return _address(value["url"], default_host, default_port)
        except ValueError as error:
            raise Problems([(".url", said) for _, said in parts(error)]) from None
    value = literal(Text(value)) if isinstance(value, str) and value.isdigit() else value
    if type(value) is int:
        if not 0 <= value <= 65535:
            raise ValueError("expected a port from 0 to 65535")
        return default_host, value
    example = f'expected a URL like "http://{default_host}:8001", or a port'
    if not isinstance(value, str):
        raise ValueError(example)
    url = str(value)
    try:
        split = urlsplit(url)
        host, port = split.hostname, split.port
    except ValueError as error:
        raise ValueError(f"{example}: {str(error).lower()}") from None
    if split.scheme not in ("http", "https") or not split.netloc:
        raise ValueError(f'{example}, not "{url}"')
    if split.scheme == "https":
        raise ValueError('https is not supported yet: expected a URL that starts with "http://"')
    if not host or not _HOST.fullmatch(host) or len(host) > 253:
        raise ValueError(f'{example}: "{url}" has no valid host')
    if split.username is not None or split.path not in ("", "/") or split.query or split.fragment:
        raise ValueError(f'{example}: nothing may follow the port in "{url}"')
    port = default_port if port is None else port
    if port is None:
        raise ValueError(f'"{url}" needs a port')
    return host.lower(), port


@dataclass(frozen=True)
class Listen:
    """An address to listen on; port 0 lets the system choose."""

    host: str
    port: int

    @property
    def url(self) -> str:
        return _url(self.host, self.port)


@dataclass(frozen=True)
class TargetAddress:
    """Where a target is."""

    host: str
    port: int

    @property
    def url(self) -> str:
        return _url(self.host, self.port)


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def listen(value: Json) -> tuple[Listen, ...]:
    found = list_of(lambda one: Listen(*_address(one, "127.0.0.1", 80)))(value)
    if not found:
        raise ValueError('expected an address to listen on, like "http://127.0.0.1:8000"')
    _refuse_duplicates([one.url if one.port else "" for one in found])
    return found


def targets(value: Json) -> tuple[TargetAddress, ...]:
    found = list_of(_target)(value)
    if not found:
        raise ValueError('expected at least one target, like "http://localhost:8001"')
    _refuse_duplicates([one.url for one in found])
    return found


def _target(value: Json) -> TargetAddress:
    host, port = _address(value, "localhost", 80)
    if not port:
        raise ValueError("expected a port from 1 to 65535")
    return TargetAddress(host, port)


def _refuse_duplicates(urls: list[str]) -> None:
    again = [
        (f"[{at}]", f"{url} stands here twice")
        for at, url in enumerate(urls)
        if url in urls[:at] and url
    ]
    if again:
        raise Problems(again)
