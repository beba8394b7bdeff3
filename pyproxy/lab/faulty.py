"""FaultyServer: serves an application over HTTP/1.1 in threads, as badly as it is told to.

start, stop         a life of it, on the port that it keeps
  _Life             a listening socket, its connections, and the faults it has
    _Handler        one connection: its requests, through the faults to the application
"""

import contextlib
import io
import logging
import random
import socket
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import unquote

from pyproxy import net
from pyproxy.errors import HTTPError
from pyproxy.http.body import ChunkedDecoder
from pyproxy.lab.applications import WSGI, Environ, Fields, Forward, Lost, check_head

log = logging.getLogger(__name__)

_HOST = "127.0.0.1"
_PROBE = "pyproxy-health"  # how recovery's requests call themselves
_BODILESS = ("204", "304")
_PATIENCE = 5.0  # seconds for connections to notice that they are over


class FaultyServer:
    """One server. All methods may be called from any thread; ``start`` and ``stop`` by turns.

    ``requests`` counts the requests that have reached it, whatever became of them, without those
    of the proxy's probes.
    """

    def __init__(self, application: WSGI, seed: str | None = None) -> None:
        """``seed`` makes the choice of the requests that fail the same in each run."""
        self.application = application
        self.requests = 0
        self._random = random.Random(seed)
        # Protects what is here; notified when a life is over, and when a connection is.
        self.changed = threading.Condition()
        self._threads: set[threading.Thread] = set()
        self._life: _Life | None = None
        # Keeps the port also while nobody listens there.
        self._held = socket.socket()
        self._held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._held.bind((_HOST, 0))
        self.port: int = self._held.getsockname()[1]
        self.url = f"http://{_HOST}:{self.port}"
        if not sys.platform.startswith("linux"):  # nobody could listen there while it is bound
            self._held.close()

    @property
    def life(self) -> "_Life":
        """The present one, with its faults."""
        assert self._life, "it is stopped"
        return self._life

    @property
    def alive(self) -> bool:
        return self._life is not None

    def start(self) -> None:
        """Listens, without any fault. Raises ``ListenError``."""
        try:
            listener = socket.create_server((_HOST, self.port), backlog=256)
        except OSError as error:
            raise net.listen_error(_HOST, self.port, error) from None
        self._life = life = _Life(self, listener)
        self.spawn(life.accept)

    def stop(self) -> None:
        """Nobody listens any more, and every connection ends; an application that works on a
        request is left to finish, in vain."""
        life, self._life = self._life, None
        if life:
            life.end()

    def close(self, deadline: float) -> list[str]:
        """The end for good, by ``deadline`` (``time.monotonic``): what still runs is told."""
        self.stop()
        self._held.close()
        with self.changed:
            threads = [*self._threads]
        for thread in threads:
            thread.join(max(deadline - time.monotonic(), 0))
        return [thread.name for thread in threads if thread.is_alive()]

    def spawn(self, what: Callable[..., None], *arguments: Any) -> None:
        def run() -> None:
            try:
                what(*arguments)
            finally:
                with self.changed:
                    self._threads.discard(thread)

        thread = threading.Thread(target=run, name=f"pyproxy-lab-{self.port}", daemon=True)
        with self.changed:
            self._threads.add(thread)
        thread.start()

    def count(self) -> None:
        with self.changed:
            self.requests += 1

    def drawn(self, share: float) -> bool:
        """Whether one of so big a share."""
        with self.changed:
            return self._random.random() < share


