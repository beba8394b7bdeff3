"""Autoscaler: whether there should be more targets or fewer. Pure: signals in, a decision out."""

from dataclasses import dataclass

from pyproxy.scaling_settings import Scaling


@dataclass(frozen=True)
class Signals:
    """What a pool looks like, since the look before."""

    targets: int  # managed ones that serve
    coming: int  # managed ones that have been started, and don't serve yet
    rate: float  # requests a second
    response_time: float | None  # seconds, on average; None if no request was answered
    in_flight: float  # requests under way for each target that serves
    cpu: float | None  # per cent of a processor for each managed target; None if unknown


@dataclass(frozen=True)
class State:
    """What is remembered from one decision to the next."""

    changed: float = float("-inf")  # when


@dataclass(frozen=True)
class Decision:
    change: int  # targets more, or fewer
    reason: str


def decide(rules: Scaling, seen: Signals, state: State, now: float) -> tuple[Decision, State]:
    """What to do now, and what to remember. ``now`` is in seconds, of any steady clock."""
    raise NotImplementedError
