"""TLS on both sides: listeners, certificates that change, targets, and what isn't TLS."""

import contextlib
import functools
import inspect
import os
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyproxy import Proxy, net
from pyproxy.errors import SettingsError
from pyproxy.http.message import Peer
from pyproxy.http.upload import Upload
from pyproxy.http.upstream import TargetConnection, Upstream
from pyproxy.lab.certificate import CertificateError, make_certificate
from pyproxy.sections import TargetTimeouts
from pyproxy.settings import parse
from pyproxy.tcp.client_hello import Incomplete, server_name
from pyproxy.tls import ServerTLS, TLSSocket
from tests.programs import ROOT, program, run
from tests.support import (
    DEADLINE,
    Message,
    RawTarget,
    Wire,
    answer,
    ask,
    eventually,
    get,
    held_port,
    lettered,
    letters,
    make_target,
    replying,
)

pytest.importorskip("cryptography", reason="makes the certificates (extra tls-tools)")

GET = b"GET / HTTP/1.1\r\nHost: test\r\n\r\n"


@functools.cache
def _pair(names: tuple[str, ...], serial: int, folder: Path) -> tuple[str, str]:
    stem = folder / f"{names[0].replace('*', 'any')}-{serial}"
    paths = stem.with_suffix(".crt"), stem.with_suffix(".key")
    make_certificate(list(names), *paths)
    return str(paths[0]), str(paths[1])


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("certificates")


@pytest.fixture
def local(folder: Path) -> tuple[str, str]:
    """A certificate and its key for 127.0.0.1 and localhost."""
    return _pair(("localhost", "127.0.0.1"), 1, folder)


def over(pair: tuple[str, str], **more: Any) -> dict[str, Any]:
    return {
        "listen": "https://127.0.0.1:0",
        "tls": {"certificate": pair[0], "key": pair[1], **more},
    }


def trusting(pair: tuple[str, str]) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=pair[0])
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context


def connect(url: str, context: ssl.SSLContext, name: str = "localhost") -> Wire:
    plain = socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), DEADLINE)
    try:
        return Wire(context.wrap_socket(plain, server_hostname=name))
    except BaseException:
        plain.close()
        raise


def fetch(url: str, context: ssl.SSLContext, name: str = "localhost") -> Message:
    with connect(url, context, name) as wire:
        wire.send(GET)
        return wire.read_message()


def shown(url: str, context: ssl.SSLContext, name: str) -> set[str]:
    """The names in the certificate that is shown to who asks for ``name``."""
    context.check_hostname = False
    with connect(url, context, name) as wire:
        assert isinstance(wire.sock, ssl.SSLSocket)
        found: Any = wire.sock.getpeercert() or {}
        return {value for _, value in found["subjectAltName"]}


class TLSTarget(RawTarget):
    """A target that speaks TLS and answers with a letter."""

    def __init__(self, letter: str, context: ssl.SSLContext, version: str = "1.1") -> None:
        def serve(target: RawTarget, wire: Wire) -> None:
            wire.sock = context.wrap_socket(wire.sock, server_side=True)
            try:
                while True:
                    target.requests.append(wire.read_message())
                    wire.send(answer(letter * 100000))
            finally:
                wire.sock.close()

        super().__init__(serve)


def server_context(pair: tuple[str, str]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*pair)
    return context


def secure(target: RawTarget) -> str:
    return target.url.replace("http:", "https:")


# To clients


def test_requests_come_over_tls_and_targets_hear_of_it(local: tuple[str, str]) -> None:
    with lettered("a") as a, Proxy(targets=[a.url], **over(local)) as proxy:
        assert proxy.url.startswith("https://127.0.0.1:")
        with connect(proxy.url, trusting(local)) as wire:
            for _ in range(3):
                wire.send(GET)
                assert wire.read_message().body == b"a"
        assert a.requests[0].get("X-Forwarded-Proto") == "https"
        assert "proto=https" in (a.requests[0].get("Forwarded") or "")


@pytest.mark.parametrize("size", [0, 1, 16384, 65537, 3_000_000])
def test_bodies_of_every_size_go_both_ways(local: tuple[str, str], size: int) -> None:
    body = os.urandom(size)
    echo = replying(lambda request: answer(request.body))
    with (
        RawTarget(echo) as target,
        Proxy(targets=[target.url], **over(local)) as proxy,
        connect(proxy.url, trusting(local)) as wire,
    ):
        for _ in range(2):
            wire.send(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % size)
            wire.send(body)
            assert wire.read_message().body == body


