"""The proxy as a program: with workers, reloaded, replaced by a new one, under systemd."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from pyproxy import Proxy
from pyproxy.balancing.counters import Counters
from pyproxy.control import workers as workers_module
from pyproxy.control.handover import hand_over
from pyproxy.control.ledger import Ledger, Memory
from pyproxy.control.source import Source
from pyproxy.errors import ControlError, ListenError, PyproxyError
from pyproxy.settings import parse
from pyproxy.sockets import Sockets
from tests.programs import Program, command, environment, program
from tests.support import DEADLINE, Gate, Load, RawTarget, client, eventually, get, letters

GET = b"GET / HTTP/1.1\r\nHost: test\r\n\r\n"

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
pytestmark = needs_fork


ADMIN = {"admin": {"listen": "http://127.0.0.1:0"}}


class Served:
    """``python -m pyproxy`` in a folder of its own, with an appsettings.json to be edited."""

    def __init__(self, folder: Path, **said: Any) -> None:
        self.file = folder / "appsettings.json"
        self.said = {
            "listen": "http://127.0.0.1:0",
            **ADMIN,
            **said,
        }
        self.write()

    def write(self, **changes: Any) -> None:
        self.said |= changes
        new = self.file.with_suffix(".new")
        new.write_text(json.dumps(self.said))
        new.replace(self.file)

    def running(self, *arguments: str) -> contextlib.AbstractContextManager[Program]:
        return program(*arguments, cwd=self.file.parent)


def admin(served: Program) -> str:
    return served.wait_for(r"admin: (http://\S+)")[1]


def status(served: Program) -> dict[str, Any]:
    found: dict[str, Any] = requests.get(f"{admin(served)}/status", timeout=DEADLINE).json()
    return found


def workers(served: Program) -> list[int]:
    return [one["pid"] for one in status(served)["workers"] if one["pid"]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def test_workers_share_the_requests_and_their_counters_add_up(folder: Path) -> None:
    with (
        letters("ab") as [a, b],
        Served(folder, targets=[a.url, b.url], workers=2).running() as served,
    ):
        for _ in range(40):
            assert get(served.url).status == 200
        found = status(served)
        assert found["requests"] == 40
        assert sum(one["requests"] for one in found["pools"][0]["targets"]) == 40
        assert len(found["workers"]) == 2
        served.wait_for("with 2 workers")
        assert served.stop() == 0


def replaced(served: Program, gone: int) -> bool:
    now = workers(served)
    return len(now) == 2 and gone not in now


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_worker_that_ends_is_replaced_and_no_total_is_lost(folder: Path, number: int) -> None:
    with (
        letters("ab") as [a, b],
        Served(folder, targets=[a.url, b.url], workers=2).running() as served,
    ):
        with Load(served.url) as load:
            for _ in range(3):
                load.goes_on()
                victim = workers(served)[0]
                os.kill(victim, number)
                eventually(lambda gone=victim: replaced(served, gone))  # type: ignore[misc]
            load.goes_on()
        if number == signal.SIGTERM:
            assert load.failures == []
        # What a killed one held is lost: at most a request a client and kill.
        assert len(load.failures) <= 3 * 4
        assert set(load.statuses) == {200}
        counted = status(served)["requests"]
        assert load.count - 3 * 4 <= counted <= load.count + len(load.failures)
        if number == signal.SIGTERM:
            assert counted == load.count
        assert served.stop() == 0


@pytest.mark.skipif(not hasattr(signal, "SIGRTMIN"), reason="no signal without a name here")
def test_a_worker_that_a_signal_without_a_name_ends_is_replaced(folder: Path) -> None:
    with Served(folder, targets=[8001], workers=2).running() as served:
        victim = workers(served)[0]
        os.kill(victim, signal.SIGRTMIN + 1)
        eventually(lambda: replaced(served, victim))
        served.wait_for(f"was ended by signal {signal.SIGRTMIN + 1}")


def test_a_start_that_one_worker_holds_up_ends_when_a_signal_has_come(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While another one serves it is tried again and again."""
    (folder / "second.py").write_text(
        "import os, sys\n"
        "def choose(request, targets):\n"
        "    return targets[0]\n"
        "if 'worker' in ' '.join(sys.orig_argv):\n"
        "    try:\n"
        "        open(__file__ + '.first', 'x').close()\n"
        "    except FileExistsError:\n"
        "        os._exit(3)\n"
    )
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(workers_module, "_YOUNG", 0)
    with letters("a") as [a]:
        said = {"listen": 0, "targets": [a.url], "workers": 2, "policy": "second:choose"}
        supervisor = workers_module.Supervisor(parse(said))
        supervisor.control.fleets.hurried = lambda: max(supervisor.restarts.values()) > 1
        starting = threading.Thread(target=supervisor.start, daemon=True)
        starting.start()
        try:
            starting.join(DEADLINE)
            assert not starting.is_alive()
            assert get(supervisor.urls[0]).body == b"a"
        finally:
            supervisor.stop()


