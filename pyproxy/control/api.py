"""The admin API's server: small, and hard to hold up.

AdminServer       accepts while there is room, a thread a connection
  AdminHandler      one connection: requests, one after the other, each whole within a deadline
    Guard             who may ask
    Table.find        what for
    Operation.read    path, query and body, checked
    Operation.run     the verbs
"""

import contextlib
import http.server
import io
import json
import logging
import selectors
import socket
import threading
import time
from http import HTTPStatus
from typing import Any, ClassVar

from pyproxy import net
from pyproxy.control.control import Verbs
from pyproxy.control.guard import SAFE, Guard
from pyproxy.control.operation import JSON, Answer, told
from pyproxy.control.operations import TABLE, Api
from pyproxy.errors import ControlError
from pyproxy.readers import Json, url_of
from pyproxy.sections import Admin

log = logging.getLogger(__name__)


class AdminServer(http.server.ThreadingHTTPServer):
    """Serves on a socket that listens, which is then its own."""

    CONNECTIONS = 64  # at once; more wait
    BODY = 65536  # bytes
    PATIENCE = 10.0  # seconds for a whole request, and for a client to take its answer
    PAUSE = 0.1  # seconds, when this machine is out of something
    LAST = 5.0  # seconds for threads to end

    def __init__(self, sock: socket.socket, admin: Admin, verbs: Verbs) -> None:
        host, port = sock.getsockname()[:2]
        super().__init__((host, port), AdminHandler, bind_and_activate=False)
        self.socket.close()
        self.socket = sock
        self.server_name, self.server_port = host, port
        self.api = Api(verbs)
        self.guard = Guard(admin)
        # Others may accept from the same queue, and be quicker.
        self.socket.setblocking(False)
        self._room = threading.Semaphore(self.CONNECTIONS)
        self._stopping = threading.Event()
        self._wake, self._woken = socket.socketpair()
        # Protects the threads of the connections that are open.
        self._lock = threading.Lock()
        self._open: dict[socket.socket, threading.Thread] = {}
        self._accepting = threading.Thread(
            target=self._accept, name=f"pyproxy-admin-{port}", daemon=True
        )

    @property
    def url(self) -> str:
        """Where it listens, with the port that the system chose."""
        return url_of("http", str(self.server_name), self.server_port)

    @property
    def stopping(self) -> bool:
        return self._stopping.is_set()

    def configure(self, admin: Admin) -> None:
        """From the next request on. Where it listens stays as it is."""
        self.guard = Guard(admin)

    def start(self) -> None:
        """Serves, in threads of its own; returns at once."""
        self._accepting.start()

    def stop(self, handed_over: bool = False) -> None:
        """Ends events and idle connections at once, waits a little for requests under way, and
        closes the socket. If it is ``handed_over``, other processes go on accepting there. May be
        called from one of its own requests."""
        if self._stopping.is_set():
            return
        self._stopping.set()
        self._wake.send(b"x")
        self._room.release()
        if self._accepting.ident:
            self._accepting.join()
        self.api.feed.close()
        if not handed_over:
            with contextlib.suppress(OSError):  # not every system shuts down what listens
                self.socket.shutdown(socket.SHUT_RDWR)
        self.server_close()
        with self._lock:
            left = dict(self._open)
        for sock in left:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RD)  # an answer under way is still written
        deadline = time.monotonic() + self.LAST
        for thread in left.values():
            if thread is not threading.current_thread():
                thread.join(max(deadline - time.monotonic(), 0))
        self._wake.close()
        self._woken.close()

    def _accept(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self.socket, selectors.EVENT_READ)
            selector.register(self._woken, selectors.EVENT_READ)
            while self._room.acquire() and not self._stopping.is_set():
                selector.select()
                if self._stopping.is_set() or not self._accept_one():
                    self._room.release()

    def _accept_one(self) -> bool:
        """Whether a connection was accepted: another process may have been quicker."""
        try:
            sock, address = self.get_request()
        except BlockingIOError:
            return False
        except OSError as error:
            if not net.make_room(error):
                log.error("can't accept a connection: %s", net.reason(error))
                self._stopping.wait(self.PAUSE)
            return False
        name = f"pyproxy-admin-{address[0]}:{address[1]}"
        thread = threading.Thread(target=self._serve, args=(sock, address), name=name, daemon=True)
        with self._lock:
            self._open[sock] = thread
        try:
            thread.start()
        except RuntimeError as error:  # this machine is out of threads
            log.error("can't start a thread: %s", error)
            self._forget(sock)
            return False
        return True

    def _serve(self, sock: socket.socket, address: Any) -> None:
        try:
            self.finish_request(sock, address)
        except OSError:  # the client has gone
            pass
        except Exception as error:  # noqa: BLE001 - others go on
            log.error("an error while serving %s: %r", address[0], error)
        finally:
            self._forget(sock)
            self._room.release()

    def _forget(self, sock: socket.socket) -> None:
        self.shutdown_request(sock)
        with self._lock:
            self._open.pop(sock, None)


