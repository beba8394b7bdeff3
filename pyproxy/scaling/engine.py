"""A Docker engine, as launchers ask it: its failures as errors of theirs (extra ``docker``)."""

import contextlib
import os
import threading
from collections.abc import Iterator
from typing import Any

import requests
import urllib3

from pyproxy.errors import SettingsError
from pyproxy.health.checks import brief
from pyproxy.scaling.launcher import LauncherAway, LaunchError

try:
    import docker
except ImportError:
    MISSING = "needs the package docker: pip install 'pyproxy-lb[docker]'"
else:
    MISSING = ""

_LONG = 400  # characters of an engine's own words


class Engine:
    """The one that ``DOCKER_HOST`` names, else this machine's. Nothing is asked until there is a
    reason to; after a failure it is asked anew, so one that was away goes on when it is back.
    Methods may be called from any thread."""

    look, change = 10.0, 60.0  # seconds for an answer: to a question, to what takes work

    def __init__(self, launcher: str) -> None:
        """Raises ``SettingsError`` if there is no way to speak to any engine from here."""
        if MISSING:
            raise SettingsError([f'scaling.launcher: "{launcher}" {MISSING}'])
        try:
            said = docker.utils.kwargs_from_env()
            docker.utils.parse_host(said.get("base_url"), tls="tls" in said)
        except (docker.errors.DockerException, ValueError) as error:
            raise SettingsError([f"scaling.launcher: DOCKER_HOST: {_line(error)}"]) from None
        host = os.environ.get("DOCKER_HOST")
        self._called = f"the Docker engine at {host}" if host else "the Docker engine"
        self._clients: dict[bool, Any] = {}
        # Protects the field above.
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def client(self, changing: bool = False) -> Iterator[Any]:
        """A ``docker.APIClient``. What it raises within becomes ``LauncherAway``, or
        ``LaunchError`` in the engine's words."""
        try:
            yield self._client(changing)
        except docker.errors.APIError as error:
            if error.status_code in (502, 504):
                raise self._away(error) from None
            raise LaunchError(_line(error.explanation or error)) from None
        except (docker.errors.InvalidVersion, docker.errors.TLSParameterError) as error:
            raise LaunchError(f"{self._called}: {_line(error)}") from None
        except (
            docker.errors.DockerException,
            requests.RequestException,
            urllib3.exceptions.HTTPError,
            OSError,
        ) as error:
            raise self._away(error) from None

    def _client(self, changing: bool) -> Any:
        with self._lock:
            known = self._clients.get(changing)
        if known:
            return known
        patience = self.change if changing else self.look
        fresh = docker.from_env(timeout=patience).api  # asks for the engine's version
        with self._lock:
            kept = self._clients.setdefault(changing, fresh)
        if kept is not fresh:
            fresh.close()
        return kept

    def _away(self, error: Exception) -> LauncherAway:
        self.close()
        return LauncherAway(f"{self._called} doesn't answer: {_line(brief(error))}")

    def close(self) -> None:
        """Closes its connections. It may be asked again."""
        with self._lock:
            clients, self._clients = self._clients, {}
        for client in clients.values():
            client.close()


def _line(said: object) -> str:
    return " ".join(str(said).split())[:_LONG]