def test_what_waits_in_the_backlog_survives_a_killed_worker(folder: Path) -> None:
    gate = Gate(b"x")
    limits = {"connections": 1}
    with RawTarget(gate) as target:
        said = Served(folder, targets=[target.url], workers=2, limits=limits)
        with said.running() as served, contextlib.ExitStack() as stack:
            wires = [stack.enter_context(client(served.url)) for _ in range(12)]
            for wire in wires:
                wire.send(GET)
            for _ in range(2):
                gate.arrived.get(timeout=DEADLINE)
            os.kill(workers(served)[0], signal.SIGKILL)
            gate.open.set()
            answered = 0
            for wire in wires:
                with contextlib.suppress(OSError, EOFError):
                    answered += wire.read_message().status == 200
            # A worker holds the one that it serves, and one that waits for its place.
            assert answered >= 10


def test_a_crash_loop_ends_with_a_message(folder: Path) -> None:
    (folder / "crashing.py").write_text(
        "import os, threading\n"
        "def choose(request, targets): ...\n"
        "if 'worker' in ' '.join(__import__('sys').orig_argv):\n"
        "    threading.Timer(0.1, os._exit, [3]).start()\n"
    )
    said = Served(folder, targets=[8001], workers=2, policy="crashing:choose")
    with said.running() as served:
        served.wait_for(r"worker \d dies again and again: it ended with status 3")
        assert served.wait() == 1
        assert "Traceback" not in served.text


@pytest.mark.parametrize("count", [1, 2])
def test_an_access_log_that_can_not_be_opened_changes_nothing(folder: Path, count: int) -> None:
    with letters("a") as [a]:
        said = Served(folder, targets=[a.url], workers=count)
        with said.running() as served:
            assert get(served.url).body == b"a"
            said.write(access_log=str(folder / "nowhere" / "access.log"))
            served.wait_for("the settings stay as they were: access_log: .*: no such file")
            assert get(served.url).body == b"a"
            assert served.stop() == 0


def test_workers_do_not_start_without_their_access_log(folder: Path) -> None:
    said = Served(folder, targets=[1], workers=2, access_log=str(folder / "nowhere" / "a.log"))
    with said.running() as served:
        assert served.wait() == 1
        assert re.fullmatch(r"access_log: .*: no such file or directory\n?", served.text)


def test_what_was_done_by_hand_before_is_no_event_of_a_new_worker(folder: Path) -> None:
    with letters("ab") as [a, b]:
        said = Served(folder, targets=[a.url, b.url], workers=2)
        with said.running() as served:
            target = status(served)["pools"][0]["targets"][0]["id"]
            change = {"weight": 3}
            url = f"{admin(served)}/targets/{target}"
            assert requests.patch(url, json=change, timeout=DEADLINE).ok
            for victim in workers(served):
                os.kill(victim, signal.SIGKILL)
                eventually(lambda gone=victim: replaced(served, gone))  # type: ignore[misc]
            found = status(served)
            assert found["events"] == []
            assert found["pools"][0]["targets"][0]["weight"] == 3


def test_a_worker_that_can_not_come_back_ends_no_other(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "crashing.py").write_text(
        "import os, pathlib, sys\n"
        "def choose(request, targets):\n"
        "    return targets[0]\n"
        "if 'worker' in ' '.join(sys.orig_argv) and pathlib.Path(__file__ + '.now').exists():\n"
        "    os._exit(3)\n"
    )
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(workers_module, "_YOUNG", 0.5)
    monkeypatch.setattr(workers_module, "_PAUSE", 0.001)
    monkeypatch.setattr(workers_module, "_LOOP", 2)
    failed: list[str] = []
    with letters("a") as [a]:
        said = {"listen": 0, "targets": [a.url], "workers": 2, "policy": "crashing:choose"}
        with workers_module.Supervisor(parse(said), failed=failed.append) as supervisor:
            (folder / "crashing.py.now").touch()
            steady = supervisor.workers[0].started
            eventually(lambda: time.time() - steady > 1)
            supervisor.workers[0].started += 3600  # and then somebody has put back the clock
            supervisor.workers[1].kill()
            eventually(lambda: supervisor.restarts[1] > workers_module._LOOP + 2)
            assert get(supervisor.urls[0]).body == b"a"
            (folder / "crashing.py.now").unlink()
            eventually(lambda: len(supervisor.workers) == 2)
    assert failed == []


def test_an_edited_file_takes_effect_by_itself(folder: Path) -> None:
    with letters("ab") as [a, b]:
        said = Served(folder, targets=[a.url])
        with said.running() as served:
            assert get(served.url).body == b"a"
            said.write(targets=[b.url])
            served.wait_for("settings: targets: without .* and with .*")
            assert get(served.url).body == b"b"
            said.file.write_text('{"targets": [8001], "timeouts": {"raed": 5}}')
            served.wait_for(r'the settings stay as they were: .*did you mean "read"')
            assert get(served.url).body == b"b"
            assert "raed" in status(served)["settings"]["error"]["problems"][0]
            said.write(targets=[a.url, b.url])
            served.wait_for("settings: targets: with ")
            assert status(served)["settings"]["error"] is None


@pytest.mark.parametrize("count", [1, 2])
def test_a_hangup_reloads_without_a_failed_request(folder: Path, count: int) -> None:
    with letters("abc") as [a, b, c]:
        said = Served(folder, targets=[a.url, b.url], workers=count)
        with said.running("--no-watch") as served, Load(served.url) as load:
            load.goes_on()
            for at in range(10):
                said.write(targets=[[b.url, c.url], [a.url, b.url]][at % 2], max_fails=at + 1)
                served.send(signal.SIGHUP)
                served.wait_for(rf"settings: max_fails: \d+ -> {at + 1}$" if at else "targets: w")
                load.goes_on(5)
        assert load.failures == []
        assert set(load.statuses) == {200}


