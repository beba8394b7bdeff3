"""RecoveryThread: asks evicted targets whether they are back, and live ones whether they are well.

run
  _wait                 until a check is due, or a target changes its state
    _plan               who is to be checked when
  _start_check          in a thread of its own, so that one that hangs delays no other
    _judge              enough good or bad ones in a row: restore, evict
probe                   one round now, for who won't wait until it is due
"""

import logging
import math
import threading
import time
from collections import Counter
from operator import itemgetter

from pyproxy.balancing.pool import TargetPool
from pyproxy.balancing.target import State, Target
from pyproxy.health.checks import CantLook, Check, CheckFailed

log = logging.getLogger(__name__)

_MOST_CHECKS = 64  # at once
_ROOM = 0.05  # seconds until the next look whether some of them have ended
_SOONEST, _LATEST = 0.1, 0.5  # seconds between probes while nobody is left


class RecoveryThread(threading.Thread):
    """Probes each evicted target every ``sleeping`` seconds (or ``interval``, if that is less), and
    checks each other one every ``interval``, their checks spread over it.

    While no target is left it is awake at once, and probes more and more seldom, from 0.1 s up to
    0.5 s (or ``sleeping``, if that is less), since everybody waits. At most 64 checks run at once:
    whoever finds no room is next, in the order in which they were due.
    """

    def __init__(
        self,
        pool: TargetPool,
        check: Check,
        sleeping: float,
        *,
        interval: float | None = None,
        rise: int = 1,
        fall: int = 1,
    ) -> None:
        """``rise`` good checks in a row restore a target, ``fall`` bad ones evict it. ``interval``
        None: only evicted ones are looked at. With ``by_hand`` set before the start, nothing is
        checked but by ``probe``."""
        super().__init__(name="pyproxy-recovery", daemon=True)
        self.by_hand = False
        self._pool = pool
        self._check = check
        self._interval = interval
        self._pause = min(sleeping, interval or sleeping)
        self._rise, self._fall = rise, fall
        # Protects the fields below; notified when a target changes state, or at the end.
        self._changed = threading.Condition()
        self._stopping = False
        self._checking: set[Target] = set()
        # When each target is due, and whether it was evicted when that was planned.
        self._due: dict[Target, tuple[float, bool]] = {}
        self._soon = _SOONEST
        self._nobody_since = math.inf  # or since the last round of probes
        # Of each target: its results in a row, positive for good ones.
        self._rows: Counter[Target] = Counter()

    def _notice(self, target: Target, verb: str, reason: str) -> None:
        with self._changed:
            self._rows.pop(target, None)
            self._changed.notify()

    def start(self) -> None:
        self._pool.watch(self._notice)
        if not self.by_hand:
            super().start()

    def probe(self) -> None:
        """Checks all that it looks after, one after another in the order of the settings, now and
        in this thread, whatever is due when. Returns when they are restored, or not."""
        for target in self._watched():
            self._run_check(target)

    def run(self) -> None:
        while True:
            due = self._wait()
            if self._stopping:
                return
            for target in due:
                self._start_check(target)

    def _wait(self) -> list[Target]:
        """Those whose check is due now; waits until there are some, or for the end."""
        with self._changed:
            while not self._stopping:
                now = time.monotonic()
                self._plan(now)
                first = min((at for at, _ in self._due.values()), default=math.inf)
                urgent = self._urgent(now)
                left = min(first, urgent) - now
                if left <= 0:
                    if due := self._take_due(now, urgent <= now):
                        return due
                    left = _ROOM
                self._changed.wait(None if left == math.inf else left)
        return []

    def _plan(self, now: float) -> None:
        """Keeps what is planned for targets that are as they were, and plans the others."""
        old, self._due = self._due, {}
        watched = self._watched()
        for at, target in enumerate(watched):
            planned = old.get(target)
            if planned and planned[1] == target.evicted:
                self._due[target] = planned
            elif target.evicted or not self._interval:
                self._due[target] = (now + self._pause, True)
            else:
                self._due[target] = (now + self._interval * (at + 1) / len(watched), False)

    def _watched(self) -> list[Target]:
        return [
            one
            for one in self._pool.targets
            if (one.evicted or self._interval) and one.wanted is not State.MAINTENANCE
        ]

    def _urgent(self, now: float) -> float:
        """When all evicted ones are to be probed, since nobody is left."""
        if self._pool.live or not self._due:
            self._nobody_since, self._soon = math.inf, _SOONEST
            return math.inf
        self._nobody_since = min(self._nobody_since, now)
        return self._nobody_since + min(self._soon, self._pause)

    def _take_due(self, now: float, urgent: bool) -> list[Target]:
        if urgent:
            self._nobody_since = now
            self._soon = min(self._soon * 2, _LATEST)
        due = [
            (at, one) for one, (at, _) in self._due.items() if at <= now or (urgent and one.evicted)
        ]
        due.sort(key=itemgetter(0))
        taken: list[Target] = []
        for _, target in due:
            if target not in self._checking:
                if len(self._checking) + len(taken) == _MOST_CHECKS:
                    continue
                taken.append(target)
            pause = self._pause if target.evicted else self._interval or self._pause
            self._due[target] = (now + pause, target.evicted)
        return taken

    def _start_check(self, target: Target) -> None:
        with self._changed:
            if self._stopping:
                return
            self._checking.add(target)
        name = f"pyproxy-check-{target.host}:{target.port}"
        thread = threading.Thread(target=self._run_check, args=(target,), name=name, daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # the system gives no more threads now: it is tried again
            log.error("can't check %s: %s", target.url, error)
            with self._changed:
                self._checking.discard(target)

    def _run_check(self, target: Target) -> None:
        try:
            self._judge(target, True, self._check(target))
        except CantLook as failure:
            log.error("can't check %s: %s", target.url, failure)
        except CheckFailed as failure:
            self._judge(target, False, str(failure))
        finally:
            with self._changed:
                self._checking.discard(target)
                if target not in self._pool.targets:  # it has gone meanwhile
                    self._rows.pop(target, None)

    def _judge(self, target: Target, good: bool, said: str) -> None:
        log.debug("check of %s: %s", target.url, said)
        with self._changed:
            row = self._rows[target]
            self._rows[target] = row = max(row, 0) + 1 if good else min(row, 0) - 1
            if self._stopping:
                return
        if target.evicted and row >= self._rise:
            self._pool.restore(target, said, time.monotonic())
        elif not target.evicted and -row >= self._fall and self._interval:
            self._pool.evict(target, f"check: {said}", "check")

    def stop(self) -> None:
        """Ends the thread. A check that hangs ends by its own time-out, and changes nothing."""
        self._pool.unwatch(self._notice)
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self.ident is not None:
            self.join()
