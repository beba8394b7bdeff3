"""Listener: the threads of a listening address, each of which accepts for itself.

    serve_forever                   starts the first thread, waits for shutdown
      _serve                        each thread: leader, then worker, then a follower again
        get_request                 accept: the kernel hands one connection to one thread
        _follow                     makes sure that another thread waits in accept
        finish_request              serves the connection: the server's own handler

No thread is started and nothing handed over for a connection, and the cap on connections is a cap
on threads: what is above it waits in the kernel's backlog.
"""

import logging
import socket
import socketserver
import sys
import threading
import time
from typing import Any

from pyproxy import net
from pyproxy.connections import Connections
from pyproxy.readers import url_of
from pyproxy.sections import Timeouts

log = logging.getLogger(__name__)

_LAST = 2.0  # seconds in which a connection that is broken off ends
_LOOK = 1.0  # seconds between looks whether a thread is in accept
_TICK = 0.5  # seconds after which a thread in accept looks whether it is over


class Listener(socketserver.TCPServer):
    """What stands before ``ThreadingHTTPServer`` or ``ThreadingTCPServer`` among the bases of a
    server, in the place of their thread for each connection. ``serve_forever`` in one thread,
    ``shutdown`` from another."""

    daemon_threads = True
    block_on_close = False
    spare_threads = 32  # waiting in accept beyond which a thread ends

    def __init__(
        self,
        place: tuple[str, str, int],
        sock: socket.socket,
        handler: type[socketserver.BaseRequestHandler],
        *,
        connections: Connections,
        processor: int | None = None,
    ) -> None:
        """``place`` is scheme, host and port as they were said; ``sock`` listens there, and may do
        so in other processes too. ``processor`` is what to stay on (None: on none)."""
        self.connections = connections
        self.hurry = self.closing = self.hasty = self.over = False
        self._processor = processor
        # Protects the two counts; notified when the last thread ends.
        self._idle = threading.Condition()
        self._thread_count = 0
        self._waiting = 0  # threads in accept, or on their way there
        self._stopped = threading.Event()
        socketserver.BaseServer.__init__(self, sock.getsockname(), handler)
        self.socket = sock
        self.place = place
        self.server_name, self.server_port = sock.getsockname()[:2]
        connections.serve(self)

    @property
    def url(self) -> str:
        """Where it listens, with the port that the system chose."""
        scheme, host, _ = self.place
        return url_of(scheme, host, self.server_port)

    def set_timeouts(self, timeouts: Timeouts) -> None:
        """Also while it serves."""
        self.timeouts = timeouts
        self.set_options(self.socket)

    def set_options(self, sock: net.Socket) -> None:
        """What a client's socket begins with: ``patience`` is its receive timeout."""
        self.patience = min(_TICK, self.timeouts.header)
        net.no_delay(sock)
        net.set_receive_timeout(sock, self.patience)
        net.set_send_timeout(sock, self.timeouts.send)

    def serve_forever(self, poll_interval: float = _TICK) -> None:
        """Serves until ``shutdown`` has drained. ``poll_interval`` counts only where accept heeds
        no timeout of the kernel's (elsewhere than on Linux)."""
        if not sys.platform.startswith("linux"):
            self.socket.settimeout(poll_interval)
        if self._processor is not None:
            net.stay_on(self._processor)  # and so do the threads that come of this one
        self._start_thread()
        while not self._stopped.wait(_LOOK):
            self.follow()  # when the last thread left accept, the system may have given no other

    def _start_thread(self) -> None:
        with self._idle:
            self._thread_count += 1
            self._waiting += 1
        name = f"pyproxy-{self.place[0]}-{self.server_port}"
        try:
            threading.Thread(target=self._serve, name=name, daemon=True).start()
        except RuntimeError as error:  # the system gives no more threads: those there are serve on
            log.error("can't start a thread: %s", error)
            with self._idle:
                self._thread_count -= 1
                self._waiting -= 1

    def _serve(self) -> None:
        try:
            while True:
                try:
                    request, address = self.get_request()
                except net.TIMED_OUT:
                    if self.closing:
                        return
                    continue
                except OSError as error:
                    if self.closing:
                        return
                    if net.exhausted(error) and not net.make_room(error):
                        log.error("can't accept a connection: %s", net.reason(error))
                        time.sleep(0.1)  # a connection that ends makes room
                    continue
                self._follow()
                self._serve_connection(request, address)
                with self._idle:
                    if self.closing or self._waiting >= self.spare_threads:
                        return
                    self._waiting += 1
        finally:
            with self._idle:
                self._thread_count -= 1
                self._idle.notify_all()

    def _follow(self) -> None:
        """This thread has left accept: makes sure that another one waits there. One thread above
        the limit may hold a connection that waits for its place."""
        with self._idle:
            self._waiting -= 1
        self.follow()

    def follow(self) -> None:
        with self._idle:
            enough = (
                self._waiting > 0 or self.closing or self._thread_count > self.connections.limit
            )
        if not enough:
            self._start_thread()

    def _serve_connection(self, request: socket.socket, address: Any) -> None:
        try:
            self.finish_request(request, address)
        except OSError as error:  # reset before it was served
            log.debug("lost %s: %s", address[0], error)
        except Exception:
            # A fault of ours: this connection ends, the thread goes on.
            log.exception("an error while serving %s", address[0])
        finally:
            request.close()

    def shutdown(self, drain: float | None = None, *, handed_over: bool = False) -> None:
        """Stops accepting, serves what has been accepted or waits in the backlog, and returns when
        all is finished, or breaks the rest off after ``drain`` seconds (``timeouts.drain``). If the
        socket is ``handed_over``, it and its backlog are left to the other processes. Does nothing
        when that is done; while it is under way, the shorter time counts."""
        if self._stopped.is_set():
            return
        deadline = time.monotonic() + (self.timeouts.drain if drain is None else drain)
        self.hasty = not handed_over
        self.connections.drain(self)
        if not handed_over:
            self._take_backlog()
            if sys.platform.startswith("linux"):  # elsewhere it wouldn't wake those in accept
                net.shut(self.socket)
        if not self._wait_for_threads(deadline):
            broken = self.connections.break_off(self)
            if broken:
                log.warning("broke off %d connections that didn't finish in time", broken)
            if not self._wait_for_threads(time.monotonic() + _LAST):
                self.connections.break_off(self, again=True)
                self._wait_for_threads(time.monotonic() + _LAST)
        self._stopped.set()

    def _wait_for_threads(self, deadline: float) -> bool:
        """Until the last thread has ended, or it is too late (False)."""
        with self._idle:
            while self._thread_count:
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                self.connections.end_idle(self)
                self._idle.wait(min(left, 0.1))  # more may have become idle
        return True

    def _take_backlog(self) -> None:
        """Closing a socket resets the connections in its backlog: they are served first."""
        while net.readable(self.socket):
            try:
                self._serve_apart(*self.get_request())
            except OSError:  # somebody else has accepted it
                return

    def server_close(self) -> None:
        super().server_close()
        self.connections.forget(self)

    def _serve_apart(self, request: socket.socket, address: Any) -> None:
        with self._idle:
            self._thread_count += 1

        def serve() -> None:
            try:
                self._serve_connection(request, address)
            finally:
                with self._idle:
                    self._thread_count -= 1
                    self._idle.notify_all()

        try:
            threading.Thread(target=serve, name="pyproxy-backlog", daemon=True).start()
        except RuntimeError as error:  # this one is lost, but the end isn't held up
            log.error("can't start a thread: %s", error)
            request.close()
            with self._idle:
                self._thread_count -= 1
