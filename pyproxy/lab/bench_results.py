"""What a run of `bench` is asked for, what was measured, and how it is told.

Plan                the load, and what serves it
Run, Second, Mark   what was measured, while it goes on and after
Thresholds          what each run must keep to
table, as_json      all runs side by side
"""

import contextlib
import math
import os
import platform
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

BASE = 1.02  # bench_load.BASE
QUANTILES = (0.5, 0.9, 0.99)
SHORT = 0.5  # seconds: what is less at the end counts to the second before


@dataclass(frozen=True)
class Plan:
    """What is asked for. Times are seconds; ``at`` and ``restore`` since the load began."""

    url: str = ""  # of something that runs; or
    targets: tuple[int, ...] = ()  # how many of our own, one run for each number
    command: tuple[str, ...] = ()  # that starts one, {port} in it; else our own target
    delay: float = 0.0
    at_once: int = 1
    policy: str = ""  # as the settings say
    config: Path | None = None  # the proxy's settings, but for where it listens and its targets
    path: str = "/"
    users: int = 10
    spawn_rate: float | None = None  # None: all at once
    duration: float = 10.0
    pause: float = 0.0
    locustfile: Path | None = None
    kill: tuple[int, ...] = ()  # from 1
    at: float = 0.0
    restore: float | None = None
    admin: str = ""  # of the proxy at ``url``
    credentials: tuple[str, str] | None = None  # for it

    def described(self) -> str:
        paused = f"pauses of {self.pause:g} s" if self.pause else "without pauses"
        loop = f"by {self.locustfile.name}" if self.locustfile else f"closed loop, {paused}"
        users = "1 user" if self.users == 1 else f"{self.users} users"
        served = ""
        if self.targets:
            at_once = f", {self.at_once} at once" if self.delay else ""
            own = f"delay {self.delay:g} s{at_once}" if self.delay else "without delay"
            served = f"; targets: {' '.join(self.command) or own}"
            served += f"; policy {self.policy}" if self.policy else ""
        return f"{users}, {loop}, {self.duration:g} s{served}"


# What was measured


@dataclass
class Second:
    """What was counted since the one before. Response times are of what didn't fail."""

    at: float  # its end, in seconds since the load began
    length: float
    users: int
    times: dict[str, Counter[int]]  # a request's name -> bucket of its response time -> count
    failed: Counter[str]
    targets: Counter[str]
    raised: int
    total: float  # ms
    most: float  # ms
    by_proxy: Counter[str] = field(default_factory=Counter)  # targets, as a proxy has counted

    def buckets(self) -> Counter[int]:
        return sum(self.times.values(), Counter())

    @property
    def requests(self) -> int:
        return self.answered + self.failures

    @property
    def answered(self) -> int:
        return self.buckets().total()

    @property
    def names(self) -> dict[str, Counter[int]]:
        """``times``, in order, with those of which all failed."""
        known = sorted({*self.times, *self.failed})
        return {name: self.times.get(name, Counter()) for name in known}

    @property
    def failures(self) -> int:
        return self.failed.total()

    def quantile(self, share: float) -> float:
        return quantile(self.buckets(), share, self.most)

    def add(self, other: "Second") -> None:
        for name, counts in other.times.items():
            self.times.setdefault(name, Counter()).update(counts)
        self.failed.update(other.failed)
        self.targets.update(other.targets)
        self.by_proxy.update(other.by_proxy)
        self.at, self.length = other.at, self.length + other.length
        self.raised += other.raised
        self.total += other.total
        self.most = max(self.most, other.most)


def quantile(buckets: Mapping[int, int], share: float, most: float = math.inf) -> float:
    """The time, in ms, within which this share of the requests was answered; NaN if there was
    none. Right to 1 %."""
    left = math.ceil(sum(buckets.values()) * share)
    for bucket, count in sorted(buckets.items()):
        left -= count
        if left <= 0:
            return min(BASE**bucket, most)
    return math.nan


@dataclass(frozen=True)
class Mark:
    """Something that happened to a target."""

    at: float  # seconds since the load began
    target: str
    what: str  # killed, started, evicted, restored, …


