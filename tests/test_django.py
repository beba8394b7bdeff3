"""pyproxy.contrib.django: a real Django project, a PostgreSQL primary and two replicas."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import requests

from pyproxy import Proxy
from tests.postgresql import PROGRAMS, USER, Server, ask, needs_postgresql, primary_with_replicas
from tests.programs import ROOT, Program, command, program
from tests.support import closed_port, eventually

pytestmark = needs_postgresql("django", "uvicorn")

PROJECT = ROOT / "examples" / "django"
RUNSERVER = "manage.py runserver --noreload"
UVICORN = "-m uvicorn --factory django.core.asgi:get_asgi_application --lifespan off --port"

# What scripts begin with. ``at()`` is the port of the server that answers a read.
PREAMBLE = """
import json, sys, threading, time
import django
from django.conf import settings
django.setup()
from django.db import connection, connections, models, router, transaction, OperationalError
from notes.models import Note

PORT = models.Func(function="inet_server_port", output_field=models.IntegerField())

def at(rows=Note.objects):
    return rows.annotate(at=PORT).values_list("at", flat=True).first()

def tell(value):
    print(json.dumps(value), flush=True)

"""


class Project:
    """The example, with the servers of this test, the primary first."""

    def __init__(self, servers: list[Server]) -> None:
        self.replicas = servers[1:]
        self.ports = [one.port for one in servers]

    def environment(self, *ports: int) -> dict[str, str]:
        said = ",".join(map(str, ports or self.ports or (5432, 5433, 5434)))
        return {"DJANGO_SETTINGS_MODULE": "settings", "POSTGRESQL_PORTS": said}

    def manage(self, *words: str) -> str:
        """What ``manage.py`` says to these words."""
        everything = (sys.executable, "manage.py", *words)
        with command(*everything, cwd=PROJECT, env=self.environment()) as running:
            assert running.wait() == 0, running.text
            return running.text

    def script(self, source: str, *ports: int) -> Any:
        """A Django process that does something, while it runs."""
        words = (sys.executable, "-W", "error::RuntimeWarning", "-c", PREAMBLE + source)
        return command(*words, cwd=PROJECT, env=self.environment(*ports))

    def result(self, source: str, *ports: int) -> Any:
        """What a Django process says of itself, the log having nothing to say."""
        with self.script(source, *ports) as running:
            assert running.wait() == 0, running.text
            assert running.stderr == []
            return json.loads(running.stdout[-1])

    @contextlib.contextmanager
    def site(self, *ports: int, words: str = RUNSERVER) -> Iterator[tuple[str, Program]]:
        """Its web server behind the proxy: the URL, and the server's process."""
        port = closed_port()
        everything = (sys.executable, *words.split(), str(port))
        with command(*everything, cwd=PROJECT, env=self.environment(*ports)) as server:
            eventually(lambda: _answers(port), 30)
            with program("--targets", str(port), "--listen", "0") as proxy:
                yield proxy.url, server


def _answers(port: int) -> bool:
    try:
        return requests.get(f"http://127.0.0.1:{port}/notes", timeout=10).ok
    except requests.ConnectionError:
        return False


@pytest.fixture(scope="module")
def project() -> Iterator[Project]:
    with primary_with_replicas(2) as servers:
        project = Project(servers)
        project.manage("migrate", "--verbosity", "0")
        project.result("Note.objects.create(text='first'); tell(0)")
        for replica in project.replicas:
            eventually(partial(_seen, replica.port))
        yield project


def _seen(port: int) -> bool:
    return ask(port, "select to_regclass('notes_note') is not null") is True and bool(
        ask(port, "select count(*) from notes_note")
    )


@pytest.fixture
def first(project: Project) -> Iterator[Server]:
    """A replica that may be killed: it runs again afterwards."""
    server = project.replicas[0]
    yield server
    with contextlib.suppress(AssertionError):  # it runs
        server.start()
    eventually(lambda: ask(server.port, "select 1"))


