"""HTTP/2 to clients: what passes through the proxy, both ways, and how."""

import asyncio
import contextlib
import importlib.util
import json
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hyperframe.frame import DataFrame, GoAwayFrame, PingFrame, SettingsFrame, WindowUpdateFrame

from pyproxy import Proxy, net
from pyproxy.errors import SettingsError
from pyproxy.http import http2
from pyproxy.http.handler import ProxyHandler
from pyproxy.http.server import ProxyServer
from pyproxy.settings import parse
from tests.http2_client import (
    CANCEL,
    INTERNAL_ERROR,
    NO_ERROR,
    PREFACE,
    REFUSED_STREAM,
    Http2Client,
    no_leaked_descriptors,
)
from tests.support import (
    DEADLINE,
    Gate,
    Message,
    RawTarget,
    Wire,
    answer,
    ask,
    client,
    eventually,
    get,
    held_port,
    letters,
    replying,
)


@pytest.fixture(autouse=True)
def _descriptors() -> Iterator[None]:
    with no_leaked_descriptors():
        yield


@contextlib.contextmanager
def proxied(
    serve: bytes | Callable[[RawTarget, Wire], None], **settings: Any
) -> Iterator[tuple[Proxy, RawTarget]]:
    """A proxy that speaks HTTP/2 in clear text, in front of one target that serves as told."""
    http2 = {"prior_knowledge": True, **settings.pop("http2", {})}
    with (
        RawTarget(replying(serve) if isinstance(serve, bytes) else serve) as target,
        Proxy(targets=[target.url], http2=http2, **settings) as proxy,
    ):
        yield proxy, target


@contextlib.contextmanager
def asked(
    serve: bytes | Callable[[RawTarget, Wire], None], **settings: Any
) -> Iterator[tuple[Http2Client, RawTarget]]:
    with proxied(serve, **settings) as (proxy, target), Http2Client(proxy.url) as one:
        yield one, target


def echo(target: RawTarget, wire: Wire) -> None:
    while True:
        request = wire.read_message()
        target.requests.append(request)
        wire.send(answer(request.body))


def sending(*pieces: bytes, close: bool = True) -> Callable[[RawTarget, Wire], None]:
    """Answers once, as it stands."""

    def serve(target: RawTarget, wire: Wire) -> None:
        target.requests.append(wire.read_head())
        for piece in pieces:
            wire.send(piece)
        if not close:
            wire.read_to_end()

    return serve


# Real clients.


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not on PATH")
@pytest.mark.parametrize(
    ("options", "body"),
    [([], "GET "), (["-d", "abc"], "POST abc"), (["-I"], ""), (["-X", "DELETE"], "DELETE ")],
)
def test_curl_speaks_http_2(options: list[str], body: str) -> None:
    def reply(request: Message) -> bytes:
        said = answer(request.start.split()[0] + b" " + request.body)
        return said.partition(b"\r\n\r\n")[0] + b"\r\n\r\n" if b"HEAD" in said else said

    with proxied(replying(reply)) as (proxy, _):
        command = ["curl", "-sS", "--http2-prior-knowledge", "-w", "\n%{http_version}"]
        done = subprocess.run(
            [*command, *options, proxy.url], capture_output=True, text=True, timeout=60
        )
    assert done.stdout.endswith(body + "\n2"), done
    assert done.returncode == 0


def test_httpx_has_many_requests_on_one_connection() -> None:
    bodies = [str(number).encode() * 1000 for number in range(30)]

    async def talk(url: str) -> list[httpx.Response]:
        async with httpx.AsyncClient(http1=False, http2=True, timeout=DEADLINE) as session:
            return await asyncio.gather(*(session.post(url, content=body) for body in bodies))

    with proxied(echo) as (proxy, target):
        found = asyncio.run(talk(proxy.url))
        assert {one.http_version for one in found} == {"HTTP/2"}
        assert [one.content for one in found] == bodies
        assert len(target.requests) == 30


