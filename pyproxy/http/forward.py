"""The failover loop: pick a target, attempt, evict the failed one, try the next.

request -> key -> pick -> attempt -> reply
                   ^         |
                   |   TargetError: count it, evict
                   +---------+   (only if a retry is safe)
"""

import time
from collections.abc import Mapping
from typing import Protocol

from pyproxy.balancing.pool import TargetPool
from pyproxy.balancing.target import Target
from pyproxy.errors import (
    BadReply,
    EmptyRing,
    NobodyLeft,
    NoReply,
    StaleConnection,
    TargetError,
)
from pyproxy.http.message import ReplyHead, RequestFields, RequestLine
from pyproxy.http.upload import Upload
from pyproxy.http.upstream import TargetConnection, Upstream
from pyproxy.settings import Retry


class Client(Protocol):
    """What the loop needs of the connection that asks."""

    def check_client(self) -> None:
        """Raises ``ClientGone`` if nobody waits for the answer any more."""

    def relay_interim(self, request: "Request", head: ReplyHead) -> None:
        """Passes a 1xx on."""


class Request:
    """What is asked of a target. Attempts read it and never change it, but for their own story:
    ``target``, ``attempts``, ``started``."""

    __slots__ = (
        "answered",
        "attempts",
        "body",
        "client",
        "fields",
        "head",
        "line",
        "replayable",
        "started",
        "target",
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
        self.target: Target | None = None
        self.attempts = 0
        self.started = 0.0  # of the last attempt, time.monotonic()
        self.answered = 0.0  # when its response head came

    def watch(self) -> float:
        """While a target is silent: see ``upstream.Watch``. While the body is still being sent,
        the target's time to answer doesn't run."""
        upload = self.upload
        if upload and upload.running:
            return time.monotonic()
        if upload and upload.error:
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
    """A response head, what came behind it, and the connection with the rest."""

    __slots__ = ("connection", "head", "rest", "upstream")

    def __init__(
        self, head: ReplyHead, rest: bytes, connection: TargetConnection, upstream: Upstream
    ) -> None:
        self.head = head
        self.rest = rest
        self.connection = connection
        self.upstream = upstream


class Forwarder:
    """Gets the response to a request from one of a pool's targets. Called from many threads."""

    def __init__(
        self, pool: TargetPool, upstreams: Mapping[Target, Upstream], retry: Retry
    ) -> None:
        self.pool = pool
        self._upstreams = upstreams
        self._retry = retry
        self._statuses = frozenset(retry.statuses)

    def __call__(self, request: Request) -> Reply:
        """A reply with a final status. Raises ``NobodyLeft``, ``TargetError``, ``ClientGone``, or
        ``HTTPError`` when the body turns out bad."""
        pool = self.pool
        key = pool.next_key()
        tried: tuple[Target, ...] = ()
        failure: TargetError | None = None
        while True:
            try:
                target = pool.pick(key, tried)
            except EmptyRing:
                if failure is None or not len(pool.live):
                    raise NobodyLeft("no target is left") from failure
                raise failure from None
            request.target = target
            request.attempts += 1
            try:
                reply = self._attempt(self._upstreams[target], request)
            except TargetError as error:
                if request.upload and request.upload.error:
                    raise request.upload.error from None  # it was the client
                if error.counts:
                    pool.failed(target, str(error))
                tried, failure = (*tried, target), error
                if error.sent and not self._repeatable(request):
                    raise
                if request.attempts >= self._retry.attempts and len(pool.live):
                    raise  # enough for one request; when nobody is left, that is the answer
                continue
            if self._statuses and reply.head.status in self._statuses:
                pool.failed(target, f"answered {reply.head.status}")
                tried = (*tried, target)
                if self._repeatable(request) and self._another(request, tried):
                    reply.connection.close()
                    continue
            elif target.fails:
                pool.succeeded(target)
            return reply

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
        connection = upstream.take(careful=not again)
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
                connection.send(request.head, request.body)
            except TargetError:
                # It may have answered before it closed, as a server that refuses a long body does.
                return self._receive(connection, upstream, request)
            if request.upload:
                request.upload.start(connection)
            return self._receive(connection, upstream, request)
        except BaseException:
            request.drop(connection)
            raise

    def _receive(self, connection: TargetConnection, upstream: Upstream, request: Request) -> Reply:
        head, rest = connection.receive_head(request.watch)
        while head.status < 200:
            if head.status == 101:
                raise BadReply("switched protocols unasked")
            request.client.relay_interim(request, head)
            head, rest = connection.receive_head(request.watch, rest)
        request.answered = time.monotonic()
        return Reply(head, rest, connection, upstream)
