"""A fleet in simulated time: the production pools and policies choose, everything else is events.

Simulation.run
  _arrive                   a request comes to one of the proxies
    _forward                the failover loop of http/forward.py: pick, ask, evict, next
      _ask                  it is at a target: refused, served, or in the line there
  _answer                   a target has finished with one, and begins with the next in its line
  _lose_patience            no answer in time
  Prober                    evicted targets are asked again, as health/recovery.py does

No sockets, no threads, no clock: the same seed gives the same results.
"""

import functools
import heapq
import math
from array import array
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from random import Random

from pyproxy.balancing.policies import FunctionPolicy, PolicyChoice, RandomPolicy
from pyproxy.balancing.pool import Place, TargetPool
from pyproxy.balancing.target import Target
from pyproxy.errors import AllBusy, EmptyRing, Overloaded
from pyproxy.http.message import IDEMPOTENT
from pyproxy.lab.workload import Job

ERROR_TIME = 0.001  # seconds that an answer of a failing target takes
CHECK_TIMEOUT = 5.0  # seconds: the default of health.timeout
_SOONEST, _LATEST = 0.1, 0.5  # seconds between probes while nobody is left
_LOST = -1


@dataclass(frozen=True)
class Fault:
    """What is wrong with a target (by its place, from 0) from ``begin`` to ``end``, in seconds.

    ``down``: it refuses connections, and loses what it has; ``errors``: it answers with 500 at
    once; ``slow``: what it begins takes ``factor`` times as long.
    """

    kind: str
    at: int
    begin: float
    end: float = math.inf
    factor: float = 1.0


@dataclass(frozen=True)
class Scenario:
    """What is simulated. All times in seconds."""

    targets: int
    service_mean: float  # what probes go by
    jobs: Callable[[], Iterator[Job]]  # in the order of arrival; fresh ones at each call
    at_once: int = 1  # requests that a target serves side by side; others wait there in line
    speeds: dict[int, float] = field(default_factory=dict)
    weights: dict[int, int] = field(default_factory=dict)
    faults: tuple[Fault, ...] = ()
    removed: tuple[tuple[int, float], ...] = ()  # who leaves the pool's list, and when
    proxies: int = 1
    in_step: bool = False  # each has had no request yet; else they are anywhere in their turn
    share: float | None = None  # how often they tell each other how many requests targets have
    max_fails: int = 1
    sleeping: float = 10.0
    attempts: int = 5
    retry_errors: bool = False  # answers of 500 count as failures
    timeout: float = 60.0
    slow_start: float = 0.0
    max_connections: int | None = None
    queue_size: int = 1000
    queue_timeout: float = 10.0
    warm_up: float = 0.0  # who comes before isn't in the times
    seed: int = 0


@dataclass
class Result:
    """What became of the requests under one policy. Times in seconds."""

    policy: str
    requests: int = 0
    answered: int = 0
    errors: int = 0  # answers of 500
    lost: int = 0  # without an answer
    retries: int = 0
    evictions: int = 0
    restored: int = 0
    repeated: int = 0  # answers to a client (or URI, for policies that go by it) known before
    moved: int = 0  # of these, from another target than the last one
    seconds: float = 0.0  # until the last answer
    arrived: "array[float]" = field(default_factory=lambda: array("d"))  # of the answers, in order
    times: "array[float]" = field(default_factory=lambda: array("d"))  # how long each has taken
    served: list[int] = field(default_factory=list)  # answers of each target
    peaks: list[int] = field(default_factory=list)  # most requests that each had at once

    @functools.cached_property
    def sorted_times(self) -> list[float]:
        return sorted(self.times)

    def quantile(self, share: float) -> float | None:
        """The time within which this share of the answers came; None without answers."""
        times = self.sorted_times
        return times[max(math.ceil(share * len(times)) - 1, 0)] if times else None

    @property
    def mean(self) -> float | None:
        return math.fsum(self.times) / len(self.times) if self.times else None

    @property
    def imbalance(self) -> float | None:
        """The answers of the busiest target, beside the average of all."""
        total = sum(self.served)
        return max(self.served) * len(self.served) / total if total else None


