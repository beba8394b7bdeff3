"""Stream: one request of an HTTP/2 connection, and the response to it, in one thread.

serve                         in a thread of the connection
  read_request                  checked, and translated to what an HTTP/1.1 client would have sent
  _read_body                    kept up to `retry.max_body`, else streamed (Upload)
  server.service(request)       the failover loop, a file, or a redirect: the same as for HTTP/1.1
  _relay or _answer             head, data as flow control lets it go, trailers
"""

import logging
import threading
from typing import TYPE_CHECKING

from pyproxy.access_format import Entry
from pyproxy.errors import ClientGone, HTTPError, Malformed, TargetError
from pyproxy.http.answer import Answer, FilePart
from pyproxy.http.body import BodyReader
from pyproxy.http.forward import Reply, Request
from pyproxy.http.http2_fields import Pairs, read_request, read_trailers, response
from pyproxy.http.message import ReplyHead, name_values
from pyproxy.http.relay import ReplyBody
from pyproxy.http.upload import Upload
from pyproxy.tcp.proxy_protocol import Addresses

if TYPE_CHECKING:
    from pyproxy.http.http2 import Http2Connection

log = logging.getLogger(__name__)

_PIECE = 65536  # bytes of a file that are sent at once
_LINGER = 2.0  # seconds in which an upload ends once it is broken off


