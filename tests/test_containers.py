"""Targets in containers, and a Swarm's service that is scaled, on a real engine."""

import contextlib
import gc
import io
import json
import os
import re
import shutil
import socket
import subprocess
import tarfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from pyproxy import Proxy
from pyproxy.control.handover import Inheritance
from pyproxy.errors import ControlError, PyproxyError, SettingsError
from pyproxy.scaling import engine as engine_module
from pyproxy.scaling import fleets
from pyproxy.scaling.containers import DockerLauncher
from pyproxy.scaling.engine import Engine
from pyproxy.scaling.launcher import Instance, LauncherAway, LaunchError
from pyproxy.scaling.swarm import Swarm
from pyproxy.scaling_settings import Scaling, Version, read_scaling
from pyproxy.settings import parse
from tests.conftest import alone_on_this_machine
from tests.programs import ROOT, program
from tests.support import Load, RawTarget, Wire, eventually, get, letters

docker = pytest.importorskip("docker")

PORT = 8000  # inside
BUSY = 60.0  # seconds for an engine that has much else to do

APP = """
import os, signal, sys, threading, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.path == "/die":
            print("Traceback (most recent call last):", file=sys.stderr)
            print("ValueError: no bread", file=sys.stderr)
            print("", file=sys.stderr, flush=True)
            os._exit(3)
        if self.path == "/wait":
            gate.wait()
        if self.path == "/go":
            gate.set()
        if self.path == "/eat":
            eaten = bytearray(os.urandom(1 << 20) * 200)
        if self.path == "/work":
            until = time.process_time() + 0.5
            while time.process_time() < until:
                pass
        body = os.environ.get("GREETING", "hello").encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass

gate = threading.Event()
stubborn = os.environ.get("STUBBORN")
signal.signal(signal.SIGTERM, signal.SIG_IGN if stubborn else lambda *_: sys.exit())
ThreadingHTTPServer(("0.0.0.0", int(sys.argv[1])), Handler).serve_forever()
"""

DOCKERFILE = f"""
FROM python:3.12-slim
COPY app.py /
CMD ["python", "/app.py", "{PORT}"]
"""


@pytest.fixture(scope="module")
def engine() -> Iterator[Any]:
    """What a user's own commands would see."""
    try:
        client = docker.from_env().api
    except docker.errors.DockerException as error:
        pytest.skip(f"no Docker engine answers: {error}")
    with contextlib.closing(client):
        yield client


@pytest.fixture(scope="module")
def image(engine: Any) -> Iterator[str]:
    called = f"pyproxy-test-target:{os.getpid()}"
    context = io.BytesIO()
    with tarfile.open(fileobj=context, mode="w") as archive:
        for name, text in (("Dockerfile", DOCKERFILE), ("app.py", APP)):
            entry = tarfile.TarInfo(name)
            entry.size = len(text.encode())
            archive.addfile(entry, io.BytesIO(text.encode()))
    context.seek(0)
    said = list(
        engine.build(fileobj=context, custom_context=True, tag=called, rm=True, decode=True)
    )
    assert not [line for line in said if "error" in line], said
    yield called
    engine.remove_image(called, force=True)


class Launcher(DockerLauncher):
    """One that says what it makes."""

    @property
    def version(self) -> Version:
        return self._said.version


class Place:
    """Launchers of one owner that nobody else is."""

    def __init__(self, engine: Any, image: str) -> None:
        self.engine, self.image = engine, image
        self.owner = f"test-{uuid.uuid4().hex}"

    def scaling(self, **said: Any) -> Scaling:
        base = {"launcher": "docker", "image": self.image, "port": PORT, "stop_timeout": 1}
        return read_scaling({**base, **said})

    @contextlib.contextmanager
    def launcher(self, pool: str = "web", **said: Any) -> Iterator[Launcher]:
        launcher = Launcher(self.scaling(**said), self.owner, pool)
        try:
            yield launcher
        finally:
            launcher.close(keep=True)

    def containers(self) -> list[dict[str, Any]]:
        label = f"pyproxy.owner={self.owner}"
        found: list[dict[str, Any]] = self.engine.containers(all=True, filters={"label": [label]})
        return found


@pytest.fixture
def place(engine: Any, image: str) -> Iterator[Place]:
    place = Place(engine, image)
    yield place
    for one in place.containers():
        engine.remove_container(one["Id"], force=True, v=True)


def ask(instance: Instance, path: str = "/") -> str:
    with requests.Session() as session:
        session.trust_env = False
        return session.get(instance.url + path, timeout=BUSY).text


