"""The house has floors: imports point only downward, and some things have one place."""

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "pyproxy"

# From the ground up. Those on one floor don't import each other.
FLOORS = (
    ("errors", "readers", "access_format", "watching", "turns"),
    ("net", "options", "layers"),
    ("tls", "scaling_settings"),
    ("balancing",),
    ("sections",),
    ("settings", "logs"),
    ("connections", "waiting"),
    ("listener",),
    ("tcp",),
    ("http", "health"),
    ("services", "sockets"),
    ("scaling",),
    ("control",),
    ("app",),
    ("worker", "program", "lab", "commands"),
    ("contrib",),
    ("lab_commands",),
    ("cli",),
    ("__main__",),
)
RANKS = {part: rank for rank, floor in enumerate(FLOORS) for part in floor}

# pyproxy/__init__.py is the public face: what it shows, and who may look at it for what.
FACE = "pyproxy"
SHOWS = {"app", "balancing"}
LOOKS = {("pyproxy.cli", "__version__"), ("pyproxy.control.metrics", "__version__")}

# What `balancing`, pure decisions, leaves to others: sockets, clocks, processes, files.
IMPURE = {
    "asyncio",
    "datetime",
    "http",
    "multiprocessing",
    "os",
    "pathlib",
    "requests",
    "select",
    "selectors",
    "signal",
    "socket",
    "socketserver",
    "ssl",
    "subprocess",
    "time",
    "urllib",
}

Module = tuple[str, ast.Module]


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


PATHS = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}
MODULES = {name: ast.parse(path.read_bytes()) for name, path in PATHS.items()}


def exists(name: str) -> bool:
    return name in PATHS


def imports(
    name: str, tree: ast.Module, is_module: Callable[[str], bool] = exists, package: bool = False
) -> Iterator[tuple[str, str]]:
    """Everything imported, wherever it stands: ``(module, what of it or "")``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, ""
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = name.split(".")
                above = above[: len(above) - node.level + package]
                base = ".".join(above + ([base] if base else []))
            for alias in node.names:
                if is_module(f"{base}.{alias.name}"):
                    yield f"{base}.{alias.name}", ""
                else:
                    yield base, alias.name


def part_of(name: str) -> str:
    """The part of the house: ``pyproxy.http.server`` is of ``http``."""
    return name.split(".")[1] if "." in name else ""


def crossings(
    name: str, tree: ast.Module, is_module: Callable[[str], bool] = exists, package: bool = False
) -> list[str]:
    """The imports of one module that don't point down."""
    found = []
    for module, what in imports(name, tree, is_module, package):
        if module.split(".")[0] != FACE:
            continue
        importer, imported = part_of(name), part_of(module)
        if module == FACE:
            fine = name == FACE or (name, what) in LOOKS
        elif name == FACE:
            fine = imported in SHOWS
        else:
            fine = importer == imported or RANKS[importer] > RANKS[imported]
        if not fine:
            found.append(f"{name} imports {module} {what}".rstrip())
    return found


