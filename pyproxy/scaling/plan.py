"""Plan: what is to be started and ended now, so that there are as many targets as wanted, of the
version that is wanted. Pure: what is there in, what to do out.

A rollout adds one target of the new version, waits until it has proven itself, ends one of the old
version, and goes on. When it is taken back, it goes the same way in the other direction; but
targets that fail requests are ended at once, as soon as another one serves.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from pyproxy.scaling_settings import Version

_PARTS = ("command", "environment")  # of a version


@dataclass(frozen=True)
class Member:
    """A target that has been started, as far as the plan goes."""

    name: str
    version: Version
    serves: bool  # False: it has yet to become healthy
    age: float = 0.0  # seconds for which it has served
    lost: bool = False  # out of service for long: it counts as one that is missing
    in_flight: int = 0


@dataclass(frozen=True)
class Rollout:
    old: Version
    new: Version
    proven: float  # seconds for which a new target has to serve before the next step
    began: float  # time.time()
    returning: bool = False
    paused: bool = False
    reason: str = ""  # why it returns
    harmful: bool = False  # its targets fail requests

    def back(self, reason: str, harmful: bool = False) -> "Rollout":
        """``harmful``: targets of the new version fail requests."""
        if self.returning:
            return self
        return replace(self, returning=True, paused=False, reason=reason, harmful=harmful)

    @property
    def called(self) -> str:
        """The new version, in words that aren't those of the old one, too."""
        if self.old == self.new or str(self.old) != str(self.new):
            return str(self.new)
        other = [one for one in _PARTS if getattr(self.old, one) != getattr(self.new, one)]
        return f"{self.new} with another {' and '.join(other)}"

    @property
    def step(self) -> str:
        """Why a target goes."""
        back = f"the rollout of {self.called} goes back"
        return back if self.returning else f"rollout of {self.called}"

    @property
    def wanted(self) -> Version:
        """The one that there shall be in the end."""
        return self.old if self.returning else self.new


@dataclass
class Plan:
    start: list[Version] = field(default_factory=list)
    end: list[str] = field(default_factory=list)
    finished: bool = False  # the rollout


def plan(members: Sequence[Member], wanted: int, version: Version, rollout: Rollout | None) -> Plan:
    """``version`` is what there is without a rollout."""
    counted = [one for one in members if not one.lost]
    if rollout is None:
        found = _keep(counted, wanted, version)
    elif rollout.paused:  # between two steps there may be one more
        found = _keep(counted, wanted + (len(counted) == wanted + 1), rollout.old)
    elif rollout.returning:
        found = _back(counted, wanted, rollout)
    else:
        found = _on(counted, wanted, rollout)
    # What is lost goes when others serve in its place.
    if found.finished or not found.start:
        serving = sum(one.serves for one in counted)
        if serving >= min(wanted, len(counted)):
            found.end += [one.name for one in members if one.lost]
    return found


def _keep(members: Sequence[Member], wanted: int, version: Version) -> Plan:
    missing = wanted - len(members)
    return Plan(start=[version] * max(missing, 0), end=_least(members, -missing))


def _least(members: Sequence[Member], count: int) -> list[str]:
    """Those that are missed least: they don't serve yet, or have the least to do."""
    order = sorted(members, key=lambda one: (one.serves, one.in_flight, one.age))
    return [one.name for one in order[: max(count, 0)]]


def _on(members: Sequence[Member], wanted: int, rollout: Rollout) -> Plan:
    new = [one for one in members if one.version == rollout.new]
    old = [one for one in members if one.version != rollout.new]
    if not all(one.serves and one.age >= rollout.proven for one in new):
        return Plan(start=[rollout.old] * (wanted - len(members)))
    if len(members) <= wanted and (old or len(new) < wanted):
        return Plan(start=[rollout.new])
    if len(members) > wanted:
        return Plan(end=_least(old or new, 1))
    return Plan(finished=True)


def _back(members: Sequence[Member], wanted: int, rollout: Rollout) -> Plan:
    # Of a rollout that another has replaced there may be some that are neither.
    new = [one for one in members if one.version != rollout.old]
    old = [one for one in members if one.version == rollout.old]
    serving = sum(one.serves for one in old)
    if rollout.harmful:  # one that fails requests is worth nothing, but better than nobody
        found = _keep(old, wanted, rollout.old)
        found.end += [one.name for one in new] if serving or not wanted else []
    else:
        spare = len(new) - max(wanted - serving, 0)
        room = max(wanted + 1 - len(members), 0)
        missing = min(wanted - len(old), room)
        found = Plan(start=[rollout.old] * missing, end=_least(old, len(old) - wanted))
        found.end += _least(new, max(spare, sum(not one.serves for one in new)))
    if not new and serving == len(old) >= wanted:
        found.finished = True
    return found
