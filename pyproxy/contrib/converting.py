"""What the converters have in common: settings that come together piece by piece, and notes of what
can't come along. Every piece knows the line it is from."""

import copy
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pyproxy import settings
from pyproxy.errors import PyproxyError, SettingsError
from pyproxy.readers import Json, is_loopback
from pyproxy.sections import PoolSettings

# Of a path that is denied.
WHOLE_SEGMENTS = "what only begins with this path stays open: a route is for whole segments of it"


class Place(NamedTuple):
    """A line of a file."""

    file: str
    line: int


@dataclass(frozen=True, order=True)
class Note:
    """What isn't the same afterwards, and what to do about it."""

    place: Place
    text: str

    def __str__(self) -> str:
        return f"{self.place.file}:{self.place.line}: {self.text}"


class Converted(NamedTuple):
    """Settings that ``settings.parse`` takes, and the notes in the order of the lines."""

    settings: dict[str, Json]
    notes: list[Note]


class ConvertError(PyproxyError):
    """Nothing can be made of the input: it is broken, or has nothing that a proxy could serve."""


_UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}


def said(seconds: float) -> str | None:
    """A duration as settings say it; None where they can't."""
    if not 0.001 <= seconds < 10**9:
        return None
    for unit, length in _UNITS.items():
        if seconds % length == 0:
            return f"{seconds / length:.0f}{unit}"
    return f"{seconds * 1000:.0f}ms"


def whole(text: str) -> int | None:
    return int(text) if re.fullmatch(r"[0-9]{1,15}", text) else None


def address_of(host: str, port: int | str, scheme: str) -> str:
    host = host.strip("[]")
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def host_and_port(text: str) -> tuple[str, int | None]:
    """``a:1``, ``[::1]:1``, ``a`` and ``:1``; the host "" where only a port is said."""
    if match := re.fullmatch(r"(\[[^\]]*\]|[^:\[\]]*)(?::([0-9]{1,5}))?", text):
        return match[1].strip("[]"), int(match[2]) if match[2] else None
    return text, None


def where(host: str | None, path: str) -> str:
    return f"{host or '*'}{path}"


