"""The dashboard and the scrape configuration in examples/grafana, with a real Prometheus."""

import contextlib
import json
import os
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families as parse

from tests.fleets import made
from tests.programs import Program, command
from tests.support import DEADLINE, closed_port, eventually, get, letters
from tests.test_metrics import value
from tests.test_program import Served, admin, needs_fork

FOLDER = Path(__file__).parents[1] / "examples" / "grafana"
OPERATIONS = (FOLDER.parents[1] / "docs" / "operations.md").read_text(encoding="utf-8")
CREDENTIALS = ("admin", "secret")  # as prometheus.yml there has them

pytestmark = needs_fork
prometheus, promtool = shutil.which("prometheus"), shutil.which("promtool")


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((FOLDER / "dashboard.json").read_text())["panels"]
    return found


def queries() -> list[str]:
    """As Grafana would send them."""
    found = [target["expr"] for one in panels() for target in one.get("targets", [])]
    values = {"$__rate_interval": "1m", "$instance": ".*", "$pool": ".*"}
    for name, said in values.items():
        found = [one.replace(name, said) for one in found]
    assert not [one for one in found if "$" in one]
    return found


@contextlib.contextmanager
def at_work(folder: Path) -> Iterator[Program]:
    """A proxy with two workers, TCP mode, a failed target, and an answer of its own."""
    with letters("ab") as [a, b]:
        said = Served(
            folder,
            targets=[a.url, b.url, closed_port()],
            tcp=[{"listen": "127.0.0.1:0", "targets": [f"tcp://127.0.0.1:{b.port}"]}],
            workers=2,
            sleeping=60,
            routes=[{"path": "/made/", "scaling": made()}],
            admin={"listen": "http://127.0.0.1:0", "password": CREDENTIALS[1]},
        )
        with said.running() as served:
            ask_some(served)
            yield served


def ask_some(served: Program) -> None:
    for _ in range(12):
        assert get(served.url).status == 200
    assert get(served.url, "/", "Content-Length: x").status == 400


def read(served: Program) -> dict[str, Any]:
    url = f"{admin(served)}/metrics"
    text = requests.get(url, auth=CREDENTIALS, timeout=DEADLINE).text
    return {one.name: one for one in parse(text)}


def test_what_several_workers_have_done_adds_up_and_never_goes_back(tmp_path: Path) -> None:
    with at_work(tmp_path) as served:
        counted = "pyproxy_requests_total"
        eventually(lambda: value(read(served), counted, code="200") == 12)
        found = read(served)
        assert value(found, counted, pool="", code="400") == 1
        assert value(found, "pyproxy_request_duration_seconds_count") == 12
        assert value(found, "pyproxy_workers") == 2
        assert value(found, "pyproxy_client_connections_accepted_total") == 13
        assert value(found, "pyproxy_config_last_reload_successful") == 1
        for number in ("0", "1"):
            assert value(found, "pyproxy_worker_restarts_total", worker=number) == 0
        status = requests.get(f"{admin(served)}/status", auth=CREDENTIALS, timeout=DEADLINE).json()
        os.kill(status["workers"][0]["pid"], signal.SIGKILL)
        eventually(lambda: value(read(served), "pyproxy_worker_restarts_total") == 1)
        found = read(served)
        assert value(found, counted, code="200") == 12
        assert value(found, "pyproxy_client_connections_accepted_total") == 13


NAME = re.compile(r"\b(pyproxy_\w+)(?:\{([^}]*)\})?")
GROUPED = re.compile(r"\bby \(([^)]*)\)")


def test_the_dashboard_asks_for_nothing_that_is_not_there(tmp_path: Path) -> None:
    with at_work(tmp_path) as served:
        samples = [one for family in read(served).values() for one in family.samples]
    labels: dict[str, set[str]] = {}
    for one in samples:
        labels.setdefault(one.name, {"instance", "job"}).update(one.labels)
    used = set()
    for query in queries():
        names = NAME.findall(query)
        assert names, query
        for name, matchers in names:
            assert name in labels, query
            used.add(name)
            assert set(re.findall(r"(\w+)\s*[=!]", matchers)) <= labels[name], query
            for group in GROUPED.findall(query):
                assert {one.strip() for one in group.split(",")} <= labels[name], query
    assert used >= {name for name in labels if not name.endswith(("_created", "_info"))} - {
        "pyproxy_connect_duration_seconds_sum",
        "pyproxy_connect_duration_seconds_count",
    }


def test_the_documents_list_every_metric_with_its_labels(tmp_path: Path) -> None:
    found = {}
    with at_work(tmp_path) as served:
        for family in read(served).values():
            name = family.name + ("_total" if family.type == "counter" else "")
            found[name] = {label for one in family.samples for label in one.labels} - {"le"}
    rows = re.findall(r"^\| `(pyproxy_\w+)` \|([^|]*)\|", OPERATIONS, re.MULTILINE)
    assert {name: set(re.findall(r"\w+", labels)) for name, labels in rows} == found


@pytest.mark.skipif(not promtool, reason="not installed: prometheus (its promtool)")
def test_the_alerts_in_the_documents_are_sound(tmp_path: Path) -> None:
    [block] = re.findall(r"```yaml\n(.*?)```", OPERATIONS, re.DOTALL)
    file = tmp_path / "rules.yml"
    file.write_text(block)
    with command(str(promtool), "check", "rules", str(file)) as checked:
        checked.wait_for("4 rules found")
        assert checked.wait() == 0
    assert set(re.findall(r"pyproxy_\w+", block)) <= set(re.findall(r"`(pyproxy_\w+)`", OPERATIONS))


def test_each_panel_of_the_dashboard_is_complete() -> None:
    assert len({one["id"] for one in panels()}) == len(panels())
    places: set[tuple[int, int]] = set()
    for one in panels():
        at = one["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not places & cells, f"{one['title']} covers another"
        places |= cells
        for target in one.get("targets", []):
            assert target["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


@pytest.mark.skipif(not prometheus, reason="not installed: prometheus")
def test_a_prometheus_scrapes_it_and_answers_each_query_of_the_dashboard(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        served = stack.enter_context(at_work(tmp_path))
        said = (FOLDER / "prometheus.yml").read_text()
        said = said.replace("localhost:8404", admin(served).removeprefix("http://"))
        said = said.replace(
            "scrape_interval: 5s", "scrape_interval: 200ms\n    scrape_timeout: 200ms"
        )
        file = tmp_path / "prometheus.yml"
        file.write_text(said)
        port = closed_port()
        stack.enter_context(
            command(
                str(prometheus),
                f"--config.file={file}",
                f"--storage.tsdb.path={tmp_path / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            )
        )

        def ask(query: str) -> list[dict[str, Any]]:
            url = f"http://127.0.0.1:{port}/api/v1/query"
            try:
                told = requests.get(url, {"query": query}, timeout=DEADLINE).json()
            except (requests.ConnectionError, ValueError):  # it starts
                return []
            assert told["status"] == "success", (query, told)
            found: list[dict[str, Any]] = told["data"]["result"]
            return found

        eventually(lambda: ask("count_over_time(pyproxy_workers[1m]) > 3"))
        assert [one["value"][1] for one in ask("up")] == ["1"]
        ask_some(served)
        eventually(lambda: float(ask("sum(rate(pyproxy_requests_total[1m]))")[0]["value"][1]) > 0)
        for query in queries():
            assert ask(query) or query.endswith("> 0"), query
