"""Control: the verbs of those who run a proxy. The admin API, the command line, the autoscaler and
tests use the same ones; where there are several processes, ``workers.SupervisorControl`` has them.

    snapshot totals settings                what there is, and what it has done
    add remove drain maintenance ready weight   a target, known by its id
    scale roll_out change_rollout           targets that are made (scaling)
    reload                                  the settings, read again
    explain                                 who would get a request

A target's id is the same in every process and after each start.
"""

import contextlib
import hashlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from pyproxy.balancing.counters import Totals
from pyproxy.balancing.policy import Asked
from pyproxy.balancing.pool import TargetPool
from pyproxy.balancing.target import State, Target
from pyproxy.control.described import Described
from pyproxy.control.source import Source
from pyproxy.errors import AllBusy, ControlError, EmptyRing
from pyproxy.health.history import History
from pyproxy.readers import Json, parts
from pyproxy.scaling.fleets import Fleets
from pyproxy.sections import PoolSettings, TargetSettings
from pyproxy.services import name_of
from pyproxy.settings import Settings, plain

# A verb, a target's id, further arguments: ("add", id, target, pool, reason), ("weight", id, 3).
Deed = tuple[Any, ...]

BY_HAND = "by the operator"


def target_id(pool: str, url: str) -> str:
    return hashlib.blake2s(f"{pool} {url}".encode(), digest_size=6).hexdigest()


class Managed(Protocol):
    """A pool with what stands around it (``services.Backing``)."""

    name: str
    kind: str
    pool: TargetPool
    said: PoolSettings

    def make(self, said: TargetSettings) -> Target: ...
    def read(self, value: Json) -> TargetSettings: ...
    def forget(self, target: Target) -> None: ...
    def bound(self, request: Asked) -> Target | None:
        """The target that the client's cookie names."""


class Running(Protocol):
    """A proxy (``app.Proxy``)."""

    history: History

    @property
    def settings(self) -> Settings: ...
    @property
    def services(self) -> Sequence[Managed]: ...
    @property
    def urls(self) -> list[str]: ...
    @property
    def connections(self) -> int: ...
    @property
    def accepted(self) -> int: ...
    def totals(self) -> Totals: ...
    def route(self, host: str, path: str) -> tuple[str, Managed | None]:
        """What serves a request: its name, and its targets if it has some."""


class Journal:
    """What was done by hand since the start, for a process that is started later. Not more than the
    state in which it left each target. May be used from any thread."""

    def __init__(self, entries: Iterable[Deed] = ()) -> None:
        self._deeds: dict[tuple[str, str], Deed] = {}
        # Protects them: a reload settles what others note.
        self._lock = threading.Lock()
        for entry in entries:
            self.note(*entry)

    def note(self, verb: str, target: str, *arguments: Any) -> None:
        about = {"add": "presence", "remove": "presence", "weight": "weight"}.get(verb, "state")
        with self._lock:
            before = self._deeds.get(("presence", target), ())
            if about == "presence":
                for key in [key for key in self._deeds if key[1] == target]:
                    del self._deeds[key]
                # An add for another reason than that is of `scaling`.
                made = before[:1] == ("add",) and before[4:] not in ((), (BY_HAND,))
                if verb == "remove" and made:
                    return  # it was made here: the settings don't name it, and it is gone
            self._deeds.pop((about, target), None)
            self._deeds[about, target] = (verb, target, *arguments)

    def __iter__(self) -> Iterator[Deed]:
        with self._lock:
            return iter(list(self._deeds.values()))

    def settle(self, before: Mapping[str, Json], after: Mapping[str, Json]) -> None:
        """The settings have the last word on what they have changed: the weight of a target, and
        whether it is there. Both are ``targets_said`` by settings."""
        with self._lock:
            for about, target in list(self._deeds):
                was, is_now = before.get(target), after.get(target)
                if was != is_now and (about == "weight" or was is None or is_now is None):
                    del self._deeds[about, target]

    def replay(self, verbs: "Verbs") -> None:
        """Does it all again, as far as that makes sense."""
        for verb, target, *arguments in self:
            with contextlib.suppress(ControlError):
                if verb == "add":
                    with contextlib.suppress(ControlError):  # it is as the settings say it
                        verbs.remove(target)
                    verbs.add(*arguments)
                else:
                    getattr(verbs, verb)(target, *arguments)


