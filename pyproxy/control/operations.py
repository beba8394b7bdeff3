"""Operations: all that the admin API can do, in one table: requests are answered from it, and
``/openapi.json`` is made of it."""

import ipaddress
import json
import re
from collections.abc import Callable

from pyproxy.control import schemas
from pyproxy.control.control import Verbs
from pyproxy.control.described import Described
from pyproxy.control.feed import Feed
from pyproxy.control.find import Told, find, targets_in
from pyproxy.control.openapi import REFUSED, describe
from pyproxy.control.operation import Answer, Call, Operation, Parameter, Reply, Table, told
from pyproxy.control.page import page
from pyproxy.control.schemas import listing, record, ref
from pyproxy.control.status import Status
from pyproxy.errors import ControlError


class Api:
    """What the operations do, with the verbs of one proxy. Used by any number of threads."""

    def __init__(self, verbs: Verbs) -> None:
        self.verbs = verbs
        self.status = Status(verbs)
        self.feed = Feed()

    def _target(self, id: str) -> Told:
        for one in targets_in(self.status()):
            if one["id"] == id:
                return one
        raise ControlError(404, f'no target has the id "{id}"')

    def get_page(self, call: Call) -> Answer:
        body, policy = page()
        fields = (("Content-Security-Policy", policy),)
        return Answer(body, media_type="text/html; charset=utf-8", fields=fields)

    def get_openapi(self, call: Call) -> Answer:
        return told(describe(OPERATIONS))

    def get_health(self, call: Call) -> Answer:
        return told({"healthy": True})

    def get_readiness(self, call: Call) -> Answer:
        without = [
            pool["name"]
            for pool in self.verbs.snapshot()["pools"]
            if pool["kind"] == "http" and not any(one["state"] == "live" for one in pool["targets"])
        ]
        return told({"ready": False, "pools": without}, 503) if without else told({"ready": True})

    def get_status(self, call: Call) -> Answer:
        return told(self.status())

    def get_events(self, call: Call) -> Answer:
        return Answer(self.feed.watch(self._event), media_type="text/event-stream")

    def _event(self) -> bytes:
        return f"retry: 1000\ndata: {json.dumps(self.status())}\n\n".encode()

    def get_metrics(self, call: Call) -> Answer:
        # What it needs isn't loaded where nobody asks for it.
        from pyproxy.control.metrics import render

        media_type, text = render(self.verbs, call.accept)
        return Answer(text, media_type=media_type)

    def get_settings(self, call: Call) -> Answer:
        return told(self.verbs.settings())

    def get_targets(self, call: Call) -> Answer:
        return told(targets_in(self.status(), call.one("pool")))

    def get_target(self, call: Call) -> Answer:
        return told(self._target(call.path["id"]))

    def add_target(self, call: Call) -> Answer:
        said = dict(call.body)
        id = self.verbs.add(said, said.pop("pool", ""))
        return told(self._target(id), 201, ("Location", f"/targets/{id}"))

    def change_target(self, call: Call) -> Answer:
        id = call.path["id"]
        if "weight" in call.body:
            self.verbs.weight(id, call.body["weight"])
        if "state" in call.body:
            verb: Callable[[str], None] = getattr(self.verbs, call.body["state"])
            verb(id)
        return told(self._target(id))

    def remove_target(self, call: Call) -> Answer:
        self.verbs.remove(call.path["id"])
        return Answer(status=204)

    def manage(self, call: Call) -> Answer:
        url, pool = call.body["backend"], call.body.get("pool", "")
        if call.body["action"] == "add":
            id = self.verbs.add(url, pool)
        else:
            id = find(targets_in(self.verbs.snapshot(), pool), url)["id"]
            self.verbs.remove(id)
        return told({"status": "ok", "action": call.body["action"], "backend": url, "id": id})

    def _scaled(self, name: str) -> Told:
        """The pool with this name; without one, the first whose targets are made."""
        pools: list[Told] = self.verbs.snapshot()["pools"]
        for pool in pools:
            if pool["scaling"] and name in ("", pool["name"]):
                return pool
        said = f'no pool with scaling is called "{name}"' if name else "no pool has scaling"
        raise ControlError(404, said)

    def scale(self, call: Call) -> Answer:
        pool = self._scaled(call.body.get("pool", ""))["name"]
        return told(self.verbs.scale(call.body["count"], pool))

    def get_rollout(self, call: Call) -> Answer:
        pool = self._scaled(call.one("pool"))
        if pool["scaling"]["rollout"] is None:
            raise ControlError(404, f"there was no rollout of the pool {pool['name']} so far")
        return told(pool["scaling"]["rollout"])

    def roll_out(self, call: Call) -> Answer:
        version = dict(call.body)
        if not call.by_password and version.keys() & {"command", "environment"}:
            # Else every user of this machine could run any program as the user that this one is.
            raise ControlError(
                403,
                "a command or an environment is rolled out only for those with a password: "
                "set admin.password, or write it into the settings",
            )
        pool = self._scaled(version.pop("pool", ""))["name"]
        return told(self.verbs.roll_out(version, pool), 202)

    def change_rollout(self, call: Call) -> Answer:
        pool = self._scaled(call.body.get("pool", ""))["name"]
        return told(self.verbs.change_rollout(call.body["action"], pool))

    def reload(self, call: Call) -> Answer:
        return told({"changes": self.verbs.reload()})

    def restart(self, call: Call) -> Answer:
        restart: Callable[[], object] | None = getattr(self.verbs, "restart", None)
        if restart is None:
            raise ControlError(409, "this proxy can't restart itself")
        restart()
        return told({"status": "restarting"}, 202)

    def explain(self, call: Call) -> Answer:
        fields = {}
        for line in call.query.get("header", []):
            name, _, value = line.partition(":")
            fields[name.strip()] = value.strip()
        asked = Described(
            call.one("method", "GET"),
            _without_port(call.one("host") or fields.get("Host", "")),
            call.one("uri", "/"),
            call.one("client", "127.0.0.1"),
            fields,
        )
        return told(self.verbs.explain(asked))


