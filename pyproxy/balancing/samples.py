"""Samples: what had been counted at one time, so that two of them tell what happened between."""

from pyproxy.balancing.counters import ACCEPTED, Totals

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

    def tried(self, name: Name) -> int:
        """Answers, and failures without one."""
        return self.requests(name) + self.unanswered(name)

    def errors(self, name: Name) -> int:
        """Answers from 500 on, and failures without an answer."""
        bad = sum(count for code, count in self.codes.get(name, {}).items() if code >= "500")
        return bad + self.unanswered(name)