def answers(instance: Instance, path: str = "/") -> str | None:
    try:
        return ask(instance, path)
    except requests.ConnectionError:
        return None


def serving(launcher: DockerLauncher, name: str, version: Version) -> Instance:
    """Started, and waited for."""
    instance = launcher.start(name, version)
    eventually(lambda: answers(instance), BUSY)
    return instance


class Relay(RawTarget):
    """Leads to the engine, until it is stopped, and when it is started again."""

    def __init__(self) -> None:
        self.loses = b""  # the answer to a request with this
        super().__init__(self._lead)

    def _lead(self, _: RawTarget, wire: Wire) -> None:
        asked = b""

        def there(data: bytes) -> bool:
            nonlocal asked
            asked = data
            return True

        def back(_: bytes) -> bool:
            return not self.loses or self.loses not in asked

        wire.sock.settimeout(None)
        with socket.socket(socket.AF_UNIX) as real:
            real.connect(ENGINE_SOCKET)
            answers = threading.Thread(target=copy, args=(real, wire.sock, back), name="relay")
            answers.start()
            copy(wire.sock, real, there)
            answers.join()


def copy(source: socket.socket, sink: socket.socket, passes: Callable[[bytes], bool]) -> None:
    with contextlib.suppress(OSError):
        while (data := source.recv(65536)) and passes(data):
            sink.sendall(data)
    for sock in (source, sink):
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)


ENGINE_SOCKET = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock").removeprefix("unix://")


@pytest.fixture
def relay(engine: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Relay]:
    if "://" in ENGINE_SOCKET:
        pytest.skip("the engine isn't reached through a socket of this machine")
    with Relay() as relay:
        monkeypatch.setenv("DOCKER_HOST", relay.url.replace("http:", "tcp:"))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield relay


def test_a_container_is_started_answers_and_is_gone_when_stopped(place: Place) -> None:
    with place.launcher(environment={"GREETING": "hi from {port}"}) as launcher:
        instance = serving(launcher, "web-1", launcher.version)
        assert ask(instance) == f"hi from {PORT}"
        assert instance.url.startswith("http://127.0.0.1:")
        assert launcher.ended(instance) is None
        started = time.monotonic()
        launcher.stop(instance, 30)
        assert time.monotonic() - started < 25, "it was killed, not asked"
        assert answers(instance) is None
        assert place.containers() == []
        assert launcher.ended(instance) == "was removed"
        launcher.stop(instance, 30)  # that is nothing new


def test_a_container_is_made_as_careful_people_would(place: Place) -> None:
    with place.launcher() as launcher:
        instance = launcher.start("web-1", launcher.version)
        detail = place.engine.inspect_container(instance.handle)
        host = detail["HostConfig"]
        assert host["RestartPolicy"]["Name"] in ("", "no"), "who restarts it is pyproxy"
        assert [one["HostIp"] for one in detail["NetworkSettings"]["Ports"][f"{PORT}/tcp"]] == [
            "127.0.0.1"
        ]
        assert instance.log == f"docker logs {detail['Name'][1:]}"
        assert detail["Name"].startswith("/pyproxy-")
        assert detail["Name"].endswith("-web-1")


def test_a_command_takes_the_place_of_the_images_own(place: Place) -> None:
    command = ["sh", "-c", "sleep 1; echo port {port} >&2; exit 7"]
    with place.launcher(command=command) as launcher:
        instance = launcher.start("web-1", launcher.version)
        eventually(lambda: launcher.ended(instance), BUSY)
        assert launcher.ended(instance) == f"ended with status 7: port {PORT}"


def test_one_that_ends_at_once_is_told_of_at_its_start_or_right_after(place: Place) -> None:
    with place.launcher(command=["sh", "-c", "echo no bread; exit 7"]) as launcher:
        try:
            instance = launcher.start("web-1", launcher.version)
        except LaunchError as error:
            said: str | None = str(error)
            assert place.containers() == []
        else:
            eventually(lambda: launcher.ended(instance), BUSY)
            said = launcher.ended(instance)
        assert said in (
            "ended with status 7: no bread",
            "can't be started: ended with status 7: no bread",
        )


def test_how_it_ended_is_told_with_its_last_words(place: Place) -> None:
    with place.launcher() as launcher:
        instance = serving(launcher, "web-1", launcher.version)
        assert answers(instance, "/die") is None
        eventually(lambda: launcher.ended(instance), BUSY)
        assert launcher.ended(instance) == "ended with status 3: ValueError: no bread"


