"""TCP mode over real sockets: what goes in comes out, and every end is passed on as it was."""

import contextlib
import os
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from pyproxy import Proxy, net
from pyproxy.errors import ListenError, SettingsError
from pyproxy.settings import parse, plain
from pyproxy.tcp.relay import Ending, Pipes, Relay, Relayed
from pyproxy.tls import ServerTLS, TLSSocket, client_context
from tests.programs import program
from tests.support import (
    DEADLINE,
    RawTarget,
    Wire,
    closed_port,
    eventually,
    get,
    letters,
    reset,
)

Serve = Callable[[RawTarget, Wire], None]


def echo(target: RawTarget, wire: Wire) -> None:
    while data := wire.sock.recv(65536):
        wire.send(data)


def naming(letter: bytes) -> Serve:
    """Says who it is, then echoes."""

    def serve(target: RawTarget, wire: Wire) -> None:
        wire.send(letter)
        echo(target, wire)

    return serve


def knock(proxy: Proxy, at: int = -1) -> Wire:
    """A connection to the proxy's last listener."""
    host, _, port = proxy.urls[at].partition("://")[2].rpartition(":")
    return Wire(socket.create_connection((host, int(port)), DEADLINE))


def who(proxy: Proxy) -> bytes:
    with knock(proxy) as wire:
        return wire.read_exactly(1)


@contextmanager
def proxied(*serve: Serve, **said: Any) -> Iterator[tuple[Proxy, list[RawTarget]]]:
    """A tcp entry in front of targets. ``top`` are settings at the top."""
    top = said.pop("top", {})
    with ExitStack() as stack:
        targets = [stack.enter_context(RawTarget(one)) for one in serve]
        ports = [one.port for one in targets]
        entry = {"listen": 0, "targets": ports, **said}
        yield stack.enter_context(Proxy(tcp=[entry], **top)), targets


# Bytes


def test_bytes_go_both_ways() -> None:
    with proxied(echo) as (proxy, _), knock(proxy) as wire:
        for text in (b"a", b"hello", b"x" * 16384, b"y" * 100_000):
            wire.send(text)
            assert wire.read_exactly(len(text)) == text
        assert proxy.connections == 1


def test_a_connection_may_be_idle_for_months() -> None:
    with proxied(echo, timeouts={"idle": "60d"}) as (proxy, _), knock(proxy) as wire:
        wire.send(b"hello")
        assert wire.read_exactly(5) == b"hello"


def test_a_target_may_speak_first() -> None:
    with proxied(naming(b"a")) as (proxy, _):
        assert who(proxy) == b"a"


def test_much_goes_both_ways_at_once() -> None:
    data = os.urandom(1 << 20) * 20
    with proxied(echo) as (proxy, _), knock(proxy) as wire:
        sender = threading.Thread(target=wire.send, args=(data,))
        sender.start()
        assert wire.read_exactly(len(data)) == data
        sender.join()


def test_a_slow_reader_slows_the_sender_down_and_the_other_way_stays_free() -> None:
    sent = 0

    def flood(target: RawTarget, wire: Wire) -> None:
        nonlocal sent
        threading.Thread(target=hear, args=(wire,), name="hearing", daemon=True).start()
        for _ in range(200):
            wire.send(b"x" * 1_000_000)
            sent += 1

    heard = threading.Event()

    def hear(wire: Wire) -> None:
        if wire.sock.recv(10) == b"still here":
            heard.set()

    with proxied(flood) as (proxy, _), knock(proxy) as wire:
        eventually(lambda: sent > 1)
        before = -1
        while before != sent:  # until nothing goes on
            before = sent
            time.sleep(0.2)
        assert sent < 100
        wire.send(b"still here")
        assert heard.wait(DEADLINE)
        total = 0
        while total < 200_000_000 and (data := wire.sock.recv(1 << 20)):
            total += len(data)
        assert total == 200_000_000


