"""Admin: the admin API's server, as the settings say from one reload to the next."""

import socket

from pyproxy.control.api import AdminServer
from pyproxy.control.control import Verbs
from pyproxy.sections import Admin


class AdminPlace:
    """Used by one thread at a time."""

    def __init__(self, verbs: Verbs) -> None:
        self._verbs = verbs
        self._name = ""
        self._server: AdminServer | None = None

    @property
    def url(self) -> str | None:
        """Where it listens, if it does."""
        return self._server.url if self._server else None

    def apply(self, said: Admin, name: str, sock: socket.socket | None) -> None:
        """``sock`` listens at the place called ``name``; None: there is to be no server. A server
        that stays where it is serves on."""
        if self._server and name != self._name:
            self.stop()
        if self._server:
            self._server.configure(said)
        elif sock:
            self._server = AdminServer(sock.dup(), said, self._verbs)
            self._server.start()
        self._name = name

    def stop(self, handed_over: bool = False) -> None:
        """If its socket is ``handed_over``, others go on accepting there."""
        if self._server:
            self._server.stop(handed_over)
            self._server = None