@pytest.mark.parametrize(
    ("version", "least", "works"),
    [
        (ssl.TLSVersion.TLSv1_2, "1.2", True),
        (ssl.TLSVersion.TLSv1_3, "1.2", True),
        (ssl.TLSVersion.TLSv1_2, "1.3", False),
    ],
)
def test_the_oldest_version_is_as_set(
    local: tuple[str, str], version: ssl.TLSVersion, least: str, works: bool
) -> None:
    context = trusting(local)
    context.maximum_version = version
    with lettered("a") as a, Proxy(targets=[a.url], **over(local, min_version=least)) as proxy:
        if works:
            assert fetch(proxy.url, context).body == b"a"
        else:
            with pytest.raises(ssl.SSLError, match="PROTOCOL_VERSION"):
                fetch(proxy.url, context)
        assert fetch(proxy.url, trusting(local)).body == b"a", "the next one is served"


def test_ciphers_are_as_set(local: tuple[str, str]) -> None:
    context = trusting(local)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    ciphers = "ECDHE-ECDSA-CHACHA20-POLY1305"
    with (
        lettered("a") as a,
        Proxy(targets=[a.url], **over(local, ciphers=ciphers)) as proxy,
        connect(proxy.url, context) as wire,
    ):
        assert isinstance(wire.sock, ssl.SSLSocket)
        assert (wire.sock.cipher() or ("",))[0] == ciphers


def test_the_certificate_is_chosen_by_the_name_asked_for(folder: Path) -> None:
    pairs = [_pair((name,), 1, folder) for name in ("first.test", "second.test", "*.wild.test")]
    context = ssl.create_default_context()
    for pair in pairs:
        context.load_verify_locations(pair[0])
    more = [{"certificate": pair[0], "key": pair[1]} for pair in pairs[1:]]
    with lettered("a") as a, Proxy(targets=[a.url], **over(pairs[0], certificates=more)) as proxy:
        found = {
            name: shown(proxy.url, context, name)
            for name in ("first.test", "SECOND.test", "a.wild.test", "a.b.wild.test", "no.test")
        }
    assert found == {
        "first.test": {"first.test"},
        "SECOND.test": {"second.test"},
        "a.wild.test": {"*.wild.test"},
        "a.b.wild.test": {"first.test"},
        "no.test": {"first.test"},
    }


def test_changed_certificates_are_read_again_and_bad_ones_are_not(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def install(pair: tuple[str, str]) -> None:
        for path, name in zip(pair, ("crt", "key"), strict=True):
            (tmp_path / "new").write_bytes(Path(path).read_bytes())
            (tmp_path / "new").rename(tmp_path / name)

    old, new = (_pair((name,), 1, folder) for name in ("old.test", "new.test"))
    context = ssl.create_default_context()
    context.load_verify_locations(old[0])
    context.load_verify_locations(new[0])
    install(old)
    files = str(tmp_path / "crt"), str(tmp_path / "key")
    with (
        lettered("a") as a,
        Proxy(targets=[a.url], **over(files)) as proxy,
        connect(proxy.url, trusting(old), "old.test") as kept,
    ):
        (tmp_path / "crt").write_text("nonsense")

        def ask_again() -> bool:
            assert shown(proxy.url, context, "old.test") == {"old.test"}
            return "no good" in caplog.text

        eventually(ask_again)
        install(new)
        eventually(lambda: shown(proxy.url, context, "new.test") == {"new.test"})
        kept.send(GET)
        assert kept.read_message().body == b"a", "open connections go on"
    assert caplog.text.count("no good") == 1


def test_a_hundred_stalled_handshakes_delay_nobody(local: tuple[str, str]) -> None:
    with (
        lettered("a") as a,
        Proxy(targets=[a.url], timeouts={"header": 4 * DEADLINE}, **over(local)) as proxy,
        contextlib.ExitStack() as stack,
    ):
        stalled = [stack.enter_context(stall(proxy.url, at)) for at in range(100)]
        assert fetch(proxy.url, trusting(local)).body == b"a"
        assert not any(net.readable(sock) for sock in stalled), "they are still there"


def stall(url: str, at: int) -> socket.socket:
    """A client that says no more than a part of a hello."""
    sock = socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), DEADLINE)
    sock.send(b"\x16\x03\x01\x02\x00\x01\x00"[: at % 8])
    return sock


