"""TLS: contexts, certificates that change, and a socket that speaks TLS.

``TLSSocket`` keeps OpenSSL in memory and moves the bytes itself: one receive and one send a
message, and the kernel's time-outs hold, which ``ssl.SSLSocket`` would wait through.
"""

import contextlib
import logging
import os
import socket
import ssl
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pyproxy import net

log = logging.getLogger(__name__)

_RECEIVE = 32768  # bytes asked for at once: a whole record, and more
_LINGER = (socket.SOL_SOCKET, socket.SO_LINGER)
_LOOK_EVERY = 1.0  # seconds between looks whether a certificate's file has changed

MIN_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}


class NotTLS(OSError):
    """The other side speaks something else, HTTP in the clear for example."""


class TLSSocket:
    """A connected socket with TLS on it; for what uses it, a socket.

    One thread may receive while another sends. Every method raises ``OSError`` (``ssl.SSLError`` is
    one), one of ``net.TIMED_OUT`` where the socket's kernel time-outs say so.
    """

    def __init__(
        self,
        sock: socket.socket,
        context: ssl.SSLContext,
        *,
        server_side: bool = False,
        server_hostname: str | None = None,
    ) -> None:
        self.plain = sock
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side, server_hostname)
        # Protects the state of TLS. `_sending` is held from the encryption to the end of the send,
        # so that records leave in order; it is taken first.
        self._lock = threading.Lock()
        self._sending = threading.Lock()
        self._closed = False
        self._ended_here = False  # the receiving side has been shut by us
        self._pending, self._read, self._write = self._tls.pending, self._tls.read, self._tls.write
        self.unsent = b""  # encrypted, and not taken by the kernel yet

    def handshake(self, seconds: float) -> None:
        """Within ``seconds`` in all; afterwards the socket's receive time-out is to be set anew.
        Raises ``NotTLS`` if the first byte says so."""
        deadline = time.monotonic() + seconds
        first = True
        while True:
            try:
                self._tls.do_handshake()
                self._flush()
                return
            except ssl.SSLWantReadError:
                self._flush()
            except ssl.SSLError:
                with contextlib.suppress(OSError):
                    self._flush()  # the alert that says why
                raise
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError("the TLS handshake is too slow")
            net.set_receive_timeout(self.plain, left)
            data = self.plain.recv(_RECEIVE)
            if not data:
                raise ConnectionResetError("closed within the TLS handshake")
            if first and data[0] != 22:  # a handshake record (RFC 8446, 5.1)
                raise NotTLS("not TLS")
            first = False
            self._incoming.write(data)

    def _flush(self) -> None:
        if self._outgoing.pending:
            self.plain.sendall(self._outgoing.read())

    @property
    def protocol(self) -> str | None:
        """What ALPN has chosen."""
        return self._tls.selected_alpn_protocol()

    def recv(self, size: int, flags: int = 0) -> bytes:
        while True:
            if not (self.buffered or self._take_in(flags)):
                return b""
            try:
                with self._lock:
                    return self._read(size)
            except ssl.SSLWantReadError:
                self._answer()
            except ssl.SSLZeroReturnError:
                return b""

    def recv_into(self, buffer: memoryview, nbytes: int = 0, flags: int = 0) -> int:
        while True:
            if not (self.buffered or self._take_in(flags)):
                return 0
            try:
                with self._lock:
                    return self._tls.read(len(buffer), buffer)  # type: ignore[return-value]
            except ssl.SSLWantReadError:
                self._answer()
            except ssl.SSLZeroReturnError:
                return 0

    def _take_in(self, flags: int) -> bool:
        """Receives; False at an end that we have made."""
        data = self.plain.recv(_RECEIVE, flags)
        if not data and self._ended_here:
            return False
        if not data:
            # Without a word before: a truncation, for all that one can know.
            raise ConnectionResetError("closed without a TLS end")
        with self._lock:
            self._incoming.write(data)
        return True

    def _answer(self) -> None:
        """What TLS itself has to say to what came, an alert for example. It never waits: if another
        thread sends, or the kernel has no room, it goes with what is sent next."""
        if self._outgoing.pending and self._sending.acquire(blocking=False):
            try:
                with self._lock:
                    self.unsent += self._outgoing.read()
                self._send_rest()
            finally:
                self._sending.release()

    def sendall(self, data: bytes | memoryview, flags: int = 0) -> None:
        with self._sending:
            with self._lock:
                # Memory takes all at once; a write of nothing would be an error.
                if data:
                    self._write(data)
                encrypted, self.unsent = self.unsent + self._outgoing.read(), b""
            self.plain.sendall(encrypted, flags)

    def send(self, data: bytes | bytearray | memoryview) -> int:
        """As much of ``data`` as TLS takes on a socket that doesn't wait; what the kernel doesn't
        take of that is ``unsent``, and goes out with the next call. Raises ``BlockingIOError``
        while something is ``unsent``. One thread sends like this."""
        with self._sending:
            self._send_rest()
            if self.unsent:
                raise BlockingIOError
            with self._lock:
                taken = self._tls.write(data[:_RECEIVE]) if data else 0
                self.unsent = self._outgoing.read()
            self._send_rest()
        return taken

    def flush(self) -> None:
        """Sends what is ``unsent``, as far as the kernel takes it."""
        with self._sending:
            self._send_rest()

    def _send_rest(self) -> None:
        with contextlib.suppress(BlockingIOError):
            if self.unsent:
                self.unsent = self.unsent[self.plain.send(self.unsent, net.AT_ONCE) :]

    @property
    def buffered(self) -> bool:
        """There may be something to receive that has left the kernel."""
        with self._lock:
            return bool(self._incoming.pending or self._pending())

    def shutdown(self, how: int) -> None:
        """Tells the other side of the end too, where it ends the sending."""
        if how == socket.SHUT_WR:
            self.say_goodbye()
        else:
            self._ended_here = True
        self.plain.shutdown(how)

    def say_goodbye(self) -> None:
        """close_notify (RFC 8446, 6.1), once, unless another thread sends. What of it can't go
        without waiting is ``unsent``."""
        if self._closed or not self._sending.acquire(blocking=False):
            return
        self._closed = True
        try:
            with self._lock:
                # OpenSSL would look at what has come, and find data there an error for good.
                come = self._incoming.read()
                with contextlib.suppress(OSError, ValueError):
                    self._tls.unwrap()
                self._incoming.write(come)
                self.unsent += self._outgoing.read()
            with contextlib.suppress(OSError):
                self._send_rest()
        finally:
            self._sending.release()

    def finish(self) -> None:
        """Says goodbye, and waits as long as a send may until the kernel has room for that."""
        self.say_goodbye()
        if self.unsent:
            with contextlib.suppress(OSError):
                self.sendall(b"")

    def close(self) -> None:
        self.say_goodbye()
        self.plain.close()

    def fileno(self) -> int:
        return self.plain.fileno()

    def setsockopt(self, *arguments: Any) -> None:
        if arguments[:2] == _LINGER:  # ``net.reset_on_close``: a goodbye would deny the reset
            self._closed = True
        self.plain.setsockopt(*arguments)

    def getsockopt(self, *arguments: Any) -> Any:
        return self.plain.getsockopt(*arguments)

    def settimeout(self, seconds: float | None) -> None:
        self.plain.settimeout(seconds)


