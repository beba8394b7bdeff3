"""Settings: all of them, as frozen dataclasses, and how they come from JSON and the layers.

Each option is declared once (``options.option``). Everything that is wrong is told at once, each
with where it was said, its path and a remedy.
"""

import dataclasses
import importlib.util
import ipaddress
import os
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyproxy import layers
from pyproxy.balancing.policies import PolicyChoice, policy
from pyproxy.errors import SettingsError
from pyproxy.layers import FILE, Layers
from pyproxy.options import REQUIRED, Option, declared, option, read_object, section
from pyproxy.readers import (
    Json,
    Network,
    Problems,
    address,
    boolean,
    duration,
    items,
    list_of,
    literal,
    network,
    number,
    one_of,
    optional,
    parts,
    refuse_duplicates,
    size,
    text,
    url_of,
    whole,
)


@dataclass(frozen=True)
class Listen:
    """An address to listen on; port 0 lets the system choose. A text or a port stands for an
    object with that ``url``."""

    url: str = option(REQUIRED, "where to listen", lambda value: _listen_url(value))
    redirect: str | None = option(
        None, '"https": send clients to the same address there', optional(one_of("https"))
    )
    redirect_status: int = option(302, "301, 302, 303, 307 or 308", lambda value: _status(value))
    proxy_protocol: bool = option(
        False,
        "connections begin with a PROXY header that tells the client; only from trusted_proxies",
        boolean,
    )

    @property
    def place(self) -> tuple[str, str, int]:
        """Scheme, host and port."""
        return address(self.url, ("http", "https"), "127.0.0.1", 80)

    @property
    def secure(self) -> bool:
        return self.url.startswith("https:")


def _listen_url(value: Json) -> str:
    return url_of(*address(value, ("http", "https"), "127.0.0.1", 80))


def _status(value: Json) -> int:
    if (found := literal(value)) not in (301, 302, 303, 307, 308):
        raise ValueError("expected 301, 302, 303, 307 or 308")
    return int(found)


def _listen(value: Json) -> tuple[Listen, ...]:
    def read(one: Json) -> Listen:
        return read_object(Listen, one) if isinstance(one, dict) else Listen(_listen_url(one))

    found = list_of(read)(value)
    if not found:
        raise ValueError('expected an address to listen on, like "http://127.0.0.1:8000"')
    refuse_duplicates([one.url if one.place[2] else "" for one in found])
    return found


TARGET_SCHEMES = ("http", "https", "dns")


@dataclass(frozen=True)
class TargetSettings:
    """One server behind the proxy; a text or a port stands for an object with that ``url``."""

    url: str = option(
        REQUIRED,
        "where it is: http://host:port, a bare port, or dns://name:port for all behind a name",
        lambda value: _target_url(value),
    )
    weight: int = option(1, "its share of the requests, beside the others' weights", whole(1, 256))
    backup: bool = option(False, "serves only when no ordinary target is left", boolean)
    max_connections: int | None = option(
        None,
        "requests at once; more wait in the queue (null: no limit)",
        optional(whole(1)),
    )
    slow_start: float | None = option(
        None,
        "for so long after its return its share grows to the full (null: at once)",
        optional(duration),
        "seconds",
    )

    @property
    def dns(self) -> bool:
        """Whether it stands for every address behind its name."""
        return self.url.startswith("dns:")

    @property
    def place(self) -> tuple[str, int]:
        """Host and port."""
        _, host, port = address(self.url, TARGET_SCHEMES, "localhost", 80)
        return host, port

    @property
    def scheme(self) -> str:
        return "https" if self.url.startswith("https:") else "http"


TCP_SCHEMES = ("tcp", "dns")


@dataclass(frozen=True)
class TCPTarget(TargetSettings):
    """The same in a tcp entry."""

    url: str = option(
        REQUIRED,
        "where it is: tcp://host:port, a bare port, or dns://name:port for all behind a name",
        lambda value: _tcp_url(value),
    )

    @property
    def place(self) -> tuple[str, int]:
        _, host, port = address(self.url, TCP_SCHEMES, "localhost", None)
        return host, port

    @property
    def scheme(self) -> str:
        return "tcp"


