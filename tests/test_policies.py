"""Policies, asked through their pool: who gets which share, who is spared, and who is never lost.

Time is an argument, so that these tests decide what it is.
"""

import contextlib
import functools
import gc
import heapq
import itertools
import json
import logging
import random
import subprocess
import sys
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyproxy.balancing.hashes import ConsistentHash, IPHash, RendezvousHash
from pyproxy.balancing.policies import (
    POLICIES,
    FunctionPolicy,
    LeastConnections,
    LeastResponseTime,
    PowerOfTwoChoices,
    RandomPolicy,
    WeightedLeastConnections,
)
from pyproxy.balancing.policy import Asked, Policy, Targets, weighted_ring
from pyproxy.balancing.pool import TargetPool
from pyproxy.balancing.target import State, Target
from pyproxy.errors import AllBusy, EmptyRing, Overloaded, SettingsError
from pyproxy.settings import parse
from tests.programs import ROOT, environment
from tests.support import DEADLINE, Ask, make_target, run_together

IN_TURN = ["hash_ring", "round_robin", "weighted_round_robin"]
BY_WEIGHT = [*IN_TURN, "weighted_least_connections", "random", "power_of_two_choices"]
BY_KEY = ["ip_hash", "consistent_hash", "rendezvous_hash"]
EVEN = [name for name in POLICIES if name not in ("first", *BY_KEY)]
SHARING = [name for name in POLICIES if name != "first"]
KEYED = [ConsistentHash, RendezvousHash]

every_policy = pytest.mark.parametrize("name", POLICIES)


def make(name: str) -> Policy:
    """The policy of that name; one that throws dice always throws the same."""
    kind = POLICIES[name]
    return kind(seed=7) if issubclass(kind, RandomPolicy) else kind()


def pool_of(policy: Policy | str, count: int = 5, **said: object) -> TargetPool:
    """``count`` targets, all as ``said``."""
    return pool_with(policy, [make_target(8001 + at, **said) for at in range(count)])


def pool_with(policy: Policy | str, targets: Iterable[Target], **said: int) -> TargetPool:
    policy = make(policy) if isinstance(policy, str) else policy
    return TargetPool(targets, policy=policy, queue_size=said.pop("queue_size", 10))


def weighted(policy: Policy | str, *weights: int) -> TargetPool:
    return pool_with(
        policy, [make_target(8001 + at, weight=weight) for at, weight in enumerate(weights)]
    )


def client(number: int) -> Ask:
    """A request of a client of its own."""
    return Ask(address=f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}")


def visit(pool: TargetPool, ask: Asked, tried: Targets = (), now: float = 0.0) -> Target:
    """A request that is over at once."""
    target = pool.pick(ask, tried, now)
    pool.release(target)
    return target


def spread(pool: TargetPool, count: int, now: float = 0.0) -> list[int]:
    """How many of the requests of ``count`` clients each target gets."""
    counted = Counter(visit(pool, client(number), (), now) for number in range(count))
    return [counted[target] for target in pool.targets]


def letters_of(pool: TargetPool, count: int) -> str:
    names = dict(zip(pool.targets, "abcdefgh", strict=False))
    return "".join(names[visit(pool, client(number))] for number in range(count))


# Who gets how much


@pytest.mark.parametrize("name", EVEN)
def test_equal_targets_get_equal_shares(name: str) -> None:
    within = 0.05 if name in ("random", "power_of_two_choices") else 0.0
    for share in spread(pool_of(name), 5000):
        assert share == pytest.approx(1000, rel=within)


@pytest.mark.parametrize("name", BY_KEY)
@pytest.mark.parametrize("kind", ["10.0.{0}.{1}", "user-{2}", "/item/{2}", "2001:db8::{2:x}"])
def test_keys_spread_evenly_even_if_they_are_alike(name: str, kind: str) -> None:
    policy: Policy = make(name)
    if isinstance(policy, ConsistentHash):
        policy = ConsistentHash(virtual_nodes=2000)
    pool = pool_of(policy)
    keys = [kind.format(number >> 8, number & 255, number) for number in range(10000)]
    counted = Counter(visit(pool, Ask(address=key)) for key in keys)
    for target in pool.targets:
        assert counted[target] == pytest.approx(2000, rel=0.1)


@pytest.mark.parametrize("name", BY_WEIGHT)
@pytest.mark.parametrize("weights", [(5, 1, 1), (3, 2), (10, 20, 30, 40), (1, 1, 256)])
def test_shares_follow_weights_within_one_percent(name: str, weights: tuple[int, ...]) -> None:
    pool = weighted(name, *weights)
    requests = 20_000
    exact = name not in ("random", "power_of_two_choices")
    for share, weight in zip(spread(pool, requests), weights, strict=True):
        due = requests * weight / sum(weights)
        assert abs(share - due) <= (2 if exact else requests / 100)


@pytest.mark.parametrize(
    ("policy", "within"),
    [
        (IPHash(), 0.01),
        (ConsistentHash(virtual_nodes=5000), 0.01),
        (ConsistentHash(), 0.06),  # the fewer points, the further from the mark
        (RendezvousHash(), 0.01),
    ],
)
def test_keys_follow_weights(policy: Policy, within: float) -> None:
    pool = weighted(policy, 3, 1, 1)
    requests = 20_000
    for share, due in zip(spread(pool, requests), (0.6, 0.2, 0.2), strict=True):
        assert abs(share - due * requests) <= within * requests


