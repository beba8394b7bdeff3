"""The autoscaling story: load rises and falls, and with it the number of targets, which are
processes that the proxy makes. What happens is measured, not told."""

import contextlib
import itertools
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

from pyproxy.app import Proxy
from pyproxy.lab.demo import DemoError
from pyproxy.lab.spamer import Answer, spam

LEAST, MOST = 1, 5  # targets
CLIENTS = 20  # at the height of the load
DELAY, AT_ONCE = 0.2, 2  # of a target: 10 requests a second
RIGHT = 0.4  # seconds
PATIENCE = 40.0  # seconds more than planned, on a slow machine
SHADES = " .:-=+*#@"
LINES = 50  # characters


@dataclass
class ScalingStory:
    """All there is to show, at any moment. Written by the demo's threads, read by who shows it."""

    url: str
    began: float = field(default_factory=time.monotonic)
    clients: int = 1
    targets: int = LEAST
    coming: int = 0
    rate: float = 0.0
    response_time: float | None = None
    requests: int = 0
    failures: int = 0
    peak: int = LEAST
    decided: int = 0
    events: list[tuple[float, str]] = field(default_factory=list)
    past: deque[tuple[int, int, float]] = field(default_factory=lambda: deque(maxlen=LINES))
    _lock: threading.Lock = field(default_factory=threading.Lock)  # for what clients write

    def tell(self, text: str) -> None:
        self.events.append((time.monotonic() - self.began, text))

    def add(self, answer: Answer) -> None:
        with self._lock:
            self.requests += 1
            self.failures += not answer.ok
        if not answer.ok:
            self.tell(f"FAILED: {answer}")

    def look(self, scaling: dict[str, Any]) -> None:
        """Takes over what the proxy says of its scaling."""
        phases = [one["phase"] for one in scaling["instances"]]
        self.targets, self.coming = phases.count("live"), phases.count("starting")
        self.peak = max(self.peak, self.targets)
        if seen := scaling["signals"]:
            self.rate, self.response_time = seen["rate"], seen["response_time"]
        for one in scaling["decisions"][self.decided :]:
            self.decided += 1
            self.tell(f"{one['from']} -> {one['to']} targets: {one['reason']}")

    def keep(self) -> None:
        """What there is now is a column of the picture from now on."""
        self.past.append((self.clients, self.targets, self.response_time or 0.0))

    def went_well(self) -> bool:
        return self.requests > 0 and self.failures == 0 and self.fell

    @property
    def fell(self) -> bool:
        return self.peak > LEAST and self.targets == LEAST

    def _time(self) -> str:
        return "-" if self.response_time is None else f"{self.response_time:.2f} s"

    def line(self) -> str:
        return (
            f"clients: {self.clients}, targets: {self.targets}, requests/s: {self.rate:.1f},"
            f" response time: {self._time()}"
        )

    def table(self) -> list[str]:
        """What is going on, in lines of equal meaning at each call."""
        clients = "".join(_shade(one[0] / CLIENTS) for one in self.past)
        times = "".join(_shade(one[2] / 4 / RIGHT) for one in self.past)
        bar = "#" * self.targets + "+" * self.coming
        counts = "".join(str(one[1]) for one in self.past)
        return [
            f"clients       {self.clients:>8}  {clients}",
            f"targets       {bar:>8}  {counts}",
            f"response time {self._time():>8}  {times}",
            f"requests/s    {self.rate:>8.1f}",
            f"{self.requests} requests, {self.failures} failed",
        ]

    def summary(self) -> list[str]:
        return [
            f"{self.requests} requests, {self.failures} failed",
            f"from {LEAST} to {self.peak} targets, and back to {self.targets}",
            "It went well." if self.went_well() else "It did NOT go well.",
        ]


def _shade(share: float) -> str:
    return SHADES[min(max(round(share * (len(SHADES) - 1)), 0), len(SHADES) - 1)]


class ScalingDemo:
    """``run`` tells the story."""

    def __init__(self, duration: float, plain: bool) -> None:
        """``duration``: seconds, about. ``plain``: lines tell what the picture would show."""
        self._duration = duration
        self._plain = plain
        self._over = threading.Event()

    def _scaling(self, logs: str) -> dict[str, Any]:
        served = ["--delay", str(DELAY), "--at-once", str(AT_ONCE)]
        return {
            "launcher": "process",
            "command": [sys.executable, "-m", "pyproxy", "target", "--port", "{port}", *served],
            "logs": logs,
            "min": LEAST,
            "max": MOST,
            "target_response_time": RIGHT,
            "response_time_low": 0.75,
            "cpu_high": None,  # they sleep
            "cpu_low": None,
            "interval": self._duration / 45,
            "cooldown": self._duration / 15,
        }

    def run(self) -> Generator[ScalingStory, None, None]:
        """Yields the story about ten times a second, up to its end. Raises ``DemoError``; ends all
        it started, also when it is left early."""
        with contextlib.ExitStack() as stack:
            logs = stack.enter_context(tempfile.TemporaryDirectory(prefix="pyproxy-demo-"))
            proxy = stack.enter_context(Proxy(scaling=self._scaling(logs)))
            story = ScalingStory(proxy.url)
            story.look(_scaling_of(proxy))
            if not story.targets:
                raise DemoError(f"no target started: {_scaling_of(proxy)['problem']}")
            story.tell(f"{proxy.url} serves {LEAST} to {MOST} targets; clients ask")
            clients = [
                threading.Thread(target=self._ask, args=(story, number), name="demo-client")
                for number in range(CLIENTS)
            ]
            stack.callback(self._end, clients)
            for thread in clients:
                thread.start()
            yield from self._direct(story, proxy)
            self._end(clients)
            yield story

    def _direct(self, story: ScalingStory, proxy: Proxy) -> Generator[ScalingStory, None, None]:
        last = next_column = next_line = time.monotonic()
        gone, patience = 0.0, PATIENCE
        while gone < self._duration:
            now = time.monotonic()
            share = gone / self._duration
            late = (share > 0.5 and story.peak == LEAST) or (share > 0.9 and not story.fell)
            if late and patience > 0:  # the load stays until that has happened
                patience -= now - last
            else:
                gone += now - last
            last = now
            story.clients = clients_at(share)
            story.look(_scaling_of(proxy))
            if now >= next_column:
                story.keep()
                next_column += self._duration / LINES
            if self._plain and now >= next_line:
                story.tell(story.line())
                next_line += self._duration / 20
            yield story
            self._over.wait(0.1)

    def _ask(self, story: ScalingStory, number: int) -> None:
        """While there are more clients than this number."""
        answers = spam(story.url, 0.05, stop=self._over)
        while not self._over.is_set():
            if number < story.clients:
                for answer in itertools.islice(answers, 1):
                    story.add(answer)
            else:
                self._over.wait(0.05)

    def _end(self, clients: list[threading.Thread]) -> None:
        self._over.set()
        for thread in clients:
            if thread.ident:
                thread.join()


def clients_at(share: float) -> int:
    """How many ask, when so much of the story has been told: few, more and more, many, and few."""
    height = min((share - 0.1) / 0.2, (0.7 - share) / 0.15, 1)
    return max(1, round(CLIENTS * height))


def _scaling_of(proxy: Proxy) -> dict[str, Any]:
    scaling: dict[str, Any] = proxy.control.snapshot()["pools"][0]["scaling"]
    return scaling
