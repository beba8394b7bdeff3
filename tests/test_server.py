"""Connections: their limit, their end, and clients that misbehave."""

import contextlib
import http.server
import queue
import sys
import threading
import time

import pytest

from pyproxy import Proxy, connections, net
from pyproxy.errors import ListenError, SettingsError
from pyproxy.http.handler import ProxyHandler
from pyproxy.http.server import ProxyServer
from pyproxy.settings import parse
from tests.support import (
    DEADLINE,
    Gate,
    RawTarget,
    Wire,
    answer,
    client,
    eventually,
    get,
    letters,
    replying,
)

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


def test_is_a_threading_http_server() -> None:
    assert issubclass(ProxyServer, http.server.ThreadingHTTPServer)


def test_a_port_in_use_is_told_clearly_and_nothing_stays_behind() -> None:
    with letters("a") as [target], Proxy(targets=[target.url]) as proxy:
        with pytest.raises(
            ListenError, match=r"can't listen on 127\.0\.0\.1:\d+: .*in use; another"
        ):
            Proxy(targets=[target.url], listen=proxy.url).start()
        assert get(proxy.url).status == 200


def test_one_in_a_program_has_no_other_processes() -> None:
    with pytest.raises(SettingsError, match="workers: this is one process"):
        Proxy(targets=[8001], workers=2)


def test_bad_keywords_are_told_like_bad_settings() -> None:
    with pytest.raises(
        SettingsError, match=r'max_fail: unknown setting \(did you mean "max_fails"'
    ):
        Proxy(targets=[8001], max_fail=2)


def test_at_the_limit_a_new_connection_waits_for_a_place() -> None:
    gate = Gate()
    with (
        RawTarget(gate) as target,
        Proxy(targets=[target.url], limits={"connections": 2}) as proxy,
        client(proxy.url) as first,
        client(proxy.url) as second,
        client(proxy.url) as third,
        client(proxy.url) as fourth,
    ):
        for wire in (first, second, third, fourth):
            wire.send(GET)
        for _ in range(2):
            gate.arrived.get(timeout=DEADLINE)
        with pytest.raises(queue.Empty):
            gate.arrived.get(timeout=0.3)
        assert proxy.connections == 2
        gate.open.set()
        assert [wire.read_message().body for wire in (first, second, third, fourth)] == [b"x"] * 4


def test_at_the_limit_idle_connections_are_ended_first_the_longest_idle_before() -> None:
    with (
        letters("a") as [target],
        Proxy(targets=[target.url], limits={"connections": 3}) as proxy,
        client(proxy.url) as first,
        client(proxy.url) as second,
        client(proxy.url) as third,
    ):
        for wire in (first, second, third):
            wire.send(GET)
            assert wire.read_message().body == b"a"
            # Who is still on the way back from its answer is not idle yet.
            eventually(lambda: all(one.idle_since for one in proxy._connections._open))
        began = time.monotonic()
        with client(proxy.url) as fourth:
            fourth.send(GET)
            assert fourth.read_message().body == b"a"
        assert time.monotonic() - began < DEADLINE
        assert first.at_end()
        for wire in (second, third):
            wire.send(GET)
            assert wire.read_message().body == b"a"


def test_a_busy_connection_makes_room_after_its_answer_when_others_wait() -> None:
    gate = Gate()
    with (
        RawTarget(gate) as target,
        Proxy(targets=[target.url], limits={"connections": 1}) as proxy,
        client(proxy.url) as first,
    ):
        first.send(GET)
        gate.arrived.get(timeout=DEADLINE)
        with client(proxy.url) as second:
            second.send(GET)
            gate.open.set()
            assert first.read_message().body == b"x"
            assert second.read_message().body == b"x"


