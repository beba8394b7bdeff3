"""What ``python -m pyproxy simulate`` is told, and what it shows: a table, JSON, a plot."""

import functools
import importlib.util
import json
import logging
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pyproxy.balancing.policies import POLICIES, PolicyChoice, policy
from pyproxy.errors import PyproxyError, SettingsError
from pyproxy.lab.simulation import Fault, Progress, Result, Scenario, Simulation
from pyproxy.lab.workload import Job, Service, drawn, read_log, replayed
from pyproxy.readers import Text, duration, number, parts, whole

# Each that is no other name for another one, and makes sense without a limit.
EVERY_POLICY = tuple(name for name in POLICIES if name not in ("round_robin", "first"))

T = TypeVar("T")


class PlotError(PyproxyError):
    """A plot can't be made; the text says why."""


@dataclass(frozen=True)
class Said:
    """What was said on the command line, as it was said."""

    targets: int = 5
    service: str | None = None
    at_once: int = 1
    load: float | None = None
    rate: float | None = None
    requests: int | None = None
    policy: tuple[str, ...] = ()
    speed: tuple[str, ...] = ()
    weight: tuple[str, ...] = ()
    down: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()
    slow: tuple[str, ...] = ()
    remove: tuple[str, ...] = ()
    keys: int | None = None
    zipf: float | None = None
    proxies: int = 1
    in_step: bool = False
    share: str | None = None
    max_fails: int = 1
    sleeping: str = "10s"
    attempts: int = 5
    retry_errors: bool = False
    timeout: str = "60s"
    slow_start: str | None = None
    max_connections: int | None = None
    queue_size: int = 1000
    queue_timeout: str = "10s"
    warm_up: str | None = None
    log: Path | None = None
    faster: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Plan:
    """A scenario, in which each of several policies is tried."""

    scenario: Scenario
    policies: tuple[tuple[str, PolicyChoice], ...]
    requests: int
    story: str  # a line about it

    def run(self, progress: Callable[[str, float], None] | None = None) -> Iterator[Result]:
        """The result of each policy. ``progress`` hears its name and which share of the requests
        has come."""
        quiet = logging.getLogger("pyproxy.balancing.pool")
        level = quiet.level
        quiet.setLevel(logging.CRITICAL)  # each eviction is in the results
        try:
            for name, choice in self.policies:
                hear: Progress | None = None
                if progress:
                    hear = functools.partial(_hear, progress, name, self.requests)
                yield Simulation(self.scenario, choice, name).run(hear)
        finally:
            quiet.setLevel(level)


def _hear(progress: Callable[[str, float], None], name: str, all: int, count: int) -> None:
    progress(name, count / all)


@dataclass(frozen=True)
class _Coming:
    """Who comes, and what they take on the average."""

    jobs: Callable[[], Iterator[Job]]
    count: int
    service_mean: float
    story: str


def plan(said: Said) -> Plan:
    """Raises ``SettingsError``."""
    for option in ("load", "rate", "zipf", "faster"):
        if not math.isfinite(getattr(said, option) or 0.0):
            raise SettingsError([f"--{option}: expected a number"])
    if said.faster != 1 and not said.log:
        raise SettingsError(["--faster: only with --log; --load or --rate say how many come else"])
    if said.proxies == 1 and (said.in_step or said.share):
        raise SettingsError(["--in-step, --share: only with --proxies above 1"])
    speeds = _each(said, "speed", number(0, 1e9, above=True))
    coming = _logged(said, said.log) if said.log else _drawn(said, speeds)
    scenario = Scenario(
        targets=said.targets,
        service_mean=coming.service_mean,
        jobs=coming.jobs,
        at_once=said.at_once,
        speeds=speeds,
        weights=_each(said, "weight", whole(1, 256)),
        faults=tuple(_faults(said)),
        removed=tuple(_removed(said)),
        proxies=said.proxies,
        in_step=said.in_step,
        share=_time("--share", said.share) if said.share else None,
        max_fails=said.max_fails,
        sleeping=_time("--sleeping", said.sleeping),
        attempts=said.attempts,
        retry_errors=said.retry_errors,
        timeout=_time("--timeout", said.timeout),
        slow_start=_time("--slow-start", said.slow_start) if said.slow_start else 0.0,
        max_connections=said.max_connections,
        queue_size=said.queue_size,
        queue_timeout=_time("--queue-timeout", said.queue_timeout),
        warm_up=_time("--warm-up", said.warm_up) if said.warm_up else 0.0,
        seed=said.seed,
    )
    every = (*EVERY_POLICY, *["first"] * bool(said.max_connections))
    policies = tuple(_policies(said.policy or every))
    many = f"{said.proxies} proxies, " if said.proxies > 1 else ""
    targets = f"{said.targets:,} targets" if said.targets > 1 else "1 target"
    return Plan(scenario, policies, coming.count, f"{many}{targets}, {coming.story}")


