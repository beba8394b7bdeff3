"""Metrics: what a scrape of a proxy at work finds."""

import contextlib
import shutil
import socket
import subprocess
import sys
from base64 import b64encode
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from prometheus_client.core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_classic

from pyproxy import Proxy, __version__
from pyproxy.balancing.counters import BOUNDS, CODES, KINDS, METHODS
from pyproxy.control.api import AdminServer
from pyproxy.control.control import Control
from pyproxy.control.metrics import render
from pyproxy.control.source import Source
from pyproxy.errors import BadReply, ControlError, SettingsError, TargetError
from pyproxy.sections import Admin
from pyproxy.settings import Settings
from tests.support import (
    DEADLINE,
    RawTarget,
    answer,
    ask,
    client,
    closed_port,
    eventually,
    get,
    lettered,
    letters,
    replying,
)

OPENMETRICS = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"

Labels = dict[str, str]
promtool = shutil.which("promtool")


def families(proxy: Proxy, accept: str = "") -> dict[str, Metric]:
    """What a parser that isn't ours reads."""
    _, text = render(Control(proxy), accept)
    parse = parse_openmetrics if accept else parse_classic
    return {one.name: one for one in parse(text.decode())}


@contextlib.contextmanager
def served(control: Control, password: str | None = None) -> Iterator[str]:
    """Where the admin API has them."""
    sock = socket.create_server(("127.0.0.1", 0))
    server = AdminServer(sock, Admin(listen="http://127.0.0.1:0", password=password), control)
    server.start()
    try:
        yield server.url
    finally:
        server.stop()


def value(found: dict[str, Metric], sample: str, **labels: str) -> float:
    """Of the samples with these labels, together."""
    values = [
        one.value
        for family in found.values()
        for one in family.samples
        if one.name == sample and labels.items() <= one.labels.items()
    ]
    assert values, f"no {sample} {labels}"
    return sum(values)


def histogram(family: Metric, **labels: str) -> tuple[list[float], float, float]:
    """Cumulative buckets, count and sum."""
    own = [one for one in family.samples if labels.items() <= one.labels.items()]
    [count] = [one.value for one in own if one.name.endswith("_count")]
    [total] = [one.value for one in own if one.name.endswith("_sum")]
    return [one.value for one in own if one.name.endswith("_bucket")], count, total


@pytest.mark.parametrize("accept", ["", OPENMETRICS])
def test_what_has_happened_is_there_in_both_formats(accept: str) -> None:
    with letters("ab") as [a, b], Proxy(targets=[a.url, b.url], sleeping=60) as proxy:
        for _ in range(6):
            get(proxy.url)
        get(proxy.url, method="HEAD")
        a.stop()
        get(proxy.url)
        get(proxy.url)
        assert get(proxy.url, "/", "Content-Length: x").status == 400
        eventually(lambda: not proxy.connections)
        found = families(proxy, accept)
        first, second = ({"pool": "default", "target": one.url} for one in (a, b))
        requests = "pyproxy_requests_total"
        assert value(found, requests, **first) == 4
        assert value(found, requests, **second, method="GET", code="200") == 5
        assert value(found, requests, pool="", target="", method="other", code="400") == 1
        assert value(found, "pyproxy_target_failures_total", **first, reason="connect") == 1
        assert value(found, "pyproxy_retries_total", **first, reason="connect") == 1
        assert value(found, "pyproxy_evictions_total", **first, reason="connect") == 1
        assert value(found, "pyproxy_evictions_total", **second) == 0
        assert value(found, "pyproxy_target_up", **first) == 0
        assert value(found, "pyproxy_target_up", **second) == 1
        assert value(found, "pyproxy_target_state", **first, state="evicted") == 1
        assert value(found, "pyproxy_target_state", **first) == 1
        assert value(found, "pyproxy_target_inflight") == 0
        assert value(found, "pyproxy_target_weight", **second) == 1
        assert value(found, "pyproxy_pool_waiting", pool="default") == 0
        assert value(found, "pyproxy_client_connections") == 0
        assert value(found, "pyproxy_client_connections_accepted_total") == 10
        assert value(found, "pyproxy_build_info", version=__version__) == 1
        assert value(found, "pyproxy_start_time_seconds") > 1.6e9
        buckets, count, total = histogram(found["pyproxy_request_duration_seconds"], **second)
        assert len(buckets) == len(BOUNDS) + 1
        assert buckets == sorted(buckets)
        assert buckets[-1] == count == 5
        assert 0 < total < DEADLINE