def test_the_number_of_workers_changes_while_they_serve(folder: Path) -> None:
    with letters("a") as [a]:
        said = Served(folder, targets=[a.url], workers=2)
        with said.running() as served, Load(served.url) as load:
            said.write(workers=3)
            eventually(lambda: len(workers(served)) == 3)
            load.goes_on()
            said.write(workers=2)
            eventually(lambda: len(workers(served)) == 2)
            load.goes_on()
        assert load.failures == []


def reload(served: Program) -> int:
    return requests.post(f"{admin(served)}/reload", timeout=DEADLINE).status_code


def test_workers_outlive_an_access_log_that_can_not_be_opened(folder: Path) -> None:
    with letters("a") as [a]:
        said = Served(folder, targets=[a.url], workers=2)
        with said.running("--no-watch") as served:
            before = workers(served)
            said.write(access_log=str(folder / "no" / "log"))
            assert reload(served) == 422
            assert workers(served) == before
            assert get(served.url).body == b"a"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts files in /proc")
def test_a_worker_without_a_file_to_spare_may_get_more_from_other_settings(folder: Path) -> None:
    resource = pytest.importorskip("resource")
    gate = Gate(b"x")
    with RawTarget(gate) as target:
        said = Served(folder, targets=[target.url], workers=2, log={"level": "info"})
        with said.running("--no-watch") as served, client(served.url) as wire:
            before = workers(served)
            wire.send(GET)
            gate.arrived.get(timeout=DEADLINE)
            for pid in before:
                files = {*map(int, os.listdir(f"/proc/{pid}/fd"))}
                most = min({*range(len(files) + 1)} - files)
                _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
                resource.prlimit(pid, resource.RLIMIT_NOFILE, (most, hard))
            said.write(limits={"connections": 100})
            served.send(signal.SIGHUP)
            served.wait_for("settings: limits.connections")
            gate.open.set()
            assert wire.read_message().body == b"x"
            assert workers(served) == before


def test_a_reload_that_broke_off_is_taken_back_with_the_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """This machine is out of threads for a moment."""
    start = threading.Thread.start
    failed = threading.Event()

    def begin(thread: threading.Thread) -> None:
        if thread.name.startswith("pyproxy-listen") and not failed.is_set():
            failed.set()
            raise RuntimeError("can't start new thread")
        start(thread)

    with letters("a") as [a]:
        before = parse({"listen": 0, "targets": [a.url]})
        more = parse({"listen": [0, "http://127.0.0.1:0"], "targets": [a.url]})
        said = [more, before]
        with Proxy(before) as proxy:
            source = Source(lambda: said.pop(0), proxy.reload, before, "a file")
            with monkeypatch.context() as short:
                short.setattr(threading.Thread, "start", begin)
                with pytest.raises(RuntimeError):
                    source.reload()
            assert get(proxy.url).body == b"a"
            source.reload()
            assert len(proxy.sockets.all()) == len(proxy.urls) == 1
            assert get(proxy.url).body == b"a"


def test_a_worker_that_is_not_wanted_any_more_finishes_what_it_has(folder: Path) -> None:
    gate = Gate(b"x")
    with RawTarget(gate) as target:
        said = Served(folder, targets=[target.url], workers=4)
        with said.running("--no-watch") as served, contextlib.ExitStack() as stack:
            wires = [stack.enter_context(client(served.url)) for _ in range(16)]
            for wire in wires:
                wire.send(GET)
                gate.arrived.get(timeout=DEADLINE)
            said.write(workers=2)
            assert reload(served) == 200
            began = time.monotonic()
            assert len(workers(served)) == 2
            assert time.monotonic() - began < DEADLINE, "nobody waits for those that leave"
            gate.open.set()
            for wire in wires:
                assert wire.read_message().body == b"x"


def test_workers_have_policies_that_are_no_plain_functions(folder: Path) -> None:
    (folder / "chooses.py").write_text("last = lambda request, targets: targets[-1]\n")
    with letters("ab") as [a, b]:
        said = Served(folder, targets=[a.url, b.url], workers=2, policy="chooses:last")
        with said.running() as served:
            assert get(served.url).body == b"b"


TELLS = """
import os

def turns(request, targets):
    with open("turns", "a") as file:
        print(os.getpid(), request.number, file=file)
    return targets[request.number % len(targets)]
"""


def test_workers_begin_with_different_targets(folder: Path) -> None:
    (folder / "tells.py").write_text(TELLS)
    with letters("ab") as [a, b]:
        said = Served(folder, targets=[a.url, b.url], workers=2, policy="tells:turns")
        first: dict[str, str] = {}

        def both_have_answered() -> bool:
            assert get(served.url).status == 200
            for line in reversed((folder / "turns").read_text().splitlines()):
                process, number = line.split()
                first[process] = number
            return len(first) == 2

        with said.running() as served:
            eventually(both_have_answered)
        assert sorted(first.values()) == ["0", "1"]


