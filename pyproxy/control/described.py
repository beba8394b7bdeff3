"""A request that nobody has sent, described to ask who would get it. Policies see ``Asked``."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qsl


@dataclass
class Described:
    """``uri`` is path and query; fields' names are in any case."""

    method: str = "GET"
    host: str = ""
    uri: str = "/"
    address: str = "127.0.0.1"
    fields: Mapping[str, str] = field(default_factory=dict)
    number: int = -1

    @property
    def path(self) -> str:
        return self.uri.partition("?")[0]

    def header(self, name: str) -> str | None:
        known = {key.lower(): value for key, value in self.fields.items()}
        return known.get(name.lower())

    def cookie(self, name: str) -> str | None:
        for pair in (self.header("cookie") or "").split(";"):
            key, equals, value = pair.strip(" \t").partition("=")
            if equals and key == name:
                return value
        return None

    def query(self, name: str) -> str | None:
        pairs = parse_qsl(self.uri.partition("?")[2], keep_blank_values=True)
        return dict(reversed(pairs)).get(name)
