"""Policies that choose by a key: the same target for the same client, cookie, path …"""

import bisect
import hashlib
import math
import zlib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import ClassVar

from pyproxy.balancing.hashring import HashRing
from pyproxy.balancing.policy import GOLDEN, Asked, Policy, RingPolicy, Targets, weighted_ring
from pyproxy.balancing.target import Target
from pyproxy.errors import EmptyRing
from pyproxy.options import option
from pyproxy.readers import Json, described, number, optional, text, whole


def _hash(key: str) -> int:
    """32 bits, the same in every process and on every machine."""
    return zlib.crc32(key.encode("utf-8", "surrogateescape"))


class KeyPolicy(Policy):
    """What the policies have in common that choose by a key."""

    def key_of(self, request: Asked) -> int:
        raise NotImplementedError

    def lot(self, request: Asked) -> float:
        return self.key_of(request) * GOLDEN % 1  # a client changes its target once, not often


class IPHash(KeyPolicy, RingPolicy):
    """The same target for the same client address, as long as it is live.

    The address modulo everybody, live or not; the clients of one that is away spread over the
    others, and come back with it (as nginx's `ip_hash` does). Cost: O(1).
    """

    def __init__(self) -> None:
        self._everyone: HashRing[Target] = HashRing()

    def arrange(self, everyone: Targets, live: Targets) -> None:
        super().arrange(everyone, live)
        self._serving = frozenset(live)
        self._everyone = weighted_ring(everyone)

    def key_of(self, request: Asked) -> int:
        return _hash(request.address)

    def choose(self, request: Asked, without: Collection[Target], now: float) -> Target:
        key = self.key_of(request)
        target = self._everyone[key]
        if target in without or target not in self._serving:
            key //= len(self._everyone)
            target = (self.ring_without(without) if without else self.ring)[key]
        return target


Key = Callable[[Asked], str | None]

_KEYS = {
    "header": lambda name: lambda request: request.header(name),
    "cookie": lambda name: lambda request: request.cookie(name),
    "query": lambda name: lambda request: request.query(name),
}


@described({"type": "string", "pattern": "^(client|uri|(header|cookie|query):.+)$"})
def key_text(value: Json) -> str:
    kind, colon, name = text(value).partition(":")
    if value in ("client", "uri") or (kind in _KEYS and colon and name):
        return str(value)
    raise ValueError('expected "client", "uri", "header:NAME", "cookie:NAME" or "query:NAME"')


def _key(said: str) -> Key:
    """A function that gets the key from a request; None where it has none."""
    if said == "client":
        return lambda request: request.address
    if said == "uri":
        return lambda request: request.uri
    kind, _, name = said.partition(":")
    return _KEYS[kind](name)


KEY_HELP = (
    "what goes to the same target: client (its address), uri, header:NAME, cookie:NAME or "
    "query:NAME (the client's address where a request has none)"
)


