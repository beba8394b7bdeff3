"""What must hold of any bytes: one check for each parser.

A check returns whether the bytes were accepted, and raises if a parser raised what it doesn't
announce, or if what it said can't be. The first bytes of an input may choose how the rest is read.
"""

import contextlib
import functools
import ipaddress
import json
import ssl
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pyproxy import settings
from pyproxy.errors import BadProxyHeader, ConnectionFault, HTTPError, SettingsError
from pyproxy.http.body import ChunkedDecoder
from pyproxy.http.http2_fields import read_request, read_trailers
from pyproxy.http.http2_frames import Frames
from pyproxy.http.message import Peer, ReplyHead, hopeless, name_values, split_fields
from pyproxy.options import HIDDEN
from pyproxy.tcp.client_hello import Incomplete, server_name
from pyproxy.tcp.proxy_protocol import MOST, Addresses, missing, parse, plain_ip, serialise
from tests.test_message_h11 import (
    PEERS,
    accepted_head,
    check_reply,
    check_request,
    decoded,
    forwarded,
    heard_request,
    pairs,
)

Check = Callable[[bytes], bool]


def request(data: bytes) -> bool:
    """Bytes from a client. Byte 0: who the client is, and how much of a body is kept; 1: how long
    its pieces are. What is accepted means the same to h11; a second proxy adds only its name."""
    how, size, data = data[:1], data[1:2], data[2:]
    if not size:
        return False
    peer = PEERS[how[0] % len(PEERS)]
    hop = peer, 1 + size[0] % 40, how[0] // len(PEERS) % 13
    if not check_request(data, *hop):
        return False
    head = data[: data.index(b"\r\n\r\n")]
    assert not any(hopeless(head[:end]) for end in range(len(head)))
    first = accepted_head(data)
    assert first
    once = forwarded(first, *hop)
    second = accepted_head(once)
    assert second
    untrusted = Peer(peer.address, scheme=peer.scheme)
    assert second.line.wire == first.line.wire
    lines = once[: once.index(b"\r\n\r\n")].split(b"\r\n")
    again = forwarded(second, untrusted, *hop[1:])
    if not peer.trusted:
        more = again[: again.index(b"\r\n\r\n")].split(b"\r\n")
        assert sorted(more) == sorted([*lines, b"Via: 1.1 pyproxy"])
    told, last = heard_request(once), heard_request(again)
    assert told
    assert last
    assert (last.body, last.trailers, last.rest) == (told.body, told.trailers, b"")
    return True


def reply(data: bytes) -> bool:
    """Bytes from a target. Byte 0: what was asked. What is accepted means the same to h11, and
    what goes on is what it becomes when it is read once more."""
    how, data = data[:1], data[1:]
    if not how:
        return False
    method = (b"GET", b"HEAD")[how[0] & 1]
    if not check_reply(data, method, how[0] >> 1 & 1, bool(how[0] & 4)):
        return False
    head = ReplyHead(data[: data.index(b"\r\n\r\n") + 4])
    assert ReplyHead(head.ready).ready == head.ready
    lines = b"".join(b"%b: %b\r\n" % pair for pair in head.fields)
    assert name_values(lines) == head.fields
    return True


def chunked(data: bytes) -> bool:
    """A chunked body. Bytes 0 to 3: where it is cut, and how long trailers may be. It is the same
    however it comes, and what is accepted means the same to h11."""
    if len(data) < 4:
        return False
    cuts, data = data[:4], data[4:]
    limit = (0, 20, 200, 32768)[cuts[3] & 3]
    first, second = sorted((cuts[0], cuts[0] + cuts[1]))
    whole = decoded([data], limit)
    assert decoded([data[:first], data[first:second], data[second:]], limit) == whole
    assert decoded([data[at : at + 1] for at in range(len(data))], limit) == whole
    if not whole or not whole.done:
        return False
    if limit == 32768:
        head = b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
        theirs = heard_request(head + data)
        ours = (whole.data, pairs(whole.trailers), whole.rest)
        assert theirs is None or (theirs.body, theirs.trailers, theirs.rest) == ours
    decoder = ChunkedDecoder(limit)
    assert decoder.feed(data) == whole.data
    return True


def http2_fields(data: bytes) -> bool:
    """A field section of HTTP/2, a field up to each 0x01, a name up to 0x02. Byte 0: whether a body
    follows, or these are trailers. What is accepted is one request to h11 as well."""
    how, data = data[:1], data[1:]
    if not how:
        return False
    fields = []
    for one in data.split(b"\1"):
        name, _, value = one.partition(b"\2")
        fields.append((name, value))
    if how[0] & 2:
        with contextlib.suppress(HTTPError):
            split_fields(read_trailers(fields))
            return True
        return False
    try:
        line, found = read_request(fields, bool(how[0] & 1), 65536, 100)
    except HTTPError:
        return False
    head = line.wire + found.for_target(PEERS[0], b"own", None)
    if found.length:
        head += b"x" * found.length if found.length < 1000 else b""
    elif found.chunked:
        head += b"0\r\n\r\n"
    if found.length and found.length >= 1000:
        return True
    heard = heard_request(head)
    assert heard
    assert heard.rest == b""
    said = dict(fields)
    assert heard.start == (said[b":method"], said[b":path"], b"1.1")
    ours = {b"via", b"forwarded", b"x-real-ip", b"host", b"cookie", b"te", b"connection"}
    passed = {pair for pair in heard.fields if pair[0] not in ours | {b"transfer-encoding"}}
    assert {pair for pair in passed if not pair[0].startswith(b"x-forwarded-")} <= set(fields)
    return True


