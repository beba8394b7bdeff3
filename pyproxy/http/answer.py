"""Answer: what the proxy itself says to a request, instead of a target."""

from dataclasses import dataclass, field
from typing import BinaryIO, Self


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

    @property
    def length(self) -> int:
        return self.body.length if isinstance(self.body, FilePart) else len(self.body)
