"""Writes appsettings.schema.json, by which editors help with the settings, from the declarations.

    python docs/make_schema.py

A test fails when it is not current.
"""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pyproxy.balancing.policies import POLICIES, policy
from pyproxy.options import REQUIRED, Option, declared
from pyproxy.readers import schema_of
from pyproxy.settings import Settings, TCPEntry, plain, tcp_options

FILE = Path(__file__).with_name("appsettings.schema.json")


Json = dict[str, Any]


class Maker:
    def __init__(self) -> None:
        self._definitions: dict[str, Json] = {}  # of objects that stand in several places

    def whole(self) -> Json:
        made = self._object(declared(Settings))
        return {
            "$schema": "http://json-schema.org/draft-07/schema#",
            "title": "The settings of pyproxy",
            **made,
            "properties": {"$schema": {"type": "string"}, **made["properties"]},
            "definitions": self._definitions,
        }

    def _object(self, options: list[tuple[str, Option, Any]]) -> Json:
        made: Json = {"type": "object", "properties": {}, "additionalProperties": False}
        for path, option, default in options:
            *sections, name = path.split(".")
            place = made
            for section in sections:
                place = place["properties"].setdefault(section, self._object([]))
            place["properties"][name] = self._option(option, default)
            if default is REQUIRED:
                place.setdefault("required", []).append(name)
        return made

    def _option(self, option: Option, default: Any) -> Json:
        unit = f" ({option.unit})" if option.unit else ""
        made: Json = (
            self._policy() if option.read is policy else self._value(schema_of(option.read))
        )
        made["description"] = f"{option.help[0].upper()}{option.help[1:]}{unit}."
        if default not in (REQUIRED, ()):
            made["default"] = plain(default)
        return made

    def _value(self, schema: Any) -> Any:
        if isinstance(schema, list):
            return [self._value(one) for one in schema]
        if not isinstance(schema, dict):
            return schema
        made = {key: self._value(value) for key, value in schema.items()}
        if kind := made.pop("object", None):
            options = tcp_options() if kind is TCPEntry else declared(kind)
            return self._defined(kind.__name__, lambda: {**self._object(options), **made})
        return made

    def _defined(self, name: str, make: Callable[[], Json]) -> Json:
        if name not in self._definitions:
            self._definitions[name] = make()
        return {"$ref": f"#/definitions/{name}"}

    def _policy(self) -> Json:
        """A name, an object with it and the options it has, or a function."""
        objects = []
        for name, kind in POLICIES.items():
            made = self._object(declared(kind) if dataclasses.is_dataclass(kind) else [])
            properties = {"name": {"const": name}, **made["properties"]}
            objects.append({**made, "properties": properties, "required": ["name"]})
        function = {"type": "string", "pattern": "^[^:]+:.+"}
        either = [{"enum": list(POLICIES)}, function, *objects]
        return self._defined("policy", lambda: {"anyOf": either})


def current() -> str:
    """The file as it must be now."""
    return json.dumps(Maker().whole(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    FILE.write_text(current(), encoding="utf-8")