@dataclass
class Run:
    """One load, while it goes on and after."""

    title: str
    url: str
    plan: Plan
    targets: list[str] = field(default_factory=list)
    began: float = 0.0  # time.time(); 0: not yet
    seconds: list[Second] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    stopped: bool = False

    def add(self, said: dict[str, Any]) -> None:
        """A line of bench_load.py."""
        if "began" in said:
            self.began = said["began"]
            return
        at = said["at"] - self.began
        since = self.seconds[-1].at if self.seconds else 0.0
        second = Second(
            at,
            at - since,
            said["users"],
            {
                name: Counter({int(bucket): count for bucket, count in counts.items()})
                for name, counts in said["times"].items()
            },
            Counter(said["failed"]),
            Counter(said["targets"]),
            said["raised"],
            said["total"],
            said["most"],
        )
        self.errors.update(said["errors"])
        if second.length < SHORT and self.seconds:
            self.seconds[-1].add(second)
        else:
            self.seconds.append(second)

    def whole(self) -> Second:
        """All of it."""
        whole = Second(0, 0, 0, {}, Counter(), Counter(), 0, 0, 0)
        for second in self.seconds:
            whole.add(second)
        return whole

    def figures(self) -> dict[str, float]:
        """By name. ``per_second``, and times in ms, are of what didn't fail; NaN: of nothing."""
        whole = self.whole()
        buckets, count = whole.buckets(), whole.answered
        return {
            "requests": whole.requests,
            "failures": whole.failures,
            "exceptions": whole.raised,
            "duration": whole.length,
            "per_second": count / whole.length if whole.length else 0.0,
            "mean": whole.total / count if count else math.nan,
            **{f"p{share * 100:g}": quantile(buckets, share, whole.most) for share in QUANTILES},
            "max": whole.most if count else math.nan,
        }

    def served(self, second: Second) -> Counter[str]:
        """The requests of each target: as answers tell, or else as the proxy does."""
        told = any(one.targets for one in self.seconds)
        return second.targets if told else second.by_proxy

    def shares(self) -> dict[str, int]:
        """The same of the whole run, in order."""
        counted = self.served(self.whole())
        others = sorted(counted.keys() - set(self.targets))
        return {name: counted[name] for name in (*self.targets, *others)}


# Thresholds


@dataclass(frozen=True)
class Thresholds:
    """What each run must keep to. Times are seconds."""

    max_failures: int | None = None
    p50: float | None = None
    p90: float | None = None
    p99: float | None = None
    min_rate: float | None = None

    def broken(self, run: Run) -> list[str]:
        """What this run has failed, in words."""
        found = run.figures()
        lost = int(found["failures"] + found["exceptions"])
        said = [] if found["requests"] > found["failures"] else ["no request succeeded"]
        if self.max_failures is not None and lost > self.max_failures:
            said.append(f"{lost} failures, more than {self.max_failures}")
        for name in ("p50", "p90", "p99"):
            most = getattr(self, name)
            if most is not None and not found[name] <= most * 1000:
                said.append(f"{name} {shown_time(found[name])}, above {shown_time(most * 1000)}")
        if self.min_rate is not None and found["per_second"] < self.min_rate:
            said.append(f"{found['per_second']:.2f} requests a second, below {self.min_rate:g}")
        return [f"{run.title}: {one}" for one in said]


# How it is told


def shown_time(ms: float) -> str:
    if math.isnan(ms):
        return "-"
    if ms >= 1000:
        return f"{ms / 1000:.2f} s"
    return f"{ms:.1f} ms" if ms >= 1 else f"{ms * 1000:.0f} µs"


FIGURES = {
    "per_second": "requests/s",
    "requests": "requests",
    "failures": "failed",
    "mean": "mean",
    "p50": "p50",
    "p90": "p90",
    "p99": "p99",
    "max": "max",
}


def shown(name: str, value: float) -> str:
    """One of a run's figures."""
    if name == "per_second":
        return f"{value:,.2f}" if value < 100 else f"{value:,.0f}"
    if name in ("requests", "failures", "exceptions"):
        return f"{value:,.0f}"
    return shown_time(value)


def ratio(before: float, after: float) -> str:
    return f"x {after / before:.2f}" if before and not math.isnan(after / before) else ""


