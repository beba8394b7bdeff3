"""When a target fails: who is asked next, what is never sent twice, what the client sees."""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pyproxy import Proxy
from tests.support import (
    DEADLINE,
    RawTarget,
    Wire,
    answer,
    ask,
    client,
    closed_port,
    eventually,
    get,
    lettered,
    replying,
)

Serve = Callable[[RawTarget, Wire], None]


def reset_at_once(target: RawTarget, wire: Wire) -> None:
    wire.reset()


def close_after_request(target: RawTarget, wire: Wire) -> None:
    target.requests.append(wire.read_message())


def reset_after_request(target: RawTarget, wire: Wire) -> None:
    target.requests.append(wire.read_message())
    wire.reset()


def after_request(data: bytes, then: Callable[[Wire], object] = Wire.close) -> Serve:
    def serve(target: RawTarget, wire: Wire) -> None:
        target.requests.append(wire.read_message())
        wire.send(data)
        then(wire)

    return serve


def never_answer(target: RawTarget, wire: Wire) -> None:
    target.requests.append(wire.read_message())
    wire.read_to_end()


def drip(target: RawTarget, wire: Wire) -> None:
    """A head that comes a byte at a time and never ends."""
    target.requests.append(wire.read_message())
    stop = threading.Event()
    for byte in b"HTTP/1.1 200 OK\r\n" + b"X-Drip: a\r\n" * 100:
        wire.send(bytes([byte]))
        stop.wait(0.02)