def test_one_that_was_killed_says_so(place: Place) -> None:
    with place.launcher() as launcher:
        instance = serving(launcher, "web-1", launcher.version)
        place.engine.kill(instance.handle)
        eventually(lambda: launcher.ended(instance), BUSY)
        assert launcher.ended(instance) == "was ended by SIGKILL"


def test_one_that_ran_out_of_memory_says_so(place: Place) -> None:
    with place.launcher() as launcher:
        instance = serving(launcher, "web-1", launcher.version)
        limit = 40 << 20
        place.engine.update_container(instance.handle, mem_limit=limit, memswap_limit=limit)
        assert answers(instance, "/eat") is None
        eventually(lambda: launcher.ended(instance), BUSY)
        assert launcher.ended(instance) == "ran out of memory, and ended with status 137"


def test_one_that_will_not_end_is_ended(place: Place) -> None:
    with place.launcher(environment={"STUBBORN": "yes"}) as launcher:
        instance = serving(launcher, "web-1", launcher.version)
        started = time.monotonic()
        launcher.stop(instance, 0.5)
        assert time.monotonic() - started > 0.5
        assert place.containers() == []


def test_an_image_that_does_not_exist_is_named_and_nothing_is_left(place: Place) -> None:
    with place.launcher() as launcher:
        with pytest.raises(
            LaunchError,
            match=r'^can.t be started: the engine has no image "pyproxy-no-such:1": build it',
        ) as told:
            launcher.start("web-1", Version(image="pyproxy-no-such:1"))
        assert not isinstance(told.value, LauncherAway)
        assert "\n" not in str(told.value)
        assert place.containers() == []


def test_a_program_that_the_image_does_not_have_is_named_and_nothing_is_left(place: Place) -> None:
    with place.launcher() as launcher:
        with pytest.raises(LaunchError, match='"no-such-program": executable file not found'):
            launcher.start("web-1", Version(("no-such-program",), place.image))
        assert place.containers() == []


def test_a_network_that_does_not_exist_is_named_and_nothing_is_left(place: Place) -> None:
    with place.launcher(network="pyproxy-no-such") as launcher:
        with pytest.raises(LaunchError, match="docker network create pyproxy-no-such"):
            launcher.start("web-1", launcher.version)
        assert place.containers() == []


def test_a_network_without_addresses_is_refused(place: Place) -> None:
    with place.launcher(network="none") as launcher:
        with pytest.raises(LaunchError, match='"none" gives containers no address'):
            launcher.start("web-1", launcher.version)
        assert place.containers() == []


def test_in_a_network_it_has_an_address_of_its_own(place: Place) -> None:
    network = f"pyproxy-{place.owner}"
    place.engine.create_network(network)
    try:
        with place.launcher(network=network) as launcher:
            instance = serving(launcher, "web-1", launcher.version)
            assert instance.url.endswith(f":{PORT}")
            assert "127.0.0.1" not in instance.url
            assert not place.engine.inspect_container(instance.handle)["HostConfig"]["PortBindings"]
            assert launcher.adopt() == [instance]
            launcher.close()
    finally:
        place.engine.remove_network(network)


def test_the_next_start_takes_over_what_runs_and_clears_away_the_rest(place: Place) -> None:
    environment = {"GREETING": "hi {port}{port}!", "SECRET": "s3cret"}
    with place.launcher(environment=environment) as first:
        runs = serving(first, "web-1", first.version)
        has_ended = serving(first, "web-2", first.version)
        place.engine.kill(has_ended.handle)
        eventually(lambda: first.ended(has_ended), BUSY)
    with place.launcher(environment=environment) as second:  # nothing but the labels tells it
        assert second.adopt() == [runs]
        assert ask(runs) == f"hi {PORT}{PORT}!"
        (left,) = place.containers()
        assert "s3cret" not in str(left["Labels"])
        second.stop(runs, 5)
        assert place.containers() == []


def test_a_version_that_is_not_ours_any_more_is_known_for_what_it_is(place: Place) -> None:
    with place.launcher(environment={"GREETING": "old"}) as first:
        old = first.start("web-1", first.version)
    with place.launcher(environment={"GREETING": "new"}) as second:
        (found,) = second.adopt()
        assert found.version == old.version != second.version


