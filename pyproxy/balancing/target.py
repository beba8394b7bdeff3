"""Target: one server behind the proxy."""

import math
from enum import StrEnum

from pyproxy.balancing.counters import Tally


class State(StrEnum):
    LIVE = "live"
    EVICTED = "evicted"  # it failed, and is probed until it answers
    DRAINING = "draining"  # finishes what it has, and serves only clients bound to it
    MAINTENANCE = "maintenance"  # serves nobody, and isn't probed


class Target:
    """A server's address and what its pool knows of it. Equal only to itself.

    All but the address changes under the pool's lock; anyone may read it. ``weight`` is its share,
    ``backup`` one that serves when no ordinary target is left, ``max_connections`` the most
    requests it has at once (None: any number), ``slow_start`` the seconds in which its share grows
    to the full after it has come (back).
    """

    __slots__ = (
        "__weakref__",
        "backup",
        "evicted",
        "fails",
        "host",
        "in_flight",
        "max_connections",
        "port",
        "response_time",
        "since",
        "slow_start",
        "tally",
        "timed_at",
        "url",
        "wanted",
        "weight",
    )

    def __init__(
        self,
        url: str,
        host: str,
        port: int,
        *,
        weight: int = 1,
        backup: bool = False,
        max_connections: int | None = None,
        slow_start: float = 0.0,
        tally: Tally | None = None,
    ) -> None:
        self.url = url
        self.host = host
        self.port = port
        self.weight = weight
        self.backup = backup
        self.max_connections = max_connections
        self.slow_start = slow_start
        self.tally = tally  # where its requests are counted
        self.wanted = State.LIVE  # or DRAINING or MAINTENANCE, as people say
        self.evicted = False
        self.fails = 0  # in a row
        self.in_flight = 0  # requests under way
        self.since = -math.inf  # when it came, or came back
        self.response_time = 0.0  # seconds: an average, kept by a policy that wants it
        self.timed_at = -math.inf  # when that was measured last

    @property
    def state(self) -> State:
        if self.evicted and self.wanted is not State.MAINTENANCE:
            return State.EVICTED
        return self.wanted

    @property
    def full(self) -> bool:
        return self.max_connections is not None and self.in_flight >= self.max_connections

    def __repr__(self) -> str:
        return f"<Target {self.url} {self.state}>"
