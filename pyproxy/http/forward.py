"""The failover loop: pick a target, attempt, evict the failed one, try the next.

request -> key -> pick -> attempt -> reply
                   ^         |
                   |   TargetError: count it, evict
                   +---------+   (only if a retry is safe)
"""

import time
from email.utils import formatdate
from typing import Protocol
from urllib.parse import unquote_plus

from pyproxy.balancing.pool import TargetPool
from pyproxy.balancing.sticky import Sticky
from pyproxy.balancing.target import Target
from pyproxy.errors import (
    AllBusy,
    BadReply,
    EmptyRing,
    NobodyLeft,
    NoReply,
    StaleConnection,
    TargetError,
)
from pyproxy.http.message import Peer, ReplyHead, RequestFields, RequestLine, without_cookie
from pyproxy.http.upload import Upload
from pyproxy.http.upstream import TargetConnection, Upstream, Upstreams
from pyproxy.sections import Queue, Retry, Unavailable
from pyproxy.tcp.proxy_protocol import Addresses, serialise
from pyproxy.turns import Turn, turns
from pyproxy.waiting import wait_for_target

_SMALL = 8192  # bytes that a connection on which nothing is under way takes at once


class Client(Protocol):
    """What the loop needs of the connection that asks."""

    peer: Peer

    @property
    def addresses(self) -> Addresses:
        """Where its connection comes from, and where it went to."""

    def check_client(self) -> None:
        """Raises ``ClientGone`` if nobody waits for the answer any more."""

    def relay_interim(self, request: "Request", head: ReplyHead) -> None:
        """Passes a 1xx on."""


def cookie_in(field: str, name: str) -> str | None:
    """A cookie's value (RFC 6265, 4.2.1, as browsers send it)."""
    for pair in field.split(";"):
        key, equals, value = pair.strip(" \t").partition("=")
        if equals and key == name:
            return value
    return None


def parameter_in(uri: str, name: str) -> str | None:
    """A parameter of the query, decoded."""
    for pair in uri.partition("?")[2].split("&"):
        key, _, value = pair.partition("=")
        if unquote_plus(key) == name:
            return unquote_plus(value)
    return None


class Request:
    """What is asked of a target. Attempts read it and never change it, but for their own story:
    ``number``, ``turn``, ``target``, ``attempts``, ``started``. To policies it is ``Asked``."""

    __slots__ = (
        "answered",
        "attempts",
        "body",
        "client",
        "fields",
        "head",
        "line",
        "number",
        "replayable",
        "started",
        "target",
        "turn",
        "upload",
    )

    def __init__(
        self,
        line: RequestLine,
        fields: RequestFields,
        head: bytes,
        client: Client,
    ) -> None:
        self.line = line
        self.fields = fields
        self.head = head  # as it goes to a target
        # As it goes to a target: all of it, or what stands before the upload.
        self.body: bytes | memoryview = b""
        self.upload: Upload | None = None
        self.replayable = True
        self.client = client
        self.number = -1  # in its pool, which sets it
        self.turn: Turn | None = None  # in a crush, until it is on its way
        self.target: Target | None = None
        self.attempts = 0
        self.started = 0.0  # of the last attempt, time.monotonic()
        self.answered = 0.0  # when its response head came

    @property
    def address(self) -> str:
        """The client's."""
        return self.client.peer.address

    @property
    def method(self) -> str:
        return self.line.method.decode("ascii")

    @property
    def uri(self) -> str:
        """Path and query, as they go to a target."""
        return self.line.path.decode("ascii")

    @property
    def host(self) -> str:
        """In lower case, without the port; empty if the client named none."""
        host = (self.line.authority or self.fields.host or b"").decode("ascii").lower()
        name, bracket, _ = host.partition("]")  # [::1]:8000
        return name + bracket if bracket else host.partition(":")[0].rstrip(".")

    @property
    def id(self) -> bytes | None:
        """The X-Request-ID that goes to a target."""
        start = len(self.line.wire)
        if self.head.startswith(b"X-Request-ID:", start):  # where ``tracing`` puts it
            return self.head[start + 13 : self.head.index(b"\r\n", start)].strip()
        return self.fields.get(b"x-request-id")

    def header(self, name: str) -> str | None:
        """A field's value, its name in any case; of several lines, all (RFC 9110, 5.3)."""
        wanted = name.lower().encode("latin-1", "replace")
        values = [value for known, value, _ in self.fields.lines if known == wanted]
        joined = b"; " if wanted == b"cookie" else b", "
        return joined.join(values).decode("latin-1") if values else None

    def cookie(self, name: str) -> str | None:
        return cookie_in(self.header("cookie") or "", name)

    def query(self, name: str) -> str | None:
        """A parameter of the query, decoded."""
        return parameter_in(self.uri, name)

    def watch(self) -> float:
        """While a target is silent: see ``upstream.Watch``. While the body is still being sent,
        the target's time to answer doesn't run. Within a response it raises ``ClientGone`` only."""
        upload = self.upload
        if upload and upload.running:
            return time.monotonic()
        if upload and upload.error and not self.answered:  # else its end ends the response as well
            raise upload.error
        self.client.check_client()
        return upload.ended_at if upload and upload.ended_at else self.started

    def drop(self, connection: TargetConnection) -> None:
        """Closes a connection that this request has used."""
        if self.upload:
            self.upload.drop(connection)
        else:
            connection.close()


