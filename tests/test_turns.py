"""Turns: in a crush requests go on first come, first served, and whoever waits for something else
than the interpreter holds nobody up."""

import contextlib
import queue
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from pyproxy import Proxy
from pyproxy.balancing.target import Target
from pyproxy.turns import Turn, Turns
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
    run_together,
)

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
MANY = 4  # more than have a turn at once


@pytest.fixture
def lasting(monkeypatch: pytest.MonkeyPatch) -> None:
    """A crush doesn't end by itself."""
    monkeypatch.setattr("pyproxy.turns._SETTLED", 10 * DEADLINE)


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch) -> Iterator[Turns]:
    """Of requests; in the end nobody has one."""
    turns = Turns()
    monkeypatch.setattr("pyproxy.http.forward.turns", turns)
    yield turns
    eventually(lambda: turns._free == 2)


@pytest.fixture
def crush(turns: Turns, lasting: None) -> Turns:
    """All requests need a turn."""
    turns.begin()
    return turns


class Waiting:
    """Threads that wait for their turns, begun one after the other."""

    def __init__(self, turns: Turns, count: int) -> None:
        self.called: queue.SimpleQueue[tuple[int, Turn]] = queue.SimpleQueue()
        self.order: list[int] = []
        self._of = turns
        for number in range(count):
            before = len(turns._waiting)
            thread = threading.Thread(target=self._wait, args=(number,), daemon=True)
            thread.start()
            while len(turns._waiting) == before:
                thread.join(0.001)

    def _wait(self, number: int) -> None:
        self.called.put((number, self._of.take()))

    def next(self) -> Turn:
        number, turn = self.called.get(timeout=DEADLINE)
        self.order.append(number)
        return turn


def test_turns_come_in_the_order_in_which_they_were_asked_for(lasting: None) -> None:
    turns = Turns()
    turns.begin()
    turn = turns.take()
    while turns._free:
        turns.take()
    waiting = Waiting(turns, 5)
    for _ in range(5):
        turn.end()
        turn.end()  # which makes no other turn of it
        turn = waiting.next()
    assert waiting.order == [0, 1, 2, 3, 4]


def test_a_crush_ends_when_few_wait_and_those_are_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyproxy.turns._SETTLED", 10 * DEADLINE)
    turns = Turns()
    turns.begin()
    held = [turns.take()]
    while turns._free:
        held.append(turns.take())
    waiting = Waiting(turns, 5)
    monkeypatch.setattr("pyproxy.turns._FEW", 4)
    monkeypatch.setattr("pyproxy.turns._SETTLED", 0.0)
    held.pop().end()
    assert turns.crush, "four wait, which isn't few"
    called = [waiting.next()]
    held.pop().end()
    assert not turns.crush
    called += [waiting.next() for _ in range(4)]
    late = Waiting(turns, 1)  # it saw the crush
    for turn in called[:3]:
        turn.end()
    assert turns._waiting, "two have a turn"
    called[3].end()
    late.next().end()
    called[4].end()
    assert turns._free == 2


def test_who_waits_long_for_the_interpreter_tells_of_a_crush(turns: Turns) -> None:
    """The thread that sends a request lets go of it, and somebody else keeps it for long."""
    before, over = sys.getswitchinterval(), threading.Event()

    def keep() -> None:
        while not over.is_set():
            pass

    busy = threading.Thread(target=keep, daemon=True)
    with letters("a") as [target], Proxy(targets=[target.url]) as proxy:
        assert get(proxy.url).body == b"a"
        assert not turns.crush
        sys.setswitchinterval(3 * turns.LATE)
        busy.start()
        try:
            eventually(lambda: get(proxy.url) and turns.crush)
        finally:
            sys.setswitchinterval(before)
            over.set()
            busy.join(DEADLINE)
        eventually(lambda: get(proxy.url) and not turns.crush)


Hang = Callable[[contextlib.ExitStack], tuple[Mapping[str, Any], bytes]]


def a_silent_target(stack: contextlib.ExitStack) -> tuple[Mapping[str, Any], bytes]:
    """It has answered once on each connection."""
    together, over = threading.Barrier(MANY), threading.Event()

    def serve(target: RawTarget, wire: Wire) -> None:
        wire.read_message()
        together.wait(DEADLINE)
        wire.send(answer())
        over.wait(3 * DEADLINE)

    target = stack.enter_context(RawTarget(serve))
    stack.callback(over.set)
    return {"targets": [target.url]}, GET