def test_no_more_connections_make_room_than_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "_TICK", DEADLINE)
    gate = Gate()
    with (
        RawTarget(gate) as target,
        Proxy(targets=[target.url], limits={"connections": 4}) as proxy,
        contextlib.ExitStack() as stack,
    ):
        wires = [stack.enter_context(client(proxy.url)) for _ in range(5)]
        for wire in wires:
            wire.send(GET)
        for _ in range(4):
            gate.arrived.get(timeout=DEADLINE)
        eventually(lambda: proxy._connections._waiting)
        gate.open.set()
        said = [wire.read_message().get("Connection") for wire in wires]
        assert sorted(map(str, said)) == ["None", "None", "None", "None", "close"]


def test_a_system_without_threads_holds_up_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    start = threading.Thread.start

    def fail(thread: threading.Thread) -> None:
        if thread.name == "pyproxy-backlog":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", fail)
    gate = Gate()
    with RawTarget(gate) as target, contextlib.ExitStack() as stack:
        proxy = Proxy(targets=[target.url], limits={"connections": 1})
        proxy.start()
        wires = [stack.enter_context(client(proxy.url)) for _ in range(4)]
        for wire in wires:
            wire.send(GET)
        gate.arrived.get(timeout=DEADLINE)
        eventually(lambda: proxy._connections._waiting)
        stopping = threading.Thread(target=proxy.stop, daemon=True)
        stopping.start()
        gate.open.set()
        stopping.join(DEADLINE)
        assert not stopping.is_alive()


