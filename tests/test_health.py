"""Active checks: who is evicted before a client notices, and who is taken back."""

import itertools
import threading
import time
from typing import Any

import pytest

from pyproxy import Proxy
from tests.support import (
    DEADLINE,
    RawTarget,
    Wire,
    answer,
    closed_port,
    eventually,
    get,
    lettered,
    replying,
)


class Sick(RawTarget):
    """Answers checks of /health as told, and all else well."""

    def __init__(self, status: str = "200 OK", body: bytes = b"fine") -> None:
        self.status, self.body = status, body
        self.checked: list[float] = []
        super().__init__(self._answer)

    def _answer(self, target: RawTarget, wire: Wire) -> None:
        message = wire.read_message()
        if message.start.startswith(b"GET /health "):
            self.checked.append(time.monotonic())
            wire.send(answer(self.body, status=self.status))
        else:
            wire.send(answer(b"served"))


@pytest.mark.parametrize("tcp", [False, True])
def test_a_machine_out_of_descriptors_evicts_nobody(
    tcp: bool, caplog: pytest.LogCaptureFixture
) -> None:
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with Sick() as target, watched(target.url, interval=DEADLINE, fall=1, tcp=tcp) as proxy:
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            proxy.services[0].recovery.probe()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert len(proxy.pool.live) == 1
        assert f"can't check {target.url}: " in caplog.text
        proxy.services[0].recovery.probe()
        assert len(proxy.pool.live) == 1


def watched(*urls: str, **health: Any) -> Proxy:
    health = {"path": "/health", "interval": 0.05, "fall": 2, **health}
    return Proxy(targets=list(urls), sleeping=60, health=health)


def evicted(proxy: Proxy) -> list[str]:
    return [one.url for one in proxy.pool.evicted()]


def test_bad_checks_in_a_row_evict_and_good_ones_restore() -> None:
    with Sick() as sick, lettered("b") as good, watched(sick.url, good.url, rise=3) as proxy:
        eventually(lambda: len(sick.checked) > 2)
        assert not evicted(proxy)
        sick.status = "503 Service Unavailable"
        eventually(lambda: evicted(proxy) == [sick.url])
        assert {get(proxy.url).body for _ in range(4)} == {b"b"}
        before = len(sick.checked)
        sick.status = "200 OK"
        eventually(lambda: not evicted(proxy))
        assert len(sick.checked) - before >= 3, "not before the third good one in a row"
        eventually(lambda: len(proxy.history()) == 2)
        told = [(event.what, event.reason) for event in proxy.history()]
        assert told == [("evicted", "check: answered 503"), ("restored", "answered 200")]


@pytest.mark.parametrize(
    ("reply", "health", "reason"),
    [
        (("500 Oops", b""), {}, "check: answered 500"),
        (("204 No Content", b""), {"status": [200]}, "check: answered 204"),
        (("200 OK", b"database away"), {"body": "ready"}, "check: answered 200 without 'ready'"),
    ],
)
def test_what_makes_a_check_bad(
    reply: tuple[str, bytes], health: dict[str, Any], reason: str
) -> None:
    with Sick(*reply) as sick, watched(sick.url, **health) as proxy:
        eventually(proxy.history)
        assert proxy.history()[0].reason == reason


@pytest.mark.parametrize(
    ("reply", "health"),
    [
        (("404 Not Found", b""), {}),
        (("404 Not Found", b""), {"status": [200, 404]}),
        (("200 OK", b"x" * 9000 + b"ready"), {"body": "ready"}),
    ],
)
def test_what_makes_a_check_good(reply: tuple[str, bytes], health: dict[str, Any]) -> None:
    with Sick(*reply) as sick, watched(sick.url, **health) as proxy:
        eventually(lambda: len(sick.checked) > 4)
        assert not proxy.history()


def test_a_target_that_hangs_in_its_check_is_evicted_after_the_timeout() -> None:
    def hang(target: RawTarget, wire: Wire) -> None:
        wire.read_message()
        wire.read_to_end()

    with RawTarget(hang) as target, watched(target.url, timeout=0.1, fall=1) as proxy:
        eventually(lambda: evicted(proxy))
        eventually(proxy.history)  # it is told after the change
        assert "timed out" in proxy.history()[0].reason