def test_reads_alternate_whatever_kind_they_are(project: Project) -> None:
    one, two = project.ports[1:]
    assert project.result("tell([at() for _ in range(6)])") == [one, two] * 3
    kinds = project.result(
        """
rows = Note.objects.annotate(at=PORT)
read = lambda: [
    next(rows.iterator()).at,
    rows.in_bulk([1])[1].at,
    rows.get(pk=1).at,
    Note.objects.raw("select *, inet_server_port() as at from notes_note")[0].at,
    Note.objects.aggregate(at=models.Max(PORT))["at"],
]
tell(read() + read())
"""
    )
    assert kinds == [one, two] * 5


def test_threads_share_the_turns(project: Project) -> None:
    reads = project.result(
        """
from collections import Counter
at(), at()  # Django may make a router for each of several threads that are the first to ask
seen = []
def work():
    seen.extend(at() for _ in range(25))
    connections.close_all()
threads = [threading.Thread(target=work) for _ in range(4)]
[one.start() for one in threads]
[one.join() for one in threads]
tell(Counter(seen))
"""
    )
    assert reads == {str(port): 50 for port in project.ports[1:]}


def test_reads_after_a_write_go_to_the_primary_for_a_time(project: Project) -> None:
    primary, *replicas = project.ports
    before, after, long, later, raw = project.result(
        """
import types
from pyproxy.contrib import django as router
later = 0
router.time = types.SimpleNamespace(monotonic=lambda: time.monotonic() + later)
settings.PYPROXY_ROUTER = {"PINNED": 60}
before = at()
note = Note.objects.create(text="mine")
after = [Note.objects.filter(pk=note.pk).exists(), at(), at()]
later += 61
with transaction.atomic():
    note.save()
    later += 61
long = at()
later += 61
afterwards = at()
with connection.cursor() as cursor:
    cursor.execute("delete from notes_note where id = %s", [note.pk])
    router.pin()
raw = at()
tell([before, after, long, afterwards, raw])
"""
    )
    assert before in replicas
    assert after == [True, primary, primary]
    assert long == primary, "the time begins after the transaction"
    assert later in replicas
    assert raw == primary


@pytest.mark.parametrize("server", [RUNSERVER, UVICORN])
def test_what_is_pinned_ends_with_the_request(project: Project, server: str) -> None:
    primary, *replicas = project.ports
    with project.site(words=server) as (url, _):
        for _ in range(2):
            written = requests.post(f"{url}/notes", "x", timeout=30).json()
            assert written["from"] == primary
            read = [requests.get(f"{url}/notes", timeout=30).json()["from"] for _ in range(4)]
            assert read in ([*replicas, *replicas], [*replicas[::-1], *replicas[::-1]])


def test_in_a_transaction_everything_is_the_primarys(project: Project) -> None:
    inside, after = project.result(
        """
with transaction.atomic():
    inside = [at(), at()]
tell([inside, at()])
"""
    )
    assert inside == [project.ports[0]] * 2
    assert after in project.ports[1:], "nothing was written"


def test_a_transaction_by_hand_sees_its_own_writes_however_long_it_takes(project: Project) -> None:
    seen = project.result(
        """
settings.PYPROXY_ROUTER = {"PINNED": 0}
before = at()
transaction.set_autocommit(False)
Note.objects.create(text="not yet")
during = [at() for _ in range(4)]
transaction.rollback()
transaction.set_autocommit(True)
tell([before, during, at()])
"""
    )
    primary, one, two = project.ports
    assert seen == [one, [primary] * 4, two]


