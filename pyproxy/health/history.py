"""History: the last changes of the targets' states, with time and reason."""

import time
import weakref
from collections import deque
from dataclasses import dataclass

from pyproxy.balancing.target import Target


@dataclass(frozen=True)
class Event:
    """``what`` happened to a target: evicted, restored, draining, maintenance, put back, added or
    removed."""

    at: float  # time.time()
    pool: str
    url: str
    what: str
    reason: str


class History:
    """Watches pools, and keeps the last 100 events, and the last of each target."""

    KEPT = 100

    def __init__(self) -> None:
        self._events: deque[Event] = deque(maxlen=self.KEPT)
        self._last: weakref.WeakKeyDictionary[Target, Event] = weakref.WeakKeyDictionary()

    def note(self, pool: str, target: Target, what: str, reason: str) -> None:
        event = Event(time.time(), pool, target.url, what, reason)
        self._events.append(event)
        self._last[target] = event

    def begin(self) -> None:
        """What has happened so far is of the process before: it is told no more as events."""
        self._events.clear()

    def last(self, target: Target) -> Event | None:
        """What happened to it last."""
        return self._last.get(target)

    def __call__(self) -> list[Event]:
        """The events, the oldest first."""
        return list(self._events)
