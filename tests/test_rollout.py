"""A new version takes the place of the old one under load, or goes back by itself."""

import contextlib
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from pyproxy import Proxy
from tests.fleets import line, made, needs_fork, scaling, state, version
from tests.programs import ROOT, Program, program, run
from tests.support import DEADLINE, Load, eventually, get

pytestmark = needs_fork

SECONDS = 30.0  # for a rollout, on a busy machine
COMMON: dict[str, Any] = {"policy": "round_robin", "health": {"path": "/health"}}


@contextlib.contextmanager
def under_load(count: int = 2, **rules: Any) -> Iterator[tuple[Proxy, Load]]:
    """So many targets of the old version; in the end no request has gone unanswered."""
    with Proxy(scaling=made(count=count, **rules), **COMMON) as proxy:
        eventually(lambda: len(proxy.pool.live) == count, SECONDS)
        with Load(proxy.url, clients=2) as load:
            load.goes_on()
            yield proxy, load
            load.goes_on()
        assert load.failures == []


def ends(proxy: Proxy) -> dict[str, Any]:
    """Waits for the end of the rollout; how it stands then."""
    eventually(lambda: scaling(proxy.control)["rollout"]["ended"], SECONDS)
    found: dict[str, Any] = scaling(proxy.control)["rollout"]
    return found


def versions(urls: Iterable[str]) -> set[bytes]:
    """What these targets say that they are."""
    with contextlib.suppress(OSError, EOFError):  # one was about to end
        return {get(one).body for one in urls}
    return set()


def all_are(proxy: Proxy, name: bytes) -> None:
    """Waits until there are targets of this version alone; those before may finish something."""
    eventually(lambda: versions(one.url for one in proxy.pool.targets) == {name})


def handles(proxy: Proxy) -> set[str]:
    return {one["handle"] for one in scaling(proxy.control)["instances"]}


def test_a_good_version_replaces_one_target_after_the_other_and_no_request_fails() -> None:
    with under_load() as (proxy, load):
        proxy.control.roll_out({"command": version("new")})
        most, seen = 0, set[tuple[int, int]]()
        while state(proxy.control) == "running":
            there = [one for one in scaling(proxy.control)["instances"] if one["phase"] != "ending"]
            most = max(most, sum(one["phase"] != "draining" for one in there))
            seen.add((scaling(proxy.control)["rollout"]["done"], len(proxy.pool.live)))
        assert ends(proxy)["state"] == "finished"
        assert most == 3, "one more than are wanted, at most"
        assert min(live for _, live in seen) == 2, "and not fewer"
        assert {done for done, _ in seen} >= {0, 1}
        all_are(proxy, b"new")
        eventually(lambda: len(scaling(proxy.control)["instances"]) == 2)
        assert scaling(proxy.control)["version"] == line(version("new"))
    assert set(load.statuses) == {200}


def test_a_new_target_is_warm_before_an_old_one_goes() -> None:
    with under_load(count=1, slow_start="700ms") as (proxy, load):
        proxy.control.roll_out({"command": version("new")})
        found = ends(proxy)
        assert found["state"] == "finished"
        assert found["ended"] - found["began"] >= 0.7
    assert set(load.statuses) == {200}


@pytest.mark.parametrize(
    ("mode", "reason"),
    [
        ("crash", "ended with status 1: there is a hole in it"),
        ("hang", r"wasn't healthy within 4 s: http://127.0.0.1:\d+: connection refused"),
    ],
)
def test_a_version_that_does_not_come_up_is_taken_back_and_no_request_fails(
    mode: str, reason: str
) -> None:
    with under_load(start_timeout="4s") as (proxy, load):
        before = handles(proxy)
        proxy.control.roll_out({"command": version("new", mode)})
        found = ends(proxy)
        assert found["state"] == "returned"
        assert re.search(reason, found["reason"])
        eventually(lambda: handles(proxy) == before)  # the old ones have served all the time
        all_are(proxy, b"old")
        assert scaling(proxy.control)["version"] == line(version("old"))
    assert set(load.statuses) == {200}


def test_a_version_that_fails_requests_is_taken_back_at_the_cost_of_its_share() -> None:
    with under_load() as (proxy, load):
        before = load.count
        # It would be observed for long, and isn't, since it fails.
        proxy.control.roll_out({"command": version("new", "500")})
        eventually(lambda: state(proxy.control) in ("returning", "returned"), SECONDS)
        sent = load.count - before
        found = ends(proxy)
        assert found["state"] == "returned"
        assert "of its requests fail (0% of the old version's)" in found["reason"]
        all_are(proxy, b"old")
    assert set(load.statuses) == {200, 500}
    assert load.statuses[500] <= sent / 3 + 10, "one of three targets"


def test_a_version_that_goes_out_of_service_takes_no_old_one_s_place() -> None:
    """It is evicted after one failure, so that it never has three."""
    with under_load(start_timeout="4s") as (proxy, load):
        before = handles(proxy)
        proxy.control.roll_out({"command": version("new", "shy")})
        found = ends(proxy)
        assert found["state"] == "returned"
        assert "was out of service for 4 s" in found["reason"]
        eventually(lambda: handles(proxy) == before)
    assert set(load.statuses) == {200}