def test_an_instance_is_followed_where_it_was_read(project: Project) -> None:
    primary, one, two = project.ports
    told = project.result(
        """
settings.PYPROXY_ROUTER = {"PINNED": 0}
question = Note.objects.create(text="question")
answer = Note.objects.create(text="answer", answer_to=question)
deadline = time.monotonic() + 30
for alias in "replica1", "replica2":
    while not Note.objects.using(alias).filter(pk=answer.pk).exists():
        assert time.monotonic() < deadline
def followed(alias):
    found = Note.objects.using(alias).get(pk=answer.pk)
    return [at(found.answer_to.note_set), found.answer_to._state.db]
tell({
    "followed": [followed(alias) for alias in ("replica1", "default", "replica2", "replica1")],
    "turns": [at() for _ in range(3)],
    "explicit": [at(Note.objects.using("replica2")) for _ in range(3)],

})
answer.delete(), question.delete()
"""
    )
    assert told["followed"] == [
        [one, "replica1"],
        [primary, "default"],
        [two, "replica2"],
        [one, "replica1"],
    ]
    assert told["turns"] == [one, two, one], "who follows takes nobody's turn"
    assert told["explicit"] == [two] * 3


def test_other_databases_are_left_to_other_routers(project: Project) -> None:
    told = project.result(
        """
from pyproxy.contrib.django import ReplicaRouter
ours = ReplicaRouter()
here, there, new = Note(), Note(), Note()
here._state.db, there._state.db = "replica1", "legacy"
primary = Note()
primary._state.db = "default"
tell([
    [ours.db_for_read(Note, instance=there), ours.db_for_write(Note, instance=there)],
    [ours.db_for_write(Note, instance=here), ours.db_for_write(Note)],
    [ours.allow_relation(here, primary), ours.allow_relation(here, there)],
    [ours.allow_migrate(alias, "notes") for alias in ("default", "replica1", "legacy")],
])
"""
    )
    assert told == [[None, None], ["default"] * 2, [True, None], [None, False, None]]


def test_migrations_touch_only_the_primary_and_stream_to_the_replicas(project: Project) -> None:
    query = "select count(*) from pg_tables where tablename in ('notes_note', 'django_migrations')"
    eventually(lambda: [ask(port, query) for port in project.ports] == [2, 2, 2])
    assert "No migrations to apply" in project.manage("migrate")
    told = project.result(
        """
from django.db.migrations.executor import MigrationExecutor
tell([router.allow_migrate(alias, "notes") for alias in connections])
"""
    )
    assert told == [True, False, False]


def test_a_project_with_replicas_is_tested_as_any_other(project: Project) -> None:
    assert "Ran 2 tests" in project.manage("test")


def test_under_asgi_reads_and_writes_go_the_same_ways(project: Project) -> None:
    primary, one, two = project.ports
    reads, written, many = project.result(
        """
import asyncio
async def main():
    rows = Note.objects.annotate(at=PORT)
    reads = [(await rows.afirst()).at for _ in range(2)]
    reads += [[row.at async for row in rows][0], [row.at async for row in rows.aiterator()][0]]
    note = await Note.objects.acreate(text="async")
    written = (await rows.aget(pk=note.pk)).at
    await note.adelete()
    return [reads, written]
async def one():
    return [(await Note.objects.annotate(at=PORT).afirst()).at for _ in range(2)]
async def many():
    return await asyncio.gather(*(one() for _ in range(5)))
tell([*asyncio.run(main()), sum(asyncio.run(many()), [])])
"""
    )
    assert reads == [one, two, one, two]
    assert written == primary
    assert Counter(many) == {one: 5, two: 5}, "another task's write pins nobody else"


