"""The field sections of HTTP/2, checked and translated to HTTP/1.1 (RFC 9113, 8.2 and 8.3). Pure.

A request becomes the lines that an HTTP/1.1 client would have sent, and goes through ``message.py``
like these: what HTTP/1.1 refuses is refused with the same status. What RFC 9113 forbids beyond
that, or what would be read differently as lines, is ``Malformed``.
"""

import functools
import re
from collections.abc import Iterable
from typing import NamedTuple

from pyproxy.errors import HTTPError, Malformed
from pyproxy.http.message import (
    RequestFields,
    RequestLine,
    name_values,
    request_lines,
    trailer_lines,
)

_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+")
# Without control characters, and without a space or a tab at either end.
_VALUE = re.compile(rb"(?:[!-~\x80-\xff](?:[\t -~\x80-\xff]*[!-~\x80-\xff])?)?")

_PSEUDO = frozenset({b":method", b":scheme", b":path", b":authority"})
_CONNECTION_SPECIFIC = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"}
)
_LARGEST = 2048  # bytes of a section that is remembered
_OVERHEAD = 32  # what a field counts beside its bytes (RFC 9113, 6.5.2)

Pairs = tuple[tuple[bytes, bytes], ...]


class Asked(NamedTuple):
    """What a field section says, but for its path."""

    method: bytes
    fields: RequestFields


def read_request(
    fields: Iterable[tuple[bytes, bytes]], ended: bool, most_bytes: int, most_fields: int
) -> tuple[RequestLine, RequestFields]:
    """``ended``: no body follows. Raises ``Malformed``, or what ``RequestLine`` and
    ``RequestFields`` do."""
    path, size, rest = b"", 0, []
    for field in fields:
        size += len(field[0]) + len(field[1]) + _OVERHEAD
        if field[0] == b":path":
            # It varies: the others are looked up without it, but with its place.
            if path or not field[1]:
                raise Malformed("a :path that is empty or stands twice")
            path, field = field[1], (b":path", b"")
        rest.append(field)
    if size > most_bytes:
        raise HTTPError(431, f"a request head has at most {most_bytes} bytes here")
    read = _known if size - len(path) <= _LARGEST else _read
    method, found = read(tuple(rest), ended)
    if not path.startswith(b"/") and not (path == b"*" and method == b"OPTIONS"):
        raise Malformed("malformed :path")
    if len(found.lines) > most_fields:
        raise HTTPError(431, f"at most {most_fields} header fields here")
    return request_lines[b"%b %b HTTP/1.1" % (method, path)], found


def _read(fields: Pairs, ended: bool) -> Asked:
    pseudo: dict[bytes, bytes] = {}
    lines, cookies, hosts = list[bytes](), list[bytes](), list[bytes]()
    for name, value in fields:
        if not _VALUE.fullmatch(value):
            raise Malformed(f"malformed value of {name[:40]!r}")
        if name in _PSEUDO:
            if name in pseudo or lines or cookies or hosts:
                raise Malformed(f"{name.decode()} stands twice, or behind other fields")
            pseudo[name] = value
            continue
        _check(name, value)
        if name == b"cookie":
            cookies.append(value)
        elif name == b"host":
            hosts.append(value)
        else:
            lines.append(b"%b: %b\r\n" % (name, value))
    method = _method(pseudo)
    lines += [b"host: %b\r\n" % host for host in _hosts(pseudo.get(b":authority"), hosts)]
    if cookies:  # RFC 9113, 8.2.3
        lines.append(b"cookie: %b\r\n" % b"; ".join(cookies))
    found = RequestFields(b"".join(lines), 1, b"2.0")
    if ended and found.length:
        raise Malformed("a content-length without content")
    if not ended and found.length is None:
        found = RequestFields(b"".join([*lines, b"transfer-encoding: chunked\r\n"]), 1, b"2.0")
    return Asked(method, found)


_known = functools.lru_cache(maxsize=1024)(_read)


def _method(pseudo: dict[bytes, bytes]) -> bytes:
    method = pseudo.get(b":method")
    if method == b"CONNECT" and not pseudo.keys() & {b":scheme", b":path"}:
        raise HTTPError(501, "CONNECT is not supported")
    if not method or method == b"CONNECT" or b":path" not in pseudo:
        raise Malformed("malformed pseudo-header fields")
    if pseudo.get(b":scheme", b"").lower() not in (b"http", b"https"):
        raise Malformed("malformed :scheme")
    return method


def _hosts(authority: bytes | None, hosts: list[bytes]) -> list[bytes]:
    """The value of Host, which says the same as :authority (RFC 9113, 8.3.1)."""
    if b"" in hosts or authority == b"":
        raise Malformed("an empty host")
    if authority is None:
        return hosts
    if any(host.lower() != authority.lower() for host in hosts):
        raise Malformed("host and :authority differ")
    return [authority]


def _check(name: bytes, value: bytes) -> None:
    if not _NAME.fullmatch(name):
        raise Malformed(f"malformed field name {name[:40]!r}")
    if name in _CONNECTION_SPECIFIC or (name == b"te" and value.lower() != b"trailers"):
        raise Malformed(f"the field {name.decode()} is not for HTTP/2")


def read_trailers(fields: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The lines that may be passed on. Raises ``Malformed``."""
    lines = []
    for name, value in fields:
        _check(name, value)
        if not _VALUE.fullmatch(value):
            raise Malformed(f"malformed value of {name[:40]!r}")
        lines.append(b"%b: %b\r\n" % (name, value))
    return trailer_lines(b"".join(lines))


def response(status: int, fields: Pairs, extra: bytes = b"") -> Pairs:
    """The head of a response; ``extra`` is lines that the proxy adds."""
    added = name_values(extra) if extra else ()
    return ((b":status", b"%d" % status), *fields, *added)
