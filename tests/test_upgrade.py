"""Upgrade: WebSocket and any other protocol behind a 101."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from pyproxy import Proxy
from tests.support import (
    DEADLINE,
    RawTarget,
    Wire,
    answer,
    client,
    closed_port,
    eventually,
    get,
    lettered,
    replying,
)

websockets = pytest.importorskip("websockets")
from websockets.exceptions import ConnectionClosed, InvalidStatus  # noqa: E402
from websockets.sync.client import ClientConnection, connect  # noqa: E402
from websockets.sync.server import ServerConnection, serve  # noqa: E402
from websockets.typing import Subprotocol  # noqa: E402

ASK = b"GET /chat HTTP/1.1\r\nHost: h\r\nConnection: keep-alive, Upgrade\r\nUpgrade: echo/1\r\n\r\n"
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo/1\r\n\r\n"


def echo(target: RawTarget, wire: Wire) -> None:
    """Switches, then sends all back until the client ends; then says goodbye."""
    target.requests.append(wire.read_message())
    wire.send(SWITCH)
    with contextlib.suppress(OSError):
        while data := wire.buffer or wire.sock.recv(65536):
            wire.buffer = b""
            wire.send(data)
        wire.send(b"goodbye")


@contextlib.contextmanager
def switched(url: str) -> Iterator[Wire]:
    with client(url) as wire:
        wire.send(ASK)
        assert wire.read_head().status == 101
        yield wire


# WebSocket, with a library on both sides


def websocket_echo(connection: ServerConnection) -> None:
    for message in connection:
        if message == "close":
            connection.close(4321, "as asked")
        else:
            connection.send(message)


@pytest.fixture
def websocket_target() -> Iterator[str]:
    with serve(
        websocket_echo, "127.0.0.1", 0, max_size=None, subprotocols=[Subprotocol("chat")]
    ) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.socket.getsockname()[1]}"
        server.shutdown()
        thread.join()


def ws(proxy: Proxy) -> ClientConnection:
    url = proxy.url.replace("http:", "ws:") + "/chat?x=1"
    return connect(url, max_size=None, subprotocols=[Subprotocol("chat")])


def test_messages_of_every_kind_go_both_ways(websocket_target: str) -> None:
    with Proxy(targets=[websocket_target]) as proxy:
        with ws(proxy) as socket:
            assert socket.subprotocol == "chat"
            for message in ("text", b"binary", "", b"\x00" * 1048576, "я" * 70000):
                socket.send(message)
                assert socket.recv(DEADLINE) == message
            assert socket.ping().wait(DEADLINE)
            socket.send("close")
            with pytest.raises(ConnectionClosed) as closed:
                socket.recv(DEADLINE)
            assert closed.value.rcvd
            assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4321, "as asked")
        eventually(lambda: proxy.connections == 0)


def test_what_the_client_closes_is_closed_with_its_code(websocket_target: str) -> None:
    with Proxy(targets=[websocket_target]) as proxy:
        with ws(proxy) as socket:
            socket.close(4000, "enough")
            assert socket.close_code == 4000
        eventually(lambda: proxy.pool.targets[0].in_flight == 0)


def test_a_websocket_fails_over_like_any_request(websocket_target: str) -> None:
    dead = f"http://127.0.0.1:{closed_port()}"
    with Proxy(targets=[dead, websocket_target], sleeping=60) as proxy:
        for _ in range(3):
            with ws(proxy) as socket:
                socket.send("x")
                assert socket.recv(DEADLINE) == "x"
        assert len(proxy.pool.evicted()) == 1


def test_a_refused_handshake_reaches_the_client() -> None:
    refusal = answer(
        "no", "Upgrade: websocket", "Connection: upgrade", status="426 Upgrade Required"
    )
    with RawTarget(replying(refusal)) as target, Proxy(targets=[target.url]) as proxy:
        with pytest.raises(InvalidStatus) as refused:
            ws(proxy)
        assert refused.value.response.status_code == 426
        assert refused.value.response.headers["Upgrade"] == "websocket"
        with client(proxy.url) as wire:
            for _ in range(2):
                wire.send(ASK)
                assert wire.read_message().body == b"no", "and the connection goes on"


def test_with_nobody_left_the_handshake_is_answered_with_503() -> None:
    with Proxy(targets=[f"http://127.0.0.1:{closed_port()}"]) as proxy:
        with pytest.raises(InvalidStatus) as refused:
            ws(proxy)
        assert refused.value.response.status_code == 503


# Any protocol, byte by byte


def test_the_handshake_passes_as_it_is() -> None:
    with RawTarget(echo) as target, Proxy(targets=[target.url]) as proxy, client(proxy.url) as wire:
        wire.send(ASK)
        head = wire.read_head()
        assert (head.get("Upgrade"), head.get("Connection")) == ("echo/1", "Upgrade")
        [asked] = target.requests
        assert (asked.get("Upgrade"), asked.get("Connection")) == ("echo/1", "Upgrade")


def test_bytes_beside_the_handshake_are_not_lost() -> None:
    def eager(target: RawTarget, wire: Wire) -> None:
        wire.read_head()
        wire.send(SWITCH + b"first")
        wire.send(wire.read_exactly(5) + b"!")

    with (
        RawTarget(eager) as target,
        Proxy(targets=[target.url]) as proxy,
        client(proxy.url) as wire,
    ):
        wire.send(ASK + b"early")
        wire.read_head()
        assert wire.read_to_end() == b"firstearly!"


def test_one_side_may_end_before_the_other() -> None:
    with RawTarget(echo) as target, Proxy(targets=[target.url]) as proxy:
        with switched(proxy.url) as wire:
            wire.send(b"hello")
            assert wire.read_exactly(5) == b"hello"
            wire.sock.shutdown(socket.SHUT_WR)
            assert wire.read_to_end() == b"goodbye"
        eventually(lambda: proxy.connections == 0)


def test_much_goes_both_ways_at_once() -> None:
    size = 20_000_000
    with (
        RawTarget(echo) as target,
        Proxy(targets=[target.url]) as proxy,
        switched(proxy.url) as wire,
    ):
        sending = threading.Thread(target=wire.send, args=(bytes(size),))
        sending.start()
        assert wire.read_exactly(size) == bytes(size)
        sending.join()


@pytest.mark.parametrize("who", ["client", "target"])
def test_a_reset_is_passed_on(who: str) -> None:
    broken = threading.Event()

    def serve(target: RawTarget, wire: Wire) -> None:
        wire.read_message()
        wire.send(SWITCH)
        if who == "target":
            wire.reset()
        else:
            with pytest.raises(ConnectionResetError):
                wire.sock.recv(1)
            broken.set()

    with RawTarget(serve) as target, Proxy(targets=[target.url]) as proxy:
        with switched(proxy.url) as wire:
            if who == "client":
                wire.reset()
                assert broken.wait(DEADLINE)
            else:
                with pytest.raises(ConnectionResetError):
                    wire.sock.recv(1)
        eventually(lambda: proxy.connections == 0)


def test_silence_ends_after_the_idle_timeout_of_its_own() -> None:
    with (
        RawTarget(echo) as target,
        Proxy(targets=[target.url], timeouts={"idle": 1, "read": 0.1}) as proxy,
        switched(proxy.url) as wire,
    ):
        for _ in range(4):
            time.sleep(0.3)
            wire.send(b"x")
            assert wire.read_exactly(1) == b"x", "not while there are bytes"
        began = time.monotonic()
        wire.read_to_end()
        assert time.monotonic() - began > 0.5


def test_it_counts_as_under_way_while_it_is_open() -> None:
    with (
        RawTarget(echo) as busy,
        lettered("b") as b,
        Proxy(targets=[busy.url, b.url], policy="least_connections") as proxy,
    ):
        with switched(proxy.url):
            assert proxy.connections == 1
            assert {get(proxy.url).body for _ in range(4)} == {b"b"}
        eventually(lambda: proxy.pool.targets[0].in_flight == 0)


def test_open_ones_are_ended_on_drain() -> None:
    with RawTarget(echo) as target:
        proxy = Proxy(targets=[target.url])
        proxy.start()
        with switched(proxy.url) as wire:
            began = time.monotonic()
            proxy.stop(drain=1)
            assert wire.read_to_end() in (b"", b"goodbye"), "an end, no reset"
            assert time.monotonic() - began < DEADLINE


def test_the_access_log_tells_of_it_at_its_end(tmp_path_factory: pytest.TempPathFactory) -> None:
    log = tmp_path_factory.mktemp("log") / "log"
    with (
        RawTarget(echo) as target,
        Proxy(targets=[target.url], access_log=str(log)) as proxy,
        switched(proxy.url) as wire,
    ):
        wire.send(b"hello")
        wire.sock.shutdown(socket.SHUT_WR)
        wire.read_to_end()
    assert f'"GET /chat HTTP/1.1" 101 12 "-" "-" {target.url} ' in log.read_text()


@pytest.mark.parametrize(
    "head",
    [
        ASK.replace(b"echo/1", b"h2c"),
        ASK.replace(b"HTTP/1.1", b"HTTP/1.0"),
        ASK.replace(b"Connection: keep-alive, Upgrade\r\n", b""),
        ASK.replace(b"Host: h\r\n", b"Host: h\r\nContent-Length: 1\r\n") + b"x",
    ],
)
def test_what_is_no_upgrade_is_not_passed_on(head: bytes) -> None:
    with lettered("a") as target, Proxy(targets=[target.url]) as proxy, client(proxy.url) as wire:
        wire.send(head)
        assert wire.read_message().body == b"a"
        assert target.requests[0].all("Upgrade") == []


def test_five_hundred_at_once() -> None:
    with RawTarget(echo) as target, Proxy(targets=[target.url]) as proxy:
        with contextlib.ExitStack() as stack:
            wires = [stack.enter_context(switched(proxy.url)) for _ in range(500)]
            assert proxy.connections == 500
            for at, wire in enumerate(wires):
                wire.send(b"%03d" % at)
            assert [wire.read_exactly(3) for wire in wires] == [b"%03d" % at for at in range(500)]
        eventually(lambda: proxy.connections == 0)


def test_a_reader_that_reads_nothing_after_the_end_costs_no_processor_time() -> None:
    def pour(target: RawTarget, wire: Wire) -> None:
        wire.read_message()
        wire.send(SWITCH)
        wire.send(bytes(30_000_000))

    with (
        RawTarget(pour) as target,
        Proxy(targets=[target.url], timeouts={"idle": 1}) as proxy,
        client(proxy.url, receive_buffer=4096) as wire,
    ):
        wire.send(ASK)
        wire.read_head()
        wire.sock.shutdown(socket.SHUT_WR)
        time.sleep(0.3)
        began = time.process_time()
        time.sleep(0.5)
        assert time.process_time() - began < 0.25
        eventually(lambda: proxy.connections == 0)
