"""Settings: what may be said, where, and what is answered to a mistake."""

import contextlib
import dataclasses
import ipaddress
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from pyproxy.balancing.policies import POLICIES, PolicyChoice
from pyproxy.errors import SettingsError
from pyproxy.readers import Text
from pyproxy.sections import (
    AccessLogSettings,
    Limits,
    Listen,
    Retry,
    TargetSettings,
    Timeouts,
    Unavailable,
)
from pyproxy.settings import Settings, files, load, options, parse, plain

SHIPPED = Path(__file__).parents[1] / "appsettings.json"


def settings(**data: Any) -> Settings:
    return parse({"targets": [8001], **data})


def problems(**data: Any) -> list[str]:
    """What is said to ``data``, in ``x.json``."""
    with pytest.raises(SettingsError) as caught:
        parse({"targets": [8001], **data}, "x.json")
    return caught.value.problems


def problem(**data: Any) -> str:
    [said] = problems(**data)
    return said


def refused(
    path: Path | None = None,
    environment: Mapping[str, str] | None = None,
    command_line: Mapping[str, str] | None = None,
) -> list[str]:
    """What ``load`` says."""
    with pytest.raises(SettingsError) as caught:
        load(path, environment or {}, command_line)
    return caught.value.problems


def write(path: Path, data: Any) -> Path:
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


def urls(found: tuple[TargetSettings, ...] | tuple[Listen, ...]) -> list[str]:
    return [one.url for one in found]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


# Defaults


def test_targets_are_all_that_must_be_said() -> None:
    assert parse({"targets": [8001]}) == Settings(
        listen=(Listen("http://127.0.0.1:8000"),),
        targets=(TargetSettings("http://localhost:8001"),),
        policy=PolicyChoice("hash_ring"),
        sleeping=10,
        max_fails=1,
        retry=Retry(attempts=5, statuses=(), max_body=65536, non_idempotent=False),
        timeouts=Timeouts(connect=5, read=60, send=60, header=10, keep_alive=75, drain=30),
        limits=Limits(connections=2000, head=32768, headers=100, body=None),
        unavailable=Unavailable(status=503, body="All servers is off"),
        trusted_proxies=(),
        access_log=None,
    )


def test_every_default_can_be_said_itself() -> None:
    for path, option, default in options():
        if path != "targets":
            assert option.read(plain(default)) == default, path


def test_the_shipped_file_has_five_targets_and_answers_500_without_them() -> None:
    shipped = load(SHIPPED, {})
    assert urls(shipped.listen) == ["http://127.0.0.1:8000"]
    assert urls(shipped.targets) == [f"http://localhost:{port}" for port in range(8001, 8006)]
    assert shipped.unavailable == Unavailable(500, "All servers is off")
    assert shipped.sleeping == 10


def test_settings_never_change() -> None:
    made = settings(trusted_proxies=["10.0.0.0/8"], retry={"statuses": [502]})
    parts: list[Any] = [made, made.retry, made.timeouts, made.limits, made.unavailable]
    for part in (*parts, *made.targets, *made.listen):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(part, dataclasses.fields(part)[0].name, None)
    assert hash(made)  # down to the last list


def test_every_option_is_explained_and_what_it_measures_has_a_unit() -> None:
    for path, option, _ in options():
        assert option.help.strip(), path
        assert not option.help.endswith("."), path
        measures = ""
        for value, means, unit in (("5s", 5, "seconds"), ("64KB", 65536, "bytes")):
            try:
                measures = unit if option.read(value) == means else measures
            except ValueError:
                pass
        assert option.unit == measures, path


# Readers


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (10, 10),
        (0.25, 0.25),
        ("500ms", 0.5),
        ("10s", 10),
        ("1.5s", 1.5),
        ("10 s", 10),
        ("5m", 300),
        ("2h", 7200),
        ("30d", 2_592_000),
    ],
)
def test_durations(value: object, seconds: float) -> None:
    assert settings(sleeping=value).sleeping == pytest.approx(seconds)


