"""Scaling settings: how a pool's targets are made, how many there may be, and what decides that."""

import os
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pyproxy.options import HIDDEN, REQUIRED, option, read_object, section
from pyproxy.readers import (
    Json,
    Problems,
    boolean,
    described,
    duration,
    list_of,
    literal,
    number,
    one_of,
    optional,
    parts,
    text,
    whole,
)

LAUNCHERS = ("process", "docker", "swarm")


class Environment(tuple[tuple[str, str], ...]):
    """Names of variables and their values, which may be secrets."""

    __slots__ = ()


@described({"type": "array", "items": {"type": "string"}, "minItems": 1})
def read_command(value: Json) -> tuple[str, ...]:
    """A program and its arguments, a text each."""
    found = literal(value)
    if not isinstance(found, list) or not found:
        raise ValueError('expected a program and its arguments, like ["python", "app.py"]')
    return list_of(text)(found)


@described({"type": "object", "additionalProperties": {"type": "string"}})
def _environment(value: Json) -> Environment:
    found = literal(value)
    if not isinstance(found, dict):
        raise ValueError('expected an object like {"NAME": "value"}')
    problems = [
        (f".{name}", "expected a text")
        for name, said in found.items()
        if not isinstance(said, str) or "\0" in said
    ]
    problems += [
        (f".{name}", "that stands for a secret that isn't shown: say the secret")
        for name, said in found.items()
        if said == HIDDEN
    ]
    problems += [(f".{name}", "no name of a variable") for name in found if not _is_name(name)]
    if problems:
        raise Problems(problems)
    return Environment(found.items())


def _is_name(name: str) -> bool:
    return bool(name) and "=" not in name and "\0" not in name


def _quoted(word: str) -> str:
    """As a shell wants it; braces alone are no reason for quotes."""
    plain = word.replace("{port}", "port")
    return word if shlex.quote(plain) == plain else shlex.quote(word)


@dataclass(frozen=True)
class Version:
    """What a target is made from."""

    command: tuple[str, ...] = ()  # with {port} where its port is to stand
    image: str = ""
    environment: Environment = Environment()

    def __str__(self) -> str:
        return self.image or " ".join(map(_quoted, self.command))


@dataclass(frozen=True)
class RolloutSettings:
    """How one version of the targets takes the place of another."""

    observe: float = option(
        10.0,
        "how long a target of the new version serves, at least, before the next step",
        duration,
        "seconds",
    )
    max_error_rate: float = option(
        0.05,
        "the share of failed requests, beyond that of the old version, which ends a rollout",
        number(0, 1),
    )


@dataclass(frozen=True)
class Scaling:
    """How targets are made, and when: instead of ``targets``, or beside them."""

    launcher: str = option(
        REQUIRED,
        '"process" (of this machine), "docker" (containers) or "swarm" (a service of a Swarm,'
        " whose targets are found through a dns:// target)",
        one_of(*LAUNCHERS),
    )
    command: tuple[str, ...] = option(
        (),
        "the program and its arguments, {port} where its port is to stand; of a container, what it"
        " runs instead of its image's own",
        read_command,
    )
    environment: Environment = option(
        Environment(),
        "variables for it, over those of pyproxy; {port} may stand in their values",
        _environment,
    )
    folder: str | None = option(
        None, "process: where it runs (null: where pyproxy does)", optional(text)
    )
    logs: str | None = option(
        None,
        "process: a folder for what each target prints (null: one in the system's for such things)",
        optional(text),
    )
    image: str | None = option(None, "docker: the image", optional(text))
    port: int | None = option(
        None, "docker: where it listens, inside the container", optional(whole(1, 65535))
    )
    network: str | None = option(
        None,
        "docker: a network to reach it on by its own address (null: a port of 127.0.0.1 leads to"
        " it)",
        optional(text),
    )
    service: str | None = option(None, "swarm: the name of the service", optional(text))
    owner: str | None = option(
        None,
        "docker: whose containers they are; another start of the same owner takes them over (null:"
        " this machine's pyproxy at this address)",
        optional(text),
    )
    min: int = option(1, "targets, at least: lost ones are replaced", whole(0))
    max: int = option(10, "targets, at most", whole(1))
    slow_start: float | None = option(
        None, "of each target, as a target's own setting", optional(duration), "seconds"
    )
    max_connections: int | None = option(
        None, "of each target, as a target's own setting", optional(whole(1))
    )
    start_timeout: float = option(
        60.0, "until a new target is healthy; then it is given up", duration, "seconds"
    )
    drain_timeout: float = option(
        30.0, "for the requests that a target has when it is to go", duration, "seconds"
    )
    stop_timeout: float = option(
        10.0, "between asking a target to end and ending it", duration, "seconds"
    )
    auto: bool = option(True, "let the load decide between min and max (false: people do)", boolean)
    target_response_time: float = option(
        0.5, "an average that is right, in the eyes of the two factors below", duration, "seconds"
    )
    response_time_high: float = option(
        1.5, "times target_response_time: slower adds a target", number(0, above=True)
    )
    response_time_low: float = option(
        0.5, "times target_response_time: faster removes one", number(0)
    )
    cpu_high: float | None = option(
        80.0,
        "per cent of a processor that targets use on average: more adds one (null: doesn't count)",
        optional(number(0, above=True)),
    )
    cpu_low: float | None = option(
        20.0, "less removes one (null: doesn't count)", optional(number(0))
    )
    in_flight_high: float | None = option(
        None,
        "requests under way per target: more adds one (null: doesn't count)",
        optional(number(0, above=True)),
    )
    in_flight_low: float | None = option(
        None, "fewer removes one (null: doesn't count)", optional(number(0))
    )
    interval: float = option(5.0, "between two looks at the load", duration, "seconds")
    cooldown: float = option(60.0, "after a change, before the next", duration, "seconds")
    step: int = option(1, "targets that one decision adds, at most", whole(1))
    rollout: RolloutSettings = section(RolloutSettings)

    @property
    def version(self) -> Version:
        return Version(self.command, self.image or "", self.environment)

    @property
    def place(self) -> tuple[object, ...]:
        """What can't change without other targets taking the place of all."""
        where = self.folder, self.logs, self.port, self.network
        return self.launcher, self.service, self.owner, *where


