"""Checks: what one look at a target is, over HTTP or by a bare connection."""

import contextlib
import errno
import ssl
import time
from collections.abc import Callable
from http.client import HTTPConnection, HTTPException, HTTPResponse
from urllib.parse import quote

from pyproxy import net
from pyproxy.balancing.target import Target
from pyproxy.sections import Health

Check = Callable[[Target], str]

_START = 65536  # bytes of a body in which its text is looked for


class CheckFailed(Exception):
    """A target doesn't count as healthy; the text says why."""


class CantLook(CheckFailed):
    """This machine is out of something: that says nothing of the target."""


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
            raise _kind(error)(f"connect: {said}") from None
        return "took a connection"


class HTTPCheck:
    """GET the path; the status and the start of the body tell. Follows no redirect."""

    def __init__(
        self, health: Health, context: ssl.SSLContext | None = None, hello: bytes = b""
    ) -> None:
        self._health = health
        self._context = context
        self._hello = hello
        self._path = quote(health.path, safe="!$%&'()*+,/:;=?@[]~")

    def __call__(self, target: Target) -> str:
        health = self._health
        deadline = time.monotonic() + health.timeout
        context = self._context if target.url.startswith("https:") else None
        connection = _Connection(target, health.timeout, context, self._hello)
        try:
            with contextlib.closing(connection):
                fields = {"User-Agent": "pyproxy-health", "Accept": "*/*", "Connection": "close"}
                connection.request("GET", self._path, headers=fields)
                with connection.getresponse() as response:
                    self._judge(response, deadline)
                    return f"answered {response.status}"
        except (OSError, HTTPException, ValueError) as error:  # the latter: of the name
            raise _kind(error)(brief(error)) from None

    def _judge(self, response: HTTPResponse, deadline: float) -> None:
        status, health = response.status, self._health
        if status not in health.status if health.status else status >= 500:
            raise CheckFailed(f"answered {status}")
        wanted, seen = health.body.encode(), b""
        # Most often the head tells enough, and a body may never end.
        while wanted and (piece := response.read1(4096)):
            seen += piece
            if wanted in seen:
                return
            if len(seen) >= _START or time.monotonic() > deadline:
                break
        if wanted:
            raise CheckFailed(f"answered {status} without {health.body!r}")


class _Connection(HTTPConnection):
    """Begins as connections of forwarded requests do."""

    def __init__(
        self, target: Target, timeout: float, context: ssl.SSLContext | None, hello: bytes
    ) -> None:
        super().__init__(target.host, target.port)
        self.default_port = 443 if context else 80
        self._limit = timeout
        self._context = context
        self._hello = hello

    def connect(self) -> None:
        self.sock = net.connect(self.host, self.port, self._limit)
        self.sock.settimeout(self._limit)
        if self._hello:
            self.sock.sendall(self._hello)
        if self._context:
            self.sock = self._context.wrap_socket(self.sock, server_hostname=self.host)


def _kind(error: Exception) -> type[CheckFailed]:
    if isinstance(error, OSError) and net.exhausted(error):
        # Without ports there is no address, nor where a target's can't be reached from here.
        return CheckFailed if error.errno == errno.EADDRNOTAVAIL else CantLook
    return CheckFailed


def brief(error: Exception) -> str:
    """The innermost reason, instead of a library's story of how it came."""
    while (cause := error.__context__ or error.__cause__) and isinstance(cause, Exception):
        error = cause
    return net.reason(error) if isinstance(error, OSError) else str(error)