def test_many_connections_are_relayed_at_once() -> None:
    with proxied(echo) as (proxy, _), ExitStack() as stack:
        wires = [stack.enter_context(knock(proxy)) for _ in range(200)]
        for at, wire in enumerate(wires):
            wire.send(b"%03d" % at)
        assert [wire.read_exactly(3) for wire in wires] == [b"%03d" % at for at in range(200)]


# Ends


def test_a_client_that_has_said_all_still_gets_its_answer() -> None:
    def serve(target: RawTarget, wire: Wire) -> None:
        wire.send(wire.read_to_end() * 2)

    with proxied(serve) as (proxy, _), knock(proxy) as wire:
        wire.send(b"question")
        wire.sock.shutdown(socket.SHUT_WR)
        assert wire.read_to_end() == b"questionquestion"
        eventually(lambda: not proxy.connections)


def test_a_target_that_has_said_all_still_hears_the_client() -> None:
    heard: list[bytes] = []

    def serve(target: RawTarget, wire: Wire) -> None:
        wire.send(b"all")
        wire.sock.shutdown(socket.SHUT_WR)
        heard.append(wire.read_to_end())

    with proxied(serve) as (proxy, _):
        with knock(proxy) as wire:
            assert wire.read_to_end() == b"all"
            wire.send(b"thanks")
            wire.send(b", bye")
        eventually(lambda: heard == [b"thanks, bye"])


def test_a_client_s_reset_resets_the_target() -> None:
    told: list[object] = []

    def serve(target: RawTarget, wire: Wire) -> None:
        wire.send(b"a")
        try:
            told.append(wire.sock.recv(1))
        except OSError as error:
            told.append(type(error))

    with proxied(serve) as (proxy, _):
        wire = knock(proxy)
        assert wire.read_exactly(1) == b"a"
        wire.reset()
        eventually(lambda: told == [ConnectionResetError])


def test_a_target_s_reset_resets_the_client() -> None:
    def serve(target: RawTarget, wire: Wire) -> None:
        wire.read_exactly(1)
        wire.reset()

    with proxied(serve) as (proxy, _), knock(proxy) as wire:
        wire.send(b"a")
        with pytest.raises(ConnectionResetError):
            wire.sock.recv(1)


def test_silence_on_both_sides_ends_a_connection() -> None:
    with proxied(echo, timeouts={"idle": 1}) as (proxy, _), knock(proxy) as wire:
        for _ in range(6):  # longer than that in all
            wire.send(b"a")
            assert wire.read_exactly(1) == b"a"
            time.sleep(0.2)
        began = time.monotonic()
        assert wire.at_end()
        assert time.monotonic() - began > 0.5


def test_one_side_that_speaks_keeps_a_connection() -> None:
    def serve(target: RawTarget, wire: Wire) -> None:
        for _ in range(8):
            wire.send(b"a")
            time.sleep(0.2)

    with proxied(serve, timeouts={"idle": 1}) as (proxy, _), knock(proxy) as wire:
        assert wire.read_to_end() == b"a" * 8


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="no /proc/self/fd")
def test_no_descriptor_is_left_behind() -> None:
    with proxied(naming(b"a")) as (proxy, _):
        who(proxy)
        eventually(lambda: not proxy.connections)
        before = descriptors()
        for at in range(20):
            wire = knock(proxy)
            wire.read_exactly(1)
            if at % 2:
                wire.reset()
            else:
                wire.close()
        eventually(lambda: not proxy.connections and descriptors() <= before)


# Who serves


def test_targets_are_served_in_turn() -> None:
    with proxied(naming(b"a"), naming(b"b"), naming(b"c")) as (proxy, _):
        assert sorted(who(proxy) for _ in range(6)) == [b"a", b"a", b"b", b"b", b"c", b"c"]


