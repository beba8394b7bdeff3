"""What a fleet's plan says, played through without a target."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyproxy.scaling.plan import Member, Plan, Rollout, plan
from pyproxy.scaling_settings import Version

OLD, NEW = Version(("old",)), Version(("new",))


def member(name: str, version: Version = OLD, **said: object) -> Member:
    return Member(name, version, **{"serves": True, "age": 100.0, **said})  # type: ignore[arg-type]


def rollout(**said: object) -> Rollout:
    return Rollout(OLD, NEW, proven=10.0, began=0.0, **said)  # type: ignore[arg-type]


def test_what_is_missing_is_started_at_once() -> None:
    assert plan([member("a")], 3, OLD, None) == Plan(start=[OLD, OLD])


def test_those_that_are_starting_count() -> None:
    assert plan([member("a"), member("b", serves=False)], 2, OLD, None) == Plan()


def test_what_does_not_serve_yet_goes_first_then_the_least_busy() -> None:
    there = [member("busy", in_flight=5), member("idle"), member("new", serves=False)]
    assert plan(there, 2, OLD, None).end == ["new"]
    assert plan(there, 1, OLD, None).end == ["new", "idle"]
    assert plan(there, 0, OLD, None).end == ["new", "idle", "busy"]


def test_one_that_is_lost_is_replaced_before_it_ends() -> None:
    lost = member("lost", lost=True)
    assert plan([lost, member("a")], 2, OLD, None) == Plan(start=[OLD])
    assert plan([lost, member("a"), member("b", serves=False)], 2, OLD, None) == Plan()
    assert plan([lost, member("a"), member("b")], 2, OLD, None) == Plan(end=["lost"])


def test_a_rollout_adds_one_waits_ends_one_and_goes_on() -> None:
    a, b = member("a"), member("b")
    assert plan([a, b], 2, OLD, rollout()) == Plan(start=[NEW])
    assert plan([a, b, member("c", NEW, serves=False)], 2, OLD, rollout()) == Plan()
    assert plan([a, b, member("c", NEW, age=9.9)], 2, OLD, rollout()) == Plan()
    c = member("c", NEW, age=10.0)
    assert plan([a, b, c], 2, OLD, rollout()) == Plan(end=["a"])
    assert plan([b, c], 2, OLD, rollout()) == Plan(start=[NEW])
    d = member("d", NEW)
    assert plan([b, c, d], 2, OLD, rollout()) == Plan(end=["b"])
    assert plan([c, d], 2, OLD, rollout()) == Plan(finished=True)


def test_an_old_one_that_dies_while_the_new_one_is_on_trial_is_replaced_by_its_like() -> None:
    there = [member("a"), member("new", NEW, age=1.0)]
    assert plan(there, 3, OLD, rollout()) == Plan(start=[OLD])


def test_a_paused_rollout_keeps_the_count() -> None:
    there = [member("a"), member("b", NEW)]
    assert plan(there, 2, OLD, rollout(paused=True)) == Plan()
    assert plan(there, 3, OLD, rollout(paused=True)) == Plan(start=[OLD])


def test_going_back_goes_one_by_one_too() -> None:
    back = rollout().back("by the operator")
    a, b, c, d = member("a"), member("b", NEW), member("c", NEW), member("d")
    assert plan([a, b, c], 3, OLD, back) == Plan(start=[OLD])
    assert plan([a, b, c, member("d", serves=False)], 3, OLD, back) == Plan()
    assert plan([a, b, c, d], 3, OLD, back) == Plan(end=["b"])
    assert plan([a, c, d], 3, OLD, back) == Plan(start=[OLD])
    assert plan([a, c, d, member("e")], 3, OLD, back) == Plan(end=["c"])
    assert plan([a, d, member("e")], 3, OLD, back) == Plan(finished=True)


def test_going_back_does_not_wait_for_what_does_not_serve() -> None:
    there = [member("a"), member("b"), member("c", NEW, serves=False)]
    assert plan(there, 2, OLD, rollout().back("bad")) == Plan(end=["c"])


def test_what_fails_requests_is_ended_at_once_but_for_the_last_that_serves() -> None:
    back = rollout().back("bad", harmful=True)
    there = [member("a"), member("b", NEW), member("c", NEW)]
    assert plan(there, 3, OLD, back) == Plan(start=[OLD, OLD], end=["b", "c"])
    assert plan([member("a", NEW)], 1, OLD, back) == Plan(start=[OLD])
    assert plan([member("a", NEW), member("b", serves=False)], 1, OLD, back) == Plan()
    assert plan([member("a", NEW), member("b")], 1, OLD, back) == Plan(end=["a"])


def test_the_first_reason_to_go_back_counts() -> None:
    assert rollout().back("bad").back("worse").reason == "bad"


class World:
    """Starts and ends what a plan says; a step is some time later."""

    def __init__(self) -> None:
        self.members: list[Member] = []
        self._names = itertools.count()

    def follow(self, to_do: Plan) -> None:
        self.members = [
            Member(one.name, one.version, serves=True, age=one.age + 5.0 * one.serves)
            for one in self.members
            if one.name not in to_do.end
        ]
        for version in to_do.start:
            self.members.append(Member(str(next(self._names)), version, serves=False))


@given(st.integers(0, 8), st.integers(0, 8), st.lists(st.integers(0, 20), max_size=5))
def test_any_number_settles_at_what_is_wanted_and_stays(
    there: int, wanted: int, deaths: list[int]
) -> None:
    world = World()
    world.members = [member(f"first {at}") for at in range(there)]
    for at in range(30):
        if at in deaths and world.members:
            world.members.pop(0)
        world.follow(plan(world.members, wanted, OLD, None))
    assert len(world.members) == wanted
    assert plan(world.members, wanted, OLD, None) == Plan()


@pytest.mark.parametrize("harmful", [False, True])
@pytest.mark.parametrize("ends_badly", [False, True])
@given(st.integers(1, 6), st.lists(st.integers(0, 40), max_size=4), st.integers(0, 30))
def test_a_rollout_comes_to_an_end_with_enough_serving_all_the_time(
    ends_badly: bool, harmful: bool, wanted: int, deaths: list[int], at_step: int
) -> None:
    world = World()
    world.members = [member(f"first {at}") for at in range(wanted)]
    now = rollout()
    for at in range(200):
        if ends_badly and at == at_step:
            now = now.back("bad", harmful)
        if at in deaths and len(world.members) > 1:
            world.members.pop(0)
        to_do = plan(world.members, wanted, OLD, now)
        before = [one for one in world.members if one.serves]
        serving = [one for one in before if one.name not in to_do.end]
        assert len(serving) >= min(1, len(before))
        if not deaths and not (ends_badly and harmful):
            assert len(serving) >= wanted
        assert len(world.members) <= wanted + 1 + len(deaths) + wanted * now.returning
        if to_do.finished:
            break
        world.follow(to_do)
    assert to_do.finished
    assert {one.version for one in world.members} == {now.wanted}
    assert len(world.members) == wanted