@pytest.mark.parametrize(
    "value",
    [0, -1, "0s", "10", "10S", "s", "1e3s", True, None, [10], {}, 1e12, math.inf, math.nan],
)
def test_what_is_no_duration(value: object) -> None:
    assert problem(sleeping=value) == (
        "x.json: sleeping: expected a duration above 0: seconds, or a text like "
        '"500ms", "10s", "5m"'
    )


@pytest.mark.parametrize(
    ("value", "size"),
    [
        (0, 0),
        (1000, 1000),
        (1000.0, 1000),
        ("7B", 7),
        ("64KB", 65536),
        ("64 KB", 65536),
        ("1.5KB", 1536),
        ("1MB", 1_048_576),
        ("2GB", 2_147_483_648),
    ],
)
def test_sizes(value: object, size: int) -> None:
    found = settings(limits={"body": value}).limits.body
    assert (found, type(found)) == (size, int)


@pytest.mark.parametrize(
    "value", [-1, 1.5, "0.3B", "64", "64kb", "64KiB", "-1KB", "KB", True, [1], {}]
)
def test_what_is_no_size(value: object) -> None:
    assert problem(retry={"max_body": value}) == (
        'x.json: retry.max_body: expected a size: bytes, or a text like "64KB", "1MB"'
    )


@pytest.mark.parametrize("value", [math.inf, math.nan, "9" * 400 + "GB"])
def test_a_size_that_is_no_number_is_told_like_any_other(value: object) -> None:
    assert "expected a size" in problem(limits={"head": value})


@pytest.mark.parametrize("value", [0, -1, 1.0, 1.5, "5", True, None, [1], {}])
def test_what_is_no_whole_number(value: object) -> None:
    said = "x.json: max_fails: expected a whole number of at least 1"
    assert problem(max_fails=value) == said


@pytest.mark.parametrize("status", [399, 600, "503", 503.0])
def test_a_number_out_of_its_range_is_told_with_the_range(status: object) -> None:
    said = "x.json: unavailable.status: expected a whole number from 400 to 599"
    assert problem(unavailable={"status": status}) == said


@pytest.mark.parametrize("value", [1, 0, "true", "yes", None, []])
def test_a_boolean_is_no_number_and_no_text(value: object) -> None:
    said = "x.json: retry.non_idempotent: expected true or false"
    assert problem(retry={"non_idempotent": value}) == said


@pytest.mark.parametrize("value", [1, True, None, ["x"], {"text": "x"}])
def test_what_is_no_text(value: object) -> None:
    assert problem(unavailable={"body": value}) == "x.json: unavailable.body: expected a text"


def test_null_stands_for_none_only_where_none_is_possible() -> None:
    made = settings(limits={"body": None}, access_log=None)
    assert (made.limits.body, made.access_log) == (None, None)
    assert problem(limits={"headers": None}).startswith("x.json: limits.headers: expected")


@pytest.mark.parametrize("value", [None, 5, "read", [], True])
def test_a_section_is_an_object(value: object) -> None:
    assert problem(timeouts=value) == "x.json: timeouts: expected an object"


def test_an_unknown_policy_is_told_with_those_there_are() -> None:
    names = f"expected one of {', '.join(POLICIES)}, or module:function"
    assert problem(policy="least_connection") == (
        'x.json: policy: unknown policy "least_connection" (did you mean "least_connections"?): '
        + names
    )
    assert problem(policy={"name": "none"}) == f'x.json: policy: unknown policy "none": {names}'


def test_trusted_proxies_are_addresses_and_networks() -> None:
    assert settings(trusted_proxies=["10.0.0.0/8", "::1"]).trusted_proxies == (
        ipaddress.ip_network("10.0.0.0/8"),
        ipaddress.ip_network("::1/128"),
    )
    assert problems(trusted_proxies=["10.0.0.1/8", "proxy.local", 5]) == [
        f'x.json: trusted_proxies[{at}]: expected an address or a network like "10.0.0.0/8"'
        for at in range(3)
    ]


