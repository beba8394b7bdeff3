"""Layers: settings from files, the environment and the command line, each over the one before.

``appsettings.json``, ``appsettings.{PYPROXY_ENVIRONMENT}.json``, ``PYPROXY_…`` variables (``__``
between levels), the command line. Sections merge, lists and other objects are replaced whole.
"""

import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path

from pyproxy.errors import SettingsError
from pyproxy.readers import Json, Text, literal

FILE = "appsettings.json"
PREFIX = "PYPROXY_"


class Layers:
    """The merged data, and who said what: path -> source."""

    def __init__(self, sections: Collection[str]) -> None:
        """``sections`` are the settings that are objects and merge; others are replaced."""
        self.data: dict[str, Json] = {}
        self.sources: dict[str, str] = {}
        self._sections = sections

    def add(self, data: Mapping[str, Json], source: str) -> None:
        for key, value in data.items():
            self.sources[key] = source
            if key in self._sections and isinstance(value, dict):
                old = self.data.get(key)
                self.data[key] = {**old, **value} if isinstance(old, dict) else dict(value)
                self.sources |= {f"{key}.{below}": source for below in value}
            else:
                self.data[key] = value

    def source(self, path: str) -> str:
        while path and path not in self.sources:
            path = path[: max(path.rfind("."), path.rfind("["), 0)]
        return self.sources.get(path, FILE)


def stack(
    file: Path | None,
    environment: Mapping[str, str],
    command_line: Mapping[str, Json],
    sections: Collection[str],
) -> Layers:
    """All layers, ``file`` being the lowest (None: there is none). ``sections`` are the settings
    that are objects. Raises ``SettingsError``."""
    layers = Layers(sections)
    layers.sources[""] = str(file or FILE)
    if file:
        layers.add(_read_file(file), str(file))
    over = overlay(file or Path(FILE), environment)
    if over and over.exists():
        layers.add(_read_file(over), str(over))
    for variable, value in sorted(environment.items()):
        if variable.upper().startswith(PREFIX) and not _not_ours(variable.upper()):
            keys = variable[len(PREFIX) :].lower().split("__")
            layers.add(_nested(keys, value, sections), f"environment variable {variable}")
    for dotted, value in command_line.items():
        layers.add(_nested(dotted.split("."), value, sections), "command line")
    return layers


def overlay(file: Path, environment: Mapping[str, str]) -> Path | None:
    """The file that may stand over ``file``, if an environment is named. Raises
    ``SettingsError``."""
    name = environment.get(PREFIX + "ENVIRONMENT")
    if not name:
        return None
    if not re.fullmatch(r"[\w.-]{1,100}", name):
        raise SettingsError(
            [f"environment variable {PREFIX}ENVIRONMENT: expected a name like Production"]
        )
    return file.with_name(f"{file.stem}.{name}{file.suffix}")


def _not_ours(variable: str) -> bool:
    """Kubernetes sets PYPROXY_PORT… and PYPROXY_SERVICE_… where a service is called pyproxy."""
    return bool(re.fullmatch(PREFIX + "(ENVIRONMENT|PORT|PORT_.*|SERVICE_.*)", variable))


def _nested(keys: list[str], value: str, sections: Collection[str]) -> dict[str, Json]:
    """``timeouts``, ``read``, ``"5"`` -> ``{"timeouts": {"read": Text("5")}}``"""
    data: Json = Text(value)
    if len(keys) == 1 and keys[0] in sections and isinstance(literal(data), dict):
        data = literal(data)
    for key in reversed(keys):
        data = {key: data}
    found: dict[str, Json] = data
    return found


def _read_file(path: Path) -> dict[str, Json]:
    try:
        data = json.loads(path.read_bytes().decode("utf-8-sig"), object_pairs_hook=_no_twice)
    except OSError as error:
        raise SettingsError([f"{path}: {(error.strerror or 'cannot be read').lower()}"]) from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno} column {error.colno}"
        raise SettingsError([f"{path}: {where}: not valid JSON: {error.msg}"]) from None
    except UnicodeDecodeError:
        raise SettingsError([f"{path}: not a text in UTF-8"]) from None
    except ValueError as error:
        raise SettingsError([f"{path}: {error}"]) from None
    except RecursionError:
        raise SettingsError([f"{path}: nested too deeply"]) from None
    if not isinstance(data, dict):
        raise SettingsError([f"{path}: expected an object, {{…}}"])
    data.pop("$schema", None)
    return data


def _no_twice(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    data = dict(pairs)
    if len(data) < len(pairs):
        keys = [key for key, _ in pairs]
        again = next(key for at, key in enumerate(keys) if key in keys[:at])
        raise ValueError(f'"{again}" stands twice in one object')
    return data