def targets_said(settings: Settings) -> dict[str, Json]:
    """What settings say of each target, by id."""
    pools: list[PoolSettings] = [settings, *settings.routes, *settings.tcp]
    return {
        target_id(name_of(pool), target.url): plain(target)
        for pool in pools
        for target in pool.targets
    }


class Verbs(Protocol):
    """What ``Control`` can do for one process, and ``SupervisorControl`` for several. Each may be
    called from any thread; each raises ``ControlError``."""

    def snapshot(self) -> dict[str, Any]: ...
    def totals(self) -> Totals: ...
    def settings(self) -> Json: ...
    def add(self, target: Json, pool: str = "", reason: str = BY_HAND) -> str: ...
    def remove(self, target: str, reason: str = BY_HAND) -> None: ...
    def drain(self, target: str, reason: str = BY_HAND) -> None: ...
    def maintenance(self, target: str, reason: str = BY_HAND) -> None: ...
    def ready(self, target: str) -> None: ...
    def weight(self, target: str, weight: int) -> None: ...
    def scale(self, count: int, pool: str = "") -> Json: ...
    def roll_out(self, version: Mapping[str, Json], pool: str = "") -> Json: ...
    def change_rollout(self, action: str, pool: str = "") -> Json: ...
    def reload(self) -> list[str]: ...
    def explain(self, asked: Described) -> dict[str, Any]: ...


