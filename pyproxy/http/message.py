"""HTTP/1 heads: strict parsing, framing and rewriting. Pure: bytes in, frozen facts out.

Rules (RFC 9110, RFC 9112); whatever two parsers could understand differently is refused:
- a line ends with CRLF; a bare CR or LF, NUL and other controls are refused, so is obs-fold;
- a field name is a token, directly followed by its colon;
- the length of a body is told once: one Content-Length of digits, or Transfer-Encoding: chunked;
- a request for HTTP/1.1 has exactly one Host.
Hop-by-hop fields are dropped both ways; all others keep their bytes and their order.

Clients and targets repeat their heads, so each parser is memoised by the exact bytes (``Memo``):
a repeated head costs one look-up. The request line varies, and is memoised apart from the fields.
"""

import re
from collections.abc import Callable, Collection
from typing import Any, Generic, NamedTuple, TypeVar

from pyproxy.errors import BadReply, HTTPError

TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
VALUE = rb"[^\x00-\x08\x0a-\x1f\x7f]*"  # visible characters, obs-text, spaces and tabs

_REQUEST_LINE = re.compile(rb"(%b) ([!-~]+) HTTP/(\d)\.(\d)" % TOKEN)
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-9]\d\d)(?: (%b))?" % VALUE)
_FIELDS = re.compile(rb"(?:%b:%b\r\n)*" % (TOKEN, VALUE))
_FIELD = re.compile(rb"%b:%b" % (TOKEN, VALUE))
_HOST = re.compile(
    rb"(?:\[[0-9A-Fa-f:.]+\]|(?:[A-Za-z0-9\-._~!$&'()*+,;=]|%[0-9A-Fa-f]{2})+)(?::(\d{0,5}))?"
)
_DIGITS = re.compile(rb"\d{1,18}")
_COOKIE_LINE = re.compile(rb"(?im)^(cookie:)(.*)\r\n")
_BARE_LF = re.compile(rb"(?<!\r)\n")
_NOT_TEXT = re.compile(rb"[^\t\r\n -~\x80-\xff]")

IDEMPOTENT = frozenset({b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE"})

HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"transfer-encoding",
        b"upgrade",
    }
)
# What a Connection field can't make hop-by-hop, and a trailer can't bring.
_ESSENTIAL = frozenset({b"host", b"content-length"})
_OURS = HOP_BY_HOP | _ESSENTIAL
_NO_OPTIONS = frozenset[bytes]()
_PLAIN_OPTIONS = frozenset({b"close", b"keep-alive"})
_FORWARDED = frozenset({b"forwarded", b"x-real-ip"})

Fields = tuple[tuple[bytes, bytes, bytes], ...]  # lower-case name, value, the line with its CRLF

K = TypeVar("K", bound=bytes)
V = TypeVar("V")


class Memo(dict[bytes, V], Generic[V]):
    """``memo[key]`` is ``function(key)``, remembered. Bounded in count and in what it keeps.

    Two threads may compute the same value; both are right. Errors aren't remembered.
    """

    def __init__(self, function: Callable[[bytes], V], entries: int = 1024, largest: int = 2048):
        super().__init__()
        self._function, self._entries, self._largest = function, entries, largest

    def __missing__(self, key: bytes) -> V:
        value = self._function(key)
        if len(key) <= self._largest:
            if len(self) >= self._entries:
                self.clear()
            self[key] = value
        return value


class RequestLine:
    """The first line of a request: facts, and the line that goes to a target."""

    __slots__ = (
        "authority",
        "idempotent",
        "is_head",
        "line",
        "method",
        "minor",
        "path",
        "target",
        "wire",
    )

    def __init__(self, line: bytes) -> None:
        """Raises ``HTTPError`` 400, 501 (CONNECT) or 505. RFC 9112, 3."""
        match = _REQUEST_LINE.fullmatch(line)
        if not match:
            raise HTTPError(400, "malformed request line")
        method, target, major, minor = match.groups()
        if major != b"1" or minor > b"1":
            raise HTTPError(505, "only HTTP/1.0 and HTTP/1.1 are spoken here")
        if method == b"CONNECT":
            raise HTTPError(501, "CONNECT is not supported")
        if b"#" in target:
            raise HTTPError(400, "a request target has no fragment")
        path = target
        self.authority: bytes | None = None  # of an absolute-form target: replaces Host
        if not target.startswith(b"/") and not (target == b"*" and method == b"OPTIONS"):
            self.authority, path = _split_absolute(target, method)
        self.line = line
        self.method = method
        self.target = target  # as it came
        self.path = path  # and query; or an asterisk
        self.minor = int(minor)  # HTTP/1.minor
        self.wire = b"%b %b HTTP/1.1\r\n" % (method, path)
        self.idempotent = method in IDEMPOTENT
        self.is_head = method == b"HEAD"