@pytest.mark.skipif(not shutil.which("h2load"), reason="h2load (nghttp2-client) is not on PATH")
def test_h2load_gets_every_answer() -> None:
    with proxied(answer("x" * 1000)) as (proxy, target):
        done = subprocess.run(
            ["h2load", "-n", "1000", "-c", "4", "-m", "32", proxy.url],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert "1000 succeeded, 0 failed, 0 errored" in done.stdout, done
        assert len(target.requests) == 1000


# The way to the target.


def test_a_request_reaches_the_target_as_one_of_http_1_1() -> None:
    with asked(answer("x", "X-Answer: 1"), tracing={"request_id": False}) as (one, target):
        reply = one.get(
            1,
            ("cookie", "a=1"),
            ("x-plain", "one two"),
            ("cookie", "b=2"),
            ("te", "trailers"),
            ("x-forwarded-for", "1.2.3.4"),
            path="/a%2Fb?c=d",
        )
        assert (reply.status, reply.body, reply.get("x-answer")) == (200, b"x", "1")
        assert target.requests[0].start == b"GET /a%2Fb?c=d HTTP/1.1"
        assert target.requests[0].fields == [
            (b"x-plain", b"one two"),
            (b"host", b"test"),
            (b"cookie", b"a=1; b=2"),
            (b"TE", b"trailers"),
            (b"Connection", b"TE"),
            (b"Via", b"2.0 pyproxy"),
            (b"X-Forwarded-For", b"127.0.0.1"),
            (b"Forwarded", b'for=127.0.0.1;host="test";proto=http'),
            (b"X-Forwarded-Proto", b"http"),
            (b"X-Forwarded-Host", b"test"),
            (b"X-Real-IP", b"127.0.0.1"),
        ]


def test_a_host_field_stands_for_the_authority() -> None:
    with asked(answer("x")) as (one, target):
        one.headers(1, one.head(("host", "other"), authority=None))
        assert one.answer().status == 200
        assert target.requests[0].all("Host") == ["other"]


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("size", [0, 1, 5000, 65536, 65537, 1_000_000])
def test_bodies_pass_with_and_without_a_known_length(size: int, known: bool) -> None:
    body = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    with proxied(echo) as (proxy, target), httpx.Client(http1=False, http2=True) as session:
        content = body if known else iter([body[:100], body[100:]])
        reply = session.post(proxy.url, content=content, timeout=DEADLINE)
        assert reply.content == body
        length = target.requests[0].get("Content-Length")
        assert length == (str(size) if known else None)


def test_an_empty_end_behind_a_body_is_its_end() -> None:
    with asked(echo) as (one, _):
        one.headers(1, one.head(("content-length", "3"), method="POST"), end=False)
        one.data(1, b"abc")
        one.data(1, b"", end=True)
        assert one.answer().body == b"abc"


@pytest.mark.parametrize("size", [0, 3, 100])
def test_an_answer_waits_for_the_end_of_a_complete_body(size: int) -> None:
    """Clients that send the end apart would be reset before it."""
    with asked(echo, retry={"max_body": 10}) as (one, _):
        one.headers(1, one.head(("content-length", str(size)), method="POST"), end=False)
        one.data(1, bytes(size))
        one.sock.settimeout(0.2)
        with pytest.raises(TimeoutError):
            one.await_head()
        one.sock.settimeout(DEADLINE)
        one.data(1, b"", end=True)
        reply = one.answer()
        assert (reply.body, reply.reset) == (bytes(size), None)
        assert one.get(3).status == 200


def test_trailers_pass_both_ways() -> None:
    def serve(target: RawTarget, wire: Wire) -> None:
        target.requests.append(wire.read_message())
        wire.send(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"3\r\nabc\r\n0\r\ngrpc-status: 0\r\nX-B: 2\r\n\r\n"
        )

    with asked(serve) as (one, target):
        one.headers(1, one.head(("te", "trailers"), method="POST"), end=False)
        one.data(1, b"abc")
        one.headers(1, [("x-sum", "1"), ("x-forwarded-for", "1.1.1.1")])
        reply = one.answer()
        assert target.requests[0].trailers == [(b"x-sum", b"1")]
        assert reply.body == b"abc"
        assert reply.trailers == [("grpc-status", "0"), ("x-b", "2")]
        assert reply.get("transfer-encoding") is None


def test_a_long_body_streams_while_the_client_still_sends() -> None:
    arrived = threading.Event()

    def serve(target: RawTarget, wire: Wire) -> None:
        wire.read_head()
        wire.read_until(b"first")
        arrived.set()
        wire.read_until(b"second")
        wire.read_until(b"0\r\n\r\n")
        wire.send(answer("done"))

    with asked(serve, retry={"max_body": 10}) as (one, _):
        one.headers(1, one.head(method="POST"), end=False)
        one.data(1, b"x" * 20 + b"first")
        assert arrived.wait(DEADLINE)
        one.data(1, b"second", end=True)
        assert one.answer().body == b"done"


def test_interim_responses_pass() -> None:
    def serve(target: RawTarget, wire: Wire) -> None:
        head = wire.read_head()
        assert head.get("Expect") == "100-continue"
        wire.send(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n")
        assert wire.read_exactly(3) == b"abc"
        wire.send(answer("done"))

    with asked(serve) as (one, _):
        head = one.head(("expect", "100-continue"), ("content-length", "3"), method="POST")
        one.headers(1, head, end=False)
        while len(one.stream(1).interim) < 2:
            assert one.read()
        one.data(1, b"abc", end=True)
        reply = one.answer()
        assert reply.interim == [[(":status", "103"), ("link", "</a>")], [(":status", "100")]]
        assert reply.body == b"done"


# The way back.


@pytest.mark.parametrize(
    ("response", "body"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc", b"abc"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b""),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", b"abc"),
        (b"HTTP/1.1 200 OK\r\n\r\nabc", b"abc"),
        (b"HTTP/1.0 200 OK\r\nConnection: close\r\n\r\n", b""),
    ],
)
@pytest.mark.parametrize("cut", [False, True])
def test_bodies_come_however_the_target_frames_them(
    response: bytes, body: bytes, cut: bool
) -> None:
    pieces = [response]
    if cut:
        head, mark, rest = response.partition(b"\r\n\r\n")
        pieces = [head + mark, *(rest[at : at + 1] for at in range(len(rest)))]
    with asked(sending(*pieces)) as (one, _):
        reply = one.get()
        assert (reply.status, reply.body, reply.reset) == (200, body, None)


@pytest.mark.parametrize(
    ("method", "response", "length"),
    [
        ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", "5"),
        ("HEAD", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", None),
        ("GET", b"HTTP/1.1 204 No Content\r\n\r\n", None),
        ("GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", "5"),
    ],
)
def test_answers_without_a_body_end_with_their_head(
    method: str, response: bytes, length: str | None
) -> None:
    with asked(response) as (one, target):
        for number in (1, 3):
            reply = one.get(number, method=method)
            assert (reply.body, reply.reset, reply.get("content-length")) == (b"", None, length)
        assert target.connections == 1


def test_hop_by_hop_fields_end_here_and_names_are_in_lower_case() -> None:
    lines = ("Connection: X-Mine", "X-Mine: 1", "Keep-Alive: 5", "Upgrade: h2c", "X-Cased: A b")
    rest = ("Date: Sun, 06 Nov 1994 08:49:37 GMT", "Set-Cookie: a=1", "Set-Cookie: b=2")
    with asked(answer("x", *lines, *rest)) as (one, _):
        assert one.get().head == [
            (":status", "200"),
            ("content-length", "1"),
            ("x-cased", "A b"),
            ("date", "Sun, 06 Nov 1994 08:49:37 GMT"),
            ("set-cookie", "a=1"),
            ("set-cookie", "b=2"),
        ]


def test_a_large_answer_comes_as_the_windows_allow() -> None:
    body = bytes(range(256)) * 20000
    with (
        proxied(answer(body)) as (proxy, _),
        Http2Client(proxy.url, auto=False, settings={4: 1000}) as one,
    ):
        one.ask()
        while len(one.stream(1).received) < 1000:
            assert one.read()
        one.send(WindowUpdateFrame(1, 70000))
        while len(one.stream(1).received) < 65535:  # the connection's window
            assert one.read()
        one.send(WindowUpdateFrame(0, 10))
        while len(one.stream(1).received) < 65545:
            assert one.read()
        one.send(SettingsFrame(0, {4: 2**31 - 1 - 70000}), WindowUpdateFrame(0, 2**31 - 70000))
        assert one.answer().body == body


def test_streams_do_not_wait_for_one_that_stalls() -> None:
    body = bytes(1_000_000)

    def reply(request: Message) -> bytes:
        return answer(body if request.start.startswith(b"GET /large") else b"small")

    with (
        proxied(replying(reply)) as (proxy, _),
        Http2Client(proxy.url, auto=False, settings={4: 1000}) as one,
    ):
        one.send(WindowUpdateFrame(0, 2_000_000))
        one.ask(1, path="/large")
        for number in range(3, 40, 2):
            assert one.get(number, path="/small").body == b"small"
        one.send(WindowUpdateFrame(1, 2_000_000))
        assert one.answer().body == body


@pytest.mark.parametrize(
    "response",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nzzz",
    ],
)
def test_a_truncated_answer_is_a_reset_stream(response: bytes) -> None:
    with asked(sending(response)) as (one, _):
        reply = one.get()
        assert (reply.body[:3], reply.ended, reply.reset) == (b"abc", False, INTERNAL_ERROR)
        assert one.get(3).reset == INTERNAL_ERROR  # the connection goes on


# The same rules as for HTTP/1.1.


def test_requests_of_one_connection_are_spread_and_fail_over() -> None:
    with letters("abc") as targets:
        urls = [one.url for one in targets]
        with (
            Proxy(targets=urls, http2={"prior_knowledge": True}) as proxy,
            Http2Client(proxy.url) as one,
        ):
            assert [one.get(number).body for number in (1, 3, 5, 7)] == [b"a", b"b", b"c", b"a"]
            targets[1].stop()
            found = [one.get(number).body for number in range(9, 21, 2)]
            assert set(found) == {b"a", b"c"}


def test_a_post_that_may_have_been_seen_is_not_sent_twice() -> None:
    def serve(target: RawTarget, wire: Wire) -> None:
        target.requests.append(wire.read_message())

    with (
        RawTarget(serve) as first,
        RawTarget(serve) as second,
        Proxy(targets=[first.url, second.url], http2={"prior_knowledge": True}) as proxy,
        Http2Client(proxy.url) as one,
    ):
        one.headers(1, one.head(method="POST"), end=False)
        one.data(1, b"abc", end=True)
        assert one.answer().status == 502
        assert len(first.requests) + len(second.requests) == 1


def test_when_nobody_is_left_it_says_so() -> None:
    http2 = {"prior_knowledge": True}
    with (
        held_port() as dead,
        Proxy(targets=[f"http://127.0.0.1:{dead}"], http2=http2) as proxy,
        Http2Client(proxy.url) as one,
    ):
        reply = one.get()
        assert (reply.status, reply.body) == (503, b"All servers is off")
        assert reply.get("retry-after") == "1"
        assert reply.get("date")
        assert one.get(3, method="HEAD").body == b""


def test_files_and_redirects_are_served(tmp_path: Path) -> None:
    large = bytes(range(256)) * 2000
    (tmp_path / "a.bin").write_bytes(large)
    (tmp_path / "empty.txt").write_bytes(b"")
    routes = [
        {"path": "/files", "files": str(tmp_path)},
        {"path": "/old", "redirect": "https://{host}/new"},
    ]
    with asked(answer("x"), routes=routes) as (one, _):
        assert one.get(1, path="/files/a.bin").body == large
        assert one.get(3, ("range", "bytes=1-3"), path="/files/a.bin").body == large[1:4]
        assert one.get(5, path="/files/a.bin", method="HEAD").get("content-length") == "512000"
        assert one.get(7, path="/files/empty.txt").body == b""
        assert one.get(9, path="/files/no").status == 404
        assert one.get(11, path="/old").get("location") == "https://test/new"


def test_affinity_holds() -> None:
    with letters("ab") as targets:
        urls = [one.url for one in targets]
        sticky = {"cookie": "S"}
        with (
            Proxy(targets=urls, sticky=sticky, http2={"prior_knowledge": True}) as proxy,
            Http2Client(proxy.url) as one,
        ):
            first = one.get()
            cookie = (first.get("set-cookie") or "").partition(";")[0]
            for number in (3, 5, 7):
                again = one.get(number, ("cookie", "x=1"), ("cookie", cookie))
                assert (again.body, again.get("set-cookie")) == (first.body, None)
            assert targets[0].requests[-1].get("cookie") == "x=1"


@pytest.mark.parametrize("told", [True, False])
def test_a_body_over_the_limit_is_refused_and_not_read_on(told: bool) -> None:
    with asked(echo, limits={"body": 10}) as (one, target):
        fields = [("content-length", "11")] if told else []
        one.headers(1, one.head(*fields, method="POST"), end=False)
        if not told:
            one.data(1, b"x" * 11)
        reply = one.answer()
        assert reply.status == 413
        assert one.await_reset() == NO_ERROR
        assert target.requests == []
        assert one.get(3).status == 200


def test_an_early_answer_ends_the_upload() -> None:
    def serve(target: RawTarget, wire: Wire) -> None:
        wire.read_head()
        wire.send(answer("no", status="403 Forbidden"))
        wire.read_to_end()

    with asked(serve, retry={"max_body": 10}) as (one, _):
        one.headers(1, one.head(method="POST"), end=False)
        one.data(1, b"x" * 20)
        reply = one.answer()
        assert (reply.status, reply.body) == (403, b"no")
        assert one.await_reset() == NO_ERROR
        one.data(1, b"x" * 10000)
        one.data(1, b"x" * 10000, end=True)
        assert one.get(3).status == 403


def test_the_windows_open_again_for_bodies_nobody_read() -> None:
    """Far more than the connection's window."""

    def serve(target: RawTarget, wire: Wire) -> None:
        wire.read_head()
        wire.send(answer("no", status="403 Forbidden"))
        wire.read_to_end()

    with asked(serve, retry={"max_body": 10}) as (one, _):
        for number in range(1, 81, 2):
            one.headers(number, one.head(method="POST"), end=False)
            for _ in range(4):
                while one.window < 16384:
                    assert one.read()
                one.window -= 16384
                one.data(number, bytes(16384))
            assert one.answer(number).status == 403


def filled(one: Http2Client, number: int) -> None:
    """An upload that fills the window of its stream, as soon as the connection's allows it."""
    one.headers(number, one.head(method="POST"), end=False)
    for _ in range(16):
        while one.window < 16384:
            assert one.read()
        one.window -= 16384
        one.data(number, bytes(16384))


def seen(one: Http2Client) -> None:
    """Waits until the proxy has taken all that was sent."""
    one.send(PingFrame(0, b"12345678"))
    while not isinstance(one.read(), PingFrame):
        pass


def test_uploads_that_wait_leave_room_for_others() -> None:
    """Nobody reads those behind the first one, which has the only thread."""
    with asked(echo, http2={"threads": 0}) as (one, _):
        one.headers(1, one.head(method="POST"), end=False)
        for number in range(3, 41, 2):
            filled(one, number)
        while one.window < 1000:
            assert one.read()
        one.data(1, b"x" * 1000, end=True)
        assert one.answer(1).body == b"x" * 1000
        for number in range(3, 41, 2):
            one.data(number, b"", end=True)
            assert one.answer(number).body == bytes(262144)


@pytest.mark.parametrize(("own", "shared"), [(2, 3), (3, 2)])
def test_the_room_for_uploads_that_wait_is_bounded_and_given_back(
    own: int, shared: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http2, "_MORE", own)
    with proxied(echo, http2={"threads": 0}) as (proxy, _), Http2Client(proxy.url) as one:
        [server] = proxy._servers.values()
        assert isinstance(server, ProxyServer)
        spare = server.stream_windows = threading.Semaphore(shared)
        one.headers(1, one.head(method="POST"), end=False)
        for number in range(3, 15, 2):
            filled(one, number)
        seen(one)
        assert one.window == 0
        assert spare.acquire(blocking=False) == (shared > own)
        for number in range(1, 15, 2):
            one.data(number, b"", end=True)
            assert one.answer(number).status == 200
        eventually(lambda: spare.acquire(blocking=False))
        assert spare.acquire(blocking=False)


def test_a_connection_that_ends_gives_back_the_room_for_its_uploads() -> None:
    with proxied(echo, http2={"threads": 0}) as (proxy, _):
        [server] = proxy._servers.values()
        assert isinstance(server, ProxyServer)
        spare = server.stream_windows = threading.Semaphore(1)
        with Http2Client(proxy.url) as one:
            one.headers(1, one.head(method="POST"), end=False)
            for number in (3, 5, 7, 9):
                filled(one, number)
            seen(one)
            assert not spare.acquire(blocking=False)
        eventually(lambda: spare.acquire(blocking=False))


def test_room_that_uploads_needed_once_is_there_for_those_that_wait_later() -> None:
    """On a connection on which somebody always waits."""
    with proxied(echo, http2={"threads": 0}) as (proxy, _), Http2Client(proxy.url) as one:
        [server] = proxy._servers.values()
        assert isinstance(server, ProxyServer)
        server.stream_windows = threading.Semaphore(8)
        waiting: list[int] = []
        for number in range(1, 57, 2):
            filled(one, number)
            waiting.append(number)
            while len(waiting) == 7 or (len(waiting) > 1 and number % 12 == 1):
                seen(one)
                first = waiting.pop(0)
                one.data(first, b"", end=True)
                assert one.answer(first).body == bytes(262144)


def test_a_reload_refuses_no_stream_that_a_client_was_allowed() -> None:
    gate = Gate()
    with proxied(gate) as (proxy, target), Http2Client(proxy.url) as one:
        one.ask(1)
        gate.arrived.get(timeout=DEADLINE)
        proxy.reload(
            parse(
                {
                    "listen": "http://127.0.0.1:0",
                    "targets": [target.url],
                    "http2": {"prior_knowledge": True, "max_streams": 1},
                }
            )
        )
        for number in (3, 5):
            one.ask(number)
        gate.open.set()
        assert [one.answer(number).status for number in (1, 3, 5)] == [200, 200, 200]


def test_a_reset_by_the_client_stops_the_work() -> None:
    ended = threading.Event()

    def serve(target: RawTarget, wire: Wire) -> None:
        target.requests.append(wire.read_message())
        if wire.at_end():
            ended.set()

    with asked(serve) as (one, target):
        one.ask()
        eventually(lambda: target.requests)
        one.reset(1)
        assert ended.wait(DEADLINE)


def test_a_client_that_goes_stops_the_work() -> None:
    ended = threading.Event()

    def serve(target: RawTarget, wire: Wire) -> None:
        target.requests.append(wire.read_message())
        if wire.at_end():
            ended.set()

    with proxied(serve) as (proxy, target):
        with Http2Client(proxy.url) as one:
            one.ask()
            eventually(lambda: target.requests)
        assert ended.wait(DEADLINE)
        eventually(lambda: not proxy.connections)


# Limits and the end.


def test_more_streams_than_allowed_are_refused() -> None:
    gate = Gate()
    with asked(gate, http2={"max_streams": 3}) as (one, target):
        for number in (1, 3, 5):
            one.ask(number)
        eventually(lambda: len(target.requests) == 3)
        one.ask(7)
        assert one.await_reset(7) == REFUSED_STREAM
        assert one.settings[3] == 3
        gate.open.set()
        for number in (1, 3, 5):
            assert one.answer(number).body == b"x"
        assert one.get(9).body == b"x"


def test_without_more_threads_streams_are_served_in_turn() -> None:
    with asked(answer("x"), http2={"threads": 0}) as (one, _):
        for number in range(1, 100, 2):
            one.ask(number)
        assert [one.answer(number).body for number in range(1, 100, 2)] == [b"x"] * 50
        names = [one.name for one in threading.enumerate() if "http2" in one.name]
        assert len(names) == 1


def test_a_drain_says_goaway_and_finishes_the_streams() -> None:
    gate = Gate()
    with asked_of_stopped(gate) as (proxy, one, target):
        stopping = threading.Thread(target=proxy.stop)
        stopping.start()
        while one.goaway is None:
            assert one.read()
        assert (one.goaway.error_code, one.goaway.last_stream_id) == (NO_ERROR, 1)
        one.ask(3)
        assert one.await_reset(3) == REFUSED_STREAM
        gate.open.set()
        assert one.answer(1).body == b"x"
        assert one.end() == NO_ERROR
        stopping.join(DEADLINE)
        assert not stopping.is_alive()
        assert len(target.requests) == 1


@contextlib.contextmanager
def asked_of_stopped(gate: Gate) -> Iterator[tuple[Proxy, Http2Client, RawTarget]]:
    """A request is under way, and the proxy's end is the caller's business."""
    with RawTarget(gate) as target:
        proxy = Proxy(targets=[target.url], http2={"prior_knowledge": True})
        proxy.start()
        with Http2Client(proxy.url) as one:
            one.ask()
            gate.arrived.get(timeout=DEADLINE)
            yield proxy, one, target


def test_a_drain_that_takes_too_long_breaks_off() -> None:
    gate = Gate()
    with asked_of_stopped(gate) as (proxy, one, _):
        began = time.monotonic()
        stopping = threading.Thread(target=proxy.stop, args=(0.3,))
        stopping.start()
        one.end()
        stopping.join(DEADLINE)
        assert not stopping.is_alive()
        assert time.monotonic() - began < DEADLINE
        gate.open.set()


def test_a_drain_ends_idle_connections_at_once() -> None:
    with RawTarget(replying(answer("x"))) as target:
        proxy = Proxy(targets=[target.url], http2={"prior_knowledge": True})
        proxy.start()
        with Http2Client(proxy.url) as one:
            assert one.get().body == b"x"
            began = time.monotonic()
            proxy.stop()
            assert time.monotonic() - began < DEADLINE
            assert one.end() == NO_ERROR


def test_a_request_that_came_just_before_an_idle_end_gets_all_of_its_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It takes windows that the client opens after the proxy has shut the receiving side."""
    handlers: list[ProxyHandler] = []
    setup = ProxyHandler.setup

    def noted(handler: ProxyHandler) -> None:
        handlers.append(handler)
        setup(handler)

    monkeypatch.setattr(ProxyHandler, "setup", noted)
    gate = Gate(b"x" * 200_000)
    with asked(gate) as (one, _):
        one.ask()
        gate.arrived.get(timeout=DEADLINE)
        handlers[0].ended = True  # as ``Connections`` does, which has just seen it idle
        net.shut(handlers[0].request, socket.SHUT_RD)
        while one.goaway is None:
            assert one.read()
        gate.open.set()
        assert one.answer().body == b"x" * 200_000
        assert one.end() == NO_ERROR


def test_a_request_that_came_just_before_an_idle_end_is_broken_off_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pyproxy.listener._LAST", DEADLINE / 4)
    gate = Gate()
    with asked_of_stopped(gate) as (proxy, one, _):
        [server] = proxy._servers.values()
        [handler] = proxy._connections._open
        handler.ended = True  # as ``Connections`` does, which has just seen it idle
        net.shut(handler.request, socket.SHUT_RD)
        while one.goaway is None:
            assert one.read()
        server.shutdown(0)
        assert not proxy.connections
        gate.open.set()
        proxy.stop()


def test_a_client_at_the_limit_of_connections_gets_its_place() -> None:
    with (
        proxied(answer("x"), limits={"connections": 1}) as (proxy, _),
        Http2Client(proxy.url) as first,
    ):
        assert first.get().body == b"x"
        with Http2Client(proxy.url) as second:
            assert second.get().body == b"x"
        assert first.end() == NO_ERROR


def test_one_that_makes_room_when_its_streams_have_ended_is_asked_once() -> None:
    """Else no other would be asked meanwhile."""
    gate = Gate()
    with (
        proxied(gate, limits={"connections": 1}) as (proxy, _),
        Http2Client(proxy.url) as one,
    ):
        connections, asked = proxy._connections, []
        makes_room = connections.makes_room

        def counted(connection: Any) -> bool:
            asked.append(makes_room(connection))
            return asked[-1]

        connections.makes_room = counted  # type: ignore[method-assign]
        one.ask()
        gate.arrived.get(timeout=DEADLINE)
        with client(proxy.url) as other:
            other.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            while one.goaway is None:
                assert one.read()
            [server] = proxy._servers.values()
            for _ in range(3):
                eventually(lambda: server.hurry)
                one.send(PingFrame(0, b"12345678"))
                while not isinstance(one.read(), PingFrame):
                    pass
            gate.open.set()
            assert one.answer().body == b"x"
            assert other.read_message().body == b"x"
        assert asked.count(True) == 1


def test_an_idle_connection_ends() -> None:
    with asked(answer("x"), timeouts={"keep_alive": 0.6}) as (one, _):
        assert one.get().body == b"x"
        assert one.end() == NO_ERROR


def test_a_request_that_comes_as_the_time_of_an_idle_connection_ends_is_served(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of many that end at once, some wait long for the interpreter before they say so."""
    sent = threading.Event()
    too_late = http2.Http2Connection._too_late

    def late(connection: http2.Http2Connection) -> bytes | None:
        if not sent.is_set():
            one.ask(3)
            eventually(lambda: net.unread(connection.handler.request))
            sent.set()
        return too_late(connection)

    monkeypatch.setattr(http2.Http2Connection, "_too_late", late)
    with asked(answer("x"), timeouts={"keep_alive": 0.1}) as (one, _):
        assert one.get().body == b"x"
        assert one.answer(3).body == b"x"
        assert one.end() == NO_ERROR


def ask_past_the_goaway(one: Http2Client) -> GoAwayFrame:
    """As who has not seen it yet; none of it resets the connection."""
    while one.goaway is None:
        assert one.read()
    for number in range(3, 43, 2):
        one.ask(number)
        assert not net.lost(one.sock)
        time.sleep(0.005)
    return one.goaway


def test_what_a_client_sends_before_it_has_seen_the_goaway_does_not_reset_that_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It tells which requests may be sent again."""
    monkeypatch.setattr(http2, "_LINGER", 2 * DEADLINE)
    with asked(answer("x"), timeouts={"keep_alive": 0.1}) as (one, _):
        assert one.get().body == b"x"
        assert ask_past_the_goaway(one).last_stream_id == 1
        assert not one.read()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems don't tell what is taken")
def test_a_client_that_takes_its_answer_slowly_gets_all_of_it_at_a_stop() -> None:
    """It sends meanwhile, that it has room again: to a closed socket that would be its reset."""
    size = 1_000_000
    gate = Gate(b"x" * size)
    with (
        RawTarget(gate) as target,
        Proxy(targets=[target.url], http2={"prior_knowledge": True}) as proxy,
        Http2Client(proxy.url, receive_buffer=4096, settings={4: 2**30}) as one,
    ):
        one.send(WindowUpdateFrame(0, 2**30))
        one.ask()
        gate.arrived.get(timeout=DEADLINE)
        [handler] = proxy._connections._open
        stopping = threading.Thread(target=proxy.stop)
        stopping.start()
        while one.goaway is None:
            assert one.read()
        gate.open.set()
        eventually(lambda: handler.served)
        time.sleep(0.1)  # it would close now
        assert len(one.answer().body) == size
        assert one.end() == NO_ERROR
        stopping.join(DEADLINE)
        assert not stopping.is_alive()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing more comes")
def test_what_comes_before_a_client_has_seen_the_goaway_of_a_handover_does_not_reset_that_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http2, "_LINGER", 2 * DEADLINE)
    with proxied(answer("x")) as (proxy, _), Http2Client(proxy.url) as one:
        assert one.get().body == b"x"
        [server] = proxy._servers.values()
        ending = threading.Thread(target=server.shutdown, kwargs={"handed_over": True})
        ending.start()
        ask_past_the_goaway(one)
        one.close()
        ending.join(DEADLINE)
        assert not ending.is_alive()


def test_streams_of_a_client_that_says_goaway_are_finished() -> None:
    gate = Gate()
    with asked(gate) as (one, _):
        one.ask()
        gate.arrived.get(timeout=DEADLINE)
        one.send(GoAwayFrame(0, 0, NO_ERROR))
        gate.open.set()
        assert one.answer().body == b"x"
        one.end()


def test_a_slow_body_is_answered_with_408() -> None:
    with asked(echo, timeouts={"read": 0.3}) as (one, target):
        one.headers(1, one.head(method="POST"), end=False)
        one.data(1, b"x")
        assert one.answer().status == 408
        assert target.requests == []


def test_a_client_whose_window_stays_closed_loses_its_stream() -> None:
    with (
        proxied(answer(bytes(100_000)), timeouts={"send": 0.3}) as (proxy, _),
        Http2Client(proxy.url, auto=False, settings={4: 10}) as one,
    ):
        one.ask()
        assert one.await_reset() == CANCEL
        assert one.stream(1).body == bytes(10)
        assert one.get(3, method="HEAD").reset in (None, CANCEL)


def test_http_1_1_is_served_on_the_same_port() -> None:
    with proxied(answer("x")) as (proxy, _):
        assert get(proxy.url).body == b"x"


def test_prior_knowledge_is_spoken_only_when_a_setting_says_so() -> None:
    with RawTarget(replying(answer("x"))) as target, Proxy(targets=[target.url]) as proxy:
        assert ask(proxy.url, PREFACE).status == 505


def test_the_preface_may_come_in_pieces() -> None:
    with proxied(answer("x")) as (proxy, _), Http2Client(proxy.url, begin=False) as one:
        data = PREFACE + SettingsFrame(0).serialize()
        for at in range(len(data)):
            one.send(data[at : at + 1])
            time.sleep(0.001)
        assert one.get().body == b"x"


def test_the_preface_is_no_second_request() -> None:
    with proxied(answer("x")) as (proxy, _), client(proxy.url) as wire:
        wire.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert wire.read_message().body == b"x"
        wire.send(PREFACE)
        assert wire.read_message().status == 505


def test_the_access_log_has_a_line_a_stream(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    with asked(answer("abc"), access_log=str(path)) as (one, target):
        one.get(1, ("user-agent", "me"), ("referer", "there"), path="/a?b")
        one.headers(3, one.head(("connection", "close")))
        one.await_reset(3)
    first, second = path.read_text().splitlines()
    assert '"GET /a?b HTTP/2.0" 200 3 "there" "me" ' + target.url in first
    assert '"-" 400 0 ' in second


def test_without_h2_a_setting_that_asks_for_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "h2" else real(name)
    )
    assert not parse({"targets": [1]}).http2.offered
    for key in ("enabled", "prior_knowledge"):
        with pytest.raises(SettingsError, match=rf"http2.{key}: .*pip install pyproxy-lb\[http2\]"):
            parse({"targets": [1], "http2": {key: True}})


def test_it_is_offered_unless_switched_off() -> None:
    assert parse({"targets": [1]}).http2.offered
    assert not parse({"targets": [1], "http2": {"enabled": False}}).http2.offered


def test_frames_are_no_larger_than_others_can_wait_for() -> None:
    with (
        proxied(answer(bytes(200_000))) as (proxy, _),
        Http2Client(proxy.url, settings={5: 2**24 - 1, 4: 2**20}) as one,
    ):
        one.send(WindowUpdateFrame(0, 2**20))
        one.ask()
        sizes = []
        while not one.stream(1).ended:
            frame = one.read()
            assert frame
            if isinstance(frame, DataFrame):
                sizes.append(len(frame.data))
        assert max(sizes) == 16384


def test_answers_as_json_from_the_outside() -> None:
    """What an application sees of the protocol."""

    def reply(request: Message) -> bytes:
        return answer(json.dumps({"via": request.get("Via"), "host": request.get("Host")}))

    with proxied(replying(reply)) as (proxy, _), httpx.Client(http1=False, http2=True) as session:
        said = session.get(proxy.url).json()
        assert said["via"] == "2.0 pyproxy"
        assert said["host"] == proxy.url.removeprefix("http://")