class Stream:
    """To the failover loop it is the client. What the connection's own thread brings (``body``,
    ``ended``, ``gone``) is protected by the connection's lock."""

    def __init__(
        self, connection: "Http2Connection", number: int, fields: Pairs, ended: bool
    ) -> None:
        self.connection = connection
        self.number = number
        self.peer = connection.peer
        self._fields = fields
        self._bodiless = ended
        self.body = bytearray()  # received, not yet read
        self.unacknowledged = 0  # bytes of the client's window
        self.received = 0
        said = [value for name, value in fields if name == b"content-length"]
        self.length = int(said[0]) if said else None  # h2 has seen that it is a number
        self.trailers = b""
        self.ended = ended  # nothing more comes from the client
        self.gone = ""  # why nobody waits for the answer any more
        self.finished = False  # all of the response is on its way
        self._changed: threading.Condition | None = None
        self._status, self._size = 499, 0

    # What the connection calls, under its lock.

    def wait(self, seconds: float) -> bool:
        """Until ``wake``; False if that took too long."""
        if self._changed is None:
            self._changed = threading.Condition(self.connection.lock)
        return self._changed.wait(seconds)

    def wake(self) -> None:
        if self._changed:
            self._changed.notify_all()

    def lose(self, reason: str) -> None:
        self.gone = self.gone or reason
        self.wake()

    @property
    def readable(self) -> bool:
        """Whether something has come, but for the last of a body of known length."""
        return bool(self.body) and self.received != self.length

    def end(self, trailers: Pairs = ()) -> None:
        """The client has sent all. Raises ``Malformed``."""
        if self.length is not None and self.received != self.length:
            raise Malformed("the content is shorter than its content-length")
        self.trailers = read_trailers(trailers)
        self.ended = True
        self.wake()

    # What the failover loop calls.

    @property
    def addresses(self) -> Addresses:
        """For a PROXY header to a target."""
        return self.connection.handler.addresses

    def check_client(self) -> None:
        """Raises ``ClientGone`` if the client has given the request up."""
        if self.gone:
            raise ClientGone(self.gone)

    def relay_interim(self, request: Request, head: ReplyHead) -> None:
        self.connection.send(self, response(head.status, head.fields))

    # What its own thread does.

    def serve(self) -> None:
        server = self.connection.server
        request = None
        try:
            self.check_client()
            request = self._request()
            self._respond(request)
        except Malformed as error:
            self._status = error.status
            log.info("reset a stream of %s: %s", self.peer.address, error)
            self.connection.refuse(self)
        except HTTPError as error:
            log.info("answered %d to %s: %s", error.status, self.peer.address, error)
            self._try_to_refuse(error)
        except ClientGone as error:
            log.debug("a stream of %s: %s", self.peer.address, error)
        finally:
            access_log = server.access_log  # a reload may take it away
            if access_log is None:
                pass
            elif request:
                line = request.line.line.removesuffix(b"1.1") + b"2.0"
                access_log.request(request, line, self._status, self._size)
            elif self._status != 499:
                entry = Entry(self.peer.address, b"", self._status, self._size)
                access_log.write(entry)

    def _try_to_refuse(self, error: HTTPError) -> None:
        try:
            self._answer(Answer.refusal(error), False)
        except ClientGone:
            pass

    def _request(self) -> Request:
        """Raises ``HTTPError``."""
        server = self.connection.server
        limits = server.limits
        line, fields = read_request(self._fields, self._bodiless, limits.head, limits.headers)
        sent = fields.for_target(self.peer, server.own_host, None)
        sent, make = server.tracer.prepare(fields, sent) if server.tracer else (sent, None)
        return Request(line, fields, make(line.wire) if make else line.wire + sent, self)

    def _respond(self, request: Request) -> None:
        try:
            if not self._bodiless:
                self._read_body(request)
            reply = self.connection.server.service(request)
        except (TargetError, HTTPError) as error:
            log.info("answered %d to %s: %s", error.status, self.peer.address, error)
            reply = Answer.refusal(error)
        if isinstance(reply, Answer):
            self._answer(reply, request.line.is_head, request.line.method)
        else:
            self._relay(request, reply)

    def _read_body(self, request: Request) -> None:
        """Raises ``HTTPError`` or ``ClientGone``."""
        server, length = self.connection.server, request.fields.length
        limit, most = server.limits.body, server.retry.max_body
        if length is not None and limit is not None and length > limit:
            raise HTTPError(413, f"a body has at most {limit} bytes here")
        reader = BodyReader(self._receive, b"", length, limit, _ToTheEnd(self))
        if length == 0:
            self._receive()  # the end
        elif (length is None or length <= most) and not request.fields.expects:
            request.body = reader.collect(most)
        request.replayable = reader.done and reader.size <= most
        if not reader.done:
            request.upload = Upload(reader)

    def _receive(self) -> bytes:
        return self.connection.receive(self)

    def _relay(self, request: Request, reply: Reply) -> None:
        """When the target fails within the response, the stream is reset."""
        self._status = reply.head.status
        whole = False
        try:
            whole = self._relay_response(request, reply)
        except TargetError as error:
            target = reply.connection.upstream.target
            log.warning("%s truncated a response: %s", target.url, error)
            self.connection.reset(self)
        finally:
            self._end_upload(request, reply, whole)

    def _relay_response(self, request: Request, reply: Reply) -> bool:
        """True if the target's connection is left exactly behind the response."""
        send, head = self.connection.send, reply.head
        fields: Pairs | None = response(head.status, head.fields, reply.extra)
        if request.line.is_head or head.bodiless:
            send(self, fields, end=True)
            return not reply.rest
        body = ReplyBody(request, reply)
        while not body.ended:
            piece = body.read()
            trailers = name_values(body.trailers) if body.trailers else ()
            send(self, fields, piece, body.ended, trailers)
            fields = None
            self._size += len(piece)
        return body.exact

    def _end_upload(self, request: Request, reply: Reply, whole: bool) -> None:
        upload = request.upload
        if upload and whole:
            whole = upload.finish(0.1) and upload.complete
        if upload and not upload.reader.done:
            self.connection.forget_body(self)
        reply.finish(request, whole)
        if upload:
            upload.finish(_LINGER)

    def _answer(self, answer: Answer, is_head: bool, method: bytes = b"") -> None:
        """The proxy's own answer."""
        self.connection.server.counters.answered(method, answer.status)
        fields = [
            (name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in answer.head
        ]
        head = response(answer.status, tuple(fields))
        self._status, self._size = answer.status, 0
        if is_head or answer.bodiless:
            self.connection.send(self, head, end=True)
        elif isinstance(answer.body, FilePart):
            with answer.body.file:
                self._send_file(head, answer.body)
        else:
            self.connection.send(self, head, answer.body, end=True)
            self._size = len(answer.body)

    def _send_file(self, head: Pairs | None, part: FilePart) -> None:
        part.file.seek(part.offset)
        left = part.length
        if not left:
            self.connection.send(self, head, end=True)
        while left:
            data = part.file.read(min(left, _PIECE))
            if not data:
                log.warning("a file has become shorter while it was sent")
                self.connection.reset(self)
                return
            left -= len(data)
            self.connection.send(self, head, data, end=not left)
            head = None
            self._size += len(data)


class _ToTheEnd:
    """The ``Decoder`` of a body without framing of its own: it ends when nothing more comes."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self.done = False
        self.rest = b""

    @property
    def trailers(self) -> bytes:
        return self._stream.trailers

    def feed(self, data: bytes) -> bytes:
        self.done = not data
        return data
