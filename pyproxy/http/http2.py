"""Http2Connection: a client's connection that speaks HTTP/2 (RFC 9113), through the h2 library.

serve                         the connection's own thread, until the end
  _receive                      waits for frames; looks at what is due
  _take                         Frames.look (what h2 leaves to us), then h2, then its events:
    _on_request                   a stream, which waits for a thread
    _on_data, _on_reset, …        what the stream's thread waits for
  _end                          tells the streams, waits for their threads, says GOAWAY
_work                         such a thread: serves one stream after the other (Stream.serve)
  send, receive                 what a stream asks for, as flow control lets it go

One lock protects h2's state, the streams and the socket. Nobody waits while holding it: the socket
doesn't block, and who finds it full polls without the lock. So whatever one stream waits for, the
others go on, and the connection's own thread always reads. Memory: of what comes, 1.5 MiB at most,
and up to 32 MiB more (of 256 MiB that a server's connections share) while uploads wait for their
targets; of what goes, a piece for each stream.
"""

import contextlib
import functools
import logging
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import hpack
from h2.settings import SettingCodes, Settings
from hyperframe.frame import GoAwayFrame, SettingsFrame

from pyproxy import net
from pyproxy.errors import ClientGone, ConnectionFault, HTTPError
from pyproxy.http.http2_fields import Pairs
from pyproxy.http.http2_frames import PROTOCOL_ERROR, RESET, Frames
from pyproxy.http.http2_stream import Stream
from pyproxy.tls import Duplex

if TYPE_CHECKING:
    from pyproxy.http.handler import ProxyHandler

log = logging.getLogger(__name__)

# RFC 9113, 7
_NO_ERROR = 0
_INTERNAL_ERROR = 2
_REFUSED_STREAM = 7
_CANCEL = 8

_RECEIVE = 65536  # bytes asked for at once; a TLS record has less, so that none is left behind
_STREAM_WINDOW = 262144  # bytes of a body that a client may send before we read them
_WINDOW = 1048576  # the same for all of a connection's streams, to begin with
_MORE = 128  # windows of streams that it may be larger by
_AT_ONCE = 65536  # bytes put into frames before the kernel takes them
_LARGEST_FRAME = 16384  # sent, whatever the client allows: others want their turn
_LARGEST_REMEMBERED = 2048  # bytes of values in a response head that is compressed once
_NO_TABLE = b"\x20"  # a dynamic table of no bytes (RFC 7541, 6.3)
_TICK = 0.5  # seconds between looks at the server's hurry while streams are under way
_IDLE_THREAD = 10.0  # seconds for which a thread waits for another stream
_LOOK = 0.05  # seconds between looks at what still comes where the receiving side is shut
_LINGER = 2.0  # seconds in which a client may take the GOAWAY, and send what nobody reads


class _Encoder(hpack.Encoder):
    """Compresses without a memory of its own, so that a response head seen before costs one
    look-up, a client can't make us keep a large table, and no answer tells of another."""

    def __init__(self) -> None:
        super().__init__()
        self._begun = False

    @property
    def header_table_size(self) -> int:
        return 0

    @header_table_size.setter
    def header_table_size(self, size: int) -> None:
        """What the client allows is more than what is used."""

    def encode(self, headers: Iterable[Any], huffman: bool = True) -> bytes:
        start, self._begun = b"" if self._begun else _NO_TABLE, True
        fields = tuple(headers)
        small = sum(len(value) for _, value in fields) <= _LARGEST_REMEMBERED
        return start + (_known if small else _compressed)(fields)


def _compressed(fields: Pairs) -> bytes:
    encoder = hpack.Encoder()
    encoder.header_table_size = 0
    return encoder.encode(fields).removeprefix(_NO_TABLE)


_known = functools.lru_cache(maxsize=1024)(_compressed)


class _H2(h2.connection.H2Connection):
    MAX_CLOSED_STREAMS = 1000  # remembered


