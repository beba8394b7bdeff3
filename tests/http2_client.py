"""A client of HTTP/2 that sends whatever frames it is told to, and sees every frame that comes."""

import contextlib
import os
import socket
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Self

import hpack
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from tests.support import DEADLINE, eventually

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

# RFC 9113, 7
NO_ERROR, PROTOCOL_ERROR, INTERNAL_ERROR, FLOW_CONTROL_ERROR = 0, 1, 2, 3
STREAM_CLOSED, FRAME_SIZE_ERROR, REFUSED_STREAM, CANCEL = 5, 6, 7, 8
COMPRESSION_ERROR, ENHANCE_YOUR_CALM = 9, 11

Pair = tuple[str | bytes, str | bytes]


@dataclass
class Answered:
    """What has come on one stream."""

    head: list[tuple[str, str]] = field(default_factory=list)
    received: bytearray = field(default_factory=bytearray)
    trailers: list[tuple[str, str]] = field(default_factory=list)
    interim: list[list[tuple[str, str]]] = field(default_factory=list)
    ended: bool = False
    reset: int | None = None

    @property
    def body(self) -> bytes:
        return bytes(self.received)

    @property
    def status(self) -> int:
        return int(self.get(":status") or 0)

    def get(self, name: str) -> str | None:
        return next((value for known, value in self.head if known == name), None)


def raw_frame(kind: int, flags: int, stream: int, payload: bytes, length: int = -1) -> bytes:
    size = len(payload) if length < 0 else length
    return struct.pack("!BHBBL", size >> 16, size & 0xFFFF, kind, flags, stream) + payload


