"""What is refused, with which status, and that slow or greedy clients harm nobody."""

import time

import pytest

from pyproxy import Proxy, net
from tests.support import DEADLINE, Wire, ask, client, get, letters

HOST = b"Host: a\r\n"


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + HOST + HOST + b"\r\n", 400),
        (b"GET  / HTTP/1.1\r\n" + HOST + b"\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + HOST + b"A : b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + HOST + b"A: b\r\n c\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + HOST + b"A: b\x00\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + HOST + b"A: b\rc\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + HOST + b"A: b\nc: d\r\n\r\n", 400),
        (b"GET / HTTP/1.1\nHost: a\n\n", 400),
        (b"GET /\r\n\r\n", 400),
        (b"garbage\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
        (
            b"GET / HTTP/1.1\r\n"
            + HOST
            + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            400,
        ),
        (b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 1\r\nContent-Length: 1\r\n\r\nx", 400),
        (b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: +1\r\n\r\nx", 400),
        (b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked, gzip\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n", 400),
        (b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n1\r\nab\r\n", 400),
        (b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: gzip, chunked\r\n\r\n", 501),
        (b"POST / HTTP/1.1\r\n" + HOST + b"Expect: miracle\r\n\r\n", 417),
        (b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 1001\r\n\r\n", 413),
        (
            b"POST / HTTP/1.1\r\n"
            + HOST
            + b"Transfer-Encoding: chunked\r\n\r\n3e9\r\n"
            + b"x" * 1001,
            413,
        ),
        (b"GET /" + b"a" * 5000 + b" HTTP/1.1\r\n" + HOST + b"\r\n", 414),
        (b"GET /" + b"a" * 5000, 414),
        (b"GET / HTTP/1.1\r\n" + HOST + b"A: " + b"b" * 5000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\n" + HOST + b"A: " + b"b" * 5000, 431),
        (b"GET / HTTP/1.1\r\n" + HOST + b"A: b\r\n" * 20 + b"\r\n", 431),
        (b"GET / HTTP/2.0\r\n" + HOST + b"\r\n", 505),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        (b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n", 501),
    ],
)
def test_refuses_with_the_exact_status_and_closes(request_bytes: bytes, status: int) -> None:
    limits = {"head": 4096, "headers": 20, "body": 1000}
    with letters("a") as [target], Proxy(targets=[target.url], limits=limits) as proxy:
        with client(proxy.url) as wire:
            wire.send(request_bytes)
            reply = wire.read_message()
            assert (reply.status, reply.get("Connection")) == (status, "close")
            assert (reply.get("Content-Type") or "").startswith("text/plain")
            assert reply.body
            wire.sock.shutdown(1)
            assert wire.at_end()
        assert target.requests == []
        assert get(proxy.url).body == b"a"


def test_a_head_that_is_too_slow_gets_408() -> None:
    with (
        letters("a") as [target],
        Proxy(targets=[target.url], timeouts={"header": 0.5}) as proxy,
        client(proxy.url) as wire,
    ):
        began = time.monotonic()
        wire.send(b"GET / HT")
        assert wire.read_message().status == 408
        assert time.monotonic() - began < 9  # 10 without being told


def test_a_body_that_is_too_slow_gets_408() -> None:
    with (
        letters("a") as [target],
        Proxy(targets=[target.url], timeouts={"read": 0.2}) as proxy,
    ):
        assert (
            ask(proxy.url, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nab").status
            == 408
        )
        assert len(proxy.pool.live) == 1


def test_dripping_a_head_does_not_extend_its_time() -> None:
    with (
        letters("a") as [target],
        Proxy(targets=[target.url], timeouts={"header": 0.5}) as proxy,
        client(proxy.url) as wire,
    ):
        began = time.monotonic()
        wire.sock.settimeout(0.05)
        while time.monotonic() - began < 9:
            wire.send(b"G")
            try:
                wire.read_head()
            except TimeoutError:
                continue
            break
        assert 0.2 < time.monotonic() - began < 9


def test_hundreds_of_slow_senders_delay_nobody() -> None:
    with (
        letters("a") as [target],
        Proxy(targets=[target.url], timeouts={"header": 4 * DEADLINE}) as proxy,
    ):
        slow: list[Wire] = []
        try:
            for _ in range(300):
                slow.append(client(proxy.url))
                slow[-1].send(b"POST / HTTP/1.1\r\nHost: a\r\nX")
            for _ in range(50):
                assert get(proxy.url).body == b"a"
            assert not any(net.readable(wire.sock) for wire in slow), "they are still there"
        finally:
            for wire in slow:
                wire.close()


def test_a_connection_that_says_nothing_is_closed_without_an_answer() -> None:
    with (
        letters("a") as [target],
        Proxy(targets=[target.url], timeouts={"header": 0.5, "keep_alive": 0.2}) as proxy,
    ):
        with client(proxy.url) as wire:
            assert wire.read_to_end() == b""
        with client(proxy.url) as wire:
            wire.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            assert wire.read_message().body == b"a"
            assert wire.read_to_end() == b""