# Addresses


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (["http://a:1", "http://b:2"], ["http://a:1", "http://b:2"]),
        ([8001, 8002], ["http://localhost:8001", "http://localhost:8002"]),
        (["8001"], ["http://localhost:8001"]),
        ([{"url": "http://a:1"}, {"url": 2}], ["http://a:1", "http://localhost:2"]),
        (8001, ["http://localhost:8001"]),
        ("http://a:1", ["http://a:1"]),
        ({"url": "http://a:1"}, ["http://a:1"]),
        ("http://a:1, http://b:2,8003", ["http://a:1", "http://b:2", "http://localhost:8003"]),
        ("http://a:1/", ["http://a:1"]),
        ("http://A.Example:1", ["http://a.example:1"]),
        ("http://a", ["http://a:80"]),
        ("http://[::1]:8001", ["http://[::1]:8001"]),
        ("http://10.0.0.1:65535", ["http://10.0.0.1:65535"]),
    ],
)
def test_targets_are_urls_ports_objects_or_a_text(value: object, expected: list[str]) -> None:
    assert urls(settings(targets=value).targets) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("http://0.0.0.0:80", ["http://0.0.0.0:80"]),
        (8080, ["http://127.0.0.1:8080"]),
        (0, ["http://127.0.0.1:0"]),
        ({"url": "http://[::]:80"}, ["http://[::]:80"]),
        (["http://a:1", 2, {"url": 3}], ["http://a:1", "http://127.0.0.1:2", "http://127.0.0.1:3"]),
        ("http://a:1,http://b:1", ["http://a:1", "http://b:1"]),
        ([0, 0], ["http://127.0.0.1:0"] * 2),
    ],
)
def test_listen_is_a_url_a_port_an_object_or_several(value: object, expected: list[str]) -> None:
    assert urls(settings(listen=value).listen) == expected


EXAMPLE = 'expected a URL like "http://localhost:8001", or a port'


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("localhost:8001", f'{EXAMPLE}, not "localhost:8001"'),
        ("localhost", f'{EXAMPLE}, not "localhost"'),
        ("ftp://a:1", f'{EXAMPLE}, not "ftp://a:1"'),
        ("http:/a:1", f'{EXAMPLE}, not "http:/a:1"'),
        ("//a:1", f'{EXAMPLE}, not "//a:1"'),
        ("http:///index", f'{EXAMPLE}, not "http:///index"'),
        ("http://:8001", f'{EXAMPLE}: "http://:8001" has no valid host'),
        ("http://a b:1", f'{EXAMPLE}: "http://a b:1" has no valid host'),
        ("http://[::1%\ud800]:1", f'{EXAMPLE}: "http://[::1%\ud800]:1" has no valid host'),
        ("http://bücher:1", f'{EXAMPLE}: "http://bücher:1" has no valid host'),
        ("http://a:1/api", f'{EXAMPLE}: nothing may follow the port in "http://a:1/api"'),
        ("http://a:1?x=1", f'{EXAMPLE}: nothing may follow the port in "http://a:1?x=1"'),
        ("http://a:1/#top", f'{EXAMPLE}: nothing may follow the port in "http://a:1/#top"'),
        ("http://a:b:1", f"{EXAMPLE}: port could not be cast to integer value as 'b:1'"),
        ("http://a:65536", f"{EXAMPLE}: port out of range 0-65535"),
        ("http://[::1:8001", f"{EXAMPLE}: invalid ipv6 url"),
        (0, "expected a port from 1 to 65535"),
        ("http://a:0", "expected a port from 1 to 65535"),
        (65536, "expected a port from 0 to 65535"),
        (-1, "expected a port from 0 to 65535"),
        (8001.0, EXAMPLE),
        (True, EXAMPLE),
        (None, EXAMPLE),
        ([8001], EXAMPLE),
        ({}, "an object needs its url"),
    ],
)
def test_a_bad_target_is_told_with_a_good_one(value: object, said: str) -> None:
    assert problem(targets=[8002, value]) == f"x.json: targets[1]: {said}"


@pytest.mark.parametrize("host", ["a..b", ".a", "x" * 64])
def test_a_host_that_can_be_no_name_is_refused(host: str) -> None:
    said = problem(targets=[f"http://{host}:1"])
    assert said.startswith(f"x.json: targets[0]: {EXAMPLE}")


