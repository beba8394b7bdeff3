"""Proxy: settings in, a running proxy out. The one place where the parts are put together."""

import functools
import secrets
import ssl
import threading
from types import TracebackType
from typing import Any, Self

from pyproxy import tls
from pyproxy.balancing.pool import TargetPool
from pyproxy.balancing.sticky import Sticky
from pyproxy.balancing.target import Target
from pyproxy.connections import Connections
from pyproxy.errors import ListenError, SettingsError
from pyproxy.health.checks import check_as
from pyproxy.health.discovery import Discovery
from pyproxy.health.history import History
from pyproxy.health.recovery import RecoveryThread
from pyproxy.http import routes
from pyproxy.http.access_log import AccessLog
from pyproxy.http.forward import Forwarder
from pyproxy.http.server import ProxyServer
from pyproxy.http.static import Files
from pyproxy.http.upstream import Upstreams
from pyproxy.listener import Listener
from pyproxy.readers import url_of
from pyproxy.sections import TLS, Listen, PoolSettings, StickySettings, TargetSettings
from pyproxy.settings import Route, Settings, TCPEntry, parse
from pyproxy.tcp.connector import Connector
from pyproxy.tcp.proxy_protocol import serialise
from pyproxy.tcp.server import TCPProxyServer


def _target(said: TargetSettings, address: str = "") -> Target:
    """The target that the settings say; at one of the addresses, if it has several."""
    host, port = said.place
    host = address or host
    return Target(
        url_of(said.scheme, host, port),
        host,
        port,
        weight=said.weight,
        backup=said.backup,
        max_connections=said.max_connections,
        slow_start=said.slow_start or 0.0,
    )


def _client_context(said: PoolSettings) -> ssl.SSLContext | None:
    if not any(one.scheme == "https" for one in said.targets):
        return None
    own = said.target_tls
    try:
        return tls.client_context(
            verify=own.verify, ca=own.ca, certificate=own.certificate, key=own.key
        )
    except ValueError as error:
        raise SettingsError([f"target_tls: {error}"]) from None


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


def _sticky(said: StickySettings, path: str) -> Sticky | None:
    if said.cookie is None:
        return None
    attributes = f"; Path={path}; HttpOnly; SameSite=Lax"
    if said.max_age is not None:
        attributes += f"; Max-Age={round(said.max_age)}"
    if said.secure:
        attributes += "; Secure"
    secret = said.secret.encode() if said.secret else secrets.token_bytes(32)
    return Sticky(said.cookie, secret, attributes)


class Backing:
    """A pool of targets, and the threads that find out who of them is there."""

    def __init__(self, settings: PoolSettings, history: History) -> None:
        self.pool = TargetPool(
            [_target(one) for one in settings.targets if not one.dns],
            settings.max_fails,
            policy=settings.policy.make(),
            max_evicted=settings.max_evicted,
            queue_size=settings.queue.size,
        )
        self.pool.watch(history.note)
        health = settings.health
        hello = serialise(settings.send_proxy, None) if settings.send_proxy else b""
        self._recovery = RecoveryThread(
            self.pool,
            # A context of its own: urllib3 changes the one it gets.
            check_as(health, _client_context(settings), hello),
            settings.sleeping,
            interval=health.interval,
            rise=health.rise,
            fall=health.fall,
        )
        self._discoveries = [
            Discovery(
                self.pool,
                *one.place,
                settings.resolving,
                functools.partial(_target, one),
                self.forget,
            )
            for one in settings.targets
            if one.dns
        ]

    def forget(self, target: Target) -> None:
        """A target is gone for good."""

    def start(self) -> None:
        for discovery in self._discoveries:
            discovery.start()
        self._recovery.start()

    def stop(self) -> None:
        for discovery in self._discoveries:
            discovery.stop()
        self._recovery.stop()


class Service(Backing):
    """The same with all that forwards requests."""

    def __init__(self, settings: PoolSettings, history: History) -> None:
        super().__init__(settings, history)
        self.upstreams = Upstreams(
            settings.timeouts, _client_context(settings), keep=not settings.send_proxy
        )
        self.forward = Forwarder(
            self.pool,
            self.upstreams,
            settings.retry,
            settings.queue,
            settings.unavailable,
            _sticky(settings.sticky, getattr(settings, "path", "/")),
            settings.send_proxy,
        )

    def forget(self, target: Target) -> None:
        self.upstreams.forget(target)

    def stop(self) -> None:
        super().stop()
        for upstream in self.upstreams.values():
            upstream.close_idle()


class TCPService(Backing):
    """The same with all that relays connections."""

    def __init__(self, settings: TCPEntry, history: History) -> None:
        super().__init__(settings, history)
        self.entry = settings
        self.connector = Connector(
            self.pool,
            attempts=settings.retry.attempts,
            queue=settings.queue,
            connect_timeout=settings.timeouts.connect,
        )


