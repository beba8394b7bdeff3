"""Lives: how each target of a fleet is started, and how it is ended.

_bring_up          starts one, waits until it is healthy, has the pool take it
_bring_down        it is to go: drains it, has the pool forget it, clears it away
mourn              it has ended by itself: has the pool forget it, and what is left cleared away
_clear             the last of each: its launcher stops what is left of it

``mourn`` runs in the fleet's thread, ``_clear`` also where all end at once (``finish``); what else
there is, in the target's own threads.
"""

import contextlib
import functools
import logging
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from pyproxy.balancing.target import Target
from pyproxy.errors import ControlError
from pyproxy.health.checks import CheckFailed, check_as
from pyproxy.readers import address
from pyproxy.scaling.launcher import Instance, Launcher, LauncherAway, LaunchError
from pyproxy.scaling.life import Life
from pyproxy.scaling.scaler import Hands, targets_of
from pyproxy.scaling.troubles import Troubles, told
from pyproxy.scaling_settings import Version
from pyproxy.sections import PoolSettings
from pyproxy.tcp.proxy_protocol import serialise

log = logging.getLogger(__name__)

_SOONEST, _LATEST = 0.05, 0.5  # seconds between checks of one that is starting
_LAUNCHER_PAUSE = 2.0  # seconds before one that doesn't answer is asked again


def all_at_once(what: Iterable[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=one, name="pyproxy-scaling-end") for one in what]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