def test_user_information_in_a_url_is_refused() -> None:
    assert EXAMPLE in problem(targets=["http://user:secret@a:1"])


def test_what_is_wrong_within_an_object_is_told_with_its_path() -> None:
    assert problems(targets=[{"url": "a"}, {"ulr": "http://a:1"}, {"url": {"url": 0}}]) == [
        f'x.json: targets[0].url: {EXAMPLE}, not "a"',
        'x.json: targets[1].ulr: unknown setting (did you mean "url"?)',
        f"x.json: targets[2].url: {EXAMPLE}",
    ]


@pytest.mark.parametrize(
    "twins",
    [
        ["http://a:1", "http://a:1"],
        ["http://a:1", "http://A:1/"],
        ["http://a", "http://a:80"],
        [8001, "http://localhost:8001"],
        [{"url": 8001}, "8001"],
    ],
)
def test_a_target_stands_only_once(twins: list[object]) -> None:
    said = problem(targets=[9000, *twins])
    assert said.startswith("x.json: targets[2]: http://")
    assert said.endswith(" stands here twice")


def test_an_address_is_listened_on_only_once() -> None:
    said = "x.json: listen[1]: http://127.0.0.1:8000 stands here twice"
    assert problem(listen=["http://127.0.0.1:8000", 8000]) == said


@pytest.mark.parametrize("nothing", [[], "", ", "])
def test_nowhere_to_listen_and_nobody_to_serve_are_refused(nothing: object) -> None:
    assert problems(listen=nothing, targets=nothing) == [
        'x.json: targets: expected at least one target, like "http://localhost:8001"',
        'x.json: listen: expected an address to listen on, like "http://127.0.0.1:8000"',
    ]


def test_targets_that_nobody_named_are_told_with_how_to_name_them(tmp_path: Path) -> None:
    path = write(tmp_path / "some.json", {"sleeping": 5})
    said = 'name the servers behind the proxy, like ["http://localhost:8001"]'
    assert refused(path) == [f"{path}: targets: {said}"]


# Unknown settings, and all problems at once


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"timeouts": {"raed": 5}}, 'timeouts.raed: unknown setting (did you mean "read"?)'),
        ({"sleepng": 5}, 'sleepng: unknown setting (did you mean "sleeping"?)'),
        ({"maxFails": 5}, 'maxFails: unknown setting (did you mean "max_fails"?)'),
        ({"Sleeping": 5}, 'Sleeping: unknown setting (did you mean "sleeping"?)'),
        ({"limits": {"qqqq": 5}}, "limits.qqqq: unknown setting"),
        ({"qqqq": {"raed": 5}}, "qqqq: unknown setting"),
    ],
)
def test_an_unknown_setting_is_told_with_the_nearest(
    folder: Path, data: dict[str, object], said: str
) -> None:
    write(folder / "appsettings.json", {"targets": [8001], **data})
    assert refused() == [f"appsettings.json: {said}"]


def test_all_problems_are_told_at_once() -> None:
    assert problems(
        targets=["a", 8001, 8001],
        sleeping="long",
        timeouts={"raed": 5, "read": 0},
        retry=[],
        surprise=1,
    ) == [
        f'x.json: targets[0]: {EXAMPLE}, not "a"',
        "x.json: sleeping: expected a duration above 0: seconds, or a text like "
        '"500ms", "10s", "5m"',
        'x.json: timeouts.raed: unknown setting (did you mean "read"?)',
        "x.json: timeouts.read: expected a duration above 0: seconds, or a text like "
        '"500ms", "10s", "5m"',
        "x.json: retry: expected an object",
        "x.json: surprise: unknown setting",
    ]


def test_the_error_prints_a_line_a_problem() -> None:
    with pytest.raises(SettingsError) as caught:
        parse({"a": 1, "b": 2})
    assert str(caught.value).splitlines() == caught.value.problems
    assert len(caught.value.problems) == 3


# Layers


