"""examples/fastapi: copies of an application under uvicorn, for real."""

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from tests.programs import ROOT, Program, command, program
from tests.support import client, eventually, get

FOLDER = ROOT / "examples" / "fastapi"
missing = [name for name in ("fastapi", "uvicorn") if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


def copy_on(port: int) -> contextlib.AbstractContextManager[Program]:
    """A copy of the application. Port 0 lets the system choose."""
    app = ("--app-dir", str(FOLDER), "internal_app:app")
    return command(sys.executable, "-m", "uvicorn", *app, "--port", str(port))


def port_of(copy: Program) -> int:
    return int(copy.wait_for(r"running on http://127\.0\.0\.1:(\d+)")[1])


@contextlib.contextmanager
def started(count: int) -> Iterator[dict[int, Program]]:
    """So many copies, by their ports."""
    with contextlib.ExitStack() as stack:
        running = [stack.enter_context(copy_on(0)) for _ in range(count)]
        yield {port_of(one): one for one in running}


@pytest.fixture(scope="module")
def copies() -> Iterator[dict[int, Program]]:
    """Three copies, for tests that leave them alive."""
    with started(3) as running:
        yield running


@contextlib.contextmanager
def proxied(copies: dict[int, Program]) -> Iterator[str]:
    """The URL of a proxy by the shipped file, but for the ports, and with quick probes."""
    over = {
        "PYPROXY_LISTEN": "0",
        "PYPROXY_TARGETS": ",".join(map(str, copies)),
        "PYPROXY_SLEEPING": "0.2",
    }
    with program("--config", str(FOLDER / "appsettings.json"), env=over) as running:
        yield running.url


@pytest.fixture
def proxy(copies: dict[int, Program]) -> Iterator[str]:
    with proxied(copies) as url:
        yield url


def ask_ten_times(url: str) -> list[str]:
    """What the example's client prints."""
    with command(sys.executable, str(FOLDER / "client.py"), url) as asking:
        assert asking.wait() == 0, asking.text
        assert asking.stderr == []
        return asking.stdout


def line_of(port: int) -> str:
    return f"{{'message': 'necessary info', 'port': '{port}'}}"


def accepts(port: int) -> bool:
    try:
        client(f"http://127.0.0.1:{port}").close()
    except ConnectionRefusedError:
        return False
    return True


def test_the_copies_answer_the_client_in_turn(copies: dict[int, Program], proxy: str) -> None:
    first, second, third = map(line_of, copies)
    assert ask_ten_times(proxy) == [first, second, third] * 3 + [first]


def test_the_application_answers_as_it_would_without_the_proxy(
    copies: dict[int, Program], proxy: str
) -> None:
    port = next(iter(copies))
    for path in ("/getInfo", "/docs", "/openapi.json"):
        direct, through = get(f"http://127.0.0.1:{port}", path), get(proxy, path)
        assert (through.status, through.get("Content-Type")) == (200, direct.get("Content-Type"))
        if path != "/getInfo":
            assert through.body == direct.body
    assert "/getInfo" in json.loads(get(proxy, "/openapi.json").body)["paths"]
    assert b"/openapi.json" in get(proxy, "/docs").body


def test_a_copy_is_killed_and_started_again_and_no_answer_fails(
    copies: dict[int, Program],
) -> None:
    with (
        copy_on(0) as victim,
        proxied({**copies, (killed := port_of(victim)): victim}) as proxy,
        requests.Session() as session,
    ):
        session.trust_env = False

        def answering_port() -> int:
            answer = session.get(f"{proxy}/getInfo", timeout=30)
            assert answer.status_code == 200
            assert answer.json()["message"] == "necessary info"
            return int(answer.json()["port"])

        assert {answering_port() for _ in range(8)} == {*copies, killed}
        victim.kill()
        assert {answering_port() for _ in range(12)} == set(copies)
        with copy_on(killed):
            eventually(lambda: answering_port() == killed)
            assert {answering_port() for _ in range(8)} == {*copies, killed}


def test_all_copies_are_killed_and_the_client_reads_503() -> None:
    with started(2) as mortal, proxied(mortal) as proxy:
        for copy in mortal.values():
            copy.kill()
        answer = get(proxy, "/getInfo")
        assert (answer.status, answer.body) == (503, b"All servers is off")
        assert ask_ten_times(proxy) == ["503 All servers is off"] * 10


def test_the_client_says_that_there_is_no_proxy() -> None:
    with command(sys.executable, str(FOLDER / "client.py"), "http://127.0.0.1:1") as asking:
        assert asking.wait() == 1
        assert asking.text == "nobody answers on http://127.0.0.1:1: does the proxy run?"


@pytest.mark.skipif(sys.platform == "win32", reason="signals as a terminal sends them are POSIX")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_run_starts_a_copy_on_each_port_of_the_settings_and_ctrl_c_ends_them_all(
    tmp_path: Path, number: signal.Signals
) -> None:
    folder = shutil.copytree(FOLDER, tmp_path / "fastapi")
    shipped = json.loads((folder / "appsettings.json").read_text())
    assert shipped["targets"] == [8081, 8082, 8083]
    (folder / "appsettings.json").write_text(json.dumps({**shipped, "targets": [0, 0, 0]}))

    with command(sys.executable, str(folder / "run.py")) as running:

        def ports() -> set[int]:
            words = (line.partition("running on http://127.0.0.1:")[2] for line in running.stderr)
            return {int(word.split()[0]) for word in words if word}

        eventually(lambda: len(ports()) == 3)
        for port in ports():
            answer = get(f"http://127.0.0.1:{port}", "/getInfo")
            assert json.loads(answer.body) == {"message": "necessary info", "port": str(port)}
        if number == signal.SIGINT:
            os.killpg(running.process.pid, number)  # as a terminal does
        else:
            running.send(number)
        assert running.wait() == 0, running.text  # and all that it has started
        assert not [port for port in ports() if accepts(port)]
        assert "Traceback" not in running.text
