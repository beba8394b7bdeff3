"""TCP mode in front of a real PostgreSQL: a primary, a streaming replica, and its death."""

import importlib.util
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from pyproxy import Proxy
from tests.support import closed_port, eventually

pwd = pytest.importorskip("pwd", reason="users as on Unix")


def _programs() -> Path | None:
    """Where Debian, or PATH, has the server's programs."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found and (initdb := shutil.which("initdb")):
        found = [Path(initdb)]
    return found[-1].parent if found else None


def _user() -> str | None:
    """Who the server may run as: not root."""
    if os.geteuid():
        return str(pwd.getpwuid(os.geteuid()).pw_name)
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            return str(pwd.getpwnam(name).pw_name)
    return None


PROGRAMS, USER = _programs(), _user()
missing = [
    name
    for name, there in (
        ("PostgreSQL's server", PROGRAMS),
        ("psycopg", importlib.util.find_spec("psycopg")),
        ("a user to run it", USER),
    )
    if not there
]
pytestmark = pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


class Server:
    """A PostgreSQL server with its data in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = closed_port()

    def run(self, name: str, *arguments: object) -> None:
        assert PROGRAMS
        done = subprocess.run(
            [PROGRAMS / name, *map(str, arguments)],
            user=USER if os.geteuid() == 0 else None,
            extra_groups=[] if os.geteuid() == 0 else None,
            cwd=self.folder.parent,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,  # no pipe: the server would inherit it
            stderr=(log := open(f"{self.folder}.err", "w+")),  # noqa: SIM115
            timeout=120,
        )
        with log:
            log.seek(0)
            assert done.returncode == 0, f"{name}: {log.read()}"

    def initialise(self) -> None:
        self.run("initdb", "-D", self.folder, "-U", "postgres", "-A", "trust", "--no-sync")

    def copy(self, primary: "Server") -> None:
        self.run(
            *("pg_basebackup", "-h", "127.0.0.1", "-p", primary.port, "-U", "postgres"),
            *("-D", self.folder, "-R", "-X", "stream", "--checkpoint=fast", "--no-sync"),
        )

    def start(self) -> None:
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= "
        options += "-c fsync=off -c max_connections=20 -c shared_buffers=16MB"
        log = f"{self.folder}.log"
        self.run("pg_ctl", "start", "-w", "-D", self.folder, "-l", log, "-o", options)

    def kill(self) -> None:
        """As if its machine had lost power."""
        self.run("pg_ctl", "stop", "-w", "-m", "immediate", "-D", self.folder)


@contextmanager
def running(server: Server) -> Iterator[Server]:
    server.start()
    try:
        yield server
    finally:
        with suppress(AssertionError):  # killed already
            server.kill()


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[Server, Server]]:
    folder = Path(tempfile.mkdtemp(prefix="pyproxy-postgresql-"))  # pytest's is root's alone
    try:
        if os.geteuid() == 0:
            assert USER
            shutil.chown(folder, USER)
        primary, replica = Server(folder / "primary"), Server(folder / "replica")
        primary.initialise()
        with running(primary):
            replica.copy(primary)
            with running(replica):
                yield primary, replica
    finally:
        shutil.rmtree(folder)


def ask(port: int, query: str) -> object:
    import psycopg

    with psycopg.connect(
        f"host=127.0.0.1 port={port} user=postgres dbname=postgres", connect_timeout=30
    ) as connection:
        row = connection.execute(query.encode()).fetchone()
        return row and row[0]


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
