"""Counters: numbers that only grow, in memory that another process can read, also after this one
has died.

Words of eight bytes: how many are used, then one entry behind another, never moved:

    count of values << 16 | bytes of the key,  the key (JSON),  the values
"""

import json
import logging
import threading
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from typing import Any

log = logging.getLogger(__name__)

Key = tuple[str, ...]
Totals = dict[Key, list[int]]

_SPARE = 64  # words at the end for what finds no place any more

# Upper bounds of the response times counted together, in seconds.
BOUNDS = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)
_SUM = len(BOUNDS) + 1  # behind a bucket for each bound and one for what is above: microseconds
TIMES = _SUM + 1

# What is counted each by itself: neither clients nor targets can fill the memory with names of
# their own.
METHODS = {
    name.encode(): name
    for name in ("GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH")
}
CODES = {
    status: str(status)
    for first, last in (
        *((100, 103), (200, 208), (226, 226), (300, 308)),
        *((400, 431), (451, 451), (499, 511), (520, 530)),  # with nginx's and Cloudflare's own
    )
    for status in range(first, last + 1)
}
ACCEPTED = ("accepted", "", "")  # client connections
# Why a target has failed, is evicted, or a request has gone on to another.
KINDS = ("connect", "lost", "bad_reply", "timeout", "status", "check", "error")


def _answer(method: bytes, status: int) -> tuple[str, str]:
    """What an answer counts as."""
    return METHODS.get(method, "other"), CODES.get(status) or f"{status // 100}xx"


class Counters:
    """Places for values, each behind a key. One process writes."""

    def __init__(self, memory: Any) -> None:
        """``memory`` is a buffer of zeros, or what another ``Counters`` has left."""
        self.numbers = memoryview(memory).cast("B").cast("q")
        self._end = len(self.numbers) - _SPARE
        self._places: dict[Key, int] = {}
        self._full = False
        # Protects the places, and the values that belong to no pool.
        self._lock = threading.Lock()
        self.numbers[0] = self.numbers[0] or 1

    def place(self, *key: str, values: int = 1) -> int:
        """Where in ``numbers`` the values of a key begin. A key has the same place each time."""
        with self._lock:
            return self._place(key, values)

    def _place(self, key: Key, values: int) -> int:
        at = self._places.get(key)
        if at is None:
            at = self._append(key, values)
            if at < self._end:
                self._places[key] = at
        return at

    def _append(self, key: Key, values: int) -> int:
        data = json.dumps(key).encode()
        words = -(-len(data) // 8)
        used = self.numbers[0]
        first = used + 1 + words
        if first + values > self._end or len(data) >= 1 << 16:
            if not self._full:
                log.error("no room for more counters: new ones are not kept")
            self._full = True
            return self._end
        self.numbers[used] = values << 16 | len(data)
        self.numbers[used + 1 : first] = memoryview(data.ljust(words * 8)).cast("q")
        self.numbers[0] = first + values  # from now on a reader sees it
        return first

    def keep(self, totals: Totals) -> None:
        """What others have counted."""
        for key, values in totals.items():
            at = self.place(*key, values=len(values))
            for number, value in enumerate(values, at):
                self.numbers[number] += value

    def answered(self, method: bytes, status: int) -> None:
        """The proxy has answered by itself."""
        with self._lock:
            self.numbers[self._place(("answers", "", "", *_answer(method, status)), 1)] += 1


class Reader:
    """Reads what is counted in a memory, also while it is written."""

    def __init__(self, memory: Any) -> None:
        self._numbers = memoryview(memory).cast("B").cast("q")
        self._known: dict[Key, slice] = {}
        self._at = 1

    def __call__(self) -> Totals:
        numbers, used = self._numbers, self._numbers[0]
        while self._at < used:
            values, size = numbers[self._at] >> 16, numbers[self._at] & 0xFFFF
            first = self._at + 1 - (-size // 8)
            key = tuple(json.loads(numbers[self._at + 1 : first].tobytes()[:size]))
            self._known[key] = slice(first, first + values)
            self._at = first + values
        return {key: numbers[place].tolist() for key, place in self._known.items()}


def total(parts: Iterable[Mapping[Key, list[int]]]) -> Totals:
    """What several processes have counted, together."""
    found: Totals = {}
    for part in parts:
        for key, values in part.items():
            old = found.get(key)
            found[key] = [a + b for a, b in zip(old, values, strict=True)] if old else values
    return found


def quantile(times: list[int], share: float) -> float | None:
    """The response time in seconds within which a ``share`` of the answers came, as far as the
    buckets tell; None without answers."""
    count = sum(times[:_SUM])
    if not count:
        return None
    wanted, below, before = share * count, 0.0, 0
    for bound, inside in zip(BOUNDS, times, strict=False):
        if before + inside >= wanted:
            return below + (bound - below) * (wanted - before) / inside if inside else below
        below, before = bound, before + inside
    return BOUNDS[-1]


class Tally:
    """What is counted of one target. Its pool calls it, under the pool's lock."""

    __slots__ = ("_answers", "_counters", "_name", "_numbers", "_times")

    def __init__(self, counters: Counters, pool: str, url: str) -> None:
        self._counters = counters
        self._numbers = counters.numbers
        self._name = (pool, url)
        first = counters.place("times", *self._name, values=TIMES)
        self._times = counters.numbers[first : first + TIMES]
        self._answers: dict[tuple[bytes, int], int] = {}

    def answered(self, method: bytes, status: int, seconds: float) -> None:
        """A response has been relayed, whose head came after ``seconds``. In TCP mode, without
        method and status: a connection has been made for a client."""
        times = self._times
        times[bisect_left(BOUNDS, seconds)] += 1
        times[_SUM] += int(seconds * 1e6)
        if status:
            at = self._answers.get((method, status)) or self._place(method, status)
            self._numbers[at] += 1

    def _place(self, method: bytes, status: int) -> int:
        at = self._counters.place("answers", *self._name, *_answer(method, status))
        if method in METHODS:
            self._answers[method, status] = at
        return at

    def happened(self, what: str, kind: str) -> None:
        """``failures``, ``retries`` or ``evictions``; the kind is one of ``KINDS``."""
        kind = kind if kind in KINDS else "error"
        self._numbers[self._counters.place(what, *self._name, kind)] += 1
