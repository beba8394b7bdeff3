"""RecoveryThread: asks evicted targets whether they are back."""

import logging
import threading
import time
from collections.abc import Callable

import requests

from pyproxy.balancing.pool import TargetPool
from pyproxy.balancing.target import State, Target

log = logging.getLogger(__name__)

_MOST_PROBES = 64  # at once
_SOONEST, _LATEST = 0.1, 0.5  # seconds between probes while nobody is left


class RecoveryThread(threading.Thread):
    """Every ``sleeping`` seconds probes each evicted target, and restores those that answer.

    While no target is left it is awake at once, and probes more and more seldom, from 0.1 s up to
    0.5 s (or ``sleeping``, if that is less), since everybody waits. A probe runs in a thread of its
    own, one a target and at most 64, so that one that hangs delays no other.
    """

    def __init__(self, pool: TargetPool, sleeping: float, probe: Callable[[Target], str]) -> None:
        """``probe`` returns why the target counts as back, or raises ``ProbeFailed``."""
        super().__init__(name="pyproxy-recovery", daemon=True)
        self._pool = pool
        self._sleeping = sleeping
        self._probe = probe
        # Protects the fields below; notified when a target changes state, or at the end.
        self._changed = threading.Condition()
        self._stopping = False
        self._probing: set[Target] = set()
        pool.watch(self._notice)

    def _notice(self, target: Target, verb: str, reason: str) -> None:
        with self._changed:
            self._changed.notify()

    def run(self) -> None:
        soon = _SOONEST
        while self._wait(min(soon, self._sleeping)):
            nobody = not self._pool.live
            for target in self._pool.evicted():
                self._start_probe(target)
            soon = min(soon * 2, _LATEST) if nobody else _SOONEST

    def _wait(self, soon: float) -> bool:
        """Until the next round of probes: ``sleeping`` after the first eviction, ``soon`` as long
        as nobody is left. False when the thread is to end."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopping or self._pool.evicted())
            if self._pool.live:
                self._changed.wait_for(
                    lambda: self._stopping or not self._pool.live, self._sleeping
                )
            if not self._pool.live:
                self._changed.wait_for(lambda: self._stopping, soon)
            return not self._stopping

    def _start_probe(self, target: Target) -> None:
        with self._changed:
            if target in self._probing or len(self._probing) >= _MOST_PROBES or self._stopping:
                return
            self._probing.add(target)
        name = f"pyproxy-probe-{target.host}:{target.port}"
        threading.Thread(target=self._run_probe, args=(target,), name=name, daemon=True).start()

    def _run_probe(self, target: Target) -> None:
        try:
            back = self._probe(target)
        except ProbeFailed as failure:
            log.debug("%s is still away: %s", target.url, failure)
        else:
            if not self._stopping and target.state is State.EVICTED:
                self._pool.restore(target, back, time.monotonic())
        finally:
            with self._changed:
                self._probing.discard(target)

    def stop(self) -> None:
        """Ends the thread. A probe that hangs ends by its own time-out, and restores nobody."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self.ident is not None:
            self.join()


class ProbeFailed(Exception):
    """A target is still away; the text says why."""


class HTTPProbe:
    """GET / with the patience of a real request; any status below 500 counts as back."""

    def __init__(self, connect: float, read: float) -> None:
        """Seconds to connect, and seconds of silence before the response."""
        self._timeout = (connect, read)

    def __call__(self, target: Target) -> str:
        with requests.Session() as session:
            session.trust_env = False  # a proxy of this machine is not asked about its targets
            try:
                # Streamed: the head tells enough, and a body may never end.
                with session.get(
                    target.url,
                    timeout=self._timeout,
                    stream=True,
                    allow_redirects=False,
                    headers={"User-Agent": "pyproxy-recovery", "Connection": "close"},
                ) as response:
                    status = response.status_code
            except (requests.RequestException, ValueError) as error:  # the latter: of the name
                raise ProbeFailed(str(error)) from None
        if status >= 500:
            raise ProbeFailed(f"answered {status}")
        return f"answered {status}"
