"""Settings: all of them, with routes and tcp entries, and how they come from JSON and the layers.

Each option is declared once (``options.option``). Everything that is wrong is told at once, each
with where it was said, its path and a remedy.
"""

import dataclasses
import ipaddress
import json
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyproxy import layers
from pyproxy.balancing.policies import PolicyChoice
from pyproxy.errors import SettingsError
from pyproxy.layers import FILE, Layers
from pyproxy.options import HIDDEN, REQUIRED, Option, declared, option, read_object, section
from pyproxy.readers import (
    Json,
    Network,
    Problems,
    address,
    boolean,
    described,
    duration,
    either,
    few,
    is_loopback,
    items,
    list_of,
    literal,
    network,
    optional,
    parts,
    refuse_duplicates,
    schema_of_list,
    text,
    url_of,
    whole,
)
from pyproxy.scaling_settings import Environment
from pyproxy.sections import (
    TLS,
    AccessLogSettings,
    Admin,
    Http2,
    Limits,
    Listen,
    Log,
    PoolSettings,
    TargetSettings,
    TargetTimeouts,
    Timeouts,
    Tracing,
    read_access_log,
    read_host,
    read_listen,
    read_path,
    read_status,
    read_tcp_target,
    targets_of,
)


@described(text.schema)
def _folder(value: Json) -> str:
    found = text(value)
    if "\0" in found or not os.path.isdir(found):
        raise ValueError(f'"{found}" is not a folder')
    return found


@described({"type": "string", "pattern": r"^(?!\.)[^/\\:~]+$"})
def _file_name(value: Json) -> str:
    found = text(value)
    if not re.fullmatch(r"(?!\.)[^/\\:~\0]+", found):
        raise ValueError('expected a file name like "index.html"')
    return found


@described({"type": "string", "pattern": "^[!-~]+$"})
def _location(value: Json) -> str:
    found = text(value)
    if not found.isascii() or not found.isprintable() or " " in found or not found:
        raise ValueError('expected an address like "https://{host}{uri}"')
    return found


@described({"type": "string", "pattern": r"^\.[!-.0-~]+$"})
def _ending(value: Json) -> str:
    found = text(value)
    if not re.fullmatch(r"\.[!-.0-~]+", found):
        raise ValueError('expected an ending like ".css"')
    return found.lower()


@dataclass(frozen=True)
class Route(PoolSettings):
    """Requests for a host and path, and what serves them: ``targets`` (with all that else is said
    of a pool; what isn't said is as it is at the top), ``files`` or ``redirect``; or nobody:
    ``deny``."""

    host: str | None = option(
        None, 'for this host, or "*.example.com" for all below (null: for any)', optional(read_host)
    )
    path: str = option("/", "for this path and all below it", read_path)
    endings: tuple[str, ...] = option(
        (),
        'only for paths that end so, like ".css"; goes before all routes of the host without it',
        list_of(_ending),
    )
    files: str | None = option(None, "a folder whose files are served", optional(_folder))
    index: str = option("index.html", "the file that stands for its folder", _file_name)
    expires: float | None = option(
        None, "how long a client needn't ask for a file again", optional(duration), "seconds"
    )
    redirect: str | None = option(
        None,
        "an address to send clients to; {host} and {uri} in it are those of the request",
        optional(_location),
    )
    redirect_status: int = option(302, "301, 302, 303, 307 or 308", read_status)
    deny: int | None = option(
        None, "a status, 400 to 599, that all of it is answered with", optional(whole(400, 599))
    )


_ONE_KIND = [
    {"anyOf": [{"required": ["targets"]}, {"required": ["scaling"]}]},
    {"required": ["files"]},
    {"required": ["redirect"]},
    {"required": ["deny"]},
]


@described({"object": Route, "oneOf": _ONE_KIND})
def _route(value: Json) -> Route:
    if not isinstance(value, dict):
        raise ValueError("expected an object")
    found = read_object(Route, value)
    if sum(map(bool, (found.has_targets, found.files, found.redirect, found.deny))) != 1:
        raise ValueError("a route has one of targets (or scaling), files, redirect and deny")
    return found


@described(schema_of_list(_route.schema))
def _routes(value: Json) -> tuple[Route, ...]:
    found = list_of(_route)(value)
    refuse_duplicates(
        [f"{one.host or ''}{one.path.rstrip('/')}/{','.join(sorted(one.endings))}" for one in found]
    )
    return found


