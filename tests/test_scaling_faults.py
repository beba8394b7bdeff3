"""Targets that are made, where something goes wrong that nobody has thought of."""

import contextlib
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from pyproxy import Proxy
from pyproxy.balancing.counters import Totals
from pyproxy.balancing.samples import Sample
from pyproxy.control.handover import Inheritance
from pyproxy.control.workers import Supervisor
from pyproxy.errors import ControlError
from pyproxy.scaling import fleets, processes
from pyproxy.scaling.launcher import Instance, LaunchError
from pyproxy.scaling.processes import ProcessLauncher
from pyproxy.scaling.rollouts import Rollouts
from pyproxy.scaling_settings import Scaling, Version
from pyproxy.settings import parse
from tests.fleets import needs_fork
from tests.programs import command as running
from tests.programs import program
from tests.support import DEADLINE, Load, client, closed_port, eventually, get
from tests.test_scaling import MADE, command, live, made_by, names, scaling, there, told, write

pytestmark = needs_fork

SLOW = """
import http.server, sys, time
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path != "/health":
            time.sleep(float(sys.argv[2]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()
    do_POST = do_GET
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def slow(seconds: float, **more: Any) -> dict[str, Any]:
    """Targets that take their time for a request, and don't finish it when they are to end."""
    return {**scaling(**more), "command": ["python", "-c", SLOW, "{port}", str(seconds)]}


GATED = """
import http.server, os, sys, time
def wait(name):
    while not os.path.exists(name):
        time.sleep(0.02)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path != "/health":
            open("asked", "w").close()
            wait("over")
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()
if os.path.exists("later"):
    wait("go")
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def test_a_target_that_is_ready_when_the_proxy_ends_has_not_failed(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    rules = {**scaling(min=1, max=2), "folder": str(tmp_path)}
    rules["command"] = ["python", "-c", GATED, "{port}"]
    said = {"listen": "http://127.0.0.1:0", "scaling": rules, "workers": 2}
    supervisor = Supervisor(parse({**said, "health": {"path": "/health"}}))
    fleets = supervisor.control.fleets

    def phases() -> list[str]:
        found = fleets.describe("default")
        return [one["phase"] for one in found["instances"]] if found else []

    with supervisor:
        (tmp_path / "later").touch()
        supervisor.control.scale(2)
        eventually(lambda: phases() == ["live", "starting"])
        wire = client(supervisor.urls[0])
        wire.send(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
        eventually((tmp_path / "asked").exists)
        ends = threading.Thread(target=supervisor.stop, args=(DEADLINE,))
        ends.start()  # it waits for what is under way
        eventually(lambda: refused(supervisor))
        (tmp_path / "go").touch()
        eventually(lambda: phases() == ["live"])
        (tmp_path / "over").touch()
        assert wire.read_message().status == 200
        wire.close()
        ends.join()
    assert not [one for one in caplog.records if one.levelname == "ERROR"]


def refused(supervisor: Supervisor) -> bool:
    """Whether it ends."""
    try:
        supervisor.control.snapshot()
    except ControlError as error:
        return error.status == 503
    return False


def busy(proxy: Proxy) -> int:
    return sum(one.in_flight for one in proxy.pool.targets)


@pytest.mark.skipif(not hasattr(signal, "SIGRTMIN"), reason="the system has no such signals")
def test_one_that_a_signal_without_a_name_has_ended_is_replaced() -> None:
    with Proxy(scaling=scaling(min=1)) as proxy:
        number = signal.SIGRTMIN + 1
        os.kill(int(live(proxy)[0]["handle"]), number)
        eventually(lambda: [one["name"] for one in live(proxy)] == ["default-2"])
        assert f"was ended by signal {number}" in str(proxy.control.snapshot()["events"])


def test_a_fleet_outlives_what_it_does_not_expect(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked = threading.Event()

    def broken(*_: object) -> None:
        asked.set()
        raise KeyError("surprise")

    with Proxy(scaling=scaling(min=1)) as proxy:
        monkeypatch.setattr(ProcessLauncher, "ended", broken)
        for _ in range(3):
            asked.clear()
            eventually(asked.is_set)
        monkeypatch.undo()
        os.kill(int(live(proxy)[0]["handle"]), signal.SIGKILL)
        eventually(lambda: [one["name"] for one in live(proxy)] == ["default-2"])
    said = [one.getMessage() for one in caplog.records if "surprise" in one.getMessage()]
    assert said == ["scaling default: it goes on after KeyError: 'surprise'"], "once"


def test_a_folder_that_is_away_is_told_and_targets_come_when_it_is_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    with Proxy(scaling=scaling(min=1)) as proxy:
        assert "No such file or directory: '/nowhere/" in told(proxy)["problem"]
        monkeypatch.undo()
        eventually(lambda: len(live(proxy)) == 1)


def test_a_port_is_used_again_after_a_start_without_a_folder_for_logs(tmp_path: Path) -> None:
    logs, version = tmp_path / "logs", Version(("sleep", "60", "{port}"))
    launcher = ProcessLauncher(Scaling(launcher="process", logs=str(logs)))
    try:
        one = launcher.start("one", version)
        launcher.stop(one, DEADLINE)
        logs.rename(tmp_path / "before")
        logs.touch()
        with pytest.raises(LaunchError, match="File exists"):
            launcher.start("two", version)
        logs.unlink()
        assert launcher.start("three", version).url == one.url
    finally:
        launcher.close()


def test_those_that_are_left_are_adopted_when_the_system_has_threads_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    left: list[Instance] = []
    refused = threading.Event()
    start = threading.Thread.start

    def adopt(launcher: ProcessLauncher, only: object) -> list[Instance]:
        """As that of containers does."""
        if not left:
            left.extend(launcher.start(name, launcher._said.version) for name in ("one", "two"))
        return left

    def begin(thread: threading.Thread) -> None:
        if thread.name.startswith("pyproxy-target-") and not refused.is_set():
            refused.set()
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(ProcessLauncher, "adopt", adopt)
    monkeypatch.setattr(threading.Thread, "start", begin)
    with Proxy(scaling=scaling(min=2)) as proxy:
        eventually(lambda: {one["name"] for one in live(proxy)} == {"one", "two"})
    assert refused.is_set()


@pytest.fixture
def many_files() -> Iterator[None]:
    """The next descriptor is one that select() doesn't take."""
    import resource  # not on Windows

    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(before[0], 2048), before[1]))
    held: list[int] = []
    while not held or held[-1] < 1024:
        held.append(os.open(os.devnull, os.O_RDONLY))
    yield
    for one in held:
        os.close(one)
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.usefixtures("many_files")
def test_a_proxy_with_more_than_a_thousand_connections_can_start_its_keeper() -> None:
    with Proxy(scaling=scaling(min=1)) as proxy:
        assert len(names(proxy.url)) == 1


