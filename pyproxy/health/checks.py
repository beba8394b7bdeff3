"""Checks: what one look at a target is, over HTTP or by a bare connection."""

import contextlib
import errno
import io
import socket
import ssl
import time
from collections.abc import Callable
from http.client import (
    BadStatusLine,
    HTTPConnection,
    HTTPException,
    HTTPResponse,
    UnknownProtocol,
)
from typing import Any
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
        connection = _Connection(target, deadline, context, self._hello)
        try:
            with contextlib.closing(connection):
                fields = {"User-Agent": "pyproxy-health", "Accept": "*/*", "Connection": "close"}
                connection.request("GET", self._path, headers=fields)
                with connection.answer() as response:
                    self._judge(response)
                    return f"answered {response.status}"
        except (OSError, HTTPException, ValueError) as error:  # the latter: of the name
            raise _kind(error)(_said(error)) from None

    def _judge(self, response: HTTPResponse) -> None:
        status, health = response.status, self._health
        if status not in health.status if health.status else status >= 500:
            raise CheckFailed(f"answered {status}")
        wanted, seen = health.body.encode(), b""
        # Most often the head tells enough, and a body may never end.
        while wanted and (piece := response.read1(4096)):
            seen += piece
            if wanted in seen:
                return
            if len(seen) >= _START:
                break
        if wanted:
            raise CheckFailed(f"answered {status} without {health.body!r}")


class _Connection(HTTPConnection):
    """Begins as connections of forwarded requests do, and lasts until ``deadline``
    (``time.monotonic()``), however slowly something comes."""

    def __init__(
        self, target: Target, deadline: float, context: ssl.SSLContext | None, hello: bytes
    ) -> None:
        super().__init__(target.host, target.port)
        self.default_port = 443 if context else 80
        self._deadline = deadline
        self._context = context
        self._hello = hello

    def connect(self) -> None:
        self.sock = net.connect(self.host, self.port, _left(self._deadline))
        self.sock.settimeout(_left(self._deadline))
        if self._hello:
            self.sock.sendall(self._hello)
        if self._context:
            self.sock.settimeout(_left(self._deadline))
            self.sock = self._context.wrap_socket(self.sock, server_hostname=self.host)

    def answer(self) -> HTTPResponse:
        """The final one, not the interim ones before it."""
        response = HTTPResponse(self.sock, method="GET")
        response.fp.close()  # has no deadline
        response.fp = io.BufferedReader(_Received(self.sock, self._deadline))
        response.begin()
        while 101 < response.status < 200:  # it skips only those with 100
            response.headers = None  # type: ignore[assignment]  # not begun yet
            response.begin()
        return response


class _Received(io.RawIOBase):
    """What a socket receives until a deadline."""

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self._sock = sock
        self._deadline = deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        self._sock.settimeout(_left(self._deadline))
        return self._sock.recv_into(buffer)


def _left(deadline: float) -> float:
    """Seconds. Raises ``TimeoutError``."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("timed out")
    return left


def _said(error: Exception) -> str:
    # Which quote what came, however long it is.
    if isinstance(error, BadStatusLine | UnknownProtocol) and not isinstance(error, OSError):
        return "not an HTTP response"
    return brief(error)


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
