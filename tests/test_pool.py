"""TargetPool: who is live, and who hears of it."""

import threading
from collections import Counter

import pytest

from pyproxy.balancing.pool import TargetPool
from pyproxy.balancing.target import State, Target
from pyproxy.errors import EmptyRing


def pool_of(count: int, max_fails: int = 1) -> TargetPool:
    targets = [
        Target(f"http://localhost:{8001 + at}", "localhost", 8001 + at) for at in range(count)
    ]
    return TargetPool(targets, max_fails)


def test_evicting_and_restoring_swap_the_ring_whole() -> None:
    pool = pool_of(3)
    a, b, c = pool.targets
    before = pool.live
    pool.evict(b, "gone")
    assert list(pool.live) == [a, c]
    assert list(before) == [a, b, c], "who holds the old ring keeps it"
    assert (b.state, pool.evicted()) == (State.EVICTED, [b])
    pool.restore(b, "back")
    assert list(pool.live) == [a, b, c], "in the order of the settings"
    assert not pool.evicted()


def test_a_key_keeps_its_share_among_those_not_tried() -> None:
    pool = pool_of(5)
    third = pool.targets[2]
    picked = Counter(pool.pick(key, (third,)) for key in range(2, 2002, 5))
    assert set(picked) == set(pool.targets) - {third}
    assert set(picked.values()) == {100}


def test_nobody_to_pick_is_an_error() -> None:
    pool = pool_of(1)
    with pytest.raises(EmptyRing):
        pool.pick(0, pool.targets)
    pool.evict(pool.targets[0], "gone")
    with pytest.raises(EmptyRing):
        pool.pick(0)


def test_failures_in_a_row_evict() -> None:
    pool = pool_of(2, max_fails=3)
    target = pool.targets[0]
    pool.failed(target, "1")
    pool.failed(target, "2")
    pool.succeeded(target)
    pool.failed(target, "1")
    pool.failed(target, "2")
    assert not pool.evicted()
    pool.failed(target, "3")
    assert pool.evicted() == [target]
    pool.restore(target, "back")
    pool.failed(target, "1")
    assert not pool.evicted(), "the row begins anew"


def test_each_change_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    pool = pool_of(2)
    told: list[tuple[Target, State, str]] = []
    pool.watch(lambda target, reason: told.append((target, target.state, reason)))
    target = pool.targets[0]
    pool.evict(target, "refused")
    pool.evict(target, "refused again")
    pool.restore(target, "answered")
    pool.restore(target, "answered again")
    assert told == [(target, State.EVICTED, "refused"), (target, State.LIVE, "answered")]
    assert [record.message for record in caplog.records] == [
        "evicted http://localhost:8001: refused (1 of 2 live)",
        "restored http://localhost:8001: answered (2 of 2 live)",
    ]


def test_keys_are_given_out_once_each_from_many_threads() -> None:
    pool = pool_of(5)
    keys: list[list[int]] = [[] for _ in range(8)]

    def take(mine: list[int]) -> None:
        mine.extend(pool.next_key() for _ in range(2000))

    threads = [threading.Thread(target=take, args=(mine,)) for mine in keys]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(key for mine in keys for key in mine) == list(range(16000))