class _Life:
    """From a start to its end. What is set of the faults counts at once."""

    def __init__(self, server: FaultyServer, listener: socket.socket) -> None:
        self.server = server
        self.over = False
        self._frozen = self._resetting = False  # not both
        self.delay = 0.0
        self.flaky = (0.0, 500)  # share, status
        self._listener = listener
        self._changed = server.changed
        self._connections: set[socket.socket] = set()
        self._idle: set[socket.socket] = set()  # those of them that wait for a request

    def accept(self) -> None:
        try:
            while not self.over:
                try:
                    self._take(*self._listener.accept())
                except OSError as error:  # it was gone before it was taken
                    if net.exhausted(error):
                        self._wait(lambda: self.over, 0.1)
        finally:
            self._listener.close()
            with self._changed:
                self._changed.notify_all()

    def _take(self, sock: socket.socket, address: Any) -> None:
        with self._changed:
            self._connections.add(sock)
            if self.over:
                net.shut(sock)
        self.server.spawn(self._serve, sock, address)

    def _serve(self, sock: socket.socket, address: Any) -> None:
        try:
            with contextlib.suppress(OSError):  # it was lost
                net.no_delay(sock)
                _Handler(sock, address, self)
        finally:
            self._leave(sock)

    def _leave(self, sock: socket.socket) -> None:
        sock.close()
        with self._changed:
            self._connections.discard(sock)
            self._idle.discard(sock)
            self._changed.notify_all()

    def idle(self, sock: socket.socket, waits: bool) -> None:
        with self._changed:
            (self._idle.add if waits else self._idle.discard)(sock)

    def end(self) -> None:
        with self._changed:
            self.over = True
            for sock in self._connections:
                net.shut(sock)
            self._changed.notify_all()
        if sys.platform.startswith("linux"):
            net.shut(self._listener)  # wakes who accepts
        else:
            with contextlib.suppress(OSError), socket.create_connection((_HOST, self.server.port)):
                pass
        self._wait(lambda: self._listener.fileno() < 0)

    def reset(self) -> None:
        """From now on each request ends in a reset, when the application has done its work;
        connections that wait for one do so now."""
        with self._changed:
            self._frozen, self._resetting = False, True
            self._changed.notify_all()
            for sock in self._connections:
                net.reset_on_close(sock)
                net.shut(sock, socket.SHUT_RD)  # wakes who reads, and tells the peer nothing
            before = self._idle.copy()
        self._wait(lambda: not before & self._idle)

    def _wait(self, condition: Callable[[], bool], seconds: float = _PATIENCE) -> None:
        with self._changed:
            self._changed.wait_for(condition, seconds)

    def freeze(self) -> None:
        """From now on nothing is answered."""
        with self._changed:
            self._frozen, self._resetting = True, False

    def hold(self) -> None:
        """Waits while it is frozen. Raises ``Lost`` if that was its end."""
        if self._frozen:
            with self._changed:
                self._changed.wait_for(lambda: self.over or not self._frozen)
        if self.over:
            raise Lost

    def admit(self) -> None:
        """The same before each piece of an answer. Raises ``Lost`` also if it is to be lost."""
        self.hold()
        if self._resetting:
            raise Lost

    def linger(self) -> None:
        """Waits as long as an answer takes."""
        if self.delay:
            with self._changed:
                self._changed.wait_for(lambda: self.over, self.delay)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Any

    def __init__(self, sock: socket.socket, address: Any, life: _Life) -> None:
        self._life = life
        super().__init__(sock, address, life)  # type: ignore[arg-type]

    def handle(self) -> None:
        self.close_connection = False
        try:
            while not self.close_connection:
                self._life.idle(self.connection, True)
                self.raw_requestline = self.rfile.readline(65537)
                self._life.idle(self.connection, False)
                if not self.raw_requestline or not self.parse_request():
                    return
                self._serve()
        except (Lost, OSError, HTTPError) as error:
            if isinstance(error, Lost) and error.args and not self._life.over:
                log.warning("the server behind %s is lost: %s", self._life.server.url, error)
            net.reset_on_close(self.connection)

    def _serve(self) -> None:
        life = self._life
        probe = self.headers.get("User-Agent") == _PROBE
        if not probe:
            life.server.count()
        life.hold()
        environ = self._environ(self._body())
        life.linger()
        share, status = life.flaky
        answer = _Answer(self, life)
        if share and not probe and life.server.drawn(share):
            answer.whole(status, b"flaky: this request fails, as the test wants it\n")
        else:
            answer.of(life.server.application, environ)

    def _body(self) -> bytes:
        if "Transfer-Encoding" not in self.headers:
            length = int(self.headers.get("Content-Length", 0))
            found = self.rfile.read(length)
            if len(found) < length:
                raise Lost
            return found
        decoder, body = ChunkedDecoder(), b""
        while not decoder.done:
            line = self.rfile.readline(65537)
            if not line:
                raise Lost
            body += decoder.feed(line)
        return body

    def _environ(self, body: bytes) -> Environ:
        path, _, query = self.path.partition("?")
        environ: Environ = {
            "REQUEST_METHOD": self.command,
            "REQUEST_URI": self.path,
            "SCRIPT_NAME": "",
            "PATH_INFO": unquote(path, "latin-1"),
            "QUERY_STRING": query,
            "SERVER_NAME": _HOST,
            "SERVER_PORT": str(self._life.server.port),
            "SERVER_PROTOCOL": self.request_version,
            "REMOTE_ADDR": self.client_address[0],
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http",
            "wsgi.input": io.BytesIO(body),
            "wsgi.input_terminated": True,
            "wsgi.errors": sys.stderr,
            "wsgi.multithread": True,
            "wsgi.multiprocess": False,
            "wsgi.run_once": False,
        }
        for name in dict.fromkeys(one.lower() for one in self.headers):
            said = self.headers.get_all(name, [])
            key = name.upper().replace("-", "_")
            key = key if key in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{key}"
            environ[key] = ("; " if name == "cookie" else ", ").join(said)
        if body or "CONTENT_LENGTH" in environ:
            environ["CONTENT_LENGTH"] = str(len(body))
        return environ

    def log_message(self, format: str, *args: Any) -> None:
        pass


