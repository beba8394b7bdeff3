"""Commands that talk to a running proxy, through its admin API: ``python -m pyproxy status``."""

import contextlib
import functools
import json
import shlex
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import click

from pyproxy import settings
from pyproxy.control.find import find
from pyproxy.errors import ControlError, PyproxyError, SettingsError
from pyproxy.readers import Json, Text, address, url_of
from pyproxy.scaling_settings import Version
from pyproxy.sections import Admin

if TYPE_CHECKING:
    from requests import RequestException

COLOURS = {"live": "green", "evicted": "red", "draining": "yellow", "maintenance": "yellow"}

_STRANGER = "{} is no admin address of a pyproxy of this version"


class Failed(click.ClickException):
    """Ends the program with a line that says what is wrong, and exit status 1."""

    def show(self, file: Any = None) -> None:
        click.echo(self.message, file=file, err=True)


class Refused(Failed):
    """The same with all that an error says, which may be several lines."""

    def __init__(self, error: PyproxyError) -> None:
        super().__init__(str(error))


class BadSettings(Refused):
    """The same with exit status 2, as for any other wrong argument."""

    exit_code = 2


class Client:
    """Asks one admin API. Raises ``Failed``."""

    TIMEOUTS = (5, 60)  # seconds to connect; for an answer, as a reload takes its time

    def __init__(self, url: str, user: str, password: str | None) -> None:
        import requests  # takes as long as all the rest, and a proxy that starts needs none of it

        self.url = url
        self._session = requests.Session()
        self._session.trust_env = False  # neither a proxy's address nor a password from elsewhere
        if password:
            self._session.auth = (user.encode(), password.encode())  # type: ignore[assignment]

    def ask(self, method: str, path: str, **said: Any) -> Any:
        """What is answered, from JSON; None for nothing."""
        import requests

        try:
            answer = self._session.request(
                method, self.url + path, timeout=self.TIMEOUTS, allow_redirects=False, **said
            )
            told = answer.json() if answer.content else None
        except requests.JSONDecodeError:
            raise Failed(_STRANGER.format(self.url)) from None
        except requests.RequestException as error:
            raise Failed(
                f"can't reach {self.url} ({_reason(error)}): is the proxy running, with this as its"
                " admin.listen?"
            ) from None
        if answer.status_code == 401:
            raise Failed(
                f"{self.url} refuses user or password: say them with --user and --password, or"
                " PYPROXY_ADMIN__PASSWORD"
            )
        if not 200 <= answer.status_code < 300:
            known = told if isinstance(told, dict) else {}
            said_wrong = known.get("error", f"{self.url} answered {answer.status_code}")
            raise Failed("\n".join(known.get("problems", [said_wrong])))
        return told

    def find(self, said: str) -> Mapping[str, Any]:
        """The target that is meant."""
        try:
            return find(self.ask("GET", "/targets"), said)
        except ControlError as error:
            raise Failed(str(error)) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._session.close()


def _reason(error: "RequestException") -> str:
    text = str(error).lower()
    known = ("connection refused", "timed out", "failed to resolve")
    return next((one for one in known if one in text), type(error).__name__)


def _where(admin: str | None, config: Path | None) -> Admin:
    """The admin section that says where to ask. Raises ``click.UsageError``."""
    if admin is not None:
        try:
            return Admin(url_of(*address(Text(admin), ("http", "https"), "127.0.0.1", 80)))
        except ValueError as error:
            raise click.UsageError(f"--admin: {error}") from None
    try:
        found = settings.load_admin(config)
    except SettingsError as error:
        raise click.UsageError(f"{error}\nor say --admin URL") from None
    if found.place is None:
        raise click.UsageError(
            "no admin address: set admin.listen in the proxy's settings, like"
            ' "http://127.0.0.1:8404", and be in their folder, or say --admin URL'
        )
    scheme, host, port = found.place
    if not port:
        raise click.UsageError("admin.listen lets the system choose a port: say --admin URL")
    here = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return Admin(url_of(scheme, here, port), found.user, found.password)


