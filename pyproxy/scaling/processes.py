"""Processes of this machine as targets.

ProcessLauncher     chooses ports, reads what the keeper tells
keeper.py           a process of its own, the parent of all targets: it ends them when it is to,
                    and when this program is gone, even if that was killed
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pyproxy.scaling.launcher import Instance, LaunchError
from pyproxy.scaling_settings import Scaling, Version, search_path

_PATIENCE = 10.0  # seconds for the keeper's answer
_LAST_WORDS = 200  # characters
_KEPT = 20  # logs of targets that have ended, in a folder of our own

# What a service manager has told this program, and no other.
_NOT_THEIRS = {"NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "WATCHDOG_USEC"}


def _is_theirs(variable: str) -> bool:
    """Settings of this program aren't, like the admin's password."""
    return variable not in _NOT_THEIRS and not variable.startswith("PYPROXY_")


@dataclass
class _Known:
    """What the keeper has told of a process."""

    told: threading.Event = field(default_factory=threading.Event)  # whether it could be started
    over: threading.Event = field(default_factory=threading.Event)
    pid: int = 0
    error: str = ""
    code: int | None = None
    log_began: int = 0  # bytes of its log that others of its name have printed before


class ProcessLauncher:
    """``Launcher`` for processes. None survives this program: there is never one to adopt."""

    def __init__(self, said: Scaling) -> None:
        self._said = said
        self._logs = said.logs or ""
        self._keeper: subprocess.Popen[bytes] | None = None
        self._listener: threading.Thread | None = None  # ends after the keeper
        self._channel: socket.socket | None = None
        self._known: dict[str, _Known] = {}
        self._left: deque[int] = deque()  # ports of those that have ended
        self._over: deque[str] = deque()  # and their logs
        # Protects the fields above, and what is sent.
        self._lock = threading.Lock()

    def adopt(self, only: Collection[str] | None = None) -> list[Instance]:
        return []

    def start(self, name: str, version: Version) -> Instance:
        log = self._log_of(name)
        port = str(self._port())  # last of what may fail here: nobody would give it back
        own = {key: one.replace("{port}", port) for key, one in version.environment}
        environment = {key: one for key, one in os.environ.items() if _is_theirs(key)}
        environment["PATH"] = search_path(environment)
        known = _Known(log_began=_size(log))
        self._send(
            known,
            verb="start",
            name=name,
            command=[part.replace("{port}", port) for part in version.command],
            environment={**environment, **own},
            folder=self._said.folder,
            log=log,
        )
        said = ""
        if not known.told.wait(_PATIENCE):
            said = "the keeper of processes doesn't answer"
            self._send(verb="end", name=name, patience=0)  # when it comes to that
        elif known.error:
            said = f"can't be started: {known.error}"
        if said:
            with self._lock:
                self._known.pop(name, None)
                self._left.append(int(port))
            raise LaunchError(said)
        return Instance(name, f"http://127.0.0.1:{port}", version, str(known.pid), log)

    def ended(self, instance: Instance) -> str | None:
        known = self._known.get(instance.name)
        if known and not known.over.is_set():
            return None
        code = known.code if known else None
        if code is None:
            how = "ended with its keeper"
        elif code < 0:
            known_as = {one.value: one.name for one in signal.Signals}
            how = f"was ended by {known_as.get(-code, f'signal {-code}')}"
        else:
            how = f"ended with status {code}"
        last = _last_words(instance.log, known.log_began if known else 0)
        return f"{how}: {last}" if last else how

    def processor_time(self, instance: Instance) -> float | None:
        try:
            import psutil
        except ImportError:
            return None
        group = int(instance.handle)
        times = []  # user, system, and both of its children that have ended
        for pid in psutil.pids():
            # Those that are gone meanwhile, or whose group isn't ours to know, don't count.
            with contextlib.suppress(OSError, psutil.Error):
                if os.getpgid(pid) == group:
                    times.append(psutil.Process(pid).cpu_times())
        # With what those that have ended had used: else it would fall with each of them.
        return float(sum(sum(one[:4]) for one in times)) if times else None

    def stop(self, instance: Instance, patience: float) -> None:
        known = self._known.get(instance.name)
        if known is None:
            return
        if not known.over.is_set():
            self._send(verb="end", name=instance.name, patience=patience)
            known.over.wait(patience + _PATIENCE)
        with self._lock:
            self._known.pop(instance.name, None)
            self._left.append(int(instance.url.rpartition(":")[2]))
            self._over.append(instance.log)
            if not self._said.logs and len(self._over) > _KEPT:
                with contextlib.suppress(OSError):
                    os.unlink(self._over.popleft())

    def close(self, keep: bool = False) -> None:
        with self._lock:
            keeper, listener, channel = self._keeper, self._listener, self._channel
            self._keeper = self._channel = None
        if channel:
            with contextlib.suppress(OSError):
                channel.shutdown(socket.SHUT_RDWR)  # the keeper ends all that is left
        if keeper and listener:
            listener.join(_PATIENCE)
            keeper.kill()  # one that hangs; then its targets end, too
            listener.join()
        if self._logs and not self._said.logs:
            shutil.rmtree(self._logs, ignore_errors=True)

    def _port(self) -> int:
        """One that an earlier target had, if possible: what is counted for each address, and shown
        in metrics, is then of few addresses."""
        with self._lock:
            for _ in range(len(self._left)):
                port = self._left.popleft()
                with contextlib.suppress(OSError):
                    return _free_port(port)
                self._left.append(port)
        return _free_port()

    def _log_of(self, name: str) -> str:
        with self._lock:
            if not self._logs:
                self._logs = tempfile.mkdtemp(prefix="pyproxy-targets-")
            folder = Path(self._logs)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LaunchError(f"scaling.logs: {folder}: {error.strerror}") from None
        return str(folder / f"{name}.log")

    def _send(self, known: _Known | None = None, **said: Any) -> None:
        """``known`` is what is to be told of one that is started now: what came before, like the
        end of another keeper, isn't of that one."""
        data = json.dumps(said).encode() + b"\n"
        with self._lock:
            try:
                (self._channel or self._start_keeper()).sendall(data)
                if known:
                    self._known[said["name"]] = known
            except OSError as error:
                raise LaunchError(f"the keeper of processes: {error}") from None

    def _start_keeper(self) -> socket.socket:
        own, other = socket.socketpair()
        script = str(Path(__file__).with_name("keeper.py"))
        try:
            with other:
                keeper = subprocess.Popen(
                    [sys.executable, "-I", "-S", script, str(other.fileno())],
                    pass_fds=[other.fileno()],
                    start_new_session=True,  # Ctrl-C in a terminal is for this program alone
                )
        except OSError:
            own.close()
            raise
        listener = threading.Thread(
            target=self._listen, args=(own, keeper), name="pyproxy-keeper", daemon=True
        )
        listener.start()
        self._keeper, self._listener, self._channel = keeper, listener, own
        return own

    def _listen(self, channel: socket.socket, keeper: "subprocess.Popen[bytes]") -> None:
        """Until the keeper is gone. If that was against our will, those it kept are gone too."""
        with channel, channel.makefile("rb") as lines, contextlib.suppress(OSError):
            for line in lines:
                self._note(**json.loads(line))
        keeper.wait()
        with self._lock:
            if self._channel is channel:
                self._keeper = self._channel = None
            for known in self._known.values():
                self._end_with_its_keeper(known)

    def _note(self, name: str, pid: int = 0, error: str = "", code: int | None = None) -> None:
        with self._lock:
            known = self._known.get(name)
        if known is None:
            return
        if code is not None:
            known.code = code
            known.over.set()
        else:
            known.pid, known.error = pid, error
            if error:
                known.over.set()
            known.told.set()

    def _end_with_its_keeper(self, known: _Known) -> None:
        if known.pid and not known.over.is_set():
            with contextlib.suppress(OSError):
                os.killpg(known.pid, signal.SIGKILL)
        known.error = known.error or "the keeper of processes has ended"
        known.told.set()
        known.over.set()


def _free_port(wanted: int = 0) -> int:
    """``wanted``, if that is free; 0: any of 127.0.0.1. Raises ``OSError``. Nobody keeps it until
    the target is there: if another takes it meanwhile, the target ends, and its successor gets
    another one."""
    with socket.socket() as sock:
        if wanted:  # whose last connections aren't forgotten yet
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", wanted))
        port: int = sock.getsockname()[1]
        return port


def _size(log: str) -> int:
    with contextlib.suppress(OSError):
        return os.path.getsize(log)
    return 0


def _last_words(log: str, began: int) -> str:
    """The last line of a log, from byte ``began`` on, that says something."""
    try:
        with open(log, "rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(end - 4096, began if began <= end else 0))  # it may have been rotated
            lines = file.read().decode("utf-8", "replace").split("\n")
    except OSError:
        return ""
    said = [line.strip() for line in lines if line.strip()]
    return said[-1][:_LAST_WORDS] if said else ""
