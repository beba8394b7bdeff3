"""Feed: what the admin API's watchers get, again and again."""

import threading
from collections.abc import Callable, Iterator

from pyproxy.errors import ControlError


class Feed:
    """Wakes those who watch when something has changed, or when all is over. May be used from any
    thread."""

    INTERVAL = 1.0  # seconds between two pieces
    MOST = 32  # watchers

    def __init__(self) -> None:
        # Protects all below; notified when one of the first two changes.
        self._condition = threading.Condition()
        self._changes = 0
        self._closed = False
        self._watchers: set[Watch] = set()

    def changed(self) -> None:
        with self._condition:
            self._changes += 1
            self._condition.notify_all()

    def close(self) -> None:
        """Every watch ends."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()

    def watch(self, piece: Callable[[], bytes]) -> "Watch":
        """Raises ``ControlError`` when too many watch."""
        with self._condition:
            if len(self._watchers) == self.MOST:
                raise ControlError(503, f"{self.MOST} watch already")
            found = Watch(self, piece)
            self._watchers.add(found)
        return found

    def wait(self, seen: int) -> int | None:
        """The number of changes, when it isn't ``seen`` or after an interval; None at the end."""
        with self._condition:
            self._condition.wait_for(lambda: self._closed or self._changes != seen, self.INTERVAL)
            return None if self._closed else self._changes

    def leave(self, watch: "Watch") -> None:
        with self._condition:
            self._watchers.discard(watch)


class Watch:
    """``piece()`` at once, each interval and after each change, until it or the feed is closed."""

    def __init__(self, feed: Feed, piece: Callable[[], bytes]) -> None:
        self._feed = feed
        self._piece = piece

    def __iter__(self) -> Iterator[bytes]:
        seen: int | None = 0
        while seen is not None:
            yield self._piece()
            seen = self._feed.wait(seen)

    def close(self) -> None:
        self._feed.leave(self)
