"""The autoscaler: each of its rules, and what they come to under simulated loads."""

import functools
import heapq
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyproxy.scaling.autoscaler import BELIEVED, Decision, Signals, State, decide
from pyproxy.scaling.load import Load
from pyproxy.scaling_settings import Scaling

RULES = Scaling(launcher="process")
FINE = Signals(targets=4, coming=0, rate=10, response_time=0.4, in_flight=1, cpu=50)
SLOW = replace(FINE, response_time=0.9)
IDLE = replace(FINE, response_time=0.1, cpu=40)

Rate = Callable[[float], float]  # requests a second, at a time in seconds


def looks(
    *seen: Signals, rules: Scaling = RULES, state: State | None = None, now: float = 0.0
) -> tuple[Decision, State]:
    """The last decision of looks that follow each other; after it, time goes on."""
    state = state or State()
    for one in seen:
        decision, state = decide(rules, one, state, now)
        now += rules.interval
    return decision, state


def many(seen: Signals, rules: Scaling = RULES) -> list[Signals]:
    """As many looks as an average is made of."""
    return [seen] * round(rules.cooldown / rules.interval)


# The rules


@pytest.mark.parametrize(
    ("seen", "reason"),
    [
        (replace(FINE, response_time=0.91), "response time 0.91 s > 0.75 s"),
        (replace(FINE, cpu=93.21), "CPU 93.2 % > 80 %"),
        (replace(FINE, in_flight=9), "requests in flight per target 9 > 8"),
        (replace(SLOW, cpu=10, in_flight=0.1), "response time 0.9 s > 0.75 s"),  # adding wins
        (replace(SLOW, cpu=160), "CPU 160 % > 80 %"),  # the worst is told
    ],
)
def test_too_much_of_anything_adds_a_target(seen: Signals, reason: str) -> None:
    rules = replace(RULES, in_flight_high=8, in_flight_low=2)
    assert looks(seen, seen, rules=rules)[0] == Decision(1, reason)


@pytest.mark.parametrize(
    ("seen", "reason"),
    [
        (replace(FINE, response_time=0.1), "response time 0.1 s < 0.25 s"),
        (replace(FINE, cpu=11), "CPU 11 % < 20 %"),
        (replace(FINE, in_flight=0.5), "requests in flight per target 0.5 < 2"),
        (replace(FINE, rate=0, response_time=None, in_flight=0), "no requests for 5 s"),
        (replace(FINE, response_time=0.1, cpu=None), "response time 0.1 s < 0.25 s"),
        (replace(FINE, response_time=None, cpu=11), "CPU 11 % < 20 %"),
    ],
)
def test_too_little_of_anything_removes_one(seen: Signals, reason: str) -> None:
    rules = replace(RULES, in_flight_high=8, in_flight_low=2)
    seen = replace(seen, in_flight=seen.in_flight if seen.in_flight < 1 else 4)
    assert looks(*many(seen), rules=rules)[0] == Decision(-1, reason)


@pytest.mark.parametrize(
    "seen",
    [
        FINE,
        replace(FINE, response_time=0.75, cpu=80),  # the marks themselves
        replace(FINE, response_time=0.25, cpu=20),
        replace(FINE, response_time=None, cpu=None),  # nothing is known
        replace(FINE, rate=0, response_time=None, cpu=None),  # all hang
        replace(FINE, in_flight=100),  # doesn't count unless it is said
    ],
)
def test_what_is_right_or_not_known_changes_nothing(seen: Signals) -> None:
    assert looks(*many(seen) * 2)[0].change == 0


def test_marks_that_are_null_do_not_count() -> None:
    rules = replace(RULES, cpu_high=None, cpu_low=None)
    for cpu in (1, 99):
        assert looks(*many(replace(FINE, cpu=cpu)), rules=rules)[0].change == 0


def test_one_odd_look_changes_nothing() -> None:
    odd = replace(FINE, response_time=60, cpu=400)
    for at in range(30):
        seen = [FINE] * 30
        seen[at] = odd
        assert looks(*seen)[0].change == 0
    assert looks(FINE, odd)[0] == Decision(0, "response time 60 s > 0.75 s, so far in one look")
    assert looks(odd, FINE, odd)[0].change == 0
    assert looks(odd, odd)[0].change == 1


def test_one_quiet_look_removes_nothing_and_one_busy_look_does_not_keep_what_is_too_much() -> None:
    quiet = replace(FINE, rate=0, response_time=None, in_flight=0)
    assert looks(*many(FINE), quiet)[0].change == 0
    busy = [*many(IDLE)]
    busy[5] = replace(IDLE, response_time=0.9)
    assert looks(*busy)[0].change == -1