# What of a pool's settings means something without HTTP.
_TCP_SETTINGS: dict[str, Collection[str] | None] = {
    "targets": None,
    "policy": None,
    "sleeping": None,
    "resolving": None,
    "max_fails": None,
    "max_evicted": None,
    "health": {"interval", "timeout", "rise", "fall"},
    "retry": {"attempts"},
    "queue": {"size", "timeout"},
    "timeouts": {"connect", "idle"},
    "send_proxy": None,
}


@described({"type": ["integer", "string"], "minimum": 0, "maximum": 65535, "pattern": ":|^[0-9]+$"})
def _tcp_listen(value: Json) -> str:
    if isinstance(value, str) and not value.isdigit() and "://" not in value:
        value = f"tcp://{value}"
    return url_of(*address(value, ("tcp",), "127.0.0.1", None))


@dataclass(frozen=True)
class TCPEntry(PoolSettings):
    """A listening address whose connections are relayed to ``targets`` as they are, with what is
    said of a pool as far as it needs no HTTP; what isn't said is as it is at the top."""

    listen: str = option(REQUIRED, "where to listen: host:port, or a bare port", _tcp_listen)
    targets: tuple[TargetSettings, ...] = option(
        REQUIRED,
        "the servers behind it: tcp://host:port, bare ports of this machine, or objects",
        targets_of(read_tcp_target, "tcp://localhost:5432"),
    )
    proxy_protocol: bool = option(
        False,
        "connections begin with a PROXY header that tells the client; only from trusted_proxies",
        boolean,
    )
    tls: bool = option(
        False,
        "clients speak TLS here, with the certificates of tls; targets get it decrypted",
        boolean,
    )
    server_name: str | None = option(
        None,
        'for clients that ask for this name (or "*.example.com") in TLS, which passes untouched;'
        " several entries may listen at one address (null: for all others)",
        optional(read_host),
    )

    @property
    def place(self) -> tuple[str, str, int]:
        """Scheme, host and port."""
        return address(self.listen, ("tcp",), "127.0.0.1", None)


def tcp_options() -> list[tuple[str, Option, Any]]:
    """Every option of a tcp entry, like ``options``."""
    own = {one.name for one in dataclasses.fields(TCPEntry)} - _POOL_SETTINGS

    def counts(path: str) -> bool:
        key, _, below = path.partition(".")
        return key in own or (key in _TCP_SETTINGS and below in (_TCP_SETTINGS[key] or {""}))

    return [one for one in declared(TCPEntry) if counts(one[0])]


def _needs_http(value: Mapping[str, Json]) -> list[tuple[str, str]]:
    """What of it a tcp entry can't have."""
    said = "needs HTTP, which a tcp entry doesn't speak"
    found = [(f".{key}", said) for key in value if key in _POOL_SETTINGS - _TCP_SETTINGS.keys()]
    if "scaling" in value:
        found.remove((".scaling", said))
        found.append((".scaling", "a tcp entry's targets are named: they can't be made"))
    for key, known in _TCP_SETTINGS.items():
        if known and isinstance(section := value.get(key), dict):
            there = {one.name for one in dataclasses.fields(_KINDS[key])}
            found += [(f".{key}.{below}", said) for below in section if below in there - set(known)]
    return found


@described({"object": TCPEntry})
def _tcp_entry(value: Json) -> TCPEntry:
    if not isinstance(value, dict):
        raise ValueError("expected an object")
    problems = _needs_http(value)
    health = value.get("health", {})
    if isinstance(health, dict):
        value = {**value, "health": {**health, "tcp": True}}
    try:
        found = read_object(TCPEntry, value)
    except ValueError as error:
        problems += parts(error)
    else:
        if found.tls and found.server_name:
            problems.append((".server_name", "TLS that ends here isn't passed on: say it or tls"))
        key = dict(found.policy.options).get("key", "client")
        if key != "client":
            problems.append((".policy", f'a key "{key}" needs HTTP: a tcp entry has "client"'))
    if problems:
        raise Problems(problems)
    return found


@described(schema_of_list(_tcp_entry.schema))
def _tcp(value: Json) -> tuple[TCPEntry, ...]:
    found = list_of(_tcp_entry)(value)
    refuse_duplicates(
        [f"{one.listen} {one.server_name or ''}".strip() if one.place[2] else "" for one in found]
    )
    problems = [
        (f"[{at}]", f"tls, server_name and proxy_protocol don't agree with {first.listen} above")
        for at, one in enumerate(found)
        for first in found[:at]
        if one.listen == first.listen and one.place[2]
        if (one.tls, one.proxy_protocol) != (first.tls, first.proxy_protocol) or one.tls
    ]
    if problems:
        raise Problems(problems)
    return found


