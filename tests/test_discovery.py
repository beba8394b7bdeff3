"""dns:// targets: every address behind a name, as it changes."""

import contextlib
import json
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import requests

from pyproxy import Proxy
from pyproxy.lab.target import HelloServer
from pyproxy.settings import parse
from tests.programs import Program, program
from tests.support import DEADLINE, eventually, get, lettered

# The program sees a file of ours as /etc/hosts, which the system's look-up reads anew each time.
OWN_HOSTS = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
BIND = 'mount --bind "$HOSTS" /etc/hosts && exec "$@"'


@contextlib.contextmanager
def hello(host: str, port: int, name: str) -> Iterator[HelloServer]:
    with HelloServer(host, port, name) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def hosts(tmp_path: Path) -> Path:
    file = tmp_path / "hosts"
    file.write_text("127.0.0.1 localhost\n")
    done = subprocess.run(
        [*OWN_HOSTS, BIND, "sh", "true"], env={"HOSTS": str(file), "PATH": "/usr/bin:/bin"}
    )
    if done.returncode:
        pytest.skip("needs unshare, and to be allowed a mount namespace")
    return file


def serving(hosts: Path, *targets: str) -> contextlib.AbstractContextManager[Program]:
    return program(
        *("--listen", "http://127.0.0.1:0", "--targets", ",".join(targets)),
        *("--resolving", "0.1", "--sleeping", "0.2"),
        prefix=[*OWN_HOSTS, BIND, "sh"],
        env={"HOSTS": str(hosts)},
    )


def names(url: str) -> set[str]:
    answers = [get(url) for _ in range(4)]
    return {found.get("X-Target") or str(found.status) for found in answers}


def test_targets_come_and_go_with_the_addresses_of_their_name(hosts: Path) -> None:
    with (
        hello("127.0.0.1", 0, "one") as one,
        hello("127.0.0.2", one.server_port, "two"),
        serving(hosts, f"dns://hello.test:{one.server_port}") as running,
    ):
        url = running.wait_for(r"listens on (\S+)")[1]
        assert names(url) == {"503"}, "it starts though the name doesn't resolve yet"
        running.wait_for("can't look up hello.test, keeping 0 targets: ")
        with hosts.open("a") as file:
            file.write("127.0.0.1 hello.test\n")
        eventually(lambda: names(url) == {"one"})
        with hosts.open("a") as file:
            file.write("127.0.0.2 hello.test\n")
        eventually(lambda: names(url) == {"one", "two"})
        hosts.write_text("127.0.0.1 localhost\n")
        running.wait_for("can't look up hello.test, keeping 2 targets: ")
        assert names(url) == {"one", "two"}, "the last answer stays"
        hosts.write_text("127.0.0.2 hello.test\n")
        eventually(lambda: names(url) == {"two"})
        assert running.stop() == 0


def test_a_name_may_stand_beside_ordinary_targets() -> None:
    with lettered("a") as a, lettered("b") as b:
        port = b.url.rpartition(":")[2]
        with Proxy(targets=[a.url, {"url": f"dns://localhost:{port}", "weight": 3}]) as proxy:
            by_url = {target.url: target.weight for target in proxy.pool.targets}
            assert (by_url[a.url], by_url[b.url]) == (1, 3)
            assert {get(proxy.url).body for _ in range(20)} == {b"a", b"b"}


def test_an_address_said_twice_is_one_target() -> None:
    with lettered("a") as a:
        port = a.url.rpartition(":")[2]
        with Proxy(targets=[a.url, f"dns://localhost:{port}"]) as proxy:
            urls = [target.url for target in proxy.pool.targets]
            assert urls.count(a.url) == 1


def test_a_name_that_never_resolves_ends_with_the_proxy() -> None:
    with Proxy(targets=["dns://no-such-host.invalid:80"], resolving=60) as proxy:
        assert get(proxy.url).status == 503


def test_a_name_without_targets_so_far_is_given_up_with_the_settings() -> None:
    """However often they have changed since: its look-ups went on, and brought targets."""

    def looked_up() -> bool:
        return any("no-such-host" in thread.name for thread in threading.enumerate())

    with lettered("a") as a:
        said = parse({"listen": 0, "targets": [a.url, "dns://no-such-host.invalid:80"]})
        with Proxy(said) as proxy:
            assert looked_up()
            proxy.reload(replace(said, max_fails=2))
            proxy.reload(replace(said, targets=said.targets[:1]))
            eventually(lambda: not looked_up())
            assert get(proxy.url).body == b"a"


