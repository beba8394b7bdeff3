"""The PROXY protocol: who the client of a proxy before or behind this one is. Pure.

Version 1 is a line, version 2 a binary header; haproxy's doc/proxy-protocol.txt defines both. A
header is read to its last byte and no further (``missing``), since what follows is the client's.
"""

import ipaddress
import re
import struct
from typing import NamedTuple

from pyproxy.errors import BadProxyHeader

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
MOST = 16384  # bytes of a header of version 2, extensions included; as many as HAProxy takes

_LINE_MOST = 107  # version 1, CRLF included
_LINE_LEAST = len(b"PROXY UNKNOWN\r\n")
_FIXED = struct.Struct("!12sBBH")  # signature, version and command, family and protocol, length
_STREAM = {0x11: struct.Struct("!4s4sHH"), 0x21: struct.Struct("!16s16sHH")}

_PORT = re.compile(r"0|[1-9][0-9]{0,4}")

Address = tuple[str, int]
IP = ipaddress.IPv4Address | ipaddress.IPv6Address


class Addresses(NamedTuple):
    """Where a connection comes from, and where it went to."""

    source: Address
    destination: Address


def missing(data: bytes) -> int:
    """How many bytes a header that starts with ``data`` has at least beyond it; 0: it is whole.
    Raises ``BadProxyHeader`` as soon as it can't be one."""
    if data.startswith(b"PROXY "[: len(data)]):
        if len(data) < _LINE_LEAST:
            return _LINE_LEAST - len(data)
        if data.endswith(b"\r\n"):
            return 0
        more = 1 if data.endswith(b"\r") else 2
        if len(data) + more > _LINE_MOST or b"\n" in data:
            raise BadProxyHeader("a line that doesn't end")
        return more
    if not data.startswith(SIGNATURE[: len(data)]):
        raise BadProxyHeader("not a PROXY header")
    if len(data) < _FIXED.size:
        return _FIXED.size - len(data)
    _, _, _, length = _FIXED.unpack_from(data)
    if _FIXED.size + length > MOST:
        raise BadProxyHeader(f"more than {MOST} bytes")
    return max(_FIXED.size + int(length) - len(data), 0)


def parse(data: bytes) -> Addresses | None:
    """The addresses in a whole header; None if it says that there is nothing to say, as the health
    checks of a proxy do. Raises ``BadProxyHeader``."""
    return _parse_line(data) if data.startswith(b"P") else _parse_binary(data)


def _parse_line(data: bytes) -> Addresses | None:
    if data.startswith(b"PROXY UNKNOWN\r\n") or data.startswith(b"PROXY UNKNOWN "):
        return None
    try:
        _, family, *rest = data.removesuffix(b"\r\n").decode("ascii").split(" ")
        source, destination, source_port, destination_port = rest
        version = {"TCP4": 4, "TCP6": 6}[family]
        return Addresses(
            (_ip(source, version), _port(source_port)),
            (_ip(destination, version), _port(destination_port)),
        )
    except (ValueError, KeyError):
        raise BadProxyHeader("a malformed line") from None


def _ip(text: str, version: int) -> str:
    found = ipaddress.ip_address(text)
    if found.version != version or "%" in text:
        raise ValueError
    return str(found)


def _port(text: str) -> int:
    if not _PORT.fullmatch(text) or int(text) > 65535:
        raise ValueError
    return int(text)


def _parse_binary(data: bytes) -> Addresses | None:
    _, command, kind, length = _FIXED.unpack_from(data)
    if command not in (0x20, 0x21):
        raise BadProxyHeader(f"version and command 0x{command:02x}")
    if command == 0x20:  # LOCAL: the proxy speaks for itself
        return None
    if kind >> 4 > 3 or kind & 15 > 2:
        raise BadProxyHeader(f"family and protocol 0x{kind:02x}")
    form = _STREAM.get(kind)
    if form is None:  # unspecified, datagrams, Unix: nothing that tells more than the connection
        return None
    if length < form.size:
        raise BadProxyHeader("too short for its addresses")
    source, destination, source_port, destination_port = form.unpack_from(data, _FIXED.size)
    return Addresses(
        (str(ipaddress.ip_address(source)), source_port),
        (str(ipaddress.ip_address(destination)), destination_port),
    )


def serialise(version: int, addresses: Addresses | None) -> bytes:
    """A header of version 1 or 2. None: the proxy speaks for itself, as in a health check."""
    if addresses is None:
        return b"PROXY UNKNOWN\r\n" if version == 1 else _FIXED.pack(SIGNATURE, 0x20, 0, 0)
    source, destination = (plain_ip(host) for host, _ in addresses)
    if source.version != destination.version:
        source, destination = _as_ip6(source), _as_ip6(destination)
    ports = addresses.source[1], addresses.destination[1]
    if version == 1:
        line = f"PROXY TCP{source.version} {source} {destination} {ports[0]} {ports[1]}\r\n"
        return line.encode("ascii")
    kind = 0x11 if source.version == 4 else 0x21
    form = _STREAM[kind]
    block = form.pack(source.packed, destination.packed, *ports)
    return _FIXED.pack(SIGNATURE, 0x21, kind, form.size) + block


def plain_ip(host: str) -> IP:
    """Of a socket's address: without a scope, and IPv4 where it is that in IPv6's clothes."""
    found = ipaddress.ip_address(host.partition("%")[0])
    return (found.version == 6 and found.ipv4_mapped) or found


def _as_ip6(ip: IP) -> ipaddress.IPv6Address:
    return ip if ip.version == 6 else ipaddress.IPv6Address(f"::ffff:{ip}")
