"""Other settings while it serves: what is the same stays as it is, what is gone drains."""

import contextlib
import gc
import socket
import threading
import weakref
from pathlib import Path
from typing import Any

import pytest

from pyproxy import Proxy
from pyproxy.balancing.target import State
from pyproxy.errors import ControlError, ListenError, SettingsError
from pyproxy.http.message import Peer
from pyproxy.http.server import ProxyServer
from pyproxy.settings import Settings, differences, parse
from tests.support import (
    DEADLINE,
    Gate,
    Load,
    RawTarget,
    Wire,
    client,
    eventually,
    get,
    held_port,
    lettered,
    letters,
)

GET = b"GET / HTTP/1.1\r\nHost: test\r\n\r\n"


def said(**keywords: Any) -> Settings:
    return parse({"listen": "http://127.0.0.1:0", **keywords})


def bodies(url: str, count: int) -> str:
    return b"".join(get(url).body for _ in range(count)).decode()


def test_targets_come_and_go_and_the_others_stay_as_they_are() -> None:
    with letters("abc") as [a, b, c], Proxy(targets=[a.url, b.url]) as proxy:
        assert bodies(proxy.url, 4) == "abab"
        kept = proxy.pool.targets[1]
        proxy.pool.want(kept, State.DRAINING, "by the test")
        proxy.reload(said(targets=[b.url, {"url": c.url, "weight": 2}]))
        assert proxy.pool.targets[0] is kept, "in the new order"
        assert kept.state is State.DRAINING
        assert bodies(proxy.url, 3) == "ccc"
        proxy.pool.want(kept, State.LIVE, "by the test")
        assert sorted(bodies(proxy.url, 6)) == [*"bbcccc"]
        assert b.connections == 1, "the connection to it was kept"
        proxy.reload(said(targets=[b.url, c.url]))
        assert sorted(bodies(proxy.url, 4)) == [*"bbcc"]
        assert (b.connections, c.connections) == (1, 1)


def test_what_an_operator_did_stays_unless_the_settings_say_another_thing() -> None:
    with letters("abc") as [a, b, c], Proxy(targets=[a.url, b.url]) as proxy:
        service = proxy.services[0]
        proxy.pool.add(service.make(service.read(c.url)), "by the test")
        proxy.pool.remove(proxy.pool.targets[0], "by the test")
        proxy.reload(said(targets=[a.url, b.url], sleeping=5))
        assert sorted(bodies(proxy.url, 4)) == [*"bbcc"]
        proxy.reload(said(targets=[b.url]))
        assert sorted(bodies(proxy.url, 4)) == [*"bbcc"]


def test_what_is_under_way_is_finished_where_it_began() -> None:
    gate = Gate(b"old")
    with (
        RawTarget(gate) as old,
        lettered("n") as new,
        Proxy(targets=[old.url]) as proxy,
        client(proxy.url) as wire,
    ):
        wire.send(GET)
        gate.arrived.get(timeout=DEADLINE)
        proxy.reload(said(targets=[new.url], timeouts={"read": 7}, retry={"attempts": 2}))
        assert bodies(proxy.url, 2) == "nn"
        gate.open.set()
        assert wire.read_message().body == b"old"
        wire.send(GET)
        assert wire.read_message().body == b"n", "the client's connection lives on"


def test_policies_limits_and_texts_change() -> None:
    with letters("ab") as [a, b], Proxy(targets=[a.url, b.url]) as proxy:
        targets = [a.url, b.url]
        proxy.reload(said(targets=targets, policy="first", limits={"headers": 3}))
        assert bodies(proxy.url, 3) == "aaa"
        assert get(proxy.url, "/", "A: 1", "B: 2", "C: 3").status == 431
        proxy.reload(said(targets=targets, unavailable={"status": 599, "body": "gone"}))
        a.stop()
        b.stop()
        answer = get(proxy.url)
        assert (answer.status, answer.body) == (599, b"gone")


def test_a_new_check_begins_at_once() -> None:
    with letters("ab") as [a, b], Proxy(targets=[a.url, b.url]) as proxy:
        targets = [a.url, b.url]
        proxy.reload(said(targets=targets, health={"interval": 0.05, "status": [204], "fall": 1}))
        eventually(lambda: not proxy.pool.live)
        proxy.reload(said(targets=targets, sleeping=0.05))
        eventually(lambda: len(proxy.pool.live) == 2)


