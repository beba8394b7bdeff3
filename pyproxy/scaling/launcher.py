"""Launcher: what makes targets, as the fleet sees it; one for each way to make them.

All methods may block for seconds, and are called from several threads, for one instance from one
at a time. ``LaunchError`` is a failure to do as asked; ``LauncherAway`` says that nothing can be
known or done just now (an engine doesn't answer): targets are taken to be as they were.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

from pyproxy.errors import PyproxyError
from pyproxy.scaling_settings import Version


class LaunchError(PyproxyError):
    """A target can't be made, or ended; the text says why."""


class LauncherAway(LaunchError):
    """What makes targets doesn't answer."""


@dataclass(frozen=True)
class Instance:
    """A target that was made: a process, a container."""

    name: str  # unique in its launcher
    url: str
    version: Version
    handle: str  # what its launcher knows it by: a process's number, a container's id
    log: str = ""  # where what it prints can be read


class Launcher(Protocol):
    def adopt(self, only: Collection[str] | None = None) -> list[Instance]:
        """Those of an earlier life that still run, and are this launcher's from now on. What is
        left of others that have ended is cleared away. All of that of those with these handles
        ``only``, if they are said: others are somebody else's, who still lives."""

    def start(self, name: str, version: Version) -> Instance:
        """A new one, that may take its time until it answers."""

    def ended(self, instance: Instance) -> str | None:
        """How it has ended (``"ended with status 1: <its last words>"``); None while it runs."""

    def processor_time(self, instance: Instance) -> float | None:
        """Seconds of processor time that it has used so far; None if that can't be told."""

    def stop(self, instance: Instance, patience: float) -> None:
        """Asks it to end, ends it after ``patience`` seconds, and clears away what is left of it.
        Does nothing to one that is gone."""

    def close(self, keep: bool = False) -> None:
        """The end of this launcher. What still runs is ended, or with ``keep`` left to the next
        one's ``adopt``, as far as that is possible."""
