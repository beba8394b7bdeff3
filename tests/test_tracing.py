"""X-Request-ID and traceparent: what targets get, and what the access log says of it."""

import contextlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyproxy import Proxy
from pyproxy.http.message import RequestFields
from pyproxy.http.tracing import own
from tests.http2_client import Http2Client
from tests.programs import ROOT
from tests.support import Message, RawTarget, Wire, answer, client, get, replying

MADE = re.compile(r"[0-9a-f]{32}")
STARTED = re.compile(r"00-[0-9a-f]{32}-[0-9a-f]{16}-01")
PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@contextlib.contextmanager
def traced(**tracing: Any) -> Iterator[tuple[str, RawTarget]]:
    """The URL of a proxy, and its target."""
    with (
        RawTarget(replying(answer("x"))) as target,
        Proxy(targets=[target.url], tracing=tracing) as proxy,
    ):
        yield proxy.url, target


def got(*lines: str, **tracing: Any) -> Message:
    """What a target gets of a request with these fields."""
    with traced(**tracing) as (url, target):
        assert get(url, "/a%20b", *lines).status == 200
        [request] = target.requests
    assert request.start == b"GET /a%20b HTTP/1.1"
    return request


# X-Request-ID


def test_a_request_without_an_id_gets_one_before_its_fields_which_stay_as_they_are() -> None:
    with traced() as (url, target), traced(request_id=False) as (other, untouched):
        get(url, "/", "X-Percent: 100%b %% %s", "User-Agent: me")
        get(other, "/", "X-Percent: 100%b %% %s", "User-Agent: me")
    [request], [plain] = target.requests, untouched.requests
    assert request.fields[0][0] == b"X-Request-ID"
    assert MADE.fullmatch(request.fields[0][1].decode())
    assert request.fields[1:] == plain.fields


def test_each_request_gets_another_one() -> None:
    with traced() as (url, target), client(url) as one, client(url) as other:
        for wire in (one, other) * 50:
            wire.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            wire.read_message()
        found = [request.get("X-Request-ID") or "" for request in target.requests]
    assert len(set(found)) == 100
    assert all(MADE.fullmatch(one) for one in found)


@pytest.mark.parametrize(
    "value", ["a", "x" * 128, '!"#$%&~', "b3d1e7c6-7a0f-4b9e-8a55-1f2e3d4c5b6a"]
)
def test_a_good_id_of_the_client_is_passed_on(value: str) -> None:
    assert got(f"x-request-ID: {value}").all("X-Request-ID") == [value]


@pytest.mark.parametrize(
    "lines",
    [
        ["X-Request-ID:"],
        ["X-Request-ID: " + "x" * 129],
        ["X-Request-ID: a b"],
        ["X-Request-ID: é"],
        ["X-Request-ID: a", "X-Request-ID: a"],
        ["X-Request-ID: a", "X_Request_ID: b"],  # to WSGI the same name
        ["X-Request_ID: b"],
        ["X-Request-ID: a", "Connection: X-Request-ID"],
    ],
)
def test_any_other_is_replaced(lines: list[str]) -> None:
    request = got("Accept: before", *lines, "Accept: after")
    [made] = request.all("X-Request-ID")
    assert MADE.fullmatch(made)
    assert request.all("X_Request_ID") == request.all("X-Request_ID") == []
    assert request.all("Accept") == ["before", "after"]
    assert request.get("Host")


def test_an_id_and_none_alternate_on_one_connection() -> None:
    with traced() as (url, target), client(url) as wire:
        for line in (b"", b"X-Request-ID: mine\r\n") * 2:
            wire.send(b"GET / HTTP/1.1\r\nHost: a\r\n%b\r\n" % line)
            wire.read_message()
        first, second, third, fourth = (one.get("X-Request-ID") for one in target.requests)
    assert (second, fourth) == ("mine", "mine")
    assert first
    assert third
    assert len({first, third, "mine"}) == 3


def test_it_stays_the_same_on_another_target(tmp_path: Path) -> None:
    def fails(target: RawTarget, wire: Wire) -> None:
        target.requests.append(wire.read_message())

    path = tmp_path / "access.log"
    said = {"path": str(path), "format": "{request_id} {attempts}"}
    with (
        RawTarget(fails) as one,
        RawTarget(replying(answer("b"))) as other,
        Proxy(targets=[one.url, other.url], access_log=said, tracing={"start": True}) as proxy,
    ):
        assert get(proxy.url).body == b"b"
    [first], [second] = one.requests, other.requests
    assert first.head == second.head
    assert path.read_text() == f"{second.get('X-Request-ID')} 2\n"


def test_the_client_is_not_told_of_it() -> None:
    with traced() as (url, _):
        assert get(url).get("X-Request-ID") is None


@pytest.mark.parametrize("own_id", [False, True])
@pytest.mark.parametrize("made", [False, True])
def test_the_access_log_has_the_id_that_the_target_got(
    tmp_path: Path, own_id: bool, made: bool
) -> None:
    path = tmp_path / "access.log"
    with (
        RawTarget(replying(answer("x"))) as target,
        Proxy(
            targets=[target.url],
            tracing={"request_id": made},
            access_log={"path": str(path), "format": "json"},
        ) as proxy,
    ):
        get(proxy.url, "/", *["X-Request-ID:  mine "] * own_id)
    [request] = target.requests
    assert json.loads(path.read_text())["request_id"] == request.get("X-Request-ID")
    assert (request.get("X-Request-ID") is None) == (not own_id and not made)


