"""Writes the tables of docs/configuration.md from the declarations in the code.

    python docs/make_configuration.py

A test fails when they are not current.
"""

import dataclasses
import inspect
import json
from pathlib import Path
from typing import Any

from pyproxy.balancing.policies import POLICIES
from pyproxy.options import REQUIRED, Option, declared
from pyproxy.scaling_settings import Scaling
from pyproxy.sections import AccessLogSettings, Listen, PoolSettings, TargetSettings
from pyproxy.settings import Route, Settings, plain, tcp_options

PAGE = Path(__file__).with_name("configuration.md")


def table(kind: type) -> str:
    inherited = declared(PoolSettings) if kind is Route else []
    return rows_of([one for one in declared(kind) if one not in inherited])


def rows_of(options: list[tuple[str, Option, Any]]) -> str:
    rows = ["| key | unit | default | what |", "| --- | --- | --- | --- |"]
    for path, option, default in options:
        shown = "" if default is REQUIRED else f"`{json.dumps(plain(default))}`"
        rows.append(f"| `{path}` | {option.unit} | {shown} | {option.help} |")
    return "\n".join(rows)


def policies() -> str:
    rows = ["| policy | options (default) | what |", "| --- | --- | --- |"]
    for name, kind in POLICIES.items():
        options = declared(kind) if dataclasses.is_dataclass(kind) else []
        shown = [
            f"`{path}` (`{json.dumps(default)}`): {one.help}" for path, one, default in options
        ]
        what = (inspect.getdoc(kind) or "").split("\n\n")[0].replace("\n", " ")
        rows.append(f"| `{name}` | {'; '.join(shown)} | {what.replace('``', '`')} |")
    return "\n".join(rows)


MADE = {
    "settings": lambda: table(Settings),
    "listen": lambda: table(Listen),
    "target": lambda: table(TargetSettings),
    "route": lambda: table(Route),
    "tcp": lambda: rows_of(tcp_options()),
    "policies": policies,
    "access_log": lambda: table(AccessLogSettings),
    "scaling": lambda: table(Scaling),
}


def current(page: str) -> str:
    """The page with its tables as they must be now."""
    for name, make in MADE.items():
        before, begin, rest = page.partition(f"<!-- made: {name} -->\n")
        page = f"{before}{begin}{make()}\n{rest[rest.index('<!-- end -->') :]}"
    return page


if __name__ == "__main__":
    PAGE.write_text(current(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
