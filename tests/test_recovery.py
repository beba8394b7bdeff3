"""The recovery thread: evicted targets come back."""

import contextlib
import gc
import socket
import time
import weakref

import pytest

from pyproxy import Proxy
from pyproxy.balancing.target import State, Target
from tests.support import (
    DEADLINE,
    Gate,
    Message,
    RawTarget,
    Wire,
    answer,
    closed_port,
    eventually,
    get,
    lettered,
    letters,
    replying,
)


def restored_at(proxy: Proxy) -> dict[str, float]:
    """Fills with the moment at which each target is restored."""
    moments: dict[str, float] = {}

    def note(target: Target, verb: str, reason: str) -> None:
        if target.state is State.LIVE:
            moments[target.url] = time.monotonic()

    proxy.pool.watch(note)
    return moments


def test_a_target_that_returns_is_restored_after_sleeping() -> None:
    with letters("ab") as [a, b], Proxy(targets=[a.url, b.url], sleeping=0.4) as proxy:
        restored = restored_at(proxy)
        a.stop()
        began = time.monotonic()
        assert [get(proxy.url).body for _ in range(4)] == [b"b"] * 4
        a.start()
        eventually(lambda: restored)
        assert restored[a.url] - began > 0.2, "not probed before its time"
        assert {get(proxy.url).body for _ in range(4)} == {b"a", b"b"}


def test_when_nobody_is_left_the_first_to_return_serves_within_a_second() -> None:
    with letters("ab") as [a, b], Proxy(targets=[a.url, b.url], sleeping=60) as proxy:
        a.stop()

        def seconds() -> float:
            b.stop()
            eventually(lambda: get(proxy.url).status == 503)
            time.sleep(1)  # the probes have become seldom
            b.start()
            began = time.monotonic()
            eventually(lambda: get(proxy.url).status == 200)
            return time.monotonic() - began

        # The machine may be busy for some of them, not for all.
        assert any(seconds() < 1 for _ in range(5))


def test_a_probe_that_hangs_delays_no_other() -> None:
    def hang(target: RawTarget, wire: Wire) -> None:
        wire.read_message()
        wire.read_to_end()

    with (
        RawTarget(hang) as hanging,
        lettered("a") as good,
        Proxy(
            targets=[hanging.url, good.url, f"http://127.0.0.1:{closed_port()}"],
            sleeping=0.2,
            health={"timeout": 5},
        ) as proxy,
    ):
        restored = restored_at(proxy)
        for target in proxy.pool.targets:
            proxy.pool.evict(target, "by the test")
        began = time.monotonic()
        eventually(lambda: good.url in restored)
        assert restored[good.url] - began < 4.5
        assert [target.url for target in proxy.pool.live] == [good.url]


@pytest.mark.parametrize(("status", "back"), [(200, True), (302, True), (404, True), (500, False)])
def test_any_answer_below_500_counts_as_back(status: int, back: bool) -> None:
    reply = replying(answer(status=f"{status} Whatever"))
    with RawTarget(reply) as target, Proxy(targets=[target.url], sleeping=0.05) as proxy:
        proxy.pool.evict(proxy.pool.targets[0], "by the test")
        eventually(lambda: len(target.requests) >= 2 if not back else len(proxy.pool.live))
        assert bool(len(proxy.pool.live)) is back


def test_a_probe_says_who_it_is_and_reads_no_endless_body() -> None:
    def endless(target: RawTarget, wire: Wire) -> None:
        target.requests.append(wire.read_message())
        wire.send(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            wire.send(b"x" * 1000)

    with RawTarget(endless) as target, Proxy(targets=[target.url], sleeping=0.05) as proxy:
        proxy.pool.evict(proxy.pool.targets[0], "by the test")
        eventually(lambda: len(proxy.pool.live))
        probe: Message = target.requests[0]
        assert probe.start == b"GET / HTTP/1.1"
        assert probe.get("User-Agent") == "pyproxy-health"


def test_probes_do_not_go_through_a_proxy_of_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{closed_port()}")
    with lettered("a") as target, Proxy(targets=[target.url], sleeping=0.05) as proxy:
        proxy.pool.evict(proxy.pool.targets[0], "by the test")
        eventually(lambda: len(proxy.pool.live))


def test_those_that_never_answer_do_not_keep_the_others_from_their_turn() -> None:
    with contextlib.ExitStack() as stack:
        # They take connections, and no more: as many checks as may run at once hang there.
        silent = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(200)]
        good = stack.enter_context(lettered("a"))
        urls = [f"http://127.0.0.1:{one.getsockname()[1]}" for one in silent]
        proxy = stack.enter_context(
            Proxy(targets=[*urls, good.url], sleeping=0.1, health={"timeout": 0.3})
        )
        for target in proxy.pool.targets:
            proxy.pool.evict(target, "by the test")
        eventually(lambda: [one.url for one in proxy.pool.live] == [good.url])
        assert get(proxy.url).body == b"a"


def test_a_target_that_goes_while_it_is_checked_is_forgotten() -> None:
    gate = Gate()

    def forgotten() -> bool:
        gc.collect()
        return gone() is None

    with (
        RawTarget(gate) as slow,
        lettered("a") as a,
        Proxy(targets=[slow.url, a.url], health={"interval": 0.05}) as proxy,
    ):
        gone = weakref.ref(proxy.pool.targets[0])
        gate.arrived.get(timeout=DEADLINE)
        proxy.pool.remove(proxy.pool.targets[0], "by the test")
        gate.open.set()
        eventually(forgotten)