class Readers:
    """Threads that read all the time, with a pause between that leaves the processor to others."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.answers: list[tuple[float, int, int]] = []  # when asked, status, who answered
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._read, name=f"reader-{number}") for number in range(6)
        ]

    def _read(self) -> None:
        with requests.Session() as session:
            while not self._stop.wait(0.02):
                asked = time.monotonic()
                answer = session.get(f"{self.url}/notes", timeout=60)
                port = answer.json()["from"] if answer.ok else 0
                self.answers.append((asked, answer.status_code, port))

    def more(self, count: int = 60) -> set[int]:
        """Who answers what is asked from now on."""
        now = time.monotonic()

        def since() -> list[int]:
            return [port for asked, _, port in self.answers if asked > now]

        eventually(lambda: len(since()) >= count, 60)
        return set(since())

    def statuses(self) -> set[int]:
        return {status for _, status, _ in self.answers}

    def __enter__(self) -> "Readers":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def told_of(server: Program, alias: str, verb: str) -> list[str]:
    return [line for line in server.stderr if f"{verb} {alias}:" in line]


def test_a_replica_is_killed_under_load_and_no_read_fails(project: Project, first: Server) -> None:
    primary, one, two = project.ports
    with project.site() as (url, server):
        with Readers(url) as readers:
            assert readers.more() == {one, two}
            first.kill_processes()
            server.wait_for("evicted replica1: .*(1 of 2 live)")
            assert readers.more() == {two}
            first.start()
            server.wait_for(r"restored replica1: answered a query \(2 of 2 live\)")
            eventually(lambda: readers.more() == {one, two}, 60)
        assert readers.statuses() == {200}, server.text
        assert primary not in {port for *_, port in readers.answers}
        assert len(told_of(server, "replica1", "evicted")) == 1, server.text
        assert len(told_of(server, "replica1", "restored")) == 1


def test_when_all_replicas_are_away_the_primary_serves(project: Project) -> None:
    primary, one, two = project.ports
    with project.site() as (url, server), Readers(url) as readers:
        try:
            assert readers.more() == {one, two}
            for replica in project.replicas:
                replica.kill_processes()
            eventually(lambda: readers.more() == {primary}, 60)
        finally:
            for replica in project.replicas:
                replica.start()
        eventually(lambda: readers.more() == {one, two}, 60)
        assert readers.statuses() == {200}, server.text


@pytest.mark.parametrize("debug", [False, True])
@pytest.mark.parametrize("kind", ["list(rows)", "list(rows.iterator())"])
def test_a_query_under_way_is_asked_again_elsewhere(
    project: Project, first: Server, kind: str, debug: bool
) -> None:
    source = f"""
settings.DEBUG = {debug}
sleep = models.Func(
    template="pg_sleep(case when inet_server_port() = {first.port} then 60 else 0 end)",
    output_field=models.TextField(),
)
rows = Note.objects.annotate(at=PORT, slept=sleep).filter(pk=1)
tell({kind}[0].at)
tell(at())
"""
    with project.script(source) as running:
        active = "select count(*) from pg_stat_activity where query like '%pg_sleep(%' and "
        active += "state = 'active' and pid != pg_backend_pid()"
        eventually(lambda: ask(first.port, active), 30)
        first.kill_processes()
        assert running.wait() == 0, running.text
        assert list(map(json.loads, running.stdout)) == [project.ports[2]] * 2
        assert len(running.stderr) == 1
        assert "evicted replica1: connect: " in running.stderr[0]


def test_a_restarted_replica_is_not_evicted_for_its_old_connections(
    project: Project, first: Server
) -> None:
    source = "tell([at(), at()]); sys.stdin.read(); tell([at(), at()])"
    with project.script(source) as running:
        running.wait_for(str(project.ports[2]))
        first.kill_processes()
        first.start()
        running.close_input()
        assert running.wait() == 0, running.text
        assert running.stdout[0] == running.stdout[1]
        assert running.stderr == []


def test_a_read_that_names_its_replica_gets_no_other_and_harms_no_later_one(
    project: Project, first: Server
) -> None:
    source = """
at(Note.objects.using("replica1"))
tell("ready")
sys.stdin.readline()
failed = []
try:
    at(Note.objects.using("replica1"))
except OperationalError:
    failed.append("explicit")