def _split_absolute(target: bytes, method: bytes) -> tuple[bytes, bytes]:
    """The authority and the origin-form of an absolute-form target (RFC 9112, 3.2.2)."""
    scheme, _, rest = target.partition(b"://")
    if scheme.lower() not in (b"http", b"https"):
        raise HTTPError(400, "malformed request target")
    end = min((at for at in (rest.find(b"/"), rest.find(b"?")) if at >= 0), default=len(rest))
    authority, path = rest[:end], rest[end:]
    if not valid_host(authority) or not authority:
        raise HTTPError(400, "malformed authority in the request target")
    if not path:
        path = b"*" if method == b"OPTIONS" else b"/"
    elif path.startswith(b"?"):
        path = b"/" + path
    return authority, path


def valid_host(value: bytes) -> bool:
    """A ``host[:port]`` without user information, or nothing (RFC 9112, 3.2)."""
    match = _HOST.fullmatch(value)
    return not value or bool(match and int(match[1] or 0) < 65536)


class Peer(NamedTuple):
    """Who the client's address says it is, and what the proxy adds to its requests."""

    address: str
    trusted: bool = False
    scheme: str = "http"


class RequestFields:
    """The header section of a request: facts, and the bytes that go to a target."""

    __slots__ = (
        "_at_peer",
        "_kept",
        "_minor",
        "_version",
        "chunked",
        "expects",
        "host",
        "keep_alive",
        "length",
        "lines",
        "traced",
        "upgrade",
    )

    def __init__(self, block: bytes, minor: int, version: bytes = b"") -> None:
        """Raises ``HTTPError`` 400, 417, or 501. ``block`` is whole lines, each with its CRLF.
        ``version`` is what the client speaks, if it isn't HTTP/1.``minor``."""
        self.lines = lines = split_fields(block)
        self._minor = minor
        self._version = version or b"1.%d" % minor
        hosts = [value for name, value, _ in lines if name == b"host"]
        if len(hosts) > 1 or (minor and not hosts):
            raise HTTPError(400, "a request has exactly one Host")
        if hosts and not valid_host(hosts[0]):
            raise HTTPError(400, "malformed Host")
        self.host = hosts[0] if hosts else None
        facts = _facts(lines, minor)
        self.length, self.chunked = facts.length, facts.chunked
        self.keep_alive = facts.keep_alive(minor)
        self.expects = self._expectation()
        self.upgrade = _upgrade(lines, facts) if minor else None
        dropped = facts.dropped()
        if not minor:
            dropped |= {b"expect"}  # RFC 9110, 10.1.1
        self._kept = [line for line in lines if line[0] not in dropped and not _disguised(line[0])]
        if any(value.lower() == b"trailers" for name, value, _ in lines if name == b"te"):
            te = b"TE: trailers\r\nConnection: TE\r\n"
            self._kept.append((b"te", b"trailers", te))
        if self.upgrade:
            line = b"Connection: Upgrade\r\nUpgrade: %b\r\n" % self.upgrade
            self._kept.append((b"upgrade", self.upgrade, line))
        self._at_peer: dict[Peer, bytes] = {}
        self.traced: Any = None  # what ``tracing`` has found in it

    def _expectation(self) -> bool:
        if not self._minor:
            return False
        expected = [value.lower() for name, value, _ in self.lines if name == b"expect"]
        if expected and expected != [b"100-continue"]:
            raise HTTPError(417, "only 100-continue can be expected")
        return bool(expected)

    def get(self, name: bytes) -> bytes | None:
        """The first value of ``name`` (lower-case)."""
        for known, value, _ in self.lines:  # a generator costs three times as much
            if known == name:
                return value
        return None

    def passed(self, names: Collection[bytes]) -> list[tuple[bytes, bytes]]:
        """Those of the fields with these names that go to a target as they are."""
        return [(name, value) for name, value, _ in self._kept if name in names]

    def for_target(self, peer: Peer, own: bytes, authority: bytes | None) -> bytes:
        """The lines that go to a target, with the empty line that ends them.

        ``own`` is the Host for an HTTP/1.0 request without one; ``authority`` replaces Host.
        """
        if authority is not None:
            return self._rewritten(peer, authority)
        if self.host is None:
            return self._rewritten(peer, own)  # not kept: another proxy here has another one
        known = self._at_peer.get(peer)
        if known is None:
            known = self._rewritten(peer, self.host)
            if len(self._at_peer) >= 16:
                self._at_peer.clear()
            self._at_peer[peer] = known
        return known

    def _rewritten(self, peer: Peer, host: bytes) -> bytes:
        kept = self._kept
        out = []
        if host is not self.host:
            kept = [line for line in kept if line[0] != b"host"]
            out.append(b"Host: %b\r\n" % host)
        out += [line for name, _, line in kept if not is_forwarded(name)]
        out.append(b"Via: %b pyproxy\r\n" % self._version)
        out += _forwarded_lines(kept, peer, host)
        if self.chunked:
            out.append(b"Transfer-Encoding: chunked\r\n")
        out.append(b"\r\n")
        return b"".join(out)


