"""pyproxy in a test: ``load_balancer``, in pytest and without it."""

import contextlib
import importlib.metadata
import os
import re
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

from pyproxy.balancing.target import State
from pyproxy.errors import ListenError, PyproxyError, SettingsError
from pyproxy.lab import balancer
from pyproxy.lab.applications import Request, read_answer
from pyproxy.lab.balancer import LoadBalancer, LoadBalancerError
from pyproxy.lab.command import CommandFailed
from tests.programs import environment
from tests.support import (
    DEADLINE,
    Load,
    Message,
    ask,
    client,
    closed_port,
    eventually,
    get,
    lettered,
    run_together,
)

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "testing.md").read_text(encoding="utf-8")
SERVER = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", "{port}"]


def letter(name: str) -> Callable[[Request], str]:
    return lambda request: name


def fixed(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"w"]


def bodies(lb: LoadBalancer, count: int) -> str:
    return "".join(get(lb.url).body.decode() for _ in range(count))


def post(url: str, body: bytes = b"{}") -> Message:
    return ask(url, b"POST / HTTP/1.1\r\nHost: t\r\nContent-Length: %d\r\n\r\n" % len(body) + body)


@contextlib.contextmanager
def asking(url: str) -> Iterator[list[int]]:
    """A request in a thread of its own, which ends within the block; its status, unless the
    connection breaks."""
    found: list[int] = []

    def ask_it() -> None:
        with contextlib.suppress(OSError, EOFError):
            found.append(get(url).status)

    thread = threading.Thread(target=ask_it)
    thread.start()
    yield found
    thread.join(DEADLINE)
    assert not thread.is_alive()


def address(lb: LoadBalancer, at: int) -> str:
    return lb.proxy.pool.targets[at].url


# What may be a target


def test_each_kind_of_target_serves() -> None:
    with lettered("u") as other, LoadBalancer([fixed, letter("f"), other.url, SERVER]) as lb:
        assert sorted(get(lb.url).body[:1] for _ in range(4)) == [b"<", b"f", b"u", b"w"]
        assert [lb.requests_of(at) for at in range(4)] == [1, 1, 1, 1]


def test_a_function_may_have_more_parameters_with_defaults() -> None:
    def wrapped(*arguments: Any) -> list[bytes]:
        return fixed(*arguments)

    def logged(environ: dict[str, Any], start_response: Any, log: Any = None) -> list[bytes]:
        return fixed(environ, start_response)

    named = [lambda request, name=name: name for name in "ab"]
    with LoadBalancer([*named, lambda request, *more: "c", wrapped, logged]) as lb:
        assert sorted(bodies(lb, 5)) == ["a", "b", "c", "w", "w"]


def test_a_function_sees_the_request_and_its_dict_is_json() -> None:
    def echo(request: Request) -> dict[str, Any]:
        return {
            "method": request.method,
            "path": request.path,
            "query": request.query,
            "said": request.json(),
            "header": request.headers["x-own"],
        }

    with LoadBalancer([echo]) as lb:
        answer = requests.post(
            f"{lb.url}/caf%C3%A9?size=2&size=3", json={"a": 1}, headers={"X-Own": "mine"}
        )
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.json() == {
        "method": "POST",
        "path": "/café",
        "query": {"size": "3"},
        "said": {"a": 1},
        "header": "mine",
    }


@pytest.mark.parametrize(
    ("answer", "status", "body", "kind"),
    [
        ("é", 200, "é".encode(), "text/plain; charset=utf-8"),
        (b"\0", 200, b"\0", "application/octet-stream"),
        ([1], 200, b"[1]", "application/json"),
        ((404, {"no": "such"}), 404, b'{"no": "such"}', "application/json"),
        ((201, "<p>", {"content-type": "text/html"}), 201, b"<p>", "text/html"),
        (204, 204, b"", None),
    ],
)
def test_answers_are_what_they_seem(
    answer: Any, status: int, body: bytes, kind: str | None
) -> None:
    with LoadBalancer([lambda request: answer]) as lb:
        found = requests.get(lb.url)
    assert (found.status_code, found.content) == (status, body)
    assert found.headers.get("Content-Type") == kind


