"""TCPProxyServer: a ThreadingTCPServer that relays connections as they are.

Listener._serve                     a thread waits in accept
  TCPHandler.setup                  is there a place? (limits.connections)
  TCPHandler.handle
    introduced                        the PROXY header, where one must come; TLS
    _ask_name                         the name in TLS, where entries differ in it
    Connector.connect                 pick a target, connect, evict, next
    Relay.run                         until both sides have ended
"""

import contextlib
import logging
import socket
import socketserver
import time
from collections.abc import Sequence
from typing import Any

from pyproxy import net
from pyproxy.connections import Connections
from pyproxy.errors import BadProxyHeader, ClientGone, PyproxyError
from pyproxy.listener import Listener
from pyproxy.readers import Network, wildcards
from pyproxy.sections import Timeouts
from pyproxy.settings import TCPEntry
from pyproxy.tcp.client_hello import Incomplete, server_name
from pyproxy.tcp.connector import Connector, Newcomer
from pyproxy.tcp.introduction import addresses_of, introduced
from pyproxy.tcp.proxy_protocol import Addresses, plain_ip, serialise
from pyproxy.tcp.relay import Pipes, Relay, Relayed
from pyproxy.tls import ServerTLS

log = logging.getLogger(__name__)

_HELLO = 4096  # bytes asked for at once of a TLS client's hello


class TCPProxyServer(Listener, socketserver.ThreadingTCPServer):
    """One listening address. ``serve_forever`` in one thread, ``shutdown`` from another."""

    def __init__(
        self,
        place: tuple[str, str, int],
        sock: socket.socket,
        *,
        connections: Connections,
        processor: int | None = None,
    ) -> None:
        """To be configured before it serves."""
        self.buffers = net.Buffers()
        self.pipes = Pipes()
        super().__init__(place, sock, TCPHandler, connections=connections, processor=processor)

    def configure(
        self,
        entries: Sequence[tuple[TCPEntry, Connector]],
        *,
        timeouts: Timeouts,
        trusted: tuple[Network, ...] = (),
        tls: ServerTLS | None = None,
    ) -> None:
        """What the settings say of it, also while it serves: it counts from the next connection on.
        ``entries`` have one address, and differ in the names that clients ask for."""
        self.entry = entries[0][0]
        self.place = self.entry.place
        self.tls = tls
        self._by_name = {one.server_name: (one, connector) for one, connector in entries}
        self.named = any(self._by_name)
        self.trusted = trusted
        self.set_timeouts(timeouts)

    def server_close(self) -> None:
        super().server_close()
        self.pipes.close()

    def finish_request(self, request: Any, client_address: Any) -> None:
        TCPHandler(request, client_address, self)

    def find(self, name: str | None) -> tuple[TCPEntry, Connector] | None:
        """Who serves a client that asks for ``name``."""
        known = self._by_name
        for one in (name, *wildcards(name or ""), None):
            if one in known:
                return known[one]
        return None


class TCPHandler(socketserver.BaseRequestHandler):
    """One client connection."""

    request: net.Socket
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
        if self._relay and self.server.closing:
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
        addresses = self._addresses()
        asked, first = self._ask_name() if server.named else (None, b"")
        if not (found := server.find(asked)):
            raise ClientGone(f"nobody serves {asked or 'who names nobody'} here")
        entry, connector = found
        self._silent_since = 0.0
        newcomer = Newcomer(str(plain_ip(addresses.source[0])))
        target, sock = connector.connect(newcomer, self._check_client)
        try:
            with sock:
                hello = serialise(entry.send_proxy, addresses) if entry.send_proxy else b""
                done = self._relayed(sock, hello + first, entry.timeouts.idle)
        finally:
            connector.pool.release(target)
        log.debug("%s and %s: %s", newcomer.address, target.url, done)

    def _addresses(self) -> Addresses:
        """Who the client is. After this, ``request`` is what it says behind its introductions."""
        server, plain = self.server, self.request
        assert isinstance(plain, socket.socket)
        if server.entry.proxy_protocol:
            found = introduced(plain, server.trusted, server.timeouts.header)
        else:
            found = addresses_of(plain)
        if server.tls:
            try:
                self.request = server.tls.accept(plain, server.timeouts.header)
            except OSError as error:
                raise ClientGone(f"no TLS: {net.reason(error)}") from None
        return found

    def _ask_name(self) -> tuple[str | None, bytes]:
        """The name in the client's hello, and what has been received of it. Raises
        ``ClientGone``."""
        deadline = time.monotonic() + self.server.timeouts.header
        data = b""
        while True:
            try:
                return server_name(data), data
            except Incomplete:
                net.set_receive_timeout(self.request, max(deadline - time.monotonic(), 0.001))
            try:
                received = self.request.recv(_HELLO)
            except OSError as error:
                raise ClientGone(f"within its hello: {net.reason(error)}") from None
            if not received or time.monotonic() > deadline:
                raise ClientGone("no whole hello")
            data += received

    def _relayed(self, sock: socket.socket, first: bytes, idle: float) -> Relayed:
        server = self.server
        self._relay = relay = Relay(
            self.request,
            sock,
            first,
            idle=idle,
            buffers=server.buffers,
            pipes=server.pipes,
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
