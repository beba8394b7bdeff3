"""Discovery: the addresses behind a name, looked up again as they change (``dns://`` targets)."""

import logging
import socket
import threading
import time
from collections.abc import Callable, Collection

from pyproxy import net
from pyproxy.balancing.pool import TargetPool
from pyproxy.balancing.target import Target

log = logging.getLogger(__name__)

_FIRST = 1.0  # seconds that the start waits for the first answer


class Discovery(threading.Thread):
    """Keeps one target in the pool for each address behind a name.

    Looks the name up every ``every`` seconds. A look-up that fails changes nothing, so that the
    last answer stays; it is logged once, until one succeeds.
    """

    def __init__(
        self,
        pool: TargetPool,
        name: str,
        port: int,
    ) -> None:
        """To be configured before it starts."""
        super().__init__(name=f"pyproxy-dns-{name}", daemon=True)
        self._pool = pool
        self._host, self._port = name, port
        self._targets: dict[str, Target] = {}
        self._said: Collection[str] = ()
        # Held while targets come and go, and while who stays is said.
        self._taking = threading.Lock()
        self._failing = False
        self._looked = threading.Event()
        self._woken = threading.Event()  # when it is configured, or stopped
        self._stopping = False

    def configure(
        self,
        every: float,
        make: Callable[[str], Target],
        forget: Callable[[Target], None],
        leaving: Collection[Target] = (),
    ) -> None:
        """What the settings say, also while it runs: ``make`` makes the target of an address,
        ``forget`` is told of one that is gone. Those ``leaving`` the pool don't count."""
        self._every = every
        self._leaving = leaving
        self._make, self._forget = make, forget
        self._woken.set()

    def keep(self, said: Collection[str]) -> None:
        """From now on the targets with these URLs stay in the pool, whatever the name stands
        for."""
        with self._taking:
            self._said = said

    @property
    def targets(self) -> list[Target]:
        """Those that it has added."""
        return list(self._targets.values())

    def start(self) -> None:
        """Returns when the first answer is there, but doesn't wait long for it."""
        super().start()
        self._looked.wait(_FIRST)

    def run(self) -> None:
        while not self._stopping:
            self._woken.clear()
            self._look()
            self._looked.set()
            self._woken.wait(self._every)

    def _look(self) -> None:
        try:
            found = socket.getaddrinfo(self._host, self._port, 0, socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            if not self._failing:
                said = net.reason(error) if isinstance(error, OSError) else "no such name"
                kept = len(self._targets)
                log.warning("can't look up %s, keeping %d targets: %s", self._host, kept, said)
            self._failing = True
            return
        if self._failing:
            log.info("looking up %s succeeds again", self._host)
        self._failing = False
        if not self._stopping:
            with self._taking:
                self._take({str(one[4][0]) for one in found})

    def _take(self, addresses: set[str]) -> None:
        why = f"an address of {self._host}"
        for address in sorted(addresses - self._targets.keys()):
            target = self._make(address)
            if self._pool.add(target, why, time.monotonic(), self._leaving):
                self._targets[address] = target  # else it is another name's, or said itself
        for address in sorted(self._targets.keys() - addresses):
            target = self._targets.pop(address)
            if target.url in self._said:
                continue
            self._pool.remove(target, f"no longer an address of {self._host}")
            self._forget(target)

    def stop(self) -> None:
        """Ends the thread; one that hangs in a look-up ends with that."""
        self._stopping = True
        self._woken.set()
        if self.ident is not None:
            self.join(2)
