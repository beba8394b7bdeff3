"""The command line, as those see it who type it: real processes, signals and exit codes."""

import contextlib
import functools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyproxy import __version__
from pyproxy.settings import options, plain
from tests.conftest import alone_on_this_machine
from tests.programs import ROOT, program, run
from tests.support import (
    DEADLINE,
    Gate,
    Message,
    RawTarget,
    answer,
    client,
    closed_port,
    eventually,
    get,
    letters,
    replying,
)

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
ANY_PORT = ("--listen", "http://127.0.0.1:0")


@contextlib.contextmanager
def gated() -> Iterator[tuple[str, Gate]]:
    """The target's URL and its gate, which is open in the end."""
    gate = Gate(b"late")
    with RawTarget(gate) as target:
        try:
            yield target.url, gate
        finally:
            gate.open.set()


def accepts(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2])


def shipped(folder: Path, ports: list[int]) -> None:
    """A copy of the shipped appsettings.json with other ports."""
    text = (ROOT / "appsettings.json").read_text(encoding="utf-8").replace(":8000", ":0")
    for number, port in enumerate(ports, 8001):
        assert f":{number}" in text
        text = text.replace(f":{number}", f":{port}")
    (folder / "appsettings.json").write_text(text, encoding="utf-8")


@functools.cache
def unprivileged() -> tuple[str, ...]:
    """What to put before a command so that it may no more than anybody. Skips where that can't be
    had: to root every file can be read, and every port is free."""
    if os.name != "posix":
        pytest.skip("permissions are tested where there is POSIX")
    if os.geteuid() != 0:
        return ()
    setpriv = shutil.which("setpriv")
    less = "--bounding-set=-dac_override,-dac_read_search,-net_bind_service"
    if not setpriv or subprocess.run([setpriv, less, "true"], capture_output=True).returncode:
        pytest.skip("tests run as root, and there is no setpriv that could make it less")
    return (setpriv, less)


# Serving


def test_the_start_line_tells_where_it_listens_and_whom_it_serves(tmp_path: Path) -> None:
    with (
        letters("ab") as targets,
        program(
            *ANY_PORT, "--targets", ",".join(target.url for target in targets), cwd=tmp_path
        ) as proxy,
    ):
        port = port_of(proxy.url)
        assert port
        assert [get(proxy.url).body for _ in range(2)] == [b"a", b"b"]
        assert proxy.stop() == 0
        assert proxy.stderr[0] == (
            f"pyproxy {__version__} listens on http://127.0.0.1:{port} and serves 2 targets"
            f" (hash_ring): {targets[0].url}, {targets[1].url}"
        )
        assert proxy.stdout == []


def test_of_many_targets_the_start_line_names_a_few() -> None:
    ports = ",".join(map(str, range(1, 10)))
    with program(*ANY_PORT, "--targets", ports) as proxy:
        assert proxy.wait_for(r"serves 9 targets \(.*http://localhost:5 and 4 more$")


