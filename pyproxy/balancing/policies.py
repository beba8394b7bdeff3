"""Policies: how a pool chooses the target of a request. One small class each, one registry.

The pool tells a policy who is there (``arrange``) and asks it for one (``choose``), both under the
pool's lock, so that a policy needs none of its own. ``choose`` never gives a target ``without``
whom it must do (those tried already, or full), and raises ``EmptyRing`` if nobody else is there.
Its cost is for n live targets and a request's first attempt; benchmarks/policies.py measures it.
"""

import bisect
import hashlib
import importlib
import logging
import math
import random
import threading
import zlib
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from pyproxy.balancing.hashring import HashRing
from pyproxy.balancing.target import Target
from pyproxy.errors import EmptyRing
from pyproxy.options import option, read_object
from pyproxy.readers import Json, literal, number, optional, text, unknown_setting, whole

log = logging.getLogger(__name__)

Targets = tuple[Target, ...]

_GOLDEN = 0.6180339887498949  # its multiples spread over 0 … 1 as evenly as can be


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
    divisor = math.gcd(*(target.weight for target in targets)) or 1
    if all(target.weight == divisor for target in targets):
        return HashRing(targets)
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

    def lot(self, request: Asked) -> float:
        """A number in 0 … 1 that decides whether a target that starts slowly gets a request."""
        return request.number * _GOLDEN % 1

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


class HashRingPolicy(RingPolicy):
    """In turn, by weight: the request's number modulo the ring of the live targets.

    The project's own way (``HashRing``). A retry keeps its number, so that retries spread evenly
    too. Cost: O(1).
    """

    def choose(self, request: Asked, without: Collection[Target], now: float) -> Target:
        if without:
            return self.ring_without(without)[request.number]
        return self.ring[request.number]


class WeightedRoundRobin(Policy):
    """In turn, by weight, as smoothly as can be: 5, 1, 1 are a a b a c a a.

    Each pick raises everybody's score by its weight, takes the highest, and lowers that by the sum
    of the weights: nginx's smooth weighted round robin (its commit 52327e0627f4, 2012). Who comes
    and goes doesn't disturb the others' turn. Cost: O(n).
    """

    def __init__(self) -> None:
        self._scores: dict[Target, int] = {}

    def arrange(self, everyone: Targets, live: Targets) -> None:
        self.live = live
        self._scores = {target: self._scores.get(target, 0) for target in live}

    def choose(self, request: Asked, without: Collection[Target], now: float) -> Target:
        scores = self._scores
        best, highest, total = None, 0, 0
        for target in self.rest(without):
            weight = target.weight
            total += weight
            scores[target] = score = scores[target] + weight
            if best is None or score > highest:
                best, highest = target, score
        assert best
        scores[best] -= total
        return best


class LeastConnections(Policy):
    """Whoever has the fewest requests under way; in turn among equals. Weights don't count.

    Cost: O(n), less when somebody is idle.
    """

    def choose(self, request: Asked, without: Collection[Target], now: float) -> Target:
        rest = self.rest(without)
        start = request.number % len(rest)
        best = rest[start]
        if least := best.in_flight:
            for target in rest[start:] + rest[:start]:
                if target.in_flight < least:
                    best, least = target, target.in_flight
                    if not least:
                        break
        return best


class WeightedLeastConnections(RingPolicy):
    """Whoever has the fewest requests under way for its weight; by weight among equals.

    The least requests / weight, as nginx's `least_conn`; equals take turns by weight, so that light
    targets get their share while all are idle. Cost: O(n).
    """

    def choose(self, request: Asked, without: Collection[Target], now: float) -> Target:
        rest = self.rest(without)
        best = (self.ring_without(without) if without else self.ring)[request.number]
        least = best.in_flight / best.weight
        if least:
            for target in rest:
                load = target.in_flight / target.weight
                if load < least:
                    best, least = target, load
        return best