def test_each_layer_stands_over_the_one_before(tmp_path: Path) -> None:
    file = write(tmp_path / "appsettings.json", {"targets": [8001], "sleeping": 1, "max_fails": 9})
    write(tmp_path / "appsettings.Production.json", {"sleeping": 2})
    environment = {"PYPROXY_ENVIRONMENT": "Production", "PYPROXY_SLEEPING": "3"}
    assert load(file, {}).sleeping == 1
    assert load(file, {"PYPROXY_ENVIRONMENT": "Production"}).sleeping == 2
    assert load(file, environment).sleeping == 3
    assert load(file, environment, {"sleeping": "4"}).sleeping == 4
    assert load(file, environment, {"sleeping": "4"}).max_fails == 9


def test_objects_merge_and_lists_are_replaced_whole(tmp_path: Path) -> None:
    file = write(
        tmp_path / "my.json", {"targets": [1, 2, 3], "timeouts": {"read": 1, "send": 2, "drain": 3}}
    )
    write(tmp_path / "my.Test.json", {"targets": [4], "timeouts": {"send": 20}})
    environment = {"PYPROXY_ENVIRONMENT": "Test", "PYPROXY_TIMEOUTS__DRAIN": "30"}
    made = load(file, environment)
    assert urls(made.targets) == ["http://localhost:4"]
    assert (made.timeouts.read, made.timeouts.send, made.timeouts.drain) == (1, 20, 30)


def test_an_overlay_that_is_not_there_changes_nothing(tmp_path: Path) -> None:
    file = write(tmp_path / "appsettings.json", {"targets": [8001]})
    assert load(file, {"PYPROXY_ENVIRONMENT": "Nowhere"}) == load(file, {})


def test_the_environment_says_anything_in_text_or_json(tmp_path: Path) -> None:
    file = write(tmp_path / "appsettings.json", {})
    made = load(
        file,
        {
            "PYPROXY_TARGETS": '["http://a:1", {"url": 8002}]',
            "PYPROXY_LISTEN": "http://a:1,8000",
            "PYPROXY_SLEEPING": "500ms",
            "PYPROXY_MAX_FAILS": "3",
            "PYPROXY_RETRY__NON_IDEMPOTENT": "true",
            "PYPROXY_RETRY__STATUSES": "[502, 503]",
            "PYPROXY_TIMEOUTS": '{"read": 7, "keep_alive": "1m"}',
            "PYPROXY_LIMITS__BODY": "null",
            "PYPROXY_LIMITS__HEAD": "16KB",
            "PYPROXY_UNAVAILABLE__STATUS": "500",
            "PYPROXY_UNAVAILABLE__BODY": "12",
            "PYPROXY_TRUSTED_PROXIES": "10.0.0.0/8, ::1",
            "PYPROXY_ACCESS_LOG": "-",
            "OTHER_SLEEPING": "7",
        },
    )
    assert urls(made.targets) == ["http://a:1", "http://localhost:8002"]
    assert urls(made.listen) == ["http://a:1", "http://127.0.0.1:8000"]
    assert (made.sleeping, made.max_fails) == (0.5, 3)
    assert made.retry == Retry(statuses=(502, 503), non_idempotent=True)
    assert made.timeouts == Timeouts(read=7, keep_alive=60)
    assert made.limits == Limits(head=16384, body=None)
    assert made.unavailable == Unavailable(500, "12")
    assert len(made.trusted_proxies) == 2
    assert made.access_log == AccessLogSettings("-")


def test_numbers_may_stand_in_a_text_with_commas_too(tmp_path: Path) -> None:
    file = write(tmp_path / "appsettings.json", {"targets": [8001]})
    made = load(file, {"PYPROXY_RETRY__STATUSES": "502, 503"})
    assert made.retry.statuses == (502, 503)


def test_a_text_from_outside_may_look_like_json(tmp_path: Path) -> None:
    file = write(tmp_path / "appsettings.json", {"targets": [8001]})
    body = '{"error": "nobody is left"}'
    assert load(file, {"PYPROXY_UNAVAILABLE__BODY": body}).unavailable.body == body


