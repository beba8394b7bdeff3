"""Waiting for a target, when every one of a pool is full."""

import time
from collections.abc import Callable

from pyproxy.balancing.policy import Asked, Targets
from pyproxy.balancing.pool import TargetPool
from pyproxy.balancing.target import Target
from pyproxy.errors import EmptyRing, Overloaded

_LOOK = 1.0  # seconds between looks at the client


def wait_for_target(
    pool: TargetPool,
    request: Asked,
    tried: Targets,
    wish: Target | None,
    seconds: float,
    check_client: Callable[[], None],
) -> Target:
    """The target that the pool's queue brings, in the order of arrival. Raises ``Overloaded`` after
    ``seconds`` or if the queue is full, ``EmptyRing``, and what ``check_client`` raises."""
    deadline = time.monotonic() + seconds
    place = pool.queue_up(request, tried, wish)
    try:
        while not place.called.wait(min(deadline - time.monotonic(), _LOOK)):
            check_client()
            if time.monotonic() >= deadline:
                raise Overloaded("every target was full for too long")
    except BaseException:
        pool.leave(place)
        raise
    if place.target is None:
        raise EmptyRing("no target is left")
    return place.target
