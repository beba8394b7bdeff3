"""The PROXY protocol: who a client is behind another proxy, told and believed with care."""

import contextlib
import socket
import struct
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyproxy import Proxy
from pyproxy.errors import BadProxyHeader, ConnectFailed
from pyproxy.http.upstream import Upstream
from pyproxy.sections import TargetTimeouts
from pyproxy.tcp.proxy_protocol import MOST, SIGNATURE, Addresses, missing, parse, serialise
from tests.http2_client import descriptors
from tests.support import (
    Message,
    RawTarget,
    Wire,
    answer,
    client,
    eventually,
    make_target,
    replying,
)

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
V4 = Addresses(("192.0.2.1", 56324), ("198.51.100.7", 443))
V6 = Addresses(("2001:db8::1", 1), ("2001:db8::2", 65535))
LINE = b"PROXY TCP4 192.0.2.1 198.51.100.7 56324 443\r\n"


def binary(
    command: int = 0x21, kind: int = 0x11, block: bytes = b"", length: int | None = None
) -> bytes:
    size = len(block) if length is None else length
    return SIGNATURE + struct.pack("!BBH", command, kind, size) + block


def read(stream: bytes) -> tuple[Addresses | None, bytes]:
    """What the header at the start of a stream says, and what is left behind it."""
    data = b""
    while more := missing(data):
        if not stream:
            raise EOFError(data)
        data, stream = data + stream[:more], stream[more:]
    return parse(data), stream


# Pure


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (LINE, V4),
        (b"PROXY TCP6 2001:db8::1 2001:db8::2 1 65535\r\n", V6),
        (b"PROXY TCP6 2001:DB8:0:0:0:0:0:1 2001:db8::2 1 65535\r\n", V6),
        (b"PROXY UNKNOWN\r\n", None),
        (b"PROXY UNKNOWN ffff::1 what ever 1\r\n", None),
        (binary(block=b"\xc0\0\2\1\xc6\x33\x64\7\xdc\x04\1\xbb"), V4),
        (binary(block=b"\xc0\0\2\1\xc6\x33\x64\7\xdc\x04\1\xbb" + b"\x04\0\1x"), V4),
        (binary(kind=0x21, block=bytes.fromhex("20010db8" + "00" * 11 + "01"
         + "20010db8" + "00" * 11 + "02") + b"\0\1\xff\xff"), V6),
        (binary(0x20, 0), None),
        (binary(0x20, 0x11, b"x" * 12), None),
        (binary(kind=0), None),
        (binary(kind=0x12, block=b"x" * 12), None),
        (binary(kind=0x31, block=b"x" * 216), None),
    ],
)  # fmt: skip
def test_a_header_is_read_to_its_last_byte_and_no_further(
    header: bytes, said: Addresses | None
) -> None:
    assert read(header + b"PROXY what follows") == (said, b"PROXY what follows")


@pytest.mark.parametrize(
    "header",
    [
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"proxy TCP4 192.0.2.1 198.51.100.7 56324 443\r\n",
        b"PROXY\r\n TCP4 1.2.3.4",
        b"PROXY TCP5 192.0.2.1 198.51.100.7 56324 443\r\n",
        b"PROXY TCP4 192.0.2.1 198.51.100.7 56324\r\n",
        b"PROXY TCP4 192.0.2.1 198.51.100.7 56324 443 1\r\n",
        b"PROXY TCP4  192.0.2.1 198.51.100.7 56324 443\r\n",
        b"PROXY TCP4 192.0.2.1 198.51.100.7 56324 65536\r\n",
        b"PROXY TCP4 192.0.2.1 198.51.100.7 56324 -1\r\n",
        b"PROXY TCP4 192.0.2.1 198.51.100.7 056324 443\r\n",
        b"PROXY TCP4 192.0.2.1 198.51.100.7 +5632 443\r\n",
        b"PROXY TCP4 192.0.2.1 198.51.100.7 56324 443\n" + b"x" * 100,
        b"PROXY TCP4 192.0.2.256 198.51.100.7 56324 443\r\n",
        b"PROXY TCP4 192.0.2.01 198.51.100.7 56324 443\r\n",
        b"PROXY TCP4 2001:db8::1 2001:db8::2 1 2\r\n",
        b"PROXY TCP6 192.0.2.1 198.51.100.7 56324 443\r\n",
        b"PROXY TCP6 fe80::1%eth0 fe80::2 1 2\r\n",
        b"PROXY TCP4 \xd9\xa1.2.3.4 198.51.100.7 56324 443\r\n",
        b"PROXY UNKNOWNX \r\n\r\n",
        b"PROXY TCP4 " + b"1" * 200,
        b"PROXY UNKNOWN " + b"x" * 92 + b"\r\n",
        SIGNATURE[:-1] + b"X\x21\x11\0\0",
        binary(0x11, block=b"x" * 12),
        binary(0x31, block=b"x" * 12),
        binary(0x22, block=b"x" * 12),
        binary(0x2F, block=b"x" * 12),
        binary(kind=0x13, block=b"x" * 12),
        binary(kind=0x41, block=b"x" * 12),
        binary(kind=0x11, block=b"x" * 11),
        binary(kind=0x21, block=b"x" * 12),
        binary(length=MOST),
        binary(length=65535),
        binary(0x20, 0, length=65535),
    ],
)
def test_what_is_no_header_is_refused(header: bytes) -> None:
    with pytest.raises(BadProxyHeader):
        read(header)


