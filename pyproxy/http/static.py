"""Files below a folder, as RFC 9110 has them: validators, preconditions, one range.

Files(request, path)            405
  _names                        decode the path, refuse what is never served: 400, 404
  _find                         follow links, but not out of the root: 404, 403
  a folder                      redirect to it: 301
  open                          a plain file and nothing else
  _answer                       412, 304, 416, 206 or 200

A request for several ranges gets the whole file, as RFC 9110 (14.2) allows: hardly a client asks
for them, and multipart/byteranges costs more than it saves.
"""

import contextlib
import errno
import io
import os
import re
import stat
import time
from email.utils import formatdate
from typing import Protocol
from urllib.parse import unquote_to_bytes

from pyproxy import net
from pyproxy.errors import HTTPError
from pyproxy.http.answer import Answer, FilePart
from pyproxy.http.conditional import Validators, byte_range
from pyproxy.http.media_types import content_type

# A "%" that encodes nothing is malformed, and so is a NUL, which no file's name has.
_PATH = re.compile(r"/(?:[!-$&-~]|%(?!00)[0-9A-Fa-f]{2})*")
_QUERY = re.compile(r"[!-~]*")
# What starts with a dot is hidden or leads up. What else is refused separates names, here or on
# another system; on Windows a drive or a stream (:) and a short name (~), which .git has as well.
_NAME = re.compile(r"(?!\.)[^/\\:~]+" if os.name == "nt" else r"(?!\.)[^/\\]+")

_LONGEST = 2**31 - 1  # seconds of max-age that each cache understands (RFC 9111, 1.2.2)

# What the system says of a name that can't be there.
_ABSENT = {
    errno.ENOENT,
    errno.ENOTDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.EILSEQ,
    errno.EINVAL,
    errno.EISDIR,  # it was a file when it was looked at
}


class Asked(Protocol):
    """What ``Files`` wants to know of a request."""

    @property
    def method(self) -> str: ...

    def header(self, name: str) -> str | None:
        """The value of the field ``name`` (lower-case), its lines joined with commas."""


class Files:
    """The files below ``root``. A link in it may lead anywhere within.

    Hidden ones aren't served, but for ``/.well-known/`` (RFC 8615) and what a link with another
    name leads to. Whoever can write below the root is trusted not to swap a folder for a link
    between the look and the open.
    """

    def __init__(self, root: str, index: str = "index.html", expires: float | None = None) -> None:
        """``expires``: seconds in which a cache needn't ask again. Raises ``ValueError``."""
        if not os.path.isdir(root):
            raise ValueError(f"{root!r} is not a folder")
        if not _NAME.fullmatch(index) or "\0" in index:
            raise ValueError(f"{index!r} is not the name of a file that can be served")
        if expires is not None and not expires >= 0:
            raise ValueError(f"{expires!r} is not a number of seconds from now on")
        self._root = os.path.abspath(root)
        self._index = index
        self._expires = None if expires is None else int(min(expires, _LONGEST))

    def __call__(self, request: Asked, path: str, query: str = "") -> Answer:
        """Answers a request for ``path``, still encoded, which starts with "/". A redirect passes
        ``query`` on. Raises ``HTTPError`` 400, 403, 404, 500 or 503."""
        if request.method not in ("GET", "HEAD"):
            return Answer.text(405, "only GET and HEAD are allowed here", ("Allow", "GET, HEAD"))
        try:
            names = _names(path)
            if not names[-1]:
                names[-1] = self._index
            real = self._find(names)
            mode = os.lstat(real).st_mode
            if stat.S_ISDIR(mode) and not path.endswith("/"):
                return to_folder(path, query)
            if not stat.S_ISREG(mode):  # not even opened: a FIFO blocks, a device may do things
                raise _not_found()
            file = io.FileIO(real, opener=_opener)
        except (OSError, UnicodeError) as error:
            raise _refusal(error) from None
        with contextlib.ExitStack() as closing:
            closing.enter_context(file)
            answer = self._answer(request, file, content_type(names[-1]), time.time())
            if isinstance(answer.body, FilePart) and request.method == "GET":
                closing.pop_all()  # from here on it is up to the one who sends it
        return answer

    def _find(self, names: list[str]) -> str:
        """Where ``names`` lead to, all links followed. Raises ``HTTPError`` 404 or ``OSError``."""
        root = os.path.realpath(self._root, strict=True)  # each time: a link to the latest release
        real = os.path.realpath(os.path.join(root, *names), strict=True)
        if real != root and not real.startswith(os.path.join(root, "")):
            raise _not_found()
        return real

    def _answer(self, request: Asked, file: io.FileIO, type_: str, now: float) -> Answer:
        facts = os.fstat(file.fileno())
        if not stat.S_ISREG(facts.st_mode):  # swapped since the look
            raise _not_found()
        size, changed = facts.st_size, facts.st_mtime_ns
        # Last-Modified is never in the future (RFC 9110, 8.8.2.1).
        modified = max(0, min(changed // 10**9, int(now)))
        state = Validators(f'"{facts.st_ino:x}-{size:x}-{changed:x}"', modified)
        fields = [("ETag", state.etag)]
        if self._expires is not None:
            fields.append(("Cache-Control", f"max-age={self._expires}"))
            fields.append(("Expires", formatdate(now + self._expires, usegmt=True)))
        status = state.precondition(request.header, now)
        if status == 304:
            return Answer(304, fields=fields, bodiless=True)
        if status == 412:
            return Answer.text(412, "the file is not as the request demands")
        fields.append(("Content-Type", type_))
        fields.append(("Last-Modified", formatdate(modified, usegmt=True)))
        fields.append(("Accept-Ranges", "bytes"))
        part = None
        if request.method == "GET" and state.lets_range(request.header("if-range"), now):
            part = byte_range(request.header("range") or "", size)
        if part is None:
            return Answer(200, FilePart(file, 0, size) if size else b"", fields)
        offset, length = part
        if not length:
            return Answer.text(
                416, f"the file has {size} bytes", ("Content-Range", f"bytes */{size}")
            )
        fields.append(("Content-Range", f"bytes {offset}-{offset + length - 1}/{size}"))
        return Answer(206, FilePart(file, offset, length), fields)


def _names(path: str) -> list[str]:
    """The decoded names in a path; the last is empty if a folder is meant. Raises ``HTTPError``."""
    if not _PATH.fullmatch(path):
        raise HTTPError(400, "malformed path")
    names = [os.fsdecode(unquote_to_bytes(name)) for name in path[1:].split("/")]
    well_known = len(names) > 1 and names[0] == ".well-known"
    for name in names[well_known : None if names[-1] else -1]:
        if not _NAME.fullmatch(name):
            raise _not_found()
    return names


def _opener(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0))


def _refusal(error: OSError | UnicodeError) -> HTTPError:
    if isinstance(error, UnicodeError) or error.errno in _ABSENT:
        return _not_found()
    if isinstance(error, PermissionError):
        return HTTPError(403, "not permitted")
    if net.exhausted(error):
        return HTTPError(503, "too many files are open here")
    return HTTPError(500, f"the file can't be read: {net.reason(error)}")


def _not_found() -> HTTPError:
    return HTTPError(404, "not found")


def to_folder(path: str, query: str) -> Answer:
    """To the same path with a slash. Only a part of that path is known here, so the location is
    relative to it; since it begins with "./" it can't name another host or a scheme."""
    if not _QUERY.fullmatch(query):
        raise HTTPError(400, "malformed query")
    location = f"./{path.rpartition('/')[2]}/"
    if query:
        location += f"?{query}"
    return Answer.text(301, "this is a folder", ("Location", location))
