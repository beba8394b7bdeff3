"""ReplicaRouter: a Django project reads from replicas and writes to their primary.

db_for_read             the primary after a write or in a transaction, else:
  _reach                  whose turn it is among the live replicas
    _open                   its connection is there, or it is evicted and the next one is asked
_guard                  around each statement on a replica: the connection was lost under it?
  _reach                  the same replica on a new connection, then another, then the primary
"""

import itertools
import math
import os
import threading
import time
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured, SynchronousOnlyOperation
from django.core.signals import request_started
from django.db import Error, InterfaceError, OperationalError, connections

from pyproxy.balancing.hashring import HashRing
from pyproxy.balancing.policy import Targets
from pyproxy.balancing.pool import TargetPool
from pyproxy.balancing.target import Target
from pyproxy.errors import EmptyRing
from pyproxy.health.checks import CheckFailed
from pyproxy.health.recovery import RecoveryThread
from pyproxy.options import option, read_object
from pyproxy.readers import Json, list_of, number, optional, parts, text

SETTING = "PYPROXY_ROUTER"


def _aliases(value: Json) -> tuple[str, ...]:
    return list_of(text)(list(value) if isinstance(value, tuple) else value)


@dataclass(frozen=True)
class RouterSettings:
    """``PYPROXY_ROUTER`` in Django's settings."""

    PRIMARY: str = option("default", "the database that is written to", text)
    REPLICAS: tuple[str, ...] | None = option(
        None, "those that are read from (None: each whose TEST MIRROR is it)", optional(_aliases)
    )
    SLEEPING: float = option(
        10.0, "between two probes of an evicted replica", number(0, above=True), "seconds"
    )
    PINNED: float = option(
        5.0, "reads after a write go to the primary, counted from the first", number(0), "seconds"
    )


def read_settings() -> tuple[RouterSettings, tuple[str, ...]]:
    """What Django's settings say, and the replicas. Raises ``ImproperlyConfigured``."""
    data = getattr(settings, SETTING, {})
    try:
        if not isinstance(data, dict):
            raise ValueError("expected a dict")
        said = read_object(RouterSettings, {str(key): value for key, value in data.items()})
        return said, _replicas(said, settings.DATABASES)
    except ValueError as error:
        problems = [f"{SETTING}{path}: {problem}" for path, problem in parts(error)]
        raise ImproperlyConfigured("\n".join(problems)) from None


def _replicas(said: RouterSettings, databases: dict[str, dict[str, Any]]) -> tuple[str, ...]:
    primary, replicas = said.PRIMARY, said.REPLICAS
    if replicas is None:
        mirrors = {name: one.get("TEST", {}).get("MIRROR") for name, one in databases.items()}
        replicas = tuple(name for name, mirror in mirrors.items() if mirror == primary)
    if not replicas:
        mark = f'"TEST": {{"MIRROR": "{primary}"}}'
        raise ValueError(f"no replicas: name them in REPLICAS, or give them {mark} in DATABASES")
    for alias in (primary, *replicas):
        if alias not in databases:
            raise ValueError(f'DATABASES has no "{alias}"')
    if len({primary, *replicas}) <= len(replicas):
        raise ValueError("REPLICAS names the primary, or one twice")
    for alias in replicas:
        if databases[alias].get("ATOMIC_REQUESTS"):
            raise ValueError(
                f'"{alias}" has ATOMIC_REQUESTS: each request would fail with it; leave that out'
            )
    return replicas


# When the reads of this request (or of this thread, outside of requests) may leave the primary
# again; infinite after a write that no read has followed yet. asgiref carries such variables
# between an event loop and the threads that query for it.
_pinned_until = ContextVar("pyproxy_pinned_until", default=-math.inf)


def pin() -> None:
    """Sends this request's reads to the primary, as a write does: for those writes that Django's
    models don't do, like SQL through a cursor."""
    _pinned_until.set(math.inf)


def _unpin(**_: object) -> None:
    _pinned_until.set(-math.inf)


class _Read:
    """One read's way: a number for its turn (-1: it took none), and whom it has been to."""

    __slots__ = ("lost", "number", "target", "tried")

    def __init__(self, number: int = -1) -> None:
        self.number = number
        self.target: Target | None = None  # None: the primary
        self.lost: Target | None = None  # whose connection was lost under it last
        self.tried: Targets = ()


# What got its replica, and hasn't asked it yet.
_waiting: ContextVar[_Read | None] = ContextVar("pyproxy_waiting", default=None)