def progress(run: Run) -> str:
    """One line of how it goes just now."""
    if not run.seconds:
        return f"{run.title}: begins"
    last = run.seconds[-1]
    users = "1 user" if last.users == 1 else f"{last.users} users"
    return (
        f"{run.title}: {last.at:.0f} s, {users}, {last.answered / last.length:,.1f}"
        f" requests/s, p50 {shown_time(last.quantile(0.5))}, p99 {shown_time(last.quantile(0.99))},"
        f" {sum(second.failures for second in run.seconds)} failed"
    )


def table(runs: Sequence[Run]) -> list[str]:
    """All runs side by side, then what is of one of them."""
    lines = [f"{runs[0].plan.described()}", ""]
    compared = len(runs) > 1
    widths = [max(14, len(run.title) + 2) for run in runs]
    titles = zip(runs, widths, strict=True)
    lines.append(" " * 12 + "".join(f"{run.title:>{width}}" for run, width in titles))
    found = [run.figures() for run in runs]
    for name, title in FIGURES.items():
        cells = "".join(
            f"{shown(name, one[name]):>{width}}" for one, width in zip(found, widths, strict=True)
        )
        times = name not in ("failures",) and compared
        last = f"{ratio(found[0][name], found[-1][name]):>10}" if times else ""
        lines.append(f"{title:<12}{cells}{last}".rstrip())
    for run in runs:
        lines += _details(run, compared)
    return lines


def _details(run: Run, compared: bool) -> list[str]:
    lines = [""] + ([f"{run.title}:"] if compared else [])
    shares = run.shares()
    total = sum(shares.values())
    if total:
        lines += [f"{name:<28}{count:>9,} {count / total:>8.1%}" for name, count in shares.items()]
    else:
        lines.append("no target told who it was (X-Target), and no --admin was said")
    whole = run.whole()
    if len(whole.names) > 1:
        lines += ["", f"{'':<40}{'requests':>9}{'failed':>8}{'p50':>10}{'p99':>10}"]
        for name, buckets in whole.names.items():
            times = "".join(f"{shown_time(quantile(buckets, one)):>10}" for one in (0.5, 0.99))
            failed = whole.failed[name]
            lines.append(f"{name:<40}{buckets.total() + failed:>9,}{failed:>8,}{times}")
    lines += [f"{mark.at:6.2f} s  {mark.target} {mark.what}" for mark in run.marks]
    lines += [f"{count:>6,} x {error}" for error, count in run.errors.most_common(10)]
    return lines


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value


def as_json(runs: Sequence[Run], told: Mapping[str, Any]) -> dict[str, Any]:
    """All that is known, ``told`` first. Times are ms, but ``at`` and ``length`` seconds."""
    return {
        **told,
        "load": runs[0].plan.described(),
        "runs": [
            {
                "title": run.title,
                "url": run.url,
                "began": run.began,
                "stopped": run.stopped,
                **{name: _finite(value) for name, value in run.figures().items()},
                "targets": run.shares(),
                "marks": [vars(mark) for mark in run.marks],
                "errors": dict(run.errors.most_common()),
                "names": {
                    name: {
                        "requests": buckets.total() + whole.failed[name],
                        "failures": whole.failed[name],
                        **{f"p{q * 100:g}": _finite(quantile(buckets, q)) for q in QUANTILES},
                    }
                    for name, buckets in whole.names.items()
                },
                "seconds": [
                    {
                        "at": one.at,
                        "length": one.length,
                        "users": one.users,
                        "requests": one.requests,
                        "failures": one.failures,
                        **{f"p{q * 100:g}": _finite(one.quantile(q)) for q in QUANTILES},
                        "targets": dict(run.served(one)),
                    }
                    for one in run.seconds
                ],
            }
            for run, whole in ((run, run.whole()) for run in runs)
        ],
    }


def circumstances() -> dict[str, str]:
    """This machine, and the versions that matter."""
    versions = [f"pyproxy {metadata_of('pyproxy-lb')}", f"Python {platform.python_version()}"]
    versions.append(f"Locust {metadata_of('locust')}")
    load = f", load {os.getloadavg()[0]:.1f} before" if hasattr(os, "getloadavg") else ""
    return {
        "when": time.strftime("%Y-%m-%d %H:%M %Z"),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs{load}",
        "versions": ", ".join(versions),
    }


def metadata_of(name: str) -> str:
    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version(name)
    return "from its folder"