def test_the_environment_is_this_process_s_unless_given(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYPROXY_TARGETS", "8009")
    assert urls(load().targets) == ["http://localhost:8009"]


def test_variables_that_kubernetes_sets_are_no_settings(tmp_path: Path) -> None:
    file = write(tmp_path / "appsettings.json", {"targets": [8001]})
    kubernetes = {
        "PYPROXY_SERVICE_HOST": "10.0.0.7",
        "PYPROXY_SERVICE_PORT": "8000",
        "PYPROXY_SERVICE_PORT_HTTP": "8000",
        "PYPROXY_PORT": "tcp://10.0.0.7:8000",
        "PYPROXY_PORT_8000_TCP": "tcp://10.0.0.7:8000",
        "PYPROXY_PORT_8000_TCP_ADDR": "10.0.0.7",
    }
    assert load(file, kubernetes) == load(file, {})


def test_each_problem_is_told_with_who_said_it(tmp_path: Path) -> None:
    file = write(tmp_path / "some.json", {"targets": ["x"], "timeouts": {"read": 0, "send": 0}})
    overlay = write(tmp_path / "some.Dev.json", {"timeouts": {"send": "a", "drain": 0}})
    environment = {
        "PYPROXY_ENVIRONMENT": "Dev",
        "PYPROXY_TIMEOUTS__DRAIN": "b",
        "PYPROXY_TIMEOUTS__HEADER": "c",
        "PYPROXY_RETRY": '{"attempts": 0}',
        "PYPROXY_SLEEPNG": "5",
    }
    said = refused(file, environment, {"timeouts.header": "d", "max_fails": "0"})
    assert {line.rpartition(": ")[0].partition(": expected")[0] for line in said} == {
        f"{file}: targets[0]",
        f"{file}: timeouts.read",
        f"{overlay}: timeouts.send",
        "environment variable PYPROXY_TIMEOUTS__DRAIN: timeouts.drain",
        "environment variable PYPROXY_RETRY: retry.attempts",
        "environment variable PYPROXY_SLEEPNG: sleepng",
        "command line: timeouts.header",
        "command line: max_fails",
    }
    assert len(said) == 8


def test_what_a_later_layer_corrects_is_no_problem(tmp_path: Path) -> None:
    file = write(tmp_path / "appsettings.json", {"targets": ["x"], "timeouts": {"read": 0}})
    said = {"targets": "8001", "timeouts.read": "5"}
    assert load(file, {}, said).timeouts.read == 5


@pytest.mark.parametrize("name", ["a/b", "x" * 300])
def test_an_environment_that_can_be_no_file_name_is_told(tmp_path: Path, name: str) -> None:
    file = write(tmp_path / "appsettings.json", {"targets": [8001]})
    [said] = refused(file, {"PYPROXY_ENVIRONMENT": name})
    assert said.startswith("environment variable PYPROXY_ENVIRONMENT: ")


# Files


def test_without_a_file_targets_may_be_named_elsewhere(folder: Path) -> None:
    assert urls(load(None, {}, {"targets": "8001"}).targets) == ["http://localhost:8001"]


def test_without_a_file_and_targets_it_says_what_to_do(folder: Path) -> None:
    assert refused() == [
        f"appsettings.json: not found in {folder}: go where it is, name one with --config, "
        "or name targets with --targets"
    ]


def test_a_file_that_is_named_must_be_there(tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    assert refused(path, {}, {"targets": "8001"}) == [f"{path}: no such file or directory"]


def test_a_file_that_can_not_be_read_is_told(tmp_path: Path) -> None:
    assert refused(tmp_path) == [f"{tmp_path}: is a directory"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b'{\n  "sleeping": oops\n}', "line 2 column 15: not valid JSON: Expecting value"),
        (b"", "line 1 column 1: not valid JSON: Expecting value"),
        (b'{"sleeping": "\xff"}', "not a text in UTF-8"),
        ('{"targets": [1]}'.encode("utf-16"), "not a text in UTF-8"),
        (b"[8001]", "expected an object, {…}"),
        (b"null", "expected an object, {…}"),
        (
            b'{"sleeping": 1, "targets": [1], "sleeping": 2}',
            '"sleeping" stands twice in one object',
        ),
        (b'{"timeouts": {"read": 1, "read": 1}}', '"read" stands twice in one object'),
        (b"[" * 100_000, "nested too deeply"),
    ],
)
def test_a_file_that_is_no_settings_is_told(tmp_path: Path, text: bytes, said: str) -> None:
    path = tmp_path / "appsettings.json"
    path.write_bytes(text)
    assert refused(path) == [f"{path}: {said}"]