def test_a_header_may_come_twice() -> None:
    cookies = [("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")]
    with LoadBalancer([lambda request: (200, "x", cookies)]) as lb:
        assert requests.get(lb.url).cookies.get_dict() == {"a": "1", "b": "2"}


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (0, b"expected a status from 200 to 599, got '0 '"),
        (100, b"expected a status from 200 to 599"),
        ((99999, "x"), b"expected a status from 200 to 599"),
        ((200, "x", {"A\r\nB": "c"}), b"this can't be a header: 'A"),
        ((200, "x", {"A": "b\r\nC: d"}), b"this can't be a header: 'A'"),
        ((200, "x", {"Transfer-Encoding": "chunked"}), b"leave it out"),
    ],
)
def test_an_answer_that_no_server_could_send_is_told_and_evicts_nobody(
    answer: Any, said: bytes
) -> None:
    with LoadBalancer([lambda request: answer]) as lb:
        found = get(lb.url)
        assert (found.status, said in found.body) == (500, True)
        assert lb.proxy.pool.targets[0].state is State.LIVE


@pytest.mark.parametrize("answer", [None, 1.5, True, (200,), ("no", "status"), (200, None)])
def test_an_answer_that_is_none_is_told(answer: Any) -> None:
    with pytest.raises(TypeError, match="expected"):
        read_answer(answer)
    with LoadBalancer([lambda request: answer]) as lb:
        found = get(lb.url)
    assert (found.status, b"TypeError: expected" in found.body) == (500, True)


def test_an_application_that_fails_answers_500_and_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken(request: Request) -> str:
        raise ConnectionError("no database")

    with LoadBalancer([broken]) as lb:
        assert (
            get(lb.url, "/page").body == b"the application failed: ConnectionError: no database\n"
        )
    assert "the application failed at /page" in caplog.text
    assert "in broken" in caplog.text