def _h2_connection(head_limit: int) -> _H2:
    """Header fields are checked in ``http2_fields``, where a bad one costs its stream and not the
    connection; so is the number of streams."""
    connection = _H2(
        h2.config.H2Configuration(
            client_side=False,
            validate_inbound_headers=False,
            normalize_inbound_headers=False,
            validate_outbound_headers=False,
            normalize_outbound_headers=False,
        )
    )
    connection.local_settings = Settings(
        client=False,
        initial_values={
            SettingCodes.INITIAL_WINDOW_SIZE: _STREAM_WINDOW,
            SettingCodes.MAX_CONCURRENT_STREAMS: 2**31 - 1,
        },
    )
    connection.encoder = _Encoder()
    connection.decoder.max_header_list_size = head_limit
    connection.initiate_connection()
    connection.clear_outbound_data_buffer()  # our own SETTINGS tell other limits than h2 enforces
    return connection


class Http2Connection:
    """Serves the connection that a handler has begun, to its end. The handler is what
    ``Connections`` knows; its socket is a plain one, or TLS with the handshake done."""

    def __init__(self, handler: "ProxyHandler", start: bytes = b"") -> None:
        """``start`` is what has been received of it already."""
        self.handler = handler
        self.server = handler.server
        self._spare = self.server.stream_threads
        self._most_streams = self.server.http2.max_streams  # told the client: a reload changes none
        self._more = 0  # windows of streams by which the connection's is larger
        self.peer = handler.peer
        self.lock = threading.Lock()
        handler.idle_since = time.monotonic()
        self._start = start
        self._socket = Duplex(handler.request)
        # A section within `limits.head` is judged by itself; one far above ends the connection.
        most = 4 * self.server.limits.head
        self._frames = Frames(most, time.monotonic())
        self._h2 = _h2_connection(most)
        self._out = bytearray()  # frames that the kernel hasn't taken yet
        self._moved = 0.0  # when it took some last, or began to owe it
        self._streams: dict[int, Stream] = {}  # until their threads are done with them
        self._new: list[Stream] = []  # of the frames just received
        self._queue: queue.SimpleQueue[Stream | None] = queue.SimpleQueue()  # None: the end
        self._threads = 0
        self._fewer = threading.Condition(self.lock)  # threads, or streams
        self._last: int | None = None  # the last stream to be served: GOAWAY has been sent
        self._over = False  # nothing more is received or sent
        self._faulty = False  # the client has broken the protocol
        self._events: dict[type, Callable[[Any], None]] = {
            h2.events.RequestReceived: self._on_request,
            h2.events.DataReceived: self._on_data,
            h2.events.StreamEnded: self._on_end,
            h2.events.TrailersReceived: self._on_trailers,
            h2.events.StreamReset: self._on_reset,
            h2.events.WindowUpdated: self._on_window,
            h2.events.RemoteSettingsChanged: self._on_settings,
        }

    # The connection's own thread.

    def serve(self) -> None:
        try:
            self._say_settings()
            if self._start:
                self._take(self._start)
            while self._goes_on():
                data = self._receive()
                if data:
                    self._take(data)
        except ConnectionFault as fault:
            log.info("ended the HTTP/2 connection of %s: %s", self.peer.address, fault)
            self._faulty = True
            with self.lock:
                self._say_goodbye(fault.code, str(fault))
        except OSError as error:
            log.debug("lost %s: %s", self.peer.address, net.reason(error))
        finally:
            self._end()

    def _say_settings(self) -> None:
        frame = SettingsFrame(0)
        frame.settings = {
            SettingCodes.MAX_CONCURRENT_STREAMS: self._most_streams,
            SettingCodes.INITIAL_WINDOW_SIZE: _STREAM_WINDOW,
            SettingCodes.MAX_HEADER_LIST_SIZE: self.server.limits.head,
        }
        with self.lock:
            self._put(frame.serialize())
            self._h2.increment_flow_control_window(_WINDOW - 65535)
            self._flush()

    def _goes_on(self) -> bool:
        with self.lock:
            used = self.handler.served or self._streams
            # Asked once: it would be counted again and again as one that leaves, and no other be
            # asked while its streams take their time.
            hurry = self.server.hurry and used and self._last is None
            if hurry and self.server.connections.makes_room(self.handler):
                self._say_goodbye(_NO_ERROR, "")
            leaving = self._last is not None or self._frames.going
            return not self._over and not (leaving and not self._streams)

    def _receive(self) -> bytes | None:
        """Waits for bytes until something is due, or for a tick. Raises ``ConnectionFault`` when
        the client is too late."""
        now = time.monotonic()
        left = self._due() - now
        if left <= 0:
            return self._too_late()
        self._socket.wait(left, len(self._out) < _AT_ONCE, bool(self._out))
        with self.lock:
            if self._out:
                self._flush()
            if self._over or len(self._out) >= _AT_ONCE:
                return None
            data = self._socket.receive(_RECEIVE)
            if data is not None and not data:
                self._hung_up()
            return data

    def _due(self) -> float:
        """When to look again, at the latest."""
        timeouts, since = self.server.timeouts, self._frames.since
        due = []
        if self._out:
            due.append(self._moved + timeouts.send)
        if since is not None:
            due.append(since + timeouts.header)
        if self._streams:
            due.append(time.monotonic() + _TICK)
        else:
            due.append((self.handler.idle_since or time.monotonic()) + timeouts.keep_alive)
        return min(due)

    def _too_late(self) -> bytes | None:
        """What has come all the same on an idle connection, while this thread waited for the
        interpreter."""
        now, timeouts, since = time.monotonic(), self.server.timeouts, self._frames.since
        with self.lock:
            if self._out and now >= self._moved + timeouts.send:
                self._break("the client takes nothing")
            elif since is not None and now >= since + timeouts.header:
                raise ConnectionFault(PROTOCOL_ERROR, "too slow")
            elif not self._streams:
                sock = self.handler.request
                if net.unread(sock) and (data := self._socket.receive(_RECEIVE)):
                    return data
                self._say_goodbye(_NO_ERROR, "")
        return None

    def _hung_up(self) -> None:
        """The end of what the client sends; or the server has ended an idle connection, on which
        something has still come."""
        if self.handler.ended and not (self._frames.going or self.server.over):
            self._say_goodbye(_NO_ERROR, "")
            if self._streams and not self._over:
                self._fewer.wait(_LOOK)  # they may need what still comes: windows, and bodies
                return
        self._over = True

    def _take(self, data: bytes) -> None:
        """Raises ``ConnectionFault``."""
        with self.lock:
            data = self._frames.look(data, time.monotonic())
            try:
                for event in self._h2.receive_data(data):
                    if act := self._events.get(type(event)):
                        act(event)
            except h2.exceptions.ProtocolError as error:
                self._h2.clear_outbound_data_buffer()  # a GOAWAY, but not always
                raise ConnectionFault(int(error.error_code), str(error)) from None
            self._widen()
            self._flush()
            self._frames.check()
            start = self._threads_wanted()
            new, self._new = self._new, []
        for stream in new:
            self._queue.put(stream)
        for _ in range(start):
            self._start_thread()

    def _on_request(self, event: h2.events.RequestReceived) -> None:
        number = event.stream_id
        assert number
        stream = Stream(self, number, tuple(event.headers or ()), event.stream_ended is not None)
        if self._last is not None and number > self._last:
            self._reset(number, _REFUSED_STREAM)
            return
        most = self._most_streams
        if len(self._streams) >= most:
            # Threads may still be busy with streams that the client has reset.
            alive = sum(1 for one in self._streams.values() if not (one.gone or one.finished))
            if alive >= most or len(self._streams) >= 2 * most:
                self._frames.spend(RESET, time.monotonic())
                self._reset(number, _REFUSED_STREAM)
                return
        self.handler.idle_since = 0.0
        self._streams[number] = stream
        self._new.append(stream)

    def _on_data(self, event: h2.events.DataReceived) -> None:
        number, size, data = event.stream_id or 0, event.flow_controlled_length or 0, event.data
        stream = self._streams.get(number)
        if not data or stream is None or stream.gone or stream.finished:
            self._acknowledge(number, size)
            return
        self._acknowledge(number, size - len(data))  # the padding, which nobody reads
        stream.unacknowledged += len(data)
        stream.body += data
        stream.received += len(data)
        stream.wake()

    def _widen(self) -> None:
        """Uploads that wait for their targets, or for a thread, may fill the connection's window:
        then it grows, so that others go on."""
        if (
            self._h2.inbound_flow_control_window < _STREAM_WINDOW
            and self._more < _MORE
            and self.server.stream_windows.acquire(blocking=False)
        ):
            self._more += 1
            self._h2.increment_flow_control_window(_STREAM_WINDOW)

    def _on_trailers(self, event: h2.events.TrailersReceived) -> None:
        self._ended(event.stream_id, tuple(event.headers or ()))

    def _on_end(self, event: h2.events.StreamEnded) -> None:
        self._ended(event.stream_id, ())

    def _ended(self, number: int | None, trailers: Pairs) -> None:
        stream = self._streams.get(number or 0)
        if stream is None or stream.ended or stream.gone:
            return
        try:
            stream.end(trailers)
        except HTTPError as error:
            log.info("reset a stream of %s: %s", self.peer.address, error)
            self._frames.spend(RESET, time.monotonic())
            self._reset(stream.number, PROTOCOL_ERROR)
            stream.lose(str(error))

    def _on_reset(self, event: h2.events.StreamReset) -> None:
        if stream := self._streams.get(event.stream_id or 0):
            stream.lose("the client has reset the stream")

    def _on_window(self, event: h2.events.WindowUpdated) -> None:
        if event.stream_id:
            if stream := self._streams.get(event.stream_id):
                stream.wake()
        else:
            self._wake_all()

    def _on_settings(self, event: h2.events.RemoteSettingsChanged) -> None:
        self._wake_all()

    def _wake_all(self) -> None:
        for stream in self._streams.values():
            stream.wake()

    def _end(self) -> None:
        with self.lock:
            self._over = True
            for stream in self._streams.values():
                stream.lose("the connection has ended")
            for _ in range(self._threads):
                self._queue.put(None)
            while self._threads:
                self._fewer.wait()
            self._give_back(self._more)
        self._linger()

    def _linger(self) -> None:
        """Lets the client take what was said last: a close with bytes unread, or before more of
        them come, resets it away, and with a GOAWAY which requests were never seen."""
        sock, deadline = self.handler.request, time.monotonic() + _LINGER
        try:
            while self._out and (left := deadline - time.monotonic()) > 0:
                self._socket.wait(left, False, True)
                del self._out[: self._socket.send(self._out)]
            if not self._faulty:
                self._let_take(deadline)
            net.shut(sock, socket.SHUT_WR)
            told = self._faulty or self._last is not None
            while (told or net.readable(sock)) and (left := deadline - time.monotonic()) > 0:
                self._socket.wait(left, True, False)
                if self._socket.receive(_RECEIVE) == b"":
                    return
        except OSError:
            return

    def _let_take(self, deadline: float) -> None:
        """Until the client has taken all that the kernel has for it. When both directions are shut,
        whatever still comes, be it that there is room again, makes the kernel throw that away. If
        others accept, what it sends before it has seen the GOAWAY gets ``deadline``, too."""
        sock, server, patience = self.handler.request, self.server, self.server.timeouts.send
        if not server.closing or server.hasty:
            deadline = 0.0
        left, moved = net.outgoing(sock), time.monotonic()
        while not (server.over or net.ended(sock)):
            now = time.monotonic()
            if now >= (moved + patience if left else deadline):
                return
            with self.lock:  # a poll would tell again and again that the receiving side is shut
                self._fewer.wait(_LOOK)
            self._socket.receive(_RECEIVE)  # once: whoever sends without end keeps nobody here
            before, left = left, net.outgoing(sock)
            if left < before:
                moved = now

    # The threads of the streams.

    def _threads_wanted(self) -> int:
        """How many to start for the streams there are; they are counted already."""
        wanted = min(len(self._streams), self._most_streams) - self._threads
        start = 0
        while start < wanted and (not self._threads or self._spare.acquire(blocking=False)):
            self._threads += 1
            start += 1
        return start

    def _start_thread(self) -> None:
        name = f"pyproxy-http2-{self.server.server_port}"
        try:
            threading.Thread(target=self._work, name=name, daemon=True).start()
        except RuntimeError as error:  # the system gives no more threads: those there are serve on
            log.error("can't start a thread: %s", error)
            with self.lock:
                self._thread_ended()
                if not self._threads:
                    raise ConnectionFault(_INTERNAL_ERROR, "no thread is left") from None

    def _thread_ended(self) -> None:
        self._threads -= 1
        if self._threads:  # the one that each connection may have is not counted there
            self._spare.release()
        self._fewer.notify_all()

    def _work(self) -> None:
        while stream := self._next():
            try:
                stream.serve()
            except Exception:
                # A fault of ours: this stream ends, the thread goes on.
                log.exception("an error while serving %s", self.peer.address)
                self.reset(stream)
            finally:
                self._done(stream)

    def _next(self) -> Stream | None:
        """The next stream; None when this thread is to end."""
        while True:
            with contextlib.suppress(queue.Empty):
                if stream := self._queue.get(timeout=_IDLE_THREAD):
                    return stream
            with self.lock:
                if self._over or self._threads > len(self._streams):
                    self._thread_ended()
                    return None

    def _done(self, stream: Stream) -> None:
        with self.lock:
            del self._streams[stream.number]
            self._acknowledge(stream.number, stream.unacknowledged)
            self._flush()
            self.handler.served += 1
            self._narrow()
            if not self._streams:
                self.handler.idle_since = time.monotonic()
                if self._last is not None or self._frames.going or self.handler.ended:
                    net.shut(self.handler.request, socket.SHUT_RD)  # wakes the connection's thread
                    self._fewer.notify_all()

    # What a stream's thread asks for.

    def send(
        self,
        stream: Stream,
        head: Pairs | None,
        data: bytes | memoryview = b"",
        end: bool = False,
        trailers: Pairs = (),
    ) -> None:
        """Raises ``ClientGone``, also when the client takes nothing for ``timeouts.send``."""
        at, whole = 0, False
        while not whole:
            with self.lock:
                stream.check_client()
                try:
                    if head is not None:
                        bare = end and not data and not trailers
                        self._h2.send_headers(stream.number, head, end_stream=bare)
                        whole = bare
                        head = None
                    if not whole:
                        at = self._send_data(stream, data, at, end and not trailers)
                        whole = at == len(data)
                        if whole and trailers:
                            self._h2.send_headers(stream.number, trailers, end_stream=True)
                except h2.exceptions.ProtocolError as error:
                    raise ClientGone(str(error)) from None
                if whole and end:
                    self._finish(stream)
                self._flush()
                if not whole and not self._out:
                    self._await_window(stream)
            if self._out:
                self._drain()

    def _send_data(self, stream: Stream, data: bytes | memoryview, at: int, end: bool) -> int:
        """As much as the windows and our own patience allow; where it stopped."""
        if not data:
            if end:
                self._h2.end_stream(stream.number)
            return 0
        h2, number = self._h2, stream.number
        stop = min(len(data), at + _AT_ONCE)
        while at < stop:
            most = min(h2.local_flow_control_window(number), h2.max_outbound_frame_size)
            if most <= 0:
                break
            piece = data[at : min(at + min(most, _LARGEST_FRAME), stop)]
            at += len(piece)
            h2.send_data(number, piece, end and at == len(data))
            self._frames.earn(4)
        return at

    def _finish(self, stream: Stream) -> None:
        """All of the response is on its way: what the client still sends is not wanted."""
        stream.finished = True
        self._frames.earn(RESET)
        if not stream.ended and not stream.gone:
            self._reset(stream.number, _NO_ERROR)  # RFC 9113, 8.1
            stream.lose("the response was complete before the request")

    def _await_window(self, stream: Stream) -> None:
        deadline = time.monotonic() + self.server.timeouts.send
        while not stream.gone and self._h2.local_flow_control_window(stream.number) <= 0:
            left = deadline - time.monotonic()
            if left <= 0:
                self._reset(stream.number, _CANCEL)
                self._flush()
                stream.lose("the client takes nothing of a response")
            else:
                stream.wait(left)

    def receive(self, stream: Stream) -> bytes:
        """The next bytes of a body; none at its end. The last ones come with the end of the
        request: answered before it, some clients stumble over the end they still send. Raises
        ``HTTPError`` 408 or ``ClientGone``."""
        deadline = time.monotonic() + self.server.timeouts.read
        with self.lock:
            while not (stream.readable or stream.ended or stream.gone):
                left = deadline - time.monotonic()
                if left <= 0:
                    raise HTTPError(408, "the request body is too slow")
                stream.wait(left)
            stream.check_client()
            data = bytes(stream.body)
            stream.body.clear()
            self._acknowledge(stream.number, stream.unacknowledged)
            stream.unacknowledged = 0
            self._narrow()
            self._flush()
        if self._out:
            self._drain()
        return data

    def refuse(self, stream: Stream) -> None:
        """Resets a stream whose request is malformed."""
        with self.lock:
            self._frames.spend(RESET, time.monotonic())
            self._reset(stream.number, PROTOCOL_ERROR)
            stream.lose("malformed")
            self._flush()

    def reset(self, stream: Stream) -> None:
        """Ends a stream whose response can't be completed."""
        with self.lock:
            self._reset(stream.number, _INTERNAL_ERROR)
            stream.lose("the response broke off")
            self._flush()

    def forget_body(self, stream: Stream) -> None:
        """Nobody reads the rest of a request: whoever waits for it is woken."""
        with self.lock:
            stream.lose("the rest of the request is not wanted")

    def _drain(self) -> None:
        """Waits until the kernel has taken all that is pending."""
        patience = self.server.timeouts.send
        while self._out and not self._over:
            self._socket.wait(self._moved + patience - time.monotonic(), False, True)
            with self.lock:
                self._flush()
                if self._out and time.monotonic() >= self._moved + patience:
                    self._break("the client takes nothing")

    # Below here, the lock is held.

    def _reset(self, number: int, code: int) -> None:
        try:
            self._h2.reset_stream(number, code)
        except h2.exceptions.ProtocolError:
            pass  # it has ended already

    def _acknowledge(self, number: int, size: int) -> None:
        if size:
            try:
                self._h2.acknowledge_received_data(size, number)
            except h2.exceptions.ProtocolError:
                pass  # the connection has ended

    def _narrow(self) -> None:
        """Something has been read: by what the window is larger now. h2 has taken off the rest,
        or does so by and by."""
        if self._more:
            unread = sum(one.unacknowledged for one in self._streams.values())
            larger = unread + self._h2.inbound_flow_control_window - _WINDOW
            self._give_back(self._more - max(0, -(-larger // _STREAM_WINDOW)))

    def _give_back(self, count: int) -> None:
        if count > 0:
            self.server.stream_windows.release(count)
            self._more -= count

    def _say_goodbye(self, code: int, text: str) -> None:
        """GOAWAY, once. h2 can't say it and go on; the streams under way are to be finished."""
        if self._last is None or code:
            self._last = self._h2.highest_inbound_stream_id
            frame = GoAwayFrame(0, self._last, code, text.encode()[:200])
            self._put(self._h2.data_to_send() + frame.serialize())
            self._flush()

    def _put(self, data: bytes) -> None:
        if not self._out:
            self._moved = time.monotonic()
        self._out += data

    def _flush(self) -> None:
        """Sends what h2 has to send, as much as goes without waiting."""
        if data := self._h2.data_to_send():
            self._put(data)
        try:
            while self._out and (sent := self._socket.send(self._out)):
                del self._out[:sent]
                self._moved = time.monotonic()
        except OSError as error:
            self._break(net.reason(error))

    def _break(self, reason: str) -> None:
        """Nothing can be sent any more."""
        self._over = True
        self._out.clear()
        for stream in self._streams.values():
            stream.lose(reason)
        net.shut(self.handler.request)  # wakes the connection's thread