def test_the_containers_of_others_are_left_alone(place: Place, engine: Any, image: str) -> None:
    other = Place(engine, image)
    try:
        with place.launcher() as ours, place.launcher("api") as beside, other.launcher() as theirs:
            mine = serving(ours, "web-1", ours.version)
            kept = [
                serving(beside, "web-1", beside.version),
                serving(theirs, "web-1", theirs.version),
            ]
            assert ours.adopt() == [mine]
            assert [*beside.adopt(), *theirs.adopt()] == kept
            ours.close()
            assert answers(mine) is None
            assert [answers(one) for one in kept] == ["hello", "hello"]
    finally:
        for one in other.containers():
            engine.remove_container(one["Id"], force=True, v=True)


def test_closing_ends_all_at_once_or_keeps_them(place: Place) -> None:
    with place.launcher(environment={"STUBBORN": "yes"}, stop_timeout=2) as launcher:
        kept = [serving(launcher, f"web-{number}", launcher.version) for number in range(4)]
        launcher.close(keep=True)
        assert [answers(one) for one in kept] == ["hello"] * 4
        started = time.monotonic()
        launcher.close()
        assert time.monotonic() - started < 4 * 2, "one after the other"
        assert place.containers() == []


def test_closing_leaves_what_another_of_the_same_owner_has_made(place: Place) -> None:
    with place.launcher() as launcher, place.launcher() as second:
        instance = launcher.start("web-1", launcher.version)
        second.close()  # such as a start that failed, because the first has its address
        assert launcher.ended(instance) is None


def test_what_stands_in_the_way_of_a_name_is_cleared_away(place: Place) -> None:
    with place.launcher() as launcher:
        first = launcher.start("web-1", launcher.version)
        second = launcher.start("web-1", launcher.version)
        assert [one["Id"] for one in place.containers()] == [second.handle] != [first.handle]


def test_work_costs_processor_time(place: Place) -> None:
    with place.launcher() as launcher:
        instance = serving(launcher, "web-1", launcher.version)
        before = launcher.processor_time(instance)
        assert before
        ask(instance, "/work")
        after = launcher.processor_time(instance)
        assert after
        assert 0.4 < after - before < 5
        place.engine.kill(instance.handle)
        eventually(lambda: launcher.ended(instance), BUSY)
        assert launcher.processor_time(instance) is None
        launcher.stop(instance, 1)
        assert launcher.processor_time(instance) is None


def test_an_engine_that_is_away_is_told_and_found_again(place: Place, relay: Relay) -> None:
    with place.launcher() as launcher:
        instance = serving(launcher, "web-1", launcher.version)
        relay.stop()
        for ask_for in (
            lambda: launcher.ended(instance),
            lambda: launcher.processor_time(instance),
            lambda: launcher.stop(instance, 1),
            lambda: launcher.start("web-2", launcher.version),
            launcher.adopt,
            launcher.close,
        ):
            with pytest.raises(LauncherAway, match="doesn't answer: connection refused"):
                ask_for()
        assert ask(instance) == "hello", "the containers don't care"
        relay.start()
        assert launcher.ended(instance) is None
        assert launcher.adopt() == [instance]
        launcher.stop(instance, 1)
        assert place.containers() == []


def test_an_engine_that_was_away_when_it_began_is_found_later(place: Place, relay: Relay) -> None:
    relay.stop()
    with place.launcher() as launcher:
        with pytest.raises(LauncherAway):
            launcher.adopt()
        relay.start()
        assert launcher.adopt() == []


def test_what_a_start_left_behind_when_its_answer_was_lost_is_cleared_away(
    place: Place, relay: Relay
) -> None:
    with place.launcher() as launcher:
        relay.loses = b"/start "
        with pytest.raises(LauncherAway):
            launcher.start("web-1", launcher.version)
        (lost,) = place.containers()
        assert lost["State"] == "running"
        relay.loses = b""
        kept = launcher.start("web-2", launcher.version)
        assert [one["Id"] for one in place.containers()] == [kept.handle] != [lost["Id"]]


@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")  # the SDK's
def test_an_engine_that_is_not_there_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    said = read_scaling({"launcher": "docker", "image": "x", "port": PORT})
    launcher = DockerLauncher(said, "nobody", "web")
    with pytest.raises(LauncherAway, match=r"none\.sock doesn't answer: no such file"):
        launcher.adopt()
    gc.collect()