def test_a_target_that_refuses_is_evicted_and_another_one_serves() -> None:
    with RawTarget(naming(b"b")) as b:
        entry = {"listen": 0, "targets": [closed_port(), b.port], "sleeping": 60}
        with Proxy(tcp=[entry]) as proxy:
            assert [who(proxy) for _ in range(4)] == [b"b"] * 4
            assert len(proxy.pool.live) == 1
            eventually(lambda: [one.what for one in proxy.history()] == ["evicted"])


def test_a_target_that_is_back_is_restored_by_a_bare_connection() -> None:
    with proxied(naming(b"a"), naming(b"b"), sleeping=0.1) as (proxy, [a, _]):
        a.stop()
        assert [who(proxy) for _ in range(4)] == [b"b"] * 4
        a.start()
        eventually(lambda: len(proxy.pool.live) == 2)
        assert {who(proxy) for _ in range(4)} == {b"a", b"b"}


def test_when_nobody_is_left_a_connection_is_closed_until_somebody_is_back() -> None:
    with proxied(naming(b"a"), sleeping=0.1) as (proxy, [a]):
        a.stop()
        with knock(proxy) as wire:
            assert wire.at_end()
        a.start()
        eventually(lambda: proxy.pool.live)
        assert who(proxy) == b"a"


def test_no_more_targets_are_tried_than_retry_attempts_says() -> None:
    ports = [closed_port() for _ in range(4)]
    entry = {"listen": 0, "targets": ports, "retry": {"attempts": 2}, "sleeping": 60}
    with Proxy(tcp=[entry]) as proxy:
        with knock(proxy) as wire:
            assert wire.at_end()
        assert len(proxy.pool.live) == 2


def test_open_connections_count_for_least_connections() -> None:
    with (
        proxied(naming(b"a"), naming(b"b"), policy="least_connections") as (proxy, _),
        knock(proxy) as first,
    ):
        held = first.read_exactly(1)
        others = []
        for _ in range(3):
            others.append(who(proxy))
            eventually(lambda: proxy.connections == 1)
        assert others == [b"b" if held == b"a" else b"a"] * 3
        assert sum(one.in_flight for one in proxy.pool.targets) == 1


def test_at_max_connections_a_connection_waits_for_its_place() -> None:
    with RawTarget(naming(b"a")) as a:
        entry = {"listen": 0, "targets": [{"url": f"tcp://127.0.0.1:{a.port}"}]}
        entry["targets"][0]["max_connections"] = 1  # type: ignore[index]
        with Proxy(tcp=[entry]) as proxy, knock(proxy) as first:
            assert first.read_exactly(1) == b"a"
            with knock(proxy) as second:
                eventually(proxy.pool.waiting)
                first.close()
                assert second.read_exactly(1) == b"a"


def test_a_connection_that_waited_too_long_is_closed() -> None:
    with RawTarget(naming(b"a")) as a:
        target = {"url": f"tcp://127.0.0.1:{a.port}", "max_connections": 1}
        entry = {"listen": 0, "targets": [target], "queue": {"timeout": 0.2}}
        with Proxy(tcp=[entry]) as proxy, knock(proxy) as first:
            assert first.read_exactly(1) == b"a"
            with knock(proxy) as second:
                assert second.at_end()
            first.send(b"b")
            assert first.read_exactly(1) == b"b"


def test_at_the_limit_connections_wait_and_silent_ones_are_left_alone() -> None:
    with (
        proxied(naming(b"a"), top={"limits": {"connections": 2}}) as (proxy, _),
        knock(proxy) as first,
        knock(proxy) as second,
    ):
        assert first.read_exactly(1) == second.read_exactly(1) == b"a"
        with knock(proxy) as third:
            third.sock.settimeout(1.5)
            with pytest.raises(TimeoutError):
                third.read_exactly(1)
            third.sock.settimeout(DEADLINE)
            first.send(b"b")
            assert first.read_exactly(1) == b"b"
            first.close()
            assert third.read_exactly(1) == b"a"


# The end