@pytest.mark.parametrize("kind", ["http", "tcp"])
def test_listeners_open_and_drain(kind: str) -> None:
    gate = Gate(b"x")
    with RawTarget(gate) as target:
        first = {"listen": 0, "targets": [target.url]}
        entry = {"listen": "127.0.0.1:0", "targets": [target.url.replace("http", "tcp")]}
        second: dict[str, Any] = (
            {**first, "listen": [0, 0]} if kind == "http" else {**first, "tcp": [entry]}
        )
        with Proxy(parse(first)) as proxy:
            before = proxy.url
            proxy.reload(parse(second))
            assert proxy.urls[0] == before
            url = proxy.urls[1].replace("tcp:", "http:")
            with client(url) as wire:
                wire.send(GET)
                gate.arrived.get(timeout=DEADLINE)
                proxy.reload(parse(first))
                assert proxy.urls == [before]
                eventually(lambda: refused(url))
                gate.open.set()
                assert wire.read_message().body == b"x", "what was under way is finished"
            assert get(before).body == b"x"


def refused(url: str) -> bool:
    try:
        client(url).close()
    except ConnectionRefusedError:
        return True
    except ConnectionResetError:  # it was in the backlog of a socket that was closed
        pass
    return False


def test_one_address_may_change_from_http_to_tcp() -> None:
    with lettered("a") as a, held_port() as port:
        address = f"127.0.0.1:{port}"
        with Proxy(parse({"listen": f"http://{address}", "targets": [a.url]})) as proxy:
            assert get(proxy.url).get("Via") is None
            entry = {"listen": address, "targets": [a.url.replace("http", "tcp")]}
            proxy.reload(parse({"tcp": [entry]}))
            assert proxy.urls == [f"tcp://{address}"]
            eventually(lambda: get(f"http://{address}").body == b"a")


def test_what_is_bad_changes_nothing(tmp_path: Path) -> None:
    with letters("ab") as [a, b], Proxy(targets=[a.url]) as proxy:
        with pytest.raises(ListenError, match="another program listens there"):
            proxy.reload(said(targets=[b.url], listen=["http://127.0.0.1:0", b.url]))
        with pytest.raises(SettingsError, match="tls: "):
            proxy.reload(
                said(
                    targets=[b.url],
                    listen="https://127.0.0.1:0",
                    tls={"certificate": str(tmp_path / "none.pem")},
                )
            )
        with pytest.raises(ListenError, match="access_log"):
            proxy.reload(said(targets=[b.url], access_log=str(tmp_path / "no" / "log")))
        assert bodies(proxy.url, 2) == "aa"
        assert len(proxy.urls) == 1


def test_the_access_log_moves(tmp_path: Path) -> None:
    with lettered("a") as a, Proxy(targets=[a.url], access_log=str(tmp_path / "1")) as proxy:
        get(proxy.url, "/one")
        proxy.reload(said(targets=[a.url], access_log=str(tmp_path / "2")))
        get(proxy.url, "/two")
        proxy.reload(said(targets=[a.url]))
        get(proxy.url, "/three")
        assert "/one" in (tmp_path / "1").read_text()
        assert "/two" in (tmp_path / "2").read_text()


def test_tunnels_live_on() -> None:
    def echo(target: RawTarget, wire: Wire) -> None:
        wire.read_message()
        wire.send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n")
        while data := wire.sock.recv(100):
            wire.send(data)

    ask = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n"
    with (
        RawTarget(echo) as target,
        lettered("n") as new,
        Proxy(targets=[target.url]) as proxy,
        client(proxy.url) as wire,
    ):
        wire.send(ask)
        wire.read_until(b"\r\n\r\n")
        proxy.reload(said(targets=[new.url]))
        wire.send(b"hello")
        assert wire.read_exactly(5) == b"hello"


def test_routes_change() -> None:
    with letters("ab") as [a, b], Proxy(targets=[a.url]) as proxy:
        proxy.reload(said(targets=[a.url], routes=[{"path": "/b", "targets": [b.url]}]))
        kept = proxy.pools[0]
        assert get(proxy.url, "/b/c").body == b"b"
        proxy.reload(said(targets=[a.url], routes=[{"path": "/c", "targets": [b.url]}]))
        assert (get(proxy.url, "/b").body, get(proxy.url, "/c").body) == (b"a", b"b")
        assert proxy.pools[0] is kept


