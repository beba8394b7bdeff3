"""What several processes see, as one snapshot."""

from typing import Any

from pyproxy.control.merging import merge


def part(*events: tuple[float, str]) -> dict[str, Any]:
    """Of a process in which this happened to one target."""
    told = [
        {"at": at, "pool": "default", "target": "http://a:1", "what": what, "reason": "by hand"}
        for at, what in events
    ]
    return {"connections": {"open": 1, "accepted": 2}, "pools": [], "events": told}


def events(*parts: dict[str, Any]) -> list[tuple[float, str]]:
    return [(one["at"], one["what"]) for one in merge(list(parts))["events"]]


def test_what_happens_in_all_processes_is_told_once() -> None:
    assert events(part((1.0, "draining")), part((1.1, "draining"))) == [(1.0, "draining")]


def test_what_happens_in_others_much_later_is_told_again() -> None:
    found = events(part((1.0, "evicted")), part((12.0, "evicted")))
    assert found == [(1.0, "evicted"), (12.0, "evicted")]


def test_what_happens_twice_in_a_short_time_is_told_twice() -> None:
    story = [(1.0, "draining"), (2.0, "put back"), (3.0, "draining"), (4.0, "put back")]
    other = [(at + 0.1, what) for at, what in story]
    assert events(part(*story), part(*other)) == story