def test_an_engine_that_says_nothing_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Engine, "look", 0.2)
    monkeypatch.setattr(Engine, "change", 0.2)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "silent.sock"))
        silent.listen()
        monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/silent.sock")
        said = read_scaling({"launcher": "docker", "image": "x", "port": PORT})
        launcher = DockerLauncher(said, "nobody", "web")
        with pytest.raises(LauncherAway, match=r"silent\.sock doesn't answer: timed out"):
            launcher.adopt()
        with pytest.raises(LauncherAway, match="timed out"):
            launcher.start("web-1", Version(image="x"))
        launcher.close(keep=True)


@pytest.mark.parametrize("host", ["carrier-pigeon://home", "tcp://host:port", "tcp://host"])
def test_an_address_that_is_none_is_told_at_once(
    monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    monkeypatch.setenv("DOCKER_HOST", host)
    said = read_scaling({"launcher": "docker", "image": "x", "port": PORT})
    with pytest.raises(SettingsError, match=r"scaling\.launcher: DOCKER_HOST: "):
        DockerLauncher(said, "nobody", "web")


def test_without_the_docker_package_the_remedy_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "MISSING", "needs the package docker: pip install it")
    said = read_scaling({"launcher": "docker", "image": "x", "port": PORT})
    with pytest.raises(SettingsError, match=r'"docker" needs the package docker: pip install'):
        DockerLauncher(said, "nobody", "web")
    with pytest.raises(SettingsError, match=r'"swarm" needs the package docker: pip install'):
        Swarm(read_scaling({"launcher": "swarm", "service": "x"}))


@contextlib.contextmanager
def swarm_of(engine: Any) -> Iterator[None]:
    """The engine's own, or one for now."""
    state = engine.info()["Swarm"]
    if state["LocalNodeState"] != "inactive":
        if not state.get("ControlAvailable"):
            pytest.skip("the Docker engine is a worker of a Swarm")
        yield
        return
    engine.init_swarm(advertise_addr="127.0.0.1", listen_addr="127.0.0.1:2377")
    try:
        yield
    finally:
        engine.leave_swarm(force=True)


class Service:
    def __init__(self, engine: Any, image: str, mode: Any) -> None:
        self.engine = engine
        self.name = f"pyproxy-test-{uuid.uuid4().hex[:8]}"
        self.id = engine.create_service(
            docker.types.TaskTemplate(docker.types.ContainerSpec(image)),
            name=self.name,
            mode=mode,
            labels={"kept": "yes"},
            endpoint_spec=docker.types.EndpointSpec(mode="dnsrr"),
        )["ID"]

    def swarm(self, **said: Any) -> Swarm:
        base = {"launcher": "swarm", "service": self.name, "min": 1, "max": 4}
        return Swarm(read_scaling({**base, **said}))

    def tasks(self) -> set[str]:
        filters = {"service": self.name, "desired-state": "running"}
        found = self.engine.tasks(filters=filters)
        return {one["ID"] for one in found if one["Status"]["State"] == "running"}

    def remove(self) -> None:
        with contextlib.suppress(docker.errors.NotFound):
            self.engine.remove_service(self.id)
        label = {"label": [f"com.docker.swarm.service.id={self.id}"]}
        eventually(lambda: not self.engine.containers(all=True, filters=label), BUSY)


@pytest.fixture
def alone() -> Iterator[None]:
    with alone_on_this_machine("docker"):
        yield


@pytest.fixture
def in_swarm(engine: Any, alone: None) -> Iterator[None]:
    with swarm_of(engine):
        yield


@contextlib.contextmanager
def service_of(engine: Any, image: str, mode: Any) -> Iterator[Service]:
    service = Service(engine, image, mode)
    try:
        yield service
    finally:
        service.remove()


def test_an_engine_outside_of_a_swarm_is_told_to_be_one(engine: Any, alone: None) -> None:
    if engine.info()["Swarm"]["LocalNodeState"] != "inactive":
        pytest.skip("the Docker engine is in a Swarm")
    swarm = Swarm(read_scaling({"launcher": "swarm", "service": "x"}))
    with pytest.raises(LaunchError, match="no manager of a Swarm: set DOCKER_HOST") as told:
        swarm.count()
    assert not isinstance(told.value, LauncherAway)
    swarm.close()