@pytest.mark.parametrize("name", ["least_connections", "least_response_time", "first"])
def test_weights_do_not_count_where_the_page_says_so(name: str) -> None:
    assert spread(weighted(name, 5, 1), 1000) == ([1000, 0] if name == "first" else [500, 500])


def test_weighted_round_robin_is_as_smooth_as_nginx() -> None:
    # The sequence that the message of nginx's commit 52327e0627f4 shows.
    assert letters_of(weighted("weighted_round_robin", 5, 1, 1), 14) == "aabacaaaabacaa"


@pytest.mark.parametrize("seed", range(30))  # hypothesis' dice take a hundred times as long
def test_weighted_round_robin_is_its_definition_whoever_comes_and_goes(seed: int) -> None:
    dice = random.Random(seed)
    everyone = [make_target(8001 + at, weight=dice.randint(1, 4)) for at in range(8)]
    policy, scores = make("weighted_round_robin"), dict.fromkeys(everyone, 0)
    live: Targets = ()
    for _ in range(100):
        if not live or dice.random() < 0.05:
            dice.choice(everyone).weight = dice.randint(1, 4)
            live = tuple(one for one in everyone if dice.random() < 0.8) or (everyone[0],)
            policy.arrange(live, live)
            scores = {one: scores.get(one, 0) for one in live}
        tried = tuple(one for one in live[1:] if dice.random() < 0.3) * (dice.random() < 0.2)
        rest = [one for one in live if one not in tried]
        for one in rest:
            scores[one] += one.weight
        due = max(rest, key=lambda one: scores[one])
        scores[due] -= sum(one.weight for one in rest)
        assert policy.peek(Ask(), tried, 0.0) is due
        assert policy.choose(Ask(), tried, 0.0) is due


@pytest.mark.parametrize("name", IN_TURN)
@given(weights=st.lists(st.integers(1, 20), min_size=2, max_size=6))
@settings(max_examples=40)
def test_turns_by_weight_are_exact_and_spread(name: str, weights: list[int]) -> None:
    pool = weighted(name, *weights)
    total = sum(weights)
    turns = [pool.targets.index(visit(pool, Ask())) for _ in range(2 * total)]
    assert Counter(turns) == {at: 2 * weight for at, weight in enumerate(weights)}
    for at, weight in enumerate(weights):
        places = [place for place, one in enumerate(turns) if one == at]
        longest = max(after - before for before, after in itertools.pairwise([*places, 2 * total]))
        assert longest <= 2 * total / weight + len(weights), "it had to wait for too long"


def test_weights_with_a_common_divisor_make_a_short_ring() -> None:
    targets = [make_target(8001, weight=200), make_target(8002, weight=100)]
    assert [one.port for one in weighted_ring(targets)] == [8001, 8001, 8002]


@every_policy
@given(
    weights=st.lists(st.integers(1, 5), min_size=1, max_size=6),
    data=st.data(),
)
@settings(max_examples=25)
def test_only_live_targets_that_were_not_tried_are_chosen(
    name: str, weights: list[int], data: st.DataObject
) -> None:
    pool = weighted(name, *weights)
    gone = data.draw(st.sets(st.sampled_from(pool.targets)))
    tried = tuple(data.draw(st.sets(st.sampled_from(pool.targets))))
    for target in gone:
        pool.evict(target, "gone")
    allowed = set(pool.targets) - gone - set(tried)
    for number in range(20):
        if allowed:
            assert visit(pool, client(number), tried) in allowed
        else:
            with pytest.raises(EmptyRing):
                pool.pick(client(number), tried)
    assert not any(one.in_flight for one in pool.targets)


@every_policy
def test_one_request_visits_each_target_once_then_finds_nobody(name: str) -> None:
    pool = pool_of(name, 4)
    for number in range(20):
        ask = client(number)
        tried: Targets = ()
        for _ in pool.targets:
            tried = (*tried, visit(pool, ask, tried))
        assert set(tried) == set(pool.targets)
        with pytest.raises(EmptyRing):
            pool.pick(ask, tried)


@pytest.mark.parametrize("name", ["hash_ring", "random", "ip_hash", "rendezvous_hash"])
def test_what_failed_on_one_target_spreads_over_all_the_others(name: str) -> None:
    pool = pool_of(name)
    bad = pool.targets[0]
    second = Counter[Target]()
    for number in range(10_000):
        ask = client(number)
        if visit(pool, ask) is bad:
            second[visit(pool, ask, (bad,))] += 1
    assert len(second) == 4
    for count in second.values():
        assert count == pytest.approx(second.total() / 4, rel=0.15)


def test_the_clients_of_a_heavy_target_spread_over_the_others_too() -> None:
    pool = weighted("ip_hash", 2, 1, 1)
    pool.evict(pool.targets[0], "gone")
    assert spread(pool, 10_000)[1:] == pytest.approx([5000, 5000], rel=0.05)


@every_policy
def test_the_same_requests_get_the_same_targets_again(name: str) -> None:
    def story() -> list[int]:
        pool = weighted(name, 3, 2, 1, 1)
        under_way: list[Target] = []
        ports = []
        for number in range(300):
            target = pool.pick(client(number % 50), (), number * 0.01)
            ports.append(target.port)
            under_way.append(target)
            if number % 3:
                done = under_way.pop(0)
                pool.answered(done, 0.001 * done.port % 0.7, 200, number * 0.01)
                pool.release(done)
        return ports

    assert story() == story()


