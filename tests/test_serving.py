"""Who serves, seen from a client: policies, backups, limits with their queue, states."""

import queue
import threading
from pathlib import Path
from typing import Any

import pytest

from pyproxy import Proxy
from pyproxy.balancing.target import State
from tests.programs import run
from tests.support import (
    DEADLINE,
    Gate,
    Message,
    RawTarget,
    Wire,
    ask,
    client,
    eventually,
    get,
    lettered,
    letters,
)

GET = b"GET / HTTP/1.1\r\nHost: test\r\n\r\n"


def bodies(url: str, count: int, *lines: str) -> str:
    return b"".join(get(url, "/", *lines).body for _ in range(count)).decode()


def test_weights_are_kept() -> None:
    with letters("abc") as [a, b, c]:
        targets = [{"url": a.url, "weight": 5}, b.url, c.url]
        with Proxy(targets=targets, policy="weighted_round_robin") as proxy:
            assert bodies(proxy.url, 14) == "aabacaa" * 2


def test_a_backup_serves_only_when_no_ordinary_target_is_left() -> None:
    with letters("abz") as [a, b, z]:
        targets = [a.url, {"url": z.url, "backup": True}, b.url]
        with Proxy(targets=targets, sleeping=0.1) as proxy:
            assert bodies(proxy.url, 4) == "abab"
            a.stop()
            b.stop()
            assert bodies(proxy.url, 4) == "zzzz", "also for the request that finds them dead"
            a.start()
            eventually(lambda: get(proxy.url).body == b"a")
            assert bodies(proxy.url, 3) == "aaa"


def test_the_least_connections_see_what_is_under_way() -> None:
    slow = Gate(b"s")
    with (
        RawTarget(slow) as busy,
        lettered("b") as b,
        Proxy(targets=[busy.url, b.url], policy="least_connections") as proxy,
    ):
        with client(proxy.url) as waiting:
            waiting.send(GET)
            slow.arrived.get(timeout=DEADLINE)
            assert bodies(proxy.url, 5) == "bbbbb"
            slow.open.set()
            assert waiting.read_message().body == b"s"
        eventually(lambda: not any(one.in_flight for one in proxy.pool.targets))
        assert set(bodies(proxy.url, 4)) == {"s", "b"}


@pytest.mark.parametrize("gone", ["client", "target"])
def test_what_breaks_is_no_longer_under_way(gone: str) -> None:
    def serve(target: RawTarget, wire: Wire) -> None:
        wire.read_message()
        wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")
        if gone == "client":
            wire.at_end()

    with RawTarget(serve) as target, Proxy(targets=[target.url]) as proxy:
        with client(proxy.url) as wire:
            wire.send(GET)
            wire.read_until(b"half")
        eventually(lambda: proxy.pool.targets[0].in_flight == 0)


@pytest.mark.parametrize(
    ("policy", "line"),
    [
        ({"name": "consistent_hash", "key": "header:X-User"}, "X-User: u{}"),
        ({"name": "consistent_hash", "key": "cookie:user"}, "Cookie: a=b; user=u{}"),
        ({"name": "rendezvous_hash", "key": "header:x-user"}, "X-User: u{}"),
    ],
)
def test_the_same_key_goes_to_the_same_target(policy: dict[str, Any], line: str) -> None:
    with (
        letters("abc") as targets,
        Proxy(targets=[one.url for one in targets], policy=policy) as proxy,
    ):
        served = {key: set(bodies(proxy.url, 3, line.format(key))) for key in range(60)}
    assert all(len(letters) == 1 for letters in served.values())
    assert len(set.union(*served.values())) == 3


@pytest.mark.parametrize(
    ("key", "paths"),
    [
        ("uri", [f"/{at}?a" for at in range(30)]),
        ("query:id", [f"/?x=1&id={at}" for at in range(30)]),
    ],
)
def test_parts_of_the_uri_can_be_the_key(key: str, paths: list[str]) -> None:
    with letters("abc") as targets:
        urls = [one.url for one in targets]
        with Proxy(targets=urls, policy={"name": "consistent_hash", "key": key}) as proxy:
            served = {path: {get(proxy.url, path).body for _ in range(3)} for path in paths}
    assert all(len(found) == 1 for found in served.values())
    assert len(set.union(*served.values())) > 1


class Asker:
    """Asks in a thread of its own; ``answer()`` waits for what comes."""

    def __init__(self, url: str, path: str = "/") -> None:
        self._answers: queue.SimpleQueue[Message] = queue.SimpleQueue()
        request = f"GET {path} HTTP/1.1\r\nHost: test\r\n\r\n".encode()
        self._thread = threading.Thread(target=lambda: self._answers.put(ask(url, request)))
        self._thread.start()

    def answer(self) -> Message:
        found = self._answers.get(timeout=DEADLINE)
        self._thread.join()
        return found