def test_a_service_gets_replicas_and_those_it_has_stay(
    engine: Any, image: str, in_swarm: None
) -> None:
    mode = docker.types.ServiceMode("replicated", 2)
    with service_of(engine, image, mode) as service, contextlib.closing(service.swarm()) as swarm:
        eventually(lambda: len(service.tasks()) == 2, BUSY)
        before = service.tasks()
        spec = engine.inspect_service(service.id)["Spec"]
        assert swarm.count() == 2
        assert swarm.scale(3) == 3
        assert swarm.count() == 3
        eventually(lambda: len(service.tasks()) == 3, BUSY)
        assert before < service.tasks()
        assert swarm.scale(99) == 4
        assert swarm.scale(0) == 1
        eventually(lambda: len(service.tasks()) == 1, BUSY)
        spec["Mode"]["Replicated"]["Replicas"] = 1
        assert engine.inspect_service(service.id)["Spec"] == spec, "all else is as it was"


def test_a_service_with_too_few_replicas_gets_the_least_it_may_have(
    engine: Any, image: str, in_swarm: None
) -> None:
    mode = docker.types.ServiceMode("replicated", 0)
    with service_of(engine, image, mode) as service:
        swarm = service.swarm(min=2)
        assert swarm.count() == 2
        eventually(lambda: len(service.tasks()) == 2, BUSY)
        swarm.close()


def test_two_that_scale_a_service_at_once_do_not_trip_over_each_other(
    engine: Any, image: str, in_swarm: None
) -> None:
    mode = docker.types.ServiceMode("replicated", 0)
    with service_of(engine, image, mode) as service:
        swarms = [service.swarm(min=0) for _ in range(3)]
        wanted = [1, 2, 3]
        with ThreadPoolExecutor(3) as threads:
            assert list(threads.map(lambda one, to: one.scale(to), swarms, wanted)) == wanted
        assert swarms[0].count() in wanted
        for swarm in swarms:
            swarm.close()


def test_a_service_that_cannot_be_scaled_is_told(engine: Any, image: str, in_swarm: None) -> None:
    with service_of(engine, image, docker.types.ServiceMode("global")) as service:
        swarm = service.swarm()
        with pytest.raises(LaunchError, match=f'"{service.name}" is global: only one in mode rep'):
            swarm.scale(2)
        swarm.close()
    with pytest.raises(LaunchError, match=f'there is no service "{service.name}"'):
        swarm.count()
    swarm.close()


def test_a_swarm_whose_engine_is_away_is_told_and_found_again(
    engine: Any, image: str, in_swarm: None, relay: Relay
) -> None:
    with service_of(engine, image, docker.types.ServiceMode("replicated", 1)) as service:
        swarm = service.swarm()
        assert swarm.count() == 1
        relay.stop()
        with pytest.raises(LauncherAway, match="doesn't answer: connection refused"):
            swarm.count()
        relay.start()
        assert swarm.count() == 1
        swarm.close()


def test_a_pool_behind_a_swarm_s_service_is_scaled_by_people_and_by_its_load(
    engine: Any, image: str, in_swarm: None
) -> None:
    """Three targets that nobody asks anything of: too many."""
    mode = docker.types.ServiceMode("replicated", 2)
    said = {"launcher": "swarm", "min": 2, "max": 4, "interval": "200ms", "cooldown": "400ms"}

    def replicas() -> int:
        spec = engine.inspect_service(service.id)["Spec"]
        return int(spec["Mode"]["Replicated"]["Replicas"])

    with service_of(engine, image, mode) as service, letters("abc") as targets:
        scaling = {**said, "service": service.name, "auto": False}
        with Proxy(targets=[one.url for one in targets], scaling=scaling) as proxy:
            told = Scaled(proxy)
            assert proxy.control.scale(3)["wanted"] == 3
            assert replicas() == 3
            with pytest.raises(ControlError, match="expected from 2 to 4"):
                proxy.control.scale(5)
            with pytest.raises(ControlError, match=f"docker service update .* {service.name}"):
                proxy.control.roll_out({"image": "new"})
            by_load = {**scaling, "auto": True, "cpu_high": None, "cpu_low": None}
            urls = [one.url for one in targets]
            proxy.reload(
                parse({"listen": "http://127.0.0.1:0", "targets": urls, "scaling": by_load})
            )
            eventually(lambda: replicas() == 2, BUSY)
            eventually(lambda: told.scaling["decisions"][-1]["to"] == 2)
            assert told.scaling["decisions"][-1]["reason"].startswith("no requests")
            service.remove()
            eventually(lambda: "there is no service" in told.scaling["problem"], BUSY)
            assert get(proxy.url).status == 200


