"""Load, through Locust, and what came of it.

Bench               one run after the other, yielded while it goes on
Stage               targets of our own, killed and started again, and a proxy in front: processes
Locust              the process that makes the load; it runs bench_load.py, which tells each second
Run, Second         what was measured
"""

import contextlib
import importlib.util
import json
import math
import os
import platform
import queue
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol, Self

import requests

from pyproxy.errors import PyproxyError
from pyproxy.scaling.launcher import Instance, LaunchError
from pyproxy.scaling.processes import ProcessLauncher
from pyproxy.scaling_settings import Scaling, Version

PATIENCE = 30.0  # seconds for a process to start, or to end
BASE = 1.02  # bench_load.BASE
QUANTILES = (0.5, 0.9, 0.99)
SHORT = 0.5  # seconds: what is less at the end counts to the second before


class BenchError(PyproxyError):
    """The load could not be made, or nothing was measured; the text says why."""


class Stopped(Exception):
    """A signal came while a run was being set up."""


@dataclass(frozen=True)
class Plan:
    """What is asked for. Times are seconds; ``at`` and ``restore`` since the load began."""

    url: str = ""  # of something that runs; or
    targets: tuple[int, ...] = ()  # how many of our own, one run for each number
    command: tuple[str, ...] = ()  # that starts one, {port} in it; else our own target
    delay: float = 0.0
    at_once: int = 1
    policy: str = ""  # as the settings say
    config: Path | None = None  # the proxy's settings, but for where it listens and its targets
    path: str = "/"
    users: int = 10
    spawn_rate: float | None = None  # None: all at once
    duration: float = 10.0
    pause: float = 0.0
    locustfile: Path | None = None
    kill: tuple[int, ...] = ()  # from 1
    at: float = 0.0
    restore: float | None = None
    admin: str = ""  # of the proxy at ``url``
    credentials: tuple[str, str] | None = None  # for it

    def described(self) -> str:
        paused = f"pauses of {self.pause:g} s" if self.pause else "without pauses"
        loop = f"by {self.locustfile.name}" if self.locustfile else f"closed loop, {paused}"
        users = "1 user" if self.users == 1 else f"{self.users} users"
        served = ""
        if self.targets:
            at_once = f", {self.at_once} at once" if self.delay else ""
            own = f"delay {self.delay:g} s{at_once}" if self.delay else "without delay"
            served = f"; targets: {' '.join(self.command) or own}"
            served += f"; policy {self.policy}" if self.policy else ""
        return f"{users}, {loop}, {self.duration:g} s{served}"


# What was measured


@dataclass
class Second:
    """What was counted since the one before. Response times are of what didn't fail."""

    at: float  # its end, in seconds since the load began
    length: float
    users: int
    times: dict[str, Counter[int]]  # a request's name -> bucket of its response time -> count
    failed: Counter[str]
    targets: Counter[str]
    raised: int
    total: float  # ms
    most: float  # ms
    by_proxy: Counter[str] = field(default_factory=Counter)  # targets, as a proxy has counted

    def buckets(self) -> Counter[int]:
        return sum(self.times.values(), Counter())

    @property
    def requests(self) -> int:
        return self.answered + self.failures

    @property
    def answered(self) -> int:
        return self.buckets().total()

    @property
    def names(self) -> dict[str, Counter[int]]:
        """``times``, in order, with those of which all failed."""
        known = sorted({*self.times, *self.failed})
        return {name: self.times.get(name, Counter()) for name in known}

    @property
    def failures(self) -> int:
        return self.failed.total()

    def quantile(self, share: float) -> float:
        return quantile(self.buckets(), share, self.most)

    def add(self, other: "Second") -> None:
        for name, counts in other.times.items():
            self.times.setdefault(name, Counter()).update(counts)
        self.failed.update(other.failed)
        self.targets.update(other.targets)
        self.by_proxy.update(other.by_proxy)
        self.at, self.length = other.at, self.length + other.length
        self.raised += other.raised
        self.total += other.total
        self.most = max(self.most, other.most)


def quantile(buckets: Mapping[int, int], share: float, most: float = math.inf) -> float:
    """The time, in ms, within which this share of the requests was answered; NaN if there was
    none. Right to 1 %."""
    left = math.ceil(sum(buckets.values()) * share)
    for bucket, count in sorted(buckets.items()):
        left -= count
        if left <= 0:
            return min(BASE**bucket, most)
    return math.nan


