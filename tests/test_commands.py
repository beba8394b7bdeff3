"""The commands that talk to a running proxy."""

import json
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from pyproxy import Proxy
from pyproxy.cli import main
from pyproxy.commands import status_lines, table, target_table
from pyproxy.control.api import AdminServer
from pyproxy.control.control import Control
from pyproxy.errors import SettingsError
from pyproxy.sections import Admin
from tests.admin import admin_of
from tests.programs import program
from tests.support import RawTarget, closed_port, get, letters, replying

Say = Callable[..., Result]


@pytest.fixture(autouse=True)
def nothing_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No settings, but those of a test."""
    monkeypatch.chdir(tmp_path)
    for name in ("LISTEN", "USER", "PASSWORD"):
        monkeypatch.delenv(f"PYPROXY_ADMIN__{name}", raising=False)


def invoke(*words: str) -> Result:
    return CliRunner().invoke(main, words)


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    with letters("ab") as targets, Proxy(targets=[one.url for one in targets]) as found:
        yield found


@pytest.fixture
def admin(proxy: Proxy) -> Iterator[AdminServer]:
    with admin_of(proxy) as found:
        yield found


@pytest.fixture
def say(admin: AdminServer) -> Say:
    return lambda *words: invoke(*words, "--admin", admin.url)


def test_the_status_is_a_table_of_each_pool() -> None:
    with (
        letters("ab") as [a, b],
        Proxy(targets=[a.url, b.url], sleeping=60) as proxy,
        admin_of(proxy) as admin,
    ):
        for _ in range(4):
            get(proxy.url)
        b.stop()
        for _ in range(2):
            get(proxy.url)
        lines = invoke("status", "--admin", admin.url).output.splitlines()
        assert lines[0] == f"{proxy.url}: 6 requests, 0 connections open, 6 accepted"
    assert lines[2] == "default (hash_ring)"
    assert lines[3].split() == [
        *("TARGET", "STATE", "WEIGHT", "REQUESTS", "FAILURES", "IN", "FLIGHT", "P50", "P99"),
        "REASON",
    ]
    assert re.fullmatch(rf"{a.url}  live  +1 +4 +0 +0 +\d+\.\d ms +\d+\.\d ms", lines[4])
    assert lines[5].startswith(f"{b.url}  evicted ")
    assert lines[5].endswith("connect: connection refused")
    assert re.fullmatch(rf"\d\d:\d\d:\d\d  evicted {b.url}: connect: .*", lines[7])


def test_columns_are_aligned_and_numbers_end_at_the_right() -> None:
    rows = [["A", "LONG", "N"], ["long name", "b", "1"], ["c", "d", "1000"]]
    assert table(rows, "..r") == [
        "A          LONG     N",
        "long name  b        1",
        "c          d     1000",
    ]


def test_states_are_coloured_on_a_terminal_alone(admin: AdminServer) -> None:
    words = ["targets", "--admin", admin.url]
    assert "\x1b" not in CliRunner().invoke(main, words).output
    assert "\x1b[32mlive" in CliRunner().invoke(main, words, color=True).output


def test_what_a_target_made_us_say_does_nothing_to_a_terminal() -> None:
    one = {
        **{"url": "http://a:1", "state": "evicted", "backup": True, "weight": 1, "requests": 0},
        **{"failures": 0, "in_flight": 0, "response_time": {"p50": None, "p99": 2.5}},
        "reason": "\x1b[2Jgone",
    }
    line = target_table([one])[1]
    assert line.startswith("http://a:1 (backup)")
    assert line.endswith("-  2.50 s  ?[2Jgone")


def test_a_target_is_added_changed_and_removed_by_any_of_its_names(say: Say) -> None:
    added = say("add", "http://localhost:1", "--weight", "3", "--backup", "--slow-start", "5s")
    known = re.fullmatch(r"added http://localhost:1 \((\w+)\) to default\n", added.output)
    assert known
    assert say("weight", known[1], "7").output == "http://localhost:1 is live, weight 7\n"
    assert say("drain", "localhost:1").output == "http://localhost:1 is draining, weight 7\n"
    found = say("maintenance", "http://localhost:1/").output
    assert found == "http://localhost:1 is maintenance, weight 7\n"
    assert say("ready", "1").output == "http://localhost:1 is live, weight 7\n"
    assert "http://localhost:1 (backup)  live " in say("targets").output
    assert say("remove", "LOCALHOST:1").output == "removed http://localhost:1 from default\n"
    gone = say("remove", "localhost:1")
    assert (gone.exit_code, gone.output.startswith('no target is "localhost:1"; there is: ')) == (
        *(1, True),
    )


def test_a_target_of_two_pools_is_asked_for_by_its_id() -> None:
    routes = [{"path": "/x", "targets": [1]}]
    with Proxy(targets=[1], routes=routes) as proxy, admin_of(proxy) as admin:
        found = invoke("drain", "localhost:1", "--admin", admin.url)
        assert found.exit_code == 1
        ids = re.findall(r"(\w{12}) \(http://localhost:1 of ", found.output)
        assert len(ids) == 2
        assert invoke("drain", ids[1], "--admin", admin.url).exit_code == 0
        listed = invoke("targets", "--pool", "default", "--admin", admin.url).output
        first = listed.splitlines()[1].split()
        assert first[:4] == [ids[0], "default", "http://localhost:1", "live"]


def test_json_is_what_was_answered(say: Say) -> None:
    assert json.loads(say("status", "--json").output)["pools"][0]["name"] == "default"
    assert len(json.loads(say("targets", "--json").output)) == 2
    added = json.loads(say("add", "http://localhost:1", "--json").output)
    assert added["weight"] == 1
    assert json.loads(say("remove", added["id"], "--json").output)["id"] == added["id"]


def test_it_explains_who_would_get_a_request() -> None:
    policy = {"name": "consistent_hash", "key": "header:X-User"}
    asked = ("--header", "X-User: me", "--uri", "/x?y", "--host", "a", "--method", "PUT")
    with (
        letters("ab") as targets,
        Proxy(targets=[one.url for one in targets], policy=policy) as proxy,
        admin_of(proxy) as admin,
    ):
        lines = invoke("explain", *asked, "--admin", admin.url).output.splitlines()
        served = get(proxy.url, "/", "X-User: me").body.decode()
    assert lines[0] == "default"
    assert lines[1].split()[:3] == [targets["ab".index(served)].url, "gets", "it"]
    assert lines[2].endswith("live: the policy chose another")


def test_it_explains_why_nobody_would() -> None:
    with Proxy(targets=[1]) as proxy, admin_of(proxy) as admin:
        invoke("drain", "localhost:1", "--admin", admin.url)
        lines = invoke("explain", "--admin", admin.url).output.splitlines()
        assert lines[0].startswith("default: ")
        assert lines[1].split() == ["http://localhost:1", "draining:", "by", "the", "operator"]


def test_a_reload_tells_what_has_changed_or_what_is_wrong() -> None:
    answers: list[Any] = [["sleeping: 5"], [], SettingsError(["a: b: c", "d: e: f"])]

    def load() -> list[str]:
        found = answers.pop(0)
        if isinstance(found, SettingsError):
            raise found
        return list(found)

    with Proxy(targets=[1]) as proxy, admin_of(proxy, load=load) as admin:
        assert invoke("reload", "--admin", admin.url).output == "sleeping: 5\n"
        assert invoke("reload", "--admin", admin.url).output == "nothing has changed\n"
        refused = invoke("reload", "--admin", admin.url)
        assert (refused.exit_code, refused.output) == (1, "a: b: c\nd: e: f\n")


def test_a_restart_is_asked_for() -> None:
    asked: list[str] = []
    with Proxy(targets=[1]) as proxy:
        verbs = Control(proxy)
        verbs.restart = lambda: asked.append("restart")
        with admin_of(proxy, verbs=verbs) as admin:
            assert invoke("restart", "--admin", admin.url).output == "restarting\n"
    assert asked == ["restart"]


# Where, and who.


def test_where_and_who_are_as_the_settings_say(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with admin_of(proxy, Admin(user="boss", password="sésame")) as admin:
        # Who only asks needn't know the targets; a wildcard is reached at this machine.
        section = {"listen": admin.url.replace("127.0.0.1", "0.0.0.0"), "user": "boss"}
        path = tmp_path / "appsettings.json"
        path.write_text(json.dumps({"admin": {**section, "password": "sésame"}}), "utf-8")
        assert invoke("status").exit_code == 0
        wrong = {"admin": {**section, "password": "sésame"}, "targets": [], "nonsense": 1}
        path.write_text(json.dumps(wrong), "utf-8")
        assert invoke("status").exit_code == 0, "all else may be wrong"
        path.rename(tmp_path / "other.json")
        assert invoke("status", "--config", "other.json").exit_code == 0
        assert invoke("status").exit_code == 2
        monkeypatch.setenv("PYPROXY_ADMIN__LISTEN", admin.url)
        refused = invoke("status")
        assert refused.exit_code == 1
        assert refused.output.startswith(f"{admin.url} refuses user or password: say them with")
        monkeypatch.setenv("PYPROXY_ADMIN__USER", "boss")
        monkeypatch.setenv("PYPROXY_ADMIN__PASSWORD", "sésame")
        assert invoke("status").exit_code == 0
        assert invoke("status", "--password", "wrong").exit_code == 1


def test_a_password_of_the_settings_is_for_no_other_address(tmp_path: Path) -> None:
    heard: list[str | None] = []

    def respond(request: Any) -> bytes:
        heard.append(request.get("Authorization"))
        return b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]"

    said = {"admin": {"listen": "http://127.0.0.1:1", "password": "secret"}}
    (tmp_path / "appsettings.json").write_text(json.dumps(said))
    with RawTarget(replying(respond)) as other:
        assert invoke("targets", "--admin", other.url).exit_code == 0
    assert heard == [None]


def test_nobody_there_is_told_with_a_remedy() -> None:
    url = f"http://127.0.0.1:{closed_port()}"
    found = invoke("status", "--admin", url)
    assert found.exit_code == 1
    assert found.output == (
        f"can't reach {url} (connection refused): is the proxy running, with this as its"
        " admin.listen?\n"
    )


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nnull",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: /\r\nContent-Length: 0\r\n\r\n",
        b"nonsense\r\n\r\n",
    ],
)
def test_another_server_there_is_told_in_one_line(answer: bytes) -> None:
    with RawTarget(replying(answer)) as other:
        found = invoke("status", "--admin", other.url)
        assert found.exit_code == 1
        assert isinstance(found.exception, SystemExit)
        assert found.output.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("status",), "no admin address: set admin.listen"),
        (("status", "--admin", "ftp://x"), "--admin: expected a URL like"),
        (("status", "--config", "nowhere.json"), "nowhere.json: no such file"),
        (("weight", "x", "0", "--admin", "1"), "0 is not in the range 1<=x<=256"),
        (("drain", "--admin", "1"), "Missing argument 'TARGET'"),
        (("--sleeping", "1", "status"), "options of a command stand behind it: status"),
    ],
)
def test_wrong_usage_has_a_status_of_its_own(words: tuple[str, ...], said: str) -> None:
    found = invoke(*words)
    assert found.exit_code == 2
    assert said in found.output


def test_a_port_that_the_system_chose_must_be_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYPROXY_ADMIN__LISTEN", "0")
    found = invoke("status")
    assert (found.exit_code, "say --admin URL" in found.output) == (2, True)


def test_it_watches_until_it_is_interrupted(admin: AdminServer) -> None:
    with program("status", "--watch", "--json", "--admin", admin.url) as running:
        running.wait_for('"pools"')
        first = len(running.stdout)
        running.process.send_signal(signal.SIGINT)
        assert running.wait() == 0
        assert first
        assert running.stderr == []


def told(**more: Any) -> dict[str, Any]:
    """A status of a proxy without targets, with ``more``."""
    connections = {"open": 0, "accepted": 0}
    return {
        **{"urls": ["http://a:1"], "requests": 0, "connections": connections},
        **{"pools": [], "events": []},
        **more,
    }


def test_the_status_tells_what_was_wrong_with_settings_that_were_refused() -> None:
    error = {"at": 0, "problems": ["x.json: listne: unknown\x1b setting", "x.json: targets: none"]}
    lines = status_lines(told(settings={"error": error}))
    assert re.fullmatch(r"settings: refused at [\d:]{8}, the ones before are in effect", lines[1])
    assert lines[2:] == ["  x.json: listne: unknown? setting", "  x.json: targets: none"]
    assert len(status_lines(told(settings={"error": None}))) == 1


def test_the_status_tells_the_workers_and_how_often_they_were_started_again() -> None:
    workers = [{"pid": 11, "restarts": 0}, {"pid": 12, "restarts": 0}]
    assert status_lines(told(workers=workers))[1] == "workers: 11, 12"
    workers[1]["restarts"] = 3
    assert status_lines(told(workers=workers))[1] == "workers: 11, 12; started again: 3"


def test_where_workers_disagree_the_status_tells_how_many_see_which_state() -> None:
    one = {
        **{"url": "http://a:1", "state": "evicted", "backup": False, "weight": 1, "requests": 0},
        **{"failures": 0, "in_flight": 0, "response_time": {"p50": None, "p99": None}},
        **{"reason": "refused", "states": {"evicted": 1, "live": 2}},
    }
    assert "  \x1b[31mevicted 1, live 2\x1b[0m  " in target_table([one])[1]


def test_of_many_targets_a_refusal_names_a_few() -> None:
    targets = [f"http://a:{port}" for port in range(1, 9)]
    with Proxy(targets=targets) as proxy, admin_of(proxy) as admin:
        refused = invoke("drain", "b:1", "--admin", admin.url).output
    assert refused == f'no target is "b:1"; there is: {", ".join(targets[:5])} and 3 more\n'
