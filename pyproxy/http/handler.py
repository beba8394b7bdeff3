"""ProxyHandler: one client connection, in one thread.

handle
  serve_request                 until the connection is to be closed
    read_head                   idle wait, then a whole head within `timeouts.header`
    read_body                   kept up to `retry.max_body`, else streamed (Upload)
    server.service(request)     the failover loop, a file, or a redirect
    relay                       head and what came with it in one send, then the rest
"""

import contextlib
import logging
import socket
import socketserver
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import TYPE_CHECKING, TypeVar

from pyproxy import net
from pyproxy.access_format import Entry
from pyproxy.errors import BadProxyHeader, ClientGone, HTTPError, TargetError
from pyproxy.http.answer import Answer, FilePart
from pyproxy.http.body import BodyReader
from pyproxy.http.forward import Reply, Request
from pyproxy.http.message import (
    ReplyHead,
    RequestFields,
    RequestLine,
    connection_line,
    hopeless,
    request_fields,
    request_lines,
)
from pyproxy.http.relay import relay_response
from pyproxy.http.tracing import Make
from pyproxy.http.upload import Upload
from pyproxy.tcp.introduction import addresses_of, introduced
from pyproxy.tcp.proxy_protocol import Addresses
from pyproxy.tcp.relay import Ending, Relay
from pyproxy.tls import NotTLS, ServerTLS, TLSSocket

if TYPE_CHECKING:
    from pyproxy.http.server import ProxyServer

log = logging.getLogger(__name__)

A = TypeVar("A")
R = TypeVar("R")

_RECEIVE = 16384  # bytes asked for at once from an idle client
_BULK = 65536  # the same within a body
_PREFACE = b"PRI * HTTP/2.0"  # how HTTP/2 with prior knowledge starts (RFC 9113, 3.4)
_LINGER = 2.0  # seconds in which a client may still send what nobody reads