tell([failed, at(), at()])
"""
    with project.script(source) as running:
        running.wait_for("ready")
        first.kill_processes()
        running.close_input()
        assert running.wait() == 0, running.text
        two = project.ports[2]
        assert json.loads(running.stdout[-1]) == [["explicit"], two, two]


def test_what_wraps_statements_for_a_time_is_gone_afterwards_and_no_read_fails(
    project: Project, first: Server
) -> None:
    """The router's own wrapper went in its place, if the replica was first read from meanwhile."""
    source = """
from contextlib import ExitStack
seen = []
def wrapper(name):
    def wrap(execute, *rest):
        seen.append(name)
        return execute(*rest)
    return wrap
for name in ("once", "again"):
    with ExitStack() as stack:
        for alias in connections:
            stack.enter_context(connections[alias].execute_wrapper(wrapper(name)))
        at(), at()
tell(seen)
at(), at()
sys.stdin.readline()
tell([len(seen), at(), at(), at()])
"""
    with project.script(source) as running:
        assert json.loads(running.wait_for(".*again.*")[0]) == ["once", "once", "again", "again"]
        first.kill_processes()
        running.close_input()
        assert running.wait() == 0, running.text
        seen, *reads = json.loads(running.stdout[-1])
        assert seen == 4
        assert set(reads) <= set(project.ports[1:])


def test_a_transaction_on_a_replica_is_not_torn_apart(project: Project, first: Server) -> None:
    source = """
try:
    with transaction.atomic(using="replica1"):
        router.db_for_read(Note)  # its turn: this router has a look at that connection
        first = Note.objects.get(pk=1)
        assert first._state.db == "replica1"
        tell("ready")
        sys.stdin.readline()
        at()
        at()
except OperationalError:
    tell(at())
"""
    with project.script(source) as running:
        running.wait_for("ready")
        first.kill_processes()
        running.close_input()
        assert running.wait() == 0, running.text
        assert json.loads(running.stdout[-1]) == project.ports[2]


def test_what_is_half_read_fails_and_the_next_read_does_not(
    project: Project, first: Server
) -> None:
    source = """
settings.PYPROXY_ROUTER = {"PINNED": 0}
more = Note.objects.bulk_create([Note(text="more") for _ in range(9)])
for alias in "replica1", "replica2":
    while not Note.objects.using(alias).filter(pk=more[-1].pk).exists():
        time.sleep(0.01)
rows = Note.objects.iterator(chunk_size=1)
next(rows)
tell("ready")
sys.stdin.readline()
try:
    list(rows)
except OperationalError:
    tell([at(), at()])
Note.objects.filter(text="more").delete()
"""
    with project.script(source) as running:
        running.wait_for("ready")
        first.kill_processes()
        running.close_input()
        assert running.wait() == 0, running.text
        assert json.loads(running.stdout[-1]) == [project.ports[2]] * 2


def test_an_error_of_the_query_is_the_programs(project: Project) -> None:
    told = project.result(
        """
at(), at()
for alias in "replica1", "replica2":
    connections[alias].cursor().execute("set statement_timeout = '100ms'")
sleep = models.Func(models.Value(9), function="pg_sleep", output_field=models.TextField())
try:
    list(Note.objects.annotate(slept=sleep))
except OperationalError as error:
    tell([str(error).strip(), at(), at()])
"""
    )
    assert told == ["canceling statement due to statement timeout", *project.ports[:0:-1]]


def test_a_forked_process_finds_out_for_itself(project: Project, first: Server) -> None:
    source = """
import os
tell([at(), at()])
sys.stdin.readline()
tell([at(), at()])  # the replica is evicted here: the thread runs that probes it
connections.close_all()
if child := os.fork():
    os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
tell([at(), at()])
while len({at(), at()}) < 2:
    time.sleep(0.05)
"""
    with project.script(source) as running:
        running.wait_for(str(project.ports[1]))
        first.kill_processes()
        running.close_input()
        eventually(lambda: len(running.stdout) == 3, 30)
        assert json.loads(running.stdout[2]) == [project.ports[2]] * 2
        first.start()
        assert running.wait() == 0, running.text
        evicted = [line for line in running.stderr if "evicted replica1" in line]
        assert len(evicted) == 2, "one a process"


