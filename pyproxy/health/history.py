"""History: the last changes of the targets' states, with time and reason."""

import time
from collections import deque
from dataclasses import dataclass

from pyproxy.balancing.target import Target


@dataclass(frozen=True)
class Event:
    """``what`` happened to a target: evicted, restored, draining, maintenance, put back, added or
    removed."""

    at: float  # time.time()
    url: str
    what: str
    reason: str


class History:
    """Watches pools (``pool.watch(history.note)``), and keeps the last 100 events."""

    KEPT = 100

    def __init__(self) -> None:
        self._events: deque[Event] = deque(maxlen=self.KEPT)

    def note(self, target: Target, what: str, reason: str) -> None:
        self._events.append(Event(time.time(), target.url, what, reason))

    def __call__(self) -> list[Event]:
        """The events, the oldest first."""
        return list(self._events)