@pytest.mark.parametrize("header", [LINE, binary(block=b"x" * 20), b"PROXY UNKNOWN\r\n"])
def test_a_header_that_is_cut_short_is_never_whole(header: bytes) -> None:
    for end in range(len(header)):
        assert 0 < missing(header[:end]) <= len(header) - end


IPS = st.ip_addresses(v=4) | st.ip_addresses(v=6)
ENDS = st.tuples(IPS.map(str), st.integers(0, 65535))


@given(st.sampled_from([1, 2]), ENDS, ENDS, st.binary(max_size=20))
def test_what_is_told_is_understood(
    version: int, source: tuple[str, int], destination: tuple[str, int], rest: bytes
) -> None:
    header = serialise(version, Addresses(source, destination))
    assert version == 2 or len(header) <= 107
    said, left = read(header + rest)
    assert said
    assert left == rest
    # One who speaks IPv4 with one who speaks IPv6 is told in IPv6; nothing else may differ.
    assert serialise(version, said) == header
    assert (said.source[1], said.destination[1]) == (source[1], destination[1])


@given(st.binary(max_size=200) | st.binary().map(lambda rest: SIGNATURE + rest))
def test_anything_is_understood_or_refused_and_never_breaks(stream: bytes) -> None:
    with contextlib.suppress(BadProxyHeader, EOFError):
        read(stream)


@pytest.mark.parametrize("version", [1, 2])
def test_a_proxy_that_speaks_for_itself_says_nobody_s_address(version: int) -> None:
    assert read(serialise(version, None) + b"x") == (None, b"x")


def test_ipv4_in_clothes_of_ipv6_is_told_as_ipv4() -> None:
    both = Addresses(("::ffff:192.0.2.1", 56324), ("::ffff:198.51.100.7", 443))
    assert serialise(1, both) == LINE


# Listeners


@contextlib.contextmanager
def told(kind: str, **said: Any) -> Iterator[tuple[Proxy, RawTarget]]:
    """A proxy that wants a PROXY header, for HTTP or TCP."""
    serve: Callable[[RawTarget, Wire], None] = replying(answer(b"ok"))
    with RawTarget(serve) as target:
        settings: dict[str, Any] = {"trusted_proxies": ["127.0.0.1"], **said}
        if kind == "http":
            listen = {"url": "http://127.0.0.1:0", "proxy_protocol": True}
            settings |= {"listen": listen, "targets": [target.url]}
        else:
            entry = {"listen": 0, "targets": [target.port], "proxy_protocol": True}
            settings |= {"tcp": [entry]}
        with Proxy(**settings) as proxy:
            yield proxy, target


def knock(proxy: Proxy) -> Wire:
    return client(proxy.url.replace("tcp:", "http:"))


BOTH = pytest.mark.parametrize("kind", ["http", "tcp"])