def test_an_application_that_fails_the_test_or_exits_answers_500(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def strict(request: Request) -> str:
        pytest.fail("nobody may ask")

    def leaving(request: Request) -> str:
        sys.exit("bye")

    with LoadBalancer([strict, leaving]) as lb:
        assert [get(lb.url).status for _ in range(2)] == [500, 500]
        assert {one.state for one in lb.proxy.pool.targets} == {State.LIVE}
    assert "nobody may ask" in caplog.text
    assert "bye" in caplog.text


def test_a_wsgi_application_may_stream_and_is_closed() -> None:
    class Pieces:
        closed = 0

        def __iter__(self) -> Iterator[bytes]:
            yield from (b"a", b"", b"b")

        def close(self) -> None:
            self.closed += 1

    pieces = Pieces()

    def streaming(environ: dict[str, Any], start_response: Callable[..., Any]) -> Pieces:
        write = start_response("200 OK", [])
        write(b"first ")
        return pieces

    with LoadBalancer([streaming]) as lb:
        assert requests.get(lb.url).content == b"first ab"
        eventually(lambda: pieces.closed == 1)


def test_a_body_that_breaks_off_is_not_taken_for_a_whole_one() -> None:
    def breaking(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterator[bytes]:
        start_response("200 OK", [])
        yield b"half"
        raise ValueError

    def short(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        start_response("200 OK", [("Content-Length", "5")])
        return [b"half"]

    for application in (breaking, short):
        with LoadBalancer([application]) as lb, pytest.raises(requests.RequestException):
            requests.get(lb.url)


@pytest.mark.parametrize("relayed", [False, True])
def test_a_body_that_a_kill_cuts_off_is_not_taken_for_a_whole_one(relayed: bool) -> None:
    go_on = threading.Event()

    def endless(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterator[bytes]:
        start_response("200 OK", [])
        yield b"first"
        assert go_on.wait(DEADLINE)
        yield b"second"

    with (
        LoadBalancer([endless]) as behind,
        LoadBalancer([behind.url if relayed else endless]) as lb,
        requests.get(lb.url, stream=True, timeout=DEADLINE) as answer,
    ):
        pieces = answer.iter_content(5)
        assert next(pieces) == b"first"
        lb.kill(0)
        go_on.set()
        with pytest.raises(requests.RequestException):
            list(pieces)


def test_head_and_chunked_uploads_pass() -> None:
    def length(request: Request) -> str:
        return f"{request.method} {len(request.body)}"

    with lettered("u") as other, LoadBalancer([length, length]) as lb:
        assert requests.head(lb.url).headers["Content-Length"] == "6"
        big = iter([b"x\r\n" * 50000, b"y"])
        assert requests.put(lb.url, data=big).text == "PUT 150001"
        with LoadBalancer([lb.url, other.url]) as outer:
            assert requests.head(outer.url).content == b""
            assert requests.put(outer.url, data=b"x").text in ("PUT 1", "u")


def test_a_url_behind_which_nobody_is_is_evicted_and_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    port = closed_port()
    with LoadBalancer([f"http://127.0.0.1:{port}", letter("b")]) as lb:
        assert bodies(lb, 4) == "bbbb"
        lb.wait_evicted(0)
        said = rf"the server behind {address(lb, 0)} is lost: 127.0.0.1:{port}: .*refused"
        eventually(lambda: re.search(said, caplog.text))


async def asgi(scope: Any, receive: Any, send: Any) -> None: ...


async def awaited(request: Request) -> str:
    return "x"


@pytest.mark.parametrize(
    ("target", "said"),
    [
        (None, "target 1: expected a WSGI application, a function"),
        (asgi, 'target 1: .* an ASGI application is served by a command, like \\["uvicorn"'),
        (awaited, "target 1: .* it is async, which nobody awaits here: expected a WSGI appl"),
        (lambda: "x", "target 1: .* takes \\(\\): expected a WSGI application, or a function"),
        (["python", "app.py"], 'target 1: the command names its port nowhere: put "{port}" in it'),
        ([], "target 1: expected a program and its arguments"),
        (["x", 1, "{port}"], "target 1: \\[1\\] expected"),
        ("ftp://host", "target 1: expected"),
        ("dns://host:1", "target 1: a dns:// name stands for many targets"),
        ({"url": "http://host"}, 'target 1: expected {"target": '),
    ],
)
def test_what_can_be_no_target_is_told(target: Any, said: str) -> None:
    with pytest.raises((TypeError, ValueError), match=said):
        LoadBalancer([fixed, target])


@pytest.mark.parametrize("targets", [fixed, "http://localhost:1", {"target": fixed}, None])
def test_what_is_no_list_of_targets_is_told(targets: Any) -> None:
    with pytest.raises(TypeError, match="expected a list of targets, like \\[app, app\\], got"):
        LoadBalancer(targets)


def test_bad_settings_are_told() -> None:
    with pytest.raises(SettingsError, match=r"load balancer: polcy: unknown setting .*policy"):
        LoadBalancer([fixed], polcy="random")
    with pytest.raises(SettingsError, match=r"targets\[0\].wieght: unknown setting"):
        LoadBalancer([{"target": fixed, "wieght": 2}])
    with pytest.raises(SettingsError, match="policy"):
        LoadBalancer([fixed], policy="randm", seed=1)
    with pytest.raises(ValueError, match="at least one target"):
        LoadBalancer([])
    with pytest.raises(ValueError, match="seed: expected a number from 0 on"):
        LoadBalancer([fixed], seed=-1)
    with pytest.raises(ValueError, match='recovery: expected "automatic" or "manual"'):
        LoadBalancer([fixed], recovery="hand")  # type: ignore[arg-type]


def test_an_address_that_is_taken_is_told_and_nothing_is_left_behind() -> None:
    with lettered("a") as other, pytest.raises(ListenError, match="address already in use"):
        LoadBalancer([fixed, SERVER], listen=other.url)
    assert psutil.Process().children() == []


def test_a_target_may_have_options_and_the_proxy_settings() -> None:
    backup = {"target": letter("b"), "backup": True}
    with LoadBalancer([letter("a"), backup], unavailable={"body": "closed"}) as lb:
        assert bodies(lb, 2) == "aa"
        lb.kill(0)
        assert bodies(lb, 2) == "bb"
        lb.kill(1)
        assert get(lb.url).body == b"closed"


# The verbs


def test_a_killed_target_is_evicted_and_serves_again_after_its_restart() -> None:
    with LoadBalancer([letter("a"), letter("b")]) as lb:
        before = address(lb, 0)
        lb.kill(0)
        lb.kill(0)
        with pytest.raises(ConnectionRefusedError):
            client(before)
        assert bodies(lb, 4) == "bbbb"
        lb.wait_evicted(0)
        lb.restart(0)
        lb.wait_restored(0)
        assert set(bodies(lb, 4)) == {"a", "b"}
        assert address(lb, 0) == before


def test_a_request_under_way_at_a_killed_target_goes_to_another() -> None:
    arrived, go_on = threading.Event(), threading.Event()

    def waiting(request: Request) -> str:
        arrived.set()
        assert go_on.wait(DEADLINE)
        return "a"

    with LoadBalancer([waiting, letter("b")]) as lb:
        with asking(lb.url) as found:
            assert arrived.wait(DEADLINE)
            lb.kill(0)
        go_on.set()
        assert (found, lb.requests_of(1)) == ([200], 1)


def test_a_frozen_target_takes_requests_and_answers_none() -> None:
    with LoadBalancer([letter("a"), letter("b")], timeouts={"read": "2s"}) as lb:
        assert set(bodies(lb, 2)) == {"a", "b"}
        lb.freeze(0)
        assert bodies(lb, 4) == "bbbb"
        lb.wait_evicted(0)
        assert lb.requests_of(0) == 2
        lb.restart(0)
        lb.wait_restored(0)
        assert set(bodies(lb, 2)) == {"a", "b"}


def test_a_slow_target_takes_its_time_and_a_kill_ends_that() -> None:
    with LoadBalancer([letter("a"), letter("b")], retry={"attempts": 1}) as lb:
        lb.slow(0, 0.2)
        began = time.monotonic()
        assert set(bodies(lb, 2)) == {"a", "b"}
        assert time.monotonic() - began >= 0.2
        lb.slow(0, 10 * DEADLINE)
        with asking(lb.url) as found:
            eventually(lambda: lb.requests_of(0) == 2)
            lb.kill(0)
        assert found == [502]
        lb.restart(0)
        lb.slow(0, 60)
        lb.slow(0, 0)
        lb.wait_restored(0)
        assert set(bodies(lb, 2)) == {"a", "b"}


def statuses_of(seed: int | None) -> list[int]:
    with LoadBalancer([letter("a")], seed=seed) as lb:
        lb.flaky(0, 0.5, 503)
        found = [get(lb.url).status for _ in range(40)]
        assert lb.requests_of(0) == 40
        lb.flaky(0, 0)
        assert get(lb.url).status == 200
        lb.flaky(0, 1)
        assert get(lb.url).status == 500
    return found


def test_a_flaky_target_fails_for_a_share_of_the_requests_the_same_with_a_seed() -> None:
    found = statuses_of(seed=5)
    assert set(found) == {200, 503}
    assert 8 <= found.count(503) <= 32
    assert statuses_of(seed=5) == found
    assert statuses_of(seed=6) != found


def test_probes_are_spared_by_flaky_and_count_nowhere() -> None:
    with LoadBalancer(
        [letter("a"), letter("b")], retry={"statuses": [500]}, recovery="manual"
    ) as lb:
        lb.flaky(0, 1)
        assert bodies(lb, 2) == "bb"
        lb.wait_evicted(0)
        lb.probe()
        lb.wait_restored(0)
        assert lb.requests_of(0) == 1


def test_an_answer_that_is_lost_leaves_the_work_done_once() -> None:
    orders: list[bytes] = []

    def order(request: Request) -> tuple[int, str]:
        orders.append(request.body)
        return 201, "placed"

    with LoadBalancer([order, letter("b")], recovery="manual") as lb:
        with requests.Session() as session:  # the proxy has a connection to each that it keeps
            assert {session.post(lb.url, data=b"x").status_code for _ in range(2)} == {200, 201}
        orders.clear()
        lb.reset(0)
        assert sorted(post(lb.url, b"book").status for _ in range(3)) == [200, 200, 502]
        assert (orders, lb.requests_of(0)) == ([b"book"], 2)
        lb.wait_evicted(0)
        lb.restart(0)
        lb.probe()
        assert {post(lb.url).status for _ in range(2)} == {200, 201}


def test_a_lost_answer_to_a_get_is_got_from_another() -> None:
    with LoadBalancer([letter("a"), letter("b")]) as lb:
        lb.reset(0)
        assert bodies(lb, 3) == "bbb"
        assert (lb.requests_of(0), lb.requests_of(1)) == (1, 3)


def test_of_freeze_and_reset_the_later_counts() -> None:
    with LoadBalancer([letter("a")], retry={"attempts": 1}, recovery="manual") as lb:
        lb.freeze(0)
        with asking(lb.url) as found:
            eventually(lambda: lb.requests_of(0) == 1)
            lb.reset(0)
        assert found == [503]


def test_every_verb_works_on_a_command_and_on_a_url() -> None:
    with (
        LoadBalancer([letter("u")]) as other,
        LoadBalancer([SERVER, other.url, letter("z")], timeouts={"read": "2s"}) as lb,
    ):
        for at in (0, 1):
            for break_it in (lb.kill, lb.freeze, lb.reset):
                break_it(at)
                assert {get(lb.url).status for _ in range(3)} == {200}
                lb.wait_evicted(at)
                lb.restart(at)
                lb.wait_restored(at)
            lb.slow(at, 0.01)
            lb.flaky(at, 1)
            assert {get(lb.url).status for _ in range(3)} == {200, 500}
            lb.restart(at)
        assert other.requests_of(0) > 0


def test_the_process_of_a_command_is_killed_and_another_started() -> None:
    def servers() -> list[int]:
        family = psutil.Process().children(recursive=True)
        return [one.pid for one in family if "http.server" in one.cmdline()]

    with LoadBalancer([SERVER]) as lb:
        [first] = servers()
        lb.freeze(0)
        eventually(lambda: psutil.Process(first).status() == psutil.STATUS_STOPPED)
        lb.kill(0)
        assert not psutil.pid_exists(first)
        lb.restart(0)
        [second] = servers()
        lb.restart(0)
        assert not psutil.pid_exists(second)
    assert psutil.Process().children() == []


def test_a_command_that_fails_is_told_with_its_last_words() -> None:
    failing = [sys.executable, "-c", "raise SystemExit('no database')", "{port}"]
    with pytest.raises(CommandFailed, match="ended with status 1: no database"):
        LoadBalancer([fixed, failing])
    with pytest.raises(PyproxyError, match=r"can't be started: .*No such file"):
        LoadBalancer([fixed, ["/no/such/program", "{port}"]])
    assert psutil.Process().children() == []


# What the proxy makes of it


def test_recovery_by_hand_waits_for_probes() -> None:
    with LoadBalancer(
        [letter("a"), letter("b")], recovery="manual", health={"rise": 2}, sleeping=0.01
    ) as lb:
        lb.kill(0)
        assert bodies(lb, 2) == "bb"
        lb.wait_evicted(0)
        lb.probe()
        lb.restart(0)
        lb.probe()
        with pytest.raises(AssertionError, match=r'recovery is "manual": call probe\(\)'):
            lb.wait_restored(0, 0.05)
        lb.probe()
        lb.wait_restored(0, 0)
        assert set(bodies(lb, 2)) == {"a", "b"}


def test_nobody_is_restored_by_time_when_recovery_is_by_hand_and_nobody_is_left() -> None:
    with LoadBalancer([letter("a")], recovery="manual", sleeping=0.01) as lb:
        lb.kill(0)
        assert get(lb.url).status == 503
        lb.restart(0)
        assert not [one for one in threading.enumerate() if one.name == "pyproxy-recovery"]
        assert get(lb.url).status == 503
        lb.probe()
        assert get(lb.url).status == 200


def test_a_probe_may_be_asked_for_whatever_is_due() -> None:
    with LoadBalancer([letter("a"), letter("b")], sleeping=1000) as lb:
        lb.kill(0)
        assert bodies(lb, 2) == "bb"
        lb.restart(0)
        lb.probe()
        lb.wait_restored(0, 0)


def choices(policy: Any, seed: int | None) -> str:
    with LoadBalancer([letter(name) for name in "abcd"], policy=policy, seed=seed) as lb:
        return bodies(lb, 24)


def test_policies_by_chance_choose_the_same_with_a_seed() -> None:
    found = choices("random", 3)
    assert len(set(found)) > 1
    assert choices({"name": "random"}, 3) == found
    assert choices({"name": "random", "seed": 3}, 4) == found
    assert choices("random", 4) != found
    assert choices("round_robin", 3) == "abcd" * 6


def test_waiting_in_vain_tells_what_has_happened() -> None:
    with LoadBalancer([letter("a"), letter("b")], recovery="manual") as lb:
        with pytest.raises(AssertionError) as failure:
            lb.wait_evicted(1, 0.01)
        assert re.search(
            r"^target 1 \(http://127.0.0.1:\d+\) was not evicted within 0.01 s: it is live, and 0 "
            r'requests have reached it \(.* health=\{"interval": "100ms"\}.*\n.*\n  nothing has ',
            str(failure.value),
        )
        lb.kill(1)
        with pytest.raises(AssertionError, match=r"it is killed: restart\(1\) first"):
            lb.wait_restored(1, 0.01)
        bodies(lb, 2)
        lb.wait_evicted(1)
        with pytest.raises(AssertionError) as failure:
            lb.wait_restored(1, 0.01)
    assert re.search(
        r"\d\.\d{3}  target 1 killed, by the test\n +\d+\.\d{3}  target 1 evicted: connect: ",
        str(failure.value),
    )


# Use and misuse


def test_who_is_not_there_or_not_fit_for_a_verb_is_told() -> None:
    with LoadBalancer([fixed, fixed]) as lb:
        verbs: list[Callable[..., Any]] = [lb.kill, lb.restart, lb.freeze, lb.reset, lb.requests_of]
        for verb in [*verbs, lb.wait_evicted, lb.wait_restored]:
            for number in (2, -1):
                with pytest.raises(IndexError, match=f"no target {number}: there are 2, from 0 on"):
                    verb(number)
        with pytest.raises(TypeError, match="expected the number of a target, got 'a'"):
            lb.kill("a")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="seconds: expected a number from 0 on, got -1"):
            lb.slow(0, -1)
        for wait in (lb.wait_evicted, lb.wait_restored):
            with pytest.raises(ValueError, match="seconds: expected a number from 0 on, got None"):
                wait(0, None)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=r"share: expected a number from 0 to 1, got 50"):
            lb.flaky(0, 50)
        with pytest.raises(ValueError, match="status: expected a failure, 400 to 599, got 200"):
            lb.flaky(0, 0.5, 200)
        with pytest.raises(ValueError, match="status: expected a failure, 400 to 599, got 'x'"):
            lb.flaky(0, 0.5, "x")  # type: ignore[arg-type]
        lb.kill(0)
        faults: list[tuple[Callable[..., None], list[int]]]
        faults = [(lb.freeze, [0]), (lb.reset, [0]), (lb.slow, [0, 1]), (lb.flaky, [0, 1])]
        for fault, said in faults:
            with pytest.raises(LoadBalancerError, match=r"target 0 is killed: restart\(0\) first"):
                fault(*said)
    lb.close()
    assert lb.requests_of(1) == 0
    for verb in verbs:
        if verb == lb.requests_of:
            continue
        with pytest.raises(LoadBalancerError, match="this load balancer has ended"):
            verb(0)
    with pytest.raises(LoadBalancerError, match="has ended"):
        lb.probe()


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts descriptors in /proc")
def test_nothing_is_left_of_many_of_them() -> None:
    def use() -> None:
        with LoadBalancer([letter("a"), letter("b"), fixed]) as lb:
            lb.kill(0)
            lb.reset(1)
            assert bodies(lb, 3) == "www"

    use()
    before = descriptors()
    run_together([use] * 8)
    eventually(lambda: descriptors() <= before)


def test_a_client_that_keeps_its_connection_delays_no_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pyproxy.connections._BREATH", 2 * DEADLINE)
    monkeypatch.setattr(balancer, "_DRAIN", 2 * DEADLINE)
    with requests.Session() as session:
        lb = LoadBalancer([letter("a")])
        assert session.get(lb.url).text == "a"
        ending = threading.Thread(target=lb.close)
        ending.start()
        ending.join(DEADLINE)
        assert not ending.is_alive()


def test_what_is_frozen_delays_no_end() -> None:
    lb = LoadBalancer([letter("a")])
    lb.freeze(0)
    began = time.monotonic()
    with asking(lb.url) as found:
        eventually(lambda: lb.requests_of(0) == 1)
        lb.close()
    assert found in ([502], [503], [])
    assert time.monotonic() - began < DEADLINE, "less than timeouts.read and timeouts.drain"


def test_an_application_that_does_not_end_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(balancer, "_PATIENCE", 0.05)
    arrived, go_on = threading.Event(), threading.Event()

    def waiting(request: Request) -> str:
        arrived.set()
        assert go_on.wait(DEADLINE)
        return ""

    lb = LoadBalancer([fixed, waiting], policy="first")
    lb.kill(0)
    with asking(lb.url):
        assert arrived.wait(DEADLINE)
        with pytest.warns(ResourceWarning, match="the application of target 1 still works on a"):
            lb.close()
        go_on.set()


def test_nobody_notices_what_happens_to_one_after_the_other() -> None:
    with LoadBalancer([letter("a"), letter("b"), letter("c")]) as lb:
        with Load(lb.url, clients=3) as load:
            for at in range(3):
                for break_it in (lb.kill, lb.reset):
                    break_it(at)
                    load.goes_on()
                    lb.restart(at)
                    lb.wait_restored(at)
        assert (set(load.statuses), load.failures) == ({200}, [])


# In pytest


def run_pytest(
    folder: Path, *arguments: str, plugin: bool = True
) -> "subprocess.CompletedProcess[str]":
    """As if only this plugin were installed."""
    extra = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"} if plugin else {}
    named = ["-p", "pyproxy.contrib.pytest"] if plugin else []
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error", *named, *arguments],
        cwd=folder,
        env=environment(extra),
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=4 * DEADLINE,
    )


def test_the_fixture_ends_what_is_left(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        """
import pytest
import requests

kept = []

@pytest.fixture(autouse=True)
def nothing_left():
    yield
    for lb in kept:
        with pytest.raises(requests.ConnectionError):
            requests.get(lb.url)

def test_two(load_balancer):
    kept.append(load_balancer([lambda request: "a"]))
    with load_balancer([lambda request: "b"]) as lb:
        assert requests.get(kept[0].url).text + requests.get(lb.url).text == "ab"

def test_that_fails(load_balancer):
    lb = load_balancer([lambda request: "c"])
    lb.wait_evicted(0, 0.01)
"""
    )
    found = run_pytest(tmp_path)
    assert "1 failed, 1 passed" in found.stdout, found.stdout + found.stderr
    assert "E       AssertionError: target 0 (http" in found.stdout
    assert "balancer.py:" not in found.stdout, "the traceback ends in the test"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def named(name: str) -> str:
    """The block that follows the mention of its file."""
    found = re.search(rf"`{name}`:\n\n```python\n(.*?)```", PAGE, re.DOTALL)
    assert found, name
    return found[1]


def test_the_five_tests_of_the_page_pass(tmp_path: Path) -> None:
    for name in ("shop.py", "test_shop.py"):
        (tmp_path / name).write_text(named(name), encoding="utf-8")
    found = run_pytest(tmp_path)
    assert "5 passed" in found.stdout, found.stdout + found.stderr


def test_the_script_of_the_page_runs(tmp_path: Path) -> None:
    (tmp_path / "outage.py").write_text(named("outage.py"), encoding="utf-8")
    subprocess.run(
        [sys.executable, "-W", "error", "outage.py"],
        cwd=tmp_path,
        env=environment(),
        check=True,
        timeout=4 * DEADLINE,
    )


def test_what_the_page_measures_can_be_measured() -> None:
    [command] = [one for one in blocks("sh") if "timeit" in one]
    found = subprocess.run(
        command.replace("python ", f"{shlex.quote(sys.executable)} ", 1).replace("-r 50", "-r 2"),
        shell=True,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=4 * DEADLINE,
    )
    assert re.search(r"best of 2: [\d.]+ msec per loop", found.stdout), found


def test_the_page_names_every_verb() -> None:
    for verb in vars(LoadBalancer):
        if not verb.startswith("_"):
            assert f"`{verb}(" in PAGE, verb


def test_the_plugin_imports_next_to_nothing() -> None:
    script = (
        "import sys, pytest; before = set(sys.modules); import pyproxy.contrib.pytest; "
        "print(*sorted(set(sys.modules) - before))"
    )
    found = subprocess.run(
        [sys.executable, "-c", script],
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
        timeout=DEADLINE,
    )
    assert found.stdout.split() == ["pyproxy", "pyproxy.contrib", "pyproxy.contrib.pytest"]


def test_an_installed_pyproxy_is_a_plugin_that_can_be_left_out(tmp_path: Path) -> None:
    if not importlib.metadata.entry_points(group="pytest11", name="pyproxy"):
        pytest.skip("pyproxy is not installed, so that pytest doesn't know it")
    (tmp_path / "test_it.py").write_text("def test_it(load_balancer):\n    load_balancer([8])\n")
    found = run_pytest(tmp_path, plugin=False)
    assert "1 passed" in found.stdout, found.stdout + found.stderr
    found = run_pytest(tmp_path, "-p", "no:pyproxy", plugin=False)
    assert "fixture 'load_balancer' not found" in found.stdout, found.stdout + found.stderr


def test_nothing_is_said_where_pyproxy_was_imported_before_pytest(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text("def test_it(): pass\n")
    script = "import pyproxy, sys, pytest; sys.exit(pytest.main(['-q', '-W', 'error']))"
    found = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=4 * DEADLINE,
    )
    assert "1 passed" in found.stdout, found.stdout + found.stderr


def test_the_face_shows_what_it_says() -> None:
    import pyproxy

    assert all(hasattr(pyproxy, name) for name in pyproxy.__all__)
    with pytest.raises(AttributeError, match="module 'pyproxy' has no attribute 'Poxy'"):
        _ = pyproxy.Poxy