def _with_port(found: tuple[str, str, int]) -> str:
    if not found[2]:
        raise ValueError("expected a port from 1 to 65535")
    return url_of(*found)


def _target_url(value: Json) -> str:
    return _with_port(address(value, TARGET_SCHEMES, "localhost", 80))


def _tcp_url(value: Json) -> str:
    return _with_port(address(value, TCP_SCHEMES, "localhost", None))


def _targets_of(
    kind: type[TargetSettings], read_url: Callable[[Json], str], example: str
) -> Callable[[Json], tuple[TargetSettings, ...]]:
    def read(one: Json) -> TargetSettings:
        return read_object(kind, one) if isinstance(one, dict) else kind(read_url(one))

    def read_all(value: Json) -> tuple[TargetSettings, ...]:
        found = list_of(read)(value)
        if not found:
            raise ValueError(f'expected at least one target, like "{example}"')
        refuse_duplicates([one.url for one in found])
        return found

    return read_all


_targets = _targets_of(TargetSettings, _target_url, "http://localhost:8001")


def _cookie_name(value: Json) -> str | None:
    found = optional(text)(value)
    if found is not None and not re.fullmatch(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+", found):
        raise ValueError('expected a name like "SERVERID"')
    return found


@dataclass(frozen=True)
class Health:
    interval: float | None = option(
        None,
        "between two checks of a live target (null: only evicted ones are probed)",
        optional(duration),
        "seconds",
    )
    path: str = option("/", "what a check asks for", lambda value: _path(value))
    timeout: float = option(5.0, "for a check's answer", duration, "seconds")
    status: tuple[int, ...] = option(
        (), "the statuses of a healthy target (none: any below 500)", list_of(whole(200, 599))
    )
    body: str = option("", "a text that the start of a healthy answer contains", text)
    tcp: bool = option(False, "only connect, ask for nothing", boolean)
    rise: int = option(1, "good checks in a row that restore a target", whole(1))
    fall: int = option(3, "bad checks in a row that evict a target", whole(1))


@dataclass(frozen=True)
class StickySettings:
    cookie: str | None = option(
        None, "the name of the cookie that binds a client to a target (null: none)", _cookie_name
    )
    secret: str | None = option(
        None,
        "what its value is made with (null: something new at each start)",
        optional(text),
        secret=True,
    )
    max_age: float | None = option(
        None, "the cookie's life (null: until the browser is closed)", optional(duration), "seconds"
    )
    secure: bool = option(False, "the cookie is only for https", boolean)


@dataclass(frozen=True)
class TargetTLS:
    verify: bool = option(True, "refuse a target whose certificate isn't good", boolean)
    ca: str | None = option(
        None, "a file of the authorities to trust (null: the system's)", optional(text)
    )
    certificate: str | None = option(
        None, "a file with the certificate to show to targets that ask", optional(text)
    )
    key: str | None = option(None, "a file with its key (null: in the same file)", optional(text))


@dataclass(frozen=True)
class CertificatePair:
    """One of several certificates, chosen by the name that a client asks for."""

    certificate: str = option(REQUIRED, "a file in PEM, its chain included", text)
    key: str = option(REQUIRED, "a file in PEM", text)


def _pair(value: Json) -> CertificatePair:
    if not isinstance(value, dict):
        raise ValueError("expected an object with certificate and key")
    return read_object(CertificatePair, value)


@dataclass(frozen=True)
class TLS:
    certificate: str | None = option(
        None, "a file with the certificate of https addresses, its chain included", optional(text)
    )
    key: str | None = option(None, "a file with its key (null: in the same file)", optional(text))
    certificates: tuple[CertificatePair, ...] = option(
        (), "more of them, chosen by the name a client asks for", list_of(_pair)
    )
    min_version: str = option("1.2", "the oldest TLS that is spoken", one_of("1.2", "1.3"))
    ciphers: str | None = option(
        None, "those of TLS 1.2, as OpenSSL lists them (null: Python's choice)", optional(text)
    )
    client_ca: str | None = option(
        None, "a file of authorities: clients need a certificate of theirs", optional(text)
    )

    @property
    def pairs(self) -> list[tuple[str, str]]:
        own = [(self.certificate, self.key or self.certificate)] if self.certificate else []
        return own + [(one.certificate, one.key) for one in self.certificates]


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
class Queue:
    size: int = option(1000, "requests that wait when every target is full", whole(0))
    timeout: float = option(10.0, "a request's wait for a target", duration, "seconds")


@dataclass(frozen=True)
class TargetTimeouts:
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
    idle: float = option(
        600.0, "silence of both sides at once where bytes are only relayed", duration, "seconds"
    )


@dataclass(frozen=True)
class Timeouts(TargetTimeouts):
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


def _http2(value: Json) -> bool:
    found = boolean(value)
    if found and not _has_h2():
        raise ValueError("HTTP/2 needs the package h2: pip install pyproxy-lb[http2]")
    return found


def _has_h2() -> bool:
    return importlib.util.find_spec("h2") is not None


@dataclass(frozen=True)
class Http2:
    enabled: bool = option(
        True, "offered to clients over TLS, if the package h2 is installed (extra http2)", _http2
    )
    prior_knowledge: bool = option(
        False, "spoken without TLS too, with clients that start with it", _http2
    )
    max_streams: int = option(100, "requests at once on one connection", whole(1, 2**31 - 1))
    threads: int = option(
        1000, "for requests on all connections, beyond one each; more wait", whole(0)
    )

    @property
    def offered(self) -> bool:
        """Whether TLS offers it (ALPN ``h2``)."""
        return self.enabled and _has_h2()


@dataclass(frozen=True)
class Unavailable:
    status: int = option(503, "the status when no target is left", whole(400, 599))
    body: str = option("All servers is off", "the body when no target is left", text)


def _path(value: Json) -> str:
    found = text(value)
    if not found.startswith("/") or not found.isascii() or not found.isprintable() or " " in found:
        raise ValueError('expected a path like "/health"')
    return found


def _host(value: Json) -> str | None:
    found = optional(text)(value)
    if found is None:
        return None
    name = found.removeprefix("*.")
    try:
        _, host, _ = address(f"http://{name}", ("http",), "", 80)
    except ValueError:
        host = ""
    if not host or host != name.lower().strip("[]"):
        raise ValueError('expected a host like "example.com" or "*.example.com"')
    return found.lower()


def _folder(value: Json) -> str:
    found = text(value)
    if "\0" in found or not os.path.isdir(found):
        raise ValueError(f'"{found}" is not a folder')
    return found


def _file_name(value: Json) -> str:
    found = text(value)
    if not re.fullmatch(r"(?!\.)[^/\\:~\0]+", found):
        raise ValueError('expected a file name like "index.html"')
    return found


def _location(value: Json) -> str:
    found = text(value)
    if not found.isascii() or not found.isprintable() or " " in found or not found:
        raise ValueError('expected an address like "https://{host}{uri}"')
    return found


@dataclass(frozen=True)
class PoolSettings:
    """Targets, and all that is said of how they serve."""

    targets: tuple[TargetSettings, ...] = option(
        (), "the servers behind the proxy: URLs, bare ports of this machine, or objects", _targets
    )
    policy: PolicyChoice = option(
        PolicyChoice("hash_ring"), "how a target is chosen: a name, or an object with it", policy
    )
    sleeping: float = option(10.0, "between two probes of an evicted target", duration, "seconds")
    resolving: float = option(5.0, "between two look-ups of a dns:// target", duration, "seconds")
    max_fails: int = option(1, "failures in a row that evict a target", whole(1))
    max_evicted: float | None = option(
        None,
        "the share of targets that may be evicted, from 0 to 1 (null: all)",
        optional(number(0, 1)),
    )
    health: Health = section(Health)
    retry: Retry = section(Retry)
    sticky: StickySettings = section(StickySettings)
    queue: Queue = section(Queue)
    timeouts: TargetTimeouts = section(TargetTimeouts)
    target_tls: TargetTLS = section(TargetTLS)
    unavailable: Unavailable = section(Unavailable)
    send_proxy: int | None = option(
        None,
        "begin connections to targets with a PROXY header of version 1 or 2 (null: none)",
        optional(whole(1, 2)),
    )


@dataclass(frozen=True)
class Route(PoolSettings):
    """Requests for a host and path, and what serves them: ``targets`` (with all that else is said
    of a pool; what isn't said is as it is at the top), ``files`` or ``redirect``."""

    host: str | None = option(
        None, 'for this host, or "*.example.com" for all below (null: for any)', _host
    )
    path: str = option("/", "for this path and all below it", lambda value: _path(value))
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
    redirect_status: int = option(302, "301, 302, 303, 307 or 308", _status)


def _route(value: Json) -> Route:
    if not isinstance(value, dict):
        raise ValueError("expected an object")
    found = read_object(Route, value)
    if sum(map(bool, (found.targets, found.files, found.redirect))) != 1:
        raise ValueError("a route has one of targets, files and redirect")
    return found


def _routes(value: Json) -> tuple[Route, ...]:
    found = list_of(_route)(value)
    refuse_duplicates([f"{one.host or ''}{one.path.rstrip('/')}/" for one in found])
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


@dataclass(frozen=True)
class TCPEntry(PoolSettings):
    """A listening address whose connections are relayed to ``targets`` as they are, with what is
    said of a pool as far as it needs no HTTP; what isn't said is as it is at the top."""

    listen: str = option(
        REQUIRED, "where to listen: host:port, or a bare port", lambda value: _tcp_listen(value)
    )
    targets: tuple[TargetSettings, ...] = option(
        REQUIRED,
        "the servers behind it: tcp://host:port, bare ports of this machine, or objects",
        _targets_of(TCPTarget, _tcp_url, "tcp://localhost:5432"),
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
        _host,
    )

    @property
    def place(self) -> tuple[str, str, int]:
        """Scheme, host and port."""
        return address(self.listen, ("tcp",), "127.0.0.1", None)


def _tcp_listen(value: Json) -> str:
    if isinstance(value, str) and not value.isdigit() and "://" not in value:
        value = f"tcp://{value}"
    return url_of(*address(value, ("tcp",), "127.0.0.1", None))


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
    for key, known in _TCP_SETTINGS.items():
        if known and isinstance(section := value.get(key), dict):
            there = {one.name for one in dataclasses.fields(_KINDS[key])}
            found += [(f".{key}.{below}", said) for below in section if below in there - set(known)]
    return found


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


@dataclass(frozen=True)
class Settings(PoolSettings):
    """All of it. ``load`` makes one from files and layers, ``parse`` from a plain object."""

    listen: tuple[Listen, ...] = option(
        (Listen("http://127.0.0.1:8000"),), "where to listen: a URL, or a list of them", _listen
    )
    routes: tuple[Route, ...] = option(
        (), "who else serves, by host and path: targets, files or redirects", _routes
    )
    tcp: tuple[TCPEntry, ...] = option(
        (), "addresses whose connections are relayed without HTTP, with their targets", _tcp
    )
    timeouts: Timeouts = section(Timeouts)
    tls: TLS = section(TLS)
    limits: Limits = section(Limits)
    http2: Http2 = section(Http2)
    trusted_proxies: tuple[Network, ...] = option(
        (),
        "proxies whose X-Forwarded-For, Forwarded and PROXY headers are believed",
        list_of(network),
    )
    cpu_affinity: bool = option(
        True, "serve on one processor: faster, since the interpreter uses only one", boolean
    )
    access_log: str | None = option(
        None, 'a file for a line a request, "-" for standard output, null for none', optional(text)
    )

    @property
    def needs_tls(self) -> bool:
        """Whether some address speaks TLS itself."""
        return any(one.secure for one in self.listen) or any(one.tls for one in self.tcp)


_POOL_SETTINGS = {one.name for one in dataclasses.fields(PoolSettings)}
_KINDS: dict[str, Any] = {
    one.name: one.default_factory
    for one in dataclasses.fields(PoolSettings)
    if "option" not in one.metadata
}
_ROUTE_SETTINGS: dict[str, Collection[str] | None] = {
    **dict.fromkeys(one.name for one in dataclasses.fields(PoolSettings)),
    "timeouts": {one.name for one in dataclasses.fields(TargetTimeouts)},
}
_SECTIONS = {one.name for one in dataclasses.fields(Settings) if "option" not in one.metadata}


def options() -> list[tuple[str, Option, Any]]:
    """Every option there is: ``(path, option, default)``."""
    return declared(Settings)


def _finish(found: Layers, missing: str = "") -> Settings:
    told = []
    settings = None
    try:
        entries = {
            "routes": _inheriting(found.data.get("routes", []), _top(found.data, _ROUTE_SETTINGS)),
            "tcp": _inheriting(found.data.get("tcp", []), _top(found.data, _TCP_SETTINGS)),
        }
        settings = read_object(Settings, {**found.data, **entries})
    except ValueError as error:
        for below, said in parts(error):
            path = below.removeprefix(".")
            if not _inherited(path, found.data):  # told already, where it is said
                told.append(f"{found.source(path)}: {path}: {said}")
    if not {"targets", "routes", "tcp"} & found.data.keys():
        said = 'name the servers behind the proxy, like ["http://localhost:8001"]'
        told.append(missing or f"{found.source('')}: targets: {said}")
    if settings and settings.needs_tls and not settings.tls.pairs:
        said = "an https address needs it (`pyproxy certificate localhost` makes one to try)"
        told.append(f"{found.source('tls')}: tls.certificate: {said}")
    listens = settings.listen if settings else ()
    if any(one.redirect for one in listens) and not any(one.secure for one in listens):
        told.append(f"{found.source('listen')}: listen: no https address to redirect to")
    if told or settings is None:
        raise SettingsError(told)
    return settings


def _top(data: Mapping[str, Json], known: Mapping[str, Collection[str] | None]) -> dict[str, Json]:
    """What is said at the top of ``known`` settings, and of sections their ``known`` ones."""
    top = {key: data[key] for key in known if key in data and key != "targets"}
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


def _inherited(path: str, data: Mapping[str, Json]) -> bool:
    """Whether the problem of a route or a tcp entry is that of the top's setting."""
    match = re.match(r"(routes|tcp)\[(\d+)\]\.(\w+)(?:\.(\w+))?", path)
    if not match or match[3] not in data:
        return False
    entry = items(data[match[1]])[int(match[2])]
    said = entry.get(match[3], {}) if isinstance(entry, dict) else None
    if match[1] == "tcp" and match[3] == "policy" and said == {}:
        return not _reads(policy, data["policy"])  # it may be good for HTTP only
    return match[3] not in entry or (isinstance(said, dict) and match[4] not in said)


def _reads(read: Callable[[Json], object], value: Json) -> bool:
    try:
        read(value)
    except ValueError:
        return False
    return True


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


def _shown(value: Any, field: "dataclasses.Field[Any]") -> Json:
    found = getattr(value, field.name)
    option = field.metadata.get("option")
    return "(hidden)" if option and option.secret and found else plain(found)


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
    if isinstance(value, TCPEntry):
        return _plain_entry(value)
    if isinstance(value, PolicyChoice):
        return {"name": value.name, **dict(value.options)} if value.options else value.name
    if isinstance(value, TargetSettings) and value == type(value)(value.url):
        return value.url
    if dataclasses.is_dataclass(value):
        return {one.name: _shown(value, one) for one in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return [plain(one) for one in value]
    if isinstance(value, ipaddress.IPv4Network | ipaddress.IPv6Network):
        return str(value)
    return value
