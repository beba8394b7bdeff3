"""Relay: bytes both ways between two connections, in one thread and constant memory.

run
  poll                  until one of the two sockets has something, or takes something again
    _Way.carry          receives once, and sends that on at once
    _Way.flush          sends what the other side didn't take before

Of a connection on which little comes at a time, each piece goes through a small buffer that is
made for it. Once much comes, splice moves it through a pipe that is lent, and where that can't be
(TLS, other systems than Linux) a large buffer does.

Nothing is received while the other side doesn't take what came before, so a slow reader slows the
sender down, and no direction ever waits for the other one.
"""

import contextlib
import os
import socket
import threading
import time
from enum import StrEnum
from typing import NamedTuple

from pyproxy import net
from pyproxy.net import POLLERR, POLLHUP, POLLIN, POLLOUT
from pyproxy.tls import TLSSocket

try:
    import fcntl
except ImportError:  # Windows, where there is no splice either
    fcntl = None  # type: ignore[assignment]

_PIPE = 1 << 20  # bytes, as much as a user may ask for
_MOVE_AT_ONCE = 3  # SPLICE_F_MOVE | SPLICE_F_NONBLOCK; os has their names from Python 3.12 on

_SMALL = 16384  # bytes asked for at once, until so many come
_HELD = 0.1  # seconds of silence after which what is lent is given back
_GRACE = 1.0  # seconds of silence after which a connection counts as idle
_LONGEST = 2**31 - 1  # milliseconds, 24 days: poll waits no longer


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


class Pipe:
    """What splice moves bytes through, from socket to socket, without a copy of them here."""

    def __init__(self) -> None:
        self.outlet, self._inlet = os.pipe()
        self.held = 0  # bytes in it
        if fcntl:
            with contextlib.suppress(OSError):  # a user has only so much of them: smaller is fine
                fcntl.fcntl(self._inlet, fcntl.F_SETPIPE_SZ, _PIPE)

    def fill(self, source: int) -> int:
        """From an open file that doesn't wait; the number of bytes, 0 at its end."""
        size = os.splice(source, self._inlet, _PIPE, flags=_MOVE_AT_ONCE)
        self.held += size
        return size

    def empty(self, sink: int) -> None:
        """Raises ``BlockingIOError`` when the sink doesn't take all."""
        while self.held:
            self.held -= os.splice(self.outlet, sink, self.held, flags=_MOVE_AT_ONCE)

    def close(self) -> None:
        os.close(self.outlet)
        os.close(self._inlet)


class Pipes:
    """Pipes, lent to one thread at a time, and no more than ``MOST`` at once."""

    MOST = 32

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._free: list[Pipe] = []
        self._lent = 0
        self._closed = not hasattr(os, "splice")

    def take(self) -> Pipe | None:
        """None: do without."""
        with self._lock:
            if self._closed or self._lent >= self.MOST:
                return None
            self._lent += 1
            if self._free:
                return self._free.pop()
        try:
            return Pipe()
        except OSError:  # no more files may be open
            with self._lock:
                self._lent -= 1
            return None

    def give_back(self, pipe: Pipe) -> None:
        with self._lock:
            self._lent -= 1
            if not (pipe.held or self._closed):
                self._free.append(pipe)
                return
        pipe.close()

    def close(self) -> None:
        """Closes those that are not lent, and from now on each that is given back."""
        with self._lock:
            self._closed = True
            free, self._free = self._free, []
        for pipe in free:
            pipe.close()


