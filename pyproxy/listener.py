"""Listener: the threads of a listening address, each of which accepts for itself.

    serve_forever                   starts the first thread, waits for shutdown
      _serve                        each thread: leader, then worker, then a follower again
        get_request                 accept: the kernel hands one connection to one thread
        _follow                     makes sure that another thread waits in accept
        finish_request              serves the connection: the server's own handler

No thread is started and nothing handed over for a connection, and the cap on connections is a cap
on threads: what is above it waits in the kernel's backlog.
"""

import contextlib
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


class Listener(socketserver.TCPServer):
    """What stands before ``ThreadingHTTPServer`` or ``ThreadingTCPServer`` among the bases of a
    server, in the place of their thread for each connection. ``serve_forever`` in one thread,
    ``shutdown`` from another."""

    request_queue_size = 4096  # the backlog; the kernel caps it
    allow_reuse_address = sys.platform != "win32"  # there it would share the port
    daemon_threads = True
    block_on_close = False
    spare_threads = 32  # waiting in accept beyond which a thread ends

    def __init__(
        self,
        place: tuple[str, str, int],
        handler: type[socketserver.BaseRequestHandler],
        *,
        connections: Connections,
        timeouts: Timeouts,
        cpu_affinity: bool,
    ) -> None:
        """Binds ``place`` (scheme, host and port) and listens. Raises ``ListenError``."""
        self.connections = connections
        self.timeouts = timeouts
        self._cpu_affinity = cpu_affinity
        # Protects the two counts; notified when the last thread ends.
        self._idle = threading.Condition()
        self._thread_count = 0
        self._waiting = 0  # threads in accept, or on their way there
        self._closing = False
        self._stopped = threading.Event()
        self._scheme, host, port = place
        self.address_family, address = net.resolve_to_listen(host, port)
        try:
            super().__init__(address, handler)
        except OSError as error:
            raise net.listen_error(host, port, error) from None
        self.url = url_of(self._scheme, host, self.server_port)

    def server_bind(self) -> None:
        """Without HTTPServer's look-up of the host's full name: it may take seconds."""
        if self.address_family == socket.AF_INET6 and sys.platform != "win32":
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        socketserver.TCPServer.server_bind(self)
        self.server_name = str(self.server_address[0])
        self.server_port = self.server_address[1]

    def server_activate(self) -> None:
        super().server_activate()
        self.set_options(self.socket)

    def set_options(self, sock: net.Socket) -> None:
        """What a client's socket begins with."""
        net.no_delay(sock)
        net.set_receive_timeout(sock, self.timeouts.header)
        net.set_send_timeout(sock, self.timeouts.send)

    def serve_forever(self, poll_interval: float = 0.5) -> None:
        """Serves until ``shutdown`` has drained. ``poll_interval`` counts only where closing a
        socket doesn't wake ``accept`` (elsewhere than on Linux)."""
        if not sys.platform.startswith("linux"):
            self.socket.settimeout(poll_interval)
        if self._cpu_affinity:
            net.stay_on_one_processor()  # and so do the threads that come of this one
        self._start_thread()
        self._stopped.wait()

    def _start_thread(self) -> None:
        with self._idle:
            self._thread_count += 1
            self._waiting += 1
        name = f"pyproxy-{self._scheme}-{self.server_port}"
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
                    if self._closing:
                        return
                    continue
                except OSError as error:
                    if self._closing:
                        return
                    if net.exhausted(error):
                        log.error("can't accept a connection: %s", net.reason(error))
                        time.sleep(0.1)  # a connection that ends makes room
                    continue
                self._follow()
                self._serve_connection(request, address)
                with self._idle:
                    if self._closing or self._waiting >= self.spare_threads:
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
            enough = (
                self._waiting > 0 or self._closing or self._thread_count > self.connections.limit
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

    def shutdown(self, drain: float | None = None) -> None:
        """Stops accepting, serves what has been accepted or waits in the backlog, and returns when
        all is finished, or breaks the rest off after ``drain`` seconds (``timeouts.drain``)."""
        deadline = time.monotonic() + (self.timeouts.drain if drain is None else drain)
        self._closing = True
        self.connections.hurry_up()
        self._take_backlog()
        if sys.platform.startswith("linux"):
            net.shut(self.socket)
        if not self._wait_for_threads(deadline):
            broken = self.connections.break_off()
            log.warning("broke off %d connections that didn't finish in time", broken)
            self._wait_for_threads(time.monotonic() + 2)
        self._stopped.set()

    def _wait_for_threads(self, deadline: float) -> bool:
        """Until the last thread has ended, or it is too late (False)."""
        with self._idle:
            while self._thread_count:
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                self.connections.end_idle()
                self._idle.wait(min(left, 0.1))  # more may have become idle
        return True

    def _take_backlog(self) -> None:
        """Closing a socket resets the connections in its backlog: they are served first."""
        self.socket.settimeout(0)
        with contextlib.suppress(OSError):
            while True:
                self._serve_apart(*self.get_request())

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

        threading.Thread(target=serve, name="pyproxy-backlog", daemon=True).start()