class LeastResponseTime(Policy):
    """Whoever answers soonest: the time to the first byte, times the requests under way plus one.

    The time is an average whose older samples fade with a half-life of 5 s, as in Finagle's "peak
    EWMA", without the peak. A target that is new or restored is taken for an average one until it
    has answered, and has requests under way meanwhile, so that it isn't flooded. The time of one
    that nobody asks comes closer to half of the fastest's with the same half-life, so that it is
    tried again. An answer above 499 doesn't make a target look fast. Weights don't count.
    Cost: O(n).
    """

    HALF_LIFE = 5.0  # seconds
    BURST = 0.37  # seconds in which a twentieth of an average fades
    LEAST = 1e-6  # seconds; with 0 the requests under way wouldn't count
    timed = True
    _refreshed = -math.inf

    def arrange(self, everyone: Targets, live: Targets) -> None:
        stayed = frozenset(self.live)
        for target in live:
            if target not in stayed:
                target.timed_at = -math.inf
        self.live = live
        self._guess()

    def _guess(self) -> None:
        """Takes those who haven't answered yet for average ones."""
        known = [one.response_time for one in self.live if one.timed_at > -math.inf]
        average = sum(known) / len(known) if known else self.LEAST
        for one in self.live:
            if one.timed_at == -math.inf:
                one.response_time = average

    def choose(self, request: Asked, without: Collection[Target], now: float) -> Target:
        if now - self._refreshed > 1.0:
            self._refresh(now)
        rest = self.live
        if without or not rest:
            rest = self.rest(without)
        start = request.number % len(rest)
        best, least = rest[start], math.inf
        for target in rest[start:] + rest[:start]:
            cost = target.response_time * (target.in_flight + 1)
            if cost < least:
                best, least = target, cost
        return best

    def _refresh(self, now: float) -> None:
        """Brings those who haven't answered since the last time closer to half of the fastest's
        time: not to the whole, which the fastest would always win, nor to nothing, which would
        flood one that hangs."""
        since, self._refreshed = self._refreshed, now
        half = min((o.response_time for o in self.live if o.timed_at >= since), default=0.0) / 2
        fading = 0.5 ** ((now - since) / self.HALF_LIFE)
        for one in self.live:
            if half and one.timed_at < since:
                one.response_time = half + (one.response_time - half) * fading
        self._guess()

    def answered(self, target: Target, seconds: float, status: int, now: float) -> None:
        elapsed = now - target.timed_at
        if status >= 500:
            if elapsed == math.inf:
                return  # what it takes to fail says nothing
            seconds = max(seconds, target.response_time)
        # At least a twentieth: a burst of answers counts as more than one.
        share = 0.05 if elapsed < self.BURST else 1 - 0.5 ** (elapsed / self.HALF_LIFE)
        average = target.response_time + (seconds - target.response_time) * share
        target.response_time = average or self.LEAST
        target.timed_at = now
        if elapsed == math.inf:
            self._guess()


def _hash(key: str) -> int:
    """32 bits, the same in every process and on every machine."""
    return zlib.crc32(key.encode("utf-8", "surrogateescape"))


class KeyPolicy(Policy):
    """What the policies have in common that choose by a key."""

    def key_of(self, request: Asked) -> int:
        raise NotImplementedError

    def lot(self, request: Asked) -> float:
        return self.key_of(request) * _GOLDEN % 1  # a client changes its target once, not often


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


@dataclass(eq=False)
class RandomPolicy(RingPolicy):
    """Any live target, by weight. Cost: O(1)."""

    seed: int | None = option(
        None, "the same choices in each run (null: others each time)", optional(whole(0))
    )

    def __post_init__(self) -> None:
        self._bits = random.Random(self.seed).getrandbits

    def choose(self, request: Asked, without: Collection[Target], now: float) -> Target:
        return (self.ring_without(without) if without else self.ring)[self._bits(48)]


class PowerOfTwoChoices(RandomPolicy):
    """Of two targets taken at random, the one with fewer requests under way for its weight.

    Mitzenmacher, "The power of two choices in randomized load balancing" (2001): almost as even as
    looking at all of them. Cost: O(1).
    """

    def choose(self, request: Asked, without: Collection[Target], now: float) -> Target:
        ring = self.ring_without(without) if without else self.ring
        bits = self._bits(96)
        one = ring[bits]
        if len(ring) == 1:
            return one
        # Another place of the ring; it may be the same target's, if that has several.
        other = ring[bits + 1 + (bits >> 48) % (len(ring) - 1)]
        return other if other.in_flight * one.weight < one.in_flight * other.weight else one