def test_stalled_handshakes_end_in_time(local: tuple[str, str]) -> None:
    with (
        Proxy(targets=[8001], timeouts={"header": 0.5}, **over(local)) as proxy,
        contextlib.ExitStack() as stack,
    ):
        stalled = [stack.enter_context(stall(proxy.url, at)) for at in range(8)]
        assert all(sock.recv(100) == b"" for sock in stalled)


@pytest.mark.parametrize(
    ("garbage", "answered"),
    [
        (GET, True),
        (b"\x80\x00\x00", True),
        (b"\x16\x03\x01\x00\x05hello", False),
        (b"\x16\x03\x01\xff\xff" + b"x" * 70000, False),
        (b"", False),
    ],
)
def test_what_is_not_tls_is_told_so(local: tuple[str, str], garbage: bytes, answered: bool) -> None:
    with lettered("a") as a, Proxy(targets=[a.url], **over(local)) as proxy:
        with socket.create_connection(("127.0.0.1", int(proxy.url.rpartition(":")[2]))) as sock:
            sock.settimeout(DEADLINE)
            with contextlib.suppress(OSError):  # it may have been closed already
                sock.sendall(garbage)
                sock.shutdown(socket.SHUT_WR)
            got = b""
            with contextlib.suppress(ConnectionError):
                while data := sock.recv(65536):
                    got += data
        assert got.startswith(b"HTTP/1.1 400 Bad Request\r\n") is answered
        assert (b"this port speaks https" in got) is answered
        assert fetch(proxy.url, trusting(local)).body == b"a"
        eventually(lambda: proxy.connections == 0)


def test_clients_need_a_certificate_where_it_is_said(local: tuple[str, str], folder: Path) -> None:
    mine = _pair(("client.test",), 1, folder)
    with lettered("a") as a, Proxy(targets=[a.url], **over(local, client_ca=mine[0])) as proxy:
        with pytest.raises((ssl.SSLError, ConnectionError, EOFError)):
            fetch(proxy.url, trusting(local))
        context = trusting(local)
        context.load_cert_chain(*mine)
        assert fetch(proxy.url, context).body == b"a"


def test_the_end_is_said_in_tls(local: tuple[str, str]) -> None:
    close = b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
    with (
        lettered("a") as a,
        Proxy(targets=[a.url], **over(local)) as proxy,
        connect(proxy.url, trusting(local)) as wire,
    ):
        wire.send(close)
        assert wire.read_to_end().endswith(b"a"), "a missing close_notify would raise"


@pytest.mark.parametrize("full", [False, True])
def test_the_end_is_said_in_tls_when_there_is_room_for_it(
    local: tuple[str, str], full: bool
) -> None:
    here, there = socket.socketpair()
    there.settimeout(DEADLINE)
    with here, there, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(ServerTLS([local]).accept, here, DEADLINE)
        context = trusting(local)
        with context.wrap_socket(
            there, server_hostname="localhost", suppress_ragged_eofs=False
        ) as wrapped:
            server = waiting.result()
            sent = server.send(b"x" * 1000)
            here.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while full:
                    sent += server.send(b"x" * 16384)
            here.setblocking(True)

            def end() -> None:
                server.finish()
                server.close()

            ended = pool.submit(end)
            eventually(lambda: server._closed)
            received = 0
            while data := wrapped.recv(65536):
                received += len(data)
            assert received == sent
            ended.result()


