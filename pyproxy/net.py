"""Sockets: addresses, kernel timeouts, and what a failed call means. Used by every layer that
moves bytes; nothing here knows HTTP."""

import contextlib
import errno
import functools
import logging
import os
import select
import socket
import ssl
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, Protocol, overload

from pyproxy.errors import ListenError

try:
    import resource
except ImportError:  # Windows has no limit on open files to raise
    resource = None  # type: ignore[assignment]

log = logging.getLogger(__name__)

# A blocking socket with kernel timeouts needs no poll() before each call, as settimeout() does.
KERNEL_TIMEOUTS = sys.platform != "win32"
# What a call raises when its time is over: EAGAIN from a kernel timeout, or Python's own.
TIMED_OUT = (BlockingIOError, TimeoutError)

# An accepted socket has the options of the one that listens.
INHERITS_OPTIONS = sys.platform.startswith("linux")

# This machine is short of something: no fault of the other side.
_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL}

# A receive with it takes what is there, and doesn't wait (Windows has no such flag: there it does).
AT_ONCE = getattr(socket, "MSG_DONTWAIT", 0)

# Linux: what getsockopt tells begins with the state of the connection.
_TCP_INFO = socket.TCP_INFO if sys.platform.startswith("linux") else None
_ESTABLISHED = b"\x01"
# Likewise SO_MEMINFO, which Python has no name for, with the memory that what has come takes.
_MEMORY_INFO = 55 if sys.platform.startswith("linux") else None
_NO_MEMORY = bytes(4)

_PIECE = 262144  # bytes
# Bytes up to which a copy of a file is as cheap as the system's pages of it. Those are shared until
# the client has them: if the file is cut meanwhile, there are zeros in what was sent.
_COPIED = 65536
_OTHER_FILES = 100  # open beside those of connections: sockets that listen, logs, checks, modules

# For a poller.
POLLIN, POLLOUT = getattr(select, "POLLIN", 1), getattr(select, "POLLOUT", 4)
POLLERR, POLLHUP = getattr(select, "POLLERR", 8), getattr(select, "POLLHUP", 16)

_HUNG_UP = getattr(select, "POLLRDHUP", 0)  # Linux: the other side will send no more


class Socket(Protocol):
    """A connected socket, or TLS on one (``tls.TLSSocket``)."""

    def recv(self, size: int, flags: int = 0, /) -> bytes: ...
    def recv_into(self, buffer: memoryview, size: int = 0, flags: int = 0, /) -> int: ...
    def send(self, data: bytes | bytearray | memoryview, /) -> int: ...
    def sendall(self, data: bytes | memoryview, flags: int = 0, /) -> None: ...
    def shutdown(self, how: int, /) -> None: ...
    def close(self) -> None: ...
    def fileno(self) -> int: ...
    def setsockopt(self, level: int, name: int, value: int | bytes, /) -> None: ...
    def settimeout(self, seconds: float | None, /) -> None: ...
    @overload
    def getsockopt(self, level: int, name: int, /) -> int: ...
    @overload
    def getsockopt(self, level: int, name: int, size: int, /) -> bytes: ...


def stay_on(processor: int) -> None:
    """The calling thread, and those it starts, run on one processor from now on, of those allowed
    the one with this number (counted round, so that any will do): the interpreter's
    lock lets only one of them run anyway, and a thread that lets go of the lock then doesn't wake
    another one on another processor, which costs more than a small request (docs/benchmarks.md).
    Does nothing without such a lock, or where the system can't do it.
    """
    locked = getattr(sys, "_is_gil_enabled", lambda: True)()
    if locked and hasattr(os, "sched_setaffinity"):
        allowed = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {allowed[processor % len(allowed)]})


def exhausted(error: OSError) -> bool:
    return error.errno in _EXHAUSTED


# What closes a file that can be done without; False if it has none.
spares: list[Callable[[], bool]] = []


def out_of_files(error: OSError) -> bool:
    return error.errno in (errno.EMFILE, errno.ENFILE)


def make_room(error: OSError) -> bool:
    """Whether what failed with ``error`` may be tried again: it was for want of files, and one that
    can be done without has been closed."""
    return out_of_files(error) and any(give() for give in spares)


