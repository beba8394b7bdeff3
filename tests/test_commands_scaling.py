"""The commands that scale a running proxy's targets, and roll out another version of them."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
from click.testing import CliRunner, Result

from pyproxy import Proxy
from pyproxy.cli import main
from pyproxy.commands import status_lines
from pyproxy.control.api import AdminServer
from pyproxy.control.status import Status
from pyproxy.sections import Admin
from pyproxy.settings import parse
from tests.admin import admin_of
from tests.fleets import line, made, needs_fork, state, version
from tests.programs import environment, program
from tests.support import eventually, get

pytestmark = needs_fork

Say = Callable[..., Result]
OLD, NEW = line(version("old")), line(version("new"))


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    with Proxy(scaling=made(), sleeping=60) as found:
        yield found


@pytest.fixture
def admin(proxy: Proxy) -> Iterator[AdminServer]:
    with admin_of(proxy, Admin(password="secret"), verbs=proxy.control) as found:
        yield found


def there(admin: AdminServer) -> tuple[str, ...]:
    return ("--admin", admin.url, "--password", "secret")


@pytest.fixture
def say(admin: AdminServer) -> Say:
    return lambda *words: CliRunner().invoke(main, [*words, *there(admin)])


def test_a_new_version_is_followed_until_it_is_there(proxy: Proxy, say: Say) -> None:
    assert say("rollout").output == "there was no rollout of the pool default so far\n"
    done = say("rollout", "--command", NEW)
    assert done.exit_code == 0
    first, *_, last, reminder = done.output.splitlines()
    assert re.fullmatch(rf"\d s  rollout of {NEW}: 0 of 1 targets are new", first)
    assert re.fullmatch(rf"\d+ s  rollout of {NEW} has finished", last)
    assert reminder.startswith(f"still in the settings: {OLD}; the next start makes these: ")
    assert get(proxy.url).body == b"new"
    assert say("rollout").output == f"rollout of {NEW} has finished\n"
    again = say("rollout", "--command", NEW)
    assert (again.exit_code, again.output) == (1, f"the targets are made of {NEW} already\n")


def test_a_version_that_fails_is_an_exit_status_of_one(proxy: Proxy, say: Say) -> None:
    bad = line(version("new", "crash"))
    done = say("rollout", "--command", bad)
    assert done.exit_code == 1
    last = done.output.splitlines()[-1]
    assert f"rollout of {bad} went back to {OLD}: target default-2 ended with status 1" in last
    assert "there is a hole in it" in last
    assert get(proxy.url).body == b"old"


def test_a_rollout_is_held_resumed_and_taken_back(proxy: Proxy, say: Say) -> None:
    bad = line(version("new", "hang"))
    begun = say("rollout", "--command", bad, "--env", "A=1", "--env", "B==", "--no-wait")
    assert (begun.exit_code, begun.output) == (0, f"rollout of {bad}: 0 of 1 targets are new\n")
    held = say("rollout", "--pause", "--pool", "default")
    assert held.output == f"rollout of {bad} is paused: 0 of 1 targets are new\n"
    on = json.loads(say("rollout", "--resume", "--no-wait", "--json").output)
    assert on["state"] == "running"
    back = say("rollout", "--abort")
    assert back.exit_code == 0, "that is what was asked for"
    assert back.output.endswith(f"went back to {OLD}: aborted by the operator\n")
    again = say("rollout", "--abort")
    assert (again.exit_code, again.output) == (1, "no rollout is under way\n")


def test_what_differs_is_told_when_the_program_is_the_same(
    proxy: Proxy, say: Say, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    begun = say("rollout", "--env", "A=1", "--no-wait")
    called = f"{OLD} with another environment"
    assert begun.output == f"rollout of {called}: 0 of 1 targets are new\n"
    assert f"scaling default: rollout from {OLD} to {called}" in caplog.messages
    say("rollout", "--pause")
    assert f"scaling default: rollout of {called} is paused: by the operator" in caplog.messages
    say("rollout", "--resume", "--no-wait")
    assert f"scaling default: rollout of {called} goes on: by the operator" in caplog.messages


def test_without_a_password_a_command_is_refused_with_a_remedy(
    admin: AdminServer, say: Say
) -> None:
    admin.configure(Admin())
    refused = say("rollout", "--command", NEW)
    assert (refused.exit_code, "set admin.password" in refused.output) == (1, True)
    assert say("rollout").output == "there was no rollout of the pool default so far\n"


@pytest.mark.parametrize("option", ["--image", "--command"])
def test_an_empty_version_is_refused(say: Say, option: str) -> None:
    """A script's variable that isn't set: it would have been told how things stand, and 0."""
    done = say("rollout", option, " ")
    assert (done.exit_code, "that is empty" in done.output) == (2, True), done.output


def test_only_one_thing_can_be_done_with_a_rollout(say: Say) -> None:
    done = say("rollout", "--pause", "--abort")
    assert done.exit_code == 2
    assert "either --pause or --abort" in done.output


def test_on_a_terminal_one_line_tells_the_progress(proxy: Proxy, admin: AdminServer) -> None:
    ours, theirs = os.openpty()
    words = ("rollout", "--command", NEW, *there(admin))
    process = subprocess.Popen(
        [sys.executable, "-m", "pyproxy", *words], stdout=theirs, stderr=theirs, env=environment()
    )
    os.close(theirs)
    told = b""
    with process, contextlib.suppress(OSError):  # so a terminal ends
        while data := os.read(ours, 4096):
            told += data
    os.close(ours)
    assert process.returncode == 0
    line, reminder, rest = told.decode().split("\r\n")
    assert line.count("\r\x1b[K") > 2
    assert line.endswith(f"rollout of {NEW} has finished")
    assert (reminder[:9], rest) == ("still in ", "")
    assert get(proxy.url).body == b"new"


def test_an_interrupt_ends_the_following_alone(proxy: Proxy, admin: AdminServer) -> None:
    slow = line(version("new", "hang"))
    with program("rollout", "--command", slow, *there(admin)) as running:
        running.wait_for("0 of 1 targets are new")
        running.send(signal.SIGINT)
        assert running.wait() == 130
        assert "the rollout goes on: `pyproxy rollout` tells how it stands" in running.text
    assert state(proxy.control) == "running"


def test_one_that_is_replaced_by_another_is_not_followed_further(
    proxy: Proxy, admin: AdminServer
) -> None:
    slow = line(version("new", "hang"))
    with program("rollout", "--command", slow, *there(admin)) as running:
        running.wait_for("0 of 1 targets are new")
        said = {"listen": "http://127.0.0.1:0", "scaling": made("newer"), "sleeping": 60}
        proxy.reload(parse(said))
        assert running.wait() == 1
        assert running.stdout[-1].endswith(f"rollout of {slow} was replaced by another")
    eventually(lambda: state(proxy.control) == "finished")
    assert get(proxy.url).body == b"newer"


def test_targets_are_scaled(proxy: Proxy, say: Say) -> None:
    assert say("scale", "2").output == "2 targets are wanted\n"
    eventually(lambda: len(proxy.pool.live) == 2)
    refused = say("scale", "9")
    assert (refused.exit_code, refused.output) == (
        *(1, "count: expected from 1 to 3, as scaling says\n"),
    )
    assert say("scale", "1", "--pool", "x").output == 'no pool with scaling is called "x"\n'


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--image", "x", "--abort"), "either a new version or --abort"),
        (("--env", "x"), 'expected NAME=VALUE, not "x"'),
        (("--command", "python '"), "No closing quotation"),
    ],
)
def test_wrong_usage_is_told(say: Say, words: tuple[str, ...], said: str) -> None:
    found = say("rollout", *words)
    assert (found.exit_code, said in found.output) == (2, True)


def test_the_status_tells_of_targets_that_are_made(proxy: Proxy, say: Say) -> None:
    say("scale", "2")
    eventually(lambda: len(proxy.pool.live) == 2)
    say("rollout", "--command", line(version("new", "crash")))
    lines = say("status").output.splitlines()
    at = lines.index("default (hash_ring)") + 1
    assert lines[at] == f"  scaling (1 to 3, by hand): 2 of 2 serve; made of {OLD}"
    assert re.fullmatch(r"  last decision at [\d:]{8}: 1 -> 2: by the operator", lines[at + 1])
    assert lines[at + 2].startswith("  rollout of ")
    assert lines[at + 3].startswith("TARGET")


def test_the_status_tells_what_hinders_it() -> None:
    with Proxy(scaling=made(command=version("old", "crash"))) as proxy:
        lines = status_lines(Status(proxy.control)())
    assert lines[3].startswith("  scaling (1 to 3, by hand): 0 of 1 serve")
    assert re.match(r"  problem: target default-\d+ ended with status 1: there is a hole", lines[4])