class Proxy:
    """A load-balancing proxy inside this process.

    ``with Proxy(targets=["http://localhost:8001"]) as proxy: requests.get(proxy.url)``

    Keywords are settings, as in ``appsettings.json``; without ``listen`` the system chooses a free
    port of 127.0.0.1. Or give ready ``settings``. Raises ``SettingsError``; ``start`` raises
    ``ListenError``. Not started twice.
    """

    def __init__(self, settings: Settings | None = None, **keywords: Any) -> None:
        if settings is None:
            settings = parse({"listen": "http://127.0.0.1:0", **keywords}, "Proxy()")
        self.settings = settings
        self.history = History()
        secure = any(one.secure for one in settings.listen)
        http = ["h2", "http/1.1"] if settings.http2.offered else ["http/1.1"]
        self._tls = _server_tls(settings.tls, http) if secure else None
        secure_tcp = any(one.tls for one in settings.tcp)
        self._tcp_tls = _server_tls(settings.tls, []) if secure_tcp else None
        self._services: list[Backing] = []
        self._serve = self._built()
        self._relayed = [TCPService(one, self.history) for one in settings.tcp]
        self._services += self._relayed
        self._connections = Connections(settings.limits.connections)
        self._access_log: AccessLog | None = None
        self._servers: list[ProxyServer] = []
        self._tcp_servers: list[TCPProxyServer] = []
        self._threads: list[threading.Thread] = []

    def _built(self) -> routes.Service:
        """What answers requests: the targets, or the routes before them."""
        settings = self.settings
        default = self._pool_service(settings) if settings.targets else routes.no_route
        if not settings.routes:
            return default
        rules = [routes.Rule(one.host, one.path, self._route(one)) for one in settings.routes]
        return routes.Router(rules, default)

    def _route(self, said: Route) -> routes.Service:
        if said.redirect:
            return routes.redirect(said.redirect, said.redirect_status)
        if said.files:
            return routes.files_below(said.path, Files(said.files, said.index, said.expires))
        return self._pool_service(said)

    def _pool_service(self, said: PoolSettings) -> routes.Service:
        service = Service(said, self.history)
        self._services.append(service)
        return service.forward

    def _to_https(self, listen: Listen) -> routes.Service:
        port = next(one.server_port for one in self._servers if one.tls)
        host = "{host}" if port == 443 else f"{{host}}:{port}"
        return routes.redirect(f"https://{host}{{uri}}", listen.redirect_status)

    @property
    def pools(self) -> list[TargetPool]:
        """The targets at the top of the settings, if there are some, then each route's, then each
        tcp entry's."""
        return [service.pool for service in self._services]

    @property
    def pool(self) -> TargetPool:
        """The first of ``pools``."""
        return self.pools[0]

    @property
    def urls(self) -> list[str]:
        """Where it listens, with the ports that the system chose; those of tcp entries last."""
        return [server.url for server in self._listeners]

    @property
    def url(self) -> str:
        """The first of ``urls``."""
        return self.urls[0]

    @property
    def connections(self) -> int:
        """Client connections that are open."""
        return len(self._connections)

    def start(self) -> None:
        """Listens and serves, in threads of its own; returns at once."""
        settings = self.settings
        if settings.access_log is not None:
            try:
                self._access_log = AccessLog(settings.access_log)
            except OSError as error:
                said = (error.strerror or str(error)).lower()
                raise ListenError(f"access_log: {settings.access_log}: {said}") from None
        try:
            self._listen()
        except ListenError:
            self._close()
            raise
        for service in self._services:
            service.start()
        for server in self._listeners:
            name = f"pyproxy-listen-{server.server_port}"
            thread = threading.Thread(target=server.serve_forever, name=name, daemon=True)
            thread.start()
            self._threads.append(thread)

    @property
    def _listeners(self) -> list[Listener]:
        return [*self._servers, *self._tcp_servers]

    def _listen(self) -> None:
        settings = self.settings
        # Those that redirect come last: they tell the port of the others.
        listens = sorted(settings.listen, key=lambda one: bool(one.redirect))
        if settings.tcp and not (settings.targets or settings.routes):
            listens = []  # there is nothing to serve there
        for listen in listens:
            self._servers.append(
                ProxyServer(
                    listen,
                    self._to_https(listen) if listen.redirect else self._serve,
                    connections=self._connections,
                    timeouts=settings.timeouts,
                    limits=settings.limits,
                    retry=settings.retry,
                    trusted=settings.trusted_proxies,
                    access_log=self._access_log,
                    cpu_affinity=settings.cpu_affinity,
                    tls=self._tls if listen.secure else None,
                    http2=settings.http2,
                )
            )
        together: dict[object, list[TCPService]] = {}  # those that share an address
        for service in self._relayed:
            shared = service.entry.listen if service.entry.place[2] else service
            together.setdefault(shared, []).append(service)
        for services in together.values():
            self._tcp_servers.append(
                TCPProxyServer(
                    [(one.entry, one.connector) for one in services],
                    tls=self._tcp_tls if services[0].entry.tls else None,
                    connections=self._connections,
                    timeouts=settings.timeouts,
                    trusted=settings.trusted_proxies,
                    cpu_affinity=settings.cpu_affinity,
                )
            )

    def stop(self, drain: float | None = None) -> None:
        """Stops accepting, finishes what is under way within ``drain`` seconds
        (``timeouts.drain``), and ends every thread."""
        stopping = [
            threading.Thread(target=one.shutdown, args=(drain,), name="pyproxy-shutdown")
            for one in self._listeners
        ]
        for thread in stopping:
            thread.start()
        for thread in stopping + self._threads:
            thread.join()
        self._close()

    def _close(self) -> None:
        for service in self._services:
            service.stop()
        for server in self._listeners:
            server.server_close()
        if self._access_log:
            self._access_log.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()
