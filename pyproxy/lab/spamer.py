"""The spamer: one GET after another, at even intervals, and what came of each."""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import requests


@dataclass(frozen=True)
class Answer:
    """What became of one request. ``status`` is None when no answer came, then ``error`` says why;
    ``target`` is its ``X-Target`` header, or ``-``. ``seconds`` to the whole answer."""

    at: float  # time.time()
    status: int | None
    seconds: float
    target: str
    error: str = ""

    @property
    def ok(self) -> bool:
        return self.status is not None and self.status < 400

    def __str__(self) -> str:
        clock = time.strftime("%H:%M:%S", time.localtime(self.at))
        status = self.status or "failed"
        return f"{clock} {status} {self.seconds * 1000:7.1f} ms {self.error or self.target}"


def spam(
    url: str,
    interval: float = 0.2,
    duration: float | None = None,
    count: int | None = None,
    stop: threading.Event | None = None,
) -> Iterator[Answer]:
    """Asks ``url`` every ``interval`` seconds for ``duration`` seconds or ``count`` times, or until
    ``stop`` is set. A slow answer delays the next request, and drops none."""
    stop = stop or threading.Event()
    began = due = time.monotonic()
    asked = 0
    with requests.Session() as session:
        session.trust_env = False
        while not stop.wait(max(due - time.monotonic(), 0)):
            if count is not None and asked >= count:
                return
            if duration is not None and due - began >= duration:
                return
            yield _ask(session, url)
            asked += 1
            due = max(due + interval, time.monotonic() - interval)


def _ask(session: requests.Session, url: str) -> Answer:
    at, began = time.time(), time.perf_counter()
    try:
        response = session.get(url, timeout=70)
    except (requests.RequestException, ValueError) as error:  # the latter: of the URL
        return Answer(at, None, time.perf_counter() - began, "-", _plainly(error))
    seconds = time.perf_counter() - began
    return Answer(at, response.status_code, seconds, response.headers.get("X-Target", "-"))


def _plainly(error: Exception) -> str:
    if isinstance(error, requests.Timeout):
        return "no answer in time"
    if isinstance(error, requests.ConnectionError):
        return "no connection, or it broke"
    return str(error)


@dataclass
class Tally:
    """Adds answers up."""

    requests: int = 0
    failed: int = 0
    by_target: Counter[str] = field(default_factory=Counter)

    def add(self, answer: Answer) -> None:
        self.requests += 1
        self.failed += not answer.ok
        self.by_target[answer.target] += 1

    def lines(self) -> list[str]:
        shares = [
            f"  {target}: {count} ({count / self.requests:.1%})"
            for target, count in sorted(self.by_target.items())
        ]
        return [f"{self.requests} requests, {self.failed} failed", *shares]