class Duplex:
    """A connected socket, plain or TLS, that never blocks but in ``wait``, so that one thread may
    receive while others send. Calls other than ``wait`` need a lock around them."""

    def __init__(self, sock: net.Socket) -> None:
        self._sock = sock
        self._tls = sock if isinstance(sock, TLSSocket) else None
        self._encrypted = 0  # bytes of what is to be sent that are on their way already
        sock.settimeout(0)

    def receive(self, size: int) -> bytes | None:
        """What has come; none at the end, None if there is nothing yet. Raises ``OSError``."""
        try:
            return self._sock.recv(size)
        except BlockingIOError:
            return None

    def send(self, data: bytes | bytearray) -> int:
        """How much of it has gone, perhaps nothing: the rest is to be given again. Raises
        ``OSError``."""
        if self._tls is None:
            try:
                return self._sock.send(data)
            except BlockingIOError:
                return 0
        try:
            if self._encrypted:
                self._tls.flush()
            else:
                self._encrypted = self._tls.send(bytes(data[:_RECEIVE]))
        except BlockingIOError:
            return 0
        if self._tls.unsent:
            return 0
        gone, self._encrypted = self._encrypted, 0
        return gone

    def wait(self, seconds: float, receiving: bool, sending: bool) -> None:
        """Until something can be received or sent, or an error told; ``seconds`` at most."""
        if receiving and self._tls and self._tls.buffered:
            return
        poll = net.poller()
        events = (net.POLLIN if receiving else 0) | (net.POLLOUT if sending else 0)
        poll.register(self._sock.fileno(), events)
        poll.poll(max(seconds, 0) * 1000)


def connect(sock: net.Socket, context: ssl.SSLContext, hostname: str, seconds: float) -> TLSSocket:
    """The handshake as a client, on a connected socket that is closed if it fails. Raises
    ``OSError``."""
    assert isinstance(sock, socket.socket)
    tls = TLSSocket(sock, context, server_hostname=hostname)
    try:
        tls.handshake(seconds)
    except BaseException:
        sock.close()
        raise
    return tls


Pair = tuple[str, str]  # paths of a certificate (with its chain) and its key


