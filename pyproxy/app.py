"""Proxy: settings in, a running proxy out. The one place where the parts are put together.

Proxy(settings)   all that the settings say is made (Parts): what is bad in it raises
start             sockets are bound, services and servers begin
reload            other settings: their parts are made, then take the place of the old ones
stop              drains
"""

import dataclasses
import functools
import logging
import random
import secrets
import socket
import threading
from collections.abc import Callable
from typing import Any, Self, TypeVar

from pyproxy import net, tls
from pyproxy.balancing.counters import Counters, Totals
from pyproxy.balancing.pool import TargetPool
from pyproxy.connections import Connections
from pyproxy.control.admin import AdminPlace
from pyproxy.control.control import Control, targets_said
from pyproxy.control.handover import Inheritance
from pyproxy.control.ledger import Memory
from pyproxy.errors import ControlError, ListenError, PyproxyError, SettingsError
from pyproxy.health.history import History
from pyproxy.http import routes
from pyproxy.http.access_log import AccessLog
from pyproxy.http.server import ProxyServer
from pyproxy.http.static import Files
from pyproxy.scaling import fleets
from pyproxy.sections import TLS, PoolSettings
from pyproxy.services import Backing, Service, TCPService, World, name_of
from pyproxy.settings import Route, Settings, parse
from pyproxy.sockets import Place, Sockets, named
from pyproxy.tcp.server import TCPProxyServer

log = logging.getLogger(__name__)

B = TypeVar("B", bound=Backing)
S = TypeVar("S", ProxyServer, TCPProxyServer)


def _server_tls(said: TLS, protocols: list[str]) -> tls.ServerTLS:
    try:
        return tls.ServerTLS(
            said.pairs,
            min_version=said.min_version,
            ciphers=said.ciphers,
            client_ca=said.client_ca,
            protocols=protocols,
        )
    except ValueError as error:
        raise SettingsError([f"tls: {error}"]) from None


class Parts:
    """All that is made of settings before anything begins. Raises ``SettingsError``."""

    def __init__(self, settings: Settings, world: World, old: "Parts | None" = None) -> None:
        """``old`` are the parts that these are to replace: what hasn't changed is theirs."""
        self.settings = settings
        self.services: dict[str, Backing] = {}  # by the pool's name
        self._old = old
        self._world = world
        self._names: list[tuple[routes.Service, str, Backing | None]] = []
        http = ["h2", "http/1.1"] if settings.http2.offered else ["http/1.1"]
        secure = any(one.secure for one in settings.listen)
        secure_tcp = any(one.tls for one in settings.tcp)
        same_tls = old and (old.settings.tls, old.settings.http2) == (settings.tls, settings.http2)
        known = old if old and same_tls else None
        self.tls: tls.ServerTLS | None = (known and known.tls) or (
            _server_tls(settings.tls, http) if secure else None
        )
        self.tcp_tls: tls.ServerTLS | None = (known and known.tcp_tls) or (
            _server_tls(settings.tls, []) if secure_tcp else None
        )
        self.serve = self._built()
        together: dict[object, list[TCPService]] = {}  # those that share an address
        for entry in settings.tcp:
            service = self._service(entry, TCPService)
            together.setdefault(entry.listen if entry.place[2] else service, []).append(service)
        self.relayed = list(together.values())
        self._old = None  # else each would keep all those before it

    def _built(self) -> routes.Service:
        """What answers requests: the targets, or the routes before them."""
        settings = self.settings
        default = self._forward(settings) if settings.has_targets else routes.no_route
        self._names.append((routes.no_route, "none", None))
        if not settings.routes:
            return default
        rules = [
            routes.Rule(one.host, one.path, self._route(one), one.endings)
            for one in settings.routes
        ]
        return routes.Router(rules, default)

    def _route(self, said: Route) -> routes.Service:
        if said.redirect:
            found = routes.redirect(said.redirect, said.redirect_status)
            what = f"to {said.redirect}"
        elif said.files:
            found = routes.files_below(said.path, Files(said.files, said.index, said.expires))
            what = f"files of {said.files}"
        elif said.deny:
            found, what = routes.deny(said.deny), f"denied with {said.deny}"
        else:
            return self._forward(said)
        self._names.append((found, f"{name_of(said)} ({what})", None))
        return found

    def _forward(self, said: PoolSettings) -> routes.Service:
        service = self._service(said, Service)
        self._names.append((service.forward, service.name, service))
        return service.forward

    def find(self, host: str, path: str) -> tuple[str, Backing | None]:
        """What serves a request: its name, and its targets if it has some."""
        serve = self.serve
        found = serve.find(host, path) if isinstance(serve, routes.Router) else serve
        return next((name, backing) for one, name, backing in self._names if one is found)

    def _service(self, said: Any, kind: type[B]) -> B:
        name = base = name_of(said)
        count = 1
        while name in self.services:  # tcp entries whose port the system chooses
            count += 1
            name = f"{base} #{count}"
        old = self._old.services.get(name) if self._old else None
        if not isinstance(old, kind):
            old = None
        if old and _of_pool(old.said) == _of_pool(said):
            made = old
        else:
            made = kind(name, said, self._world, old)
        self.services[name] = made
        return made