def test_dice_with_another_seed_or_none_fall_otherwise() -> None:
    def thrown(policy: Policy) -> str:
        return letters_of(pool_of(policy), 100)

    for kind in (RandomPolicy, PowerOfTwoChoices):
        assert thrown(kind(seed=1)) == thrown(kind(seed=1)) != thrown(kind(seed=2))
        assert thrown(kind()) != thrown(kind())


# Keys


@pytest.mark.parametrize("name", BY_KEY)
def test_a_client_stays_with_its_target(name: str) -> None:
    pool = pool_of(name, 7)
    first = [visit(pool, client(number)) for number in range(500)]
    assert [visit(pool, client(number)) for number in range(500)] == first


@pytest.mark.parametrize("name", BY_KEY)
def test_only_the_clients_of_an_evicted_target_move_and_come_back_with_it(name: str) -> None:
    pool = weighted(name, 1, 2, 2, 1, 4)
    before = [visit(pool, client(number)) for number in range(2000)]
    lost = pool.targets[2]
    pool.evict(lost, "gone")
    meanwhile = [visit(pool, client(number)) for number in range(2000)]
    assert {after for was, after in zip(before, meanwhile, strict=True) if was is lost} == (
        set(pool.targets) - {lost}
    )
    assert all(was is lost or was is after for was, after in zip(before, meanwhile, strict=True))
    pool.restore(lost, "back")
    assert [visit(pool, client(number)) for number in range(2000)] == before


@pytest.mark.parametrize("kind", KEYED)
@pytest.mark.parametrize("weights", [(1,) * 10, (1, 2, 2, 2, 2, 2, 2, 2, 2, 2)])
def test_removing_or_adding_a_target_moves_only_its_keys(
    kind: type[Policy], weights: tuple[int, ...]
) -> None:
    pool = weighted(kind(), *weights)
    before = [visit(pool, client(number)) for number in range(5000)]
    lost = pool.targets[0]
    share = before.count(lost) / 5000
    assert share == pytest.approx(weights[0] / sum(weights), rel=0.35)
    pool.remove(lost, "no longer")
    after = [visit(pool, client(number)) for number in range(5000)]
    moved = [was for was, now in zip(before, after, strict=True) if was is not now]
    assert set(moved) == {lost}
    assert len(moved) == before.count(lost)
    pool.add(lost, "again")
    assert [visit(pool, client(number)) for number in range(5000)] == before


@pytest.mark.parametrize("kind", KEYED)
@pytest.mark.parametrize(
    ("key", "asks"),
    [
        ("client", [Ask(address=f"10.0.0.{number}") for number in range(50)]),
        ("uri", [Ask(uri=f"/{number}") for number in range(50)]),
        ("header:X-User", [Ask(headers={"X-User": str(number)}) for number in range(50)]),
        ("cookie:id", [Ask(cookies={"id": str(number)}) for number in range(50)]),
        ("query:q", [Ask(parameters={"q": str(number)}) for number in range(50)]),
    ],
)
def test_the_key_says_what_sticks(kind: Callable[..., Policy], key: str, asks: list[Ask]) -> None:
    pool = pool_of(kind(key=key))
    targets = [visit(pool, ask) for ask in asks]
    assert len(set(targets)) == 5
    same = pool_of(kind(key="client" if key == "uri" else "uri"))
    assert len({visit(same, ask) for ask in asks}) == 1, "nothing else tells them apart"


@pytest.mark.parametrize("kind", KEYED)
@pytest.mark.parametrize("key", ["header:X-User", "cookie:id", "query:q"])
@pytest.mark.parametrize("value", [None, ""])
def test_without_its_key_a_request_goes_by_its_client(
    kind: Callable[..., Policy], key: str, value: str | None
) -> None:
    name = key.partition(":")[2]
    said = {} if value is None else {name: value}
    keyed, by_client = pool_of(kind(key=key)), pool_of(kind())
    for number in range(50):
        address = f"10.0.0.{number}"
        ask = Ask(address, headers=said, cookies=said, parameters=said)
        assert visit(keyed, ask).port == visit(by_client, Ask(address)).port