def test_nothing_goes_before_a_whole_cooldown_has_been_seen() -> None:
    for enough in range(1, 12):
        assert looks(*[IDLE] * enough)[0].change == 0
    assert looks(*[IDLE] * 12)[0].change == -1


@pytest.mark.parametrize(
    ("targets", "coming", "change", "reason"),
    [
        (1, 0, 2, "1 < min 3"),
        (1, 1, 1, "2 < min 3"),
        (9, 0, -3, "9 > max 6"),
        (5, 3, -2, "8 > max 6"),
    ],
)
def test_bounds_are_heeded_at_once_whatever_else_is_seen(
    targets: int, coming: int, change: int, reason: str
) -> None:
    rules = replace(RULES, min=3, max=6)
    for seen in (FINE, SLOW, IDLE):
        seen = replace(seen, targets=targets, coming=coming)
        decision, state = decide(rules, seen, State(changed=99), 100)
        assert decision == Decision(change, reason)
        assert state.changed == 100


def test_bounds_are_not_left() -> None:
    rules = replace(RULES, min=4, max=4)
    decision, _ = looks(SLOW, SLOW, rules=rules)
    assert decision == Decision(0, "response time 0.9 s > 0.75 s, but max 4")
    decision, _ = looks(*many(IDLE), rules=rules)
    assert decision == Decision(0, "response time 0.1 s < 0.25 s, but min 4")


def test_the_last_target_of_a_pool_stays() -> None:
    rules = replace(RULES, min=0)
    last = replace(IDLE, targets=1, cpu=5)
    assert looks(*many(last), rules=rules)[0].change == 0
    assert looks(*many(replace(last, others=1)), rules=rules)[0].change == -1


def test_after_a_change_nothing_changes_before_the_end_of_the_cooldown() -> None:
    for before in ([SLOW, SLOW], many(IDLE)):
        for after in (SLOW, IDLE):
            decision, state = looks(*before)
            assert decision.change
            changed = state.changed
            for age in range(5, 60, 5):
                decision, state = decide(RULES, after, state, changed + age)
                assert decision == Decision(0, f"cooldown for another {60 - age} s")
            assert decide(RULES, after, state, changed + 60)[0].change


def test_the_cooldown_begins_when_the_last_target_has_come() -> None:
    _, state = looks(SLOW, SLOW)
    coming = replace(SLOW, coming=1)
    for now in range(10, 300, 5):
        decision, state = decide(RULES, coming, state, now)
        assert decision == Decision(0, "1 on the way")
    came = now
    for now in range(came + 5, came + 60, 5):
        decision, state = decide(RULES, replace(SLOW, targets=5), state, now)
        assert decision.change == 0
    assert decide(RULES, replace(SLOW, targets=5), state, came + 60)[0].change == 1


@pytest.mark.parametrize(
    ("step", "seen", "change"),
    [
        (4, replace(FINE, response_time=0.76), 1),
        (4, replace(FINE, response_time=1.4), 4),  # 4 x 1.4 / 0.75 = 7.5
        (9, replace(FINE, response_time=1.4), 4),
        (9, replace(FINE, cpu=120), 2),
        (9, replace(FINE, response_time=1.4, cpu=400), 9),
        (9, replace(FINE, response_time=1.4, cpu=81), 4),
        (99, replace(FINE, response_time=50), 16),  # max is 20
        (9, replace(FINE, targets=0, others=2, response_time=1.4), 2),
    ],
)
def test_a_step_adds_as_many_as_the_worst_signal_asks_for(
    step: int, seen: Signals, change: int
) -> None:
    rules = replace(RULES, step=step, min=0, max=20)
    assert looks(seen, seen, rules=rules)[0].change == change
    assert looks(*many(replace(IDLE, targets=9)), rules=rules)[0].change == -1


@pytest.mark.parametrize(
    ("seen", "but"),
    [
        (replace(IDLE, targets=2, cpu=45), "CPU 90 % >= 80 %"),
        (replace(IDLE, targets=4, cpu=60), "CPU 80 % >= 80 %"),
        (replace(IDLE, targets=3, in_flight=7), "requests in flight per target 10.5 >= 8"),
        (replace(IDLE, targets=2, others=1, cpu=54), "CPU 81 % >= 80 %"),
    ],
)
def test_what_would_at_once_be_too_few_is_not_tried(seen: Signals, but: str) -> None:
    rules = replace(RULES, in_flight_high=8)
    reason = f"response time 0.1 s < 0.25 s, but then {but}"
    assert looks(*many(seen), rules=rules)[0] == Decision(0, reason)
    fewer = replace(seen, cpu=(seen.cpu or 0) * 0.8, in_flight=seen.in_flight * 0.7)
    assert looks(*many(fewer), rules=rules)[0].change == -1