BAD_SETTINGS: list[tuple[object, str]] = [
    ([], "PYPROXY_ROUTER: expected a dict"),
    ({"SLEEPS": 1}, 'PYPROXY_ROUTER.SLEEPS: unknown setting (did you mean "SLEEPING"?)'),
    ({"SLEEPING": 0}, "PYPROXY_ROUTER.SLEEPING: expected a number above 0"),
    ({"PINNED": "long"}, "PYPROXY_ROUTER.PINNED: expected a number from 0"),
    ({"PRIMARY": None}, "PYPROXY_ROUTER.PRIMARY: expected a text"),
    ({"REPLICAS": ["replica1", 2]}, "PYPROXY_ROUTER.REPLICAS[1]: expected a text"),
    ({"REPLICAS": ["replica3"]}, 'PYPROXY_ROUTER: DATABASES has no "replica3"'),
    ({"REPLICAS": ["default"]}, "PYPROXY_ROUTER: REPLICAS names the primary, or one twice"),
    ({"REPLICAS": ["replica1"] * 2}, "PYPROXY_ROUTER: REPLICAS names the primary, or one twice"),
    (
        {"PRIMARY": "replica1"},
        "PYPROXY_ROUTER: no replicas: name them in REPLICAS, or give them "
        '"TEST": {"MIRROR": "replica1"} in DATABASES',
    ),
    (
        {"SLEEPING": 0, "PINNED": -1},
        "PYPROXY_ROUTER.SLEEPING: expected a number above 0\n"
        "PYPROXY_ROUTER.PINNED: expected a number from 0",
    ),
]


def test_bad_settings_are_refused_with_a_remedy() -> None:
    source = """
from django.core.exceptions import ImproperlyConfigured
from pyproxy.contrib.django import ReplicaRouter
def said():
    try:
        ReplicaRouter()
    except ImproperlyConfigured as error:
        return str(error)
told = []
for case in json.loads(sys.stdin.read()):
    settings.PYPROXY_ROUTER = case
    told.append(said())
settings.PYPROXY_ROUTER = {"REPLICAS": ("replica1",)}
told.append(said())
settings.DATABASES["replica1"]["ATOMIC_REQUESTS"] = True
told.append(said())
tell(told)
"""
    with Project([]).script(source) as running:
        assert running.process.stdin
        running.process.stdin.write(json.dumps([case for case, _ in BAD_SETTINGS]))
        running.close_input()
        assert running.wait() == 0, running.text
        assert json.loads(running.stdout[-1]) == [
            *(said for _, said in BAD_SETTINGS),
            None,
            'PYPROXY_ROUTER: "replica1" has ATOMIC_REQUESTS: each request would fail with it; '
            "leave that out",
        ]


def test_behind_tcp_mode_no_read_fails_either(project: Project, first: Server) -> None:
    primary, one, two = project.ports
    entry = {"listen": 0, "targets": [f"tcp://127.0.0.1:{at}" for at in (one, two)]}
    with Proxy(tcp=[{**entry, "sleeping": 0.2}]) as tcp:
        port = int(tcp.url.rpartition(":")[2])
        with project.site(primary, port) as (url, server), Readers(url) as readers:
            assert readers.more() == {one, two}
            first.kill_processes()
            eventually(lambda: len(tcp.pool.live) == 1)
            eventually(lambda: readers.more() == {two}, 60)
        assert readers.statuses() == {200}, server.text


PAGE = (ROOT / "docs" / "django.md").read_text(encoding="utf-8")
DATABASE_PROGRAMS = ("initdb", "pg_ctl", "pg_basebackup")


