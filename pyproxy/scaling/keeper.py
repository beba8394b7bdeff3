"""Keeper: a process that starts others, and ends them all when the program that asked for them is
gone, however it ended. Run as a script with the number of a socket; it needs nothing but the
standard library, so that it is small and quick to start.

What comes and goes are lines, a JSON object each:

    {"verb": "start", "name": …, "command": […], "environment": {…}, "folder": …, "log": …}
    {"verb": "end", "name": …, "patience": seconds}
    {"name": …, "pid": …}  {"name": …, "error": …}  {"name": …, "code": …}
"""

import contextlib
import ctypes
import json
import math
import os
import select
import signal
import socket
import subprocess
import sys
import time
from typing import Any

_PATIENCE = 5.0  # seconds for all, when the program is gone
_PR_SET_PDEATHSIG = 1  # of Linux' prctl


class Keeper:
    """Runs in one thread, which is the parent of all that it starts: on Linux that matters."""

    def __init__(self, own: socket.socket) -> None:
        self._own = own
        self._own.setblocking(False)
        self._input = b""
        self._kept: dict[str, subprocess.Popen[bytes]] = {}
        self._ends: dict[str, float] = {}  # when those that were asked to end are ended
        self._over = False  # nobody asks any more
        self._bell, ringer = socket.socketpair()  # rings when a signal has come
        self._bell.setblocking(False)
        ringer.setblocking(False)
        self._ringer = ringer
        signal.set_wakeup_fd(ringer.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, self._give_up)
        self._pid = os.getpid()
        self._prctl = getattr(ctypes.CDLL(None), "prctl", None)

    def run(self) -> None:
        while not self._over:
            self._wait()
        for name in self._kept:
            self._end(name, _PATIENCE)
        while self._kept:
            self._wait()

    def _wait(self) -> None:
        """For whatever is next, and does it."""
        asked = select.poll()  # select() takes no descriptor from 1024 on
        asked.register(self._bell, select.POLLIN)
        if not self._over:
            asked.register(self._own, select.POLLIN)
        wait = min(self._ends.values(), default=math.inf) - time.monotonic()
        ready = [file for file, _ in asked.poll(min(max(wait, 0), 60) * 1000)]
        if self._bell.fileno() in ready:
            self._bell.recv(4096)
        if self._own.fileno() in ready:
            self._read()
        self._reap()
        self._kill_the_late()

    def _give_up(self, *_: object) -> None:
        """All are ended after this step: a signal's may be in the middle of a start."""
        self._over = True

    def _read(self) -> None:
        try:
            data = self._own.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._give_up()
        *lines, self._input = (self._input + data).split(b"\n")
        for line in lines:
            if self._over:  # since the one before: what is started now would never be ended
                break
            said = json.loads(line)
            if said.pop("verb") == "start":
                self._start(**said)
            else:
                self._end(**said)

    def _start(
        self,
        name: str,
        command: list[str],
        environment: dict[str, str],
        folder: str | None,
        log: str,
    ) -> None:
        try:
            with open(log, "ab") as output:
                process = subprocess.Popen(
                    command,
                    env=environment,
                    cwd=folder,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,  # a group, which can be ended as one; no Ctrl-C for it
                    preexec_fn=self._die_with_me,  # there is one thread
                )
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            self._tell(name=name, error=str(error))
            return
        self._kept[name] = process
        self._tell(name=name, pid=process.pid)

    def _die_with_me(self) -> None:
        """Even a keeper may be killed."""
        if self._prctl:
            self._prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != self._pid:  # it was, before that
                os.kill(os.getpid(), signal.SIGKILL)

    def _end(self, name: str, patience: float) -> None:
        if process := self._kept.get(name):
            self._signal(process, signal.SIGTERM)
            self._ends[name] = min(time.monotonic() + patience, self._ends.get(name, float("inf")))

    def _kill_the_late(self) -> None:
        now = time.monotonic()
        for name in [name for name, at in self._ends.items() if at <= now]:
            self._signal(self._kept[name], signal.SIGKILL)
            self._ends[name] = now + 1

    def _reap(self) -> None:
        for name, process in list(self._kept.items()):
            if process.poll() is not None:
                self._signal(process, signal.SIGKILL)  # what it has started itself
                del self._kept[name]
                self._ends.pop(name, None)
                self._tell(name=name, code=process.returncode)

    def _signal(self, process: "subprocess.Popen[bytes]", number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)

    def _tell(self, **said: Any) -> None:
        if self._over:
            return
        self._own.setblocking(True)
        try:
            self._own.sendall(json.dumps(said).encode() + b"\n")
        except OSError:
            self._give_up()
        self._own.setblocking(False)


def main() -> None:
    signal.signal(signal.SIGINT, lambda *_: None)  # Ctrl-C is for the program
    # What the program holds off, and all that are started here would inherit.
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    Keeper(socket.socket(fileno=int(sys.argv[1]))).run()


if __name__ == "__main__":
    main()