def talking(function: Callable[..., None]) -> Callable[..., None]:
    """A command's function whose first arguments are a ``Client``, and whether to print JSON."""

    @click.option("--admin", metavar="URL", help="Where. [default: as admin.listen says]")
    @click.option("--user", envvar="PYPROXY_ADMIN__USER", help="[default: as admin.user says]")
    @click.option(
        "--password", envvar="PYPROXY_ADMIN__PASSWORD", help="[default: as admin.password says]"
    )
    @click.option(
        "--config",
        type=click.Path(path_type=Path),
        help="The settings file. [default: appsettings.json in the current folder]",
    )
    @click.option("--json", "as_json", is_flag=True, help="Print what is answered, as JSON.")
    @functools.wraps(function)
    def run(
        admin: str | None,
        user: str | None,
        password: str | None,
        config: Path | None,
        as_json: bool,
        **said: Any,
    ) -> None:
        said_there = _where(admin, config)
        assert said_there.listen
        with Client(
            said_there.listen, user or said_there.user, password or said_there.password
        ) as client:
            try:
                function(client, as_json, **said)
            except (KeyError, TypeError, AttributeError) as error:  # not the JSON we know
                raise Failed(_STRANGER.format(client.url)) from error

    return run


def show(as_json: bool, found: Json, lines: Iterable[str]) -> None:
    if as_json:
        click.echo(json.dumps(found, ensure_ascii=False))
    else:
        for line in lines:
            click.echo(line)


def table(rows: Sequence[Sequence[str]], right: str = "") -> list[str]:
    """Aligned columns; ``right`` has an ``r`` at the place of those that end at the right."""
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    return ["  ".join(map(_cell, row, widths, right.ljust(len(row)))).rstrip() for row in rows]


def _cell(text: str, width: int, side: str) -> str:
    padded = text.rjust(width) if side == "r" else text.ljust(width)
    colour = COLOURS.get(text.partition(" ")[0])
    return click.style(padded, fg=colour) if colour else padded


def _seconds(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f} s" if value >= 1 else f"{value * 1000:.1f} ms"


def target_table(targets: Iterable[Mapping[str, Any]], with_id: bool = False) -> list[str]:
    """What is to be known of targets, a line each."""
    rows = [
        ["TARGET", "STATE", "WEIGHT", "REQUESTS", "FAILURES", "IN FLIGHT", "P50", "P99", "REASON"]
    ]
    for one in targets:
        times = one["response_time"]
        counts = [str(one[key]) for key in ("weight", "requests", "failures", "in_flight")]
        name = one["url"] + (" (backup)" if one["backup"] else "")
        measured = [_seconds(times["p50"]), _seconds(times["p99"])]
        rows.append([name, _state(one), *counts, *measured, _plain(one["reason"])])
    if with_id:
        ids = [("ID", "POOL"), *((one["id"], one["pool"]) for one in targets)]
        rows = [[*id, *row] for id, row in zip(ids, rows, strict=True)]
    return table(rows, f"{'..' * with_id}..rrrrrr")


def _state(target: Mapping[str, Any]) -> str:
    """Where workers don't agree, how many see it in which state."""
    several = target.get("states", {}).items()
    return ", ".join(f"{state} {count}" for state, count in several) or str(target["state"])


def _plain(text: str) -> str:
    """Without what a terminal might act on."""
    return "".join(one if one.isprintable() else "?" for one in text)


def status_lines(found: Mapping[str, Any]) -> list[str]:
    connections = found["connections"]
    lines = [
        f"{', '.join(found['urls'])}: {found['requests']} requests,"
        f" {connections['open']} connections open, {connections['accepted']} accepted"
    ]
    if workers := found.get("workers"):
        again = sum(one["restarts"] for one in workers)
        pids = ", ".join(str(one["pid"]) for one in workers)
        lines.append(f"workers: {pids}" + (f"; started again: {again}" if again else ""))
    if refused := (found.get("settings") or {}).get("error"):
        at = _clock(refused["at"])
        lines.append(f"settings: refused at {at}, the ones before are in effect")
        lines += [f"  {_plain(one)}" for one in refused["problems"]]
    for pool in found["pools"]:
        waiting = f", {pool['waiting']} waiting" if pool["waiting"] else ""
        lines += ["", f"{pool['name']} ({pool['policy']}{waiting})"]
        if scaling := pool.get("scaling"):
            lines += scaling_lines(scaling)
        lines += target_table(pool["targets"])
    if found["events"]:
        lines.append("")
    for event in found["events"][-5:]:
        told = f"{event['what']} {event['target']}: {_plain(event['reason'])}"
        lines.append(f"{_clock(event['at'])}  {told}")
    return lines