def dotted(node: ast.expr) -> str:
    """``a.b`` of an expression like that, else nothing."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (left := dotted(node.value)):
        return f"{left}.{node.attr}"
    return ""


def uses(tree: ast.Module, *names: str) -> list[int]:
    """The lines in which one of these names is used, under whatever name it was imported."""
    known = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            known.update({alias.asname: alias.name for alias in node.names if alias.asname})
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                known[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    lines = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute):
            first, dot, rest = dotted(node).partition(".")
            if known.get(first, first) + dot + rest in names:
                lines.append(node.lineno)
    return lines


def nameless_threads(tree: ast.Module) -> list[int]:
    """The lines in which a thread is made without a name."""
    made = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and dotted(node.func) in ("threading.Thread", "Thread", "threading.Timer", "Timer")
    ]
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and {"threading.Thread", "Thread"} & {
            dotted(base) for base in node.bases
        }:
            made += [
                call
                for call in ast.walk(node)
                if isinstance(call, ast.Call)
                and isinstance(call.func, ast.Attribute)
                and call.func.attr == "__init__"
            ]
    return [call.lineno for call in made if "name" not in {word.arg for word in call.keywords}]


def places(search: Callable[[ast.Module], list[int]], *but: str) -> list[str]:
    """Where ``search`` finds something, in modules other than ``but``."""
    return [
        f"{name}:{line}"
        for name, tree in MODULES.items()
        if name not in but
        for line in search(tree)
    ]


def test_every_module_has_its_floor() -> None:
    assert [name for name in MODULES if name != FACE and part_of(name) not in RANKS] == []
    assert {"pyproxy.errors", "pyproxy.http.server", "pyproxy.lab.demo"} <= MODULES.keys()


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_downward(name: str) -> None:
    assert crossings(name, MODULES[name], package=PATHS[name].stem == "__init__") == []


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("pyproxy.balancing.pool", "from pyproxy.http.server import ProxyServer"),
        ("pyproxy.balancing.pool", "import pyproxy.health.recovery"),
        ("pyproxy.balancing.pool", "import os, pyproxy.app as app"),
        ("pyproxy.balancing.pool", "from ..http import server"),
        ("pyproxy.balancing.pool", "from .. import net, app"),
        ("pyproxy.net", "from pyproxy import settings"),
        ("pyproxy.errors", "from .app import Proxy"),
        ("pyproxy.http.server", "from pyproxy import app"),
        ("pyproxy.http.server", "from pyproxy import Proxy"),
        ("pyproxy.http.server", "import pyproxy"),
        ("pyproxy.http.server", "from pyproxy import *"),
        ("pyproxy.http.server", "from pyproxy.health.recovery import RecoveryThread"),
        ("pyproxy.health.recovery", "from pyproxy.http.message import TOKEN"),
        ("pyproxy.http.server", "if TYPE_CHECKING:\n    from pyproxy.app import Proxy"),
        ("pyproxy.http.server", "def f():\n    from pyproxy.cli import main"),
        ("pyproxy.http.server", "class A:\n  def f(self):\n    import pyproxy.cli"),
        ("pyproxy.http.server", "try:\n    from pyproxy.lab import demo\nexcept ImportError: 0"),
        ("pyproxy.cli", "from pyproxy import Proxy"),
        ("pyproxy.app", "from pyproxy import __version__"),
        ("pyproxy", "from pyproxy.cli import main"),
        ("pyproxy", "from pyproxy.lab.demo import Demo"),
    ],
)
def test_an_arrow_that_points_up_or_aside_is_found(name: str, source: str) -> None:
    tree = ast.parse(source)
    assert len(crossings(name, tree, lambda module: module in ALL)) == 1


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("pyproxy.http.server", "from pyproxy import net\nfrom pyproxy.http.message import Peer"),
        ("pyproxy.http.server", "from . import message\nfrom ..balancing.pool import TargetPool"),
        ("pyproxy.http.server", "import http.server\nimport app, pyproxy_tools.cli"),
        ("pyproxy.cli", "from pyproxy import __version__, settings\nimport pyproxy.lab.demo"),
        ("pyproxy", "from pyproxy.app import Proxy\nfrom pyproxy.balancing import hashring"),
    ],
)
def test_an_arrow_that_points_down_is_fine(name: str, source: str) -> None:
    assert crossings(name, ast.parse(source), lambda module: module in ALL) == []


ALL = {
    "pyproxy.app",
    "pyproxy.balancing.hashring",
    "pyproxy.http.message",
    "pyproxy.http.server",
    "pyproxy.lab.demo",
    "pyproxy.net",
    "pyproxy.settings",
}


def test_a_relative_import_of_a_package_starts_in_itself() -> None:
    tree = ast.parse("from .server import ProxyServer\nfrom ..app import Proxy")
    assert list(imports("pyproxy.http", tree, package=True)) == [
        ("pyproxy.http.server", "ProxyServer"),
        ("pyproxy.app", "Proxy"),
    ]


def test_balancing_opens_no_socket_and_reads_no_clock() -> None:
    found = {
        (name, module)
        for name, tree in MODULES.items()
        if part_of(name) == "balancing"
        for module, _ in imports(name, tree)
    }
    assert ("pyproxy.balancing.pool", "threading") in found
    assert [one for one in found if one[1].split(".")[0] in IMPURE] == []
    assert [one for one in found if one[1].startswith("pyproxy.net")] == []


def test_only_the_command_line_prints_and_exits() -> None:
    def speaks(tree: ast.Module) -> list[int]:
        return uses(
            tree, "print", "sys.exit", "exit", "quit", "SystemExit", "os._exit", "click.echo"
        )

    command_line = ("cli", "__main__", "program", "commands", "lab_commands")
    assert places(speaks, *(f"pyproxy.{name}" for name in command_line)) == []
    assert speaks(MODULES["pyproxy.cli"])
    assert len(speaks(MODULES["pyproxy.program"])) == 1, "the end at once, at a second signal"


def test_nothing_sleeps_where_it_could_be_woken() -> None:
    """``listener`` may: when this machine is out of something, nothing tells when that is over."""

    def sleeps(tree: ast.Module) -> list[int]:
        return uses(tree, "time.sleep")

    assert places(sleeps, "pyproxy.listener") == []
    assert len(sleeps(MODULES["pyproxy.listener"])) == 1


@pytest.mark.parametrize(
    "source",
    [
        "import time\ntime.sleep(1)",
        "import time as clock\nclock.sleep(1)",
        "from time import sleep\nsleep(1)",
        "from time import sleep as nap\nnap(1)",
    ],
)
def test_a_name_is_found_however_it_was_imported(source: str) -> None:
    assert uses(ast.parse(source), "time.sleep") == [2]


def test_every_thread_has_a_name() -> None:
    assert places(nameless_threads) == []


def test_a_thread_without_a_name_is_found() -> None:
    source = """
threading.Thread(target=f, daemon=True).start()
threading.Thread(target=f, name="f").start()
class A(threading.Thread):
    def __init__(self):
        super().__init__(daemon=True)
class B(Thread):
    def __init__(self):
        super().__init__(name="b")
"""
    assert nameless_threads(ast.parse(source)) == [2, 6]