def test_a_worker_that_awakes_while_all_stop_does_not_serve(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from pyproxy.control.workers import Supervisor, Worker
    from pyproxy.settings import parse

    awake = threading.Event()
    starting = threading.Event()
    real = Worker.wait_until_awake

    def wait(worker: Worker) -> None:
        real(worker)
        if starting.is_set():
            asleep.set()
            assert awake.wait(DEADLINE)

    monkeypatch.setattr(Worker, "wait_until_awake", wait)
    asleep = threading.Event()
    said = parse({"listen": "http://127.0.0.1:0", "targets": [8001], "workers": 2})
    supervisor = Supervisor(said)
    supervisor.start()
    starting.set()
    os.kill(supervisor.workers[0].process.pid, signal.SIGKILL)
    assert asleep.wait(DEADLINE)
    stop = threading.Thread(target=supervisor.stop)
    began = time.monotonic()
    stop.start()
    eventually(supervisor._stopping.is_set)
    eventually(lambda: 1 not in supervisor.workers)
    awake.set()
    stop.join(DEADLINE)
    assert time.monotonic() - began < said.timeouts.drain / 2
    with pytest.raises(ControlError, match="stopping"):
        supervisor.reload(said)


@pytest.mark.parametrize("count", [1, 2])
def test_a_new_program_takes_the_place_of_the_old_one(folder: Path, count: int) -> None:
    with letters("ab") as [a, b]:
        said = Served(folder, targets=[a.url, b.url], workers=count)
        with said.running() as served:
            url, api = served.url, admin(served)
            targets = requests.get(f"{api}/targets", timeout=DEADLINE).json()
            drained = targets["targets"][0]["id"] if isinstance(targets, dict) else targets[0]["id"]
            answer = requests.patch(
                f"{api}/targets/{drained}", json={"state": "drain"}, timeout=DEADLINE
            )
            assert answer.status_code == 200
            with Load(url) as load:
                load.goes_on()
                served.send(signal.SIGUSR2)
                new = int(served.wait_for(r"process (\d+) takes the place of this one")[1])
                assert served.process.wait(DEADLINE) == 0
                load.goes_on()
            assert load.failures == []
            assert set(load.statuses) == {200}
            found = requests.get(f"{api}/status", timeout=DEADLINE).json()
            assert found["requests"] == load.count, "the new one knows what the old one counted"
            states = {one["id"]: one["state"] for one in found["pools"][0]["targets"]}
            assert states[drained] == "draining", "and what was done by hand"
            os.kill(new, signal.SIGTERM)
            eventually(lambda: not served._open)


@pytest.mark.parametrize("count", [1, 2])
def test_a_new_program_believes_edited_settings_more_than_what_was_done_by_hand(
    folder: Path, count: int
) -> None:
    said = Served(folder, targets=[1, 2], workers=count)
    with said.running("--no-watch") as served:
        api = admin(served)
        for target in requests.get(f"{api}/targets", timeout=DEADLINE).json():
            where = f"{api}/targets/{target['id']}"
            requests.patch(where, json={"weight": 7}, timeout=DEADLINE)
        said.write(targets=[{"url": "http://localhost:1", "weight": 3}, 2])
        served.send(signal.SIGUSR2)
        new = int(served.wait_for(r"process (\d+) takes the place of this one")[1])
        assert served.process.wait(DEADLINE) == 0
        found = requests.get(f"{api}/targets", timeout=DEADLINE).json()
        assert [one["weight"] for one in found] == [3, 7]
        os.kill(new, signal.SIGTERM)
        eventually(lambda: not served._open)


def test_a_new_program_that_does_not_come_up_changes_nothing(folder: Path) -> None:
    with letters("a") as [a]:
        said = Served(folder, targets=[a.url])
        with said.running("--no-watch") as served:
            served.wait_for("listens on")
            said.file.write_text("{")
            served.send(signal.SIGUSR2)
            served.wait_for("the new program doesn't serve, this one goes on: it ended with 2")
            assert get(served.url).body == b"a"
            assert served.stop() == 0


def test_a_signal_to_end_that_comes_within_a_handover_is_not_the_second(folder: Path) -> None:
    gate = Gate(b"x")
    (folder / "slow.py").write_text(
        "import os, time\n"
        "def choose(request, targets): ...\n"
        "if os.path.exists('slow'):\n"
        "    time.sleep(1)\n"
    )
    with RawTarget(gate) as target:
        said = Served(folder, targets=[target.url], policy="slow:choose")
        with said.running() as served, client(served.url) as wire:
            wire.send(GET)
            gate.arrived.get(timeout=DEADLINE)
            (folder / "slow").touch()
            served.send(signal.SIGUSR2)
            served.send(signal.SIGTERM)
            new = int(served.wait_for(r"process (\d+) takes the place of this one")[1])
            gate.open.set()
            assert wire.read_message().body == b"x"
            assert served.process.wait(DEADLINE) == 0
            os.kill(new, signal.SIGTERM)
            eventually(lambda: not served._open)


def test_a_new_program_that_can_not_be_started_changes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(PyproxyError, match="can't be started, this one goes on"):
        hand_over(Sockets(), Ledger(shared=True), [], b"", {}, {})


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts files in /proc")
@pytest.mark.parametrize("count", [1, 2])
def test_a_program_that_finds_no_file_for_its_successor_goes_on(folder: Path, count: int) -> None:
    resource = pytest.importorskip("resource")
    with Served(folder, targets=[8001], workers=count).running() as served:
        served.wait_for("admin: ")
        pid = served.process.pid
        before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, before[1]))
        served.send(signal.SIGUSR2)
        served.wait_for("the new program can't be started, this one goes on: .*Too many open files")
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
        served.send(signal.SIGUSR2)
        new = int(served.wait_for(r"process (\d+) takes the place of this one")[1])
        assert served.process.wait(DEADLINE) == 0
        os.kill(new, signal.SIGTERM)
        eventually(lambda: not served._open)


