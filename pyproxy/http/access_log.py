"""The access log: a line a request, in the combined format with what a balancer adds.

    127.0.0.1 - - [21/Nov/2026:08:46:32 +0000] "GET / HTTP/1.1" 200 13 "-" "curl/8.5" \
http://localhost:8001 0.002 1

After the combined format: the target, the seconds to its response head, the attempts. A status of
499 means that the client was gone before an answer. What a client sent is escaped, so that it can
neither end a line nor start one.
"""

import contextlib
import logging
import os
import re
import sys
import threading
import time
from typing import IO

from pyproxy.http.forward import Request

log = logging.getLogger(__name__)

_FLUSH_EVERY = 1.0  # seconds
_FLUSH_AT = 1000  # lines
_UNSAFE = re.compile(rb"[^ !#-\[\]-~]")  # all but printable ASCII, without " and \


class AccessLog:
    """Collects lines from any thread; a thread of its own writes them once a second."""

    def __init__(self, destination: str) -> None:
        """``destination`` is a path, or ``-`` for standard output. Raises ``OSError``."""
        self._path = None if destination == "-" else destination
        self._file: IO[str] | None = self._open()
        # Protects the lines; notified when there are many, or at the end.
        self._changed = threading.Condition()
        self._lines: list[str] = []
        self._second = (0, "")
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="pyproxy-access-log", daemon=True)
        self._thread.start()

    def _open(self) -> IO[str]:
        if self._path is None:
            return sys.stdout
        return open(self._path, "a", encoding="ascii")

    def request(self, request: Request, line: bytes, status: int, size: int) -> None:
        """A request that has been answered, or given up by its client."""
        self.write(
            request.address,
            line,
            status,
            size,
            request.fields.get(b"referer"),
            request.fields.get(b"user-agent"),
            request.target.url if request.target else "-",
            request.answered - request.started,
            request.attempts,
        )

    def write(
        self,
        address: str,
        line: bytes,
        status: int,
        size: int,
        referer: bytes | None = None,
        agent: bytes | None = None,
        target: str = "-",
        seconds: float = 0.0,
        attempts: int = 0,
    ) -> None:
        """``size`` is the bytes of the body sent; ``seconds`` those to the target's answer."""
        text = (
            f'{address} - - [{self._now()}] "{escape(line)}" {status} {size} '
            f'"{escape(referer)}" "{escape(agent)}" {target} {max(seconds, 0):.3f} {attempts}\n'
        )
        with self._changed:
            self._lines.append(text)
            if len(self._lines) >= _FLUSH_AT:
                self._changed.notify()

    def _now(self) -> str:
        now = int(time.time())
        second, text = self._second
        if second != now:
            text = time.strftime("%d/%b/%Y:%H:%M:%S %z", time.localtime(now))
            self._second = (now, text)
        return text

    def _run(self) -> None:
        while not self._stopping:
            with self._changed:
                if not self._stopping:
                    self._changed.wait(_FLUSH_EVERY)
                lines, self._lines = self._lines, []
            self._flush(lines)

    def _flush(self, lines: list[str]) -> None:
        if not lines or self._file is None:
            return
        try:
            self._reopen_if_moved()
            self._file.write("".join(lines))
            self._file.flush()
        except (OSError, ValueError) as error:
            log.error("the access log ends: %s", error)
            if self._path is not None:
                with contextlib.suppress(OSError):  # it can't write what it still holds
                    self._file.close()
            self._file = None

    def _reopen_if_moved(self) -> None:
        """After logrotate has moved the file away, goes on in a new one."""
        if self._path is None or self._file is None:
            return
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.stat(self._path), os.fstat(self._file.fileno())):
                return
        self._file.close()
        self._file = self._open()

    def close(self) -> None:
        """Writes what is left."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()
        self._flush(self._lines)
        if self._path and self._file:
            self._file.close()


def escape(value: bytes | None) -> str:
    """Printable ASCII; other bytes, ``"`` and the backslash as ``\\xHH``. ``-`` for nothing."""
    if not value:
        return "-"
    return _UNSAFE.sub(lambda found: b"\\x%02x" % found[0][0], value).decode("ascii")
