"""Checks: what one look at a target is, over HTTP or by a bare connection."""

import ssl
import time
from collections.abc import Callable
from typing import Any

import requests
from requests.adapters import HTTPAdapter

from pyproxy import net
from pyproxy.balancing.target import Target
from pyproxy.settings import Health

Check = Callable[[Target], str]

_START = 65536  # bytes of a body in which its text is looked for


class CheckFailed(Exception):
    """A target doesn't count as healthy; the text says why."""


def check_as(health: Health, context: ssl.SSLContext | None = None) -> Check:
    """A function that looks at a target and returns what it found, or raises ``CheckFailed``.
    ``context`` is for targets at ``https://`` addresses."""
    return TCPCheck(health.timeout) if health.tcp else HTTPCheck(health, context)


class TCPCheck:
    """A target that takes a connection is healthy."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout

    def __call__(self, target: Target) -> str:
        try:
            net.connect(target.host, target.port, self._timeout).close()
        except (OSError, UnicodeError) as error:
            said = net.reason(error) if isinstance(error, OSError) else "no such name"
            raise CheckFailed(f"connect: {said}") from None
        return "took a connection"


class HTTPCheck:
    """GET the path; the status and the start of the body tell. Follows no redirect."""

    def __init__(self, health: Health, context: ssl.SSLContext | None = None) -> None:
        self._health = health
        self._context = context

    def __call__(self, target: Target) -> str:
        health = self._health
        deadline = time.monotonic() + health.timeout
        with requests.Session() as session:
            if self._context:
                session.mount("https://", _Adapter(self._context))
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
                raise CheckFailed(_brief(error)) from None

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
    """Lets requests use the same context as forwarded requests do."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._context = context
        super().__init__()

    def init_poolmanager(self, *arguments: Any, **keywords: Any) -> None:
        super().init_poolmanager(*arguments, **keywords, ssl_context=self._context)

    def cert_verify(self, *_: Any) -> None:
        """The context says what is verified."""


def _brief(error: Exception) -> str:
    """The innermost reason, instead of requests' story of how it came."""
    while (cause := error.__context__ or error.__cause__) and isinstance(cause, Exception):
        error = cause
    return net.reason(error) if isinstance(error, OSError) else str(error)