class Draft:
    """Settings as they come together. A route is for all listening addresses, which files of others
    may see differently: the first one stays then, and the other one is noted."""

    def __init__(self, top: Place) -> None:
        self._top = top
        self._said: dict[str, Json] = {}
        self._places: dict[str, Place] = {}
        self._listens: list[tuple[dict[str, Json], Place]] = []
        self._routes: list[tuple[dict[str, Json], Place]] = []
        self._tcp: list[tuple[dict[str, Json], Place]] = []
        self._notes: dict[Note, None] = {}

    def note(self, place: Place, text: str) -> None:
        self._notes[Note(place, text)] = None

    def say(self, path: str, value: Json, place: Place) -> None:
        """A setting at the top, ``path`` like ``timeouts.keep_alive``. What has been said before
        stays, and another value is noted."""
        key, _, below = path.partition(".")
        holder = self._said.setdefault(key, {}) if below else self._said
        name = below or key
        if name not in holder:
            holder[name] = value
            self._places[path] = place
        elif holder[name] != value:
            told = json.dumps(holder[name], ensure_ascii=False)
            self.note(place, f"there is one {path} for all, and it is {told} already")

    def listen(self, url: str, place: Place, **more: Json) -> None:
        for known, _ in self._listens:
            if known["url"] == url:
                if "redirect" in known and "redirect" not in more:
                    del known["redirect"]
                    known.pop("redirect_status", None)
                return
        self._listens.append(({"url": url, **more}, place))

    def route(
        self, host: str | None, path: str, what: Mapping[str, Json], place: Place, ends: Json = ()
    ) -> None:
        entry: dict[str, Json] = {"host": host} if host else {}
        entry |= (
            {"path": path} | ({"endings": list(ends)} if ends else {}) | copy.deepcopy({**what})
        )
        for known, first in self._routes:
            if _key(known) != _key(entry):
                continue
            if known != entry:
                self.note(
                    place,
                    f"{where(host, path)} is what line {first.line} serves: a route is for all "
                    "listening addresses; serve this one by another proxy",
                )
            return
        self._routes.append((entry, place))

    def tcp(self, entry: Mapping[str, Json], place: Place) -> None:
        self._tcp.append((copy.deepcopy({**entry}), place))

    def finish(self) -> Converted:
        """Raises ``ConvertError``."""
        while self._routes or self._tcp:  # each round takes something away
            if problem := _wrong_with(self._assembled()):
                self._leave_out(*problem)
                continue
            found = self._assembled()
            self._raise_pool(found)
            return Converted(found, sorted(self._notes))
        told = "".join(f"\n{note}" for note in sorted(self._notes))
        raise ConvertError(f"{self._top.file}: nothing in it that pyproxy could serve{told}")

    def _assembled(self) -> dict[str, Json]:
        found: dict[str, Json] = {}
        if self._listens and self._routes:
            found["listen"] = [plain_listen(one) for one, _ in self._listens]
        if self._routes:
            found["routes"] = [entry for entry, _ in self._routes]
        if self._tcp:
            found["tcp"] = [entry for entry, _ in self._tcp]
        said = {key: value for key, value in self._said.items() if value not in ({}, [])}
        return copy.deepcopy(found | said)

    def _raise_pool(self, found: dict[str, Json]) -> None:
        """The only pool goes to the top, where others would inherit from it."""
        routes = found.get("routes", [])
        pools = [one for one in routes if "targets" in one]
        if len(pools) != 1 or _key(pools[0]) != ("", "/", ()) or "tcp" in found:
            return
        routes.remove(pools[0])
        said = {key: found.pop(key) for key in list(found) if key not in ("listen", "routes")}
        if not routes:
            del found["routes"]
        for key, value in pools[0].items():
            if key != "path":
                found[key] = {**said.pop(key, {}), **value} if isinstance(value, dict) else value
        found |= said

    def _leave_out(self, path: str, text: str) -> None:
        """What the settings refuse."""
        match = re.fullmatch(r"(\w+)(?:\[(\d+)\])?(.*)", path)
        assert match
        key, at, below = match[1], int(match[2] or 0), match[3].removeprefix(".")
        if key in ("routes", "tcp"):
            entries = self._routes if key == "routes" else self._tcp
            entry, place = entries[at]
            if _shortened(entry, below):
                self.note(place, f"{below} is left out: {text}")
                return
            if below == "files":
                text += ": make it, and convert again"
            self.note(place, f"{_name(entry)} isn't served: {text}")
            del entries[at]
        elif key == "listen" and match[2]:
            self._unlisten(at, text)
        elif key == "listen":  # nothing is there to redirect to
            redirecting = (one for one in self._listens if "redirect" in one[0])
            for one in list(redirecting):
                self._unlisten(self._listens.index(one), text)
        elif path == "tls.certificate" and path not in self._places:
            for one in [one for one in self._listens if one[0]["url"].startswith("https:")]:
                self._unlisten(self._listens.index(one), text)
            for one in [one for one in self._tcp if "tls" in one[0]]:
                self._tcp.remove(one)
                self.note(one[1], f"{_name(one[0])} is left out: {text}")
        else:
            known = path if path in self._places else key
            gone = [one for one in self._places if one == known or one.startswith(f"{known}.")]
            if not gone:
                raise ConvertError(f"{self._top.file}: {path}: {text}")
            for name in gone:
                self.note(self._places.pop(name), f"{name} is left out: {text}")
                section, _, leaf = name.partition(".")
                del (self._said[section] if leaf else self._said)[leaf or section]

    def _unlisten(self, at: int, text: str) -> None:
        one, place = self._listens.pop(at)
        self.note(place, f"{one['url']} is left out: {text}")