class Reply:
    """A response head, what came behind it, and the connection with the rest. The target counts
    the request as under way until ``finish``."""

    __slots__ = ("connection", "extra", "head", "pool", "rest", "taken")

    def __init__(
        self, head: ReplyHead, rest: bytes, connection: TargetConnection, pool: TargetPool
    ) -> None:
        self.head = head
        self.extra = b""  # lines that the proxy adds to the head
        self.rest = rest
        self.connection = connection
        self.pool = pool
        self.taken = True  # the request, but for an upload

    def finish(self, request: Request, reusable: bool) -> None:
        """``reusable``: nothing more is under way on the connection."""
        upstream = self.connection.upstream
        if reusable and self.taken and self.head.keep_alive:
            upstream.give_back(self.connection)
        else:
            request.drop(self.connection)
        seconds = request.answered - request.started
        self.pool.release(
            upstream.target, seconds, self.head.status, request.answered, request.line.method
        )


class Forwarder:
    """Gets the response to a request from one of a pool's targets. Called from many threads."""

    def __init__(
        self,
        pool: TargetPool,
        upstreams: Upstreams,
        retry: Retry,
        queue: Queue,
        unavailable: Unavailable,
        sticky: Sticky | None = None,
        send_proxy: int | None = None,
        *,
        wishes: bool = False,
    ) -> None:
        """``send_proxy`` is the version of the PROXY header that connections begin with. They then
        belong to one client, and ``upstreams`` must not keep them for others. ``wishes``: the
        pool's policy is a user's function."""
        self.pool = pool
        self.upstreams = upstreams
        self._retry = retry
        self._queue = queue
        self._unavailable = unavailable
        self._statuses = frozenset(retry.statuses)
        self._sticky = sticky
        self._send_proxy = send_proxy
        self._wishes = wishes

    def __call__(self, request: Request) -> Reply:
        """A reply with a final status. Raises ``NobodyLeft``, ``Overloaded``, ``TargetError``,
        ``ClientGone``, or ``HTTPError`` when the body turns out bad."""
        try:
            sticky = self._sticky
            reply = self._bind(request, sticky) if sticky else self._forward(request)
        finally:
            if request.turn:
                request.turn.end()
        if not reply.head.dated:  # RFC 9110, 6.6.1
            reply.extra += f"Date: {formatdate(usegmt=True)}\r\n".encode()
        return reply

    def _bind(self, request: Request, sticky: Sticky) -> Reply:
        """Asks the client's own target; gives it a cookie, if it has none that holds."""
        own = sticky.find(request, self.pool.targets)
        request.head = without_cookie(request.head, sticky.cookie.encode())
        reply = self._forward(request, own)
        target = request.target
        if target and target is not own and not (own and self.pool.may_serve(own)):
            reply.extra = sticky.lines(target)
        return reply

    def _forward(self, request: Request, own: Target | None = None) -> Reply:
        pool = self.pool
        tried: tuple[Target, ...] = ()
        failure: TargetError | None = None
        while True:
            try:
                target = self._pick(request, tried, own)
            except EmptyRing:
                if failure is None or not pool.live:
                    unavailable = self._unavailable
                    raise NobodyLeft(unavailable.status, unavailable.body) from failure
                raise failure from None
            request.target = target
            request.attempts += 1
            try:
                reply = self._attempt(self.upstreams[target], request)
            except TargetError as error:
                pool.release(target)
                if request.upload and request.upload.error:
                    raise request.upload.error from None  # it was the client
                if error.counts:
                    pool.failed(target, str(error), error.kind)
                tried, failure = (*tried, target), error
                if error.sent and not self._repeatable(request):
                    raise
                if request.attempts >= self._retry.attempts and pool.live:
                    raise  # enough for one request; when nobody is left, that is the answer
                pool.retried(target, error.kind)
                continue
            except BaseException:
                pool.release(target)
                raise
            if self._statuses and reply.head.status in self._statuses:
                pool.failed(target, f"answered {reply.head.status}", "status")
                tried = (*tried, target)
                if self._repeatable(request) and self._another(request, tried):
                    reply.finish(request, False)
                    pool.retried(target, "status")
                    continue
            elif target.fails:
                pool.succeeded(target)
            return reply

    def _pick(self, request: Request, tried: tuple[Target, ...], wish: Target | None) -> Target:
        pool = self.pool
        if wish is None and self._wishes:
            wish = pool.wish(request, tried, time.monotonic())
        if turns.crush:
            request.turn = turns.take()
        request.started = time.monotonic()
        try:
            return pool.pick(request, tried, request.started, wish)
        except AllBusy:
            if request.turn:
                request.turn.end()
            return self._wait(request, tried, wish)

    def _wait(self, request: Request, tried: tuple[Target, ...], wish: Target | None) -> Target:
        target = wait_for_target(
            self.pool, request, tried, wish, self._queue.timeout, request.client.check_client
        )
        request.started = time.monotonic()
        return target

    def _repeatable(self, request: Request) -> bool:
        """Whether a request that may have reached one target may go to another."""
        return request.replayable and (request.line.idempotent or self._retry.non_idempotent)

    def _another(self, request: Request, tried: tuple[Target, ...]) -> bool:
        if request.attempts >= self._retry.attempts:
            return False
        return any(target not in tried for target in self.pool.live)

    def _attempt(self, upstream: Upstream, request: Request) -> Reply:
        """One target's answer. A kept-alive connection that it had closed meanwhile is no failure:
        the same target is asked again on a fresh one, if the request can be sent twice."""
        again = self._repeatable(request)
        hello = self._send_proxy and serialise(self._send_proxy, request.client.addresses)
        connection = upstream.take(careful=not again)
        if connection is None:
            if request.turn:
                request.turn.end()
            connection = upstream.connect(hello or b"")
        try:
            return self._exchange(connection, upstream, request)
        except NoReply as error:
            if not connection.reused:
                raise
            if not again:
                raise StaleConnection(str(error)) from None
        return self._exchange(upstream.connect(), upstream, request)

    def _exchange(
        self, connection: TargetConnection, upstream: Upstream, request: Request
    ) -> Reply:
        request.started = time.monotonic()
        try:
            try:
                self._send(connection, request)
            except TargetError:
                # It may have answered before it closed, as a server that refuses a long body does.
                # If it hasn't closed, it would take the next request for the rest of this one.
                reply = self._receive(connection, upstream, request)
                reply.taken = False
                return reply
            if request.upload:
                request.upload.start(connection)
            return self._receive(connection, upstream, request)
        except BaseException:
            request.drop(connection)
            raise

    def _send(self, connection: TargetConnection, request: Request) -> None:
        """And its turn ends, before what may wait for the target. If nothing may, and it took long
        all the same, it was the interpreter that it waited for."""
        turn = request.turn
        if turn and len(request.head) + len(request.body) > _SMALL:
            turn.end()
        try:
            connection.send(request.head, request.body)
        finally:
            if turn:
                turn.end()
        if not (turn or request.body) and time.monotonic() - request.started > turns.LATE:
            turns.begin()

    def _receive(self, connection: TargetConnection, upstream: Upstream, request: Request) -> Reply:
        head, rest = connection.receive_head(request.watch)
        while head.status < 200:
            if head.status == 101:
                if not request.fields.upgrade or b"\r\nUpgrade: " not in head.ready:
                    raise BadReply("switched protocols unasked")
                break
            request.client.relay_interim(request, head)
            head, rest = connection.receive_head(request.watch, rest)
        request.answered = time.monotonic()
        return Reply(head, rest, connection, self.pool)
