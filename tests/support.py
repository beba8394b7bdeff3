"""Real sockets for tests: targets that do as told, clients that see every byte."""

import contextlib
import queue
import socket
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Self

from pyproxy.balancing.target import Target

# Seconds for anything that must happen, however busy the machine. Less than `timeouts.drain`: what
# ends only because that breaks it off is too late.
DEADLINE = 25.0


def eventually(condition: Callable[[], object], seconds: float = DEADLINE) -> None:
    """Waits until ``condition()`` is true; fails if it isn't in time. Asks in at most a quarter of
    the time: a condition may be a request, and what it waits for needs the processor."""
    deadline = time.monotonic() + seconds
    asked = time.monotonic()
    while not condition():
        now = time.monotonic()
        assert now < deadline, "it did not happen in time"
        time.sleep(min(max(0.005, 3 * (now - asked)), 0.1))
        asked = time.monotonic()


@contextlib.contextmanager
def held_port(port: int = 0) -> Iterator[int]:
    """A port of 127.0.0.1 on which nobody listens (0: any). Within the block the system
    chooses it for nobody else, also not for a client's end; whoever names it can listen there."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", port))
        port = sock.getsockname()[1]
        if sys.platform != "linux":  # nobody could listen there while it is bound
            sock.close()
        yield port


_held = contextlib.ExitStack()


def closed_port() -> int:
    """The same, until the tests end."""
    return _held.enter_context(held_port())


def reset(sock: socket.socket) -> None:
    """Closes with a reset instead of an end."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


@dataclass
class Message:
    """A head and a body as they came."""

    start: bytes  # the first line
    fields: list[tuple[bytes, bytes]]  # names as they came
    body: bytes = b""
    trailers: list[tuple[bytes, bytes]] = field(default_factory=list)
    head: bytes = b""

    def all(self, name: str) -> list[str]:
        """The values of a field, in order."""
        wanted = name.lower().encode()
        return [value.decode("latin-1") for known, value in self.fields if known.lower() == wanted]

    def get(self, name: str) -> str | None:
        values = self.all(name)
        return values[0] if values else None

    @property
    def status(self) -> int:
        return int(self.start.split()[1])


class Wire:
    """One end of a connection: whole messages out of bytes, and bytes as they are."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.sock.settimeout(DEADLINE)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer = b""

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def _more(self) -> bool:
        data = self.sock.recv(65536)
        self.buffer += data
        return bool(data)

    def read_until(self, mark: bytes) -> bytes:
        """Up to and with ``mark``. Raises ``EOFError`` when the connection ends before."""
        while mark not in self.buffer:
            if not self._more():
                raise EOFError(self.buffer)
        found, _, self.buffer = self.buffer.partition(mark)
        return found + mark

    def read_exactly(self, count: int) -> bytes:
        while len(self.buffer) < count:
            if not self._more():
                raise EOFError(self.buffer)
        data, self.buffer = self.buffer[:count], self.buffer[count:]
        return data

    def read_to_end(self) -> bytes:
        while self._more():
            pass
        data, self.buffer = self.buffer, b""
        return data

    def read_head(self) -> Message:
        head = self.read_until(b"\r\n\r\n")
        start, *lines = head[:-4].split(b"\r\n")
        fields = [
            (name, value.strip()) for name, _, value in (one.partition(b":") for one in lines)
        ]
        return Message(start, fields, head=head)

    def read_message(self, bodiless: bool = False) -> Message:
        """A request or a response with its body, by length, chunked or (response) until close."""
        message = self.read_head()
        if bodiless:
            return message
        length = message.get("Content-Length")
        if (message.get("Transfer-Encoding") or "").lower() == "chunked":
            while size := int(self.read_until(b"\r\n").split(b";")[0], 16):
                message.body += self.read_exactly(size)
                assert self.read_exactly(2) == b"\r\n"
            while (line := self.read_until(b"\r\n")) != b"\r\n":
                name, _, value = line.partition(b":")
                message.trailers.append((name, value.strip()))
        elif length is not None:
            message.body = self.read_exactly(int(length))
        elif message.start.startswith(b"HTTP/"):
            message.body = self.read_to_end()
        return message

    def at_end(self) -> bool:
        """Waits for what comes next: True if it is the end or a reset, False if it is data."""
        try:
            return not self.buffer and not self._more()
        except ConnectionError:
            return True

    def close(self) -> None:
        self.sock.close()

    def reset(self) -> None:
        reset(self.sock)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def client(url: str, receive_buffer: int | None = None) -> Wire:
    """A connection to ``http://host:port``."""
    host, _, port = url.removeprefix("http://").rpartition(":")
    sock = socket.socket()
    if receive_buffer:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    sock.settimeout(DEADLINE)
    try:
        sock.connect((host.strip("[]"), int(port)))
    except OSError:
        sock.close()
        raise
    return Wire(sock)


def ask(url: str, request: bytes, bodiless: bool = False) -> Message:
    """One request on a connection of its own; its final answer, when all that the server does
    behind it is done too (it gives back its target, and the connection there)."""
    with client(url) as wire:
        wire.send(request)
        message = wire.read_message(bodiless)
        with contextlib.suppress(OSError):  # it may have closed already
            wire.sock.shutdown(socket.SHUT_WR)
            wire.at_end()
        return message


def get(url: str, path: str = "/", *lines: str, method: str = "GET") -> Message:
    fields = "".join(f"{line}\r\n" for line in ("Host: test", *lines))
    return ask(url, f"{method} {path} HTTP/1.1\r\n{fields}\r\n".encode("latin-1"), method == "HEAD")


