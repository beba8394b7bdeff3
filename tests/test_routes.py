"""Routes: who answers by host and path, and files and redirects on the wire."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyproxy import Proxy
from pyproxy.control.described import Described
from pyproxy.errors import SettingsError
from pyproxy.http.routes import Router, Rule
from pyproxy.settings import parse, plain
from tests.programs import program, run
from tests.support import RawTarget, ask, client, closed_port, get, lettered, letters


def served(url: str, host: str, path: str) -> str:
    found = ask(url, f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    return found.body.decode() if found.status == 200 else str(found.status)


def test_routes_choose_by_host_and_path() -> None:
    with letters("abcdefg") as [a, b, c, d, e, f, g]:
        routes = [
            {"path": "/api/", "targets": [a.url]},
            {"path": "/api/v2", "targets": [b.url]},
            {"host": "example.com", "targets": [c.url]},
            {"host": "*.example.com", "path": "/x", "targets": [d.url]},
            {"host": "*.deep.example.com", "targets": [e.url]},
            {"host": "Example.com", "path": "/api", "targets": [f.url]},
        ]
        with Proxy(targets=[g.url], routes=routes) as proxy:
            expected = {
                ("h", "/"): "g",
                ("h", "/api"): "a",
                ("h", "/api/"): "a",
                ("h", "/api?x=/api/v2"): "a",
                ("h", "/apix"): "g",
                ("h", "/api/v2/users"): "b",
                ("h", "/api/v20"): "a",
                ("h", "/other/api"): "g",
                ("h", "/%61pi/v2"): "b",
                ("h", "//api//v2"): "b",
                ("h", "/api/v2/../v1"): "a",
                ("h", "/api/../.."): "g",
                ("example.com", "/"): "c",
                ("EXAMPLE.com:8000", "/"): "c",
                ("example.com.", "/api/v2"): "f",
                ("www.example.com", "/"): "g",
                ("www.example.com", "/x/y"): "d",
                ("a.b.example.com", "/x"): "d",
                ("www.deep.example.com", "/x"): "e",
                ("deep.example.com", "/x"): "d",
                ("h", "http://example.com/"): "c",
            }
            found = {key: served(proxy.url, *key) for key in expected}
    assert found == expected


def test_the_path_reaches_the_target_as_it_came() -> None:
    with lettered("a") as a, Proxy(routes=[{"path": "/api", "targets": [a.url]}]) as proxy:
        get(proxy.url, "//%61pi/./x?y=%20")
        assert a.requests[0].start == b"GET //%61pi/./x?y=%20 HTTP/1.1"


def test_without_targets_at_the_top_the_rest_is_not_found() -> None:
    with lettered("a") as a, Proxy(routes=[{"path": "/a", "targets": [a.url]}]) as proxy:
        assert (served(proxy.url, "h", "/a"), served(proxy.url, "h", "/b")) == ("a", "404")


def test_each_route_has_a_pool_of_its_own() -> None:
    dead = f"http://127.0.0.1:{closed_port()}"
    with letters("ab") as [a, b]:
        routes = [
            {"path": "/dead", "targets": [dead], "unavailable": {"body": "gone"}},
            {"path": "/two", "targets": [a.url, b.url], "policy": "first"},
        ]
        with Proxy(targets=[b.url, a.url], routes=routes, unavailable={"status": 500}) as proxy:
            answers = [get(proxy.url, path) for path in ("/dead", "/two", "/two", "/", "/")]
            assert [(one.status, one.body) for one in answers] == [
                (500, b"gone"),
                *((200, b"a"), (200, b"a"), (200, b"b"), (200, b"a")),
            ]
            assert [len(pool.targets) for pool in proxy.pools] == [2, 1, 2]


def test_a_route_inherits_what_it_does_not_say() -> None:
    made = parse(
        {
            "targets": [1],
            "sleeping": 3,
            "policy": {"name": "consistent_hash", "key": "uri"},
            "timeouts": {"read": 7, "header": 8, "send": 9},
            "retry": {"attempts": 2},
            "routes": [
                {"path": "/a", "targets": [2], "timeouts": {"send": 1}, "policy": "random"},
                {"path": "/b", "targets": [3], "retry": {"max_body": 0}},
            ],
        }
    )
    a, b = made.routes
    assert (a.sleeping, a.timeouts.read, a.timeouts.send) == (3, 7, 1)
    assert (a.policy.name, a.retry.attempts) == ("random", 2)
    assert (b.policy, b.retry.attempts, b.retry.max_body) == (made.policy, 2, 0)


@pytest.mark.parametrize(
    ("routes", "problems"),
    [
        (
            [{"path": "/a"}],
            ["routes[0]: a route has one of targets (or scaling), files, redirect and deny"],
        ),
        (
            [{"targets": [1], "redirect": "/x"}],
            ["routes[0]: a route has one of targets (or scaling), files, redirect and deny"],
        ),
        ([{"deny": 200}], ["routes[0].deny: expected a whole number from 400 to 599"]),
        ([5], ["routes[0]: expected an object"]),
        ([{"path": "a", "targets": [1]}], ['routes[0].path: expected a path like "/health"']),
        (
            [{"host": "a b", "targets": [1]}],
            ['routes[0].host: expected a host like "example.com" or "*.example.com"'],
        ),
        (
            [{"timeouts": {"header": 1}, "targets": [1]}],
            ['routes[0].timeouts.header: unknown setting (did you mean "read"?)'],
        ),
        ([{"files": "no/such"}], ['routes[0].files: "no/such" is not a folder']),
        (
            [{"redirect": "/", "redirect_status": 200}],
            ["routes[0].redirect_status: expected 301, 302, 303, 307 or 308"],
        ),
        (
            [{"path": "/a", "redirect": "/"}, {"path": "/a/", "redirect": "/"}],
            ["routes[1]: /a/ stands here twice"],
        ),
    ],
)
def test_what_is_wrong_with_a_route_is_told(routes: Any, problems: list[str]) -> None:
    with pytest.raises(SettingsError) as error:
        parse({"targets": [1], "routes": routes}, "x.json")
    assert error.value.problems == [f"x.json: {one}" for one in problems]


def test_what_is_wrong_is_told_where_it_is_said_and_once() -> None:
    with pytest.raises(SettingsError) as error:
        parse(
            {
                **{"targets": [1], "sleeping": 0, "retry": {"attempts": 0}, "policy": "none"},
                "routes": [{"targets": [2]}, {"path": "/a"}, {"path": "b", "targets": [3]}],
                "tcp": [{"listen": 5432}],
            }
        )
    told = [line.split(": ")[1] for line in error.value.problems]
    own = ["routes[1]", "routes[2].path", "tcp[0]"]
    assert sorted(told) == sorted(["sleeping", "retry.attempts", "policy", *own])


@given(st.lists(st.sampled_from(["", ".", "..", "a", "b", "%61", "a%2Fb"]), max_size=6))
def test_a_route_is_found_for_what_a_target_takes_the_path_for(segments: list[str]) -> None:
    def service(_: object) -> Any: ...

    def default(_: object) -> Any: ...

    path = "/" + "/".join(segments)
    decoded = path.replace("%61", "a").replace("%2F", "/")
    plain = os.path.normpath(decoded).lstrip("/") + "/"
    found = Router([Rule(None, "/a/b", service)], default).find("h", path)
    assert (found is service) is plain.startswith("a/b/")


# Redirects


@pytest.mark.parametrize("status", [301, 308])
def test_a_redirect_keeps_host_and_uri_where_it_says_so(status: int) -> None:
    to = {"redirect": "https://{host}{uri}", "redirect_status": status}
    with Proxy(routes=[{"path": "/old", **to}]) as proxy, client(proxy.url) as wire:
        for _ in range(2):
            wire.send(b"POST /old/%41?b=1 HTTP/1.1\r\nHost: E.com:81\r\nContent-Length: 1\r\n\r\nx")
            found = wire.read_message()
            assert (found.status, found.get("Location")) == (status, "https://e.com/old/%41?b=1")


# Denial


def test_what_is_denied_is_asked_of_nobody() -> None:
    """Not in any other way to write the path, nor with a body; the connection stays."""
    routes: list[dict[str, Any]] = [
        {"path": "/internal", "deny": 403},
        {"path": "/internal/open", "targets": [1]},
        {"endings": [".sql"], "deny": 404},
        {"host": "gone.test", "deny": 410},
    ]
    with lettered("a") as a:
        routes[1]["targets"] = [a.url]
        with Proxy(targets=[a.url], routes=routes) as proxy, client(proxy.url) as wire:
            for path, host, status in (
                ("/internal", "x", 403),
                ("//%69nternal/./b/../c?d", "x", 403),
                ("/internal/open", "x", 200),
                ("/internals", "x", 200),
                ("/open/../internal", "x", 403),
                ("/dump.SQL", "x", 404),
                ("/internal", "gone.test", 410),
            ):
                head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 4\r\n\r\n"
                wire.send(head.encode() + b"body")
                assert wire.read_message().status == status, path
            told = proxy.control.explain(Described(uri="/internal/x"))["route"]
            assert told == "/internal (denied with 403)"


# Files


@pytest.fixture
def site(tmp_path: Path) -> Path:
    root = tmp_path / "site"
    (root / "sub").mkdir(parents=True)
    (root / "index.html").write_text("<p>home")
    (root / "sub" / "index.html").write_text("<p>sub")
    (root / "empty.txt").touch()
    (root / "big.bin").write_bytes(bytes(range(256)) * 8192)
    (tmp_path / "secret").write_text("secret")
    return root


def test_files_are_served_below_their_path(site: Path) -> None:
    routes = [{"path": "/static", "files": str(site), "expires": "1h"}]
    with lettered("a") as a, Proxy(targets=[a.url], routes=routes) as proxy:
        assert get(proxy.url, "/").body == b"a"
        found = get(proxy.url, "/static/")
        assert (found.body, found.get("Content-Type")) == (b"<p>home", "text/html; charset=utf-8")
        assert found.get("Cache-Control") == "max-age=3600"
        assert get(proxy.url, "/static/sub/").body == b"<p>sub"
        for path, to in (("/static?q", "./static/?q"), ("/static/sub", "./sub/")):
            moved = get(proxy.url, path)
            assert (moved.status, moved.get("Location")) == (301, to)
        for path in ("/static/../secret", "/static/%2e%2e/secret", "/static/nothing"):
            assert get(proxy.url, path).status in (200, 404)
            assert b"secret" not in get(proxy.url, path).body


def test_a_connection_goes_on_after_each_kind_of_answer(site: Path) -> None:
    etag = ""
    with Proxy(routes=[{"files": str(site)}]) as proxy, client(proxy.url) as wire:
        for _ in range(2):
            for method, path, line, status, length in (
                ("GET", "/big.bin", "", 200, 2097152),
                ("HEAD", "/big.bin", "", 200, 0),
                ("GET", "/big.bin", "Range: bytes=1000000-1000009", 206, 10),
                ("GET", "/big.bin", "Range: bytes=9000000-", 416, None),
                ("GET", "/big.bin", "If-None-Match: *", 304, 0),
                ("GET", "/empty.txt", "", 200, 0),
                ("GET", "/no", "", 404, None),
                ("DELETE", "/index.html", "X: y", 405, None),
            ):
                fields = f"Host: h\r\n{line}\r\n" if line else "Host: h\r\n"
                wire.send(f"{method} {path} HTTP/1.1\r\n{fields}\r\n".encode())
                found = wire.read_message(method == "HEAD" or status == 304)
                assert found.status == status, (method, path, line)
                assert length is None or len(found.body) == length
                etag = found.get("ETag") or etag
                if status == 206:
                    assert found.body == (bytes(range(256)) * 8192)[1000000:1000010]
                    assert found.get("Content-Range") == "bytes 1000000-1000009/2097152"
    assert etag


def test_conditions_said_in_several_lines_are_one_list(site: Path) -> None:
    with Proxy(routes=[{"files": str(site)}]) as proxy:
        etag = get(proxy.url, "/index.html").get("ETag")
        found = get(proxy.url, "/index.html", 'If-Match: "other"', f"If-Match: {etag}")
        assert found.status == 200


def test_a_file_that_shrinks_is_visibly_truncated(site: Path) -> None:
    big = site / "big.bin"
    big.write_bytes(bytes(50_000_000))
    with (
        Proxy(routes=[{"files": str(site)}]) as proxy,
        client(proxy.url, receive_buffer=4096) as wire,
    ):
        wire.send(b"GET /big.bin HTTP/1.1\r\nHost: h\r\n\r\n")
        head = wire.read_head()
        os.truncate(big, 1_000_000)
        got = len(wire.read_to_end())  # it ends, though less came than was told
        assert got < int(head.get("Content-Length") or 0) == 50_000_000


def test_a_small_file_that_shrinks_on_its_way_arrives_as_it_was(site: Path) -> None:
    small = site / "small.txt"
    small.write_bytes(b"a" * 60_000)
    with (
        Proxy(routes=[{"files": str(site)}]) as proxy,
        client(proxy.url, receive_buffer=4096) as wire,
    ):
        wire.send(b"GET /small.txt HTTP/1.1\r\nHost: h\r\n\r\n")
        head = wire.read_head()
        os.truncate(small, 50_000)
        assert head.get("Content-Length") == "60000"
        assert wire.read_exactly(60_000) == b"a" * 60_000


def test_routes_are_told_at_the_start_and_by_check(site: Path, tmp_path: Path) -> None:
    routes = [
        {"host": "a.com", "path": "/f", "files": str(site)},
        {"path": "/t", "targets": [9001, 9002], "policy": "random"},
        {"path": "/r", "redirect": "/t"},
        {"path": "/r", "endings": [".png", ".gif"], "redirect": "/pictures"},
    ]
    data = {"listen": "http://127.0.0.1:0", "routes": routes}
    (tmp_path / "appsettings.json").write_text(json.dumps(data))
    with program(cwd=tmp_path) as proxy:
        proxy.wait_for(r"listens on \S+ and serves routes only")
        proxy.wait_for(rf"^  a\.com/f: {site}$")
        proxy.wait_for(r"^  \*/t: 2 targets \(random\): http://localhost:9001, \S+:9002$")
        proxy.wait_for(r"^  \*/r: /t$")
        proxy.wait_for(r"^  \*/r \.png \.gif: /pictures$")
        assert proxy.stop() == 0
    shown = json.loads(run("check", cwd=tmp_path).stdout)["routes"]
    assert [one["path"] for one in shown] == ["/f", "/t", "/r", "/r"]


@pytest.mark.parametrize(
    "data",
    [
        {"routes": [{"redirect": "/"}, {"path": "/a", "targets": [1], "retry": {"attempts": 2}}]},
        {"tcp": [{"listen": 5432, "targets": [1]}]},
        {"targets": [1, {"url": "http://localhost:2", "weight": 3}], "policy": {"name": "random"}},
    ],
)
def test_what_check_prints_can_be_read_again(data: dict[str, Any]) -> None:
    made = parse(data)
    assert parse(plain(made)) == made


def test_a_file_is_logged_with_its_size(site: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with Proxy(routes=[{"files": str(site)}], access_log=str(log)) as proxy:
        get(proxy.url, "/big.bin")
    assert '"GET /big.bin HTTP/1.1" 200 2097152 "-" "-" - 0.000 0' in log.read_text()


def test_routes_cost_nothing_for_who_has_none() -> None:
    with RawTarget(lambda *_: None) as target, Proxy(targets=[target.url]) as proxy:
        assert not isinstance(proxy._parts.serve, Router)


def test_a_route_for_endings_goes_before_the_others_of_its_host(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.css").write_text("style")
    ends = {"files": str(tmp_path), "endings": [".css", ".JS"], "expires": "30d"}
    with letters("abc") as (a, b, c):
        routes = [
            ends,
            {"path": "/a", "targets": [b.url]},
            {"host": "other.example", "targets": [c.url]},
        ]
        with Proxy(targets=[a.url], routes=routes) as proxy:
            styled = get(proxy.url, "/a/x.css?v=1")
            assert (styled.body, styled.get("Cache-Control")) == (b"style", "max-age=2592000")
            assert get(proxy.url, "/a/x.%43ss").status == 404  # of that name is none
            assert get(proxy.url, "/y.js").status == 404
            for path, letter in (("/a/x.cs", b"b"), ("/a/css", b"b"), ("/", b"a"), ("/js", b"a")):
                assert get(proxy.url, path).body == letter
            at_other = b"GET /x.css HTTP/1.1\r\nHost: other.example\r\n\r\n"
            assert ask(proxy.url, at_other).body == b"c"


def test_two_routes_may_differ_in_endings_only() -> None:
    one, other = {"endings": ".css", "redirect": "/1"}, {"endings": ".js", "redirect": "/2"}
    with Proxy(routes=[one, other]) as proxy:
        assert get(proxy.url, "/a.css").get("Location") == "/1"
        assert get(proxy.url, "/a.js").get("Location") == "/2"
    with pytest.raises(SettingsError, match="stands here twice"):
        parse({"routes": [one, one]})
    with pytest.raises(SettingsError, match=r'expected an ending like "\.css"'):
        parse({"routes": [{"endings": "css", "redirect": "/1"}]})
