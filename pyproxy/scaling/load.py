"""Load: what the autoscaler looks at, and what it has decided."""

import importlib
import logging
import time
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from pyproxy.balancing.counters import Totals
from pyproxy.balancing.samples import Sample
from pyproxy.scaling.autoscaler import Signals, State, decide
from pyproxy.scaling_settings import Scaling

log = logging.getLogger(__name__)


class Load:
    """Of one pool. ``look`` and ``decide`` are for one thread; the rest may be called by any."""

    KEPT = 50  # decisions

    def __init__(self, pool: str) -> None:
        self._pool = pool
        self._state = State()
        self._before: Sample | None = None
        self._times: dict[str, float] = {}  # processor time, by target
        self._machine: Any = None  # psutil, once it has been asked
        self.signals: Signals | None = None
        self.decisions: deque[dict[str, Any]] = deque(maxlen=self.KEPT)

    def look(
        self,
        totals: Totals,
        urls: Iterable[str],
        targets: int,
        coming: int,
        in_flight: int,
        times: Mapping[str, float | None],
        others: int = 0,
        machine: bool = False,
    ) -> Signals | None:
        """What there is since the look before; None the first time. ``urls`` are of all targets of
        the pool, ``times`` the processor time of each that is managed; ``others`` is how many serve
        that aren't; ``machine``: this machine's processors stand for theirs."""
        before, now = self._before, Sample(time.monotonic(), totals)
        self._before = now
        cpu = self._cpu(times, now.now - before.now, machine) if before else None
        self._times = {name: used for name, used in times.items() if used is not None}
        if before is None:
            return None
        answers = micros = 0
        for url in urls:
            name = (self._pool, url)
            after, earlier = now.times.get(name), before.times.get(name)
            if after:
                earlier = earlier or [0] * len(after)
                answers += sum(after[:-1]) - sum(earlier[:-1])
                micros += after[-1] - earlier[-1]
        self.signals = Signals(
            targets=targets,
            coming=coming,
            rate=round(answers / max(now.now - before.now, 0.001), 3),
            response_time=round(micros / 1e6 / answers, 6) if answers > 0 else None,
            in_flight=round(in_flight / targets, 3) if targets else float(in_flight),
            cpu=cpu,
            others=others,
        )
        return self.signals

    def _cpu(
        self, times: Mapping[str, float | None], seconds: float, machine: bool
    ) -> float | None:
        """Of the targets, or of the whole machine if their launcher can't tell."""
        used = [
            max(now - self._times[name], 0.0)  # not all that has ended is known to all systems
            for name, now in times.items()
            if now is not None and name in self._times
        ]
        if used:
            return round(100 * sum(used) / len(used) / max(seconds, 0.001), 1)
        if not machine and all(one is not None for one in times.values()):
            return None  # all of them are new, or there are none
        if self._machine is None:
            try:
                self._machine = importlib.import_module("psutil")
            except ImportError:
                log.warning(
                    "scaling: CPU doesn't count, that takes psutil:"
                    " pip install 'pyproxy-lb[scaling]'"
                )
                self._machine = False
        return float(self._machine.cpu_percent()) if self._machine else None

    def decide(self, rules: Scaling, seen: Signals, wanted: int) -> int:
        """How many targets there shall be, if so many were wanted before. It isn't ever more when
        those that are wanted can't be had."""
        decision, self._state = decide(rules, seen, self._state, time.monotonic())
        then = seen.targets + seen.coming + decision.change
        after = wanted
        if decision.change:
            after = max(wanted, then) if decision.change > 0 else min(wanted, then)
        return self.note(wanted, after, decision.reason)

    def note(self, before: int, after: int, reason: str) -> int:
        """Keeps a decision, if it is one."""
        if after != before:
            log.info("scaling %s: %d -> %d: %s", self._pool, before, after, reason)
            told = {"at": time.time(), "from": before, "to": after, "reason": reason}
            self.decisions.append(told)
        return after

    def describe(self) -> dict[str, Any]:
        """In JSON's terms."""
        return {
            "signals": asdict(self.signals) if self.signals else None,
            "decisions": list(self.decisions),
        }
