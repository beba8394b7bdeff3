"""The admin API: what it does, who may use it, and what doesn't hold it up."""

import base64
import contextlib
import errno
import hashlib
import json
import logging
import re
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from pyproxy import Proxy
from pyproxy.control.api import AdminServer
from pyproxy.control.control import Control
from pyproxy.control.feed import Feed
from pyproxy.control.operation import Answer, Call
from pyproxy.control.operations import Api
from pyproxy.control.page import policy
from pyproxy.errors import ControlError, ListenError, SettingsError
from pyproxy.sections import Admin
from pyproxy.sockets import bind
from tests.admin import admin_of, ask_admin
from tests.fleets import made, needs_fork, version
from tests.support import (
    DEADLINE,
    Message,
    RawTarget,
    Wire,
    ask,
    client,
    eventually,
    get,
    letters,
    run_together,
)

LOCKED = Admin(user="boss", password="sésame")
KEY = (b"boss", "sésame".encode())


@contextlib.contextmanager
def two(said: Admin | None = None, **more: Any) -> Iterator[tuple[AdminServer, list[RawTarget]]]:
    """A proxy of two targets, and its admin server."""
    with (
        letters("ab") as targets,
        Proxy(targets=[one.url for one in targets]) as proxy,
        admin_of(proxy, said, **more) as admin,
    ):
        yield admin, targets


@pytest.fixture
def both() -> Iterator[tuple[AdminServer, list[RawTarget]]]:
    with two() as found:
        yield found


@pytest.fixture
def admin(both: tuple[AdminServer, list[RawTarget]]) -> AdminServer:
    return both[0]


def told(server: AdminServer, path: str, **said: Any) -> Any:
    return ask_admin(server, "GET", path, **said).json()


def raw(server: AdminServer, request: str, *lines: str, body: bytes = b"") -> Message:
    fields = "".join(f"{line}\r\n" for line in lines)
    return ask(server.url, f"{request} HTTP/1.1\r\n{fields}\r\n".encode() + body)


def test_the_status_tells_of_targets_and_events(
    both: tuple[AdminServer, list[RawTarget]],
) -> None:
    admin, [a, b] = both
    get(told(admin, "/status")["urls"][0])
    found = told(admin, "/status")
    assert [one["url"] for one in found["pools"][0]["targets"]] == [a.url, b.url]
    assert found["pools"][0]["targets"][0]["state"] == "live"
    assert found["requests"] == 1
    assert found["events"] == []


def test_a_target_is_added_changed_and_removed(both: tuple[AdminServer, list[RawTarget]]) -> None:
    admin, [a, b] = both
    added = ask_admin(admin, "POST", "/targets", json={"url": "http://localhost:1", "weight": 2})
    assert added.status_code == 201
    where = added.headers["Location"]
    assert added.json()["weight"] == 2
    assert told(admin, where)["url"] == "http://localhost:1"
    changed = ask_admin(admin, "PATCH", where, json={"weight": 5, "state": "drain"})
    assert (changed.json()["weight"], changed.json()["state"]) == (5, "draining")
    for word, state in (("maintenance", "maintenance"), ("ready", "live")):
        assert ask_admin(admin, "PATCH", where, json={"state": word}).json()["state"] == state
    gone = ask_admin(admin, "DELETE", where)
    assert (gone.status_code, gone.content) == (204, b"")
    assert ask_admin(admin, "DELETE", where).status_code == 404
    assert [one["url"] for one in told(admin, "/targets")] == [a.url, b.url]
    assert [one["url"] for one in told(admin, "/targets?pool=default")] == [a.url, b.url]
    assert told(admin, "/targets?pool=x") == {"error": 'no pool is called "x"'}