def test_a_rollout_is_held_and_goes_on() -> None:
    with under_load() as (proxy, load):
        proxy.control.roll_out({"command": version("new")})
        eventually(lambda: len(proxy.pool.live) == 3, SECONDS)
        proxy.control.change_rollout("pause")
        there = handles(proxy)
        load.goes_on(400)
        assert handles(proxy) == there
        assert state(proxy.control) == "paused"
        eventually(lambda: versions(one.url for one in proxy.pool.live) == {b"old", b"new"})
        proxy.control.change_rollout("resume")
        assert ends(proxy)["state"] == "finished"
        all_are(proxy, b"new")
    assert set(load.statuses) == {200}


def test_a_rollout_that_is_aborted_on_its_way_brings_back_the_old_version() -> None:
    with under_load() as (proxy, load):
        proxy.control.roll_out({"command": version("new")})
        old = handles(proxy)
        eventually(lambda: len(handles(proxy) & old) == 1, SECONDS)
        proxy.control.change_rollout("abort")
        found = ends(proxy)
        assert (found["state"], found["reason"]) == ("returned", "aborted by the operator")
        all_are(proxy, b"old")
        assert len(proxy.pool.live) == 2
    assert set(load.statuses) == {200}


# A program, its settings, and its commands.


def varying(line: str) -> str:
    """Without what is another each time."""
    return re.sub(r"^\d+ s|\b\d of 2|default-\d+", "…", line)


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not on PATH")
def test_the_page_of_the_documentation_says_what_happens(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    section = page.partition("\n## Rolling update\n")[2].partition("\n## ")[0]
    [shown] = re.findall(r"```json\n(.*?)```", section, re.DOTALL)
    here = "http://127.0.0.1:0"
    said = {**json.loads(shown), "listen": here}
    said["admin"]["listen"] = here
    said["scaling"]["rollout"]["observe"] = "2s"  # commands take longer on a busy machine
    (tmp_path / "appsettings.json").write_text(json.dumps(said))
    consoles = "".join(re.findall(r"```console\n(.*?)```", section, re.DOTALL))
    commands = re.findall(r"^\$ (.*)\n((?:[^$].*\n)*)", consoles, re.MULTILINE)
    assert len(commands) == 9
    with program(cwd=tmp_path) as running:
        admin = running.wait_for(r"admin: (http://\S+)")[1]
        for line, output in commands:
            words = shlex.split(line.replace("http://127.0.0.1:8404", admin))
            if words[0] == "curl":
                told = json.loads(subprocess.check_output(words, text=True, timeout=DEADLINE))
                assert told.keys() >= (
                    json.loads(output).keys() if output else {"rollout", "wanted"}
                )
                continue
            where = ("--admin", admin, "--password", said["admin"]["password"])
            done = run(*words[3:], *where, cwd=tmp_path)
            assert done.returncode == ("--nmae" in line), done.stderr
            assert varying(done.stdout.splitlines()[-1]) == varying(output.splitlines()[-1])
        assert running.stop() == 0


@contextlib.contextmanager
def served(folder: Path, **more: Any) -> Iterator[tuple[Program, dict[str, Any]]]:
    """A program with two targets, and what its settings say."""
    here = "http://127.0.0.1:0"
    admin = {"listen": here, "password": "secret"}
    said = {"listen": here, "admin": admin, "scaling": made(count=2), **COMMON, **more}
    (folder / "appsettings.json").write_text(json.dumps(said))
    with program(cwd=folder) as running:
        yield running, said
        assert running.stop() == 0


def all_there_are(running: Program, name: bytes) -> None:
    """As ``all_are``, of its admin API."""
    admin = running.wait_for(r"admin: (http://\S+)")[1]

    def urls() -> list[str]:
        asked = requests.get(f"{admin}/targets", auth=("admin", "secret"), timeout=DEADLINE)
        found = asked.json()
        return [one["url"] for one in found]

    eventually(lambda: versions(urls()) == {name})


def test_another_version_in_the_settings_file_is_rolled_out(tmp_path: Path) -> None:
    with served(tmp_path) as (running, said), Load(running.url, clients=2) as load:
        running.wait_for(r" and serves 2 to 4 targets made of python .* old good$")
        load.goes_on()
        said["scaling"]["command"] = version("new")
        (tmp_path / "appsettings.json").write_text(json.dumps(said))
        running.wait_for("scaling default: rollout of .* new good: finished")
        all_there_are(running, b"new")
        load.goes_on()
        said["scaling"]["command"] = version("newer", "crash")
        (tmp_path / "appsettings.json").write_text(json.dumps(said))
        running.wait_for("scaling default: rollout of .* newer crash: returned")
        all_there_are(running, b"new")
        load.goes_on()
    assert load.failures == []
    assert set(load.statuses) == {200}


def test_several_workers_take_the_new_version_all_at_once(tmp_path: Path) -> None:
    with served(tmp_path, workers=2) as (running, _), Load(running.url, clients=2) as load:
        load.goes_on()
        where = running.wait_for(r"admin: (http://\S+)")[1]
        admin = ("--admin", where, "--password", "secret")
        command = line(version("new"))
        good = run("rollout", "--command", command, *admin)
        assert good.returncode == 0, good.stderr
        assert "still in appsettings.json: " in good.stdout
        load.goes_on()
        all_there_are(running, b"new")
        bad = run("rollout", "--command", line(version("newer", "crash")), *admin)
        assert bad.returncode == 1
        assert "there is a hole in it" in bad.stdout
        all_there_are(running, b"new")
        load.goes_on()
    assert load.failures == []
    assert set(load.statuses) == {200}
