"""Connector: the failover loop for connections. Pick a target, connect, evict the one that can't
be reached, try the next."""

import socket
import time
from collections.abc import Callable

from pyproxy import net
from pyproxy.balancing.policy import Targets
from pyproxy.balancing.pool import TargetPool
from pyproxy.balancing.target import Target
from pyproxy.errors import AllBusy, ConnectFailed
from pyproxy.sections import Queue
from pyproxy.waiting import wait_for_target


class Newcomer:
    """A connection that wants a target; to policies it is ``Asked``, and says nothing but where it
    comes from."""

    method = uri = ""

    def __init__(self, address: str) -> None:
        self.address = address
        self.number = -1  # in its pool, which sets it

    def header(self, name: str) -> str | None:
        return None

    cookie = query = header


class Connector:
    """Gets connections to one of a pool's targets. Called from many threads."""

    def __init__(
        self,
        pool: TargetPool,
        *,
        attempts: int,
        queue: Queue,
        connect_timeout: float,
        wishes: bool = False,
    ) -> None:
        """``wishes``: the pool's policy is a user's function."""
        self.pool = pool
        self._attempts = attempts
        self._queue = queue
        self._timeout = connect_timeout
        self._wishes = wishes

    def connect(
        self, newcomer: Newcomer, check_client: Callable[[], None]
    ) -> tuple[Target, socket.socket]:
        """A target, and a connection to it that counts until ``pool.release(target)``. Raises
        ``EmptyRing``, ``Overloaded``, ``ConnectFailed``, ``OSError`` when it is this machine that
        has run out of something, and what ``check_client`` raises."""
        pool = self.pool
        tried: Targets = ()
        while True:
            target = self._pick(newcomer, tried, check_client)
            started = time.monotonic()
            try:
                sock = self._attempt(target)
            except ConnectFailed as error:
                pool.release(target)
                pool.failed(target, str(error), error.kind)
                tried = (*tried, target)
                if len(tried) >= self._attempts:
                    raise
                pool.retried(target, error.kind)
                continue
            except BaseException:
                pool.release(target)
                raise
            if target.fails:
                pool.succeeded(target)
            now = time.monotonic()
            pool.answered(target, now - started, 0, now)
            return target, sock

    def _pick(self, newcomer: Newcomer, tried: Targets, check_client: Callable[[], None]) -> Target:
        pool, now = self.pool, time.monotonic()
        wish = pool.wish(newcomer, tried, now) if self._wishes else None
        try:
            return pool.pick(newcomer, tried, now, wish)
        except AllBusy:
            return wait_for_target(pool, newcomer, tried, wish, self._queue.timeout, check_client)

    def _attempt(self, target: Target) -> socket.socket:
        try:
            return net.connect(target.host, target.port, self._timeout)
        except OSError as error:
            if net.exhausted(error):
                raise
            raise ConnectFailed(f"connect: {net.reason(error)}") from None
        except UnicodeError:
            raise ConnectFailed("connect: the name can't be looked up") from None
