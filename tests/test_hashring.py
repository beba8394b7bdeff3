"""HashRing: a value for any integer key."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyproxy import HashRing
from pyproxy.errors import EmptyRing


def test_is_the_value_at_the_remainder() -> None:
    ring = HashRing("abc")
    assert [ring[key] for key in range(7)] == list("abcabca")


@given(st.lists(st.integers(), min_size=1), st.integers())
def test_takes_any_integer_key(values: list[int], key: int) -> None:
    assert HashRing(values)[key] == values[key % len(values)]


@given(st.integers(1, 50), st.integers(-(10**20), 10**20), st.integers(1, 20))
def test_spreads_consecutive_keys_evenly(size: int, start: int, rounds: int) -> None:
    ring = HashRing(range(size))
    counted = Counter(ring[key] for key in range(start, start + size * rounds))
    assert set(counted.values()) == {rounds}
    assert len(counted) == size


@given(st.integers(2, 30), st.data())
def test_stays_even_with_one_more_or_one_less(size: int, data: st.DataObject) -> None:
    values = list(range(size))
    lost = data.draw(st.sampled_from(values))
    for changed in ([*values, size], [value for value in values if value != lost]):
        ring = HashRing(changed)
        assert len(ring) == len(changed)
        assert Counter(ring[key] for key in range(3 * len(changed))) == dict.fromkeys(changed, 3)


def test_an_empty_ring_has_a_named_error() -> None:
    with pytest.raises(EmptyRing):
        HashRing[str]()[0]
    assert issubclass(EmptyRing, LookupError)


def test_does_not_follow_the_list_it_was_made_from() -> None:
    values = ["a"]
    ring = HashRing(values)
    values.append("b")
    assert list(ring) == ["a"]
