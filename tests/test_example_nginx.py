"""examples/nginx-seminar: least connections, a backup and a read timeout, with real processes."""

import contextlib
import json
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyproxy.lab.spamer import Answer, spam
from tests.programs import ROOT, Program, program, run
from tests.support import eventually, run_together

SETTINGS = ROOT / "examples" / "nginx-seminar" / "appsettings.json"
ORDINARY, BACKUP = ("8001", "8002", "8003"), "8004"  # the targets' names: their ports in the file
READ = 2.0  # seconds; more than a busy machine takes to answer


def target(name: str, port: int = 0) -> contextlib.AbstractContextManager[Program]:
    return program("target", "--port", str(port), "--name", name)


def port_of(running: Program) -> int:
    return int(running.url.rpartition(":")[2])


@pytest.fixture
def targets() -> Iterator[dict[str, Program]]:
    with contextlib.ExitStack() as stack:
        started = {name: stack.enter_context(target(name)) for name in (*ORDINARY, BACKUP)}
        for one in started.values():
            assert one.url  # it listens
        yield started


@pytest.fixture
def proxy(targets: dict[str, Program]) -> Iterator[Program]:
    """By the shipped file, but for the ports and the times."""
    said = json.dumps(json.loads(SETTINGS.read_text())["targets"])
    for name, one in targets.items():
        said = said.replace(f":{name}", f":{port_of(one)}")
    over = {
        "PYPROXY_LISTEN": "0",
        "PYPROXY_TARGETS": said,
        "PYPROXY_TIMEOUTS__READ": str(READ),
        "PYPROXY_SLEEPING": "0.2",
    }
    with program("--config", str(SETTINGS), env=over) as running:
        assert running.url
        yield running


def ask(proxy: Program, count: int) -> list[Answer]:
    return list(spam(proxy.url, interval=0.05, count=count))


def names(answers: list[Answer]) -> set[str]:
    """Who has answered, if nothing failed."""
    assert [answer for answer in answers if answer.status != 200] == []
    return {answer.target for answer in answers}


def told(proxy: Program, verb: str) -> list[str]:
    return [line for line in proxy.stderr if f" {verb} http://" in line]


def test_the_settings_say_what_the_file_for_nginx_says() -> None:
    checked = run("check", "--config", str(SETTINGS))
    assert checked.returncode == 0, checked.stderr
    settings: dict[str, Any] = json.loads(checked.stdout)
    assert settings["policy"] == "least_connections"
    assert settings["timeouts"]["read"] == 5


def test_a_stopped_target_costs_one_request_the_timeout_and_comes_back(
    targets: dict[str, Program], proxy: Program
) -> None:
    assert names(ask(proxy, 6)) == set(ORDINARY)
    stopped = ORDINARY[1]
    targets[stopped].send(signal.SIGSTOP)
    answers: list[Answer] = []
    # While one client waits for it, it has the most connections, and the other is spared.
    run_together([lambda: answers.extend(ask(proxy, int(READ / 0.05) + 5))] * 2)
    assert names(answers) == set(ORDINARY) - {stopped}
    assert len([answer for answer in answers if answer.seconds >= READ]) == 1
    assert len(told(proxy, "evicted")) == 1
    assert f":{port_of(targets[stopped])}: " in told(proxy, "evicted")[0]
    assert told(proxy, "restored") == []

    targets[stopped].send(signal.SIGCONT)
    eventually(lambda: told(proxy, "restored"))
    assert names(ask(proxy, 6)) == set(ORDINARY)


def test_the_backup_serves_while_all_three_are_down(
    targets: dict[str, Program], proxy: Program
) -> None:
    assert names(ask(proxy, 6)) == set(ORDINARY)
    for name in ORDINARY:
        targets[name].kill()
    assert names(ask(proxy, 10)) == {BACKUP}
    first = ORDINARY[0]
    with target(first, port_of(targets[first])):
        eventually(lambda: told(proxy, "restored"))
        assert names(ask(proxy, 6)) == {first}
        targets[BACKUP].kill()
        assert names(ask(proxy, 3)) == {first}


def test_with_a_domain_http_leads_to_https(targets: dict[str, Program], tmp_path: Path) -> None:
    pytest.importorskip("cryptography", reason="makes the certificate (extra tls-tools)")
    if not shutil.which("curl"):
        pytest.skip("needs curl")
    assert run("certificate", "seminar.localhost", cwd=tmp_path).returncode == 0
    overlay = json.loads(SETTINGS.with_name("appsettings.https.json").read_text())
    overlay["listen"][0]["url"] = "http://127.0.0.1:0"
    over = {
        "PYPROXY_ENVIRONMENT": "https",
        "PYPROXY_LISTEN": json.dumps([overlay["listen"][0], "https://127.0.0.1:0"]),
        "PYPROXY_TARGETS": ",".join(one.url for one in targets.values()),
    }
    with program("--config", str(SETTINGS), env=over, cwd=tmp_path) as running:
        https, http = running.wait_for(r"listens on (https:\S+), (http:\S+) ").groups()
        port, secure = http.rpartition(":")[2], https.rpartition(":")[2]
        done = subprocess.run(
            [
                *("curl", "-sSL", "--cacert", "cert.pem"),
                *("-w", " %{url_effective} %{num_redirects}"),
                f"http://seminar.localhost:{port}/a?b",
            ],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=30,
        )
    assert done.stdout == f"Hello, world! https://seminar.localhost:{secure}/a?b 1", done.stderr
