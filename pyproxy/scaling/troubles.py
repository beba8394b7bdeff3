"""Troubles: what has failed in a fleet, and what follows.

What has failed is tried again, more and more seldom; targets that serve aren't touched by that. A
new version that fails is taken back instead.
"""

import logging
import os
import threading
import time
from collections.abc import Iterable

from pyproxy.errors import PyproxyError
from pyproxy.scaling.life import Life
from pyproxy.scaling.rollouts import Rollouts

log = logging.getLogger(__name__)

_YOUNG = 5.0  # seconds: one that dies sooner has failed
_PAUSE, _LONGEST = 0.5, 30.0  # seconds before the next start after a failure; doubled each time


def told(error: Exception) -> str:
    return str(error) if isinstance(error, PyproxyError) else f"{type(error).__name__}: {error}"


class Troubles:
    """Of one fleet, whose lock ``changed`` is: it protects all that is here. What changes something
    takes it; who holds it already may call that all the same, as nothing here waits."""

    def __init__(self, pool: str, rollouts: Rollouts, changed: threading.Condition) -> None:
        self._pool = pool
        self._rollouts = rollouts
        self._changed = changed
        self.problem = ""  # for people
        self.away = False  # the launcher doesn't answer
        self._fails = 0  # in a row
        self._failed_at = 0.0  # time.monotonic()
        self._not_before = 0.0  # time.monotonic()
        self._surprise = ""  # what was logged last

    @property
    def failing(self) -> bool:
        """Whether what was started last has failed."""
        return self._fails > 0

    def may_start(self) -> bool:
        """Whether it is no time to ``pause``."""
        return time.monotonic() >= self._not_before

    def pause(self, seconds: float = _PAUSE) -> None:
        """Nothing is started meanwhile."""
        with self._changed:
            self._not_before = max(self._not_before, time.monotonic() + seconds)

    def note_failure(self, said: str, life: Life) -> None:
        """It couldn't be had."""
        now = time.monotonic()
        said = f"target {life.name} {said}"
        with self._changed:
            if self._rollouts.is_new(life.version):
                self._rollouts.turn_back(said)
                self.forgive()
            else:
                if not self._fails or life.begun >= self._failed_at:
                    # Those that were started together fail together: that is one failure.
                    self._fails += 1
                    self._failed_at = now
                pause = min(_PAUSE * 2 ** (self._fails - 1), _LONGEST)
                self._not_before = max(self._not_before, self._failed_at + pause)
                if life.instance and os.path.isfile(life.instance.log):
                    said = f"{said}; all it said is in {life.instance.log}"
                self.problem = f"{said} (failure {self._fails} in a row)"
                log.error("scaling %s: %s (another start in %g s)", self._pool, said, pause)
            self._changed.notify_all()

    def note_end(self, said: str, life: Life) -> None:
        """One that served has ended by itself: that is a failure if it was young, or on trial."""
        young = time.monotonic() - life.live_at < _YOUNG
        if young or self._rollouts.is_new(life.version):
            self.note_failure(said, life)
        else:
            log.warning("scaling %s: target %s %s", self._pool, life.name, said)

    def note_live(self, live: Iterable[Life]) -> None:
        """Those that serve now: what has failed is over when one that came later has lasted."""
        now = time.monotonic()
        with self._changed:
            if self._fails and any(
                one.live_at > self._failed_at and now - one.live_at > _YOUNG for one in live
            ):
                self._fails, self.problem = 0, ""

    def forgive(self) -> None:
        """What failed so far was of something else."""
        with self._changed:
            self._fails, self._not_before, self.problem = 0, 0.0, ""

    def note_away(self, said: str) -> None:
        """The launcher doesn't answer, or does (nothing ``said``)."""
        with self._changed:
            if bool(said) == self.away:
                return
            self.away, self.problem = bool(said), said
        if said:
            log.error("scaling %s: targets are left as they are: %s", self._pool, said)
        else:
            log.info("scaling %s: the launcher answers again", self._pool)

    def note_surprise(self, error: Exception) -> None:
        """Of what comes at each look, the log says it once. Only the fleet's thread calls it."""
        if (said := told(error)) != self._surprise:
            self._surprise = said
            log.error("scaling %s: it goes on after %s", self._pool, said)
