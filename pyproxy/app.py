"""Proxy: settings in, a running proxy out. The one place where the parts are put together."""

import threading
from types import TracebackType
from typing import Any, Self

from pyproxy.balancing.pool import TargetPool
from pyproxy.balancing.target import Target
from pyproxy.errors import ListenError
from pyproxy.health.recovery import HTTPProbe, RecoveryThread
from pyproxy.http.access_log import AccessLog
from pyproxy.http.connections import Connections
from pyproxy.http.forward import Forwarder
from pyproxy.http.server import ProxyServer
from pyproxy.http.upstream import Upstream
from pyproxy.settings import Settings, parse


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
        targets = [Target(one.url, one.host, one.port) for one in settings.targets]
        self.pool = TargetPool(targets, settings.max_fails)
        timeouts = settings.timeouts
        self._upstreams = {target: Upstream(target, timeouts) for target in targets}
        self._forward = Forwarder(self.pool, self._upstreams, settings.retry)
        probe = HTTPProbe(timeouts.connect, timeouts.read)
        self._recovery = RecoveryThread(self.pool, settings.sleeping, probe)
        self._connections = Connections(settings.limits.connections)
        self._access_log: AccessLog | None = None
        self._servers: list[ProxyServer] = []
        self._threads: list[threading.Thread] = []

    @property
    def urls(self) -> list[str]:
        """Where it listens, with the ports that the system chose."""
        return [server.url for server in self._servers]

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
            for listen in settings.listen:
                self._servers.append(
                    ProxyServer(
                        listen,
                        self._forward,
                        connections=self._connections,
                        timeouts=settings.timeouts,
                        limits=settings.limits,
                        retry=settings.retry,
                        unavailable=settings.unavailable,
                        trusted=settings.trusted_proxies,
                        access_log=self._access_log,
                        cpu_affinity=settings.cpu_affinity,
                    )
                )
        except ListenError:
            self._close()
            raise
        for server in self._servers:
            name = f"pyproxy-listen-{server.server_port}"
            thread = threading.Thread(target=server.serve_forever, name=name, daemon=True)
            thread.start()
            self._threads.append(thread)
        self._recovery.start()

    def stop(self, drain: float | None = None) -> None:
        """Stops accepting, finishes what is under way within ``drain`` seconds
        (``timeouts.drain``), and ends every thread."""
        stopping = [
            threading.Thread(target=one.shutdown, args=(drain,), name="pyproxy-shutdown")
            for one in self._servers
        ]
        for thread in stopping:
            thread.start()
        for thread in stopping + self._threads:
            thread.join()
        self._close()

    def _close(self) -> None:
        self._recovery.stop()
        for server in self._servers:
            server.server_close()
        for upstream in self._upstreams.values():
            upstream.close_idle()
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
