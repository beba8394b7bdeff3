"""A target in a process of its own: ``target.py PORT NAME FILE``. Each line of standard input is a
mode in which it goes on.

``/SIZE/ID`` is answered with so many bytes made of the id, their checksum, and the target's name.
The id of each POST is written to FILE, before it is answered and if its body is what its own
checksum says. Nothing but the standard library, so that it is soon there again.
"""

import contextlib
import hashlib
import os
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

# What a target can be told to do instead of answering well. ``error`` is a status that the proxy
# retries; ``extra`` an answer that nobody has asked for behind the one that was.
MODES = ("slow", "reset", "truncated", "lost", "garbage", "extra", "error", "drip")


def body_of(name: str, size: int) -> bytes:
    """Different for each id everywhere, so that no other answer passes for it."""
    line = hashlib.sha256(name.encode()).hexdigest().encode() + b"\n"
    return (line * (size // len(line) + 1))[:size]


def checksum(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = 120

    def do_GET(self) -> None:
        if "Upgrade" in self.headers:
            self._echo()
        else:
            self._answer()

    def do_POST(self) -> None:
        body = b"".join(self._chunks())
        if checksum(body) != self.headers["X-Sum"]:
            self._send(400, b"these are not the bytes that were sent")
            return
        os.write(log, self.headers["X-Id"].encode() + b"\n")
        self._answer()

    def _chunks(self) -> Iterator[bytes]:
        if "Content-Length" in self.headers:
            left = int(self.headers["Content-Length"])
            body = self.rfile.read(left)
            if len(body) < left:
                raise ConnectionError
            yield body
            return
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        while self.rfile.readline() not in (b"\r\n", b""):
            pass

    def _answer(self) -> None:
        if self.path == "/":  # a health check
            self._send(200, b"well")
            return
        _, size, name = self.path.split("/")
        self._send(200, body_of(name, int(size)))

    def _send(self, status: int, body: bytes) -> None:
        mode = MODE[0]
        if mode == "slow":
            time.sleep(0.4)
        elif mode == "error":
            status, body = 500, b"told to"
        elif mode == "lost":
            self.close_connection = True
            return
        elif mode == "garbage":
            self.wfile.write(b"\0\1\2 this is no HTTP\r\n\r\n" * 3)
            self.close_connection = True
            return
        head = (
            f"HTTP/1.1 {status} told\r\nX-Target: {NAME}\r\nX-Sum: {checksum(body)}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        ).encode()
        if mode in ("reset", "truncated"):
            self.wfile.write(head + body[: len(body) // 2])
            self.close_connection = True
            if mode == "reset":
                linger = struct.pack("ii", 1, 0)
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                self.connection.close()
        elif mode == "drip":
            self.wfile.write(head)
            for at in range(0, len(body), len(body) // 5 + 1):
                time.sleep(0.05)
                self.wfile.write(body[at : at + len(body) // 5 + 1])
        elif mode == "extra" and len(body) <= 20_000:
            # In one piece: what comes under the next request, nobody can tell from its answer.
            poison = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison"
            self.wfile.write(head + body + poison)
        else:
            self.wfile.write(head + body)

    def _echo(self) -> None:
        head = f"HTTP/1.1 101 Switching Protocols\r\nX-Target: {NAME}\r\n"
        self.wfile.write(f"{head}Connection: Upgrade\r\nUpgrade: echo\r\n\r\n".encode())
        while data := self.connection.recv(65536):
            self.wfile.write(data)
        self.close_connection = True

    def log_message(self, *_: Any) -> None:
        pass


class Server(ThreadingHTTPServer):
    request_queue_size = 128
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        pass  # a connection broke


def _listen_to_orders() -> None:
    for line in sys.stdin:
        MODE[0] = line.strip()
    os.kill(os.getpid(), signal.SIGKILL)  # who gives them is gone


MODE = ["good"]
if __name__ == "__main__":
    NAME = sys.argv[2]
    log = os.open(sys.argv[3], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    threading.Thread(target=_listen_to_orders, daemon=True, name="orders").start()
    with contextlib.suppress(KeyboardInterrupt):
        Server(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
