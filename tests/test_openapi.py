"""The description of the admin API is true: what it describes is answered as it says."""

import contextlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import hypothesis
import pytest

from pyproxy import Proxy
from pyproxy.control.api import AdminServer
from pyproxy.control.openapi import describe
from pyproxy.control.operations import OPERATIONS
from pyproxy.errors import ControlError
from tests.admin import admin_of, ask_admin

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis isn't installed")

checks = pytest.importorskip("schemathesis.specs.openapi.checks")

DOCUMENT = describe(OPERATIONS)
ENDLESS = "/events"

schema = schemathesis.openapi.from_dict(DOCUMENT).exclude(path=ENDLESS)


@pytest.fixture(scope="module")
def admin() -> Iterator[AdminServer]:
    with Proxy(targets=[1, 2]) as proxy, admin_of(proxy, load=lambda: ["sleeping: 5"]) as server:
        yield server


# What a target may be is more than a schema says.
OPEN_ENDED = ("/targets", "/manage")

each_operation: Callable[[Callable[..., None]], Callable[..., None]] = schema.parametrize()
ports = itertools.count(1)


@each_operation
@hypothesis.settings(max_examples=25)
def test_every_answer_is_one_that_is_described(case: Any, admin: AdminServer) -> None:
    without = [checks.positive_data_acceptance] if case.path in OPEN_ENDED else []
    case.call_and_validate(base_url=admin.url, excluded_checks=without)
    if "id" in case.path_parameters:  # the same of a target that is there
        known = admin.api.verbs.add(f"http://127.0.0.1:{next(ports)}")
        case.path_parameters["id"] = known
        case.call_and_validate(base_url=admin.url, excluded_checks=[checks.negative_data_rejection])
        with contextlib.suppress(ControlError):
            admin.api.verbs.remove(known)


def test_the_document_is_served_as_it_is(admin: AdminServer) -> None:
    found = ask_admin(admin, "GET", "/openapi.json").json()
    assert found == DOCUMENT
    assert {(one.method, one.path) for one in OPERATIONS} == {
        (method.upper(), path) for path, methods in found["paths"].items() for method in methods
    }