def test_the_format_is_the_one_asked_for() -> None:
    with Proxy(targets=["http://127.0.0.1:1"]) as proxy:
        for accept, expected, end in (
            ("", "text/plain; version=0.0.4", b"\n"),
            ("*/*", "text/plain; version=0.0.4", b"\n"),
            (OPENMETRICS, "application/openmetrics-text; version=1.0.0", b"# EOF\n"),
            ("Application/OpenMetrics-Text; version=x", "application/openmetrics-text;", b"EOF\n"),
            ("text/plain; version=1.x", "text/plain; version=0.0.4", b"\n"),
        ):
            content_type, text = render(Control(proxy), accept)
            assert content_type.startswith(expected)
            assert text.endswith(end)


def test_a_tcp_pool_counts_connections_instead_of_requests() -> None:
    with lettered("a") as a:
        entry = {"listen": "127.0.0.1:0", "targets": [a.url.replace("http", "tcp")]}
        with Proxy(tcp=[entry]) as proxy:
            get(proxy.url.replace("tcp", "http"))
            eventually(lambda: value(families(proxy), "pyproxy_connections_total") == 1)
            found = families(proxy)
            [pool] = {one.labels["pool"] for one in found["pyproxy_connections"].samples}
            assert histogram(found["pyproxy_connect_duration_seconds"], pool=pool)[1] == 1
            assert found["pyproxy_requests"].samples == []
            assert found["pyproxy_request_duration_seconds"].samples == []
            assert value(found, "pyproxy_target_up", pool=pool) == 1


def test_what_clients_and_targets_make_up_has_no_label_of_its_own() -> None:
    status = iter(range(200, 1000))

    def odd(_: Any) -> bytes:
        return answer(status=f"{next(status)} Odd", body="")

    with RawTarget(replying(odd)) as target, Proxy(targets=[target.url]) as proxy:
        with client(proxy.url) as wire:
            for at in range(800):
                wire.send(f"M{at} / HTTP/1.1\r\nHost: a\r\n\r\n".encode())
                wire.read_message(bodiless=200 + at in (204, 304))
        for at in range(200):
            ask(proxy.url, f"N{at} / HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n".encode())
        found = families(proxy)
        samples = found["pyproxy_requests"].samples
        assert sum(one.value for one in samples) == 1000
        assert {one.labels["method"] for one in samples} == {"other"}
        codes = {one.labels["code"] for one in samples}
        assert codes <= {*CODES.values(), *(f"{first}xx" for first in range(2, 10))}
        assert {"200", "404", "4xx", "9xx"} <= codes
        assert len(samples) < 100


def kinds(error: type[TargetError]) -> Iterable[str]:
    yield error.kind
    for one in error.__subclasses__():
        yield from kinds(one)


def test_every_reason_is_one_of_those_known() -> None:
    assert BadReply.kind in kinds(TargetError)
    assert set(kinds(TargetError)) <= set(KINDS)


def test_a_target_that_is_gone_has_no_metrics_and_goes_on_when_it_is_back() -> None:
    with letters("ab") as [a, b], Proxy(targets=[a.url, b.url]) as proxy:
        control = Control(proxy)
        get(proxy.url)
        get(proxy.url)
        ids = {one["url"]: one["id"] for one in control.snapshot()["pools"][0]["targets"]}
        control.remove(ids[b.url])
        assert b.url.encode() not in render(control)[1]
        control.add(b.url)
        assert value(families(proxy), "pyproxy_requests_total", target=b.url) == 1


def test_names_with_any_character_are_read_as_they_are() -> None:
    path = '/a"b\\c/'
    with lettered("a") as a, Proxy(routes=[{"path": path, "targets": [a.url]}]) as proxy:
        for accept in ("", OPENMETRICS):
            assert value(families(proxy, accept), "pyproxy_target_up", pool=path) == 1


