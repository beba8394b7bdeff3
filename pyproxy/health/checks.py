"""Checks: what one look at a target is, over HTTP or by a bare connection."""

import ssl
import time
from collections.abc import Callable
from typing import Any

import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool

from pyproxy import net
from pyproxy.balancing.target import Target
from pyproxy.sections import Health

Check = Callable[[Target], str]

_START = 65536  # bytes of a body in which its text is looked for


class CheckFailed(Exception):
    """A target doesn't count as healthy; the text says why."""


def check_as(health: Health, context: ssl.SSLContext | None = None, hello: bytes = b"") -> Check:
    """A function that looks at a target and returns what it found, or raises ``CheckFailed``.
    ``context`` is for targets at ``https://`` addresses, ``hello`` what a connection begins with.
    """
    if health.tcp:
        return TCPCheck(health.timeout, hello)
    return HTTPCheck(health, context, hello)


class TCPCheck:
    """A target that takes a connection is healthy."""

    def __init__(self, timeout: float, hello: bytes = b"") -> None:
        self._timeout = timeout
        self._hello = hello

    def __call__(self, target: Target) -> str:
        try:
            with net.connect(target.host, target.port, self._timeout) as sock:
                if self._hello:
                    sock.sendall(self._hello)
        except (OSError, UnicodeError) as error:
            said = net.reason(error) if isinstance(error, OSError) else "no such name"
            raise CheckFailed(f"connect: {said}") from None
        return "took a connection"


class HTTPCheck:
    """GET the path; the status and the start of the body tell. Follows no redirect."""

    def __init__(
        self, health: Health, context: ssl.SSLContext | None = None, hello: bytes = b""
    ) -> None:
        self._health = health
        self._context = context
        if context and context.verify_mode is ssl.CERT_NONE:
            # That is said in the settings: no warning with each check.
            urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
        self._hello = hello

    def __call__(self, target: Target) -> str:
        health = self._health
        deadline = time.monotonic() + health.timeout
        with requests.Session() as session:
            session.mount("http://", _Adapter(None, self._hello))
            if self._context:
                session.mount("https://", _Adapter(self._context, self._hello))
                # urllib3 sets the context's mode by this.
                session.verify = self._context.verify_mode is not ssl.CERT_NONE
            session.trust_env = False  # a proxy of this machine is not asked about its targets
            try:
                # Streamed: most often the head tells enough, and a body may never end.
                with session.get(
                    target.url + health.path,
                    timeout=health.timeout,
                    stream=True,
                    allow_redirects=False,
                    headers={"User-Agent": "pyproxy-health", "Connection": "close"},
                ) as response:
                    self._judge(response, deadline)
                    return f"answered {response.status_code}"
            except (requests.RequestException, ValueError) as error:  # the latter: of the name
                raise CheckFailed(brief(error)) from None

    def _judge(self, response: requests.Response, deadline: float) -> None:
        status, health = response.status_code, self._health
        if status not in health.status if health.status else status >= 500:
            raise CheckFailed(f"answered {status}")
        wanted, seen = health.body.encode(), b""
        for piece in response.iter_content(4096) if wanted else ():
            seen += piece
            if wanted in seen:
                return
            if len(seen) >= _START or time.monotonic() > deadline:
                break
        if wanted:
            raise CheckFailed(f"answered {status} without {health.body!r}")


class _Adapter(HTTPAdapter):
    """Lets requests begin its connections as forwarded requests do theirs."""

    def __init__(self, context: ssl.SSLContext | None, hello: bytes) -> None:
        self._context = context
        self._hello = hello
        super().__init__()

    def init_poolmanager(self, *arguments: Any, **keywords: Any) -> None:
        if self._context:
            keywords["ssl_context"] = self._context
        super().init_poolmanager(*arguments, **keywords)
        if self._hello:
            self.poolmanager.pool_classes_by_scheme = _greeting(self._hello)

    def cert_verify(self, *_: Any) -> None:
        """The context says what is verified."""


def _greeting(hello: bytes) -> dict[str, Any]:
    """urllib3's pools, with connections that send ``hello`` before all else."""

    class Greeting:
        def _new_conn(self) -> Any:
            sock = super()._new_conn()  # type: ignore[misc]
            sock.sendall(hello)
            return sock

    pools: dict[str, Any] = {"http": HTTPConnectionPool, "https": HTTPSConnectionPool}
    return {
        scheme: type(
            pool.__name__,
            (pool,),
            {"ConnectionCls": type("Connection", (Greeting, pool.ConnectionCls), {})},
        )
        for scheme, pool in pools.items()
    }


def brief(error: Exception) -> str:
    """The innermost reason, instead of requests' story of how it came."""
    while (cause := error.__context__ or error.__cause__) and isinstance(cause, Exception):
        error = cause
    return net.reason(error) if isinstance(error, OSError) else str(error)
