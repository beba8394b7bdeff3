"""Load, through Locust; what comes of it is in bench_results.py.

Bench               one run after the other, yielded while it goes on
Stage               targets of our own, killed and started again, and a proxy in front: processes
Locust              the process that makes the load; it runs bench_load.py, which tells each second
Watch               what the proxy tells of it
"""

import contextlib
import importlib.util
import json
import os
import queue
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import requests

from pyproxy.errors import PyproxyError
from pyproxy.lab.bench_results import Mark, Plan, Run
from pyproxy.scaling.launcher import Instance, LaunchError
from pyproxy.scaling.processes import ProcessLauncher
from pyproxy.scaling_settings import Scaling, Version

PATIENCE = 30.0  # seconds for a process to start, or to end


class BenchError(PyproxyError):
    """The load could not be made, or nothing was measured; the text says why."""


class Stopped(Exception):
    """A signal came while a run was being set up."""


class Signals(Protocol):
    def get(self, *, timeout: float) -> int:
        """The next one. Raises ``queue.Empty`` after so many seconds."""


class Bench:
    """``go`` makes the load; ``runs`` is what was measured so far."""

    def __init__(self, plan: Plan, signals: Signals) -> None:
        """What comes through ``signals`` ends it early. Raises ``BenchError`` without Locust."""
        if importlib.util.find_spec("locust") is None:
            raise BenchError('the load is made by Locust: pip install "pyproxy-lb[bench]"')
        self._plan = plan
        self._signals = signals
        self.runs: list[Run] = []
        self.stopped = False

    def go(self) -> Iterator[Run]:
        """Yields the run that goes on, some times a second; ends all it started. Raises
        ``BenchError``."""
        plan = self._plan
        with contextlib.suppress(Stopped):
            for count in plan.targets or (0,):
                with contextlib.ExitStack() as stack:
                    if count:
                        title = "1 target" if count == 1 else f"{count} targets"
                        stage = stack.enter_context(Stage(plan, count, self._wait))
                        run = Run(title, stage.url, plan, [one.name for one in stage.targets])
                        watch = Watch(stage.admin, None, stage.names)
                    else:
                        stage, run = None, Run(plan.url, plan.url, plan)
                        watch = Watch(plan.admin, plan.credentials, {})
                    stack.enter_context(watch)
                    yield from self._load(run, stage, watch)
                if self.stopped:
                    return

    def _wait(self, seconds: float) -> None:
        """Raises ``Stopped`` as soon as a signal comes."""
        with contextlib.suppress(queue.Empty):
            self._signals.get(timeout=seconds)
            self.stopped = True
            raise Stopped

    def _load(self, run: Run, stage: "Stage | None", watch: "Watch") -> Iterator[Run]:
        plan = self._plan
        with Locust(plan, run.url) as load:
            due = [(plan.at, "killed")] if plan.kill else []
            if plan.kill and plan.restore is not None:
                due.append((plan.restore, "started again"))
            while load.running:
                try:
                    self._wait(0.05)
                except Stopped:
                    run.stopped = True
                    load.end()
                    break
                before = (run.began, len(run.seconds))
                load.read(run)
                if run.began and run not in self.runs:
                    self.runs.append(run)
                if stage and due and run.began and time.time() - run.began >= due[0][0]:
                    what = due.pop(0)[1]
                    for number in plan.kill:
                        at = stage.kill(number) if what == "killed" else stage.restore(number)
                        run.marks.append(Mark(at - run.began, f"target {number}", what))
                if before != (run.began, len(run.seconds)):
                    watch.look(run)
                    yield run
            load.read(run)
            watch.look(run)
            run.marks.sort(key=lambda mark: mark.at)
            if stage and plan.restore is not None and not run.stopped:
                for number in plan.kill:
                    stage.check(number)
            if not run.seconds and not run.stopped:
                about = f"\nhas {plan.locustfile} a User class?" if plan.locustfile else ""
                raise BenchError(f"Locust measured nothing: {load.last_words}{about}")


