"""Who comes when, and what it takes: the requests of a simulation, drawn or from an access log."""

import bisect
import itertools
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from pyproxy.balancing.pool import Place
from pyproxy.balancing.target import Target
from pyproxy.errors import SettingsError


class Job:
    """A request, as policies and a simulation know it. Times are in simulated seconds; ``size`` is
    what a target of speed 1 takes for it."""

    __slots__ = (
        *("address", "arrived", "attempts", "key", "method", "number", "place", "proxy"),
        *("size", "started", "state", "target", "tried", "uri"),
    )

    def __init__(
        self, arrived: float, size: float, address: str, uri: str, key: str | None, method: str
    ) -> None:
        self.number = -1
        self.method = method
        self.uri = uri
        self.address = address
        self.key = key  # what header, cookie and parameter of any name say
        self.arrived = arrived
        self.size = size
        self.proxy = 0
        self.attempts = 0
        self.tried: tuple[Target, ...] = ()
        self.target: Target | None = None  # that it is at
        self.started = 0.0  # the attempt that is under way
        self.place: Place | None = None  # in the pool's queue
        self.state = 0  # the status that it got; 0 before that, and -1 if it was lost

    def header(self, name: str) -> str | None:
        return self.key

    cookie = query = header


Draw = Callable[[], float]


@dataclass(frozen=True)
class Service:
    """A distribution of service times, with its mean in seconds. ``spread`` is the second number
    of those that have one."""

    kind: str
    mean: float
    spread: float = 0.0

    def draw(self, dice: Random) -> Draw:
        return KINDS[self.kind](self.mean, self.spread, dice)

    def __str__(self) -> str:
        return f"{self.kind}:{self.mean:g}" + (f":{self.spread:g}" if self.spread else "")


def _constant(mean: float, spread: float, dice: Random) -> Draw:
    return lambda: mean


def _exponential(mean: float, spread: float, dice: Random) -> Draw:
    return lambda: -mean * math.log(1.0 - dice.random())


def _uniform(mean: float, spread: float, dice: Random) -> Draw:
    return lambda: mean + spread * (2 * dice.random() - 1)


def _lognormal(mean: float, spread: float, dice: Random) -> Draw:
    middle = math.log(mean) - spread * spread / 2
    return lambda: math.exp(middle + spread * dice.gauss(0.0, 1.0))


def _pareto(mean: float, spread: float, dice: Random) -> Draw:
    least, power = mean * (spread - 1) / spread, -1 / spread
    return lambda: least * (1.0 - dice.random()) ** power


# By kind: from the mean and the spread (uniform: half of its width; lognormal: the deviation of
# the logarithm; pareto: the exponent).
KINDS: dict[str, Callable[[float, float, Random], Draw]] = {
    "constant": _constant,
    "exponential": _exponential,
    "uniform": _uniform,
    "lognormal": _lognormal,
    "pareto": _pareto,
}


def zipf(count: int, exponent: float, dice: Random) -> Callable[[], int]:
    """Draws numbers below ``count``: the k-th as often as 1 / k to the ``exponent``."""
    if not exponent:
        return lambda: int(dice.random() * count)
    weights = [k**-exponent for k in range(1, count + 1)]
    sums = list(itertools.accumulate(weights))
    return lambda: bisect.bisect(sums, dice.random() * sums[-1], 0, count - 1)


def drawn(
    rate: float, count: int, service: Service, keys: int, exponent: float, seed: int
) -> Iterator[Job]:
    """``count`` requests whose arrivals are a Poisson process. The same for each policy."""
    dice = Random(f"{seed} arrivals")
    size = service.draw(Random(f"{seed} service"))
    key = zipf(keys, exponent, Random(f"{seed} keys"))
    names = [
        (f"10.{at >> 16 & 255}.{at >> 8 & 255}.{at & 255}", f"/{at}", f"k{at}")
        for at in range(keys)
    ]
    now, random, log = 0.0, dice.random, math.log
    for _ in range(count):
        now -= log(1.0 - random()) / rate
        address, uri, name = names[key()]
        yield Job(now, size(), address, uri, name, "GET")


class Visit(NamedTuple):
    """A line of an access log. ``seconds``: what the target took; None where the log says
    nothing of it."""

    arrived: float  # since the first
    address: str
    method: str
    uri: str
    seconds: float | None


def replayed(visits: Iterable[Visit], service: Service | None, seed: int) -> Iterator[Job]:
    """The requests of a log; what they take is drawn from ``service``, if there is one."""
    size = service.draw(Random(f"{seed} service")) if service else None
    for arrived, address, method, uri, seconds in visits:
        yield Job(arrived, size() if size else seconds or 0.0, address, uri, None, method)


# The combined format; what pyproxy writes behind it is target, seconds and attempts.
_COMBINED = re.compile(
    r'(\S+) \S+ \S+ \[([^\]]+)\] "([^"]*)" \d+ \S+(?: "[^"]*" "[^"]*"(?: (\S+) (\d+\.\d+) \d+)?)?'
)


def read_log(path: Path, faster: float = 1.0) -> list[Visit]:
    """The requests of an access log, in the combined format or JSON lines, in the order of their
    arrival. A log tells seconds: the requests of one are spread over it. ``faster`` divides the
    time between them. Raises ``SettingsError``."""
    found: list[tuple[float, Visit]] = []
    number = 1  # of the line
    try:
        with path.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                if line.strip():
                    found.append(_visit(line))
                number += 1
    except OSError as error:
        said = (error.strerror or "cannot be read").lower()
        raise SettingsError([f"--log: {path}: {said}"]) from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise SettingsError(
            [
                f"--log: {path}: line {number}: expected the combined format, or JSON as pyproxy "
                "writes it"
            ]
        ) from None
    if not found:
        raise SettingsError([f"--log: {path}: no requests are in it"])
    spread = [
        (second + (at + 0.5) / len(group) - (visit.seconds or 0.0), visit)
        for second, group in _by_second(found)
        for at, visit in enumerate(group)
    ]
    spread.sort(key=lambda one: one[0])
    first = spread[0][0]
    return [visit._replace(arrived=(at - first) / faster) for at, visit in spread]


def _by_second(found: list[tuple[float, Visit]]) -> Iterator[tuple[float, list[Visit]]]:
    found.sort(key=lambda one: one[0])
    for second, group in itertools.groupby(found, lambda one: one[0]):
        yield second, [visit for _, visit in group]


def _visit(line: str) -> tuple[float, Visit]:
    """When it was answered, and the rest."""
    if line.startswith("{"):
        said: dict[str, Any] = json.loads(line)
        seconds = said.get("seconds") if said.get("target") else None
        answered = datetime.fromisoformat(said["time"]).timestamp()
        method, uri = said.get("method") or "GET", said.get("uri") or "/"
        visit = Visit(0.0, str(said["client"]), method, uri, _took(seconds))
        return answered, visit
    match = _COMBINED.match(line)
    if not match:
        raise ValueError(line)
    client, when, request, target, took = match.groups()
    answered = datetime.strptime(when, "%d/%b/%Y:%H:%M:%S %z").timestamp()
    parts = request.split(" ")
    method, uri = parts[:2] if len(parts) == 3 else ("GET", "/")
    known = took if target != "-" else None
    return answered, Visit(0.0, client, method, uri, _took(known))


def _took(said: Any) -> float | None:
    """Without what no simulation comes to the end of."""
    if said is None:
        return None
    seconds = float(said)
    if not 0 <= seconds < 10**6:
        raise ValueError(said)
    return seconds
