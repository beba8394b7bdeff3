"""What passes through the proxy, both ways, and how."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from email.utils import parsedate_to_datetime
from typing import Any

import pytest
import requests

from pyproxy import Proxy
from pyproxy.errors import HTTPError
from pyproxy.http.body import BodyReader
from pyproxy.http.forward import Request
from pyproxy.http.message import request_fields, request_lines
from pyproxy.http.upload import Upload
from pyproxy.http.upstream import Upstream
from pyproxy.sections import TargetTimeouts
from tests.programs import program
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
    letters,
    make_target,
    replying,
)


@contextlib.contextmanager
def proxied(
    serve: bytes | Callable[[RawTarget, Wire], None], **settings: Any
) -> Iterator[tuple[Proxy, RawTarget]]:
    """A proxy in front of one target that serves as told."""
    with (
        RawTarget(replying(serve) if isinstance(serve, bytes) else serve) as target,
        Proxy(targets=[target.url], **settings) as proxy,
    ):
        yield proxy, target


def echo(target: RawTarget, wire: Wire) -> None:
    """Answers with the body that came."""
    while True:
        request = wire.read_message()
        target.requests.append(request)
        wire.send(answer(request.body))


def test_spreads_requests_evenly_in_turn() -> None:
    with letters("abcde") as targets, Proxy(targets=[one.url for one in targets]) as proxy:
        assert [get(proxy.url).body for _ in range(10)] == [b"a", b"b", b"c", b"d", b"e"] * 2


def test_is_used_from_python_in_two_lines() -> None:
    with letters("a") as [target], Proxy(targets=[target.url]) as proxy:
        assert requests.get(proxy.url, timeout=DEADLINE).text == "a"


@pytest.mark.parametrize(
    "method",
    ["GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE", "POST", "PATCH", "PURGE", "M-SEARCH"],
)
def test_forwards_every_method(method: str) -> None:
    with letters("a") as [target], Proxy(targets=[target.url]) as proxy:
        reply = get(proxy.url, method=method)
        assert reply.status == 200
        assert reply.body == (b"" if method == "HEAD" else b"a")
        assert target.requests[0].start == f"{method} / HTTP/1.1".encode()


def test_passes_fields_unchanged_but_for_hop_by_hop_ones() -> None:
    with proxied(
        answer(b"x", "Set-Cookie: a=1", "Set-Cookie: b=2", "X-U: \xe9", "Keep-Alive: 5")
    ) as (
        proxy,
        target,
    ):
        reply = ask(
            proxy.url,
            b"GET /a%2Fb/../%e4?q=%20+&&x HTTP/1.1\r\nHost: test\r\nCookie: a\r\n"
            b"cOOkie:  \xe9 b \r\nConnection: keep-alive, X-Mine\r\nX-Mine: 1\r\nKeep-Alive: 5\r\n"
            b"Proxy-Connection: keep-alive\r\nUpgrade: h2c\r\n\r\n",
        )
        request = target.requests[0]
        assert request.start == b"GET /a%2Fb/../%e4?q=%20+&&x HTTP/1.1"
        assert b"\r\nCookie: a\r\ncOOkie:  \xe9 b \r\n" in request.head
        assert request.all("Host") == ["test"]
        for name in ("X-Mine", "Keep-Alive", "Proxy-Connection", "Upgrade", "Connection"):
            assert request.get(name) is None, name
        assert reply.all("Set-Cookie") == ["a=1", "b=2"]
        assert reply.get("Keep-Alive") is None


def test_tells_the_target_who_asks_and_believes_no_stranger() -> None:
    with proxied(answer()) as (proxy, target):
        get(
            proxy.url,
            "/",
            "X-Forwarded-For: 1.2.3.4",
            "X-Real-IP: 1.2.3.4",
            "Forwarded: for=1.2.3.4",
        )
        request = target.requests[0]
        assert request.all("X-Forwarded-For") == ["127.0.0.1"]
        assert request.all("X-Real-IP") == ["127.0.0.1"]
        assert request.all("X-Forwarded-Proto") == ["http"]
        assert request.all("X-Forwarded-Host") == ["test"]
        assert request.all("Forwarded") == ['for=127.0.0.1;host="test";proto=http']
        assert request.all("Via") == ["1.1 pyproxy"]


def test_extends_what_a_trusted_proxy_says() -> None:
    with proxied(answer(), trusted_proxies=["127.0.0.0/8"]) as (proxy, target):
        get(
            proxy.url, "/", "X-Forwarded-For: 1.2.3.4", "X-Forwarded-Proto: https", "Via: 1.1 other"
        )
        request = target.requests[0]
        assert request.all("X-Forwarded-For") == ["1.2.3.4, 127.0.0.1"]
        assert request.all("X-Forwarded-Proto") == ["https"]
        assert request.all("Via") == ["1.1 other", "1.1 pyproxy"]


def test_sends_an_absolute_form_to_the_target_in_origin_form() -> None:
    with proxied(answer()) as (proxy, target):
        ask(proxy.url, b"GET http://site.example:81/x?y HTTP/1.1\r\nHost: other\r\n\r\n")
        assert target.requests[0].start == b"GET /x?y HTTP/1.1"
        assert target.requests[0].all("Host") == ["site.example:81"]


BODIES = [
    b"",
    b"x",
    b"x" * 1000,
    b"0123456789abcdef" * 4096,
    b"y" * 65537,
    bytes(range(256)) * 12000,
]


@pytest.mark.parametrize("body", BODIES, ids=len)
@pytest.mark.parametrize("chunked", [False, True])
def test_carries_bodies_of_any_size_both_ways(body: bytes, chunked: bool) -> None:
    with proxied(echo) as (proxy, target):
        pieces = [body[at : at + 50_000] for at in range(0, len(body), 50_000)]
        with requests.Session() as session:
            for _ in range(2):
                sent = iter(pieces) if chunked else body
                assert session.post(proxy.url, data=sent, timeout=DEADLINE).content == body
        assert [request.body for request in target.requests] == [body, body]
        assert target.connections == 1, "kept alive on both sides"


def test_relays_chunks_and_trailers_of_a_request() -> None:
    with proxied(echo) as (proxy, target):
        reply = ask(
            proxy.url,
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n"
            b"3;ext=1\r\nabc\r\n2\r\nde\r\n0\r\nX-Sum: 5\r\nContent-Length: 9\r\n\r\n",
        )
        assert reply.body == b"abcde"
        assert target.requests[0].trailers == [(b"X-Sum", b"5")]
        assert target.requests[0].get("Content-Length") is None


def test_relays_chunks_and_trailers_of_a_response() -> None:
    chunks = (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-Sum: 3\r\n\r\n"
    )
    with proxied(chunks) as (proxy, target), client(proxy.url) as wire:
        for _ in range(2):
            wire.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            reply = wire.read_message()
            assert (reply.body, reply.trailers) == (b"abc", [(b"X-Sum", b"3")])
        assert target.connections == 1


def test_gives_http_1_0_a_chunked_response_until_close() -> None:
    chunks = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    with proxied(chunks) as (proxy, _), client(proxy.url) as wire:
        wire.send(b"GET / HTTP/1.0\r\n\r\n")
        reply = wire.read_message()
        assert reply.body == b"abc"
        assert reply.get("Transfer-Encoding") is None
        assert reply.get("Connection") == "close"


def test_relays_a_body_until_close_and_keeps_the_client() -> None:
    def serve(target: RawTarget, wire: Wire) -> None:
        wire.read_message()
        wire.send(b"HTTP/1.0 200 OK\r\n\r\nabc")
        wire.send(b"def")

    with proxied(serve) as (proxy, _), client(proxy.url) as wire:
        for _ in range(2):
            wire.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            assert wire.read_message().body == b"abcdef"


def test_serves_http_1_0_clients_with_and_without_keep_alive() -> None:
    with proxied(answer(b"x")) as (proxy, target), client(proxy.url) as wire:
        wire.send(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        assert wire.read_message().get("Connection") == "keep-alive"
        wire.send(b"GET / HTTP/1.0\r\n\r\n")
        assert wire.read_message().get("Connection") == "close"
        assert wire.at_end()
        assert target.requests[0].all("Host") == [proxy.url.removeprefix("http://")]
        assert target.requests[0].all("Via") == ["1.0 pyproxy"]


def test_closes_when_the_client_says_so() -> None:
    with proxied(answer(b"x")) as (proxy, _), client(proxy.url) as wire:
        wire.send(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert wire.read_message().get("Connection") == "close"
        assert wire.at_end()


def test_the_last_answer_comes_whole_though_the_client_has_sent_more() -> None:
    """As clients do that end a body with an empty line. A close with bytes unread is a reset."""
    gate = Gate(b"x" * 2_000_000)
    with proxied(gate) as (proxy, _), client(proxy.url, receive_buffer=4096) as wire:
        wire.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nConnection: close\r\n\r\nx")
        gate.arrived.get(timeout=DEADLINE)
        wire.send(b"\r\n")
        gate.open.set()
        assert len(wire.read_message().body) == 2_000_000
        assert wire.read_to_end() == b""


def test_answers_pipelined_requests_in_order() -> None:
    with proxied(echo) as (proxy, _), client(proxy.url) as wire:
        requests_ = b"".join(
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n%d" % number
            for number in range(10)
        )
        wire.send(requests_)
        assert [wire.read_message().body for _ in range(10)] == [b"%d" % one for one in range(10)]


def test_reads_a_head_that_comes_byte_by_byte() -> None:
    with proxied(answer(b"x")) as (proxy, _), client(proxy.url) as wire:
        for byte in b"\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n":
            wire.send(bytes([byte]))
        assert wire.read_message().body == b"x"


@pytest.mark.parametrize(
    ("method", "status", "length", "connections"),
    [
        ("HEAD", "200 OK", "7", 1),
        ("GET", "304 Not Modified", "7", 1),
        ("GET", "204 No Content", None, 2),  # the body that it must not have may come
    ],
)
def test_knows_responses_without_a_body(
    method: str, status: str, length: str | None, connections: int
) -> None:
    head = f"HTTP/1.1 {status}\r\nContent-Length: 7\r\n\r\n".encode()

    def serve(target: RawTarget, wire: Wire) -> None:
        while True:
            wire.read_message()
            wire.send(head)

    with proxied(serve) as (proxy, target), client(proxy.url) as wire:
        for _ in range(2):
            wire.send(f"{method} / HTTP/1.1\r\nHost: a\r\n\r\n".encode())
            reply = wire.read_message(bodiless=True)
            assert (reply.status, reply.get("Content-Length")) == (int(status[:3]), length)
        assert target.connections == connections


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_response_without_a_date_gets_one_and_no_other_does(method: str) -> None:
    """RFC 9110, 6.6.1."""
    said = "Sun, 06 Nov 1994 08:49:37 GMT"
    hint = b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"
    request = f"{method} / HTTP/1.1\r\nHost: h\r\n\r\n".encode()
    for dates in ([], [f"Date: {said}"]):
        with (
            proxied(hint + answer("" if method == "HEAD" else "x", *dates)) as (proxy, _),
            client(proxy.url) as wire,
        ):
            before = int(time.time())
            wire.send(request)
            interim, final = wire.read_head(), wire.read_head()
            assert interim.all("Date") == []
            [date] = final.all("Date")
            assert (date == said) is bool(dates)
            assert dates or before <= parsedate_to_datetime(date).timestamp() <= time.time()


def test_relays_interim_responses_but_not_to_http_1_0() -> None:
    hints = b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n"
    with proxied(hints + hints + answer(b"x")) as (proxy, _), client(proxy.url) as wire:
        wire.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert [wire.read_head().status for _ in range(2)] == [103, 103]
        assert wire.read_message().body == b"x"
        assert ask(proxy.url, b"GET / HTTP/1.0\r\n\r\n").status == 200


def test_relays_expect_100_continue_end_to_end() -> None:
    def serve(target: RawTarget, wire: Wire) -> None:
        head = wire.read_head()
        assert head.get("Expect") == "100-continue"
        assert not wire.buffer, "the body came before the target asked for it"
        wire.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        wire.send(answer(wire.read_exactly(5)))

    with proxied(serve) as (proxy, _), client(proxy.url) as wire:
        wire.send(b"PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n")
        assert wire.read_head().status == 100
        wire.send(b"abcde")
        assert wire.read_message().body == b"abcde"


def test_relays_a_refusal_instead_of_100_continue() -> None:
    def serve(target: RawTarget, wire: Wire) -> None:
        wire.read_head()
        wire.send(answer(status="401 Unauthorized"))
        wire.read_to_end()

    with proxied(serve) as (proxy, _), client(proxy.url) as wire:
        wire.send(b"PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n")
        reply = wire.read_message()
        assert (reply.status, reply.get("Connection")) == (401, "close")


def test_passes_events_on_as_they_are_sent() -> None:
    told = threading.Event()

    def serve(target: RawTarget, wire: Wire) -> None:
        wire.read_message()
        wire.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n")
        wire.send(b"Transfer-Encoding: chunked\r\n\r\n9\r\ndata: 1\n\n\r\n")
        assert told.wait(DEADLINE)
        wire.send(b"9\r\ndata: 2\n\n\r\n0\r\n\r\n")

    with proxied(serve) as (proxy, _), client(proxy.url) as wire:
        wire.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        wire.read_until(b"data: 1\n\n")
        told.set()
        wire.read_until(b"data: 2\n\n")


def test_streams_both_ways_at_once() -> None:
    def serve(target: RawTarget, wire: Wire) -> None:
        wire.read_head()
        wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while size := int(wire.read_until(b"\r\n"), 16):
            data = wire.read_exactly(size + 2)
            wire.send(b"%x\r\n%b" % (size, data))
        wire.send(b"0\r\n\r\n")

    with proxied(serve, retry={"max_body": 0}) as (proxy, _), client(proxy.url) as wire:
        wire.send(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
        for number in range(5):
            wire.send(b"6\r\nhello%d\r\n" % number)
            wire.read_until(b"hello%d" % number)
        wire.send(b"0\r\n\r\n")
        wire.read_until(b"\r\n0\r\n\r\n")


def test_relays_an_early_answer_to_an_upload_that_nobody_reads() -> None:
    stop = threading.Event()

    def serve(target: RawTarget, wire: Wire) -> None:
        wire.read_head()
        wire.send(answer(b"too much", status="413 Content Too Large"))
        stop.wait(DEADLINE)

    with proxied(serve) as (proxy, _), client(proxy.url) as wire:
        wire.send(
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 900000000\r\n\r\n" + b"x" * 200_000
        )
        reply = wire.read_message()
        assert (reply.status, reply.get("Connection")) == (413, "close")
        stop.set()


def test_an_upload_for_which_there_is_no_thread_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start = threading.Thread.start

    def fail(thread: threading.Thread) -> None:
        if thread.name == "pyproxy-upload":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", fail)
    with proxied(answer(b"x")) as (proxy, _), client(proxy.url) as wire:
        wire.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 900000000\r\n\r\n")
        reply = wire.read_message()
        assert (reply.status, reply.get("Connection")) == (503, "close")
        assert b"can't start new thread" in reply.body
        eventually(lambda: not proxy.pool.targets[0].in_flight)


def test_keeps_target_connections_alive_and_shares_them() -> None:
    with proxied(answer(b"x")) as (proxy, target):
        for _ in range(5):
            get(proxy.url)
            # The client has its answer before the connection is given back.
            eventually(lambda: not proxy.pool.targets[0].in_flight)
        assert (target.connections, len(target.requests)) == (1, 5)


def test_drops_a_target_connection_with_bytes_behind_the_response() -> None:
    with proxied(answer(b"x") + b"HTTP/1.1 200 OK\r\nX-Evil: 1\r\n\r\n") as (proxy, target):
        assert [get(proxy.url).get("X-Evil") for _ in range(3)] == [None] * 3
        assert target.connections == 3


@pytest.mark.parametrize("sent_by", ["target", "client"])
def test_streams_in_constant_memory(sent_by: str) -> None:
    """200 MB pass; the proxy, a process of its own, must not grow by 20."""
    piece, count = b"z" * 1_000_000, 200

    def serve(target: RawTarget, wire: Wire) -> None:
        head = wire.read_head()
        if sent_by == "target":
            wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (len(piece) * count))
            for _ in range(count):
                wire.send(piece)
        else:
            left = int(head.get("Content-Length") or 0) - len(wire.buffer)
            while left:
                left -= len(wire.sock.recv(min(left, 1_000_000)))
            wire.send(answer(b"x"))
        wire.read_head()

    with (
        RawTarget(serve) as target,
        program("--listen", "0", "--targets", target.url) as proxy,
    ):
        url = proxy.url
        before = memory(proxy.process.pid)
        with client(url) as wire:
            if sent_by == "target":
                wire.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
                wire.read_head()
                left = len(piece) * count - len(wire.buffer)
                while left:
                    left -= len(wire.sock.recv(1_000_000))
            else:
                wire.send(
                    b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n"
                    % (len(piece) * count)
                )
                for _ in range(count):
                    wire.send(piece)
                assert wire.read_message().status == 200
        assert memory(proxy.process.pid) - before < 20_000_000


def test_a_client_that_reads_nothing_fills_no_memory() -> None:
    piece = b"z" * 1_000_000
    sent = 0

    def serve(target: RawTarget, wire: Wire) -> None:
        nonlocal sent
        wire.read_head()
        wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
        for _ in range(1000):
            wire.send(piece)
            sent += len(piece)

    with RawTarget(serve) as target, program("--listen", "0", "--targets", target.url) as proxy:
        with client(proxy.url) as fast:
            fast.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            fast.read_exactly(10_000_000)
        before, sent = memory(proxy.process.pid), 0
        with client(proxy.url, receive_buffer=4096) as slow:
            slow.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            slow.read_exactly(100)
            last = -1
            while last != sent:  # until the target can't send any more
                last = sent
                time.sleep(0.3)
            assert sent < 50_000_000
            assert memory(proxy.process.pid) - before < 5_000_000


def memory(pid: int) -> int:
    """Resident bytes, at their highest."""
    try:
        with open(f"/proc/{pid}/status") as status:
            return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
    except FileNotFoundError:
        pytest.skip("needs /proc to see a process's memory")


def test_serves_on_several_addresses() -> None:
    with (
        letters("a") as [target],
        Proxy(targets=[target.url], listen=["http://127.0.0.1:0", "http://127.0.0.1:0"]) as proxy,
    ):
        assert len(set(proxy.urls)) == 2
        assert [get(url).body for url in proxy.urls] == [b"a", b"a"]


def test_counts_nothing_against_a_target_for_error_statuses() -> None:
    with proxied(answer(b"sorry", status="500 Internal Server Error")) as (proxy, _):
        assert [get(proxy.url).status for _ in range(3)] == [500] * 3
        assert len(proxy.pool.live) == 1


def test_notices_that_the_last_message_was_the_last() -> None:
    """A message that ends exactly with what was received must not wait for more."""
    with proxied(echo) as (proxy, _):
        reply: Message = ask(
            proxy.url, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc"
        )
        assert reply.body == b"abc"
        eventually(lambda: not proxy.connections)


@pytest.mark.parametrize("body", [b"5\r\nhello\r\n0\r\n\r\n", b"0\r\n\r\n"])
def test_a_chunked_body_that_came_whole_in_spite_of_expect_reaches_the_target_whole(
    body: bytes,
) -> None:
    """Without its last chunk the target would take the next request for a part of it."""
    with proxied(answer(b"x")) as (proxy, target), client(proxy.url) as wire:
        for _ in range(2):
            wire.send(
                b"POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\n"
                b"Transfer-Encoding: chunked\r\n\r\n" + body
            )
            assert wire.read_message().body == b"x"
        assert [one.body for one in target.requests] == [b"hello" if b"5" in body else b""] * 2


def test_a_body_that_comes_late_behind_an_answer_to_head_is_nobodys_answer() -> None:
    def serve(target: RawTarget, wire: Wire) -> None:
        target.requests.append(wire.read_message())
        head = target.requests[-1].start.startswith(b"HEAD")
        wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n")
        if head:
            time.sleep(0.05)
        wire.send(b"no" if head else b"ok")
        wire.read_to_end()

    with RawTarget(serve) as target, Proxy(targets=[target.url]) as proxy:
        get(proxy.url, method="HEAD")
        time.sleep(0.2)
        assert get(proxy.url).body == b"ok"


class Waiting:
    """A client that waits for its answer."""

    def check_client(self) -> None:
        pass


@pytest.mark.parametrize("answered", [False, True])
def test_a_bad_body_is_answered_only_before_its_answer(answered: bool) -> None:
    """It may turn out bad just when a tick of the target's silence ends."""
    who: Any = Waiting()
    request = Request(
        request_lines[b"POST / HTTP/1.1"], request_fields[1][b"Host: a\r\n"], b"", who
    )
    request.upload = Upload(BodyReader(lambda: b"no size\r\n", b"", None, None))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        connection = Upstream(make_target(listener.getsockname()[1]), TargetTimeouts()).connect()
        request.upload.start(connection)
        assert request.upload.finish(DEADLINE)
        request.answered = float(answered)
        with contextlib.nullcontext() if answered else pytest.raises(HTTPError):
            assert request.watch() == request.upload.ended_at
        assert connection.receive(request.watch) == b"", "that is how a response learns of it"
        connection.close()
