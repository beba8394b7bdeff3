"""Program: the proxy as ``python -m pyproxy`` runs it, in one process or with workers.

SIGTERM SIGINT    finishes what is under way, then ends; a second one ends at once
SIGHUP            reads the settings again, as it does when their file changes
SIGUSR1           opens the access log anew
SIGUSR2           hands over to a new program on the same sockets
"""

import contextlib
import logging
import os
import queue
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator

from pyproxy import logs, net
from pyproxy.app import Proxy, check
from pyproxy.control import systemd
from pyproxy.control.control import targets_said
from pyproxy.control.handover import Inheritance, hand_over, inherited
from pyproxy.control.source import Source
from pyproxy.control.workers import Supervisor
from pyproxy.errors import ControlError, PyproxyError
from pyproxy.settings import Settings
from pyproxy.watching import Watcher

log = logging.getLogger(__name__)

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
SIGNALS = {int(getattr(signal, name)): name for name in _NAMES if hasattr(signal, name)}
_FAILED = 255  # stands among them for workers that die again and again


class Signals:
    """What this process is sent, and what its threads ``put``, in the order in which it comes, of
    what comes together the lower number first. For as long as the process lasts; made in the main
    thread.

    The system's own handler writes what ``get`` reads. Python's runs in the main thread alone, and
    one that is about to wait for a lock sleeps through a signal that comes just before.
    """

    def __init__(self, *names: str) -> None:
        """``names`` of ``SIGNALS``: the others do what they did."""
        self._came: list[int] = []
        self._ear, self._mouth = socket.socketpair()
        self._mouth.setblocking(False)
        signal.set_wakeup_fd(self._mouth.fileno(), warn_on_full_buffer=False)
        for number, name in SIGNALS.items():
            if name in names:
                signal.signal(number, lambda number, _: None)
        _kept.append(self)

    def put(self, number: int) -> None:
        """From any thread; up to 255."""
        self._mouth.send(bytes([number]))

    def get(self, timeout: float | None = None) -> int:
        """From one thread at a time. Raises ``queue.Empty`` after ``timeout`` seconds."""
        if not self._came:
            self._ear.settimeout(timeout)
            try:
                # The handlers of those that come together run the other way round.
                self._came = sorted(self._ear.recv(256))
            except (TimeoutError, BlockingIOError):
                raise queue.Empty from None
        return self._came.pop(0)


_kept: list[Signals] = []  # a signal may come at any time