def test_the_page_lists_the_settings_as_they_are() -> None:
    source = """
from pyproxy.contrib.django import RouterSettings
from pyproxy.options import declared
tell([[path, json.dumps(default) if path == "PRIMARY" else repr(default), one.unit, one.help]
      for path, one, default in declared(RouterSettings)])
"""
    with Project([]).script(source) as running:
        assert running.wait() == 0, running.text
        for name, default, unit, help in json.loads(running.stdout[-1]):
            assert f"| `{name}` | {f'`{default}` {unit}'.strip()} | {help} |" in PAGE


class Page:
    """docs/django.md, whose commands are run as they stand there, but for the ports."""

    def __init__(self, folder: Path, stack: contextlib.ExitStack) -> None:
        self.folder = folder  # where the databases are
        self.ports = {name: str(closed_port()) for name in re.findall(r"\b\d{4,5}\b", PAGE)}
        self.programs: dict[str, Program] = {}
        self._stack = stack
        self._path = f"{Path(sys.executable).parent}:{PROGRAMS}:{os.environ['PATH']}"
        self.project = Path(shutil.copytree(PROJECT, folder / "project"))
        settings = self.project / "appsettings.json"
        settings.write_text(self.elsewhere(settings.read_text()))

    def elsewhere(self, text: str) -> str:
        return re.sub(r"\b\d{4,5}\b", lambda found: self.ports.get(found[0], found[0]), text)

    def do(self, line: str) -> str:
        """What the command says."""
        line = self.elsewhere(line)
        said = ",".join(self.ports[name] for name in ("5432", "5433", "5434"))
        env = {**os.environ, "PATH": self._path, "PYTHONPATH": str(ROOT), "POSTGRESQL_PORTS": said}
        if re.search("runserver|pyproxy", line):
            words = ("bash", "-c", line)
            started = self._stack.enter_context(command(*words, cwd=self.project, env=env))
            self.programs[line.split()[-1]] = started
            started.wait_for("Quit the server|listens on")
            return ""
        databases = line.startswith(DATABASE_PROGRAMS)
        done = subprocess.run(
            ["bash", "-c", line],
            user=USER if databases and os.geteuid() == 0 else None,
            extra_groups=[] if databases and os.geteuid() == 0 else None,
            cwd=self.folder if databases else self.project,
            env=env,
            stdin=subprocess.DEVNULL,
            # No pipe for a server: it would inherit it.
            stdout=None if databases else subprocess.PIPE,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, line
        return done.stdout or ""


def test_the_page_does_what_it_says() -> None:
    with contextlib.ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="pyproxy-django-"))
        stack.callback(shutil.rmtree, folder)
        if os.geteuid() == 0:
            assert USER
            shutil.chown(folder, USER)
        page = Page(folder, stack)
        stack.callback(stop_databases, page)
        logged, answers = [], 0
        for kind, block in re.findall(r"```(\w*)\n(.*?)```", PAGE, re.DOTALL):
            if kind == "sh":
                for line in block.splitlines():
                    page.do(line)
            elif block.startswith("$ "):
                for asked, answered in re.findall(r"\$ (.*)\n(.*)\n", block):
                    assert page.do(asked) == page.elsewhere(answered), asked
                    answers += 1
                    if "-d" in asked:
                        for name in ("5433", "5434"):
                            eventually(partial(_seen, int(page.ports[name])), 30)
            elif not kind:
                logged += page.elsewhere(block).splitlines()
                server = page.programs[page.ports["8001"]]
                for line in logged:
                    server.wait_for(re.escape(line))
        assert (answers, len(logged)) == (7, 2)


def stop_databases(page: Page) -> None:
    for name in ("replica2", "replica1", "primary"):
        with contextlib.suppress(AssertionError):  # it doesn't run
            page.do(f"pg_ctl -D {name} -m immediate stop")