class Scaled:
    """A pool of a proxy: its scaling, as the status tells of it."""

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy

    @property
    def scaling(self) -> dict[str, Any]:
        (pool,) = self._proxy.control.snapshot()["pools"]
        found: dict[str, Any] = pool["scaling"]
        return found

    @property
    def live(self) -> list[str]:
        made = self.scaling["instances"]
        return [one["handle"] for one in made if one["phase"] == "live"]

    def reach(self, count: int) -> None:
        self._proxy.control.scale(count)
        self.wait_for(count)

    def wait_for(self, count: int) -> None:
        eventually(lambda: len(self.live) == count, 2 * BUSY)


def scaling_of(place: Place, **said: Any) -> dict[str, Any]:
    return {
        "launcher": "docker",
        "image": place.image,
        "port": PORT,
        "owner": place.owner,
        "auto": False,
        "min": 2,
        "max": 5,
        "stop_timeout": 5,
        **said,
    }


def test_containers_come_go_and_are_replaced_and_no_request_fails(place: Place) -> None:
    with Proxy(scaling=scaling_of(place)) as proxy:
        scaled = Scaled(proxy)
        scaled.wait_for(2)
        with Load(proxy.url) as load:
            load.goes_on()
            scaled.reach(5)
            load.goes_on(50)
            victim = scaled.live[0]
            place.engine.kill(victim)
            eventually(lambda: victim not in scaled.live, BUSY)
            scaled.wait_for(5)
            load.goes_on(50)
            scaled.reach(2)
            load.goes_on()
            eventually(lambda: len(place.containers()) == 2, BUSY)
        assert load.failures == []
        assert set(load.statuses) == {200}
    assert place.containers() == []


def test_a_killed_proxy_finds_its_containers_again(place: Place, tmp_path: Path) -> None:
    settings = tmp_path / "appsettings.json"
    said = {"listen": "http://127.0.0.1:0", "scaling": scaling_of(place)}
    settings.write_text(json.dumps(said), encoding="utf-8")
    with program(cwd=tmp_path) as first:
        assert get(first.url).status == 200
        eventually(lambda: len(place.containers()) == 2, BUSY)
        before = {one["Id"] for one in place.containers()}
        first.kill()
    assert {one["Id"] for one in place.containers() if one["State"] == "running"} == before
    with program(cwd=tmp_path) as second:
        assert get(second.url).status == 200
        assert {one["Id"] for one in place.containers()} == before, "none was started"
        said["scaling"] = scaling_of(place, min=3)
        settings.write_text(json.dumps(said), encoding="utf-8")
        eventually(lambda: len(place.containers()) == 3, 2 * BUSY)
        assert before < {one["Id"] for one in place.containers()}
        assert second.stop() == 0
        assert "Traceback" not in second.text
    assert place.containers() == []


def test_a_new_program_takes_over_those_that_serve_and_no_others(place: Place) -> None:
    said = scaling_of(place, min=1)
    common: dict[str, Any] = {"policy": "round_robin"}
    with (
        Proxy(scaling=said, **common) as old,
        ThreadPoolExecutor(2) as clients,
    ):
        scaled = Scaled(old)
        scaled.reach(2)
        urls = [one.url for one in old.pool.targets]
        asked = [clients.submit(requests.get, f"{old.url}/wait", timeout=BUSY) for _ in urls]
        eventually(lambda: all(one.in_flight for one in old.pool.targets), BUSY)
        scaled.reach(1)  # the other one drains
        old.control.roll_out({"command": ["sleep", "600"]})
        eventually(lambda: len(scaled.scaling["instances"]) == 3, BUSY)
        eventually(lambda: all(one["handle"] for one in scaled.scaling["instances"]), BUSY)
        there = {one["phase"]: one for one in scaled.scaling["instances"]}
        old.control.fleets.rest()
        left = old.control.fleets.leave()
        with Proxy(scaling=said, inheritance=Inheritance(scaling=left), **common) as new:
            heir = Scaled(new)
            assert (heir.live, heir.scaling["wanted"]) == ([there["live"]["handle"]], 1)
            new.control.change_rollout("abort")
            heir.reach(2)
            names = [one["name"] for one in heir.scaling["instances"]]
            assert there["draining"]["name"] not in names
            for url in urls:
                assert get(url, "/go").status == 200, "one that drains lives on for that"
            assert [one.result().status_code for one in asked] == [200, 200]
            old.control.fleets.stop(keep=True)
            eventually(lambda: len(heir.scaling["instances"]) == 2, BUSY)
            assert {one["Id"] for one in place.containers()} == set(heir.live)
            assert there["live"]["handle"] in heir.live
    assert place.containers() == []


