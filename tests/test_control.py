"""The verbs of those who run a proxy, and what they see."""

import contextlib
import socket
import threading
from typing import Any

import pytest
import requests

from pyproxy import Proxy
from pyproxy.balancing.target import State, Target
from pyproxy.control.control import Control, Journal, target_id, targets_said
from pyproxy.control.described import Described
from pyproxy.control.handover import Inheritance
from pyproxy.control.status import Status
from pyproxy.errors import ControlError
from pyproxy.settings import parse
from pyproxy.sockets import Sockets
from tests.support import DEADLINE, client, eventually, get, lettered, letters


def targets_of(control: Control, pool: int = 0) -> dict[str, dict[str, Any]]:
    found = Status(control)()
    return {one["url"]: one for one in found["pools"][pool]["targets"]}


def id_of(control: Control, url: str) -> str:
    found: str = targets_of(control)[url]["id"]
    return found


def bodies(url: str, count: int) -> str:
    return b"".join(get(url).body for _ in range(count)).decode()


def test_a_target_is_added_drained_put_back_and_removed() -> None:
    with letters("ab") as [a, b], Proxy(targets=[a.url]) as proxy:
        control = Control(proxy)
        known = control.add(b.url)
        assert known == id_of(control, b.url)
        assert sorted(bodies(proxy.url, 4)) == [*"aabb"]
        control.drain(known)
        assert bodies(proxy.url, 4) == "aaaa"
        assert targets_of(control)[b.url]["state"] == "draining"
        assert targets_of(control)[b.url]["reason"] == "by the operator"
        control.maintenance(known)
        assert targets_of(control)[b.url]["state"] == "maintenance"
        control.ready(known)
        assert sorted(bodies(proxy.url, 4)) == [*"aabb"]
        control.remove(known)
        assert bodies(proxy.url, 4) == "aaaa"
        assert [one["what"] for one in control.snapshot()["events"]] == [
            *("added", "draining", "maintenance", "put back", "removed"),
        ]


def test_a_weight_counts_from_the_next_request_on() -> None:
    with letters("ab") as [a, b], Proxy(targets=[a.url, b.url]) as proxy:
        control = Control(proxy)
        control.weight(id_of(control, a.url), 3)
        assert sorted(bodies(proxy.url, 8)) == [*"aaaaaabb"]


@pytest.mark.parametrize(
    ("verb", "arguments", "status", "said"),
    [
        ("drain", ("nobody",), 404, 'no target has the id "nobody"'),
        ("add", ("ftp://a",), 422, "target: expected "),
        ("add", ({"url": "http://a", "wieght": 2},), 422, 'did you mean "weight"?'),
        ("add", ("dns://a:1",), 422, "a dns:// target is for the settings"),
        ("add", ("http://a", "nowhere"), 404, 'no pool is called "nowhere"'),
        ("reload", (), 409, "these settings come from no file"),
    ],
)
def test_what_cannot_be_done_is_told(
    verb: str, arguments: tuple[Any, ...], status: int, said: str
) -> None:
    with Proxy(targets=["http://127.0.0.1:1"]) as proxy:
        with pytest.raises(ControlError) as told:
            getattr(Control(proxy), verb)(*arguments)
        assert told.value.status == status
        assert said in str(told.value)


def test_a_target_is_not_added_twice_and_has_a_weight_from_1_to_256() -> None:
    with lettered("a") as a, Proxy(targets=[a.url]) as proxy:
        control = Control(proxy)
        with pytest.raises(ControlError, match="is in the pool default already"):
            control.add(a.url)
        with pytest.raises(ControlError, match="from 1 to 256"):
            control.weight(id_of(control, a.url), 257)


def test_what_has_happened_is_counted() -> None:
    with letters("ab") as [a, b], Proxy(targets=[a.url, b.url], sleeping=60) as proxy:
        control = Control(proxy)
        status = Status(control)
        bodies(proxy.url, 6)
        a.stop()
        assert bodies(proxy.url, 2) == "bb"
        assert get(proxy.url, "/", "Content-Length: x").status == 400
        found = status()
        first, second = found["pools"][0]["targets"]
        assert (first["requests"], second["requests"]) == (3, 5)
        assert (first["failures_by_reason"], first["evictions"], first["retries"]) == (
            *({"connect": 1}, 1, 1),
        )
        assert (first["state"], first["reason"]) == ("evicted", "connect: connection refused")
        assert second["statuses"] == {"200": 5}
        assert (first["error_rate"], second["error_rate"]) == (0.25, 0.0)
        times = second["response_time"]
        assert 0 < times["p50"] <= times["p99"] < DEADLINE
        assert times["average"] > 0
        assert found["requests"] == 9
        assert found["own_answers"] == {"400": 1}
        assert found["connections"]["accepted"] == 9


def test_what_is_under_way_is_seen() -> None:
    with lettered("a") as a, Proxy(targets=[a.url]) as proxy:
        control = Control(proxy)
        get(proxy.url)
        eventually(lambda: targets_of(control)[a.url]["in_flight"] == 0)


def test_it_explains_who_would_get_a_request_and_leaves_no_trace() -> None:
    with letters("abz") as [a, b, z]:
        targets = [a.url, {"url": z.url, "backup": True}, b.url]
        with Proxy(targets=targets, policy="weighted_round_robin") as proxy:
            control = Control(proxy)
            control.drain(id_of(control, b.url))
            for _ in range(3):
                found = control.explain(Described(uri="/x"))
                assert found["pool"] == "default"
                assert found["target"]["url"] == a.url
                assert found["target"]["reason"] == "the choice of weighted_round_robin"
                assert {one["url"]: one["reason"] for one in found["others"]} == {
                    z.url: "a backup, and ordinary targets are live",
                    b.url: "draining: by the operator",
                }
            assert bodies(proxy.url, 2) == "aa"


