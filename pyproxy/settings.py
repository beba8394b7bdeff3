"""Settings: appsettings.json, its overlay, the environment and the command line, as frozen
dataclasses.

Each option is declared once, with its default, unit and a line of explanation (``option``); the
command line's help and the documentation are made from that. Layers, each over the one before:
``appsettings.json``, ``appsettings.{PYPROXY_ENVIRONMENT}.json``, ``PYPROXY_…`` variables (``__``
between levels), the command line. Objects merge, lists are replaced whole. Everything that is
wrong is told at once, each with where it was said, its path and a remedy.
"""

import dataclasses
import ipaddress
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pyproxy.errors import SettingsError
from pyproxy.readers import (
    Json,
    Listen,
    Network,
    TargetAddress,
    Text,
    boolean,
    duration,
    list_of,
    listen,
    literal,
    network,
    one_of,
    optional,
    parts,
    size,
    targets,
    text,
    unknown_setting,
    whole,
)

FILE = "appsettings.json"
PREFIX = "PYPROXY_"

T = TypeVar("T")


@dataclass(frozen=True)
class Option:
    """How a setting is read and explained. ``read`` raises ``ValueError``: what it expects."""

    help: str
    read: Callable[[Json], Any]
    unit: str = ""


def option(default: Any, help: str, read: Callable[[Json], Any], unit: str = "") -> Any:
    return field(default=default, metadata={"option": Option(help, read, unit)})


def section(kind: Callable[[], Any]) -> Any:
    return field(default_factory=kind)


@dataclass(frozen=True)
class Retry:
    attempts: int = option(5, "targets that one request may be tried on", whole(1))
    statuses: tuple[int, ...] = option(
        (), "response statuses that count as a failure", list_of(whole(200, 599))
    )
    max_body: int = option(65536, "a longer request body streams and is not retried", size, "bytes")
    non_idempotent: bool = option(
        False, "send POST, PATCH and others again too, even if a target may have acted", boolean
    )


@dataclass(frozen=True)
class Timeouts:
    connect: float = option(5.0, "to open a connection to a target", duration, "seconds")
    read: float = option(
        60.0,
        "a target's silence before its response, or either side's within a body",
        duration,
        "seconds",
    )
    send: float = option(
        60.0, "either side's taking nothing of what is sent to it", duration, "seconds"
    )
    header: float = option(10.0, "for a whole request head", duration, "seconds")
    keep_alive: float = option(75.0, "a client's silence between requests", duration, "seconds")
    drain: float = option(30.0, "for requests under way when the proxy stops", duration, "seconds")


@dataclass(frozen=True)
class Limits:
    connections: int = option(2000, "client connections at once; more wait", whole(1))
    head: int = option(32768, "a request head; more is answered with 414 or 431", size, "bytes")
    headers: int = option(100, "header fields of a request; more are answered with 431", whole(1))
    body: int | None = option(
        None, "a request body; more is answered with 413 (null: no limit)", optional(size), "bytes"
    )


@dataclass(frozen=True)
class Unavailable:
    status: int = option(503, "the status when no target is left", whole(400, 599))
    body: str = option("All servers is off", "the body when no target is left", text)


@dataclass(frozen=True)
class Settings:
    """All of it. ``load`` makes one from files and layers, ``parse`` from a plain object."""

    listen: tuple[Listen, ...] = option(
        (Listen("127.0.0.1", 8000),), "where to listen: a URL, or a list of them", listen
    )
    targets: tuple[TargetAddress, ...] = option(
        (), "the servers behind the proxy: URLs, or bare ports of this machine", targets
    )
    policy: str = option("hash_ring", "how a target is chosen", one_of("hash_ring"))
    sleeping: float = option(10.0, "between two probes of an evicted target", duration, "seconds")
    max_fails: int = option(1, "failures in a row that evict a target", whole(1))
    retry: Retry = section(Retry)
    timeouts: Timeouts = section(Timeouts)
    limits: Limits = section(Limits)
    unavailable: Unavailable = section(Unavailable)
    trusted_proxies: tuple[Network, ...] = option(
        (), "proxies whose X-Forwarded-For and Forwarded are believed", list_of(network)
    )
    cpu_affinity: bool = option(
        True, "serve on one processor: faster, since the interpreter uses only one", boolean
    )
    access_log: str | None = option(
        None, 'a file for a line a request, "-" for standard output, null for none', optional(text)
    )


_SECTIONS = {one.name for one in dataclasses.fields(Settings) if "option" not in one.metadata}


def options(kind: type = Settings, path: str = "") -> list[tuple[str, Option, Any]]:
    """Every option there is: ``(path, option, default)``, in the order of declaration."""
    found = []
    for one in dataclasses.fields(kind):
        if "option" in one.metadata:
            found.append((path + one.name, one.metadata["option"], one.default))
        else:
            found += options(one.default_factory, f"{path}{one.name}.")  # type: ignore[arg-type]
    return found