def taught(rate: float = 12) -> State:
    """It has removed the fourth of four targets, and three were too few for this rate."""
    decision, state = looks(*many(replace(IDLE, rate=rate)))
    assert decision.change == -1
    three = replace(SLOW, targets=3, rate=rate)
    decision, state = looks(*many(three), state=state, now=60)
    assert decision.change == 1
    return state


def again(state: State, rate: float, targets: int = 4, now: float = 1000.0) -> Decision:
    fresh = replace(state, looks=0, rate=None, response_time=None, cpu=None, in_flight=None)
    return looks(*many(replace(IDLE, rate=rate, targets=targets)), state=fresh, now=now)[0]


def test_a_removal_that_was_one_too_many_is_not_repeated() -> None:
    state = taught()
    said = "response time 0.1 s < 0.25 s, but 4 requests/s were too much for a target"
    assert again(state, 12) == Decision(0, said)
    assert again(state, 9.7).change == 0
    assert again(state, 9.5).change == -1  # well below
    assert again(state, 12, targets=5).change == -1
    assert again(state, 20, targets=6).change == 0
    assert again(state, 12, now=BELIEVED + 1000).change == -1


def test_what_was_learned_is_forgotten_with_other_rules() -> None:
    state = taught()
    faster = replace(RULES, command=("faster", "{port}"))
    assert looks(*many(IDLE), rules=faster, state=state, now=1000)[0].change == -1


def test_targets_that_carry_more_than_what_was_too_much_are_believed() -> None:
    state = taught()  # 4 a second; now 4 do 10 each
    _, state = looks(*many(replace(FINE, rate=40)), state=state, now=1000)
    assert again(state, 12, now=2000).change == -1


def test_an_addition_after_another_teaches_nothing() -> None:
    _, state = looks(SLOW, SLOW)
    _, state = looks(*many(SLOW), SLOW, state=state, now=10)
    assert state.limit == math.inf


@pytest.mark.parametrize(
    ("seen", "wanted", "after"),
    [
        (SLOW, 4, 5),
        (SLOW, 5, 5),  # the fifth can't be had
        (replace(SLOW, coming=1), 5, 5),
        (IDLE, 4, 3),
        (replace(IDLE, targets=5), 6, 4),  # the sixth can't be had, and isn't needed any more
        (replace(FINE, targets=1), 3, 3),  # min: two can't be had
        (replace(FINE, targets=1, coming=1), 3, 3),
        (replace(FINE, targets=7), 6, 6),  # max: one is about to go
        (FINE, 5, 5),
    ],
)
def test_what_can_not_be_had_is_not_asked_for_again_and_again(
    seen: Signals, wanted: int, after: int
) -> None:
    rules = replace(RULES, min=3, max=6, interval=1, cooldown=0)
    load = Load("default")
    found = wanted
    for _ in range(2):  # so many looks does it take
        found = load.decide(rules, seen, found)
    assert found == after


def test_less_processor_time_than_before_is_no_work_less() -> None:
    load = Load("default")
    load.look({}, [], 2, 0, 0, {"a": 9.0, "b": 1.0})
    seen = load.look({}, [], 2, 0, 0, {"a": 4.0, "b": 1.0})
    assert seen
    assert seen.cpu == 0


# For all signals


@st.composite
def rules_and_looks(draw: Any) -> tuple[Scaling, list[Signals]]:
    least = draw(st.integers(0, 6))
    rules = replace(
        RULES,
        min=least,
        max=draw(st.integers(max(least, 1), 12)),
        step=draw(st.integers(1, 5)),
        cooldown=draw(st.sampled_from([5.0, 20.0, 60.0])),
        in_flight_high=draw(st.none() | st.just(8.0)),
        cpu_high=draw(st.none() | st.just(80.0)),
    )
    seen = st.builds(
        Signals,
        targets=st.integers(0, 14),
        coming=st.sampled_from([0, 0, 0, 0, 1, 2]),
        rate=st.floats(0, 1e4),
        response_time=st.none() | st.floats(0, 1000),
        in_flight=st.floats(0, 1000),
        cpu=st.none() | st.floats(0, 3200),
        others=st.integers(0, 2),
    )
    few = draw(st.lists(seen, min_size=1, max_size=4))
    return rules, [one for one in few for _ in range(draw(st.integers(1, 14)))]