def test_no_request_fails_while_it_reloads_fifty_times() -> None:
    with letters("abc") as [a, b, c], Proxy(targets=[a.url, b.url]) as proxy:
        over = threading.Event()
        statuses: list[int] = []

        def load() -> None:
            while not over.is_set():
                with client(proxy.url) as wire:
                    for _ in range(20):
                        wire.send(GET)
                        statuses.append(wire.read_message().status)

        threads = [threading.Thread(target=load) for _ in range(4)]
        for thread in threads:
            thread.start()
        choices: list[dict[str, Any]] = [
            {"targets": [a.url, b.url]},
            {"targets": [b.url, c.url], "policy": "least_connections"},
            {"targets": [c.url, a.url], "timeouts": {"read": 5}, "sticky": {"cookie": "S"}},
            {"targets": [a.url], "routes": [{"path": "/", "targets": [b.url]}]},
            {"targets": [a.url], "listen": [0, 0], "health": {"interval": 0.1}},
        ]
        for at in range(50):
            proxy.reload(parse({"listen": 0, **choices[at % len(choices)]}))
        over.set()
        for thread in threads:
            thread.join()
        assert len(statuses) > 50
        assert set(statuses) == {200}


def test_a_request_under_way_outlives_the_access_log(tmp_path: Path) -> None:
    gate = Gate(b"x")
    with (
        RawTarget(gate) as target,
        Proxy(targets=[target.url], access_log=str(tmp_path / "log")) as proxy,
        client(proxy.url) as wire,
    ):
        wire.send(GET)
        gate.arrived.get(timeout=DEADLINE)
        proxy.reload(said(targets=[target.url]))
        gate.open.set()
        assert wire.read_message().body == b"x"
        wire.send(GET)
        assert wire.read_message().body == b"x", "the connection lives on"


def test_what_a_reload_has_replaced_is_forgotten() -> None:
    with lettered("a") as a, Proxy(targets=[a.url]) as proxy:
        before = weakref.ref(proxy.services[0])
        for sleeping in (1, 2):
            proxy.reload(said(targets=[a.url], sleeping=sleeping))
        gc.collect()
        assert before() is None


def test_a_proxy_that_has_stopped_is_not_reloaded() -> None:
    with lettered("a") as a:
        with Proxy(targets=[a.url]) as proxy:
            url = proxy.url
        with pytest.raises(ControlError, match="stopped"):
            proxy.reload(said(targets=[a.url]))
        assert refused(url)


def test_a_raised_limit_counts_also_for_who_is_on_the_way_to_a_place() -> None:
    gate, coming, go_on = Gate(b"x"), threading.Event(), threading.Event()
    with (
        RawTarget(gate) as target,
        Proxy(targets=[target.url], limits={"connections": 1}) as proxy,
        contextlib.ExitStack() as stack,
    ):
        wires = [stack.enter_context(client(proxy.url))]
        wires[0].send(GET)
        gate.arrived.get(timeout=DEADLINE)
        [server] = proxy._servers.values()
        assert isinstance(server, ProxyServer)
        peer = server.peer

        def held(address: tuple[Any, ...]) -> Peer:
            coming.set()
            assert go_on.wait(DEADLINE)
            return peer(address)

        server.peer = held  # type: ignore[method-assign]
        for _ in range(2):
            wires.append(stack.enter_context(client(proxy.url)))
            wires[-1].send(GET)
        assert coming.wait(DEADLINE)
        proxy.reload(said(targets=[target.url], limits={"connections": 9}))
        go_on.set()
        for _ in range(2):
            gate.arrived.get(timeout=DEADLINE)
        gate.open.set()
        for wire in wires:
            assert wire.read_message().body == b"x"


def test_a_raised_limit_counts_at_once() -> None:
    gate = Gate(b"x")
    with (
        RawTarget(gate) as target,
        Proxy(targets=[target.url], limits={"connections": 1}) as proxy,
        contextlib.ExitStack() as stack,
    ):
        wires = [stack.enter_context(client(proxy.url)) for _ in range(3)]
        for wire in wires[:2]:
            wire.send(GET)
        gate.arrived.get(timeout=DEADLINE)
        eventually(lambda: proxy._connections._waiting)
        proxy.reload(said(targets=[target.url], limits={"connections": 9}))
        gate.arrived.get(timeout=DEADLINE)
        wires[2].send(GET)
        gate.arrived.get(timeout=DEADLINE)
        gate.open.set()
        for wire in wires:
            assert wire.read_message().body == b"x"


def test_a_change_of_a_target_is_told_without_what_it_does_not_say() -> None:
    old, new = said(targets=[1]), said(targets=[{"url": "http://localhost:1", "weight": 2}])
    assert differences(old, new) == [
        'targets: without "http://localhost:1" and with {"url": "http://localhost:1", "weight": 2}'
    ]