def test_the_end_is_said_in_tls_while_an_upload_comes_to_its_own(
    local: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread that has sent the body to the target may end after the answer."""

    def run(upload: Upload) -> None:
        end(upload)
        time.sleep(0.3)

    end = Upload._run
    monkeypatch.setattr(Upload, "_run", run)

    def serve(target: RawTarget, wire: Wire) -> None:
        target.requests.append(wire.read_message())
        wire.send(b"HTTP/1.1 200 OK\r\n\r\nwhole")

    with (
        RawTarget(serve) as target,
        Proxy(targets=[target.url], retry={"max_body": 10}, **over(local)) as proxy,
        connect(proxy.url, trusting(local)) as wire,
    ):
        assert isinstance(wire.sock, ssl.SSLSocket)
        wire.sock.suppress_ragged_eofs = False  # type: ignore[attr-defined]
        wire.send(b"POST / HTTP/1.0\r\nContent-Length: 1000\r\n\r\n")
        wire.send(bytes(1000))
        assert wire.read_to_end().endswith(b"whole")


def test_what_tls_holds_behind_the_last_request_does_not_end_its_answer(
    local: tuple[str, str],
) -> None:
    """A record with the end of a body in it, and more."""
    with (
        RawTarget(replying(answer(b"x" * 2_000_000))) as target,
        Proxy(targets=[target.url], **over(local)) as proxy,
        socket.socket() as plain,
    ):
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        plain.connect(("127.0.0.1", int(proxy.url.rpartition(":")[2])))
        with Wire(trusting(local).wrap_socket(plain, server_hostname="localhost")) as wire:
            wire.send(
                b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nConnection: close\r\n\r\n"
            )
            for _ in range(10):
                wire.send(b"x" * 16000)
            assert len(wire.read_message().body) == 2_000_000
            assert wire.read_to_end() == b""


def test_idle_tls_connections_are_ended_on_drain(local: tuple[str, str]) -> None:
    with lettered("a") as a, Proxy(targets=[a.url], **over(local)) as proxy:
        wire = connect(proxy.url, trusting(local))
        wire.send(GET)
        wire.read_message()
    with wire:
        assert wire.at_end()


def test_files_go_out_over_tls(local: tuple[str, str], tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(os.urandom(1_000_000))
    with (
        Proxy(routes=[{"files": str(tmp_path)}], **over(local)) as proxy,
        connect(proxy.url, trusting(local)) as wire,
    ):
        wire.send(GET.replace(b"/ ", b"/big "))
        assert wire.read_message().body == (tmp_path / "big").read_bytes()


def test_upgrades_go_over_tls(local: tuple[str, str]) -> None:
    size = 5_000_000

    def echo(target: RawTarget, wire: Wire) -> None:
        wire.read_message()
        wire.send(b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n")
        wire.send(wire.read_exactly(size))

    ask = GET[:-2] + b"Connection: upgrade\r\nUpgrade: echo\r\n\r\n"
    with (
        RawTarget(echo) as target,
        Proxy(targets=[target.url], **over(local)) as proxy,
        connect(proxy.url, trusting(local)) as wire,
    ):
        wire.send(ask)
        assert wire.read_head().status == 101
        wire.send(bytes(size))
        assert wire.read_to_end() == bytes(size), "and its end is said in TLS"


# Redirect


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_clear_text_is_sent_to_https(local: tuple[str, str], status: int) -> None:
    plain = {"url": "http://127.0.0.1:0", "redirect": "https", "redirect_status": status}
    both = {**over(local), "listen": [plain, "https://127.0.0.1:0"]}
    with lettered("a") as a, Proxy(targets=[a.url], **both) as proxy:
        https = next(url for url in proxy.urls if url.startswith("https:"))
        http = next(url for url in proxy.urls if url.startswith("http:"))
        for host, back in (("e.com:80", "e.com"), ("[::1]:80", "[::1]")):
            found = ask(http, f"GET /a?b=c HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            port = https.rpartition(":")[2]
            assert (found.status, found.get("Location")) == (status, f"https://{back}:{port}/a?b=c")
        nameless = ask(http, b"GET / HTTP/1.0\r\n\r\n")
        assert nameless.status == 400


# To targets


def test_targets_over_tls_are_verified(local: tuple[str, str], folder: Path) -> None:
    other = _pair(("other.test",), 1, folder)
    with (
        TLSTarget("a", server_context(local)) as good,
        TLSTarget("x", server_context(other)) as bad,
        Proxy(
            targets=[secure(bad), secure(good)],
            target_tls={"ca": local[0]},
            sleeping=0.05,
        ) as proxy,
    ):
        assert [get(proxy.url).body for _ in range(4)] == [b"a" * 100000] * 4
        assert [one.url for one in proxy.pool.evicted()] == [secure(bad)]
        eventually(proxy.history)  # it is told after the change
        assert "certificate: " in proxy.history()[0].reason
        proxy.pool.evict(proxy.pool.targets[1], "by the test")
        eventually(lambda: len(proxy.pool.live) == 1)
        assert proxy.pool.live[0].url == secure(good), "probes verify too"
        assert bad.requests == []


def test_the_name_in_the_certificate_counts(folder: Path) -> None:
    other = _pair(("other.test",), 1, folder)
    with TLSTarget("x", server_context(other)) as target:
        with Proxy(targets=[secure(target)], target_tls={"ca": other[0]}, sleeping=60) as proxy:
            assert get(proxy.url).status == 503
        with Proxy(targets=[secure(target)], target_tls={"verify": False}) as proxy:
            assert get(proxy.url).body == b"x" * 100000


def test_a_self_signed_target_is_refused_unless_it_is_said(local: tuple[str, str]) -> None:
    with (
        TLSTarget("a", server_context(local)) as target,
        Proxy(targets=[secure(target)], sleeping=60) as proxy,
    ):
        assert get(proxy.url).status == 503
        eventually(proxy.history)  # it is told after the change
        assert "self-signed" in proxy.history()[0].reason


def test_targets_can_ask_for_a_certificate(local: tuple[str, str], folder: Path) -> None:
    mine = _pair(("proxy.test",), 1, folder)
    context = server_context(local)
    context.load_verify_locations(mine[0])
    context.verify_mode = ssl.CERT_REQUIRED
    shows = {"ca": local[0], "certificate": mine[0], "key": mine[1]}
    with TLSTarget("a", context) as target:
        with Proxy(targets=[secure(target)], target_tls=shows) as proxy:
            assert get(proxy.url).status == 200
        with Proxy(targets=[secure(target)], target_tls={"ca": local[0]}) as proxy:
            assert get(proxy.url).status in (502, 503)


def test_a_target_that_does_not_speak_tls_is_evicted() -> None:
    with letters("ab") as [a, b], Proxy(targets=[secure(a), b.url], sleeping=60) as proxy:
        assert [get(proxy.url).body for _ in range(3)] == [b"b"] * 3
        assert proxy.pool.evicted()[0].url == secure(a)


def test_a_target_that_stalls_in_the_handshake_costs_the_connect_timeout() -> None:
    def stall(target: RawTarget, wire: Wire) -> None:
        wire.read_to_end()

    with (
        RawTarget(stall) as slow,
        lettered("b") as b,
        Proxy(targets=[secure(slow), b.url], timeouts={"connect": 0.3}, sleeping=60) as proxy,
    ):
        began = time.monotonic()
        assert get(proxy.url).body == b"b"
        assert 0.2 < time.monotonic() - began < 4.5  # 5 without being told


@pytest.mark.parametrize("part", ["head", "body", "body into a buffer"])
def test_a_target_whose_record_drips_takes_no_more_stack_with_each_drop(
    part: str, local: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyproxy.http.upstream._TICK", 0.001)
    depths: list[int] = []

    def watch() -> float:
        depths.append(len(inspect.stack(0)))
        return time.monotonic()

    here, there = socket.socketpair()
    with ThreadPoolExecutor(1) as pool, here, there:
        waiting = pool.submit(ServerTLS([local]).accept, there, DEADLINE)
        theirs = TLSSocket(here, trusting(local), server_hostname="localhost")
        theirs.handshake(DEADLINE)
        waiting.result()._tls.write(data := answer(b"x"))
        record = waiting.result()._outgoing.read()
        upstream = Upstream(make_target(1), TargetTimeouts())
        connection = TargetConnection(theirs, upstream)
        net.set_receive_timeout(theirs, 0.001)

        def wait_again() -> None:
            known = len(depths)
            eventually(lambda: len(depths) > known)

        def drip() -> None:
            for drop in range(len(record)):
                if drop % 10 == 0:
                    wait_again()
                there.sendall(record[drop : drop + 1])

        dripping = pool.submit(drip)
        if part == "head":
            assert connection.receive_head(watch)[1] == b"x"
        elif part == "body":
            assert connection.receive(watch) == data
        else:
            assert connection.receive_into(memoryview(bytearray(1000)), watch) == len(data)
        dripping.result()
    assert len(depths) >= len(record) // 10
    assert len({*depths}) == 1


def test_a_body_that_ends_without_a_word_is_truncated(local: tuple[str, str]) -> None:
    context = server_context(local)

    def serve(target: RawTarget, wire: Wire) -> None:
        tls = context.wrap_socket(wire.sock, server_side=True, suppress_ragged_eofs=False)
        tls.recv(65536)
        tls.sendall(b"HTTP/1.1 200 OK\r\n\r\nhalf")
        socket.socket(fileno=tls.detach()).close()  # the connection ends, and TLS says nothing

    with (
        RawTarget(serve) as target,
        Proxy(targets=[secure(target)], target_tls={"ca": local[0]}) as proxy,
        pytest.raises((EOFError, ConnectionError, ValueError)),
    ):
        get(proxy.url)


class InMemory:
    """TLS as a server with its bytes in our hands: what is written goes out when it is told to."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        self._sock = sock
        self._incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._incoming, self.outgoing, server_side=True)
        self._until_done(self.tls.do_handshake)

    def _until_done(self, call: Callable[[], Any]) -> Any:
        while True:
            try:
                done = call()
                self.flush()
                return done
            except ssl.SSLWantReadError:
                self.flush()
                data = self._sock.recv(65536)
                if not data:
                    raise EOFError from None
                self._incoming.write(data)

    def read(self) -> bytes:
        return bytes(self._until_done(lambda: self.tls.read(65536)))

    def flush(self) -> None:
        self._sock.sendall(self.outgoing.read())


