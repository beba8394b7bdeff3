"""Targets that are made: processes that are started, kept, counted and ended, for real."""

import json
import os
import re
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import requests

from pyproxy import Proxy
from pyproxy.control.metrics import render
from pyproxy.control.workers import Supervisor
from pyproxy.errors import ControlError, SettingsError
from pyproxy.settings import parse, plain
from tests.programs import program, run
from tests.support import DEADLINE, Load, closed_port, eventually, get

MADE = str(Path(__file__).with_name("made.py"))
Json = Any


def command(name: str = "made", mode: str = "good") -> list[str]:
    return [sys.executable, MADE, "{port}", name, mode]


def scaling(name: str = "made", mode: str = "good", **more: Json) -> dict[str, Json]:
    """Settings of targets like ``made.py``, whose number nothing but ``more`` changes."""
    said = {"launcher": "process", "command": command(name, mode), "auto": False}
    return {**said, "stop_timeout": "5s", **more}


def told(proxy: Proxy | Supervisor) -> dict[str, Json]:
    [pool] = proxy.control.snapshot()["pools"]
    found: dict[str, Json] = pool["scaling"]
    return found


def live(proxy: Proxy | Supervisor) -> list[dict[str, Json]]:
    return [one for one in told(proxy)["instances"] if one["phase"] == "live"]


def answers(url: str) -> str:
    reply = get(url)
    assert reply.status == 200, reply
    return reply.body.decode()


def names(url: str, count: int = 20) -> set[str]:
    """Who answers."""
    return {answers(url) for _ in range(count)}