def test_stopping_ends_idle_connections_and_waits_for_answers() -> None:
    asked = threading.Event()
    release = threading.Event()

    def serve(target: RawTarget, wire: Wire) -> None:
        wire.send(b"a")
        while data := wire.sock.recv(10):
            asked.set()
            assert release.wait(DEADLINE)
            wire.send(data)

    with RawTarget(serve) as target:
        proxy = Proxy(tcp=[{"listen": 0, "targets": [target.port]}])
        proxy.start()
        with knock(proxy) as idle, knock(proxy) as busy:
            assert idle.read_exactly(1) == busy.read_exactly(1) == b"a"
            busy.send(b"q")
            assert asked.wait(DEADLINE)
            stopping = threading.Thread(target=proxy.stop)
            stopping.start()
            assert idle.at_end()
            assert stopping.is_alive()
            release.set()
            assert busy.read_to_end() == b"q"
            stopping.join(DEADLINE)
            assert not stopping.is_alive()


def test_stopping_breaks_off_what_does_not_end_in_time() -> None:
    def serve(target: RawTarget, wire: Wire) -> None:
        wire.read_to_end()

    with RawTarget(serve) as target:
        proxy = Proxy(tcp=[{"listen": 0, "targets": [target.port]}], timeouts={"drain": 0.2})
        proxy.start()
        with knock(proxy) as wire:
            wire.send(b"q")
            eventually(lambda: target.connections)
            began = time.monotonic()
            proxy.stop()
            assert time.monotonic() - began < DEADLINE
            assert wire.at_end()


def test_a_port_in_use_is_told() -> None:
    with proxied(echo) as (proxy, _), pytest.raises(ListenError, match="in use"):
        Proxy(tcp=[{"listen": proxy.url, "targets": [1]}]).start()


# The relay by itself


def pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        one = socket.create_connection(server.getsockname())
        return one, server.accept()[0]


class Relaying:
    """A relay in a thread, and the far ends of its two connections."""

    def __init__(
        self, to_target: bytes = b"", to_client: bytes = b"", pipes: Pipes | None = None
    ) -> None:
        client, inner = pair()
        target, outer = pair()
        self.client, self.target = Wire(client), Wire(target)
        self.inner, self.outer = inner, outer
        buffers = net.Buffers()
        self.relay = Relay(
            inner, outer, to_target, to_client, idle=DEADLINE, buffers=buffers, pipes=pipes
        )
        self.done: list[Relayed] = []
        self._thread = threading.Thread(target=lambda: self.done.append(self.relay.run()))
        self._thread.start()

    def result(self) -> Relayed:
        self._thread.join(DEADLINE)
        assert self.done, "it goes on"
        return self.done[0]

    def __enter__(self) -> "Relaying":
        return self

    def __exit__(self, *_: object) -> None:
        self.relay.break_off()
        self._thread.join(DEADLINE)
        for one in (self.client, self.target, self.inner, self.outer):
            one.close()


def test_a_relay_tells_how_much_went_where() -> None:
    with Relaying(to_target=b"first", to_client=b"hello") as it:
        assert it.target.read_exactly(5) == b"first"
        assert it.client.read_exactly(5) == b"hello"
        it.client.send(b"abc")
        assert it.target.read_exactly(3) == b"abc"
        it.client.sock.shutdown(socket.SHUT_WR)
        it.target.sock.shutdown(socket.SHUT_WR)
        assert it.result() == Relayed(8, 5, Ending.ENDED)


def test_what_goes_first_may_be_more_than_a_socket_takes() -> None:
    data = os.urandom(8_000_000)
    with Relaying(to_target=data, to_client=data) as it:
        assert it.target.read_exactly(len(data)) == data
        assert it.client.read_exactly(len(data)) == data


