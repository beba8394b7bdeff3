"""Sections: what may be said of an address, a target, a pool; each option declared once."""

import importlib.util
import re
from dataclasses import dataclass

from pyproxy.access_format import FIELDS, compiled
from pyproxy.balancing.policies import PolicyChoice, policy
from pyproxy.options import REQUIRED, option, read_object, section
from pyproxy.readers import (
    Json,
    Reader,
    Schema,
    address,
    boolean,
    described,
    duration,
    either,
    list_of,
    literal,
    number,
    one_of,
    optional,
    refuse_duplicates,
    schema_of_list,
    size,
    text,
    url_of,
    whole,
)
from pyproxy.scaling_settings import Scaling, read_scaling


def url_schema(*schemes: str) -> Schema:
    """A port, or a URL with one of the schemes; several may stand in a text."""
    pattern = rf"^([0-9]|({'|'.join(schemes)})://)"
    return {"type": ["integer", "string"], "minimum": 0, "maximum": 65535, "pattern": pattern}


@described(url_schema("http", "https"))
def _listen_url(value: Json) -> str:
    return url_of(*address(value, ("http", "https"), "127.0.0.1", 80))


@described({"enum": [301, 302, 303, 307, 308]})
def read_status(value: Json) -> int:
    if (found := literal(value)) not in (301, 302, 303, 307, 308):
        raise ValueError("expected 301, 302, 303, 307 or 308")
    return int(found)


@described({"type": "string", "pattern": "^/[!-~]*$"})
def read_path(value: Json) -> str:
    found = text(value)
    if not found.startswith("/") or not found.isascii() or not found.isprintable() or " " in found:
        raise ValueError('expected a path like "/health"')
    return found


@dataclass(frozen=True)
class Listen:
    """An address to listen on; port 0 lets the system choose. A text or a port stands for an
    object with that ``url``."""

    url: str = option(REQUIRED, "where to listen", _listen_url)
    redirect: str | None = option(
        None, '"https": send clients to the same address there', optional(one_of("https"))
    )
    redirect_status: int = option(302, "301, 302, 303, 307 or 308", read_status)
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


@described(schema_of_list(either(_listen_url.schema, {"object": Listen}), 1))
def read_listen(value: Json) -> tuple[Listen, ...]:
    def read(one: Json) -> Listen:
        return read_object(Listen, one) if isinstance(one, dict) else Listen(_listen_url(one))

    found = list_of(read)(value)
    if not found:
        raise ValueError('expected an address to listen on, like "http://127.0.0.1:8000"')
    refuse_duplicates([one.url if one.place[2] else "" for one in found])
    return found


TARGET_SCHEMES = ("http", "https", "dns")
TCP_SCHEMES = ("tcp", "dns")


def _with_port(found: tuple[str, str, int]) -> str:
    if not found[2]:
        raise ValueError("expected a port from 1 to 65535")
    return url_of(*found)


@described(url_schema(*TARGET_SCHEMES))
def _target_url(value: Json) -> str:
    return _with_port(address(value, TARGET_SCHEMES, "localhost", 80))


@described(url_schema(*TCP_SCHEMES))
def read_tcp_url(value: Json) -> str:
    return _with_port(address(value, TCP_SCHEMES, "localhost", None))


