"""What may stand behind a load balancer in a test, each as a WSGI application (PEP 3333): WSGI is
what they all can be, with an answer in pieces."""

import contextlib
import http.client
import inspect
import json
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard
from urllib.parse import parse_qsl, unquote

from requests.structures import CaseInsensitiveDict

from pyproxy import net

Environ = dict[str, Any]
Fields = list[tuple[str, str]]
WSGI = Callable[[Environ, Callable[..., Any]], Iterable[bytes]]

_CONNECT = 5.0  # seconds for a connection to a server that isn't ours

# What is said of a connection, not of a message.
_OF_THE_CONNECTION = {
    "connection",
    "expect",
    "keep-alive",
    "proxy-connection",
    "te",
    "transfer-encoding",
    "upgrade",
}


class Lost(Exception):
    """What was to answer is gone: the client's connection breaks."""


@dataclass(frozen=True)
class Request:
    """What a function is asked. ``path`` and the ``query`` (of a name said twice, the last value)
    are decoded; ``headers`` are found in any case."""

    method: str
    path: str
    query: dict[str, str]
    headers: CaseInsensitiveDict[str]
    body: bytes

    def json(self) -> Any:
        """The body, as JSON. Raises ``ValueError``."""
        return json.loads(self.body)


Answer = str | bytes | int | dict[str, Any] | list[Any] | tuple[Any, ...]
Function = Callable[[Request], Answer]


def application_of(served: Any) -> WSGI:
    """The WSGI application that a callable is, or that its function ``(request) -> answer`` makes.
    Raises ``TypeError``."""
    try:
        signature = inspect.signature(served)
    except (TypeError, ValueError):
        raise TypeError(f"can't tell what {served!r} takes: wrap it in a function") from None
    awaited = any(map(inspect.iscoroutinefunction, (served, type(served).__call__)))
    if not awaited and _takes(signature, 2) and _wanted(signature) != 1:
        application: WSGI = served
        return application
    if not awaited and _takes(signature, 1):
        return _serving(served)
    hint = "it is async, which nobody awaits here: " if awaited else ""
    hint += "expected a WSGI application, or a function (request) -> answer"
    if _takes(signature, 3):
        hint = (
            'an ASGI application is served by a command, like ["uvicorn", "shop:app", "--port", '
            '"{port}"]'
        )
    raise TypeError(f"{served!r} takes {signature}: {hint}")


def _takes(signature: inspect.Signature, count: int) -> bool:
    try:
        signature.bind(*[None] * count)
    except TypeError:
        return False
    return True


def _wanted(signature: inspect.Signature) -> int:
    """How many arguments have to be there: 1 for ``lambda request, name=name: …``, which would
    take a second one."""
    return sum(
        one.default is one.empty and one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)
        for one in signature.parameters.values()
    )