def _without_port(host: str) -> str:
    return re.sub(r":\d*$", "", host).lower()


def _address(value: str) -> None:
    try:
        ipaddress.ip_address(value)
    except ValueError:
        raise ValueError('expected an address like "192.0.2.1"') from None


def _matching(pattern: str, expected: str) -> Callable[[str], None]:
    def check(value: str) -> None:
        if not re.fullmatch(pattern, value):
            raise ValueError(f"expected {expected}")

    return check


_TARGETS = listing(ref("Target"))
_MISSING = Reply("no such target or pool", ref("Error"))
_CONFLICT = Reply("it can't be done as things are", ref("Error"))
_ONE = Reply("the target", ref("Target"))
_SCALING = Reply("the pool's scaling", ref("Scaling"))
_NO_SCALING = Reply("no such pool, or its targets aren't made", ref("Error"))

OPERATIONS = (
    Operation(
        "GET",
        "/",
        "The page",
        Api.get_page,
        {200: Reply("a page", schemas.TEXT, "text/html")},
    ),
    Operation(
        "GET",
        "/openapi.json",
        "This description",
        Api.get_openapi,
        {200: Reply("OpenAPI", {"type": "object"})},
    ),
    Operation(
        "GET",
        "/healthz",
        "Whether the proxy runs",
        Api.get_health,
        {200: Reply("it runs", record(healthy=schemas.FLAG))},
        is_open=True,
    ),
    Operation(
        "GET",
        "/readyz",
        "Whether each HTTP pool has a live target",
        Api.get_readiness,
        {
            200: Reply("each has", ref("Readiness")),
            503: Reply("these pools have none", ref("Readiness")),
        },
        is_open=True,
    ),
    Operation(
        "GET",
        "/status",
        "All there is, and what has been counted of it",
        Api.get_status,
        {200: Reply("the status", ref("Status"))},
    ),
    Operation(
        "GET",
        "/events",
        "The status again and again, each second and after each change, as server-sent events",
        Api.get_events,
        {
            200: Reply("events without an end", schemas.TEXT, "text/event-stream"),
            503: Reply("too many watch", ref("Error")),
        },
    ),
    Operation(
        "GET",
        "/metrics",
        "What has been counted, for Prometheus: as OpenMetrics, if the Accept field asks for that",
        Api.get_metrics,
        {
            200: Reply("Prometheus' text", schemas.TEXT, "text/plain"),
            503: Reply("prometheus_client isn't installed", ref("Error")),
        },
    ),
    Operation(
        "GET",
        "/settings",
        "The settings in effect; secrets are hidden",
        Api.get_settings,
        {200: Reply("as appsettings.json would say them", {"type": "object"})},
    ),
    Operation(
        "GET",
        "/targets",
        "The targets",
        Api.get_targets,
        {200: Reply("of all pools, or of one", _TARGETS), 404: _MISSING},
        (Parameter("pool", "only of this pool"),),
    ),
    Operation(
        "POST",
        "/targets",
        "Add a target, as the settings say one, to a pool (without a name: to the first)",
        Api.add_target,
        {
            201: Reply("the target", ref("Target"), fields=("Location",)),
            404: _MISSING,
            409: _CONFLICT,
        },
        body="NewTarget",
    ),
    Operation(
        "GET",
        "/targets/{id}",
        "One target",
        Api.get_target,
        {200: _ONE, 404: _MISSING},
    ),
    Operation(
        "PATCH",
        "/targets/{id}",
        "Change a target: its weight, or whether it serves (ready, drain, maintenance)",
        Api.change_target,
        {200: _ONE, 404: _MISSING},
        body="Change",
    ),
    Operation(
        "DELETE",
        "/targets/{id}",
        "Remove a target; what it has under way is finished",
        Api.remove_target,
        {204: Reply("it is gone"), 404: _MISSING},
    ),
    Operation(
        "POST",
        "/manage",
        "Add or remove a target by its URL",
        Api.manage,
        {
            200: Reply(
                "done",
                record(
                    status=schemas.TEXT, action=schemas.TEXT, backend=schemas.TEXT, id=schemas.TEXT
                ),
            ),
            404: _MISSING,
            409: _CONFLICT,
        },
        body="Manage",
    ),
    Operation(
        "POST",
        "/scale",
        "So many targets of a pool whose targets are made (without a name: of the first such)",
        Api.scale,
        {200: _SCALING, 404: _NO_SCALING, 409: _CONFLICT},
        body="Scale",
    ),
    Operation(
        "GET",
        "/rollout",
        "The rollout that is under way, or the last one",
        Api.get_rollout,
        {
            200: Reply("how it stands", ref("Rollout")),
            404: Reply("no such pool, or there was none so far", ref("Error")),
        },
        (Parameter("pool", "of this pool; without one, of the first whose targets are made"),),
    ),
    Operation(
        "POST",
        "/rollout",
        "Begin to make the targets of another version: one new target comes, one old one goes",
        Api.roll_out,
        {
            202: Reply("it has begun", ref("Scaling")),
            403: Reply(f"{REFUSED[403]}; or a command without a password", ref("Error")),
            404: _NO_SCALING,
            409: Reply(
                "one is under way, this version is there already, or a new program is taking over",
                ref("Error"),
            ),
        },
        body="NewVersion",
    ),
    Operation(
        "PATCH",
        "/rollout",
        "Hold a rollout, let it go on, or go back to the old version",
        Api.change_rollout,
        {200: _SCALING, 404: _NO_SCALING, 409: _CONFLICT},
        body="RolloutChange",
    ),
    Operation(
        "POST",
        "/reload",
        "Read the settings again, and apply what differs",
        Api.reload,
        {
            200: Reply("what has changed", record(changes=listing(schemas.TEXT))),
            409: _CONFLICT,
            422: Reply("these settings are refused, and nothing has changed", ref("Error")),
        },
    ),
    Operation(
        "POST",
        "/restart",
        "Go on in new processes, without a lost request",
        Api.restart,
        {202: Reply("it has begun", record(status=schemas.TEXT)), 409: _CONFLICT},
    ),
    Operation(
        "GET",
        "/explain",
        "Which target a request would get now, and why not the others",
        Api.explain,
        {200: Reply("who would get it", ref("Explanation"))},
        (
            Parameter(
                "method",
                "GET unless said",
                {"type": "string", "pattern": "^[A-Z]{1,32}$"},
                _matching("[A-Z]{1,32}", 'a method like "GET"'),
            ),
            Parameter("host", "the host that the request names"),
            Parameter(
                "uri",
                "path and query",
                {"type": "string", "pattern": "^/"},
                _matching("(?s)/.*", 'a path like "/x?y=z"'),
            ),
            Parameter(
                "client",
                "the address of the client",
                {"type": "string", "anyOf": [{"format": "ipv4"}, {"format": "ipv6"}]},
                _address,
            ),
            Parameter(
                "header",
                "a field of the request, as name:value; several times for several",
                {"type": "array", "items": {"type": "string", "pattern": "^[^:]+:"}},
                _matching("(?s)[^:]+:.*", "name:value"),
                repeated=True,
            ),
        ),
    ),
)


TABLE = Table(OPERATIONS)