@contextlib.contextmanager
def with_free_files(count: int) -> Iterator[None]:
    """So many more can be opened in this process."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = [os.open(os.devnull, os.O_RDONLY) for _ in range(count)]
    most = max(map(int, os.listdir("/proc/self/fd"))) + 1
    fill = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, before[1]))
    try:
        with contextlib.suppress(OSError):
            while True:
                fill.append(os.open(os.devnull, os.O_RDONLY))
        for file in free:
            os.close(file)
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        for file in fill:
            os.close(file)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts files in /proc")
def test_memory_that_can_not_be_mapped_costs_no_file() -> None:
    before = os.listdir("/proc/self/fd")
    with with_free_files(1), pytest.raises(OSError, match="Too many open files"):
        Memory.shared()
    assert len(os.listdir("/proc/self/fd")) == len(before)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts files in /proc")
def test_an_address_without_a_file_for_it_is_told_as_any_that_can_not_be_had() -> None:
    with with_free_files(0), pytest.raises(ListenError, match=r"can't listen on .*too many open"):
        Sockets().open([("http", "127.0.0.1", 0)])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts files in /proc")
def test_a_successor_that_can_not_be_told_all_is_ended(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No file is left for the memory that is to be handed over."""
    ledger = Ledger(shared=True)
    files = ledger.files

    def none_left() -> list[int]:
        with with_free_files(1):
            return files()

    monkeypatch.setattr(ledger, "files", none_left)
    waits = "import os, socket; sock = socket.socket(fileno=int(os.environ['PYPROXY_HANDOVER']));"
    end = f"sock.recv(1); open({str(folder / 'ended')!r}, 'x')"
    monkeypatch.setattr(sys, "orig_argv", ["python", "-c", waits + end])
    with pytest.raises(PyproxyError, match=r"this one goes on: .*Too many open files"):
        hand_over(Sockets(), ledger, [], b"", {}, {})
    assert (folder / "ended").exists()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits the memory of a process")
def test_signals_are_heeded_without_a_thread_to_be_had(folder: Path) -> None:
    """Without memory for its stack there is none."""
    resource = pytest.importorskip("resource")
    gate = Gate(b"x")
    with RawTarget(gate) as target:
        said = Served(
            folder, targets=[target.url], log={"level": "info"}, access_log=str(folder / "log")
        )
        with said.running("--no-watch") as served, client(served.url) as wire:
            served.wait_for("admin: ")
            wire.send(GET)
            gate.arrived.get(timeout=DEADLINE)
            pid = served.process.pid
            pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
            most = pages * resource.getpagesize() + 2_000_000
            resource.prlimit(pid, resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))
            served.send(signal.SIGHUP)
            served.wait_for("nothing has changed")
            (folder / "log").unlink()
            served.send(signal.SIGUSR1)
            eventually((folder / "log").exists)
            served.send(signal.SIGTERM)
            served.wait_for("stopping")
            gate.open.set()
            assert wire.read_message().status == 200
            assert served.wait() == 0


def test_a_proxy_stops_without_a_thread_to_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    start = threading.Thread.start

    def begin(thread: threading.Thread) -> None:
        if thread.name == "pyproxy-shutdown":
            raise RuntimeError("can't start new thread")
        start(thread)

    with letters("a") as [a]:
        proxy = Proxy(targets=[a.url])
        proxy.start()
        with monkeypatch.context() as short:
            short.setattr(threading.Thread, "start", begin)
            proxy.stop()
        assert not [one for one in threading.enumerate() if one.name.startswith("pyproxy-")]


def test_requests_are_finished_though_nobody_reads_what_the_program_says(folder: Path) -> None:
    gate = Gate(b"x")
    with RawTarget(gate) as target:
        Served(folder, targets=[target.url])
        words = [sys.executable, "-m", "pyproxy"]
        pipe = subprocess.PIPE
        with subprocess.Popen(
            words, cwd=folder, env=environment(), stderr=pipe, text=True
        ) as process:
            assert process.stderr
            found = re.search(r"listens on (http://[^\s,]+)", process.stderr.readline())
            process.stderr.close()
            assert found
            with client(found[1]) as wire:
                wire.send(GET)
                gate.arrived.get(timeout=DEADLINE)
                process.send_signal(signal.SIGTERM)
                gate.open.set()
                assert wire.read_message().status == 200
            assert process.wait(DEADLINE) == 0


@pytest.mark.parametrize("count", [1, 2])
def test_more_connections_get_more_files(folder: Path, count: int) -> None:
    resource = pytest.importorskip("resource")
    limit = "import resource, runpy; resource.setrlimit(resource.RLIMIT_NOFILE, (256, 4096));"
    run = f"{limit} runpy.run_module('pyproxy', run_name='__main__')"
    with letters("a") as [a]:
        said = Served(folder, targets=[a.url], workers=count, limits={"connections": 50})
        with command(sys.executable, "-c", run, cwd=folder) as served:
            served.wait_for("admin: ")
            pids = workers(served) if count > 1 else [served.process.pid]
            said.write(limits={"connections": 1000})
            served.wait_for("settings: limits")
            for pid in pids:
                assert resource.prlimit(pid, resource.RLIMIT_NOFILE)[0] == 2100