class First(Policy):
    """The first live target, in the order of the settings, that isn't full (``max_connections``):
    as few as possible are busy, so that the others can be switched off. HAProxy's `first`.

    Cost: O(1).
    """

    def choose(self, request: Asked, without: Collection[Target], now: float) -> Target:
        return self.rest(without)[0]


Chooser = Callable[[Asked, Targets], Target]


class FunctionPolicy(HashRingPolicy):
    """A Python function ``(request, targets) -> target``, called in the request's own thread.

    ``targets`` are the live ones that this request may go to. Whatever goes wrong in it is logged
    once a minute, and ``hash_ring`` chooses instead. Unlike the others it is called outside of the
    pool's lock, so that it may take its time. Cost: its own.
    """

    def __init__(self, function: Chooser) -> None:
        self._function = function
        self._told = -math.inf
        # Protects _told: this is called from many threads at once.
        self._lock = threading.Lock()

    def wish(self, request: Asked, targets: Targets, now: float) -> Target | None:
        """The target that the function wants; None if it fails."""
        try:
            target = self._function(request, targets)
            if target not in targets:
                raise ValueError(f"it returned {target!r}, which is none of the targets")
        except Exception as error:  # noqa: BLE001 - it is the user's
            self._tell(f"{type(error).__name__}: {error}", now)
            return None
        return target

    def _tell(self, what: str, now: float) -> None:
        with self._lock:
            if now - self._told < 60:
                return
            self._told = now
        log.error("the policy's function failed, hash_ring chooses: %s", what)


POLICIES: dict[str, type[Policy]] = {
    "hash_ring": HashRingPolicy,
    "round_robin": HashRingPolicy,
    "weighted_round_robin": WeightedRoundRobin,
    "least_connections": LeastConnections,
    "weighted_least_connections": WeightedLeastConnections,
    "ip_hash": IPHash,
    "least_response_time": LeastResponseTime,
    "consistent_hash": ConsistentHash,
    "rendezvous_hash": RendezvousHash,
    "random": RandomPolicy,
    "power_of_two_choices": PowerOfTwoChoices,
    "first": First,
}


@dataclass(frozen=True)
class PolicyChoice:
    """A policy's name, or ``module:function``, and its options."""

    name: str
    options: tuple[tuple[str, Any], ...] = ()
    function: Chooser | None = None

    def make(self) -> Policy:
        """A new one: each pool has its own."""
        if self.function:
            return FunctionPolicy(self.function)
        return POLICIES[self.name](**dict(self.options))


def policy(value: Json) -> PolicyChoice:
    """Reads the setting: a name, an object with ``name`` and options, or ``module:function`` (in
    Python also the function itself)."""
    value = literal(value)
    if isinstance(value, PolicyChoice):
        return value
    if callable(value):
        return PolicyChoice(f"{value.__module__}:{value.__qualname__}", (), value)
    data = dict(value) if isinstance(value, dict) else {"name": value}
    name = data.pop("name", None)
    if not isinstance(name, str):
        raise ValueError('expected the name of a policy, or an object with its "name"')
    if ":" in name:
        if data:
            raise ValueError("a function has no options")
        return PolicyChoice(str(name), (), _import(name))
    if name not in POLICIES:
        said = unknown_setting(name, list(POLICIES)).replace("setting", f'policy "{name}"')
        raise ValueError(f"{said}: expected one of {', '.join(POLICIES)}, or module:function")
    if hasattr(kind := POLICIES[name], "__dataclass_fields__"):
        made = read_object(kind, data)
        return PolicyChoice(str(name), tuple((key, getattr(made, key)) for key in data))
    if data:
        raise ValueError(f"{name} has no options")
    return PolicyChoice(str(name))


def _import(name: str) -> Chooser:
    module, _, attribute = name.partition(":")
    try:
        found = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except Exception as error:  # noqa: BLE001 - whatever the module does
        raise ValueError(f'can\'t import "{name}": {type(error).__name__}: {error}') from None
    if not callable(found):
        raise ValueError(f'"{name}" is not a function')
    chooser: Chooser = found
    return chooser
