"""Connections to targets, kept alive: the only place where a target's ``OSError`` gets a name.

A connection is taken (``Upstream.take``) or made (``connect``), used by one thread, and given back
or closed. Idle ones lie in a stack, so that the one used last, the least likely to be stale, is
used next.
"""

import contextlib
import ssl
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable

from pyproxy import net, tls
from pyproxy.balancing.target import Target
from pyproxy.errors import (
    BadReply,
    ConnectFailed,
    ConnectionLost,
    HTTPError,
    NoReply,
    ReplyTimeout,
)
from pyproxy.http.message import ReplyHead, reply_heads
from pyproxy.sections import TargetTimeouts

_RECEIVE = 16384  # bytes asked for at once with a head
_BULK = 65536  # the same within a body
_TICK = 1.0  # seconds between looks at the client while a target is silent
_TRUSTED_IDLE = 1.0  # seconds for which an idle connection is hardly ever reset
_LONGEST_IDLE = 60.0  # seconds after which it is closed

# Called while a target is silent; raises when waiting has become vain, returns the moment (of
# time.monotonic) from which the target's time to answer counts.
Watch = Callable[[], float]


# Open files are the process's: who needs one takes it from those that are idle, anywhere.
_all: weakref.WeakSet["Upstream"] = weakref.WeakSet()
_counting = threading.Lock()


def _make_room() -> bool:
    """Closes an idle connection to whoever has most of them; False if nobody has any."""
    with _counting:
        everybody = list(_all)
    while everybody and (richest := max(everybody, key=lambda one: one.idle)).idle:
        if richest.close_one():
            return True
    return False


net.spares.append(_make_room)


class _Files:
    """Where requests wait for a file, until another is done with its target's."""

    def __init__(self) -> None:
        self.wanted = 0
        self._free = threading.Condition()

    def wait(self, seconds: float) -> None:
        with self._free:
            self.wanted += 1
            self._free.wait(seconds)
            self.wanted -= 1

    def tell(self) -> None:
        with self._free:
            self._free.notify()


_files = _Files()


class Upstream:
    """The connections to one target."""

    def __init__(
        self,
        target: Target,
        timeouts: TargetTimeouts,
        context: ssl.SSLContext | None = None,
        head_limit: int = 65536,
        *,
        keep: bool = True,
    ) -> None:
        """``context`` is for TLS to the target. Without ``keep`` no connection is used twice."""
        self.target = target
        self._context = context
        self.timeouts = timeouts
        self.head_limit = head_limit
        # Where a receive timeout would hold for sending too, there are no ticks.
        self.tick = min(_TICK, timeouts.read) if net.KERNEL_TIMEOUTS else timeouts.read
        # The one used last at the right. No lock: each step on it is a single call, and a deque's
        # calls are whole in every thread (a lock would cost a tenth of a request's Python).
        self._idle: deque[TargetConnection] = deque()
        self._closed = not keep
        with _counting:
            _all.add(self)

    def take(self, careful: bool) -> "TargetConnection | None":
        """An idle connection, if there is one. ``careful``: the request can't be sent twice, so
        even one used just now is asked whether it was reset."""
        while not self._closed:
            try:
                connection = self._idle.pop()
            except IndexError:
                break
            idle, sock = time.monotonic() - connection.idle_since, connection.sock
            # Bytes that nobody asked for would be taken for the answer to the next request, and
            # that one's answer for the next one's (RFC 9112, 6.3).
            if (
                idle < _LONGEST_IDLE
                and (self._context is None or connection.clean)
                and not net.unread(sock)
                and not ((careful or idle > _TRUSTED_IDLE) and net.ended(sock))
            ):
                connection.reused = True
                return connection
            connection.close()
        return None

    def connect(self, hello: bytes = b"") -> "TargetConnection":
        """A new connection, which begins with ``hello``. Raises ``ConnectFailed``, or ``HTTPError``
        503 when it is this machine that has run out of something; of files, for all of
        ``timeouts.connect``."""
        deadline = time.monotonic() + self.timeouts.connect
        while True:
            try:
                sock = self._open(hello)
                break
            except OSError as error:
                left = deadline - time.monotonic()
                if net.out_of_files(error) and left > 0:
                    _files.wait(min(left, _TICK))
                elif net.exhausted(error):
                    raise HTTPError(503, f"the proxy can't connect: {net.reason(error)}") from None
                else:
                    raise ConnectFailed(f"connect: {net.reason(error)}") from None
            except UnicodeError:
                raise ConnectFailed("connect: the name can't be looked up") from None
        net.set_receive_timeout(sock, self.tick)
        net.set_send_timeout(sock, self.timeouts.send)
        return TargetConnection(sock, self)

    def _open(self, hello: bytes) -> net.Socket:
        target = self.target
        sock = net.connect(target.host, target.port, self.timeouts.connect)
        if hello:
            try:
                sock.sendall(hello)
            except OSError:
                sock.close()
                raise
        if self._context:
            return tls.connect(sock, self._context, target.host, self.timeouts.connect)
        return sock

    @property
    def idle(self) -> int:
        """Connections."""
        return len(self._idle)

    def close_one(self) -> bool:
        """Closes the one idle for longest; False if there is none."""
        with contextlib.suppress(IndexError):
            self._idle.popleft().close()
            return True
        return False

    def give_back(self, connection: "TargetConnection") -> None:
        """Keeps a connection on which nothing is under way, and closes one idle for too long."""
        now = time.monotonic()
        connection.idle_since = now
        idle = self._idle
        idle.append(connection)
        if _files.wanted:
            _files.tell()
        if self._closed:
            self.close_idle()
            return
        try:
            if now - idle[0].idle_since < _LONGEST_IDLE:
                return
            oldest = idle.popleft()
        except IndexError:  # taken meanwhile
            return
        if now - oldest.idle_since < _LONGEST_IDLE:  # another thread has closed the one seen
            idle.appendleft(oldest)
        else:
            oldest.close()

    def close_idle(self) -> None:
        """Closes those that are idle, and from now on each that is given back."""
        self._closed = True
        while self.close_one():
            pass