class ProxyHandler(socketserver.BaseRequestHandler):
    """One client connection: read a request, get a response, relay it, and again."""

    request: net.Socket
    server: "ProxyServer"

    def setup(self) -> None:
        server = self.server
        self.buffer = b""  # received, not yet used
        self.peer = server.peer(self.client_address)
        self._idle_since = time.monotonic()  # 0.0 while a request is under way
        self._relay: Relay | None = None  # after a 101
        self.served = 0  # requests
        self.protocol: str | None = None  # that TLS has chosen
        self.ended = False  # the server has shut the receiving side while it was idle
        self.start = b""  # of the request that is read, for the access log
        # Of the request before: a client sends the same lines again.
        self._block = b""
        self._minor = -1
        self._fields: RequestFields
        self._fields_sent = b""
        self._make_head: Make | None = None
        self.unread = False  # there may be more to read: a plain close would reset our answer away
        self.broken = False  # the client must not take the end for that of a response
        self.until_close = False  # it would: the body under way has no other end
        self._cut = False  # by ``break_off``
        self.upload: Upload | None = None
        self.lent: memoryview | None = None  # holds the body of the request under way
        self._patience = server.patience
        self._introduced: Addresses | None = None
        if not net.INHERITS_OPTIONS:
            server.set_options(self.request)
        self.keep = server.connections.enter(self)

    @property
    def idle_since(self) -> float:
        """Since when nothing is under way (``time.monotonic()``), or 0.0. A connection that has
        changed to another protocol is only ended when all are."""
        if self._relay and self.server.closing:
            return self._relay.idle_since
        return self._idle_since

    @idle_since.setter
    def idle_since(self, moment: float) -> None:
        self._idle_since = moment

    def handle(self) -> None:
        try:
            if self.keep and self.server.proxy_protocol:
                self.keep = self.introduce()
            if self.keep and self.server.tls:
                self.keep = self.shake_hands(self.server.tls)
            if self.keep and self.protocol == "h2":
                self.serve_http2()
            while self.keep:
                self.serve_request()
        except ClientGone:
            self.broken = True

    def introduce(self) -> bool:
        """Takes the client's address from the PROXY header that a connection begins with; False if
        there is nobody to serve."""
        assert isinstance(self.request, socket.socket)
        try:
            self._introduced = told = introduced(
                self.request, self.server.trusted, self.server.timeouts.header
            )
        except BadProxyHeader as error:
            log.info("closed a connection of %s: PROXY header: %s", self.peer.address, error)
            return False
        self.peer = self.server.peer(told.source)
        self._patience = 0.0  # as the header left it
        self.set_patience(self.server.timeouts.header)
        return True

    @property
    def plain(self) -> socket.socket:
        """The client's socket, below TLS."""
        sock = self.request.plain if isinstance(self.request, TLSSocket) else self.request
        assert isinstance(sock, socket.socket)
        return sock

    @property
    def addresses(self) -> Addresses:
        """Where the client's connection comes from, and where it went to."""
        return self._introduced or addresses_of(self.plain)

    def shake_hands(self, server_tls: ServerTLS) -> bool:
        """TLS, within ``timeouts.header``; False if there is nobody to serve."""
        plain = self.request
        assert isinstance(plain, socket.socket)
        try:
            self.request = secure = server_tls.accept(plain, self.server.timeouts.header)
            self.protocol = secure.protocol
        except NotTLS:
            self.refuse(HTTPError(400, "this port speaks https"))
            return False
        except OSError as error:
            log.debug("no TLS with %s: %s", self.peer.address, net.reason(error))
            return False
        self._patience = 0.0  # as the handshake left it
        self.set_patience(self.server.timeouts.header)
        return True

    def finish(self) -> None:
        try:
            self._end()
            self.request.close()
        finally:
            self.server.connections.leave(self)

    def break_off(self) -> None:
        """Ends it at once, from any thread."""
        if self._relay:
            self._relay.break_off()
        if self.until_close and not self._cut:
            # Its thread resets it, or one that waits in a send is broken off once more.
            self._cut = True
            net.reset_on_close(self.request)
            net.shut(self.request, socket.SHUT_RD)
        else:
            net.shut(self.request)

    def _end(self) -> None:
        # Without an answer to lose, a reset tells the client that its request hasn't been read.
        if self.served and (self.server.closing or self.ended):
            self.unread = self.unread or net.readable(self.request)
        if isinstance(self.request, TLSSocket) and not self.broken:
            self.request.finish()
        if not self.broken and (self.unread or self.buffer):
            self._linger()
        if self.upload and not self.upload.finish(0):
            net.shut(self.request, socket.SHUT_RD)  # the other one would cut TLS off before its end
            self.upload.finish(_LINGER)

    def serve_request(self) -> None:
        try:
            found = self.read_head()
            if found is None:
                self.keep = False
                return
            request = self.read_request(*found)
        except HTTPError as error:
            if self.start == _PREFACE and self.server.http2.prior_knowledge and not self.served:
                self.serve_http2(_PREFACE + b"\r\n\r\n" + self.buffer)
            else:
                self.refuse(error)
            return
        if self.server.access_log is None:
            self.respond(request)
        else:
            self.status, self.size = 499, 0  # until something is answered: the client went first
            try:
                self.respond(request)
            finally:
                self.log_access(request)
        self.served += 1
        if not (self.keep or self.broken or self._relay):
            self.unread = self.unread or net.unread(self.request)

    def serve_http2(self, start: bytes = b"") -> None:
        """Serves the rest of the connection as HTTP/2; ``start`` is what has come of it."""
        from pyproxy.http.http2 import Http2Connection  # only here: h2 is an extra

        self.buffer = b""
        self.keep = False
        self.broken = True  # it ends as HTTP/2 ends
        Http2Connection(self, start).serve()

    def respond(self, request: Request) -> None:
        """Gets the answer to a request, and sends it."""
        fields = request.fields
        try:
            if fields.length or fields.chunked:
                self.read_body(request, fields)
            reply = self.server.service(request)
        except (TargetError, HTTPError) as error:
            log.info("answered %d to %s: %s", error.status, self.peer.address, error)
            self.answer(request, Answer.refusal(error))
        else:
            if isinstance(reply, Answer):
                self.answer(request, reply)
            else:
                self.relay(request, reply)
        finally:
            if self.lent:
                self.server.buffers.give_back(self.lent)
                self.lent = None

    def refuse(self, error: HTTPError) -> None:
        """Answers what is not a request that can be served, and closes."""
        self.unread = True
        log.info("answered %d to %s: %s", error.status, self.peer.address, error)
        self.answer(None, Answer.refusal(error))
        if access_log := self.server.access_log:
            access_log.write(Entry(self.peer.address, self.start, error.status, self.size))

    def log_access(self, request: Request) -> None:
        if access_log := self.server.access_log:  # a reload may have taken it away meanwhile
            access_log.request(request, request.line.line, self.status, self.size)

    def read_head(self) -> tuple[bytes, bytes] | None:
        """The request line and the block of header lines; None when the client is done."""
        buffer = self.buffer
        if not buffer:
            self._idle_since = time.monotonic()
            if self.served:
                # Also in a hurry: the client has been told that it may send another request, and
                # `Connections` gives that one the time to come.
                self.set_patience(self.server.timeouts.keep_alive)
            try:
                buffer = self._first_bytes() or self._last_bytes()
            except OSError:  # its time is over, or the client is gone
                return None
            if not buffer:
                return None
            self._idle_since = 0.0
        line_end = buffer.find(b"\r\n")
        end = buffer.find(b"\r\n\r\n", line_end) if line_end > 0 else -1
        if end < 0:
            buffer, line_end, end = self._rest_of_head(buffer)
        self.start = buffer[:line_end]
        if end > self.server.limits.head:
            raise self._too_long(line_end)
        self.buffer = buffer[end + 4 :]
        return self.start, buffer[line_end + 2 : end + 2]

    def _first_bytes(self) -> bytes:
        """Of a request; none when its time is over. A connection begins with the patience of its
        listening socket, so that a client that sends at once costs no call to change that."""
        try:
            return self.request.recv(_RECEIVE)
        except net.TIMED_OUT:
            pass
        left = self.server.timeouts.header - self._patience
        if not self.served and left > 0:
            self.set_patience(left)
            with contextlib.suppress(*net.TIMED_OUT):
                return self.request.recv(_RECEIVE)
        return b""

    def _last_bytes(self) -> bytes:
        """Before the end of an idle connection, by whomever: what has come while this thread waited
        for the interpreter is still served. ``unread`` doesn't let go of that, as a receive would:
        no other thread goes on between a look that finds nothing and the close."""
        return self.request.recv(_RECEIVE) if net.unread(self.request) else b""

    def _rest_of_head(self, buffer: bytes) -> tuple[bytes, int, int]:
        """Reads on until a head is whole, strictly within ``timeouts.header``."""
        limit = self.server.limits.head
        deadline = time.monotonic() + self.server.timeouts.header
        while True:
            while buffer.startswith(b"\r\n"):  # RFC 9112, 2.2
                buffer = buffer[2:]
            line_end = buffer.find(b"\r\n")
            end = buffer.find(b"\r\n\r\n", line_end) if line_end > 0 else -1
            self.start = buffer[: max(line_end, 0) or 200]
            if end >= 0:
                return buffer, line_end, end
            if len(buffer) > limit:
                raise self._too_long(line_end)
            if hopeless(buffer):
                raise HTTPError(400, "malformed request head")
            left = deadline - time.monotonic()
            if left <= 0:
                raise HTTPError(408, "the request head is too slow")
            self.set_patience(left)
            try:
                data = self.request.recv(_RECEIVE)
            except net.TIMED_OUT:
                raise HTTPError(408, "the request head is too slow") from None
            except OSError as error:
                raise ClientGone(net.reason(error)) from None
            if not data:
                raise ClientGone("closed within a request head")
            buffer += data

    def _too_long(self, line_end: int) -> HTTPError:
        limit = self.server.limits.head
        if line_end < 0 or line_end > limit:
            return HTTPError(414, f"a request line has at most {limit} bytes here")
        return HTTPError(431, f"a request head has at most {limit} bytes here")

    def read_request(self, start: bytes, block: bytes) -> Request:
        """Raises ``HTTPError``."""
        line = request_lines[start]
        if block != self._block or line.minor != self._minor or line.authority:
            self._read_fields(line, block)
        make = self._make_head
        head = make(line.wire) if make else line.wire + self._fields_sent
        return Request(line, self._fields, head, self)

    def _read_fields(self, line: RequestLine, block: bytes) -> None:
        self._minor = -1
        self._fields = fields = request_fields[line.minor][block]
        if len(fields.lines) > self.server.limits.headers:
            raise HTTPError(431, f"at most {self.server.limits.headers} header fields here")
        sent = fields.for_target(self.peer, self.server.own_host, line.authority)
        tracer = self.server.tracer
        self._fields_sent, self._make_head = (
            tracer.prepare(fields, sent) if tracer else (sent, None)
        )
        if line.authority is None:
            self._block, self._minor = block, line.minor

    def read_body(self, request: Request, fields: RequestFields) -> None:
        """Takes a body up to ``retry.max_body`` whole; leaves a longer one to an ``Upload``. Raises
        ``HTTPError`` or ``ClientGone``."""
        self.unread = True  # in case of an error
        limit, most = self.server.limits.body, self.server.retry.max_body
        length = fields.length
        if length is not None and limit is not None and length > limit:
            raise HTTPError(413, f"a body has at most {limit} bytes here")
        came, self.buffer = self.buffer, b""
        if length and len(came) < length <= most and not fields.expects:
            request.body = self._read_whole(came, length)
            self.unread = False
            return
        reader = BodyReader(self.receive, came, length, limit)
        if length and length <= len(came):
            request.body = reader.collect(length)
        elif length is None and not fields.expects:
            request.body = reader.collect(most)
        elif came:
            request.body = reader.frame(reader.read())
            if reader.done:
                request.body += reader.ending()
        request.replayable = reader.done and reader.size <= most
        if reader.done:
            self.buffer = reader.rest
        else:
            request.upload = self.upload = Upload(reader)
        self.unread = False

    def _read_whole(self, came: bytes, length: int) -> memoryview:
        """A body of known length, in a lent buffer: allocating one costs more than to copy it."""
        if length <= net.Buffers.SIZE:
            self.lent = self.server.buffers.take()
        body = (self.lent or memoryview(bytearray(length)))[:length]
        at = len(came)
        body[:at] = came
        with contextlib.suppress(OSError):  # most often the rest has come as well
            at += self.request.recv_into(body[at:], 0, net.AT_ONCE)
        while at < length:
            at += self._received(self.request.recv_into, body[at:])
        return body

    def receive(self) -> bytes:
        """The next bytes of a body. Raises ``HTTPError`` 408 or ``ClientGone``."""
        return self._received(self.request.recv, _BULK)

    def _received(self, call: Callable[[A], R], argument: A) -> R:
        self.set_patience(self.server.timeouts.read)
        try:
            received = call(argument)
        except net.TIMED_OUT:
            raise HTTPError(408, "the request body is too slow") from None
        except OSError as error:
            raise ClientGone(net.reason(error)) from None
        if not received:
            raise ClientGone("closed within a request body")
        return received

    def send(self, data: bytes | memoryview) -> None:
        """Raises ``ClientGone``, also when the client takes nothing for ``timeouts.send``."""
        try:
            self.request.sendall(data)
        except OSError as error:
            raise ClientGone(net.reason(error)) from None

    def set_patience(self, seconds: float) -> None:
        """How long the client may send nothing from now on."""
        if seconds != self._patience:
            self._patience = seconds
            net.set_receive_timeout(self.request, seconds)

    def check_client(self) -> None:
        """Raises ``ClientGone`` if the client no longer waits for an answer."""
        if self.server.over or (not self.ended and net.hung_up(self.request)):
            raise ClientGone("closed while it waited")

    def stays_open(self, request: Request) -> bool:
        """Whether another request may follow the answer to this one."""
        if upload := request.upload:
            if upload.reader.done:
                self.buffer = upload.reader.rest  # of the next request
            else:
                self.unread = True
        if self.server.hurry and self.server.connections.makes_room(self):
            return False
        return request.fields.keep_alive and not self.unread and not self.ended

    def relay_interim(self, request: Request, head: ReplyHead) -> None:
        """Passes a 1xx on, but not to HTTP/1.0 (RFC 9110, 15.2)."""
        if request.line.minor:
            self.send(head.ready)

    def relay(self, request: Request, reply: Reply) -> None:
        """Sends the response on. From here on the client has seen bytes: when the target fails,
        the connection ends so that the client sees the truncation."""
        head, rest = reply.head, reply.rest
        if head.status == 101:
            self.tunnel(request, reply)
            return
        self.keep = keep = self.stays_open(request)
        self.status, self.size = head.status, 0
        if (
            head.length == len(rest)
            and keep
            and not reply.extra
            and request.line.minor
            and not (request.line.is_head or head.bodiless or request.upload)
        ):
            # All of it came at once, as small answers do: one send, nothing else to decide.
            try:
                self.send(head.ready + rest)
            finally:  # behind the answer, since the client waits for that
                self.size = len(rest)
                reply.finish(request, True)
            return
        whole = False
        try:
            whole = relay_response(self, request, reply)
        except TargetError as error:
            self.keep = False
            self.broken = True
            target = reply.connection.upstream.target
            log.warning("%s truncated a response: %s", target.url, error)
        finally:
            upload = request.upload
            if whole and upload:
                whole = upload.finish(0.1) and upload.complete
            reply.finish(request, whole)

    def tunnel(self, request: Request, reply: Reply) -> None:
        """After a 101 the bytes are another protocol's (RFC 9110, 7.8): they go both ways as they
        come, until both sides have ended."""
        self.keep = False
        self.status, self.size = 101, 0
        early, self.buffer = self.buffer, b""
        try:
            self.send(reply.head.kept + reply.extra + b"\r\n")
            self._relay = Relay(
                self.request,
                reply.connection.sock,
                early,
                reply.rest,
                idle=reply.connection.upstream.timeouts.idle,
                buffers=self.server.buffers,
            )
            relayed = self._relay.run()
            self.size, self.broken = relayed.to_client, relayed.ending is Ending.RESET
        finally:
            reply.finish(request, False)

    def answer(self, request: Request | None, answer: Answer) -> None:
        """The proxy's own answer; to ``request``, or to something that isn't one."""
        self.keep = request is not None and self.stays_open(request)
        minor = request.line.minor if request else 1
        lines = [f"HTTP/1.1 {answer.status} {_phrase(answer.status)}"]
        lines += [f"{name}: {value}" for name, value in answer.head]
        head = "\r\n".join(lines).encode("latin-1") + b"\r\n" + connection_line(minor, self.keep)
        self.status, self.size = answer.status, 0
        self.server.counters.answered(request.line.method if request else b"", answer.status)
        if answer.bodiless or (request is not None and request.line.is_head):
            self.send(head + b"\r\n")
        elif isinstance(answer.body, FilePart):
            with answer.body.file:
                self.send_file(head + b"\r\n", answer.body)
        else:
            self.send(head + b"\r\n" + answer.body)
            self.size = len(answer.body)

    def send_file(self, head: bytes, part: FilePart) -> None:
        """A head and a part of a file, which the kernel copies by itself where it can."""
        try:
            for sent in net.send_file(self.request, head, part.file, part.offset, part.length):
                self.size += sent
        except OSError as error:
            raise ClientGone(net.reason(error)) from None
        if self.size < part.length:
            log.warning("a file has become shorter while it was sent")
            self.keep = False
            self.broken = True

    def _linger(self) -> None:
        """Lets the client read the answer before the close of unread bytes resets it."""
        net.shut(self.request, socket.SHUT_WR)
        deadline = time.monotonic() + _LINGER
        try:
            while (left := deadline - time.monotonic()) > 0:
                self.set_patience(left)
                if not self.plain.recv(_BULK):  # what nobody reads needn't be decrypted
                    return
        except OSError:
            return


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""
