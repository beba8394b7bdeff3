"""Workers: several processes that serve on the same sockets, and the supervisor that keeps them.

    Supervisor          binds the sockets, counts in memory that outlives a worker, has all verbs
      _keep             a thread for each worker: starts it, waits for its end, starts it again
        Worker            the process, and the channel to it
    pyproxy.worker      what runs in it: a Proxy that does what the channel says

They share the listening sockets and nothing else: each has its own view of who is live. A worker
that dies takes with it what it was serving; what waits to be accepted goes to the others.
"""

import contextlib
import logging
import os
import pickle
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pyproxy.balancing.counters import Totals
from pyproxy.control.admin import AdminPlace
from pyproxy.control.channel import Channel
from pyproxy.control.control import BY_HAND, Deed, Journal, target_id, targets_said
from pyproxy.control.described import Described
from pyproxy.control.handover import Inheritance
from pyproxy.control.ledger import Ledger, Memory
from pyproxy.control.merging import merge
from pyproxy.control.source import Source
from pyproxy.errors import ControlError, PyproxyError, SettingsError
from pyproxy.readers import Json, url_of
from pyproxy.scaling.fleets import Fleets
from pyproxy.sections import read_target
from pyproxy.services import name_of
from pyproxy.settings import Settings, plain
from pyproxy.sockets import named

log = logging.getLogger(__name__)

_PATIENCE = 30.0  # seconds for a worker's start, or other settings
_ANSWER = 10.0  # seconds for all answers to any other verb
_YOUNG = 5.0  # seconds: a worker that dies sooner is part of a crash loop
_LOOP = 5  # such deaths in a row that end the program, if no other worker serves
_PAUSE = 0.1  # seconds before the first new start in a row; doubled each time
_LONGEST = 10.0  # seconds


class Worker:
    """A process that serves, as its supervisor sees it. Used under the supervisor's lock."""

    def __init__(self, number: int, memory: Memory) -> None:
        """Starts it; it waits for ``begin``. Raises ``OSError``."""
        self.number = number
        self.memory = memory
        self._sockets: set[str] = set()  # that it has
        self.started = time.time()
        self.born = time.monotonic()
        self._channel, other = Channel.pair()
        with other:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "pyproxy.worker", str(other.fileno())],
                pass_fds=[other.fileno()],
                # The same modules are found, whatever the folder.
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )

    def wait_until_awake(self) -> None:
        """Raises ``EOFError`` or ``TimeoutError``."""
        self._channel.receive(_PATIENCE)

    def begin(self, start: dict[str, Any], sockets: dict[str, int]) -> None:
        """It serves when this returns. Raises ``ControlError``, ``EOFError``, ``TimeoutError``."""
        message = {**start, "number": self.number, "sockets": list(sockets)}
        self.call("begin", message, files=[self.memory.file, *sockets.values()])
        self._sockets = {*sockets}

    def reload(self, settings: bytes, sockets: dict[str, int], lent: set[str]) -> None:
        """As ``begin``. What it has isn't sent again: clients may have taken all its files."""
        new = {name: file for name, file in sockets.items() if name not in self._sockets}
        self.call("reload", settings, list(new), lent, files=new.values())
        self._sockets = {*sockets}

    def call(self, verb: str, *arguments: Any, files: Iterable[int] = ()) -> Any:
        """What the verb returns there. Raises what it raises there, ``EOFError`` when the process
        has ended, ``TimeoutError`` when it hangs."""
        self.ask(verb, *arguments, files=files)
        return self.answer(_PATIENCE)

    def ask(self, verb: str, *arguments: Any, files: Iterable[int] = ()) -> None:
        """Without waiting for the ``answer``. Raises ``EOFError`` and ``TimeoutError``."""
        self._channel.send((verb, arguments), list(files))

    def answer(self, patience: float) -> Any:
        (good, result), _ = self._channel.receive(patience)
        if not good:
            raise result
        return result

    def tell(self, verb: str, *arguments: Any) -> None:
        """Without waiting for an answer. One that hangs so that it takes no more is ended: nobody
        can ask it anything after that."""
        try:
            self.ask(verb, *arguments)
        except EOFError:
            pass  # its thread sees that too
        except TimeoutError:
            log.error("worker %d takes no question: it is ended", self.number)
            self.kill()

    def kill(self) -> None:
        with contextlib.suppress(OSError):
            self.process.kill()

    def close(self) -> None:
        self._channel.close()

    def fate(self) -> str:
        """How it has ended."""
        code = self.process.returncode
        if code is not None and code < 0:
            names = {int(one): one.name for one in signal.Signals}
            return f"was ended by {names.get(-code, f'signal {-code}')}"
        return f"ended with status {code}"


