"""TargetPool: the targets of one service, and which of them are live."""

import logging
import threading
from collections.abc import Callable, Iterable

from pyproxy.balancing.hashring import HashRing
from pyproxy.balancing.target import State, Target

log = logging.getLogger(__name__)

Watcher = Callable[[Target, str], None]


class TargetPool:
    """Targets, and a ring of the live ones that is swapped whole, never changed.

    A reader takes ``live`` once and works with it, whatever happens meanwhile. All methods may be
    called from any thread.
    """

    def __init__(self, targets: Iterable[Target], max_fails: int = 1) -> None:
        self.targets = tuple(targets)
        self.live = HashRing(self.targets)
        self._max_fails = max_fails
        self._watchers: tuple[Watcher, ...] = ()
        # Protects the request counter, each target's state and fails, and the swap of `live`.
        self._lock = threading.Lock()
        self._counter = 0

    def next_key(self) -> int:
        """The number of this request: 0, 1, 2, …, each given out once."""
        with self._lock:
            key = self._counter
            self._counter = key + 1
        return key

    def pick(self, key: int, tried: tuple[Target, ...] = ()) -> Target:
        """The live target for ``key``, other than those ``tried``; ``EmptyRing`` if there is none.

        A request keeps its key when it is retried, so that retries spread evenly too.
        """
        if tried:
            return HashRing(target for target in self.live if target not in tried)[key]
        return self.live[key]

    def evicted(self) -> list[Target]:
        return [target for target in self.targets if target.state is State.EVICTED]

    def failed(self, target: Target, reason: str) -> None:
        """Counts a failure; ``max_fails`` of them in a row evict."""
        with self._lock:
            target.fails += 1
            enough = target.fails >= self._max_fails
        if enough:
            self.evict(target, reason)

    def succeeded(self, target: Target) -> None:
        """Ends a row of failures."""
        with self._lock:
            target.fails = 0

    def evict(self, target: Target, reason: str) -> None:
        """Takes a live target out; does nothing to another."""
        self._change(target, State.LIVE, State.EVICTED, reason)

    def restore(self, target: Target, reason: str) -> None:
        """Takes an evicted target back; does nothing to another."""
        self._change(target, State.EVICTED, State.LIVE, reason)

    def watch(self, watcher: Watcher) -> None:
        """Calls ``watcher(target, reason)`` after each change of state, in its thread."""
        with self._lock:
            self._watchers += (watcher,)

    def _change(self, target: Target, before: State, after: State, reason: str) -> None:
        with self._lock:
            if target.state is not before:
                return
            target.state = after
            target.fails = 0
            self.live = HashRing(one for one in self.targets if one.state is State.LIVE)
            left, watchers = len(self.live), self._watchers
        verb = "restored" if after is State.LIVE else "evicted"
        log.warning("%s %s: %s (%d of %d live)", verb, target.url, reason, left, len(self.targets))
        for watcher in watchers:
            watcher(target, reason)