def a_target_that_takes_no_connection(
    stack: contextlib.ExitStack,
) -> tuple[Mapping[str, Any], bytes]:
    listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
    for _ in range(3):
        filling = stack.enter_context(socket.socket())
        filling.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            filling.connect(listener.getsockname())
    return {"targets": [listener.getsockname()[1]]}, GET


def a_target_that_takes_no_body(stack: contextlib.ExitStack) -> tuple[Mapping[str, Any], bytes]:
    settings, _ = a_silent_target(stack)
    size = 20_000_000
    put = b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size
    return {**settings, "retry": {"max_body": size}}, put + bytes(size)


def a_full_target(stack: contextlib.ExitStack) -> tuple[Mapping[str, Any], bytes]:
    gate = Gate()
    target = stack.enter_context(RawTarget(gate))
    stack.callback(gate.open.set)
    full = {"url": target.url, "max_connections": 1}
    return {"targets": [full], "queue": {"size": 10, "timeout": 3 * DEADLINE}}, GET


def a_client_that_takes_nothing(stack: contextlib.ExitStack) -> tuple[Mapping[str, Any], bytes]:
    target = stack.enter_context(RawTarget(replying(answer(bytes(20_000_000)))))
    return {"targets": [target.url]}, GET


def a_slow_policy(stack: contextlib.ExitStack) -> tuple[Mapping[str, Any], bytes]:
    [target] = stack.enter_context(letters("b"))
    stack.callback(decided.set)
    decided.clear()
    return {"targets": [target.url], "policy": f"{__name__}:slowly"}, GET


decided, deciding = threading.Event(), threading.Semaphore(0)


def slowly(request: object, targets: tuple[Target, ...]) -> Target:
    deciding.release()
    decided.wait(3 * DEADLINE)
    return targets[0]


@pytest.mark.parametrize(
    "hang",
    [
        a_silent_target,
        a_target_that_takes_no_connection,
        a_target_that_takes_no_body,
        a_full_target,
        a_client_that_takes_nothing,
        a_slow_policy,
    ],
)
def test_who_waits_for_something_else_holds_nobody_up(hang: Hang, crush: Turns) -> None:
    with contextlib.ExitStack() as stack:
        [target] = stack.enter_context(letters("a"))
        hanging = contextlib.ExitStack()
        stack.callback(hanging.close)
        settings, request = hang(hanging)
        quick = {"path": "/quick", "targets": [target.url], "policy": "first"}
        proxy = stack.enter_context(Proxy(**settings, routes=[quick], timeouts={"connect": 90}))
        pool = next(one.pool for one in proxy.services if one.pool.targets[0].url != target.url)
        if hang in (a_silent_target, a_target_that_takes_no_body):
            run_together([lambda: get(proxy.url)] * MANY)
            eventually(lambda: not pool.targets[0].in_flight)  # its connections are back
        for _ in range(MANY):
            wire = stack.enter_context(client(proxy.url, receive_buffer=4096))
            threading.Thread(target=send, args=(wire, request), daemon=True).start()
        if hang is a_slow_policy:
            for _ in range(MANY):
                assert deciding.acquire(timeout=DEADLINE)
        else:
            eventually(lambda: pool.targets[0].in_flight + len(pool._queue) == MANY)
        for _ in range(MANY):
            assert get(proxy.url, "/quick").body == b"a"
        assert crush.crush
        hanging.close()
        proxy.stop(0)


def send(wire: Wire, data: bytes) -> None:
    with contextlib.suppress(OSError):
        wire.send(data)


@pytest.mark.parametrize(
    "failing",
    [b"", b"nonsense\r\n\r\n", None],
    ids=["closes", "talks nonsense", "refuses"],
)
def test_after_a_failure_nobody_has_a_turn(failing: bytes | None, crush: Turns) -> None:
    def serve(target: RawTarget, wire: Wire) -> None:
        wire.read_message()
        if failing:
            wire.send(failing)

    with RawTarget(serve) as target, letters("a") as [other]:
        if failing is None:
            target.stop()
        with Proxy(targets=[target.url, other.url], sticky={"cookie": "c"}) as proxy:
            for _ in range(MANY):
                assert get(proxy.url).body == b"a"
            other.stop()
            assert get(proxy.url).status >= 500
            target.stop()
            assert get(proxy.url).status == 503
