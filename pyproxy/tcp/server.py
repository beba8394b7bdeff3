"""TCPProxyServer: a ThreadingTCPServer that relays connections as they are.

Listener._serve                     a thread waits in accept
  TCPHandler.setup                  is there a place? (limits.connections)
  TCPHandler.handle
    introduced                        the PROXY header, where one must come
    Connector.connect                 pick a target, connect, evict, next
    Relay.run                         until both sides have ended
"""

import contextlib
import logging
import socket
import socketserver
import time
from typing import Any

from pyproxy import net
from pyproxy.connections import Connections
from pyproxy.errors import BadProxyHeader, ClientGone, PyproxyError
from pyproxy.listener import Listener
from pyproxy.readers import Network
from pyproxy.settings import TCPEntry, Timeouts
from pyproxy.tcp.connector import Connector, Newcomer
from pyproxy.tcp.introduction import addresses_of, introduced
from pyproxy.tcp.proxy_protocol import Addresses, plain_ip, serialise
from pyproxy.tcp.relay import Relay, Relayed

log = logging.getLogger(__name__)


class TCPProxyServer(Listener, socketserver.ThreadingTCPServer):
    """One listening address. ``serve_forever`` in one thread, ``shutdown`` from another."""

    def __init__(
        self,
        entry: TCPEntry,
        connector: Connector,
        *,
        connections: Connections,
        timeouts: Timeouts,
        trusted: tuple[Network, ...] = (),
        cpu_affinity: bool = False,
    ) -> None:
        """Binds and listens. Raises ``ListenError``."""
        self.entry = entry
        self.connector = connector
        self.trusted = trusted
        self.buffers = net.Buffers()
        super().__init__(
            entry.place,
            TCPHandler,
            connections=connections,
            timeouts=timeouts,
            cpu_affinity=cpu_affinity,
        )

    def finish_request(self, request: Any, client_address: Any) -> None:
        TCPHandler(request, client_address, self)


class TCPHandler(socketserver.BaseRequestHandler):
    """One client connection."""

    request: socket.socket
    server: TCPProxyServer

    served = 0

    def setup(self) -> None:
        self.ended = False  # the drain has shut the receiving side
        self._broken_off = False
        self._relay: Relay | None = None
        self._silent_since = time.monotonic()  # 0.0 when it has introduced itself
        if not net.INHERITS_OPTIONS:
            self.server.set_options(self.request)
        self._welcome = self.server.connections.enter(self)

    @property
    def idle_since(self) -> float:
        """At the limit a silent connection isn't ended for another: it may be in use."""
        if self._relay and self.server.connections.draining:
            return self._relay.idle_since
        return self._silent_since

    def break_off(self) -> None:
        self._broken_off = True
        net.shut(self.request)
        if self._relay:
            self._relay.break_off()

    def handle(self) -> None:
        if not self._welcome:
            return
        who = self.client_address[0]
        try:
            self._serve()
        except BadProxyHeader as error:
            log.info("closed a connection of %s: PROXY header: %s", who, error)
        except PyproxyError as error:
            log.info("closed a connection of %s: %s", who, error)
        except OSError as error:
            if not net.exhausted(error):
                raise
            log.error("can't connect to a target: %s", net.reason(error))

    def _serve(self) -> None:
        server = self.server
        pool = server.connector.pool
        addresses = self._addresses()
        self._silent_since = 0.0
        newcomer = Newcomer(str(plain_ip(addresses.source[0])))
        target, sock = server.connector.connect(newcomer, self._check_client)
        try:
            with sock:
                version = server.entry.send_proxy
                hello = serialise(version, addresses) if version else b""
                done = self._relayed(sock, hello)
        finally:
            pool.release(target)
        log.debug("%s and %s: %s", newcomer.address, target.url, done)

    def _addresses(self) -> Addresses:
        server = self.server
        if not server.entry.proxy_protocol:
            return addresses_of(self.request)
        return introduced(self.request, server.trusted, server.timeouts.header)

    def _relayed(self, sock: socket.socket, hello: bytes) -> Relayed:
        server = self.server
        self._relay = relay = Relay(
            self.request, sock, hello, idle=server.entry.timeouts.idle, buffers=server.buffers
        )
        if self._broken_off:
            relay.break_off()
        return relay.run()

    def _check_client(self) -> None:
        """Raises ``ClientGone`` if nobody waits any more."""
        if net.lost(self.request):
            raise ClientGone("gone while it waited")

    def finish(self) -> None:
        with contextlib.suppress(OSError):
            self.request.close()
        self.server.connections.leave(self)