def reason(error: OSError) -> str:
    """What went wrong, in the system's own words, in lower case."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"tls: {(error.reason or 'failed').replace('_', ' ').lower()}"
    return (error.strerror or str(error) or type(error).__name__).lower()


def set_receive_timeout(sock: Socket, seconds: float) -> None:
    """From now on a receive that gets nothing for ``seconds`` raises one of ``TIMED_OUT``."""
    if KERNEL_TIMEOUTS:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _timeval(seconds))
    else:
        sock.settimeout(seconds)


def set_send_timeout(sock: Socket, seconds: float) -> None:
    """From now on a send that moves nothing for ``seconds`` raises one of ``TIMED_OUT``."""
    if KERNEL_TIMEOUTS:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(seconds))


@functools.lru_cache
def _timeval(seconds: float) -> bytes:
    micro = max(1, round(seconds * 1_000_000))
    return struct.pack("@ll", micro // 1_000_000, micro % 1_000_000)


def no_delay(sock: Socket) -> None:
    """Without it, Nagle's algorithm and delayed ACKs cost 40 ms a request."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def connect(host: str, port: int, timeout: float) -> socket.socket:
    """A blocking connection to the first address of ``host`` that answers, within ``timeout``
    seconds in all. Raises ``OSError``."""
    while True:
        try:
            return _connect(host, port, timeout)
        except OSError as error:
            if not make_room(error):
                raise


def _connect(host: str, port: int, timeout: float) -> socket.socket:
    deadline = time.monotonic() + timeout
    failure: OSError | None = None
    for family, kind, proto, _, address in socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM):
        left = deadline - time.monotonic()
        if left <= 0:
            break
        sock = socket.socket(family, kind, proto)
        try:
            sock.settimeout(left)
            sock.connect(address)
            sock.setblocking(True)
        except OSError as error:
            sock.close()
            failure = error
            continue
        no_delay(sock)
        return sock
    raise failure or TimeoutError("timed out")


def resolve_to_listen(host: str, port: int) -> tuple[int, tuple[Any, ...]]:
    """The family and address to bind. A name takes its IPv4 address where it has both. Raises
    ``ListenError``."""
    try:
        found = socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM, 0, socket.AI_PASSIVE)
    except OSError as error:
        raise ListenError(f"can't listen on {host}:{port}: {reason(error)}") from None
    except UnicodeError:
        raise ListenError(f"can't listen on {host}:{port}: that is no name of a host") from None
    family, _, _, _, address = min(found, key=lambda one: one[0] != socket.AF_INET)
    return family, address


def listen_error(host: str, port: int, error: OSError) -> ListenError:
    remedy = {
        errno.EADDRINUSE: "; another program listens there: stop it or choose another port",
        errno.EACCES: "; a port below 1024 needs privileges: choose a higher one",
        errno.EADDRNOTAVAIL: "; this machine has no such address",
    }.get(error.errno or 0, "")
    return ListenError(f"can't listen on {host}:{port}: {reason(error)}{remedy}")


def readable(sock: Socket, seconds: float = 0) -> bool:
    """Waits up to ``seconds`` for bytes, an end or an error to receive."""
    if not hasattr(select, "poll"):  # Windows
        return bool(select.select([sock], [], [], seconds)[0])
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def unread(sock: Socket) -> bool:
    """Whether bytes or an end wait to be received. Half the price of ``readable`` or less among
    busy threads, since nothing waits here, but blind for a reset."""
    if _MEMORY_INFO is None:
        return readable(sock)
    try:
        return sock.getsockopt(socket.SOL_SOCKET, _MEMORY_INFO, 4) != _NO_MEMORY
    except OSError:  # a Linux without it: before 4.12, or only in name
        return readable(sock)


def ended(sock: Socket) -> bool:
    """Whether the other side has closed or reset the connection; blind for bytes, and as cheap as
    ``unread``."""
    if _TCP_INFO is None:
        return readable(sock)
    return sock.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, 1) != _ESTABLISHED


def outgoing(sock: Socket) -> int:
    """The memory that takes what the other side hasn't acknowledged yet; where the system can't
    tell, 0."""
    if _MEMORY_INFO is None:
        return 0
    try:
        told = sock.getsockopt(socket.SOL_SOCKET, _MEMORY_INFO, 24)
    except OSError:
        return 0
    return int.from_bytes(told[20:], sys.byteorder)


def hung_up(sock: Socket) -> bool:
    """Whether the other side has ended or reset the connection, without receiving from it. Where
    the system can't tell (Windows), False."""
    if not hasattr(select, "poll"):
        return False
    poll = select.poll()
    poll.register(sock, _HUNG_UP)
    return bool(poll.poll(0))