@contextlib.contextmanager
def not_for_threads() -> Iterator[None]:
    """Threads started within leave signals to the main thread, whose waiting they end."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows has no such choice
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def signal_waits() -> bool:
    """Whether one has come to a thread that is held ``not_for_threads``."""
    return hasattr(signal, "sigpending") and bool(signal.sigpending() & SIGNALS.keys())


def in_background(what: Callable[..., object], *arguments: object) -> threading.Thread:
    name = f"pyproxy-{what.__name__.strip('_')}"
    with not_for_threads():
        thread = threading.Thread(target=what, args=arguments, name=name, daemon=True)
        thread.start()
    return thread


def inheritance() -> Inheritance:
    """What the program before this one, or systemd, has left. To be asked for before the settings
    are read: it takes its own variables out of the environment."""
    return inherited(systemd.listen_fds())


class Program:
    """Built and run in the main thread."""

    def __init__(
        self,
        settings: Settings,
        load: Callable[[], Settings],
        source: str,
        watcher: Watcher | None,
        tell: Callable[[str], None],
        left: Inheritance,
    ) -> None:
        """``load`` reads the settings again; ``source`` says from where, ``watcher`` when they have
        changed; ``tell`` speaks to the user; ``left`` is what the program before has left. Raises
        ``SettingsError``."""
        logs.configure(settings.log)
        net.raise_file_limit(settings.limits.connections)
        self._tell = tell
        self._signals = Signals(*_NAMES)
        self._watcher = watcher
        self._problem = ""
        self._left = left
        if settings.worker_count == 1:
            self.runner: Proxy | Supervisor = Proxy(settings, inheritance=self._left)
        else:
            self.runner = Supervisor(settings, self._left, check=check, failed=self._fail)
        control = self.runner.control
        control.fleets.hurried = signal_waits
        if left.targets is not None:
            control.journal.settle(left.targets, targets_said(settings))
        self._source = control.source = Source(load, self._apply, settings, source)
        if "SIGUSR2" in SIGNALS.values():
            control.restart = lambda: self._signals.put(signal.SIGUSR2)

    def _fail(self, problem: str) -> None:
        self._problem = problem
        self._signals.put(_FAILED)

    def _apply(self, settings: Settings) -> None:
        if (settings.worker_count == 1) != isinstance(self.runner, Proxy):
            log.warning("workers: from or to 1 takes effect with the next start")
        if settings.cpu_affinity != self.runner.settings.cpu_affinity:
            log.warning("cpu_affinity: takes effect with the next start")
        systemd.notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
        net.raise_file_limit(settings.limits.connections)
        try:
            with not_for_threads():
                self.runner.reload(settings)
        finally:
            systemd.notify("READY=1")  # with the old settings, if the new ones can't be used
        logs.configure(settings.log)

    def start(self) -> None:
        """Serves. Raises ``PyproxyError``."""
        with not_for_threads():
            self.runner.start()
            if self._watcher:
                in_background(self._reload_when_files_change, self._watcher)
            self._left.serves()
        systemd.notify("READY=1", f"MAINPID={os.getpid()}")

    def _reload_when_files_change(self, watcher: Watcher) -> None:
        while watcher.wait() or not watcher.stopped:
            self._reload()

    def _reload(self) -> None:
        try:
            self._source.reload()
        except ControlError:
            pass  # which is logged
        except Exception as error:  # noqa: BLE001 - this machine is out of something: it goes on
            log.error("the settings can't be applied: %s: %s", type(error).__name__, error)

    def run(self) -> int:
        """Acts on signals until it is to end, and does that; the exit status."""
        handed_over = False
        while True:
            match SIGNALS.get(number := self._signals.get()):
                case "SIGHUP":
                    self._aside(self._reload)
                case "SIGUSR1":
                    self._aside(self.runner.reopen_logs)
                case "SIGUSR2":
                    if handed_over := self._hand_over():
                        break
                case _:
                    break
        if number == _FAILED:
            self._tell(self._problem)
        elif not handed_over:
            self._tell("stopping: requests under way are finished (once more ends at once)")
        self._stop(handed_over)
        return 1 if number == _FAILED else 0

    def _aside(self, what: Callable[[], object]) -> None:
        """So that signals are heard meanwhile; they wait if this machine is out of threads."""
        try:
            in_background(what)
        except RuntimeError:
            what()

    def _hand_over(self) -> bool:
        """Whether a new program serves."""
        runner = self.runner
        targets = targets_said(runner.settings)
        fleets = runner.control.fleets
        with self._source.lock:  # a reload changes which fleets there are
            fleets.rest()
            try:
                pid = hand_over(
                    runner.sockets,
                    runner.ledger,
                    fleets.without_made(runner.control.journal),
                    runner.secret,
                    targets,
                    fleets.leave(),
                )
            except PyproxyError as error:
                log.error("%s", error)
                fleets.go_on()
                return False
        with contextlib.suppress(queue.Empty):  # it ends anyway: what has come isn't the second
            while True:
                self._signals.get(0)
        systemd.notify(f"MAINPID={pid}")
        self._tell(f"process {pid} takes the place of this one, which finishes what is under way")
        return True

    def _stop(self, handed_over: bool) -> None:
        if not handed_over:
            systemd.notify("STOPPING=1")
        if self._watcher:
            self._watcher.stop()
        try:
            in_background(self._end_at_once)
        except RuntimeError as error:  # this machine is out of threads
            log.error("a second signal ends nothing: %s", error)
        self.runner.stop(handed_over=handed_over)

    def _end_at_once(self) -> None:
        while (number := self._signals.get()) not in (signal.SIGINT, signal.SIGTERM):
            pass
        if isinstance(self.runner, Supervisor):
            self.runner.kill()
        os._exit(128 + number)