def test_targets_that_fail_together_have_failed_once(caplog: pytest.LogCaptureFixture) -> None:
    """Else ten that die at once would be missed for half a minute."""
    with Proxy(scaling=scaling(mode="brief", min=4)):
        eventually(lambda: caplog.text.count("another start in") >= 4)
    pauses = [one for one in caplog.text.splitlines() if "another start in" in one]
    assert all("another start in 0.5 s" in one for one in pauses[:4])


def test_one_that_is_removed_by_hand_finishes_what_it_has() -> None:
    said = slow(1.5, min=1, drain_timeout="20s")
    with Proxy(scaling=said, health={"path": "/health"}) as proxy:
        [one] = live(proxy)
        wire = client(proxy.url)
        wire.send(b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 0\r\n\r\n")
        eventually(lambda: busy(proxy) == 1)
        proxy.control.remove(one["id"])
        assert wire.read_message().status == 200
        wire.close()


def test_one_that_goes_finishes_the_requests_of_clients_that_are_bound_to_it() -> None:
    """They come for as long as it drains, and have a request under way when it gets no more."""
    said = slow(0.7, min=1, max=2, drain_timeout="1500ms")
    statuses: list[int] = []
    common: dict[str, Any] = {"health": {"path": "/health"}, "policy": "round_robin"}
    with Proxy(scaling=said, sticky={"cookie": "at"}, **common) as proxy:
        proxy.control.scale(2)
        eventually(lambda: len(live(proxy)) == 2)
        first = [get(proxy.url) for _ in range(2)]
        cookies = [str(one.get("Set-Cookie")).partition(";")[0] for one in first]
        over = threading.Event()

        def ask(cookie: str, wait: float) -> None:
            over.wait(wait)
            while not over.is_set():
                wire = client(proxy.url)
                head = f"POST / HTTP/1.1\r\nHost: test\r\nCookie: {cookie}\r\nContent-Length: 0"
                wire.send(f"{head}\r\n\r\n".encode())
                statuses.append(wire.read_message().status)
                wire.close()

        threads = [
            threading.Thread(target=ask, args=(cookie, wait))
            for cookie in cookies
            for wait in (0, 0.2, 0.4)
        ]
        for thread in threads:
            thread.start()
        proxy.control.scale(1)
        eventually(lambda: len(told(proxy)["instances"]) == 1)
        over.set()
        for thread in threads:
            thread.join()
    assert set(statuses) == {200}


PICKY = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def handle(self):
        if self.rfile.readline().startswith(b"PROXY "):
            super().handle()
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def test_a_target_that_expects_a_proxy_header_is_asked_with_one(tmp_path: Path) -> None:
    (tmp_path / "picky.py").write_text(PICKY)
    said = {**scaling(min=1), "command": ["python", str(tmp_path / "picky.py"), "{port}"]}
    with Proxy(scaling=said, send_proxy=1) as proxy:
        assert get(proxy.url).status == 200


def reload(proxy: Proxy, said: dict[str, Any]) -> None:
    proxy.reload(parse({"listen": "http://127.0.0.1:0", "scaling": said}))


def test_those_whose_successors_fail_serve_on_and_end_with_the_proxy(tmp_path: Path) -> None:
    (tmp_path / "here").touch()
    line = f"test -e here && exec '{sys.executable}' '{MADE}' {{port}}"
    said = {**scaling(min=1), "command": ["sh", "-c", line], "folder": str(tmp_path)}
    (tmp_path / "other").mkdir()
    with Proxy(scaling=said) as proxy, Load(proxy.url) as load:
        [one] = live(proxy)
        reload(proxy, {**said, "folder": str(tmp_path / "other")})
        eventually(lambda: "(failure 2 in a row)" in told(proxy)["problem"])
        load.goes_on()
        assert there(one["handle"])
    assert load.failures == []
    assert set(load.statuses) == {200}
    assert not there(one["handle"])
    assert not [one for one in threading.enumerate() if "retire" in one.name]


def test_a_rollout_that_the_settings_take_back_returns() -> None:
    said = scaling("old", min=1, rollout={"observe": "1h"})
    with Proxy(scaling=said) as proxy:
        reload(proxy, {**said, "command": command("new")})
        eventually(lambda: len(live(proxy)) == 2)
        began = told(proxy)["rollout"]["began"]
        reload(proxy, said)
        eventually(lambda: told(proxy)["rollout"]["state"] == "returned")
        assert told(proxy)["rollout"]["reason"] == "by the settings"
        assert told(proxy)["rollout"]["began"] == began
        eventually(lambda: "new good" not in str(told(proxy)["instances"]))


def test_the_version_of_a_rollout_written_into_the_settings_does_not_begin_it_again() -> None:
    said = scaling("old", min=1, rollout={"observe": "1h"})
    with Proxy(scaling=said) as proxy:
        proxy.control.roll_out({"command": command("new")})
        began = told(proxy)["rollout"]["began"]
        reload(proxy, {**said, "command": command("new")})
        assert told(proxy)["rollout"]["state"] == "running"
        assert told(proxy)["rollout"]["began"] == began


def test_what_was_made_and_is_gone_is_not_told_to_those_who_begin_later() -> None:
    """Else what is told would grow with each target."""
    with Proxy(scaling=scaling(min=1, max=2)) as proxy:
        proxy.control.scale(2)
        eventually(lambda: len(live(proxy)) == 2)
        assert len(list(proxy.control.journal)) == 2
        proxy.control.scale(1)
        eventually(lambda: len(told(proxy)["instances"]) == 1)
        assert [deed[1] for deed in proxy.control.journal] == [live(proxy)[0]["id"]]


def test_what_a_new_program_would_not_hear_of_is_refused() -> None:
    with Proxy(scaling=scaling(min=1, max=2, rollout={"observe": "1h"})) as proxy:
        control = proxy.control
        control.roll_out({"command": command("new")})
        control.fleets.rest()
        verbs: list[Callable[[], object]] = [
            lambda: control.scale(2),
            lambda: control.roll_out({"command": command("newer")}),
            lambda: control.change_rollout("abort"),
        ]
        for verb in verbs:
            with pytest.raises(ControlError, match="a new program is taking over") as refusal:
                verb()
            assert refusal.value.status == 409
        control.fleets.go_on()  # it didn't come to that
        control.change_rollout("abort")
        control.scale(2)
        eventually(lambda: len(live(proxy)) == 2)


def test_one_whose_start_takes_longer_than_a_handover_is_not_left_to_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun, made = threading.Event(), list[Instance]()
    start, close = ProcessLauncher.start, ProcessLauncher.close
    launchers = []

    def slow(launcher: ProcessLauncher, name: str, version: Version) -> Instance:
        """As that of containers, when an image has to be pulled."""
        if name == "default-2":
            begun.set()
            threading.Event().wait(1.5)  # of what has begun a second is all that is waited for
        made.append(start(launcher, name, version))
        return made[-1]

    def leave(launcher: ProcessLauncher, keep: bool = False) -> None:
        """As that of containers, too: they live on."""
        launchers.append(launcher)

    monkeypatch.setattr(ProcessLauncher, "start", slow)
    monkeypatch.setattr(ProcessLauncher, "close", leave)
    try:
        with Proxy(scaling=scaling(min=1, max=2)) as proxy:
            proxy.control.scale(2)
            assert begun.wait(DEADLINE)
            proxy.control.fleets.rest()
            proxy.control.fleets.leave()
            proxy.control.fleets.stop(keep=True)
            assert [there(one.handle) for one in made] == [True, False]
    finally:
        for one in launchers:
            close(one)


def test_an_heir_waits_longer_for_its_targets(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(fleets, "_MOST", 0.2)
    line = f"test -e '{tmp_path}/late' && sleep 1; exec '{sys.executable}' '{MADE}' {{port}}"
    said = {**scaling(min=1), "command": ["sh", "-c", line]}
    with Proxy(scaling=said) as proxy:
        eventually(lambda: len(live(proxy)) == 1)
        left = proxy.control.fleets.leave()
    (tmp_path / "late").touch()
    with Proxy(scaling=said, inheritance=Inheritance(scaling=left)) as heir:
        assert len(live(heir)) == 1, "when its start returns"


@pytest.mark.parametrize("workers", [1, 2])
def test_a_program_whose_targets_fail_takes_no_other_s_place(tmp_path: Path, workers: int) -> None:
    (tmp_path / "here").touch()
    line = f"test -e '{tmp_path}/here' && exec '{sys.executable}' '{MADE}' {{port}}"
    said = {**scaling(min=1), "command": ["sh", "-c", line]}
    file = tmp_path / "appsettings.json"
    write(file, scaling=said, workers=workers)
    with program("--config", str(file)) as running, Load(running.url) as load:
        (tmp_path / "here").unlink()
        running.send(signal.SIGUSR2)
        running.wait_for("the new program doesn't serve, this one goes on")
        (tmp_path / "here").touch()
        load.goes_on()
        running.send(signal.SIGUSR2)
        heir = int(running.wait_for(r"process (\d+) takes the place")[1])
        load.goes_on()
        os.kill(heir, signal.SIGTERM)
        eventually(lambda: not there(str(heir)))
    assert set(load.statuses) == {200}


def test_a_rollout_goes_on_after_a_restart(tmp_path: Path) -> None:
    file, port = tmp_path / "appsettings.json", closed_port()
    admin = f"http://127.0.0.1:{port}"
    said = scaling("old", min=1, rollout={"observe": "3s"})
    write(file, scaling=said, admin={"listen": admin})

    def rollout() -> Any:
        with contextlib.suppress(requests.RequestException):
            return requests.get(f"{admin}/rollout", timeout=DEADLINE).json()
        return {}

    with program("--config", str(file)) as running:
        assert names(running.url, 1)
        write(file, scaling={**said, "command": command("new")}, admin={"listen": admin})
        running.send(signal.SIGHUP)
        eventually(lambda: rollout().get("state") == "running")
        running.send(signal.SIGUSR2)
        heir = int(running.wait_for(r"process (\d+) takes the place")[1])
        eventually(lambda: rollout().get("state") == "finished")
        eventually(lambda: len(made_by(admin)) == 1)
        assert {one.partition(" ")[0] for one in names(running.url)} == {"new"}
        os.kill(heir, signal.SIGTERM)
        eventually(lambda: not there(str(heir)))


def test_a_new_version_is_not_blamed_for_who_was_at_its_address_before() -> None:
    old, new = Version(("old",)), Version(("new",))
    rollouts = Rollouts("default", old)
    rollouts.begin(new, Scaling(launcher="process"))
    here, there = "http://127.0.0.1:1", "http://127.0.0.1:2"
    rollouts.judge(Sample(0.0, {}), [("a", here, old), ("b", there, old)], 0.05)
    totals: Totals = {("failures", "default", here, "connect"): [5]}  # "a" has died
    rollouts.judge(Sample(1.0, totals), [("b", there, old)], 0.05)
    rollouts.judge(Sample(2.0, totals), [("b", there, old), ("c", here, new)], 0.05)
    assert rollouts.goal == new
    totals = {("failures", "default", here, "connect"): [8]}
    rollouts.judge(Sample(3.0, totals), [("b", there, old), ("c", here, new)], 0.05)
    assert rollouts.goal == old


def test_a_keeper_that_comes_to_it_late_leaves_no_process_behind(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(processes, "_PATIENCE", 0.0)
    flag = tmp_path / "flag"
    script = f"import os, time; open({str(flag)!r}, 'w').write(str(os.getpid())); time.sleep(999)"
    launcher = ProcessLauncher(Scaling(launcher="process", logs=str(tmp_path)))
    try:
        with pytest.raises(LaunchError, match="doesn't answer"):
            launcher.start("one", Version((sys.executable, "-c", script, "{port}")))
        monkeypatch.undo()
        other = launcher.start("two", Version((sys.executable, "-c", "input()", "{port}")))
        eventually(lambda: not flag.exists() or not there(flag.read_text()))
        launcher.stop(other, 1)
    finally:
        launcher.close()


WORKER = """
import os, time
for turn in ("1", "2"):
    if not os.fork():
        while time.process_time() < 0.3:
            pass
        open("worked" + turn, "w").close()
        while not os.path.exists("go" + turn):
            time.sleep(0.02)
        os._exit(0)
    os.wait()
    open("gone" + turn, "w").close()
time.sleep(60)
"""


def test_work_of_a_child_that_has_ended_was_work(tmp_path: Path) -> None:
    """When a worker of a target was recycled, it had used less than before: 80 % of a processor
    were less than nothing, and a target went."""
    said = Scaling(launcher="process", logs=str(tmp_path), folder=str(tmp_path))
    launcher = ProcessLauncher(said)
    try:
        one = launcher.start("one", Version((sys.executable, "-c", WORKER, "{port}")))
        found = []
        for turn in ("1", "2"):
            eventually((tmp_path / f"worked{turn}").exists)
            found.append(launcher.processor_time(one) or 0)
            (tmp_path / f"go{turn}").touch()
            eventually((tmp_path / f"gone{turn}").exists)
            found.append(launcher.processor_time(one) or 0)
        most = 0.0
        for used in found:
            assert used > max(most, 0.2) - 0.05  # it is counted in ticks
            most = max(most, used)
    finally:
        launcher.close()


def test_targets_don_t_know_the_settings_of_the_proxy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PYPROXY_ADMIN__PASSWORD", "hush")
    monkeypatch.setenv("ODD", os.fsdecode(b"\xff"))
    line = f"env >'{tmp_path}/env'; exec '{sys.executable}' '{MADE}' {{port}}"
    said = {**scaling(min=1, environment={"P": "{port}"}), "command": ["sh", "-c", line]}
    with Proxy(scaling=said) as proxy:
        port = live(proxy)[0]["url"].rpartition(":")[2]
    found = (tmp_path / "env").read_bytes().splitlines()
    assert {b"ODD=\xff", f"P={port}".encode()} <= set(found)
    assert not [one for one in found if one.startswith(b"PYPROXY_")]


def test_what_a_new_keeper_starts_has_not_ended_with_the_one_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It was told so, and ran on, known to nobody."""
    launcher = ProcessLauncher(parse({"listen": 0, "scaling": scaling()}).scaling or Scaling())
    version = Version(tuple(command()))
    one = launcher.start("one", version)
    send, keeper = launcher._send, launcher._keeper
    assert keeper

    def late(*known: Any, **said: Any) -> None:
        monkeypatch.undo()
        keeper.kill()
        eventually(lambda: launcher.ended(one))
        send(*known, **said)

    monkeypatch.setattr(launcher, "_send", late)
    two = launcher.start("two", version)
    assert launcher.ended(one) == "ended with its keeper"
    assert launcher.ended(two) is None
    assert there(two.handle)
    launcher.stop(two, DEADLINE)
    launcher.close()
    assert not there(two.handle)


def test_a_keeper_that_hangs_does_not_hold_up_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    with Proxy(scaling=scaling(min=1, stop_timeout="0.1s")) as proxy:
        target = live(proxy)[0]["handle"]
        keeper = Path(f"/proc/{target}/stat").read_text().rpartition(")")[2].split()[1]
        os.kill(int(keeper), signal.SIGSTOP)
        monkeypatch.setattr(processes, "_PATIENCE", 0.1)
    eventually(lambda: not there(target))
    assert not there(keeper)


# A keeper that is killed when one that it starts has begun, and isn't bound to it yet.
KILLED = """
import os, signal, socket, sys, time
from pyproxy.scaling.keeper import Keeper
keeper = Keeper(socket.socketpair()[0])
prctl, own = keeper._prctl, os.getpid()
def late(*said):
    with open("begun", "w") as file:
        file.write(str(os.getpid()))
    os.kill(own, signal.SIGKILL)
    while os.getppid() == own:
        time.sleep(0.01)
    prctl(*said)
keeper._prctl = late
keeper._start("one", ["/bin/sleep", "60"], {}, None, os.devnull)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells children of such an end")
def test_a_target_that_begins_when_its_keeper_is_killed_ends(tmp_path: Path) -> None:
    with running(sys.executable, "-c", KILLED, cwd=tmp_path) as keeper:
        assert keeper.wait() == -signal.SIGKILL
        begun = (tmp_path / "begun").read_text()
        eventually(lambda: not there(begun))


# A keeper that is asked for two, by a program that is gone then; and one that is told to end in
# the middle of a start.
GONE = """
import json, os, signal, socket, sys
from pyproxy.scaling.keeper import Keeper
program, own = socket.socketpair()
keeper, pid, how = Keeper(own), os.getpid(), sys.argv[1]
rest = {"environment": {}, "folder": None, "log": os.devnull}
for name in ("one", "two"):
    script = f"echo $$ >{name}; exec sleep 60"
    said = {"verb": "start", "name": name, "command": ["/bin/sh", "-c", script], **rest}
    program.sendall(json.dumps(said).encode() + b"\\n")
if how == "killed":
    program.close()
else:
    keeper._prctl = lambda *_: os.kill(pid, signal.SIGTERM)
keeper.run()
"""


@pytest.mark.parametrize("how", ["killed", "told"])
def test_what_is_asked_for_when_the_end_comes_does_not_outlive_it(how: str, tmp_path: Path) -> None:
    with running(sys.executable, "-c", GONE, how, cwd=tmp_path) as keeper:
        assert keeper.wait() == 0, keeper.text
    assert not [one for one in tmp_path.iterdir() if there(one.read_text().strip() or "none")]


def test_a_target_that_may_take_months_to_end_harms_no_other(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """They were killed, all at once, with their keeper: it can't wait so long."""
    launcher = ProcessLauncher(Scaling(launcher="process", logs=str(tmp_path)))
    begun, asked = tmp_path / "begun", tmp_path / "asked"
    slow = f"trap ': >{asked}' TERM; : >{begun}; while :; do sleep 0.1; done"
    one = launcher.start("one", Version(("sh", "-c", slow, "{port}")))
    eventually(begun.exists)
    ends = threading.Thread(target=launcher.stop, args=(one, 1e8))
    ends.start()
    eventually(asked.exists)
    other = launcher.start("two", Version(("sleep", "60", "{port}")))
    assert launcher.ended(one) is None
    monkeypatch.setattr(processes, "_PATIENCE", 0.1)
    launcher.close()
    ends.join()
    eventually(lambda: not there(one.handle) and not there(other.handle))