@dataclass(eq=False)
class ConsistentHash(KeyPolicy):
    """The same target for the same key; when one of n goes, only its keys (1/n) move.

    Karger et al., "Consistent hashing and random trees" (1997): each target has many points on a
    circle (``virtual_nodes`` times its weight), and a key belongs to the next one. With ``bounded_
    load`` a target that has more than that many times the average of requests under way is passed
    over (Mirrokni, Thorup, Zadimoghaddam, 2016). Cost: O(log n); O(n) with a bounded load.
    """

    key: str = option("client", KEY_HELP, key_text)
    virtual_nodes: int = option(100, "points of a target of weight 1", whole(1, 10000))
    bounded_load: float | None = option(
        None,
        "a target has at most so many times the average of requests under way (null: no bound)",
        optional(number(1.0, above=True)),
    )

    def __post_init__(self) -> None:
        self._key = _key(self.key)
        self._made_for: list[tuple[Target, int]] = []
        self._points: list[int] = []
        self._owners: list[Target] = []

    def arrange(self, everyone: Targets, live: Targets) -> None:
        self.live = live
        self._serving = frozenset(live)
        made_for = [(target, target.weight) for target in everyone]
        if made_for != self._made_for:  # else the points stand: the dead are passed over
            self._made_for = made_for
            self._place(everyone)

    def _place(self, everyone: Targets) -> None:
        points: list[tuple[int, int]] = []
        for at, target in enumerate(everyone):
            # Not divided by what the weights have in common: that changes when one goes.
            count = target.weight * self.virtual_nodes
            for group in range(0, count, 16):  # a digest has room for 16 points
                digest = hashlib.blake2b(f"{target.url}#{group}".encode()).digest()
                found = memoryview(digest).cast("I")[: count - group]
                points += [(point, at) for point in found]
        points.sort()
        self._points = [point for point, _ in points]
        self._owners = [everyone[at] for _, at in points]

    def key_of(self, request: Asked) -> int:
        return _hash(self._key(request) or request.address)

    def choose(self, request: Asked, without: Collection[Target], now: float) -> Target:
        if len(without) >= len(self.live):
            self.rest(without)  # or else it would be found out only after a whole round
        at = bisect.bisect(self._points, self.key_of(request))
        if self.bounded_load is not None:
            without = self._with_full(without)
        owners, serving = self._owners, self._serving
        for _ in owners:
            if at == len(owners):
                at = 0
            target = owners[at]
            if target in serving and target not in without:
                return target
            at += 1
        raise EmptyRing("no target is left")

    def _with_full(self, without: Collection[Target]) -> Collection[Target]:
        assert self.bounded_load is not None
        rest = self.rest(without)
        share = (sum(one.in_flight for one in rest) + 1) / sum(one.weight for one in rest)
        most = share * self.bounded_load
        full = {one for one in rest if one.in_flight >= math.ceil(most * one.weight)}
        return full.union(without)


@dataclass(eq=False)
class RendezvousHash(KeyPolicy):
    """The same target for the same key; when one of n goes, only its keys move, evenly.

    Thaler and Ravishankar, "Using name-based mappings to increase hit rates" (1998): the target
    whose hash with the key is highest. Weighted by -weight / log(hash) (Schindelhauer, Schomaker,
    2005). Evener than ``consistent_hash``, and no points to keep. Cost: O(n), but O(1) for
    a key that was asked for lately.
    """

    key: str = option("client", KEY_HELP, key_text)
    REMEMBERED: ClassVar[int] = 10_000  # keys

    def __post_init__(self) -> None:
        self._key = _key(self.key)
        self._factors: list[tuple[Target, int]] = []
        self._chosen: dict[int, Target] = {}  # by key, of those who are live now

    def arrange(self, everyone: Targets, live: Targets) -> None:
        self.live = live
        known = dict(self._factors)
        self._factors = [(one, known.get(one) or _factor(one.url)) for one in live]
        self._weighted = len({one.weight for one in live}) > 1
        self._chosen.clear()

    def key_of(self, request: Asked) -> int:
        return _hash(self._key(request) or request.address)

    def choose(self, request: Asked, without: Collection[Target], now: float) -> Target:
        key = self.key_of(request)
        if without:
            return self._best(key, without)
        target = self._chosen.get(key)
        if target is None:
            if len(self._chosen) == self.REMEMBERED:
                self._chosen.clear()
            target = self._chosen[key] = self._best(key, without)
        return target

    def _best(self, key: int, without: Collection[Target]) -> Target:
        best, highest = None, -math.inf
        for target, factor in self._factors:
            if without and target in without:
                continue
            # Multiplying modulo a prime is universal hashing (Carter and Wegman, 1979). A tuple's
            # hash is not mixed enough: one of five targets had a third of all keys.
            score: float = key * factor % _PRIME
            if self._weighted:
                score = math.log((score + 0.5) / _PRIME) / target.weight
            if score > highest:
                best, highest = target, score
        if best is None:
            raise EmptyRing("no target is left")
        return best


_PRIME = 1073741789  # below 2**30, where an int of CPython has one digit


def _factor(url: str) -> int:
    digest = hashlib.blake2b(url.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % (_PRIME - 1) + 1