@BOTH
@pytest.mark.parametrize("header", [LINE, serialise(2, V4), serialise(2, None)])
def test_a_listener_takes_the_header_and_serves_what_follows(kind: str, header: bytes) -> None:
    with told(kind) as (proxy, _), knock(proxy) as wire:
        wire.send(header + GET)
        assert wire.read_message().body == b"ok"
        wire.send(GET)
        assert wire.read_message().body == b"ok"


@BOTH
@pytest.mark.parametrize("header", [LINE, serialise(2, V4)])
def test_a_header_may_come_byte_by_byte(kind: str, header: bytes) -> None:
    with told(kind) as (proxy, _), knock(proxy) as wire:
        for at in range(len(header)):
            wire.send(header[at : at + 1])
            time.sleep(0.001)
        wire.send(GET)
        assert wire.read_message().body == b"ok"


@BOTH
@pytest.mark.parametrize(
    "stream", [GET, b"PROXY TCP4 nonsense\r\n" + GET, binary(length=65535), b"\0" * 500]
)
def test_a_connection_without_a_good_header_is_closed(kind: str, stream: bytes) -> None:
    with told(kind) as (proxy, target), knock(proxy) as wire:
        wire.send(stream)
        assert wire.at_end()
        eventually(lambda: not proxy.connections)
        assert not target.connections
        assert len(proxy.pool.live) == 1


@BOTH
@pytest.mark.parametrize("header", [LINE[:20], serialise(2, V4)[:-1], b""])
def test_a_connection_that_ends_within_its_header_is_closed(kind: str, header: bytes) -> None:
    with told(kind) as (proxy, target), knock(proxy) as wire:
        wire.send(header)
        wire.sock.shutdown(socket.SHUT_WR)
        assert wire.at_end()
        assert not target.connections


@BOTH
@pytest.mark.parametrize("header", [LINE, serialise(2, V4)])
def test_a_header_that_drips_is_cut_off_in_time(kind: str, header: bytes) -> None:
    with told(kind, timeouts={"header": 0.6}) as (proxy, target), knock(proxy) as wire:
        began = time.monotonic()
        with contextlib.suppress(OSError):
            for at in range(len(header) - 1):
                wire.send(header[at : at + 1])
                time.sleep(0.05)
                if time.monotonic() - began > 9:
                    break
        assert wire.at_end()
        assert time.monotonic() - began < 9  # 10 without being told
        assert not target.connections


@BOTH
def test_a_header_from_who_is_not_trusted_closes_the_connection(kind: str) -> None:
    with told(kind, trusted_proxies=["192.0.2.0/24"]) as (proxy, target), knock(proxy) as wire:
        wire.send(LINE + GET)
        assert wire.at_end()
        assert not target.connections


@BOTH
def test_stopping_does_not_wait_for_a_header(kind: str) -> None:
    with contextlib.ExitStack() as stack:
        proxy, _ = stack.enter_context(told(kind))
        with knock(proxy) as wire:
            wire.send(LINE[:10])
            eventually(lambda: proxy.connections)
            began = time.monotonic()
            stack.close()
            assert time.monotonic() - began < 9
            assert wire.at_end()


def test_a_target_hears_of_the_client_that_the_header_names() -> None:
    with told("http") as (proxy, target):
        with knock(proxy) as wire:
            wire.send(LINE + GET)
            wire.read_message()
        assert target.requests[0].get("X-Forwarded-For") == "192.0.2.1"
        with knock(proxy) as wire:
            spoofed = b"GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 9.9.9.9\r\n\r\n"
            wire.send(LINE + spoofed)
            wire.read_message()
        # The client isn't one of trusted_proxies, though the proxy that names it is.
        assert target.requests[1].get("X-Forwarded-For") == "192.0.2.1"


