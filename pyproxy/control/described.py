"""A request that nobody has sent, described to ask who would get it. Policies see ``Asked``."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from pyproxy.http.forward import cookie_in, parameter_in


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
        return cookie_in(self.header("cookie") or "", name)

    def query(self, name: str) -> str | None:
        return parameter_in(self.uri, name)
