"""HAProxy's files as sections of lines, and the units and addresses in them."""

import re
import shlex
from collections.abc import Collection
from dataclasses import dataclass, field

from pyproxy.contrib.converting import ConvertError, Place, host_and_port
from pyproxy.contrib.haproxy.words import SECTIONS

_TIME = {"us": 0.000001, "ms": 0.001, "": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}


@dataclass
class Line:
    words: list[str]
    place: Place

    @property
    def name(self) -> str:
        return self.words[0]

    def word(self, at: int) -> str:
        return self.words[at] if at < len(self.words) else ""

    def __str__(self) -> str:
        return " ".join(self.words)


@dataclass
class Section:
    """``defaults`` stand under it."""

    kind: str
    name: str
    place: Place
    defaults: "Section | None"
    lines: list[Line] = field(default_factory=list)

    def own(self, *start: str) -> list[Line]:
        return [one for one in self.lines if tuple(one.words[: len(start)]) == start]

    def all(self, *start: str) -> list[Line]:
        return self.own(*start) or (self.defaults.all(*start) if self.defaults else [])

    def get(self, *start: str) -> Line | None:
        found = self.all(*start)
        return found[-1] if found else None

    @property
    def mode(self) -> str:
        found = self.get("mode")
        return found.word(1) if found else "tcp"


def read(text: str, file: str) -> list[Section]:
    sections: list[Section] = []
    defaults: dict[str, Section] = {}
    last: Section | None = None
    for number, raw in enumerate(text.splitlines(), 1):
        try:
            words = shlex.split(raw, comments=True)
        except ValueError as error:
            raise ConvertError(f"{file}:{number}: {str(error).lower()}") from None
        if not words:
            continue
        place = Place(file, number)
        if words[0] in SECTIONS:
            kind, name = words[0], words[1] if len(words) > 1 else ""
            under = last
            if "from" in words[1:-1]:
                wanted = words[words.index("from", 1) + 1]
                if wanted not in defaults:
                    raise ConvertError(f'{file}:{number}: there is no section "defaults {wanted}"')
                under = defaults[wanted]
            elif kind == "defaults":
                under = None
            section = Section(kind, name, place, None if kind == "global" else under)
            sections.append(section)
            if kind in ("frontend", "listen") and words[2:3] not in ([], ["from"]):  # of old
                section.lines.append(Line(["bind", *words[2:]], place))
            if kind == "defaults":
                last = defaults[name] = section
        elif not sections:
            raise ConvertError(
                f'{file}:{number}: "{words[0]}" stands before any section (global, defaults, '
                "frontend, backend or listen)"
            )
        else:
            sections[-1].lines.append(Line(words, place))
    return sections


def seconds(text: str) -> float | None:
    """``5000`` and ``5s``: a number is of milliseconds."""
    match = re.fullmatch(r"([0-9]{1,12})(us|ms|[smhd]|)", text)
    return int(match[1]) * _TIME[match[2]] if match else None


def options(words: list[str], with_value: Collection[str]) -> dict[str, str]:
    """The value of each, "" where it has none; the last one counts."""
    found: dict[str, str] = {}
    rest = iter(words)
    for word in rest:
        value = next(rest, "") if word in with_value else ""
        if word.startswith("no-"):
            found.pop(word[3:], None)
        found[word] = value
    return found


def address_of_line(text: str) -> tuple[str, int | None]:
    """What follows the last colon is the port, of IPv6 too, with or without brackets."""
    address = re.sub("^(ipv[46]|unix|abns)@", "", text)
    return host_and_port(re.sub("^([^[]*:.*):", r"[\1]:", address))


def speaks_tls(line: Line) -> bool:
    return "ssl" in line.words[2:]


def has_stats(section: Section) -> bool:
    return bool(section.own("stats", "enable") or section.own("stats", "uri"))


def chooses(section: Section) -> bool:
    """Whether it has lines that say who serves, or where to go."""
    return bool(
        section.own("use_backend")
        or section.own("redirect")
        or section.own("http-request", "redirect")
    )
