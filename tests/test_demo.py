"""The demo: the story that it tells, on a terminal and without one, and what it leaves: nothing."""

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import socket
import struct
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyproxy.balancing.target import Target
from pyproxy.lab.demo import PHASES, Story
from pyproxy.lab.demo_scaling import CLIENTS, ScalingStory, clients_at
from pyproxy.lab.spamer import Answer
from tests.programs import NOWHERE, Program, environment, heeding_interrupts, program
from tests.support import DEADLINE, RawTarget, eventually, get

ENDLESS = ("demo", "--before", "600")
EVEN = ("--sleeping", "0.3", "--interval", "0.02")
QUICK = ("demo", "--before", "1", "--down", "1", "--after", "1", *EVEN)
QUICKER = ("demo", "--before", "0.4", "--down", "0.4", "--after", "0.4", *EVEN)
ROW = re.compile(
    r"(http://127\.0\.0\.1:\d+) +(live|evicted) " + r" +(\d+) \( *(\d+\.\d)%\)" * len(PHASES)
)


def accepts(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def ports_of(url: str) -> set[int]:
    """Where the five targets behind the demo's proxy listen."""
    names: set[str] = set()

    def all_seen() -> bool:
        names.add(get(url).get("X-Target") or "")
        return len(names) == 5

    eventually(all_seen)  # the spamer takes turns too
    return {int(name.rpartition(":")[2]) for name in names}


def started(demo: Program) -> str:
    """The URL of its proxy."""
    return demo.wait_for(r"(http://\S+) serves five targets")[1]


# Without a terminal


def test_the_third_target_dies_and_comes_back_and_no_request_fails() -> None:
    with program(*QUICK) as demo:
        assert demo.wait() == 0, demo.text
        killed = demo.wait_for(r"^ *\d+\.\d\d s  killed (\S+)$")[1]
        demo.wait_for(rf"s  evicted {killed}: ")
        demo.wait_for(rf"s  started {killed} again$")
        demo.wait_for(rf"s  restored {killed}: answered 200$")
        rows = [match for line in demo.stdout if (match := ROW.fullmatch(line))]
        assert len(rows) == 5
        for at, row in enumerate(rows):
            _, state, before, _, during, share, after, _ = row.groups()
            assert state == "live"
            assert int(before)
            assert int(after)
            if at == 2:  # an answer may have been on its way when the target was killed
                assert int(during) <= 1
            else:
                assert float(share) > 0
        assert rows[2][1] == killed
        total, times, verdict = demo.stdout[-3:]
        found = re.match(r"(\d+) requests, 0 failed, ", total)
        assert found
        assert int(found[1]) == sum(int(row[3]) + int(row[5]) + int(row[7]) for row in rows)
        assert re.fullmatch(r"evicted after \d\.\d\d s, restored after \d+\.\d\d s", times)
        assert verdict == "It went well."
        assert demo.stderr == []
        assert "\x1b" not in demo.text


def test_the_story_needs_no_settings_and_heeds_none(tmp_path: Path) -> None:
    (tmp_path / "appsettings.json").write_text("not even JSON")
    with program(*ENDLESS, cwd=tmp_path, env={"PYPROXY_SLEEPING": "never"}) as demo:
        assert get(started(demo)).body == b"Hello, world!"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_all_of_it(number: int) -> None:
    with program(*ENDLESS) as demo:
        ports = ports_of(started(demo))
        assert all(accepts(port) for port in ports)
        assert demo.stop(number) == 130
        assert not [port for port in ports if accepts(port)]
        assert demo.stderr == ["stopped before the end of the story"]


def test_targets_end_with_a_demo_that_can_not_end_them() -> None:
    with program(*ENDLESS) as demo:
        ports = ports_of(started(demo))
        demo.send(signal.SIGKILL)
        demo.process.wait(DEADLINE)
        eventually(lambda: not [port for port in ports if accepts(port)])


def test_a_target_that_can_not_be_started_again_ends_the_story() -> None:
    with contextlib.ExitStack() as stack:
        # Long enough down for a busy machine to take the place.
        story = ("demo", "--before", "0.1", "--down", "3", *EVEN)
        demo = stack.enter_context(program(*story))
        port = int(demo.wait_for(r"killed http://127\.0\.0\.1:(\d+)")[1])
        stack.enter_context(RawTarget(lambda target, wire: None, port))  # takes its place
        said = demo.wait_for("Traceback|a target didn't start")[0]
        assert said == "a target didn't start"
        assert demo.wait() == 1
        assert "Traceback" not in demo.text


# On a terminal


class Terminal:
    """A demo on a pseudo-terminal."""

    def __init__(self, pid: int, terminal: int) -> None:
        self.pid = pid
        self._terminal = terminal
        self.shown = b""

    def _more(self, seconds: float) -> bool:
        """False when nobody writes any more."""
        if not select.select([self._terminal], [], [], seconds)[0]:
            return True
        try:
            data = os.read(self._terminal, 65536)
        except OSError:  # EIO: the other side is closed
            return False
        self.shown += data
        return bool(data)

    def read_until(self, pattern: bytes) -> None:
        deadline = time.monotonic() + DEADLINE
        while not re.search(pattern, self.shown):
            assert time.monotonic() < deadline, self.shown
            assert self._more(0.1), self.shown

    def read_to_end(self) -> int:
        """Its exit code."""
        deadline = time.monotonic() + DEADLINE
        while self._more(0.1):
            assert time.monotonic() < deadline, self.shown
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def press(self, key: bytes) -> None:
        os.write(self._terminal, key)


@contextlib.contextmanager
def terminal(*arguments: str) -> Iterator[Terminal]:
    with heeding_interrupts():
        pid, master = pty.fork()
        if pid == 0:
            try:
                os.chdir(NOWHERE)
                command = [sys.executable, "-m", "pyproxy", *arguments]
                os.execve(sys.executable, command, environment())
            finally:
                os._exit(127)
    try:
        fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
        yield Terminal(pid, master)
    finally:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            if os.waitpid(pid, os.WNOHANG) == (0, 0):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
        os.close(master)


def test_on_a_terminal_the_table_is_drawn_again_and_again_and_once_in_the_end() -> None:
    with terminal(*QUICK) as demo:
        assert demo.read_to_end() == 0, demo.shown[-1000:].decode()
    assert demo.shown.count(b"\x1b[8A\x1b[J") >= 3
    pictures = demo.shown.replace(b"\r\n", b"\n").split(b"\x1b[8A\x1b[J")
    for picture in pictures[:-1]:
        table = picture[picture.index(b"\ntarget ") :]
        assert table.count(b"\n") == 8  # the lines that the next picture goes up
    assert pictures[-1].count(b"\ntarget ") == 1
    assert pictures[-1].endswith(b"It went well.\n")
    for event in (b"killed", b"evicted", b"started", b"restored"):
        assert demo.shown.count(b" s  %b http://" % event) == 1


def test_ctrl_c_on_a_terminal_ends_all_of_it() -> None:
    with terminal(*ENDLESS) as demo:
        demo.read_until(rb"\d requests")
        ports = {int(port) for port in re.findall(rb"http://127\.0\.0\.1:(\d+) +live", demo.shown)}
        assert len(ports) == 5
        demo.press(b"\x03")
        assert demo.read_to_end() == 130
        assert not [port for port in ports if accepts(port)]
        assert demo.shown.endswith(b"stopped before the end of the story\r\n")
        assert b"Traceback" not in demo.shown


# The other story: autoscaling

SCALING = ("demo", "--autoscale", "--duration")
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="targets are forked processes")