def with_files(most: int, folder: Path) -> contextlib.AbstractContextManager[Program]:
    """The program, that may have so many files open."""
    pytest.importorskip("resource")
    limit = f"import resource, runpy; resource.setrlimit(resource.RLIMIT_NOFILE, ({most}, {most}));"
    run = f"{limit} runpy.run_module('pyproxy', run_name='__main__')"
    return command(sys.executable, "-c", run, cwd=folder)


def test_files_that_may_be_open_limit_the_connections(folder: Path) -> None:
    """Of 200 files 75 clients get one, and one to a target; idle connections to others make room.
    More clients wait."""
    gate = Gate(b"x")
    with contextlib.ExitStack() as stack:
        targets = [stack.enter_context(RawTarget(gate)) for _ in range(3)]
        routes = [{"path": f"/{at}", "targets": [one.url]} for at, one in enumerate(targets)]
        Served(folder, routes=routes, limits={"connections": 1000}, log={"level": "info"})
        served = stack.enter_context(with_files(200, folder))
        served.wait_for("no more than 75 are served at once")
        served.wait_for("admin: ")
        wires = [stack.enter_context(client(served.url)) for _ in range(75)]
        for at in range(3):
            gate.open.clear()
            for wire in wires:
                wire.send(GET.replace(b"/", b"/%d" % at, 1))
                gate.arrived.get(timeout=DEADLINE)
            if at == 2:
                wires.append(stack.enter_context(client(served.url)))
                wires[-1].send(GET.replace(b"/", b"/2", 1))
                served.wait_for("limits.connections reached: 75 are open")
            gate.open.set()
            assert {wire.read_message().status for wire in wires} == {200}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts files in /proc")
def test_a_request_waits_for_a_file(folder: Path) -> None:
    """Of 300, of which 150 are clients' and some the program's own."""
    gate = Gate(b"x")
    with contextlib.ExitStack() as stack:
        target = stack.enter_context(RawTarget(gate))
        Served(folder, targets=[target.url], timeouts={"connect": DEADLINE})
        served = stack.enter_context(with_files(300, folder))
        served.wait_for("admin: ")
        wires = [stack.enter_context(client(served.url)) for _ in range(150)]
        for wire in wires:
            wire.send(GET)
        open_files = f"/proc/{served.process.pid}/fd"
        eventually(lambda: len(os.listdir(open_files)) >= 298)
        time.sleep(1)  # those who find none are on their way
        gate.open.set()
        assert {wire.read_message().status for wire in wires} == {200}
        assert len(target.requests) == 150


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts files in /proc")
def test_a_client_is_accepted_where_idle_connections_to_targets_have_taken_all_files(
    folder: Path,
) -> None:
    resource = pytest.importorskip("resource")
    gate = Gate(b"x")
    with contextlib.ExitStack() as stack:
        target = stack.enter_context(RawTarget(gate))
        served = stack.enter_context(Served(folder, targets=[target.url]).running())
        wires = [stack.enter_context(client(served.url)) for _ in range(10)]
        for wire in wires:
            wire.send(GET)
            gate.arrived.get(timeout=DEADLINE)
        gate.open.set()
        assert {wire.read_message().status for wire in wires} == {200}
        pid = served.process.pid
        files = [int(name) for name in os.listdir(f"/proc/{pid}/fd")]
        most = max(files) + 1
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (most, most))
        for _ in range(most - len(files) + 5):  # five more than there is a free number for
            wires.append(stack.enter_context(client(served.url)))
            wires[-1].send(GET)
            assert wires[-1].read_message().status == 200


def test_a_second_signal_ends_workers_at_once(folder: Path) -> None:
    gate = Gate(b"x")
    with (
        RawTarget(gate) as target,
        Served(folder, targets=[target.url], workers=2).running() as served,
    ):
        with client(served.url) as wire:
            wire.send(GET)
            gate.arrived.get(timeout=DEADLINE)
            served.send(signal.SIGINT)
            served.wait_for("stopping")
            began = time.monotonic()
            assert served.stop(signal.SIGINT) == 130
            assert time.monotonic() - began < DEADLINE
        gate.open.set()


def test_workers_finish_what_is_under_way(folder: Path) -> None:
    gate = Gate(b"x")
    with (
        RawTarget(gate) as target,
        Served(folder, targets=[target.url], workers=2).running() as served,
    ):
        with client(served.url) as wire:
            wire.send(GET)
            gate.arrived.get(timeout=DEADLINE)
            served.send(signal.SIGTERM)
            served.wait_for("stopping")
            gate.open.set()
            assert wire.read_message().body == b"x"
        assert served.wait() == 0


def test_workers_end_when_their_supervisor_is_killed(folder: Path) -> None:
    with letters("a") as [a], Served(folder, targets=[a.url], workers=2).running() as served:
        served.wait_for("listens on")
        served.send(signal.SIGKILL)
        served.wait()