def there(pid: str) -> bool:
    """Whether a process runs, and not only waits for its parent to look at it."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_a_start_returns_when_the_targets_serve() -> None:
    with Proxy(scaling=scaling(min=2)) as proxy:
        assert len(names(proxy.url)) == 2
        assert [one["phase"] for one in told(proxy)["instances"]] == ["live", "live"]


def test_all_targets_end_with_the_proxy() -> None:
    with Proxy(scaling=scaling(min=2)) as proxy:
        pids = [one["handle"] for one in live(proxy)]
        assert all(map(there, pids))
    assert not any(there(pid) for pid in pids)


def test_a_killed_target_is_replaced_and_no_request_fails() -> None:
    with Proxy(scaling=scaling(min=2)) as proxy, Load(proxy.url) as load:
        before = {one["name"] for one in live(proxy)}
        os.kill(int(live(proxy)[0]["handle"]), signal.SIGKILL)
        eventually(lambda: len({one["name"] for one in live(proxy)} - before) == 1)
        eventually(lambda: len(proxy.pool.live) == 2)
    assert load.failures == []
    assert load.statuses[200] > 0


def test_all_killed_at_once_are_replaced() -> None:
    with Proxy(scaling=scaling(min=3)) as proxy:
        before = live(proxy)
        for one in before:
            os.kill(int(one["handle"]), signal.SIGKILL)
        eventually(lambda: not {one["name"] for one in before} & {i["name"] for i in live(proxy)})
        eventually(lambda: len(live(proxy)) == 3)
        assert len(names(proxy.url)) == 3


def test_what_a_target_prints_is_in_a_log_of_its_own(tmp_path: Path) -> None:
    with Proxy(scaling=scaling("talker", min=2, logs=str(tmp_path / "logs"))) as proxy:
        logs = [Path(one["log"]) for one in live(proxy)]
    assert sorted(one.name for one in logs) == ["default-1.log", "default-2.log"]
    assert [one.read_text() for one in logs] == ["talker begins\n"] * 2
    assert all(one.parent == tmp_path / "logs" for one in logs)


def test_last_words_are_a_targets_own_and_not_those_of_an_earlier_start(tmp_path: Path) -> None:
    """The files of ``logs`` are appended to."""
    logs = tmp_path / "logs"
    logs.mkdir()
    for number in range(1, 5):
        (logs / f"default-{number}.log").write_text("words of yesterday\n")
    said = {**scaling(min=1, logs=str(logs)), "command": ["sh", "-c", "exit 3 # {port}"]}
    with Proxy(scaling=said) as proxy:
        assert re.search(r"default-\d+ ended with status 3; all", told(proxy)["problem"])


def test_more_and_fewer_are_made_and_no_request_fails() -> None:
    with Proxy(scaling=scaling(min=1, max=3)) as proxy, Load(proxy.url) as load:
        proxy.control.scale(3)
        eventually(lambda: len(live(proxy)) == 3)
        proxy.control.scale(1)
        eventually(lambda: len(told(proxy)["instances"]) == 1)
        assert [(one["from"], one["to"]) for one in told(proxy)["decisions"]] == [(1, 3), (3, 1)]
        for count in (0, 4):
            with pytest.raises(ControlError, match="expected from 1 to 3"):
                proxy.control.scale(count)
    assert load.failures == []


def test_a_target_that_goes_finishes_what_it_has() -> None:
    """The least busy goes: with one client on each, none is cut off."""
    with Proxy(scaling=scaling(min=1, max=2)) as proxy:
        proxy.control.scale(2)
        eventually(lambda: len(live(proxy)) == 2)
        first, _ = proxy.pool.targets
        first.in_flight += 1  # as if a request were under way
        proxy.control.scale(1)
        eventually(lambda: proxy.pool.targets == (first,))
        first.in_flight -= 1


def test_targets_of_the_settings_stand_beside_those_that_are_made() -> None:
    other = closed_port()
    with Proxy(targets=[other], scaling=scaling(min=1, max=2)) as proxy:
        assert proxy.pool.targets[0].url == f"http://localhost:{other}"
        proxy.control.scale(2)
        eventually(lambda: len(live(proxy)) == 2)
        proxy.control.scale(1)
        eventually(lambda: len(told(proxy)["instances"]) == 1)
        assert len(proxy.pool.targets) == 2


def test_one_that_somebody_removes_is_ended_and_another_is_made() -> None:
    with Proxy(scaling=scaling(min=1, drain_timeout="300ms")) as proxy:
        [one] = live(proxy)
        proxy.control.remove(one["id"])
        eventually(lambda: not there(one["handle"]))
        eventually(lambda: [i["name"] for i in live(proxy)] == ["default-2"])
        assert names(proxy.url)


def test_one_that_ignores_sigterm_is_ended_after_stop_timeout() -> None:
    with Proxy(scaling=scaling(mode="stubborn", min=1, stop_timeout="300ms")) as proxy:
        [one] = live(proxy)
    assert not there(one["handle"])


def test_the_children_of_a_target_end_with_it(tmp_path: Path) -> None:
    """A shell that starts the server as its child, and dies without it."""
    file = tmp_path / "pid"
    line = f"'{sys.executable}' '{MADE}' {{port}} & echo $! >'{file}'; wait"
    with Proxy(scaling={**scaling(min=1), "command": ["sh", "-c", line]}) as proxy:
        assert names(proxy.url)
        child = file.read_text().strip()
        os.kill(int(live(proxy)[0]["handle"]), signal.SIGKILL)
        eventually(lambda: not there(child))
        eventually(lambda: [one["name"] for one in live(proxy)] == ["default-2"])
        assert names(proxy.url)


@pytest.mark.parametrize(
    ("mode", "reason"),
    [
        ("crash", r"default-\d+ ended with status 1: made can't go on"),
        ("brief", r"default-\d+ ended with status 3: made begins"),
        ("deaf", r"default-\d+ wasn't healthy within 0.5 s: http://.*: .*(timed out|refused)"),
    ],
)
def test_what_never_becomes_healthy_is_told_and_tried_again_more_and_more_seldom(
    mode: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    said = scaling(mode=mode, min=1, start_timeout="500ms" if mode == "deaf" else "20s")
    with Proxy(scaling=said, health={"timeout": "200ms"}) as proxy:
        eventually(lambda: "(failure 3 in a row)" in told(proxy)["problem"])
        assert re.search(reason, told(proxy)["problem"]), told(proxy)["problem"]
        pauses = [
            record.getMessage().rpartition("(")[2]
            for record in caplog.records
            if "another start" in record.getMessage()
        ]
        assert pauses[:3] == [f"another start in {pause} s)" for pause in ("0.5", "1", "2")]


def test_a_failing_start_leaves_those_that_serve_alone(tmp_path: Path) -> None:
    """The command works once."""
    flag = tmp_path / "once"
    line = f"mkdir '{flag}' && exec '{sys.executable}' '{MADE}' {{port}}"
    said = {**scaling(min=1, max=2), "command": ["sh", "-c", line]}
    with Proxy(scaling=said) as proxy, Load(proxy.url) as load:
        proxy.control.scale(2)
        eventually(lambda: "File exists" in told(proxy)["problem"])
        assert len(live(proxy)) == 1
    assert load.failures == []


def test_a_hung_target_is_replaced_after_start_timeout() -> None:
    said = scaling(min=1, start_timeout="3s")
    health = {"interval": "100ms", "timeout": "300ms", "fall": 1}
    with Proxy(scaling=said, health=health) as proxy:
        [one] = live(proxy)
        os.kill(int(one["handle"]), signal.SIGSTOP)
        eventually(lambda: one["name"] not in [i["name"] for i in live(proxy)])
        eventually(lambda: not there(one["handle"]))
        eventually(lambda: live(proxy))
        assert len(names(proxy.url)) == 1


def test_the_keeper_s_end_is_that_of_its_targets_and_others_take_their_place() -> None:
    with Proxy(scaling=scaling(min=2)) as proxy:
        before = live(proxy)
        with open(f"/proc/{before[0]['handle']}/stat") as file:
            keeper = int(file.read().rpartition(")")[2].split()[1])
        os.kill(keeper, signal.SIGKILL)
        eventually(lambda: not any(there(one["handle"]) for one in before))
        eventually(lambda: len(live(proxy)) == 2 and live(proxy)[0]["name"] != "default-1")
        assert len(names(proxy.url)) == 2


def test_the_port_of_one_that_has_ended_is_used_again() -> None:
    """Else each start would add an address to what is counted."""
    with Proxy(scaling=scaling(min=1, drain_timeout="300ms")) as proxy:
        urls = {live(proxy)[0]["url"]}

        def replace() -> None:
            [one] = live(proxy)
            proxy.control.remove(one["id"])
            eventually(lambda: one["name"] not in str(told(proxy)["instances"]))
            eventually(lambda: len(live(proxy)) == 1)

        for _ in range(3):
            replace()
            urls.add(live(proxy)[0]["url"])
    assert len(urls) <= 2


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        (
            {"command": ["nothing-like-it", "{port}"]},
            'scaling.command: there is no program "nothing',
        ),
        ({"command": ["python", "app.py"]}, "scaling.command: say {port} where the program gets"),
        ({"command": []}, "scaling.command: expected a program and its arguments"),
        ({"command": "python app.py {port}"}, "scaling.command: expected a program and its arg"),
        ({"min": 3, "max": 2}, "scaling.min: 3 is more than max, 2"),
        ({"folder": "/nowhere"}, 'scaling.folder: "/nowhere" is not a folder'),
        ({"cpu_low": 90}, "scaling.cpu_low: 90 isn't below cpu_high, 80"),
        ({"environment": {"A": 1}}, "scaling.environment.A: expected a text"),
        ({"launcher": "proces"}, 'scaling.launcher: expected "process" or "docker" or "swarm"'),
        ({"launcher": "docker"}, "scaling.image: name the image that targets are made of"),
        ({"launcher": "swarm"}, "scaling.service: name the service"),
        (
            {"launcher": "swarm", "service": "app"},
            "scaling.launcher: a Swarm's targets are found, not made here: name the tasks",
        ),
        ({"mn": 1}, 'scaling.mn: unknown setting (did you mean "min"?)'),
    ],
)
def test_bad_settings_are_told(said: dict[str, Json], problem: str) -> None:
    with pytest.raises(SettingsError) as error:
        parse({"scaling": {**scaling(), **said}}, "x.json")
    assert any(one.startswith(f"x.json: {problem}") for one in error.value.problems), error.value


def test_a_route_of_a_swarm_names_its_targets_itself() -> None:
    route = {"path": "/a", "scaling": {"launcher": "swarm", "service": "app"}}
    with pytest.raises(SettingsError, match=r"routes\[0\].scaling.launcher: a Swarm's targets"):
        parse({"targets": [1], "routes": [route]})
    assert parse({"routes": [{**route, "targets": ["dns://tasks.app:80"]}]}).routes[0].scaling


def test_a_tcp_entry_s_targets_are_not_made() -> None:
    with pytest.raises(SettingsError, match=r"tcp\[0\].scaling: a tcp entry's targets are named"):
        parse({"tcp": [{"listen": 0, "targets": [1], "scaling": scaling()}]})


def test_a_route_has_targets_of_its_own() -> None:
    said = {"routes": [{"path": "/a/", "scaling": scaling("a")}, {"scaling": scaling("b")}]}
    with Proxy(**said) as proxy:  # type: ignore[arg-type]
        assert get(proxy.url, "/a/").body.startswith(b"a ")
        assert get(proxy.url, "/b/").body.startswith(b"b ")
        pools = proxy.control.snapshot()["pools"]
        found = [one["scaling"]["instances"][0]["name"] for one in pools]
        assert found == ["a-1", "pool-1"]


def test_settings_show_no_value_of_the_environment() -> None:
    said = scaling(environment={"SECRET": "hush", "P": "{port}"})
    assert "hush" not in json.dumps(plain_of(said))
    assert plain_of(said)["environment"] == {"SECRET": "(hidden)", "P": "(hidden)"}


def plain_of(said: dict[str, Json]) -> dict[str, Json]:
    found: dict[str, Json] = plain(parse({"scaling": said}))["scaling"]
    return found


def write(path: Path, **said: Json) -> None:
    path.write_text(json.dumps({"listen": 0, **said}))


def made_by(admin: str) -> list[str]:
    """The processes that serve."""
    pools = requests.get(f"{admin}/status", timeout=DEADLINE).json()["pools"]
    return [
        one["handle"]
        for pool in pools
        for one in pool["scaling"]["instances"]
        if one["phase"] == "live"
    ]


@pytest.mark.parametrize("workers", [1, 2])
def test_no_process_is_left_when_the_program_is_killed(tmp_path: Path, workers: int) -> None:
    file, port = tmp_path / "appsettings.json", closed_port()
    write(
        file, scaling=scaling(min=2), workers=workers, admin={"listen": f"http://127.0.0.1:{port}"}
    )
    with program("--config", str(file)) as running:
        assert len(names(running.url)) == 2
        pids = made_by(f"http://127.0.0.1:{port}")
        assert len(pids) == 2
        running.send(signal.SIGKILL)
        eventually(lambda: not any(there(pid) for pid in pids))


@pytest.mark.parametrize("workers", [1, 2])
def test_the_program_ends_its_targets_at_sigterm(tmp_path: Path, workers: int) -> None:
    file, port = tmp_path / "appsettings.json", closed_port()
    write(
        file, scaling=scaling(min=2), workers=workers, admin={"listen": f"http://127.0.0.1:{port}"}
    )
    with program("--config", str(file)) as running:
        assert len(names(running.url)) == 2
        pids = made_by(f"http://127.0.0.1:{port}")
        assert running.stop() == 0
        assert not any(there(pid) for pid in pids)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_restart_costs_no_request_and_keeps_the_count(tmp_path: Path, workers: int) -> None:
    file, port = tmp_path / "appsettings.json", closed_port()
    admin = f"http://127.0.0.1:{port}"
    write(file, scaling=scaling(min=1, max=3), workers=workers, admin={"listen": admin})
    with program("--config", str(file)) as running:
        url = running.url
        assert run("scale", "2", "--admin", admin).returncode == 0
        eventually(lambda: len(made_by(admin)) == 2)
        before = made_by(admin)
        with Load(url) as load:
            running.send(signal.SIGUSR2)
            running.wait_for("takes the place of this one")
            eventually(lambda: not any(map(there, before)))
            eventually(lambda: len(made_by(admin)) == 2)
        assert load.failures == []
        heir = int(running.wait_for(r"process (\d+) takes the place")[1])
        after = made_by(admin)
        os.kill(heir, signal.SIGTERM)
        eventually(lambda: not any(there(pid) for pid in [str(heir), *after]))


def test_a_start_that_waits_for_its_targets_heeds_ctrl_c(tmp_path: Path) -> None:
    file = tmp_path / "appsettings.json"
    write(file, scaling=scaling(mode="deaf"), health={"timeout": "60s"})
    with program("--config", str(file)) as running:
        eventually(lambda: has_children(running.process.pid))
        began = time.monotonic()
        running.send(signal.SIGINT)
        assert running.wait(DEADLINE) == 0
        assert time.monotonic() - began < 25  # it would wait for 30 s


def has_children(pid: int) -> bool:
    return any(file.read_text() for file in Path(f"/proc/{pid}/task").glob("*/children"))


def test_a_reload_changes_the_bounds_and_another_folder_replaces_all(tmp_path: Path) -> None:
    with Proxy(scaling=scaling(min=1, max=4)) as proxy:
        url = proxy.url

        def reload(**said: Any) -> None:
            listen = "http://127.0.0.1:0"
            proxy.reload(parse({"listen": listen, "scaling": scaling(**said)}))

        with Load(url) as load:
            reload(min=2, max=4)
            eventually(lambda: len(live(proxy)) == 2)
            first = {one["handle"] for one in live(proxy)}
            reload(min=2, max=4, folder=str(tmp_path))
            eventually(lambda: not any(map(there, first)))
            assert len(live(proxy)) == 2
        assert load.failures == []


def test_scaling_that_is_not_said_any_more_ends_its_targets() -> None:
    with Proxy(targets=[closed_port()], scaling=scaling(min=1)) as proxy:
        [one] = live(proxy)
        said = {"listen": "http://127.0.0.1:0", "targets": [proxy.pool.targets[0].url]}
        proxy.reload(parse(said))
        eventually(lambda: not there(one["handle"]))
        eventually(lambda: len(proxy.pool.targets) == 1)
        assert proxy.control.snapshot()["pools"][0]["scaling"] is None


def test_verbs_of_scaling_need_a_pool_that_has_it() -> None:
    with Proxy(targets=[closed_port()]) as proxy:
        with pytest.raises(ControlError, match="no pool has scaling"):
            proxy.control.scale(2)
        with pytest.raises(ControlError, match="no pool has scaling"):
            proxy.control.change_rollout("pause")
    said = pytest.raises(ControlError, match='no pool with scaling is called "other"')
    with Proxy(scaling=scaling()) as proxy, said:
        proxy.control.scale(2, "other")


def test_metrics_tell_how_many_there_are_and_shall_be() -> None:
    with Proxy(scaling=scaling(min=2)) as proxy:
        _, text = render(proxy.control)
    lines = text.decode().splitlines()
    assert 'pyproxy_scaling_wanted{pool="default"} 2.0' in lines
    assert 'pyproxy_scaling_targets{phase="live",pool="default"} 2.0' in lines
    assert 'pyproxy_scaling_failing{pool="default"} 0.0' in lines