class Locust:
    """The process. It ends with the block."""

    def __init__(self, plan: Plan, url: str) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="pyproxy-bench-")
        self._file = Path(self._folder.name) / "seconds"
        self._file.touch()
        self._log = Path(self._folder.name) / "log"
        self._done = 0  # bytes
        files = [str(Path(__file__).with_name("bench_load.py"))]
        parts = re.fullmatch(r"(\w+://[^/?#]+)([^#]*).*", url)
        assert parts, "checked before"
        host, path = parts[1], parts[2] or "/"
        if plan.targets:
            path = plan.path
        if plan.locustfile:
            files.append(str(plan.locustfile.absolute()))
            host, path = url.rstrip("/"), ""  # Locust puts a path behind it as it is
        said = {"to": str(self._file), "path": path, "pause": plan.pause, "seconds": plan.duration}
        command = [sys.executable, "-m", "locust", "--headless", "--only-summary"]
        command += ["--locustfile", ",".join(files), "--host", host, "--users", str(plan.users)]
        command += ["--spawn-rate", str(plan.spawn_rate or plan.users)]
        command += ["--exit-code-on-error", "0"]
        with open(self._log, "wb") as log:
            self._process = subprocess.Popen(
                command,
                env={**os.environ, "BENCH_LOAD": json.dumps(said)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C in a terminal is for this program alone
            )

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def read(self, run: Run) -> None:
        """Takes over what has been told since the last call."""
        with open(self._file, "rb") as file:
            file.seek(self._done)
            *lines, rest = file.read().split(b"\n")
            self._done = file.tell() - len(rest)
        for line in lines:
            run.add(json.loads(line))

    @property
    def last_words(self) -> str:
        text = self._log.read_text(encoding="utf-8", errors="replace").strip()
        lines = [line for line in text.splitlines() if line[:1].strip()]
        return lines[-1] if lines else f"it ended with status {self._process.returncode}"

    def end(self) -> None:
        """As its own Ctrl-C would: it still tells what it has counted."""
        self._process.terminate()
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.running:
            self.end()
        self._folder.cleanup()


@dataclass
class StagedTarget:
    name: str
    instance: Instance
    url: str
    held: socket.socket | None = None  # keeps its port from others while it is dead


class Stage:
    """Targets, and a proxy in front of them, each a process that ends with this one."""

    def __init__(self, plan: Plan, count: int, wait: Callable[[float], None]) -> None:
        """``wait(seconds)`` may raise, which ends the wait for a start."""
        self._plan = plan
        self._wait = wait
        self._stack = contextlib.ExitStack()
        try:
            self._start(count)
        except BaseException as error:
            self._stack.close()
            if isinstance(error, LaunchError):
                raise BenchError(f"a target didn't start: {error}") from None
            raise

    def _start(self, count: int) -> None:
        folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="pyproxy-bench-"))
        said = Scaling(launcher="process", logs=folder)
        self._launcher = ProcessLauncher(said)
        self._stack.callback(self._launcher.close)
        self.targets = []
        for number in range(1, count + 1):
            name = f"target {number}"
            started = self._launcher.start(name, Version(self._command(name)))
            self.targets.append(StagedTarget(name, started, ""))
        for target in self.targets:
            target.url = self._ready(target.instance)
        config = Path(folder) / "appsettings.json"
        config.write_text('{"sleeping": 0.5}', encoding="utf-8")
        command = [sys.executable, "-m", "pyproxy", "--no-watch"]
        command += ["--config", str(self._plan.config or config)]
        command += ["--listen", "http://127.0.0.1:0", "--admin.listen", "http://127.0.0.1:0"]
        command += ["--targets", ",".join(target.url for target in self.targets)]
        if self._plan.policy:
            command += ["--policy", self._plan.policy]
        proxy = self._launcher.start("proxy", Version(tuple(command)))
        self.admin = self._said(proxy, r"admin: (http://\S+)")
        self.url = self._said(proxy, r"listens on (http://[^\s,]+)")
        self.names = {target.url: target.name for target in self.targets}

    def _command(self, name: str, port: str = "") -> tuple[str, ...]:
        plan = self._plan
        if plan.command:
            given = (one.replace("{port}", port) if port else one for one in plan.command)
            return tuple(given)
        own = [sys.executable, "-m", "pyproxy", "target", "--port", port or "0", "--name", name]
        return (*own, "--delay", str(plan.delay), "--at-once", str(plan.at_once))

    def _ready(self, instance: Instance) -> str:
        """Its URL, when it listens."""
        if not self._plan.command:
            return self._said(instance, r"listens on (http://\S+)")
        self._accepts(instance, instance.url)
        return instance.url

    def _accepts(self, instance: Instance, url: str) -> None:
        """Waits until it does."""
        deadline = time.monotonic() + PATIENCE
        while True:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), 1).close()
                return
            self._go_on(instance, deadline)

    def _said(self, instance: Instance, pattern: str) -> str:
        deadline = time.monotonic() + PATIENCE
        while True:
            log = Path(instance.log).read_text(encoding="utf-8", errors="replace")
            # The last line may come in pieces.
            if found := re.findall(pattern, log.rpartition("\n")[0]):
                return str(found[-1])
            self._go_on(instance, deadline)

    def _go_on(self, instance: Instance, deadline: float) -> None:
        if how := self._launcher.ended(instance):
            raise BenchError(f"{instance.name} {how}")
        if time.monotonic() > deadline:
            raise BenchError(f"{instance.name} doesn't answer after {PATIENCE:.0f} s")
        self._wait(0.02)

    def kill(self, number: int) -> float:
        """When, as ``time.time()``."""
        target = self.targets[number - 1]
        at = time.time()
        with contextlib.suppress(ProcessLookupError):  # it has ended by itself
            os.killpg(int(target.instance.handle), signal.SIGKILL)
        deadline = time.monotonic() + PATIENCE
        while not self._launcher.ended(target.instance):
            if time.monotonic() > deadline:
                raise BenchError(f"{target.name} was killed, and still runs")
            self._wait(0.01)
        if sys.platform == "linux":  # elsewhere nobody could listen there while it is bound
            target.held = socket.socket()
            target.held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                target.held.bind(("127.0.0.1", int(target.url.rpartition(":")[2])))
        return at

    def restore(self, number: int) -> float:
        """The same again, on the same port; doesn't wait for it. When, as ``time.time()``."""
        target = self.targets[number - 1]
        again = Version(self._command(target.name, target.url.rpartition(":")[2]))
        at = time.time()
        if target.held:
            target.held.close()
        target.instance = self._launcher.start(f"{target.name} again", again)
        return at

    def check(self, number: int) -> None:
        """Raises ``BenchError`` if what was started again has ended."""
        if how := self._launcher.ended(self.targets[number - 1].instance):
            raise BenchError(f"target {number}, started again, {how}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for target in self.targets:
            if target.held:
                target.held.close()
        self._stack.close()


class Watch:
    """What the proxy's admin API tells of its targets, added to a run; nothing without an address,
    or where it doesn't answer."""

    def __init__(
        self, admin: str, credentials: tuple[str, str] | None, names: Mapping[str, str]
    ) -> None:
        self._admin = admin
        self._names = names
        self._session = requests.Session()
        self._session.trust_env = False  # neither a proxy's address nor a password from elsewhere
        self._session.auth = credentials
        self._counted: Counter[str] = self._count(self.ask()) if admin else Counter()
        self._told = time.time()

    def ask(self) -> dict[str, Any]:
        """Raises ``BenchError``: later failures are passed over."""
        try:
            answer = self._session.get(f"{self._admin}/status", timeout=5)
            answer.raise_for_status()
            told: dict[str, Any] = answer.json()
            return told
        except requests.JSONDecodeError:
            raise BenchError(f"{self._admin} is not pyproxy's admin address") from None
        except requests.RequestException as error:
            raise BenchError(f"{self._admin} doesn't tell its status: {error}") from None

    def _name(self, url: str) -> str:
        return self._names.get(url, url)

    def _count(self, status: Mapping[str, Any]) -> Counter[str]:
        counted: Counter[str] = Counter()
        for pool in status["pools"]:
            for target in pool["targets"]:
                counted[self._name(target["url"])] += target["requests"]
        return counted

    def look(self, run: Run) -> None:
        if not self._admin or not run.seconds:
            return
        try:
            status = self.ask()
        except BenchError:
            return
        counted, before = self._count(status), self._counted
        self._counted = counted
        run.seconds[-1].by_proxy.update(counted - before)
        for event in status["events"]:
            if self._told < event["at"] < run.began + run.seconds[-1].at:
                self._told = event["at"]
                mark = Mark(event["at"] - run.began, self._name(event["target"]), event["what"])
                run.marks.append(mark)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._session.close()