@needs_fork
def test_targets_follow_the_load_and_no_request_fails() -> None:
    with program(*SCALING, "6") as demo:
        assert demo.wait(120) == 0, demo.text
    assert demo.stderr == []
    assert "\x1b" not in demo.text
    started = re.search(r"s  (http://\S+) serves 1 to 5 targets; clients ask", demo.stdout[0])
    assert started
    assert not accepts(int(started[1].rpartition(":")[2]))
    decided = re.findall(r"^ *\d+\.\d\d s  (\d) -> (\d) targets: (.*)$", demo.text, re.MULTILINE)
    assert decided
    for before, after, reason in decided:
        sign = ">" if before < after else "<"
        assert re.fullmatch(rf"response time [\d.]+ s {sign} 0\.[36] s", reason)
    counts = [int(after) for _, after, _ in decided]
    assert max(counts) > 1
    assert counts[-1] == 1
    total, range_, verdict = demo.stdout[-3:]
    assert re.fullmatch(r"[1-9]\d* requests, 0 failed", total)
    assert re.fullmatch(r"from 1 to [2-5] targets, and back to 1", range_)
    assert verdict == "It went well."
    assert re.search(r"s  clients: 20, targets: \d, requests/s: [\d.]+, response time: ", demo.text)


@needs_fork
def test_a_demo_that_is_asked_to_end_leaves_no_folder_behind(tmp_path: Path) -> None:
    """It was only Ctrl-C that it heeded."""
    with program(*SCALING, "600", env={"TMPDIR": str(tmp_path)}) as demo:
        demo.wait_for("clients ask")
        assert [*tmp_path.iterdir()]
        assert demo.stop() == 130
        assert demo.stderr == ["stopped before the end of the story"]
    assert not [*tmp_path.iterdir()]