@described(either({"type": "integer", "minimum": 1, "maximum": 256}, {"const": "auto"}))
def _workers(value: Json) -> int | str:
    value = literal(value)
    if value == "auto":
        return "auto"
    try:
        return whole(1, 256)(value)
    except ValueError:
        raise ValueError('expected a whole number from 1 to 256, or "auto"') from None


@dataclass(frozen=True)
class Settings(PoolSettings):
    """All of it. ``load`` makes one from files and layers, ``parse`` from a plain object."""

    listen: tuple[Listen, ...] = option(
        (Listen("http://127.0.0.1:8000"),), "where to listen: a URL, or a list of them", read_listen
    )
    routes: tuple[Route, ...] = option(
        (), "who else serves, by host and path: targets, files, redirects or nobody", _routes
    )
    tcp: tuple[TCPEntry, ...] = option(
        (), "addresses whose connections are relayed without HTTP, with their targets", _tcp
    )
    timeouts: Timeouts = section(Timeouts)
    tls: TLS = section(TLS)
    limits: Limits = section(Limits)
    http2: Http2 = section(Http2)
    admin: Admin = section(Admin)
    trusted_proxies: tuple[Network, ...] = option(
        (),
        "proxies whose X-Forwarded-For, Forwarded and PROXY headers are believed",
        list_of(network),
    )
    workers: int | str = option(
        1, 'processes that serve, or "auto": one for each processor', _workers
    )
    cpu_affinity: bool = option(
        True, "serve on one processor: faster, since the interpreter uses only one", boolean
    )
    access_log: AccessLogSettings | None = option(
        None,
        'a file for a line a request, "-" for standard output, an object, or null for none',
        optional(read_access_log),
    )
    log: Log = section(Log)
    tracing: Tracing = section(Tracing)

    @property
    def worker_count(self) -> int:
        """Processes that serve."""
        if isinstance(self.workers, int):
            return self.workers
        if hasattr(os, "sched_getaffinity"):
            return len(os.sched_getaffinity(0))
        return os.cpu_count() or 1

    @property
    def listens(self) -> list[Listen]:
        """The addresses for HTTP. Those that redirect come last: the first is one that serves."""
        if self.tcp and not (self.has_targets or self.routes):
            return []  # there is nothing to serve there
        return sorted(self.listen, key=lambda one: bool(one.redirect))

    @property
    def places(self) -> list[tuple[str, str, int]]:
        """Scheme, host and port of all that is listened on: for HTTP, then for tcp entries, of
        which several may share one."""
        tcp = {one.listen if one.place[2] else one: one.place for one in self.tcp}
        return [one.place for one in self.listens] + [*tcp.values()]

    @property
    def all_places(self) -> list[tuple[str, str, int]]:
        """``places``, and that of the admin API last, if it has one, with ``admin`` as scheme."""
        admin = self.admin.place
        return self.places + ([("admin", *admin[1:])] if admin else [])

    @property
    def needs_tls(self) -> bool:
        """Whether some address speaks TLS itself."""
        return any(one.secure for one in self.listen) or any(one.tls for one in self.tcp)

    @property
    def certificate_files(self) -> list[Path]:
        """All the files of certificates, keys and authorities that are named."""
        names = [self.tls.client_ca, *(name for pair in self.tls.pairs for name in pair)]
        for said in (self, *self.routes):
            own = said.target_tls
            names += [own.ca, own.certificate, own.key]
        return [Path(name) for name in dict.fromkeys(names) if name]


_OWN = {"targets", "scaling"}  # what no entry inherits
_POOL_SETTINGS = {one.name for one in dataclasses.fields(PoolSettings)}
_KINDS: dict[str, Any] = {
    one.name: one.default_factory
    for one in dataclasses.fields(PoolSettings)
    if "option" not in one.metadata
}
_ROUTE_SETTINGS: dict[str, Collection[str] | None] = {
    **dict.fromkeys(_POOL_SETTINGS - _OWN),
    "timeouts": {one.name for one in dataclasses.fields(TargetTimeouts)},
}
_SECTIONS = {one.name for one in dataclasses.fields(Settings) if "option" not in one.metadata}


def options() -> list[tuple[str, Option, Any]]:
    """Every option there is: ``(path, option, default)``."""
    return declared(Settings)


