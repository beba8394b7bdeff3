"""The image and docker-compose.yaml, on a real engine: one proxy before five targets, with Compose
and in a Swarm of one node."""

import json
import logging
import os
import re
import shlex
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread

import pytest
import requests

from tests.conftest import alone_on_this_machine
from tests.support import eventually
from tests.test_kubernetes import PASSWORD, the, variables
from tests.test_kubernetes import container as specified
from tests.test_kubernetes import settings as specified_settings

ROOT = Path(__file__).parents[1]
MEGABYTE = 1_000_000

log = logging.getLogger(__name__)  # to see it: pytest --log-cli-level=INFO


class Compose:
    """A project of its own, so that a running `docker compose up` is left alone."""

    def __init__(self) -> None:
        self.project = f"pyproxy-test-{os.getpid()}"
        self.environment = {
            **os.environ,
            "COMPOSE_PROJECT_NAME": self.project,
            "PYPROXY_IMAGE": self.project,
            "PYPROXY_PORT": "0",
            "PYPROXY_SLEEPING": "1",
        }

    def docker(self, *arguments: str) -> str:
        done = subprocess.run(
            ["docker", *arguments],
            cwd=ROOT,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, f"docker {' '.join(arguments)}:\n{done.stdout}"
        return done.stdout.strip()

    def __call__(self, *arguments: str) -> str:
        return self.docker("compose", *arguments)

    def inside(self, service: str, command: str) -> str:
        return self("exec", "-T", service, "sh", "-c", command)

    def container(self, service: str, number: int = 1) -> str:
        return f"{self.project}-{service}-{number}"

    def name(self, number: int) -> str:
        """What a target says in X-Target."""
        target = self.container("target", number)
        return self.docker("inspect", "--format", "{{.Config.Hostname}}", target)

    def address(self, container: str, port: int) -> str:
        """Where this machine reaches a port of a container."""
        published = self.docker("port", container, str(port)).splitlines()[0]
        return "http://127.0.0.1:" + published.rpartition(":")[2]

    @property
    def url(self) -> str:
        return self.address(self.container("proxy"), 8000)


def missing() -> str | None:
    """Why there is nothing to test with."""
    if not shutil.which("docker"):
        return "docker is not on PATH"
    for command, reason in [
        ("docker compose version", "'docker compose' is missing"),
        ("docker info", "no Docker engine answers 'docker info'"),
    ]:
        if subprocess.run(command.split(), capture_output=True, timeout=60).returncode:
            return reason
    return None


@pytest.fixture(scope="module")
def alone_meanwhile() -> Iterator[None]:
    with alone_on_this_machine("docker"):
        yield


@pytest.fixture(scope="module")
def compose(alone_meanwhile: None) -> Iterator[Compose]:
    if reason := missing():
        pytest.skip(reason)
    compose = Compose()
    try:
        compose("build")
        compose("up", "--wait")
        yield compose
    finally:
        compose("down", "--timeout", "2", "--volumes")
        compose.docker("image", "rm", "--force", compose.project)


class Visitor:
    """Requests without a pause, in a thread: who answered, and what failed."""

    def __init__(self, url: str, kept_alive: bool) -> None:
        self.url, self.kept_alive = url, kept_alive
        self.answers: Counter[str] = Counter()
        self.failures: list[str] = []
        self.slowest = 0.0
        self._ended = Event()
        self._thread = Thread(target=self._run, name="visitor")

    def __enter__(self) -> "Visitor":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        with requests.Session() as session:
            session.trust_env = False
            headers = {} if self.kept_alive else {"Connection": "close"}
            while not self._ended.wait(0.02):
                started = time.monotonic()
                try:
                    response = session.get(self.url, headers=headers, timeout=20)
                except requests.RequestException as error:
                    self.failures.append(repr(error))
                    continue
                self.slowest = max(self.slowest, time.monotonic() - started)
                if (response.status_code, response.text) == (200, "Hello, world!"):
                    self.answers[response.headers["X-Target"]] += 1
                else:
                    self.failures.append(f"{response.status_code} {response.text[:100]}")

    def wait_for(self, target: str, answers: int, seconds: float) -> None:
        """Until so many more answers of this target have come."""
        wanted = self.answers[target] + answers
        deadline = time.monotonic() + seconds
        while self.answers[target] < wanted:
            assert time.monotonic() < deadline, f"{target} doesn't serve: {self.answers}"
            time.sleep(0.05)


def test_the_image_adds_little_to_the_one_of_python(compose: Compose) -> None:
    def size(image: str) -> int:
        return int(compose.docker("image", "inspect", "--format", "{{.Size}}", image))

    # BuildKit may keep the base image to itself, then only the whole can be limited
    has_base = compose.docker("image", "ls", "-q", "python:3.12-slim")
    added = size(compose.project) - (size("python:3.12-slim") if has_base else 150 * MEGABYTE)
    log.info("image: %d MB, %.1f of them added", size(compose.project) / MEGABYTE, added / MEGABYTE)
    assert added < 20 * MEGABYTE


def test_every_service_is_healthy(compose: Compose) -> None:
    listing = compose("ps", "--format", "json")
    # one object a line since Compose 2.21, before that one list
    rows = json.loads(listing) if listing.startswith("[") else map(json.loads, listing.splitlines())
    names = [compose.container("proxy"), *(compose.container("target", n) for n in range(1, 6))]
    assert {row["Name"]: row["Health"] for row in rows} == dict.fromkeys(names, "healthy")


@pytest.mark.parametrize("service", ["proxy", "target"])
def test_no_service_has_rights_that_it_does_not_need(compose: Compose, service: str) -> None:
    assert compose.inside(service, "id -u; id -g").split() == ["10001", "10001"]
    assert "gcc" not in compose.inside(service, "command -v gcc cc || true")
    assert "Read-only file system" in compose.inside(service, "touch /app/x 2>&1 || true")
    status = compose.inside(service, "cat /proc/1/status")
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert int(fields["CapBnd"], 16) == 0
    assert fields["NoNewPrivs"] == "1"


def test_requests_are_spread_evenly(compose: Compose) -> None:
    with requests.Session() as session:
        session.trust_env = False
        url = compose.url
        counts = Counter(session.get(url, timeout=5).headers["X-Target"] for _ in range(200))
    log.info("%s", counts)
    # 40 each, but for the proxy's own health check that comes in between
    assert set(counts) == {compose.name(number) for number in range(1, 6)}
    assert all(38 <= count <= 42 for count in counts.values())


def test_a_stopped_target_costs_no_request_and_serves_again_when_started(compose: Compose) -> None:
    url, third, fourth = compose.url, compose.name(3), compose.name(4)
    with Visitor(url, kept_alive=True) as regular, Visitor(url, kept_alive=False) as newcomer:
        visitors = (regular, newcomer)
        for visitor in visitors:
            visitor.wait_for(third, answers=5, seconds=20)

        compose.docker("stop", compose.container("target", 3))
        before = [visitor.answers[third] for visitor in visitors]
        for visitor in visitors:
            visitor.wait_for(fourth, answers=20, seconds=30)
        assert [visitor.answers[third] for visitor in visitors] == before

        compose.docker("start", compose.container("target", 3))
        for visitor in visitors:
            visitor.wait_for(third, answers=5, seconds=60)
    for visitor in visitors:
        log.info("%s, slowest %.3f s", visitor.answers, visitor.slowest)
        assert visitor.failures == []


def test_the_spamer_runs_in_the_image(compose: Compose) -> None:
    spam = "python -m pyproxy spam http://127.0.0.1:8000/ --interval 0.01 --count 10"
    report = compose.inside("proxy", spam)
    assert all(compose.name(number) in report for number in range(1, 6))


@pytest.mark.parametrize(("service", "number"), [("proxy", 1), ("target", 5)])
def test_a_stop_is_answered_at_once_and_with_exit_code_0(
    compose: Compose, service: str, number: int
) -> None:
    container = compose.container(service, number)
    try:
        started = time.monotonic()
        compose.docker("stop", container)
        assert time.monotonic() - started < 8, "it was killed, not stopped"
        state = compose.docker("inspect", "--format", "{{.State.ExitCode}}", container)
        assert state == "0"
    finally:
        compose.docker("start", container)


# docs/clusters.md

PAGE = (ROOT / "docs" / "clusters.md").read_text(encoding="utf-8")
COMMANDS = [
    line
    for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    for line in block.splitlines()
    if line.startswith("docker ")
]


def test_every_command_of_the_page_is_run_here() -> None:
    run = tuple(re.findall(r'documented\("([^"]+)"', Path(__file__).read_text(encoding="utf-8")))
    assert COMMANDS
    assert [line for line in COMMANDS if not line.startswith(run)] == []


class Swarm:
    """The commands of the page, with names of this run for the stack and the image."""

    def __init__(self, compose: Compose) -> None:
        self._compose = compose
        self.stack = f"{compose.project}-stack"

    def documented(self, beginning: str) -> str:
        """Runs the one that begins so, as it stands there."""
        [command] = [line for line in COMMANDS if line.startswith(beginning)]
        command = command.replace("pyproxy-lb", self._compose.project)
        command = re.sub(r"\bpyproxy(?=_|$)", self.stack, command)
        return self._compose.docker(*shlex.split(self._filled_in(command))[1:])

    def _filled_in(self, command: str) -> str:
        """What the shell does with $(...)."""

        def said(match: re.Match[str]) -> str:
            return self._compose.docker(*shlex.split(match[1])[1:])

        return re.sub(r"\$\((.*?)\)", said, command)

    def docker(self, *arguments: str) -> str:
        return self._compose.docker(*arguments)

    @property
    def url(self) -> str:
        return self._compose.address(self.proxy, 8000)

    @property
    def proxy(self) -> str:
        return self.docker("ps", "-q", "-f", f"name={self.stack}_proxy")

    def is_removed(self) -> bool:
        """Removes it, which fails while a task that ends still has the network."""
        try:
            self.documented("docker stack rm")
        except AssertionError as error:
            if "in use by task" not in str(error):
                raise
            return False
        return True

    def live(self) -> int:
        status = self.documented("docker exec")
        return len(re.findall(r"^http://[\d.]+:8000 +live ", status, re.MULTILINE))


@pytest.fixture(scope="module")
def swarm(compose: Compose) -> Iterator[Swarm]:
    swarm = Swarm(compose)
    active = compose.docker("info", "--format", "{{.Swarm.LocalNodeState}}") != "inactive"
    try:
        swarm.documented("docker compose build")
        if not active:
            swarm.documented("docker swarm init")
        swarm.documented("docker stack deploy")
        yield swarm
    finally:
        eventually(swarm.is_removed, 60)
        if not active:
            swarm.documented("docker swarm leave")
        label = f"label=com.docker.stack.namespace={swarm.stack}"
        eventually(lambda: not compose.docker("ps", "-aq", "-f", label), 60)
        compose.docker("image", "rm", "--force", f"{compose.project}:2")


def test_the_proxies_follow_the_scale_of_the_targets_and_no_request_fails(swarm: Swarm) -> None:
    rows = [line.split() for line in swarm.documented("docker stack services").splitlines()[1:]]
    assert [row[1:3] for row in rows] == [
        [f"{swarm.stack}_proxy", "global"],
        [f"{swarm.stack}_target", "replicated"],
    ]
    with Visitor(swarm.url, kept_alive=True) as regular, Visitor(swarm.url, False) as newcomer:
        swarm.documented("docker service scale")
        eventually(lambda: len(regular.answers) == len(newcomer.answers) == 8, 120)
        assert swarm.live() == 8
        swarm.docker("service", "scale", f"{swarm.stack}_target=2")
        eventually(lambda: swarm.live() == 2, 120)
    assert regular.failures == newcomer.failures == []


def test_targets_are_replaced_one_by_one_and_no_request_fails(swarm: Swarm) -> None:
    targets = swarm.live()
    swarm.documented("docker build")
    with Visitor(swarm.url, kept_alive=True) as regular, Visitor(swarm.url, False) as newcomer:
        eventually(lambda: len(regular.answers) == len(newcomer.answers) == targets, 60)
        swarm.documented("docker service update")
        eventually(lambda: len(regular.answers) == len(newcomer.answers) == 2 * targets, 60)
    assert regular.failures == newcomer.failures == []


def test_a_version_that_does_not_start_is_taken_back_and_no_request_fails(swarm: Swarm) -> None:
    target = f"{swarm.stack}_target"
    with Visitor(swarm.url, kept_alive=True) as visitor:
        swarm.docker("service", "update", "-q", "--args", "target --port nonsense", target)
        update = swarm.docker("service", "inspect", "--format", "{{.UpdateStatus.State}}", target)
        assert update == "rollback_completed"
    assert visitor.failures == []


def test_the_containers_of_the_kubernetes_example_run(compose: Compose, tmp_path: Path) -> None:
    """As their manifests say, on this engine."""
    name = f"{compose.project}-pod"
    (tmp_path / "appsettings.json").write_text(specified_settings())
    tmp_path.chmod(0o755)  # to the user in the container
    hardened = ["--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
    common = ["--detach", "--network", name, *hardened]
    proxy, target = specified("pyproxy"), specified("target")
    [mount] = proxy["volumeMounts"]
    [port] = [one["port"] for one in the("Service", "target")["spec"]["ports"]]
    assert port == target["ports"][0]["containerPort"]

    def answer(place: str, password: str = "") -> int:
        auth = ("admin", password) if password else None
        try:
            return requests.get(place, auth=auth, timeout=20).status_code
        except requests.ConnectionError:  # it starts
            return 0

    compose.docker("network", "create", name)
    try:
        aliased = ["--name", f"{name}-target", "--network-alias", "target"]
        compose.docker("run", *common, *aliased, "-p", str(port), compose.project, *target["args"])
        served = compose.address(f"{name}-target", port)
        # A cluster's DNS tells the addresses of those that are ready.
        probed = served + target["readinessProbe"]["httpGet"]["path"]
        eventually(lambda: answer(probed) == 200, 60)
        said = [word for key, value in variables().items() for word in ("-e", f"{key}={value}")]
        said += ["-v", f"{tmp_path}:{mount['mountPath']}:ro", "-p", "8000", "-p", "8404"]
        compose.docker("run", *common, *said, "--name", name, compose.project, *proxy["args"])
        inside = {one["name"]: one["containerPort"] for one in proxy["ports"]}
        url, admin = (compose.address(name, inside[one]) for one in ("http", "admin"))
        for kind in ("livenessProbe", "readinessProbe"):
            path = proxy[kind]["httpGet"]["path"]
            eventually(lambda path=path: answer(admin + path) == 200, 60)  # type: ignore[misc]
        assert answer(url) == 200
        assert answer(f"{admin}/metrics") == 401
        assert answer(f"{admin}/metrics", PASSWORD) == 200
        for one, ran in ((proxy, name), (target, f"{name}-target")):
            command, seconds = one["lifecycle"]["preStop"]["exec"]["command"]
            assert int(seconds) > 0
            compose.docker("exec", ran, command, "0.1")
        compose.docker("stop", name)
        state = compose.docker("inspect", "--format", "{{.State.ExitCode}}", name)
        assert state == "0"
    finally:
        for ran in (name, f"{name}-target"):
            compose.docker("rm", "--force", ran)
        compose.docker("network", "rm", name)
