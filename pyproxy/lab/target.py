"""The "Hello, world!" target: a server to put behind the proxy."""

import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from pyproxy import net

BODY = b"Hello, world!"


class HelloHandler(BaseHTTPRequestHandler):
    """Answers any method and path alike; the header ``X-Target`` tells who answered."""

    protocol_version = "HTTP/1.1"
    server_version = "pyproxy-target"
    sys_version = ""
    wbufsize = -1  # head and body in one segment
    disable_nagle_algorithm = True
    server: "HelloServer"

    def version_string(self) -> str:
        return self.server_version  # without a space behind it

    def answer(self) -> None:
        length = self.headers.get("Content-Length", "0")
        if "Transfer-Encoding" in self.headers or not length.isdigit():
            self.close_connection = True  # the body is left unread
        else:
            self._discard(int(length))
        if self.server.delay:
            with self.server.room:
                self.server.over.wait(self.server.delay)
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(BODY)))
        self.send_header("X-Target", self.server.name)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(BODY)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = answer

    def _discard(self, length: int) -> None:
        while length > 0 and (data := self.rfile.read(min(length, 65536))):
            length -= len(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass


class HelloServer(ThreadingHTTPServer):
    """One target. Raises ``ListenError``; ``serve_forever`` serves."""

    daemon_threads = True
    allow_reuse_address = sys.platform != "win32"
    request_queue_size = 1024

    def __init__(
        self, host: str, port: int, name: str | None = None, delay: float = 0.0, at_once: int = 1
    ) -> None:
        """``port`` 0 lets the system choose. ``name`` is ``host:port`` unless given, or this
        machine's name where ``host`` stands for all of its addresses, as in a container. Each
        request takes ``delay`` seconds, and so many are worked on ``at_once``: others wait."""
        self.over = threading.Event()
        self.address_family, address = net.resolve_to_listen(host, port)
        try:
            super().__init__(address, HelloHandler)
        except OSError as error:
            raise net.listen_error(host, port, error) from None
        self.delay = delay
        self.room = threading.Semaphore(at_once)
        everywhere = self.server_name in ("0.0.0.0", "::")
        own = socket.gethostname() if everywhere else f"{host}:{self.server_port}"
        self.name = name or own
        self.url = f"http://{host}:{self.server_port}"

    def server_bind(self) -> None:
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name = str(self.server_address[0])
        self.server_port = self.server_address[1]

    def server_close(self) -> None:
        self.over.set()
        super().server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is nothing to report."""
