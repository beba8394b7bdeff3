"""pytest's plugin: the fixture ``load_balancer``. Every run of pytest imports this module where
pyproxy is installed, so that it imports next to nothing itself."""

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pyproxy.lab.balancer import LoadBalancer


@pytest.fixture
def load_balancer() -> "Iterator[Callable[..., LoadBalancer]]":
    """Starts proxies in front of targets that fail when they are told to: ``with
    load_balancer([app, app, app]) as lb: requests.get(lb.url)``; what is started without ``with``
    ends with the test. The arguments are those of ``pyproxy.lab.balancer.LoadBalancer``."""
    from pyproxy.lab.balancer import LoadBalancer

    with contextlib.ExitStack() as stack:

        def start(*targets: Any, **said: Any) -> LoadBalancer:
            return stack.enter_context(LoadBalancer(*targets, **said))

        yield start