@settings(max_examples=40)
@given(rules_and_looks())
def test_bounds_and_cooldown_hold_whatever_is_seen(made: tuple[Scaling, list[Signals]]) -> None:
    rules, seen = made
    state = State()
    now, changed = 0.0, -math.inf
    for one in seen:
        decision, after = decide(rules, one, state, now)
        assert (decision, after) == decide(rules, one, state, now)
        count = one.targets + one.coming
        assert rules.min <= count + decision.change <= rules.max
        assert decision.reason
        if rules.min <= count <= rules.max:
            assert -1 <= decision.change <= rules.step
            if one.coming or now - changed < rules.cooldown:
                assert decision.change == 0
        if decision.change or one.coming:
            changed = now
        state, now = after, now + rules.interval


@settings(max_examples=40)
@given(rules_and_looks(), st.floats(1, 10), st.floats(1, 10))
def test_more_to_do_never_leads_to_fewer_targets(
    made: tuple[Scaling, list[Signals]], slower: float, busier: float
) -> None:
    rules, seen = made
    one, _ = looks(*seen[:1] * 15, rules=rules)
    more = replace(
        seen[0],
        response_time=None if seen[0].response_time is None else seen[0].response_time * slower,
        cpu=None if seen[0].cpu is None else seen[0].cpu * busier,
        in_flight=seen[0].in_flight * busier,
    )
    assert looks(*[more] * 15, rules=rules)[0].change >= one.change


# Simulated load


class Queues:
    """Targets with so many requests at a time each, and one queue before them: as a proxy that
    knows the least busy makes it. Closed form: what is above capacity waits, and what chance makes
    wait below it is Erlang's C."""

    def __init__(self, service: float, at_once: int, cpu: bool) -> None:
        self._service = service
        self._at_once = at_once
        self._cpu = cpu
        self._backlog = 0.0

    def look(self, load: Rate, now: float, interval: float, targets: int) -> Signals:
        servers = targets * self._at_once
        capacity = servers / self._service
        rate = load(now)
        before = self._backlog
        served = min(capacity, rate + before / interval)
        self._backlog = max(before + (rate - served) * interval, 0.0)
        used = min(served / capacity, 0.98)
        waited = erlang_c(servers, used * servers) * self._service / (servers * (1 - used))
        time = self._service + waited + (before + self._backlog) / 2 / capacity
        return Signals(
            targets, 0, served, time, served * time / targets, 100 * used if self._cpu else None
        )


@functools.cache
def erlang_c(servers: int, offered: float) -> float:
    """How likely one has to wait."""
    blocked = 1.0
    for count in range(1, servers + 1):
        blocked = offered * blocked / (count + offered * blocked)
    return servers * blocked / (servers - offered * (1 - blocked))


class Events:
    """The same request by request: arrivals by chance, service times as said."""

    def __init__(self, service: Callable[[], float], at_once: int, chance: random.Random) -> None:
        self._service = service
        self._at_once = at_once
        self._chance = chance
        self._free: list[float] = []  # when each server is
        self._under_way: list[tuple[float, float]] = []  # end, and how long it will have taken
        self._next = 0.0

    def look(self, load: Rate, now: float, interval: float, targets: int) -> Signals:
        wanted = targets * self._at_once
        while len(self._free) < wanted:
            heapq.heappush(self._free, now - interval)
        while len(self._free) > wanted:
            heapq.heappop(self._free)  # the least busy
        rate = load(now)
        while self._next <= now:
            began = max(self._next, heapq.heappop(self._free))
            end = began + self._service()
            heapq.heappush(self._free, end)
            heapq.heappush(self._under_way, (end, end - self._next))
            self._next += self._chance.expovariate(rate)
        times = []
        while self._under_way and self._under_way[0][0] <= now:
            times.append(heapq.heappop(self._under_way)[1])
        average = sum(times) / len(times) if times else None
        under_way = len(self._under_way) / targets
        return Signals(targets, 0, len(times) / interval, average, under_way, None)


@dataclass(frozen=True)
class Change:
    at: float
    targets: int  # after it
    reason: str


Decide = Callable[[Scaling, Signals, State, float], tuple[Decision, State]]


