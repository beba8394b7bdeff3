"""Status: what is there, with what has been counted of it; as the admin API tells it."""

import threading
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

from pyproxy.balancing.counters import ACCEPTED, TIMES, Totals, quantile
from pyproxy.control.control import Verbs

_WINDOW = 60.0  # seconds that quantiles and rates are of
_APART = 0.5  # seconds between samples, at least

Name = tuple[str, str]  # pool and URL; empty for what the proxy answers by itself


class Sample:
    """What had been counted at one time, of each target."""

    def __init__(self, now: float, totals: Totals) -> None:
        self.now = now
        self.accepted = totals.get(ACCEPTED, [0])[0]
        self.times: dict[Name, list[int]] = {}
        self.codes: dict[Name, dict[str, int]] = {}
        self.happened: dict[str, dict[Name, dict[str, int]]] = {
            what: {} for what in ("failures", "retries", "evictions")
        }
        for (what, pool, url, *rest), values in totals.items():
            if what == "times":
                self.times[pool, url] = values
            elif what == "answers":
                codes = self.codes.setdefault((pool, url), {})
                codes[rest[1]] = codes.get(rest[1], 0) + values[0]
            elif what in self.happened:
                self.happened[what].setdefault((pool, url), {})[rest[0]] = values[0]

    def requests(self, name: Name) -> int:
        """Answers of a target, or connections in TCP mode; what the proxy has answered itself."""
        times = self.times.get(name)
        return sum(times[:-1]) if times else sum(self.codes.get(name, {}).values())

    def unanswered(self, name: Name) -> int:
        failures = self.happened["failures"].get(name, {})
        return sum(count for kind, count in failures.items() if kind != "status")

    def errors(self, name: Name) -> int:
        """Answers from 500 on, and failures without an answer."""
        bad = sum(count for code, count in self.codes.get(name, {}).items() if code >= "500")
        return bad + self.unanswered(name)


class Status:
    """Call it for a status. Rates and quantiles are of the last minute; of the time since the call
    before, if that is longer ago. May be called from any thread."""

    def __init__(self, verbs: Verbs) -> None:
        self._verbs = verbs
        # Protects the samples, the oldest first.
        self._lock = threading.Lock()
        self._samples: deque[Sample] = deque([Sample(time.monotonic(), verbs.totals())])

    def __call__(self) -> dict[str, Any]:
        found = self._verbs.snapshot()
        sample, before = self._sample()
        seconds = max(sample.now - before.now, 0.001)
        for pool in found["pools"]:
            for target in pool["targets"]:
                target |= self._counted((pool["name"], target["url"]), sample, before, seconds)
        names = sample.times.keys() | sample.codes.keys()
        found["connections"]["accepted"] = sample.accepted
        found["requests"] = sum(map(sample.requests, names))
        found["own_answers"] = sample.codes.get(("", ""), {})
        found["now"] = time.time()
        found["window"] = round(seconds, 3)
        return found

    def _sample(self) -> tuple[Sample, Sample]:
        """One of now, and the oldest of the window."""
        sample = Sample(time.monotonic(), self._verbs.totals())
        with self._lock:
            samples = self._samples
            while len(samples) > 1 and samples[0].now < sample.now - _WINDOW:
                samples.popleft()
            before = samples[0]
            if sample.now - samples[-1].now >= _APART:
                samples.append(sample)
        return sample, before

    def _counted(
        self, name: Name, sample: Sample, before: Sample, seconds: float
    ) -> Mapping[str, Any]:
        nothing = [0] * TIMES
        times = [
            max(a - b, 0)
            for a, b in zip(
                sample.times.get(name, nothing), before.times.get(name, nothing), strict=True
            )
        ]
        count = sum(times[:-1])
        errors = sample.errors(name) - before.errors(name)
        tried = count + sample.unanswered(name) - before.unanswered(name)
        return {
            "requests": sample.requests(name),
            "failures": sum(sample.happened["failures"].get(name, {}).values()),
            "failures_by_reason": sample.happened["failures"].get(name, {}),
            "retries": sum(sample.happened["retries"].get(name, {}).values()),
            "evictions": sum(sample.happened["evictions"].get(name, {}).values()),
            "statuses": sample.codes.get(name, {}),
            "per_second": round(count / seconds, 3),
            "error_rate": round(errors / tried, 4) if tried > 0 else 0.0,
            "response_time": {
                "average": round(times[-1] / 1e6 / count, 6) if count else None,
                **{f"p{share}": _rounded(quantile(times, share / 100)) for share in (50, 90, 99)},
            },
        }


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)