def read_version(said: Mapping[str, Json]) -> dict[str, Any]:
    """What of a ``Version`` is said, read as the settings are. Raises ``Problems``."""
    readers: dict[str, Callable[[Json], Any]] = {
        "command": read_command,
        "image": text,
        "environment": _environment,
    }
    found: dict[str, Any] = {}
    problems = []
    for key, value in said.items():
        try:
            found[key] = readers[key](value)
        except ValueError as error:
            problems += [(f".{key}{below}", told) for below, told in parts(error)]
    if problems:
        raise Problems(problems)
    return found


def search_path(environment: Mapping[str, str]) -> str:
    """Where the programs of commands are looked for: first where this Python is, so that "python"
    is the one of its virtual environment."""
    own = os.path.dirname(sys.executable)
    return os.pathsep.join(filter(None, [own, environment.get("PATH", os.defpath)]))


def check_version(said: Scaling, version: Version) -> None:
    """Whether targets can be made of it. Raises ``Problems``."""
    problems = []
    if said.launcher == "process":
        problems = list(_wrong_with_command(said, version))
        if version.image:
            problems.append((".image", "a process is made of a command: leave the image away"))
    if said.launcher == "docker" and not version.image:
        problems.append((".image", "name the image that targets are made of"))
    if problems:
        raise Problems(problems)


def _wrong_with_command(said: Scaling, version: Version) -> list[tuple[str, str]]:
    if not version.command:
        return [(".command", 'name the program, like ["python", "app.py", "--port", "{port}"]')]
    found = []
    own = dict(version.environment)
    if not any("{port}" in one for one in (*version.command, *own.values())):
        told = "say {port} where the program gets its port, here or in environment"
        found.append((".command", told))
    program = version.command[0]
    place = program if os.path.isabs(program) else os.path.join(said.folder or "", program)
    where = search_path({**os.environ, **own})
    if not shutil.which(place if os.sep in program else program, path=where):
        found.append((".command", f'there is no program "{program}"'))
    return found


@described({"object": Scaling})
def read_scaling(value: Json) -> Scaling:
    found = literal(value)
    if not isinstance(found, dict):
        raise ValueError('expected an object like {"launcher": "process", "command": […]}')
    said = read_object(Scaling, found)
    problems = []
    if said.min > said.max:
        problems.append((".min", f"{said.min} is more than max, {said.max}"))
    if said.launcher == "docker" and not said.port:
        problems.append((".port", "say where targets listen, inside their containers"))
    if said.launcher == "swarm" and not said.service:
        problems.append((".service", "name the service, as `docker service ls` does"))
    if said.folder is not None and not os.path.isdir(said.folder):
        problems.append((".folder", f'"{said.folder}" is not a folder'))
    if said.launcher == "process" and not hasattr(os, "fork"):
        problems.append((".launcher", "processes need a Unix, like Linux or macOS"))
    for low, high in (
        ("response_time_low", "response_time_high"),
        ("cpu_low", "cpu_high"),
        ("in_flight_low", "in_flight_high"),
    ):
        least, most = getattr(said, low), getattr(said, high)
        if least is not None and most is not None and least >= most:
            problems.append((f".{low}", f"{least:g} isn't below {high}, {most:g}"))
    try:
        check_version(said, said.version)
    except Problems as error:
        problems += error.found
    if problems:
        raise Problems(problems)
    return said
