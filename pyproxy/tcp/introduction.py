"""Introductions: the PROXY header with which a connection begins, where a listener expects one."""

import socket
import time
from collections.abc import Collection

from pyproxy import net
from pyproxy.errors import BadProxyHeader
from pyproxy.readers import Network
from pyproxy.tcp.proxy_protocol import Addresses, missing, parse, plain_ip


def trusts(networks: Collection[Network], host: str) -> bool:
    ip = plain_ip(host)
    return any(ip in network for network in networks)


def addresses_of(sock: socket.socket) -> Addresses:
    """What the connection itself says. Raises ``OSError`` if it is no more."""
    return Addresses(sock.getpeername()[:2], sock.getsockname()[:2])


def introduced(sock: socket.socket, trusted: Collection[Network], seconds: float) -> Addresses:
    """The addresses in the header that begins on a connection from a proxy that is ``trusted``,
    whole within ``seconds``; the receive time-out is to be set anew afterwards. Raises
    ``BadProxyHeader``."""
    deadline = time.monotonic() + seconds
    data = b""
    try:
        own = addresses_of(sock)
        if not trusts(trusted, own.source[0]):
            raise BadProxyHeader("not one of trusted_proxies")
        while more := missing(data):
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            net.set_receive_timeout(sock, left)
            received = sock.recv(more)
            if not received:
                raise BadProxyHeader("closed within it")
            data += received
    except net.TIMED_OUT:
        raise BadProxyHeader("too slow") from None
    except OSError as error:
        raise BadProxyHeader(net.reason(error)) from None
    return parse(data) or own
