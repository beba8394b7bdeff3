"""The JSON Schema of the settings: it takes what the settings take, and no typical mistake."""

import json
import re
import runpy
from pathlib import Path
from typing import Any

import hypothesis
import jsonschema
import pytest
from hypothesis import strategies as st

from pyproxy.balancing.policies import POLICIES
from pyproxy.errors import SettingsError
from pyproxy.options import Option, declared
from pyproxy.readers import schema_of
from pyproxy.scaling_settings import Scaling
from pyproxy.sections import AccessLogSettings, CertificatePair, Listen, TargetSettings
from pyproxy.settings import Route, Settings, options, parse, plain, tcp_options
from tests.test_settings import EVERYTHING, JSON, unhurried

ROOT = Path(__file__).parents[1]
FILE = ROOT / "docs" / "appsettings.schema.json"
SCHEMA = json.loads(FILE.read_text(encoding="utf-8"))
VALIDATOR = jsonschema.Draft7Validator(SCHEMA)
SHIPPED = [ROOT / "appsettings.json", *sorted(ROOT.glob("examples/*/appsettings*.json"))]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/*/*.md")]


def problems(data: Any) -> list[str]:
    return [f"{error.json_path}: {error.message}" for error in VALIDATOR.iter_errors(data)]


def accepted(data: dict[str, Any]) -> bool:
    """By the settings."""
    try:
        parse(data)
    except SettingsError:
        return False
    return True


def test_it_is_current() -> None:
    maker = runpy.run_path(str(ROOT / "docs" / "make_schema.py"))
    assert maker["current"]() == FILE.read_text(encoding="utf-8"), "run: python docs/make_schema.py"


def test_it_is_a_schema() -> None:
    jsonschema.Draft7Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: str(path.relative_to(ROOT)))
def test_shipped_settings_name_it_and_are_valid(path: Path) -> None:
    data = json.loads(path.read_text(encoding="utf-8"))
    assert (path.parent / data["$schema"]).resolve() == FILE
    assert problems(data) == []


def test_settings_in_the_documents_are_valid() -> None:
    found = {
        str(page.relative_to(ROOT)): re.findall(
            r"```json\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL
        )
        for page in PAGES
    }
    assert found["README.md"]
    assert found["docs/configuration.md"]
    for page, blocks in found.items():
        for block in blocks:
            assert problems(json.loads(block)) == [], page


def everything() -> list[tuple[str, Option, Any]]:
    kinds = (Settings, Route, Listen, TargetSettings, CertificatePair, AccessLogSettings, Scaling)
    policies = [kind for kind in POLICIES.values() if hasattr(kind, "__dataclass_fields__")]
    return [one for kind in (*kinds, *policies) for one in declared(kind)] + tcp_options()


@pytest.mark.parametrize(("path", "option"), [one[:2] for one in everything()])
def test_every_option_tells_what_it_takes(path: str, option: Option) -> None:
    assert path == "policy" or schema_of(option.read), "its reader needs @described"


def test_it_explains_every_setting_with_its_default() -> None:
    for path, option, default in options():
        place = SCHEMA
        for key in path.split("."):
            assert place["additionalProperties"] is False
            place = place["properties"][key]
        assert place["description"].lower().startswith(option.help.lower())
        assert place.get("default", []) == json.loads(json.dumps(plain(default)))


# What the settings take

ROUTE = {"path": "/a/", "targets": [8002]}
TCP = {"listen": 5432, "targets": [5433]}


@pytest.mark.parametrize(
    "said",
    [
        {"targets": "http://localhost:8001"},
        {"targets": "8001,http://localhost:8002"},
        {"targets": {"url": 8001, "weight": 2, "slow_start": "500ms"}},
        {"targets": ["https://a", "dns://b:80", {"url": "http://c:1", "max_connections": None}]},
        {"listen": 0},
        {"listen": ["http://0.0.0.0:80", {"url": 8080, "proxy_protocol": True}]},
        {"policy": "least_connections"},
        {"policy": {"name": "random", "seed": 1}},
        {"policy": {"name": "consistent_hash", "key": "header:X-User", "bounded_load": 1.5}},
        {"policy": {"name": "first"}},
        {"policy": "os.path:join"},
        {"sleeping": "1.5 h", "max_evicted": 0.5},
        {"timeouts": {"read": 5, "drain": "1m"}, "limits": {"body": "1MB"}},
        {"trusted_proxies": "10.0.0.0/8,::1", "send_proxy": 2},
        {"retry": {"statuses": 502}},
        {"sticky": {"cookie": None, "max_age": "30d"}},
        {"access_log": None},
        {"access_log": {"path": "a.log", "format": "json"}},
        {"access_log": {"path": "-", "format": "{client} {{}} {status}"}},
        {"log": {"format": "json", "level": "debug"}, "tracing": {"start": True}},
        {"routes": {"redirect": "https://{host}{uri}", "redirect_status": 301, "host": "*.a.b"}},
        {"routes": [{**ROUTE, "timeouts": {"read": 1}, "policy": "first"}, {"files": "."}]},
        {"tcp": [{**TCP, "server_name": "a.b"}, {"listen": "[::1]:1", "targets": "tcp://a:1"}]},
        {"tcp": {"listen": "tcp://0.0.0.0:1", "targets": "2", "health": {"interval": 5}}},
        {"tls": {"certificates": [{"certificate": "a", "key": "b"}], "min_version": "1.3"}},
    ],
)
def test_what_may_be_said_is_valid(said: dict[str, Any]) -> None:
    data = {"targets": [8001], **said}
    assert accepted(data)
    assert problems({"$schema": "x", **data}) == []


@hypothesis.given(EVERYTHING)
@unhurried
def test_what_the_settings_take_is_valid_and_so_is_what_check_prints(data: dict[str, Any]) -> None:
    assert problems(data) == []
    assert problems(json.loads(json.dumps(plain(parse(data))))) == []


@hypothesis.given(st.sampled_from(options()), JSON)
@unhurried
def test_what_a_reader_takes_is_valid(one: tuple[str, Option, Any], value: Any) -> None:
    path, option, _ = one
    try:
        if option.read(value) == ():
            return  # an empty text is an empty list, for the environment's sake
    except ValueError:
        return
    data = value
    for key in reversed(path.split(".")):
        data = {key: data}
    assert problems(data) == []


# Mistakes


@pytest.mark.parametrize(
    "said",
    [
        {"target": [8001]},
        {"targets": []},
        {"targets": ["localhost:8001"]},
        {"targets": ["ftp://a"]},
        {"targets": [70000]},
        {"targets": [{"weight": 2}]},
        {"targets": [{"url": 8001, "wieght": 2}]},
        {"targets": [{"url": 8001, "weight": 0}]},
        {"listen": "localhost"},
        {"listen": {"url": 80, "redirect": "http"}},
        {"policy": "least_connection"},
        {"policy": {"name": "first", "seed": 1}},
        {"policy": {"name": "consistent_hash", "key": "cookies:a"}},
        {"policy": {"key": "client"}},
        {"sleeping": "soon"},
        {"sleeping": "5 minutes"},
        {"sleeping": -1},
        {"sleeping": None},
        {"sleeping": True},
        {"max_fails": 0},
        {"max_fails": 1.5},
        {"max_fails": "1"},
        {"max_evicted": 2},
        {"timeouts": 5},
        {"timeouts": {"raed": 5}},
        {"limits": {"head": "1TB"}},
        {"cpu_affinity": "yes"},
        {"unavailable": {"status": 200}},
        {"sticky": {"cookie": "a b"}},
        {"health": {"path": "health"}},
        {"trusted_proxies": ["localhost"]},
        {"access_log": 5},
        {"access_log": {"format": "json"}},
        {"access_log": {"path": "-", "format": "jsn"}},
        {"access_log": {"path": "-", "format": "{clinet}"}},
        {"log": {"level": "trace"}},
        {"log": {"format": "xml"}},
        {"tracing": {"request_id": "on"}},
        {"routes": [{"path": "/a"}]},
        {"routes": [{**ROUTE, "redirect": "http://a"}]},
        {"routes": [{**ROUTE, "listen": 80}]},
        {"routes": [{"redirect": "http://a", "redirect_status": 200}]},
        {"tcp": [{"targets": [5433]}]},
        {"tcp": [{"listen": 5432}]},
        {"tcp": [{**TCP, "sticky": {"cookie": "a"}}]},
        {"tcp": [{**TCP, "timeouts": {"read": 1}}]},
        {"tls": {"min_version": "1.1"}},
        {"tls": {"certificates": [{"certificate": "a"}]}},
        {"send_proxy": 3},
    ],
)
def test_a_mistake_is_marked(said: dict[str, Any]) -> None:
    data = {"targets": [8001], **said}
    assert not accepted(data)
    assert problems(data)
