"""The access log: a line a request, in the combined format with what a balancer adds.

    127.0.0.1 - - [21/Nov/2026:08:46:32 +0000] "GET / HTTP/1.1" 200 13 "-" "curl/8.5" \
http://localhost:8001 0.002 1

After the combined format: the target, the seconds to its response head, the attempts. Or in
another format (``access_format``).
"""

import contextlib
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from typing import IO

from pyproxy.access_format import Entry, compiled
from pyproxy.http.forward import Request

log = logging.getLogger(__name__)

_FLUSH_EVERY = 1.0  # seconds
_FLUSH_AT = 1000  # lines
_LAST = 5.0  # seconds in which the last lines are to be written
_PIPE_BUF = 4096  # bytes
_MOST = 1 << 25  # characters that wait for a destination that takes nothing


class AccessLog:
    """Collects lines from any thread; a thread of its own writes them once a second."""

    def __init__(self, destination: str, format: str = "combined") -> None:
        """``destination`` is a path, or ``-`` for standard output; ``format`` is one of
        ``access_format``. Raises ``OSError``, and ``ValueError`` for a bad format."""
        self._format = compiled(format)
        self._path = None if destination == "-" else destination
        self._file: IO[bytes] | IO[str] | None = self._open()
        # Protects the lines and what is to be done; notified when that is something.
        self._changed = threading.Condition()
        self._lines: list[str] = []
        self._size = 0  # characters of them
        self._second = (0, "")
        self._reopening = False
        self._stopping = False
        self._lost = False  # it can't be written: that is told once, and tried again
        self._thread = threading.Thread(target=self._run, name="pyproxy-access-log", daemon=True)
        self._thread.start()

    def _open(self) -> IO[bytes] | IO[str]:
        return open(self._path, "ab", buffering=0) if self._path else sys.stdout

    def request(self, request: Request, line: bytes, status: int, size: int) -> None:
        """A request that has been answered, or given up by its client."""
        fields, target = request.fields, request.target
        self.write(
            Entry(
                request.address,
                line,
                status,
                size,
                fields.get(b"referer"),
                fields.get(b"user-agent"),
                target.url if target else None,
                request.answered - request.started,
                request.attempts,
                request.id if self._format.names else None,
            )
        )

    def write(self, entry: Entry) -> None:
        text = self._format.line(self._now(), entry)
        with self._changed:
            if full := self._size > _MOST:
                full, self._lost = not self._lost, True
            else:
                self._lines.append(text)
                self._size += len(text)
                if len(self._lines) >= _FLUSH_AT:
                    self._changed.notify()
        if full:
            log.error("the access log takes nothing, its lines are lost")

    def _now(self) -> str:
        now = int(time.time())
        second, text = self._second
        if second != now:
            text = self._format.time(now)
            self._second = (now, text)
        return text

    def reopen(self) -> None:
        """Has the file opened anew, as one wants it after logrotate; also one that the log ended
        with. Returns at once. From any thread, and from a signal handler."""
        with self._changed:
            self._reopening = True
            self._changed.notify()

    def _run(self) -> None:
        while not self._stopping:
            with self._changed:
                # Many may have come while this thread wrote, and heard of none.
                if not (self._stopping or self._reopening or len(self._lines) >= _FLUSH_AT):
                    self._changed.wait(_FLUSH_EVERY)
                lines, self._lines, self._size = self._lines, [], 0
                reopening, self._reopening = self._reopening, False
            self._flush(lines, reopening)
        self._flush(self._lines)
        self._close_file()

    def _flush(self, lines: list[str], reopening: bool = False) -> None:
        try:
            if reopening or (lines and self._file is None and self._path):
                self._reopen()
            if not lines or self._file is None:
                return
            self._reopen_if_moved()
            for piece in _pieces(lines):
                self._file.write(piece if self._path is None else piece.encode("ascii"))  # type: ignore[arg-type]
                self._file.flush()
            if self._lost:
                log.info("the access log goes on")
            self._lost = False
        except (OSError, ValueError) as error:
            if not self._lost:
                log.error("the access log can't be written, its lines are lost: %s", error)
            self._lost = True
            self._close_file()

    def _close_file(self) -> None:
        if self._file and self._path is not None:
            self._file.close()
        self._file = None

    def _reopen(self) -> None:
        self._close_file()
        self._file = self._open()

    def _reopen_if_moved(self) -> None:
        """After logrotate has moved the file away, goes on in a new one."""
        if self._path is None or self._file is None:
            return
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.stat(self._path), os.fstat(self._file.fileno())):
                return
        self._reopen()

    def close(self) -> None:
        """Writes what is left, unless the destination takes nothing for some seconds, as a pipe may
        that nobody reads."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join(_LAST)
        if self._thread.is_alive():  # it ends with the process
            log.error("the access log takes nothing, its last lines are lost")


def _pieces(lines: list[str]) -> Iterator[str]:
    """Whole lines, not more at once than a pipe takes as one: other processes write there too."""
    piece = ""
    for line in lines:
        if len(piece) + len(line) > _PIPE_BUF and piece:
            yield piece
            piece = ""
        piece += line
    yield piece