def simulated(
    rules: Scaling,
    pool: Queues | Events,
    load: Rate,
    hours: float,
    targets: int,
    by: Decide = decide,
    comes: float = 0.0,
) -> list[Change]:
    """What is decided. ``targets`` is how many there are at first, ``comes`` how many seconds it
    takes until a new one serves."""
    state = State()
    changes: list[Change] = []
    coming: list[float] = []
    for number in range(1, round(hours * 3600 / rules.interval) + 1):
        now = number * rules.interval
        coming = [at for at in coming if at > now]
        seen = pool.look(load, now, rules.interval, targets - len(coming))
        decision, state = by(rules, replace(seen, coming=len(coming)), state, now)
        if decision.change:
            targets += decision.change
            coming += [now + comes] * decision.change
            changes.append(Change(now, targets, decision.reason))
    return changes


def by_the_rules_alone(
    rules: Scaling, seen: Signals, state: State, now: float
) -> tuple[Decision, State]:
    """What is too much adds one, what is too little removes one: no second look, no projection,
    nothing learned. What the tests below are worth: it must not get through them."""
    time, cpu = seen.response_time or 0.0, seen.cpu
    right = rules.target_response_time
    change = 0
    if now - state.changed >= rules.cooldown:
        if time > right * rules.response_time_high or (cpu or 0) > (rules.cpu_high or 0):
            change = min(1, rules.max - seen.targets)
        elif time < right * rules.response_time_low or (cpu or 100) < (rules.cpu_low or 0):
            change = max(-1, rules.min - seen.targets)
    return Decision(change, "-"), State(now) if change else state


def within(changes: list[Change], since: float, until: float = math.inf) -> list[Change]:
    return [one for one in changes if since < one.at <= until]


@dataclass(frozen=True)
class Constant:
    service: float  # seconds
    at_once: int  # requests, by one target
    cpu: bool  # it is work for a processor, and that is told
    need: float  # targets, if they had nothing to spare

    @property
    def rate(self) -> float:
        return self.need * self.at_once / self.service

    @functools.cache  # noqa: B019
    def changes(self, start: int, hours: float, by: Decide = decide) -> list[Change]:
        pool = Queues(self.service, self.at_once, self.cpu)
        return simulated(ROOM, pool, lambda now: self.rate, hours, start, by)


ROOM = replace(RULES, max=12)
CONSTANT = [
    Constant(service, at_once, cpu, need)
    for service in (0.1, 0.3)
    for at_once in (1, 8)
    for cpu in (True, False)
    for need in (0.3, 0.9, 1.5, 2.9, 7.6)
]


def turns(start: int, changes: list[Change]) -> int:
    """How often more follows fewer, or fewer more."""
    ways = [a.targets < b.targets for a, b in pairwise([Change(0, start, ""), *changes])]
    return sum(before != after for before, after in pairwise(ways))


@pytest.mark.parametrize("start", [1, 12])
def test_a_constant_load_settles(start: int) -> None:
    for case in CONSTANT:
        changes = case.changes(start, 0.75, decide)
        found = changes[-1].targets if changes else start
        assert not within(changes, 1800), (case, changes)
        most = 3 if not case.cpu else int(start == 1)  # that of processors can be foreseen
        assert turns(start, changes) <= most, (case, changes)
        assert found > case.need, (case, changes)
        if case.service < 0.25:  # 0.3 s are no reason to remove a target
            assert found <= max(2 * case.need, 2), (case, changes)


def test_what_is_in_flight_foresees_what_response_times_do_not() -> None:
    for case in CONSTANT:
        if case.at_once == 8 and not case.cpu:
            rules = replace(ROOM, in_flight_high=6.5)
            pool = Queues(case.service, 8, cpu=False)
            changes = simulated(rules, pool, lambda now, rate=case.rate: rate, 1, 12)  # type: ignore[misc]
            assert turns(12, changes) == 0, (case, changes)
            assert all(one.targets > case.need for one in changes)


def restless(by: Decide) -> int:
    """How many of the constant loads lead to changes in the last quarter of an hour."""
    return sum(bool(within(one.changes(12, 0.75, by), 1800)) for one in CONSTANT)


def test_what_was_learned_is_doubted_once_a_day() -> None:
    rules = replace(ROOM, interval=20)
    changes = simulated(rules, Queues(0.1, 8, cpu=False), lambda now: 232, 50, 12)
    late = within(changes, 1800)
    assert 2 <= len(late) <= 6
    for one in late:
        assert one.at % BELIEVED < 1800


def step(low: float, high: float, at: float, until: float = math.inf) -> Rate:
    return lambda now: high if at < now <= until else low