def http2_frames(data: bytes) -> bool:
    """The bytes of an HTTP/2 connection. Byte 0 and 1: where they are cut. What h2 sees of them is
    the same however they come."""
    if len(data) < 2:
        return False
    cut, data = data[0], data[2:]

    def seen(pieces: list[bytes]) -> tuple[bytes, int]:
        frames, out = Frames(2048, 0.0), b""
        try:
            for piece in pieces:
                out += frames.look(piece, 0.0)
        except ConnectionFault as error:
            return b"", error.code
        return out, 0

    whole = seen([data])
    assert seen([data[:cut], data[cut:]]) == whole
    assert seen([data[at : at + 1] for at in range(len(data))]) == whole
    return not whole[1]


def proxy_header(data: bytes) -> bool:
    """The start of a connection with a PROXY header. It is read to its last byte and no further,
    and what it says can be said again."""
    header, rest = b"", data
    try:
        while more := missing(header):
            if len(rest) < more:
                return False
            header, rest = header + rest[:more], rest[more:]
        assert len(header) <= MOST
        found = parse(header)
    except BadProxyHeader:
        return False
    if found is None:
        return True
    for host, port in found:
        ipaddress.ip_address(host)
        assert 0 <= port < 65536
    for version in (1, 2):
        told = serialise(version, found)
        assert missing(told) == 0
        again = parse(told)
        assert again
        assert _plain(again) == _plain(found)
        assert serialise(version, again) == told
    return True


def _plain(addresses: Addresses) -> list[tuple[Any, int]]:
    return [(plain_ip(host), port) for host, port in addresses]


def client_hello(data: bytes) -> bool:
    """The start of a TLS connection. Byte 0 and 1: how much of it is there at first. Once a name is
    told, it stays; and OpenSSL reads no other one."""
    if len(data) < 2:
        return False
    cut, data = int.from_bytes(data[:2], "big"), data[2:]
    early: list[str | None] = []
    with contextlib.suppress(Incomplete):
        early.append(server_name(data[:cut]))
    try:
        name = server_name(data)
    except Incomplete:
        assert not early or cut >= len(data)
        return False
    assert early in ([], [name])
    if name is None:
        return False
    assert name == name.lower()
    assert name.isascii()
    assert _openssl_name(data) in (None, name)
    return True


_asked: list[str | None] = []


@functools.cache
def _server_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)

    def note(_sock: Any, name: str | None, _context: Any) -> None:
        _asked.append(name)

    context.sni_callback = note
    return context


def _openssl_name(data: bytes) -> str | None:
    _asked.clear()
    incoming = ssl.MemoryBIO()
    incoming.write(data)
    with contextlib.suppress(ssl.SSLError):
        _server_context().wrap_bio(incoming, ssl.MemoryBIO(), server_side=True).do_handshake()
    return _asked[0].lower() if _asked and _asked[0] else None


def settings_file(data: bytes) -> bool:
    """A settings file. What is accepted can be said again."""
    with contextlib.suppress(ValueError, RecursionError):
        if _imports(json.loads(data.decode("utf-8-sig"))):
            return False
    path = _folder() / "appsettings.json"
    path.write_bytes(data)
    return _loaded(path, {})


def variables(data: bytes) -> bool:
    """Environment variables, one a line, without PYPROXY_."""
    said = {}
    for line in data.decode("utf-8", "replace").replace("\0", "").split("\n"):
        name, _, value = line.partition("=")
        said["PYPROXY_" + name.upper()] = value
    if any(":" in value for name, value in said.items() if "POLICY" in name or "ROUTES" in name):
        return False
    path = _folder() / "targets.json"
    if not path.exists():
        path.write_text('{"targets": [8001]}')
    said.pop("PYPROXY_ENVIRONMENT", None)
    return _loaded(path, said)


def _loaded(path: Path, environment: dict[str, str]) -> bool:
    try:
        made = settings.load(path, environment)
    except SettingsError:
        return False
    # As text: what JSON can't say (inf) is no setting.
    shown = json.dumps(settings.plain(made), allow_nan=False)
    if HIDDEN not in shown:
        assert settings.parse(json.loads(shown)) == made
    return True


def _imports(value: Any) -> bool:
    """Whether a policy in it may be a function: that would import whatever is named."""
    if isinstance(value, dict):
        named = [value.get("policy"), value.get("name")]
        return any(":" in str(one) for one in named) or any(map(_imports, value.values()))
    return isinstance(value, list) and any(map(_imports, value))


@functools.cache
def _folder() -> Path:
    """Until the process ends."""
    global _kept
    _kept = tempfile.TemporaryDirectory(prefix="pyproxy-fuzz-")
    return Path(_kept.name)


_kept: tempfile.TemporaryDirectory[str]

CHECKS: dict[str, Check] = {
    "request": request,
    "reply": reply,
    "chunked": chunked,
    "http2_fields": http2_fields,
    "http2_frames": http2_frames,
    "proxy_header": proxy_header,
    "client_hello": client_hello,
    "settings_file": settings_file,
    "variables": variables,
}
