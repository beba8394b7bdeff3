"""Counters: numbers in memory that outlives its process."""

import pytest

from pyproxy import Proxy
from pyproxy.balancing.counters import (
    ACCEPTED,
    BOUNDS,
    CODES,
    Counters,
    Reader,
    Tally,
    quantile,
    total,
)
from tests.support import get, lettered


def test_what_one_writes_another_reads_also_later() -> None:
    memory = bytearray(4096)
    counters = Counters(memory)
    reader = Reader(memory)
    assert reader() == {}
    tally = Tally(counters, "default", "http://ü:1")
    for seconds in (0.00005, 0.0002, 0.003, 100.0):
        tally.answered(b"GET", 200, seconds)
    tally.answered(b"BREW", 418, 0.003)
    tally.happened("failures", "connect")
    name = ("default", "http://ü:1")
    found = reader()
    assert found["answers", *name, "GET", "200"] == [4]
    assert found["answers", *name, "other", "418"] == [1]
    assert found["failures", *name, "connect"] == [1]
    times = found["times", *name]
    assert (times[0], times[1], times[-2]) == (1, 1, 1)
    assert sum(times[:-1]) == 5
    assert times[-1] == 100_006_250
    counters.answered(b"GET", 503)
    assert reader()["answers", "", "", "GET", "503"] == [1]


def test_a_key_keeps_its_place() -> None:
    counters = Counters(bytearray(4096))
    first = counters.place("a", values=3)
    assert counters.place("b") > first + 2
    assert counters.place("a", values=3) == first


def test_what_finds_no_room_does_no_harm() -> None:
    memory = bytearray(2048)
    counters = Counters(memory)
    for at in range(100):
        counters.numbers[counters.place(f"key {at}", values=4)] += 1
    found = Reader(memory)()
    assert 0 < len(found) < 100
    assert all(values == [1, 0, 0, 0] for values in found.values())


def test_what_others_make_up_is_counted_together() -> None:
    memory = bytearray(1 << 20)
    counters = Counters(memory)
    tally = Tally(counters, "default", "http://a:1")
    for at in range(1000):
        method = b"M%d" % at
        counters.answered(method, 400)
        tally.answered(method, 100 + at % 900, 0.001)
        tally.happened("failures", f"reason {at}")
    found = Reader(memory)()
    name = ("default", "http://a:1")
    assert found["answers", "", "", "other", "400"] == [1000]
    assert found["failures", *name, "error"] == [1000]
    answers = {key[3:]: one for key, [one, *_] in found.items() if key[:3] == ("answers", *name)}
    assert sum(answers.values()) == 1000
    assert (answers["other", "404"], answers["other", "6xx"]) == (1, 100)
    assert len(answers) == len(CODES) + 9


def test_client_connections_are_among_what_another_process_can_read() -> None:
    with lettered("a") as a, Proxy(targets=[a.url]) as proxy:
        for _ in range(3):
            get(proxy.url)
        assert proxy.totals()[ACCEPTED] == [3]


def test_totals_add_up() -> None:
    assert total([{("a",): [1, 2]}, {("a",): [10, 20], ("b",): [5]}]) == {
        ("a",): [11, 22],
        ("b",): [5],
    }


def test_quantiles_are_as_exact_as_the_buckets() -> None:
    times = [0] * (len(BOUNDS) + 2)
    assert quantile(times, 0.5) is None
    times[BOUNDS.index(0.01)] = 50
    times[BOUNDS.index(0.1)] = 50
    assert quantile(times, 0.25) == 0.0075
    assert quantile(times, 0.5) == 0.01
    assert quantile(times, 0.75) == pytest.approx(0.075)
    times[len(BOUNDS)] = 900
    assert quantile(times, 0.99) == 60.0
