"""HashRing: a value for any integer key, by the key's remainder."""

from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

from pyproxy.errors import EmptyRing

T = TypeVar("T")


class HashRing(Generic[T]):
    """``HashRing(values)[key]`` is the value at ``key % len(values)``, for any integer key.

    Consecutive keys (a request counter) visit the values in turn. The ring never changes: another
    one, made of more or fewer values, has another divisor and is as even. Safe in any thread.
    """

    __slots__ = ("_values",)

    def __init__(self, values: Iterable[T] = ()) -> None:
        self._values = tuple(values)

    def __getitem__(self, key: int) -> T:
        """Raises ``EmptyRing`` (a ``LookupError``) when there are no values."""
        values = self._values
        if not values:
            raise EmptyRing("the ring is empty")
        return values[key % len(values)]

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Iterator[T]:
        return iter(self._values)

    def __repr__(self) -> str:
        return f"HashRing({list(self._values)!r})"
