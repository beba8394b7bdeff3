"""`acl`, `if` and `unless`: the hosts, paths and names in TLS that conditions are for."""

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from pyproxy.contrib.haproxy.part import Part
from pyproxy.contrib.haproxy.reading import Line, Section


@dataclass(frozen=True)
class Matcher:
    """A condition on requests; None: any."""

    host: str | None = None
    path: str | None = None
    server_name: str | None = None
    endings: tuple[str, ...] = ()  # of the path, one of these


class Conditions(Part):
    def acls(self, section: Section) -> dict[str, list[Matcher] | None]:
        """What each name stands for; None where routes can't say it."""
        found: dict[str, list[Matcher] | None] = {"TRUE": [Matcher()], "HTTP": [Matcher()]}
        for line in section.own("acl"):
            name = line.word(1)
            meant = self._criterion(line, line.words[2:])
            if meant is None:
                if line.word(2) not in ("ssl_fc", "dst_port"):
                    self.note(line, "routes go by host, path and ending only")
                found[name] = None
            elif (before := found.get(name, [])) is not None:
                found[name] = [*before, *meant]
        return found

    def _criterion(self, line: Line, words: Sequence[str]) -> list[Matcher] | None:
        """Of ``path_beg /api /x``; None if routes can't say it."""
        if not words:
            return None
        fetch, *values = words
        fetch, *converters = fetch.split(",")
        flags: list[str] = []
        ignoring = False
        while values and values[0].startswith("-"):
            flag = values.pop(0)
            if flag == "-m" and values:
                flags.append(values.pop(0))
            elif flag == "--":
                break
            elif flag != "-i":
                return None
            else:
                ignoring = True
        if set(converters) - {"lower", "field(1,:)", "host_only"} or not values:
            return None
        kind = flags[0] if flags else ""
        fetch = fetch.removeprefix("req.").removeprefix("req_")
        if fetch == "ssl_sni":
            if kind == "end":
                return [Matcher(server_name=one) for one in _below(values)]
            return [Matcher(server_name=one) for one in values] if kind in ("", "str") else None
        if fetch in ("path", "path_beg", "path_dir") and kind != "end":
            exact = fetch == "path" and kind in ("", "str")
            if not all(one.startswith("/") for one in values) or (exact and "/" in values):
                return None  # a route for / is for all
            if kind not in ("", "str", "beg", "dir"):
                return None
            if ignoring and any(one.lower() != one.upper() for one in values):
                self.note(line, "routes heed the case of a path: say each way that is meant")
            if exact:
                self.note(line, "a route is for all below its path too")
            return [Matcher(path=one) for one in values]
        if fetch == "path_end" or (fetch == "path" and kind == "end"):
            if not all(one.startswith(".") for one in values):
                return None
            return [Matcher(endings=tuple(one.lower() for one in values))]
        match = re.fullmatch(r"hdr(?:_(end))?\((?:host|Host)(?:,\d+)?\)", fetch)
        if not match or kind not in ("", "str", "end"):
            return None
        if match[1] or kind == "end":
            return [Matcher(host=one) for one in _below(values)]
        return [Matcher(host=one.partition(":")[0]) for one in values]

    def condition(
        self, line: Line, words: list[str], known: dict[str, list[Matcher] | None]
    ) -> list[Matcher] | None:
        """Of ``if a b || { path_beg /c }``: any of these; None if routes can't say it."""
        if words[:1] != ["if"]:
            return None if words else [Matcher()]
        found: list[Matcher] = []
        for alternative in _split(words[1:]):
            all_ = [Matcher()]
            for term in alternative:
                meant = known.get(term) if isinstance(term, str) else self._criterion(line, term)
                if meant is None:
                    return None
                joined = [both(one, other) for one in all_ for other in meant]
                all_ = [one for one in joined if one]
            found += all_
        return found


def both(one: Matcher, other: Matcher) -> Matcher | None:
    """What both match; None if nothing does."""
    host = _narrower(one.host, other.host, _is_host_of)
    path = _narrower(one.path, other.path, _is_path_of)
    name = _narrower(one.server_name, other.server_name, _is_host_of)
    endings = one.endings or other.endings
    if one.endings and other.endings:
        endings = tuple(end for end in one.endings if end in other.endings)
    if "" in (host, path, name) or (one.endings and other.endings and not endings):
        return None
    return Matcher(host, path, name, endings)


def _narrower(one: str | None, other: str | None, within: Callable[[str, str], bool]) -> str | None:
    """Of two patterns the one that is within the other; "" if none is."""
    if one is None or other is None:
        return one if other is None else other
    return one if within(one, other) else other if within(other, one) else ""


def _is_host_of(one: str, pattern: str) -> bool:
    return one == pattern or (pattern.startswith("*") and one.endswith(pattern[1:]))


def _is_path_of(one: str, path: str) -> bool:
    return f"{one.rstrip('/')}/".startswith(f"{path.rstrip('/')}/")


def _below(ends: Sequence[str]) -> list[str]:
    """The hosts of what a name ends with."""
    found = [[f"*{one}"] if one.startswith(".") else [one, f"*.{one}"] for one in ends]
    return [*itertools.chain(*found)]


def covers(one: Matcher, other: Matcher) -> bool:
    """Whether all that the other matches is matched by the one, which stands before it."""
    return one == Matcher() or (
        one.host == other.host
        and one.server_name == other.server_name
        and _is_path_of(other.path or "/", one.path or "/")
        and (not one.endings or (bool(other.endings) and {*other.endings} <= {*one.endings}))
    )


def _split(words: list[str]) -> Iterator[list[str | list[str]]]:
    """The alternatives of a condition, each its terms: names, and what stands in braces."""
    terms: list[str | list[str]] = []
    rest = iter(words)
    for word in rest:
        if word in ("||", "or"):
            yield terms
            terms = []
        elif word == "{":
            terms.append(list(itertools.takewhile(lambda one: one != "}", rest)))
        else:
            terms.append(word)
    yield terms
