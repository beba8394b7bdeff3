"""Containers of a Docker engine as targets (extra ``docker``).

What is to be known of a container stands in its labels, so that the next start of this program
finds its own ones, and leaves those of others alone.
"""

import contextlib
import hashlib
import json
import math
import re
import signal
import threading
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pyproxy.scaling.engine import Engine
from pyproxy.scaling.launcher import Instance, LauncherAway, LaunchError
from pyproxy.scaling_settings import Environment, Scaling, Version

with contextlib.suppress(ImportError):  # Engine tells
    import docker

_OWNER, _POOL, _NAME = "pyproxy.owner", "pyproxy.pool", "pyproxy.name"
_VERSION, _PORT, _NETWORK = "pyproxy.version", "pyproxy.port", "pyproxy.network"

_LAST_WORDS = 200  # characters
_AT_ONCE = 8  # containers that are ended


class DockerLauncher:
    """``Launcher`` for containers. They survive this program, and their engine's connection to it:
    an ``owner`` is one that comes back."""

    def __init__(self, said: Scaling, owner: str, pool: str) -> None:
        """Raises ``SettingsError`` without the Docker SDK, or for a ``DOCKER_HOST`` that is none.
        An engine that doesn't answer is no reason not to begin."""
        self._said = said
        self._owner, self._pool = owner, pool
        self._engine = Engine("docker")
        whose = hashlib.sha256(f"{owner}\0{pool}".encode()).hexdigest()[:8]
        self._prefix = f"pyproxy-{whose}-"
        self._own: set[str] = set()  # containers that it has made or taken over
        self._failed: set[str] = set()  # names of starts that may have left something behind
        # Protects both.
        self._lock = threading.Lock()

    def adopt(self, only: Collection[str] | None = None) -> list[Instance]:
        found = []
        with self._engine.client(changing=True) as client:
            for one in self._ours(client):
                if only is not None and one["Id"] not in only:
                    continue
                instance = None
                with contextlib.suppress(docker.errors.NotFound, LaunchError):
                    instance = _instance(client.inspect_container(one["Id"]))
                if instance:
                    found.append(instance)
                else:
                    _remove(client, one["Id"])
        with self._lock:
            self._own.update(instance.handle for instance in found)
        return found

    def start(self, name: str, version: Version) -> Instance:
        self._sweep(name)
        try:
            with self._engine.client(changing=True) as client:
                handle = self._create(client, name, version)
                self._run(client, handle)
                instance = _instance(client.inspect_container(handle))
                if instance is None:
                    raise LaunchError(_how_it_ended(client, handle) or "it is gone")
        except LaunchError as error:
            with self._lock:
                self._failed.add(name)
            if isinstance(error, LauncherAway):
                raise
            with contextlib.suppress(LaunchError):
                self._sweep()
            raise LaunchError(f"can't be started: {error}") from None
        with self._lock:
            self._own.add(instance.handle)
        return instance

    def ended(self, instance: Instance) -> str | None:
        with self._engine.client() as client:
            return _how_it_ended(client, instance.handle)

    def processor_time(self, instance: Instance) -> float | None:
        with self._engine.client() as client:
            try:
                found = client.stats(instance.handle, stream=False, one_shot=True)
            except (docker.errors.NotFound, docker.errors.InvalidVersion):
                return None
            used = found.get("cpu_stats", {}).get("cpu_usage", {}).get("total_usage")
            return used / 1e9 if used else None  # it is 0 of one that doesn't run

    def stop(self, instance: Instance, patience: float) -> None:
        self._end(instance.handle, patience)

    def close(self, keep: bool = False) -> None:
        """Raises ``LauncherAway`` if the engine doesn't answer: what runs stays."""
        try:
            if not keep:
                with self._lock:
                    own = [*self._own]
                with ThreadPoolExecutor(_AT_ONCE, "pyproxy-containers") as threads:
                    list(threads.map(lambda one: self._end(one, self._said.stop_timeout), own))
                self._sweep()
        finally:
            self._engine.close()

    def _create(self, client: Any, name: str, version: Version) -> str:
        port = str(self._said.port)
        network = self._said.network
        inside = f"{port}/tcp"
        asked = {
            "image": version.image,
            "name": self._prefix + re.sub(r"[^\w.-]", "-", name, flags=re.ASCII),
            "command": [part.replace("{port}", port) for part in version.command] or None,
            "environment": {key: one.replace("{port}", port) for key, one in version.environment},
            "ports": [self._said.port],
            "labels": {
                _OWNER: self._owner,
                _POOL: self._pool,
                _NAME: name,
                _VERSION: _written(version),
                _PORT: port,
                _NETWORK: network or "",
            },
            "host_config": client.create_host_config(
                network_mode=network,
                port_bindings=None if network else {inside: ("127.0.0.1", None)},
            ),
        }
        try:
            return str(client.create_container(**asked)["Id"])
        except docker.errors.ImageNotFound:
            _pull(client, version.image)
            return str(client.create_container(**asked)["Id"])

    def _run(self, client: Any, handle: str) -> None:
        try:
            client.start(handle)
        except docker.errors.APIError as error:
            network = self._said.network  # its status is another where there is a Swarm
            if network and f"network {network} not found" in str(error.explanation):
                raise LaunchError(
                    f'there is no network "{network}": docker network create {network}'
                ) from None
            raise

    def _ours(self, client: Any, *labels: str) -> list[dict[str, Any]]:
        own = [f"{_OWNER}={self._owner}", f"{_POOL}={self._pool}", *labels]
        found: list[dict[str, Any]] = client.containers(all=True, filters={"label": own})
        return found

    def _sweep(self, *names: str) -> None:
        """Nothing stands in the way of ``names``, nor is left of starts that failed."""
        with self._lock:
            left = self._failed.copy()
        if not left.union(names):
            return
        with self._engine.client(changing=True) as client:
            for name in left.union(names):
                for one in self._ours(client, f"{_NAME}={name}"):
                    _remove(client, one["Id"])
        with self._lock:
            self._failed -= left

    def _end(self, handle: str, patience: float) -> None:
        with self._engine.client(changing=True) as client:
            with contextlib.suppress(docker.errors.NotFound):
                client.stop(handle, timeout=math.ceil(patience))
            _remove(client, handle)
        with self._lock:
            self._own.discard(handle)


