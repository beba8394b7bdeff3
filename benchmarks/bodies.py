"""Bodies of any size: a target that sends and takes them, and a client.

Neither keeps a body: the kernel sends one from an empty file, and throws away what comes.
Run as a script with a port it is the target: ``GET /1000`` gives 1,000 bytes, a POST is read.
"""

import os
import re
import socket
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from typing import BinaryIO

from contestants import HOST, Broken

PIECE = 1 << 20
PATIENCE = 120.0  # seconds for the next bytes


class Connection:
    def __init__(self, sock: socket.socket, blank: BinaryIO) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = sock
        self.blank = blank.fileno()
        self._rest = b""

    def head(self) -> str:
        """The next one; nothing at the end."""
        while b"\r\n\r\n" not in self._rest:
            piece = self.sock.recv(4096)
            if not piece:
                return ""
            self._rest += piece
        head, _, self._rest = self._rest.partition(b"\r\n\r\n")
        return head.decode("latin-1")

    def discard(self, size: int) -> None:
        size -= len(self._rest)
        self._rest = b""
        while size > 0:
            got = len(self.sock.recv(1)) if size == 1 else self._dropped(size)
            if not got:
                raise ConnectionError("the body ends too early")
            size -= got

    def _dropped(self, size: int) -> int:
        # With this flag the kernel copies nothing; the buffer stays as it is.
        return self.sock.recv_into(_BUFFER, min(size, PIECE), socket.MSG_TRUNC)

    def send(self, head: str, size: int) -> None:
        self.sock.sendall(head.encode())
        at = 0
        while at < size:
            at += os.sendfile(self.sock.fileno(), self.blank, at, size - at)


_BUFFER = bytearray(PIECE)


def length(head: str) -> int:
    found = re.search(r"^content-length:\s*(\d+)", head, re.MULTILINE | re.IGNORECASE)
    return int(found[1]) if found else 0


@dataclass(frozen=True)
class Transfer:
    rate: float  # a second
    p50_ms: float
    p99_ms: float
    count: int


def transfer(port: int, size: int, upload: bool, seconds: float) -> Transfer:
    """One body after another on one connection, for some seconds and at least one. Raises
    ``Broken``."""
    method, path, own = ("POST", "/", size) if upload else ("GET", f"/{size}", 0)
    head = f"{method} {path} HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {own}\r\n\r\n"
    if not own:
        head = head.replace("Content-Length: 0\r\n", "")
    times: list[float] = []
    try:
        with (
            blank(own) as file,
            socket.create_connection((HOST, port), PATIENCE) as sock,
        ):
            # Not a time-out of Python's, which makes each call two.
            sock.settimeout(None)
            connection = Connection(sock, file)
            begin = time.perf_counter()
            while not times or time.perf_counter() - begin < seconds:
                asked = time.perf_counter()
                connection.send(head, own)
                answer = connection.head()
                if " 200 " not in answer or length(answer) != (0 if upload else size):
                    raise Broken(f"answers {method} of {size} bytes with {answer[:200]!r}")
                connection.discard(length(answer))
                times.append(time.perf_counter() - asked)
    except OSError as error:
        raise Broken(f"loses a body of {size} bytes: {error}") from None
    times.sort()
    p50, p99 = (times[int(share * (len(times) - 1))] * 1e3 for share in (0.5, 0.99))
    return Transfer(len(times) / sum(times), p50, p99, len(times))


def blank(size: int) -> BinaryIO:
    """A file with so many zeros, which takes no room."""
    file = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
    file.truncate(size)
    return file


def serve(sock: socket.socket, file: BinaryIO) -> None:
    with sock:
        connection = Connection(sock, file)
        while head := connection.head():
            connection.discard(length(head))
            path = head.split()[1].strip("/")
            size = int(path) if head.startswith("GET") and path.isdigit() else 0
            connection.send(f"HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n", size)


def main(port: int, most: int) -> None:
    with blank(most) as file, socket.create_server((HOST, port), backlog=4096) as server:
        while True:
            sock, _ = server.accept()
            threading.Thread(target=serve, args=(sock, file), daemon=True).start()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