def test_of_many_new_targets_a_few_are_told() -> None:
    [change] = differences(said(targets=[1]), said(targets=[*range(1, 10)]))
    assert change.endswith('"http://localhost:6" and 3 more')


def test_a_change_is_told_in_its_own_letters() -> None:
    [change] = differences(said(targets=[1]), said(targets=[1], access_log="журнал"))
    assert change == 'access_log: null -> "журнал"'


def test_the_admin_api_stays_where_it_is_while_listeners_come() -> None:
    admin = {"listen": "http://127.0.0.1:0"}
    with lettered("a") as a, Proxy(targets=[a.url], admin=admin) as proxy:
        api = proxy.admin_url
        assert api
        proxy.reload(said(targets=[a.url], admin=admin, listen=[0, 0]))
        assert proxy.admin_url == api
        client(api).close()


def test_the_address_of_the_admin_api_is_not_taken_from_it() -> None:
    with lettered("a") as a, held_port() as port:
        address = f"http://127.0.0.1:{port}"
        with Proxy(targets=[a.url], admin={"listen": address}) as proxy:
            elsewhere = {"listen": "http://127.0.0.1:0"}
            with pytest.raises(ListenError):
                proxy.reload(said(targets=[a.url], listen=[0, address], admin=elsewhere))
            assert proxy.admin_url == address
            assert get(proxy.url).body == b"a"


def slow_names(monkeypatch: pytest.MonkeyPatch, seconds: float = 0.0) -> list[str]:
    """Looks up each name of .test, slowly, as this machine; the names that were asked for."""
    real, asked = socket.getaddrinfo, list[str]()

    def look_up(host: str, *rest: Any) -> Any:
        if not str(host).endswith(".test"):
            return real(host, *rest)
        asked.append(host)
        threading.Event().wait(seconds)
        return real("127.0.0.1", *rest)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return asked


@pytest.mark.parametrize("at", [0, 1])
def test_targets_serve_until_the_name_in_their_place_is_looked_up(
    monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    slow_names(monkeypatch, 0.3)
    with letters("ab") as both, Proxy(targets=[both[0].url]) as proxy:
        with Load(proxy.url) as load:
            load.goes_on()
            proxy.reload(said(targets=[f"dns://x.test:{both[at].port}"]))
            load.goes_on()
        assert set(load.statuses) == {200}
        assert bodies(proxy.url, 2) == "ab"[at] * 2
        assert len(proxy.pool.targets) == 1


def test_names_are_looked_up_as_often_as_the_new_settings_say(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = slow_names(monkeypatch)
    with lettered("a") as a:
        targets = [f"dns://x.test:{a.port}"]
        with Proxy(targets=targets, resolving=3600) as proxy:
            proxy.reload(said(targets=targets, resolving=0.05))
            eventually(lambda: len(asked) > 3)


def test_what_was_added_by_hand_is_as_the_settings_say_when_they_do() -> None:
    with letters("ab") as [a, b], Proxy(targets=[a.url]) as proxy:
        proxy.control.add(b.url)
        proxy.reload(said(targets=[a.url, {"url": b.url, "weight": 3}]))
        assert sorted(bodies(proxy.url, 8)) == [*"aabbbbbb"]


def test_entries_on_ports_of_the_systems_choice_keep_their_targets() -> None:
    with letters("ab") as both:
        entries = [
            {"listen": "127.0.0.1:0", "targets": [one.url.replace("http", "tcp")]} for one in both
        ]
        with Proxy(parse({"tcp": entries})) as proxy:
            urls = [url.replace("tcp:", "http:") for url in proxy.urls]
            proxy.reload(parse({"tcp": entries, "sleeping": 3}))
            assert [get(url).body for url in urls] == [b"a", b"b"]


def test_what_a_listener_finishes_after_its_end_is_logged_where_the_log_is_then(
    tmp_path: Path,
) -> None:
    gate = Gate(b"x")
    with RawTarget(gate) as target:
        log = str(tmp_path / "1")
        first = parse({"listen": [0, 0], "targets": [target.url], "access_log": log})
        with Proxy(first) as proxy, client(proxy.urls[1]) as wire:
            wire.send(b"GET /late HTTP/1.1\r\nHost: test\r\n\r\n")
            gate.arrived.get(timeout=DEADLINE)
            proxy.reload(said(targets=[target.url], access_log=log))
            proxy.reload(said(targets=[target.url], access_log=str(tmp_path / "2")))
            gate.open.set()
            assert wire.read_message().body == b"x"
        assert "/late" in (tmp_path / "2").read_text()
