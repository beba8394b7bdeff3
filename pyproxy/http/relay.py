"""A response's way to the client: how its body is framed on each side, and the copying.

target sends          client speaks HTTP/1.1      client speaks HTTP/1.0
no body               no body                     no body
Content-Length        the same                    the same
chunked               chunked                     until close
until close           chunked                     until close
"""

from typing import TYPE_CHECKING

from pyproxy import net
from pyproxy.errors import ClientGone, ConnectionLost, HTTPError, TargetError
from pyproxy.http.body import ChunkedDecoder, chunk, last_chunk
from pyproxy.http.forward import Reply, Request
from pyproxy.http.message import connection_line

if TYPE_CHECKING:
    from pyproxy.http.handler import ProxyHandler


def relay_response(client: "ProxyHandler", request: Request, reply: Reply) -> bool:
    """Sends head and body to the client, in constant memory and as they come.

    True if the target's connection is left exactly behind the response. Raises ``TargetError`` if
    the target fails within it, ``ClientGone`` if the client does.
    """
    head = reply.head
    if request.line.is_head or head.bodiless:
        client.send(
            head.kept + reply.extra + connection_line(request.line.minor, client.keep) + b"\r\n"
        )
        return not reply.rest
    if head.length is not None:
        return _relay_length(client, request, reply, head.length)
    return _relay_stream(client, request, reply)


def _relay_length(client: "ProxyHandler", request: Request, reply: Reply, length: int) -> bool:
    rest, connection = reply.rest, reply.connection
    ending = reply.extra + connection_line(request.line.minor, client.keep)
    client.size = min(len(rest), length)
    client.send(reply.head.kept + ending + b"\r\n" + rest[:length])
    left = length - len(rest)
    if left <= 0:
        return left == 0
    buffers = client.server.buffers
    buffer = buffers.take()
    try:
        while left:
            view = buffer if left >= net.Buffers.SIZE else buffer[:left]
            received = connection.receive_into(view, request.watch)
            if not received:
                raise ConnectionLost(f"closed {left} bytes before the end of a body")
            client.send(view[:received])
            client.size += received
            left -= received
    finally:
        buffers.give_back(buffer)
    return True


def _relay_stream(client: "ProxyHandler", request: Request, reply: Reply) -> bool:
    """A chunked body, or one that ends with the connection."""
    chunked = request.line.minor == 1
    if not chunked:
        client.keep = False
        client.until_close = True  # before the look at ``over``: see ``break_off``
    head = reply.head.kept + reply.extra + connection_line(request.line.minor, client.keep)
    head += b"Transfer-Encoding: chunked\r\n\r\n" if chunked else b"\r\n"
    body = ReplyBody(request, reply)
    try:
        while not body.ended:
            piece = body.read()
            if client.until_close and client.server.over:
                raise ClientGone("broken off")
            out = chunk(piece) if chunked and piece else piece
            if body.ended and chunked:
                out += last_chunk(body.trailers)
            if out := head + out:
                client.send(out)
                head = b""
            client.size += len(piece)
    except (TargetError, ClientGone):  # a client that took nothing for long may go on reading
        if not chunked:
            # To HTTP/1.0 the end of the connection is the end of the body.
            net.reset_on_close(client.request)
        raise
    client.until_close = False
    return body.exact


class ReplyBody:
    """The body of a response as it comes, without its framing, however that is done."""

    def __init__(self, request: Request, reply: Reply) -> None:
        head = reply.head
        self._connection = reply.connection
        self._watch = request.watch
        self._rest = reply.rest
        self._started = False
        self._left = None if head.chunked else head.length  # None: until close, or chunked
        self._decoder = ChunkedDecoder() if head.chunked else None
        self.ended = False
        self.exact = False  # when ended: the connection is left exactly behind the response
        self.trailers = b""

    def read(self) -> bytes:
        """The next piece: first what came with the head, be it nothing. Raises ``TargetError`` if
        the body is cut off or malformed, and what ``watch`` raises."""
        if self._started:
            data = self._connection.receive(self._watch)
            if not data:
                self._closed()
                return b""
        else:
            data, self._started = self._rest, True
        if self._decoder:
            return self._decoded(self._decoder, data)
        if self._left is None:
            return data
        piece = data[: self._left]
        self._left -= len(piece)
        self.ended = not self._left
        self.exact = self.ended and len(piece) == len(data)
        return piece

    def _closed(self) -> None:
        if self._decoder:
            raise ConnectionLost("closed within a chunked body")
        if self._left:
            raise ConnectionLost(f"closed {self._left} bytes before the end of a body")
        self.ended = True

    def _decoded(self, decoder: ChunkedDecoder, data: bytes) -> bytes:
        piece = _decode(decoder, data) if data else data
        if decoder.done:
            self.ended, self.exact = True, not decoder.rest
            self.trailers = decoder.trailers
        return piece


def _decode(decoder: ChunkedDecoder, data: bytes) -> bytes:
    try:
        return decoder.feed(data)
    except HTTPError as error:
        raise ConnectionLost(str(error)) from None
