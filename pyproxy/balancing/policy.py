"""Policy: what a policy is asked, and what it is told.

The pool tells a policy who is there (``arrange``) and asks it for one (``choose``), both under the
pool's lock, so that a policy needs none of its own. ``choose`` never gives a target ``without``
whom it must do (those tried already, or full), and raises ``EmptyRing`` if nobody else is there.
"""

import copy
import math
from collections.abc import Collection, Iterable
from typing import Protocol

from pyproxy.balancing.hashring import HashRing
from pyproxy.balancing.target import Target
from pyproxy.errors import EmptyRing

Targets = tuple[Target, ...]

GOLDEN = 0.6180339887498949  # its multiples spread over 0 … 1 as evenly as can be


class Asked(Protocol):
    """What a policy may know of a request."""

    number: int  # of the request in its pool: 0, 1, 2, …; the same when it is retried

    @property
    def method(self) -> str: ...

    @property
    def uri(self) -> str:
        """Path and query, as they came."""

    @property
    def address(self) -> str:
        """The client's."""

    def header(self, name: str) -> str | None:
        """A field's value, its name in any case; of several lines, all."""

    def cookie(self, name: str) -> str | None: ...

    def query(self, name: str) -> str | None:
        """A parameter of the query, decoded."""


def weighted_ring(targets: Iterable[Target]) -> HashRing[Target]:
    """Each target as often as its weight says, spread evenly: 2, 1, 1 are a b a c."""
    targets = tuple(targets)
    weights = {target.weight for target in targets}
    if len(weights) < 2:
        return HashRing(targets)
    divisor = math.gcd(*weights)
    slots = [
        # Each starts a little later than the one before, so that few fall on one place.
        ((turn + (at + 0.5) / len(targets)) * divisor / target.weight, at)
        for at, target in enumerate(targets)
        for turn in range(target.weight // divisor)
    ]
    return HashRing(targets[at] for _, at in sorted(slots))


class Policy:
    """The base: keeps who is live."""

    live: Targets = ()
    timed = False  # whether it wants to hear what ``answered`` tells

    def arrange(self, everyone: Targets, live: Targets) -> None:
        """``live`` are those among ``everyone`` who serve now; called whenever that changes."""
        self.live = live

    def choose(self, request: Asked, without: Collection[Target], now: float) -> Target:
        raise NotImplementedError

    def peek(self, request: Asked, without: Collection[Target], now: float) -> Target:
        """What ``choose`` would answer now, without a trace."""
        return copy.copy(self).choose(request, without, now)

    def lot(self, request: Asked) -> float:
        """A number in 0 … 1 that decides whether a target that starts slowly gets a request."""
        return request.number * GOLDEN % 1

    def answered(self, target: Target, seconds: float, status: int, now: float) -> None:
        """A target's response head came after ``seconds``."""

    def rest(self, without: Collection[Target]) -> Targets:
        """Those who may be chosen; at least one."""
        rest = tuple([one for one in self.live if one not in without]) if without else self.live
        if not rest:
            raise EmptyRing("no target is left")
        return rest


class RingPolicy(Policy):
    """What the policies have in common that take turns by weight."""

    ring: HashRing[Target] = HashRing()
    _rings: dict[Targets, HashRing[Target]]

    def arrange(self, everyone: Targets, live: Targets) -> None:
        self.live = live
        self.ring = weighted_ring(live)
        self._rings = {}

    def ring_without(self, without: Collection[Target]) -> HashRing[Target]:
        """Of those who may be chosen. Kept, as who is full is so for many requests."""
        rest = self.rest(without)
        ring = self._rings.get(rest)
        if ring is None:
            if len(self._rings) == 64:
                self._rings.clear()
            ring = self._rings[rest] = weighted_ring(rest)
        return ring