def test_targets_are_managed_by_their_url(both: tuple[AdminServer, list[RawTarget]]) -> None:
    admin, [a, b] = both
    url = "http://localhost:1"
    added = ask_admin(admin, "POST", "/manage", json={"action": "add", "backend": url})
    assert added.json() == {
        **{"status": "ok", "action": "add", "backend": url},
        "id": told(admin, "/targets")[2]["id"],
    }
    again = ask_admin(admin, "POST", "/manage", json={"action": "add", "backend": url})
    assert again.status_code == 409
    said = {"action": "remove", "backend": "http://LOCALHOST:1/", "pool": "default"}
    assert ask_admin(admin, "POST", "/manage", json=said).json()["status"] == "ok"
    missing = ask_admin(admin, "POST", "/manage", json=said)
    assert missing.status_code == 404
    assert missing.json()["error"].endswith(f"there is: {a.url}, {b.url}")


def test_a_url_that_is_in_several_pools_is_not_removed_by_chance() -> None:
    route = {"path": "/x", "targets": [1], "policy": "first"}
    with Proxy(targets=[1], routes=[route]) as proxy, admin_of(proxy) as admin:
        said = {"action": "remove", "backend": "http://localhost:1"}
        assert ask_admin(admin, "POST", "/manage", json=said).status_code == 409
        said["pool"] = proxy.services[1].name
        assert ask_admin(admin, "POST", "/manage", json=said).status_code == 200
        assert [one["pool"] for one in told(admin, "/targets")] == ["default"]


def test_it_is_ready_when_each_http_pool_has_a_live_target() -> None:
    tcp = [{"listen": "127.0.0.1:0", "targets": [2]}]
    with Proxy(targets=[1], tcp=tcp) as proxy, admin_of(proxy, LOCKED) as admin:
        control = Control(proxy)
        assert ask_admin(admin, "GET", "/readyz").json() == {"ready": True}
        first, second = (one["id"] for one in told(admin, "/targets", auth=KEY))
        control.drain(second)
        assert ask_admin(admin, "GET", "/readyz").status_code == 200
        control.drain(first)
        found = ask_admin(admin, "GET", "/readyz")
        assert (found.status_code, found.json()) == (503, {"ready": False, "pools": ["default"]})
        assert ask_admin(admin, "GET", "/healthz").status_code == 200


def test_settings_are_shown_without_secrets() -> None:
    secrets: Any = {"admin": {"password": "geheim"}, "sticky": {"secret": "hush"}}
    with Proxy(targets=[1], **secrets) as proxy, admin_of(proxy) as admin:
        found = ask_admin(admin, "GET", "/settings")
        assert found.json()["targets"] == ["http://localhost:1"]
        assert "geheim" not in found.text
        assert "hush" not in found.text


def test_a_reload_tells_what_has_changed_or_all_that_is_wrong() -> None:
    answers: list[Any] = [["sleeping: 5.0"], SettingsError(["a: b: c", "d: e: f"])]

    def load() -> list[str]:
        found = answers.pop(0)
        if isinstance(found, SettingsError):
            raise found
        assert isinstance(found, list)
        return found

    with two(load=load) as [admin, _]:
        assert ask_admin(admin, "POST", "/reload").json() == {"changes": ["sleeping: 5.0"]}
        refused = ask_admin(admin, "POST", "/reload")
        assert refused.status_code == 422
        assert refused.json()["problems"] == ["a: b: c", "d: e: f"]


def test_a_restart_is_for_who_can(admin: AdminServer) -> None:
    assert ask_admin(admin, "POST", "/restart").status_code == 409

    asked: list[str] = []
    with Proxy(targets=[1]) as proxy:
        verbs = Control(proxy)
        verbs.restart = lambda: asked.append("restart")
        with admin_of(proxy, verbs=verbs) as other:
            assert ask_admin(other, "POST", "/restart").status_code == 202
    assert asked == ["restart"]


def test_it_explains_a_described_request() -> None:
    policy = {"name": "consistent_hash", "key": "header:X-User"}
    with (
        letters("abc") as targets,
        Proxy(targets=[one.url for one in targets], policy=policy) as proxy,
        admin_of(proxy) as admin,
    ):
        for user in map(str, range(8)):
            parameters = {"uri": "/x?y=z", "header": ["X-User: " + user, "Host: a:80"]}
            found = told(admin, "/explain", params=parameters)
            served = get(proxy.url, "/", f"X-User: {user}").body.decode()
            assert found["target"]["url"] == targets["abc".index(served)].url
            assert len(found["others"]) == 2


