"""The watcher of files: what counts as a change, and when it is told."""

import os
import threading
from pathlib import Path

import pytest

from pyproxy.watching import Watcher
from tests.support import DEADLINE

SOON = 0.02  # seconds between looks
QUIET = 0.2  # seconds in which nothing must be told


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "appsettings.json"
    path.write_text("{}")
    return path


def touch(path: Path, at: int) -> None:
    """Makes it look modified, however coarse the clock of the file system is."""
    os.utime(path, ns=(at, at))


def test_nothing_is_told_of_files_that_stay_as_they_are(path: Path) -> None:
    assert not Watcher([path, path.with_name("missing")], SOON).wait(QUIET)


def test_a_write_is_told_once(path: Path) -> None:
    watcher = Watcher([path], SOON)
    path.write_text('{"sleeping": 1}')
    assert watcher.wait(DEADLINE)
    assert not watcher.wait(QUIET)


def test_content_of_the_same_length_is_told_by_its_time(path: Path) -> None:
    watcher = Watcher([path], SOON)
    touch(path, 10**18)
    assert watcher.wait(DEADLINE)


def test_a_file_that_is_renamed_over_it_is_told(path: Path) -> None:
    touch(path, 10**18)
    watcher = Watcher([path], SOON)
    new = path.with_name("new~")
    new.write_text("[]")
    touch(new, 10**18)
    new.replace(path)
    assert watcher.wait(DEADLINE)


@pytest.mark.skipif(os.name == "nt", reason="a link needs a right there")
def test_a_link_that_leads_elsewhere_is_told(path: Path) -> None:
    other = path.with_name("other")
    other.write_text("[1]")
    link, new = path.with_name("link"), path.with_name("new")
    link.symlink_to(path)
    watcher = Watcher([link], SOON)
    new.symlink_to(other)
    new.replace(link)
    assert watcher.wait(DEADLINE)


def test_a_file_that_appears_and_one_that_stays_away_are_told(path: Path) -> None:
    new = path.with_name("appsettings.Production.json")
    watcher = Watcher([path, new], SOON)
    new.write_text("{}")
    assert watcher.wait(DEADLINE)
    path.unlink()
    assert watcher.wait(DEADLINE)
    assert not watcher.wait(QUIET)


def test_a_file_that_is_away_only_for_a_moment_is_not_told(path: Path) -> None:
    watcher = Watcher([path], 60)
    aside = path.with_name("aside")
    for at in range(4):
        path.rename(aside) if at % 2 == 0 else aside.rename(path)
        assert not looked(watcher)
    assert not looked(watcher)


def test_a_half_written_file_is_told_only_when_it_is_left_alone(path: Path) -> None:
    watcher = Watcher([path], 60)
    for length in range(3, 8):
        path.write_text("x" * length)
        assert not looked(watcher)
    assert looked(watcher)
    assert not looked(watcher)


def looked(watcher: Watcher) -> bool:
    """What the next look tells, without waiting for it."""
    watcher._next = 0
    return watcher.wait(0)


def test_short_waits_do_not_make_the_looks_more_frequent(path: Path) -> None:
    watcher = Watcher([path], 60)
    path.write_text("[1, 2]")
    assert not any(watcher.wait(0.001) for _ in range(20))


def test_a_change_while_nobody_waits_is_told_at_the_next_wait(path: Path) -> None:
    watcher = Watcher([path], SOON)
    path.write_text("[1]")
    assert watcher.wait(DEADLINE)
    path.write_text("[1, 2]")
    assert watcher.wait(DEADLINE)


def test_other_files_can_be_watched_without_losing_a_change(path: Path) -> None:
    watcher = Watcher([path], SOON)
    path.write_text("[1]")
    certificate = path.with_name("cert.pem")
    watcher.watch([path, certificate])
    assert watcher.wait(DEADLINE)
    certificate.write_text("new")
    assert watcher.wait(DEADLINE)
    watcher.watch([certificate])
    path.write_text("[1, 2, 3]")
    assert not watcher.wait(QUIET)


def test_a_wait_ends_when_it_is_stopped(path: Path) -> None:
    watcher = Watcher([path], 60)
    told: list[bool] = []
    waiting = threading.Thread(target=lambda: told.append(watcher.wait()), name="waiting")
    waiting.start()
    watcher.stop()
    waiting.join(DEADLINE)
    assert told == [False]
    assert not watcher.wait()


def test_a_path_that_no_file_can_have_is_missing() -> None:
    assert not Watcher([Path("a\0b")], SOON).wait(QUIET)