def test_when_the_system_gives_threads_again_others_are_served(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start, failed = threading.Thread.start, threading.Event()

    def fail_once(thread: threading.Thread) -> None:
        if thread.name.startswith("pyproxy-http-") and not failed.is_set():
            failed.set()
            raise RuntimeError("can't start new thread")
        start(thread)

    with letters("a") as [target], Proxy(targets=[target.url]) as proxy:
        [server] = proxy._servers.values()
        eventually(lambda: server._waiting)
        monkeypatch.setattr(threading.Thread, "start", fail_once)
        with client(proxy.url) as busy:
            busy.send(GET)
            assert busy.read_message().body == b"a"
            assert failed.is_set()
            assert get(proxy.url).body == b"a"


def test_what_is_stopped_may_be_stopped_again(caplog: pytest.LogCaptureFixture) -> None:
    failed: list[object] = []
    before, threading.excepthook = threading.excepthook, failed.append
    try:
        with Proxy(targets=["http://127.0.0.1:1"]) as proxy:
            proxy.stop()
            proxy.stop()
    finally:
        threading.excepthook = before
    assert not failed
    assert not caplog.messages


def test_stopping_at_once_waits_for_nobody_whom_a_reload_has_left_behind() -> None:
    gate = Gate()
    with RawTarget(gate) as target:
        two = ["http://127.0.0.1:0", "http://127.0.0.1:0"]
        proxy = Proxy(targets=[target.url], listen=two)
        proxy.start()
        with client(proxy.urls[1]) as busy:
            busy.send(GET)
            gate.arrived.get(timeout=DEADLINE)
            proxy.reload(parse({"targets": [target.url], "listen": two[:1]}))
            stopping = threading.Thread(target=proxy.stop, args=(0,))
            stopping.start()
            stopping.join(DEADLINE)
            assert not stopping.is_alive()
            assert busy.at_end()
        gate.open.set()


@pytest.mark.parametrize("by_us", [False, True])
def test_a_request_that_comes_as_the_time_of_an_idle_connection_ends_is_served(
    by_us: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of many that end at once, some wait long for the interpreter before they close."""
    sent = threading.Event()
    first_bytes = ProxyHandler._first_bytes

    def late(handler: ProxyHandler) -> bytes:
        found = b""
        try:
            found = first_bytes(handler)
        finally:
            if not (found or sent.is_set()):
                wire.send(GET)
                eventually(lambda: net.unread(handler.request))
                sent.set()
        return found

    monkeypatch.setattr(ProxyHandler, "_first_bytes", late)
    with (
        letters("a") as [target],
        Proxy(targets=[target.url], timeouts={"keep_alive": DEADLINE if by_us else 0.1}) as proxy,
    ):
        with client(proxy.url) as wire:
            wire.send(GET)
            assert wire.read_message().body == b"a"
            if by_us:
                [server] = proxy._servers.values()

                def ended() -> bool:
                    server.connections.end_idle(server)
                    return sent.is_set()

                eventually(ended)
            assert wire.read_message().body == b"a"
        assert sent.is_set()


def test_stopping_finishes_what_is_under_way_and_ends_idle_connections() -> None:
    gate = Gate()
    with RawTarget(gate) as target:
        proxy = Proxy(targets=[target.url])
        proxy.start()
        with client(proxy.url) as busy, client(proxy.url) as idle:
            gate.open.set()
            idle.send(GET)
            assert idle.read_message().body == b"x"
            gate.open.clear()
            gate.arrived.get(timeout=DEADLINE)
            busy.send(GET)
            gate.arrived.get(timeout=DEADLINE)
            stopping = threading.Thread(target=proxy.stop)
            stopping.start()
            assert idle.at_end()
            with pytest.raises(OSError):
                client(proxy.url).read_to_end()
            assert stopping.is_alive()
            gate.open.set()
            reply = busy.read_message()
            assert (reply.body, reply.get("Connection")) == (b"x", "close")
            assert busy.at_end()
            stopping.join(DEADLINE)
            assert not stopping.is_alive()


def test_a_request_that_was_on_its_way_when_the_end_began_is_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also when the thread that has just answered hears of the end before it waits again."""
    monkeypatch.setattr("pyproxy.connections._BREATH", 2 * DEADLINE)
    waits = threading.Event()
    read_head = ProxyHandler.read_head

    def slowly(handler: ProxyHandler) -> tuple[bytes, bytes] | None:
        if handler.served:
            assert waits.wait(DEADLINE)
        return read_head(handler)

    monkeypatch.setattr(ProxyHandler, "read_head", slowly)
    with letters("a") as [target]:
        proxy = Proxy(targets=[target.url])
        proxy.start()
        [server] = proxy._servers.values()
        with client(proxy.url) as wire:
            wire.send(GET)
            assert wire.read_message().body == b"a"
            stopping = threading.Thread(target=proxy.stop)
            stopping.start()
            eventually(lambda: server.closing)
            waits.set()
            wire.send(GET)
            last = wire.read_message()
            assert (last.body, last.get("Connection")) == (b"a", "close")
            stopping.join(DEADLINE)
            assert not stopping.is_alive()


def test_a_client_that_has_just_connected_when_the_end_begins_is_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pyproxy.connections._BREATH", 2 * DEADLINE)
    with letters("a") as [target]:
        proxy = Proxy(targets=[target.url])
        proxy.start()
        [server] = proxy._servers.values()
        with client(proxy.url) as wire:
            eventually(lambda: proxy.connections)
            stopping = threading.Thread(target=proxy.stop)
            stopping.start()
            eventually(lambda: server.closing)
            server.connections.end_idle(server)
            wire.send(GET)
            assert wire.read_message().body == b"a"
            stopping.join(DEADLINE)
            assert not stopping.is_alive()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing more comes")
@pytest.mark.parametrize("step", ["_first_bytes", "_end"])
def test_a_first_request_that_comes_while_its_connection_is_ended_is_answered_or_reset(
    step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = threading.Event()
    call = getattr(ProxyHandler, step)

    def slowly(handler: ProxyHandler) -> object:
        found = call(handler) if step == "_first_bytes" else None
        if not ended.is_set():
            ended.set()
            eventually(lambda: net.unread(handler.request))
        return call(handler) if step == "_end" else found

    monkeypatch.setattr(ProxyHandler, step, slowly)
    with letters("a") as [target]:
        proxy = Proxy(targets=[target.url])
        proxy.start()
        with client(proxy.url) as wire:
            eventually(lambda: proxy.connections)
            stopping = threading.Thread(target=proxy.stop)
            stopping.start()
            assert ended.wait(DEADLINE)
            wire.send(GET)
            if step == "_first_bytes":
                assert wire.read_message().body == b"a"
            else:
                with pytest.raises(ConnectionResetError):
                    wire.read_to_end()
            stopping.join(DEADLINE)
            assert not stopping.is_alive()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing more comes")
def test_the_last_request_of_a_connection_that_is_ended_is_broken_off_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pyproxy.listener._LAST", DEADLINE / 4)
    ended = threading.Event()
    first_bytes = ProxyHandler._first_bytes

    def slowly(handler: ProxyHandler) -> bytes:
        found = first_bytes(handler)
        ended.set()
        eventually(lambda: net.unread(handler.request))
        return found

    monkeypatch.setattr(ProxyHandler, "_first_bytes", slowly)
    gate = Gate()
    with RawTarget(gate) as target:
        proxy = Proxy(targets=[target.url])
        proxy.start()
        [server] = proxy._servers.values()
        with client(proxy.url) as wire:
            eventually(lambda: proxy.connections)
            stopping = threading.Thread(target=proxy.stop)
            stopping.start()
            assert ended.wait(DEADLINE)
            wire.send(GET)
            gate.arrived.get(timeout=DEADLINE)
            server.shutdown(0)
            assert not proxy.connections
        gate.open.set()
        stopping.join(DEADLINE)
        assert not stopping.is_alive()


def test_a_body_without_a_length_looks_cut_off_when_two_stop_at_once() -> None:
    over = threading.Event()

    def serve(target: RawTarget, wire: Wire) -> None:
        wire.read_message()
        wire.send(b"HTTP/1.1 200 OK\r\n\r\nhalf")
        over.wait(DEADLINE)

    with RawTarget(serve) as target, Proxy(targets=[target.url]) as proxy:
        [server] = proxy._servers.values()
        with client(proxy.url) as wire:
            wire.send(b"GET / HTTP/1.0\r\n\r\n")
            wire.read_until(b"half")
            stopping = [threading.Thread(target=server.shutdown, args=(0,)) for _ in range(2)]
            for one in stopping:
                one.start()
            with pytest.raises(ConnectionResetError):
                wire.read_to_end()
            over.set()
            for one in stopping:
                one.join(DEADLINE)


def test_stopping_breaks_off_what_does_not_finish_in_time() -> None:
    gate = Gate()
    with RawTarget(gate) as target:
        proxy = Proxy(targets=[target.url], timeouts={"drain": 0.2})
        proxy.start()
        with client(proxy.url) as wire:
            wire.send(GET)
            gate.arrived.get(timeout=DEADLINE)
            began = time.monotonic()
            proxy.stop()
            assert time.monotonic() - began < DEADLINE
            assert wire.at_end()
        gate.open.set()


@pytest.mark.parametrize("kind", ["silent", "steady", "not taken"])
def test_a_body_without_a_length_is_broken_off_visibly_even_to_http_1_0(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind != "not taken":
        monkeypatch.setattr("pyproxy.listener._LAST", DEADLINE)
    over = threading.Event()

    def serve(target: RawTarget, wire: Wire) -> None:
        wire.read_message()
        wire.send(b"HTTP/1.1 200 OK\r\n\r\nabc")
        if kind == "not taken":
            wire.send(b"x" * 20_000_000)
        while kind == "steady" and not over.wait(0.01):
            wire.send(b"x")
        over.wait(3 * DEADLINE)

    with RawTarget(serve) as target:
        proxy = Proxy(targets=[target.url], timeouts={"drain": 0.2})
        proxy.start()
        with client(proxy.url, receive_buffer=4096) as wire:
            wire.send(b"GET / HTTP/1.0\r\n\r\n")
            wire.read_until(b"abc")
            proxy.stop()
            assert not proxy.connections
            with pytest.raises(ConnectionResetError):
                wire.read_to_end()
        over.set()


def test_connections_in_the_backlog_are_served_when_it_stops() -> None:
    """With one place taken by a slow request, two more clients wait; none of them is lost."""
    gate = Gate()
    with RawTarget(gate) as target:
        proxy = Proxy(targets=[target.url], limits={"connections": 1})
        proxy.start()
        wires = [client(proxy.url) for _ in range(3)]
        for wire in wires:
            wire.send(GET)
        gate.arrived.get(timeout=DEADLINE)
        stopping = threading.Thread(target=proxy.stop)
        stopping.start()
        gate.open.set()
        assert [wire.read_message().body for wire in wires] == [b"x"] * 3
        stopping.join(DEADLINE)
        for wire in wires:
            wire.close()


def test_starting_and_stopping_is_quick() -> None:
    with letters("a") as [target]:

        def seconds() -> float:
            began = time.monotonic()
            for _ in range(10):
                with Proxy(targets=[target.url]):
                    pass
            return time.monotonic() - began

        # The machine may be busy for some of them, not for all.
        assert any(seconds() < 2 for _ in range(5))


def test_a_client_that_leaves_while_it_waits_frees_its_place() -> None:
    gate = Gate()
    with RawTarget(gate) as target, Proxy(targets=[target.url]) as proxy:
        with client(proxy.url) as wire:
            wire.send(GET)
            gate.arrived.get(timeout=DEADLINE)
        eventually(lambda: not proxy.connections)
        assert len(proxy.pool.live) == 1
        gate.open.set()


def test_a_client_that_leaves_during_its_upload_frees_its_place() -> None:
    got = threading.Event()

    def serve(target: RawTarget, wire: Wire) -> None:
        wire.read_head()
        got.set()
        wire.read_to_end()

    with RawTarget(serve) as target, Proxy(targets=[target.url]) as proxy:
        with client(proxy.url) as wire:
            wire.send(
                b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 9000000\r\n\r\n" + b"x" * 100_000
            )
            assert got.wait(DEADLINE)
        eventually(lambda: not proxy.connections)
        assert len(proxy.pool.live) == 1


def test_a_client_that_leaves_during_its_download_frees_its_place() -> None:
    def serve(target: RawTarget, wire: Wire) -> None:
        wire.read_message()
        wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 900000000\r\n\r\n")
        while True:
            wire.send(b"x" * 100_000)

    with RawTarget(serve) as target, Proxy(targets=[target.url]) as proxy:
        with client(proxy.url) as wire:
            wire.send(GET)
            wire.read_exactly(1000)
        eventually(lambda: not proxy.connections)
        assert len(proxy.pool.live) == 1


def test_a_client_that_does_not_read_is_given_up() -> None:
    with (
        RawTarget(replying(answer(b"x" * 30_000_000))) as target,
        Proxy(targets=[target.url], timeouts={"send": 0.3}) as proxy,
        client(proxy.url, receive_buffer=4096) as wire,
    ):
        wire.send(GET)
        eventually(lambda: proxy.connections)
        eventually(lambda: not proxy.connections)
        assert len(proxy.pool.live) == 1


def test_a_half_closed_client_still_gets_its_answer() -> None:
    with letters("a") as [target], Proxy(targets=[target.url]) as proxy, client(proxy.url) as wire:
        wire.send(GET)
        wire.sock.shutdown(1)
        assert wire.read_message().body == b"a"


def test_many_connections_are_served_at_once() -> None:
    gate = Gate()
    with RawTarget(gate) as target, Proxy(targets=[target.url]) as proxy:
        wires = [client(proxy.url) for _ in range(100)]
        for wire in wires:
            wire.send(GET)
        for _ in wires:
            gate.arrived.get(timeout=DEADLINE)
        gate.open.set()
        assert [wire.read_message().body for wire in wires] == [b"x"] * 100
        for wire in wires:
            wire.close()


def test_with_hundreds_of_connections_threads_ask_for_the_interpreter_less_often() -> None:
    net.raise_file_limit(1000)
    before = sys.getswitchinterval()
    with (
        letters("a") as [target],
        Proxy(targets=[target.url], limits={"connections": 1000}) as proxy,
        contextlib.ExitStack() as stack,
    ):
        wires = [stack.enter_context(client(proxy.url)) for _ in range(520)]
        eventually(lambda: proxy.connections == len(wires))
        assert sys.getswitchinterval() == pytest.approx(before + 0.005)
        for wire in wires:
            wire.close()
        eventually(lambda: proxy.connections == 0)
        assert sys.getswitchinterval() == pytest.approx(before)
