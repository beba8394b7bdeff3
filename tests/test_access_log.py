"""The access log: a line a request, that no client can break or forge."""

import contextlib
import json
import logging
import os
import re
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

from pyproxy import Proxy, access_format
from pyproxy.access_format import escape
from pyproxy.errors import ListenError
from pyproxy.http.access_log import AccessLog
from tests.programs import program
from tests.support import (
    DEADLINE,
    Message,
    RawTarget,
    Wire,
    answer,
    client,
    closed_port,
    eventually,
    get,
    letters,
    replying,
)

LINE = re.compile(
    r'(?P<address>\S+) - - \[(?P<time>[^\]]+)\] "(?P<line>[^"]*)" (?P<status>\d{3}) (?P<size>\d+) '
    r'"(?P<referer>[^"]*)" "(?P<agent>[^"]*)" (?P<target>\S+) (?P<seconds>\d+\.\d{3}) '
    r"(?P<attempts>\d+)\n"
)
Entry = dict[str, str]


def read(path: Path) -> list[Entry]:
    """Its lines, each of which must be whole, and nothing but printable ASCII."""
    data = path.read_bytes()
    assert re.fullmatch(rb"[ -~\n]*", data), data
    assert data.endswith(b"\n") or not data
    found = []
    for line in data.decode("ascii").splitlines(keepends=True):
        match = LINE.fullmatch(line)
        assert match, line
        found.append(match.groupdict())
    return found


class Logged:
    """A proxy with a log, which is read when the proxy has stopped."""

    def __init__(self, proxy: Proxy, path: Path) -> None:
        self.proxy = proxy
        self.path = path
        self._running = True
        proxy.start()
        self.url = proxy.url

    def stop(self) -> None:
        if self._running:
            self._running = False
            self.proxy.stop()

    def entries(self) -> list[Entry]:
        self.stop()
        return read(self.path)

    def entry(self) -> Entry:
        [entry] = self.entries()
        return entry


@pytest.fixture
def logged(tmp_path: Path) -> Iterator[Callable[..., Logged]]:
    """``logged(targets, **settings)``: a started proxy with a log."""
    path = tmp_path / "access.log"
    with contextlib.ExitStack() as stack:

        def start(targets: list[RawTarget], **settings: Any) -> Logged:
            urls = [target.url for target in targets]
            log = Logged(Proxy(targets=urls, access_log=str(path), **settings), path)
            stack.callback(log.stop)
            return log

        yield start


def pick(entry: Entry, *names: str) -> tuple[str, ...]:
    return tuple(entry[name] for name in names)


# Where it goes


def test_there_is_none_unless_it_is_asked_for(tmp_path: Path) -> None:
    with (
        letters("a") as [target],
        program("--listen", "0", "--targets", target.url, cwd=tmp_path) as proxy,
    ):
        assert get(proxy.url).body == b"a"
        assert proxy.stop() == 0
        assert proxy.stdout == []
        assert len(proxy.stderr) == 2  # the start and the end
    assert list(tmp_path.iterdir()) == []


def test_a_dash_is_standard_output(tmp_path: Path) -> None:
    with (
        letters("a") as [target],
        program(
            "--listen", "0", "--targets", target.url, "--access-log", "-", cwd=tmp_path
        ) as proxy,
    ):
        assert get(proxy.url, "/seen").body == b"a"
        proxy.wait_for(f'"GET /seen HTTP/1.1" 200 1 "-" "-" {target.url} ')
        assert get(proxy.url, "/last").body == b"a"
        assert proxy.stop() == 0
        assert [line.split('"')[1] for line in proxy.stdout] == [
            "GET /seen HTTP/1.1",
            "GET /last HTTP/1.1",
        ]
    assert list(tmp_path.iterdir()) == []