def test_counters_never_go_back_while_they_are_read() -> None:
    with lettered("a") as a, Proxy(targets=[a.url]) as proxy, client(proxy.url) as wire:
        before = 0.0
        for at in range(50):
            wire.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 4)
            found = families(proxy)
            buckets, count, _ = histogram(found["pyproxy_request_duration_seconds"])
            assert before <= count == buckets[-1] <= 4 * at + 4
            assert buckets == sorted(buckets)
            before = count
            for _ in range(4):
                wire.read_message()


def test_no_room_for_counters_harms_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyproxy.balancing.counters._SPARE", (16 << 20) // 8 - 20)
    with lettered("a") as a, Proxy(targets=[a.url]) as proxy:
        for method in METHODS.values():
            if method not in ("CONNECT", "HEAD"):
                assert get(proxy.url, method=method).status == 200
        for accept in ("", OPENMETRICS):
            found = families(proxy, accept)
            assert value(found, "pyproxy_target_up") == 1
            assert value(found, "pyproxy_client_connections_accepted_total") == 7
            assert found["pyproxy_request_duration_seconds"].samples == []


def test_without_prometheus_client_it_says_what_to_install() -> None:
    program = """
import sys
sys.modules["prometheus_client"] = None
from pyproxy.control.metrics import render
from pyproxy.errors import ControlError
try:
    render(None)
except ControlError as error:
    sys.exit(f"{error.status} {error}")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stderr == (
        "503 metrics need the package prometheus_client: pip install 'pyproxy-lb[metrics]'\n"
    )


def test_the_admin_api_has_them_behind_its_password() -> None:
    known = f"Authorization: Basic {b64encode(b'admin:secret').decode()}"
    with Proxy(targets=["http://127.0.0.1:1"]) as proxy, served(Control(proxy), "secret") as url:
        assert get(url, "/metrics").status == 401
        told = get(url, "/metrics", known)
        assert told.get("Content-Type") == "text/plain; version=0.0.4; charset=utf-8"
        assert b"\npyproxy_target_up{" in told.body
        told = get(url, "/metrics", known, f"Accept: {OPENMETRICS}")
        assert (told.get("Content-Type") or "").startswith("application/openmetrics-text;")
        assert told.body.endswith(b"# EOF\n")


def test_the_admin_api_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyproxy.control.metrics.MISSING", "metrics need a package")
    with Proxy(targets=["http://127.0.0.1:1"]) as proxy, served(Control(proxy)) as url:
        told = ask(url, b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert (told.status, told.body) == (503, b'{"error": "metrics need a package"}\n')


def test_a_failed_reload_is_seen() -> None:
    with Proxy(targets=["http://127.0.0.1:1"]) as proxy:
        control = Control(proxy)
        assert "pyproxy_config_last_reload_successful" not in families(proxy)
        problems: list[str] = []

        def load() -> Settings:
            if problems:
                raise SettingsError(problems)
            return proxy.settings

        control.source = Source(load, proxy.reload, proxy.settings, "appsettings.json")
        control.reload()
        text = render(control)[1].decode()
        assert "pyproxy_config_last_reload_successful 1.0\n" in text
        assert "pyproxy_config_last_reload_success_timestamp_seconds " in text
        problems.append("targets: bad")
        with pytest.raises(ControlError):
            control.reload()
        assert "pyproxy_config_last_reload_successful 0.0\n" in render(control)[1].decode()


@pytest.mark.skipif(not promtool, reason="not installed: prometheus (its promtool)")
def test_promtool_finds_nothing_to_say_of_the_metrics() -> None:
    with letters("ab") as [a, b]:
        tcp = [{"listen": "127.0.0.1:0", "targets": [f"tcp://127.0.0.1:{b.port}"]}]
        with Proxy(targets=[a.url, closed_port()], tcp=tcp) as proxy:
            for _ in range(3):
                get(proxy.url)
            text = render(Control(proxy))[1]
    assert promtool
    done = subprocess.run(
        [promtool, "check", "metrics"], input=text, capture_output=True, timeout=60
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, b"")