class Server:
    """A target as it is, which every proxy knows by a ``Target`` of its own."""

    __slots__ = (
        *("at", "busy", "down", "erring", "factor", "life", "line", "load", "peak", "served"),
        *("slowed", "speed", "under_way"),
    )

    def __init__(self, at: int, speed: float) -> None:
        self.at = at
        self.speed = speed
        self.slowed = 1.0
        self.factor = 1 / speed
        self.down = self.erring = 0  # faults that say so
        self.life = 0  # events of an earlier one are void
        self.busy = 0
        self.line: deque[tuple[Job, int]] = deque()
        self.under_way: dict[Job, int] = {}  # with the number of their attempt
        self.load = 0
        self.peak = 0
        self.served = 0

    def slow(self, by: float) -> None:
        self.slowed *= by
        self.factor = self.slowed / self.speed


Progress = Callable[[int], None]


class Simulation:
    """One policy in one scenario. ``run`` once."""

    def __init__(self, scenario: Scenario, choice: PolicyChoice, name: str = "") -> None:
        self.scenario = scenario
        self.now = 0.0
        self.result = Result(name or choice.name)
        self.servers = [Server(at, scenario.speeds.get(at, 1.0)) for at in range(scenario.targets)]
        self._events: list[tuple[float, int, Server | None, int, object, int, int]] = []
        self._sequence = 0
        self._deadlines: deque[tuple[float, Job, int]] = deque()
        self._under_way = 0
        self._wishes = False
        self._last: dict[str, Server] = {}  # of each client or URI
        self.pools = [self._pool(choice, at) for at in range(scenario.proxies)]
        self._by_uri = getattr(self.pools[0].policy, "key", "client") == "uri"
        self._waiting: list[deque[Job]] = [deque() for _ in self.pools]
        self._probers = [Prober(self, at) for at in range(len(self.pools))]
        for fault in scenario.faults:
            self.call(fault.begin, functools.partial(self._begin, fault))
            if fault.end < math.inf:
                self.call(fault.end, functools.partial(self._end, fault))
        for at, when in scenario.removed:
            self.call(when, functools.partial(self._remove, at))
        if scenario.share and len(self.pools) > 1:
            self.call(scenario.share, self._share)

    def _pool(self, choice: PolicyChoice, at: int) -> TargetPool:
        policy = choice.make()
        if isinstance(policy, RandomPolicy) and policy.seed is None:
            policy.seed = Random(f"{self.scenario.seed} policy {at}").getrandbits(32)
            policy.__post_init__()
        self._wishes = isinstance(policy, FunctionPolicy)
        scenario = self.scenario
        targets = [
            Target(
                f"http://t{number}:80",
                f"t{number}",
                number,  # which is how its server is found
                weight=scenario.weights.get(number, 1),
                max_connections=scenario.max_connections,
                slow_start=scenario.slow_start,
            )
            for number in range(scenario.targets)
        ]
        return TargetPool(
            targets, scenario.max_fails, policy=policy, queue_size=scenario.queue_size
        )

    def call(self, at: float, function: Callable[[], None]) -> None:
        """Later, in simulated time."""
        self._sequence += 1
        heapq.heappush(self._events, (at, self._sequence, None, 0, function, 0, 0))

    def run(self, progress: Progress | None = None) -> Result:
        """Until every request has got its answer or is lost. ``progress`` hears now and then how
        many have come."""
        jobs, dice = self.scenario.jobs(), Random(f"{self.scenario.seed} proxies")
        events, deadlines, many = self._events, self._deadlines, len(self.pools)
        turns = Random(f"{self.scenario.seed} turns")
        numbers = [0 if self.scenario.in_step else turns.getrandbits(30) for _ in self.pools]
        count = 0
        job = next(jobs, None)
        while job or self._under_way:
            coming = job.arrived if job else math.inf
            due = events[0][0] if events else math.inf
            if deadlines and deadlines[0][0] < due and deadlines[0][0] <= coming:
                self._lose_patience(*deadlines.popleft())
            elif due <= coming:
                self.now, _, server, life, what, attempt, status = heapq.heappop(events)
                if server is None:
                    what()  # type: ignore[operator]
                elif life == server.life:
                    self._answer(server, what, attempt, status)  # type: ignore[arg-type]
            elif job:
                self.now = coming
                if many > 1:
                    job.proxy = proxy = int(dice.random() * many)
                    job.number = numbers[proxy]
                    numbers[proxy] += 1
                self._arrive(job)
                count += 1
                if progress and not count & 0x3FFF:
                    progress(count)
                job = next(jobs, None)
        return self._finish(count)

    def _finish(self, count: int) -> Result:
        result = self.result
        result.requests = count
        result.seconds = self.now
        result.served = [one.served for one in self.servers]
        result.peaks = [one.peak for one in self.servers]
        return result

    def _arrive(self, job: Job) -> None:
        self._under_way += 1
        self._forward(job)

    def _forward(self, job: Job) -> None:
        """Until a target has taken it, or none is left."""
        pool = self.pools[job.proxy]
        while True:
            try:
                wish = pool.wish(job, job.tried, self.now) if self._wishes else None
                target = pool.pick(job, job.tried, self.now, wish)
            except AllBusy:
                self._queue_up(job)
                return
            except EmptyRing:
                self._lose(job)
                return
            if self._ask(job, target) or not self._fail(job, target, "connect", False):
                return

    def _ask(self, job: Job, target: Target) -> bool:
        """Whether the target has taken it."""
        server = self.servers[target.port]
        job.attempts = attempt = job.attempts + 1
        job.target, job.started = target, self.now
        if server.down:
            return False
        server.load += 1
        if server.load > server.peak:
            server.peak = server.load
        server.under_way[job] = attempt
        if server.erring:
            self._sequence += 1
            event = (self.now + ERROR_TIME, self._sequence, server, server.life, job, attempt, 500)
            heapq.heappush(self._events, event)
        elif server.busy < self.scenario.at_once:
            self._serve(server, job, attempt)
        else:
            server.line.append((job, attempt))
        deadlines = self._deadlines
        while deadlines and (deadlines[0][1].state or deadlines[0][1].attempts != deadlines[0][2]):
            deadlines.popleft()
        deadlines.append((self.now + self.scenario.timeout, job, attempt))
        return True

    def _serve(self, server: Server, job: Job, attempt: int) -> None:
        server.busy += 1
        self._sequence += 1
        ends = self.now + job.size * server.factor
        event = (ends, self._sequence, server, server.life, job, attempt, 200)
        heapq.heappush(self._events, event)

    def _answer(self, server: Server, job: Job, attempt: int, status: int) -> None:
        server.load -= 1
        del server.under_way[job]
        if status == 200:
            server.busy -= 1
            if server.line:
                self._serve(server, *server.line.popleft())
        if job.attempts != attempt or job.state:
            return  # nobody waits for it any more
        target, pool, result = job.target, self.pools[job.proxy], self.result
        assert target
        server.served += 1
        if status == 500 and self.scenario.retry_errors:
            pool.failed(target, "answered 500", "status")
            job.tried = (*job.tried, target)
            if job.attempts < self.scenario.attempts and any(
                one not in job.tried for one in pool.live
            ):
                self._release(job, target, status)
                result.retries += 1
                self._forward(job)
                return
        elif target.fails:
            pool.succeeded(target)
        job.state = status
        self._under_way -= 1
        if status == 200:
            result.answered += 1
        else:
            result.errors += 1
        if job.arrived >= self.scenario.warm_up:
            result.arrived.append(job.arrived)
            result.times.append(self.now - job.arrived)
        key = job.uri if self._by_uri else job.address
        last = self._last.get(key)
        if last is not server:
            self._last[key] = server
            result.moved += last is not None
        result.repeated += last is not None
        self._release(job, target, status)

    def _release(self, job: Job, target: Target, status: int) -> None:
        pool = self.pools[job.proxy]
        if status:
            seconds = self.now - job.started
            pool.release(target, seconds, status, self.now, job.method.encode())
        else:
            pool.release(target)
        if self._waiting[job.proxy]:
            self.call_waiting(job.proxy)

    def _fail(self, job: Job, target: Target, kind: str, sent: bool) -> bool:
        """A target has failed a request. Whether it may go to another; else it is lost."""
        pool, result = self.pools[job.proxy], self.result
        self._release(job, target, 0)
        pool.failed(target, kind, kind)
        if self._waiting[job.proxy]:
            self.call_waiting(job.proxy)
        job.tried = (*job.tried, target)
        job.target = None
        enough = job.attempts >= self.scenario.attempts and pool.live
        if enough or (sent and job.method.encode() not in IDEMPOTENT):
            self._lose(job)
            return False
        result.retries += 1
        return True

    def _lose(self, job: Job) -> None:
        job.state = _LOST
        self._under_way -= 1
        self.result.lost += 1

    def _lose_patience(self, when: float, job: Job, attempt: int) -> None:
        if job.state or job.attempts != attempt or not job.target:
            return
        self.now = when
        if self._fail(job, job.target, "timeout", True):
            self._forward(job)

    # The pool's queue

    def _queue_up(self, job: Job) -> None:
        pool = self.pools[job.proxy]
        try:
            job.place = pool.queue_up(job, job.tried)
        except Overloaded:
            self._lose(job)
            return
        self._waiting[job.proxy].append(job)
        late = self.now + self.scenario.queue_timeout
        self.call(late, functools.partial(self._leave_queue, job, job.place))
        self.call_waiting(job.proxy)

    def call_waiting(self, proxy: int) -> None:
        """Those to whom the pool has given a target go there."""
        waiting = self._waiting[proxy]
        while waiting and (place := waiting[0].place) and place.called.is_set():
            job, target = waiting.popleft(), place.target
            job.place = None
            if target is None:
                self._lose(job)
            elif not self._ask(job, target) and self._fail(job, target, "connect", False):
                self._forward(job)

    def _leave_queue(self, job: Job, place: Place) -> None:
        if job.place is place:
            self._waiting[job.proxy].remove(job)
            self.pools[job.proxy].leave(place)
            job.place = None
            self._lose(job)
            self.call_waiting(job.proxy)

    # What happens to targets

    def _begin(self, fault: Fault) -> None:
        server = self.servers[fault.at]
        if fault.kind == "slow":
            server.slow(fault.factor)
        elif fault.kind == "errors":
            server.erring += 1
        else:
            server.down += 1
            self._kill(server)

    def _end(self, fault: Fault) -> None:
        server = self.servers[fault.at]
        if fault.kind == "slow":
            server.slow(1 / fault.factor)
        elif fault.kind == "errors":
            server.erring -= 1
        else:
            server.down -= 1

    def _kill(self, server: Server) -> None:
        gone = server.under_way
        server.under_way, server.load, server.busy = {}, 0, 0
        server.life += 1
        server.line.clear()
        for job, attempt in gone.items():
            waits = not job.state and job.attempts == attempt
            if waits and job.target and self._fail(job, job.target, "lost", True):
                self._forward(job)

    def _remove(self, at: int) -> None:
        for proxy, pool in enumerate(self.pools):
            for target in pool.targets:
                if target.port == at:
                    pool.remove(target, "as told")
            self.call_waiting(proxy)

    def healthy(self, at: int) -> bool:
        """What a probe would say."""
        server = self.servers[at]
        slow = self.scenario.service_mean * server.factor > CHECK_TIMEOUT
        return not (server.down or server.erring or slow)

    def _share(self) -> None:
        """From now on each proxy knows what all have, and counts its own on top of that."""
        for pool in self.pools:
            for target in pool.targets:
                target.in_flight = self.servers[target.port].load
        assert self.scenario.share
        self.call(self.now + self.scenario.share, self._share)


