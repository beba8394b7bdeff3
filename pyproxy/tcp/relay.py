"""Relay: bytes both ways between two connections, in one thread and constant memory.

run
  poll                  until one of the two sockets has something, or takes something again
    _Way.carry          receives once, and sends that on at once
    _Way.flush          sends what the other side didn't take before
    _Way.half_close     one side has said all: the other one is told, and may go on

Nothing is received while the other side doesn't take what came before, so a slow reader slows the
sender down, and no direction ever waits for the other one.
"""

import contextlib
import socket
import time
from enum import StrEnum
from typing import NamedTuple

from pyproxy import net
from pyproxy.net import POLLERR, POLLHUP, POLLIN, POLLOUT
from pyproxy.tls import TLSSocket

_SMALL = 16384  # bytes asked for at once, until so many come
_HELD = 0.1  # seconds of silence after which a large buffer is given back
_GRACE = 1.0  # seconds of silence after which a connection counts as idle


class Ending(StrEnum):
    ENDED = "ended"  # both sides have said all
    RESET = "reset"  # one side was lost: closing the sockets resets the other one too
    IDLE = "idle"  # nothing moved for too long
    BROKEN_OFF = "broken off"


class Relayed(NamedTuple):
    """What has been: bytes in each direction, and how it ended."""

    to_target: int
    to_client: int
    ending: Ending


class _Way:
    """One direction. Its methods raise ``OSError`` when one of the two sides is lost."""

    def __init__(
        self, source: net.Socket, sink: net.Socket, first: bytes, buffers: net.Buffers
    ) -> None:
        self.source, self.sink = source, sink
        self.moved = len(first)
        self.pending = memoryview(first)  # received, and not taken by the sink yet
        self.open = True  # more may be received now
        self.ended = False  # the source has said all
        self.closed = False  # and the sink knows it
        self.buffer: memoryview | None = None  # lent, while much comes
        self._buffers = buffers
        self._receive, self._receive_into, self._send = source.recv, source.recv_into, sink.send
        # What TLS keeps in memory no poll can see.
        self._tls_source = source if isinstance(source, TLSSocket) else None
        self._tls_sink = sink if isinstance(sink, TLSSocket) else None

    def begin(self) -> None:
        """With what is there already."""
        if self.pending:
            self.flush()
        elif self._tls_source:
            self.carry()

    def carry(self) -> bool:
        """Receives once and sends that on. False if poll is to look for something else now."""
        data: bytes | memoryview
        try:
            if self.buffer is None:
                data = self._receive(_SMALL)
                size = len(data)
                if size == _SMALL:
                    self.buffer = self._buffers.take()
            else:
                size = self._receive_into(self.buffer)
                data = self.buffer[:size]
        except BlockingIOError:
            return True
        if not size:
            self.open, self.ended = False, True
            self._half_close()
            return False
        self.moved += size
        try:
            sent = self._send(data)
        except BlockingIOError:
            sent = 0
        if sent < size or (self._tls_sink and self._tls_sink.unsent):
            self.pending = memoryview(data)[sent:]
            self.open = False
            return False
        if self._tls_source and self._tls_source.buffered:
            return self.carry()
        return True

    @property
    def blocked(self) -> bool:
        """Waits for the sink."""
        return bool(self.pending or (self._tls_sink and self._tls_sink.unsent))

    def flush(self) -> None:
        """Sends what the sink takes now of what it didn't take before."""
        with contextlib.suppress(BlockingIOError):
            self.pending = self.pending[self._send(self.pending) :]
        self.open = not (self.blocked or self.ended)
        if self.open and self._tls_source:
            self.carry()

    def _half_close(self) -> None:
        self.closed = True
        self.sink.shutdown(socket.SHUT_WR)

    def give_back(self) -> None:
        """The buffer. Nothing may be pending."""
        if self.buffer is not None:
            self._buffers.give_back(self.buffer)
            self.buffer = None


class Relay:
    """Carries bytes between a client and a target. ``run`` takes the thread that calls it; both
    sockets are then used by nobody else, and are the caller's to close afterwards.

    ``to_target`` and ``to_client`` are bytes that go before all others. After ``idle`` seconds in
    which nothing moves in either direction it ends. To end it gently, shut the client's socket for
    receiving (``net.shut(client, SHUT_RD)``): to the target that looks as if the client had ended.
    """

    def __init__(
        self,
        client: net.Socket,
        target: net.Socket,
        to_target: bytes = b"",
        to_client: bytes = b"",
        *,
        idle: float,
        buffers: net.Buffers,
    ) -> None:
        self._up = _Way(client, target, to_target, buffers)
        self._down = _Way(target, client, to_client, buffers)
        self._patience = idle * 1000
        self._client, self._target = client, target
        self._broken_off = False
        self._moved_at = time.monotonic()
        self._asked = False  # it is the target's turn, as far as one can tell
        self._poll = net.poller()

    def run(self) -> Relayed:
        ending = Ending.RESET
        try:
            for sock in (self._client, self._target):
                sock.settimeout(0)
            ending = self._carry_all()
        except OSError:
            if self._broken_off:
                ending = Ending.BROKEN_OFF
        finally:
            for way in (self._up, self._down):
                way.pending = memoryview(b"")
                way.give_back()
        if ending is Ending.RESET:
            net.reset_on_close(self._client)
            net.reset_on_close(self._target)
        return Relayed(self._up.moved, self._down.moved, ending)

    def break_off(self) -> None:
        """Ends it at once, from any thread."""
        self._broken_off = True
        for sock in (self._client, self._target):
            net.shut(sock)

    @property
    def idle_since(self) -> float:
        """When the client got its last answer (``time.monotonic()``); 0.0 while it waits for one,
        as far as one can tell from who spoke last, and within the first second after it."""
        moved_at = self._moved_at
        if self._asked or time.monotonic() - moved_at < _GRACE:
            return 0.0
        return moved_at

    def _carry_all(self) -> Ending:
        up, down, poll = self._up, self._down, self._poll.poll
        ways = {self._client.fileno(): up, self._target.fileno(): down}
        up.begin()
        down.begin()
        self._watch()
        while not (up.closed and down.closed):
            if up.buffer is None and down.buffer is None:
                events = poll(self._patience)
            else:
                events = poll(_HELD * 1000) or self._without_buffers()
            if self._broken_off:
                return Ending.BROKEN_OFF
            if not events:
                return Ending.IDLE
            self._moved_at = time.monotonic()
            for source, event in events:
                way = ways[source]
                if event == POLLIN:
                    self._asked = way is up
                    if way.carry():
                        continue
                else:
                    self._heed(source, event, way, down if way is up else up)
                self._watch()
        return Ending.ENDED

    def _without_buffers(self) -> list[tuple[int, int]]:
        """After a moment of silence: no large buffer is held for an idle connection."""
        for way in (self._up, self._down):
            if not way.pending:
                way.give_back()
        return self._poll.poll(self._patience)

    def _heed(self, source: int, event: int, way: _Way, back: _Way) -> None:
        """What poll tells of a socket, where that isn't just bytes to receive."""
        if event & POLLOUT:
            back.flush()
        if not event & ~POLLOUT:
            return
        if way.open:
            way.carry()
        elif event & POLLERR:
            raise ConnectionResetError
        elif event & POLLHUP:  # what it said before that is carried when there is room
            self._poll.unregister(source)

    def _watch(self) -> None:
        for way, back in ((self._up, self._down), (self._down, self._up)):
            wanted = (POLLIN if way.open else 0) | (POLLOUT if back.blocked else 0)
            self._poll.register(way.source.fileno(), wanted)
