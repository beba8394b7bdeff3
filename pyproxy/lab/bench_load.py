"""What Locust runs for ``bench``, beside the user's own file or instead of one: it writes each
second's statistics as a line of JSON to the file that the bench reads. It imports nothing of
pyproxy, and isn't imported by it: Locust's first act is to replace parts of the standard library.
"""

import json
import math
import os
import time
from collections import Counter, defaultdict
from typing import Any

import gevent
from locust import FastHttpUser, constant, events, task

SAID = json.loads(os.environ["BENCH_LOAD"])
BASE = 1.02  # between one bucket of response times and the next: as told, they are right to 1 %


class Second:
    """What has been counted since the last line."""

    def __init__(self) -> None:
        self.times: defaultdict[str, Counter[int]] = defaultdict(Counter)  # name -> bucket -> count
        self.failed: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.targets: Counter[str] = Counter()
        self.raised = 0
        self.total = 0.0  # ms, as all times, of what didn't fail
        self.most = 0.0


class Teller:
    def __init__(self, environment: Any) -> None:
        self._environment = environment
        self._parent = os.getppid()
        self._second = Second()
        self._began = 0.0
        self._over = False
        environment.events.request.add_listener(self.count)
        environment.events.user_error.add_listener(self.count_raised)
        environment.events.test_start.add_listener(self.begin)
        environment.events.test_stopping.add_listener(self.end)

    def begin(self, **_: Any) -> None:
        self._began = time.time()
        self._write({"began": self._began})
        gevent.spawn(self._go_on)
        gevent.spawn_later(SAID["seconds"], self._environment.runner.quit)

    def _go_on(self) -> None:
        due = self._began
        while os.getppid() == self._parent:
            due += 1
            gevent.sleep(max(due - time.time(), 0))
            self.tell()
        self._environment.runner.quit()  # nobody waits for this any more

    def count(
        self,
        request_type: str,
        name: str,
        response_time: float,
        exception: BaseException | None,
        response: Any = None,
        **_: Any,
    ) -> None:
        second, title = self._second, f"{request_type} {name}"
        if exception is None:
            second.times[title][round(math.log(max(response_time, 0.01), BASE))] += 1
            second.total += response_time
            second.most = max(second.most, response_time)
        else:
            second.failed[title] += 1
            second.errors[f"{title}: {_briefly(exception)}"] += 1
        headers = getattr(response, "headers", None)
        if headers is not None and (target := headers.get("X-Target")):
            second.targets[target] += 1

    def count_raised(self, exception: BaseException, **_: Any) -> None:
        self._second.raised += 1
        self._second.errors[f"a task raised {_briefly(exception)}"] += 1

    def end(self, **_: Any) -> None:
        """What is still under way is broken off, and doesn't count."""
        self.tell()
        self._over = True

    def tell(self) -> None:
        if self._over:
            return
        second, self._second = self._second, Second()
        runner = self._environment.runner
        self._write({"at": time.time(), "users": runner.user_count, **vars(second)})

    def _write(self, said: dict[str, Any]) -> None:
        with open(SAID["to"], "a", encoding="utf-8") as file:
            file.write(json.dumps(said) + "\n")


def _briefly(error: BaseException) -> str:
    if code := getattr(error, "code", None):
        return f"status {code}"
    text = str(error) if type(error).__name__ == "CatchResponseError" else repr(error)
    return text if len(text) <= 200 else f"{text[:199]}…"


def begin(environment: Any, **_: Any) -> None:
    Teller(environment)


events.init.add_listener(begin)  # type: ignore[no-untyped-call, unused-ignore]

if SAID["path"]:

    class Visitor(FastHttpUser):  # type: ignore[misc, unused-ignore]
        """Asks for one path again and again."""

        wait_time = constant(SAID["pause"])

        @task  # type: ignore[untyped-decorator, unused-ignore]
        def ask(self) -> None:
            self.client.get(SAID["path"])