def test_a_head_in_several_records_that_come_at_once_is_read(local: tuple[str, str]) -> None:
    """The rest of it is with TLS, where poll sees nothing, and the target then waits."""
    context, ended = server_context(local), threading.Event()

    def serve(target: RawTarget, wire: Wire) -> None:
        memory = InMemory(wire.sock, context)
        memory.read()
        for part in (b"HTTP/1.1 200 OK\r\n", b"Content-Length: 1\r\n", b"\r\na"):
            memory.tls.write(part)
        memory.flush()
        ended.wait(2 * DEADLINE)

    with (
        RawTarget(serve) as target,
        Proxy(
            targets=[secure(target)],
            target_tls={"ca": local[0]},
            timeouts={"read": 2 * DEADLINE},
        ) as proxy,
    ):
        assert get(proxy.url).body == b"a"
        ended.set()


def test_checks_leave_unverified_targets_unverified(local: tuple[str, str]) -> None:
    with (
        TLSTarget("a", server_context(local)) as target,
        Proxy(
            targets=[secure(target)],
            target_tls={"verify": False},
            health={"interval": 0.05, "fall": 1},
        ) as proxy,
    ):
        eventually(lambda: len(target.requests) > 3)
        assert get(proxy.url).status == 200
        assert not proxy.history()