class Lives:
    """Of one fleet, whose lock ``changed`` is. It protects all attributes (what is read without it
    may be a moment old), and is notified when a target serves or is gone. Methods that say so are
    called by who holds it; the others by who doesn't, as they use ``hands`` or the launcher.
    ``Life.clearing`` is held while the launcher stops that one; it is never asked for by who holds
    ``changed``."""

    def __init__(
        self,
        pool: str,
        said: PoolSettings,
        hands: Hands,
        launcher: Launcher,
        troubles: Troubles,
        changed: threading.Condition,
    ) -> None:
        self._pool = pool
        self._hands = hands
        self._launcher = launcher
        self._troubles = troubles
        self._changed = changed
        self.configure(said)
        self.made: dict[str, Life] = {}
        self.threads: set[threading.Thread] = set()
        # Handles of those that two programs know in a handover: what the one before has told this
        # one, and what this one has told the next (None: there is none).
        self.inherits: frozenset[str] | None = None
        self.leaves: frozenset[str] | None = None
        self._stopping = False
        self._keep = False

    def configure(self, said: PoolSettings) -> None:
        """Under the lock."""
        assert said.scaling
        self._said, self._rules = said, said.scaling

    def of(self, *phases: str) -> list[Life]:
        """Those in one of these phases; under the lock."""
        return [one for one in self.made.values() if one.phase in phases]

    def start(self, name: str, version: Version) -> None:
        """A new one; under the lock. Raises ``RuntimeError`` if the system has no thread left."""
        life = Life(name, version)
        self._in_thread(self._bring_up, life)
        self.made[name] = life  # now: without a thread it would be counted as starting for ever

    def adopt(self, instance: Instance) -> None:
        """One that runs; under the lock. Raises ``RuntimeError`` as ``start`` does."""
        life = Life(instance.name, instance.version, instance=instance)
        self._in_thread(self._bring_up, life)
        self.made[life.name] = life  # now, as in ``start``

    def end(self, life: Life, reason: str) -> None:
        """Has it end; under the lock. Raises ``RuntimeError`` as ``start`` does."""
        if life.phase == "starting":
            life.unwanted.set()
        elif life.phase == "live":
            self._in_thread(self._bring_down, life)
            life.enter("draining", reason)

    def fate(self, life: Life) -> str | None:
        """How it has ended, if it has."""
        assert life.instance
        try:
            said = self._launcher.ended(life.instance)
        except LauncherAway as error:
            self._troubles.note_away(str(error))
            return None
        self._troubles.note_away("")
        return said

    def mourn(self, life: Life, said: str) -> None:
        """It has ended by itself."""
        with self._changed:
            if self.made.get(life.name) is not life or life.phase == "ending":
                return
            draining = life.phase == "draining"
            life.enter("ending", said)
        if not draining:  # that one ends a bit early
            self._troubles.note_end(said, life)
        with contextlib.suppress(ControlError):
            self._hands.remove(life.id, f"it {said}")
        self._in_thread(self._clear, life)

    def _in_thread(self, what: Callable[[Life], None], life: Life) -> None:
        """Under the lock or not: it begins when that is free. Raises ``RuntimeError`` if the system
        has no thread left."""

        def live() -> None:
            with self._changed:
                pass
            what(life)

        thread = threading.Thread(target=live, name=f"pyproxy-target-{life.name}", daemon=True)
        with self._changed:
            self.threads = {one for one in self.threads if one.is_alive()}
            thread.start()
            self.threads.add(thread)

    # Its start

    def _bring_up(self, life: Life) -> None:
        try:
            if life.instance is None:
                life.instance = self._launcher.start(life.name, life.version)
            self._wait_until_healthy(life, life.instance)
            if not life.unwanted.is_set():
                self._enter_pool(life, life.instance)
                return
        except LauncherAway as error:  # it is no failure of a target that it can't be started now
            self._troubles.note_away(str(error))
            self._troubles.pause(_LAUNCHER_PAUSE)
        except ControlError as error:
            if error.status == 503:  # the proxy ends, or has no worker: no failure of the target
                self._troubles.pause()
            else:
                self._troubles.note_failure(str(error), life)
        except Exception as error:  # noqa: BLE001 - it would be counted as starting for ever
            if not life.unwanted.is_set():
                self._troubles.note_failure(told(error), life)
        self._clear(life)

    def _wait_until_healthy(self, life: Life, instance: Instance) -> None:
        _, host, port = address(instance.url, ("http",), "", 80)
        said = self._said
        hello = serialise(said.send_proxy, None) if said.send_proxy else b""
        target, check = Target(instance.url, host, port), check_as(said.health, hello=hello)
        began, pause, good, why = time.monotonic(), _SOONEST, 0, "no answer"
        while not life.unwanted.is_set() and good < said.health.rise:
            if ended := self.fate(life):
                raise LaunchError(ended)
            if time.monotonic() - began > self._rules.start_timeout:
                limit = self._rules.start_timeout
                raise LaunchError(f"wasn't healthy within {limit:g} s: {instance.url}: {why}")
            try:
                check(target)
                good += 1
            except CheckFailed as failure:
                good, why = 0, str(failure)
                life.unwanted.wait(pause)
                pause = min(pause * 1.5, _LATEST)
        if not life.unwanted.is_set() and (ended := self.fate(life)):
            raise LaunchError(ended)  # somebody else answers at its port

    def _enter_pool(self, life: Life, instance: Instance) -> None:
        rules = self._rules
        said: dict[str, Any] = {"url": instance.url}
        if rules.slow_start:
            said["slow_start"] = rules.slow_start
        if rules.max_connections:
            said["max_connections"] = rules.max_connections
        life.id = self._hands.add(said, self._pool, f"made by scaling: {life.name}")
        with self._changed:
            life.enter("live")
            life.live_at = time.monotonic()
            if life.unwanted.is_set():
                self.end(life, "fewer are wanted")
            self._changed.notify_all()

    # Its end

    def _bring_down(self, life: Life) -> None:
        try:
            self._drain(life)
        except Exception as error:  # noqa: BLE001 - it is ended all the same
            log.error("scaling %s: target %s: %s", self._pool, life.name, told(error))
        with self._changed:
            life.enter("ending", life.reason)
        self._clear(life)

    def _drain(self, life: Life) -> None:
        verbs = [self._hands.drain]
        if self._said.sticky.cookie:  # clients bound to it come even then
            verbs.append(self._hands.maintenance)
        seen = True
        for verb in verbs:
            with contextlib.suppress(ControlError):
                verb(life.id, f"by scaling: {life.reason}")
            # Each has its time: what came until now, with the second verb, is finished, too.
            seen = self._wait_while_busy(life)
        if not seen:  # the pool doesn't know any more what it has under way
            with self._changed:
                self._changed.wait_for(
                    lambda: self._stopping or self.made.get(life.name) is not life,
                    self._rules.drain_timeout,
                )
        with contextlib.suppress(ControlError):
            self._hands.remove(life.id, f"by scaling: {life.reason}")

    def _wait_while_busy(self, life: Life) -> bool:
        """At most ``drain_timeout``. False if it isn't in the pool."""
        deadline = time.monotonic() + self._rules.drain_timeout
        while True:
            with contextlib.suppress(ControlError):
                target = (targets_of(self._hands, self._pool) or {}).get(life.id)
                if not (target and target["in_flight"]):
                    return bool(target)
            with self._changed:
                if self._stopping or time.monotonic() > deadline:
                    return True
                self._changed.wait(0.05)

    def _clear(self, life: Life) -> None:
        """Ends what is left of it, however long its launcher is away; unless another program goes
        on with it."""
        with life.clearing:
            if self.made.get(life.name) is life and not self._is_another_s(life):
                self._clear_alone(life)

    def _clear_alone(self, life: Life) -> None:
        while life.instance:
            try:
                self._launcher.stop(life.instance, self._rules.stop_timeout)
                break
            except LauncherAway as error:
                self._troubles.note_away(str(error))
            except Exception as error:  # noqa: BLE001 - nothing more can be done
                log.error("scaling %s: target %s %s", self._pool, life.name, told(error))
                break
            with self._changed:
                if self._changed.wait_for(lambda: self._stopping, _LAUNCHER_PAUSE):
                    break
        with self._changed:
            self.made.pop(life.name, None)
            self._changed.notify_all()

    def _is_another_s(self, life: Life) -> bool:
        """Whether this program ends, and another knows it, or will."""
        if not self._keep:
            return False
        handle = life.instance.handle if life.instance else ""
        if self.leaves is not None:  # the next one knows no others
            return handle in self.leaves
        # This one gives up: the program before looks for what is there, and goes on with it.
        return life.phase == "live" or handle in (self.inherits or ())

    # The end of all

    def let_go(self, keep: bool) -> None:
        """None is waited for any more; under the lock."""
        self._stopping, self._keep = True, keep
        for life in self.made.values():
            life.unwanted.set()

    def finish(self) -> None:
        """After ``let_go``, when nobody starts one: returns when all threads have ended."""
        deadline = time.monotonic() + 1  # a check may hang for as long as its target is there
        for thread in self._all_threads():
            thread.join(max(deadline - time.monotonic(), 0))
        with self._changed:
            # One that isn't there yet is for its own thread, when it is.
            left = [one for one in self.made.values() if one.instance]
        all_at_once([functools.partial(self._clear, one) for one in left])
        for thread in self._all_threads():
            thread.join()

    def _all_threads(self) -> list[threading.Thread]:
        with self._changed:
            return [*self.threads]