class Http2Client:
    """``auto``: answers SETTINGS and opens the windows again for all that comes."""

    def __init__(
        self,
        url: str,
        *,
        auto: bool = True,
        settings: dict[int, int] | None = None,
        begin: bool = True,
        receive_buffer: int | None = None,
    ) -> None:
        host, _, port = url.removeprefix("http://").rpartition(":")
        self._held: bytearray | None = None
        self.sock = socket.socket()
        if receive_buffer:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.sock.settimeout(DEADLINE)
        self.sock.connect((host, int(port)))
        self.encoder = hpack.Encoder()
        self._decoder = hpack.Decoder()
        self._auto = auto
        self._buffer = b""
        self._block = b""
        self._streams: dict[int, Answered] = {}
        self.goaway: GoAwayFrame | None = None
        self.settings: dict[int, int] = {}
        self.window = 65535  # of the connection, opened by WINDOW_UPDATEs
        if begin:
            self.send(PREFACE)
            self.send(SettingsFrame(0, settings or {}))

    def send(self, *frames: Frame | bytes) -> None:
        data = b"".join(one if isinstance(one, bytes) else one.serialize() for one in frames)
        if self._held is None:
            self.sock.sendall(data)
        else:
            self._held += data

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """What is sent within goes out at its end: as fast as can be, however busy the machine. The
        proxy may end the connection meanwhile."""
        self._held = bytearray()
        yield
        data, self._held = bytes(self._held), None
        with contextlib.suppress(ConnectionError, TimeoutError):
            self.sock.sendall(data)

    def block(self, fields: Iterable[Pair]) -> bytes:
        return self.encoder.encode(fields)

    def head(
        self,
        *fields: Pair,
        method: str = "GET",
        path: str = "/",
        authority: str | None = "test",
        scheme: str = "http",
    ) -> list[Pair]:
        pseudo: list[Pair] = [(":method", method), (":scheme", scheme), (":path", path)]
        if authority is not None:
            pseudo.append((":authority", authority))
        return [*pseudo, *fields]

    def headers(self, stream: int, fields: Iterable[Pair], end: bool = True) -> None:
        frame = HeadersFrame(stream, self.block(fields), flags=["END_HEADERS"])
        if end:
            frame.flags.add("END_STREAM")
        self.send(frame)

    def data(self, stream: int, data: bytes, end: bool = False) -> None:
        self.send(DataFrame(stream, data, flags=["END_STREAM"] if end else []))

    def reset(self, stream: int, code: int = CANCEL) -> None:
        self.send(RstStreamFrame(stream, code))

    def ask(self, stream: int = 1, *fields: Pair, method: str = "GET", path: str = "/") -> None:
        self.headers(stream, self.head(*fields, method=method, path=path))

    def get(self, stream: int = 1, *fields: Pair, method: str = "GET", path: str = "/") -> Answered:
        self.ask(stream, *fields, method=method, path=path)
        return self.answer(stream)

    def read(self) -> Frame | None:
        """The next frame; None at the end of the connection, be it a reset."""
        try:
            head = self._exactly(9)
            frame, length = Frame.parse_frame_header(memoryview(head))
            frame.parse_body(memoryview(self._exactly(length)))
        except (EOFError, ConnectionError):
            return None
        self._note(frame)
        return frame

    def _exactly(self, count: int) -> bytes:
        while len(self._buffer) < count:
            data = self.sock.recv(65536)
            if not data:
                raise EOFError
            self._buffer += data
        found, self._buffer = self._buffer[:count], self._buffer[count:]
        return found

    def stream(self, number: int) -> Answered:
        return self._streams.setdefault(number, Answered())

    def _note(self, frame: Frame) -> None:
        stream = self.stream(frame.stream_id)
        if isinstance(frame, HeadersFrame | ContinuationFrame):
            self._block += frame.data
            if "END_HEADERS" in frame.flags:
                fields = [(str(name), str(value)) for name, value in self._decode()]
                if not stream.head and fields[0][1].startswith("1"):
                    stream.interim.append(fields)
                elif stream.head:
                    stream.trailers = fields
                else:
                    stream.head = fields
        elif isinstance(frame, DataFrame):
            stream.received += frame.data
            if self._auto and frame.flow_controlled_length:
                size = frame.flow_controlled_length
                with contextlib.suppress(OSError):
                    self.send(WindowUpdateFrame(0, size), WindowUpdateFrame(frame.stream_id, size))
        elif isinstance(frame, RstStreamFrame):
            stream.reset = frame.error_code
        elif isinstance(frame, GoAwayFrame):
            self.goaway = frame
        elif isinstance(frame, WindowUpdateFrame) and not frame.stream_id:
            self.window += frame.window_increment
        elif isinstance(frame, SettingsFrame) and "ACK" not in frame.flags:
            self.settings |= frame.settings
            if self._auto:
                with contextlib.suppress(OSError):
                    self.send(SettingsFrame(0, flags=["ACK"]))
        stream.ended = stream.ended or "END_STREAM" in frame.flags

    def _decode(self) -> Iterable[tuple[str | bytes, str | bytes]]:
        block, self._block = self._block, b""
        return self._decoder.decode(block)

    def answer(self, number: int = 1) -> Answered:
        """All that comes on a stream, up to its end or reset."""
        stream = self.stream(number)
        while not (stream.ended or stream.reset is not None):
            assert self.read(), f"the connection ended: {self.goaway}"
        return stream

    def await_head(self, number: int = 1) -> Answered:
        stream = self.stream(number)
        while not stream.head:
            assert self.read(), f"the connection ended: {self.goaway}"
        return stream

    def await_reset(self, number: int = 1) -> int:
        stream = self.stream(number)
        while stream.reset is None:
            assert self.read(), f"the connection ended: {self.goaway}"
        return stream.reset

    def end(self) -> int | None:
        """Waits for the end of the connection; the code of the GOAWAY before it."""
        while self.read():
            pass
        return self.goaway.error_code if self.goaway else None

    def close(self) -> None:
        self.sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@contextlib.contextmanager
def no_leaked_descriptors() -> Iterator[None]:
    before = descriptors()
    yield
    eventually(lambda: descriptors() <= before)
