"""Connections: the open client connections of a proxy, their limit, and their gentle end."""

import logging
import socket
import threading
import time
from typing import Protocol

from pyproxy import net

log = logging.getLogger(__name__)

_GRACE = 1.0  # seconds in which a new connection's first request may come before it counts as idle


class Connection(Protocol):
    @property
    def request(self) -> net.Socket:
        """The client's socket."""

    ended: bool

    @property
    def idle_since(self) -> float:
        """``time.monotonic()``; 0.0 while a request is under way."""

    @property
    def served(self) -> int:
        """Requests."""

    def break_off(self) -> None:
        """Ends it at once, from any thread."""


class Connections:
    """At ``limit``, a new connection waits (and all behind it in the kernel's backlog) until
    another ends; idle kept-alive ones are ended first, the longest idle before the others."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        # Says: answer with `Connection: close`, don't wait for another request.
        self.hurry = False
        self._open: set[Connection] = set()
        self._waiting = 0
        self.draining = False  # the end has begun
        self._over = False
        # Protects all of the above; notified when a connection ends.
        self._ended = threading.Condition()

    def __len__(self) -> int:
        return len(self._open)

    def enter(self, connection: Connection) -> bool:
        """Counts a new connection in, when there is a place for it; False: close it instead."""
        with self._ended:
            if len(self._open) >= self.limit and not self._wait_for_place():
                return False
            self._open.add(connection)
            return True

    def _wait_for_place(self) -> bool:
        if not self.hurry:
            log.info("limits.connections reached: %d are open, others wait", self.limit)
        self._waiting += 1
        self.hurry = True
        while len(self._open) >= self.limit and not self._over:
            if not any(one.ended for one in self._open):
                self._end_idle(1)
            self._ended.wait(0.1)  # some become idle without a notice
        self._waiting -= 1
        self.hurry = self.draining or self._waiting > 0
        return not self._over

    def leave(self, connection: Connection) -> None:
        with self._ended:
            self._open.discard(connection)
            self._ended.notify_all()

    def _end_idle(self, most: int) -> None:
        """Ends idle connections. What has already come on one of them is still served."""
        now = time.monotonic()
        idle = [
            one
            for one in self._open
            if one.idle_since
            and not one.ended
            and (one.served or self.draining or now - one.idle_since > _GRACE)
        ]
        for one in sorted(idle, key=lambda one: one.idle_since)[:most]:
            one.ended = True
            net.shut(one.request, socket.SHUT_RD)

    def hurry_up(self) -> None:
        """The end has begun: what is under way, or waits for its place, is the last."""
        with self._ended:
            self.draining = self.hurry = True

    def end_idle(self) -> None:
        """Ends all idle connections."""
        with self._ended:
            self._end_idle(len(self._open))

    def break_off(self) -> int:
        """Breaks off what is left, and tells how many those were."""
        with self._ended:
            self._over = True
            self._ended.notify_all()
            for one in self._open:
                one.break_off()
            return len(self._open)
