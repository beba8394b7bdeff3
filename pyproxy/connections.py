"""Connections: the open client connections of a proxy, their limit, and their gentle end."""

import logging
import socket
import sys
import threading
import time
from collections.abc import Iterable
from typing import Protocol

from pyproxy import net
from pyproxy.balancing.counters import ACCEPTED, Counters

log = logging.getLogger(__name__)

# Seconds in which a request may be on its way, after an answer or to where nobody else will accept:
# ended then, it would be lost.
_BREATH = 0.2
# A thread that waits for the interpreter wakes once in a switch interval. If thousands wait, that
# takes the processor from the one they wait for: so the interval grows with the connections.
_CROWD = 512  # connections
_LONGER = 0.005  # seconds for each crowd
_TICK = 0.1  # seconds between looks for a place
_GRACE = 1.0  # seconds in which a new connection's first request may come before it counts as idle


class Server(Protocol):
    """A listening address, and how it tells its connections to come to an end."""

    hurry: bool  # some are to answer with `Connection: close`: ask whether this one ``makes_room``
    closing: bool  # the end has begun
    hasty: bool  # and nobody else will accept: what has sent nothing yet is ended soon
    over: bool  # and what is left is broken off

    def follow(self) -> None:
        """Makes sure that it accepts, if it serves and may."""


class Connection(Protocol):
    @property
    def server(self) -> Server: ...

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
        """Ends it at once, from any thread; if it can't, when it is called again."""


class Connections:
    """At ``limit``, a new connection waits (and all behind it in the kernel's backlog) until
    another ends: an idle kept-alive one, the longest idle before the others, or else whoever gets
    its answer next."""

    def __init__(self, limit: int, counters: Counters) -> None:
        self.limit = limit
        self.breath = _BREATH
        self.accepted = 0
        self._numbers, self._accepted = counters.numbers, counters.place(*ACCEPTED)
        self._servers: set[Server] = set()
        self._open: set[Connection] = set()
        self._waiting = 0
        self._leaving: set[Connection] = set()  # they make room, soon
        self._crowds = 0
        # Protects all of the above, and what it tells the servers; notified when one ends.
        self._ended = threading.Condition()

    def __len__(self) -> int:
        return len(self._open)

    def allow(self, limit: int) -> None:
        """From now on so many."""
        with self._ended:
            self.limit = limit
            self._tell()
            self._ended.notify_all()
            servers = list(self._servers)
        for server in servers:
            server.follow()  # by the limit before, nobody may have

    def serve(self, server: Server) -> None:
        """From now on there may be connections of this server."""
        with self._ended:
            self._servers.add(server)
            self._tell()

    def forget(self, server: Server) -> None:
        with self._ended:
            self._servers.discard(server)

    def _tell(self) -> None:
        short = self._short > 0
        for server in self._servers:
            server.hurry = short or server.closing

    @property
    def _short(self) -> int:
        """How many more are to leave, so that nobody waits."""
        if not self._waiting:
            return 0
        return len(self._open) + self._waiting - self.limit - len(self._leaving)

    def makes_room(self, connection: Connection) -> bool:
        """Whether this one is to end after its answer, asked when its server is in a hurry."""
        with self._ended:
            if connection.server.closing:
                return True
            if self._short <= 0:
                return False
            self._leaving.add(connection)
            self._tell()
            return True

    def enter(self, connection: Connection) -> bool:
        """Counts a new connection in, when there is a place for it; False: close it instead."""
        with self._ended:
            if len(self._open) >= self.limit and not self._wait_for_place(connection.server):
                return False
            self._open.add(connection)
            self._pace()
            self.accepted += 1
            self._numbers[self._accepted] += 1
        return True

    def _pace(self) -> None:
        """Added and taken away, not set: other proxies in this process do it too."""
        before, self._crowds = self._crowds, len(self._open) // _CROWD
        if more := self._crowds - before:
            # A bit above, since it is cut to whole microseconds.
            sys.setswitchinterval(sys.getswitchinterval() + more * _LONGER + 1e-7)

    def _wait_for_place(self, server: Server) -> bool:
        if not self._waiting:
            log.info("limits.connections reached: %d are open, others wait", self.limit)
        self._waiting += 1
        self._tell()
        while len(self._open) >= self.limit and not server.over:
            if (short := self._short) > 0:
                self._end_idle(self._open, short)
                self._tell()
            if not self._ended.wait(_TICK):  # some become idle without a notice
                self._leaving.clear()  # and some that leave take their time: others are asked
        self._waiting -= 1
        self._tell()
        return not server.over

    def leave(self, connection: Connection) -> None:
        with self._ended:
            self._open.discard(connection)
            self._leaving.discard(connection)
            self._pace()
            self._ended.notify_all()

    def _end_idle(self, among: Iterable[Connection], most: int) -> None:
        """Ends idle connections. What has already come on one of them is still served."""
        now = time.monotonic()
        idle = [
            one
            for one in among
            if one.idle_since
            and not one.ended
            and now - one.idle_since >= (self.breath if one.served or one.server.hasty else _GRACE)
        ]
        for one in sorted(idle, key=lambda one: one.idle_since)[:most]:
            one.ended = True
            self._leaving.add(one)
            net.shut(one.request, socket.SHUT_RD)

    def _of(self, server: Server) -> list[Connection]:
        return [one for one in self._open if one.server is server]

    def drain(self, server: Server) -> None:
        """Its end begins: what is under way, or waits for its place, is the last."""
        with self._ended:
            server.closing = True
            self._tell()

    def end_idle(self, server: Server) -> None:
        """Ends all its idle connections."""
        with self._ended:
            own = self._of(server)
            self._end_idle(own, len(own))

    def break_off(self, server: Server, *, again: bool = False) -> int:
        """Breaks off what is left of it, and tells how many those were. Once, unless ``again``:
        several may end it."""
        with self._ended:
            if server.over and not again:
                return 0
            server.over = True
            self._ended.notify_all()
            own = self._of(server)
            for one in own:
                one.break_off()
            return len(own)
