"""Bodies: the chunked coding (RFC 9112, 7.1), and a request's body as a stream of pieces."""

import re
from collections.abc import Callable
from typing import Protocol

from pyproxy.errors import HTTPError
from pyproxy.http.message import trailer_lines

_SIZE_LINE = re.compile(
    rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\x00-\x08\x0a-\x1f\x7f]*)?",
)
_LONGEST_SIZE_LINE = 1024


class Decoder(Protocol):
    """Takes the framing off a body whose length nobody tells in advance."""

    done: bool
    rest: bytes

    @property
    def trailers(self) -> bytes: ...

    def feed(self, data: bytes) -> bytes: ...


class ChunkedDecoder:
    """Takes a chunked body as it comes; gives the data without its framing.

    ``feed`` raises ``HTTPError`` 400 on any framing that RFC 9112 doesn't allow. Chunk extensions
    are dropped. When ``done``: ``trailers`` are the lines that may be passed on, ``rest`` is what
    came behind the body.
    """

    __slots__ = ("_buffer", "_left", "_limit", "_size_line", "done", "rest", "trailers")

    def __init__(self, trailer_limit: int = 32768) -> None:
        self._buffer = b""
        self._left = 0  # of the current chunk, its CRLF included
        self._limit = trailer_limit
        self._size_line = True
        self.done = False
        self.trailers = b""
        self.rest = b""

    def feed(self, data: bytes) -> bytes:
        """The data of the chunks in ``data``; what is incomplete waits for the next call."""
        if self._left > 2 and len(data) <= self._left - 2 and not self._buffer:
            self._left -= len(data)
            return data
        buffer = self._buffer + data
        at, pieces = 0, list[bytes]()
        while not self.done:
            if self._left > 2:
                piece = buffer[at : at + self._left - 2]
                if not piece:
                    break
                pieces.append(piece)
                at += len(piece)
                self._left -= len(piece)
            elif self._left:
                ending = buffer[at : at + 2]
                if ending != b"\r\n"[: len(ending)]:
                    raise HTTPError(400, "a chunk is longer than its size")
                if len(ending) < 2:
                    break
                at += 2
                self._left = 0
            else:
                after = self._size(buffer, at) if self._size_line else self._trailer(buffer, at)
                if after is None:
                    break
                at = after
        if self.done:
            self.rest, buffer, at = buffer[at:], b"", 0
        self._buffer = buffer[at:]
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _size(self, buffer: bytes, at: int) -> int | None:
        end = buffer.find(b"\r\n", at, at + _LONGEST_SIZE_LINE)
        if end < 0:
            if len(buffer) - at >= _LONGEST_SIZE_LINE or b"\n" in buffer[at:]:
                raise HTTPError(400, "malformed chunk size")
            return None
        match = _SIZE_LINE.fullmatch(buffer, at, end)
        if not match:
            raise HTTPError(400, "malformed chunk size")
        size = int(match[1], 16)
        if size:
            self._left = size + 2
        else:
            self._size_line = False
        return end + 2

    def _trailer(self, buffer: bytes, at: int) -> int | None:
        if buffer.startswith(b"\r\n", at):
            self.done = True
            return at + 2
        end = buffer.find(b"\r\n\r\n", at)
        if end < 0 and len(buffer) - at < self._limit + 4:
            return None
        if end < 0 or end - at > self._limit:
            raise HTTPError(400, "the trailer section is too long")
        self.trailers = trailer_lines(buffer[at : end + 2])
        self.done = True
        return end + 4


def chunk(data: bytes) -> bytes:
    """One chunk; ``data`` must not be empty, since that would end the body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def last_chunk(trailers: bytes = b"") -> bytes:
    return b"0\r\n%b\r\n" % trailers


class BodyReader:
    """The body of a request, in pieces without framing, as the client sends them.

    ``receive`` gives the client's next bytes. ``done`` once all is read; then ``rest`` is what
    came behind it. Used by one thread at a time.
    """

    def __init__(
        self,
        receive: Callable[[], bytes],
        start: bytes,
        length: int | None,
        limit: int | None,
        decoder: Decoder | None = None,
    ) -> None:
        """``length`` is None for a body that travels chunked, and comes so too unless there is
        another ``decoder``; ``limit`` is the most bytes it may have."""
        self._receive = receive
        self._data = start
        self._left = length or 0
        self._decoder = (decoder or ChunkedDecoder()) if length is None else None
        self._limit = limit
        self.size = 0  # read so far, without framing
        self.chunked = length is None
        self.done = length == 0
        self.rest = start if self.done else b""

    def read(self) -> bytes:
        """The next piece; empty at the end. Raises ``HTTPError`` 400 or 413, and what ``receive``
        raises."""
        while not self.done:
            data = self._data or self._receive()
            self._data = b""
            piece = self._decode(data) if self._decoder else self._cut(data)
            self.size += len(piece)
            if self._limit is not None and self.size > self._limit:
                raise HTTPError(413, f"a body has at most {self._limit} bytes here")
            if piece:
                return piece
        return b""

    def _decode(self, data: bytes) -> bytes:
        assert self._decoder
        piece = self._decoder.feed(data)
        self.rest = self._decoder.rest
        self.done = self._decoder.done
        return piece

    def _cut(self, data: bytes) -> bytes:
        piece = data[: self._left]
        self._left -= len(piece)
        if not self._left:
            self.rest = data[len(piece) :]
            self.done = True  # last: another thread looks at it
        return piece

    def frame(self, piece: bytes) -> bytes:
        """``piece`` as it travels to the target."""
        return chunk(piece) if self.chunked and piece else piece

    def ending(self) -> bytes:
        """What travels behind the last piece."""
        return last_chunk(self._decoder.trailers) if self._decoder else b""

    def collect(self, most: int) -> bytes:
        """The body as it travels to the target; only its start, if it is longer than ``most``
        bytes (about: what came at once is taken). Look at ``done`` and ``size``."""
        out = []
        while self.size <= most and not self.done:
            out.append(self.frame(self.read()))
        if self.done:
            out.append(self.ending())
        return b"".join(out)
