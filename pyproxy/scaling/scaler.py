"""Scaler: what keeps as many targets in one pool as are wanted; and what it does that with."""

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any, Protocol

from pyproxy.balancing.counters import Totals
from pyproxy.errors import ControlError
from pyproxy.readers import Json
from pyproxy.scaling.load import Load
from pyproxy.scaling_settings import Scaling
from pyproxy.sections import PoolSettings


class Hands(Protocol):
    """What it takes of ``control.Verbs``. Each raises ``ControlError``."""

    def snapshot(self) -> dict[str, Any]: ...
    def totals(self) -> Totals: ...
    def add(self, target: Json, pool: str, reason: str) -> str: ...
    def remove(self, target: str, reason: str) -> None: ...
    def drain(self, target: str, reason: str) -> None: ...
    def maintenance(self, target: str, reason: str) -> None: ...


def targets_of(hands: Hands, pool: str) -> dict[str, dict[str, Any]] | None:
    """By id; None while nobody serves the pool. Raises ``ControlError``."""
    for found in hands.snapshot()["pools"]:
        if found["name"] == pool:
            return {one["id"]: one for one in found["targets"]}
    return None


class Scaler(ABC):
    """Its methods may be called from any thread. One thread of its own looks and acts, from
    ``start`` to ``stop``; it isn't started twice. The lock ``_changed`` isn't held while ``hands``
    are used, or what makes targets: both may take long, and a reload holds the locks of ``hands``
    and asks the scaler."""

    def __init__(self, pool: str, said: PoolSettings, hands: Hands) -> None:
        assert said.scaling
        self.pool = pool
        self._hands = hands
        self._load = Load(pool)
        # Protects all that follows, here and in subclasses: who reads without it what may be a
        # moment old does no harm. Notified when something has changed.
        self._changed = threading.Condition()
        self._rules: Scaling = said.scaling
        self._wanted = self._rules.min
        self._resting = False
        self._stopping = False
        self._thread = threading.Thread(
            target=self._run, name=f"pyproxy-scaling-{pool}", daemon=True
        )

    @abstractmethod
    def _run(self) -> None:
        """What its thread does, until it is ``_stopping``."""

    def _within(self, count: int) -> int:
        return min(max(count, self._rules.min), self._rules.max)

    def _refuse_outside(self, count: int) -> None:
        if count != self._within(count):
            least, most = self._rules.min, self._rules.max
            raise ControlError(422, f"count: expected from {least} to {most}, as scaling says")

    def _told(
        self, version: str, problem: str, instances: Sequence[Json] = (), rollout: Json = None
    ) -> dict[str, Any]:
        """What ``describe`` returns; under the lock."""
        return {
            "launcher": self._rules.launcher,
            "min": self._rules.min,
            "max": self._rules.max,
            "auto": self._rules.auto,
            "wanted": self._wanted,
            "version": version,
            "problem": problem,
            **self._load.describe(),
            "instances": [*instances],
            "rollout": rollout,
        }

    def start(self) -> None:
        """Begins, in threads of its own."""
        self._thread.start()

    @abstractmethod
    def wait(self, seconds: float, hurried: Callable[[], bool] = lambda: False) -> None:
        """Until as many serve as are wanted, something has failed, time is up, or ``hurried()``."""

    @abstractmethod
    def configure(self, said: PoolSettings) -> None:
        """Goes on with other settings, of the same ``Scaling.place``."""

    # What people ask for

    @abstractmethod
    def scale(self, count: int, reason: str) -> int:
        """From now on so many, between min and max. Raises ``ControlError``."""

    @abstractmethod
    def roll_out(self, what: Mapping[str, Json]) -> None:
        """Begins a rollout to another ``image``, ``command`` or ``environment``. Raises
        ``ControlError``."""

    @abstractmethod
    def change_rollout(self, action: str) -> None:
        """``pause``, ``resume`` or ``abort``, which goes back to the old version. Raises
        ``ControlError``."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What there is, in JSON's terms."""

    @property
    @abstractmethod
    def ids(self) -> Set[str]:
        """Of the targets in the pool that were made here."""

    @abstractmethod
    def serves(self) -> bool:
        """Whether as many serve as are wanted, or it has nothing to do with that any more."""

    # The end

    def rest(self) -> None:
        """Changes nothing any more, until it is to ``go_on``."""
        with self._changed:
            self._resting = True

    def go_on(self) -> None:
        """The next program, for which it rested, hasn't taken over."""
        with self._changed:
            self._resting = False

    @abstractmethod
    def falls_short(self) -> str:
        """Why no target serves, if some did in the program before."""

    @abstractmethod
    def leave(self) -> dict[str, Any]:
        """What that of the next program is to know."""

    @abstractmethod
    def stop(self, keep: bool = False) -> None:
        """Ends all its targets; with ``keep`` those that another program has taken over, or can,
        live on."""

    @abstractmethod
    def retire(self, successor: "Scaler | None") -> threading.Thread:
        """Ends in a thread of its own, once the successor serves."""
