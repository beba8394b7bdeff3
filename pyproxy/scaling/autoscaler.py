"""Autoscaler: whether there should be more targets or fewer. Pure: signals in, a decision out.

What is too much counts when two looks in a row say so, what is too little when it is so on average,
over a whole cooldown. A removal that turns out to be one too many teaches what a target can't
carry: the same load doesn't lead to the same removal again.
"""

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

from pyproxy.scaling_settings import Scaling

WELL_BELOW = 0.8  # times what a target couldn't carry is tried again
BELIEVED = 24 * 3600.0  # seconds; then it may be
DOUBTED = 1.5  # times as much


@dataclass(frozen=True)
class Signals:
    """What a pool looks like, since the look before."""

    targets: int  # managed ones that serve
    coming: int  # managed ones that have been started, and don't serve yet
    rate: float  # requests a second
    response_time: float | None  # seconds, on average; None if no request was answered
    in_flight: float  # requests under way for each target that serves
    cpu: float | None  # per cent of a processor for each managed target; None if unknown
    others: int = 0  # unmanaged ones that serve


@dataclass(frozen=True)
class State:
    """What is remembered from one decision to the next."""

    changed: float = -math.inf  # when; or when the last of the targets came
    rules: Scaling | None = None  # by which the rest was found
    removed: bool = False  # the last change was a removal
    high: bool = False  # the look before was
    looks: int = 0  # since the last change, and their averages
    rate: float | None = None
    response_time: float | None = None
    cpu: float | None = None
    in_flight: float | None = None
    limit: float = math.inf  # requests a second that were too much for one target
    learned: float = math.inf  # when


@dataclass(frozen=True)
class Decision:
    change: int  # targets more, or fewer
    reason: str


class _Signal(NamedTuple):
    name: str
    unit: str
    now: float | None
    average: float | None
    low: float | None
    high: float | None
    shared: bool  # by the targets: each gets more of it when there are fewer

    def excess(self) -> float:
        """Times what is too much; 0 if that isn't known."""
        return 0.0 if self.now is None or self.high is None else self.now / self.high

    def says(self, value: float, sign: str, mark: float) -> str:
        return f"{self.name} {_figure(value)}{self.unit} {sign} {_figure(mark)}{self.unit}"


def decide(rules: Scaling, seen: Signals, state: State, now: float) -> tuple[Decision, State]:
    """What to do now, and what to remember. ``now`` is in seconds, of any steady clock."""
    if state.rules is not rules and state.rules != rules:
        state = State(state.changed, rules)
    count = seen.targets + seen.coming
    if count < rules.min:
        return _change(rules.min - count, f"{count} < min {rules.min}", state, now)
    if count > rules.max:
        return _change(rules.max - count, f"{count} > max {rules.max}", state, now)
    if seen.coming:
        return Decision(0, f"{seen.coming} on the way"), replace(state, changed=now, high=False)
    state = _averaged(rules, seen, state)
    signals = _signals(rules, seen, state)
    worst = max(signals, key=_Signal.excess)
    high_before, high = state.high, worst.excess() > 1
    if high is not high_before:
        state = replace(state, high=high)
    rest = state.changed + rules.cooldown - now
    if rest > 0:
        return Decision(0, f"cooldown for another {_figure(rest)} s"), state
    if high:
        return _more(rules, seen, state, worst, high_before, now)
    if now - state.learned > BELIEVED:
        state = replace(state, limit=state.limit * DOUBTED, learned=now)
    return _fewer(rules, seen, state, signals, now)


def _more(
    rules: Scaling, seen: Signals, state: State, worst: _Signal, again: bool, now: float
) -> tuple[Decision, State]:
    serving = seen.targets + seen.others
    reason = worst.says(worst.now or 0, ">", worst.high or 0)
    if not again:
        return Decision(0, f"{reason}, so far in one look"), state
    if seen.targets == rules.max:
        return Decision(0, f"{reason}, but max {rules.max}"), state
    if state.removed and state.rate:
        limit = min(state.limit, state.rate / max(serving, 1))
        state = replace(state, limit=limit, learned=now)
    wanted = math.ceil(serving * worst.excess()) - serving
    change = min(max(wanted, 1), rules.step, rules.max - seen.targets)
    return _change(change, reason, state, now)


def _fewer(
    rules: Scaling, seen: Signals, state: State, signals: list[_Signal], now: float
) -> tuple[Decision, State]:
    serving = seen.targets + seen.others
    rate = state.rate or 0.0
    missing = _looks(rules) - state.looks
    if missing:
        return Decision(0, f"{missing} more looks before one may go"), state
    if serving and rate / serving > state.limit:  # it isn't too much any more
        state = replace(state, limit=rate / serving)
    reason = _too_little(rules, seen, signals)
    if not reason:
        return Decision(0, "neither too much nor too little"), state
    if seen.targets == rules.min:
        return Decision(0, f"{reason}, but min {rules.min}"), state
    if serving == 1:
        return Decision(0, f"{reason}, but it is the last"), state
    for one in signals:
        if one.shared and one.average is not None and one.high is not None:
            then = one.average * serving / (serving - 1)
            if then >= one.high:
                but = one.says(then, ">=", one.high)
                return Decision(0, f"{reason}, but then {but}"), state
    if rate / (serving - 1) >= WELL_BELOW * state.limit:
        but = f"{_figure(state.limit)} requests/s were too much for a target"
        return Decision(0, f"{reason}, but {but}"), state
    return _change(-1, reason, state, now)


def _too_little(rules: Scaling, seen: Signals, signals: list[_Signal]) -> str:
    for one in signals:
        if one.average is not None and one.low is not None and one.average < one.low:
            if _quiet(seen):
                return f"no requests for {_figure(rules.interval)} s"
            return one.says(one.average, "<", one.low)
    return ""


def _change(change: int, reason: str, state: State, now: float) -> tuple[Decision, State]:
    after = State(now, state.rules, change < 0, limit=state.limit, learned=state.learned)
    return Decision(change, reason), after


def _signals(rules: Scaling, seen: Signals, state: State) -> list[_Signal]:
    low = rules.target_response_time * rules.response_time_low
    high = rules.target_response_time * rules.response_time_high
    busy = "requests in flight per target"
    few, many = rules.in_flight_low, rules.in_flight_high
    cpu = rules.cpu_low, rules.cpu_high
    return [
        _Signal("response time", " s", seen.response_time, state.response_time, low, high, False),
        _Signal("CPU", " %", seen.cpu, state.cpu, *cpu, shared=True),
        _Signal(busy, "", seen.in_flight, state.in_flight, few, many, shared=True),
    ]


def _quiet(seen: Signals) -> bool:
    return not seen.rate and not seen.in_flight and seen.response_time is None


def _looks(rules: Scaling) -> int:
    """How many make an average that can be believed: those of a cooldown."""
    return max(round(rules.cooldown / rules.interval), 2)


def _averaged(rules: Scaling, seen: Signals, state: State) -> State:
    """Of the looks of a cooldown: a mean at first, then a new one counts for more than old ones. A
    look at a pool that nobody asks anything of counts as an answer in no time."""
    looks = min(state.looks + 1, _looks(rules))

    def mean(average: float | None, value: float | None) -> float | None:
        if average is None or value is None:
            return average if value is None else value
        return average + (value - average) / looks

    time = 0.0 if _quiet(seen) else seen.response_time
    return replace(
        state,
        looks=looks,
        rate=mean(state.rate, seen.rate),
        response_time=mean(state.response_time, time),
        cpu=mean(state.cpu, seen.cpu),
        in_flight=mean(state.in_flight, seen.in_flight),
    )


def _figure(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"
