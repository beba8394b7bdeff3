"""Answer: what the proxy itself says to a request, instead of a target."""

from dataclasses import dataclass, field
from email.utils import formatdate
from typing import BinaryIO, Self

from pyproxy.errors import HTTPError, TargetError


@dataclass(slots=True)
class FilePart:
    """``length`` bytes of an open file from ``offset`` on. Whoever sends it closes the file; in an
    answer to HEAD, which is not sent, it is closed already."""

    file: BinaryIO
    offset: int
    length: int


@dataclass(slots=True)
class Answer:
    """A whole response. ``fields`` are without Date, Content-Length and Connection, which the
    connection adds; to HEAD it sends everything but the body."""

    status: int
    body: bytes | FilePart = b""
    fields: list[tuple[str, str]] = field(default_factory=list)
    # For a status without a body (304, 204), which tells no length.
    bodiless: bool = False

    @classmethod
    def text(cls, status: int, text: str, *fields: tuple[str, str]) -> Self:
        return cls(status, text.encode(), [*fields, ("Content-Type", "text/plain; charset=utf-8")])

    @classmethod
    def refusal(cls, error: HTTPError | TargetError) -> Self:
        """What a client is told of an error."""
        answer = cls.text(error.status, str(error))
        if error.retry_after:
            answer.fields.append(("Retry-After", str(error.retry_after)))
        return answer

    @property
    def head(self) -> list[tuple[str, str]]:
        """The fields as they are sent: with Date and Content-Length."""
        head = [("Date", formatdate(usegmt=True)), *self.fields]
        if not self.bodiless:
            head.append(("Content-Length", str(self.length)))
        return head

    @property
    def length(self) -> int:
        return self.body.length if isinstance(self.body, FilePart) else len(self.body)
