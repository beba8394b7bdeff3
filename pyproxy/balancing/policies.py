"""Policies: how a pool chooses the target of a request. One small class each, one registry; those
that choose by a key are in hashes.py. The cost of each is for n live targets and a request's first
attempt; benchmarks/policies.py measures it.
"""

import copy
import heapq
import importlib
import logging
import math
import random
import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from pyproxy.balancing.hashes import ConsistentHash, IPHash, RendezvousHash
from pyproxy.balancing.policy import Asked, Policy, RingPolicy, Targets
from pyproxy.balancing.target import Target
from pyproxy.options import option, read_object
from pyproxy.readers import Json, literal, optional, unknown_setting, whole

log = logging.getLogger(__name__)


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
    and goes doesn't disturb the others' turn. Those of one weight rise together, so of each weight
    only the highest is looked at. Cost: O(log n) for each weight that occurs; O(n) for a retry.
    """

    def __init__(self) -> None:
        self._lay({})

    def _lay(self, scores: dict[Target, int]) -> None:
        """Heaps, one for each weight: the score at turn 0 (negative, as heapq wants the highest),
        the place in the settings, which decides among equals, and who it is."""
        heaps: dict[int, list[tuple[int, int, Target]]] = {}
        for at, target in enumerate(self.live):
            heaps.setdefault(target.weight, []).append((-scores.get(target, 0), at, target))
        for heap in heaps.values():
            heapq.heapify(heap)
        self._heaps = tuple(heaps.items())
        self._total = sum(target.weight for target in self.live)
        self._turn = 0

    def _scores(self) -> dict[Target, int]:
        turn = self._turn
        return {
            target: turn * weight - at_first
            for weight, heap in self._heaps
            for at_first, _, target in heap
        }

    def arrange(self, everyone: Targets, live: Targets) -> None:
        scores = self._scores()
        self.live = live
        self._lay(scores)

    def peek(self, request: Asked, without: Collection[Target], now: float) -> Target:
        like = copy.copy(self)
        like._lay(self._scores())
        return like.choose(request, without, now)

    def choose(self, request: Asked, without: Collection[Target], now: float) -> Target:
        if without or not self._heaps:
            return self._among(self.rest(without))
        self._turn = turn = self._turn + 1
        highest, rank = self._heaps[0][1], (math.inf, 0)
        for weight, heap in self._heaps:
            at_first, at, _ = heap[0]
            if (its := (at_first - turn * weight, at)) < rank:
                highest, rank = heap, its
        at_first, at, best = highest[0]
        heapq.heapreplace(highest, (at_first + self._total, at, best))
        return best

    def _among(self, rest: Targets) -> Target:
        """Only these rise."""
        scores = self._scores()
        for target in rest:
            scores[target] += target.weight
        best = max(rest, key=scores.__getitem__)
        scores[best] -= sum(target.weight for target in rest)
        self._lay(scores)
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
    EWMA", without the peak; no answer counts for more than half of it. A target that is new or
    restored is taken for an average one until it has answered, and has requests under way
    meanwhile, so that it isn't flooded. The time of one that nobody asks comes closer to half of
    the fastest's with the same half-life, so that it is tried again. An answer above 499 counts as
    an average one at least. Weights don't count.
    Cost: O(n).
    """

    HALF_LIFE = 5.0  # seconds
    BURST = 0.37  # seconds in which a twentieth of an average fades
    LEAST = 1e-6  # seconds; with 0 the requests under way wouldn't count
    timed = True
    _refreshed = -math.inf
    _average = LEAST

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
        # fsum: the same on every Python, as simulations want it
        self._average = math.fsum(known) / len(known) if known else self.LEAST
        for one in self.live:
            if one.timed_at == -math.inf:
                one.response_time = self._average

    def choose(self, request: Asked, without: Collection[Target], now: float) -> Target:
        if now - self._refreshed > 1.0:
            self._refresh(now)
        rest = self.live
        if without or not rest:
            rest = self.rest(without)
        start = request.number % len(rest)
        best, least = rest[start], math.inf
        for target in rest[start:] + rest[:start]:
            time = target.response_time
            # Most are out of the question even if they are idle.
            if time < least and (cost := time * (target.in_flight + 1)) < least:
                best, least = target, cost
        return best

    def peek(self, request: Asked, without: Collection[Target], now: float) -> Target:
        times = [one.response_time for one in self.live]
        try:
            return super().peek(request, without, now)
        finally:  # it may have refreshed them, and would again each time
            for one, time in zip(self.live, times, strict=True):
                one.response_time = time

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
            seconds = max(seconds, target.response_time, self._average)
        # At least a twentieth: a burst of answers counts as more than one. At most a half: an
        # answer may be quick by luck, and would bring a flood.
        share = 0.05 if elapsed < self.BURST else min(1 - 0.5 ** (elapsed / self.HALF_LIFE), 0.5)
        if elapsed == math.inf and not any(one.timed_at > -math.inf for one in self.live):
            share = 1.0
        average = target.response_time + (seconds - target.response_time) * share
        target.response_time = average or self.LEAST
        target.timed_at = now
        if elapsed == math.inf:
            self._guess()


@dataclass(eq=False)
class RandomPolicy(RingPolicy):
    """Any live target, by weight. Cost: O(1)."""

    seed: int | None = option(
        None, "the same choices in each run (null: others each time)", optional(whole(0))
    )

    def __post_init__(self) -> None:
        self._bits = random.Random(self.seed).getrandbits

    def peek(self, request: Asked, without: Collection[Target], now: float) -> Target:
        like = copy.copy(self)
        like._bits = random.Random().getrandbits
        return like.choose(request, without, now)

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

    def __reduce__(self) -> tuple[Any, ...]:
        # In another process a function is imported there: not each can be pickled.
        if self.function:
            return policy, (self.name,)
        return PolicyChoice, (self.name, self.options)

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
