"""Rollouts: how one version of a pool's targets takes the place of another, and how it went."""

import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from pyproxy.balancing.samples import Sample
from pyproxy.errors import ControlError
from pyproxy.readers import Json, Problems
from pyproxy.scaling.plan import Rollout
from pyproxy.scaling_settings import Scaling, Version, check_version, read_version

log = logging.getLogger(__name__)

_ENOUGH = 3  # errors of a new version before their share counts


def _refusal(error: Problems) -> ControlError:
    told = "; ".join(f"{path.strip('.')}: {text}" for path, text in error.found)
    return ControlError(422, told)


class Rollouts:
    """Of one pool. Used under its fleet's lock."""

    def __init__(self, pool: str, version: Version) -> None:
        self._pool = pool
        self.version = version  # what targets are made of, but for a rollout
        self.now: Rollout | None = None
        self._last: tuple[Rollout, str, float | None] | None = None  # how it ended, and when
        self._before: Sample | None = None  # of the look before
        self._since: dict[str, Sample] = {}  # when a target came, by its name

    def ask(self, what: Mapping[str, Json], rules: Scaling) -> None:
        """Begins one to another ``image``, ``command`` or ``environment``. Raises
        ``ControlError``."""
        try:
            version = replace(self.version, **read_version(what))
        except Problems as error:
            raise _refusal(error) from None
        if self.now:
            raise ControlError(409, f"a rollout of {self.now.called} is under way")
        if version == self.version:
            raise ControlError(409, f"the targets are made of {version} already")
        try:
            check_version(rules, version)
        except Problems as error:
            raise _refusal(error) from None
        self.begin(version, rules)

    @property
    def goal(self) -> Version:
        """The version that there shall be in the end."""
        return self.now.wanted if self.now else self.version

    def begin(self, version: Version, rules: Scaling) -> None:
        if self.now and version == self.now.old:
            self.turn_back("by the settings")
            return
        if self.now:
            self._close("replaced")
        proven = max(rules.rollout.observe, rules.slow_start or 0.0)
        self.now = Rollout(self.version, version, proven, time.time())
        self._before, self._since = None, {}
        log.info("scaling %s: rollout from %s to %s", self._pool, self.version, self.now.called)

    def is_new(self, version: Version) -> bool:
        """Whether a target of it is on trial."""
        return bool(self.now and not self.now.returning and version == self.now.new)

    def judge(self, now: Sample, made: Iterable[tuple[str, str, Version]], limit: float) -> None:
        """Whether the new version fails more requests than the old one, beyond the ``limit``.
        ``made`` are those that serve: name, URL and version."""
        if not self.now or self.now.returning:
            return
        before, self._before = self._before or now, now
        errors, tried = {True: 0, False: 0}, {True: 0, False: 0}
        for name, url, version in made:
            # What was counted of another at the same address is none of its own.
            since, counted = self._since.setdefault(name, before), (self._pool, url)
            errors[self.is_new(version)] += now.errors(counted) - since.errors(counted)
            tried[self.is_new(version)] += now.tried(counted) - since.tried(counted)
        rate, usual = (errors[one] / tried[one] if tried[one] else 0.0 for one in (True, False))
        if errors[True] >= _ENOUGH and rate > usual + limit:
            said = f"{rate:.0%} of its requests fail ({usual:.0%} of the old version's)"
            self.turn_back(said, harmful=True)

    def turn_back(self, reason: str, harmful: bool = False) -> None:
        assert self.now
        if not self.now.returning:
            log.error("scaling %s: %s is taken back: %s", self._pool, self.now.called, reason)
            self.now = self.now.back(reason, harmful)

    def change(self, action: str) -> None:
        """``pause``, ``resume`` or ``abort``. Raises ``ControlError``."""
        if self.now is None:
            raise ControlError(409, "no rollout is under way")
        if self.now.returning:
            raise ControlError(409, f"the rollout goes back already: {self.now.reason}")
        if action == "abort":
            self.turn_back("aborted by the operator")
        else:
            self.now = replace(self.now, paused=action == "pause")
            done = "is paused" if self.now.paused else "goes on"
            told = "scaling %s: rollout of %s %s: by the operator"
            log.info(told, self._pool, self.now.called, done)

    def finish(self) -> None:
        """There is only one version left."""
        assert self.now
        said = "returned" if self.now.returning else "finished"
        log.info("scaling %s: rollout of %s: %s", self._pool, self.now.called, said)
        self.version = self.now.wanted
        self._close(said)

    def _close(self, said: str) -> None:
        assert self.now
        self._last = (self.now, said, time.time())
        self.now = None

    def describe(self, live: Iterable[Version], wanted: int) -> dict[str, Any] | None:
        """The one under way, or the last, in JSON's terms; ``live`` has a version for each target
        that serves."""
        if rollout := self.now:
            state = "returning" if rollout.returning else "paused" if rollout.paused else "running"
            told: tuple[Rollout, str, float | None] | None = (rollout, state, None)
        else:
            told = self._last
        if told is None:
            return None
        rollout, state, ended = told
        return {
            "from": str(rollout.old),
            "to": rollout.called,
            "state": state,
            "reason": rollout.reason,
            "began": rollout.began,
            "ended": ended,
            "done": sum(one == rollout.new for one in live),
            "of": wanted,
        }