def _clock(at: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(at))


def scaling_lines(said: Mapping[str, Any]) -> list[str]:
    """What is to be known of targets that are made."""
    phases = [one["phase"] for one in said["instances"]]
    counts = [f"{phases.count('live')} of {said['wanted']} serve"]
    counts += [
        f"{phases.count(one)} {one}" for one in ("starting", "draining", "ending") if one in phases
    ]
    by = "" if said["auto"] else ", by hand"
    lines = [
        f"  scaling ({said['min']} to {said['max']}{by}): {', '.join(counts)};"
        f" made of {_plain(said['version'])}"
    ]
    for one in said["decisions"][-1:]:
        change = f"{one['from']} -> {one['to']}: {_plain(one['reason'])}"
        lines.append(f"  last decision at {_clock(one['at'])}: {change}")
    if said["problem"]:
        lines.append(f"  problem: {_plain(said['problem'])}")
    if rollout := said["rollout"]:
        lines.append(f"  {_rollout_line(rollout)}")
    return lines


def _rollout_line(said: Mapping[str, Any]) -> str:
    old, new, why = (_plain(said[key]) for key in ("from", "to", "reason"))
    done = f"{said['done']} of {said['of']} targets are new"
    texts = {
        "running": f"rollout of {new}: {done}",
        "paused": f"rollout of {new} is paused: {done}",
        "returning": f"rollout of {new} goes back to {old}: {why}",
        "finished": f"rollout of {new} has finished",
        "returned": f"rollout of {new} went back to {old}: {why}",
        "replaced": f"rollout of {new} was replaced by another",
    }
    return texts[said["state"]]


@click.command()
@click.option("--watch", is_flag=True, help="Again each second, until Ctrl-C.")
@talking
def status(client: Client, as_json: bool, watch: bool) -> None:
    """Show what a running proxy does: its targets, and what has happened."""
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            found = client.ask("GET", "/status")
            if watch and not as_json:
                click.clear()
            show(as_json, found, status_lines(found))
            if not watch:
                return
            threading.Event().wait(1)


@click.command()
@click.option("--pool", help="Only of this pool.")
@talking
def targets(client: Client, as_json: bool, pool: str | None) -> None:
    """List the targets, with their ids."""
    found = client.ask("GET", "/targets", params={"pool": pool} if pool else {})
    show(as_json, found, target_table(found, with_id=True))


@click.command()
@click.argument("url")
@click.option("--pool", help="To this pool. [default: the first]")
@click.option("--weight", type=click.IntRange(1, 256))
@click.option("--backup", is_flag=True, default=None, help="Serves when no other is left.")
@click.option("--max-connections", type=click.IntRange(1))
@click.option("--slow-start", metavar="DURATION", help='Like "30s".')
@talking
def add(client: Client, as_json: bool, **said: Json) -> None:
    """Add a target. It stays until the proxy ends, also over a `restart`: the settings file isn't
    written."""
    given = {key: value for key, value in said.items() if value is not None}
    found = client.ask("POST", "/targets", json=given)
    show(as_json, found, [f"added {_named(found)}"])


def _named(found: Mapping[str, Any]) -> str:
    return f"{found['url']} ({found['id']}) to {found['pool']}"


@click.command()
@click.argument("target")
@talking
def remove(client: Client, as_json: bool, target: str) -> None:
    """Remove TARGET (an id, a URL or host:port); what it has under way is finished."""
    found = client.find(target)
    client.ask("DELETE", f"/targets/{found['id']}")
    show(as_json, found, [f"removed {found['url']} from {found['pool']}"])


def _change(client: Client, as_json: bool, target: str, change: Mapping[str, Json]) -> None:
    found = client.ask("PATCH", f"/targets/{client.find(target)['id']}", json=change)
    show(as_json, found, [f"{found['url']} is {found['state']}, weight {found['weight']}"])