# TCP mode


def greeting(name: bytes, context: ssl.SSLContext | None = None) -> RawTarget:
    """A target that says its name, then sends all back; over TLS with a ``context``."""

    def serve(target: RawTarget, wire: Wire) -> None:
        if context:
            wire.sock = context.wrap_socket(wire.sock, server_side=True)
        with wire.sock:
            wire.send(name)
            while data := wire.sock.recv(65536):
                wire.send(data)

    return RawTarget(serve)


def tcp_url(proxy: Proxy) -> str:
    return next(url for url in proxy.urls if url.startswith("tcp:"))


def test_a_tcp_address_can_speak_tls_for_plain_targets(local: tuple[str, str]) -> None:
    size = 5_000_000
    with greeting(b"a") as target:
        entry = {"listen": 0, "targets": [target.port], "tls": True}
        pair = {"certificate": local[0], "key": local[1]}
        with Proxy(tcp=[entry], tls=pair, timeouts={"header": 3}) as proxy:
            with connect(tcp_url(proxy), trusting(local)) as wire:
                assert wire.read_exactly(1) == b"a"
                sending = bytes(size)
                for at in range(0, size, 100_000):
                    wire.send(sending[at : at + 100_000])
                    assert len(wire.read_exactly(100_000)) == 100_000
            with socket.create_connection(
                ("127.0.0.1", int(tcp_url(proxy).rpartition(":")[2]))
            ) as s:
                s.settimeout(DEADLINE)
                s.sendall(b"plain text\n")
                with contextlib.suppress(ConnectionError):
                    assert s.recv(100) == b""
            eventually(lambda: proxy.connections == 0)
            assert target.connections == 1, "nobody is connected before the handshake"