FAULTS: dict[str, tuple[Serve, int]] = {
    "closes after the request": (close_after_request, 502),
    "resets after the request": (reset_after_request, 502),
    "closes within the head": (after_request(b"HTTP/1.1 200 OK\r\nContent-"), 502),
    "resets within the head": (after_request(b"HTTP/1.1 200 OK\r\nContent-", Wire.reset), 502),
    "sends garbage": (after_request(b"\x00\x01garbage\r\n\r\n"), 502),
    "sends an endless line": (after_request(b"x" * 100_000, Wire.read_to_end), 502),
    "sends an endless head": (after_request(b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 20_000), 502),
    "sends a malformed field": (after_request(b"HTTP/1.1 200 OK\r\nA : b\r\n\r\n"), 502),
    "sends two lengths": (
        after_request(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx"),
        502,
    ),
    "switches protocols unasked": (after_request(b"HTTP/1.1 101 Switching Protocols\r\n\r\n"), 502),
    "never answers": (never_answer, 504),
    "drips its head": (drip, 504),
}


@contextlib.contextmanager
def faulty_then_good(serve: Serve, **settings: Any) -> Iterator[tuple[Proxy, RawTarget, RawTarget]]:
    """The first request goes to a faulty target; another one is good."""
    read = 0.5 if serve in (never_answer, drip) else DEADLINE
    with (
        RawTarget(serve) as bad,
        lettered("b") as good,
        Proxy(
            targets=[bad.url, good.url],
            **{"timeouts": {"read": read}, "sleeping": 60, **settings},
        ) as proxy,
    ):
        yield proxy, bad, good


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"])
def test_an_idempotent_request_goes_to_another_target(method: str, fault: str) -> None:
    with faulty_then_good(FAULTS[fault][0]) as (proxy, bad, good):
        assert get(proxy.url, method=method).status == 200
        assert len(bad.requests) == len(good.requests) == 1
        assert [target.url for target in proxy.pool.evicted()] == [bad.url]


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("method", ["POST", "PATCH", "PURGE"])
def test_another_request_is_never_sent_twice(method: str, fault: str) -> None:
    serve, status = FAULTS[fault]
    with faulty_then_good(serve) as (proxy, bad, good):
        request = f"{method} / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc".encode()
        assert ask(proxy.url, request).status == status
        assert len(bad.requests) == 1
        assert good.requests == []
        assert [target.url for target in proxy.pool.evicted()] == [bad.url]


@pytest.mark.parametrize("method", ["GET", "PUT", "POST", "PATCH"])
def test_any_request_goes_on_when_the_connect_failed(method: str) -> None:
    with (
        lettered("b") as good,
        Proxy(targets=[f"http://127.0.0.1:{closed_port()}", good.url]) as proxy,
    ):
        request = f"{method} / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc".encode()
        assert ask(proxy.url, request).body == b"b"
        assert good.requests[0].body == b"abc"


def test_a_name_that_does_not_resolve_is_a_failed_connect() -> None:
    with lettered("b") as good, Proxy(targets=["http://nowhere.invalid:80", good.url]) as proxy:
        assert (
            ask(proxy.url, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n").body == b"b"
        )
        assert len(proxy.pool.live) == 1


def test_a_post_goes_on_when_non_idempotent_retries_are_allowed() -> None:
    with faulty_then_good(close_after_request, retry={"non_idempotent": True}) as (
        proxy,
        bad,
        good,
    ):
        request = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc"
        assert ask(proxy.url, request).status == 200
        assert [one.body for one in (*bad.requests, *good.requests)] == [b"abc", b"abc"]


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize(("size", "status"), [(1000, 200), (1001, 502)])
def test_only_a_body_that_was_kept_is_replayed(size: int, status: int, chunked: bool) -> None:
    with faulty_then_good(reset_after_request, retry={"max_body": 1000}) as (proxy, _, good):
        framed = b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n"
        plain = b"Content-Length: %d\r\n\r\n%b"
        body = (framed if chunked else plain) % (size, b"x" * size)
        assert ask(proxy.url, b"PUT / HTTP/1.1\r\nHost: a\r\n" + body).status == status
        assert [len(one.body) for one in good.requests] == ([size] if status == 200 else [])


def test_what_came_behind_a_long_body_is_answered_though_the_target_failed() -> None:
    begun = threading.Event()

    def serve(target: RawTarget, wire: Wire) -> None:
        while b"\r\n\r\n" not in wire.buffer:
            wire._more()
        begun.set()
        wire.read_message()

    with (
        faulty_then_good(serve, retry={"max_body": 10}) as (proxy, _, _),
        client(proxy.url) as wire,
    ):
        wire.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 20\r\n\r\n")
        assert begun.wait(DEADLINE)
        wire.send(b"x" * 20 + b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert wire.read_message().status == 502
        assert wire.read_message().body == b"b"


def test_a_long_body_goes_on_when_the_connect_failed() -> None:
    with (
        lettered("b") as good,
        Proxy(
            targets=[f"http://127.0.0.1:{closed_port()}", good.url], retry={"max_body": 10}
        ) as proxy,
    ):
        body = b"x" * 500_000
        head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body)
        assert ask(proxy.url, head + body).body == b"b"
        assert good.requests[0].body == body


def test_each_target_is_tried_once_and_then_nobody_is_left() -> None:
    with contextlib.ExitStack() as stack:
        bad = [stack.enter_context(RawTarget(close_after_request)) for _ in range(3)]
        proxy = stack.enter_context(
            Proxy(
                targets=[one.url for one in bad],
                sleeping=60,
                unavailable={"status": 500, "body": "All servers is off"},
            )
        )
        reply = get(proxy.url)
        assert (reply.status, reply.body) == (500, b"All servers is off")
        assert int(reply.get("Retry-After") or 0) > 0
        assert [
            sum(b"pyproxy-health" not in request.head for request in one.requests) for one in bad
        ] == [1, 1, 1]


def test_unavailable_is_503_unless_set() -> None:
    with Proxy(targets=[f"http://127.0.0.1:{closed_port()}"]) as proxy:
        reply = get(proxy.url)
        assert (reply.status, reply.body) == (503, b"All servers is off")


def test_attempts_bound_how_many_targets_are_asked() -> None:
    with contextlib.ExitStack() as stack:
        bad = [stack.enter_context(RawTarget(close_after_request)) for _ in range(4)]
        urls = [one.url for one in bad]
        proxy = stack.enter_context(Proxy(targets=urls, sleeping=60, retry={"attempts": 2}))
        assert get(proxy.url).status == 502
        assert sum(len(one.requests) for one in bad) == 2


def test_max_fails_in_a_row_evict() -> None:
    with faulty_then_good(close_after_request, max_fails=3) as (proxy, bad, _):
        for number in range(3):
            assert len(bad.requests) == number
            assert [get(proxy.url).body for _ in range(2)] == [b"b", b"b"]
        assert [target.url for target in proxy.pool.evicted()] == [bad.url]


def test_a_success_ends_the_row_of_failures() -> None:
    def serve(target: RawTarget, wire: Wire) -> None:
        target.requests.append(wire.read_message())
        if len(target.requests) % 2:
            wire.send(answer(b"a", "Connection: close"))

    with RawTarget(serve) as target, Proxy(targets=[target.url], max_fails=2) as proxy:
        request = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"
        assert [ask(proxy.url, request).status for _ in range(8)] == [200, 502] * 4
        assert not proxy.pool.evicted()


def test_a_status_to_retry_is_a_failure_and_the_last_one_is_relayed() -> None:
    busy = replying(answer(b"busy", status="503 Service Unavailable"))
    with faulty_then_good(busy, retry={"statuses": [503]}, max_fails=2) as (proxy, bad, _):
        assert get(proxy.url).body == b"b"
        assert ask(proxy.url, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").body == b"b"
        assert get(proxy.url, method="POST").status == 503, "never sent twice"
        assert [target.url for target in proxy.pool.evicted()] == [bad.url]
    with RawTarget(busy) as bad, Proxy(targets=[bad.url], retry={"statuses": [503]}) as proxy:
        assert get(proxy.url).body == b"busy"


def closes_kept_alive(target: RawTarget, wire: Wire) -> None:
    """Answers once, saying nothing of a close, and closes when the next request has come."""
    target.requests.append(wire.read_message())
    wire.send(answer(b"a"))
    wire.read_head()


def test_a_kept_alive_connection_closed_meanwhile_is_no_failure() -> None:
    with RawTarget(closes_kept_alive) as target, Proxy(targets=[target.url]) as proxy:
        assert [get(proxy.url).body for _ in range(5)] == [b"a"] * 5
        assert (target.connections, len(proxy.pool.live)) == (5, 1)


def test_a_post_under_which_a_kept_alive_connection_ends_is_not_held_against_the_target() -> None:
    with RawTarget(closes_kept_alive) as target, Proxy(targets=[target.url]) as proxy:
        request = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"
        assert [ask(proxy.url, request).status for _ in range(3)] == [200, 502, 200]
        assert (len(target.requests), len(proxy.pool.live)) == (2, 1), "never sent twice"


def test_a_post_does_not_use_a_connection_that_has_been_closed() -> None:
    def serve(target: RawTarget, wire: Wire) -> None:
        target.requests.append(wire.read_message())
        wire.send(answer(b"a"))

    with RawTarget(serve) as target, Proxy(targets=[target.url]) as proxy:
        request = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx"
        for number in range(5):
            eventually(lambda number=number: closed(target, number))  # type: ignore[misc]
            assert ask(proxy.url, request).body == b"a"
        assert len(target.requests) == 5


@pytest.mark.parametrize("announced", ["Content-Length: 4", "Transfer-Encoding: chunked"])
def test_a_body_behind_204_is_not_taken_for_the_next_answer(announced: str) -> None:
    def late(target: RawTarget, wire: Wire) -> None:
        wire.read_message()
        wire.send(f"HTTP/1.1 204 No Content\r\n{announced}\r\n\r\n".encode())
        wire.read_message()  # on the same connection
        wire.send(b"late" + answer(b"x"))

    with RawTarget(late) as target, Proxy(targets=[target.url]) as proxy, client(proxy.url) as wire:
        for _ in range(3):
            wire.send(b"POST / HTTP/1.1\r\nHost: a\r\n\r\n")
            assert wire.read_message(bodiless=True).status == 204
        assert not proxy.pool.evicted()


@pytest.mark.parametrize("body", [b"", b"Content-Length: 0\r\n"], ids=["GET", "POST"])
@pytest.mark.parametrize("size", [1, 300_000])
def test_an_answer_that_nobody_asked_for_reaches_nobody(body: bytes, size: int) -> None:
    sent = threading.Semaphore(0)

    def serve(target: RawTarget, wire: Wire) -> None:
        while True:
            request = wire.read_message()
            wire.send(answer(request.start.split()[1] * size))
            wire.send(answer(b"of somebody else"))
            sent.release()

    method = b"POST" if body else b"GET"
    with RawTarget(serve) as target, Proxy(targets=[target.url]) as proxy:
        for path in (b"/a", b"/b", b"/c"):
            request = b"%b %b HTTP/1.1\r\nHost: a\r\n%b\r\n" % (method, path, body)
            assert ask(proxy.url, request).body == path * size
            assert sent.acquire(timeout=DEADLINE)


def closed(target: RawTarget, count: int) -> bool:
    return sum(wire.sock.fileno() < 0 for wire in target._wires) >= count


TRUNCATED: dict[str, bytes] = {
    "of known length": b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc",
    "of known length, long": b"HTTP/1.1 200 OK\r\nContent-Length: 300000\r\n\r\n" + b"x" * 200_000,
    "chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
    "within a chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nabc",
    "with a bad chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcX\r\n",
}


@pytest.mark.parametrize("kind", TRUNCATED)
@pytest.mark.parametrize("end", [Wire.close, Wire.reset], ids=["closed", "reset"])
def test_a_truncated_body_is_visible_to_the_client(kind: str, end: Callable[[Wire], None]) -> None:
    with (
        RawTarget(after_request(TRUNCATED[kind], end)) as target,
        Proxy(targets=[target.url]) as proxy,
        client(proxy.url) as wire,
    ):
        wire.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        with pytest.raises((EOFError, ConnectionError)):
            wire.read_message()
        assert len(target.requests) == 1, "what the client has begun to read is not asked for again"
        assert len(proxy.pool.live) == 1


@pytest.mark.parametrize("kind", ["chunked", "within a chunk", "with a bad chunk"])
def test_a_truncated_body_is_visible_even_to_http_1_0(kind: str) -> None:
    with (
        RawTarget(after_request(TRUNCATED[kind])) as target,
        Proxy(targets=[target.url]) as proxy,
        client(proxy.url) as wire,
    ):
        wire.send(b"GET / HTTP/1.0\r\n\r\n")
        with pytest.raises(ConnectionResetError):
            wire.read_message()


def test_a_body_that_is_not_taken_is_broken_off_visibly_even_to_http_1_0() -> None:
    endless = after_request(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 20_000_000)
    with (
        RawTarget(endless) as target,
        Proxy(targets=[target.url], timeouts={"send": 0.3}) as proxy,
        client(proxy.url, receive_buffer=4096) as wire,
    ):
        wire.send(b"GET / HTTP/1.0\r\n\r\n")
        eventually(lambda: target.requests)
        eventually(lambda: not proxy.connections)
        with pytest.raises(ConnectionResetError):
            wire.read_to_end()


def test_a_body_that_stops_coming_is_broken_off() -> None:
    silent = after_request(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc", Wire.read_to_end)
    with (
        RawTarget(silent) as target,
        Proxy(targets=[target.url], timeouts={"read": 0.5}) as proxy,
        client(proxy.url) as wire,
    ):
        wire.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        with pytest.raises(EOFError):
            wire.read_message()


def test_a_target_that_was_removed_since_it_was_picked_keeps_no_idle_connection() -> None:
    ended = threading.Event()

    def serve(target: RawTarget, wire: Wire) -> None:
        wire.read_message()
        wire.send(answer(b"a"))
        if wire.at_end():
            ended.set()

    with RawTarget(serve) as target, Proxy(targets=[target.url]) as proxy:
        [service], [picked] = proxy.services, proxy.pool.targets
        service.forget(picked)
        with client(proxy.url) as wire:
            wire.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            assert wire.read_message().body == b"a"
            assert ended.wait(DEADLINE)


def test_a_target_that_refuses_a_body_is_heard_though_it_closes() -> None:
    def serve(target: RawTarget, wire: Wire) -> None:
        wire.read_head()
        wire.send(answer(b"no", "Connection: close", status="413 Content Too Large"))

    with RawTarget(serve) as target, Proxy(targets=[target.url]) as proxy:
        body = b"x" * 60_000
        head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body)
        assert ask(proxy.url, head + body).status == 413
        assert len(proxy.pool.live) == 1


def test_a_connection_that_did_not_take_all_of_a_request_gets_no_other_one() -> None:
    def serve(target: RawTarget, wire: Wire) -> None:
        if wire.read_head().start.startswith(b"POST"):
            wire.send(answer(b"no", status="413 Content Too Large"))
            heard.wait(DEADLINE)
            wire.read_to_end()  # the rest of the body, for all it knows
        else:
            wire.send(answer(b"yes"))

    heard = threading.Event()
    size = 8_000_000  # more than the kernel takes
    with (
        RawTarget(serve) as target,
        Proxy(targets=[target.url], retry={"max_body": size}, timeouts={"send": 0.5}) as proxy,
        client(proxy.url) as wire,
    ):
        target._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        wire.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size)
        wire.send(b"x" * size)
        assert wire.read_message().status == 413
        heard.set()
        wire.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert wire.read_message().body == b"yes"


def test_out_of_descriptors_is_not_the_targets_fault() -> None:
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with (
        lettered("a") as target,
        Proxy(targets=[target.url], timeouts={"connect": "200ms"}) as proxy,
        client(proxy.url) as wire,
    ):
        eventually(lambda: proxy.connections)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            wire.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            assert wire.read_message().status == 503
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert len(proxy.pool.live) == 1
        wire.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert wire.read_message().body == b"a"
