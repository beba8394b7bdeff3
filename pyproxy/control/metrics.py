"""Metrics: what there is and what has been counted, as Prometheus reads it.

Each answer to a scrape is made of one snapshot and one reading of the counters; nothing is kept
between two. Only targets that there are now have metrics, so that those behind a name that changes
its addresses don't heap up; one that comes back goes on where it was.
"""

import platform
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pyproxy import __version__
from pyproxy.balancing.counters import ACCEPTED, BOUNDS, KINDS, Totals
from pyproxy.balancing.target import State
from pyproxy.control.control import Verbs
from pyproxy.control.schemas import PHASES
from pyproxy.errors import ControlError

try:
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
        InfoMetricFamily,
        Metric,
    )
    from prometheus_client.openmetrics import exposition as openmetrics
    from prometheus_client.utils import floatToGoString
except ImportError:
    MISSING = "metrics need the package prometheus_client: pip install 'pyproxy-lb[metrics]'"
else:
    MISSING = ""

_TARGET = ("pool", "target")

# What happens to targets: the metric, and what it says of itself.
_EVENTS = {
    "failures": ("pyproxy_target_failures", "Failures of a target, by their reason."),
    "retries": ("pyproxy_retries", "Requests that went to another target after this had failed."),
    "evictions": ("pyproxy_evictions", "Evictions of a target, by their reason."),
}

# What a target is: the metric, what it says of itself, and how to find it.
_GAUGES: dict[str, tuple[str, Callable[[Mapping[str, Any]], float]]] = {
    "pyproxy_target_up": (
        "1 while a target is live, 0 while it is evicted, draining or in maintenance.",
        lambda target: target["state"] == State.LIVE,
    ),
    "pyproxy_target_inflight": (
        "Requests (connections in TCP mode) that a target has under way.",
        lambda target: target["in_flight"],
    ),
    "pyproxy_target_weight": (
        "A target's share beside that of the others.",
        lambda target: target["weight"],
    ),
}


def render(verbs: Verbs, accept: str = "") -> tuple[str, bytes]:
    """The content type and the text of all metrics: OpenMetrics, if the Accept field asks for
    that, else Prometheus' own format. Raises ``ControlError`` 503 without prometheus_client."""
    if MISSING:
        raise ControlError(503, MISSING)
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Collector(verbs))
    # prometheus_client's own choice fails with some fields, and repeats what stands in others.
    asked = {one.partition(";")[0].strip().lower() for one in accept.split(",")}
    if "application/openmetrics-text" in asked:
        text: bytes = openmetrics.generate_latest(registry)  # type: ignore[no-untyped-call]
        return openmetrics.CONTENT_TYPE_LATEST, text
    return "text/plain; version=0.0.4; charset=utf-8", generate_latest(registry)


class Collector:
    """What prometheus_client asks for metrics. Raises ``ControlError``, as the verbs do."""

    def __init__(self, verbs: Verbs) -> None:
        self._verbs = verbs

    def describe(self) -> list["Metric"]:
        """Nothing: registering asks no verbs."""
        return []

    def collect(self) -> Iterator["Metric"]:
        found, totals = self._verbs.snapshot(), self._verbs.totals()
        yield from _process(found, totals)
        yield from _workers(found.get("workers"))
        yield from _settings(found.get("settings"))
        yield from _pools(found["pools"])
        yield from _scaling(found["pools"])
        yield from _answers(found["pools"], totals)
        yield from _times(found["pools"], totals)
        yield from _events(found["pools"], totals)


def _process(found: Mapping[str, Any], totals: Totals) -> Iterator["Metric"]:
    build = {"version": __version__, "python": platform.python_version()}
    yield InfoMetricFamily("pyproxy_build", "This program and what runs it.", value=build)
    yield GaugeMetricFamily(
        "pyproxy_start_time_seconds", "When the proxy started, in Unix time.", found["started"]
    )
    yield GaugeMetricFamily(
        "pyproxy_client_connections", "Open client connections.", found["connections"]["open"]
    )
    yield CounterMetricFamily(
        "pyproxy_client_connections_accepted",
        "Client connections since the start.",
        totals.get(ACCEPTED, [0])[0],
    )


def _workers(workers: list[dict[str, Any]] | None) -> Iterator["Metric"]:
    """Without any, this process is the one worker."""
    workers = [{"number": 0, "pid": 1, "restarts": 0}] if workers is None else workers
    serving = sum(one["pid"] is not None for one in workers)
    yield GaugeMetricFamily("pyproxy_workers", "Processes that serve.", serving)
    restarts = CounterMetricFamily(
        "pyproxy_worker_restarts",
        "How often a process that had ended was started again.",
        labels=["worker"],
    )
    for one in workers:
        restarts.add_metric([str(one["number"])], one["restarts"])
    yield restarts