def test_tls_passes_untouched_to_who_has_the_name(folder: Path) -> None:
    pairs = {name: _pair((name,), 1, folder) for name in ("a.test", "*.b.test")}
    context = ssl.create_default_context()
    for pair in pairs.values():
        context.load_verify_locations(pair[0])
    with (
        greeting(b"A", server_context(pairs["a.test"])) as a,
        greeting(b"B", server_context(pairs["*.b.test"])) as b,
        greeting(b"other") as other,
        held_port() as port,
    ):
        listen = f"127.0.0.1:{port}"
        entries = [
            {"listen": listen, "server_name": "a.test", "targets": [a.port]},
            {"listen": listen, "server_name": "*.b.test", "targets": [b.port]},
            {"listen": listen, "targets": [other.port]},
        ]
        with Proxy(tcp=entries, timeouts={"header": 1.5}) as proxy:
            assert len(proxy.urls) == 1
            for name, says in (("a.test", b"A"), ("A.test", b"A"), ("x.b.test", b"B")):
                with connect(tcp_url(proxy), context, name) as wire:
                    assert wire.read_exactly(1) == says
                    wire.send(b"hello")
                    assert wire.read_exactly(5) == b"hello"
            for start in (b"no TLS", bytes.fromhex("160301000501000001ff")):
                with Wire(socket.create_connection(("127.0.0.1", tcp_port(proxy)))) as wire:
                    wire.send(start)
                    assert wire.read_exactly(5 + len(start)) == b"other" + start
            with Wire(socket.create_connection(("127.0.0.1", tcp_port(proxy)))) as slow:
                slow.send(bytes.fromhex("1603010200010001fc0303"))
                assert slow.at_end(), "half a hello has timeouts.header to become whole"
        with Proxy(tcp=entries[:1]) as proxy, pytest.raises((ssl.SSLError, ConnectionError)):
            connect(tcp_url(proxy), context, "x.b.test")


def tcp_port(proxy: Proxy) -> int:
    return int(tcp_url(proxy).rpartition(":")[2])


@functools.cache
def hello(name: str | None) -> bytes:
    """What a real client says first."""
    context = ssl.create_default_context()
    context.check_hostname = name is not None
    sent = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), sent, server_hostname=name)
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return sent.read()


@pytest.mark.parametrize("name", ["example.com", "a" * 63 + ".test", "EXAMPLE.com", None])
def test_the_name_is_read_from_a_hello_however_it_comes(name: str | None) -> None:
    data = hello(name)
    wanted = name and name.lower()
    assert server_name(data) == wanted
    assert server_name(data + b"more") == wanted
    for end in range(len(data)):
        with pytest.raises(Incomplete):
            server_name(data[:end])
    body, records = data[5:], b""
    for at in range(0, len(body), 7):  # the same in many records
        piece = body[at : at + 7]
        records += b"\x16\x03\x01" + len(piece).to_bytes(2, "big") + piece
    assert server_name(records) == wanted


@given(st.binary(max_size=300), st.integers(0, 500), st.integers(0, 255))
def test_a_damaged_hello_names_somebody_or_nobody(noise: bytes, at: int, byte: int) -> None:
    data = bytearray(hello("example.com"))
    data[at % len(data)] = byte
    for damaged in (bytes(data), noise, b"\x16\x03\x01" + noise):
        with contextlib.suppress(Incomplete):
            server_name(damaged)


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ([{"tls": True, "server_name": "a.test"}], "TLS that ends here isn't passed on"),
        ([{"tls": True}, {"server_name": "a.test"}], "don't agree with"),
        ([{"server_name": "a.test"}, {"server_name": "a.test"}], "stands here twice"),
        ([{"tls": True}], "tls.certificate: an https address needs it"),
        ([{"server_name": "a b"}], "expected a host like"),
    ],
)
def test_what_tcp_entries_cannot_have_is_told(entries: list[dict[str, Any]], said: str) -> None:
    tcp = [{"listen": "127.0.0.1:5433", "targets": [5432], **one} for one in entries]
    with pytest.raises(SettingsError, match=said):
        parse({"tcp": tcp})