def _disguised(name: bytes) -> bool:
    """A name like ``Content_Length``, which WSGI and CGI can't tell from ours."""
    return b"_" in name and name.replace(b"_", b"-") in _OURS


def without_cookie(head: bytes, cookie: bytes) -> bytes:
    """A request head without the cookies of that name."""

    def line_without(match: re.Match[bytes]) -> bytes:
        pairs = match[2].strip(b" \t").split(b";")
        kept = [pair for pair in pairs if pair.partition(b"=")[0].strip(b" \t") != cookie]
        if len(kept) == len(pairs):
            return match[0]
        return b"%b %b\r\n" % (match[1], b";".join(kept).strip(b" \t")) if kept else b""

    return _COOKIE_LINE.sub(line_without, head) if cookie in head else head


def is_forwarded(name: bytes) -> bool:
    """Names that tell who the client is. ``_`` counts as ``-``, as it does to WSGI and CGI."""
    name = name.replace(b"_", b"-")
    return name in _FORWARDED or name.startswith(b"x-forwarded-")


def _forwarded_lines(
    lines: list[tuple[bytes, bytes, bytes]], peer: Peer, host: bytes
) -> list[bytes]:
    """Who asks: the client's own word is dropped, or extended if it is a trusted proxy."""
    said: dict[bytes, list[bytes]] = {}
    if peer.trusted:
        for name, value, _ in lines:
            if is_forwarded(name) and b"_" not in name:
                said.setdefault(name, []).append(value)
    address, scheme = peer.address.encode("ascii", "replace"), peer.scheme.encode()
    node = b'"[%b]"' % address if b":" in address else address
    element = b'for=%b;host="%b";proto=%b' % (node, host, scheme)
    ours = {
        b"x-forwarded-for": b", ".join([*said.pop(b"x-forwarded-for", []), address]),
        b"forwarded": b", ".join([*said.pop(b"forwarded", []), element]),
        b"x-forwarded-proto": scheme,
        b"x-forwarded-host": host,
        b"x-real-ip": address,
    }
    for name, values in said.items():
        ours[name] = b", ".join(values)
    return [b"%b: %b\r\n" % (_title(name), value) for name, value in ours.items()]


def _title(name: bytes) -> bytes:
    return b"X-Real-IP" if name == b"x-real-ip" else name.title()


def _upgrade(lines: Fields, facts: "_Facts") -> bytes | None:
    """The protocols a request would switch to (RFC 9110, 7.8), but for h2c: behind that a target
    would take requests that nobody has looked at. None for a request with a body."""
    if b"upgrade" not in facts.options or facts.length or facts.chunked:
        return None
    asked = [value for name, value, _ in lines if name == b"upgrade"]
    names = [one.strip(b" \t") for one in b",".join(asked).split(b",")]
    return b", ".join(one for one in names if one and one.lower() != b"h2c") or None


class ReplyHead:
    """The head of a target's response: facts, and the bytes that go to the client."""

    __slots__ = (
        "_fields",
        "bodiless",
        "chunked",
        "dated",
        "keep_alive",
        "kept",
        "length",
        "ready",
        "status",
    )

    def __init__(self, head: bytes) -> None:
        """``head`` ends with its empty line. Raises ``BadReply``."""
        line, _, block = head[:-2].partition(b"\r\n")
        match = _STATUS_LINE.fullmatch(line)
        if not match:
            raise BadReply("malformed status line")
        minor, status, reason = match.groups()
        self.status = int(status)
        try:
            lines = split_fields(block)
            facts = _facts(lines, int(minor))
        except HTTPError as error:
            raise BadReply(str(error)) from None
        self.length, self.chunked = facts.length, facts.chunked
        self.bodiless = self.status < 200 or self.status in (204, 304)
        # One that announces a body after 204 may send it: it would begin the next response.
        announced = self.status == 204 and bool(facts.length or facts.chunked)
        self.keep_alive = facts.keep_alive(int(minor)) and not announced
        self.dated = any(name == b"date" for name, _, _ in lines)
        dropped = facts.dropped()
        if self.status < 200 or self.status == 204:
            dropped |= {b"content-length"}  # RFC 9110, 8.6
        kept = [line for name, _, line in lines if name not in dropped]
        if self.status in (101, 426):  # these say what to switch to
            upgrades = [value for name, value, _ in lines if name == b"upgrade"]
            kept += [b"Connection: Upgrade\r\nUpgrade: %b\r\n" % one for one in upgrades]
        # The status line, the fields kept, and (ready) the empty line.
        self.kept = b"HTTP/1.1 %b %b\r\n%b" % (status, reason or b"", b"".join(kept))
        self.ready = self.kept + b"\r\n"
        self._fields: tuple[tuple[bytes, bytes], ...] | None = None

    @property
    def fields(self) -> tuple[tuple[bytes, bytes], ...]:
        """The fields kept, as HTTP/2 wants them: names in lower case, and values."""
        if self._fields is None:
            self._fields = name_values(self.kept.partition(b"\r\n")[2])
        return self._fields