def _settings(source: Mapping[str, Any] | None) -> Iterator["Metric"]:
    if source is None:
        return  # they come from no file
    yield GaugeMetricFamily(
        "pyproxy_config_last_reload_successful",
        "1 if the settings were fine when they were read last.",
        source["error"] is None,
    )
    yield GaugeMetricFamily(
        "pyproxy_config_last_reload_success_timestamp_seconds",
        "When the settings in effect were read, in Unix time.",
        source["loaded"],
    )


def _pools(pools: list[dict[str, Any]]) -> Iterator["Metric"]:
    waiting = GaugeMetricFamily(
        "pyproxy_pool_waiting", "Requests in a pool's queue.", labels=["pool"]
    )
    for pool in pools:
        waiting.add_metric([pool["name"]], pool["waiting"])
    yield waiting
    for name, (text, value) in _GAUGES.items():
        gauge = GaugeMetricFamily(name, text, labels=_TARGET)
        for labels, target in _targets(pools):
            gauge.add_metric(labels, value(target))
        yield gauge
    states = GaugeMetricFamily(
        "pyproxy_target_state", "1 for the state that a target is in.", labels=[*_TARGET, "state"]
    )
    for labels, target in _targets(pools):
        for state in State:
            states.add_metric([*labels, state], target["state"] == state)
    yield states


def _scaling(pools: list[dict[str, Any]]) -> Iterator["Metric"]:
    """Of pools whose targets are made."""
    wanted = GaugeMetricFamily(
        "pyproxy_scaling_wanted", "Targets that shall be made.", labels=["pool"]
    )
    made = GaugeMetricFamily(
        "pyproxy_scaling_targets", "Targets that have been made.", labels=["pool", "phase"]
    )
    failing = GaugeMetricFamily(
        "pyproxy_scaling_failing", "1 while targets can't be made.", labels=["pool"]
    )
    for pool in pools:
        if told := pool["scaling"]:
            wanted.add_metric([pool["name"]], told["wanted"])
            failing.add_metric([pool["name"]], bool(told["problem"]))
            phases = [one["phase"] for one in told["instances"]]
            for phase in PHASES:
                made.add_metric([pool["name"], phase], phases.count(phase))
    yield from (wanted, made, failing)


def _targets(pools: list[dict[str, Any]]) -> Iterator[tuple[list[str], dict[str, Any]]]:
    """Each with the values of its labels."""
    for pool in pools:
        for target in pool["targets"]:
            yield [pool["name"], target["url"]], target


def _answers(pools: list[dict[str, Any]], totals: Totals) -> Iterator["Metric"]:
    family = CounterMetricFamily(
        "pyproxy_requests",
        "Requests answered: by a target, or, with an empty pool and target, by the proxy itself.",
        labels=[*_TARGET, "method", "code"],
    )
    known = {("", ""), *(tuple(labels) for labels, _ in _targets(pools))}
    for (what, *labels), values in totals.items():
        if what == "answers" and tuple(labels[:2]) in known:
            family.add_metric(labels, values[0])
    yield family


def _times(pools: list[dict[str, Any]], totals: Totals) -> Iterator["Metric"]:
    answers = HistogramMetricFamily(
        "pyproxy_request_duration_seconds",
        "From the request's way to a target until its response head.",
        labels=_TARGET,
    )
    connects = HistogramMetricFamily(
        "pyproxy_connect_duration_seconds",
        "What a connection to a target took, in TCP mode.",
        labels=_TARGET,
    )
    connections = CounterMetricFamily(
        "pyproxy_connections", "Connections to a target, in TCP mode.", labels=_TARGET
    )
    bounds = [*map(floatToGoString, BOUNDS), "+Inf"]
    for pool in pools:
        family = connects if pool["kind"] == "tcp" else answers
        for target in pool["targets"]:
            labels = [pool["name"], target["url"]]
            times = totals.get(("times", *labels))
            if not times:
                continue  # there was no room for it
            count, buckets = 0, []
            for bound, inside in zip(bounds, times, strict=False):
                count += inside
                buckets.append((bound, float(count)))
            family.add_metric(labels, buckets, times[-1] / 1e6)
            if family is connects:
                connections.add_metric(labels, count)
    yield from (answers, connects, connections)


def _events(pools: list[dict[str, Any]], totals: Totals) -> Iterator["Metric"]:
    """With zeros for what hasn't happened yet: the step from none to one is what alerts are for."""
    for what, (name, text) in _EVENTS.items():
        family = CounterMetricFamily(name, text, labels=[*_TARGET, "reason"])
        for labels, _ in _targets(pools):
            for kind in KINDS:
                family.add_metric([*labels, kind], totals.get((what, *labels, kind), [0])[0])
        yield family
