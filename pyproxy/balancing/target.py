"""Target: one server behind the proxy."""

from enum import StrEnum


class State(StrEnum):
    LIVE = "live"
    EVICTED = "evicted"


class Target:
    """A server's address and what its pool knows of it. Equal only to itself.

    ``state`` and ``fails`` (failures in a row) belong to the pool and change under its lock;
    anyone may read them.
    """

    __slots__ = ("fails", "host", "port", "state", "url")

    def __init__(self, url: str, host: str, port: int) -> None:
        self.url = url
        self.host = host
        self.port = port
        self.state = State.LIVE
        self.fails = 0

    def __repr__(self) -> str:
        return f"<Target {self.url} {self.state}>"
