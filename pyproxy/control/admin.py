"""Admin: the admin API's server, as the settings say from one reload to the next."""

import threading

from pyproxy.control.api import AdminServer
from pyproxy.control.control import Verbs
from pyproxy.settings import Settings
from pyproxy.sockets import Sockets, named


class AdminPlace:
    """May be used from any thread."""

    def __init__(self, verbs: Verbs, sockets: Sockets) -> None:
        self._verbs = verbs
        self._sockets = sockets
        self._name = ""
        self._server: AdminServer | None = None
        self._stopped = False
        # One change at a time: a supervisor may be stopped while it reloads.
        self._changing = threading.Lock()

    @property
    def url(self) -> str | None:
        """Where it listens, if it does."""
        return self._server.url if self._server else None

    def apply(self, settings: Settings) -> None:
        """The socket is open, if there is to be a server. One that stays where it is serves on.
        None begins after ``stop``."""
        said = settings.admin
        name = [*named(settings.all_places)][-1] if said.place else ""
        with self._changing:
            if self._stopped:
                return
            if self._server and name != self._name:
                self._end()
            if self._server:
                self._server.configure(said)
            elif name:
                sock = self._sockets.all()[name]
                self._server = AdminServer(sock.dup(), said, self._verbs)
                self._server.start()
            self._name = name

    def stop(self, handed_over: bool = False) -> None:
        """If its socket is ``handed_over``, others go on accepting there."""
        with self._changing:
            self._stopped = True
            self._end(handed_over)

    def _end(self, handed_over: bool = False) -> None:
        if self._server:
            self._server.stop(handed_over or self._name in self._sockets.lent)
            self._server = None
