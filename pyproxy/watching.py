"""Watcher: tells when files have changed, by looking at them from time to time.

It works on every system and file system, and with files that are replaced as a whole: renamed over,
as editors do, or behind a symbolic link, as Kubernetes does.
"""

import contextlib
import math
import os
import threading
import time
from collections.abc import Iterable
from pathlib import Path

_State = tuple[int, int, int] | None  # modified at, size, inode; None: it isn't there


class Watcher:
    """Watches files, whether or not they exist. ``wait`` and ``watch`` are called from one thread,
    ``stop`` from any."""

    def __init__(self, paths: Iterable[Path], every: float = 0.5) -> None:
        """Changes count from now on: make one before the files are read. ``every`` is the seconds
        between two looks."""
        self._every = every
        self._stopped = threading.Event()
        self._known: dict[Path, _State] = {}  # as last told
        self._last: dict[Path, _State] = {}  # as last seen
        self.watch(paths)

    def watch(self, paths: Iterable[Path]) -> None:
        """Watches these from now on. What is known of those watched before stays known."""
        paths = set(paths)
        self._known = {path: self._known.get(path, _state(path)) for path in paths}
        self._last = dict(self._known)
        self._next = time.monotonic() + self._every

    def wait(self, timeout: float | None = None) -> bool:
        """True as soon as some file is another than it was when that was last told, and has been
        left alone for a whole look: half of a file is no change yet, nor is one that is missing
        only for a moment. False after ``timeout`` seconds, or once stopped."""
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        while not self._stopped.wait(max(min(self._next, deadline) - time.monotonic(), 0)):
            if time.monotonic() < self._next:
                return False
            if self._look():
                return True
        return False

    def _look(self) -> bool:
        before, self._last = self._last, {path: _state(path) for path in self._known}
        self._next = time.monotonic() + self._every
        if self._last == self._known or self._last != before:
            return False
        self._known = dict(self._last)
        return True

    @property
    def stopped(self) -> bool:
        return self._stopped.is_set()

    def stop(self) -> None:
        """Ends a ``wait``, and all later ones."""
        self._stopped.set()


def _state(path: Path) -> _State:
    with contextlib.suppress(OSError, ValueError):
        found = os.stat(path)
        return found.st_mtime_ns, found.st_size, found.st_ino
    return None