def test_policies_see_the_client_that_the_header_names() -> None:
    def serve(target: RawTarget, wire: Wire) -> None:
        wire.send(b"%d" % target.port)

    with contextlib.ExitStack() as stack:
        ports = [stack.enter_context(RawTarget(serve)).port for _ in range(5)]
        entry = {"listen": 0, "targets": ports, "policy": "ip_hash", "proxy_protocol": True}
        proxy = stack.enter_context(Proxy(tcp=[entry], trusted_proxies=["127.0.0.1"]))

        def asks(ip: str) -> bytes:
            with knock(proxy) as wire:
                wire.send(serialise(2, Addresses((ip, 1), ("198.51.100.7", 2))))
                return wire.read_to_end()

        first = {ip: asks(ip) for ip in (f"192.0.2.{at}" for at in range(12))}
        assert len(set(first.values())) > 1
        assert {ip: asks(ip) for ip in first} == first


# Targets


class Introduced:
    """A target that wants a PROXY header, then serves HTTP; keeps what it was told."""

    def __init__(self) -> None:
        self.told: list[Addresses | None] = []

    def __call__(self, target: RawTarget, wire: Wire) -> None:
        data = b""
        while more := missing(data):
            data += wire.read_exactly(more)
        self.told.append(parse(data))

        def respond(request: Message) -> bytes:
            return answer(b"ok")

        replying(respond)(target, wire)


@pytest.mark.parametrize("version", [1, 2])
def test_a_tcp_target_is_told_the_client(version: int) -> None:
    serve = Introduced()
    with RawTarget(serve) as target:
        entry = {"listen": 0, "targets": [target.port], "send_proxy": version}
        with Proxy(tcp=[entry]) as proxy, knock(proxy) as wire:
            wire.send(GET)
            assert wire.read_message().body == b"ok"
            own, there = wire.sock.getsockname(), wire.sock.getpeername()
            assert serve.told == [Addresses(own, there)]


def test_what_one_proxy_was_told_the_next_one_is_told() -> None:
    serve = Introduced()
    with RawTarget(serve) as target:
        entry = {"listen": 0, "targets": [target.port], "send_proxy": 1, "proxy_protocol": True}
        with Proxy(tcp=[entry], trusted_proxies=["127.0.0.1"]) as proxy, knock(proxy) as wire:
            wire.send(serialise(2, V6) + GET)
            assert wire.read_message().body == b"ok"
            assert serve.told == [V6]


def test_an_http_target_is_told_each_request_s_client_on_a_connection_of_its_own() -> None:
    serve = Introduced()
    with (
        RawTarget(serve) as target,
        Proxy(targets=[target.url], send_proxy=2) as proxy,
        client(proxy.url) as one,
        client(proxy.url) as two,
    ):
        for wire in (one, two, one):
            wire.send(GET)
            assert wire.read_message().body == b"ok"
        ends = [(wire.sock.getsockname(), wire.sock.getpeername()) for wire in (one, two, one)]
        assert serve.told == [Addresses(*each) for each in ends]
        assert target.connections == 3


def test_a_connection_that_was_introduced_is_lent_to_nobody_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not even between its way back to those that are idle, and its end there."""
    with RawTarget(replying(b"")) as target:
        upstream = Upstream(make_target(target.port), TargetTimeouts(), keep=False)
        monkeypatch.setattr(upstream, "close_one", lambda: False)  # as if it were about to
        known = upstream.connect(LINE)
        upstream.give_back(known)
        assert upstream.take(False) is None
        known.close()


def test_a_target_that_does_not_take_the_header_leaves_no_open_connection() -> None:
    with RawTarget(lambda _, wire: wire.reset()) as target:
        before = descriptors()
        with pytest.raises(ConnectFailed) as failed:
            Upstream(make_target(target.port), TargetTimeouts()).connect(b"x" * 50_000_000)
        eventually(lambda: descriptors() <= before)
        assert failed.value.__context__, "holds the frame of the call that failed"


@pytest.mark.parametrize("tcp", [True, False])
def test_probes_of_such_targets_speak_for_themselves(tcp: bool) -> None:
    serve = Introduced()
    with RawTarget(serve) as target:
        target.stop()
        health = {"tcp": tcp}
        settings: dict[str, Any] = {"targets": [target.url], "send_proxy": 2, "sleeping": 0.1}
        with Proxy(**settings, health=health) as proxy:
            with client(proxy.url) as wire:
                wire.send(GET)
                assert wire.read_message().status == 503
            target.start()
            eventually(lambda: proxy.pool.live)
            eventually(lambda: serve.told)
            assert serve.told == [None]