def test_a_file_goes_on_where_it_ended(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    with letters("a") as [target]:
        for _ in range(2):
            with Proxy(targets=[target.url], access_log=str(path)) as proxy:
                get(proxy.url)
    assert len(read(path)) == 2


@pytest.mark.parametrize(
    ("name", "why"), [("missing/access.log", "no such file or directory"), ("", "is a directory")]
)
def test_where_nothing_can_be_written_it_does_not_start(
    tmp_path: Path, name: str, why: str
) -> None:
    path = str(tmp_path / name)
    port = closed_port()
    with pytest.raises(ListenError) as caught:
        Proxy(targets=[8001], access_log=path, listen=port).start()
    assert str(caught.value) == f"access_log: {path}: {why}"
    with socket.socket() as sock:
        assert sock.connect_ex(("127.0.0.1", port))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_when_the_disk_is_full_requests_are_served_on() -> None:
    with (
        letters("a") as [target],
        program("--listen", "0", "--targets", target.url, "--access-log", "/dev/full") as proxy,
    ):
        assert get(proxy.url).body == b"a"
        proxy.wait_for("No space left on device")
        assert get(proxy.url).body == b"a"
        assert proxy.stop() == 0
        _, problem, _ = proxy.stderr  # once, between the start and the end
        assert " ERROR " in problem


# What it says


def test_a_line_in_the_combined_format_and_what_a_balancer_adds(
    logged: Callable[..., Logged],
) -> None:
    def slowly(request: Message) -> bytes:
        time.sleep(0.2)
        return answer("thirteen-or-so", status="201 Created")

    with RawTarget(replying(slowly)) as target:
        log = logged([target])
        get(log.url, "/a?b=c", "Referer: http://ref/", "User-Agent: agent/1.0 (x; y)")
        entry = log.entry()
    seconds = float(entry.pop("seconds"))
    assert 0.2 <= seconds < DEADLINE
    when = datetime.strptime(entry.pop("time"), "%d/%b/%Y:%H:%M:%S %z")
    assert 0 <= time.time() - when.timestamp() < 30
    assert entry == {
        "address": "127.0.0.1",
        "line": "GET /a?b=c HTTP/1.1",
        "status": "201",
        "size": "14",
        "referer": "http://ref/",
        "agent": "agent/1.0 (x; y)",
        "target": target.url,
        "attempts": "1",
    }


@pytest.mark.parametrize(
    ("method", "response", "size"),
    [
        (b"GET", answer(b"x" * 300_000), 300_000),
        (
            b"GET",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0\r\n\r\n",
            5,
        ),
        (b"GET", b"HTTP/1.1 204 No Content\r\n\r\n", 0),
        (b"HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n", 0),
    ],
)
def test_the_size_is_that_of_the_body_sent(
    logged: Callable[..., Logged], method: bytes, response: bytes, size: int
) -> None:
    with RawTarget(replying(response)) as target:
        log = logged([target])
        with client(log.url) as wire:
            wire.send(b"%b / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n" % method)
            wire.read_head()
            assert len(wire.read_to_end()) >= size
        assert log.entry()["size"] == str(size)


def test_the_size_of_the_proxy_s_own_answer_to_head_is_0(logged: Callable[..., Logged]) -> None:
    with letters("a") as [target]:
        log = logged([target])
    assert get(log.url, method="HEAD").status == 503
    assert log.entry()["size"] == "0"


def test_each_request_of_a_connection_has_its_line(logged: Callable[..., Logged]) -> None:
    with letters("ab") as targets:
        log = logged(targets)
        with client(log.url) as wire:
            wire.send(b"".join(b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % at for at in range(4)))
            for _ in range(4):
                wire.read_message()
        entries = log.entries()
    assert [entry["line"] for entry in entries] == [f"GET /{at} HTTP/1.1" for at in range(4)]
    assert [entry["target"] for entry in entries] == [target.url for target in targets] * 2


def test_after_failover_it_names_the_target_that_answered_and_both_attempts(
    logged: Callable[..., Logged],
) -> None:
    with letters("ab") as targets:
        log = logged(targets)
        targets[0].stop()
        assert get(log.url).body == b"b"
        assert pick(log.entry(), "status", "target", "attempts") == ("200", targets[1].url, "2")


@pytest.mark.parametrize("status", [503, 500])
def test_when_nobody_is_left_it_names_no_target(logged: Callable[..., Logged], status: int) -> None:
    with letters("a") as [target]:
        log = logged([target], unavailable={"status": status})
        target.stop()
        for _ in range(2):
            assert get(log.url).status == status
        names = ("attempts", "target", "status", "size", "seconds")
        found = sorted(pick(entry, *names) for entry in log.entries())  # they may overtake
    assert found[0] == ("0", "-", str(status), "18", "0.000")
    assert found[1][:4] == ("1", target.url, str(status), "18")


def test_a_target_that_fails_a_request_that_can_not_be_sent_twice_is_named(
    logged: Callable[..., Logged],
) -> None:
    def serve(target: RawTarget, wire: Wire) -> None:
        wire.read_message()

    with RawTarget(serve) as target, letters("b") as [other]:
        log = logged([target, other])
        assert get(log.url, method="POST").status == 502
        assert pick(log.entry(), "status", "target", "attempts") == ("502", target.url, "1")


def test_a_client_that_leaves_before_its_answer_is_499(logged: Callable[..., Logged]) -> None:
    asked, left = threading.Event(), threading.Event()

    def serve(target: RawTarget, wire: Wire) -> None:
        wire.read_message()
        asked.set()
        left.wait(DEADLINE)

    with RawTarget(serve) as target:
        log = logged([target])
        with client(log.url) as wire:
            wire.send(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n")
            assert asked.wait(DEADLINE)
        eventually(lambda: not log.proxy.connections)
        left.set()
        entry = log.entry()
    assert pick(entry, "line", "status", "size", "target", "attempts") == (
        "GET /slow HTTP/1.1",
        "499",
        "0",
        target.url,
        "1",
    )


def test_a_client_that_leaves_during_its_answer_keeps_the_status(
    logged: Callable[..., Logged],
) -> None:
    def serve(target: RawTarget, wire: Wire) -> None:
        wire.read_message()
        wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 900000000\r\n\r\n")
        while True:
            wire.send(b"x" * 100_000)

    with RawTarget(serve) as target:
        log = logged([target])
        with client(log.url) as wire:
            wire.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            wire.read_exactly(1000)
        eventually(lambda: not log.proxy.connections)
        entry = log.entry()
    assert entry["status"] == "200"
    assert 1000 < int(entry["size"]) < 900_000_000


# What was refused


@pytest.mark.parametrize(
    ("request_", "status", "line"),
    [
        (b"GARBAGE\r\n\r\n", 400, "GARBAGE"),
        (b"GET / HTTP/1.1\r\n\r\n", 400, "GET / HTTP/1.1"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400, "GET / HTTP/1.1"),
        (b"GET / HTTP/3.0\r\nHost: a\r\n\r\n", 505, "GET / HTTP/3.0"),
        (b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", 501, "CONNECT a:1 HTTP/1.1"),
        (b"GET /%b HTTP/1.1" % (b"x" * 1000), 414, "GET /" + "x" * 195),
        (b"\x16\x03\x01\x02\x00\x01\x00", 400, r"\x16\x03\x01\x02\x00\x01\x00"),  # TLS
    ],
)
def test_a_refused_request_has_its_line(
    logged: Callable[..., Logged], request_: bytes, status: int, line: str
) -> None:
    with letters("a") as [target]:
        log = logged([target], limits={"head": 500})
        with client(log.url) as wire:
            wire.send(request_)
            reply = wire.read_message()
        assert reply.status == status
        entry = log.entry()
        assert not target.requests
    assert pick(entry, "line", "status", "size", "referer", "agent", "target", "attempts") == (
        line,
        str(status),
        str(len(reply.body)),
        "-",
        "-",
        "-",
        "0",
    )


def test_a_head_over_the_limit_is_logged_with_its_own_line(logged: Callable[..., Logged]) -> None:
    with letters("a") as [target]:
        log = logged([target], limits={"head": 500})
        with client(log.url) as wire:
            wire.send(b"GET /first HTTP/1.1\r\nHost: a\r\n\r\n")
            assert wire.read_message().status == 200
            wire.send(b"GET /second HTTP/1.1\r\nHost: a\r\nX: %b\r\n\r\n" % (b"x" * 500))
            assert wire.read_message().status == 431
        lines = [entry["line"] for entry in log.entries()]
    assert lines == ["GET /first HTTP/1.1", "GET /second HTTP/1.1"]


def test_a_slow_head_is_logged_as_far_as_it_came(logged: Callable[..., Logged]) -> None:
    with letters("a") as [target]:
        log = logged([target], timeouts={"header": 0.5})
        with client(log.url) as wire:
            wire.send(b"GET /slow HTT")
            assert wire.read_message().status == 408
        assert pick(log.entry(), "line", "status") == ("GET /slow HTT", "408")


def test_a_client_that_leaves_within_its_body_is_logged(logged: Callable[..., Logged]) -> None:
    with letters("a") as [target]:
        log = logged([target])
        with client(log.url) as wire:
            wire.send(b"POST /form HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nab")
        eventually(lambda: not log.proxy.connections)
        assert pick(log.entry(), "line", "status") == ("POST /form HTTP/1.1", "499")


# Forgery

FORGED = b'10.0.0.9 - admin [01/Jan/2026:00:00:00 +0000] "GET /x HTTP/1.1" 200 1 "-" "-" - 0.000 1'
NASTY = [
    b'" 200 1 "-" "-" http://other 0.000 1',
    b"back\\slash \\x41 \\",
    b'\\"',
    b"\xe9t\xe9 \xff\xfe \xe2\x80\xa8 \xc2\x85",
    "день ☃".encode(),
    b"tab\tin the middle",
    b"%0d%0a" + FORGED,
]
CONTROLS = [
    b"\n" + FORGED,
    b"\r" + FORGED,
    b"\x1b[2J\x1b]0;owned\x07",
    b"nul\x00byte",
    b"\x7f\x08\x0b\x0c",
]


@pytest.mark.parametrize("value", NASTY)
@pytest.mark.parametrize("name", [b"User-Agent", b"Referer"])
def test_a_field_can_not_end_its_place(
    logged: Callable[..., Logged], name: bytes, value: bytes
) -> None:
    with letters("a") as [target]:
        log = logged([target])
        with client(log.url) as wire:
            wire.send(b"GET / HTTP/1.1\r\nHost: a\r\n%b: %b\r\n\r\n" % (name, value))
            assert wire.read_message().status == 200
        entry = log.entry()
    key, other = ("agent", "referer") if name == b"User-Agent" else ("referer", "agent")
    assert unescape(entry[key]) == value
    assert pick(entry, other, "status", "target") == ("-", "200", target.url)


@pytest.mark.parametrize("value", NASTY + CONTROLS)
def test_a_field_can_not_start_a_line_even_if_it_is_refused(
    logged: Callable[..., Logged], value: bytes
) -> None:
    with letters("a") as [target]:
        log = logged([target])
        heads = [b"Host: %b", b"%b", b"Host: a\r\n%b"]
        if value in CONTROLS:
            heads += [b"Host: a\r\nUser-Agent: %b", b"Host: a\r\nReferer: a\r\nX: %b"]
        for head in heads:
            with client(log.url) as wire:
                wire.send(b"GET /x HTTP/1.1\r\n" + head % value + b"\r\n\r\n")
                assert wire.read_message().status == 400
        entries = log.entries()
    assert len(entries) == len(heads)
    for entry in entries:
        assert pick(entry, "line", "status", "agent") == ("GET /x HTTP/1.1", "400", "-")


@pytest.mark.parametrize("value", NASTY + CONTROLS)
def test_a_request_line_can_not_start_a_line(logged: Callable[..., Logged], value: bytes) -> None:
    with letters("a") as [target]:
        log = logged([target])
        for line in (b"GET /%b HTTP/1.1", b"%b / HTTP/1.1", b"GET / %b", b"%b"):
            with client(log.url) as wire:
                wire.send(line % value + b"\r\nHost: a\r\n\r\n")
                wire.read_message()
        entries = log.entries()
    assert len(entries) == 4
    for entry in entries:
        assert entry["address"] == "127.0.0.1"
        assert entry["status"] in ("200", "400", "505")


def unescape(text: str) -> bytes:
    return re.sub(
        rb"\\x([0-9a-f]{2})", lambda found: bytes([int(found[1], 16)]), text.encode("ascii")
    )


@hypothesis.given(st.binary(min_size=1))
@hypothesis.settings(deadline=None)
def test_escaped_bytes_are_printable_and_can_be_told_back(value: bytes) -> None:
    escaped = escape(value)
    assert re.fullmatch(r'[^\x00-\x1f\x7f-\U0010ffff"]+', escaped)
    assert unescape(escaped) == value


def test_nothing_is_a_dash() -> None:
    assert escape(None) == escape(b"") == "-"


# When it is written


def test_lines_are_written_within_about_a_second(logged: Callable[..., Logged]) -> None:
    with letters("a") as [target]:
        log = logged([target])

        def seconds(lines: int) -> float:
            get(log.url)
            began = time.monotonic()
            wait_for(log.path, lines)
            return time.monotonic() - began

        # The machine may be busy for some of them, not for all.
        assert any(seconds(lines) < 2 for lines in range(1, 11))


def wait_for(path: Path, count: int) -> None:
    """Until it has so many lines."""
    eventually(lambda: path.read_bytes().count(b"\n") >= count)
    assert len(read(path)) == count


def test_many_lines_do_not_wait_for_the_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyproxy.http.access_log._FLUSH_EVERY", 2 * DEADLINE)
    path = tmp_path / "access.log"
    log = AccessLog(str(path))
    for batch in range(1, 11):
        for _ in range(1000):
            log.write(access_format.Entry("10.0.0.1", b"GET / HTTP/1.1", 200, 1))
        wait_for(path, 1000 * batch)
    log.close()


def test_many_lines_that_come_while_others_are_written_do_not_wait_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyproxy.http.access_log._FLUSH_EVERY", 2 * DEADLINE)
    path = tmp_path / "access.log"
    batches, flush = iter((1000, 1000)), AccessLog._flush

    def write() -> None:
        for _ in range(next(batches, 0)):
            log.write(access_format.Entry("10.0.0.1", b"GET / HTTP/1.1", 200, 1))

    def flush_slowly(one: AccessLog, lines: list[str], reopening: bool = False) -> None:
        flush(one, lines, reopening)
        write()

    monkeypatch.setattr(AccessLog, "_flush", flush_slowly)
    log = AccessLog(str(path))
    write()
    wait_for(path, 2000)
    log.close()


def test_all_lines_are_there_in_the_end_each_whole(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    log = AccessLog(str(path))

    def write(writer: int) -> None:
        for at in range(1500):
            log.write(access_format.Entry(f"10.0.0.{writer}", b"GET /%d HTTP/1.1" % at, 200, at))

    writers = [threading.Thread(target=write, args=(writer,)) for writer in range(8)]
    for thread in writers:
        thread.start()
    for thread in writers:
        thread.join()
    log.close()
    entries = read(path)
    for writer in range(8):
        sizes = [entry["size"] for entry in entries if entry["address"] == f"10.0.0.{writer}"]
        assert sizes == [str(at) for at in range(1500)]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes here")
def test_lines_that_came_while_others_were_written_are_there_in_the_end(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    log = AccessLog(str(path))
    for _ in range(2000):  # more than a pipe holds: the writing thread waits for the reader
        log.write(access_format.Entry("10.0.0.1", b"GET / HTTP/1.1", 200, 1))
    eventually(lambda: select.select([reader], [], [], 0)[0])
    log.write(access_format.Entry("10.0.0.2", b"GET /last HTTP/1.1", 200, 1))
    closing = threading.Thread(target=log.close)
    closing.start()
    time.sleep(0.1)  # nothing tells that closing has begun
    os.set_blocking(reader, True)
    with open(reader, "rb") as pipe:
        lines = pipe.read().splitlines()
    closing.join(DEADLINE)
    assert len(lines) == 2001
    assert lines[-1].startswith(b"10.0.0.2 ")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes here")
@pytest.mark.parametrize("begun", [True, False], ids=["while it writes", "while it waits"])
def test_a_destination_that_takes_nothing_holds_up_no_end(
    tmp_path: Path, begun: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyproxy.http.access_log._LAST", 0.2)
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    filler = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    with letters("a") as [target], contextlib.ExitStack() as closing:
        closing.callback(os.close, filler)
        closing.callback(os.close, reader)  # without readers, a write that waits fails
        proxy = Proxy(targets=[target.url], access_log=str(path))
        proxy.start()
        for size in (4096, 1):
            with contextlib.suppress(BlockingIOError):
                while True:
                    os.write(filler, b"x" * size)
        get(proxy.url)
        if begun:
            eventually(lambda: not proxy._access_log._lines)  # type: ignore[union-attr]
        stopping = threading.Thread(target=proxy.stop, daemon=True)
        stopping.start()
        stopping.join(DEADLINE)
        assert not stopping.is_alive()
        assert caplog.text.count("its last lines are lost") == 1


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes here")
def test_a_destination_that_takes_nothing_does_not_fill_the_memory(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr("pyproxy.http.access_log._MOST", 10_000)
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    log = AccessLog(str(path))
    entry = access_format.Entry("10.0.0.1", b"GET /" + b"x" * 1000 + b" HTTP/1.1", 200, 1)

    def lost() -> bool:
        log.write(entry)
        return "takes nothing, its lines are lost" in caplog.text

    eventually(lost)
    for _ in range(1000):
        log.write(entry)
    assert sum(map(len, log._lines)) < 12_000
    assert caplog.text.count("takes nothing, its lines are lost") == 1
    with os.fdopen(reader, "rb") as pipe:
        os.set_blocking(reader, True)
        reading = threading.Thread(target=pipe.read, daemon=True)
        reading.start()
        eventually(lambda: "the access log goes on" in caplog.text)
        log.close()
        reading.join(DEADLINE)


def test_all_lines_are_there_after_the_stop_of_a_busy_proxy(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    answered = 0
    with (
        letters("a") as [target],
        program("--listen", "0", "--targets", target.url, "--access-log", str(path)) as proxy,
    ):
        with client(proxy.url) as wire, contextlib.suppress(EOFError, ConnectionError):
            while True:
                wire.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
                wire.read_message()
                answered += 1
                if answered == 500:
                    proxy.send(signal.SIGTERM)
        assert proxy.wait() == 0
    assert answered >= 500
    assert len(read(path)) == answered


def test_a_file_that_was_moved_away_is_opened_again(logged: Callable[..., Logged]) -> None:
    with letters("a") as [target]:
        log = logged([target])
        moved = log.path.with_suffix(".1")
        get(log.url, "/1")
        wait_for(log.path, 1)
        log.path.rename(moved)
        get(log.url, "/2")
        eventually(log.path.exists)
        get(log.url, "/3")
        wait_for(log.path, 2)
        log.path.unlink()
        get(log.url, "/4")
        assert log.entry()["line"] == "GET /4 HTTP/1.1"
    assert [entry["line"] for entry in read(moved)] == ["GET /1 HTTP/1.1"]


def test_a_file_that_another_took_the_place_of_is_opened_again(
    logged: Callable[..., Logged],
) -> None:
    with letters("a") as [target]:
        log = logged([target])
        moved = log.path.with_suffix(".1")
        get(log.url, "/1")
        wait_for(log.path, 1)
        log.path.rename(moved)
        log.path.touch()
        get(log.url, "/2")
        assert log.entry()["line"] == "GET /2 HTTP/1.1"
    assert [entry["line"] for entry in read(moved)] == ["GET /1 HTTP/1.1"]


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="there is no SIGUSR1 here")
def test_sigusr1_opens_the_file_anew_and_nothing_is_lost(tmp_path: Path) -> None:
    path, moved = tmp_path / "access.log", tmp_path / "access.log.1"
    with (
        letters("a") as [target],
        program("--listen", "0", "--targets", target.url, "--access-log", str(path)) as proxy,
    ):
        get(proxy.url, "/1")
        wait_for(path, 1)
        path.rename(moved)
        proxy.send(signal.SIGUSR1)
        eventually(path.exists)  # without any further request
        get(proxy.url, "/2")
        assert proxy.stop() == 0
    assert [entry["line"] for entry in read(moved)] == ["GET /1 HTTP/1.1"]
    assert [entry["line"] for entry in read(path)] == ["GET /2 HTTP/1.1"]


def test_a_log_that_has_ended_goes_on_when_it_is_reopened(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    path = folder / "access.log"
    log = AccessLog(str(path))
    path.rename(tmp_path / "moved")
    folder.rmdir()
    log.reopen()
    eventually(lambda: "the access log can't be written" in caplog.text)
    log.write(access_format.Entry("10.0.0.1", b"GET /lost HTTP/1.1", 200, 1))
    folder.mkdir()
    log.reopen()
    eventually(path.exists)
    log.write(access_format.Entry("10.0.0.1", b"GET /kept HTTP/1.1", 200, 1))
    log.close()
    assert read(path)[-1]["line"] == "GET /kept HTTP/1.1"


def test_a_log_that_could_not_be_written_goes_on_by_itself(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    path = folder / "access.log"
    log = AccessLog(str(path))
    path.rename(tmp_path / "moved")
    folder.rmdir()
    for _ in range(2):
        log.write(access_format.Entry("10.0.0.1", b"GET /lost HTTP/1.1", 200, 1))
        eventually(lambda: not log._lines)
    eventually(lambda: "the access log can't be written" in caplog.text)
    folder.mkdir()
    log.write(access_format.Entry("10.0.0.1", b"GET /kept HTTP/1.1", 200, 1))
    eventually(lambda: path.exists() and path.read_text())
    log.close()
    # The second line may have been on its way when the folder came.
    *on_its_way, last = [entry["line"] for entry in read(path)]
    assert last == "GET /kept HTTP/1.1"
    assert len(on_its_way) < 2
    assert caplog.text.count("the access log can't be written") == 1


def test_reopening_from_many_threads_loses_no_line(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    log = AccessLog(str(path))

    def write() -> None:
        for at in range(500):
            log.write(access_format.Entry("10.0.0.1", b"GET / HTTP/1.1", 200, at))
            log.reopen()

    writers = [threading.Thread(target=write) for _ in range(4)]
    for thread in writers:
        thread.start()
    for thread in writers:
        thread.join()
    log.close()
    assert len(read(path)) == 2000


def test_a_proxy_without_a_log_has_nothing_to_reopen() -> None:
    with Proxy(targets=[closed_port()]) as proxy:
        proxy.reopen_logs()


# Other formats

ENTRY = access_format.Entry(
    "10.0.0.1",
    b"GET /a?b HTTP/1.1",
    200,
    13,
    None,
    b'a "b" \\ \xd0\xb4\xff',
    "http://localhost:8001",
    0.0021,
    2,
    b"id-1",
)
NOW = 1_790_000_000


def line(format: str, entry: access_format.Entry = ENTRY) -> str:
    made = access_format.compiled(format)
    return made.line(made.time(NOW), entry)


def test_a_line_in_json_has_all_fields() -> None:
    told = json.loads(line("json"))
    when = datetime.fromisoformat(told.pop("time"))
    assert (when.timestamp(), bool(when.tzinfo)) == (NOW, True)
    assert told == {
        "client": "10.0.0.1",
        "request_id": "id-1",
        "request": "GET /a?b HTTP/1.1",
        "method": "GET",
        "uri": "/a?b",
        "protocol": "HTTP/1.1",
        "status": 200,
        "size": 13,
        "seconds": 0.002,
        "target": "http://localhost:8001",
        "attempts": 2,
        "referer": None,
        "agent": 'a "b" \\ д\\xff',
    }


def test_in_json_what_there_is_nothing_of_is_null() -> None:
    told = json.loads(line("json", access_format.Entry("10.0.0.1", b"GARBAGE", 400, 20)))
    assert told["request"] == "GARBAGE"
    for name in ("method", "uri", "protocol", "target", "referer", "agent", "request_id"):
        assert told[name] is None


def test_a_format_of_one_s_own_may_have_any_field_and_braces() -> None:
    names = "client method uri protocol request status size referer agent target seconds attempts"
    found = line("\t".join(f"{{{name}}}" for name in names.split()) + "\t{request_id} 100% {{}}")
    assert found == (
        "10.0.0.1\tGET\t/a?b\tHTTP/1.1\tGET /a?b HTTP/1.1\t200\t13\t-\t"
        r"a \x22b\x22 \x5c \xd0\xb4\xff"
        "\thttp://localhost:8001\t0.002\t2\tid-1 100% {}\n"
    )
    assert datetime.fromisoformat(line("{time}").rstrip()).timestamp() == NOW


def test_of_a_line_that_is_no_request_the_parts_are_dashes() -> None:
    entry = access_format.Entry("10.0.0.1", b"a b c d", 400, 20)
    assert line("{method} {uri} {protocol} {target} {request_id} {request}", entry) == (
        "- - - - - a b c d\n"
    )


@hypothesis.given(st.binary(), st.binary(), st.binary())
@hypothesis.settings(deadline=None)
def test_in_every_format_an_entry_is_one_line_of_printable_ascii(
    request: bytes, agent: bytes, request_id: bytes
) -> None:
    entry = access_format.Entry("::1", request, 400, 0, agent, agent, None, 0, 0, request_id)
    own = "{request} {method} {uri} {protocol} {referer} {agent} {request_id}"
    for format in ("combined", "json", own):
        assert re.fullmatch(r"[ -~]*\n", line(format, entry))
    assert isinstance(json.loads(line("json", entry)), dict)


def test_the_settings_choose_the_format(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    with (
        letters("a") as [target],
        Proxy(targets=[target.url], access_log={"path": str(path), "format": "json"}) as proxy,
        client(proxy.url) as wire,
    ):
        get(proxy.url, "/x", "User-Agent: me")
        wire.send(b"GET /%b HTTP/1.1\r\n\r\n" % b'"\\')
        wire.read_message()
    one, other = (json.loads(text) for text in path.read_text().splitlines())
    assert (one["uri"], one["agent"], one["target"]) == ("/x", "me", target.url)
    assert (other["uri"], other["status"], other["target"]) == ('/"\\', 400, None)