@dataclass(frozen=True)
class Mark:
    """Something that happened to a target."""

    at: float  # seconds since the load began
    target: str
    what: str  # killed, started, evicted, restored, …


@dataclass
class Run:
    """One load, while it goes on and after."""

    title: str
    url: str
    plan: Plan
    targets: list[str] = field(default_factory=list)
    began: float = 0.0  # time.time(); 0: not yet
    seconds: list[Second] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    stopped: bool = False

    def add(self, said: dict[str, Any]) -> None:
        """A line of bench_load.py."""
        if "began" in said:
            self.began = said["began"]
            return
        at = said["at"] - self.began
        since = self.seconds[-1].at if self.seconds else 0.0
        second = Second(
            at,
            at - since,
            said["users"],
            {
                name: Counter({int(bucket): count for bucket, count in counts.items()})
                for name, counts in said["times"].items()
            },
            Counter(said["failed"]),
            Counter(said["targets"]),
            said["raised"],
            said["total"],
            said["most"],
        )
        self.errors.update(said["errors"])
        if second.length < SHORT and self.seconds:
            self.seconds[-1].add(second)
        else:
            self.seconds.append(second)

    def whole(self) -> Second:
        """All of it."""
        whole = Second(0, 0, 0, {}, Counter(), Counter(), 0, 0, 0)
        for second in self.seconds:
            whole.add(second)
        return whole

    def figures(self) -> dict[str, float]:
        """By name. ``per_second``, and times in ms, are of what didn't fail; NaN: of nothing."""
        whole = self.whole()
        buckets, count = whole.buckets(), whole.answered
        return {
            "requests": whole.requests,
            "failures": whole.failures,
            "exceptions": whole.raised,
            "duration": whole.length,
            "per_second": count / whole.length if whole.length else 0.0,
            "mean": whole.total / count if count else math.nan,
            **{f"p{share * 100:g}": quantile(buckets, share, whole.most) for share in QUANTILES},
            "max": whole.most if count else math.nan,
        }

    def served(self, second: Second) -> Counter[str]:
        """The requests of each target: as answers tell, or else as the proxy does."""
        told = any(one.targets for one in self.seconds)
        return second.targets if told else second.by_proxy

    def shares(self) -> dict[str, int]:
        """The same of the whole run, in order."""
        counted = self.served(self.whole())
        others = sorted(counted.keys() - set(self.targets))
        return {name: counted[name] for name in (*self.targets, *others)}


# Thresholds


@dataclass(frozen=True)
class Thresholds:
    """What each run must keep to. Times are seconds."""

    max_failures: int | None = None
    p50: float | None = None
    p90: float | None = None
    p99: float | None = None
    min_rate: float | None = None

    def broken(self, run: Run) -> list[str]:
        """What this run has failed, in words."""
        found = run.figures()
        lost = int(found["failures"] + found["exceptions"])
        said = [] if found["requests"] > found["failures"] else ["no request succeeded"]
        if self.max_failures is not None and lost > self.max_failures:
            said.append(f"{lost} failures, more than {self.max_failures}")
        for name in ("p50", "p90", "p99"):
            most = getattr(self, name)
            if most is not None and not found[name] <= most * 1000:
                said.append(f"{name} {shown_time(found[name])}, above {shown_time(most * 1000)}")
        if self.min_rate is not None and found["per_second"] < self.min_rate:
            said.append(f"{found['per_second']:.2f} requests a second, below {self.min_rate:g}")
        return [f"{run.title}: {one}" for one in said]


# How it is told


def shown_time(ms: float) -> str:
    if math.isnan(ms):
        return "-"
    if ms >= 1000:
        return f"{ms / 1000:.2f} s"
    return f"{ms:.1f} ms" if ms >= 1 else f"{ms * 1000:.0f} µs"


FIGURES = {
    "per_second": "requests/s",
    "requests": "requests",
    "failures": "failed",
    "mean": "mean",
    "p50": "p50",
    "p90": "p90",
    "p99": "p99",
    "max": "max",
}


def shown(name: str, value: float) -> str:
    """One of a run's figures."""
    if name == "per_second":
        return f"{value:,.2f}" if value < 100 else f"{value:,.0f}"
    if name in ("requests", "failures", "exceptions"):
        return f"{value:,.0f}"
    return shown_time(value)


def ratio(before: float, after: float) -> str:
    return f"x {after / before:.2f}" if before and not math.isnan(after / before) else ""


