"""Fleet: the targets that are made for one pool.

run                 twice a second:
  _look             who has died, who is out of service for long
  _weigh            the autoscaler says how many there shall be; is a new version good?
  _act              what the plan says is started and ended, each in a thread of its own:
    _bring_up         starts one, waits until it is healthy, has the pool take it
    _bring_down       drains one, and ends it

What has failed is tried again, more and more seldom; targets that serve aren't touched by that.
"""

import contextlib
import functools
import itertools
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from pyproxy.balancing.counters import Totals
from pyproxy.balancing.samples import Sample
from pyproxy.balancing.target import Target
from pyproxy.errors import ControlError, PyproxyError
from pyproxy.health.checks import CheckFailed, check_as
from pyproxy.readers import Json, address
from pyproxy.scaling.launcher import Instance, Launcher, LauncherAway, LaunchError
from pyproxy.scaling.load import Load
from pyproxy.scaling.plan import Member, plan
from pyproxy.scaling.rollouts import Rollouts
from pyproxy.scaling_settings import Scaling, Version
from pyproxy.sections import PoolSettings
from pyproxy.tcp.proxy_protocol import serialise

log = logging.getLogger(__name__)

_TICK = 0.5  # seconds
_SOONEST, _LATEST = 0.05, 0.5  # seconds between checks of one that is starting
_YOUNG = 5.0  # seconds: one that dies sooner has failed
_LAUNCHER_PAUSE = 2.0  # seconds before one that doesn't answer is asked again
_PAUSE, _LONGEST = 0.5, 30.0  # seconds before the next start after a failure; doubled each time


class Successor(Protocol):
    def serves(self) -> bool: ...


class Hands(Protocol):
    """What it takes of ``control.Verbs``. Each raises ``ControlError``."""

    def snapshot(self) -> dict[str, Any]: ...
    def totals(self) -> Totals: ...
    def add(self, target: Json, pool: str, reason: str) -> str: ...
    def remove(self, target: str, reason: str) -> None: ...
    def drain(self, target: str, reason: str) -> None: ...
    def maintenance(self, target: str, reason: str) -> None: ...


@dataclass
class _Made:
    """A target that was made, from its start to its end."""

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
    clearing: threading.Lock = field(default_factory=threading.Lock)

    def enter(self, phase: str, reason: str = "") -> None:
        self.phase, self.reason, self.since = phase, reason, time.time()


