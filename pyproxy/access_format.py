"""How a line of the access log looks: ``combined``, ``json``, or a text with fields in braces.

    client      the address of the client
    time        when it was answered (ISO 8601, with the zone)
    request     the request line, as it came
    method uri protocol     its three parts
    status      of the answer; 499: the client was gone before one
    size        bytes of the body that were sent
    referer agent           the fields Referer and User-Agent
    target      the URL of the last target that was tried
    seconds     from the last attempt to the target's response head
    attempts    targets that were tried
    request_id  the X-Request-ID that targets got

A field that there is nothing of is ``-``, in JSON null. What a client sent is escaped, so that it
can neither end a line nor start one: as ``\\xHH``, in JSON as JSON does.
"""

import re
import string
import time
from collections.abc import Callable
from datetime import datetime
from json.encoder import encode_basestring_ascii as quote
from typing import NamedTuple

_UNSAFE = re.compile(rb"[^ !#-\[\]-~]")  # all but printable ASCII, without " and \


class Entry(NamedTuple):
    """What there is to say of a request: see above."""

    client: str
    request: bytes
    status: int
    size: int
    referer: bytes | None = None
    agent: bytes | None = None
    target: str | None = None
    seconds: float = 0.0
    attempts: int = 0
    request_id: bytes | None = None


class Format(NamedTuple):
    """``line(time(now), entry)``. The time is apart, since a second has many lines."""

    time: Callable[[int], str]
    line: Callable[[str, Entry], str]
    names: bool  # whether it needs the request_id


def escape(value: bytes | None) -> str:
    """Printable ASCII; other bytes, ``"`` and the backslash as ``\\xHH``. ``-`` for nothing."""
    if not value:
        return "-"
    return _UNSAFE.sub(lambda found: b"\\x%02x" % found[0][0], value).decode("ascii")


def _part(at: int) -> Callable[[str, Entry], str]:
    """A part of the request line, if it has three."""

    def part(now: str, entry: Entry) -> str:
        parts = entry.request.split(b" ")
        return escape(parts[at]) if len(parts) == 3 else "-"

    return part


FIELDS: dict[str, Callable[[str, Entry], str]] = {
    "client": lambda now, entry: entry.client,
    "time": lambda now, entry: now,
    "request": lambda now, entry: escape(entry.request),
    "method": _part(0),
    "uri": _part(1),
    "protocol": _part(2),
    "status": lambda now, entry: str(entry.status),
    "size": lambda now, entry: str(entry.size),
    "referer": lambda now, entry: escape(entry.referer),
    "agent": lambda now, entry: escape(entry.agent),
    "target": lambda now, entry: entry.target or "-",
    "seconds": lambda now, entry: f"{max(entry.seconds, 0):.3f}",
    "attempts": lambda now, entry: str(entry.attempts),
    "request_id": lambda now, entry: escape(entry.request_id),
}


def compiled(said: str) -> Format:
    """Raises ``ValueError``: what is expected."""
    if said == "combined":
        return Format(_clf_time, _combined, False)
    if said == "json":
        return Format(_iso_time, _json, True)
    return Format(_iso_time, _own(said), "{request_id}" in said)


def _clf_time(now: int) -> str:
    return time.strftime("%d/%b/%Y:%H:%M:%S %z", time.localtime(now))


def _iso_time(now: int) -> str:
    return datetime.fromtimestamp(now).astimezone().isoformat()


def _combined(now: str, entry: Entry) -> str:
    client, request, status, size, referer, agent, target, seconds, attempts, _ = entry
    return (
        f'{client} - - [{now}] "{escape(request)}" {status} {size} "{escape(referer)}" '
        f'"{escape(agent)}" {target or "-"} {max(seconds, 0):.3f} {attempts}\n'
    )


def _json(now: str, entry: Entry) -> str:
    client, request, status, size, referer, agent, target, seconds, attempts, request_id = entry
    parts = request.split(b" ")
    method, uri, protocol = parts if len(parts) == 3 else (None, None, None)
    return (
        f'{{"time": "{now}", "client": "{client}", "request_id": {_quoted(request_id)}, '
        f'"request": {_quoted(request)}, "method": {_quoted(method)}, "uri": {_quoted(uri)}, '
        f'"protocol": {_quoted(protocol)}, "status": {status}, "size": {size}, '
        f'"seconds": {max(seconds, 0):.3f}, "target": {quote(target) if target else "null"}, '
        f'"attempts": {attempts}, "referer": {_quoted(referer)}, "agent": {_quoted(agent)}}}\n'
    )


def _quoted(value: bytes | None) -> str:
    return quote(value.decode("utf-8", "backslashreplace")) if value else "null"


def _own(said: str) -> Callable[[str, Entry], str]:
    known = ", ".join(FIELDS)
    try:
        parts = list(string.Formatter().parse(said))
    except ValueError:
        raise ValueError(
            f"bad braces (a brace itself is doubled): the fields are {known}"
        ) from None
    names = [name for _, name, _, _ in parts if name is not None]
    if not names:
        raise ValueError(f'expected "combined", "json", or a text with fields in braces: {known}')
    for text, name, specification, conversion in parts:
        if not (text.isascii() and text.replace("\t", "").isprintable()):
            raise ValueError("expected printable ASCII beside the fields")
        if name is not None and (name not in FIELDS or specification or conversion):
            more = f"!{conversion}" * bool(conversion) + f":{specification}" * bool(specification)
            raise ValueError(f"unknown field {{{name}{more}}}: expected {known}")
    fields = [FIELDS[name] for name in names]
    pattern = "".join(
        text.replace("%", "%%") + "%s" * (name is not None) for text, name, *_ in parts
    )

    def line(now: str, entry: Entry) -> str:
        return pattern % tuple([field(now, entry) for field in fields]) + "\n"

    return line