def _read(kind: type[T], data: Mapping[str, Json], path: str, problems: list[tuple[str, str]]) -> T:
    """A dataclass from its JSON object; what is wrong goes to ``problems``."""
    fields = {one.name: one for one in dataclasses.fields(kind)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for key, value in data.items():
        here = path + key
        if key not in fields:
            problems.append((here, unknown_setting(key, list(fields))))
        elif "option" in fields[key].metadata:
            try:
                values[key] = fields[key].metadata["option"].read(value)
            except ValueError as error:
                problems += [(here + below, said) for below, said in parts(error)]
        elif isinstance(value := literal(value), dict):
            values[key] = _read(fields[key].default_factory, value, here + ".", problems)  # type: ignore[arg-type]
        else:
            problems.append((here, "expected an object"))
    return kind(**values)


class _Layers:
    """The merged data, and who said what: path -> source."""

    def __init__(self) -> None:
        self.data: dict[str, Json] = {}
        self.sources: dict[str, str] = {}

    def add(self, data: Mapping[str, Json], source: str) -> None:
        self._merge(self.data, data, "", source)

    def _merge(
        self, into: dict[str, Json], data: Mapping[str, Json], path: str, source: str
    ) -> None:
        for key, value in data.items():
            self.sources[path + key] = source
            if isinstance(value, dict):
                old = into.get(key)
                into[key] = dict(old) if isinstance(old, dict) else {}
                self._merge(into[key], value, f"{path}{key}.", source)
            else:
                into[key] = value

    def source(self, path: str) -> str:
        while path and path not in self.sources:
            path = path[: max(path.rfind("."), path.rfind("["), 0)]
        return self.sources.get(path, FILE)


def _finish(layers: _Layers, missing: str = "") -> Settings:
    problems: list[tuple[str, str]] = []
    settings = _read(Settings, layers.data, "", problems)
    told = [f"{layers.source(path)}: {path}: {said}" for path, said in problems]
    if "targets" not in layers.data:
        said = 'name the servers behind the proxy, like ["http://localhost:8001"]'
        told.append(missing or f"{layers.source('')}: targets: {said}")
    if told:
        raise SettingsError(told)
    return settings


def parse(data: Mapping[str, Json], source: str = "settings") -> Settings:
    """Settings from a plain object. Raises ``SettingsError``."""
    layers = _Layers()
    layers.sources[""] = source
    layers.add(data, source)
    return _finish(layers)


def load(
    path: Path | None = None,
    environment: Mapping[str, str] | None = None,
    command_line: Mapping[str, Json] | None = None,
) -> Settings:
    """All layers. ``path`` None: ``appsettings.json`` of the current folder, if it is there.
    ``command_line`` maps paths like ``timeouts.read`` to texts. Raises ``SettingsError``."""
    environment = os.environ if environment is None else environment
    layers = _Layers()
    file = path or Path(FILE)
    layers.sources[""] = str(file)
    missing = ""
    if path is None and not file.exists():
        missing = (
            f"{FILE}: not found in {Path.cwd()}: go where it is, name one with --config, "
            "or name targets with --targets"
        )
    else:
        layers.add(_read_file(file), str(file))
    if name := environment.get(PREFIX + "ENVIRONMENT"):
        if not re.fullmatch(r"[\w.-]{1,100}", name):
            raise SettingsError(
                [f"environment variable {PREFIX}ENVIRONMENT: expected a name like Production"]
            )
        overlay = file.with_name(f"{file.stem}.{name}{file.suffix}")
        if overlay.exists():
            layers.add(_read_file(overlay), str(overlay))
    for variable, value in sorted(environment.items()):
        if variable.upper().startswith(PREFIX) and not _not_ours(variable.upper()):
            keys = variable[len(PREFIX) :].lower().split("__")
            layers.add(_nested(keys, value), f"environment variable {variable}")
    for dotted, value in (command_line or {}).items():
        layers.add(_nested(dotted.split("."), value), "command line")
    return _finish(layers, missing)


def _not_ours(variable: str) -> bool:
    """Kubernetes sets PYPROXY_PORT… and PYPROXY_SERVICE_… where a service is called pyproxy."""
    return bool(re.fullmatch(PREFIX + "(ENVIRONMENT|PORT|PORT_.*|SERVICE_.*)", variable))


def _nested(keys: list[str], value: str) -> dict[str, Json]:
    """``timeouts``, ``read``, ``"5"`` -> ``{"timeouts": {"read": Text("5")}}``"""
    data: Json = Text(value)
    if len(keys) == 1 and keys[0] in _SECTIONS and isinstance(literal(data), dict):
        data = literal(data)
    for key in reversed(keys):
        data = {key: data}
    found: dict[str, Json] = data
    return found


def _read_file(path: Path) -> dict[str, Json]:
    try:
        data = json.loads(path.read_bytes().decode("utf-8-sig"), object_pairs_hook=_no_twice)
    except OSError as error:
        raise SettingsError([f"{path}: {(error.strerror or 'cannot be read').lower()}"]) from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno} column {error.colno}"
        raise SettingsError([f"{path}: {where}: not valid JSON: {error.msg}"]) from None
    except UnicodeDecodeError:
        raise SettingsError([f"{path}: not a text in UTF-8"]) from None
    except ValueError as error:
        raise SettingsError([f"{path}: {error}"]) from None
    if not isinstance(data, dict):
        raise SettingsError([f"{path}: expected an object, {{…}}"])
    data.pop("$schema", None)
    return data


def _no_twice(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    data = dict(pairs)
    if len(data) < len(pairs):
        keys = [key for key, _ in pairs]
        again = next(key for at, key in enumerate(keys) if key in keys[:at])
        raise ValueError(f'"{again}" stands twice in one object')
    return data


def plain(value: Any) -> Json:
    """Settings, or a part of them, as ``appsettings.json`` would say them."""
    if isinstance(value, Listen | TargetAddress):
        return value.url
    if dataclasses.is_dataclass(value):
        return {one.name: plain(getattr(value, one.name)) for one in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return [plain(one) for one in value]
    if isinstance(value, ipaddress.IPv4Network | ipaddress.IPv6Network):
        return str(value)
    return value