def test_what_is_asked_wrongly_is_told_with_all_its_problems(admin: AdminServer) -> None:
    found = ask_admin(admin, "GET", "/explain?uri=x&client=me&header=a&methd=A&uri=/")
    assert found.status_code == 422
    assert found.json()["problems"] == [
        "uri: stands there twice",
        'uri: expected a path like "/x?y=z"',
        'client: expected an address like "192.0.2.1"',
        "header: expected name:value",
        'methd: unknown setting (did you mean "method"?)',
    ]
    found = ask_admin(admin, "POST", "/targets", json={"weight": 0, "backup": 1, "por": 2})
    assert found.json()["problems"] == [
        "weight: expected from 1 to 256",
        "backup: expected true or false",
        'por: unknown setting (did you mean "pool"?)',
        "the object needs its url",
    ]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b"", 400),
        (b"\xff", 400),
        (b'{"weight": 1, "weight": 2}', 400),
        (b'{"weight": NaN}', 400),
        (b"[" * 60000, 400),
        (b'{"weight": ' + b"9" * 5000 + b"}", 400),
        (b"[]", 422),
        (b"{}", 422),
        (b'{"weight": true}', 422),
        (b'{"weight": 1.5}', 422),
        (b'{"state": "gone"}', 422),
        (b'{"state": ["ready"]}', 422),
        (b'{"\\ud800": 1}', 422),
    ],
)
def test_a_bad_body_is_refused(admin: AdminServer, body: bytes, status: int) -> None:
    where = f"/targets/{told(admin, '/targets')[0]['id']}"
    lines = ("Content-Type: application/json", f"Content-Length: {len(body)}")
    found = raw(admin, f"PATCH {where}", "Host: localhost", *lines, body=body)
    assert found.status == status
    assert set(json.loads(found.body)) <= {"error", "problems"}
    assert told(admin, where)["weight"] == 1


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_only_json_changes_something(admin: AdminServer, kind: str) -> None:
    body = b'{"action": "add", "backend": "http://localhost:1"}'
    lines = [f"Content-Type: {kind}"] if kind else []
    length = f"Content-Length: {len(body)}"
    found = raw(admin, "POST /manage", "Host: localhost", length, *lines, body=body)
    assert found.status == 415
    assert raw(admin, "POST /reload", "Host: localhost", length, *lines, body=body).status == 415
    assert len(told(admin, "/targets")) == 2


@pytest.mark.parametrize(
    ("request_line", "lines", "status"),
    [
        ("POST /targets", ("Content-Type: application/json",), 411),
        ("POST /targets", ("Transfer-Encoding: chunked",), 411),
        ("POST /targets", ("Content-Length: 65537",), 413),
        ("POST /targets", ("Content-Length: 99999999999999999999",), 413),
        ("POST /targets", ("Content-Length: -1",), 400),
        ("POST /targets", ("Content-Length: 1", "Content-Length: 1"), 400),
        ("GET /status", ("Host: localhost",), 400),
        ("GET /status", ("broken",), 400),
        ("GET /" + "x" * 66000, (), 414),
        ("GET /status", ("X: " + "x" * 66000,), 431),
        ("GET /status", tuple(f"X-{one}: 1" for one in range(200)), 431),
        ("GET /status", tuple(f"X-{one}: {'x' * 60000}" for one in range(20)), 431),
        ("GET /nowhere", (), 404),
        ("GET *", (), 404),
        ("BREW /status", (), 405),
    ],
)
def test_a_bad_request_gets_its_answer_in_json(
    admin: AdminServer, request_line: str, lines: tuple[str, ...], status: int
) -> None:
    found = raw(admin, request_line, "Host: localhost", *lines)
    assert found.status == status
    assert found.get("Content-Type") == "application/json"
    assert list(json.loads(found.body)) == ["error"]


def test_other_methods_are_told_which_there_are(admin: AdminServer) -> None:
    found = ask_admin(admin, "PUT", "/targets")
    assert (found.status_code, found.headers["Allow"]) == (405, "GET, POST, HEAD")
    assert ask_admin(admin, "GET", "/reload").headers["Allow"] == "POST"