class Fleet:
    """Its methods may be called from any thread; no lock is held while ``hands`` are used, or the
    launcher. Not started twice."""

    def __init__(
        self,
        pool: str,
        said: PoolSettings,
        hands: Hands,
        launcher: Launcher,
        left: Mapping[str, Any] | None = None,
        instead_of: "Fleet | None" = None,
    ) -> None:
        """``left`` is what ``leave`` of the program before has told. ``instead_of`` is to be
        retired: its targets aren't adopted."""
        assert said.scaling
        self._pool = pool
        self._said = said
        self._rules: Scaling = said.scaling
        self._hands = hands
        self._launcher = launcher
        self._load = Load(pool)
        # Protects all below; notified when something has changed.
        self._changed = threading.Condition()
        self._made: dict[str, _Made] = {}
        self._numbers: Iterator[int] = instead_of._numbers if instead_of else itertools.count(1)
        self._adopted = bool(instead_of)
        # Handles of those that two programs know in a handover: what the one before has told this
        # one, and what this one has told the next (None: there is none).
        self._inherits: frozenset[str] | None = left.get("handles") if left else None
        self._leaves: frozenset[str] | None = None
        self._is_told = bool(left)  # how many are wanted, whoever is there
        self._keep = False
        version = self._rules.version
        self._wanted = self._rules.min
        self._served = bool(left and left["served"])
        if left:
            self._numbers = itertools.count(left.get("number", 1))
            if left["said"] == version:
                version = left["version"]
            self._wanted = self._within(left["wanted"])
        self._rollouts = Rollouts(pool, version)
        if left and left["said"] == self._rules.version:
            self._rollouts.now = left["rollout"]
        self._fails = 0  # in a row
        self._failed_at = 0.0  # time.monotonic()
        self._not_before = 0.0  # time.monotonic()
        self._problem = ""
        self._away = False  # the launcher doesn't answer
        self._surprise = ""  # what was logged last
        self._next_look = 0.0
        self._resting = False
        self._stopping = False
        self._lives: set[threading.Thread] = set()
        self._thread = threading.Thread(
            target=self._run, name=f"pyproxy-scaling-{pool}", daemon=True
        )

    def _within(self, count: int) -> int:
        return min(max(count, self._rules.min), self._rules.max)

    @property
    def pool(self) -> str:
        return self._pool

    @property
    def ids(self) -> set[str]:
        """Of its targets in the pool."""
        with self._changed:
            return {one.id for one in self._made.values() if one.id}

    def start(self) -> None:
        """Begins, in threads of its own."""
        self._thread.start()

    def wait(self, seconds: float, hurried: Callable[[], bool] = lambda: False) -> None:
        """Until as many serve as are wanted, something has failed, time is up, or ``hurried()``."""
        deadline = time.monotonic() + seconds
        with self._changed:
            while not self._settled() and not hurried():
                if (left := deadline - time.monotonic()) <= 0:
                    break
                self._changed.wait(min(left, 0.2))  # a hurry wakes nobody
            serving, wanted = len(self._live()), self._wanted
        if serving < wanted:
            log.warning("scaling %s: %d of %d targets serve so far", self._pool, serving, wanted)

    def _settled(self) -> bool:
        return len(self._live()) >= self._wanted or bool(self._problem) or self._stopping

    def _live(self) -> list[_Made]:
        return [one for one in self._made.values() if one.phase == "live"]

    def configure(self, said: PoolSettings) -> None:
        """Goes on with other settings, of the same ``Scaling.place``. Another version is rolled
        out."""
        assert said.scaling
        with self._changed:
            before, self._said, self._rules = self._rules, said, said.scaling
            self._wanted = self._within(self._wanted)
            if before.version != said.scaling.version != self._rollouts.goal:
                self._rollouts.begin(said.scaling.version, self._rules)
                self._forgive()
            self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                if self._stopping:
                    return
            if not self._resting:
                try:
                    self._adopt()
                    self._look()
                    self._weigh()
                    self._act()
                except LaunchError as error:
                    self._note_away(str(error))
                except ControlError as error:  # the proxy begins or ends
                    log.debug("scaling %s: %s", self._pool, error)
                except Exception as error:  # noqa: BLE001 - without this thread nobody keeps min
                    self._note_surprise(error)
            with self._changed:
                if not self._stopping:
                    self._changed.wait(_TICK)

    def _note_surprise(self, error: Exception) -> None:
        """Of what comes at each look, the log says it once."""
        if (said := _told(error)) != self._surprise:
            self._surprise = said
            log.error("scaling %s: it goes on after %s", self._pool, said)

    # Who is there

    def _adopt(self) -> None:
        """Takes over what an earlier life has left, once. Raises ``LauncherAway``."""
        if self._adopted:
            return
        found = self._launcher.adopt(self._inherits)
        self._adopted = True
        with self._changed:
            for instance in found:
                if instance.name not in self._made:
                    made = _Made(instance.name, instance.version, instance=instance)
                    self._made[made.name] = made
                    self._live_in_thread(self._bring_up, made)
            for one in found:
                self._numbers = itertools.count(max(next(self._numbers), _number(one.name) + 1))
            rollouts = self._rollouts
            old = {one.version for one in found} - {rollouts.version}
            if old and not rollouts.now:
                goal, rollouts.version = rollouts.version, old.pop()
                rollouts.begin(goal, self._rules)
            if not self._is_told:
                self._wanted = self._within(max(self._wanted, len(found)))

    def _look(self) -> None:
        with self._changed:
            there = [one for one in self._made.values() if one.phase in ("live", "draining")]
        for made in there:
            if said := self._fate(made):
                self._mourn(made, said)
            if self._away or self._stopping:
                break  # each question might take until its time is up
        if (targets := self._targets()) is None:
            return
        now = time.monotonic()
        with self._changed:
            for made in there:
                target = targets.get(made.id)
                if made.phase != "live":
                    continue
                if target is None:  # somebody else has removed it
                    self._end(made, "it was removed")
                elif target["state"] != "evicted":
                    if made.lost_at is not None:
                        made.lost_at, made.back_at = None, now
                elif made.lost_at is None:
                    made.lost_at = now
            young = any(
                one.live_at > self._failed_at and now - one.live_at > _YOUNG for one in self._live()
            )
            if self._fails and young:
                self._fails, self._problem = 0, ""

    def _fate(self, made: _Made) -> str | None:
        """How it has ended, if it has."""
        assert made.instance
        try:
            said = self._launcher.ended(made.instance)
        except LauncherAway as error:
            self._note_away(str(error))
            return None
        self._note_away("")
        return said

    def _note_away(self, said: str) -> None:
        if bool(said) == self._away:
            return
        self._away = bool(said)
        if said:
            log.error("scaling %s: targets are left as they are: %s", self._pool, said)
            self._problem = said
        else:
            self._problem = ""
            log.info("scaling %s: the launcher answers again", self._pool)

    def _mourn(self, made: _Made, said: str) -> None:
        """It has ended by itself."""
        with self._changed:
            if self._made.get(made.name) is not made or made.phase == "ending":
                return
            draining = made.phase == "draining"
            made.enter("ending", said)
            young = time.monotonic() - made.live_at < _YOUNG
        if draining:
            pass  # it ends a bit early
        elif young or self._rollouts.is_new(made.version):
            self._note_failure(f"target {made.name} {said}", made)
        else:
            log.warning("scaling %s: target %s %s", self._pool, made.name, said)
        with contextlib.suppress(ControlError):
            self._hands.remove(made.id, f"it {said}")
        self._in_thread(self._clear, made)

    def _targets(self) -> dict[str, dict[str, Any]] | None:
        """Of the pool, by id; None while nobody serves it."""
        for pool in self._hands.snapshot()["pools"]:
            if pool["name"] == self._pool:
                return {one["id"]: one for one in pool["targets"]}
        return None

    # How many there shall be

    def _weigh(self) -> None:
        with self._changed:
            rollout = self._rollouts.now
        if rollout:
            self._judge()
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + self._rules.interval
        with self._changed:
            live = self._live()
            # What fails isn't awaited: others may be needed, or fewer, meanwhile.
            coming = sum(one.phase == "starting" and not self._fails for one in self._made.values())
            managed = {one.id for one in self._made.values()}
        targets = self._targets() or {}
        own = {one.id for one in live}
        seen = self._load.look(
            self._hands.totals(),
            [one["url"] for one in targets.values()],
            targets=len(live),
            coming=coming,
            in_flight=sum(one["in_flight"] for one in targets.values() if one["id"] in own),
            times=self._processor_times(live) if self._rules.auto else {},
            others=sum(one["state"] == "live" and id not in managed for id, one in targets.items()),
        )
        if seen and self._rules.auto and not rollout:
            with self._changed:
                self._wanted = self._within(self._load.decide(self._rules, seen, self._wanted))

    def _processor_times(self, made: Sequence[_Made]) -> dict[str, float | None]:
        found: dict[str, float | None] = {one.name: None for one in made}
        for one in made:
            assert one.instance
            try:
                found[one.name] = self._launcher.processor_time(one.instance)
            except LauncherAway:
                break  # the others needn't be asked
            except LaunchError:
                pass
        return found

    def _judge(self) -> None:
        now = Sample(time.monotonic(), self._hands.totals())
        with self._changed:
            made = [
                (one.name, one.instance.url, one.version) for one in self._live() if one.instance
            ]
            self._rollouts.judge(now, made, self._rules.rollout.max_error_rate)

    # What is done

    def _act(self) -> None:
        with self._changed:
            if self._stopping:
                return
            now = time.monotonic()
            members = [
                self._member(one, now)
                for one in self._made.values()
                if one.phase in ("starting", "live")
            ]
            for one in members:
                if one.lost and self._rollouts.is_new(one.version):
                    limit = self._rules.start_timeout
                    self._rollouts.turn_back(
                        f"target {one.name} was out of service for {limit:g} s"
                    )
        in_flight = {}
        if len(members) > self._wanted:
            in_flight = {id: one["in_flight"] for id, one in (self._targets() or {}).items()}
        with self._changed:
            members = [
                replace(one, in_flight=in_flight.get(self._made[one.name].id, 0))
                for one in members
                if one.name in self._made
            ]
            if self._resting:  # what there is has been told to the next program
                return
            rollout = self._rollouts.now
            to_do = plan(members, self._wanted, self._rollouts.version, rollout)
            if to_do.finished:
                self._rollouts.finish()
            for name in to_do.end:
                said = rollout.step if rollout else "fewer are wanted"
                self._end(self._made[name], said)
            if time.monotonic() < self._not_before or self._stopping:
                return
            for version in to_do.start[:1] if self._fails else to_do.start:
                made = _Made(f"{_slug(self._pool)}-{next(self._numbers)}", version)
                self._live_in_thread(self._bring_up, made)
                self._made[made.name] = made

    def _member(self, made: _Made, now: float) -> Member:
        serves = made.phase == "live" and made.lost_at is None
        return Member(
            made.name,
            made.version,
            serves=serves,
            age=now - max(made.live_at, made.back_at) if serves else 0.0,
            lost=now - (now if made.lost_at is None else made.lost_at) > self._rules.start_timeout,
        )

    def _end(self, made: _Made, reason: str) -> None:
        """Has it end; under the lock."""
        if made.phase == "starting":
            made.unwanted.set()
        elif made.phase == "live":
            self._live_in_thread(self._bring_down, made)
            made.enter("draining", reason)

    def _bring_up(self, made: _Made) -> None:
        try:
            if made.instance is None:
                made.instance = self._launcher.start(made.name, made.version)
            self._wait_until_healthy(made, made.instance)
            if not made.unwanted.is_set():
                self._enter_pool(made, made.instance)
                return
        except LauncherAway as error:
            self._wait_for_launcher(str(error))
        except ControlError as error:
            if error.status == 503:  # the proxy ends, or has no worker: no failure of the target
                self._pause(_PAUSE)
            else:
                self._note_failure(f"target {made.name} {error}", made)
        except Exception as error:  # noqa: BLE001 - it would be counted as starting for ever
            if not made.unwanted.is_set():
                self._note_failure(f"target {made.name} {_told(error)}", made)
        self._clear(made)

    def _wait_until_healthy(self, made: _Made, instance: Instance) -> None:
        _, host, port = address(instance.url, ("http",), "", 80)
        said = self._said
        hello = serialise(said.send_proxy, None) if said.send_proxy else b""
        target, check = Target(instance.url, host, port), check_as(said.health, hello=hello)
        began, pause, good, why = time.monotonic(), _SOONEST, 0, "no answer"
        while not made.unwanted.is_set() and good < said.health.rise:
            if ended := self._fate(made):
                raise LaunchError(ended)
            if time.monotonic() - began > self._rules.start_timeout:
                limit = self._rules.start_timeout
                raise LaunchError(f"wasn't healthy within {limit:g} s: {instance.url}: {why}")
            try:
                check(target)
                good += 1
            except CheckFailed as failure:
                good, why = 0, str(failure)
                made.unwanted.wait(pause)
                pause = min(pause * 1.5, _LATEST)
        if not made.unwanted.is_set() and (ended := self._fate(made)):
            raise LaunchError(ended)  # somebody else answers at its port

    def _enter_pool(self, made: _Made, instance: Instance) -> None:
        rules = self._rules
        said: dict[str, Any] = {"url": instance.url}
        if rules.slow_start:
            said["slow_start"] = rules.slow_start
        if rules.max_connections:
            said["max_connections"] = rules.max_connections
        made.id = self._hands.add(said, self._pool, f"made by scaling: {made.name}")
        with self._changed:
            made.enter("live")
            made.live_at = time.monotonic()
            if made.unwanted.is_set():
                self._end(made, "fewer are wanted")
            self._changed.notify_all()

    def _bring_down(self, made: _Made) -> None:
        try:
            self._drain(made)
        except Exception as error:  # noqa: BLE001 - it is ended all the same
            log.error("scaling %s: target %s: %s", self._pool, made.name, _told(error))
        with self._changed:
            made.enter("ending", made.reason)
        self._clear(made)

    def _drain(self, made: _Made) -> None:
        verbs = [self._hands.drain]
        if self._said.sticky.cookie:  # clients bound to it come even then
            verbs.append(self._hands.maintenance)
        seen = True
        for verb in verbs:
            with contextlib.suppress(ControlError):
                verb(made.id, f"by scaling: {made.reason}")
            # Each has its time: what came until now, with the second verb, is finished, too.
            seen = self._wait_while_busy(made)
        if not seen:  # the pool doesn't know any more what it has under way
            with self._changed:
                self._changed.wait_for(
                    lambda: self._stopping or self._made.get(made.name) is not made,
                    self._rules.drain_timeout,
                )
        with contextlib.suppress(ControlError):
            self._hands.remove(made.id, f"by scaling: {made.reason}")

    def _wait_while_busy(self, made: _Made) -> bool:
        """At most ``drain_timeout``. False if it isn't in the pool."""
        deadline = time.monotonic() + self._rules.drain_timeout
        while True:
            with contextlib.suppress(ControlError):
                target = (self._targets() or {}).get(made.id)
                if not (target and target["in_flight"]):
                    return bool(target)
            with self._changed:
                if self._stopping or time.monotonic() > deadline:
                    return True
                self._changed.wait(0.05)

    def _clear(self, made: _Made) -> None:
        """Ends what is left of it, however long its launcher is away; unless another program goes
        on with it."""
        with made.clearing:
            if self._made.get(made.name) is made and not self._is_another_s(made):
                self._clear_alone(made)

    def _clear_alone(self, made: _Made) -> None:
        while made.instance:
            try:
                self._launcher.stop(made.instance, self._rules.stop_timeout)
                break
            except LauncherAway as error:
                self._note_away(str(error))
            except Exception as error:  # noqa: BLE001 - nothing more can be done
                log.error("scaling %s: target %s %s", self._pool, made.name, _told(error))
                break
            with self._changed:
                if self._stopping or self._changed.wait_for(lambda: self._stopping, 2):
                    break
        with self._changed:
            self._made.pop(made.name, None)
            self._changed.notify_all()

    def _wait_for_launcher(self, said: str) -> None:
        """It is no failure of a target that it can't be started now."""
        self._note_away(said)
        self._pause(_LAUNCHER_PAUSE)

    def _pause(self, seconds: float) -> None:
        """Starts nothing meanwhile."""
        with self._changed:
            self._not_before = max(self._not_before, time.monotonic() + seconds)

    def _note_failure(self, said: str, made: _Made | None = None) -> None:
        now = time.monotonic()
        with self._changed:
            if made and self._rollouts.is_new(made.version):
                self._rollouts.turn_back(said)
                self._forgive()
            else:
                if not (made and self._fails and made.begun < self._failed_at):
                    # Those that were started together fail together: that is one failure.
                    self._fails += 1
                    self._failed_at = now
                pause = min(_PAUSE * 2 ** (self._fails - 1), _LONGEST)
                self._not_before = max(self._not_before, self._failed_at + pause)
                if made and made.instance and os.path.isfile(made.instance.log):
                    said = f"{said}; all it said is in {made.instance.log}"
                self._problem = f"{said} (failure {self._fails} in a row)"
                log.error("scaling %s: %s (another start in %g s)", self._pool, said, pause)
            self._changed.notify_all()

    def _in_thread(self, what: Callable[[_Made], None], made: _Made) -> None:
        with self._changed:
            self._live_in_thread(what, made)

    def _live_in_thread(self, what: Callable[[_Made], None], made: _Made) -> None:
        """Under the lock: it begins when that is free. Raises ``RuntimeError`` if the system has no
        thread left."""

        def live() -> None:
            with self._changed:
                pass
            what(made)

        thread = threading.Thread(target=live, name=f"pyproxy-target-{made.name}", daemon=True)
        self._lives = {one for one in self._lives if one.is_alive()}
        thread.start()
        self._lives.add(thread)

    # What people ask for

    def scale(self, count: int, reason: str) -> int:
        """From now on so many, between min and max. Raises ``ControlError``."""
        with self._changed:
            self._refuse_at_rest()
            if count != self._within(count):
                least, most = self._rules.min, self._rules.max
                raise ControlError(422, f"count: expected from {least} to {most}, as scaling says")
            self._wanted = self._load.note(self._wanted, count, reason)
            self._changed.notify_all()
        return count

    def roll_out(self, what: Mapping[str, Json]) -> None:
        """Begins a rollout to another ``image``, ``command`` or ``environment``. Raises
        ``ControlError``."""
        with self._changed:
            self._refuse_at_rest()
            self._rollouts.ask(what, self._rules)
            self._forgive()
            self._changed.notify_all()

    def change_rollout(self, action: str) -> None:
        """``pause``, ``resume`` or ``abort``, which goes back to the old version. Raises
        ``ControlError``."""
        with self._changed:
            self._refuse_at_rest()
            self._rollouts.change(action)
            self._forgive()
            self._changed.notify_all()

    def _refuse_at_rest(self) -> None:
        """What the new program has been told of is as it was before."""
        if self._resting:
            raise ControlError(409, "a new program is taking over: ask again when it serves")

    def _forgive(self) -> None:
        """What failed so far was of something else."""
        self._fails, self._not_before, self._problem = 0, 0.0, ""

    def describe(self) -> dict[str, Any]:
        """What there is, in JSON's terms."""
        with self._changed:
            return {
                "launcher": self._rules.launcher,
                "min": self._rules.min,
                "max": self._rules.max,
                "auto": self._rules.auto,
                "wanted": self._wanted,
                "version": str(self._rollouts.version),
                "problem": self._problem,
                **self._load.describe(),
                "instances": [self._describe(one) for one in self._made.values()],
                "rollout": self._rollouts.describe(
                    [one.version for one in self._live()], self._wanted
                ),
            }

    def _describe(self, made: _Made) -> dict[str, Any]:
        instance = made.instance
        return {
            "name": made.name,
            "url": instance.url if instance else None,
            "id": made.id or None,
            "phase": made.phase,
            "version": str(made.version),
            "since": made.since,
            "reason": made.reason,
            "handle": instance.handle if instance else None,
            "log": instance.log if instance else "",
        }

    # The end

    def rest(self) -> None:
        """Changes nothing any more, until it is to ``go_on``; what is asked for is refused."""
        with self._changed:
            self._resting, self._leaves = True, frozenset()

    def go_on(self) -> None:
        with self._changed:
            self._adopted = False  # the other may have made some
            self._inherits, self._leaves, self._is_told = None, None, True
            self._resting = False

    def falls_short(self) -> str:
        """Why no target serves, if some did in the program before."""
        with self._changed:
            if not self._served or self._live():
                return ""
            return self._problem or "no target serves so far"

    def leave(self) -> dict[str, Any]:
        """What the next program's fleet is to know. It takes over those that serve now: those that
        drain or start end with this one."""
        with self._changed:
            self._leaves = frozenset(one.instance.handle for one in self._live() if one.instance)
            return {
                "handles": self._leaves,
                "number": next(self._numbers),
                "said": self._rules.version,
                "version": self._rollouts.version,
                "rollout": self._rollouts.now,
                "wanted": self._wanted,
                "served": bool(self._live()),
            }

    def stop(self, keep: bool = False) -> None:
        """Ends all its targets; with ``keep`` those that another program has taken over, or can,
        live on."""
        with self._changed:
            self._stopping, self._keep = True, keep
            for made in self._made.values():
                made.unwanted.set()
            self._changed.notify_all()
        if self._thread.ident:
            self._thread.join()
        deadline = time.monotonic() + 1  # a check may hang for as long as its target is there
        for thread in self._lives:
            thread.join(max(deadline - time.monotonic(), 0))
        with self._changed:
            left = [*self._made.values()]
        all_at_once([functools.partial(self._clear, one) for one in left])
        for thread in self._lives:
            thread.join()
        try:
            self._launcher.close(keep)
        except LaunchError as error:
            log.error("scaling %s: targets are left behind: %s", self._pool, error)

    def _is_another_s(self, made: _Made) -> bool:
        """Whether this program ends, and another knows it, or will."""
        if not self._keep:
            return False
        handle = made.instance.handle if made.instance else ""
        if self._leaves is not None:  # the next one knows no others
            return handle in self._leaves
        # This one gives up: the program before looks for what is there, and goes on with it.
        return made.phase == "live" or handle in (self._inherits or ())

    def serves(self) -> bool:
        """Whether as many serve as are wanted, or it has nothing to do with that any more."""
        with self._changed:
            return self._stopping or len(self._live()) >= self._wanted

    def retire(self, successor: "Successor | None") -> threading.Thread:
        """Drains all its targets when those of the successor serve, however long that takes, then
        stops; in a thread of its own. To ``stop`` it doesn't wait for that."""

        def end() -> None:
            while successor and not successor.serves():
                with self._changed:
                    if self._changed.wait_for(lambda: self._stopping, _TICK):
                        return
            with self._changed:
                self._resting = True
                for made in [*self._made.values()]:
                    self._end(made, "by the settings")
                lives = [*self._lives]
            for one in lives:
                one.join()
            self.stop()

        thread = threading.Thread(target=end, name=f"pyproxy-retire-{self._pool}", daemon=True)
        thread.start()
        return thread


def all_at_once(what: Iterable[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=one, name="pyproxy-scaling-end") for one in what]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _told(error: Exception) -> str:
    return str(error) if isinstance(error, PyproxyError) else f"{type(error).__name__}: {error}"


def _number(name: str) -> int:
    last = name.rpartition("-")[2]
    return int(last) if last.isdigit() else 0


def _slug(pool: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", pool).strip("-") or "pool"
