"""Status: what is there, with what has been counted of it; as the admin API tells it."""

import threading
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

from pyproxy.balancing.counters import TIMES, quantile
from pyproxy.balancing.samples import Name, Sample
from pyproxy.control.control import Verbs

_WINDOW = 60.0  # seconds that quantiles and rates are of
_APART = 0.5  # seconds between samples, at least


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
