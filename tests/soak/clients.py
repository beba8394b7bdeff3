"""Clients of all sorts, and what each holds the proxy to.

- A GET is answered, whole and with the right bytes. Two things may come between, neither of them
  the proxy's failure: a kept connection may be closed before a byte of the answer has come, and is
  opened anew (RFC 9112, 9.3.1); and what a worker held when it was killed is lost with it.
- An answer that breaks off was begun by a target that was at fault meanwhile, or by a worker that
  was killed.
- A POST is sent to no target twice (the targets' files tell), and refused only while a target was
  at fault. Clients don't send it again.
- Nonsense is answered with a status from 400 on.
"""

import contextlib
import random
import socket
import threading
import time
from collections.abc import Callable

import httpx

from tests.soak.ledger import Ledger
from tests.soak.target import body_of, checksum
from tests.support import Message, Wire

PATIENCE = 90.0  # seconds: more than all that a request may wait for one target after the other
SIZES = (0, 1, 100, 2000, 2000, 20_000, 300_000)
REFUSED = (500, 502, 504)  # how a POST may fail that can't be sent twice

BROKEN = (OSError, EOFError, ValueError)

NONSENSE = (
    b"GET /\r\n\r\n",
    b"\0\0\0\0\r\n\r\n",
    b"GET / HTTP/1.1\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost : a\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"GET / HTTP/9.9\r\nHost: a\r\n\r\n",
    b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n",
    b"GET /" + b"x" * 70000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
)


