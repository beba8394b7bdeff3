"""Replicas: a pool whose targets an engine makes and discovery finds; here is said how many."""

import logging
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from pyproxy.errors import ControlError
from pyproxy.readers import Json
from pyproxy.scaling.launcher import LaunchError
from pyproxy.scaling.scaler import Hands, Scaler, targets_of
from pyproxy.scaling.troubles import told
from pyproxy.sections import PoolSettings

if TYPE_CHECKING:
    from pyproxy.scaling.swarm import Swarm

log = logging.getLogger(__name__)


class Replicas(Scaler):
    """Of a service of a Swarm. Only its own thread, and who calls ``scale``, ask the engine."""

    ids: frozenset[str] = frozenset()  # no target is made here

    def __init__(self, pool: str, said: PoolSettings, hands: Hands, swarm: "Swarm") -> None:
        super().__init__(pool, said, hands)
        self._swarm = swarm
        self._problem = ""

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
                    log.debug("scaling %s: %s", self.pool, error)
                except Exception as error:  # noqa: BLE001 - without this thread nobody scales
                    self._note(told(error))
            with self._changed:
                if not self._stopping:
                    self._changed.wait(self._rules.interval)

    def _note(self, problem: str) -> None:
        with self._changed:
            before, self._problem = self._problem, problem
        if problem and problem != before:
            log.error("scaling %s: replicas are left as they are: %s", self.pool, problem)
        elif before and not problem:
            log.info("scaling %s: the engine answers again", self.pool)

    def _weigh(self) -> None:
        rules = self._rules
        wanted = self._swarm.count()
        with self._changed:
            self._wanted = wanted
        targets = [*(targets_of(self._hands, self.pool) or {}).values()]
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
            self._scale(self._within(self._load.decide(rules, seen, wanted)))

    def _scale(self, count: int) -> None:
        if count != self._wanted:
            done = self._swarm.scale(count)
            with self._changed:
                self._wanted = done

    def scale(self, count: int, reason: str) -> int:
        self._refuse_outside(count)
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
            return self._told(f"service {self._rules.service}", self._problem)

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

    def retire(self, successor: Scaler | None) -> threading.Thread:
        """In a thread of its own: its own one may wait for who asks for that."""
        name = f"pyproxy-retire-{self.pool}"
        thread = threading.Thread(target=self.stop, name=name, daemon=True)
        thread.start()
        return thread