def test_keys_lead_to_the_same_targets_in_every_process() -> None:
    script = (
        "from tests.test_policies import BY_KEY, client, pool_of, visit; import json;"
        "print(json.dumps([[visit(p, client(n)).port for n in range(99)]"
        " for p in map(pool_of, BY_KEY)]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment({"PYTHONHASHSEED": "5"}),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    here = [[visit(pool, client(n)).port for n in range(99)] for pool in map(pool_of, BY_KEY)]
    assert json.loads(done.stdout) == here


def test_bounded_load_passes_over_a_target_that_has_more_than_its_share() -> None:
    def most(policy: Policy) -> int:
        pool = pool_of(policy)
        for number in range(100):
            pool.pick(Ask(address=f"10.0.0.{number % 2}"))  # two clients that never end
        return max(one.in_flight for one in pool.targets)

    assert most(ConsistentHash()) >= 50
    assert most(ConsistentHash(bounded_load=1.25)) == 25


def test_bounded_load_counts_by_weight() -> None:
    def shares(policy: Policy) -> list[int]:
        pool = weighted(policy, 3, 1)
        for _ in range(400):
            pool.pick(Ask())  # a client whose target is the light one
        return [one.in_flight for one in pool.targets]

    assert shares(ConsistentHash()) == [0, 400]
    light = shares(ConsistentHash(bounded_load=1.1))[1]
    assert 109 <= light <= 111


# Load


@pytest.mark.parametrize("kind", [LeastConnections, WeightedLeastConnections, PowerOfTwoChoices])
def test_the_busy_are_spared(kind: Callable[..., Policy]) -> None:
    pool = pool_of(kind(), 2)
    busy, idle = pool.targets
    while busy.in_flight < 10:
        pool.pick(Ask(), (idle,))
    assert [pool.pick(Ask()) for _ in range(9)] == [idle] * 9


def test_requests_under_way_follow_weights_where_they_count() -> None:
    for kind, shares in (
        (LeastConnections(), [20, 20, 20]),
        (WeightedLeastConnections(), [40, 10, 10]),
    ):
        pool = weighted(kind, 4, 1, 1)
        for _ in range(60):
            pool.pick(Ask())
        assert [one.in_flight for one in pool.targets] == shares


def test_first_fills_targets_in_the_order_of_the_settings() -> None:
    pool = pool_of("first", 3, max_connections=2)
    assert [pool.targets.index(pool.pick(Ask())) for _ in range(6)] == [0, 0, 1, 1, 2, 2]
    pool.release(pool.targets[0])
    assert pool.pick(Ask()) is pool.targets[0]


# Everybody gets something, and the new ones not too much


@pytest.mark.parametrize("name", SHARING)
def test_nobody_starves_and_no_request_is_lost_while_targets_come_and_go(name: str) -> None:
    pool = weighted(name, 1, 2, 3, 1, 1)
    dice = random.Random(3)
    got = Counter[Target]()
    for number in range(3000):
        if number % 100 == 50:
            pool.evict(dice.choice(pool.targets), "gone")
        elif number % 100 == 0:
            for target in pool.evicted():
                pool.restore(target, "back", number * 0.01)
        target = pool.pick(client(number), (), number * 0.01)
        assert target.state is State.LIVE
        got[target] += 1
        pool.answered(target, 0.01, 200, number * 0.01)
        pool.release(target)
    assert min(got[one] for one in pool.targets) > 3000 / 8 / 3
    assert [one.in_flight for one in pool.targets] == [0] * 5


@pytest.mark.parametrize("name", SHARING)
def test_a_target_that_starts_slowly_gets_a_growing_share(name: str) -> None:
    pool = pool_of(name, 4, slow_start=100.0)
    new = pool.targets[1]
    before = spread(pool, 4000, 900.0)[1]
    pool.evict(new, "gone")
    pool.restore(new, "back", 1000.0)
    shares = [spread(pool, 4000, 1000.0 + after)[1] / before for after in (0, 25, 50, 75, 101)]
    assert shares == pytest.approx([0.05, 0.25, 0.5, 0.75, 1.0], abs=0.12)
    assert 0 < shares[0] < shares[1] < shares[2] < shares[3] < shares[4]


def test_a_client_moves_to_a_target_that_starts_slowly_once() -> None:
    pool = pool_of("ip_hash", 3, slow_start=10.0)
    before = [visit(pool, client(number)) for number in range(300)]
    new = pool.targets[0]
    pool.evict(new, "gone")
    pool.restore(new, "back", 100.0)
    there: set[int] = set()
    for after in range(12):
        now = {n for n in range(300) if visit(pool, client(n), (), 100.0 + after) is new}
        assert there <= now
        there = now
    assert there == {number for number in range(300) if before[number] is new}


def test_a_target_that_starts_slowly_serves_when_it_is_alone() -> None:
    pool = pool_of("hash_ring", 2, slow_start=10.0)
    for target in pool.targets:
        pool.evict(target, "gone")
    pool.restore(pool.targets[1], "back", 5.0)
    assert spread(pool, 10, 5.0) == [0, 10]


# Backups, limits and the queue


@every_policy
def test_backups_serve_only_when_no_ordinary_target_is_left(name: str) -> None:
    a, b = make_target(8001), make_target(8002)
    c, d = make_target(8003, backup=True), make_target(8004, backup=True)
    pool = pool_with(name, [a, c, b, d])
    assert {visit(pool, client(number)) for number in range(200)} <= {a, b}
    pool.evict(a, "gone")
    assert {visit(pool, client(number)) for number in range(200)} == {b}
    pool.evict(b, "gone")
    served = {visit(pool, client(number)) for number in range(200)}
    assert served == ({c} if name == "first" else {c, d})
    pool.restore(a, "back")
    assert {visit(pool, client(number)) for number in range(200)} == {a}


@every_policy
def test_a_request_that_failed_on_all_ordinary_targets_tries_the_backups(name: str) -> None:
    ordinary = (make_target(8001), make_target(8002))
    backups = (make_target(8003, backup=True), make_target(8004, backup=True))
    pool = pool_with(name, ordinary + backups)
    for number in range(20):
        ask = client(number)
        tried: Targets = ()
        for _ in range(4):
            tried = (*tried, visit(pool, ask, tried))
        assert set(tried[:2]) == set(ordinary)
        assert set(tried[2:]) == set(backups)


@every_policy
def test_nobody_gets_more_than_it_may_have_at_once(name: str) -> None:
    pool = pool_of(name, 3, max_connections=2)
    asks = [client(number) for number in range(7)]
    picked = [pool.pick(ask) for ask in asks[:6]]
    assert Counter(picked) == dict.fromkeys(pool.targets, 2)
    with pytest.raises(AllBusy):
        pool.pick(asks[6])
    pool.release(picked[3])
    assert pool.pick(asks[6]) is picked[3]


def full_pool(**said: int) -> TargetPool:
    pool = pool_with("hash_ring", [make_target(p, max_connections=1) for p in (8001, 8002)], **said)
    for _ in pool.targets:
        pool.pick(Ask())
    return pool


def test_the_queue_hands_out_targets_in_the_order_of_arrival() -> None:
    pool = full_pool()
    places = [pool.queue_up(Ask()) for _ in range(4)]
    assert pool.waiting() == 4
    a, b = pool.targets
    order = []
    for target in (b, a, a, b):
        pool.release(target)
        order.append([place.target for place in places])
    assert order == [[b, None, None, None], [b, a, None, None], [b, a, a, None], [b, a, a, b]]
    assert [place.called.is_set() for place in places] == [True] * 4
    assert (pool.waiting(), a.in_flight, b.in_flight) == (0, 1, 1)


def test_nobody_overtakes_the_queue() -> None:
    pool = full_pool()
    a, b = pool.targets
    place = pool.queue_up(Ask(), (b,))  # waits for a
    later = pool.queue_up(Ask())
    for ask in (pool.pick, pool.peek):
        with pytest.raises(AllBusy):
            ask(Ask())
    pool.release(a)
    assert (place.target, later.target) == (a, None)
    pool.release(b)
    assert later.target is b


def test_who_waits_for_another_target_keeps_nobody_from_the_one_it_has_tried() -> None:
    pool = full_pool(queue_size=3)
    a, b = pool.targets
    waiting = [pool.queue_up(Ask(), (b,)) for _ in range(3)]
    with pytest.raises(Overloaded):
        pool.queue_up(Ask())
    pool.release(b)
    for _ in range(5):
        with pytest.raises(AllBusy):
            pool.pick(Ask())  # in turn: the queue knows who is whose
        assert pool.peek(Ask()) is b
        assert pool.queue_up(Ask()).target is b
        pool.release(b)
    assert not any(place.called.is_set() for place in waiting)
    for place in waiting:
        pool.release(a)
        assert place.target is a
    assert (pool.waiting(), b.in_flight) == (0, 0)


def test_who_leaves_the_queue_is_passed_over_and_what_it_got_goes_on() -> None:
    pool = full_pool()
    one, two, three = (pool.queue_up(Ask()) for _ in range(3))
    pool.leave(two)
    pool.release(pool.targets[0])
    assert one.target is pool.targets[0]
    pool.leave(one)  # just as it is called
    assert three.target is pool.targets[0]
    assert (two.called.is_set(), pool.waiting()) == (False, 0)
    assert [target.in_flight for target in pool.targets] == [1, 1]


def test_a_full_queue_is_an_error() -> None:
    pool = full_pool(queue_size=2)
    waiting = [pool.queue_up(Ask()) for _ in range(2)]
    with pytest.raises(Overloaded):
        pool.queue_up(Ask())
    pool.leave(waiting[0])
    pool.queue_up(Ask())


def test_those_who_wait_learn_that_nobody_is_left() -> None:
    pool = full_pool()
    a, b = pool.targets
    places = [pool.queue_up(Ask()) for _ in range(3)]
    pool.evict(a, "gone")
    assert not any(place.called.is_set() for place in places)
    pool.evict(b, "gone")
    assert [(place.called.is_set(), place.target) for place in places] == [(True, None)] * 3


def test_a_target_that_comes_back_serves_those_who_wait() -> None:
    pool = full_pool()
    a, _ = pool.targets
    pool.evict(a, "gone")
    pool.release(a)
    place = pool.queue_up(Ask())
    assert not place.called.is_set()
    pool.restore(a, "back")
    assert place.target is a


def test_who_was_kept_in_service_and_is_removed_is_forgotten() -> None:
    pool = TargetPool([make_target(8001)], max_evicted=0.0)
    pool.add(make_target(8002), "for a while")
    pool.evict(pool.targets[1], "gone")
    forgotten = weakref.ref(pool.targets[1])
    pool.remove(pool.targets[1], "no more")
    gc.collect()
    assert forgotten() is None


def test_max_evicted_keeps_the_last_ones_until_another_is_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    pool = TargetPool([make_target(8001 + at) for at in range(4)], max_evicted=0.5)
    a, b, c, _ = pool.targets
    for target in (a, b, c, c, c):
        pool.evict(target, "gone")
    assert pool.evicted() == [a, b]
    assert c in pool.live
    kept = [record.message for record in caplog.records if "kept" in record.message]
    assert kept == ["kept http://localhost:8003, as max_evicted says: gone"], "told once"
    pool.restore(a, "back")
    pool.evict(c, "gone")
    assert pool.evicted() == [b, c]


@every_policy
@pytest.mark.parametrize("state", [State.DRAINING, State.MAINTENANCE])
def test_who_is_to_rest_gets_nothing_new_until_it_is_put_back(name: str, state: State) -> None:
    pool = pool_of(name, 3)
    resting = pool.targets[0]
    before = spread(pool, 300)[0]
    assert before
    pool.pick(Ask(), pool.targets[1:])
    pool.want(resting, state, "by hand")
    assert resting.state is state
    assert spread(pool, 300)[0] == 0
    pool.release(resting)
    assert resting.in_flight == 0, "what it had under way is finished"
    pool.want(resting, State.LIVE, "by hand")
    assert spread(pool, 300)[0] > 0


def test_a_target_in_maintenance_is_not_restored_into_service() -> None:
    pool = pool_of("hash_ring", 2)
    target = pool.targets[0]
    pool.evict(target, "gone")
    pool.want(target, State.MAINTENANCE, "by hand")
    pool.restore(target, "back")
    assert target.state is State.MAINTENANCE
    assert target not in pool.live
    pool.want(target, State.LIVE, "by hand")
    assert target in pool.live


# Functions


def function_pool(function: Callable[[Asked, Targets], Target], count: int = 3) -> TargetPool:
    return pool_of(FunctionPolicy(function), count)


def wished(pool: TargetPool, ask: Ask, tried: Targets = (), now: float = 0.0) -> Target:
    """As the failover loop asks."""
    target = pool.pick(ask, tried, now, pool.wish(ask, tried, now))
    pool.release(target)
    return target


def test_a_function_gets_the_request_and_those_who_may_serve_it() -> None:
    asked: list[tuple[Asked, Targets]] = []

    def last(request: Asked, targets: Targets) -> Target:
        asked.append((request, targets))
        return targets[-1]

    pool = function_pool(last)
    a, b, c = pool.targets
    ask = Ask()
    assert wished(pool, ask) is c
    assert wished(pool, ask, (c,)) is b
    pool.evict(b, "gone")
    assert wished(pool, ask, (c,)) is a
    assert asked == [(ask, (a, b, c)), (ask, (a, b)), (ask, (a,))]
    with pytest.raises(EmptyRing):
        wished(pool, ask, (a, c))


def test_a_function_sees_the_number_of_its_request() -> None:
    pool = function_pool(lambda request, targets: targets[request.number % len(targets)])
    a, b, c = pool.targets
    assert [wished(pool, Ask()) for _ in range(6)] == [a, b, c, a, b, c]


def test_a_function_is_not_asked_for_full_targets() -> None:
    pool = pool_of(FunctionPolicy(lambda request, targets: targets[0]), 2, max_connections=1)
    asks = [Ask(), Ask(), Ask()]
    assert [pool.pick(ask, (), 0.0, pool.wish(ask, (), 0.0)) for ask in asks[:2]] == [*pool.targets]
    assert pool.wish(asks[2], (), 0.0) is None
    with pytest.raises(AllBusy):
        pool.pick(asks[2])


def test_a_wish_that_can_no_longer_be_granted_is_passed_over() -> None:
    pool = function_pool(lambda request, targets: targets[0])
    ask = Ask()
    wish = pool.wish(ask, (), 0.0)
    assert wish
    pool.evict(wish, "gone in between")
    assert pool.pick(ask, (), 0.0, wish) in pool.live


def _raise(request: Asked, targets: Targets) -> Target:
    raise KeyError("tenant")


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (_raise, "KeyError: 'tenant'"),
        (lambda request, targets: None, "it returned None, which is none of the targets"),
        (lambda request, targets: "a", "it returned 'a', which is none of the targets"),
        (lambda request, targets: make_target(1), "localhost:1 live>, which is none of the"),
        (lambda request: None, "takes 1 positional argument but 2 were given"),
    ],
)
def test_a_function_that_fails_is_told_of_once_a_minute_and_hash_ring_chooses(
    function: Callable[[Asked, Targets], Target], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    pool = function_pool(function)
    assert Counter(wished(pool, Ask(), (), 1000.0 + now) for now in range(60)) == dict.fromkeys(
        pool.targets, 20
    )
    [record] = caplog.records
    assert record.levelno == logging.ERROR
    assert said in record.message
    assert "hash_ring chooses" in record.message
    wished(pool, Ask(), (), 1059.9)
    assert len(caplog.records) == 1
    wished(pool, Ask(), (), 1060.0)
    assert len(caplog.records) == 2


def test_a_function_that_fails_in_many_threads_is_told_of_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    together = threading.Barrier(8)

    def fail(request: Asked, targets: Targets) -> Target:
        together.wait(DEADLINE)
        raise ValueError("all at once")

    pool = function_pool(fail)
    run_together([functools.partial(wished, pool, Ask())] * 8)
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("no_such_module:f", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("json:no_such", "AttributeError: module 'json' has no attribute 'no_such'"),
        ("json:__name__", '"json:__name__" is not a function'),
        (":f", "ValueError: Empty module name"),
    ],
)
def test_a_function_that_is_not_there_is_refused_at_the_start(name: str, said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse({"targets": [8001], "policy": name})
    [problem] = caught.value.problems
    assert problem.startswith("settings: policy: ")
    assert said in problem


# Simulated time


class Simulation:
    """Clients that ask at given times and targets that take a while, all without a clock."""

    def __init__(self, name: str, *takes: float) -> None:
        self.pool = pool_of(name, len(takes))
        self.takes = dict(zip(self.pool.targets, takes, strict=True))  # seconds
        self.statuses = dict.fromkeys(self.pool.targets, 200)
        self.now = 1000.0
        self.picked: list[Target] = []  # since ``run`` was called
        self.most: Counter[Target] = Counter()  # at once, since ``run`` was called
        self._numbers = itertools.count()
        self._ends: list[tuple[float, int, Target, float]] = []

    def run(self, seconds: float, rate: float) -> None:
        """A request each 1 / ``rate`` seconds."""
        self.picked, self.most = [], Counter()
        end = self.now + seconds
        while self.now < end:
            while self._ends and self._ends[0][0] <= self.now:
                at, _, target, took = heapq.heappop(self._ends)
                self.pool.answered(target, took, self.statuses[target], at)
                self.pool.release(target)
            number = next(self._numbers)
            target = self.pool.pick(client(number), (), self.now)
            self.picked.append(target)
            self.most[target] = max(self.most[target], target.in_flight)
            took = self.takes[target]
            heapq.heappush(self._ends, (self.now + took, number, target, took))
            self.now += 1 / rate

    def share(self, target: Target) -> float:
        return self.picked.count(target) / len(self.picked)


def test_least_response_time_avoids_a_slow_target_and_tries_it_again() -> None:
    run = Simulation("least_response_time", 0.01, 0.01, 0.01, 0.5)
    slow = run.pool.targets[3]
    run.run(5, 200)
    run.run(60, 200)
    assert 0 < run.share(slow) < 0.01
    assert run.most[slow] <= 2
    run.takes[slow] = 0.01
    run.run(60, 200)
    run.run(20, 200)
    assert run.share(slow) == pytest.approx(0.25, abs=0.1), "it is fast again, and that was seen"


def test_to_ask_whom_least_response_time_would_choose_changes_nothing() -> None:
    pool = pool_of(LeastResponseTime(), 2)
    fast, slow = pool.targets
    pool.answered(fast, 0.01, 200, 1.0)
    pool.answered(slow, 1.0, 200, 1.0)
    visit(pool, Ask(), now=2.0)
    pool.answered(fast, 0.01, 200, 3.0)
    times = [one.response_time for one in pool.targets]
    for _ in range(100):
        assert pool.peek(Ask(), 9.0) is fast
    assert [one.response_time for one in pool.targets] == times


def test_least_response_time_finds_out_who_became_faster_though_one_is_enough() -> None:
    run = Simulation("least_response_time", 0.01, 0.02)
    other = run.pool.targets[1]
    run.run(60, 20)  # never two at once
    assert 0 < run.share(other) < 0.1
    run.takes[other] = 0.001
    run.run(60, 20)
    assert run.share(other) > 0.9


def test_round_robin_does_not_avoid_a_slow_target() -> None:
    run = Simulation("round_robin", 0.01, 0.01, 0.01, 0.5)
    run.run(10, 200)
    assert run.share(run.pool.targets[3]) == pytest.approx(0.25, abs=0.01)


def test_least_response_time_prefers_the_fast_in_proportion_under_load() -> None:
    run = Simulation("least_response_time", 0.01, 0.02, 0.04)
    run.run(10, 100)
    run.run(20, 1000)
    shares = [run.share(target) for target in run.pool.targets]
    assert shares[0] > shares[1] > shares[2] > 0
    requests_at_once = sum(
        share * 1000 * took for share, took in zip(shares, run.takes.values(), strict=True)
    )
    assert requests_at_once < 20, "round robin would have 23"


def test_a_restored_target_is_not_flooded_even_when_it_hangs() -> None:
    run = Simulation("least_response_time", 0.02, 0.02, 0.02, 0.02)
    run.run(10, 400)
    back = run.pool.targets[0]
    run.pool.evict(back, "gone")
    run.run(10, 400)
    run.takes[back] = 100.0
    run.pool.restore(back, "back", run.now)
    run.run(10, 400)
    assert 0 < run.most[back] <= 6, "about as many as each of the others has"


def test_nobody_is_flooded_at_the_start_for_not_having_answered_yet() -> None:
    run = Simulation("least_response_time", 0.01, 0.01, 0.01, 100.0)
    run.run(60, 400)
    assert 0 < run.most[run.pool.targets[3]] <= 6


def test_nobody_is_flooded_when_all_were_away_and_come_back_one_by_one() -> None:
    run = Simulation("least_response_time", 0.01, 0.01, 100.0)
    run.run(2, 100)
    for target in run.pool.targets:
        run.pool.evict(target, "gone")
    for target in run.pool.targets:
        run.pool.restore(target, "back", run.now)
        run.run(2, 400)
    assert 0 < run.most[run.pool.targets[2]] <= 10


def test_a_lucky_first_answer_brings_no_flood() -> None:
    run = Simulation("least_response_time", 0.1, 0.1, 0.1, 0.1)
    *others, lucky = run.pool.targets
    for target in others:
        run.pool.answered(target, 0.1, 200, run.now)
    run.pool.answered(lucky, 0.0001, 200, run.now)
    run.run(5, 100)
    assert run.most[lucky] <= 6, "the others have three or so"


@pytest.mark.parametrize("since", ["the start", "later"])
def test_a_target_that_fails_fast_does_not_look_fast(since: str) -> None:
    def share(status: int) -> float:
        run = Simulation("least_response_time", 0.01, 0.01, 0.01)
        bad = run.pool.targets[0]
        if since == "later":
            run.run(5, 300)
        run.takes[bad], run.statuses[bad] = 0.0001, status
        run.run(20, 300)
        return run.share(bad)

    assert share(200) > 0.95
    assert share(503) < 0.6


def test_response_times_fade_with_their_half_life() -> None:
    pool = pool_of(LeastResponseTime(), 2)
    one = pool.targets[0]
    pool.answered(one, 1.0, 200, 1000.0)
    assert one.response_time == 1.0
    pool.answered(one, 0.0, 200, 1000.0 + LeastResponseTime.HALF_LIFE)
    assert one.response_time == pytest.approx(0.5)
    pool.answered(one, 0.0, 200, 1000.0 + 1.5 * LeastResponseTime.HALF_LIFE)
    assert one.response_time == pytest.approx(0.5**1.5)
    pool.answered(one, 0.0, 200, 1000.0 + 9 * LeastResponseTime.HALF_LIFE)
    assert one.response_time == pytest.approx(0.5**2.5), "one answer counts for half at most"


@every_policy
def test_simulated_time_gives_the_same_results_each_time_and_from_any_start(name: str) -> None:
    def picked(start: float) -> list[int]:
        run = Simulation(name, 0.01, 0.02, 0.25, 0.04)
        run.now = start
        run.run(4, 128)
        return [target.port for target in run.picked]

    assert picked(0.0) == picked(0.0) == picked(4096.0)


# Threads


@every_policy
def test_what_is_under_way_is_counted_exactly_by_many_threads(name: str) -> None:
    pool = pool_of(name, 4)
    rounds, threads = 300, 8
    got: list[Counter[Target]] = [Counter() for _ in range(threads)]

    def work(mine: Counter[Target]) -> None:
        for number in range(rounds):
            target = pool.pick(client(number), (), number * 0.01)
            assert target.in_flight > 0
            mine[target] += 1
            pool.answered(target, 0.01, 200, number * 0.01)
            if number % 3:  # the others stay
                pool.release(target)

    with often_switching():
        run_together([functools.partial(work, mine) for mine in got])
    assert sum(mine.total() for mine in got) == rounds * threads
    assert sum(target.in_flight for target in pool.targets) == rounds // 3 * threads


class Hesitant(Target):
    """Lets other threads run whenever its counts are read: between a read and a write, too."""

    __slots__ = ("_in_flight", "_response_time")

    @property
    def in_flight(self) -> int:
        value = self._in_flight
        time.sleep(1e-6)
        return value

    @in_flight.setter
    def in_flight(self, value: int) -> None:
        self._in_flight = value

    @property
    def response_time(self) -> float:
        value = self._response_time
        time.sleep(1e-6)
        return value

    @response_time.setter
    def response_time(self, value: float) -> None:
        self._response_time = value


def hesitant_pool(name: str) -> TargetPool:
    ports = (8001, 8002)
    return pool_with(name, [Hesitant(f"http://localhost:{at}", "localhost", at) for at in ports])


@pytest.mark.parametrize("name", ["hash_ring", "least_connections"])
def test_counts_are_exact_whenever_threads_meet(name: str) -> None:
    pool = hesitant_pool(name)

    def work() -> None:
        for number in range(30):
            target = pool.pick(Ask())
            if number % 2:
                pool.release(target)

    run_together([work] * 4)
    assert sum(target.in_flight for target in pool.targets) == 60


def test_response_times_are_exact_whenever_threads_meet() -> None:
    pool = hesitant_pool("least_response_time")
    target = pool.targets[0]
    pool.answered(target, 1.0, 200, 1000.0)

    def work() -> None:
        for _ in range(20):
            pool.answered(target, 0.5, 200, 1000.0)

    run_together([work] * 4)
    assert target.response_time == pytest.approx(0.5 + 0.5 * 0.95**80)


@pytest.mark.parametrize("name", IN_TURN)
def test_turns_are_exact_across_threads(name: str) -> None:
    pool = weighted(name, 5, 1, 2)
    got: list[Counter[Target]] = [Counter() for _ in range(8)]

    def work(mine: Counter[Target]) -> None:
        for _ in range(400):
            mine[visit(pool, Ask())] += 1

    with often_switching():
        run_together([functools.partial(work, mine) for mine in got])
    assert [sum(mine[target] for mine in got) for target in pool.targets] == [2000, 400, 800]


@pytest.mark.parametrize("name", ["least_connections", "first", "hash_ring", "consistent_hash"])
def test_limits_hold_and_everybody_is_served_in_many_threads(name: str) -> None:
    pool = pool_with(
        name, [make_target(8001 + at, max_connections=2) for at in range(3)], queue_size=100
    )
    served: list[int] = []
    above: list[Target] = []

    def work() -> None:
        for number in range(100):
            ask = client(number)
            try:
                target: Target | None = pool.pick(ask)
            except AllBusy:
                place = pool.queue_up(ask)
                assert place.called.wait(DEADLINE)
                target = place.target
            assert target
            if target.in_flight > 2:
                above.append(target)
            pool.release(target)
            served.append(number)

    with often_switching():
        run_together([work] * 12)
    assert len(served) == 1200
    assert not above
    assert (pool.waiting(), [one.in_flight for one in pool.targets]) == (0, [0, 0, 0])


@contextlib.contextmanager
def often_switching() -> Iterator[None]:
    """Threads take turns after microseconds, so that they meet in the middle of things."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        yield
    finally:
        sys.setswitchinterval(before)
