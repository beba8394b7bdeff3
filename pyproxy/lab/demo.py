"""The failover story: five targets, the proxy and the spamer; the third target is killed, and
started again. What happens is measured, not told."""

import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from pyproxy.app import Proxy
from pyproxy.balancing.target import State, Target
from pyproxy.errors import PyproxyError
from pyproxy.lab.spamer import Answer, spam

PHASES = ("before", "during", "after")


class DemoError(PyproxyError):
    """The story could not be told; the text says why."""


class Told(Protocol):
    """A story, as who shows it sees it."""

    @property
    def events(self) -> Sequence[tuple[float, str]]:
        """What has happened, and when: seconds since it began. Grows at its end."""

    def table(self) -> list[str]:
        """What is going on, in lines of equal meaning at each call."""

    def summary(self) -> list[str]: ...

    def went_well(self) -> bool: ...


class TargetProcess:
    """One ``python -m pyproxy target``; it ends with this process, however that ends."""

    def __init__(self) -> None:
        self._process = self._start(0)
        self.url = self._wait_for_url()
        self.name = self.url.removeprefix("http://")

    def _start(self, port: int) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "pyproxy", "target", "--until-eof", "--port", str(port)]
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8"
        )

    def _wait_for_url(self) -> str:
        assert self._process.stdout
        line = self._process.stdout.readline()
        found = re.search(r"http://\S+:\d+", line)
        if not found:
            raise DemoError(f"a target didn't start: {line.strip() or 'see its message above'}")
        return found[0]

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                pipe.close()

    def restart(self) -> None:
        """On the same port as before."""
        self._process = self._start(int(self.url.rpartition(":")[2]))
        self._wait_for_url()


@dataclass
class Story:
    """All there is to show, at any moment. Written by the demo's threads, read by who shows it."""

    url: str
    targets: list[Target]
    names: list[str]
    began: float = field(default_factory=time.monotonic)
    phase: str = PHASES[0]
    requests: int = 0
    failures: int = 0
    last: Answer | None = None
    share: dict[str, Counter[str]] = field(
        default_factory=lambda: {phase: Counter() for phase in PHASES}
    )
    events: list[tuple[float, str]] = field(default_factory=list)
    evicted_after: float | None = None
    restored_after: float | None = None
    broken: DemoError | None = None

    def tell(self, text: str) -> None:
        self.events.append((time.monotonic() - self.began, text))

    def add(self, answer: Answer) -> None:
        self.requests += 1
        self.last = answer
        self.share[self.phase][answer.target] += 1
        if not answer.ok:
            self.failures += 1
            self.tell(f"FAILED: {answer}")

    def went_well(self) -> bool:
        return (
            self.requests > 0
            and self.failures == 0
            and self.evicted_after is not None
            and self.restored_after is not None
            and all(self.share["before"][name] for name in self.names)
            and all(self.share["after"][name] for name in self.names)
        )

    def table(self) -> list[str]:
        """What is going on, in lines of equal meaning at each call."""
        lines = [f"{'target':<24}{'state':<8}" + "".join(f"{phase:>15}" for phase in PHASES)]
        for target, name in zip(self.targets, self.names, strict=True):
            lines.append(f"{target.url:<24}{target.state:<8}" + self._shares(name))
        last = f", last: {self.last.seconds * 1000:.1f} ms" if self.last else ""
        lines.append(f"{self.requests} requests, {self.failures} failed{last}")
        return lines

    def _shares(self, name: str) -> str:
        cells = []
        for phase in PHASES:
            count, total = self.share[phase][name], self.share[phase].total()
            cells.append(f"{count} ({count / total if total else 0:6.1%})")
        return "".join(f"{cell:>15}" for cell in cells)

    def summary(self) -> list[str]:
        def seconds(value: float | None) -> str:
            return "never" if value is None else f"after {value:.2f} s"

        return [
            *self.table(),
            f"evicted {seconds(self.evicted_after)}, restored {seconds(self.restored_after)}",
            "It went well." if self.went_well() else "It did NOT go well.",
        ]


class Demo:
    """``with Demo(…) as story``: tells the story in threads of its own; ``wait`` until its end."""

    def __init__(
        self, before: float, down: float, after: float, interval: float, sleeping: float
    ) -> None:
        """Seconds: of the three phases, between two requests, between two probes."""
        self._durations = (before, down, after)
        self._interval = interval
        self._sleeping = sleeping
        self._over = threading.Event()
        self._processes: list[TargetProcess] = []

    def run(self) -> Generator[Story, None, None]:
        """Yields the story about ten times a second, up to its end. Raises ``DemoError``; ends
        all it started, also when it is left early."""
        threads: list[threading.Thread] = []
        try:
            for _ in range(5):
                self._processes.append(TargetProcess())
            with Proxy(
                targets=[one.url for one in self._processes], sleeping=self._sleeping
            ) as proxy:
                names = [one.name for one in self._processes]
                story = Story(proxy.url, list(proxy.pool.targets), names)
                story.tell(f"{proxy.url} serves five targets; the spamer asks")
                threads = [
                    threading.Thread(target=self._spam, args=(story,), name="demo-spamer"),
                    threading.Thread(target=self._direct, args=(story, proxy), name="demo-story"),
                ]
                for thread in threads:
                    thread.start()
                while not self._over.wait(0.1):
                    yield story
                for thread in threads:
                    thread.join()
                if story.broken:
                    raise story.broken
                yield story
        finally:
            self._over.set()
            for thread in threads:
                thread.join()
            for process in self._processes:
                process.kill()

    def _spam(self, story: Story) -> None:
        for answer in spam(story.url, self._interval, stop=self._over):
            story.add(answer)

    def _direct(self, story: Story, proxy: Proxy) -> None:
        try:
            self._tell(story, proxy)
        except DemoError as error:
            story.broken = error
        finally:
            self._over.set()

    def _tell(self, story: Story, proxy: Proxy) -> None:
        before, down, after = self._durations
        third = self._processes[2]
        moved = 0.0  # when the third was last killed or started

        def watch(target: Target, verb: str, reason: str) -> None:
            since = time.monotonic() - moved
            if target.state is State.EVICTED:
                story.evicted_after = since
                story.tell(f"evicted {target.url}: {reason}")
            else:
                story.restored_after = since
                story.tell(f"restored {target.url}: {reason}")

        proxy.pool.watch(watch)
        if self._over.wait(before):
            return
        story.phase, moved = "during", time.monotonic()
        third.kill()
        story.tell(f"killed {third.url}")
        if self._over.wait(down):
            return
        third.restart()
        moved = time.monotonic()
        story.tell(f"started {third.url} again")
        while story.restored_after is None and time.monotonic() - moved < self._sleeping + 10:
            if self._over.wait(0.02):
                return
        story.phase = "after"
        self._over.wait(after)