class ReplicaRouter:
    """For ``DATABASE_ROUTERS``, behind routers that know better. Its options: ``RouterSettings``.

    Raises ``ImproperlyConfigured``. It has connected to nobody then; its thread starts when the
    first replica is evicted. Each process has its own opinion of who is live.
    """

    def __init__(self) -> None:
        said, self._replicas = read_settings()
        self._primary, self._pinned = said.PRIMARY, said.PINNED
        self._sleeping = said.SLEEPING
        self._ours = {self._primary, *self._replicas}
        self._begin()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._begin)  # no thread lives on in a child
        request_started.connect(_unpin)

    def _begin(self) -> None:
        self._pool = TargetPool(Target(alias, alias, 0) for alias in self._replicas)
        self._recovery = RecoveryThread(self._pool, _probe, self._sleeping)
        self._numbers = itertools.count()
        # Protects the start of the recovery thread.
        self._lock = threading.Lock()

    def db_for_read(self, model: Any, **hints: Any) -> str | None:
        """Where the instance in the hints was read, if that serves; else whose turn it is."""
        home = self._home(hints)
        if home not in (None, *self._ours):
            return None
        if home == self._primary or self._must_see_writes():
            return self._primary
        # Django asks more than once for some reads: that is one turn, until a statement runs.
        waiting = _waiting.get()
        _waiting.set(None)  # statements of connecting are none of its
        if home:
            read = _Read()
        elif waiting and waiting.number >= 0:
            read = _Read(waiting.number)
        else:
            read = _Read(next(self._numbers))
        alias = self._reach(read, home)
        _waiting.set(read)
        return alias

    def db_for_write(self, model: Any, **hints: Any) -> str | None:
        if self._home(hints) not in (None, *self._ours):
            return None
        if waiting := _waiting.get():
            waiting.target = None  # Django asked where to read before this write, and won't
        pin()
        return self._primary

    def allow_relation(self, one: Any, other: Any, **hints: Any) -> bool | None:
        return True if {one._state.db, other._state.db} <= self._ours else None

    def allow_migrate(self, db: str, app_label: str, **hints: Any) -> bool | None:
        return False if db in self._replicas else None

    def _home(self, hints: dict[str, Any]) -> str | None:
        state = getattr(hints.get("instance"), "_state", None)
        return state.db if state else None

    def _must_see_writes(self) -> bool:
        primary = connections[self._primary]
        if primary.in_atomic_block or (primary.connection is not None and not primary.autocommit):
            return True
        now, until = time.monotonic(), _pinned_until.get()
        if until == math.inf:
            # Only now: the write, or its transaction, may have taken its time.
            until = now + self._pinned
            _pinned_until.set(until)
        return now < until

    def _reach(self, read: _Read, wish: str | None) -> str:
        """Gives the read to ``wish``, if that is live, or to whose turn it is; to the primary when
        nobody is left. Returns the alias: its connection is open."""
        while True:
            left = [one for one in self._pool.live if one not in read.tried]
            read.target = next((one for one in left if one.url == wish), None)
            if not read.target:
                if read.number < 0:
                    read.number = next(self._numbers)
                try:
                    read.target = HashRing(left)[read.number]
                except EmptyRing:
                    return self._primary
            if self._open(read.target):
                return read.target.url
            read.tried += (read.target,)

    def _open(self, target: Target) -> bool:
        connection = connections[target.url]
        if self._guard not in connection.execute_wrappers:
            # Outermost: who leaves ``connection.execute_wrapper(…)`` takes away the innermost.
            connection.execute_wrappers.insert(0, self._guard)
        if connection.in_atomic_block:
            return True  # the user's transaction: nobody else can serve it
        try:
            if connection.errors_occurred:
                connection.close_if_unusable_or_obsolete()
            connection.close_if_health_check_failed()
            connection.ensure_connection()
        except SynchronousOnlyOperation:
            pass  # an event loop wants to know a name: it asks again in the thread that queries
        except Error as error:
            connection.close()
            self._evict(target, f"connect: {_brief(error)}")
            return False
        return True

    def _guard(self, execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        """Around each statement on a replica. One that this router sent there, and that lost its
        connection, is a read that nobody has seen a row of: it is asked again elsewhere."""
        connection, read = context["connection"], _waiting.get()
        if not read or not read.target or read.target.url != connection.alias:
            return execute(sql, params, many, context)
        _waiting.set(None)
        try:
            return execute(sql, params, many, context)
        except (OperationalError, InterfaceError) as error:
            transaction = connection.in_atomic_block or not connection.autocommit
            if many or transaction or connection.is_usable():
                raise
            alias = self._elsewhere(read, read.target, error)
        # Who waits for the rows holds this cursor: it gets another inside.
        cursor, other = context["cursor"], connections[alias]
        server_side = getattr(cursor.cursor, "name", None)
        cursor.cursor = (other.chunked_cursor() if server_side else other.cursor()).cursor
        cursor.db = other
        _waiting.set(read)
        return cursor.execute(sql, params)

    def _elsewhere(self, read: _Read, target: Target, error: Exception) -> str:
        """A lost connection says little of the replica, which may have been restarted: it gets a
        second chance on a new one."""
        if read.lost is not target:
            read.lost = target
            return self._reach(read, target.url)
        self._evict(target, f"lost: {_brief(error)}")
        read.tried += (target,)
        return self._reach(read, None)

    def _evict(self, target: Target, reason: str) -> None:
        with self._lock:
            if self._recovery.ident is None:
                self._recovery.start()
        self._pool.failed(target, reason)


def _probe(target: Target) -> str:
    """A replica that takes a connection and answers a query is back."""
    connection = connections.create_connection(target.url)
    try:
        connection.ensure_connection()
        if not connection.is_usable():
            raise CheckFailed("took a connection, and answered no query")
    except Error as error:
        raise CheckFailed(f"connect: {_brief(error)}") from None
    finally:
        connection.close()
    return "answered a query"


def _brief(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
