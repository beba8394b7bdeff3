"""Real PostgreSQL servers for tests: Debian's, or those of PATH, as a user who isn't root."""

import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.support import closed_port

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


def needs_postgresql(*modules: str) -> pytest.MarkDecorator:
    """Skips without a server, a user for it, psycopg, or one of ``modules``."""
    parts = {"PostgreSQL's server": PROGRAMS, "a user to run it": USER}
    found = {name: importlib.util.find_spec(name) for name in ("psycopg", *modules)}
    missing = [name for name, there in (*parts.items(), *found.items()) if not there]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


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
        options += "-c fsync=off -c shared_buffers=16MB"
        log = f"{self.folder}.log"
        self.run("pg_ctl", "start", "-w", "-D", self.folder, "-l", log, "-o", options)

    def kill(self) -> None:
        """As if its machine had lost power."""
        self.run("pg_ctl", "stop", "-w", "-m", "immediate", "-D", self.folder)

    def kill_processes(self) -> None:
        """SIGKILL to all of its processes: none can say goodbye."""
        file = self.folder / "postmaster.pid"
        parent = int(file.read_text().split()[0])
        os.kill(parent, signal.SIGSTOP)  # it starts no more
        children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        for process in (*map(int, children), parent):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        file.unlink()  # a process id that nobody has waited for yet looks like one that runs


@contextmanager
def running(server: Server) -> Iterator[Server]:
    server.start()
    try:
        yield server
    finally:
        with suppress(AssertionError):  # killed already
            server.kill()


@contextmanager
def primary_with_replicas(count: int) -> Iterator[list[Server]]:
    """A primary and its streaming replicas, all running; no data is left."""
    folder = Path(tempfile.mkdtemp(prefix="pyproxy-postgresql-"))  # pytest's is root's alone
    try:
        if os.geteuid() == 0:
            assert USER
            shutil.chown(folder, USER)
        primary = Server(folder / "primary")
        primary.initialise()
        with contextlib.ExitStack() as stack:
            servers = [stack.enter_context(running(primary))]
            for number in range(1, count + 1):
                replica = Server(folder / f"replica{number}")
                replica.copy(primary)
                servers.append(stack.enter_context(running(replica)))
            yield servers
    finally:
        shutil.rmtree(folder)


def ask(port: int, query: str) -> object:
    """The first column of the first row, on a connection of its own."""
    import psycopg

    with psycopg.connect(
        f"host=127.0.0.1 port={port} user=postgres dbname=postgres", connect_timeout=30
    ) as connection:
        row = connection.execute(query.encode()).fetchone()
        return row and row[0]
