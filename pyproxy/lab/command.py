"""Command: a server that is a process, as a target of a test."""

import contextlib
import os
import signal
import threading
import time

from pyproxy.balancing.target import Target
from pyproxy.errors import PyproxyError
from pyproxy.health.checks import Check, CheckFailed
from pyproxy.scaling.launcher import Instance
from pyproxy.scaling.processes import ProcessLauncher
from pyproxy.scaling_settings import Version

_PATIENCE = 30.0  # seconds until it answers
_PAUSE = 0.02  # between two looks


class CommandFailed(PyproxyError):
    """A process that ended, or didn't answer; the text tells its last words."""


class Command:
    """One at a time; ``start`` and ``kill`` by turns. It ends with this program, however that
    ends."""

    def __init__(
        self, launcher: ProcessLauncher, name: str, command: tuple[str, ...], check: Check
    ) -> None:
        """``{port}`` in ``command`` stands for its port; ``check`` tells when it serves."""
        self._launcher = launcher
        self._name = name
        self._version = Version(command)
        self._check = check
        self._starts = 0
        self._instance: Instance | None = None
        self._killed = threading.Event()

    @property
    def port(self) -> int:
        """Another one after each start."""
        assert self._instance, "it isn't started"
        return int(self._instance.url.rpartition(":")[2])

    def start(self) -> None:
        """Returns at once. Raises ``LaunchError``."""
        self._starts += 1
        self._killed.clear()
        self._instance = self._launcher.start(f"{self._name}.{self._starts}", self._version)

    def wait(self) -> None:
        """Until it answers as a healthy target does. Raises ``CommandFailed``."""
        assert self._instance, "it isn't started"
        target = Target(self._instance.url, "127.0.0.1", self.port)
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                self._check(target)
            except CheckFailed as failure:
                said = str(failure)
            else:
                return
            if how := self._launcher.ended(self._instance):
                raise CommandFailed(f"{self._version} {how}")
            if time.monotonic() > deadline:
                raise CommandFailed(
                    f"{self._version} isn't well on port {self.port} after {_PATIENCE:g} s: {said}"
                )
            self._killed.wait(_PAUSE)

    def freeze(self) -> None:
        self._signal(signal.SIGSTOP)

    def kill(self) -> None:
        """It gets no chance to clean up, and neither do its children."""
        if self._instance:
            self._killed.set()
            self._signal(signal.SIGKILL)
            self._launcher.stop(self._instance, 0)
            self._instance = None

    def _signal(self, number: int) -> None:
        assert self._instance, "it isn't started"
        if not self._launcher.ended(self._instance):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(int(self._instance.handle), number)
