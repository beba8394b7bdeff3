"""Services: a pool of targets with all that stands around it, as the settings say.

    Backing      the pool, its policy, and the threads that find out who is there
      Service      with what forwards requests
      TCPService   with what relays connections

Made from settings, one is complete, but nothing has begun: whatever is bad in them has been told.
``start`` begins; if there was an ``old`` one for the same pool, it takes the place of that, with
the difference between the two: targets of both keep their state and their connections.
"""

import functools
import ssl
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass

from pyproxy import tls
from pyproxy.balancing.counters import Counters, Tally
from pyproxy.balancing.policy import Asked
from pyproxy.balancing.pool import TargetPool
from pyproxy.balancing.sticky import Sticky
from pyproxy.balancing.target import Target
from pyproxy.errors import SettingsError
from pyproxy.health.checks import check_as
from pyproxy.health.discovery import Discovery
from pyproxy.health.history import History
from pyproxy.health.recovery import RecoveryThread
from pyproxy.http.forward import Forwarder
from pyproxy.http.upstream import Upstreams
from pyproxy.readers import Json, url_of
from pyproxy.sections import (
    PoolSettings,
    StickySettings,
    TargetSettings,
    read_target,
    read_tcp_target,
)
from pyproxy.settings import Route, TCPEntry
from pyproxy.tcp.connector import Connector
from pyproxy.tcp.proxy_protocol import serialise


def _client_context(said: PoolSettings) -> ssl.SSLContext | None:
    if not _secure(said):
        return None
    own = said.target_tls
    try:
        return tls.client_context(
            verify=own.verify, ca=own.ca, certificate=own.certificate, key=own.key
        )
    except ValueError as error:
        raise SettingsError([f"target_tls: {error}"]) from None


def _secure(said: PoolSettings) -> bool:
    return any(one.scheme == "https" for one in said.targets)


def _sticky(said: StickySettings, secret: bytes, path: str) -> Sticky | None:
    if said.cookie is None:
        return None
    attributes = f"; Path={path}; HttpOnly; SameSite=Lax"
    if said.max_age is not None:
        attributes += f"; Max-Age={round(said.max_age)}"
    if said.secure:
        attributes += "; Secure"
    return Sticky(said.cookie, said.secret.encode() if said.secret else secret, attributes)


def name_of(said: PoolSettings) -> str:
    """The pool's: ``default`` at the top of the settings, a route's host, path and endings, a tcp
    entry's address and server name."""
    if isinstance(said, Route):
        return " ".join([f"{said.host or ''}{said.path}", *said.endings])
    if isinstance(said, TCPEntry):
        return f"{said.listen} {said.server_name or ''}".strip()
    return "default"


@dataclass(frozen=True)
class World:
    """What the services of a proxy have in common. ``secret`` is what the cookies are made with
    where the settings name none."""

    history: History
    counters: Counters
    secret: bytes
    first: int = 0  # the number of each pool's first request


