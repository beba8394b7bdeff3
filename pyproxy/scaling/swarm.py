"""A service of a Swarm, whose replicas the engine makes and discovery finds (extra ``docker``)."""

import contextlib
from collections.abc import Iterator
from typing import Any

from pyproxy.scaling.engine import Engine
from pyproxy.scaling.launcher import LauncherAway, LaunchError
from pyproxy.scaling_settings import Scaling

with contextlib.suppress(ImportError):  # Engine tells
    import docker

_TRIES = 5  # when others change the service at the same time


class Swarm:
    """How many replicas ``scaling.service`` is to have. The engine must be one of a manager.

    Each method may block for seconds, and raises ``LaunchError``, or ``LauncherAway`` if the
    engine, or the Swarm's leader, doesn't answer."""

    def __init__(self, said: Scaling) -> None:
        """Raises ``SettingsError`` like ``Engine``."""
        self._said = said
        self._engine = Engine("swarm")

    def count(self) -> int:
        """The replicas that are wanted now. Fewer than ``min`` are made ``min`` first."""
        with self._asked() as client:
            count = self._replicas(self._find(client))
        if count >= self._said.min:
            return count
        return self.scale(self._said.min)

    def scale(self, count: int) -> int:
        """Wants so many, within ``min`` and ``max``, and returns that."""
        count = min(max(count, self._said.min), self._said.max)
        for tried in range(_TRIES):
            with self._asked() as client:
                found = self._find(client)
                if self._replicas(found) == count:
                    return count
                spec = found["Spec"]
                try:
                    # All as it is, or the replicas there are would be replaced.
                    client.update_service(
                        found["ID"],
                        found["Version"]["Index"],
                        name=spec["Name"],
                        labels=spec.get("Labels"),
                        task_template=spec["TaskTemplate"],
                        mode={"Replicated": {"Replicas": count}},
                        update_config=spec.get("UpdateConfig"),
                        rollback_config=spec.get("RollbackConfig"),
                        endpoint_spec=spec.get("EndpointSpec"),
                    )
                    return count
                except docker.errors.APIError as error:
                    late = "out of sequence" in str(error.explanation)
                    if not late or tried + 1 == _TRIES:
                        raise
        raise AssertionError  # the last try returns or raises

    def close(self) -> None:
        self._engine.close()

    @contextlib.contextmanager
    def _asked(self) -> Iterator[Any]:
        try:
            with self._engine.client(changing=True) as client:
                yield client
        except LauncherAway:
            raise
        except LaunchError as error:
            if "have a leader" in str(error):
                raise LauncherAway(str(error)) from None
            raise

    def _find(self, client: Any) -> dict[str, Any]:
        name = self._said.service
        try:
            found: dict[str, Any] = client.inspect_service(name)
        except docker.errors.NotFound:
            raise LaunchError(f'there is no service "{name}": see docker service ls') from None
        except docker.errors.APIError as error:
            if "not a swarm manager" in str(error.explanation):
                raise LaunchError(
                    "the engine is no manager of a Swarm: set DOCKER_HOST to one that is, or begin"
                    " one with docker swarm init"
                ) from None
            raise
        return found

    def _replicas(self, found: dict[str, Any]) -> int:
        mode = found["Spec"]["Mode"]
        if "Replicated" not in mode:
            raise LaunchError(
                f'service "{self._said.service}" is {" ".join(mode).lower()}: only one in mode'
                " replicated can be scaled"
            )
        count: int = mode["Replicated"].get("Replicas", 1)
        return count