class Edited:
    """A program whose settings are a file; its targets aren't there."""

    def __init__(self, hosts: Path, *targets: object) -> None:
        self._settings = hosts.with_name("settings.json")
        self._write(*targets)
        self.program = program(
            *("--config", str(self._settings)),
            prefix=[*OWN_HOSTS, BIND, "sh"],
            env={"HOSTS": str(hosts)},
        )

    def __enter__(self) -> "Edited":
        self._admin = self.program.__enter__().wait_for(r"admin: (\S+)")[1]
        return self

    def __exit__(self, *raised: Any) -> None:
        self.program.__exit__(*raised)

    def _write(self, *targets: object) -> None:
        times = {"resolving": 0.1, "sleeping": 60}
        said = {"listen": 0, "admin": {"listen": 0}, "targets": targets, **times}
        self._settings.write_text(json.dumps(said))

    def reload(self, *targets: object) -> None:
        self._write(*targets)
        assert requests.post(f"{self._admin}/reload", timeout=DEADLINE).status_code == 200

    def weights(self) -> dict[str, int]:
        """Of the targets, by URL."""
        status = requests.get(f"{self._admin}/status", timeout=DEADLINE).json()
        return {one["url"]: one["weight"] for one in status["pools"][0]["targets"]}

    def removed(self) -> list[str]:
        """URLs, so far."""
        status = requests.get(f"{self._admin}/status", timeout=DEADLINE).json()
        return [one["target"] for one in status["events"] if one["what"] == "removed"]


def test_a_target_that_is_said_and_an_address_too_goes_when_it_is_neither(hosts: Path) -> None:
    both, one = "http://127.0.0.2:1", "http://127.0.0.3:1"
    by_name = {"url": "dns://hello.test:1", "weight": 2}
    hosts.write_text("127.0.0.2 hello.test\n")
    with Edited(hosts, by_name) as edited:
        eventually(lambda: edited.weights() == {both: 2})
        edited.reload(by_name, both)
        assert edited.weights() == {both: 1}, "what is said of it counts"
        edited.reload(by_name)
        assert edited.weights() == {both: 2}, "it is an address still"
        edited.reload(by_name, both)
        hosts.write_text("127.0.0.3 hello.test\n")
        eventually(lambda: one in edited.weights())
        assert edited.weights() == {both: 1, one: 2}, "it is said still"
        edited.reload(by_name)
        assert edited.weights() == {one: 2}
        edited.reload(by_name, one)
        edited.reload(one, both)
        assert edited.weights() == {both: 1, one: 1}, "the name that had it first is gone"


def test_an_address_of_two_names_stays_when_it_is_one_s(hosts: Path) -> None:
    shared, of_b, of_a = (f"http://127.0.0.{number}:1" for number in (2, 3, 4))
    a, b = "dns://a.test:1", {"url": "dns://b.test:1", "weight": 2}
    hosts.write_text("127.0.0.2 a.test b.test\n127.0.0.3 b.test\n")
    with Edited(hosts, a, b) as edited:
        eventually(lambda: edited.weights().keys() == {shared, of_b})
        edited.reload(b)
        assert edited.weights() == {shared: 2, of_b: 2}
        hosts.write_text("127.0.0.2 a.test b.test\n127.0.0.3 b.test\n127.0.0.4 a.test\n")
        edited.reload(b, a)
        eventually(lambda: edited.weights() == {shared: 2, of_b: 2, of_a: 1})
        hosts.write_text("127.0.0.2 a.test\n127.0.0.3 b.test\n127.0.0.4 a.test\n")
        eventually(lambda: edited.weights() == {shared: 1, of_b: 2, of_a: 1})
        assert edited.removed() == [], "no moment without it"


@pytest.mark.parametrize("before", [False, True], ids=["said now", "said before"])
def test_targets_serve_until_the_name_that_is_to_take_their_place_is_known(
    hosts: Path, before: bool
) -> None:
    old, new = "http://127.0.0.2:1", "http://127.0.0.3:1"
    by_name = {"url": "dns://late.test:1", "weight": 2}
    with Edited(hosts, old, *[by_name] * before) as edited:
        edited.reload(by_name)
        assert edited.weights() == {old: 1}
        hosts.write_text("127.0.0.2 late.test\n127.0.0.3 late.test\n")
        eventually(lambda: edited.weights() == {old: 2, new: 2})
        hosts.write_text("127.0.0.3 late.test\n")
        eventually(lambda: edited.weights() == {new: 2})