def test_a_variable_that_is_nested_too_deeply_is_told(tmp_path: Path) -> None:
    file = write(tmp_path / "appsettings.json", {"targets": [8001]})
    [said] = refused(file, {"PYPROXY_SLEEPING": "[" * 100_000})
    assert said.startswith("environment variable PYPROXY_SLEEPING: sleeping: expected a duration")


@pytest.mark.parametrize("value", [10**400, float("inf")])
def test_a_number_beyond_all_is_told(value: float) -> None:
    with pytest.raises(SettingsError, match="bounded_load: expected a number above 1"):
        settings(policy={"name": "consistent_hash", "bounded_load": value})


def test_an_overlay_is_held_to_the_same(tmp_path: Path) -> None:
    file = write(tmp_path / "appsettings.json", {"targets": [8001]})
    overlay = tmp_path / "appsettings.Dev.json"
    overlay.write_text("{]")
    [said] = refused(file, {"PYPROXY_ENVIRONMENT": "Dev"})
    assert said.startswith(f"{overlay}: line 1 column 2: not valid JSON: ")


def test_a_byte_order_mark_and_a_schema_are_accepted(tmp_path: Path) -> None:
    path = tmp_path / "appsettings.json"
    path.write_text('{"$schema": "./schema.json", "targets": "http://a:1"}', encoding="utf-8-sig")
    assert urls(load(path, {}).targets) == ["http://a:1"]


def test_a_text_that_can_not_be_sent_is_refused() -> None:
    assert problem(unavailable={"body": "\ud800"}).startswith("x.json: unavailable.body: ")


# Round trip


def test_effective_settings_are_told_as_a_file_says_them() -> None:
    shipped = load(SHIPPED, {})
    told = plain(shipped)
    assert told["targets"][0] == "http://localhost:8001"
    assert told["unavailable"] == {"status": 500, "body": "All servers is off"}
    assert parse(json.loads(json.dumps(told))) == shipped


HOSTS = st.sampled_from(["localhost", "A.example", "10.0.0.1", "[::1]", "x_y-z", "[fe80::1%25a]"])
ADDRESSES = (
    st.integers(1, 65535)
    | st.builds("http://{}:{}".format, HOSTS, st.integers(1, 65535))
    | st.builds("http://{}/".format, HOSTS)
)
DURATIONS = st.floats(0.001, 10**6) | st.integers(1, 10**6) | st.sampled_from(["5ms", "1.5h", "3d"])
SIZES = st.integers(0, 10**12) | st.sampled_from(["64KB", "1.5MB", "3GB"])
COUNTS = st.integers(1, 10**9)
NETWORKS = st.ip_addresses().map(str) | st.sampled_from(["10.0.0.0/8", "::/0"])


def some(**fields: "st.SearchStrategy[Any]") -> "st.SearchStrategy[dict[str, Any]]":
    return st.fixed_dictionaries({}, optional=fields)


def different(addresses: "st.SearchStrategy[Any]") -> "st.SearchStrategy[list[Any]]":
    return st.lists(
        addresses,
        min_size=1,
        max_size=5,
        unique_by=lambda one: parse({"targets": [one]}).targets[0],
    )


# The machine may be busy: no example is too slow.
unhurried = hypothesis.settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

EVERYTHING = st.fixed_dictionaries(
    {"targets": different(ADDRESSES)},
    optional={
        "listen": different(ADDRESSES) | st.just(["http://0.0.0.0:0"]),
        "policy": st.just("hash_ring"),
        "sleeping": DURATIONS,
        "max_fails": COUNTS,
        "retry": some(
            attempts=COUNTS,
            statuses=st.lists(st.integers(200, 599)),
            max_body=SIZES,
            non_idempotent=st.booleans(),
        ),
        "timeouts": some(
            connect=DURATIONS,
            read=DURATIONS,
            send=DURATIONS,
            header=DURATIONS,
            keep_alive=DURATIONS,
            drain=DURATIONS,
        ),
        "limits": some(connections=COUNTS, head=SIZES, headers=COUNTS, body=st.none() | SIZES),
        "unavailable": some(status=st.integers(400, 599), body=st.text()),
        "trusted_proxies": st.lists(NETWORKS),
        "access_log": st.none()
        | st.text(min_size=1)
        | st.fixed_dictionaries(
            {"path": st.text(min_size=1)},
            optional={"format": st.sampled_from(["combined", "json", "{client} 100% {{"])},
        ),
        "log": some(
            format=st.sampled_from(["text", "json"]),
            level=st.sampled_from(["debug", "info", "warning", "error"]),
        ),
    },
)


