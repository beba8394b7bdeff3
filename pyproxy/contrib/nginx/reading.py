"""nginx's files as blocks of statements, by crossplane, and the units of their values."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pyproxy.contrib.converting import Draft, Place
from pyproxy.contrib.nginx.words import BARE

TIME = {
    **{"ms": 0.001, "s": 1, "": 1, "m": 60, "h": 3600, "d": 86400},
    **{"w": 604800, "M": 2592000, "y": 31536000},
}


@dataclass
class Statement:
    name: str
    args: list[str]
    place: Place
    block: "list[Statement] | None" = None

    def __str__(self) -> str:
        return " ".join([self.name, *self.args])


class Scope:
    """What is said in a block, over what is said around it."""

    def __init__(self, statements: Sequence[Statement], around: "Scope | None" = None) -> None:
        self.statements = statements
        self._around = around
        self.within = "/"  # the path of the location around
        self.files_only = False  # who asks for no file gets nothing, whatever try_files leads to
        self.named = False  # a location with a name, where requests come by others only

    def own(self, *names: str) -> list[Statement]:
        return [one for one in self.statements if one.name in names]

    def all(self, name: str) -> list[Statement]:
        return self.own(name) or (self._around.all(name) if self._around else [])

    def get(self, name: str) -> Statement | None:
        found = self.all(name)
        return found[-1] if found else None

    def access(self) -> list[Statement]:
        """`allow` and `deny` that hold: the own ones, or all of those around."""
        own = self.own("allow", "deny")
        return own or (self._around.access() if self._around else [])

    def around(self, name: str) -> Statement | None:
        """What would hold, were it not said here."""
        return self._around.get(name) if self._around else None


def seconds(text: str) -> float | None:
    """``1m30s``; a number is of seconds."""
    found = re.findall(r"([0-9]{1,12})(ms|[smhdwMy]|)\s*", text)
    if not found or "".join(number + unit for number, unit in found) != text.replace(" ", ""):
        return None
    return sum(int(number) * TIME[unit] for number, unit in found)


def size(text: str) -> int | None:
    """``10m``, in bytes."""
    match = re.fullmatch(r"([0-9]{1,12})([kKmMgG]?)", text)
    return int(match[1]) * 1024 ** " kmg".index(match[2].lower() or " ") if match else None


def told(error: dict[str, Any]) -> str:
    text = error["error"] or "unexpected end of file"
    return text if error["file"] in text else f"{text} in {error['file']}"


def statements(
    draft: Draft, config: list[Any], at: int = 0, above: tuple[int, ...] = ()
) -> Iterator[Statement]:
    file = config[at]["file"]

    def of(parsed: list[Any]) -> Iterator[Statement]:
        for one in parsed:
            if one["directive"] == "include":
                for number in one.get("includes", ()):
                    if number not in (*above, at):
                        yield from statements(draft, config, number, (*above, at))
                continue
            place = Place(file, one["line"])
            block = list(of(one["block"])) if "block" in one else None
            if one["args"] or block is not None or one["directive"] in BARE:
                yield Statement(one["directive"], one["args"], place, block)
            else:
                draft.note(place, f"{one['directive']}: it needs a value")

    return of(config[at]["parsed"])


def flat(scope: Scope, within: str = "/") -> Iterator[tuple[Statement, Scope]]:
    """Locations, with those in them."""
    for one in scope.own("location"):
        inner = Scope(one.block or [], scope)
        inner.within = within
        inner.named = one.args[0].startswith("@")
        yield one, inner
        plain = one.args[:1] == ["^~"] or one.args[0][:1] == "/"
        yield from flat(inner, one.args[-1] if plain else within)


def fallback(scope: Scope) -> str:
    """The named location for what is no file; "" if there is none."""
    tried = [one for one in scope.own("try_files") if one.args[-1].startswith("@")]
    return tried[-1].args[-1] if tried and not scope.own("proxy_pass") else ""