@dataclass(frozen=True)
class TargetSettings:
    """One server behind the proxy; a text or a port stands for an object with that ``url``."""

    url: str = option(
        REQUIRED,
        "where it is: http://host:port, a bare port, or dns://name:port for all behind a name",
        _target_url,
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


@dataclass(frozen=True)
class TCPTarget(TargetSettings):
    """The same in a tcp entry."""

    url: str = option(
        REQUIRED,
        "where it is: tcp://host:port, a bare port, or dns://name:port for all behind a name",
        read_tcp_url,
    )

    @property
    def place(self) -> tuple[str, int]:
        _, host, port = address(self.url, TCP_SCHEMES, "localhost", None)
        return host, port

    @property
    def scheme(self) -> str:
        return "tcp"


@described(either(_target_url.schema, {"object": TargetSettings}))
def read_target(value: Json) -> TargetSettings:
    """A URL, a bare port, or an object with it."""
    if isinstance(value, dict):
        return read_object(TargetSettings, value)
    return TargetSettings(_target_url(value))


@described(either(read_tcp_url.schema, {"object": TCPTarget}))
def read_tcp_target(value: Json) -> TargetSettings:
    """The same in a tcp entry."""
    return (
        read_object(TCPTarget, value) if isinstance(value, dict) else TCPTarget(read_tcp_url(value))
    )


def targets_of(read: Reader[TargetSettings], example: str) -> Reader[tuple[TargetSettings, ...]]:
    @described(schema_of_list(read.schema, 1))
    def read_all(value: Json) -> tuple[TargetSettings, ...]:
        found = list_of(read)(value)
        if not found:
            raise ValueError(f'expected at least one target, like "{example}"')
        refuse_duplicates([one.url for one in found])
        return found

    return read_all


_targets = targets_of(read_target, "http://localhost:8001")


@described({"type": "string", "pattern": r"^[!#$%&'*+\-.^_`|~0-9A-Za-z]+$"})
def _cookie_name(value: Json) -> str:
    found = text(value)
    if not re.fullmatch(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+", found):
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
    path: str = option("/", "what a check asks for", read_path)
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
        None,
        "the name of the cookie that binds a client to a target (null: none)",
        optional(_cookie_name),
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


@described({"object": CertificatePair})
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


@described(boolean.schema)
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


_WITH_FIELDS = {"type": "string", "pattern": rf"\{{({'|'.join(FIELDS)})\}}"}


@described(either({"enum": ["combined", "json"]}, _WITH_FIELDS))
def _format(value: Json) -> str:
    found = text(value)
    compiled(found)
    return found


@dataclass(frozen=True)
class AccessLogSettings:
    """Where a line a request goes; a text stands for an object with that ``path``."""

    path: str = option(REQUIRED, 'a file, or "-" for standard output', text)
    format: str = option(
        "combined", '"combined", "json", or a text with fields, like "{client} {uri}"', _format
    )


@described(either(text.schema, {"object": AccessLogSettings}))
def read_access_log(value: Json) -> AccessLogSettings:
    found = literal(value)
    if isinstance(found, dict):
        return read_object(AccessLogSettings, found)
    return AccessLogSettings(text(value))


@dataclass(frozen=True)
class Log:
    format: str = option(
        "text",
        'of the program\'s own lines, on standard error: "text", or "json" for an object a line',
        one_of("text", "json"),
    )
    level: str = option(
        "info",
        'the least that is logged: "debug", "info", "warning" or "error"',
        one_of("debug", "info", "warning", "error"),
    )


@dataclass(frozen=True)
class Tracing:
    request_id: bool = option(
        True, "give each request that comes without an X-Request-ID one", boolean
    )
    start: bool = option(
        False, "give each request that comes without a traceparent one (W3C Trace Context)", boolean
    )


@described({"type": "string", "pattern": r"^(\*\.)?[^*/ ]+$"})
def read_host(value: Json) -> str:
    found = text(value)
    name = found.removeprefix("*.")
    try:
        _, host, _ = address(f"http://{name}", ("http",), "", 80)
    except ValueError:
        host = ""
    if not host or host != name.lower().strip("[]"):
        raise ValueError('expected a host like "example.com" or "*.example.com"')
    return found.lower()


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
    scaling: Scaling | None = option(
        None,
        "how targets are made, and how many there may be (null: none are)",
        optional(read_scaling),
    )

    @property
    def has_targets(self) -> bool:
        """Now, or when they have been made."""
        return bool(self.targets or self.scaling)


@described(url_schema("http"))
def _admin_listen(value: Json) -> str:
    return url_of(*address(value, ("http",), "127.0.0.1", 80))


@described({"type": "string", "minLength": 1})
def _user(value: Json) -> str:
    found = text(value)
    if not found or ":" in found or not found.isprintable():
        raise ValueError('expected a name like "admin", without ":"')
    return found


@dataclass(frozen=True)
class Admin:
    """The admin API and its page."""

    listen: str | None = option(
        None,
        'where the admin API listens, like "http://127.0.0.1:8404" (null: nowhere)',
        optional(_admin_listen),
    )
    user: str = option("admin", "who may use it", _user)
    password: str | None = option(
        None,
        "the password (null: none is asked for, and only this machine may be listened on)",
        optional(text),
        secret=True,
    )

    @property
    def place(self) -> tuple[str, str, int] | None:
        """Scheme, host and port, if it listens."""
        return address(self.listen, ("http",), "127.0.0.1", 80) if self.listen else None