def name_values(block: bytes) -> tuple[tuple[bytes, bytes], ...]:
    """The fields of a header or trailer section. Raises ``HTTPError`` 400."""
    return tuple((name, value) for name, value, _ in split_fields(block))


def split_fields(block: bytes) -> Fields:
    """The lines of a header or trailer section. Raises ``HTTPError`` 400."""
    if not _FIELDS.fullmatch(block):
        raise HTTPError(400, f"malformed field: {_first_bad_line(block)}")
    fields = []
    for line in block.split(b"\r\n")[:-1]:
        name, _, value = line.partition(b":")
        fields.append((name.lower(), value.strip(b" \t"), line + b"\r\n"))
    return tuple(fields)


def _first_bad_line(block: bytes) -> str:
    for line in block.split(b"\r\n"):
        if not _FIELD.fullmatch(line):
            name = line.partition(b":")[0][:40]
            return ascii(name.decode("latin-1"))
    return "the section is not whole"


class _Facts(NamedTuple):
    """What the fields say of the message itself."""

    length: int | None
    chunked: bool
    options: frozenset[bytes]  # of Connection (RFC 9110, 7.6.1), in lower case

    def dropped(self) -> frozenset[bytes]:
        """Names of the fields that end here."""
        if self.options <= _PLAIN_OPTIONS:
            return HOP_BY_HOP
        return HOP_BY_HOP | (self.options - _ESSENTIAL)

    def keep_alive(self, minor: int) -> bool:
        return b"close" not in self.options and (minor == 1 or b"keep-alive" in self.options)


def _facts(lines: Fields, minor: int) -> _Facts:
    """RFC 9112, 6.3, refusing all that is ambiguous. Raises ``HTTPError``."""
    lengths, codings, connections = [], [], []
    for name, value, _ in lines:
        if name == b"content-length":
            lengths.append(value)
        elif name == b"transfer-encoding":
            codings.append(value)
        elif name == b"connection":
            connections.append(value)
    options = _NO_OPTIONS
    if connections:
        options = frozenset(_split_list(connections))
    if codings:
        if lengths:
            raise HTTPError(400, "both Content-Length and Transfer-Encoding")
        if not minor:
            raise HTTPError(400, "Transfer-Encoding in HTTP/1.0")
        names = _split_list(codings)
        if b"chunked" in names[:-1]:
            raise HTTPError(400, "chunked is not the last transfer coding")
        if names != [b"chunked"]:
            raise HTTPError(501, "unknown transfer coding")
        return _Facts(None, True, options)
    if not lengths:
        return _Facts(None, False, options)
    if len(lengths) > 1 or not _DIGITS.fullmatch(lengths[0]):
        raise HTTPError(400, "malformed or repeated Content-Length")
    return _Facts(int(lengths[0]), False, options)


def _split_list(values: list[bytes]) -> list[bytes]:
    return [item.strip(b" \t").lower() for item in b",".join(values).split(b",")]


def connection_line(minor: int, keep: bool) -> bytes:
    """What tells a client of HTTP/1.``minor`` whether the connection goes on (RFC 9112, 9.3)."""
    if not keep:
        return b"Connection: close\r\n"
    return b"" if minor else b"Connection: keep-alive\r\n"


def hopeless(start: bytes) -> bool:
    """Whether the start of a request head can't become a valid one, so that waiting is vain."""
    line = start.partition(b"\r\n")[0]
    return bool(_BARE_LF.search(start) or _NOT_TEXT.search(line))


def trailer_lines(block: bytes) -> bytes:
    """The trailer fields that may be passed on (RFC 9110, 6.5.1). Raises ``HTTPError`` 400."""
    return b"".join(
        line
        for name, _, line in split_fields(block)
        if name not in HOP_BY_HOP and name not in _ESSENTIAL and not is_forwarded(name)
    )


request_lines = Memo(RequestLine, largest=512)
request_fields = (
    Memo(lambda block: RequestFields(block, 0)),
    Memo(lambda block: RequestFields(block, 1)),
)
reply_heads = Memo(ReplyHead)