class Control:
    """The verbs for the proxy in this process."""

    def __init__(
        self,
        proxy: Running,
        journal: Iterable[Deed] = (),
        scaling: Mapping[str, Any] | None = None,
    ) -> None:
        """``journal`` is what was done by hand to a process that this one replaces; it is to be
        replayed when the proxy has started. ``scaling`` is what ``Fleets.leave`` has told there."""
        self._proxy = proxy
        self.source: Source | None = None  # of the settings
        self.restart: Callable[[], None] | None = None  # has a new program take this one's place
        self.journal = Journal(journal)
        self.fleets = Fleets(self, scaling)
        self._started = time.time()
        # One target is changed at a time, so that the journal tells it in the order in which it was
        # done.
        self._doing = threading.Lock()

    def snapshot(self) -> dict[str, Any]:
        """What is there now, in JSON's terms; ``status.Status`` adds what has been counted."""
        proxy = self._proxy
        return {
            "started": self._started,
            "settings": self.source.describe() if self.source else None,
            "urls": proxy.urls,
            "connections": {"open": proxy.connections, "accepted": proxy.accepted},
            "pools": [self._pool(one) for one in proxy.services],
            "events": [
                {
                    "at": one.at,
                    "pool": one.pool,
                    "target": one.url,
                    "what": one.what,
                    "reason": one.reason,
                }
                for one in proxy.history()
            ],
        }

    def totals(self) -> Totals:
        """What has been counted since the start (``balancing.counters``)."""
        return self._proxy.totals()

    def settings(self) -> Json:
        """Those in effect, as ``appsettings.json`` would say them; secrets are hidden."""
        return plain(self._proxy.settings)

    def _pool(self, said: Managed) -> dict[str, Any]:
        return {
            "name": said.name,
            "kind": said.kind,
            "policy": said.said.policy.name,
            "scaling": self.fleets.describe(said.name),
            "waiting": said.pool.waiting(),
            "targets": [self._target(said.name, one) for one in said.pool.targets],
        }

    def _target(self, pool: str, target: Target) -> dict[str, Any]:
        last = self._proxy.history.last(target)
        return {
            "id": target_id(pool, target.url),
            "url": target.url,
            "pool": pool,
            "state": str(target.state),
            "wanted": str(target.wanted),
            "reason": last.reason if last else "",
            "since": last.at if last else self._started,
            "weight": target.weight,
            "backup": target.backup,
            "max_connections": target.max_connections,
            "in_flight": target.in_flight,
        }

    def _find(self, wanted: str) -> tuple[Managed, Target]:
        for service in self._proxy.services:
            for target in service.pool.targets:
                if target_id(service.name, target.url) == wanted:
                    return service, target
        raise ControlError(404, f'no target has the id "{wanted}"')

    def add(self, target: Json, pool: str = "", reason: str = BY_HAND) -> str:
        """A target as the settings say one, to the pool with this name (without one: the first).
        Its id."""
        services = self._proxy.services
        named = [one for one in services if one.name == pool] if pool else services[:1]
        if not named:
            raise ControlError(404, f'no pool is called "{pool}"')
        service = named[0]
        try:
            said = service.read(target)
            if said.dns:
                raise ValueError("a dns:// target is for the settings: add what is behind it")
        except ValueError as error:
            told = "\n".join(f"target{path}: {text}" for path, text in parts(error))
            raise ControlError(422, told) from None
        made = service.make(said)
        known = target_id(service.name, made.url)
        with self._doing:
            if not service.pool.add(made, reason, time.monotonic()):
                raise ControlError(409, f"{made.url} is in the pool {service.name} already")
            self.journal.note("add", known, target, service.name, reason)
        return known

    def remove(self, target: str, reason: str = BY_HAND) -> None:
        """What it has under way is finished."""
        with self._doing:
            service, found = self._find(target)
            service.pool.remove(found, reason)
            service.forget(found)
            self.journal.note("remove", target)

    def drain(self, target: str, reason: str = BY_HAND) -> None:
        """It finishes what it has, and serves only clients bound to it by their cookie."""
        self._want("drain", target, State.DRAINING, reason)

    def maintenance(self, target: str, reason: str = BY_HAND) -> None:
        """It serves nobody, and isn't probed; what it has under way is finished."""
        self._want("maintenance", target, State.MAINTENANCE, reason)

    def ready(self, target: str) -> None:
        """It serves again, unless it is evicted: then when a probe finds it well."""
        self._want("ready", target, State.LIVE, BY_HAND)

    def _want(self, verb: str, target: str, state: State, reason: str) -> None:
        with self._doing:
            service, found = self._find(target)
            service.pool.want(found, state, reason, time.monotonic())
            self.journal.note(verb, target)

    def weight(self, target: str, weight: int) -> None:
        """1 to 256."""
        with self._doing:
            service, found = self._find(target)
            try:
                said = service.read({"url": found.url, "weight": weight})
            except ValueError as error:
                raise ControlError(422, "; ".join(text for _, text in parts(error))) from None
            service.pool.change(found, BY_HAND, weight=said.weight)
            self.journal.note("weight", target, weight)

    def scale(self, count: int, pool: str = "") -> Json:
        """So many targets of a pool whose targets are made; without a name, of the first such.
        What ``snapshot`` tells of its scaling then."""
        return self.fleets.scale(count, pool)

    def roll_out(self, version: Mapping[str, Json], pool: str = "") -> Json:
        """Begins to make the targets of another ``image``, ``command`` or ``environment``."""
        return self.fleets.roll_out(version, pool)

    def change_rollout(self, action: str, pool: str = "") -> Json:
        """``pause``, ``resume``, or ``abort``, which goes back."""
        return self.fleets.change_rollout(action, pool)

    def reload(self) -> list[str]:
        """Reads the settings again and applies what differs; what that is. Bad ones change
        nothing: raises ``ControlError`` 422."""
        if self.source is None:
            raise ControlError(409, "these settings come from no file")
        return self.source.reload()

    def explain(self, asked: Described) -> dict[str, Any]:
        """Which target a request would get now, and why not the others."""
        route, service = self._proxy.route(asked.host, asked.path)
        found: dict[str, Any] = {"route": route, "target": None, "others": []}
        if service is None:
            return found
        pool, bound, why = service.pool, service.bound(asked), ""
        try:
            target = pool.peek(asked, time.monotonic())
            if bound and bound is not target and not bound.full and pool.may_serve(bound):
                target, why = bound, "the client is bound to it by its cookie"
            policy = service.said.policy.name
            found["target"] = {
                "id": target_id(service.name, target.url),
                "url": target.url,
                "reason": why or f"the choice of {policy}",
            }
        except EmptyRing:
            target = None
            found["reason"] = "no target is live"
        except AllBusy as error:
            target = None
            found["reason"] = str(error)
        found["pool"] = service.name
        found["others"] = [
            {
                "id": target_id(service.name, one.url),
                "url": one.url,
                "reason": self._why_not(pool, one),
            }
            for one in pool.targets
            if one is not target
        ]
        return found

    def _why_not(self, pool: TargetPool, target: Target) -> str:
        if target.state is not State.LIVE:
            last = self._proxy.history.last(target)
            return f"{target.state}: {last.reason}" if last else str(target.state)
        if target.full:
            return f"full: {target.in_flight} requests under way"
        if target.backup and any(not one.backup for one in pool.live):
            return "a backup, and ordinary targets are live"
        return "live: the policy chose another"