@pytest.mark.parametrize("state", ["silent", "blocked", "half closed"])
def test_a_relay_can_be_broken_off_from_another_thread(state: str) -> None:
    with Relaying() as it:
        if state == "blocked":
            it.client.sock.settimeout(0.3)
            with pytest.raises(TimeoutError):
                it.client.send(b"x" * 50_000_000)
        elif state == "half closed":
            it.client.sock.shutdown(socket.SHUT_WR)
            assert it.target.at_end()
        it.relay.break_off()
        assert it.result().ending is Ending.BROKEN_OFF


def test_a_relay_that_was_broken_off_before_it_began_ends() -> None:
    one, two = pair()
    relay = Relay(one, two, idle=DEADLINE, buffers=net.Buffers())
    relay.break_off()
    assert relay.run().ending is Ending.BROKEN_OFF
    one.close()
    two.close()


def test_a_relay_is_idle_when_the_client_has_its_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    with Relaying() as it:
        monkeypatch.setattr("pyproxy.tcp.relay._GRACE", 0.0)
        it.client.send(b"q")
        assert it.target.read_exactly(1) == b"q"
        assert it.relay.idle_since == 0.0
        monkeypatch.setattr("pyproxy.tcp.relay._GRACE", 4 * DEADLINE)
        it.target.send(b"a")
        assert it.client.read_exactly(1) == b"a"
        assert it.relay.idle_since == 0.0
        monkeypatch.setattr("pyproxy.tcp.relay._GRACE", 0.0)
        assert it.relay.idle_since


def test_large_buffers_are_given_back_when_nothing_moves() -> None:
    with Relaying() as it:
        data = b"x" * 1_000_000
        for _ in range(2):
            sender = threading.Thread(target=it.target.send, args=(data,))
            sender.start()
            assert it.client.read_exactly(len(data)) == data
            sender.join()
        eventually(lambda: not (it.relay._up.much or it.relay._down.much))


@pytest.mark.skipif(not hasattr(os, "splice"), reason="no splice")
def test_pipes_are_given_back_whole_and_those_with_bytes_in_them_are_closed() -> None:
    pipes = Pipes()
    data = os.urandom(10_000_000)
    with Relaying(pipes=pipes) as it:
        sender = threading.Thread(target=it.target.send, args=(data,))
        sender.start()
        assert it.client.read_exactly(len(data)) == data
        sender.join()
        eventually(lambda: not it.relay._down.much)
        assert (pipes._lent, len(pipes._free)) == (0, 1)
        it.client.sock.settimeout(0.3)
        with pytest.raises(TimeoutError):
            it.client.send(b"x" * 50_000_000)
        assert pipes._lent == 1
        it.relay.break_off()
        assert it.result().ending is Ending.BROKEN_OFF
        assert (pipes._lent, len(pipes._free)) == (0, 0)
    pipes.close()
    assert pipes.take() is None


def test_without_a_free_pipe_bytes_are_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pipes, "MOST", 0)
    data = os.urandom(10_000_000)
    with Relaying(pipes=Pipes()) as it:
        sender = threading.Thread(target=it.client.send, args=(data,))
        sender.start()
        assert it.target.read_exactly(len(data)) == data
        sender.join()


def test_urgent_data_keeps_nothing_back() -> None:
    """It stops splice, which then sees no bytes behind it, or an end before its time."""
    pipes = Pipes()
    data = os.urandom(1_000_000)
    with Relaying(pipes=pipes) as it:
        got: list[bytes] = []
        reading = threading.Thread(target=lambda: got.append(it.target.read_to_end()))
        reading.start()
        it.client.send(data)
        it.client.sock.send(b"!", socket.MSG_OOB)
        it.client.send(b"more")
        it.client.sock.shutdown(socket.SHUT_WR)
        reading.join(DEADLINE)
        assert got == [data + b"more"]


