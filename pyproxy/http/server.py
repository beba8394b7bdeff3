"""ProxyServer: a ThreadingHTTPServer whose threads accept for themselves (``Listener``)."""

import socket
import threading
from http.server import ThreadingHTTPServer
from typing import Any

from pyproxy.balancing.counters import Counters
from pyproxy.connections import Connections
from pyproxy.http.access_log import AccessLog
from pyproxy.http.handler import ProxyHandler
from pyproxy.http.message import Peer
from pyproxy.http.routes import Service
from pyproxy.http.tracing import Tracer
from pyproxy.listener import Listener
from pyproxy.net import Buffers
from pyproxy.readers import Network
from pyproxy.sections import Http2, Limits, Listen, Retry, Timeouts, Tracing
from pyproxy.tcp.introduction import trusts
from pyproxy.tcp.proxy_protocol import plain_ip
from pyproxy.tls import ServerTLS

_WINDOWS = 1024  # of 256 KiB each


class ProxyServer(Listener, ThreadingHTTPServer):
    """One listening address. ``serve_forever`` in one thread, ``shutdown`` from another."""

    def __init__(
        self,
        place: tuple[str, str, int],
        sock: socket.socket,
        *,
        connections: Connections,
        counters: Counters,
        processor: int | None = None,
    ) -> None:
        """To be configured before it serves."""
        self.counters = counters
        self.buffers = Buffers()
        # By how much the windows of all HTTP/2 connections may grow.
        self.stream_windows = threading.Semaphore(_WINDOWS)
        super().__init__(place, sock, ProxyHandler, connections=connections, processor=processor)

    def configure(
        self,
        listen: Listen,
        service: Service,
        *,
        timeouts: Timeouts,
        limits: Limits,
        retry: Retry,
        http2: Http2,
        tracing: Tracing,
        trusted: tuple[Network, ...] = (),
        tls: ServerTLS | None = None,
        access_log: AccessLog | None = None,
    ) -> None:
        """What the settings say of it, also while it serves: it counts from the next request, or
        the next connection, on."""
        self.place = listen.place
        self.service = service
        self.limits = limits
        self.retry = retry
        self.access_log = access_log
        self.tracer = Tracer(tracing) if tracing.request_id or tracing.start else None
        self.tls = tls
        self.http2 = http2
        # Threads for streams, beyond the one that each HTTP/2 connection may always have.
        self.stream_threads = threading.Semaphore(self.http2.threads)
        self.proxy_protocol = listen.proxy_protocol
        self.trusted = trusted
        self._peers: dict[str, Peer] = {}
        # The Host for an HTTP/1.0 request that names none.
        self.own_host = self.url.partition("://")[2].encode()
        self.set_timeouts(timeouts)

    def finish_request(self, request: Any, client_address: Any) -> None:
        ProxyHandler(request, client_address, self)

    def peer(self, address: tuple[Any, ...]) -> Peer:
        """Who a client's socket address is. Memoised, bounded."""
        host = address[0]
        known = self._peers.get(host)
        if known is None:
            trusted = trusts(self.trusted, host)
            known = Peer(str(plain_ip(host)), trusted, "https" if self.tls else "http")
            if len(self._peers) >= 4096:
                self._peers.clear()
            self._peers[host] = known
        return known
