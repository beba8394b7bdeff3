"""Replicas: a pool whose targets an engine makes and discovery finds; here is said how many."""

import logging
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from pyproxy.errors import ControlError
from pyproxy.readers import Json
from pyproxy.scaling.fleet import Fleet, Hands
from pyproxy.scaling.launcher import LaunchError
from pyproxy.scaling.load import Load
from pyproxy.scaling_settings import Scaling
from pyproxy.sections import PoolSettings

if TYPE_CHECKING:
    from pyproxy.scaling.swarm import Swarm

log = logging.getLogger(__name__)


class Replicas:
    """What ``Fleet`` is, for a service of a Swarm; its methods say the same."""

    ids: frozenset[str] = frozenset()  # no target is made here

    def __init__(self, pool: str, said: PoolSettings, hands: Hands, swarm: "Swarm") -> None:
        assert said.scaling
        self._pool = pool
        self._rules: Scaling = said.scaling
        self._hands = hands
        self._swarm = swarm
        self._load = Load(pool)
        # Protects what follows; notified at the end.
        self._changed = threading.Condition()
        self._wanted = self._rules.min
        self._problem = ""
        self._resting = False
        self._stopping = False
        self._thread = threading.Thread(
            target=self._run, name=f"pyproxy-scaling-{pool}", daemon=True
        )

    def start(self) -> None:
        self._thread.start()

    def wait(self, seconds: float, hurried: Callable[[], bool] = lambda: False) -> None:
        """They are there or not: nothing is waited for."""

    def configure(self, said: PoolSettings) -> None:
        assert said.scaling
        with self._changed:
            self._rules = said.scaling
            self._changed.notify_all()

    def _run(self) -> None:
        while not self._stopping:
            if not self._resting:
                try:
                    self._weigh()
                    self._note("")
                except LaunchError as error:
                    self._note(str(error))
                except ControlError as error:  # the proxy begins or ends
                    log.debug("scaling %s: %s", self._pool, error)
            with self._changed:
                if not self._stopping:
                    self._changed.wait(self._rules.interval)

    def _note(self, problem: str) -> None:
        with self._changed:
            before, self._problem = self._problem, problem
        if problem and problem != before:
            log.error("scaling %s: replicas are left as they are: %s", self._pool, problem)
        elif before and not problem:
            log.info("scaling %s: the engine answers again", self._pool)

    def _weigh(self) -> None:
        rules = self._rules
        wanted = self._swarm.count()
        with self._changed:
            self._wanted = wanted
        pools = self._hands.snapshot()["pools"]
        targets = [one for pool in pools if pool["name"] == self._pool for one in pool["targets"]]
        live = sum(one["state"] == "live" for one in targets)
        seen = self._load.look(
            self._hands.totals(),
            [one["url"] for one in targets],
            targets=live,
            coming=max(wanted - live, 0),
            in_flight=sum(one["in_flight"] for one in targets),
            times={},
            machine=rules.auto,
        )
        if seen and rules.auto:
            after = min(max(self._load.decide(rules, seen, wanted), rules.min), rules.max)
            self._scale(after)

    def _scale(self, count: int) -> None:
        if count != self._wanted:
            done = self._swarm.scale(count)
            with self._changed:
                self._wanted = done

    def scale(self, count: int, reason: str) -> int:
        least, most = self._rules.min, self._rules.max
        if not least <= count <= most:
            raise ControlError(422, f"count: expected from {least} to {most}, as scaling says")
        before = self._wanted
        try:
            self._scale(count)
        except LaunchError as error:
            raise ControlError(503, str(error)) from None
        return self._load.note(before, count, reason)

    def roll_out(self, what: Mapping[str, Json]) -> None:
        service = self._rules.service
        raise ControlError(
            409, f"the engine rolls out: docker service update --image NEW {service}"
        )

    def change_rollout(self, action: str) -> None:
        raise ControlError(409, "the engine rolls out: see docker service inspect, and rollback")

    def describe(self) -> dict[str, Any]:
        with self._changed:
            return {
                "launcher": self._rules.launcher,
                "min": self._rules.min,
                "max": self._rules.max,
                "auto": self._rules.auto,
                "wanted": self._wanted,
                "version": f"service {self._rules.service}",
                "problem": self._problem,
                **self._load.describe(),
                "instances": [],
                "rollout": None,
            }

    def rest(self) -> None:
        self._resting = True

    def go_on(self) -> None:
        self._resting = False

    def leave(self) -> dict[str, Any]:
        return {}

    def stop(self, keep: bool = False) -> None:
        """The service stays as it is."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread.ident:
            self._thread.join()
        self._swarm.close()

    def serves(self) -> bool:
        return True

    def falls_short(self) -> str:
        return ""

    def retire(self, successor: "Fleet | Replicas | None") -> threading.Thread:
        """In a thread of its own: its own one may wait for who asks for that."""
        name = f"pyproxy-retire-{self._pool}"
        thread = threading.Thread(target=self.stop, name=name, daemon=True)
        thread.start()
        return thread