def test_a_relay_does_without_poll(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(net, "poller", net._SelectPoller)
    data = os.urandom(3_000_000)
    with Relaying() as it:
        sender = threading.Thread(target=it.client.send, args=(data,))
        sender.start()
        assert it.target.read_exactly(len(data)) == data
        sender.join()
        it.client.sock.shutdown(socket.SHUT_WR)
        assert it.target.at_end()
        it.target.send(b"bye")
        it.target.sock.shutdown(socket.SHUT_WR)
        assert it.client.read_to_end() == b"bye"
        assert it.result().ending is Ending.ENDED


@pytest.fixture(scope="module")
def server_tls(tmp_path_factory: pytest.TempPathFactory) -> ServerTLS:
    from pyproxy.lab.certificate import make_certificate

    folder = tmp_path_factory.mktemp("tls")
    make_certificate(["localhost"], folder / "cert.pem", folder / "key.pem")
    return ServerTLS([(str(folder / "cert.pem"), str(folder / "key.pem"))])


def secured(server_tls: ServerTLS) -> tuple[ssl.SSLSocket, TLSSocket]:
    """A client's end and ours of a connection with TLS."""
    outside, inside = pair()
    context = client_context(verify=False, ca=None, certificate=None, key=None)
    made: list[TLSSocket] = []
    shaking = threading.Thread(target=lambda: made.append(server_tls.accept(inside, DEADLINE)))
    shaking.start()
    client = context.wrap_socket(outside, server_hostname="localhost")
    shaking.join()
    client.settimeout(DEADLINE)
    return client, made[0]


def exchange(client: ssl.SSLSocket, data: bytes, size: int) -> bytes:
    """Sends ``data`` while ``size`` bytes come, in one thread: many CPythons don't guard an
    ``SSLSocket``, and two threads in one can end the whole process."""
    client.setblocking(False)
    received, left = bytearray(), memoryview(data)
    while left or len(received) < size:
        assert any(select.select([client], [client] if left else [], [], DEADLINE))
        with contextlib.suppress(ssl.SSLWantReadError):
            received += client.recv(65536) or pytest.fail("an end before all has come")
        with contextlib.suppress(ssl.SSLWantWriteError):
            left = left[client.send(left) if left else 0 :]
    client.settimeout(DEADLINE)
    return bytes(received)


@pytest.mark.parametrize("ends", ["TLS to plain", "plain to TLS", "TLS to TLS"])
def test_a_relay_loses_nothing_before_a_slow_reader(server_tls: ServerTLS, ends: str) -> None:
    """The sink takes little at a time, while the source has more both with TLS and in the
    kernel."""
    source, sink = ends.split(" to ")
    sender, client = secured(server_tls) if source == "TLS" else pair()
    reader, target = secured(server_tls) if sink == "TLS" else pair()
    for small in (reader, target):
        small.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
        small.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16384)
    relay = Relay(client, target, idle=DEADLINE, buffers=net.Buffers())
    running = threading.Thread(target=relay.run)
    running.start()
    data = os.urandom(1_000_000)
    sending = threading.Thread(target=sender.sendall, args=(data,))
    sending.start()
    received = b""
    reader.settimeout(DEADLINE)
    while len(received) < len(data) and (some := reader.recv(7000)):
        received += some
    relay.break_off()
    for thread in (running, sending):
        thread.join(DEADLINE)
    for one in (sender, client, reader, target):
        one.close()
    assert received == data


def test_an_end_in_one_direction_loses_nothing_of_the_other(server_tls: ServerTLS) -> None:
    """The target says all while what the client has sent waits with TLS."""
    client, inside = secured(server_tls)
    far, target = pair()
    for small in (far, target):
        small.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
        small.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16384)
    relay = Relay(inside, target, idle=DEADLINE, buffers=net.Buffers())
    running = threading.Thread(target=relay.run)
    running.start()
    data = os.urandom(1_000_000)

    def send() -> None:
        for at in range(0, len(data), 4000):  # many records that come at once
            client.sendall(data[at : at + 4000])

    sending = threading.Thread(target=send)
    sending.start()
    received = bytearray()

    def stuck() -> bool:
        """With records that TLS holds; else a bit is taken, until it is."""
        if relay._up.pending and inside._incoming.pending > 8000:
            return True
        with contextlib.suppress(TimeoutError):
            received.extend(far.recv(4000))
        return False

    far.settimeout(0.05)
    eventually(stuck)
    far.shutdown(socket.SHUT_WR)
    eventually(lambda: relay._down.ended)
    far.settimeout(DEADLINE)
    with contextlib.suppress(ConnectionError):
        while len(received) < len(data) and (some := far.recv(1 << 20)):
            received += some
    relay.break_off()
    for thread in (running, sending):
        thread.join(DEADLINE)
    for one in (client, inside, far, target):
        one.close()
    assert received == data