def _serving(function: Function) -> WSGI:
    def application(environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        request = Request(
            environ["REQUEST_METHOD"],
            unquote(environ["REQUEST_URI"].partition("?")[0]),
            dict(parse_qsl(environ["QUERY_STRING"], keep_blank_values=True)),
            CaseInsensitiveDict(fields_of(environ)),
            environ["wsgi.input"].read(),
        )
        status, body, headers = read_answer(function(request))
        start_response(f"{status} {http.client.responses.get(status, '')}", headers)
        return [body]

    return application


def read_answer(answer: Answer) -> tuple[int, bytes, Fields]:
    """Status, body and headers. A text, bytes, or a dict or list (sent as JSON) are a body; an int
    is a status; ``(status, body)`` and ``(status, body, headers)`` are both; headers are a dict, or
    pairs, where a name may come twice. Raises ``TypeError``."""
    status, headers, body = 200, Fields(), answer
    if isinstance(answer, tuple):
        if len(answer) not in (2, 3) or not _is_number(answer[0]):
            raise TypeError(f"expected (status, body) or (status, body, headers), got {answer!r}")
        status, body = answer[:2]
        said = answer[2] if len(answer) == 3 else {}
        pairs = said.items() if isinstance(said, Mapping) else said
        headers = [(str(name), str(value)) for name, value in pairs]
    elif _is_number(answer):
        status, body = answer, b""
    kind, data = "application/octet-stream", b""
    if isinstance(body, bytes):
        data = body
    elif isinstance(body, str):
        kind, data = "text/plain; charset=utf-8", body.encode()
    elif isinstance(body, dict | list):
        kind, data = "application/json", json.dumps(body).encode()
    else:
        raise TypeError(f"expected a text, bytes, a dict or a list as a body, got {body!r}")
    if data and "content-type" not in {name.lower() for name, _ in headers}:
        headers.append(("Content-Type", kind))
    return status, data, headers


def _is_number(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def check_head(status: str, headers: Fields) -> None:
    """Raises ``ValueError`` for what no server could send."""
    if not re.fullmatch("[2-5][0-9]{2}( [^\x00-\x1f\x7f]*)?", status):
        raise ValueError(f"expected a status from 200 to 599, got {status!r}")
    for name, value in headers:
        if not re.fullmatch("[!#$%&'*+.^_`|~0-9A-Za-z-]+", name) or re.search("[\r\n\0]", value):
            raise ValueError(f"this can't be a header: {name!r}: {value!r}")
        if name.lower() == "transfer-encoding":
            raise ValueError("Transfer-Encoding is the server's matter: leave it out")


def fields_of(environ: Environ) -> Fields:
    """The headers of a request."""
    found = [
        (name[5:].replace("_", "-").title(), value)
        for name, value in environ.items()
        if name.startswith("HTTP_")
    ]
    for name in ("CONTENT_TYPE", "CONTENT_LENGTH"):
        if name in environ:
            found.append((name.replace("_", "-").title(), environ[name]))
    return found


class Forward:
    """A server that is elsewhere, as an application: asks it, and passes on what it answers."""

    def __init__(self, scheme: str = "http", host: str = "", port: int = 0) -> None:
        self.scheme, self.host, self.port = scheme, host, port  # may change
        # Protects the connections that are open.
        self._lock = threading.Lock()
        self._open: set[http.client.HTTPConnection] = set()

    def __call__(self, environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        secure = self.scheme == "https"
        kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        connection = kind(self.host, self.port, timeout=_CONNECT)
        with self._lock:
            self._open.add(connection)
        try:
            response = self._ask(connection, environ)
        except (OSError, http.client.HTTPException) as error:
            self._close(connection)
            raise Lost(f"{self.host}:{self.port}: {error}") from None
        headers = [one for one in response.getheaders() if one[0].lower() not in _OF_THE_CONNECTION]
        start_response(f"{response.status} {response.reason}", headers)
        return self._pieces(connection, response)

    def _ask(
        self, connection: http.client.HTTPConnection, environ: Environ
    ) -> http.client.HTTPResponse:
        connection.connect()
        connection.sock.settimeout(None)  # how long it may take is the proxy's business
        connection.putrequest(
            environ["REQUEST_METHOD"],
            environ["REQUEST_URI"],
            skip_host=True,
            skip_accept_encoding=True,
        )
        for name, value in fields_of(environ):
            if name.lower() not in _OF_THE_CONNECTION:
                connection.putheader(name, value.encode("latin-1"))
        connection.putheader("Connection", "close")
        connection.endheaders(environ["wsgi.input"].read())
        return connection.getresponse()

    def _pieces(
        self, connection: http.client.HTTPConnection, response: http.client.HTTPResponse
    ) -> Iterator[bytes]:
        try:
            while piece := response.read1(65536):
                yield piece
        except (OSError, http.client.HTTPException) as error:
            raise Lost(f"{self.host}:{self.port}: {error}") from None
        finally:
            self._close(connection)

    def _close(self, connection: http.client.HTTPConnection) -> None:
        with self._lock:
            self._open.discard(connection)
        connection.close()

    def break_off(self) -> None:
        """Ends what is under way."""
        with self._lock:
            for connection in self._open:
                with contextlib.suppress(AttributeError):  # it connects, or is closed just now
                    net.shut(connection.sock)
