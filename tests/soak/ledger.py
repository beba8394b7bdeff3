"""What was done to the proxy, and what came of it. Any thread may write."""

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

AFTER = 1.0  # seconds for which a fault that is over excuses what begins


@dataclass
class Fault:
    kind: str
    target: str | None  # whose fault it is; None: of a process of the proxy, or of nobody
    begun: float = field(default_factory=time.monotonic)
    over: float | None = None

    def meets(self, since: float, until: float) -> bool:
        return self.begun <= until and (self.over is None or since <= self.over + AFTER)


class Ledger:
    def __init__(self) -> None:
        self._lock = threading.Lock()  # protects all of it
        self._faults: list[Fault] = []
        self._violations: list[tuple[float, str]] = []
        self.counts: Counter[str] = Counter()
        self.begun = time.monotonic()

    def begin(self, kind: str, target: str | None = None) -> Fault:
        fault = Fault(kind, target)
        with self._lock:
            self._faults.append(fault)
        return fault

    def end(self, fault: Fault) -> None:
        fault.over = time.monotonic()

    def count(self, what: str) -> None:
        with self._lock:
            self.counts[what] += 1

    def violate(self, what: str) -> None:
        """Something that must not be."""
        with self._lock:
            self._violations.append((time.monotonic(), what))

    @property
    def violations(self) -> list[str]:
        with self._lock:
            return [f"{at - self.begun:.2f} s: {what}" for at, what in self._violations]

    def killed(self, since: float) -> bool:
        """Whether a process of the proxy was killed from then on: what it held is lost with it."""
        return self._any(since, lambda fault: fault.kind == "worker killed")

    def faulty(self, since: float, target: str | None = None) -> bool:
        """Whether this target (None: any) was at fault from then on."""

        def its(fault: Fault) -> bool:
            return fault.target is not None and target in (None, fault.target)

        return self._any(since, its)

    def _any(self, since: float, wanted: Callable[[Fault], bool]) -> bool:
        now = time.monotonic()
        with self._lock:
            return any(wanted(one) and one.meets(since, now) for one in self._faults)

    def survived(self) -> dict[str, tuple[int, int]]:
        """Of each kind of fault: how often it was injected, and how often nothing went wrong from
        its begin to shortly after its end."""
        found: dict[str, tuple[int, int]] = {}
        with self._lock:
            for one in self._faults:
                over = (one.over or time.monotonic()) + AFTER
                fine = not any(one.begun <= at <= over for at, _ in self._violations)
                injected, survived = found.get(one.kind, (0, 0))
                found[one.kind] = injected + 1, survived + fine
        return dict(sorted(found.items()))

    def log(self) -> str:
        """All faults, one a line, for who looks for a reason."""
        with self._lock:
            return "".join(
                f"{one.begun - self.begun:8.2f} {(one.over or 0) - self.begun:8.2f} {one.kind}"
                f" {one.target or ''}\n"
                for one in self._faults
            )
