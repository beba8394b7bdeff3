"""Real ``python -m pyproxy`` processes: their lines, their signals, and their certain end."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from tests.support import DEADLINE

ROOT = Path(__file__).parents[1]
NOWHERE = Path(__file__).parent  # a folder without an appsettings.json


def _command(arguments: Sequence[str], prefix: Sequence[str]) -> list[str]:
    return [*prefix, sys.executable, "-m", "pyproxy", *arguments]


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's, without settings in it; pyproxy is the one of this repository."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("PYPROXY_")}
    return {**ours, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8", **(extra or {})}


@contextlib.contextmanager
def heeding_interrupts() -> Iterator[None]:
    """What is started within heeds SIGINT, even when these tests run in the background of a shell,
    which has it ignored and lets all children inherit that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class Program:
    """A process whose lines are collected while it runs."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        self.stdout: list[str] = []
        self.stderr: list[str] = []
        # Notified when a line comes, and when an output ends.
        self._heard = threading.Condition()
        assert process.stdout
        assert process.stderr
        self._threads = [
            threading.Thread(target=self._collect, args=(pipe, lines), name="program-output")
            for pipe, lines in ((process.stdout, self.stdout), (process.stderr, self.stderr))
        ]
        self._open = len(self._threads)
        for thread in self._threads:
            thread.start()

    def _collect(self, pipe: IO[str], lines: list[str]) -> None:
        for line in pipe:
            with self._heard:
                lines.append(line.rstrip("\n"))
                self._heard.notify_all()
        with self._heard:
            self._open -= 1
            self._heard.notify_all()

    def wait_for(self, pattern: str, seconds: float = DEADLINE) -> re.Match[str]:
        """The first line of either output with ``pattern``; fails when none comes in time."""
        deadline = time.monotonic() + seconds
        with self._heard:
            while True:
                for line in (*self.stdout, *self.stderr):
                    if match := re.search(pattern, line):
                        return match
                left = deadline - time.monotonic()
                assert self._open, f"{self.ended} without {pattern!r}:\n{self.text}"
                assert left > 0, f"no {pattern!r} in {seconds} s:\n{self.text}"
                self._heard.wait(left)

    @property
    def ended(self) -> str:
        return f"it ended with {self.process.wait(DEADLINE)}"

    @property
    def text(self) -> str:
        return "\n".join((*self.stdout, *self.stderr))

    @property
    def url(self) -> str:
        """Where the proxy, or the target, says that it listens."""
        return self.wait_for(r"listens on (http://[^\s,]+)")[1]

    def send(self, number: int) -> None:
        self.process.send_signal(number)

    def wait(self, seconds: float = DEADLINE) -> int:
        """Its exit code. Its outputs have ended by then: it has left no process behind that could
        still write to them."""
        deadline = time.monotonic() + seconds
        code = self.process.wait(seconds)
        with self._heard:
            ended = self._heard.wait_for(lambda: not self._open, deadline - time.monotonic())
        assert ended, "it ended, and left processes behind"
        return code

    def stop(self, number: int = signal.SIGTERM, seconds: float = DEADLINE) -> int:
        self.send(number)
        return self.wait(seconds)

    def kill(self) -> None:
        self.stop(signal.SIGKILL)

    def clean_up(self) -> None:
        """Ends the process, and those of its group that it has left behind."""
        self.process.kill()
        self.process.wait()
        for thread in self._threads:
            thread.join(2)
        if self._open:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
        for thread in self._threads:
            thread.join()

    def close_input(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()


@contextlib.contextmanager
def command(
    *words: str,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    files: Sequence[int] = (),
) -> Iterator[Program]:
    """Any program, ended at the end of the block with all that it has started. ``env`` stands over
    this process's environment; ``files`` are descriptors that it inherits."""
    with heeding_interrupts():
        process = subprocess.Popen(
            words,
            cwd=cwd or NOWHERE,
            env=environment(env),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            start_new_session=True,
            pass_fds=files,
        )
    with process:
        running = Program(process)
        try:
            yield running
        finally:
            running.clean_up()


def program(
    *arguments: str,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    prefix: Sequence[str] = (),
) -> contextlib.AbstractContextManager[Program]:
    """The same with ``python -m pyproxy …``. ``prefix`` is a command that runs it."""
    return command(*_command(arguments, prefix), cwd=cwd, env=env)


def run(
    *arguments: str,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    prefix: Sequence[str] = (),
) -> "subprocess.CompletedProcess[str]":
    """``python -m pyproxy …`` to its end. ``prefix`` is a command that runs it."""
    return subprocess.run(
        _command(arguments, prefix),
        cwd=cwd or NOWHERE,
        env=environment(env),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=DEADLINE,
    )