class Backing:
    """A pool of targets, and the threads that find out who of them is there."""

    kind = "http"

    def __init__(
        self,
        name: str,
        said: PoolSettings,
        world: World,
        old: "Backing | None" = None,
    ) -> None:
        """Raises ``SettingsError``."""
        self.name = name
        self.said = said
        self._counters = world.counters
        self._old = old
        self.pool: TargetPool
        if old:
            self.pool = old.pool
        else:
            self.pool = TargetPool(
                [self.make(one) for one in said.targets if not one.dns],
                said.max_fails,
                policy=said.policy.make(),
                max_evicted=said.max_evicted,
                queue_size=said.queue.size,
                first=world.first,
            )
            self.pool.watch(functools.partial(world.history.note, name))
        health = said.health
        hello = serialise(said.send_proxy, None) if said.send_proxy else b""
        self.recovery = RecoveryThread(
            self.pool,
            check_as(health, _client_context(said), hello),
            said.sleeping,
            interval=health.interval,
            rise=health.rise,
            fall=health.fall,
        )
        self._discoveries: dict[str, Discovery] = {}
        # Held while a target comes or goes with an address, or changes hands.
        self._taking: threading.RLock = old._taking if old else threading.RLock()

    def make(self, said: TargetSettings, address: str = "") -> Target:
        """The target that the settings say; at one of the addresses, if it has several."""
        host, port = said.place
        host = address or host
        url = url_of(said.scheme, host, port)
        return Target(
            url,
            host,
            port,
            weight=said.weight,
            backup=said.backup,
            max_connections=said.max_connections,
            slow_start=said.slow_start or 0.0,
            tally=Tally(self._counters, self.name, url),
        )

    def read(self, value: Json) -> TargetSettings:
        """A target, as the settings say one. Raises ``ValueError``."""
        return read_target(value)

    def bound(self, request: Asked) -> Target | None:
        """The target that the client's cookie names."""
        return None

    def start(self) -> None:
        started = set(self._discoveries)
        leaving: list[Target] = []
        if self._old:
            leaving = self._take_over(self._old)
            started = set(self._discoveries)
            self._old = None
        for one in self.said.targets:
            if one.dns:
                known = self._discoveries.get(one.url)
                found = known or Discovery(self.pool, self._taking, *one.place)
                make = functools.partial(self.make, one)
                found.configure(self.said.resolving, make, self.forget, self._keeps, leaving)
                self._discoveries[one.url] = found
                if one.url not in started:
                    found.start()
        alone = not {*self.pool.targets}.difference(leaving)  # then they stay until names are known
        for target in leaving:
            if alone and any(one.hold(target) for one in self._discoveries.values()):
                continue
            if target in self.pool.targets:
                self.pool.remove(target, "by the settings")
            self.forget(target)
        self.recovery.start()

    def _take_over(self, old: "Backing") -> list[Target]:
        """Goes on where ``old`` stops. Only what differs between the settings of both changes, so
        that what was changed at run time stays so. Those that leave: while a name isn't known,
        they serve on."""
        old.recovery.stop()
        before = {one.url: one for one in old.said.targets}
        after = {one.url: one for one in self.said.targets}
        gone = before.keys() - after.keys()
        leaving: set[Target] = set()
        with self._taking:
            for url in old._discoveries.keys() - gone:
                self._discoveries[url] = discovery = old._discoveries[url]
                discovery.keep = self._keeps
                self._change(discovery.targets, before[url], after[url])
        for url in old._discoveries.keys() & gone:
            old._discoveries[url].stop()
            leaving.update(one for one in old._discoveries[url].targets if not self._keeps(one))
        stay = {one for one in self.pool.targets if one.url in gone and self._keeps(one)}
        for url in before.keys() & after.keys():
            self._change(
                [one for one in self.pool.targets if one.url == url], before[url], after[url]
            )

        # What was added by hand, and is said now.
        for one in self.pool.targets:
            if one.url in after.keys() - before.keys():
                self._set(one, after[one.url])
        names = [self._discoveries.get(url) for url, one in after.items() if one.dns]
        waits = not all(one and one.known for one in names)

        def targets(now: tuple[Target, ...]) -> tuple[Target, ...]:
            leaving.update(one for one in now if one.url in gone and one not in stay)
            kept = [one for one in now if waits or one not in leaving]
            known = {one.url for one in kept if one not in leaving}
            new = [
                self.make(one)
                for url, one in after.items()
                if url not in before and url not in known and not one.dns
            ]
            order = {url: at for at, url in enumerate(after)}
            return tuple(sorted(kept + new, key=lambda one: order.get(one.url, len(order))))

        said = self.said
        self.pool.update(
            targets,
            said.policy.make() if said.policy != old.said.policy else None,
            max_fails=said.max_fails,
            max_evicted=said.max_evicted,
            queue_size=said.queue.size,
            reason="by the settings",
            now=time.monotonic(),
        )
        self.succeed(old)
        return list(leaving)

    def _keeps(self, target: Target) -> bool:
        """Whether one that is going stays, as the settings say it, or a name has its address."""
        if any(one.url == target.url for one in self.said.targets):
            return True
        for one in self.said.targets:
            discovery = self._discoveries.get(one.url)
            if discovery and discovery.inherit(target):
                self._set(target, one)
                return True
        return False

    def _change(
        self, targets: Iterable[Target], before: TargetSettings, after: TargetSettings
    ) -> None:
        if before != after:
            for target in targets:
                self._set(target, after)

    def _set(self, target: Target, said: TargetSettings) -> None:
        self.pool.change(
            target,
            "by the settings",
            weight=said.weight,
            backup=said.backup,
            max_connections=said.max_connections,
            slow_start=said.slow_start or 0.0,
        )

    def succeed(self, old: "Backing") -> None:
        """What else is to be done when this has taken the place of ``old``."""

    def forget(self, target: Target) -> None:
        """A target is gone for good."""

    def stop(self) -> None:
        for discovery in self._discoveries.values():
            discovery.stop()
        self.recovery.stop()


class Service(Backing):
    """The same with all that forwards requests."""

    def __init__(
        self,
        name: str,
        said: PoolSettings,
        world: World,
        old: "Service | None" = None,
    ) -> None:
        super().__init__(name, said, world, old)
        self.upstreams: Upstreams
        if old and _connections(old.said) == _connections(said):
            self.upstreams = old.upstreams
        else:
            self.upstreams = Upstreams(
                said.timeouts, _client_context(said), keep=not said.send_proxy
            )
        self.sticky = _sticky(said.sticky, world.secret, _path(said))
        self.forward = Forwarder(
            self.pool,
            self.upstreams,
            said.retry,
            said.queue,
            said.unavailable,
            self.sticky,
            said.send_proxy,
            wishes=said.policy.function is not None,
        )

    def bound(self, request: Asked) -> Target | None:
        return self.sticky.find(request, self.pool.targets) if self.sticky else None

    def succeed(self, old: Backing) -> None:
        assert isinstance(old, Service)
        if old.upstreams is not self.upstreams:
            old.upstreams.close()

    def forget(self, target: Target) -> None:
        self.upstreams.forget(target)

    def stop(self) -> None:
        super().stop()
        self.upstreams.close()


def _connections(said: PoolSettings) -> tuple[object, ...]:
    """What the connections to targets depend on."""
    return said.timeouts, said.target_tls, said.send_proxy, _secure(said)


def _path(said: PoolSettings) -> str:
    return said.path if isinstance(said, Route) else "/"


class TCPService(Backing):
    """The same with all that relays connections."""

    kind = "tcp"

    def __init__(
        self,
        name: str,
        said: TCPEntry,
        world: World,
        old: "TCPService | None" = None,
    ) -> None:
        super().__init__(name, said, world, old)
        self.entry = said
        self.connector = Connector(
            self.pool,
            attempts=said.retry.attempts,
            queue=said.queue,
            connect_timeout=said.timeouts.connect,
            wishes=said.policy.function is not None,
        )

    def read(self, value: Json) -> TargetSettings:
        return read_tcp_target(value)
