"""Fleets: those of all pools, as the settings say from one reload to the next."""

import functools
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pyproxy.errors import ControlError, PyproxyError
from pyproxy.readers import Json
from pyproxy.scaling.fleet import Fleet
from pyproxy.scaling.launcher import Launcher
from pyproxy.scaling.lives import all_at_once
from pyproxy.scaling.processes import ProcessLauncher
from pyproxy.scaling.replicas import Replicas
from pyproxy.scaling.scaler import Hands, Scaler
from pyproxy.scaling_settings import Scaling
from pyproxy.sections import PoolSettings
from pyproxy.services import name_of
from pyproxy.settings import Settings

_MOST = 30.0  # seconds that a start waits for its targets
# An heir has no other try: it gives up if none serves, and is waited for a minute (hand_over).
_MOST_OF_AN_HEIR = 50.0


def _launcher(said: Scaling, pool: str, settings: Settings) -> Launcher:
    if said.launcher == "docker":
        from pyproxy.scaling.containers import DockerLauncher  # only here: docker is an extra

        return DockerLauncher(said, said.owner or _owner(settings), pool)
    return ProcessLauncher(said)


def _owner(settings: Settings) -> str:
    """The same at the next start, and of no other program: nobody else listens there."""
    places = [one.url for one in settings.listen if one.place[2]]
    return " ".join([socket.gethostname(), *(places or [uuid.uuid4().hex])])


def check(settings: Settings) -> None:
    """Whether targets can be made here as these settings say. Raises ``SettingsError``."""
    for said in scaled(settings).values():
        if said.scaling and said.scaling.launcher != "process":
            from pyproxy.scaling.engine import Engine  # only here, as above

            Engine(said.scaling.launcher).close()


def scaled(settings: Settings) -> dict[str, PoolSettings]:
    """The pools whose targets are made, by name."""
    pools: list[PoolSettings] = [settings, *settings.routes]
    return {name_of(one): one for one in pools if one.scaling}


class Fleets:
    """Changed by one thread at a time; asked by any."""

    def __init__(self, hands: Hands, left: Mapping[str, Any] | None = None) -> None:
        """``left`` is what ``leave`` of the program before has told."""
        self._hands = hands
        self._left = dict(left or {})
        self._is_heir = bool(left)
        self._fleets: dict[str, Scaler] = {}
        self._said: dict[str, Scaling] = {}
        self._retiring: list[tuple[Scaler, threading.Thread]] = []
        self.hurried: Callable[[], bool] = lambda: False

    def apply(self, settings: Settings) -> None:
        """Those that stay go on with these settings, others begin or end."""
        wanted = scaled(settings)
        said = {name: one.scaling for name, one in wanted.items() if one.scaling}
        same = {
            name
            for name, one in said.items()
            if name in self._said and one.place == self._said[name].place
        }
        gone = {name: self._fleets.pop(name) for name in self._fleets.keys() - same}
        for name in same:
            self._fleets[name].configure(wanted[name])
        for name in said.keys() - same:
            self._fleets[name] = self._made(name, wanted[name], settings, gone.get(name))
            self._fleets[name].start()
        self._retiring = [one for one in self._retiring if one[1].is_alive()]
        self._retiring += [(old, old.retire(self._fleets.get(name))) for name, old in gone.items()]
        self._said = said

    def _made(
        self, name: str, said: PoolSettings, settings: Settings, old: Scaler | None
    ) -> Scaler:
        assert said.scaling
        left = self._left.pop(name, None)
        if said.scaling.launcher == "swarm":
            from pyproxy.scaling.swarm import Swarm  # only here, as above

            return Replicas(name, said, self._hands, Swarm(said.scaling))
        launcher = _launcher(said.scaling, name, settings)
        before = old if isinstance(old, Fleet) else None
        return Fleet(name, said, self._hands, launcher, left, before)

    def wait(self) -> None:
        """Until all targets that are wanted serve, or have failed to, or ``hurried()``, or for half
        a minute; an heir, for most of the time that it has."""
        deadline = time.monotonic() + (_MOST_OF_AN_HEIR if self._is_heir else _MOST)
        for fleet in self._fleets.values():
            fleet.wait(max(deadline - time.monotonic(), 0.1), self.hurried)

    def describe(self, pool: str) -> dict[str, Any] | None:
        """In JSON's terms; None if its targets aren't made."""
        fleet = self._fleets.get(pool)
        return fleet.describe() if fleet else None

    def scale(self, count: int, pool: str = "") -> Json:
        """As ``Control`` says of it; like the next two."""
        fleet = self._find(pool)
        fleet.scale(count, "by the operator")
        return fleet.describe()

    def roll_out(self, version: Mapping[str, Json], pool: str = "") -> Json:
        fleet = self._find(pool)
        fleet.roll_out(version)
        return fleet.describe()

    def change_rollout(self, action: str, pool: str = "") -> Json:
        fleet = self._find(pool)
        fleet.change_rollout(action)
        return fleet.describe()

    def _find(self, pool: str) -> Scaler:
        """Of the pool with this name; without one, the only one or the first. Raises
        ``ControlError``."""
        if not self._fleets:
            raise ControlError(409, "no pool has scaling: its targets are as the settings say")
        name = pool or next(iter(self._fleets))
        if name not in self._fleets:
            raise ControlError(404, f'no pool with scaling is called "{name}"')
        return self._fleets[name]

    def without_made(self, journal: Iterable[Any]) -> list[Any]:
        """What of a journal isn't of targets that are made: the next program makes its own."""
        made = set[str]().union(*(one.ids for one in self._all()))
        return [deed for deed in journal if deed[1] not in made]

    def rest(self) -> None:
        """Nothing changes any more, until they are to ``go_on``."""
        for fleet in self._all():
            fleet.rest()

    def _all(self) -> list[Scaler]:
        """With those that others take the place of."""
        return [*self._fleets.values(), *(one for one, thread in self._retiring)]

    def go_on(self) -> None:
        for fleet in self._all():
            fleet.go_on()

    def check(self) -> None:
        """Whether those serve here whose like served in the program before. Raises
        ``PyproxyError``."""
        for name, fleet in self._fleets.items():
            if said := fleet.falls_short():
                raise PyproxyError(f"scaling {name}: {said}")

    def leave(self) -> dict[str, Json]:
        """What the next program is to know."""
        left = {name: fleet.leave() for name, fleet in self._fleets.items()}
        for old, _ in self._retiring:  # they serve until those that take their place do
            if isinstance(old, Fleet) and "handles" in left.get(old.pool, {}):
                left[old.pool]["handles"] |= old.leave()["handles"]
        return left

    def stop(self, keep: bool = False) -> None:
        """Ends all targets; with ``keep`` those that another program can take over live on."""
        all_at_once([functools.partial(one.stop, keep) for one in self._all()])
        for _, thread in self._retiring:
            thread.join()
        self._fleets, self._retiring = {}, []