@click.command()
@click.argument("target")
@talking
def drain(client: Client, as_json: bool, target: str) -> None:
    """Let TARGET finish what it has, and serve only clients bound to it."""
    _change(client, as_json, target, {"state": "drain"})


@click.command()
@click.argument("target")
@talking
def maintenance(client: Client, as_json: bool, target: str) -> None:
    """Let TARGET serve nobody, and not be probed."""
    _change(client, as_json, target, {"state": "maintenance"})


@click.command()
@click.argument("target")
@talking
def ready(client: Client, as_json: bool, target: str) -> None:
    """Let TARGET serve again."""
    _change(client, as_json, target, {"state": "ready"})


@click.command()
@click.argument("target")
@click.argument("weight", type=click.IntRange(1, 256))
@talking
def weight(client: Client, as_json: bool, target: str, weight: int) -> None:
    """Give TARGET another WEIGHT, from 1 to 256."""
    _change(client, as_json, target, {"weight": weight})


@click.command()
@click.argument("count", type=click.IntRange(0))
@click.option("--pool", help="Of this pool. [default: the first that has scaling]")
@talking
def scale(client: Client, as_json: bool, count: int, pool: str | None) -> None:
    """Have COUNT targets made, between min and max of the pool's scaling."""
    found = client.ask("POST", "/scale", json={"count": count, **_of(pool)})
    show(as_json, found, [f"{found['wanted']} targets are wanted"])


def _of(pool: str | None) -> dict[str, Json]:
    return {"pool": pool} if pool else {}


def _variables(
    context: click.Context, option: click.Parameter, value: Sequence[str]
) -> dict[str, str]:
    found = {}
    for one in value:
        name, equals, said = one.partition("=")
        if not (name and equals):
            raise click.BadParameter(f'expected NAME=VALUE, not "{one}"')
        found[name] = said
    return found


def _said(context: click.Context, option: click.Parameter, value: str | None) -> str | None:
    """A script's variable that is empty mustn't be taken for an option that wasn't said."""
    if value is not None and not value.strip():
        raise click.BadParameter("that is empty")
    return value


def _words(context: click.Context, option: click.Parameter, value: str | None) -> list[str]:
    try:
        return shlex.split(_said(context, option, value) or "")
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@click.command()
@click.option("--image", callback=_said, help="The new version: of containers.")
@click.option(
    "--command", callback=_words, help='The new version: like "python app.py --port {port}".'
)
@click.option(
    "--env",
    "environment",
    multiple=True,
    metavar="NAME=VALUE",
    callback=_variables,
    help="The variables of the new version, instead of those before; may be said several times.",
)
@click.option("--pool", help="Of this pool. [default: the first that has scaling]")
@click.option("--pause", is_flag=True, help="Hold the one that is under way.")
@click.option("--resume", is_flag=True, help="Let it go on.")
@click.option("--abort", is_flag=True, help="Go back to the old version.")
@click.option("--no-wait", is_flag=True, help="Don't follow it to its end.")
@talking
def rollout(
    client: Client,
    as_json: bool,
    pool: str | None,
    pause: bool,
    resume: bool,
    abort: bool,
    no_wait: bool,
    **said: Json,
) -> None:
    """Replace the targets that scaling makes by those of another version, one by one, and follow
    that to its end.

    Without an option: tell how it stands. The exit status is 1 when the old version came back.
    """
    version = {name: one for name, one in said.items() if one}
    actions = {"pause": pause, "resume": resume, "abort": abort}
    chosen = [name for name, one in actions.items() if one]
    if len(chosen) > 1:
        raise click.UsageError("either " + " or ".join(f"--{name}" for name in chosen))
    action = chosen[0] if chosen else None
    if version and action:
        raise click.UsageError(f"either a new version or --{action}")
    if version:
        found = client.ask("POST", "/rollout", json={**version, **_of(pool)})["rollout"]
    elif action:
        found = client.ask("PATCH", "/rollout", json={"action": action, **_of(pool)})["rollout"]
    else:
        found = client.ask("GET", "/rollout", params=_of(pool))
    if no_wait or action == "pause" or not (version or action):
        show(as_json, found, [_rollout_line(found)])
        return
    found = _follow(client, found, pool, as_json)
    if as_json:
        show(as_json, found, [])
    elif found["state"] == "finished":
        _remind(client, found["to"], pool, "environment" in version)
    if found["state"] != ("returned" if action == "abort" else "finished"):
        sys.exit(1)