def _drawn(said: Said, speeds: dict[int, float]) -> _Coming:
    if said.load is not None and said.rate is not None:
        raise SettingsError(["--load, --rate: say one of them"])
    service = _read("--service", _service, said.service or "exponential:100ms")
    capacity = said.at_once * sum(speeds.get(at, 1.0) for at in range(said.targets)) / service.mean
    rate = said.rate if said.rate is not None else (said.load or 0.7) * capacity
    count = said.requests or 100_000
    return _Coming(
        functools.partial(
            drawn, rate, count, service, said.keys or 10_000, said.zipf or 0.0, said.seed
        ),
        count,
        service.mean,
        f"{service}, {count:,} requests, {_rate(rate)} a second (load {rate / capacity:.2f})",
    )


def _logged(said: Said, path: Path) -> _Coming:
    if any(one is not None for one in (said.load, said.rate, said.requests, said.keys, said.zipf)):
        raise SettingsError(
            ["--log: it says who comes when: leave out --load, --rate, --requests, --keys, --zipf"]
        )
    service = _read("--service", _service, said.service) if said.service else None
    visits = read_log(path, said.faster)
    count = len(visits)
    mean = service.mean if service else sum(one.seconds or 0.0 for one in visits) / count
    if not mean:
        raise SettingsError(
            [f"--log: {path}: it doesn't tell how long requests took: say --service"]
        )
    told = (
        "times as logged"
        if all(one.seconds is not None for one in visits)
        else ("times as logged, where they are")
    )
    rate = count / (visits[-1].arrived or 1.0)
    return _Coming(
        functools.partial(replayed, visits, service, said.seed),
        count,
        mean,
        f"{service or told}, {count:,} requests of {path.name}, {_rate(rate)} a second",
    )