def progress(run: Run) -> str:
    """One line of how it goes just now."""
    if not run.seconds:
        return f"{run.title}: begins"
    last = run.seconds[-1]
    users = "1 user" if last.users == 1 else f"{last.users} users"
    return (
        f"{run.title}: {last.at:.0f} s, {users}, {last.answered / last.length:,.1f}"
        f" requests/s, p50 {shown_time(last.quantile(0.5))}, p99 {shown_time(last.quantile(0.99))},"
        f" {sum(second.failures for second in run.seconds)} failed"
    )


def table(runs: Sequence[Run]) -> list[str]:
    """All runs side by side, then what is of one of them."""
    lines = [f"{runs[0].plan.described()}", ""]
    compared = len(runs) > 1
    widths = [max(14, len(run.title) + 2) for run in runs]
    titles = zip(runs, widths, strict=True)
    lines.append(" " * 12 + "".join(f"{run.title:>{width}}" for run, width in titles))
    found = [run.figures() for run in runs]
    for name, title in FIGURES.items():
        cells = "".join(
            f"{shown(name, one[name]):>{width}}" for one, width in zip(found, widths, strict=True)
        )
        times = name not in ("failures",) and compared
        last = f"{ratio(found[0][name], found[-1][name]):>10}" if times else ""
        lines.append(f"{title:<12}{cells}{last}".rstrip())
    for run in runs:
        lines += _details(run, compared)
    return lines


def _details(run: Run, compared: bool) -> list[str]:
    lines = [""] + ([f"{run.title}:"] if compared else [])
    shares = run.shares()
    total = sum(shares.values())
    if total:
        lines += [f"{name:<28}{count:>9,} {count / total:>8.1%}" for name, count in shares.items()]
    else:
        lines.append("no target told who it was (X-Target), and no --admin was said")
    whole = run.whole()
    if len(whole.names) > 1:
        lines += ["", f"{'':<40}{'requests':>9}{'failed':>8}{'p50':>10}{'p99':>10}"]
        for name, buckets in whole.names.items():
            times = "".join(f"{shown_time(quantile(buckets, one)):>10}" for one in (0.5, 0.99))
            failed = whole.failed[name]
            lines.append(f"{name:<40}{buckets.total() + failed:>9,}{failed:>8,}{times}")
    lines += [f"{mark.at:6.2f} s  {mark.target} {mark.what}" for mark in run.marks]
    lines += [f"{count:>6,} x {error}" for error, count in run.errors.most_common(10)]
    return lines


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value


def as_json(runs: Sequence[Run], told: Mapping[str, Any]) -> dict[str, Any]:
    """All that is known, ``told`` first. Times are ms, but ``at`` and ``length`` seconds."""
    return {
        **told,
        "load": runs[0].plan.described(),
        "runs": [
            {
                "title": run.title,
                "url": run.url,
                "began": run.began,
                "stopped": run.stopped,
                **{name: _finite(value) for name, value in run.figures().items()},
                "targets": run.shares(),
                "marks": [vars(mark) for mark in run.marks],
                "errors": dict(run.errors.most_common()),
                "names": {
                    name: {
                        "requests": buckets.total() + whole.failed[name],
                        "failures": whole.failed[name],
                        **{f"p{q * 100:g}": _finite(quantile(buckets, q)) for q in QUANTILES},
                    }
                    for name, buckets in whole.names.items()
                },
                "seconds": [
                    {
                        "at": one.at,
                        "length": one.length,
                        "users": one.users,
                        "requests": one.requests,
                        "failures": one.failures,
                        **{f"p{q * 100:g}": _finite(one.quantile(q)) for q in QUANTILES},
                        "targets": dict(run.served(one)),
                    }
                    for one in run.seconds
                ],
            }
            for run, whole in ((run, run.whole()) for run in runs)
        ],
    }


def circumstances() -> dict[str, str]:
    """This machine, and the versions that matter."""
    versions = [f"pyproxy {metadata_of('pyproxy-lb')}", f"Python {platform.python_version()}"]
    versions.append(f"Locust {metadata_of('locust')}")
    load = f", load {os.getloadavg()[0]:.1f} before" if hasattr(os, "getloadavg") else ""
    return {
        "when": time.strftime("%Y-%m-%d %H:%M %Z"),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs{load}",
        "versions": ", ".join(versions),
    }


def metadata_of(name: str) -> str:
    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version(name)
    return "from its folder"


# How it is done


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