def _finish(found: Layers, missing: str = "") -> Settings:
    told = []
    settings = None
    top = _sound(found.data) if {"routes", "tcp"} & found.data.keys() else {}
    entries = {
        "routes": _inheriting(found.data.get("routes", []), _top(top, _ROUTE_SETTINGS)),
        "tcp": _inheriting(found.data.get("tcp", []), _top(top, _TCP_SETTINGS)),
    }
    try:
        settings = read_object(Settings, {**found.data, **entries})
    except ValueError as error:
        for below, said in parts(error):
            path = below.removeprefix(".")
            told.append(f"{found.source(path)}: {path}: {said}")
    if not {"targets", "scaling", "routes", "tcp"} & found.data.keys():
        said = 'name the servers behind the proxy, like ["http://localhost:8001"]'
        told.append(missing or f"{found.source('')}: targets: {said}")
    if settings and settings.needs_tls and not settings.tls.pairs:
        said = "an https address needs it (`pyproxy certificate localhost` makes one to try)"
        told.append(f"{found.source('listen')}: tls.certificate: {said}")
    listens = settings.listen if settings else ()
    if any(one.redirect for one in listens) and not any(one.secure for one in listens):
        told.append(f"{found.source('listen')}: listen: no https address to redirect to")
    if settings:
        wrong = _wrong_with_admin(settings) + _wrong_with_scaling(settings)
        told += [f"{found.source(path)}: {path}: {said}" for path, said in wrong]
    if told or settings is None:
        raise SettingsError(told)
    return settings


def _wrong_with_admin(settings: Settings) -> list[tuple[str, str]]:
    admin = settings.admin
    if admin.place is None:
        return []
    found = []
    _, host, port = admin.place
    if not is_loopback(host) and not admin.password:
        said = f"others can reach {admin.listen}: give it a password, or listen on 127.0.0.1"
        found.append(("admin.password", said))
    taken = [one.place[1:] for one in settings.listen] + [one.place[1:] for one in settings.tcp]
    if port and any(_overlap((host, port), one) for one in taken):
        said = f"the proxy itself listens on port {port} there: choose another one"
        found.append(("admin.listen", said))
    return found


def _wrong_with_scaling(settings: Settings) -> list[tuple[str, str]]:
    """Of pools without targets of their own."""
    pools: dict[str, PoolSettings] = {"": settings}
    pools |= {f"routes[{at}].": one for at, one in enumerate(settings.routes)}
    found = []
    for path, one in pools.items():
        if not one.scaling or one.targets:
            continue
        if one.scaling.launcher == "swarm":
            said = 'name the tasks of its service in targets, like "dns://tasks.app:8000"'
            told = f"a Swarm's targets are found, not made here: {said}"
            found.append((f"{path}scaling.launcher", told))
        elif not one.scaling.min:
            said = "without targets of its own the pool would never have one: say 1 at least"
            found.append((f"{path}scaling.min", said))
    return found


def _overlap(one: tuple[str, int], other: tuple[str, int]) -> bool:
    hosts = {one[0], other[0]}
    return one[1] == other[1] and (len(hosts) == 1 or bool(hosts & {"0.0.0.0", "::"}))


def _sound(data: Mapping[str, Json]) -> dict[str, Json]:
    """What stands at the top, without what is wrong: that is told there, and not again for each
    entry that inherits it."""
    top = {key: value for key, value in data.items() if key not in ("routes", "tcp")}
    try:
        read_object(Settings, top)
    except ValueError as error:
        for path, _ in parts(error):
            top.pop(re.split(r"[.\[]", path.removeprefix("."))[0], None)
    return top


def _top(data: Mapping[str, Json], known: Mapping[str, Collection[str] | None]) -> dict[str, Json]:
    """What is said at the top of ``known`` settings, and of sections their ``known`` ones."""
    top = {key: data[key] for key in known if key in data and key not in _OWN}
    for key, below in known.items():
        if below is not None and isinstance(section := top.get(key), dict):
            top[key] = {name: section[name] for name in below if name in section}
    return top


def _inheriting(entries: Json, top: Mapping[str, Json]) -> Json:
    """Routes or tcp entries, each with what it doesn't say itself as it is said at the top."""
    found = []
    for entry in items(entries):
        if isinstance(entry, dict):
            both = _SECTIONS & entry.keys() & top.keys()
            merged = {
                key: {**top[key], **entry[key]}
                for key in both
                if isinstance(top[key], dict) and isinstance(entry[key], dict)
            }
            entry = {**top, **entry, **merged}
        found.append(entry)
    return found


def parse(data: Mapping[str, Json], source: str = "settings") -> Settings:
    """Settings from a plain object. Raises ``SettingsError``."""
    found = Layers(_SECTIONS)
    found.sources[""] = source
    found.add(data, source)
    return _finish(found)