def test_when_all_are_full_requests_wait_in_the_order_of_their_arrival() -> None:
    gate = Gate()
    with (
        RawTarget(gate) as target,
        Proxy(targets=[{"url": target.url, "max_connections": 1}]) as proxy,
    ):
        askers = []
        for at in range(5):
            askers.append(Asker(proxy.url, f"/{at}"))
            eventually(
                lambda: len(target.requests) == 1 and proxy.pool.waiting() == len(askers) - 1
            )
        gate.open.set()
        assert [one.answer().status for one in askers] == [200] * 5
        assert [one.start for one in target.requests] == [
            b"GET /%d HTTP/1.1" % at for at in range(5)
        ]


def test_a_full_queue_and_a_wait_too_long_are_answered_with_503() -> None:
    gate = Gate()
    with RawTarget(gate) as target:
        limited = {"url": target.url, "max_connections": 1}
        with Proxy(targets=[limited], queue={"size": 1, "timeout": 0.3}) as proxy:
            served = Asker(proxy.url)
            gate.arrived.get(timeout=DEADLINE)
            waiting = Asker(proxy.url)
            eventually(lambda: proxy.pool.waiting() == 1)
            refused = get(proxy.url)
            assert (refused.status, refused.get("Retry-After")) == (503, "1")
            late = waiting.answer()
            assert (late.status, late.body) == (503, b"every target was full for too long")
            gate.open.set()
            assert served.answer().status == 200
            assert get(proxy.url).status == 200, "whoever left the queue holds nothing"


def test_a_client_that_leaves_the_queue_takes_no_place() -> None:
    gate = Gate()
    with (
        RawTarget(gate) as target,
        Proxy(targets=[{"url": target.url, "max_connections": 1}]) as proxy,
    ):
        served = Asker(proxy.url)
        gate.arrived.get(timeout=DEADLINE)
        with client(proxy.url) as wire:
            wire.send(GET)
            eventually(lambda: proxy.pool.waiting() == 1)
        eventually(lambda: proxy.pool.waiting() == 0)
        gate.open.set()
        assert served.answer().status == 200
        eventually(lambda: proxy.pool.targets[0].in_flight == 0)
        assert len(target.requests) == 1


def test_those_who_wait_learn_that_nobody_is_left() -> None:
    gate = Gate()
    with (
        RawTarget(gate) as target,
        Proxy(targets=[{"url": target.url, "max_connections": 1}], sleeping=60) as proxy,
    ):
        served = Asker(proxy.url)
        gate.arrived.get(timeout=DEADLINE)
        waiting = Asker(proxy.url)
        eventually(lambda: proxy.pool.waiting() == 1)
        proxy.pool.want(proxy.pool.targets[0], State.MAINTENANCE, "by the test")
        assert waiting.answer().body == b"All servers is off"
        gate.open.set()
        assert served.answer().status == 200, "what is under way is finished"


def test_a_full_target_passes_its_requests_to_the_others() -> None:
    gate = Gate()
    with RawTarget(gate) as target, lettered("b") as b:
        limited = {"url": target.url, "max_connections": 1}
        with Proxy(targets=[limited, b.url], policy="first") as proxy:
            served = Asker(proxy.url)
            gate.arrived.get(timeout=DEADLINE)
            assert bodies(proxy.url, 3) == "bbb"
            gate.open.set()
            assert served.answer().body == b"x"


def test_a_function_of_the_users_chooses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "choosing.py").write_text(
        "def by_path(request, targets):\n"
        "    if request.uri == '/fail':\n"
        "        raise RuntimeError('oops')\n"
        "    return targets[len(request.uri) % len(targets)]\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with letters("ab") as targets:
        urls = [one.url for one in targets]
        with Proxy(targets=urls, policy="choosing:by_path") as proxy:
            assert [get(proxy.url, path).body for path in ("/", "/a", "/b", "/ab")] == [
                *(b"b", b"a", b"a", b"b"),
            ]
            assert {get(proxy.url, "/fail").status for _ in range(4)} == {200}
            targets[1].stop()
            assert get(proxy.url, "/").body == b"a", "a retry asks it too, without the dead one"


def test_in_python_the_function_itself_can_be_the_policy() -> None:
    with (
        letters("ab") as targets,
        Proxy(targets=[one.url for one in targets], policy=lambda _, live: live[-1]) as proxy,
    ):
        assert bodies(proxy.url, 3) == "bbb"


def test_a_function_that_cannot_be_imported_is_told_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import nowhere_to_be_found\n")
    done = run("check", "--targets", "8001", "--policy", "broken:choose", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        'command line: policy: can\'t import "broken:choose": '
        "ModuleNotFoundError: No module named 'nowhere_to_be_found'\n"
    )


def test_states_decide_who_gets_requests() -> None:
    with (
        letters("ab") as targets,
        Proxy(targets=[one.url for one in targets], sleeping=0.05) as proxy,
    ):
        pool = proxy.pool
        a = pool.targets[0]
        for state in (State.DRAINING, State.MAINTENANCE):
            pool.want(a, state, "by the test")
            assert bodies(proxy.url, 4) == "bbbb"
            pool.want(a, State.LIVE, "by the test")
            assert sorted(bodies(proxy.url, 4)) == [*"aabb"]