def test_it_explains_that_nobody_is_left() -> None:
    with Proxy(targets=[1]) as proxy:
        control = Control(proxy)
        control.maintenance(target_id("default", "http://localhost:1"))
        found = control.explain(Described())
    assert (found["target"], found["reason"]) == (None, "no target is live")


def test_it_explains_what_keys_and_cookies_do() -> None:
    with letters("abc") as targets:
        proxy = Proxy(
            targets=[one.url for one in targets],
            policy={"name": "consistent_hash", "key": "header:X-User"},
            routes=[{"path": "/sticky", "sticky": {"cookie": "S"}, "targets": [9]}],
        )
        with proxy:
            control = Control(proxy)
            for user in map(str, range(10)):
                told = control.explain(Described(fields={"x-user": user}))["target"]["url"]
                served = get(proxy.url, "/", f"X-User: {user}").body.decode()
                assert targets["abc".index(served)].url == told
            assert control.explain(Described(uri="/sticky/x"))["route"] == "/sticky"


def test_the_journal_tells_deeds_in_the_order_in_which_they_were_done() -> None:
    with Proxy(targets=["http://127.0.0.1:1"]) as proxy:
        known = id_of(proxy.control, "http://127.0.0.1:1")
        draining, go_on = threading.Event(), threading.Event()

        def hold(target: Target, verb: str, reason: str) -> None:
            if verb == "draining":
                draining.set()
                assert go_on.wait(DEADLINE)

        proxy.pool.watch(hold)
        first = threading.Thread(target=proxy.control.drain, args=(known,))
        first.start()
        assert draining.wait(DEADLINE)
        second = threading.Thread(target=proxy.control.ready, args=(known,))
        second.start()
        second.join(0.2)  # it may be done, or wait for the first
        go_on.set()
        first.join()
        second.join()
        assert proxy.pool.targets[0].wanted is State.LIVE
        assert list(proxy.control.journal) == [("ready", known)]


def test_the_journal_keeps_the_last_word_on_each_target() -> None:
    said = parse({"targets": [1, 2, {"url": 3, "weight": 2}]})
    one, two, three = (target_id("default", f"http://localhost:{port}") for port in (1, 2, 3))
    journal = Journal([("drain", one), ("weight", one, 5), ("ready", one), ("remove", two)])
    journal.note("weight", three, 7)
    journal.note("add", "new", 4, "")
    journal.note("drain", "new")
    assert list(journal) == [
        *(("weight", one, 5), ("ready", one), ("remove", two), ("weight", three, 7)),
        *(("add", "new", 4, ""), ("drain", "new")),
    ]
    new = parse({"targets": [2, {"url": 3, "weight": 4}]})
    journal.settle(targets_said(said), targets_said(new))
    assert list(journal) == [("remove", two), ("add", "new", 4, ""), ("drain", "new")]
    journal.note("remove", "new")
    assert list(journal) == [("remove", two), ("remove", "new")]


def test_a_proxy_begins_with_what_was_done_by_hand_before() -> None:
    with letters("abc") as [a, b, c], Proxy(targets=[a.url, b.url]) as first:
        control = first.control
        control.drain(id_of(control, a.url))
        control.weight(control.add(c.url), 3)
        with Proxy(
            targets=[a.url, b.url], inheritance=Inheritance(journal=list(control.journal))
        ) as second:
            assert sorted(bodies(second.url, 8)) == [*"bbcccccc"]


def test_the_admin_api_is_there_for_who_embeds_a_proxy() -> None:
    with lettered("a") as a, Proxy(targets=[a.url], admin={"listen": 0}) as proxy:
        assert proxy.admin_url
        assert requests.get(f"{proxy.admin_url}/healthz", timeout=DEADLINE).status_code == 200
        port = proxy.admin_url.rpartition(":")[2]
        proxy.reload(
            parse({"listen": 0, "targets": [a.url], "admin": {"listen": 0, "password": "x"}})
        )
        assert proxy.admin_url.endswith(port), "it stays where it is"
        assert requests.get(f"{proxy.admin_url}/status", timeout=DEADLINE).status_code == 401
        proxy.reload(parse({"listen": 0, "targets": [a.url]}))
        assert proxy.admin_url is None


def test_what_was_done_by_hand_counts_before_anybody_is_served() -> None:
    with letters("ab") as [a, b], contextlib.ExitStack() as stack:
        for _ in range(10):
            sock = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=50))
            url = f"http://127.0.0.1:{sock.getsockname()[1]}"
            wires = [stack.enter_context(client(url)) for _ in range(20)]
            for wire in wires:
                wire.send(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
            said = parse({"listen": url, "targets": [a.url, b.url]})
            left = Inheritance(
                Sockets({url.removeprefix("http://"): sock}),
                journal=[("maintenance", target_id("default", b.url))],
            )
            with Proxy(said, inheritance=left):
                assert {wire.read_message().body for wire in wires} == {b"a"}


def test_a_target_that_was_added_anew_by_hand_is_so_in_the_next_process() -> None:
    with lettered("a") as a, Proxy(targets=[a.url]) as first:
        control = first.control
        control.remove(id_of(control, a.url))
        control.add({"url": a.url, "weight": 5})
        left = Inheritance(journal=list(control.journal))
        with Proxy(targets=[a.url], inheritance=left) as second:
            assert [one.weight for one in second.pool.targets] == [5]