def load(
    path: Path | None = None,
    environment: Mapping[str, str] | None = None,
    command_line: Mapping[str, Json] | None = None,
) -> Settings:
    """All layers. ``path`` None: ``appsettings.json`` of the current folder, if it is there.
    ``command_line`` maps paths like ``timeouts.read`` to texts. Raises ``SettingsError``."""
    missing = ""
    if path is None and not Path(FILE).exists():
        missing = (
            f"{FILE}: not found in {Path.cwd()}: go where it is, name one with --config, "
            "or name targets with --targets"
        )
    else:
        path = path or Path(FILE)
    environment = os.environ if environment is None else environment
    return _finish(layers.stack(path, environment, command_line or {}, _SECTIONS), missing)


def load_admin(path: Path | None = None, environment: Mapping[str, str] | None = None) -> Admin:
    """Only where the admin API is, however wrong all else may be. Raises ``SettingsError``."""
    environment = os.environ if environment is None else environment
    file = path or (Path(FILE) if Path(FILE).exists() else None)
    found = layers.stack(file, environment, {}, _SECTIONS)
    try:
        return read_object(Admin, found.data.get("admin", {}))
    except ValueError as error:
        raise SettingsError(
            [f"{found.source('admin')}: admin{below}: {said}" for below, said in parts(error)]
        ) from None


def files(path: Path | None = None, environment: Mapping[str, str] | None = None) -> list[Path]:
    """The files that ``load`` reads: the settings, and what may stand over them; whether or not
    they exist. Raises ``SettingsError``."""
    file = path or Path(FILE)
    over = layers.overlay(file, os.environ if environment is None else environment)
    return [file, over] if over else [file]


def _shown(value: Any, field: "dataclasses.Field[Any]") -> Json:
    found = getattr(value, field.name)
    option = field.metadata.get("option")
    return HIDDEN if option and option.secret and found else plain(found)


def _plain_entry(value: TCPEntry) -> Json:
    """Without what needs HTTP."""
    found: dict[str, Json] = {}
    for path, _, _ in tcp_options():
        key, _, below = path.partition(".")
        if below:
            found.setdefault(key, {})[below] = plain(getattr(getattr(value, key), below))
        else:
            found[key] = plain(getattr(value, key))
    return found


def plain(value: Any) -> Json:
    """Settings, or a part of them, as ``appsettings.json`` would say them."""
    if isinstance(value, Listen) and value == Listen(value.url):
        return value.url
    if isinstance(value, AccessLogSettings) and value == AccessLogSettings(value.path):
        return value.path
    if isinstance(value, TCPEntry):
        return _plain_entry(value)
    if isinstance(value, Environment):
        return dict.fromkeys(dict(value), HIDDEN)
    if isinstance(value, PolicyChoice):
        return {"name": value.name, **dict(value.options)} if value.options else value.name
    if isinstance(value, TargetSettings) and value == type(value)(value.url):
        return value.url
    if dataclasses.is_dataclass(value):
        found = {one.name: _shown(value, one) for one in dataclasses.fields(value)}
        if found.get("targets") == []:
            del found["targets"]  # which can't be said
        return found
    if isinstance(value, tuple):
        return [plain(one) for one in value]
    if isinstance(value, ipaddress.IPv4Network | ipaddress.IPv6Network):
        return str(value)
    return value


def differences(old: Settings, new: Settings) -> list[str]:
    """What has changed, a line each: its path, and from what to what."""
    found: list[str] = []
    _compare("", plain(old), plain(new), found)
    if not found and old != new:
        found.append("a secret has changed")
    return found


def _compare(path: str, old: Json, new: Json, found: list[str]) -> None:
    if old == new:
        return
    if isinstance(old, dict) and isinstance(new, dict):
        for key in {**old, **new}:
            _compare(f"{path}.{key}".strip("."), old.get(key), new.get(key), found)
    elif isinstance(old, list) and isinstance(new, list):
        gone = [_brief(one) for one in old if one not in new]
        come = [_brief(one) for one in new if one not in old]
        both = (("without", gone), ("with", come))
        said = [f"{what} {few(some)}" for what, some in both if some]
        found.append(f"{path}: {' and '.join(said) or 'in another order'}")
    else:
        found.append(f"{path}: {_brief(old)} -> {_brief(new)}")


def _brief(value: Json) -> str:
    """Without what an object says by saying nothing."""
    if isinstance(value, dict):
        value = {key: one for key, one in value.items() if one is not None and one is not False}
    return json.dumps(value, ensure_ascii=False)
