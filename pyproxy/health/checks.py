"""Checks: what one look at a target is, over HTTP or by a bare connection."""

import time
from collections.abc import Callable

import requests

from pyproxy import net
from pyproxy.balancing.target import Target
from pyproxy.settings import Health

Check = Callable[[Target], str]

_START = 65536  # bytes of a body in which its text is looked for


class CheckFailed(Exception):
    """A target doesn't count as healthy; the text says why."""


def check_as(health: Health) -> Check:
    """A function that looks at a target and returns what it found, or raises ``CheckFailed``."""
    return TCPCheck(health.timeout) if health.tcp else HTTPCheck(health)


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

    def __init__(self, health: Health) -> None:
        self._health = health

    def __call__(self, target: Target) -> str:
        health = self._health
        deadline = time.monotonic() + health.timeout
        with requests.Session() as session:
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


def _brief(error: Exception) -> str:
    """The innermost reason, instead of requests' story of how it came."""
    while (cause := error.__context__ or error.__cause__) and isinstance(cause, Exception):
        error = cause
    return net.reason(error) if isinstance(error, OSError) else str(error)