class _Way:
    """One direction. Its methods raise ``OSError`` when one of the two sides is lost."""

    def __init__(
        self,
        source: net.Socket,
        sink: net.Socket,
        first: bytes,
        buffers: net.Buffers,
        pipes: Pipes | None,
    ) -> None:
        self.source, self.sink = source, sink
        self.moved = len(first)
        self.pending = memoryview(first)  # received, and not taken by the sink yet
        self.open = True  # more may be received now
        self.over = False  # the source has said all
        self.ended = False  # and the sink knows it
        # Lent while much comes: a pipe, or a buffer where there is none.
        self.much = False
        self._buffer: memoryview | None = None
        self._pipe: Pipe | None = None
        self._buffers, self._pipes = buffers, pipes
        self._receive, self._receive_into, self._send = source.recv, source.recv_into, sink.send
        # What TLS keeps in memory no poll can see.
        self._tls_source = source if isinstance(source, TLSSocket) else None
        self._tls_sink = sink if isinstance(sink, TLSSocket) else None
        if self._tls_source or self._tls_sink:
            self._pipes = None
        self.hung = False  # the source is gone, and what it said before isn't all carried
        self.watched = False  # by poll

    def begin(self) -> None:
        """With what is there already."""
        if self.pending:
            self.flush()
        elif self._tls_source:
            self.carry()

    def carry(self) -> bool:
        """Receives once and sends that on. False if poll is to look for something else now."""
        if self._pipe:
            return self._splice(self._pipe)
        data: bytes | memoryview
        try:
            if self._buffer is None:
                data = self._receive(_SMALL)
                size = len(data)
                if size == _SMALL:
                    self._expect_much()
            else:
                size = self._receive_into(self._buffer)
                data = self._buffer[:size]
        except BlockingIOError:
            return True
        if not size:
            return self._end()
        self.moved += size
        try:
            sent = self._send(data)
        except BlockingIOError:
            sent = 0
        if sent < size or (self._tls_sink and self._tls_sink.unsent):
            self.pending = memoryview(data)[sent:]
            self.open = False
            return False
        return True

    @property
    def buffered(self) -> bool:
        """More has come, which poll can't see: it is with TLS."""
        return bool(self.open and self._tls_source and self._tls_source.buffered)

    def _splice(self, pipe: Pipe) -> bool:
        """The same through a pipe."""
        size = 0
        with contextlib.suppress(BlockingIOError):
            size = pipe.fill(self.source.fileno())
        if not size:  # nothing, the end, or urgent data, which no pipe gets past: receiving tells
            self.give_back()
            return self.carry()
        self.moved += size
        try:
            pipe.empty(self.sink.fileno())
        except BlockingIOError:
            self.open = False
            return False
        if size < _SMALL:
            self.give_back()
        return True

    def _expect_much(self) -> None:
        self.much = True
        self._pipe = self._pipes.take() if self._pipes else None
        if self._pipe is None:
            self._buffer = self._buffers.take()

    @property
    def blocked(self) -> bool:
        """Waits for the sink."""
        return bool(
            self.pending
            or (self._pipe and self._pipe.held)
            or (self._tls_sink and self._tls_sink.unsent)
        )

    def flush(self) -> None:
        """Sends what the sink takes now of what it didn't take before."""
        with contextlib.suppress(BlockingIOError):
            if self._pipe and not self.pending:
                self._pipe.empty(self.sink.fileno())
            else:
                self.pending = self.pending[self._send(self.pending) :]
        self.open = not (self.blocked or self.over)
        if self.over:
            self._tell_end()
        elif self.open and self._tls_source:
            self.carry()

    def _end(self) -> bool:
        """The source has said all, and the sink is told, now or once it has room for that."""
        self.open = False
        self.over = True
        if self._tls_sink:
            self._tls_sink.say_goodbye()
        self._tell_end()
        return False

    def _tell_end(self) -> None:
        if not (self.ended or self.blocked):
            self.ended = True
            self.sink.shutdown(socket.SHUT_WR)

    def give_back(self) -> None:
        """What is lent. Nothing may be pending."""
        if self._pipe and self._pipes:
            self._pipes.give_back(self._pipe)
        elif self._buffer is not None:
            self._buffers.give_back(self._buffer)
        self._pipe = self._buffer = None
        self.much = False


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
        pipes: Pipes | None = None,
    ) -> None:
        self._up = _Way(client, target, to_target, buffers, pipes)
        self._down = _Way(target, client, to_client, buffers, pipes)
        self._tls = isinstance(client, TLSSocket) or isinstance(target, TLSSocket)
        self._patience = min(idle * 1000, _LONGEST)
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
        while not (up.ended and down.ended):
            eager = self._tls and (up.buffered or down.buffered)
            if eager:
                events = poll(0)
                for way in (up, down):
                    if way.buffered and not way.carry():
                        self._watch()
            elif not (up.much or down.much):
                events = poll(self._patience)
            else:
                events = poll(_HELD * 1000) or self._with_empty_hands()
            if self._broken_off:
                return Ending.BROKEN_OFF
            if not (events or eager):
                return Ending.IDLE
            self._moved_at = time.monotonic()
            for source, event in events:
                way = ways[source]
                # Closed since poll looked: what TLS had in memory has filled the other side.
                if event == POLLIN and way.open:
                    self._asked = way is up
                    if way.carry():
                        continue
                else:
                    self._heed(source, event, way, down if way is up else up)
                self._watch()
        return Ending.ENDED

    def _with_empty_hands(self) -> list[tuple[int, int]]:
        """After a moment of silence: nothing large is held for an idle connection."""
        for way in (self._up, self._down):
            if not way.blocked:
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
            way.hung = True

    def _watch(self) -> None:
        for way, back in ((self._up, self._down), (self._down, self._up)):
            wanted = (POLLIN if way.open else 0) | (POLLOUT if back.blocked else 0)
            if wanted or not way.hung:
                self._poll.register(way.source.fileno(), wanted)
                way.watched = True
            elif way.watched:  # poll would tell of the hang-up again and again
                self._poll.unregister(way.source.fileno())
                way.watched = False