def test_a_new_program_that_gives_up_leaves_to_the_old_one_what_that_has(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleets, "_MOST_OF_AN_HEIR", 0.5)
    said = scaling_of(place, min=1)
    with Proxy(scaling=said) as old:
        scaled = Scaled(old)
        scaled.wait_for(1)
        before = scaled.live
        old.control.fleets.rest()
        left = old.control.fleets.leave()
        health = {"path": "/wait", "timeout": "200ms"}
        new = Proxy(scaling=said, health=health, inheritance=Inheritance(scaling=left))
        with pytest.raises(PyproxyError, match="no target serves so far"):
            new.start()
        old.control.fleets.go_on()
        scaled.reach(2)
        assert set(scaled.live) > set(before)
        assert get(old.url).status == 200
    assert place.containers() == []


def test_a_proxy_that_ends_while_the_engine_is_away_leaves_its_containers_to_the_next(
    place: Place, relay: Relay, caplog: pytest.LogCaptureFixture
) -> None:
    with Proxy(scaling=scaling_of(place)) as proxy:
        scaled = Scaled(proxy)
        scaled.wait_for(2)
        before = sorted(scaled.live)
        relay.stop()
    assert "targets are left behind: the Docker engine at" in caplog.text
    relay.start()
    with Proxy(scaling=scaling_of(place)) as proxy:
        scaled = Scaled(proxy)
        scaled.wait_for(2)
        assert sorted(scaled.live) == before
    assert place.containers() == []


def test_targets_serve_on_while_the_engine_is_away(place: Place, relay: Relay) -> None:
    with Proxy(scaling=scaling_of(place)) as proxy:
        scaled = Scaled(proxy)
        scaled.wait_for(2)
        before = scaled.live
        with Load(proxy.url) as load:
            load.goes_on()
            relay.stop()
            proxy.control.scale(3)
            load.goes_on(50)
            assert scaled.live == before
            relay.start()
            scaled.wait_for(3)
            load.goes_on()
        assert load.failures == []
        assert set(scaled.live) > set(before)
    assert place.containers() == []


def test_a_proxy_in_a_container_makes_others_and_needs_not_be_root(
    place: Place, engine: Any, tmp_path: Path
) -> None:
    if "://" in ENGINE_SOCKET:
        pytest.skip("the engine isn't reached through a socket of this machine")
    if not shutil.which("docker"):
        pytest.skip("docker is not on PATH")  # the SDK can't build with BuildKit
    own = network = place.owner
    build = ["docker", "build", "--build-arg", "EXTRAS=metrics,docker", "--tag", own, "."]
    built = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stderr
    settings = tmp_path / "appsettings.json"
    scaling = scaling_of(place, network=network)
    settings.write_text(
        json.dumps({"listen": f"http://0.0.0.0:{PORT}", "scaling": scaling}), encoding="utf-8"
    )
    settings.chmod(0o644)
    engine.create_network(network)
    proxy = engine.create_container(
        own,
        host_config=engine.create_host_config(
            network_mode=network,
            binds=[
                f"{ENGINE_SOCKET}:/var/run/docker.sock",
                f"{settings}:/app/appsettings.json:ro",
            ],
            group_add=[os.stat(ENGINE_SOCKET).st_gid],
            port_bindings={PORT: ("127.0.0.1", None)},
        ),
        ports=[PORT],
    )["Id"]
    try:
        engine.start(proxy)
        found = engine.inspect_container(proxy)["NetworkSettings"]["Ports"][f"{PORT}/tcp"]
        itself = Instance("proxy", f"http://127.0.0.1:{found[0]['HostPort']}", Version(), proxy)
        eventually(lambda: answers(itself) == "hello", BUSY)
        eventually(lambda: len(place.containers()) == 2, BUSY)
        assert engine.exec_start(engine.exec_create(proxy, "id -u")["Id"]).strip() != b"0"
        engine.stop(proxy, timeout=40)
        assert engine.inspect_container(proxy)["State"]["ExitCode"] == 0
        assert place.containers() == []
    finally:
        engine.remove_container(proxy, force=True)
        for one in place.containers():
            engine.remove_container(one["Id"], force=True, v=True)
        engine.remove_network(network)
        engine.remove_image(own, force=True)


def test_the_settings_of_the_page_are_valid() -> None:
    page = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    own = page.partition("## Containers")[2]
    shown = re.findall(r"```json\n(.*?)```", own, re.DOTALL)
    launchers = [parse(json.loads(one)).scaling for one in shown]
    assert [one and one.launcher for one in launchers] == ["docker", "docker", "swarm"]