_STEP = 0.25  # seconds between two looks at a rollout


def _follow(
    client: Client, begun: Mapping[str, Any], pool: str | None, silent: bool
) -> Mapping[str, Any]:
    """Shows each step of a rollout until it has ended; then how it stands."""
    found, before = begun, ""
    try:
        while True:
            line = _rollout_line(found)
            if not silent:
                _show_step(line, found, is_new=line != before)
            if found["ended"]:
                return found
            before = line
            threading.Event().wait(_STEP)
            found = client.ask("GET", "/rollout", params=_of(pool))
            if found["began"] != begun["began"]:
                found = {**begun, "state": "replaced", "ended": time.time()}
    except KeyboardInterrupt:
        told = "the rollout goes on: `pyproxy rollout` tells how it stands, --abort goes back"
        click.echo(f"\n{told}", err=True)
        sys.exit(130)


def _show_step(line: str, found: Mapping[str, Any], is_new: bool) -> None:
    """On a terminal the line is written over and over."""
    seconds = (found["ended"] or time.time()) - found["began"]
    told = f"{max(seconds, 0):.0f} s  {line}"
    if sys.stdout.isatty():
        fits = told if found["ended"] else told[: shutil.get_terminal_size().columns - 1]
        click.echo(f"\r\x1b[K{fits}", nl=bool(found["ended"]))
    elif is_new:
        click.echo(told)


def _remind(client: Client, version: str, pool: str | None, of_more: bool) -> None:
    """Of settings that say another version: the next start makes theirs."""
    status, said = client.ask("GET", "/status"), client.ask("GET", "/settings")
    names = [one["name"] for one in status["pools"] if one["scaling"]]
    for one in (said, *said["routes"]):
        name = f"{one.get('host') or ''}{one.get('path', 'default')}"
        if one["scaling"] and name == (pool or names[0]):
            made = one["scaling"]
            there = str(Version(tuple(made["command"]), made["image"] or ""))
            if there and (there != version or of_more):
                file = (status["settings"] or {}).get("file") or "the settings"
                remedy = "the next start makes these: write the new version there, too"
                click.echo(f"still in {file}: {_plain(there)}; {remedy}")


@click.command()
@talking
def reload(client: Client, as_json: bool) -> None:
    """Let the proxy read its settings again."""
    found = client.ask("POST", "/reload")
    show(as_json, found, found["changes"] or ["nothing has changed"])


@click.command()
@talking
def restart(client: Client, as_json: bool) -> None:
    """Let the proxy go on in new processes; no request is lost."""
    found = client.ask("POST", "/restart")
    show(as_json, found, [found["status"]])


@click.command()
@click.option("--method", default="GET", show_default=True)
@click.option("--host", default="", help="The host that the request names.")
@click.option("--uri", default="/", show_default=True, help="Path and query.")
@click.option("--client", "address", default="127.0.0.1", show_default=True, help="Its address.")
@click.option("--header", multiple=True, metavar="NAME:VALUE", help="May be said several times.")
@talking
def explain(client: Client, as_json: bool, address: str, **said: Any) -> None:
    """Tell which target a request would get now, and why not the others."""
    found = client.ask("GET", "/explain", params={**said, "client": address})
    chosen = found["target"]
    rows = [[one["url"], "", one["reason"]] for one in found["others"]]
    if chosen:
        rows.insert(0, [chosen["url"], "gets it", chosen["reason"]])
    lines = [found["route"] + (f": {found['reason']}" if found.get("reason") else "")]
    show(as_json, found, lines + (table(rows) if rows else []))


COMMANDS = (
    *(status, targets, add, remove, drain, maintenance, ready, weight),
    *(scale, rollout, reload, restart, explain),
)
