"""Sockets: those that listen, by the place that the settings name; bound here, or got from the
process that was there before, or from systemd."""

import socket
import sys
from collections.abc import Iterable, Iterator, Mapping

from pyproxy import net
from pyproxy.errors import ListenError

_BACKLOG = 4096  # connections that wait to be accepted; the kernel caps it

Place = tuple[str, str, int]  # scheme, host and port
ADMIN = "admin"  # the scheme that tells the admin API's place from those of the proxy


def named(places: Iterable[Place]) -> Iterator[str]:
    """A name for each place, whatever the proxy speaks there; the admin API's is another, since its
    socket is used in another way. Those whose port the system chooses are told apart by their
    order."""
    seen: dict[str, int] = {}
    for scheme, host, port in places:
        name = f"admin {host}:{port}" if scheme == ADMIN else f"{host}:{port}"
        if not port:
            seen[name] = seen.get(name, 0) + 1
            name = f"{name}#{seen[name]}"
        yield name


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens there. Raises ``ListenError``."""
    family, address = net.resolve_to_listen(host, port)
    try:
        sock = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise net.listen_error(host, port, error) from None
    try:
        if sys.platform != "win32":  # there it would share the port
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        raise net.listen_error(host, port, error) from None
    return sock


class Sockets:
    """Used by one thread at a time."""

    def __init__(
        self,
        inherited: Mapping[str, socket.socket] | None = None,
        unnamed: Iterable[int] = (),
        lent: Iterable[str] = (),
    ) -> None:
        """``inherited`` are listening sockets by name; ``unnamed`` descriptors of some that are
        known by their address, and ``lent``, as those with these names are."""
        # Whoever has lent them listens on after this program: they must not be shut down.
        self.lent = set(lent)
        self._open: dict[str, socket.socket] = dict(inherited or {})
        self._unnamed = [socket.socket(fileno=number) for number in unnamed]
        for sock in (*self._open.values(), *self._unnamed):
            sock.setblocking(True)

    def open(self, places: Iterable[Place]) -> dict[str, socket.socket]:
        """The sockets of all these places, each bound unless it is there. If one can't be, those
        that are new are closed. Raises ``ListenError``."""
        places = list(places)
        found: dict[str, socket.socket] = {}
        new: list[str] = []
        try:
            for name, (_, host, port) in zip(named(places), places, strict=True):
                if name not in self._open:
                    if lent := self._unnamed_at(host, port):
                        self.lent.add(name)
                    self._open[name] = lent or bind(host, port)
                    new.append(name)
                found[name] = self._open[name]
        except ListenError:
            for name in new:
                self.close(name)
            raise
        return found

    def _unnamed_at(self, host: str, port: int) -> socket.socket | None:
        if not self._unnamed:
            return None
        family, address = net.resolve_to_listen(host, port)
        for sock in self._unnamed:
            if sock.family == family and sock.getsockname()[:2] == address[:2]:
                self._unnamed.remove(sock)
                return sock
        return None

    def close(self, name: str) -> None:
        """Forgets it; whoever serves there has a socket object of his own."""
        sock = self._open.pop(name)
        if name in self.lent:  # nobody else could bind it again
            self.lent.remove(name)
            self._unnamed.append(sock)
        else:
            sock.close()

    def adopt(self, others: "Sockets") -> None:
        """Takes over the sockets of others that it hasn't got itself."""
        for name, sock in others.all().items():
            if name in self._open:
                sock.close()
            else:
                self._open[name] = sock
                self.lent |= {name} & others.lent

    def all(self) -> dict[str, socket.socket]:
        """By name."""
        return dict(self._open)

    def unnamed(self) -> list[socket.socket]:
        """Those that nobody has asked for."""
        return list(self._unnamed)

    def close_all(self) -> None:
        for sock in (*self._open.values(), *self._unnamed):
            sock.close()
        self._open.clear()
        self._unnamed.clear()