def test_a_worker_whose_supervisor_is_gone_before_it_awakes_ends_without_a_word() -> None:
    own, other = socket.socketpair()
    with other:
        words = [sys.executable, "-m", "pyproxy.worker", str(other.fileno())]
        own.close()
        with command(*words, files=[other.fileno()]) as worker:
            assert worker.wait() == 0
            assert worker.text == ""


# What systemd does: binds the sockets, hands them over as descriptors from 3 on, says so in the
# environment with the process id, and listens to what it is told.
ACTIVATE = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.set_inheritable(3, True)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
os.execv(sys.executable, [sys.executable, "-m", "pyproxy", *sys.argv[2:]])
"""


@contextlib.contextmanager
def notified(folder: Path) -> Iterator[tuple[str, socket.socket]]:
    path = str(folder / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(path)
        sock.settimeout(DEADLINE)
        yield path, sock


@pytest.mark.parametrize("count", [1, 2])
def test_sockets_come_from_systemd_and_it_is_told(folder: Path, count: int) -> None:
    with contextlib.ExitStack() as stack:
        [a] = stack.enter_context(letters("a"))
        path, told = stack.enter_context(notified(folder))
        bound = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        address = f"http://127.0.0.1:{bound.getsockname()[1]}"
        # Somebody asks before the program is there.
        early = stack.enter_context(client(address))
        early.send(GET)
        script = folder / "activate.py"
        script.write_text(ACTIVATE)
        settings = ["--listen", address, "--targets", a.url, "--workers", str(count)]
        words = [sys.executable, str(script), str(bound.fileno()), *settings]
        env = {"NOTIFY_SOCKET": path}
        served = stack.enter_context(command(*words, env=env, files=[bound.fileno()]))
        assert early.read_message().body == b"a"
        assert told.recv(1000).split(b"\n")[0] == b"READY=1"
        assert served.stop() == 0
        assert told.recv(1000) == b"STOPPING=1"


@pytest.mark.parametrize("count", [1, 2])
def test_sockets_of_systemd_outlive_the_program(folder: Path, count: int) -> None:
    script = folder / "activate.py"
    script.write_text(ACTIVATE)
    with contextlib.ExitStack() as stack:
        [a] = stack.enter_context(letters("a"))
        bound = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        address = f"http://127.0.0.1:{bound.getsockname()[1]}"
        words = [sys.executable, str(script), str(bound.fileno()), "--listen", address]
        words += ["--targets", a.url, "--workers", str(count)]
        for _ in range(2):
            with command(*words, files=[bound.fileno()]) as served:
                served.wait_for("listens on")
                assert get(address).body == b"a"
                assert served.stop() == 0
            early = stack.enter_context(client(address))  # before the next one is there
            early.send(GET)
        with command(*words, files=[bound.fileno()]) as served:
            assert early.read_message().body == b"a"
            served.send(signal.SIGUSR2)
            new = int(served.wait_for(r"process (\d+) takes the place of this one")[1])
            assert served.process.wait(DEADLINE) == 0
            os.kill(new, signal.SIGTERM)
            eventually(lambda: not served._open)
        client(address).close()


def test_systemd_is_told_the_end_of_a_reload_that_fails(folder: Path) -> None:
    with contextlib.ExitStack() as stack:
        path, told = stack.enter_context(notified(folder))
        taken = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        said = Served(folder, targets=[1])
        starting = program(cwd=folder, env={"NOTIFY_SOCKET": path})
        served = stack.enter_context(starting)
        assert told.recv(1000).split(b"\n")[0] == b"READY=1"
        said.write(listen=f"http://127.0.0.1:{taken.getsockname()[1]}")
        assert told.recv(1000).split(b"\n")[0] == b"RELOADING=1"
        assert told.recv(1000) == b"READY=1"
        served.wait_for("the settings stay as they were: can't listen on ")


def test_more_than_one_worker_is_refused_where_there_is_no_fork(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from pyproxy.control.workers import Supervisor
    from pyproxy.errors import SettingsError
    from pyproxy.settings import parse

    monkeypatch.delattr(os, "fork")
    with pytest.raises(SettingsError, match="needs a Unix"):
        Supervisor(parse({"targets": [8001], "workers": 2}))


def test_what_programs_before_have_counted_is_kept_in_one_place() -> None:
    old = Ledger(shared=True)
    Counters(old.open().map).keep({("requests", "", ""): [2]})
    for _ in range(3):  # two of them for programs that don't come up
        files = old.files()
        assert len(files) == 2
    new = Ledger([Memory(os.dup(file)) for file in files], shared=True)
    Counters(new.open().map).keep({("requests", "", ""): [3]})
    new.settle()
    assert new.totals() == {("requests", "", ""): [5]}
    assert len(new.files()) == 2, "its own, and one for all that was before"


def test_what_one_worker_refuses_and_others_have_done_is_done(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Those that are started later do it, too."""
    from pyproxy.control.workers import Supervisor

    said = parse({"listen": "http://127.0.0.1:0", "targets": [8001, 8002], "workers": 2})
    with Supervisor(said) as supervisor:
        control = supervisor.control
        one, two = (target["id"] for target in control.snapshot()["pools"][0]["targets"])
        with supervisor.changed:
            supervisor.workers[0].call("remove", one)
            supervisor.workers[1].call("add", "http://127.0.0.1:8003", "default")
        control.remove(one)
        assert f'worker 0 refuses what others have done: remove: no target has the id "{one}"' in (
            caplog.messages
        )
        three = control.add("http://127.0.0.1:8003")
        assert [deed[:2] for deed in control.journal] == [("remove", one), ("add", three)]
        assert {target["id"] for target in control.snapshot()["pools"][0]["targets"]} == {
            two,
            three,
        }
        for verb in (control.remove, control.drain):
            with pytest.raises(ControlError, match="no target has the id"):
                verb(one)
        with pytest.raises(ControlError, match="is in the pool default already"):
            control.add("http://127.0.0.1:8003")
        assert len([*control.journal]) == 2, "what all refuse isn't noted"