@needs_fork
def test_ctrl_c_ends_the_targets_that_were_made() -> None:
    with terminal(*SCALING, "600") as demo:
        demo.read_until(rb"\d requests, 0 failed")
        url = re.search(rb"(http://\S+) serves", demo.shown)
        assert url
        made = get(url[1].decode()).get("X-Target") or ""
        port = int(made.rpartition(":")[2])
        assert accepts(port)
        demo.press(b"\x03")
        assert demo.read_to_end() == 130
        assert not accepts(port)
        assert demo.shown.endswith(b"stopped before the end of the story\r\n")
        assert b"Traceback" not in demo.shown
        picture = demo.shown.replace(b"\r\n", b"\n").split(b"\x1b[6A\x1b[J")[-2]
        lines = picture[picture.index(b"\nclients") :].split(b"\n")
        assert len(lines) == 7  # the next picture goes up so many less one
        assert re.match(rb"targets +#", lines[2])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--autoscale", "--before", "3"), "--before not with --autoscale"),
        (("--duration", "3"), "--duration only with --autoscale"),
    ],
)
def test_options_are_of_one_story(arguments: tuple[str, ...], said: str) -> None:
    with program("demo", *arguments) as demo:
        assert demo.wait() == 2
        assert said in demo.text


def scaling_story() -> ScalingStory:
    made = ScalingStory("http://127.0.0.1:60000")
    made.add(Answer(time.time(), 200, 0.2, "-"))
    made.peak = 3
    return made


def test_an_autoscaling_story_went_well_only_if_all_of_it_did() -> None:
    assert scaling_story().went_well()
    for name, value in (("requests", 0), ("peak", 1), ("targets", 2)):
        made = scaling_story()
        setattr(made, name, value)
        assert not made.went_well()
        assert made.summary()[-1] == "It did NOT go well."
    made = scaling_story()
    made.add(Answer(time.time(), 502, 0.2, "-"))
    assert not made.went_well()
    assert "FAILED: " in made.events[-1][1]


def test_the_picture_of_an_autoscaling_story_fits_a_terminal_of_80_columns() -> None:
    made = scaling_story()
    made.targets, made.coming, made.response_time, made.rate = 4, 1, 0.4, 40.0
    for share in range(100):
        made.clients = clients_at(share / 100)
        made.keep()
    clients, targets, times, *_ = made.table()
    assert max(map(len, made.table())) < 80
    assert targets.split() == ["targets", "####+", "4" * 50]
    assert set(times.split()[-1]) == {":"}
    assert {"@", "."} < set(clients)
    assert clients_at(0) == clients_at(1) == 1
    assert max(clients_at(share / 100) for share in range(100)) == CLIENTS


# The story itself


def story() -> Story:
    targets = [
        Target(f"http://127.0.0.1:{port}", "127.0.0.1", port) for port in range(60001, 60006)
    ]
    return Story("http://127.0.0.1:60000", targets, [target.url[7:] for target in targets])


def told(story: Story, phase: str, *numbers: int, status: int = 200) -> None:
    """Answers of the targets with these numbers."""
    story.phase = phase
    for number in numbers:
        story.add(Answer(time.time(), status, 0.001, story.names[number]))


def good_story() -> Story:
    made = story()
    told(made, "before", 0, 1, 2, 3, 4)
    told(made, "during", 0, 1, 3, 4)
    told(made, "after", 0, 1, 2, 3, 4)
    made.evicted_after = made.restored_after = 0.1
    return made


def test_a_story_went_well_only_if_all_of_it_did() -> None:
    assert good_story().went_well()
    assert good_story().summary()[-1] == "It went well."
    for name in ("evicted_after", "restored_after"):
        made = good_story()
        setattr(made, name, None)
        assert not made.went_well()
        assert "never" in made.summary()[-2]
    made = good_story()
    told(made, "after", 1, status=502)
    assert not made.went_well()
    assert made.summary()[-1] == "It did NOT go well."
    assert "FAILED: " in made.events[-1][1]
    made = good_story()
    made.share["after"][made.names[2]] = 0
    assert not made.went_well()
    assert not story().went_well()


def test_the_table_tells_states_and_shares() -> None:
    made = good_story()
    made.targets[2].evicted = True
    rows = [ROW.fullmatch(line) for line in made.table()[1:6]]
    assert [row and row[2] for row in rows] == ["live", "live", "evicted", "live", "live"]
    assert [row and row[6] for row in rows] == ["25.0", "25.0", "0.0", "25.0", "25.0"]


def test_the_table_fits_a_terminal_of_80_columns() -> None:
    assert max(map(len, good_story().table())) < 80