@given(EVERYTHING)
@unhurried
def test_what_is_told_can_be_said_again(data: dict[str, Any]) -> None:
    made = parse(data)
    assert parse(json.loads(json.dumps(plain(made)))) == made


NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.just("url"), inner),
    max_leaves=5,
)


@given(JSON, st.booleans())
@unhurried
def test_anything_is_read_or_refused_and_never_breaks(value: Any, as_text: bool) -> None:
    for _, option, _ in options():
        with contextlib.suppress(ValueError):
            option.read(Text(json.dumps(value)) if as_text else value)


# The access log


def test_an_access_log_may_be_a_text_or_an_object() -> None:
    assert settings(access_log="-").access_log == AccessLogSettings("-", "combined")
    made = settings(access_log={"path": "a.log", "format": "{client} {uri}"})
    assert made.access_log == AccessLogSettings("a.log", "{client} {uri}")
    assert plain(made)["access_log"] == {"path": "a.log", "format": "{client} {uri}"}
    assert plain(settings(access_log="a.log"))["access_log"] == "a.log"
    [said] = [Text('{"path": "-", "format": "json"}')]
    assert settings(access_log=said).access_log == AccessLogSettings("-", "json")


FIELDS = (
    "client, time, request, method, uri, protocol, status, size, referer, agent, target, seconds,"
    " attempts, request_id"
)


@pytest.mark.parametrize(
    ("format", "said"),
    [
        ("{clinet}", f"unknown field {{clinet}}: expected {FIELDS}"),
        ("{}", f"unknown field {{}}: expected {FIELDS}"),
        ("{0}", f"unknown field {{0}}: expected {FIELDS}"),
        ("{client.x}", f"unknown field {{client.x}}: expected {FIELDS}"),
        ("{client!r}", f"unknown field {{client!r}}: expected {FIELDS}"),
        ("{status:>9}", f"unknown field {{status:>9}}: expected {FIELDS}"),
        ("{client", f"bad braces (a brace itself is doubled): the fields are {FIELDS}"),
        ("client}", f"bad braces (a brace itself is doubled): the fields are {FIELDS}"),
        ("Json", 'expected "combined", "json", or a text with fields in braces: ' + FIELDS),
        ("{client}\n", "expected printable ASCII beside the fields"),
        ("{client} д", "expected printable ASCII beside the fields"),
    ],
)
def test_a_bad_format_is_refused_with_the_fields_there_are(format: str, said: str) -> None:
    told = problem(access_log={"path": "-", "format": format})
    assert told == f"x.json: access_log.format: {said}"


# Which files


def test_the_files_are_told_whether_or_not_they_exist(tmp_path: Path) -> None:
    assert files(None, {}) == [Path("appsettings.json")]
    path = tmp_path / "own.json"
    found = files(path, {"PYPROXY_ENVIRONMENT": "Production"})
    assert found == [path, tmp_path / "own.Production.json"]


def test_the_files_of_certificates_are_told_once_each() -> None:
    found = parse(
        {
            "listen": "https://127.0.0.1:0",
            "targets": [8001],
            "tls": {"certificate": "a.pem", "certificates": [{"certificate": "b", "key": "k"}]},
            "target_tls": {"ca": "ca.pem"},
            "routes": [{"path": "/a/", "targets": [8002], "target_tls": {"certificate": "c"}}],
        }
    )
    names = [str(path) for path in found.certificate_files]
    assert names == ["a.pem", "b", "k", "ca.pem", "c"]