def test_the_end_is_said_in_tls_also_when_there_is_no_room_for_it(server_tls: ServerTLS) -> None:
    client, inside = secured(server_tls)
    client.suppress_ragged_eofs = False  # type: ignore[attr-defined]
    far, target = pair()
    inside.settimeout(0)
    filled = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            filled += inside.send(bytes(1000))
    relay = Relay(inside, target, idle=DEADLINE, buffers=net.Buffers())
    running = threading.Thread(target=relay.run)
    running.start()
    far.shutdown(socket.SHUT_WR)
    eventually(lambda: not relay._down.open)
    received = 0
    try:
        while some := len(client.recv(65536)):
            received += some
    finally:
        relay.break_off()
        running.join(DEADLINE)
        for one in (client, inside, far, target):
            one.close()
    assert received == filled


def test_a_target_s_reset_is_no_end_that_tls_has_said(server_tls: ServerTLS) -> None:
    """Or what it has truncated would look whole."""
    client, inside = secured(server_tls)
    client.suppress_ragged_eofs = False  # type: ignore[attr-defined]
    far, target = pair()
    relay = Relay(inside, target, idle=DEADLINE, buffers=net.Buffers())
    running = threading.Thread(target=relay.run)
    running.start()
    far.sendall(b"half")
    assert client.recv(4) == b"half"
    reset(far)
    running.join(DEADLINE)
    for one in (inside, target):
        one.close()
    with client, pytest.raises(OSError):
        client.recv(1)


def test_a_relay_carries_tls_on_either_side(server_tls: ServerTLS) -> None:
    """Client with TLS, target without: much in both directions at once, and half-closes."""
    target, inner_target = pair()
    client, inside = secured(server_tls)
    relay = Relay(inside, inner_target, idle=DEADLINE, buffers=net.Buffers())
    done: list[Relayed] = []
    running = threading.Thread(target=lambda: done.append(relay.run()))
    running.start()
    data = os.urandom(5_000_000)
    far = Wire(target)
    got: list[bytes] = []
    calls = [lambda: far.send(data), lambda: got.append(far.read_exactly(len(data)))]
    threads = [threading.Thread(target=one) for one in calls]
    for thread in threads:
        thread.start()
    assert exchange(client, data, len(data)) == data
    for thread in threads:
        thread.join(DEADLINE)
    assert got == [data]
    far.sock.shutdown(socket.SHUT_WR)
    assert client.recv(1) == b""
    client.close()
    running.join(DEADLINE)
    assert done[0][:2] == (len(data), len(data))
    for one in (inside, inner_target, far):
        one.close()


# Settings


def refused(**said: Any) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        parse({"tcp": [{"listen": 0, "targets": [1], **said}]}, "x.json")
    return [line.removeprefix("x.json: tcp[0]") for line in caught.value.problems]