class Client:
    """One of them, in a thread of its own until ``over``. ``pause``: seconds between requests."""

    def __init__(self, port: int, ledger: Ledger, over: threading.Event, pause: float) -> None:
        self._port, self._ledger, self._over, self._pause = port, ledger, over, pause
        self._wire: Wire | None = None
        self._number = 0
        self._posted: list[str] = []

    def start(self, kind: str, seed: int) -> threading.Thread:
        self._name = f"{kind}-{seed}"
        self._random = random.Random(seed)
        ask: Callable[[], None] = getattr(self, kind)
        thread = threading.Thread(target=self._run, args=(ask,), name=self._name)
        thread.start()
        return thread

    @property
    def posted(self) -> list[str]:
        """The ids of what was answered with 200."""
        return self._posted

    def _run(self, ask: Callable[[], None]) -> None:
        while not self._over.wait(self._random.uniform(0, 2 * self._pause)):
            try:
                ask()
            except Exception as error:  # noqa: BLE001 - whatever it is, it must be seen
                self._violate(f"{type(error).__name__}: {error}")
                self._leave()
        self._leave()

    # Ways to speak

    def _violate(self, what: str) -> None:
        self._ledger.violate(f"{self._name}: {what}")

    def _count(self, what: str) -> None:
        self._ledger.count(what)

    def _connect(self) -> Wire:
        sock = socket.create_connection(("127.0.0.1", self._port), PATIENCE)
        wire = Wire(sock)
        sock.settimeout(PATIENCE)
        return wire

    def _leave(self) -> None:
        if self._wire:
            self._wire.close()
        self._wire = None

    def _next(self) -> tuple[str, int]:
        """An id, and a size."""
        self._number += 1
        return f"{self._name}-{self._number}", self._random.choice(SIZES)

    @staticmethod
    def _asked(name: str, size: int, more: str = "") -> bytes:
        return f"GET /{size}/{name} HTTP/1.1\r\nHost: soak\r\n{more}\r\n".encode()

    def _get(self, more: str = "", slow: bool = False) -> bool:
        """Asks until there is an answer; whether the connection may be kept."""
        name, size = self._next()
        if slow:
            size = 600_000
        while True:
            begun, fresh = time.monotonic(), self._wire is None
            wire = None
            try:
                self._wire = wire = self._wire or self._connect()
                wire.send(self._asked(name, size, more))
                if slow:
                    self._dawdle(wire)
                head = wire.read_head()
            except BROKEN as error:
                self._leave()
                if not self._lost(fresh and wire, wire, begun, error, f"GET /{size}/{name}"):
                    return False
                continue
            return self._take(wire, head, name, size, begun)

    def _lost(
        self, fresh: object, wire: Wire | None, begun: float, error: Exception, what: str
    ) -> bool:
        """No answer has come. Whether to ask again."""
        if self._ledger.killed(begun):
            self._count("lost with a worker that was killed")
            return True
        if wire is None or fresh or wire.buffer:
            self._violate(f"{what}: {type(error).__name__}: {error}")
            return False
        self._count("kept connection closed, asked again")
        return True

    def _dawdle(self, wire: Wire) -> None:
        """Reads the beginning slowly. Whether that was all, is seen by who reads on."""
        with contextlib.suppress(OSError):
            while len(wire.buffer) < 80_000 and (data := wire.sock.recv(8192)):
                wire.buffer += data
                self._over.wait(0.2)

    def _take(self, wire: Wire, head: Message, name: str, size: int, begun: float) -> bool:
        """The answer to a GET; whether the connection may be kept."""
        what = f"GET /{size}/{name}"
        target = head.get("X-Target")
        wire.buffer = head.head + wire.buffer
        try:
            answer = wire.read_message()
        except BROKEN as error:
            self._leave()
            if target and self._ledger.faulty(begun, target):
                self._count("broken off by a target at fault")
            elif self._ledger.killed(begun):
                self._count("broken off with a worker that was killed")
            else:
                self._violate(f"{what}: broken off by {target}: {type(error).__name__}")
            return False
        self._check(what, answer.status, target, answer.get("X-Sum"), answer.body, name, size)
        return answer.get("Connection") != "close"

    def _check(
        self,
        what: str,
        status: int,
        target: str | None,
        told: str | None,
        body: bytes,
        name: str,
        size: int,
    ) -> None:
        if status != 200:
            self._violate(f"{what}: {status} from {target}: {body[:200]!r}")
        elif body != body_of(name, size) or checksum(body) != told:
            self._violate(f"{what}: wrong body from {target}: {len(body)} bytes, {body[:80]!r}")
        else:
            self._count("GET answered")

    # Kinds of clients

    def keeping(self) -> None:
        """GETs on one connection."""
        if not self._get():
            self._leave()

    def closing(self) -> None:
        """A connection a request."""
        self._get("Connection: close\r\n")
        self._leave()

    def slow(self) -> None:
        """A long answer, read slowly."""
        self._get(slow=True)
        self._leave()

    def pipelining(self) -> None:
        """Several at once."""
        names = [self._next() for _ in range(self._random.randint(2, 5))]
        begun = time.monotonic()
        wire = None
        answered = 0
        try:
            self._wire = wire = self._connect()
            wire.send(b"".join(self._asked(*one) for one in names))
            for name, size in names:
                head = wire.read_head()
                answered += 1
                if not self._take(wire, head, name, size, begun):
                    break
        except BROKEN as error:
            if not answered:
                self._lost(True, wire, begun, error, "pipelined GETs")
            else:
                self._count("kept connection closed, asked again")
        self._leave()

    def posting(self) -> None:
        """Bodies by length and chunked, short and long, on fresh and on kept connections."""
        name, size = self._next()
        body = body_of(name + "-sent", self._random.choice(SIZES))
        fields = f"POST /{size}/{name} HTTP/1.1\r\nHost: soak\r\nX-Id: {name}\r\n"
        fields += f"X-Sum: {checksum(body)}\r\n"
        if self._random.random() < 0.5:
            wire_body = body
            fields += f"Content-Length: {len(body)}\r\n\r\n"
        else:
            fields += "Transfer-Encoding: chunked\r\n\r\n"
            pieces = [body[at : at + 7000] for at in range(0, len(body), 7000)]
            wire_body = b"".join(b"%x\r\n%b\r\n" % (len(one), one) for one in pieces) + b"0\r\n\r\n"
        begun, fresh, wire = time.monotonic(), self._wire is None, None
        head: Message | None = None
        try:
            self._wire = wire = self._wire or self._connect()
            # A refusal may come, and the connection end, before all is sent.
            with contextlib.suppress(ConnectionError):
                wire.send(fields.encode() + wire_body)
            head = wire.read_head()
            wire.buffer = head.head + wire.buffer
            answer = wire.read_message()
        except BROKEN as error:
            self._leave()
            target = head.get("X-Target") if head else None
            if self._ledger.killed(begun):
                self._count("POST lost with a worker that was killed")
            elif target and self._ledger.faulty(begun, target):
                self._count("POST's answer broken off by a target at fault")
            elif wire and not (fresh or wire.buffer or head):
                self._count("POST on a kept connection that was closed")
            else:
                self._violate(f"POST {name} to {target}: {type(error).__name__}: {error}")
            return
        if answer.status == 200:
            if answer.body != body_of(name, size):
                self._violate(f"POST {name}: wrong body from {answer.get('X-Target')}")
            self._count("POST answered")
            self._posted.append(name)
        elif answer.status in REFUSED and self._ledger.faulty(begun):
            self._count(f"POST refused with {answer.status}, a target at fault")
        else:
            self._violate(f"POST {name}: {answer.status}: {answer.body[:200]!r}")
        if answer.get("Connection") == "close" or self._random.random() < 0.5:
            self._leave()

    def aborting(self) -> None:
        """Goes away in the middle of something."""
        name, _ = self._next()
        asked = self._asked(name, 600_000)
        with contextlib.suppress(OSError):
            wire = self._connect()
            how = self._random.choice(("head", "upload", "silent", "reading"))
            if how == "head":
                wire.send(asked[: self._random.randrange(len(asked))])
            elif how == "upload":
                wire.send(b"POST /1/x HTTP/1.1\r\nHost: a\r\nX-Id: gone\r\nContent-Length: 900000")
                wire.send(b"\r\n\r\n" + b"x" * self._random.randrange(200_000))
            else:
                wire.send(asked)
                if how == "reading":
                    wire.sock.recv(self._random.randrange(1, 50_000))
            self._over.wait(self._random.choice((0, 0.05)))
            if self._random.random() < 0.5:
                wire.reset()
            else:
                wire.close()
            self._count("client left")

    def nonsense(self) -> None:
        """No HTTP, or not quite."""
        begun, wire = time.monotonic(), None
        sent = self._random.choice(NONSENSE)
        try:
            wire = self._connect()
            with contextlib.suppress(ConnectionError):
                wire.send(sent)
            status = wire.read_head().status
        except BROKEN as error:
            self._lost(True, wire, begun, error, f"nonsense {sent[:60]!r}")
        else:
            if status < 400:
                self._violate(f"nonsense {sent[:60]!r} was answered with {status}")
            self._count("nonsense refused")
        if wire:
            wire.close()

    def upgrading(self) -> None:
        """A tunnel, short-lived."""
        name, _ = self._next()
        begun, wire, target = time.monotonic(), None, None
        try:
            wire = self._connect()
            wire.send(self._asked(name, 10, "Connection: Upgrade\r\nUpgrade: echo\r\n"))
            head = wire.read_head()
            target = head.get("X-Target")
            if head.status != 101:
                self._violate(f"upgrade: {head.status} from {target}")
                return
            for number in range(5):
                said = f"{name} {number}".encode() * 50
                wire.send(said)
                if (heard := wire.read_exactly(len(said))) != said:
                    self._violate(f"upgrade: {heard[:80]!r} from {target}")
                self._over.wait(0.1)
            self._count("tunnel served")
        except BROKEN as error:
            if target and self._ledger.faulty(begun, target):
                self._count("tunnel broken off by a target at fault")
            else:
                self._lost(True, wire, begun, error, f"upgrade to {target}")
        finally:
            if wire:
                wire.close()

    def http2(self) -> None:
        """Some requests on a connection of HTTP/2 without TLS."""
        with httpx.Client(http1=False, http2=True, timeout=PATIENCE, trust_env=False) as client:
            for number in range(self._random.randint(1, 10)):
                name, size = self._next()
                begun, target = time.monotonic(), None
                what = f"HTTP/2 GET /{size}/{name}"
                try:
                    url = f"http://127.0.0.1:{self._port}/{size}/{name}"
                    with client.stream("GET", url) as answer:
                        target = answer.headers.get("x-target")
                        body = answer.read()
                    told = answer.headers.get("x-sum")
                    self._check(what, answer.status_code, target, told, body, name, size)
                except httpx.TransportError as error:
                    if target and self._ledger.faulty(begun, target):
                        self._count("broken off by a target at fault")
                    elif self._ledger.killed(begun):
                        self._count("lost with a worker that was killed")
                    elif number or "ConnectionTerminated" in str(error) or "CLOSED" in str(error):
                        # After a GOAWAY httpx takes no answer, though all are still to come.
                        self._count("kept connection closed, asked again")
                    else:
                        self._violate(f"{what} from {target}: {type(error).__name__}: {error}")
                    return
                self._over.wait(self._pause)


# How many of each kind there are.
KINDS = {
    "keeping": 3,
    "closing": 2,
    "slow": 1,
    "pipelining": 1,
    "posting": 3,
    "aborting": 1,
    "nonsense": 1,
    "upgrading": 1,
    "http2": 1,
}