def test_head_is_get_without_a_body(admin: AdminServer) -> None:
    for path in ("/status", "/events", "/"):
        found = ask_admin(admin, "HEAD", path)
        assert (found.status_code, found.content) == (200, b"")


def test_a_large_body_that_is_refused_does_not_break_the_connection(admin: AdminServer) -> None:
    body = b"x" * 3_000_000
    lines = ("Host: localhost", f"Content-Length: {len(body)}")
    assert raw(admin, "POST /targets", *lines, body=body).status == 413


def test_a_body_that_waits_for_a_word_gets_it(admin: AdminServer) -> None:
    body = b'{"action": "remove", "backend": "nobody"}'
    with client(admin.url) as wire:
        lines = ["Host: localhost", "Expect: 100-continue", "Content-Type: application/json"]
        head = "\r\n".join(["POST /manage HTTP/1.1", *lines, f"Content-Length: {len(body)}"])
        wire.send(head.encode() + b"\r\n\r\n")
        assert wire.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 100 ")
        wire.send(body)
        assert wire.read_message().status == 404


def test_connections_are_kept_for_more_requests(admin: AdminServer) -> None:
    request = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with client(admin.url) as wire:
        wire.send(request * 3)
        for _ in range(3):
            assert wire.read_message().status == 200
        wire.send(b"GET /healthz HTTP/1.0\r\nHost: localhost\r\n\r\n")
        assert wire.read_message().get("Connection") == "close"
        assert wire.at_end()


# Who may.


@pytest.mark.parametrize("auth", [None, (KEY[0], b"sesame"), (b"Boss", KEY[1]), (b"", b"")])
def test_a_wrong_password_opens_nothing(auth: tuple[bytes, bytes] | None) -> None:
    with two(LOCKED) as [admin, _]:
        for path in ("/", "/status", "/events", "/nowhere", "/openapi.json"):
            found = ask_admin(admin, "GET", path, auth=auth)
            assert found.status_code == 401
            assert found.headers["WWW-Authenticate"].startswith('Basic realm="pyproxy"')


@pytest.mark.parametrize(
    "said",
    [
        *("", "Basic", "Basic !", "Basic Ym9zcw==", "Bearer x", "Digest " + "x" * 1000),
        "Bearer " + base64.b64encode("boss:sésame".encode()).decode(),
    ],
)
def test_what_is_no_basic_authentication_opens_nothing(said: str) -> None:
    with two(LOCKED) as [admin, _]:
        found = ask_admin(admin, "GET", "/status", headers={"Authorization": said})
        assert found.status_code == 401


def test_the_password_opens_and_can_change_meanwhile() -> None:
    with two(LOCKED) as [admin, _]:
        assert ask_admin(admin, "GET", "/status", auth=KEY).status_code == 200
        assert raw(admin, "GET /healthz", "Host: elsewhere.example").status == 200
        admin.configure(Admin(password="other"))
        assert ask_admin(admin, "GET", "/status", auth=KEY).status_code == 401
        assert ask_admin(admin, "GET", "/status", auth=("admin", "other")).status_code == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:1", 200),
        ("127.0.0.1:8404", 200),
        ("127.9.9.9", 200),
        ("[::1]:8404", 200),
        ("proxy.local", 200),
        ("evil.example", 403),
        ("localhost.evil.example", 403),
        ("127.0.0.1.evil.example:8404", 403),
        ("192.0.2.1", 403),
        ("[::1", 403),
        ("", 403),
    ],
)
def test_without_a_password_only_names_of_this_machine_are_answered(host: str, status: int) -> None:
    with two(Admin(listen="http://proxy.local:8404")) as [admin, _]:
        assert raw(admin, "GET /status", f"Host: {host}").status == status


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        ((), 409),
        (("Origin: http://localhost:8404",), 409),
        (("Sec-Fetch-Site: same-origin", "Origin: http://localhost:8404"), 409),
        (("Sec-Fetch-Site: none",), 409),
        (("Sec-Fetch-Site: same-origin", "Origin: https://localhost:8404"), 409),
        (("Origin: http://localhost:9999",), 403),
        (("Origin: https://localhost:8404",), 403),
        (("Origin: http://evil.example",), 403),
        (("Origin: null",), 403),
        (("Origin: http://localhost:8404", "Origin: http://evil.example"), 403),
        (("Sec-Fetch-Site: cross-site",), 403),
        (("Sec-Fetch-Site: same-site", "Origin: http://localhost:8404"), 403),
    ],
)
def test_a_page_of_another_site_changes_nothing(
    admin: AdminServer, lines: tuple[str, ...], status: int
) -> None:
    assert raw(admin, "POST /reload", "Host: localhost:8404", *lines).status == status
    if status == 403:  # but may be where a link to here stands
        assert raw(admin, "GET /", "Host: localhost:8404", *lines).status == 200