@pytest.mark.parametrize("rules", [ROOM, replace(ROOM, step=4)])
@pytest.mark.parametrize("cpu", [True, False])
def test_a_step_is_followed_within_the_cooldown(rules: Scaling, cpu: bool) -> None:
    since = 1800
    pool = Queues(0.1, 8, cpu)
    changes = simulated(rules, pool, step(40, 400, since, 2 * since), 2, 1)  # 0.5, and 5 targets
    assert not within(changes, 0, since)
    up = within(changes, since, since + 600)
    assert up[0].at - since <= 2 * rules.interval
    assert within(up, 0, since + rules.cooldown)
    needed = next(one.at for one in up if one.targets > 5)
    steps = math.ceil(5 / rules.step)
    assert needed - since <= 2 * rules.interval + (steps - 1) * rules.cooldown
    assert max(one.targets for one in up) <= (12 if rules.step == 1 else 10)
    down = within(changes, 2 * since)
    assert down[0].at - 2 * since <= 2 * rules.cooldown
    assert down[-1].targets <= 2
    assert turns(12, down) <= 2


def test_targets_that_come_late_are_waited_for() -> None:
    load = step(40, 280, 600)
    changes = simulated(ROOM, Queues(0.1, 8, cpu=True), load, 1, 1, comes=45)
    more = changes[:4]
    assert [one.targets for one in more] == [2, 3, 4, 5]
    for before, after in pairwise(more):
        assert after.at - before.at == 40 + ROOM.cooldown  # it was last seen to come after 40 s
    assert not within(changes, 2400)


def pareto(mean: float, chance: random.Random) -> Callable[[], float]:
    """Most much shorter, few much longer; the thousandth 40 times the mean or more."""
    return lambda: mean * 0.375 * float(chance.paretovariate(1.6))


def noisy(rate: float, chance: random.Random) -> Rate:
    """Another rate at each look, up to 30 % off."""
    return lambda now: rate * chance.uniform(0.7, 1.3)


@functools.cache
def under_noise(mean: float, seed: int, by: Decide = decide) -> list[Change]:
    """Work for two and a half targets that do one request at a time: the hour after the first
    half."""
    chance = random.Random(seed)
    pool = Events(pareto(mean, chance), 1, chance)
    return within(simulated(ROOM, pool, noisy(2.5 / mean, chance), 1.5, 3, by), 1800)


@pytest.mark.parametrize("mean", [0.08, 0.2])
@pytest.mark.parametrize("seed", range(2))
def test_noise_does_not_flap(mean: float, seed: int) -> None:
    changes = under_noise(mean, seed)
    assert len(changes) <= 3
    assert all(2 <= one.targets <= 6 for one in changes)


@functools.cache
def in_two_days(cpu: bool, by: Decide = decide) -> list[Change]:
    """From a quarter of a target to eight and back, twice."""

    def load(now: float) -> float:
        return 80 * (4.1 - 3.85 * math.cos(2 * math.pi * now / BELIEVED))

    return simulated(replace(ROOM, interval=20), Queues(0.1, 8, cpu), load, 48, 1, by)


@pytest.mark.parametrize("cpu", [True, False])
def test_a_day_is_followed(cpu: bool) -> None:
    changes = in_two_days(cpu)
    for day in (0, 1):
        noon = [one for one in changes if one.at < (day + 0.55) * BELIEVED][-1]
        night = [one for one in changes if one.at < (day + 1) * BELIEVED][-1]
        assert 8 <= noon.targets <= 12
        assert night.targets <= 2
    assert len(changes) <= 2 * 2 * 14


def test_the_page_tells_what_came_of_all_this() -> None:
    """Also of the rules alone, which must not get through the tests above."""
    figures: dict[str, Callable[[Decide], int]] = {
        f"{len(CONSTANT)} constant loads: those that don't settle": restless,
        "noise, response times of 0.08 s: changes in an hour": lambda by: len(
            under_noise(0.08, 0, by)
        ),
        "noise, response times of 0.2 s: changes in an hour": lambda by: len(
            under_noise(0.2, 0, by)
        ),
        "two days, work for processors: changes": lambda by: len(in_two_days(True, by)),
        "two days, other work: changes": lambda by: len(in_two_days(False, by)),
    }
    page = (Path(__file__).parents[1] / "docs" / "scaling.md").read_text(encoding="utf-8")
    for what, found in figures.items():
        assert f"| {what} | {found(by_the_rules_alone)} | {found(decide)} |" in page
