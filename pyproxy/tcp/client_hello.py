"""The name that a TLS client asks for, read from its first message without taking part (RFC 8446,
4.1.2; RFC 6066, 3). Pure: bytes in, a name out."""

_HANDSHAKE = 22  # a record's type
_CLIENT_HELLO = 1  # a message's
_SERVER_NAME = 0  # an extension's
_LONGEST = 65536  # bytes of a hello; real ones have up to 2,000


class Incomplete(Exception):
    """The hello goes on."""


def server_name(data: bytes) -> str | None:
    """The name in the hello that ``data`` begins with, in lower case; None if it asks for none, or
    if it is no TLS. Raises ``Incomplete``."""
    try:
        return _name(_hello(data))
    except (IndexError, ValueError):
        return None


def _hello(data: bytes) -> bytes:
    """The body of the first message, which may be spread over records."""
    message, at = b"", 0
    while True:
        if len(message) >= 4:
            if message[0] != _CLIENT_HELLO:
                raise ValueError("no hello")
            length = int.from_bytes(message[1:4], "big")
            if len(message) >= 4 + length:
                return message[4 : 4 + length]
        record = data[at : at + 5]
        if (record and record[0] != _HANDSHAKE) or (len(record) > 1 and record[1] != 3):
            raise ValueError("no TLS")
        size = int.from_bytes(record[3:5], "big")
        if len(record) < 5 or len(data) < at + 5 + size:
            if len(data) > _LONGEST:
                raise ValueError("too long")
            raise Incomplete
        if not size:
            raise ValueError("an empty record")
        message += data[at + 5 : at + 5 + size]
        at += 5 + size


def _name(hello: bytes) -> str | None:
    """Raises ``IndexError`` or ``ValueError`` where it isn't well-formed."""
    at = 2 + 32  # version, random
    at += 1 + hello[at]  # session
    at += 2 + _number(hello, at)  # ciphers
    at += 1 + hello[at]  # compression
    end = at + 2 + _number(hello, at)
    at += 2
    while at < end:
        kind, size = _number(hello, at), _number(hello, at + 2)
        at += 4
        if kind == _SERVER_NAME:
            # A list of one: its length, the type "host name", the name.
            length = _number(hello, at + 3)
            name = hello[at + 5 : at + 5 + length]
            if hello[at + 2] != 0 or len(name) != length:
                raise ValueError("no host name")
            return name.decode("ascii").lower()
        at += size
    return None


def _number(data: bytes, at: int) -> int:
    if len(data) < at + 2:
        raise IndexError
    return int.from_bytes(data[at : at + 2], "big")