def _rate(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 1000 else f"{rate:.4g}"


def _read(option: str, read: Callable[[str], T], text: str) -> T:
    try:
        return read(text)
    except ValueError as error:
        found = [f'{option}: "{text}"{path}: {said}' for path, said in parts(error)]
        raise SettingsError(found) from None


def _time(option: str, text: str) -> float:
    return _read(option, lambda said: duration(Text(said)), text)


def _service(text: str) -> Service:
    kind, _, rest = text.partition(":")
    numbers = rest.split(":") if rest else []
    if kind in ("constant", "exponential") and len(numbers) == 1:
        return Service(kind, duration(Text(numbers[0])))
    if kind == "uniform" and len(numbers) == 2:
        least, most = (duration(Text(one)) for one in numbers)
        if least > most:
            raise ValueError("the first of the two is to be the smaller")
        return Service(kind, (least + most) / 2, (most - least) / 2)
    if kind == "lognormal" and len(numbers) == 2:
        return Service(kind, duration(Text(numbers[0])), number(0, 5, above=True)(Text(numbers[1])))
    if kind == "pareto" and len(numbers) == 2:
        return Service(kind, duration(Text(numbers[0])), number(1, above=True)(Text(numbers[1])))
    raise ValueError(
        "expected constant:TIME, exponential:MEAN, uniform:FROM:TO, lognormal:MEAN:SIGMA or "
        "pareto:MEAN:ALPHA, like exponential:100ms"
    )


def _who(text: str, count: int) -> Iterable[int]:
    """Places of targets: "3", or "2-4"; the first is 1."""
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
    if not match:
        raise ValueError("expected the number of a target, like 3, or 2-4")
    first, last = int(match[1]), int(match[2] or match[1])
    if not 1 <= first <= last <= count:
        raise ValueError(f"expected targets from 1 to {count}, as there are")
    return range(first - 1, last)


def _each(said: Said, name: str, read: Callable[[Any], T]) -> dict[int, T]:
    """WHO:VALUE"""
    found: dict[int, T] = {}

    def one(text: str) -> None:
        who, _, value = text.partition(":")
        for at in _who(who, said.targets):
            found[at] = read(Text(value))

    for text in getattr(said, name):
        _read(f"--{name}", one, text)
    return found


def _moment(text: str) -> float:
    return 0.0 if text in ("0", "0s") else duration(Text(text))


def _window(text: str) -> tuple[float, float]:
    begin, dash, end = text.partition("-")
    window = _moment(begin), duration(Text(end)) if dash else math.inf
    if window[0] >= window[1]:
        raise ValueError("it ends before it begins")
    return window


def _faults(said: Said) -> Iterator[Fault]:
    """WHO@FROM-TO, or WHO@FROM for good; of ``slow`` WHO:FACTOR@FROM-TO."""
    for kind in ("down", "errors", "slow"):

        def read(text: str, kind: str = kind) -> list[Fault]:
            who, _, when = text.partition("@")
            factor = 1.0
            if kind == "slow":
                who, _, times = who.partition(":")
                factor = number(0, above=True)(Text(times))
            begin, end = _window(when)
            return [Fault(kind, at, begin, end, factor) for at in _who(who, said.targets)]

        for text in getattr(said, kind):
            yield from _read(f"--{kind}", read, text)


def _removed(said: Said) -> Iterator[tuple[int, float]]:
    def read(text: str) -> list[tuple[int, float]]:
        who, _, when = text.partition("@")
        moment = _moment(when)
        return [(at, moment) for at in _who(who, said.targets)]

    for text in said.remove:
        yield from _read("--remove", read, text)


def _policies(said: Iterable[str]) -> Iterator[tuple[str, PolicyChoice]]:
    """Names, several with commas between them, or JSON objects."""
    for text in said:
        if "{" in text.lstrip()[1:] and not text.lstrip().startswith("{"):
            raise SettingsError([f"--policy: {text}: an object needs a --policy of its own"])
        for one in [text] if text.lstrip().startswith("{") else text.split(","):
            choice = _read("--policy", _policy, one.strip())
            options = " ".join(f"{key}={value}" for key, value in choice.options)
            yield f"{choice.name} {options}".strip(), choice


def _policy(text: str) -> PolicyChoice:
    if text.startswith("{"):
        try:
            json.loads(text)
        except ValueError as error:
            raise ValueError(f"this is no JSON object: {error}") from None
    return policy(Text(text))


COLUMNS = (
    *("policy", "p50", "p99", "p99.9", "mean", "imbalance", "peak", "moved", "evictions"),
    *("retries", "errors", "lost"),
)


def table(results: Sequence[Result]) -> list[str]:
    """Lines; the names on the left, numbers on the right of their columns."""
    rows = [COLUMNS, *(_row(result) for result in results)]
    widths = [max(len(row[at]) for row in rows) for at in range(len(COLUMNS))]
    return [
        "  ".join([row[0].ljust(widths[0]), *(map(str.rjust, row[1:], widths[1:]))]) for row in rows
    ]


def _row(result: Result) -> tuple[str, ...]:
    moved = result.moved / result.repeated if result.repeated else 0.0
    return (
        result.policy,
        *(_shown(result.quantile(share)) for share in (0.5, 0.99, 0.999)),
        _shown(result.mean),
        "-" if result.imbalance is None else f"{result.imbalance:.2f}",
        f"{max(result.peaks):,}",
        f"{moved:.1%}",
        f"{result.evictions:,}",
        f"{result.retries:,}",
        f"{result.errors:,}",
        f"{result.lost:,}",
    )


def _shown(seconds: float | None) -> str:
    """Three digits, with the unit."""
    if seconds is None:
        return "-"
    value, unit = (seconds, "s") if seconds >= 0.9995 else (seconds * 1000, "ms")
    return f"{value:#.3g}".rstrip(".") + f" {unit}" if value >= 0.001 else f"0 {unit}"


def as_json(plan: Plan, results: Sequence[Result]) -> str:
    """Times in seconds, null where nothing was answered."""
    found = {
        "scenario": plan.story,
        "seed": plan.scenario.seed,
        "policies": [
            {
                "policy": one.policy,
                **{
                    name: getattr(one, name)
                    for name in ("requests", "answered", "errors", "lost", "retries", "evictions")
                },
                "restored": one.restored,
                "p50": one.quantile(0.5),
                "p99": one.quantile(0.99),
                "p99.9": one.quantile(0.999),
                "mean": one.mean,
                "imbalance": one.imbalance,
                "peak": max(one.peaks),
                "moved": one.moved / one.repeated if one.repeated else 0.0,
                "seconds": one.seconds,
                "served": one.served,
            }
            for one in results
        ],
    }
    return json.dumps(found)


def check_plot(path: Path) -> None:
    """Before the work is done. Raises ``PlotError``."""
    if importlib.util.find_spec("matplotlib") is None:
        raise PlotError("--plot needs the package matplotlib: pip install 'pyproxy-lb[plots]'")
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise PlotError(f"--plot: {path}: expected a name that ends with .png, .svg or .pdf")
    if not path.absolute().parent.is_dir():
        raise PlotError(f"--plot: {path}: there is no such folder")


POINTS = 60  # of a line
PARTS = 40  # of the time


def plot(plan: Plan, results: Sequence[Result], path: Path) -> None:
    """Three pictures side by side: which share of the answers took longer than so long; the slow
    ones (p99) over time; the answers of each target. Raises ``PlotError``."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "pyproxy", "font.size": 9})
    from matplotlib import pyplot

    figure, (tail, time, share) = pyplot.subplots(1, 3, figsize=(13, 4), layout="constrained")
    for result in results:
        if result.times:
            tail.plot(*_tail(result.sorted_times), label=result.policy)
            time.plot(*_over_time(result))
            each = sorted(result.served, reverse=True)
            step = max(len(each) // POINTS, 1)
            share.plot(
                range(1, len(each) + 1, step), each[::step], marker="." if len(each) <= 20 else ""
            )
    tail.set(xscale="log", yscale="log", xlabel="seconds", ylabel="share that took longer")
    time.set(yscale="log", xlabel="seconds since the start", ylabel="99 % took less, in seconds")
    share.set(ylim=(0, None), xlabel="targets, the busiest first", ylabel="answers")
    tail.minorticks_off()
    figure.legend(loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle(plan.story, fontsize=10)
    try:
        figure.savefig(path, dpi=90, metadata={"Date": None} if path.suffix == ".svg" else None)
    except OSError as error:
        said = (error.strerror or "cannot be written").lower()
        raise PlotError(f"--plot: {path}: {said}") from None
    finally:
        pyplot.close(figure)


def _tail(times: list[float]) -> tuple[list[float], list[float]]:
    """Points at even steps of the logarithm of the share, without the quickest tenth."""
    count = len(times)
    shares = [0.9 * count ** -(step / POINTS) for step in range(POINTS + 1)]
    places = sorted({min(max(math.ceil(count * (1 - share)), 0), count - 1) for share in shares})
    return [times[at] for at in places], [(count - at) / count for at in places]


def _over_time(result: Result) -> tuple[list[float], list[float]]:
    """The 99 % quantile of those who came in each part of the time."""
    width = max(result.arrived) / PARTS or 1.0
    found: list[list[float]] = [[] for _ in range(PARTS + 1)]
    for arrived, seconds in zip(result.arrived, result.times, strict=True):
        found[int(arrived / width)].append(seconds)
    points = [
        ((at + 0.5) * width, sorted(some)[math.ceil(0.99 * len(some)) - 1])
        for at, some in enumerate(found[:PARTS])
        if some
    ]
    return [at for at, _ in points], [seconds for _, seconds in points]