def _of_pool(said: PoolSettings) -> object:
    """What of it a service is made of."""
    if not isinstance(said, Settings):
        return said
    return [getattr(said, one.name) for one in dataclasses.fields(PoolSettings)]


class Proxy:
    """A load-balancing proxy inside this process.

    ``with Proxy(targets=["http://localhost:8001"]) as proxy: requests.get(proxy.url)``

    Keywords are settings, as in ``appsettings.json``; without ``listen`` the system chooses a free
    port of 127.0.0.1. Or give ready ``settings``. Raises ``SettingsError``; ``start`` raises
    ``ListenError``. Not started twice.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        inheritance: Inheritance | None = None,
        memory: Memory | None = None,
        worker: int | None = None,
        **keywords: Any,
    ) -> None:
        """``inheritance`` is what a program that was here before, or a supervisor, has left. One of
        several processes has its ``memory`` to count in, and its number as a ``worker``: with
        ``cpu_affinity`` it stays on the processor of that number, and its turns begin there, so
        that workers don't all ask the same target first. Its supervisor has the admin API."""
        if settings is None:
            settings = parse({"listen": "http://127.0.0.1:0", **keywords}, "Proxy()")
            if settings.worker_count > 1:
                raise SettingsError(["Proxy(): workers: this is one process, and has no others"])
        left = inheritance or Inheritance()
        self.history = History()
        self.ledger = left.ledger
        self._memory = memory or self.ledger.open()
        self._counters = Counters(self._memory.map)
        self.secret = left.secret or secrets.token_bytes(32)
        self._world = World(self.history, self._counters, self.secret, worker or 0)
        self.sockets = left.sockets
        self.control = Control(self, left.journal, left.scaling)
        self._heir = bool(left.scaling)  # what it takes over is another's until it serves
        self._alone = memory is None  # not one of several processes
        self._admin = AdminPlace(self.control, self.sockets) if memory is None else None
        # Any, so that several proxies on one machine spread over it.
        self._processor = random.getrandbits(16) if worker is None else worker
        self._connections = Connections(settings.limits.connections, self._counters)
        self._parts = Parts(settings, self._world)
        fleets.check(settings)
        self._access_log: AccessLog | None = None
        self._servers: dict[str, ProxyServer | TCPProxyServer] = {}
        self._retiring: set[ProxyServer | TCPProxyServer] = set()
        self._threads: list[threading.Thread] = []  # that serve, or end a server
        # One reload at a time, and none while it stops.
        self._changing = threading.Lock()
        self._stopped = False

    @property
    def settings(self) -> Settings:
        """Those in effect."""
        return self._parts.settings

    @property
    def services(self) -> list[Backing]:
        """The targets at the top of the settings, if there are some, then each route's, then each
        tcp entry's."""
        return list(self._parts.services.values())

    @property
    def pools(self) -> list[TargetPool]:
        """Of the ``services``."""
        return [service.pool for service in self.services]

    @property
    def pool(self) -> TargetPool:
        """The first of ``pools``."""
        return self.pools[0]

    @property
    def urls(self) -> list[str]:
        """Where it listens, with the ports that the system chose; those of tcp entries last."""
        return [server.url for server in self._servers.values()]

    @property
    def url(self) -> str:
        """The first of ``urls``."""
        return self.urls[0]

    @property
    def connections(self) -> int:
        """Client connections that are open."""
        return len(self._connections)

    @property
    def accepted(self) -> int:
        """Client connections since the start."""
        return self._connections.accepted

    @property
    def admin_url(self) -> str | None:
        """Of the admin API, if there is one here."""
        return self._admin.url if self._admin else None

    def totals(self) -> Totals:
        """What has been counted since the start (``balancing.counters``)."""
        return self.ledger.totals()

    def route(self, host: str, path: str) -> tuple[str, Backing | None]:
        """What serves a request: its name, and its targets if it has some."""
        return self._parts.find(host, path)

    def start(self) -> None:
        """Listens and serves, in threads of its own; returns at once."""
        with self._changing:
            try:
                self._access_log = _open_access_log(self.settings)
                self._commit(self._parts)
            except PyproxyError:
                self._close(handed_over=self._heir)
                raise

    def adopt(self, sockets: Sockets) -> None:
        """Sockets for a reload to come, that another process has bound."""
        self.sockets.adopt(sockets)

    def reload(self, settings: Settings) -> None:
        """Goes on with other settings. What is the same in both stays as it is, with its state and
        its connections; what is gone drains. Raises ``SettingsError`` or ``ListenError``, having
        changed nothing; ``ControlError`` when it has been stopped."""
        with self._changing:
            if self._stopped:
                raise ControlError(503, "the proxy has stopped")
            before = self.settings
            parts = Parts(settings, self._world, self._parts)
            fleets.check(settings)
            old_log = self._access_log
            if settings.access_log != self.settings.access_log:
                self._access_log = _open_access_log(settings)
            try:
                self._commit(parts)
            except ListenError:
                old_log, self._access_log = self._access_log, old_log
                raise
            finally:
                for server in self._retiring.copy():  # they log what they finish
                    if isinstance(server, ProxyServer):
                        server.access_log = self._access_log
                if old_log and old_log is not self._access_log:
                    old_log.close()
            self.control.journal.settle(targets_said(before), targets_said(settings))

    def _commit(self, parts: Parts) -> None:
        """Puts the parts in the place of those before. Raises ``ListenError`` before anything has
        changed."""
        settings = parts.settings
        opened = self.sockets.open(settings.all_places if self._admin else settings.places)
        starting = parts is self._parts
        before = {} if starting else self._parts.services
        self._connections.allow(net.connection_limit(settings.limits.connections))
        for name, service in parts.services.items():
            if service is not before.get(name):
                service.start()
        if starting and [*self.control.journal]:  # the start, before anybody is served
            self.control.journal.replay(self.control)
            self.history.begin()
        if starting and self._alone:
            self.control.fleets.apply(settings)
            self.control.fleets.wait()
            self.control.fleets.check()
        left, self._servers = self._servers, self._arranged(parts, opened)
        self._parts = parts
        for name, service in before.items():
            if type(parts.services.get(name)) is not type(service):
                service.stop()
        for name, server in left.items():
            if self._servers.get(name) is not server:
                self._retire(server, handed_over=name in opened or name in self.sockets.lent)
        for name, server in self._servers.items():
            if name not in left or left[name] is not server:
                self._thread(server.serve_forever, f"pyproxy-listen-{server.server_port}")
        if not starting and self._alone:
            self.control.fleets.apply(settings)
        if self._admin:
            self._admin.apply(settings)
        for name in self.sockets.all().keys() - opened.keys():
            self.sockets.close(name)

    def _arranged(
        self, parts: Parts, opened: dict[str, socket.socket]
    ) -> dict[str, ProxyServer | TCPProxyServer]:
        """The servers of these parts, those there and new ones, as the settings say."""
        settings = parts.settings
        names = list(named(settings.places))
        secure = [at for at, one in zip(names, settings.listens, strict=False) if one.secure]
        servers: dict[str, ProxyServer | TCPProxyServer] = {}
        for name, listen in zip(names, settings.listens, strict=False):
            server = self._server(
                ProxyServer, name, listen.place, opened, settings, counters=self._counters
            )
            serve = parts.serve
            if listen.redirect:
                port = opened[secure[0]].getsockname()[1]
                host = "{host}" if port == 443 else f"{{host}}:{port}"
                serve = routes.redirect(f"https://{host}{{uri}}", listen.redirect_status)
            server.configure(
                listen,
                serve,
                timeouts=settings.timeouts,
                limits=settings.limits,
                retry=settings.retry,
                http2=settings.http2,
                tracing=settings.tracing,
                trusted=settings.trusted_proxies,
                tls=parts.tls if listen.secure else None,
                access_log=self._access_log,
            )
            servers[name] = server
        for name, services in zip(names[len(settings.listens) :], parts.relayed, strict=True):
            entry = services[0].entry
            tcp = self._server(TCPProxyServer, name, entry.place, opened, settings)
            tcp.configure(
                [(one.entry, one.connector) for one in services],
                timeouts=settings.timeouts,
                trusted=settings.trusted_proxies,
                tls=parts.tcp_tls if entry.tls else None,
            )
            servers[name] = tcp
        return servers

    def _server(
        self,
        kind: type[S],
        name: str,
        place: Place,
        opened: dict[str, socket.socket],
        settings: Settings,
        **more: Any,
    ) -> S:
        """The one that serves there already, or a new one."""
        known = self._servers.get(name)
        if isinstance(known, kind):
            return known
        processor = self._processor if settings.cpu_affinity else None
        make: Callable[..., S] = kind
        return make(
            place,
            opened[name].dup(),
            connections=self._connections,
            processor=processor,
            **more,
        )

    def _retire(self, server: ProxyServer | TCPProxyServer, handed_over: bool) -> None:
        def drain() -> None:
            server.shutdown(handed_over=handed_over)
            server.server_close()
            self._retiring.discard(server)

        self._retiring.add(server)
        self._thread(drain, f"pyproxy-drain-{server.server_port}")

    def _thread(self, what: Callable[[], None], name: str) -> None:
        self._threads = [one for one in self._threads if one.is_alive()]
        thread = threading.Thread(target=what, name=name, daemon=True)
        thread.start()
        self._threads.append(thread)

    def _aside(self, shut: Callable[[], None]) -> None:
        """All at once; one after the other if this machine is out of threads."""
        try:
            self._thread(shut, "pyproxy-shutdown")
        except RuntimeError:
            shut()

    def reopen_logs(self) -> None:
        """Opens the access log's file anew, for logrotate. From any thread, or a signal handler."""
        if self._access_log:
            self._access_log.reopen()

    def stop(
        self, drain: float | None = None, *, handed_over: bool = False, breath: float | None = None
    ) -> None:
        """Stops accepting, finishes what is under way within ``drain`` seconds
        (``timeouts.drain``), and ends every thread. If the sockets are ``handed_over``, they and
        their backlogs are left to other processes. A connection that is idle ends when it has been
        for ``breath`` seconds (0.2): until then a request may be on its way."""
        with self._changing:
            self._stopped = True
            if breath is not None:
                self._connections.breath = breath
            if self._admin:
                self._admin.stop(handed_over)
            for name, server in self._servers.items():
                left = handed_over or name in self.sockets.lent
                self._aside(functools.partial(server.shutdown, drain, handed_over=left))
            if drain is not None:  # those that a reload has retired have taken their own time
                for server in self._retiring.copy():
                    self._aside(functools.partial(server.shutdown, drain, handed_over=True))
            for thread in self._threads:
                thread.join()
            self._close(handed_over)

    def _close(self, handed_over: bool = False) -> None:
        self.control.fleets.stop(keep=handed_over)
        for service in self.services:
            service.stop()
        for server in self._servers.values():
            server.server_close()
        self.sockets.close_all()
        if self._access_log:
            self._access_log.close()
        if self._admin:
            self._admin.stop()
        self.ledger.close(self._memory)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def check(settings: Settings) -> None:
    """Whether a process can serve with them, but for the addresses. Raises ``SettingsError`` or
    ``ListenError``."""
    Proxy(settings)
    if access_log := _open_access_log(settings):
        access_log.close()


def _open_access_log(settings: Settings) -> AccessLog | None:
    wanted = settings.access_log
    if wanted is None:
        return None
    try:
        return AccessLog(wanted.path, wanted.format)
    except OSError as error:
        said = (error.strerror or str(error)).lower()
        raise ListenError(f"access_log: {wanted.path}: {said}") from None