class Prober:
    """Asks the evicted targets of one proxy again: every ``sleeping`` seconds, and more often while
    nobody is left."""

    def __init__(self, simulation: Simulation, proxy: int) -> None:
        self._simulation = simulation
        self._proxy = proxy
        self._pool = simulation.pools[proxy]
        self._sleeping = simulation.scenario.sleeping
        self._evictions: dict[Target, int] = {}  # a probe planned for an earlier one is void
        self._urgent = False
        self._pool.watch(self._notice)

    def _notice(self, target: Target, verb: str, reason: str) -> None:
        simulation = self._simulation
        if verb == "restored":
            simulation.result.restored += 1
        if verb == "evicted":
            simulation.result.evictions += 1
            self._evictions[target] = number = self._evictions.get(target, 0) + 1
            self._plan(target, number)
        if not self._pool.live and not self._urgent and self._pool.evicted():
            self._urgent = True
            self._hurry(_SOONEST)

    def _plan(self, target: Target, number: int) -> None:
        when = self._simulation.now + self._sleeping
        self._simulation.call(when, functools.partial(self._probe, target, number))

    def _probe(self, target: Target, number: int) -> None:
        void = not target.evicted or self._evictions[target] != number
        if not void and not self._restore(target):
            self._plan(target, number)

    def _restore(self, target: Target) -> bool:
        good = self._simulation.healthy(target.port)
        if good:
            self._pool.restore(target, "it answers", self._simulation.now)
            self._simulation.call_waiting(self._proxy)
        return good

    def _hurry(self, pause: float) -> None:
        when = self._simulation.now + min(pause, self._sleeping)
        self._simulation.call(when, functools.partial(self._hurried, pause))

    def _hurried(self, pause: float) -> None:
        if self._pool.live:
            self._urgent = False
            return
        for target in self._pool.evicted():
            self._restore(target)
        self._hurry(min(pause * 2, _LATEST))
