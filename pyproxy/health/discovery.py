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
        taking: threading.RLock,
        name: str,
        port: int,
    ) -> None:
        """To be configured before it starts. ``taking`` is one lock for all names of a pool: they
        may share addresses. It is held while targets come and go."""
        super().__init__(name=f"pyproxy-dns-{name}", daemon=True)
        self._pool = pool
        self._host, self._port = name, port
        self._targets: dict[str, Target] = {}
        self._addresses: set[str] = set()  # of the last answer; some may be another name's
        self._taking = taking
        self._failing = False
        self._looked = threading.Event()
        self._woken = threading.Event()  # when it is configured, or stopped
        self._stopping = False

    def configure(
        self,
        every: float,
        make: Callable[[str], Target],
        forget: Callable[[Target], None],
        keep: Callable[[Target], bool],
        leaving: Collection[Target] = (),
    ) -> None:
        """What the settings say, also while it runs: ``make`` makes the target of an address;
        ``keep`` says whether one that isn't at an address any more stays all the same, ``forget``
        is told of one that doesn't. Those ``leaving`` the pool don't count."""
        self._every = every
        self._leaving = leaving
        self._make, self._forget, self.keep = make, forget, keep
        self._woken.set()

    @property
    def known(self) -> bool:
        """Whether there has been an answer."""
        return bool(self._addresses)

    def inherit(self, target: Target) -> bool:
        """Takes over another's target, if it is at an address of this name, too."""
        with self._taking:
            if target.port != self._port or target.host not in self._addresses:
                return False
            return self._targets.setdefault(target.host, target) is target

    def hold(self, target: Target) -> bool:
        """Has another's target stay until the first answer. False if that has come."""
        with self._taking:
            if self.known:
                return False
            self._targets[target.url] = target  # which is no address
            return True

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
        with self._taking:
            if not self._stopping:
                self._take({str(one[4][0]) for one in found})

    def _take(self, addresses: set[str]) -> None:
        self._addresses = addresses
        why = f"an address of {self._host}"
        leaving = {*self._leaving, *self._targets.values()}  # some are held
        for address in sorted(addresses - self._targets.keys()):
            target = self._make(address)
            if self._pool.add(target, why, time.monotonic(), leaving):
                self._targets[address] = target  # else it is another name's, or said itself
        for address in sorted(self._targets.keys() - addresses):
            target = self._targets.pop(address)
            if not self.keep(target):
                self._pool.remove(target, f"no longer an address of {self._host}")
                self._forget(target)

    def stop(self) -> None:
        """Ends the thread; one that hangs in a look-up ends with that."""
        self._stopping = True
        self._woken.set()
        if self.ident is not None:
            self.join(2)