def test_a_folder_that_is_gone_is_refused(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    prefix = ("sh", "-c", 'rmdir "$PWD" && exec "$@"', "sh")
    done = run("check", "--targets", "1", cwd=gone, prefix=prefix)
    assert done.returncode == 2
    assert done.stderr.endswith("Error: the current folder is gone: go to one that is there\n")


def test_it_listens_on_every_address(tmp_path: Path) -> None:
    with (
        letters("a") as [target],
        program("--listen", "0,http://127.0.0.1:0", "--targets", target.url) as proxy,
    ):
        found = proxy.wait_for(r"listens on (\S+), (\S+) and serves 1 target \(")
        assert found[1] != found[2]
        assert [get(url).body for url in found.groups()] == [b"a", b"a"]


@pytest.mark.parametrize("as_they_stand", [False, True])
def test_the_shipped_settings_spread_requests_evenly_and_survive_the_loss_of_all_targets(
    tmp_path: Path, as_they_stand: bool
) -> None:
    wanted = range(8001, 8006) if as_they_stand else [closed_port() for _ in range(5)]
    with contextlib.ExitStack() as stack:
        if as_they_stand:
            stack.enter_context(alone_on_this_machine("ports"))
        if taken := [port for port in range(8000, 8006) if as_they_stand and accepts(port)]:
            pytest.skip(f"the ports of the shipped settings are taken: {taken}")
        start = [stack.enter_context(program("target", "--port", str(port))) for port in wanted]
        ports = [port_of(target.url) for target in start]
        if not as_they_stand:
            shipped(tmp_path, ports)
        proxy = stack.enter_context(program(cwd=ROOT if as_they_stand else tmp_path))
        served = [get(proxy.url).get("X-Target") for _ in range(50)]
        assert served == [f"127.0.0.1:{port}" for port in ports] * 10

        for target in start:
            target.kill()
        get(proxy.url)
        for port in ports:
            proxy.wait_for(rf"evicted http://localhost:{port}: ")
        refused = get(proxy.url)
        assert (refused.status, refused.body) == (500, b"All servers is off")

        stack.enter_context(program("target", "--port", str(ports[3])))
        eventually(lambda: accepts(ports[3]))
        back = time.monotonic()
        eventually(lambda: get(proxy.url).status == 200)
        assert time.monotonic() - back < 5  # `sleeping` is 10 there
        assert get(proxy.url).get("X-Target") == f"127.0.0.1:{ports[3]}"
        proxy.wait_for(rf"restored http://localhost:{ports[3]}: ")


def test_the_shipped_settings_answer_500_as_soon_as_all_targets_are_gone(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(5)]
        shipped(tmp_path, [listener.getsockname()[1] for listener in listeners])
    with program(cwd=tmp_path) as proxy:
        refused = get(proxy.url)
        assert (refused.status, refused.body) == (500, b"All servers is off")


# Stopping


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_exit_code_0(number: int) -> None:
    with letters("a") as [target], program(*ANY_PORT, "--targets", target.url) as proxy:
        assert get(proxy.url).body == b"a"
        assert proxy.stop(number) == 0
        assert len(proxy.stderr) == 2
        assert proxy.stderr[1].startswith("stopping: ")


def test_a_request_under_way_is_finished() -> None:
    with (
        gated() as (url, gate),
        program(*ANY_PORT, "--targets", url) as proxy,
        client(proxy.url) as wire,
    ):
        wire.send(GET)
        gate.arrived.get(timeout=DEADLINE)
        proxy.send(signal.SIGTERM)
        proxy.wait_for("^stopping: ")
        eventually(lambda: not accepts(port_of(proxy.url)))
        assert proxy.process.poll() is None
        gate.open.set()
        reply = wire.read_message()
        assert (reply.body, reply.get("Connection")) == (b"late", "close")
        assert proxy.wait() == 0


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads Linux's /proc")
def test_signals_are_for_the_main_thread_alone() -> None:
    """One that another thread got would not end what it waits for."""
    both = 1 << (signal.SIGINT - 1) | 1 << (signal.SIGTERM - 1)
    with letters("a") as [a], program(*ANY_PORT, "--targets", a.url) as proxy:
        assert get(proxy.url).body == b"a"
        pid = proxy.process.pid
        blocked = {}
        for status in Path(f"/proc/{pid}/task").glob("*/status"):
            found = re.search(r"^SigBlk:\s*([0-9a-f]+)", status.read_text(), re.MULTILINE)
            assert found
            blocked[int(status.parent.name)] = int(found[1], 16) & both
        assert blocked.pop(pid) == 0
        assert len(blocked) > 2
        assert set(blocked.values()) == {both}
        assert proxy.stop() == 0


def test_a_signal_is_heard_whichever_thread_of_a_program_gets_it() -> None:
    """Nor is one slept through that comes just before the main thread waits, which is the same."""
    code = """
import signal, threading
from pyproxy.program import Signals

def get_one() -> None:
    signal.pthread_kill(threading.get_ident(), signal.SIGTERM)

signals = Signals("SIGTERM")
threading.Timer(0.2, get_one).start()
print(signals.get() == signal.SIGTERM)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, timeout=DEADLINE, check=True
    )
    assert done.stdout == b"True\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_it_at_once(number: int) -> None:
    with (
        gated() as (url, gate),
        program(*ANY_PORT, "--targets", url, "--timeouts.drain", "1h") as proxy,
        client(proxy.url) as wire,
    ):
        wire.send(GET)
        gate.arrived.get(timeout=DEADLINE)
        proxy.send(signal.SIGTERM)
        proxy.wait_for("^stopping: ")
        assert proxy.stop(number) == 128 + number
        assert wire.at_end()


# What it refuses


def refusal(done: "subprocess.CompletedProcess[str]", code: int) -> str:
    """The one line that is said."""
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    [line] = done.stderr.splitlines()
    return line


def usage_error(done: "subprocess.CompletedProcess[str]") -> str:
    """The line behind click's own on how to call it."""
    assert done.returncode == 2
    usage, hint, _, line = done.stderr.splitlines()
    assert usage.startswith("Usage: python -m pyproxy ")
    assert hint.endswith("--help' for help.")
    return line


def test_an_option_that_is_said_twice_is_refused() -> None:
    """Not: the last one counts, and of two targets one serves."""
    said = usage_error(run("--targets", "8001", "--targets", "8002"))
    assert said == (
        "Error: Invalid value for '--targets': said 2 times: several values are one list, like 1,2"
    )


def test_a_port_in_use_is_told() -> None:
    with letters("a") as [target]:
        for arguments in (
            ("--listen", target.url, "--targets", "8001"),
            ("target", "--port", str(target.port)),
        ):
            assert re.fullmatch(
                rf"can't listen on 127\.0\.0\.1:{target.port}: address already in use; "
                "another program listens there: stop it or choose another port",
                refusal(run(*arguments), 1),
            )


@pytest.mark.parametrize("port", [80, 8000])
def test_an_address_of_another_machine_is_told(port: int) -> None:
    assert refusal(run("--listen", f"http://192.0.2.1:{port}", "--targets", "8001"), 1) == (
        f"can't listen on 192.0.2.1:{port}: cannot assign requested address; "
        "this machine has no such address"
    )


@pytest.mark.parametrize(
    "arguments",
    [("--listen", "http://a..b:80", "--targets", "8001"), ("target", "--host", "a..b")],
)
def test_a_name_that_can_be_no_host_is_told(arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert "Traceback" not in done.stderr
    assert done.returncode in (1, 2)
    assert "a..b" in done.stderr


def test_a_port_that_needs_privileges_is_told() -> None:
    prefix = unprivileged()
    limit = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")
    if limit.exists() and int(limit.read_text()) <= 80:
        pytest.skip("this machine gives port 80 to everybody")
    done = run("--listen", "http://127.0.0.1:80", "--targets", "8001", prefix=prefix)
    assert refusal(done, 1) == (
        "can't listen on 127.0.0.1:80: permission denied; "
        "a port below 1024 needs privileges: choose a higher one"
    )


def test_a_file_that_may_not_be_read_is_told(tmp_path: Path) -> None:
    (tmp_path / "appsettings.json").touch(mode=0o000)
    said = refusal(run("check", cwd=tmp_path, prefix=unprivileged()), 2)
    assert said == "appsettings.json: permission denied"


def test_an_access_log_that_can_not_be_written_is_told(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "access.log"
    done = run(*ANY_PORT, "--targets", "8001", "--access-log", str(path))
    assert refusal(done, 1) == f"access_log: {path}: no such file or directory"


@pytest.mark.parametrize("command", [(), ("check",)])
def test_a_missing_file_is_told(command: tuple[str, ...]) -> None:
    done = run(*command, "--config", "nope.json", "--targets", "8001")
    assert refusal(done, 2) == "nope.json: no such file or directory"


def test_no_settings_at_all_is_told_with_what_to_do(tmp_path: Path) -> None:
    said = refusal(run(cwd=tmp_path), 2)
    assert said.startswith(f"appsettings.json: not found in {tmp_path}: ")
    assert "--config" in said
    assert "--targets" in said


def test_missing_targets_are_told(tmp_path: Path) -> None:
    (tmp_path / "appsettings.json").write_text("{}")
    assert refusal(run(cwd=tmp_path), 2) == (
        "appsettings.json: targets: name the servers behind the proxy, "
        'like ["http://localhost:8001"]'
    )


def test_an_unknown_setting_is_told_with_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "appsettings.json").write_text('{"targets": [8001], "timeouts": {"raed": 5}}')
    said = 'appsettings.json: timeouts.raed: unknown setting (did you mean "read"?)'
    assert refusal(run(cwd=tmp_path), 2) == said


def test_an_unknown_option_is_told_with_the_nearest() -> None:
    said = usage_error(run("--targets", "8001", "--timeouts.raed", "5"))
    assert said.startswith("Error: No such option '--timeouts.raed'")
    assert "'--timeouts.read'" in said


def test_an_unknown_command_is_told() -> None:
    assert usage_error(run("serve")) == "Error: No such command 'serve'."


def test_settings_before_a_command_are_refused() -> None:
    said = "Error: options of a command stand behind it: check"
    assert usage_error(run("--targets", "8001", "check")) == said


# check, --help, --version


def test_check_prints_the_settings_in_effect(tmp_path: Path) -> None:
    (tmp_path / "appsettings.json").write_text('{"targets": [8001], "sleeping": 1, "max_fails": 2}')
    (tmp_path / "appsettings.Dev.json").write_text('{"sleeping": "2m"}')
    done = run(
        "check",
        "--retry.max-body",
        "1KB",
        cwd=tmp_path,
        env={"PYPROXY_ENVIRONMENT": "Dev", "PYPROXY_TIMEOUTS__READ": "3"},
    )
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    assert told["targets"] == ["http://localhost:8001"]
    assert (told["sleeping"], told["max_fails"]) == (120, 2)
    assert told["timeouts"]["read"] == 3
    assert told["retry"]["max_body"] == 1024
    assert told["unavailable"] == {"status": 503, "body": "All servers is off"}


def test_check_watches_the_files_and_goes_on_after_mistakes(tmp_path: Path) -> None:
    file, overlay = tmp_path / "appsettings.json", tmp_path / "appsettings.Dev.json"
    file.write_text('{"targets": [8001], "sleeping": 1}')
    with program("check", "--watch", cwd=tmp_path, env={"PYPROXY_ENVIRONMENT": "Dev"}) as watching:
        watching.wait_for(r'"sleeping": 1\b')
        watching.wait_for("checked at .* until appsettings.json changes")
        file.write_text('{"targets": [8001], "sleepin": 2}')
        watching.wait_for("appsettings.json: sleepin: unknown setting")
        file.write_text('{"targets": [8001], "sleeping": 3}')
        watching.wait_for(r'"sleeping": 3\b')
        overlay.write_text('{"sleeping": 4}')
        watching.wait_for(r'"sleeping": 4\b')
        assert watching.stop(signal.SIGINT) == 0


def test_check_watches_the_certificates_that_are_named(tmp_path: Path) -> None:
    (tmp_path / "appsettings.json").write_text(
        '{"listen": "https://127.0.0.1:0", "targets": [8001], "tls": {"certificate": "both.pem"}}'
    )
    with program("check", "--watch", cwd=tmp_path) as watching:
        watching.wait_for("both.pem: no such file")
        (tmp_path / "both.pem").write_text("nothing")
        watching.wait_for("both.pem: (?!no such file)")
        assert watching.stop(signal.SIGINT) == 0


def test_check_watches_nothing_when_no_file_can_be_named() -> None:
    done = run("check", "--watch", env={"PYPROXY_ENVIRONMENT": "../x"})
    assert (
        refusal(done, 2)
        == "environment variable PYPROXY_ENVIRONMENT: expected a name like Production"
    )


def test_check_tells_all_problems(tmp_path: Path) -> None:
    (tmp_path / "appsettings.json").write_text('{"targets": [], "sleeping": 0, "limit": {}}')
    done = run("check", "--max-fails", "0", cwd=tmp_path, env={"PYPROXY_POLICY": "none"})
    assert (done.returncode, done.stdout) == (2, "")
    assert [line.partition(": expected")[0] for line in done.stderr.splitlines()] == [
        "appsettings.json: targets",
        "appsettings.json: sleeping",
        'appsettings.json: limit: unknown setting (did you mean "limits"?)',
        'environment variable PYPROXY_POLICY: policy: unknown policy "none"',
        "command line: max_fails",
    ]


@pytest.mark.parametrize("command", [(), ("check",)])
def test_help_names_every_setting_with_its_default(command: tuple[str, ...]) -> None:
    done = run(*command, "--help")
    assert done.returncode == 0
    told = squeezed(done.stdout)
    for path, option, default in options():
        shown = plain(default)
        if isinstance(shown, list):
            shown = ",".join(shown)
        elif not isinstance(shown, str):
            shown = json.dumps(shown)
        says = squeezed(option.help[0].upper() + option.help[1:])
        unit = f"({option.unit})" if option.unit else ""
        name = f"--{path.replace('_', '-')}VALUE"
        assert name + says + unit in told, path
        if shown not in ("", "null"):
            assert f"{name}{says}{unit}.[default:{squeezed(shown)}]" in told, path


def squeezed(text: str) -> str:
    """Without the spaces and line ends that depend on the width of the terminal."""
    return re.sub(r"\s", "", text)


def test_help_names_every_command() -> None:
    told = run("--help").stdout
    for command in ("check", "demo", "spam", "target"):
        assert re.search(rf"^  {command} +\S", told, re.MULTILINE)


def test_version() -> None:
    assert run("--version").stdout == f"pyproxy, version {__version__}\n"


# target


@pytest.fixture(scope="module")
def hello() -> Iterator[str]:
    with program("target", "--port", "0") as target:
        yield target.url


def test_a_target_says_hello_to_every_method_and_path(hello: str) -> None:
    with client(hello) as wire:
        for method in ("GET", "HEAD", "POST", "PUT", "DELETE", "GET"):
            body = b"x" * 100_000 if method in ("POST", "PUT") else b""
            head = f"{method} /any HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n"
            wire.send(head.encode() + body)
            reply = wire.read_message(bodiless=method == "HEAD")
            assert (reply.status, reply.get("Content-Length")) == (200, "13"), method
            assert reply.body == (b"" if method == "HEAD" else b"Hello, world!"), method
            assert reply.get("X-Target") == hello.removeprefix("http://")
        assert wire.buffer == b""


def test_a_target_says_hello_to_a_chunked_body(hello: str) -> None:
    with client(hello) as wire:
        wire.send(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
        wire.send(b"3\r\nabc\r\n0\r\n\r\n")
        assert wire.read_message().body == b"Hello, world!"
        assert wire.at_end()


def test_a_target_has_the_name_it_is_given() -> None:
    with program("target", "--port", "0", "--name", "blue") as target:
        assert get(target.url).get("X-Target") == "blue"
        assert target.stdout == [f"target blue listens on {target.url}"]
        assert target.stop() == 0


@pytest.mark.parametrize("host", ["0.0.0.0", "0"])
def test_a_target_on_all_addresses_has_the_name_of_its_machine(host: str) -> None:
    with program("target", "--host", host, "--port", "0") as target:
        port = target.url.rpartition(":")[2]
        assert get(f"http://127.0.0.1:{port}").get("X-Target") == socket.gethostname()
        assert target.stop() == 0


def test_a_target_may_end_with_its_input() -> None:
    with program("target", "--port", "0", "--until-eof") as target:
        assert get(target.url).status == 200
        target.close_input()
        assert target.wait() == 0


def test_a_target_may_take_its_time_for_so_many_requests_at_once() -> None:
    with (
        program("target", "--port", "0", "--delay", "0.2", "--at-once", "2") as target,
        contextlib.ExitStack() as stack,
    ):
        wires = [stack.enter_context(client(target.url)) for _ in range(5)]
        began = time.monotonic()
        for wire in wires:
            wire.send(GET)
        for wire in wires:
            assert wire.read_message().status == 200
        assert time.monotonic() - began >= 0.6  # two, two and one


# spam


def numbered(status: Callable[[int], str]) -> RawTarget:
    """A target that answers its ``n``-th request with ``status(n)``."""
    count = iter(range(1, 1_000_000))

    def respond(request: Message) -> bytes:
        return answer("x", "X-Target: a", status=status(next(count)))

    return RawTarget(replying(respond))


def test_spam_prints_a_line_a_request_and_the_sum() -> None:
    with numbered(lambda n: "200 OK") as target:
        done = run("spam", target.url, "--count", "5", "--interval", "0.01")
        assert len(target.requests) == 5
    assert (done.returncode, done.stderr) == (0, "")
    *lines, total, share = done.stdout.splitlines()
    assert len(lines) == 5
    for line in lines:
        assert re.fullmatch(r"\d\d:\d\d:\d\d 200 +\d+\.\d ms a", line)
    assert (total, share) == ("5 requests, 0 failed", "  a: 5 (100.0%)")


def test_spam_fails_when_a_request_does() -> None:
    with numbered(lambda n: "500 Oh" if n == 2 else "200 OK") as target:
        done = run("spam", target.url, "--count", "3", "--interval", "0.01")
    assert done.returncode == 1
    assert [line.split()[1] for line in done.stdout.splitlines()[:3]] == ["200", "500", "200"]
    assert "3 requests, 1 failed" in done.stdout


def test_spam_goes_on_when_nobody_answers() -> None:
    url = f"http://127.0.0.1:{closed_port()}"
    done = run("spam", url, "--count", "2", "--interval", "0.01")
    assert (done.returncode, done.stderr) == (1, "")
    line = r"\d\d:\d\d:\d\d failed +\d+\.\d ms no connection, or it broke\n"
    assert re.match(rf"{line}{line}2 requests, 2 failed\n", done.stdout)


def test_spam_tells_a_url_that_can_not_be_asked() -> None:
    done = run("spam", "http://a..b/", "--count", "1")
    assert (done.returncode, done.stderr) == (1, "")


def test_spam_asks_a_port_of_this_machine() -> None:
    with letters("a") as [target]:
        done = run("spam", str(port_of(target.url)), "--count", "1")
    assert (done.returncode, len(target.requests)) == (0, 1)


def test_spam_refuses_what_is_no_url() -> None:
    done = run("spam", "localhost:8000", "--count", "1")
    assert (done.returncode, done.stdout) == (2, "")
    assert 'expected a URL like "http://localhost:8000/", not "localhost:8000"' in done.stderr


def test_spam_ends_after_its_duration() -> None:
    with numbered(lambda n: "200 OK") as target:
        done = run("spam", target.url, "--duration", "0.35", "--interval", "0.1")
    assert done.returncode == 0
    assert 1 <= len(target.requests) <= 4
    assert f"{len(target.requests)} requests, 0 failed" in done.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_spam_prints_the_sum(number: int) -> None:
    with (
        numbered(lambda n: "200 OK") as target,
        program("spam", target.url, "--interval", "0.05") as spam,
    ):
        spam.wait_for(" 200 ")
        assert spam.stop(number) == 0
        *lines, total, _ = spam.stdout
        assert total == f"{len(lines)} requests, 0 failed"
        assert spam.stderr == []


def test_a_signal_to_spam_interrupts_a_request_that_hangs() -> None:
    with gated() as (url, gate), program("spam", url) as spam:
        gate.arrived.get(timeout=DEADLINE)
        assert spam.stop(signal.SIGINT) in (0, 1)
        spam.wait_for(r"^\d requests, \d failed")


def test_a_program_that_says_nothing_more_fails_a_test_soon() -> None:
    """The helper itself."""
    with program("--version") as ended:
        began = time.monotonic()
        with pytest.raises(AssertionError, match=f"version {re.escape(__version__)}"):
            ended.wait_for("never")
        assert time.monotonic() - began < DEADLINE


def test_an_interrupt_while_the_program_is_imported_is_no_traceback() -> None:
    text = """
import runpy, sys

class Interrupted:
    def find_spec(self, name, *_):
        if name == "pyproxy.cli":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupted())
runpy.run_module("pyproxy", run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (130, "")
