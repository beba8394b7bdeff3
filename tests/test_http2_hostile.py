"""What a client of HTTP/2 may send that it should not: the outcome of each, frame by frame."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    PushPromiseFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from pyproxy import Proxy
from pyproxy.errors import ConnectionFault
from pyproxy.http.http2_frames import Frames
from tests.http2_client import (
    COMPRESSION_ERROR,
    ENHANCE_YOUR_CALM,
    FLOW_CONTROL_ERROR,
    FRAME_SIZE_ERROR,
    PREFACE,
    PROTOCOL_ERROR,
    STREAM_CLOSED,
    Http2Client,
    Pair,
    no_leaked_descriptors,
    raw_frame,
)
from tests.support import DEADLINE, Gate, Message, RawTarget, answer, eventually, replying

NO_GOAWAY = None


@pytest.fixture(autouse=True)
def _descriptors() -> Iterator[None]:
    with no_leaked_descriptors():
        yield


@contextlib.contextmanager
def attacked(
    reply: bytes = b"", begin: bool = True, auto: bool = True, **settings: Any
) -> Iterator[tuple[Http2Client, RawTarget]]:
    def serve(request: Message) -> bytes:
        return reply or answer(request.body)

    http2 = {"prior_knowledge": True, **settings.pop("http2", {})}
    with (
        RawTarget(replying(serve)) as target,
        Proxy(targets=[target.url], http2=http2, **settings) as proxy,
        Http2Client(proxy.url, begin=begin, auto=auto) as one,
    ):
        yield one, target
        one.close()
        eventually(lambda: not proxy.connections)


def head(*fields: Pair, **pseudo: str | None) -> list[Pair]:
    said = {"method": "GET", "scheme": "http", "path": "/", "authority": "test", **pseudo}
    return [
        *((f":{name}", value) for name, value in said.items() if value is not None),
        *fields,
    ]


MALFORMED: dict[str, list[Pair]] = {
    "no method": head(method=None),
    "empty method": head(method=""),
    "no scheme": head(scheme=None),
    "another scheme": head(scheme="ftp"),
    "no path": head(path=None),
    "empty path": head(path=""),
    "no slash": head(path="x"),
    "absolute path": head(path="http://other/"),
    "asterisk": head(path="*"),
    "two methods": head((":method", "GET")),
    "two paths": [(":path", "/a"), *head()],
    "two authorities": [(":authority", "test"), *head()],
    "unknown pseudo": [(":protocol", "websocket"), *head()],
    "status": [(":status", "200"), *head()],
    "pseudo behind a field": [*head(path=None), ("a", "b"), (":path", "/")],
    "pseudo behind cookie": [*head(path=None), ("cookie", "b"), (":path", "/")],
    "pseudo behind host": [*head(authority=None), ("host", "test"), (":authority", "test")],
    "empty authority": head(authority=""),
    "empty host": head(("host", ""), authority=None),
    "host differs": head(("host", "other")),
    "one host differs": head(("host", "test"), ("host", "other")),
    "extended connect": [(":protocol", "websocket"), *head(method="CONNECT")],
    "connect with path": head(method="CONNECT"),
    "upper case": head(("X-Up", "1")),
    "upper case inside": head(("x-uP", "1")),
    "empty name": head(("", "1")),
    "colon alone": head((":", "1")),
    "space in name": head(("a b", "1")),
    "space behind name": head(("content-length ", "0")),
    "colon in name": head(("a:b", "1")),
    "CRLF in name": head(("a: b\r\nc", "1")),
    "NUL in name": head(("a\0", "1")),
    "not ASCII in name": head((b"a\xe9", "1")),
    "CRLF in value": head(("a", "b\r\nsmuggled: 1")),
    "CR in value": head(("a", "b\rc")),
    "LF in value": head(("a", "b\nc")),
    "NUL in value": head(("a", "b\0c")),
    "control in value": head(("a", "b\x01c")),
    "DEL in value": head(("a", "b\x7fc")),
    "space before value": head(("a", " b")),
    "space behind value": head(("a", "b ")),
    "tab before value": head(("a", "\tb")),
    "tab behind value": head(("a", "b\t")),
    "only a space": head(("a", " ")),
    "CRLF in cookie": head(("cookie", "a\r\nb: c")),
    "CRLF in authority": head(authority="test\r\nx: y"),
    "CRLF in method": head(method="GET / HTTP/1.1\r\nx: y\r\n\r\nGET"),
    "CRLF in scheme": head(scheme="http\r\n"),
    "connection": head(("connection", "close")),
    "connection names a field": head(("connection", "x"), ("x", "1")),
    "keep-alive": head(("keep-alive", "1")),
    "proxy-connection": head(("proxy-connection", "close")),
    "transfer-encoding": head(("transfer-encoding", "chunked")),
    "transfer-encoding identity": head(("transfer-encoding", "identity")),
    "upgrade": head(("upgrade", "websocket")),
    "te": head(("te", "gzip")),
    "te with more": head(("te", "trailers, gzip")),
    "a length without content": head(("content-length", "1")),
}

REFUSED: dict[str, tuple[int, list[Pair]]] = {
    "space in path": (400, head(path="/a b")),
    "CRLF in path": (400, head(path="/ HTTP/1.1\r\nx: y\r\n\r\nGET /")),
    "NUL in path": (400, head(path="/\0")),
    "not ASCII in path": (400, [*head(path=None), (":path", b"/\xe9")]),
    "fragment": (400, head(path="/a#b")),
    "space in method": (400, head(method="GE T")),
    "no authority": (400, head(authority=None)),
    "two hosts": (400, head(("host", "a"), ("host", "a"), authority=None)),
    "user in authority": (400, head(authority="me@test")),
    "malformed authority": (400, head(authority="te st")),
    "malformed port": (400, head(authority="test:99999")),
    "path in authority": (400, head(authority="test/x")),
    "connect": (501, head(method="CONNECT", scheme=None, path=None)),
    "expect": (417, head(("expect", "200-maybe"))),
    "many fields": (431, head(*[(f"x{number}", "1") for number in range(100)])),
    "large fields": (431, head(("x", "y" * 33000))),
    "long path": (431, head(path="/" + "y" * 33000)),
}


@pytest.mark.parametrize("fields", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_request_resets_its_stream(fields: list[Pair]) -> None:
    with attacked() as (one, target):
        one.headers(1, fields)
        assert one.await_reset() == PROTOCOL_ERROR
        assert one.stream(1).head == []
        assert one.get(3).status == 200
        assert [request.start for request in target.requests] == [b"GET / HTTP/1.1"]


@pytest.mark.parametrize(("status", "fields"), REFUSED.values(), ids=REFUSED)
def test_what_http_1_1_refuses_too_is_answered_alike(status: int, fields: list[Pair]) -> None:
    with attacked() as (one, target):
        one.send(*large_headers(one, 1, fields))
        assert one.answer().status == status
        assert one.get(3).status == 200
        assert len(target.requests) == 1


def large_headers(one: Http2Client, stream: int, fields: list[Pair]) -> list[Frame]:
    block = one.block(fields)
    pieces = [block[at : at + 16384] for at in range(0, len(block), 16384)]
    frames: list[Frame] = [HeadersFrame(stream, pieces[0], flags=["END_STREAM"])]
    frames += [ContinuationFrame(stream, piece) for piece in pieces[1:]]
    frames[-1].flags.add("END_HEADERS")
    return frames


@pytest.mark.parametrize(
    "value", ["abc", "1, 1", "-1", "+1", "0x1", "", "1 ", "1_0", "٣"], ids=ascii
)
def test_a_malformed_length_is_never_forwarded(value: str) -> None:
    with attacked() as (one, target):
        one.headers(1, head(("content-length", value.encode()), method="POST"), end=False)
        assert one.end() == PROTOCOL_ERROR
        assert target.requests == []


def test_two_lengths_are_never_forwarded() -> None:
    with attacked() as (one, target):
        fields = head(("content-length", "1"), ("content-length", "1"), method="POST")
        one.headers(1, fields, end=False)
        one.data(1, b"x", end=True)
        assert one.answer().status == 400
        one.headers(3, head(("content-length", "1"), ("content-length", "2")), end=False)
        assert one.end() == PROTOCOL_ERROR
        assert target.requests == []


@pytest.mark.parametrize("data", [b"ab", b"abcd"], ids=["short", "long"])
def test_content_that_is_not_as_long_as_told_ends_the_connection(data: bytes) -> None:
    with attacked() as (one, target):
        one.headers(1, head(("content-length", "3"), method="POST"), end=False)
        one.data(1, data, end=True)
        assert one.end() == PROTOCOL_ERROR
        assert target.requests == []


def test_short_content_with_trailers_resets_its_stream() -> None:
    with attacked() as (one, target):
        one.headers(1, head(("content-length", "3"), method="POST"), end=False)
        one.data(1, b"ab")
        one.headers(1, [("x", "y")])
        assert one.await_reset() == PROTOCOL_ERROR
        assert one.get(3).status == 200
        assert len(target.requests) == 1


def test_long_content_that_streams_breaks_the_request_off() -> None:
    with attacked(retry={"max_body": 10}) as (one, target):
        one.headers(1, head(("content-length", "100"), method="POST"), end=False)
        one.data(1, b"x" * 101)
        assert one.end() == PROTOCOL_ERROR
        assert target.requests == []  # it never was a whole one


@pytest.mark.parametrize(
    "trailers",
    [
        [(":path", "/")],
        [("X-Up", "1")],
        [("a", "b\r\nc: d")],
        [("connection", "close")],
        [("transfer-encoding", "chunked")],
        [("a", " b")],
    ],
    ids=str,
)
def test_malformed_trailers_reset_their_stream(trailers: list[Pair]) -> None:
    with attacked() as (one, target):
        one.headers(1, head(method="POST"), end=False)
        one.data(1, b"x")
        one.headers(1, trailers)
        assert one.await_reset() == PROTOCOL_ERROR
        assert one.get(3).status == 200
        assert len(target.requests) == 1


def test_trailers_bring_no_framing_and_no_forwarded_field() -> None:
    with attacked() as (one, target):
        one.headers(1, head(method="POST"), end=False)
        one.data(1, b"x")
        one.headers(1, [("content-length", "9"), ("x-real-ip", "1.1.1.1"), ("host", "b")])
        assert one.answer().status == 200
        assert target.requests[0].trailers == []


def test_underscores_disguise_nothing() -> None:
    with attacked() as (one, target):
        fields = [("content_length", "9"), ("x_forwarded_for", "1.1.1.1"), ("a_b", "c")]
        assert one.get(1, *fields).status == 200
        names = [name for name, _ in target.requests[0].fields]
        assert [name for name in names if b"_" in name] == [b"a_b"]


# Floods. The client reads nothing until it is through, or the proxy has had enough.

FLOODS: dict[str, Frame | bytes] = {
    "PING": PingFrame(0, b"12345678"),
    "PING answers": PingFrame(0, b"12345678", flags=["ACK"]),
    "SETTINGS": SettingsFrame(0, {4: 65535}),
    "empty SETTINGS": SettingsFrame(0),
    "SETTINGS answers": SettingsFrame(0, flags=["ACK"]),
    "WINDOW_UPDATE": WindowUpdateFrame(0, 1),
    "PRIORITY": PriorityFrame(3, depends_on=1),
    "unknown": raw_frame(200, 0, 0, b"x"),
    "empty DATA": DataFrame(1, b""),
    "padding": DataFrame(1, b"", pad_length=10, flags=["PADDED"]),
    "GOAWAY": raw_frame(7, 0, 0, bytes(8)),
}


@pytest.mark.parametrize("frame", FLOODS.values(), ids=FLOODS)
def test_a_flood_ends_the_connection(frame: Frame | bytes) -> None:
    with attacked() as (one, _):
        one.headers(1, head(method="POST"), end=False)
        data = frame if isinstance(frame, bytes) else frame.serialize()
        for _ in range(30):
            with contextlib.suppress(ConnectionError):
                one.send(data * 100)
        assert one.end() == ENHANCE_YOUR_CALM


@pytest.mark.parametrize("name", sorted(FLOODS.keys() - {"GOAWAY"}))
def test_a_few_are_no_flood(name: str) -> None:
    frame = FLOODS[name]
    data = frame if isinstance(frame, bytes) else frame.serialize()
    with attacked() as (one, _):
        one.headers(1, head(method="POST"), end=False)
        for _ in range(20):
            one.send(data)
        one.data(1, b"", end=True)
        assert one.answer().status == 200


def test_padding_alone_uses_no_window_up() -> None:
    with attacked() as (one, _):
        one.headers(1, head(method="POST"), end=False)
        for _ in range(600):
            one.send(DataFrame(1, b"", pad_length=255, flags=["PADDED"]))
        while not (frame := one.read()) or not (
            isinstance(frame, WindowUpdateFrame) and frame.stream_id
        ):
            assert frame, "the connection ended"
        one.data(1, b"", end=True)
        assert one.answer().status == 200


def test_padding_is_given_back_while_the_data_with_it_waits() -> None:
    """Twice the window of a stream, of which nobody reads a byte."""
    with attacked(http2={"threads": 0}) as (one, _):
        one.headers(1, head(method="POST"), end=False)
        one.headers(3, head(method="POST"), end=False)
        frame, window = DataFrame(3, b"x", pad_length=255, flags=["PADDED"]).serialize(), 262144
        for _ in range(2000):
            while window < 257:
                found = one.read()
                assert found
                if isinstance(found, WindowUpdateFrame) and found.stream_id:
                    window += found.window_increment
            window -= 257
            one.send(frame)
        for number in (1, 3):
            one.data(number, b"", end=True)
        assert one.answer(3).body == b"x" * 2000


def test_padded_data_is_no_flood() -> None:
    with attacked() as (one, _):
        frames = 1000  # as many as the window of a stream has room for
        for stream in (1, 3, 5):
            one.headers(stream, head(method="POST"), end=False)
            frame = DataFrame(stream, b"x", pad_length=255, flags=["PADDED"])
            one.send(frame.serialize() * frames)
            one.data(stream, b"", end=True)
        for stream in (1, 3, 5):
            assert one.answer(stream).body == b"x" * frames


def test_rapid_resets_end_the_connection_and_cost_few_requests() -> None:
    with attacked() as (one, target):
        with one.at_once():
            for number in range(1, 4001, 2):
                one.ask(number)
                one.reset(number)
        assert one.end() == ENHANCE_YOUR_CALM
        assert len(target.requests) < 1000


def test_requests_that_we_must_reset_end_the_connection() -> None:
    """Like rapid resets, but the client makes us do them ("made you reset")."""
    with attacked() as (one, target):
        with one.at_once():
            for number in range(1, 4001, 2):
                one.headers(number, head(("connection", "close")))
        assert one.end() == ENHANCE_YOUR_CALM
        assert target.requests == []


def test_streams_beyond_the_limit_end_the_connection() -> None:
    gate = Gate()
    with (
        RawTarget(gate) as target,
        Proxy(targets=[target.url], http2={"prior_knowledge": True, "max_streams": 2}) as proxy,
        Http2Client(proxy.url) as one,
    ):
        with one.at_once():
            for number in range(1, 4001, 2):
                one.ask(number)
        assert one.end() == ENHANCE_YOUR_CALM
        assert len(target.requests) <= 4
        gate.open.set()


def test_resets_hold_no_more_threads_than_streams_are_allowed() -> None:
    gate = Gate()
    with (
        RawTarget(gate) as target,
        Proxy(targets=[target.url], http2={"prior_knowledge": True, "max_streams": 5}) as proxy,
        Http2Client(proxy.url) as one,
    ):
        for number in range(1, 101, 2):
            one.ask(number)
            one.reset(number)
        one.send(PingFrame(0, b"12345678"))
        while not isinstance(one.read(), PingFrame):
            pass
        names = [thread.name for thread in threading.enumerate() if "http2" in thread.name]
        assert len(names) <= 5
        assert len(target.requests) <= 5
        gate.open.set()


def test_work_that_is_taken_pays_for_the_frames_that_steer_it() -> None:
    """A client that opens the window for each frame of a long answer is no flood."""
    body = bytes(20_000_000)
    with attacked(answer(body)) as (one, _):
        assert len(one.get().body) == len(body)
        assert one.get(3, method="HEAD").status == 200


@pytest.mark.parametrize("piece", [b"", b"x" * 10])
def test_continuations_without_end_end_the_connection(piece: bytes) -> None:
    with attacked() as (one, target):
        one.send(HeadersFrame(1, one.block(head()), flags=["END_STREAM"]))
        with contextlib.suppress(ConnectionError):
            for _ in range(1000):
                one.send(ContinuationFrame(1, piece))
        assert one.end() == ENHANCE_YOUR_CALM
        assert target.requests == []


def test_a_field_section_far_above_the_limit_ends_the_connection() -> None:
    with attacked() as (one, target):
        with contextlib.suppress(ConnectionError):
            fields = [(f"x-{at}", bytes(range(33, 127)) * 50) for at in range(30)]
            one.send(*large_headers(one, 1, head(*fields)))
        assert one.end() == ENHANCE_YOUR_CALM
        assert target.requests == []


def test_a_small_section_that_decompresses_to_a_large_one_ends_the_connection() -> None:
    with attacked() as (one, target):
        block = one.block([*head(), ("x", "y" * 4000)])
        block += bytes([0x80 | 62]) * 10000  # the newest entry of the table, again and again
        one.send(HeadersFrame(1, block, flags=["END_STREAM", "END_HEADERS"]))
        assert one.end() == ENHANCE_YOUR_CALM
        assert target.requests == []


# The protocol.

FAULTS: dict[str, tuple[int, list[Frame | bytes]]] = {
    "DATA on stream 0": (PROTOCOL_ERROR, [raw_frame(0, 0, 0, b"x")]),
    "DATA on an idle stream": (PROTOCOL_ERROR, [DataFrame(9, b"x")]),
    "WINDOW_UPDATE on an idle stream": (PROTOCOL_ERROR, [WindowUpdateFrame(9, 1)]),
    "WINDOW_UPDATE of nothing": (PROTOCOL_ERROR, [raw_frame(8, 0, 0, bytes(4))]),
    "window too large": (FLOW_CONTROL_ERROR, [WindowUpdateFrame(0, 2**31 - 1)]),
    "HEADERS on stream 0": (PROTOCOL_ERROR, [raw_frame(1, 5, 0, b"\x82")]),
    "HEADERS on an even stream": (PROTOCOL_ERROR, [raw_frame(1, 5, 2, b"\x82")]),
    "CONTINUATION alone": (PROTOCOL_ERROR, [ContinuationFrame(1, b"")]),
    "another frame within a section": (
        PROTOCOL_ERROR,
        [raw_frame(1, 1, 3, b"\x82"), PingFrame(0, b"12345678")],
    ),
    "another stream within a section": (
        PROTOCOL_ERROR,
        [raw_frame(1, 1, 3, b"\x82"), ContinuationFrame(5, b"\x84", flags=["END_HEADERS"])],
    ),
    "PUSH_PROMISE": (
        PROTOCOL_ERROR,
        [PushPromiseFrame(1, 2, b"\x82", flags=["END_HEADERS"])],
    ),
    "SETTINGS on a stream": (PROTOCOL_ERROR, [raw_frame(4, 0, 1, b"")]),
    "SETTINGS of 5 bytes": (FRAME_SIZE_ERROR, [raw_frame(4, 0, 0, bytes(5))]),
    "SETTINGS: push 2": (PROTOCOL_ERROR, [SettingsFrame(0, {2: 2})]),
    "SETTINGS: window": (FLOW_CONTROL_ERROR, [SettingsFrame(0, {4: 2**31})]),
    "SETTINGS: frame size": (PROTOCOL_ERROR, [SettingsFrame(0, {5: 100})]),
    "PING on a stream": (PROTOCOL_ERROR, [raw_frame(6, 0, 1, bytes(8))]),
    "PING of 7 bytes": (FRAME_SIZE_ERROR, [raw_frame(6, 0, 0, bytes(7))]),
    "RST_STREAM of 3 bytes": (FRAME_SIZE_ERROR, [raw_frame(3, 0, 1, bytes(3))]),
    "a stream that depends on itself": (PROTOCOL_ERROR, [PriorityFrame(3, depends_on=3)]),
    "padding longer than the frame": (PROTOCOL_ERROR, [raw_frame(0, 8, 1, b"\xff")]),
    "a frame of 16385 bytes": (FRAME_SIZE_ERROR, [raw_frame(0, 0, 1, bytes(16385))]),
    "the head of a frame of 16 MiB": (
        FRAME_SIZE_ERROR,
        [raw_frame(0, 0, 1, b"", length=2**24 - 1)],
    ),
    "bad compression": (COMPRESSION_ERROR, [raw_frame(1, 5, 3, b"\xff\xff\xff\xff\xff")]),
    "a table too large": (COMPRESSION_ERROR, [raw_frame(1, 5, 3, b"\x3f\xff\xff\x7f")]),
}


@pytest.mark.parametrize(("code", "frames"), FAULTS.values(), ids=FAULTS)
def test_a_fault_ends_the_connection(code: int, frames: list[Frame | bytes]) -> None:
    with attacked() as (one, target):
        one.headers(1, head(method="POST"), end=False)
        one.send(*frames)
        found = one.end()
        # h2 tells some faults of its decoders as PROTOCOL_ERROR, which is always allowed.
        assert found in (code, PROTOCOL_ERROR)
        assert target.requests == []


def test_a_stream_number_is_not_used_twice() -> None:
    with attacked() as (one, _):
        assert one.get(5).status == 200
        one.ask(3)
        assert one.end() == PROTOCOL_ERROR


def test_data_behind_the_end_is_not_taken() -> None:
    with attacked() as (one, target):
        assert one.get(1).status == 200
        one.data(1, b"x")
        assert one.await_reset() == STREAM_CLOSED
        assert one.get(3).status == 200
        assert [request.body for request in target.requests] == [b"", b""]


def test_data_beyond_the_window_ends_the_connection() -> None:
    gate = Gate()
    with (
        RawTarget(gate) as target,
        Proxy(
            targets=[target.url], http2={"prior_knowledge": True}, retry={"max_body": 10}
        ) as proxy,
        Http2Client(proxy.url) as one,
    ):
        with contextlib.suppress(ConnectionError, TimeoutError):
            for number in range(1, 41, 2):
                one.headers(number, head(("expect", "100-continue"), method="POST"), end=False)
                for _ in range(32):
                    one.data(number, bytes(16384))
        assert one.end() == FLOW_CONTROL_ERROR
        gate.open.set()


def test_a_huge_compression_table_is_not_used() -> None:
    """Each answer has another field: all of them would be remembered."""
    count = iter(range(10000))

    def serve(request: Message) -> bytes:
        return answer(b"x", f"X-Large: {next(count):08}{'y' * 8000}")

    with (
        RawTarget(replying(serve)) as target,
        Proxy(targets=[target.url], http2={"prior_knowledge": True}) as proxy,
        Http2Client(proxy.url) as one,
    ):
        one.send(SettingsFrame(0, {1: 2**32 - 1}))
        one._decoder.max_allowed_table_size = 2**32 - 1
        for number in range(1, 25, 2):
            assert one.get(number).status == 200
        assert one._decoder.header_table_size <= 65536


@pytest.mark.parametrize(
    "data",
    [
        b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n",
        PREFACE + raw_frame(6, 0, 0, bytes(8)),
        PREFACE + raw_frame(4, 1, 0, b""),
        PREFACE + b"GET / HTTP/1.1\r\n\r\n",
        PREFACE + raw_frame(1, 5, 1, b"\x82"),
    ],
    ids=ascii,
)
def test_what_does_not_begin_as_it_must_ends(data: bytes) -> None:
    with attacked(begin=False) as (one, target):
        one.send(data)
        assert one.end() in (PROTOCOL_ERROR, FRAME_SIZE_ERROR)
        assert target.requests == []


# Slow ones, and those that go.


@pytest.mark.parametrize(
    "data",
    [
        PREFACE[:18],
        PREFACE,
        PREFACE + raw_frame(4, 0, 0, b"", length=6),
        PREFACE + raw_frame(4, 0, 0, b"") + raw_frame(1, 0, 1, b"\x82"),
        PREFACE + raw_frame(4, 0, 0, b"") + raw_frame(1, 5, 1, b"\x82", length=100),
    ],
    ids=["preface", "settings", "within settings", "section", "within a section"],
)
def test_what_must_come_at_once_may_not_be_slow(data: bytes) -> None:
    with attacked(begin=False, auto=False, timeouts={"header": 0.4}) as (one, target):
        began = time.monotonic()
        one.send(data)
        assert one.end() in (PROTOCOL_ERROR, NO_GOAWAY)
        assert 0.3 < time.monotonic() - began < 9  # 10 without being told
        assert target.requests == []


def test_a_section_that_drips_is_too_slow() -> None:
    with attacked(timeouts={"header": 0.5}) as (one, _):
        one.send(HeadersFrame(1, b"\x82", flags=["END_STREAM"]))
        began = time.monotonic()
        with contextlib.suppress(ConnectionError):
            while time.monotonic() - began < 9 and one.goaway is None:
                one.send(ContinuationFrame(1, b""))
                time.sleep(0.1)
                one.sock.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    one.read()
                one.sock.settimeout(DEADLINE)
        assert one.end() == PROTOCOL_ERROR
        assert time.monotonic() - began < 9


def test_pings_keep_no_idle_connection() -> None:
    with attacked(timeouts={"keep_alive": 0.5}) as (one, _):
        began = time.monotonic()
        with contextlib.suppress(ConnectionError):
            while time.monotonic() - began < 2:
                one.send(PingFrame(0, b"12345678"))
                time.sleep(0.05)
        one.end()
        assert one.goaway


def test_a_client_that_takes_nothing_is_dropped() -> None:
    body = bytes(2**24)
    with (
        RawTarget(replying(answer(body))) as target,
        Proxy(
            targets=[target.url], http2={"prior_knowledge": True}, timeouts={"send": 0.5}
        ) as proxy,
        Http2Client(proxy.url, settings={4: 2**31 - 1}, receive_buffer=4096) as one,
    ):
        one.send(WindowUpdateFrame(0, 2**31 - 65536))
        for number in range(1, 9, 2):
            one.ask(number)
        eventually(lambda: len(target.requests) == 4)
        eventually(lambda: not proxy.connections)


def test_a_client_that_takes_nothing_and_pings_is_dropped() -> None:
    with (
        RawTarget(replying(answer(bytes(2**24)))) as target,
        Proxy(
            targets=[target.url], http2={"prior_knowledge": True}, timeouts={"send": 0.5}
        ) as proxy,
        Http2Client(proxy.url, settings={4: 2**31 - 1}, receive_buffer=4096) as one,
    ):
        one.send(WindowUpdateFrame(0, 2**31 - 65536))
        one.ask()
        with contextlib.suppress(OSError):
            for _ in range(100):
                one.send(PingFrame(0, b"12345678"))
                time.sleep(0.02)
        eventually(lambda: not proxy.connections)


@pytest.mark.parametrize("gently", [True, False])
@pytest.mark.parametrize("size", [0, 5, 100_000])
def test_a_client_that_goes_within_a_body_leaves_nothing(size: int, gently: bool) -> None:
    with (
        RawTarget(replying(answer("x"))) as target,
        Proxy(targets=[target.url], http2={"prior_knowledge": True}) as proxy,
    ):
        one = Http2Client(proxy.url)
        one.headers(1, head(method="POST"), end=False)
        for at in range(0, size, 10000):
            one.data(1, bytes(min(10000, size - at)))
        if not gently:
            linger = b"\x01\0\0\0\0\0\0\0"
            one.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        one.close()
        eventually(lambda: not proxy.connections)
        assert target.requests == []


def test_many_tiny_frames_take_little_memory() -> None:
    """A body of single bytes, each in a frame, that nobody reads yet."""
    gate = Gate()
    with (
        RawTarget(gate) as target,
        Proxy(targets=[target.url], http2={"prior_knowledge": True}) as proxy,
        Http2Client(proxy.url) as one,
    ):
        one.headers(1, head(method="POST"), end=False)
        for _ in range(20):
            one.send(DataFrame(1, b"x").serialize() * 1000)
        one.data(1, b"", end=True)
        gate.open.set()
        assert one.answer().status == 200
        assert target.requests[0].body == b"x" * 20000


# Frames alone: however they are cut, the same goes on to h2.


@pytest.mark.parametrize("step", [1, 2, 8, 9, 10, 33, 1000])
def test_frames_pass_whole_and_without_goaway(step: int) -> None:
    goaway = raw_frame(7, 0, 0, bytes(20))
    others = [SettingsFrame(0).serialize(), PingFrame(0, b"12345678").serialize()]
    others += [
        DataFrame(1, b"abc").serialize(),
        DataFrame(1, b"", flags=["END_STREAM"]).serialize(),
    ]
    data = PREFACE + others[0] + goaway + others[1] + others[2] + goaway + goaway + others[3]
    frames = Frames(1000, 0.0)
    found = b"".join(frames.look(data[at : at + step], 0.0) for at in range(0, len(data), step))
    assert found == PREFACE + b"".join(others)
    assert frames.going
    assert frames.since is None


def test_credit_comes_back_with_time_and_work() -> None:
    frames = Frames(1000, 0.0)
    ping = PingFrame(0, b"12345678").serialize()
    frames.look(PREFACE + SettingsFrame(0).serialize() + ping * 900, 0.0)
    frames.look(ping * 900, 9.0)
    frames.earn(500)
    frames.look(ping * 500, 9.0)
    with pytest.raises(ConnectionFault):
        frames.look(ping * 1000, 9.0)