def test_http_2_is_traced_alike(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    with (
        RawTarget(replying(answer("x"))) as target,
        Proxy(
            targets=[target.url],
            http2={"prior_knowledge": True},
            tracing={"start": True},
            access_log={"path": str(path), "format": "{request_id} {protocol}"},
        ) as proxy,
        Http2Client(proxy.url) as one,
    ):
        for stream, fields in enumerate(
            [[], [("x-request-id", "mine")], [("x-request-id", "not mine")]]
        ):
            assert one.get(2 * stream + 1, *fields).status == 200
    ids = [request.all("X-Request-ID") for request in target.requests]
    assert ids[1] == ["mine"]
    assert all(MADE.fullmatch(one) for one in ids[0] + ids[2])
    assert [len(one) for one in ids] == [1, 1, 1]
    assert path.read_text().split() == [text for [one] in ids for text in (one, "HTTP/2.0")]
    assert all(STARTED.fullmatch(one.get("traceparent") or "") for one in target.requests)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_process_and_another_one_make_others() -> None:
    code = """
import os
from pyproxy.http.tracing import Tracer
from pyproxy.http.message import RequestFields
from pyproxy.sections import Tracing
fields = RequestFields(b"Host: a\\r\\n", 1)
def tell():
    _, make = Tracer(Tracing(True, True)).prepare(fields, b"")
    os.write(1, make(b"").replace(b"\\r\\n", b" ") + b"\\n")
child = os.fork()
tell()
if child:
    os.waitpid(child, 0)
"""
    command = [sys.executable, "-c", code]
    made = [
        line.split()
        for _ in range(2)
        for line in subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.splitlines()
    ]
    assert len(made) == 4
    assert len({one[1][:16] for one in made}) == 4  # not only their count
    assert len({one[3] for one in made}) == 4


# traceparent


def test_no_trace_is_started_unless_that_is_asked_for() -> None:
    assert got().get("traceparent") is None
    assert got("traceparent: nonsense").get("traceparent") == "nonsense"


def test_a_trace_is_started_where_there_is_none() -> None:
    with traced(request_id=False, start=True) as (url, target):
        get(url)
        get(url)
        found = [request.get("traceparent") or "" for request in target.requests]
    assert all(STARTED.fullmatch(one) for one in found)
    assert len({one.split("-")[1] for one in found}) == 2
    assert target.requests[0].get("X-Request-ID") is None


@pytest.mark.parametrize("start", [False, True])
def test_a_trace_of_the_client_is_passed_on_as_it_came(start: bool) -> None:
    request = got(f"TraceParent: {PARENT}", "tracestate: a=1", "tracestate: b=2", start=start)
    assert (b"TraceParent", PARENT.encode()) in request.fields
    assert request.all("traceparent") == [PARENT]
    assert request.all("tracestate") == ["a=1", "b=2"]


@pytest.mark.parametrize("lines", [["traceparent: 00-1-2-01"], [f"traceparent: {PARENT}"] * 2, []])
def test_a_bad_one_is_replaced_with_its_state(lines: list[str]) -> None:
    request = got(*lines, "tracestate: a=1", "Accept: x", start=True)
    [started] = request.all("traceparent")
    assert STARTED.fullmatch(started)
    assert started != PARENT
    assert request.all("tracestate") == []
    assert request.get("Accept") == "x"


ID, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.mark.parametrize(
    ("value", "good"),
    [
        (PARENT, True),
        (f"00-{ID}-{SPAN}-00", True),
        (f"00-{ID}-{SPAN}-ff", True),
        (f"01-{ID}-{SPAN}-01", True),
        (f"cc-{ID}-{SPAN}-01-what-comes-later", True),
        (f"00-{ID}-{SPAN}-01-", False),
        (f"00-{ID}-{SPAN}-01-more", False),
        (f"01-{ID}-{SPAN}-01.more", False),
        (f"ff-{ID}-{SPAN}-01", False),
        (f"00-{'0' * 32}-{SPAN}-01", False),
        (f"00-{ID}-{'0' * 16}-01", False),
        (f"00-{ID.upper()}-{SPAN}-01", False),
        (f"00-{ID}-{SPAN}", False),
        (f"0-{ID}-{SPAN}-01", False),
        (f"00-{ID}0-{SPAN}-01", False),
        ("", False),
    ],
)
def test_a_traceparent_is_good_as_the_standard_says(value: str, good: bool) -> None:
    block = f"Host: a\r\ntraceparent: {value}\r\n".encode()
    assert own(RequestFields(block, 1)).traced == good


def test_requests_that_no_target_gets_are_served_too() -> None:
    rules = [{"path": "/", "redirect": "http://a"}]
    with Proxy(routes=rules, tracing={"start": True}) as proxy:
        assert get(proxy.url).status == 302
