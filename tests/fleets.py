"""Pools whose targets are made, of processes that say which version they are."""

import sys
from pathlib import Path
from typing import Any

import pytest

from pyproxy.control.control import Verbs
from pyproxy.scaling_settings import Version

needs_fork = pytest.mark.skipif(sys.platform == "win32", reason="processes need fork")

_SCRIPT = str(Path(__file__).with_name("version.py"))


def version(name: str, mode: str = "good") -> list[str]:
    """The command of one that answers with its name (``tests/version.py``)."""
    return ["python", _SCRIPT, "{port}", name, mode]


def line(command: list[str]) -> str:
    """As it is typed, and told."""
    return str(Version(tuple(command)))


def made(name: str = "old", count: int = 1, **more: Any) -> dict[str, Any]:
    """Settings of ``scaling``: so many, and steps of a rollout that take no time."""
    rules = {"launcher": "process", "command": version(name), "min": count, "max": count + 2}
    times = {"stop_timeout": "1s", "rollout": {"observe": "100ms"}}
    return {**rules, "auto": False, **times, **more}


def scaling(verbs: Verbs) -> dict[str, Any]:
    """Of the first pool."""
    found: dict[str, Any] = verbs.snapshot()["pools"][0]["scaling"]
    return found


def state(verbs: Verbs) -> str:
    """Of the rollout of the first pool; empty if there was none."""
    rollout = scaling(verbs)["rollout"]
    return str(rollout["state"]) if rollout else ""