def test_answers_are_for_nobody_else(admin: AdminServer) -> None:
    for path in ("/", "/status", "/nowhere"):
        found = ask_admin(admin, "GET", path)
        assert found.headers["Cache-Control"] == "no-store"
        assert found.headers["X-Content-Type-Options"] == "nosniff"
        assert "Access-Control-Allow-Origin" not in found.headers


def test_the_page_runs_nothing_but_its_own_blocks(admin: AdminServer) -> None:
    found = ask_admin(admin, "GET", "/")
    assert found.headers["Content-Type"] == "text/html; charset=utf-8"
    said = found.headers["Content-Security-Policy"]
    assert said.startswith("default-src 'none'; script-src 'sha256-")
    for tag in ("script", "style"):
        for block in re.findall(rf"<{tag}\b[^>]*>(.*?)</{tag}>", found.text, re.DOTALL):
            digest = base64.b64encode(hashlib.sha256(block.encode()).digest()).decode()
            assert f"'sha256-{digest}'" in said
    assert "script-src 'none'; style-src 'none'" in policy("<p>nothing</p>")


def test_a_user_has_no_colon_and_others_need_a_password() -> None:
    for said, expected in (
        ({"user": "a:b"}, 'admin.user: expected a name like "admin"'),
        ({"listen": "https://127.0.0.1:1"}, "admin.listen: expected a URL like"),
        ({"listen": "http://0.0.0.0:1"}, "admin.password: others can reach http://0.0.0.0:1"),
        ({"listen": "http://proxy:1", "password": ""}, "admin.password: others can reach"),
        ({"listen": 8000}, "admin.listen: the proxy itself listens on port 8000 there"),
        (
            {"listen": "http://0.0.0.0:8001", "password": "x"},
            "admin.listen: the proxy itself listens on port 8001 there",
        ),
    ):
        with pytest.raises(SettingsError) as refused:
            Proxy(
                targets=[1],
                listen="http://127.0.0.1:8000",
                tcp=[{"listen": "127.0.0.1:8001", "targets": [2]}],
                admin=said,
            )
        assert expected in str(refused.value)
        assert len(refused.value.problems) == 1
    for fine in ({"listen": "http://[::1]:8404"}, {"listen": "http://0.0.0.0:1", "password": "x"}):
        Proxy(targets=[1], listen="http://127.0.0.1:8000", admin=fine)


# Events.


def events(wire: Wire) -> Iterator[Any]:
    while True:
        event = wire.read_until(b"\n\n")
        yield json.loads(event.partition(b"data: ")[2])


