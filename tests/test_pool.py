"""TargetPool: who is live, and who hears of it."""

import functools
from collections import Counter

import pytest

from pyproxy.balancing.policies import FunctionPolicy, HashRingPolicy
from pyproxy.balancing.pool import TargetPool
from pyproxy.balancing.target import State, Target
from pyproxy.errors import EmptyRing
from tests.support import Ask, make_target, run_together


def pool_of(count: int, max_fails: int = 1) -> TargetPool:
    return TargetPool([make_target(8001 + at) for at in range(count)], max_fails)


def test_evicting_and_restoring_swap_what_is_live_whole() -> None:
    pool = pool_of(3)
    a, b, c = pool.targets
    before = pool.live
    pool.evict(b, "gone")
    assert [*pool.live] == [a, c]
    assert [*before] == [a, b, c], "who holds the old one keeps it"
    assert (b.state, pool.evicted()) == (State.EVICTED, [b])
    pool.restore(b, "back")
    assert [*pool.live] == [a, b, c], "in the order of the settings"
    assert not pool.evicted()


def test_one_that_is_gone_is_not_restored() -> None:
    """A check of it may be under way."""
    pool = pool_of(2)
    gone = pool.targets[0]
    pool.evict(gone, "failed")
    pool.remove(gone, "no longer")
    told: list[str] = []
    pool.watch(lambda target, verb, reason: told.append(verb))
    pool.restore(gone, "well again")
    assert not told


def test_a_policy_that_is_replaced_while_a_function_chooses_lets_it_choose() -> None:
    pool = TargetPool([make_target(8001)], policy=FunctionPolicy(lambda _, targets: targets[0]))

    class Tried(tuple[Target, ...]):
        def __contains__(self, target: object) -> bool:
            pool.update(
                lambda now: now,
                HashRingPolicy(),
                max_fails=1,
                max_evicted=None,
                queue_size=0,
                reason="by the test",
            )
            return False

    assert pool.wish(Ask(), Tried(), 0.0) is pool.targets[0]


def test_one_address_is_in_a_pool_once() -> None:
    pool = pool_of(2)
    assert not pool.add(make_target(8001), "again")
    assert len(pool.targets) == 2
    assert pool.add(make_target(8001), "in its place", leaving=pool.targets[:1])
    assert [one.port for one in pool.targets] == [8001, 8002, 8001]


def test_a_request_keeps_its_number_so_that_retries_spread_evenly() -> None:
    pool = pool_of(5)
    third = pool.targets[2]
    picked = Counter(pool.pick(Ask(number=number), (third,)) for number in range(2, 2002, 5))
    assert set(picked) == set(pool.targets) - {third}
    assert set(picked.values()) == {100}


def test_nobody_to_pick_is_an_error() -> None:
    pool = pool_of(1)
    with pytest.raises(EmptyRing):
        pool.pick(Ask(), pool.targets)
    pool.evict(pool.targets[0], "gone")
    with pytest.raises(EmptyRing):
        pool.pick(Ask())


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
    told: list[tuple[Target, str, State, str]] = []
    pool.watch(lambda target, verb, reason: told.append((target, verb, target.state, reason)))
    target = pool.targets[0]
    pool.evict(target, "refused")
    pool.evict(target, "refused again")
    pool.restore(target, "answered")
    pool.restore(target, "answered again")
    assert told == [
        (target, "evicted", State.EVICTED, "refused"),
        (target, "restored", State.LIVE, "answered"),
    ]
    assert [record.message for record in caplog.records] == [
        "evicted http://localhost:8001: refused (1 of 2 live)",
        "restored http://localhost:8001: answered (2 of 2 live)",
    ]


def test_numbers_are_given_out_once_each_from_many_threads() -> None:
    pool = pool_of(5)
    asked: list[list[Ask]] = [[] for _ in range(8)]

    def take(mine: list[Ask]) -> None:
        for _ in range(2000):
            mine.append(Ask())
            pool.pick(mine[-1])

    run_together([functools.partial(take, mine) for mine in asked])
    assert sorted(one.number for mine in asked for one in mine) == list(range(16000))
    assert [one.in_flight for one in pool.targets] == [3200] * 5
