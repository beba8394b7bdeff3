"""TargetPool: the targets of one service, which of them are live, and who gets a request."""

import logging
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable
from typing import Any

from pyproxy.balancing.policies import FunctionPolicy, HashRingPolicy
from pyproxy.balancing.policy import Asked, Policy, Targets, weighted_ring
from pyproxy.balancing.target import State, Target
from pyproxy.errors import AllBusy, EmptyRing, Overloaded

log = logging.getLogger(__name__)

Watcher = Callable[[Target, str, str], None]


class Place:
    """A request's place in the queue of a pool. ``called`` is set when its time has come: then
    ``target`` is what it gets, or None if nobody is left for it."""

    __slots__ = ("called", "request", "target", "tried", "wish")

    def __init__(self, request: Asked, tried: Targets, wish: Target | None) -> None:
        self.request = request
        self.tried = tried
        self.wish = wish
        self.target: Target | None = None
        self.called = threading.Event()


class TargetPool:
    """Targets, and tuples of those live that are swapped whole, never changed.

    A reader takes ``live`` once and works with it, whatever happens meanwhile. All methods may be
    called from any thread; ``now`` is ``time.monotonic()``, or another clock that only this pool
    sees.
    """

    def __init__(
        self,
        targets: Iterable[Target] = (),
        max_fails: int = 1,
        *,
        policy: Policy | None = None,
        max_evicted: float | None = None,
        queue_size: int = 0,
        first: int = 0,
    ) -> None:
        """``max_evicted`` is a share of the targets; ``queue_size`` counts waiting requests;
        ``first`` is the number of the first one, and so whose turn it is."""
        self.targets: Targets = tuple(targets)
        self.live: Targets = ()
        self.policy = policy or HashRingPolicy()
        self.timed = self.policy.timed  # wants to hear of `answered`
        self._max_fails = max_fails
        self._max_evicted = max_evicted
        self._queue_size = queue_size
        self._queue: deque[Place] = deque()
        self._watchers: tuple[Watcher, ...] = ()
        # Protects everything here, all of each target but its address, and the policy.
        self._lock = threading.Lock()
        self._counter = first
        self._now = 0.0  # of the last pick or change
        self._kept = set[Target]()  # by max_evicted, since the last change
        self._arrange()

    def _arrange(self) -> None:
        """After any change of who is there."""
        # Lists and plain fields: of 10,000 targets each eviction costs a millisecond or two.
        self.live = tuple(
            [one for one in self.targets if one.wanted is State.LIVE and not one.evicted]
        )
        ordinary = tuple([one for one in self.targets if not one.backup])
        serving = tuple([one for one in self.live if not one.backup])
        backups = tuple([one for one in self.live if one.backup])
        if serving or not backups:
            self.policy.arrange(ordinary, serving)
            self._backups = backups
        else:
            self.policy.arrange(tuple(one for one in self.targets if one.backup), backups)
            self._backups = ()
        self._limited = tuple([one for one in self.live if one.max_connections is not None])
        self._starting = tuple(
            [one for one in self.live if one.slow_start and self._share(one) < 1]
        )
        self._plain = not (self._limited or self._starting or self._backups)

    def wish(self, request: Asked, tried: Targets, now: float) -> Target | None:
        """What a policy that is a user's function wants; None for any other policy."""
        policy = self.policy  # which a reload may replace meanwhile
        if not isinstance(policy, FunctionPolicy):
            return None
        with self._lock:
            self._give_number(request)
        targets = tuple(one for one in policy.live if one not in tried and not one.full)
        return policy.wish(request, targets, now) if targets else None

    def pick(
        self,
        request: Asked,
        tried: Targets = (),
        now: float = 0.0,
        wish: Target | None = None,
    ) -> Target:
        """The target for a request, other than those ``tried``: ``wish``, if that can serve, or as
        the policy says. Its request under way counts until ``release``.

        Raises ``EmptyRing`` if there is none, and ``AllBusy`` if the request must ``queue_up``.
        """
        with self._lock:
            if request.number < 0:
                self._give_number(request)
            if self._plain and wish is None:
                target = self.policy.choose(request, tried, now)
            elif self._queue:
                raise AllBusy("others wait for the targets")
            else:
                self._now = now
                target = self._choose(request, tried, wish)
            target.in_flight += 1
        return target

    def peek(self, request: Asked, now: float = 0.0) -> Target:
        """The target that ``pick`` would give to a request that came now. Changes nothing. Raises
        ``EmptyRing`` and ``AllBusy``, as that does."""
        with self._lock:
            request.number = self._counter
            full = [one for one in self._limited if one.full]
            try:
                return self.policy.peek(request, full, now)
            except EmptyRing:
                if rest := [one for one in self._backups if one not in full]:
                    return weighted_ring(rest)[request.number]
                if full:
                    raise AllBusy("every target is full") from None
                raise

    def _give_number(self, request: Asked) -> None:
        if request.number < 0:
            request.number = self._counter
            self._counter += 1

    def _choose(self, request: Asked, tried: Targets, wish: Target | None) -> Target:
        without: Collection[Target] = tried
        if full := [one for one in self._limited if one.full]:
            without = {*tried, *full}
        if wish and wish not in without and not wish.full and self.may_serve(wish):
            return wish
        try:
            target = self.policy.choose(request, without, self._now)
        except EmptyRing:
            if rest := [one for one in self._backups if one not in without]:
                return weighted_ring(rest)[request.number]
            if any(one not in tried for one in full):
                raise AllBusy("every target is full") from None
            raise
        if self._starting and target in self._starting:
            return self._slowly(target, request, without)
        return target

    def may_serve(self, wish: Target) -> bool:
        """Whether a request that wants this target can have it, if it isn't full."""
        if wish.backup and self._backups:
            return False  # ordinary ones serve
        return wish.state in (State.LIVE, State.DRAINING) and wish in self.targets

    def _slowly(self, target: Target, request: Asked, without: Collection[Target]) -> Target:
        """``target`` for its growing share of the requests, for the others somebody else."""
        share = self._share(target)
        if share >= 1:
            self._arrange()
        elif self.policy.lot(request) >= max(share, 0.05):
            try:
                return self.policy.choose(request, {*without, target}, self._now)
            except EmptyRing:
                pass
        return target

    def _share(self, target: Target) -> float:
        if not target.slow_start:
            return 1.0
        return (self._now - target.since) / target.slow_start

    def release(
        self,
        target: Target,
        seconds: float = -1.0,
        status: int = 0,
        now: float = 0.0,
        method: bytes = b"",
    ) -> None:
        """A request that ``pick`` has counted is over. If it was ``answered``, that is said here:
        it costs no second lock."""
        with self._lock:
            target.in_flight -= 1
            if seconds >= 0:
                self._answered(target, seconds, status, now, method)
            if self._queue:
                self._call_next()

    def answered(
        self, target: Target, seconds: float, status: int, now: float, method: bytes = b""
    ) -> None:
        """A response head came after ``seconds``, at ``now``; or a connection, with status 0."""
        with self._lock:
            self._answered(target, seconds, status, now, method)

    def _answered(
        self, target: Target, seconds: float, status: int, now: float, method: bytes
    ) -> None:
        if target.tally:
            target.tally.answered(method, status, seconds)
        if self.timed:
            self.policy.answered(target, seconds, status, now)

    def queue_up(self, request: Asked, tried: Targets = (), wish: Target | None = None) -> Place:
        """A place in the queue, after ``AllBusy``. Raises ``Overloaded`` if that is full."""
        place = Place(request, tried, wish)
        with self._lock:
            self._queue.append(place)
            self._call_next()
            if len(self._queue) > self._queue_size and not place.called.is_set():
                self._queue.remove(place)
                raise Overloaded("every target is full, and so is the queue")
        return place

    def leave(self, place: Place) -> None:
        """Gives up a place, or the target that it has just got."""
        with self._lock:
            if not place.called.is_set():
                self._queue.remove(place)
            elif place.target:
                place.target.in_flight -= 1
            self._call_next()

    def _call_next(self) -> None:
        """Gives free targets to those who wait, each to the first who may have it: one that waits
        for others than those it has ``tried`` keeps nobody from these."""
        queue, at, in_vain = self._queue, 0, set[Targets]()
        while at < len(queue):
            place = queue[at]
            if place.tried in in_vain and not place.wish:
                at += 1
                continue
            try:
                place.target = self._choose(place.request, place.tried, place.wish)
                place.target.in_flight += 1
            except AllBusy:
                if not place.tried:
                    return  # all are full
                in_vain.add(place.tried)
                at += 1
                continue
            except EmptyRing:
                pass
            del queue[at]
            place.called.set()

    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._queue)

    def evicted(self) -> list[Target]:
        return [target for target in self.targets if target.state is State.EVICTED]

    def failed(self, target: Target, reason: str, kind: str = "error") -> None:
        """Counts a failure; ``max_fails`` of them in a row evict. ``kind`` is a word for the
        reason, of few."""
        with self._lock:
            target.fails += 1
            if target.tally:
                target.tally.happened("failures", kind)
            enough = target.fails >= self._max_fails
        if enough:
            self.evict(target, reason, kind)

    def retried(self, target: Target, kind: str) -> None:
        """A request that this target has failed goes to another."""
        with self._lock:
            if target.tally:
                target.tally.happened("retries", kind)

    def succeeded(self, target: Target) -> None:
        """Ends a row of failures."""
        with self._lock:
            target.fails = 0

    def evict(self, target: Target, reason: str, kind: str = "error") -> None:
        """Takes a target out; does nothing to one that is out, nor when more than ``max_evicted``
        would be: then it goes on serving, as one that may fail."""
        with self._lock:
            if target.evicted or target not in self.targets:
                return
            kept = self._must_stay()
            if not kept:
                self._set_evicted(target, True)
                if target.tally:
                    target.tally.happened("evictions", kind)
            elif target in self._kept:
                return
            else:
                self._kept.add(target)
        if kept:
            log.warning("kept %s, as max_evicted says: %s", target.url, reason)
        else:
            self._tell(target, "evicted", reason)

    def _must_stay(self) -> bool:
        """Whether one more evicted target would be too many."""
        if self._max_evicted is None:
            return False
        out = 1 + sum(one.evicted for one in self.targets)
        return out > self._max_evicted * len(self.targets)

    def restore(self, target: Target, reason: str, now: float = 0.0) -> None:
        """Takes an evicted target back; does nothing to another, nor to one that is gone."""
        with self._lock:
            if not target.evicted or target not in self.targets:
                return
            target.since = self._now = now
            self._set_evicted(target, False)
        self._tell(target, "restored", reason)

    def _set_evicted(self, target: Target, evicted: bool) -> None:
        target.evicted = evicted
        target.fails = 0
        self._kept.clear()
        self._settle()

    def want(self, target: Target, state: State, reason: str, now: float = 0.0) -> None:
        """``DRAINING`` or ``MAINTENANCE`` takes a target out of service, ``LIVE`` puts it back."""
        with self._lock:
            if target.wanted is state:
                return
            target.wanted = state
            target.since = self._now = now
            self._settle()
        self._tell(target, {State.LIVE: "put back"}.get(state, str(state)), reason)

    def add(
        self, target: Target, reason: str, now: float = 0.0, leaving: Collection[Target] = ()
    ) -> bool:
        """Does nothing, and returns False, if one at its address is there, but for those that are
        ``leaving``."""
        with self._lock:
            if any(one.url == target.url and one not in leaving for one in self.targets):
                return False
            self.targets += (target,)
            target.since = self._now = now
            self._settle()
        self._tell(target, "added", reason)
        return True

    def remove(self, target: Target, reason: str) -> None:
        """Forgets a target. What it has under way is finished."""
        with self._lock:
            self.targets = tuple(one for one in self.targets if one is not target)
            self._settle()
        self._tell(target, "removed", reason)

    def change(self, target: Target, reason: str, **values: Any) -> None:
        """Sets what is said of a target: ``weight``, ``backup``, ``max_connections`` or
        ``slow_start``. Does nothing if all is so already."""
        with self._lock:
            new = {key: value for key, value in values.items() if getattr(target, key) != value}
            for key, value in new.items():
                setattr(target, key, value)
            self._settle()
        if new:
            said = ", ".join(f"{key} {value}" for key, value in new.items())
            self._tell(target, "changed", f"{said} {reason}")

    def update(
        self,
        targets: Callable[[Targets], Targets],
        policy: Policy | None,
        *,
        max_fails: int,
        max_evicted: float | None,
        queue_size: int,
        reason: str,
        now: float = 0.0,
    ) -> None:
        """Other settings, in one step. ``targets`` turns those there are into those that shall be;
        ``policy`` None leaves the policy as it is."""
        with self._lock:
            old, self.targets = self.targets, targets(self.targets)
            self._max_fails, self._max_evicted = max_fails, max_evicted
            self._queue_size = queue_size
            if policy:
                self.policy = policy
                self.timed = policy.timed
            self._now = now
            added = [one for one in self.targets if one not in old]
            for target in added:
                target.since = now
            self._settle()
        for target in added:
            self._tell(target, "added", reason)
        for target in old:
            if target not in self.targets:
                self._tell(target, "removed", reason)

    def watch(self, watcher: Watcher) -> None:
        """Calls ``watcher(target, "evicted", reason)`` after each change, in its thread."""
        with self._lock:
            self._watchers += (watcher,)

    def unwatch(self, watcher: Watcher) -> None:
        with self._lock:
            self._watchers = tuple(one for one in self._watchers if one != watcher)

    def _settle(self) -> None:
        """After a change, within the lock."""
        if self._kept:
            self._kept.intersection_update(self.targets)
        self._arrange()
        self._call_next()

    def _tell(self, target: Target, verb: str, reason: str) -> None:
        left, known = len(self.live), len(self.targets)
        log.warning("%s %s: %s (%d of %d live)", verb, target.url, reason, left, known)
        for watcher in self._watchers:
            watcher(target, verb, reason)