# Settings and commands


def test_an_https_address_needs_a_certificate() -> None:
    with pytest.raises(SettingsError, match=r"tls\.certificate: an https address needs it"):
        parse({"listen": "https://127.0.0.1:8443", "targets": [1]})
    with pytest.raises(SettingsError, match="listen: no https address to redirect to"):
        parse({"listen": {"url": "http://127.0.0.1:1", "redirect": "https"}, "targets": [1]})


def test_bad_certificates_are_told_at_the_start(local: tuple[str, str], folder: Path) -> None:
    other = _pair(("other.test",), 1, folder)
    nonsense = folder / "nonsense.pem"
    nonsense.write_text("nonsense")
    for pair, said in (
        ((local[0], other[1]), f"{other[1]} is not the key of {local[0]}"),
        ((str(nonsense), local[1]), "not a certificate and its key in PEM"),
        (("no/such.pem", local[1]), "no/such.pem: no such file or directory"),
    ):
        with pytest.raises(SettingsError, match=said):
            Proxy(targets=[1], **over(pair))
    for wrong in ({"ciphers": "NONE-SUCH"}, {"client_ca": str(nonsense)}, {"client_ca": "no/such"}):
        with pytest.raises(SettingsError, match=r"^tls: "):
            Proxy(targets=[1], **over(local, **wrong))
    with pytest.raises(SettingsError, match=r"^target_tls: "):
        Proxy(targets=["https://localhost:1"], target_tls={"ca": "no/such"})


def test_the_program_serves_https_with_a_certificate_that_it_has_made(tmp_path: Path) -> None:
    made = run("certificate", "localhost", "127.0.0.1", cwd=tmp_path)
    assert (made.returncode, made.stderr) == (0, "")
    assert (tmp_path / "key.pem").stat().st_mode & 0o077 == 0
    again = run("certificate", "localhost", cwd=tmp_path)
    assert again.returncode == 1
    assert again.stderr == "key.pem: it exists already, and is not overwritten\n"
    pair = str(tmp_path / "cert.pem"), str(tmp_path / "key.pem")
    with (
        held_port() as dead,
        program(
            *("--listen", "https://127.0.0.1:0", "--targets", str(dead)),
            *("--tls.certificate", pair[0], "--tls.key", pair[1]),
        ) as proxy,
    ):
        url = proxy.wait_for(r"listens on (\S+)")[1]
        assert fetch(url, trusting(pair)).status == 503
        curl = ["curl", "-s", "--cacert", pair[0], url.replace("127.0.0.1", "localhost")]
        with contextlib.suppress(FileNotFoundError):
            done = subprocess.run(curl, capture_output=True, timeout=DEADLINE)
            assert done.stdout == b"All servers is off"
        assert proxy.stop() == 0


def test_without_the_package_that_makes_certificates_a_remedy_is_told(tmp_path: Path) -> None:
    (tmp_path / "cryptography.py").write_text("raise ImportError\n")
    made = run("certificate", "localhost", cwd=tmp_path, env={"PYTHONPATH": f"{tmp_path}:{ROOT}"})
    assert (made.returncode, made.stdout) == (1, "")
    assert made.stderr == (
        "this needs the package cryptography: pip install 'pyproxy-lb[tls-tools]'\n"
    )


def test_names_that_no_certificate_can_have_are_told(tmp_path: Path) -> None:
    with pytest.raises(CertificateError):
        make_certificate(["bücher"], tmp_path / "c", tmp_path / "k")


def test_the_scheme_is_part_of_who_asks() -> None:
    assert Peer("192.0.2.1", False, "https") != Peer("192.0.2.1")


@pytest.fixture(autouse=True)
def no_leaked_descriptors() -> Iterator[None]:
    """What fails in a handshake leaves nothing open."""
    folder = "/proc/self/fd"
    if not os.path.isdir(folder):
        yield
        return
    before = len(os.listdir(folder))
    yield
    eventually(lambda: len(os.listdir(folder)) <= before)