class Incoming(io.RawIOBase):
    """What a client sends, in time and within a bound: reading raises ``TimeoutError`` or
    ``ControlError``."""

    def __init__(self, sock: socket.socket) -> None:
        self._deadline = 0.0
        self._left = 0
        self._socket = sock

    def expect(self, most: int, seconds: float) -> None:
        """From now on, so many bytes for so long."""
        self._deadline = time.monotonic() + seconds
        self._left = most

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        seconds = self._deadline - time.monotonic()
        if seconds <= 0:
            raise TimeoutError
        if self._left <= 0:
            raise ControlError(431, "the header is too long")
        self._socket.settimeout(seconds)
        count = self._socket.recv_into(buffer)
        self._left -= count
        return count


class AdminHandler(http.server.BaseHTTPRequestHandler):
    """One connection."""

    server: AdminServer
    protocol_version = "HTTP/1.1"
    default_request_version = "HTTP/1.1"
    MOST = 3 * AdminServer.BODY  # bytes of a request, its head included
    LINGER = 64 * AdminServer.BODY  # bytes after a refusal
    ALWAYS: ClassVar = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.rfile.close()
        self._incoming = Incoming(self.connection)
        self.rfile = io.BufferedReader(self._incoming)

    def version_string(self) -> str:
        return "pyproxy"

    def log_message(self, format: str, *args: Any) -> None:
        log.debug("%s: " + format, self.client_address[0], *args)

    def handle_one_request(self) -> None:
        self.close_connection = True
        self._incoming.expect(self.MOST, self.server.PATIENCE)
        self.command, self.requestline, self.request_version = "", "", "HTTP/1.1"
        with contextlib.suppress(TimeoutError):  # silence needs no answer
            if self.rfile.peek(1):  # type: ignore[attr-defined]
                self._serve_one()

    def _serve_one(self) -> None:
        try:
            body = self._read()
        except EOFError:
            self.close_connection = True
        except TimeoutError:
            self._break_off(408, "the request took too long")
        except ControlError as error:
            self._break_off(error.status, str(error))
        else:
            self._send(self._result(body))

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What ``parse_request`` calls."""
        raise ControlError(code, message or HTTPStatus(code).phrase)

    def handle_expect_100(self) -> bool:
        return True  # it is answered when the body is read

    def _break_off(self, status: int, text: str) -> None:
        """What is wrong with the bytes themselves: the connection can't go on."""
        self.close_connection = True
        self._send(told({"error": text}, status))
        # What is still coming is taken for a little: a connection closed before that would break,
        # and the client not see its answer.
        with contextlib.suppress(OSError, ControlError):
            self.connection.shutdown(socket.SHUT_WR)
            self._incoming.expect(self.LINGER, 1)
            while self.rfile.read1():
                pass

    def _read(self) -> bytes | None:
        """A request, all of it; its body, if it says one. Raises ``ControlError``, ``TimeoutError``
        and ``EOFError``."""
        self.raw_requestline = self.rfile.readline(65537)
        if len(self.raw_requestline) > 65536:
            self.send_error(414)
        if not self.raw_requestline.endswith(b"\n") or not self.parse_request():
            raise EOFError
        if self.headers.defects or len(self.headers.get_all("Host", [])) != 1:
            self.send_error(400, "the header is malformed, or names no host, or several")
        if "Transfer-Encoding" in self.headers:
            self.send_error(411, "say the length of the body in Content-Length")
        length = self._length()
        if length and self.headers.get("Expect", "").lower() == "100-continue":
            self.send_response_only(100)
            self.end_headers()
        body = self.rfile.read(length or 0)
        if len(body) < (length or 0):
            raise EOFError
        return None if length is None else body

    def _length(self) -> int | None:
        said = self.headers.get_all("Content-Length", [])
        if not said:
            return None
        if len(said) > 1 or not (said[0].isascii() and said[0].isdigit()):
            self.send_error(400, "Content-Length is malformed")
        if len(said[0]) > 10 or int(said[0]) > self.server.BODY:
            self.send_error(413, f"a body has at most {self.server.BODY} bytes")
        return int(said[0])

    def _result(self, body: bytes | None) -> Answer:
        try:
            return self._called(body)
        except ControlError as error:
            said = str(error).split("\n")
            if error.status == 403 or (error.status == 401 and "Authorization" in self.headers):
                log.warning("refused %s: %s", self.client_address[0], error)
            problems = {"problems": said} if error.status == 422 else {}
            asks = ("WWW-Authenticate", f'{self._scheme()} realm="pyproxy", charset="UTF-8"')
            fields = [asks] if error.status == 401 else []
            return told({"error": "; ".join(said), **problems}, error.status, *fields)
        except Exception as error:
            log.error("%s %r failed: %r", self.command, self.path, error)
            log.debug("it was here", exc_info=True)
            return told({"error": "an error in the proxy; its log tells more"}, 500)

    def _scheme(self) -> str:
        """For the page's script one that no browser knows: it would ask for the password again and
        again, over a page that tells what is wrong by itself."""
        by_script = "X-Requested-With" in self.headers
        return "Page" if by_script or self.headers["Accept"] == "text/event-stream" else "Basic"

    def _called(self, body: bytes | None) -> Answer:
        path, _, query = self.path.partition("?")
        operations, names = TABLE.find(path)
        method = "GET" if self.command == "HEAD" else self.command
        operation = operations.get(method)
        said = {name.lower() for name in self.headers}
        fields = {name: ", ".join(self.headers.get_all(name, [])) for name in said}
        guard = self.server.guard  # a reload puts another in its place
        guard(self.command, fields, operation is not None and operation.is_open)
        if not operations:
            return told({"error": "nothing is here"}, 404)
        if operation is None:
            allowed = [*operations, *(["HEAD"] if "GET" in operations else [])]
            text = f"only {', '.join(allowed)}"
            return told({"error": text}, 405, ("Allow", ", ".join(allowed)))
        if operation.body and body is None:
            raise ControlError(411, "a body in JSON is expected, with its Content-Length")
        is_json = self.headers.get_content_type() == JSON
        if (body or operation.body) and self.command not in SAFE and not is_json:
            raise ControlError(415, f"expected Content-Type: {JSON}")
        given = _json(body or b"") if operation.body else None
        accept = fields.get("accept", "")
        by_password = guard.asks_password and not operation.is_open
        call = operation.read(names, query, given, accept, by_password)
        answer = operation.run(self.server.api, call)
        if self.command not in SAFE:
            self.server.api.feed.changed()
        return answer

    def _send(self, answer: Answer) -> None:
        try:
            self._write(answer)
        finally:
            if not isinstance(answer.body, bytes):
                answer.body.close()

    def _write(self, answer: Answer) -> None:
        self.connection.settimeout(self.server.PATIENCE)
        if self.request_version == "HTTP/0.9":  # else it gets no head
            self.request_version = "HTTP/1.0"
        streamed = not isinstance(answer.body, bytes)
        if streamed or self.server.stopping or self.request_version == "HTTP/1.0":
            self.close_connection = True
        self.send_response(answer.status)
        for name, value in (*self.ALWAYS.items(), *answer.fields):
            self.send_header(name, value)
        if answer.body or answer.status != 204:
            self.send_header("Content-Type", answer.media_type)
        if isinstance(answer.body, bytes) and answer.status != 204:
            self.send_header("Content-Length", str(len(answer.body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            for piece in [answer.body] if isinstance(answer.body, bytes) else answer.body:
                self.wfile.write(piece)


def _json(body: bytes) -> Json:
    try:
        return json.loads(
            body.decode(),
            object_pairs_hook=_no_twice,
            parse_constant=_no_constant,
            parse_float=_number,
        )
    except (ValueError, RecursionError) as error:
        raise ControlError(400, f"the body is no JSON: {error}") from None


def _no_twice(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands twice in one object")
    return found


def _number(text: str) -> float:
    """In JSON 2.0 is a whole number."""
    found = float(text)
    return int(found) if found.is_integer() else found


def _no_constant(name: str) -> Json:
    raise ValueError(f"{name} is no number of JSON")