class ServerTLS:
    """What a listener needs: contexts for its certificates, chosen by the name the client asks for,
    and read again when their files change. Any thread."""

    def __init__(
        self,
        pairs: Sequence[Pair],
        *,
        min_version: str = "1.2",
        ciphers: str | None = None,
        client_ca: str | None = None,
        protocols: Sequence[str] = ("http/1.1",),
    ) -> None:
        """``pairs[0]`` is for clients that name nobody known; ``protocols`` are what ALPN offers.
        Raises ``ValueError``."""
        self._pairs = tuple(pairs)
        self._min_version, self._ciphers = MIN_VERSIONS[min_version], ciphers
        self._client_ca = client_ca
        self._protocols = list(protocols)
        self._stamp = self._stamps()
        self._contexts = self._load()
        # Protects the look at the files; those who don't get it go on with what there is.
        self._looking = threading.Lock()
        self._looked = time.monotonic()

    def accept(self, sock: socket.socket, seconds: float) -> TLSSocket:
        """The handshake as a server. Raises ``OSError``."""
        self._look()
        tls = TLSSocket(sock, self._contexts[""], server_side=True)
        tls.handshake(seconds)
        return tls

    def _load(self) -> dict[str, ssl.SSLContext]:
        """Contexts by name; the first stands for "" too."""
        contexts: dict[str, ssl.SSLContext] = {}
        for pair in self._pairs:
            context = self._context(pair)
            for name in ("", *_names(pair)):
                contexts.setdefault(name, context)

        def choose(tls: Any, name: str | None, _: ssl.SSLContext) -> None:
            name = (name or "").lower()
            found = contexts.get(name) or contexts.get(f"*.{name.partition('.')[2]}")
            if found:
                tls.context = found

        contexts[""].sni_callback = choose
        return contexts

    def _context(self, pair: Pair) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = self._min_version
        if self._protocols:
            context.set_alpn_protocols(self._protocols)
        try:
            if self._ciphers:
                context.set_ciphers(self._ciphers)
        except ssl.SSLError:
            raise ValueError(f"ciphers: OpenSSL knows none in {self._ciphers!r}") from None
        load_pair(context, *pair)
        if self._client_ca:
            load_authorities(context, self._client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def _stamps(self) -> list[tuple[int, int]]:
        found = []
        for path in (path for pair in self._pairs for path in pair):
            with contextlib.suppress(OSError):
                stat = os.stat(path)
                found.append((stat.st_mtime_ns, stat.st_ino))
        return found

    def _look(self) -> None:
        """Takes changed files over, if they are good."""
        now = time.monotonic()
        if now - self._looked < _LOOK_EVERY or not self._looking.acquire(blocking=False):
            return
        try:
            self._looked = now
            stamp = self._stamps()
            if stamp == self._stamp:
                return
            self._stamp = stamp
            self._contexts = self._load()
            log.warning("read the changed certificates again")
        except ValueError as error:
            log.error("the changed certificates are no good, the old ones stay: %s", error)
        finally:
            self._looking.release()


def load_pair(context: ssl.SSLContext, certificate: str, key: str) -> None:
    """Raises ``ValueError`` with the file and what is wrong with it."""
    for path in (certificate, key):
        try:
            Path(path).read_bytes()
        except OSError as error:
            raise ValueError(f"{path}: {net.reason(error)}") from None
    try:
        # Without a callback OpenSSL would ask for a key's password on the terminal.
        context.load_cert_chain(certificate, key, password="")
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise ValueError(f"{key} is not the key of {certificate}") from None
        raise ValueError(f"{certificate}, {key}: not a certificate and its key in PEM") from None


def load_authorities(context: ssl.SSLContext, path: str) -> None:
    """Raises ``ValueError``."""
    try:
        context.load_verify_locations(path)
    except ssl.SSLError:
        raise ValueError(f"{path}: not certificates in PEM") from None
    except OSError as error:
        raise ValueError(f"{path}: {net.reason(error)}") from None


def _names(pair: Pair) -> list[str]:
    """The names in a certificate: a handshake with it, in memory, since that is where Python tells
    them. None, with a warning, for one that isn't valid now."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # it is its own authority
    client.load_verify_locations(pair[0])
    plain = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    plain.load_cert_chain(*pair, password="")
    here, there = ssl.MemoryBIO(), ssl.MemoryBIO()
    asking = client.wrap_bio(here, there)
    answering = plain.wrap_bio(there, here, server_side=True)
    try:
        for side in (asking, answering, asking, answering):
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()
        found = asking.getpeercert() or {}
    except (ssl.SSLError, ValueError) as error:
        said = getattr(error, "verify_message", "") or str(error)
        log.warning("%s: %s", pair[0], said)
        return []
    names: Any = found.get("subjectAltName", ())
    return [str(name).lower() for kind, name in names if kind == "DNS"]


def client_context(
    *, verify: bool, ca: str | None, certificate: str | None, key: str | None
) -> ssl.SSLContext:
    """For connections to targets. Raises ``ValueError``."""
    context = ssl.create_default_context()
    if ca:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        load_authorities(context, ca)
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if certificate:
        load_pair(context, certificate, key or certificate)
    return context