class Supervisor:
    """What ``Proxy`` is, in several processes; ``control`` has the verbs. May be used from any
    thread."""

    def __init__(
        self,
        settings: Settings,
        inheritance: Inheritance | None = None,
        *,
        check: Callable[[Settings], object] = lambda settings: None,
        failed: Callable[[str], None] = lambda text: None,
    ) -> None:
        """``check`` builds what the settings say, and raises ``SettingsError`` or ``ListenError``:
        it is asked before a worker is. ``failed`` is called when workers die again and again.
        ``inheritance`` is what a program that was here before has left."""
        if not hasattr(os, "fork"):
            raise SettingsError(["workers: more than 1 needs a Unix, like Linux or macOS"])
        check(settings)
        left = inheritance or Inheritance(ledger=Ledger(shared=True))
        self.settings = settings
        self.sockets = left.sockets
        self.ledger = left.ledger
        self.secret = left.secret or secrets.token_bytes(32)
        self.control = SupervisorControl(self, left.journal, left.scaling)
        self.workers: dict[int, Worker] = {}
        self._leaving: set[Worker] = set()  # finish what they have, and do nothing else any more
        self._heir = bool(left.scaling)  # what it takes over is another's until it serves
        self.restarts: dict[int, int] = {}
        self.began = False  # there are workers, or will be
        # Protects what is known of the workers, and their channels; notified when one begins, or
        # none will.
        self.changed = threading.Condition()
        self._admin = AdminPlace(self.control, self.sockets)
        self._check = check
        self._failed = failed
        self._threads: dict[int, threading.Thread] = {}
        self._stopping = threading.Event()
        self._problem = ""

    @property
    def urls(self) -> list[str]:
        """Where it listens, as ``Proxy.urls``."""
        places = self.settings.places
        open_sockets = self.sockets.all()
        return [
            url_of(scheme, host, open_sockets[name].getsockname()[1])
            for name, (scheme, host, _) in zip(named(places), places, strict=True)
        ]

    def start(self) -> None:
        """Returns when all workers serve, or ``fleets.hurried()``: one that doesn't come up is
        tried again and again where others serve. Raises ``ListenError``, or ``PyproxyError`` when
        none comes up."""
        self.sockets.open(self.settings.all_places)
        self.control.fleets.apply(self.settings)
        self.control.fleets.wait()
        try:
            self.control.fleets.check()
        except PyproxyError:
            self.stop(0, handed_over=self._heir)
            raise
        with self.changed:
            self.began = True
            wanted = self._scale()
            hurried = self.control.fleets.hurried
            while len(self.workers) < wanted and not (self._problem or hurried()):
                self.changed.wait(0.2)  # a hurry wakes nobody
        if self._problem:
            self.stop(0, handed_over=self._heir)
            raise PyproxyError(self._problem)
        self._admin.apply(self.settings)

    @property
    def admin_url(self) -> str | None:
        """Of the admin API, if there is one."""
        return self._admin.url

    def _scale(self) -> int:
        """As many threads as workers are wanted; those of others end by themselves."""
        wanted = self.settings.worker_count
        for number in range(wanted):
            if number not in self._threads:
                self.restarts.setdefault(number, 0)
                thread = threading.Thread(
                    target=self._keep, args=(number,), name=f"pyproxy-worker-{number}", daemon=True
                )
                thread.start()  # which may fail: then the next reload tries it again
                self._threads[number] = thread
        return wanted

    def _wanted(self, number: int) -> bool:
        return not self._stopping.is_set() and number < self.settings.worker_count

    def _goes_on_with(self, number: int) -> bool:
        """Whether it is wanted; its thread ends otherwise. One step, as a reload may want it
        again: then it finds a thread that goes on, or none."""
        with self.changed:
            if self._wanted(number):
                return True
            self._threads.pop(number, None)
            return False

    def _keep(self, number: int) -> None:
        """Has one worker serve, and another in its place when it ends, for as long as it is
        wanted."""
        deaths = 0
        while self._goes_on_with(number):
            began = time.monotonic()
            died, said = self._run(number)
            if not self._wanted(number):
                continue
            young = time.monotonic() - began < _YOUNG
            deaths = deaths + 1 if died and young else 0
            pause = min(_PAUSE * 2**deaths, _LONGEST) if young else 0
            if deaths >= _LOOP and not self._others_serve(number):
                self._give_up(number, f"worker {number} dies again and again: it {said}")
                return
            level = logging.ERROR if died else logging.INFO
            log.log(level, "worker %d %s; another takes its place", number, said)
            self.restarts[number] += 1
            self._stopping.wait(pause)

    def _others_serve(self, number: int) -> bool:
        """Whether some worker has lived long enough to be trusted: then the program goes on."""
        with self.changed:
            now = time.monotonic()
            others = [one for one in self.workers.values() if one.number != number]
            return any(now - one.born > _YOUNG for one in others)

    def _run(self, number: int) -> tuple[bool, str]:
        """One process, from its start to its end; whether it died, and how."""
        memory: Memory | None = None
        try:
            memory = self.ledger.open()
            worker = Worker(number, memory)
        except OSError as error:
            if memory:
                self.ledger.close(memory)
            return True, f"can't be started: {error}"
        try:
            worker.wait_until_awake()
            with self.changed:
                if not self._wanted(number):  # not any more
                    raise EOFError
                self._begin(worker)
                self.workers[number] = worker
                self.changed.notify_all()
        except (EOFError, TimeoutError, PyproxyError) as error:
            worker.kill()
            worker.process.wait()
            if isinstance(error, PyproxyError):
                return True, f"didn't start: {error}"
            return True, f"{worker.fate()} before it served"
        else:
            worker.process.wait()
        finally:
            with self.changed:
                if self.workers.get(number) is worker:
                    del self.workers[number]
                self._leaving.discard(worker)
            worker.close()
            self.ledger.close(memory)
        return worker.process.returncode != 0, worker.fate()

    def _begin(self, worker: Worker) -> None:
        start = {
            "settings": pickle.dumps(self.settings),
            "secret": self.secret,
            "journal": list(self.control.journal),
            "lent": self.sockets.lent,
        }
        opened = self.sockets.open(self.settings.places)  # they are, long since
        sockets = {name: sock.fileno() for name, sock in opened.items()}
        worker.begin(start, sockets)

    def _give_up(self, number: int, problem: str) -> None:
        with self.changed:
            self._threads.pop(number, None)
            self._problem = problem
            self.changed.notify_all()
        self._failed(problem)

    def all(self, verb: str, *arguments: Any) -> list[Any]:
        """What the verb returns in each worker. One that doesn't answer is ended: another takes its
        place. Raises what the first raised, if none has done it: where some have, it is done."""
        self._goes_on()
        results: list[Any] = []
        refusals: list[tuple[int, ControlError]] = []
        asked = list(self.workers.values())
        for worker in asked:
            worker.tell(verb, *arguments)
        deadline = time.monotonic() + _ANSWER
        for worker in asked:
            try:
                results.append(worker.answer(max(deadline - time.monotonic(), 0.1)))
            except ControlError as error:
                refusals.append((worker.number, error))
            except EOFError:
                continue  # its thread sees that too
            except TimeoutError:
                log.error("worker %d doesn't answer: it is ended", worker.number)
                worker.kill()
        if refusals and not results:
            raise refusals[0][1]
        for number, refusal in refusals:  # it was as asked before, like one that has no such target
            log.warning("worker %d refuses what others have done: %s: %s", number, verb, refusal)
        return results

    def _goes_on(self) -> None:
        """Raises ``ControlError`` if it doesn't: workers that end answer nobody."""
        if self._stopping.is_set():
            raise ControlError(503, "the proxy is stopping")

    def reload(self, settings: Settings) -> None:
        """Goes on with other settings, in all workers. Raises ``SettingsError`` or ``ListenError``,
        having changed nothing; ``ControlError`` while it stops."""
        with self.changed:
            self._goes_on()
            self._check(settings)
            opened = self.sockets.open(settings.all_places)
            before, self.settings = self.settings, settings
            data = pickle.dumps(settings)
            sockets = {name: opened[name].fileno() for name in named(settings.places)}
            for worker in list(self.workers.values()):
                try:
                    worker.reload(data, sockets, self.sockets.lent)
                except EOFError:
                    continue
                except (PyproxyError, TimeoutError) as error:
                    log.error(
                        "worker %d can't go on with the settings, and is ended: %s",
                        worker.number,
                        error or "no answer",
                    )
                    worker.kill()
            self.control.journal.settle(targets_said(before), targets_said(settings))
            self._admin.apply(settings)
            for name in self.sockets.all().keys() - opened.keys():
                self.sockets.close(name)
            self._scale()
            self.control.fleets.apply(settings)
            for number in [one for one in self.workers if not self._wanted(one)]:
                self._dismiss(number)

    def _dismiss(self, number: int) -> None:
        worker = self.workers.pop(number)
        self._leaving.add(worker)
        worker.tell("stop", None, True)

    def describe(self) -> list[dict[str, Any]]:
        """Each worker, in JSON's terms."""
        found = []
        for number in range(self.settings.worker_count):
            worker = self.workers.get(number)
            found.append(
                {
                    "number": number,
                    "pid": worker.process.pid if worker else None,
                    "state": "running" if worker else "starting",
                    "started": worker.started if worker else None,
                    "restarts": self.restarts.get(number, 0),
                }
            )
        return found

    def reopen_logs(self) -> None:
        with self.changed, contextlib.suppress(ControlError):
            self.all("reopen_logs")

    def stop(self, drain: float | None = None, *, handed_over: bool = False) -> None:
        """As ``Proxy.stop``."""
        if drain is None:
            drain = self.settings.timeouts.drain
        self._admin.stop(handed_over)
        self._stopping.set()
        with self.changed:
            for worker in self.workers.values():
                worker.tell("stop", drain, handed_over)
            threads = list(self._threads.values())
        deadline = time.monotonic() + drain + 5
        for thread in threads:
            thread.join(max(deadline - time.monotonic(), 0))
        self.kill()
        for thread in threads:
            thread.join()
        self.control.fleets.stop(keep=handed_over)
        self.sockets.close_all()

    def kill(self) -> None:
        """Ends what is left of the workers at once."""
        for worker in [*self.workers.values(), *self._leaving]:
            worker.kill()

    def __enter__(self) -> "Supervisor":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class SupervisorControl:
    """The verbs, for all workers at once: ``control.Verbs``."""

    def __init__(
        self, supervisor: Supervisor, journal: Iterable[Deed], scaling: Mapping[str, Any]
    ) -> None:
        self._supervisor = supervisor
        self.fleets = Fleets(self, scaling)
        self._began = time.time()
        self.source: Source | None = None
        self.restart: Callable[[], None] | None = None  # has a new program take this one's place
        self.journal = Journal(journal)

    def reload(self) -> list[str]:
        if self.source is None:
            raise ControlError(409, "these settings come from no file")
        return self.source.reload()

    def snapshot(self) -> dict[str, Any]:
        with self._supervisor.changed:
            parts = self._supervisor.all("snapshot")
            workers = self._supervisor.describe()
            urls = self._supervisor.urls
        found = merge(parts)
        for pool in found["pools"]:
            pool["scaling"] = self.fleets.describe(pool["name"])
        return {
            **found,
            "started": self._began,
            "settings": self.source.describe() if self.source else None,
            "urls": urls,
            "workers": workers,
        }

    def totals(self) -> Totals:
        return self._supervisor.ledger.totals()

    def settings(self) -> Json:
        return plain(self._supervisor.settings)

    def _do(self, verb: str, target: str, *arguments: Any) -> None:
        with self._supervisor.changed:
            self._supervisor.all(verb, target, *arguments)
            self.journal.note(verb, target, *arguments)

    def add(self, target: Json, pool: str = "", reason: str = BY_HAND) -> str:
        with self._supervisor.changed:
            said = self._supervisor.settings
            pools = [one for one in (said, *said.routes, *said.tcp) if one.has_targets]
            # By its name: the first may be another one when this is done again.
            pool = pool or (name_of(pools[0]) if pools else "")
            if self._supervisor.began:
                known: str = self._any("add", target, pool, reason)
            else:  # those who are to serve do it when they begin
                known = target_id(pool, read_target(target).url)
            self.journal.note("add", known, target, pool, reason)
        return known

    def remove(self, target: str, reason: str = BY_HAND) -> None:
        self._do("remove", target, reason)

    def drain(self, target: str, reason: str = BY_HAND) -> None:
        self._do("drain", target, reason)

    def maintenance(self, target: str, reason: str = BY_HAND) -> None:
        self._do("maintenance", target, reason)

    def ready(self, target: str) -> None:
        self._do("ready", target)

    def weight(self, target: str, weight: int) -> None:
        self._do("weight", target, weight)

    def scale(self, count: int, pool: str = "") -> Json:
        return self.fleets.scale(count, pool)

    def roll_out(self, version: Mapping[str, Json], pool: str = "") -> Json:
        return self.fleets.roll_out(version, pool)

    def change_rollout(self, action: str, pool: str = "") -> Json:
        return self.fleets.change_rollout(action, pool)

    def explain(self, asked: Described) -> dict[str, Any]:
        with self._supervisor.changed:
            found: dict[str, Any] = self._any("explain", asked)
        return found

    def _any(self, verb: str, *arguments: Any) -> Any:
        results = self._supervisor.all(verb, *arguments)
        if not results:
            raise ControlError(503, "no worker is there just now")
        return results[0]