def answer(body: bytes | str = b"", *lines: str, status: str = "200 OK") -> bytes:
    """A response with Content-Length."""
    body = body.encode() if isinstance(body, str) else body
    fields = "".join(f"{line}\r\n" for line in lines)
    return (
        f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{fields}\r\n".encode("latin-1") + body
    )


class RawTarget:
    """A listening socket; every connection is handed to ``serve(wire)`` in a thread of its own.

    The connection is closed when ``serve`` returns or raises. ``requests`` is what ``serve`` has
    put there.
    """

    def __init__(self, serve: Callable[["RawTarget", Wire], None], port: int = 0) -> None:
        self._serve = serve
        self.requests: list[Message] = []
        self.connections = 0
        self._wires: list[Wire] = []
        self._threads: list[threading.Thread] = []
        self._listener: socket.socket
        self._held = contextlib.ExitStack()  # its port is its own also while it is stopped
        self.port = self._held.enter_context(held_port(port))
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port), backlog=256)
        self._spawn(self._accept, self._listener)

    def _spawn(self, what: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=what, args=arguments, daemon=True, name="raw-target")
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            wire = Wire(sock)
            self._wires.append(wire)
            self.connections += 1
            self._spawn(self._run, wire)

    def _run(self, wire: Wire) -> None:
        with contextlib.suppress(OSError, EOFError), wire:
            self._serve(self, wire)

    def stop(self) -> None:
        """As if its process had died: nobody listens, every connection breaks."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads[:1]:  # that accepts: from here on no connection is added
            thread.join(DEADLINE)
        for wire in self._wires:
            with contextlib.suppress(OSError):
                wire.sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(DEADLINE)
        for wire in self._wires:
            wire.close()
        self._wires, self._threads = [], []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._held.close()


def replying(response: bytes | Callable[[Message], bytes]) -> Callable[[RawTarget, Wire], None]:
    """Reads whole requests, keeps them in ``requests``, and answers each one alike."""

    def serve(target: RawTarget, wire: Wire) -> None:
        while True:
            request = wire.read_message()
            target.requests.append(request)
            wire.send(response(request) if callable(response) else response)

    return serve


class Gate:
    """Serves as a target that tells of each request, and answers when it is told to."""

    def __init__(self, body: bytes = b"x") -> None:
        self.arrived: queue.SimpleQueue[None] = queue.SimpleQueue()
        self.open = threading.Event()
        self._body = body

    def __call__(self, target: RawTarget, wire: Wire) -> None:
        while True:
            target.requests.append(wire.read_message())
            self.arrived.put(None)
            assert self.open.wait(3 * DEADLINE)  # the test has deadlines of its own
            wire.send(answer(self._body))


def lettered(letter: str) -> RawTarget:
    """A target that answers everything with its letter."""

    def respond(request: Message) -> bytes:
        full = answer(letter)
        return full[: -len(letter)] if request.start.startswith(b"HEAD ") else full

    return RawTarget(replying(respond))


@contextlib.contextmanager
def letters(names: str) -> Iterator[list[RawTarget]]:
    """Lettered targets: ``letters("abc")``."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(lettered(name)) for name in names]


@dataclass
class Ask:
    """A request as policies see it."""

    address: str = "192.0.2.1"
    method: str = "GET"
    uri: str = "/"
    number: int = -1
    headers: dict[str, str] = field(default_factory=dict)
    cookies: dict[str, str] = field(default_factory=dict)
    parameters: dict[str, str] = field(default_factory=dict)

    def header(self, name: str) -> str | None:
        return self.headers.get(name)

    def cookie(self, name: str) -> str | None:
        return self.cookies.get(name)

    def query(self, name: str) -> str | None:
        return self.parameters.get(name)


def make_target(port: int, **said: Any) -> Target:
    """One that nobody connects to."""
    return Target(f"http://localhost:{port}", "localhost", port, **said)


def run_together(calls: Iterable[Callable[[], object]]) -> None:
    """Each in a thread of its own, until all have ended."""
    threads = [threading.Thread(target=call) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


class Load:
    """Clients that ask without end, with a short pause between (without one, they would take the
    processor from what they test), from the start of the block to its end; half of them on
    connections that they keep. As clients do, they send a request again whose kept connection the
    proxy has closed meanwhile (RFC 9112, 9.3.1); all else is a failure."""

    def __init__(self, url: str, clients: int = 4) -> None:
        self.statuses: Counter[int] = Counter()
        self.failures: list[str] = []
        self._url = url
        self._over = threading.Event()
        # Protects both results.
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._ask, args=(at % 2 == 0,), name="load")
            for at in range(clients)
        ]

    def _ask(self, keep: bool) -> None:
        wire: Wire | None = None
        while not self._over.wait(0.02):
            fresh = wire is None
            try:
                wire = wire or client(self._url)
                wire.send(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
                answer = wire.read_message()
                with self._lock:
                    self.statuses[answer.status] += 1
                if keep and answer.get("Connection") != "close":
                    continue
            except (OSError, EOFError) as error:
                if fresh or (wire and wire.buffer):
                    with self._lock:
                        self.failures.append(f"{type(error).__name__}: {error}")
            if wire:
                wire.close()
            wire = None
        if wire:
            wire.close()

    @property
    def count(self) -> int:
        return sum(self.statuses.values())

    def goes_on(self, more: int = 20) -> None:
        """Waits until so many more have been answered."""
        wanted = self.count + more
        eventually(lambda: self.count >= wanted)

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()
