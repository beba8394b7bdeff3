"""TCP mode in front of a real PostgreSQL: a primary, a streaming replica, and its death."""

from collections.abc import Iterator

import pytest

from pyproxy import Proxy
from tests.postgresql import Server, ask, needs_postgresql, primary_with_replicas
from tests.support import eventually

pytestmark = needs_postgresql()


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[Server, Server]]:
    with primary_with_replicas(1) as [primary, replica]:
        yield primary, replica


def test_queries_go_on_when_a_replica_dies_and_reach_it_when_it_is_back(
    servers: tuple[Server, Server],
) -> None:
    import psycopg

    primary, replica = servers
    targets = [f"tcp://127.0.0.1:{one.port}" for one in servers]
    entry = {"listen": 0, "targets": targets, "sleeping": 0.2}
    with Proxy(tcp=[entry]) as proxy:
        port = int(proxy.url.rpartition(":")[2])

        def kinds(count: int = 6) -> set[object]:
            """Whether those who answer are replicas."""
            return {ask(port, "select pg_is_in_recovery()") for _ in range(count)}

        assert kinds() == {True, False}
        with psycopg.connect(
            f"host=127.0.0.1 port={primary.port} user=postgres dbname=postgres", autocommit=True
        ) as direct:
            query = "select repeat('x', 1000) as x from generate_series(1, 20000)"
            direct.execute(f"create table t as {query}".encode())
        eventually(lambda: ask(replica.port, "select to_regclass('t') is not null"))
        counted = {ask(port, "select sum(length(x)) from t") for _ in range(4)}
        assert counted == {20_000_000}
        with psycopg.connect(
            f"host=127.0.0.1 port={port} user=postgres dbname=postgres"
        ) as connection:  # 20 MB through the relay
            rows = connection.execute("select x from t").fetchall()
            assert sum(len(row[0]) for row in rows) == 20_000_000

        replica.kill()
        assert kinds() == {False}
        assert len(proxy.pool.live) == 1

        replica.start()
        eventually(lambda: len(proxy.pool.live) == 2)
        eventually(lambda: kinds() == {True, False})
        eventually(lambda: [one.what for one in proxy.history()] == ["evicted", "restored"])


def test_a_session_ends_with_its_server_and_the_next_one_works(
    servers: tuple[Server, Server],
) -> None:
    import psycopg

    primary, replica = servers
    targets = [f"tcp://127.0.0.1:{one.port}" for one in (replica, primary)]
    entry = {"listen": 0, "targets": targets, "policy": "first", "sleeping": 60}
    with Proxy(tcp=[entry]) as proxy:
        port = int(proxy.url.rpartition(":")[2])
        where = f"host=127.0.0.1 port={port} user=postgres dbname=postgres"
        with psycopg.connect(where, autocommit=True) as session:
            assert session.execute("select pg_is_in_recovery()").fetchone() == (True,)
            replica.kill()
            with pytest.raises(psycopg.OperationalError):
                session.execute("select 1")
        assert ask(port, "select pg_is_in_recovery()") is False
    replica.start()