class Upstreams(dict[Target, Upstream]):
    """``upstreams[target]``: made when it is asked for first."""

    def __init__(
        self,
        timeouts: TargetTimeouts,
        context: ssl.SSLContext | None = None,
        *,
        keep: bool = True,
    ) -> None:
        """``context`` is for targets at ``https://`` addresses. Without ``keep`` no connection is
        used twice."""
        super().__init__()
        self._keep = keep
        self._timeouts = timeouts
        self._context = context
        self._gone: weakref.WeakSet[Target] = weakref.WeakSet()

    def __missing__(self, target: Target) -> Upstream:
        context = self._context if target.url.startswith("https:") else None
        found = self.setdefault(target, Upstream(target, self._timeouts, context, keep=self._keep))
        # Another thread may have ended it after this one has picked the target, or in between.
        if not self._keep:
            found.close_idle()
        if target in self._gone:
            self.forget(target)
        return found

    def close(self) -> None:
        """Closes those that are idle, and from now on each that is given back."""
        self._keep = False
        for upstream in list(self.values()):
            upstream.close_idle()

    def forget(self, target: Target) -> None:
        """Closes its idle connections, and from now on each that is given back."""
        self._gone.add(target)
        if upstream := self.pop(target, None):
            upstream.close_idle()


class TargetConnection:
    """One connection to a target, used by one thread at a time."""

    __slots__ = ("idle_since", "reused", "sock", "upstream")

    def __init__(self, sock: net.Socket, upstream: Upstream) -> None:
        self.sock = sock
        self.upstream = upstream
        self.reused = False  # has served a request before
        self.idle_since = 0.0

    def send(self, data: bytes, body: bytes | memoryview = b"") -> None:
        """``data``, and ``body`` behind it. Raises ``ReplyTimeout`` or ``ConnectionLost``."""
        try:
            if body:
                net.send_both(self.sock, data, body)
            else:
                self.sock.sendall(data)
        except net.TIMED_OUT:
            raise ReplyTimeout("the target doesn't take the request") from None
        except OSError as error:
            raise ConnectionLost(net.reason(error)) from None

    def receive(self, watch: Watch) -> bytes:
        """Bytes as they come; none at the end. Raises ``ReplyTimeout``, ``ConnectionLost`` and
        what ``watch`` raises."""
        while True:
            try:
                return self.sock.recv(_BULK)
            except net.TIMED_OUT:
                self._wait(watch)
            except OSError as error:
                raise ConnectionLost(net.reason(error)) from None

    def receive_into(self, buffer: memoryview, watch: Watch) -> int:
        """The same into a buffer; the number of bytes."""
        while True:
            try:
                return self.sock.recv_into(buffer)
            except net.TIMED_OUT:
                self._wait(watch)
            except OSError as error:
                raise ConnectionLost(net.reason(error)) from None

    def _wait(self, watch: Watch, since: float | None = None) -> None:
        """Waits for bytes on after the first tick, looking at the client at each further one."""
        upstream = self.upstream
        if since is None:
            since = time.monotonic() - upstream.tick
        while True:
            left = max(since, watch()) + upstream.timeouts.read - time.monotonic()
            if left <= 0:
                raise ReplyTimeout(f"no answer within {upstream.timeouts.read:g} s")
            if not self.clean or net.readable(self.sock, min(left, _TICK)):
                return

    def receive_head(self, watch: Watch, data: bytes = b"") -> tuple[ReplyHead, bytes]:
        """A whole response head, and what came behind it; ``data`` is what has come of it. Raises
        ``TargetError``; ``NoReply`` if not a byte came."""
        while not data:
            try:
                data = self.sock.recv(_RECEIVE)
            except net.TIMED_OUT:
                self._wait(watch)
                continue
            except OSError as error:
                raise NoReply(net.reason(error)) from None
            if not data:
                raise NoReply("closed without an answer")
        end = data.find(b"\r\n\r\n")
        if end < 0:
            data, end = self._rest_of_head(data, watch)
        end += 4
        return reply_heads[data[:end]], data[end:]

    def _rest_of_head(self, data: bytes, watch: Watch) -> tuple[bytes, int]:
        started = time.monotonic()
        while True:
            if len(data) > self.upstream.head_limit:
                raise BadReply("the response head is too long")
            if not data.startswith(b"HTTP/"[: len(data)]):
                raise BadReply("not an HTTP response")
            self._wait(watch, started)
            more = self.receive(watch)
            if not more:
                raise ConnectionLost("closed within the response head")
            data += more
            end = data.find(b"\r\n\r\n")
            if end >= 0:
                return data, end

    @property
    def clean(self) -> bool:
        """TLS holds nothing that has come (poll wouldn't see it)."""
        return not (isinstance(self.sock, tls.TLSSocket) and self.sock.buffered)

    def close(self) -> None:
        self.sock.close()
        if _files.wanted:
            _files.tell()