HTTP_ONLY = "needs HTTP, which a tcp entry doesn't speak"


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"sticky": {"cookie": "a"}}, f".sticky: {HTTP_ONLY}"),
        ({"unavailable": {"status": 500}}, f".unavailable: {HTTP_ONLY}"),
        ({"health": {"path": "/", "rise": 2}}, f".health.path: {HTTP_ONLY}"),
        ({"retry": {"statuses": [500], "attempts": 2}}, f".retry.statuses: {HTTP_ONLY}"),
        ({"timeouts": {"read": 5, "idle": 5}}, f".timeouts.read: {HTTP_ONLY}"),
        ({"timeouts": {"raed": 5}}, '.timeouts.raed: unknown setting (did you mean "read"?)'),
        (
            {"policy": {"name": "consistent_hash", "key": "header:X"}},
            '.policy: a key "header:X" needs HTTP: a tcp entry has "client"',
        ),
        (
            {"policy": {"name": "rendezvous_hash", "key": "uri"}},
            '.policy: a key "uri" needs HTTP: a tcp entry has "client"',
        ),
        (
            {"targets": ["http://a:1"]},
            '.targets[0]: expected a URL like "tcp://localhost:8001", or a port, not "http://a:1"',
        ),
        ({"targets": ["tcp://a"]}, '.targets[0]: "tcp://a" needs a port'),
        ({"listen": "localhost"}, '.listen: "tcp://localhost" needs a port'),
        ({"listn": 1}, '.listn: unknown setting (did you mean "listen"?)'),
        ({"send_proxy": 3}, ".send_proxy: expected a whole number from 1 to 2"),
    ],
)
def test_what_makes_no_sense_is_refused(said: dict[str, Any], told: str) -> None:
    assert refused(**said) == [told]


def test_a_policy_at_the_top_that_needs_http_is_not_inherited_silently() -> None:
    policy = {"name": "consistent_hash", "key": "uri"}
    entry = {"listen": 0, "targets": [1]}
    with pytest.raises(SettingsError) as caught:
        parse({"targets": [1], "policy": policy, "tcp": [entry]}, "x.json")
    assert len(caught.value.problems) == 1
    assert "tcp[0].policy" in caught.value.problems[0]
    parse({"targets": [1], "policy": policy, "tcp": [{**entry, "policy": "ip_hash"}]})


def test_an_entry_inherits_what_it_does_not_say_as_far_as_that_needs_no_http() -> None:
    made = parse(
        {
            "targets": [1],
            "sleeping": 3,
            "health": {"path": "/health", "interval": 7},
            "timeouts": {"connect": 1, "idle": 2, "read": 3, "drain": 4},
            "sticky": {"cookie": "A"},
            "tcp": [{"listen": 5432, "targets": [5433], "timeouts": {"idle": 20}}],
        }
    )
    [entry] = made.tcp
    assert entry.listen == "tcp://127.0.0.1:5432"
    assert [one.url for one in entry.targets] == ["tcp://localhost:5433"]
    assert (entry.sleeping, entry.health.interval, entry.health.tcp) == (3, 7, True)
    assert (entry.health.path, entry.sticky.cookie) == ("/", None)
    assert (entry.timeouts.connect, entry.timeouts.idle, entry.timeouts.read) == (1, 20, 60)
    assert parse(plain(made)) == made


def test_tcp_entries_stand_beside_http() -> None:
    with letters("a") as [a], RawTarget(naming(b"b")) as b:
        entry = {"listen": 0, "targets": [b.port]}
        with Proxy(targets=[a.url], tcp=[entry]) as proxy:
            assert get(proxy.url).body == b"a"
            assert who(proxy) == b"b"
            assert [url.partition(":")[0] for url in proxy.urls] == ["http", "tcp"]
            assert len(proxy.pools) == 2


def test_the_command_line_tells_where_it_relays(tmp_path: Path) -> None:
    with RawTarget(naming(b"b")) as b:
        settings = f'{{"tcp": [{{"listen": "127.0.0.1:0", "targets": [{b.port}]}}]}}'
        (tmp_path / "appsettings.json").write_text(settings)
        with program(cwd=tmp_path) as proxy:
            match = proxy.wait_for(r"listens on tcp://127\.0\.0\.1:(\d+) and serves tcp only")
            with Wire(socket.create_connection(("127.0.0.1", int(match[1])))) as wire:
                assert wire.read_exactly(1) == b"b"
            assert proxy.stop() == 0
