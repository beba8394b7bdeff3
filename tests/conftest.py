"""What every test is held to."""

import contextlib
import os
import tempfile
import threading
import time
from collections.abc import Generator, Iterator
from pathlib import Path

import hypothesis
import pytest

from tests.support import DEADLINE

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

# The same examples each time, however busy the machine.
hypothesis.settings.register_profile("tests", deadline=None, derandomize=True)
hypothesis.settings.load_profile("tests")

# What CI's machine can't have: PowerShell 7 is in no package registry that it reaches.
MAY_BE_MISSING = ("pwsh",)


@pytest.fixture(autouse=True)
def no_leaked_threads() -> Iterator[None]:
    """A test that leaves a thread behind fails."""
    before = set(threading.enumerate())
    yield
    deadline = time.monotonic() + DEADLINE
    while left := [thread for thread in threading.enumerate() if thread not in before]:
        assert time.monotonic() < deadline, f"threads left behind: {left}"
        time.sleep(0.01)


@contextlib.contextmanager
def alone_on_this_machine(what: str) -> Iterator[None]:
    """Of several runs of the tests at once, one at a time is within, for each ``what``."""
    if fcntl is None:
        yield
        return
    with open(Path(tempfile.gettempdir()) / f"pyproxy-tests-{what}.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What is skipped on a user's machine for want of a part fails in CI."""
    report = yield
    if os.environ.get("CI") == "true" and report.skipped and not hasattr(report, "wasxfail"):
        reason = str(report.longrepr)
        if not any(part in reason for part in MAY_BE_MISSING):
            report.outcome = "failed"
            report.longrepr = f"skipped in CI, where nothing may be missing: {reason}"
    return report
