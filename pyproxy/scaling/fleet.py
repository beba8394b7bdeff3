"""Fleet: the targets that are made for one pool.

_run                twice a second:
  _adopt            at first: those that are left of the program before
  _look             who has died, who is out of service for long
  _weigh            the autoscaler says how many there shall be; is a new version good?
  _act              what the plan says is started and ended

How each of them is started and ended: ``lives``. What follows when that fails: ``troubles``.
"""

import itertools
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pyproxy.balancing.samples import Sample
from pyproxy.errors import ControlError
from pyproxy.readers import Json
from pyproxy.scaling.launcher import Launcher, LauncherAway, LaunchError
from pyproxy.scaling.life import Life
from pyproxy.scaling.lives import Lives
from pyproxy.scaling.plan import Member, plan
from pyproxy.scaling.rollouts import Rollouts
from pyproxy.scaling.scaler import Hands, Scaler, targets_of
from pyproxy.scaling.troubles import Troubles
from pyproxy.sections import PoolSettings

log = logging.getLogger(__name__)

_TICK = 0.5  # seconds


class Fleet(Scaler):
    """Its own thread (``_run``) decides; each target has threads of its own, in which it is started
    and ended (``Lives``). All share one lock, ``_changed``."""

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
        super().__init__(pool, said, hands)
        self._launcher = launcher
        self._numbers: Iterator[int] = instead_of._numbers if instead_of else itertools.count(1)
        self._adopted = bool(instead_of)
        self._is_told = bool(left)  # how many are wanted, whoever is there
        self._served = bool(left and left["served"])
        self._next_look = 0.0
        self._rollouts = Rollouts(pool, self._rules.version)
        self._troubles = Troubles(pool, self._rollouts, self._changed)
        self._lives = Lives(pool, said, hands, launcher, self._troubles, self._changed)
        if left:
            self._lives.inherits = left.get("handles")
            self._numbers = itertools.count(left.get("number", 1))
            self._wanted = self._within(left["wanted"])
            if left["said"] == self._rules.version:
                self._rollouts.version, self._rollouts.now = left["version"], left["rollout"]

    @property
    def ids(self) -> set[str]:
        with self._changed:
            return {one.id for one in self._lives.made.values() if one.id}

    def wait(self, seconds: float, hurried: Callable[[], bool] = lambda: False) -> None:
        deadline = time.monotonic() + seconds
        with self._changed:
            while not self._settled() and not hurried():
                if (left := deadline - time.monotonic()) <= 0:
                    break
                self._changed.wait(min(left, 0.2))  # a hurry wakes nobody
            serving, wanted = len(self._lives.of("live")), self._wanted
        if serving < wanted:
            log.warning("scaling %s: %d of %d targets serve so far", self.pool, serving, wanted)

    def _settled(self) -> bool:
        return self.serves() or bool(self._troubles.problem)

    def serves(self) -> bool:
        with self._changed:
            return self._stopping or len(self._lives.of("live")) >= self._wanted

    def configure(self, said: PoolSettings) -> None:
        """Another version is rolled out."""
        assert said.scaling
        with self._changed:
            before, self._rules = self._rules, said.scaling
            self._lives.configure(said)
            self._wanted = self._within(self._wanted)
            if before.version != said.scaling.version != self._rollouts.goal:
                self._rollouts.begin(said.scaling.version, self._rules)
                self._troubles.forgive()
            self._changed.notify_all()

    # What people ask for

    def scale(self, count: int, reason: str) -> int:
        with self._changed:
            self._refuse_at_rest()
            self._refuse_outside(count)
            self._wanted = self._load.note(self._wanted, count, reason)
            self._changed.notify_all()
        return count

    def roll_out(self, what: Mapping[str, Json]) -> None:
        with self._changed:
            self._refuse_at_rest()
            self._rollouts.ask(what, self._rules)
            self._troubles.forgive()
            self._changed.notify_all()

    def change_rollout(self, action: str) -> None:
        with self._changed:
            self._refuse_at_rest()
            self._rollouts.change(action)
            self._troubles.forgive()
            self._changed.notify_all()

    def _refuse_at_rest(self) -> None:
        """What the new program has been told of is as it was before."""
        if self._resting:
            raise ControlError(409, "a new program is taking over: ask again when it serves")

    def describe(self) -> dict[str, Any]:
        with self._changed:
            live = [one.version for one in self._lives.of("live")]
            return self._told(
                str(self._rollouts.version),
                self._troubles.problem,
                [one.describe() for one in self._lives.made.values()],
                self._rollouts.describe(live, self._wanted),
            )

    # What its thread does

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
                    self._troubles.note_away(str(error))
                except ControlError as error:  # the proxy begins or ends
                    log.debug("scaling %s: %s", self.pool, error)
                except Exception as error:  # noqa: BLE001 - without this thread nobody keeps min
                    self._troubles.note_surprise(error)
            with self._changed:
                if not self._stopping:
                    self._changed.wait(_TICK)

    def _adopt(self) -> None:
        """Takes over what an earlier life has left, once. Raises ``LauncherAway``."""
        if self._adopted:
            return
        found = self._launcher.adopt(self._lives.inherits)
        self._adopted = True
        with self._changed:
            for instance in found:
                if instance.name not in self._lives.made:
                    try:
                        self._lives.adopt(instance)
                    except RuntimeError:
                        self._adopted = False  # once more, when there are threads again
                        raise
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
            there = self._lives.of("live", "draining")
        for life in there:
            if said := self._lives.fate(life):
                self._lives.mourn(life, said)
            if self._troubles.away or self._stopping:
                break  # each question might take until its time is up
        if (targets := self._targets()) is None:
            return
        now = time.monotonic()
        with self._changed:
            for life in there:
                target = targets.get(life.id)
                if life.phase != "live":
                    continue
                if target is None:  # somebody else has removed it
                    self._lives.end(life, "it was removed")
                elif target["state"] != "evicted":
                    if life.lost_at is not None:
                        life.lost_at, life.back_at = None, now
                elif life.lost_at is None:
                    life.lost_at = now
            self._troubles.note_live(self._lives.of("live"))

    def _targets(self) -> dict[str, dict[str, Any]] | None:
        return targets_of(self._hands, self.pool)

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
            live = self._lives.of("live")
            # What fails isn't awaited: others may be needed, or fewer, meanwhile.
            coming = 0 if self._troubles.failing else len(self._lives.of("starting"))
            managed = self.ids
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

    def _processor_times(self, live: Sequence[Life]) -> dict[str, float | None]:
        found: dict[str, float | None] = {one.name: None for one in live}
        for one in live:
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
            live = [
                (one.name, one.instance.url, one.version)
                for one in self._lives.of("live")
                if one.instance
            ]
            self._rollouts.judge(now, live, self._rules.rollout.max_error_rate)

    def _act(self) -> None:
        with self._changed:
            if self._stopping:
                return
            now = time.monotonic()
            members = [self._member(one, now) for one in self._lives.of("starting", "live")]
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
            made = self._lives.made
            members = [
                replace(one, in_flight=in_flight.get(made[one.name].id, 0))
                for one in members
                if one.name in made
            ]
            if self._resting:  # what there is has been told to the next program
                return
            rollout = self._rollouts.now
            to_do = plan(members, self._wanted, self._rollouts.version, rollout)
            if to_do.finished:
                self._rollouts.finish()
            for name in to_do.end:
                self._lives.end(made[name], rollout.step if rollout else "fewer are wanted")
            if self._stopping or not self._troubles.may_start():
                return
            for version in to_do.start[:1] if self._troubles.failing else to_do.start:
                self._lives.start(f"{_slug(self.pool)}-{next(self._numbers)}", version)

    def _member(self, life: Life, now: float) -> Member:
        serves = life.phase == "live" and life.lost_at is None
        return Member(
            life.name,
            life.version,
            serves=serves,
            age=now - max(life.live_at, life.back_at) if serves else 0.0,
            lost=now - (now if life.lost_at is None else life.lost_at) > self._rules.start_timeout,
        )

    # The end, and who comes after

    def rest(self) -> None:
        """What is asked for meanwhile is refused."""
        with self._changed:
            super().rest()
            self._lives.leaves = frozenset()

    def go_on(self) -> None:
        with self._changed:
            self._adopted = False  # the other may have made some
            self._lives.inherits, self._lives.leaves, self._is_told = None, None, True
            super().go_on()

    def falls_short(self) -> str:
        with self._changed:
            if not self._served or self._lives.of("live"):
                return ""
            return self._troubles.problem or "no target serves so far"

    def leave(self) -> dict[str, Any]:
        """The next program's fleet takes over those that serve now: those that drain or start end
        with this one."""
        with self._changed:
            live = self._lives.of("live")
            self._lives.leaves = frozenset(one.instance.handle for one in live if one.instance)
            return {
                "handles": self._lives.leaves,
                "number": next(self._numbers),
                "said": self._rules.version,
                "version": self._rollouts.version,
                "rollout": self._rollouts.now,
                "wanted": self._wanted,
                "served": bool(live),
            }

    def stop(self, keep: bool = False) -> None:
        with self._changed:
            self._stopping = True
            self._lives.let_go(keep)
            self._changed.notify_all()
        if self._thread.ident:
            self._thread.join()
        self._lives.finish()
        try:
            self._launcher.close(keep)
        except LaunchError as error:
            log.error("scaling %s: targets are left behind: %s", self.pool, error)

    def retire(self, successor: Scaler | None) -> threading.Thread:
        """Drains all its targets when those of the successor serve, however long that takes, then
        stops; in a thread of its own. To ``stop`` it doesn't wait for that."""

        def end() -> None:
            while successor and not successor.serves():
                with self._changed:
                    if self._changed.wait_for(lambda: self._stopping, _TICK):
                        return
            with self._changed:
                self._resting = True
                for life in [*self._lives.made.values()]:
                    self._lives.end(life, "by the settings")
                threads = [*self._lives.threads]
            for one in threads:
                one.join()
            self.stop()

        thread = threading.Thread(target=end, name=f"pyproxy-retire-{self.pool}", daemon=True)
        thread.start()
        return thread


def _number(name: str) -> int:
    last = name.rpartition("-")[2]
    return int(last) if last.isdigit() else 0


def _slug(pool: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", pool).strip("-") or "pool"