def note_elsewhere(draft: Draft, serving: Sequence[tuple[Place, Sequence[str]]]) -> None:
    """Notes who is served at others' addresses too; ``serving``: where each is, and its URLs."""
    reached = [{reach(url) for url in urls} for _, urls in serving]
    for (place, _), own in zip(serving, reached, strict=True):
        if more := set[tuple[bool, str]]().union(*reached) - own:
            told = ", ".join(f"port {port}" for _, port in sorted(more))
            draft.note(
                place,
                f"it is served at {told} too, as routes are for all listening addresses: if nobody "
                "may come there, give it a proxy of its own",
            )


def reach(url: str) -> tuple[bool, str]:
    """From where an address is reached, whatever its kind: this machine only or not, and a port."""
    host, port = url.split("://")[1].rsplit(":", 1)
    return is_loopback(host.strip("[]")), port


def _wrong_with(found: Mapping[str, Json]) -> tuple[str, str] | None:
    """The path and text of a problem, if there is one."""
    try:
        settings.parse(found)
    except SettingsError as error:
        path, _, text = error.problems[-1].removeprefix("settings: ").partition(": ")
        return path, text
    return None


def _name(entry: Mapping[str, Json]) -> str:
    if "listen" in entry:
        return str(entry["listen"])
    return " ".join([where(entry.get("host"), entry["path"]), *entry.get("endings", ())])


def _shortened(entry: dict[str, Json], path: str) -> bool:
    """Takes what is wrong out of an entry; False if it can't be without that."""
    if (match := re.match(r"targets\[(\d+)\]", path)) and len(entry["targets"]) > 1:
        del entry["targets"][int(match[1])]
        return True
    key, _, below = re.sub(r"\[.*", "", path).partition(".")
    if key not in POOL_KEYS - {"targets"} | {"index", "expires", "redirect_status"}:
        return False
    if below:
        return entry.get(key, {}).pop(below, None) is not None
    return entry.pop(key, None) is not None


def _key(entry: Mapping[str, Json]) -> tuple[str, str, tuple[str, ...]]:
    path = "/" + "/".join(part for part in entry["path"].split("/") if part)
    return (entry.get("host") or "").lower(), path, tuple(entry.get("endings", ()))


def plain_listen(one: Mapping[str, Json]) -> Json:
    return one["url"] if len(one) == 1 else {**one}


class Pool:
    """Targets and what is said of them, as they come together."""

    def __init__(self, draft: Draft, place: Place) -> None:
        self._draft = draft
        self.place = place
        self.targets: list[tuple[dict[str, Json], Place]] = []
        self.said: dict[str, Json] = {}

    def add(self, place: Place, url: str, **more: Json) -> None:
        for known, first in self.targets:
            if known["url"] == url:
                self._draft.note(
                    place, f"{url} stands in line {first.line} already: say it once, with a weight"
                )
                return
        self.targets.append(({"url": url, **more}, place))

    def say(self, path: str, value: Json) -> None:
        key, _, below = path.partition(".")
        if below:
            self.said.setdefault(key, {})[below] = value
        else:
            self.said[key] = value

    @property
    def weighted(self) -> bool:
        return any("weight" in one for one, _ in self.targets)

    def as_settings(self, **said: Json) -> dict[str, Json]:
        """``said`` are sections over those of the pool."""
        most = max((one.get("weight", 1) for one, _ in self.targets), default=1)
        targets: list[Json] = []
        for one, place in self.targets:
            if most > 256:
                scaled = max(1, round(one.get("weight", 1) * 256 / most))
                self._draft.note(place, f"weights go up to 256: {scaled} here, of the same ratio")
                one = {**one, "weight": scaled}
            targets.append(one["url"] if len(one) == 1 else one)
        found = {"targets": targets, **copy.deepcopy(self.said)}
        for key, value in said.items():
            found[key] = {**found.get(key, {}), **value}
        if len(targets) > 5:  # which is how many are tried if nothing is said
            found["retry"] = {"attempts": len(targets), **found.get("retry", {})}
        return {key: value for key, value in found.items() if value != {}}


POOL_KEYS = set(PoolSettings.__dataclass_fields__)