def test_the_admin_api_does_not_come_back_when_a_reload_ends_after_it() -> None:
    """In another program that has taken over, it is another's."""
    from pyproxy.control.workers import Supervisor
    from pyproxy.settings import Settings

    said = parse({"listen": "http://127.0.0.1:0", "targets": [8001], "workers": 2, **ADMIN})
    began, checking, go_on = threading.Event(), threading.Event(), threading.Event()

    def check(settings: Settings) -> None:
        if began.is_set():
            checking.set()
            assert go_on.wait(DEADLINE)

    supervisor = Supervisor(said, check=check)
    supervisor.start()
    began.set()
    reloading = threading.Thread(target=supervisor.reload, args=(said,))
    reloading.start()
    assert checking.wait(DEADLINE)
    stopping = threading.Thread(target=supervisor.stop)
    stopping.start()
    eventually(lambda: supervisor.admin_url is None)
    go_on.set()
    reloading.join()
    stopping.join()
    assert supervisor.admin_url is None


def test_a_worker_that_is_wanted_again_while_it_ends_comes_back() -> None:
    """A reload takes its time before it counts: the thread of one that goes must not end by the
    settings of before."""
    from pyproxy.control.workers import Supervisor
    from pyproxy.settings import Settings

    said = {"listen": "http://127.0.0.1:0", "targets": [8001]}
    checking, ended, looked = threading.Event(), threading.Event(), threading.Event()

    def check(settings: Settings) -> None:
        if ended.is_set():
            checking.set()
            looked.wait(0.3)  # by which it may have gone

    with Supervisor(parse({**said, "workers": 3}), check=check) as supervisor:
        close, wanted = supervisor.ledger.close, supervisor._wanted

        def closed(memory: Memory) -> None:
            ended.set()
            assert checking.wait(DEADLINE)
            close(memory)

        def is_wanted(number: int) -> bool:
            found = wanted(number)
            if number == 2 and not found:
                looked.set()
            return found

        supervisor.ledger.close = closed  # type: ignore[method-assign]
        supervisor._wanted = is_wanted  # type: ignore[method-assign]
        supervisor.reload(parse({**said, "workers": 2}))
        looked.clear()
        assert ended.wait(DEADLINE)
        supervisor.reload(parse({**said, "workers": 3}))
        eventually(lambda: len(supervisor.workers) == 3)


def test_a_worker_that_hangs_is_replaced_and_holds_up_nobody_for_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from pyproxy.control import workers as module
    from pyproxy.settings import parse

    monkeypatch.setattr(module, "_ANSWER", 0.5)
    said = parse({"listen": "http://127.0.0.1:0", "targets": [8001], "workers": 3})
    with module.Supervisor(said) as supervisor:
        hanging = [supervisor.workers[at].process.pid for at in (0, 1)]
        for pid in hanging:
            os.kill(pid, signal.SIGSTOP)
        began = time.monotonic()
        assert supervisor.control.snapshot()["pools"], "the third has answered"
        assert time.monotonic() - began < 9  # 10 without being told

        def pids() -> set[int]:
            return {one.process.pid for one in list(supervisor.workers.values())}

        eventually(lambda: len(pids()) == 3 and not pids() & {*hanging})


def test_a_worker_that_takes_no_question_is_replaced_too() -> None:
    from pyproxy.control import workers as module

    said = parse({"listen": "http://127.0.0.1:0", "targets": [8001], "workers": 1})
    with module.Supervisor(said) as supervisor:
        slow = supervisor.workers[0]
        slow._channel._sock.settimeout(0.1)
        with supervisor.changed:
            os.kill(slow.process.pid, signal.SIGSTOP)
            assert supervisor.all("snapshot", bytes(10_000_000)) == []
        eventually(lambda: supervisor.restarts[0] == 1)


def test_an_answer_that_comes_late_is_not_the_answer_to_the_next_question(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from pyproxy.control import workers as module

    monkeypatch.setattr(module, "_ANSWER", 0.1)
    said = parse({"listen": "http://127.0.0.1:0", "targets": [8001], "workers": 1})
    with module.Supervisor(said) as supervisor:
        slow = supervisor.workers[0]
        with monkeypatch.context() as late, supervisor.changed:
            # Its end comes so late that it still answers.
            late.setattr(slow, "kill", lambda: os.kill(slow.process.pid, signal.SIGCONT))
            os.kill(slow.process.pid, signal.SIGSTOP)
            assert supervisor.all("snapshot") == []
            assert supervisor.all("reopen_logs") == []
        eventually(lambda: supervisor.restarts[0] == 1)
