"""Affinity: a cookie that binds a client to its target."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyproxy import Proxy
from pyproxy.balancing.sticky import Sticky
from pyproxy.balancing.target import State
from pyproxy.errors import SettingsError
from pyproxy.http.message import without_cookie
from tests.programs import run
from tests.support import (
    DEADLINE,
    Ask,
    Gate,
    Message,
    RawTarget,
    answer,
    client,
    eventually,
    get,
    letters,
    make_target,
    replying,
)

STICKY = {"cookie": "SERVERID", "secret": "s3cret"}


def bound(response: Message) -> str:
    """The Cookie field that a client sends after this response."""
    [line] = response.all("Set-Cookie")
    return f"Cookie: theme=dark; {line.partition(';')[0]}"


def test_a_client_stays_with_its_target() -> None:
    with (
        letters("abc") as targets,
        Proxy(targets=[one.url for one in targets], sticky=STICKY) as proxy,
    ):
        first = [get(proxy.url) for _ in range(3)]
        assert {one.body for one in first} == {b"a", b"b", b"c"}
        for one in first:
            again = [get(proxy.url, "/", bound(one)) for _ in range(3)]
            assert {found.body for found in again} == {one.body}
            assert not any(found.all("Set-Cookie") for found in again), "only when it is needed"


def test_the_cookie_is_made_for_browsers_and_kept_from_shared_caches() -> None:
    with letters("a") as [a], Proxy(targets=[a.url], sticky={**STICKY, "max_age": "1h"}) as proxy:
        found = get(proxy.url)
    [line] = found.all("Set-Cookie")
    pattern = r"SERVERID=[\w=-]{24}; Path=/; HttpOnly; SameSite=Lax; Max-Age=3600"
    assert re.fullmatch(pattern, line)
    assert found.all("Cache-Control") == ["private"]


def test_the_target_sees_the_other_cookies_alone() -> None:
    with letters("a") as [a], Proxy(targets=[a.url], sticky=STICKY) as proxy:
        cookie = bound(get(proxy.url))
        get(proxy.url, "/", cookie)
        get(proxy.url, "/", cookie.replace("theme=dark; ", ""))
        get(proxy.url, "/", "Cookie: SERVERID=forged; a=1")
        assert [one.get("Cookie") for one in a.requests] == [None, "theme=dark", None, "a=1"]


def test_a_route_has_a_cookie_of_its_own() -> None:
    with letters("abcd") as [a, b, c, d]:
        route = {"path": "/api", "targets": [c.url, d.url]}
        with Proxy(targets=[a.url, b.url], routes=[route], sticky=STICKY) as proxy:
            top, api = get(proxy.url), get(proxy.url, "/api")
            assert "; Path=/;" in top.all("Set-Cookie")[0]
            assert "; Path=/api;" in api.all("Set-Cookie")[0]
            # Browsers send the cookie with the longer path first (RFC 6265, 5.4).
            both = f"{bound(api)}; {bound(top).removeprefix('Cookie: ')}"
            for path, cookie, body in (("/", bound(top), b"a"), ("/api", both, b"c")):
                again = [get(proxy.url, path, cookie) for _ in range(3)]
                assert {one.body for one in again} == {body}
                assert not any(one.all("Set-Cookie") for one in again)


def test_a_secret_that_was_hidden_is_no_secret() -> None:
    with pytest.raises(SettingsError, match="say the secret"):
        Proxy(targets=[1], sticky={"cookie": "S", "secret": "(hidden)"})


@pytest.mark.parametrize("value", ["", "x", "http://127.0.0.1:22", "A" * 24, "\xff"])
def test_a_forged_cookie_chooses_nothing(value: str) -> None:
    with (
        letters("ab") as targets,
        Proxy(targets=[one.url for one in targets], sticky=STICKY) as proxy,
    ):
        found = [get(proxy.url, "/", f"Cookie: SERVERID={value}") for _ in range(4)]
    assert sorted(one.body for one in found) == [b"a", b"a", b"b", b"b"]
    assert all(one.all("Set-Cookie") for one in found)


def test_whose_target_is_gone_gets_another_and_a_new_cookie() -> None:
    with letters("ab") as [a, b], Proxy(targets=[a.url, b.url], sticky=STICKY) as proxy:
        first = get(proxy.url)
        assert first.body == b"a"
        a.stop()
        found = get(proxy.url, "/", bound(first))
        assert found.body == b"b"
        assert bound(found) != bound(first)
        assert not get(proxy.url, "/", bound(found)).all("Set-Cookie")


def test_a_draining_target_keeps_its_clients_and_gets_no_new_ones() -> None:
    with letters("ab") as [a, b], Proxy(targets=[a.url, b.url], sticky=STICKY) as proxy:
        first = get(proxy.url)
        proxy.pool.want(proxy.pool.targets[0], State.DRAINING, "by the test")
        assert [get(proxy.url, "/", bound(first)).body for _ in range(3)] == [b"a"] * 3
        assert [get(proxy.url).body for _ in range(3)] == [b"b"] * 3
        proxy.pool.want(proxy.pool.targets[0], State.MAINTENANCE, "by the test")
        moved = get(proxy.url, "/", bound(first))
        assert (moved.body, len(moved.all("Set-Cookie"))) == (b"b", 1)


def test_a_client_whose_target_is_full_is_served_by_another_for_once() -> None:
    gate = Gate(b"a")
    with RawTarget(gate) as a, letters("b") as [b]:
        limited = {"url": a.url, "max_connections": 1}
        with Proxy(targets=[limited, b.url], sticky=STICKY) as proxy, client(proxy.url) as wire:
            wire.send(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
            gate.arrived.get(timeout=DEADLINE)
            gate.open.set()
            cookie = bound(wire.read_message())
            gate.open.clear()
            wire.send(b"GET / HTTP/1.1\r\nHost: test\r\n%b\r\n\r\n" % cookie.encode())
            gate.arrived.get(timeout=DEADLINE)
            other = get(proxy.url, "/", cookie)
            assert (other.body, other.all("Set-Cookie")) == (b"b", [])
            gate.open.set()
            assert wire.read_message().body == b"a"
            eventually(lambda: get(proxy.url, "/", cookie).body == b"a")


@pytest.mark.parametrize(
    "response",
    [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 1\r\n\r\nx",
        b"HTTP/1.1 204 No Content\r\n\r\n",
        answer("x", "Set-Cookie: own=1", "Cache-Control: max-age=60"),
    ],
)
def test_every_kind_of_response_brings_it(response: bytes) -> None:
    bodiless = b" 204 " in response
    with (
        RawTarget(replying(response)) as target,
        Proxy(targets=[target.url], sticky=STICKY) as proxy,
        client(proxy.url) as wire,
    ):
        wire.send(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
        found = wire.read_message(bodiless)
    cookies = found.all("Set-Cookie")
    assert sum(one.startswith("SERVERID=") for one in cookies) == 1
    assert found.all("Cache-Control")[-1] == "private"
    assert ("own=1" in cookies) is (b"own=1" in response)


def test_the_same_secret_makes_the_same_cookie_and_another_another() -> None:
    targets = (make_target(1), make_target(2))
    one, same, other = (Sticky("S", secret) for secret in (b"1", b"1", b"2"))
    assert one.lines(targets[0]) == same.lines(targets[0]) != other.lines(targets[0])
    value = one.lines(targets[1]).split(b";")[0].split(b"=", 1)[1].split(b"\r\n")[0].decode()
    assert one.find(Ask(cookies={"S": value}), targets) is targets[1]
    assert other.find(Ask(cookies={"S": value}), targets) is None
    assert one.find(Ask(cookies={"S": value}), targets[:1]) is None, "nobody outside of the pool"


def test_the_secret_is_not_shown() -> None:
    done = run("check", "--targets", "8001", "--sticky.secret", "hush", "--sticky.cookie", "S")
    assert done.returncode == 0
    assert "hush" not in done.stdout + done.stderr
    assert '"secret": "(hidden)"' in done.stdout


NAMES = st.sampled_from(["S", "SS", "s", "a", "b"])
PAIRS = st.lists(st.tuples(NAMES, st.sampled_from(["", "1", "S", "x=S", '"q"'])))


@given(st.lists(PAIRS.filter(bool), max_size=3))
def test_only_cookies_of_that_name_are_taken_from_a_head(
    fields: list[list[tuple[str, str]]],
) -> None:
    def head(wanted: list[list[tuple[str, str]]]) -> bytes:
        lines = ["Cookie: " + "; ".join(f"{k}={v}" for k, v in pairs) for pairs in wanted if pairs]
        return "\r\n".join(["GET /?S=1 HTTP/1.1", *lines, "X: S=1", "", ""]).encode()

    kept = [[pair for pair in pairs if pair[0] != "S"] for pairs in fields]
    assert without_cookie(head(fields), b"S") == head(kept)
