"""Tracing: a request's name in all the logs it leaves a line in.

``X-Request-ID`` names a request; the client's own is passed on if it is 1 to 128 visible ASCII
characters, else replaced. ``traceparent`` (W3C Trace Context, version 00) names the trace that it
belongs to; a valid one is always passed on as it came. What is made is put before the fields, which
stay as they are memoised; and it stays the same when the request is tried on another target.
"""

import itertools
import os
import random
import re
from collections.abc import Callable
from typing import NamedTuple

from pyproxy.http.message import RequestFields
from pyproxy.sections import Tracing

_ID = re.compile(rb"[!-~]{1,128}")
# A later version may go on behind that (W3C Trace Context, 4.3).
_TRACEPARENT = re.compile(
    rb"(?!ff|00.{54})[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?"
)
_ID_LINES = re.compile(rb"(?im)^x[-_]request[-_]id:.*\n")
_TRACE_LINES = re.compile(rb"(?im)^trace(?:parent|state):.*\n")
_TRACE = b"traceparent: 00-%032x-%016x-01\r\n"


class _Ids:
    """Ids that nobody else makes: random bytes of this process, and a count."""

    def __init__(self) -> None:
        self.renew()
        if hasattr(os, "register_at_fork"):  # a child goes on with the same count
            os.register_at_fork(after_in_child=self.renew)

    def renew(self) -> None:
        # The count is random in its start, so that an id that a target shows doesn't tell how many
        # there were; and has 16 digits from there on, since to fill them up costs 60 ns.
        self.pattern = b"%%bX-Request-ID: %b%%x\r\n" % os.urandom(8).hex().encode()
        self.count = itertools.count(16**15 + int.from_bytes(os.urandom(7), "big")).__next__
        self.bits = random.Random().getrandbits  # no secret: seeded by the system once


_ids = _Ids()


class Own(NamedTuple):
    """What a client says itself."""

    id: bytes = b""  # if it is one
    odd_id: bool = False  # there may be one that must not be passed beside ours
    traced: bool = False
    odd_trace: bool = False


_NAMES = frozenset(
    {
        b"x-request-id",
        b"x_request_id",
        b"x-request_id",
        b"x_request-id",
        b"traceparent",
        b"tracestate",
    }
)
_NOTHING = Own()
Make = Callable[[bytes], bytes]


def own(fields: RequestFields) -> Own:
    found = fields.passed(_NAMES)
    if not found:
        return _NOTHING
    ids = [value for name, value in found if name == b"x-request-id"]
    disguised = any(b"_" in name for name, _ in found)  # to WSGI it is the same
    good = len(ids) == 1 and not disguised and bool(_ID.fullmatch(ids[0]))
    parents = [value for name, value in found if name == b"traceparent"]
    traced = len(parents) == 1 and bool(_TRACEPARENT.fullmatch(parents[0]))
    return Own(ids[0] if good else b"", not good, traced, not traced)


class Tracer:
    """Puts before the fields of requests what the settings say."""

    def __init__(self, said: Tracing) -> None:
        self._names = said.request_id
        self._starts = said.start

    def prepare(self, fields: RequestFields, sent: bytes) -> tuple[bytes, Make | None]:
        """What of the fields goes to a target (``sent``, mostly); and, if something is to be made
        for each request with them, what makes the whole head of it from the request line."""
        said = fields.traced
        if said is None:
            said = fields.traced = own(fields)
        names = self._names and not said.id
        starts = self._starts and not said.traced
        if names and said.odd_id:
            sent = _ID_LINES.sub(b"", sent)
        if starts and said.odd_trace:
            sent = _TRACE_LINES.sub(b"", sent)
        # One pattern for the whole: copying costs less than another step.
        rest, count, bits = sent.replace(b"%", b"%%"), _ids.count, _ids.bits
        if names and starts:
            both = _ids.pattern + _TRACE + rest
            return sent, lambda line: both % (line, count(), bits(128), bits(64))
        if names:
            named = _ids.pattern + rest
            return sent, lambda line: named % (line, count())
        if starts:
            started = b"%b" + _TRACE + rest
            return sent, lambda line: started % (line, bits(128), bits(64))
        return sent, None
