"""The frames of a client, looked at before h2 takes them: what they cost, and whether one is whole.

h2 knows the protocol (RFC 9113); what it leaves to its user is here. It counts nothing, so that a
client may keep it busy with frames that mean no work; it keeps a frame of 16 MiB before it finds
that too long; it takes any frame for the first; and after a GOAWAY of the client it can't send the
responses that are still to come.

Credit: a client begins with some. Frames that carry no request and no data cost of it; it comes
back with time, and with each response and frame of data that the client takes. So whoever gets
work done may steer it as much as it likes, and whoever only keeps us busy is told
ENHANCE_YOUR_CALM.
"""

from pyproxy.errors import ConnectionFault

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
LONGEST = 16384  # bytes of a frame, as SETTINGS_MAX_FRAME_SIZE says unless told otherwise

# RFC 9113, 7
PROTOCOL_ERROR = 1
FRAME_SIZE_ERROR = 6
ENHANCE_YOUR_CALM = 11

_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _GOAWAY, _CONTINUATION = 0, 1, 3, 4, 7, 9
_END_STREAM, _ACK, _END_HEADERS, _PADDED = 1, 1, 4, 8

_MOST_PADDING = 256  # bytes of a frame, with the one that tells how many

_CREDIT = 1000  # at the beginning, and what comes back with time
_MOST = 10000  # what may be saved up
_PER_SECOND = 100
RESET = 10  # what a stream costs that came to nothing
_COSTS = {_RST_STREAM: RESET, _SETTINGS: RESET, _CONTINUATION: RESET}  # others: 1
_CONTINUATIONS = 32  # of one section


class Frames:
    """Give it all that comes: ``look`` is what h2 may see of it."""

    def __init__(self, section_limit: int, now: float) -> None:
        """``section_limit``: the most bytes of a field section, compressed."""
        self._section_limit = section_limit
        self._credit = float(_CREDIT)
        self._paid_at = now
        self._held = b""  # the start of a frame's head
        self._left = len(PREFACE)  # of what is passed on as it comes
        self._dropping = False  # what is left of this frame is not for h2
        self._first = True
        self._section = 0  # bytes of the field section under way
        self._continuations = 0
        self.since: float | None = now  # when what must come quickly began: a head, or the preface
        self.going = False  # the client has sent GOAWAY

    def look(self, data: bytes, now: float) -> bytes:
        """Raises ``ConnectionFault``."""
        data = self._held + data
        end, at, begin, kept = len(data), 0, 0, []
        while True:
            step = min(self._left, end - at)
            at += step
            self._left -= step
            if self._dropping:
                begin = at
            if not (self._left or self._section or self._first):
                self.since = None
            if self._left or end - at < 9:
                break
            kind, length = data[at + 3], int.from_bytes(data[at : at + 3], "big")
            self._begin(kind, data[at + 4], length, now)
            self._dropping = kind == _GOAWAY
            if self._dropping:
                self.going = True
                kept.append(data[begin:at])
            at += 9
            self._left = length
        self._held = data[at:]
        if begin or kept or self._held:
            return b"".join([*kept, data[begin:at]])
        return data

    def _begin(self, kind: int, flags: int, length: int, now: float) -> None:
        if length > LONGEST:
            raise ConnectionFault(FRAME_SIZE_ERROR, "a frame is too long")
        if self._first and (kind != _SETTINGS or flags & _ACK):
            raise ConnectionFault(PROTOCOL_ERROR, "the first frame is not SETTINGS")
        self._first = False
        if kind in (_HEADERS, _CONTINUATION):
            self._field_section(kind, flags, length, now)
        if cost := self._cost(kind, flags, length):
            self.spend(cost, now)
        self.check()

    def check(self) -> None:
        """Raises ``ConnectionFault`` if too much has been spent."""
        if self._credit < 0:
            raise ConnectionFault(ENHANCE_YOUR_CALM, "too much of nothing")

    def _cost(self, kind: int, flags: int, length: int) -> int:
        if kind == _HEADERS:
            return 0
        if kind == _DATA and flags & _PADDED:
            return 0 if length > _MOST_PADDING else 1
        if kind == _DATA and (length or flags & _END_STREAM):
            return 0
        return 1 if kind == _SETTINGS and flags & _ACK else _COSTS.get(kind, 1)

    def _field_section(self, kind: int, flags: int, length: int, now: float) -> None:
        if self.since is None:
            self.since = now
        if kind == _HEADERS:
            self._section = self._continuations = 0
        else:
            self._continuations += 1
        self._section += length + 1
        if self._section > self._section_limit or self._continuations > _CONTINUATIONS:
            raise ConnectionFault(ENHANCE_YOUR_CALM, "a field section is too long")
        if flags & _END_HEADERS:
            self._section = 0

    def spend(self, cost: int, now: float) -> None:
        """Whether it was too much, ``check`` shows."""
        if self._credit < _CREDIT:
            back = (now - self._paid_at) * _PER_SECOND
            self._credit = min(self._credit + back, _CREDIT)
        self._paid_at = now
        self._credit -= cost

    def earn(self, credit: int) -> None:
        self._credit = min(self._credit + credit, _MOST)
