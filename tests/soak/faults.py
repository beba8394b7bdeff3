"""What is done to targets, workers and settings, at random; one target stays well meanwhile."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import requests

from tests.programs import Program, environment
from tests.soak.ledger import Fault, Ledger
from tests.soak.target import MODES
from tests.support import eventually

WELL_FOR = 15.0  # seconds for which a target is the one that stays well, at least
STILL_WELL = 30.0  # seconds for which it is left alone after that: requests may have tried others
PATIENCE = 90.0  # seconds for what must come about


class Target:
    """A process that is started again."""

    def __init__(self, name: str, port: int, folder: Path) -> None:
        self.name, self.port = name, port
        self.url = f"http://127.0.0.1:{port}"
        self.file = folder / f"{name}.posted"
        self.file.touch()
        self.busy = False  # something is done to it
        self.start()

    def start(self) -> None:
        words = [sys.executable, str(Path(__file__).with_name("target.py"))]
        self.process = subprocess.Popen(
            [*words, str(self.port), self.name, str(self.file)],
            stdin=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment(),
            text=True,
            start_new_session=True,
        )

    def order(self, mode: str) -> None:
        assert self.process.stdin
        with contextlib.suppress(OSError):
            self.process.stdin.write(f"{mode}\n")
            self.process.stdin.flush()

    def end(self, number: int = signal.SIGKILL) -> None:
        self.process.send_signal(number)
        self.process.wait(PATIENCE)
        if self.process.stdin:
            with contextlib.suppress(OSError):
                self.process.stdin.close()


class Group:
    """The processes of a proxy, however often it is started anew."""

    def __init__(self, program: Program) -> None:
        self._session = program.process.pid

    def _all(self) -> Iterator[tuple[int, int, bytes]]:
        """Process id, parent, command line."""
        for entry in os.scandir("/proc"):
            if not entry.name.isdigit():
                continue
            with contextlib.suppress(OSError, ValueError):
                stat = Path(entry.path, "stat").read_text().rpartition(")")[2].split()
                if int(stat[3]) == self._session and stat[0] not in "ZX":
                    said = Path(entry.path, "cmdline").read_bytes()
                    yield int(entry.name), int(stat[1]), said

    @property
    def pids(self) -> list[int]:
        return [pid for pid, _, _ in self._all()]

    @property
    def main(self) -> int | None:
        """The program, which is nobody's child here; a new one is the old one's until that ends."""
        found = list(self._all())
        pids = {pid for pid, _, _ in found}
        mains = [pid for pid, parent, _ in found if parent not in pids]
        return mains[0] if len(mains) == 1 else None

    @property
    def workers(self) -> list[int]:
        return [pid for pid, _, said in self._all() if b"pyproxy.worker" in said]

    def signal(self, number: int) -> None:
        eventually(lambda: self.main, PATIENCE)
        if main := self.main:
            os.kill(main, number)


class Faults:
    """``run`` injects until it is over; then ``heal`` ends all that is under way."""

    def __init__(
        self,
        targets: list[Target],
        group: Group,
        ledger: Ledger,
        folder: Path,
        settings: dict[str, Any],
        seed: int,
    ) -> None:
        self._targets, self._group, self._ledger = targets, group, ledger
        self._folder, self._settings = folder, settings
        self._random = random.Random(seed)
        self._admin = settings["admin"]["listen"]
        self._http = requests.Session()
        self._http.trust_env = False
        self._well = targets[0]
        self._well_until: dict[str, float] = {targets[0].name: float("inf")}
        self._changed = time.monotonic()  # when another target became the one that stays well
        self._undo: list[tuple[float, Callable[[], None]]] = []
        self._frozen = False
        self._added = False
        self._logs = 0
        self.steady = False  # from now on no process of the proxy is ended

    def run(self, over: threading.Event, pause: float) -> None:
        while not over.wait(self._random.uniform(0, 2 * pause)):
            self._undo_those_due()
            self._change_the_well_one()
            kind = self._random.choice(self._possible())
            kind()
            self._look()

    def _possible(self) -> list[Callable[[], None]]:
        found = [
            *[self._kill, self._stop, self._freeze] * 2,
            *[self._misbehave] * 6,
            *(self._drain, self._maintain, self._add_and_remove, self._weigh),
            *(self._change_settings, self._leave_out, self._break_settings, self._rotate),
        ]
        if not self.steady:
            found.append(self._restart)
            if self._group.workers:
                found += [self._kill_worker, self._end_worker]
        return found

    # One stays well

    def _change_the_well_one(self) -> None:
        now = time.monotonic()
        if now - self._changed < WELL_FOR:
            return
        fit = [one for one in self._targets if one is not self._well and not one.busy]
        states = self.states()
        fit = [one for one in fit if states.get(one.url) == "live"]
        if fit:
            self._well_until[self._well.name] = now + STILL_WELL
            self._well = self._random.choice(fit)
            self._well_until[self._well.name] = float("inf")
            self._changed = now

    def _victim(self) -> Target | None:
        now = time.monotonic()
        fit = [one for one in self._targets if not one.busy]
        fit = [one for one in fit if self._well_until.get(one.name, 0) < now]
        return self._random.choice(fit) if fit else None

    def status(self) -> dict[str, Any]:
        """Asked again while no worker answers."""
        deadline = time.monotonic() + PATIENCE
        while True:
            found: dict[str, Any] = self._ask("GET", "/status").json()
            if found["pools"] or time.monotonic() > deadline:
                return found
            time.sleep(0.05)

    def states(self) -> dict[str, str]:
        """Of each target; empty where the workers don't agree."""
        targets = self.status()["pools"][0]["targets"]
        return {one["url"]: "" if "states" in one else one["state"] for one in targets}

    def _look(self) -> None:
        state = self.states().get(self._well.url, "gone")
        if state != "live" and time.monotonic() - self._changed > 5:
            told = [
                one["reason"]
                for one in self.status()["pools"][0]["targets"]
                if one["url"] == self._well.url
            ]
            self._ledger.violate(
                f"{self._well.name}, which is well, is {state or 'not agreed on'} {told}"
            )

    def _ask(self, method: str, path: str, **said: Any) -> requests.Response:
        """Of the admin API. What asks for a change is sent once; a look is repeated while the
        process that it reached ends."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                return self._http.request(method, self._admin + path, timeout=PATIENCE, **said)
            except requests.ConnectionError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    # Faults and their ends

    def _later(self, least: float, most: float, undo: Callable[[], None]) -> None:
        self._undo.append((time.monotonic() + self._random.uniform(least, most), undo))

    def _undo_those_due(self) -> None:
        now = time.monotonic()
        due = [one for one in self._undo if one[0] <= now]
        self._undo = [one for one in self._undo if one[0] > now]
        for _, undo in due:
            undo()

    def heal(self) -> None:
        for _, undo in self._undo:
            undo()
        self._undo = []

    def _at_target(self, kind: str) -> tuple[Target, Fault] | None:
        target = self._victim()
        if not target:
            return None
        target.busy = True
        return target, self._ledger.begin(kind, target.name)

    def _end(self, target: Target, fault: Fault) -> None:
        target.busy = False
        self._ledger.end(fault)

    def _kill(self) -> None:
        self._end_target("target killed", signal.SIGKILL)

    def _stop(self) -> None:
        self._end_target("target stopped", signal.SIGTERM)

    def _end_target(self, kind: str, number: int) -> None:
        if not (found := self._at_target(kind)):
            return
        target, fault = found
        target.end(number)

        def again() -> None:
            target.start()
            self._end(target, fault)

        self._later(0.2, 4, again)

    def _freeze(self) -> None:
        if self._frozen or not (found := self._at_target("target frozen")):
            return
        target, fault = found
        target.process.send_signal(signal.SIGSTOP)
        self._frozen = True

        def thaw() -> None:
            target.process.send_signal(signal.SIGCONT)
            self._frozen = False
            self._end(target, fault)

        self._later(1, 12, thaw)

    def _misbehave(self) -> None:
        mode = self._random.choice(MODES)
        if not (found := self._at_target(f"target answers: {mode}")):
            return
        target, fault = found
        target.order(mode)

        def behave() -> None:
            target.order("good")
            self._end(target, fault)

        self._later(1, 4, behave)

    def _by_hand(self, kind: str, state: str) -> None:
        target = self._victim()
        if not target:
            return
        fault = self._ledger.begin(kind)
        target.busy = True
        identity = self._identity(target.url)
        self._set(identity, state)

        def ready() -> None:
            self._set(identity, "ready")
            self._end(target, fault)

        self._later(1, 5, ready)

    def _identity(self, url: str) -> str:
        targets = self.status()["pools"][0]["targets"]
        return next(str(one["id"]) for one in targets if one["url"] == url)

    def _set(self, identity: str, state: str) -> None:
        answer = self._ask("PATCH", f"/targets/{identity}", json={"state": state})
        if answer.status_code != 200:
            self._ledger.violate(f"{state}: {answer.status_code} {answer.text}")

    def _drain(self) -> None:
        self._by_hand("target drained", "drain")

    def _maintain(self) -> None:
        self._by_hand("target in maintenance", "maintenance")

    def _weigh(self) -> None:
        fault = self._ledger.begin("weight changed")
        target = self._random.choice(self._targets)
        weight = self._random.randint(1, 5)
        states = self.states()
        if target.url in states:
            path = f"/targets/{self._identity(target.url)}"
            self._ask("PATCH", path, json={"weight": weight})
        self._ledger.end(fault)

    def _add_and_remove(self) -> None:
        """One that is there twice: under the name of this machine it is another target."""
        if self._added:
            return
        fault = self._ledger.begin("target added and removed")
        url = f"http://localhost:{self._well.port}"
        answer = self._ask("POST", "/targets", json={"url": url})
        if answer.status_code not in (200, 201):
            self._ledger.violate(f"add: {answer.status_code} {answer.text}")
            self._ledger.end(fault)
            return
        self._added = True

        def remove() -> None:
            self._ask("DELETE", f"/targets/{self._identity(url)}")
            self._added = False
            self._ledger.end(fault)

        self._later(1, 4, remove)

    # Settings

    def _write(self, text: str) -> None:
        path = self._folder / "appsettings.json"
        new = path.with_suffix(".new")
        new.write_text(text)
        new.replace(path)
        self._group.signal(signal.SIGHUP)

    def _reloaded(self, wanted: Callable[[dict[str, Any]], bool]) -> None:
        eventually(lambda: wanted(self._ask("GET", "/settings").json()), PATIENCE)

    def _change_settings(self) -> None:
        fault = self._ledger.begin("settings changed")
        header = self._random.randint(60, 99)
        policies = ("hash_ring", "round_robin", "least_connections", "power_of_two_choices")
        self._settings["policy"] = self._random.choice(policies)
        self._settings["timeouts"]["header"] = header
        self._write(json.dumps(self._settings))
        self._reloaded(lambda told: bool(told["timeouts"]["header"] == header))
        self._ledger.end(fault)

    def _leave_out(self) -> None:
        """A target is not in the settings for a while."""
        target = self._victim()
        if not target or len(self._settings["targets"]) < len(self._targets):
            return
        fault = self._ledger.begin("target left out of the settings")
        target.busy = True
        self._settings["targets"].remove(target.url)
        self._write(json.dumps(self._settings))

        def back() -> None:
            self._settings["targets"].append(target.url)
            self._write(json.dumps(self._settings))
            eventually(lambda: target.url in self.states(), PATIENCE)
            self._end(target, fault)

        self._later(1, 4, back)

    def _break_settings(self) -> None:
        fault = self._ledger.begin("settings that are refused")
        good = json.dumps(self._settings)
        bad = ("{", "[]", good.replace('"targets"', '"tragets"'), good.replace("[", '["x", ', 1))
        self._write(self._random.choice(bad))
        time.sleep(self._random.uniform(0.2, 1))
        header = self._random.randint(100, 150)
        self._settings["timeouts"]["header"] = header
        self._write(json.dumps(self._settings))
        self._reloaded(lambda told: bool(told["timeouts"]["header"] == header))
        self._ledger.end(fault)

    def _rotate(self) -> None:
        fault = self._ledger.begin("access log rotated")
        self._logs += 1
        with contextlib.suppress(FileNotFoundError):
            (self._folder / "access.log").rename(self._folder / f"access.{self._logs}.log")
        self._group.signal(signal.SIGUSR1)
        self._ledger.end(fault)

    # Processes of the proxy

    def _kill_worker(self) -> None:
        self._end_worker_with("worker killed", signal.SIGKILL)

    def _end_worker(self) -> None:
        self._end_worker_with("worker ended", signal.SIGTERM)

    def _end_worker_with(self, kind: str, number: int) -> None:
        there = self._group.workers
        fault = self._ledger.begin(kind)
        pid = self._random.choice(there)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        eventually(lambda: pid not in self._group.pids, PATIENCE)
        eventually(lambda: len(self._group.workers) >= len(there), PATIENCE)
        self._ledger.end(fault)

    def _restart(self) -> None:
        fault = self._ledger.begin("restart in new processes")
        old = self._group.main
        self._group.signal(signal.SIGUSR2)
        eventually(lambda: self._group.main not in (old, None), PATIENCE)
        self._ledger.end(fault)
