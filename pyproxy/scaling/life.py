"""Life: a target that was made, from its start to its end."""

import threading
import time
from dataclasses import dataclass, field
from typing import Any

from pyproxy.scaling.launcher import Instance
from pyproxy.scaling_settings import Version


@dataclass
class Life:
    """Its fields are protected by its fleet's lock, but for ``instance`` and ``id``: those are
    written once, by the thread that brings it up."""

    name: str
    version: Version
    phase: str = "starting"  # live, draining, ending
    instance: Instance | None = None
    id: str = ""  # in the pool
    since: float = field(default_factory=time.time)  # of the phase
    begun: float = field(default_factory=time.monotonic)
    live_at: float = 0.0  # time.monotonic()
    lost_at: float | None = None  # since when it is evicted
    back_at: float = 0.0  # since when it isn't any more
    reason: str = ""
    unwanted: threading.Event = field(default_factory=threading.Event)  # before it was healthy
    clearing: threading.Lock = field(default_factory=threading.Lock)  # by one thread at a time

    def enter(self, phase: str, reason: str = "") -> None:
        self.phase, self.reason, self.since = phase, reason, time.time()

    def describe(self) -> dict[str, Any]:
        """In JSON's terms."""
        instance = self.instance
        return {
            "name": self.name,
            "url": instance.url if instance else None,
            "id": self.id or None,
            "phase": self.phase,
            "version": str(self.version),
            "since": self.since,
            "reason": self.reason,
            "handle": instance.handle if instance else None,
            "log": instance.log if instance else "",
        }