def watching(server: AdminServer) -> Wire:
    wire = client(server.url)
    wire.send(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert wire.read_head().get("Content-Type") == "text/event-stream"
    return wire


def test_events_tell_the_status_at_once_each_second_and_after_a_change(
    admin: AdminServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with watching(admin) as wire:
        each = events(wire)
        assert len(next(each)["pools"][0]["targets"]) == 2
        assert next(each)["now"] > 0
    monkeypatch.setattr(Feed, "INTERVAL", 60)
    with watching(admin) as wire:
        each = events(wire)
        next(each)
        said = {"action": "add", "backend": "http://localhost:1"}
        assert ask_admin(admin, "POST", "/manage", json=said).status_code == 200
        assert len(next(each)["pools"][0]["targets"]) == 3
        admin.stop()
        assert wire.at_end()


def test_who_watches_leaves_room_for_others_and_gives_back_his_place(
    admin: AdminServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Feed, "MOST", 2)
    monkeypatch.setattr(Feed, "INTERVAL", 0.05)
    with watching(admin), watching(admin):
        assert ask_admin(admin, "GET", "/events").status_code == 503
        assert ask_admin(admin, "GET", "/status").status_code == 200
    eventually(lambda: ask_admin(admin, "HEAD", "/events").status_code == 200)


# What doesn't hold it up.


def test_a_hundred_requests_at_once_are_answered(admin: AdminServer) -> None:
    found: list[int] = []
    run_together(
        [lambda: found.append(ask_admin(admin, "GET", "/status").status_code)] * 100,
    )
    assert found == [200] * 100


def test_who_sends_half_a_request_or_nothing_is_not_waited_for(
    admin: AdminServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AdminServer, "PATIENCE", 0.6)
    halves = [b"", b"GET", b"GET / HTTP/1.1\r\nHost: loc", b"POST /manage HTTP/1.1\r\n"]
    body = b"POST /manage HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{"
    for half in (*halves, body):
        with client(admin.url) as wire:
            wire.send(half)
            found = wire.read_to_end()
        assert found.startswith(b"HTTP/1.1 408 ") if half else not found


def test_a_deadline_is_for_the_whole_request(
    admin: AdminServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AdminServer, "PATIENCE", 0.5)
    with client(admin.url) as wire:
        wire.send(b"GET / HTTP/1.1\r\n")
        begun = time.monotonic()
        wire.sock.settimeout(0.1)
        while True:
            with contextlib.suppress(TimeoutError):
                assert b" 408 " in wire.sock.recv(65536)
                break
            wire.send(b"X: 1\r\n")
        assert time.monotonic() - begun < DEADLINE


def test_clients_that_send_nothing_make_others_wait_not_fail(
    admin: AdminServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AdminServer, "PATIENCE", 0.5)
    with contextlib.ExitStack() as stack:
        for _ in range(AdminServer.CONNECTIONS + 5):
            stack.enter_context(client(admin.url))
        assert ask_admin(admin, "GET", "/healthz").status_code == 200


def test_a_machine_out_of_descriptors_or_threads_is_waited_for(
    admin: AdminServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    failures: list[Exception] = [OSError(errno.EMFILE, "Too many open files")]

    def accept() -> tuple[Any, Any]:
        if failures:
            raise failures.pop()
        return AdminServer.get_request(admin)

    monkeypatch.setattr(admin, "get_request", accept)
    assert ask_admin(admin, "GET", "/healthz").status_code == 200
    assert "can't accept a connection: too many open files" in caplog.text
    failed = threading.Event()
    start = threading.Thread.start

    def begin(thread: threading.Thread) -> None:
        if thread.name.startswith("pyproxy-admin-127") and not failed.is_set():
            failed.set()
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", begin)
    with client(admin.url) as wire:
        assert wire.at_end()
    assert ask_admin(admin, "GET", "/healthz").status_code == 200


def test_an_error_of_ours_is_told_in_one_line_and_logged(
    admin: AdminServer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def broken() -> None:
        raise ZeroDivisionError("a secret of ours")

    monkeypatch.setattr(admin.api, "status", broken)
    caplog.set_level(logging.INFO, "pyproxy")
    found = ask_admin(admin, "GET", "/status")
    assert (found.status_code, found.json()) == (
        *(500, {"error": "an error in the proxy; its log tells more"}),
    )
    assert "GET '/status' failed: ZeroDivisionError('a secret of ours')" in caplog.text
    with watching(admin) as wire:
        assert wire.at_end()
    assert "Traceback" not in caplog.text + "".join(capfd.readouterr())


def test_who_hangs_up_is_forgotten(admin: AdminServer, capfd: pytest.CaptureFixture[str]) -> None:
    for said in (b"", b"GET", b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n"):
        wire = client(admin.url)
        wire.send(said)
        wire.reset()
    eventually(
        lambda: [one.name for one in threading.enumerate() if "pyproxy-admin-127" in one.name] == []
    )
    assert capfd.readouterr().err == ""


def test_stopping_ends_idle_connections_and_finishes_what_is_under_way(
    both: tuple[AdminServer, list[RawTarget]], monkeypatch: pytest.MonkeyPatch
) -> None:
    admin, _ = both
    arrived, go = threading.Event(), threading.Event()

    def slow(self: Api, call: Call) -> Answer:
        arrived.set()
        assert go.wait(DEADLINE)
        raise ControlError(409, "late")

    monkeypatch.setattr(Control, "settings", lambda self: slow(admin.api, Call()))
    with client(admin.url) as idle, client(admin.url) as busy:
        idle.send(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert idle.read_message().status == 200
        busy.send(b"GET /settings HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert arrived.wait(DEADLINE)
        stopping = threading.Thread(target=admin.stop)
        stopping.start()
        assert idle.at_end()
        go.set()
        assert busy.read_message().status == 409
        stopping.join(DEADLINE)
    with pytest.raises(OSError):
        client(admin.url)


def test_a_socket_that_is_handed_over_goes_on_listening() -> None:
    with bind("127.0.0.1", 0) as ours, Proxy(targets=[1]) as proxy:
        first = AdminServer(ours.dup(), Admin(), Control(proxy))
        first.start()
        assert ask_admin(first, "GET", "/healthz").status_code == 200
        first.stop(handed_over=True)
        with client(first.url) as wire:  # it waits for who comes next
            second = AdminServer(ours.dup(), Admin(), Control(proxy))
            second.start()
            wire.send(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert wire.read_message().status == 200
            second.stop()


def test_two_servers_share_a_socket_and_each_stops_by_itself() -> None:
    with bind("127.0.0.1", 0) as ours, Proxy(targets=[1]) as proxy:
        both = [AdminServer(ours.dup(), Admin(), Control(proxy)) for _ in range(2)]
        for one in both:
            one.start()
        for _ in range(20):
            assert ask_admin(both[0], "GET", "/healthz").status_code == 200
        both[0].stop(handed_over=True)
        assert ask_admin(both[1], "GET", "/healthz").status_code == 200
        both[1].stop()


def test_a_request_may_stop_the_server_that_answers_it() -> None:
    servers: list[AdminServer] = []

    def load() -> list[str]:
        servers[0].stop()
        return ["admin.listen: elsewhere"]

    with Proxy(targets=[1]) as proxy, admin_of(proxy, load=load) as admin:
        servers.append(admin)
        found = ask_admin(admin, "POST", "/reload")
        assert found.json() == {"changes": ["admin.listen: elsewhere"]}
        assert found.headers["Connection"] == "close"


def test_one_that_never_started_can_be_stopped() -> None:
    with Proxy(targets=[1]) as proxy:
        server = AdminServer(bind("127.0.0.1", 0), Admin(), Control(proxy))
        server.stop()
        server.stop()


def test_it_says_where_it_listens_over_ipv6_too() -> None:
    try:
        sock = bind("::1", 0)
    except ListenError as error:
        pytest.skip(f"no IPv6: {error}")
    with Proxy(targets=[1]) as proxy:
        server = AdminServer(sock, Admin(), Control(proxy))
        server.start()
        try:
            assert server.url.startswith("http://[::1]:")
            assert ask_admin(server, "GET", "/healthz").status_code == 200
        finally:
            server.stop()


# Targets that are made.


@pytest.fixture
def fleet() -> Iterator[AdminServer]:
    """Of a proxy whose one target is made."""
    with (
        Proxy(scaling=made(), sleeping=60) as proxy,
        admin_of(proxy, LOCKED, verbs=proxy.control) as found,
    ):
        yield found


@needs_fork
def test_targets_that_are_made_are_scaled(fleet: AdminServer) -> None:
    found = ask_admin(fleet, "POST", "/scale", json={"count": 2}, auth=KEY)
    assert (found.status_code, found.json()["wanted"]) == (200, 2)
    eventually(lambda: len(told(fleet, "/targets", auth=KEY)) == 2)
    [decision] = told(fleet, "/status", auth=KEY)["pools"][0]["scaling"]["decisions"]
    assert (decision["from"], decision["to"], decision["reason"]) == (1, 2, "by the operator")
    for count, text in ((4, "from 1 to 3"), (0, "from 1 to 3"), (-1, "from 0"), ("2", "number")):
        refused = ask_admin(fleet, "POST", "/scale", json={"count": count}, auth=KEY)
        assert refused.status_code == 422
        assert text in refused.json()["error"]


@needs_fork
def test_a_version_is_rolled_out_held_and_taken_back(fleet: AdminServer) -> None:
    assert ask_admin(fleet, "GET", "/rollout", auth=KEY).status_code == 404
    held = ask_admin(fleet, "PATCH", "/rollout", json={"action": "pause"}, auth=KEY)
    assert held.status_code == 409
    new = {"command": version("new", "hang")}
    begun = ask_admin(fleet, "POST", "/rollout", json=new, auth=KEY)
    assert begun.status_code == 202
    assert begun.json()["rollout"]["state"] == "running"
    again = ask_admin(fleet, "POST", "/rollout", json={"command": version("newer")}, auth=KEY)
    assert again.status_code == 409
    for action, state in (("pause", "paused"), ("resume", "running"), ("abort", "returning")):
        said = {"action": action, "pool": "default"}
        found = ask_admin(fleet, "PATCH", "/rollout", json=said, auth=KEY)
        assert (found.status_code, found.json()["rollout"]["state"]) == (200, state)
    eventually(lambda: told(fleet, "/rollout?pool=default", auth=KEY)["state"] == "returned")
    assert told(fleet, "/rollout", auth=KEY)["reason"] == "aborted by the operator"


@needs_fork
@pytest.mark.parametrize("what", ["command", "environment"])
def test_a_program_of_somebody_s_choice_is_run_only_for_those_with_a_password(
    fleet: AdminServer, what: str
) -> None:
    said = {"command": version("new", "hang"), "environment": {"PATH": "/tmp/mine"}}
    asked = {what: said[what]}
    fleet.configure(Admin())
    refused = ask_admin(fleet, "POST", "/rollout", json=asked)
    assert refused.status_code == 403
    assert "set admin.password, or write it into the settings" in refused.json()["error"]
    assert told(fleet, "/status")["pools"][0]["scaling"]["rollout"] is None
    image = ask_admin(fleet, "POST", "/rollout", json={"image": "app:2"})
    assert image.status_code == 422, "a process is made of a command, whoever asks"
    assert ask_admin(fleet, "POST", "/scale", json={"count": 2}).status_code == 200
    fleet.configure(LOCKED)
    assert ask_admin(fleet, "POST", "/rollout", json=asked, auth=KEY).status_code == 202


@needs_fork
@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ({}, "say at least one of pool, image, command, environment"),
        ({"command": []}, "command: expected at least 1"),
        ({"command": ["python", 1]}, "command[1]: expected a text"),
        ({"command": ["python", "x.py"]}, "say {port} where the program gets its port"),
        ({"command": ["no-such-program", "{port}"]}, 'there is no program "no-such-program"'),
        ({"environment": {"A": None}}, "environment.A: expected a text"),
        ({"image": "app:2"}, "a process is made of a command"),
    ],
)
def test_no_version_that_nothing_can_be_made_of(
    fleet: AdminServer, said: dict[str, Any], problem: str
) -> None:
    found = ask_admin(fleet, "POST", "/rollout", json=said, auth=KEY)
    assert found.status_code == 422
    assert problem in found.json()["error"]


def test_pools_whose_targets_are_not_made_are_neither_scaled_nor_rolled_out(
    admin: AdminServer,
) -> None:
    for method, path, said in (
        ("POST", "/scale", {"count": 1}),
        ("POST", "/rollout", {"image": "x"}),
        ("PATCH", "/rollout", {"action": "abort"}),
        ("GET", "/rollout", None),
    ):
        found = ask_admin(admin, method, path, json=said)
        assert (found.status_code, found.json()["error"]) == (404, "no pool has scaling")
        where = "?pool=x" if said is None else ""
        found = ask_admin(admin, method, path + where, json=said and {**said, "pool": "x"})
        assert found.json()["error"] == 'no pool with scaling is called "x"'