def _pull(client: Any, image: str) -> None:
    """Raises ``LaunchError`` if that can't be done."""
    why = ""
    try:
        for line in client.pull(image, stream=True, decode=True):
            why = line.get("error", why)
    except docker.errors.APIError as error:
        why = error.explanation or str(error)
    if why:
        raise LaunchError(
            f'the engine has no image "{image}": build it (docker build -t {image} .), or see why'
            f" it can't be pulled: {' '.join(why.split())[:_LAST_WORDS]}"
        )


def _remove(client: Any, handle: str) -> None:
    """With its anonymous volumes, whether it runs or not."""
    try:
        client.remove_container(handle, v=True, force=True)
    except docker.errors.NotFound:
        pass
    except docker.errors.APIError as error:
        if "already in progress" not in str(error.explanation):
            raise


def _instance(detail: dict[str, Any]) -> Instance | None:
    """None of one that doesn't run. Raises ``LaunchError`` if there is no way to it."""
    if not detail["State"]["Running"]:
        return None
    labels = detail["Config"]["Labels"]
    called = detail["Name"].lstrip("/")
    url = _url(detail["NetworkSettings"], labels[_PORT], labels[_NETWORK])
    return Instance(labels[_NAME], url, _read(detail), detail["Id"], f"docker logs {called}")


def _url(found: dict[str, Any], port: str, network: str) -> str:
    if not network:
        published = (found["Ports"] or {}).get(f"{port}/tcp")
        if not published:
            raise LaunchError(f"the engine has published no port for its port {port}")
        return f"http://127.0.0.1:{published[0]['HostPort']}"
    for at in found["Networks"].values():  # there is one
        if address := at["IPAddress"]:
            return f"http://{address}:{port}"
        if address := at["GlobalIPv6Address"]:
            return f"http://[{address}]:{port}"
    raise LaunchError(f'network "{network}" gives containers no address of their own')


def _how_it_ended(client: Any, handle: str) -> str | None:
    try:
        state = client.inspect_container(handle)["State"]
        if state["Running"]:
            return None
        said = _last_words(client, handle)
    except docker.errors.NotFound:
        return "was removed"
    code = state["ExitCode"]
    if state["OOMKilled"]:
        how = f"ran out of memory, and ended with status {code}"
    elif code - 128 in set(signal.Signals):
        how = f"was ended by {signal.Signals(code - 128).name}"
    else:
        how = f"ended with status {code}"
    said = state["Error"] or said
    return f"{how}: {said}" if said else how


def _last_words(client: Any, handle: str) -> str:
    """The last line that says something; nothing if the engine keeps no logs."""
    try:
        log: bytes = client.logs(handle, tail=20)
    except docker.errors.NotFound:
        raise
    except docker.errors.APIError:
        return ""
    lines = [line.strip() for line in log.decode("utf-8", "replace").splitlines()]
    return next((line[:_LAST_WORDS] for line in reversed(lines) if line), "")


def _written(version: Version) -> str:
    """For a label. Those are shown in many places: of the values of variables, which may be
    secrets, it has but the lengths of what stands between the ports."""
    lengths = {
        key: [len(one) for one in value.split("{port}")] for key, value in version.environment
    }
    return json.dumps({"image": version.image, "command": version.command, "environment": lengths})


def _read(detail: dict[str, Any]) -> Version:
    """What ``_written`` has written, and the container's own variables."""
    labels = detail["Config"]["Labels"]
    said = json.loads(labels[_VERSION])
    values = dict(one.partition("=")[::2] for one in detail["Config"]["Env"] or ())
    environment = []
    for name, lengths in said["environment"].items():
        value, parts, at = values.get(name, ""), [], 0
        for length in lengths:
            parts.append(value[at : at + length])
            at += length + len(labels[_PORT])
        environment.append((name, "{port}".join(parts)))
    return Version(tuple(said["command"]), said["image"], Environment(environment))