class _Answer:
    """What an application says, on its way to the client."""

    def __init__(self, handler: _Handler, life: _Life) -> None:
        self._handler = handler
        self._life = life
        self._head: tuple[str, Fields] | None = None
        self._begun = False
        self._left: int | None = None  # bytes of the body; None: until the last chunk, or the end
        self._bodiless = False
        self._chunked = False

    def of(self, application: WSGI, environ: Environ) -> None:
        try:
            self._run(application, environ)
        except (Lost, OSError) as error:
            if self._begun or isinstance(error, Lost):
                raise
            self._failed(error)
        except BaseException as error:  # noqa: BLE001 - it is the user's: pytest.fail, sys.exit
            self._failed(error)

    def _run(self, application: WSGI, environ: Environ) -> None:
        result = application(environ, self._start)
        try:
            if self._head and isinstance(result, list | tuple):
                self._measure(sum(map(len, result)))
            for piece in result:
                if piece:
                    self._write(piece)
            self._write(b"")
            self._finish()
        finally:
            if close := getattr(result, "close", None):
                close()
        if self._left:
            raise Lost  # less than it has announced

    def _failed(self, error: BaseException) -> None:
        log.error("the application failed at %s", self._handler.path, exc_info=error)
        if self._begun:
            raise Lost
        self.whole(500, f"the application failed: {type(error).__name__}: {error}\n".encode())

    def whole(self, status: int, body: bytes) -> None:
        self._start(f"{status} failed", [("Content-Type", "text/plain; charset=utf-8")])
        self._measure(len(body))
        self._write(body)

    def _start(self, status: str, headers: Fields, failure: Any = None) -> Callable[[bytes], None]:
        if failure and self._begun:
            raise failure[1].with_traceback(failure[2])
        self._head = status, [*headers]
        return self._write

    def _measure(self, length: int) -> None:
        assert self._head
        status, headers = self._head
        said = {name.lower() for name, _ in headers}
        if "content-length" not in said and status[:3] not in _BODILESS:
            headers.append(("Content-Length", str(length)))

    def _write(self, data: bytes) -> None:
        """The head goes out with the first piece."""
        self._life.admit()
        if self._begun and not data:
            return
        head = b"" if self._begun else self._begin()
        if self._bodiless:
            data, self._left = b"", 0
        elif self._left is not None:
            data = data[: self._left]
            self._left -= len(data)
        elif self._chunked and data:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        self._begun = True
        self._handler.connection.sendall(head + data)

    def _finish(self) -> None:
        if self._chunked:
            self._life.admit()
            self._handler.connection.sendall(b"0\r\n\r\n")

    def _begin(self) -> bytes:
        if self._head is None:
            raise RuntimeError("it has not called start_response")
        status, headers = self._head
        if not isinstance(self._life.server.application, Forward):  # that passes on what it gets
            check_head(status, headers)
        handler = self._handler
        self._bodiless = handler.command == "HEAD" or status[:3] in _BODILESS
        lengths = [value for name, value in headers if name.lower() == "content-length"]
        self._left = int(lengths[0]) if lengths else None
        if self._left is None and not self._bodiless:
            # So that a body which a kill cuts off doesn't look whole.
            self._chunked = handler.request_version == "HTTP/1.1"
            handler.close_connection |= not self._chunked
        if self._chunked:
            headers = [*headers, ("Transfer-Encoding", "chunked")]
        if handler.close_connection:
            headers = [*headers, ("Connection", "close")]
        lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in headers), "", ""]
        return "\r\n".join(lines).encode("latin-1")