@pytest.mark.parametrize(
    "pieces",
    [
        [b"HTTP/1.1 200 OK\r\nX: ", *[b"x"] * 10_000],
        [b"HTTP/1.1 100 Continue\r\n\r\n"] * 10_000,
        [b"HTTP/1.1 103 Early Hints\r\n\r\n"] * 10_000,
    ],
    ids=["a head that drips", "100 without an end", "103 without an end"],
)
def test_an_answer_that_comes_too_slowly_is_a_bad_check(pieces: list[bytes]) -> None:
    def drip(target: RawTarget, wire: Wire) -> None:
        wire.read_message()
        for piece in pieces:
            wire.send(piece)
            time.sleep(0.02)

    with RawTarget(drip) as target, watched(target.url, timeout=0.2, fall=1) as proxy:
        eventually(proxy.history)
        assert proxy.history()[0].reason == "check: timed out"


def test_the_final_answer_counts_not_the_interim_ones_before_it() -> None:
    final = "500 Oops"

    def hint(target: RawTarget, wire: Wire) -> None:
        wire.read_message()
        wire.send(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + answer(status=final))

    with RawTarget(hint) as target, watched(target.url, status=[200]) as proxy:
        eventually(proxy.history)
        assert proxy.history()[0].reason == "check: answered 500"
        final = "200 OK"
        eventually(lambda: not evicted(proxy))


@pytest.mark.parametrize("start", [b"", b"HTTP/9 200 ", b"HTTP/1.1 2x0 "])
def test_what_is_no_answer_is_not_repeated_in_the_log(
    start: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    def babble(target: RawTarget, wire: Wire) -> None:
        wire.read_message()
        wire.send(start + b"\x1b[2J\r" * 10_000 + b"\r\n\r\n")

    with RawTarget(babble) as target, watched(target.url) as proxy:
        eventually(proxy.history)
        assert proxy.history()[0].reason == "check: not an HTTP response"
    assert "\x1b" not in caplog.text


def test_a_bare_connection_can_be_the_check() -> None:
    asked = threading.Event()

    def note(target: RawTarget, wire: Wire) -> None:
        if wire.read_to_end():
            asked.set()

    dead = f"http://127.0.0.1:{closed_port()}"
    with RawTarget(note) as target, watched(target.url, dead, tcp=True) as proxy:
        eventually(lambda: target.connections > 3)
        eventually(lambda: evicted(proxy) == [dead])
        eventually(proxy.history)  # it is told after the change
        assert proxy.history()[0].reason == "check: connect: connection refused"
    assert not asked.is_set()


def test_first_checks_are_spread_over_the_interval() -> None:
    sick = [Sick() for _ in range(4)]
    for one in sick:
        one.__enter__()
    try:
        with watched(*(one.url for one in sick), interval=2.4):
            eventually(lambda: all(one.checked for one in sick))
        first = [one.checked[0] for one in sick]
        assert first == sorted(first)
        assert all(0.3 < later - one < 1.8 for one, later in itertools.pairwise(first))
    finally:
        for one in sick:
            one.__exit__(None, None, None)


def test_without_an_interval_live_targets_are_not_checked() -> None:
    with Sick() as sick, watched(sick.url, interval=None) as proxy:
        proxy.pool.evict(proxy.pool.targets[0], "by the test")
        eventually(lambda: not evicted(proxy))
        at = len(sick.checked)
        get(proxy.url)
        assert at == len(sick.checked) == 1


def test_max_evicted_keeps_some_in_service() -> None:
    bad = replying(answer(status="503 Service Unavailable"))
    with RawTarget(bad) as a, RawTarget(bad) as b, RawTarget(bad) as c, RawTarget(bad) as d:
        urls = [one.url for one in (a, b, c, d)]
        with Proxy(
            targets=urls,
            max_evicted=0.5,
            health={"interval": 0.03, "fall": 1},
        ) as proxy:
            eventually(lambda: len(evicted(proxy)) == 2)
            eventually(lambda: len(a.requests) + len(b.requests) + len(c.requests) > 20)
            assert len(proxy.pool.live) == 2
            assert get(proxy.url).status == 503


def test_the_history_keeps_the_last_hundred() -> None:
    with Proxy(targets=[f"http://127.0.0.1:{closed_port()}"], sleeping=60) as proxy:
        target = proxy.pool.targets[0]
        for at in range(60):
            proxy.pool.evict(target, f"e{at}")
            proxy.pool.restore(target, f"r{at}")
        events = proxy.history()
        assert (len(events), events[0].reason, events[-1].reason) == (100, "e10", "r59")
        assert {event.url for event in events} == {target.url}
        assert abs(events[-1].at - time.time()) < 60