def lost(sock: Socket) -> bool:
    """Whether the connection is over in both directions: reset, or shut here."""
    if not hasattr(select, "poll"):
        return False
    poll = select.poll()
    poll.register(sock, 0)
    return bool(poll.poll(0))


class _SelectPoller:
    """As much of ``select.poll`` as is needed here, for Windows."""

    def __init__(self) -> None:
        self._wanted: dict[int, int] = {}

    def register(self, fd: int, events: int, /) -> None:
        self._wanted[fd] = events

    def unregister(self, fd: int, /) -> None:
        del self._wanted[fd]

    def poll(self, milliseconds: float, /) -> list[tuple[int, int]]:
        readers = [fd for fd, events in self._wanted.items() if events & POLLIN]
        writers = [fd for fd, events in self._wanted.items() if events & POLLOUT]
        ready = select.select(readers, writers, list(self._wanted), milliseconds / 1000)
        found: dict[int, int] = {}
        for event, fds in zip((POLLIN, POLLOUT, POLLERR), ready, strict=True):
            for fd in fds:
                found[fd] = found.get(fd, 0) | event
        return list(found.items())


class Poller(Protocol):
    def register(self, fd: int, events: int, /) -> None: ...
    def unregister(self, fd: int, /) -> None: ...
    def poll(self, milliseconds: float, /) -> list[tuple[int, int]]: ...


def poller() -> Poller:
    """A ``select.poll``, or the like where there is none."""
    return select.poll() if hasattr(select, "poll") else _SelectPoller()


def send_both(sock: Socket, head: bytes, body: bytes | memoryview) -> None:
    """Sends both in one call, without a copy of them joined. Raises ``OSError``."""
    if not isinstance(sock, socket.socket) or not hasattr(sock, "sendmsg"):  # TLS, or Windows
        sock.sendall(b"".join((head, body)))
        return
    sent = sock.sendmsg((head, body))
    if sent < len(head):
        sock.sendall(head[sent:])
        sent = len(head)
    if sent < len(head) + len(body):
        sock.sendall(memoryview(body)[sent - len(head) :])


def send_file(sock: Socket, head: bytes, file: BinaryIO, offset: int, length: int) -> Iterator[int]:
    """Sends ``head``, then ``length`` bytes of ``file``; the number of bytes after each step, in
    all fewer if the file is shorter. Raises ``OSError``."""
    plain = isinstance(sock, socket.socket) and hasattr(os, "sendfile")  # not TLS, nor Windows
    if length <= _COPIED or not plain:
        file.seek(offset)
        while data := file.read(min(length, _PIECE)):
            send_both(sock, head, data)
            head = b""
            length -= len(data)
            yield len(data)
        return
    sock.sendall(head, getattr(socket, "MSG_MORE", 0))  # in one packet with the file's start
    while length and (sent := os.sendfile(sock.fileno(), file.fileno(), offset, length)):
        offset += sent
        length -= sent
        yield sent


def shut(sock: Socket, how: int = socket.SHUT_RDWR) -> None:
    """Ends one or both directions at once, waking a thread that waits in it."""
    with contextlib.suppress(OSError):
        sock.shutdown(how)


def reset_on_close(sock: Socket) -> None:
    """Makes ``close`` send a reset, which nobody can take for the end of a body."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("@ii", 1, 0))


class Buffers:
    """Buffers of 256 KiB for long bodies, lent to one thread at a time."""

    SIZE = 262144
    MOST = 32  # kept when nobody uses them

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._free: list[memoryview] = []

    def take(self) -> memoryview:
        with self._lock:
            if self._free:
                return self._free.pop()
        return memoryview(bytearray(self.SIZE))

    def give_back(self, buffer: memoryview) -> None:
        with self._lock:
            if len(self._free) < self.MOST:
                self._free.append(buffer)


def raise_file_limit(connections: int) -> None:
    """Lets this process have files open for so many clients, as far as the system allows it."""
    if resource is None:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 2 * connections + _OTHER_FILES  # on each side one, if all are busy
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    most = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    if (possible := connection_limit(connections)) < connections:
        log.warning(
            "limits.connections: %d may need %d open files, and %d are allowed (`ulimit -n`):"
            " no more than %d are served at once, others wait",
            connections,
            needed,
            most,
            possible,
        )


def connection_limit(wanted: int) -> int:
    """How many clients may be connected at once: ``wanted``, or what leaves a quarter of the files
    that may be open to targets, where one that is wanted is waited for."""
    if resource is None:
        return wanted
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY:
        return wanted
    return min(wanted, max(1, (files - _OTHER_FILES) * 3 // 4))
