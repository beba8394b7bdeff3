"""Commands of the lab that measure: policies in simulated time, and load on a proxy."""

import json
import os
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import click

from pyproxy import settings
from pyproxy.commands import BadSettings, Refused
from pyproxy.errors import PyproxyError, SettingsError
from pyproxy.program import Signals
from pyproxy.readers import Text
from pyproxy.readers import duration as read_duration

if TYPE_CHECKING:
    from pyproxy.lab.bench import Bench
    from pyproxy.lab.bench_results import Plan, Thresholds

SECONDS = click.FloatRange(0, min_open=True)
COUNT = click.IntRange(1)


@click.command()
@click.option("--targets", default=5, show_default=True, type=click.IntRange(1, 100_000))
@click.option(
    "--service",
    metavar="KIND:TIME",
    help="What a request takes at a target: constant:TIME, exponential:MEAN, uniform:FROM:TO, "
    "lognormal:MEAN:SIGMA or pareto:MEAN:ALPHA. [default: exponential:100ms, or as --log says]",
)
@click.option(
    "--at-once",
    default=1,
    show_default=True,
    type=COUNT,
    help="Requests that a target serves side by side; others wait there in line.",
)
@click.option(
    "--load",
    type=click.FloatRange(0, min_open=True),
    help="Requests, as a share of what all targets together can serve. [default: 0.7]",
)
@click.option("--rate", type=SECONDS, help="The same as requests a second.")
@click.option("--requests", type=COUNT, help="How many come. [default: 100000]")
@click.option(
    "--policy",
    multiple=True,
    metavar="NAME",
    help="A policy, or several with commas between them, or a JSON object with options; can be "
    "said again. [default: each; first only with --max-connections]",
)
@click.option(
    "--speed", multiple=True, metavar="WHO:FACTOR", help="2:0.5, 3-5:2: how fast targets are."
)
@click.option("--weight", multiple=True, metavar="WHO:WEIGHT", help="Their weights.")
@click.option(
    "--down",
    multiple=True,
    metavar="WHO@FROM-TO",
    help="3@10s-20s: the third target is dead for so long; 3@10s: for good.",
)
@click.option(
    "--errors", multiple=True, metavar="WHO@FROM-TO", help="It answers 500 within a millisecond."
)
@click.option(
    "--slow",
    multiple=True,
    metavar="WHO:FACTOR@FROM-TO",
    help="3:10@10s-20s: what it begins takes ten times as long.",
)
@click.option(
    "--remove", multiple=True, metavar="WHO@AT", help="It leaves the pool's list, with no harm."
)
@click.option(
    "--keys", type=click.IntRange(1, 1 << 24), help="Clients, URIs, users. [default: 10000]"
)
@click.option(
    "--zipf",
    type=click.FloatRange(0, 10),
    help="The k-th of the keys comes as often as 1 / k to this power. [default: 0, all alike]",
)
@click.option(
    "--proxies",
    default=1,
    show_default=True,
    type=click.IntRange(1, 1000),
    help="Proxies in front of the same targets, each with a pool of its own.",
)
@click.option(
    "--in-step", is_flag=True, help="They have all started just now, and begin with one target."
)
@click.option(
    "--share", metavar="TIME", help="They tell each other every TIME what they have under way."
)
@click.option("--max-fails", default=1, show_default=True, type=COUNT)
@click.option("--sleeping", default="10s", show_default=True, metavar="TIME")
@click.option(
    "--attempts", default=5, show_default=True, type=COUNT, help="As the setting retry.attempts."
)
@click.option(
    "--retry-errors", is_flag=True, help='Answers of 500 are failures, as "statuses": [500] says.'
)
@click.option(
    "--timeout", default="60s", show_default=True, metavar="TIME", help="As timeouts.read."
)
@click.option("--slow-start", metavar="TIME", help="As a target's slow_start.")
@click.option("--max-connections", type=COUNT, help="As a target's max_connections.")
@click.option(
    "--queue-size", default=1000, show_default=True, type=click.IntRange(0), help="As queue.size."
)
@click.option(
    "--queue-timeout", default="10s", show_default=True, metavar="TIME", help="As queue.timeout."
)
@click.option("--warm-up", metavar="TIME", help="The times of who comes before don't count.")
@click.option(
    "--log",
    type=click.Path(path_type=Path),
    help="Replay an access log (combined, or JSON lines): who comes when, and how long it took.",
)
@click.option(
    "--faster",
    default=1.0,
    show_default=True,
    type=click.FloatRange(0, min_open=True),
    help="So many times as fast as the log.",
)
@click.option("--seed", default=0, show_default=True, help="Another one, another chance.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON; times in seconds.")
@click.option(
    "--plot",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Draw a .png, .svg or .pdf; needs the extra plots.",
)
def simulate(as_json: bool, plot: Path | None, **given: Any) -> None:
    """Try policies on a fleet in simulated time: a million requests in less than a minute.

    The pools and policies are those that serve; times are like 100ms, 10s, 5m; targets are counted
    from 1.

    \b
    Which policy is best where some requests take far longer than others?
      pyproxy simulate --targets 10 --service pareto:50ms:2.1 --load 0.8
    A target of ten dies, and comes back:
      pyproxy simulate --targets 10 --down 3@30s-60s --requests 10000
    One is slow; twenty proxies that know nothing of each other:
      pyproxy simulate --targets 100 --speed 1:0.2 --proxies 20
    What would have been, with your own requests:
      pyproxy simulate --targets 8 --log access.log --policy hash_ring,least_connections

    p50, p99, p99.9, mean: from a request's coming to its answer. imbalance: answers of the busiest
    target beside the average. peak: most requests that one target had at once. moved: answers that
    came from another target than the same client's last one. lost: requests without an answer.
    """
    from pyproxy.lab import simulate as lab

    try:
        made = lab.plan(lab.Said(**given))
        if plot:
            lab.check_plot(plot)
        results = list(made.run(_progress if sys.stderr.isatty() else None))
        if sys.stderr.isatty():
            click.echo("\r\x1b[K", nl=False, err=True)
        if given["warm_up"] and not any(one.times or one.lost for one in results):
            raise SettingsError(["--warm-up: longer than it lasts, so that nobody is counted"])
        if plot:
            lab.plot(made, results, plot)
    except SettingsError as error:
        raise BadSettings(error) from None
    except PyproxyError as error:
        raise Refused(error) from None
    except KeyboardInterrupt:
        click.echo("stopped before the end", err=True)
        sys.exit(130)
    if as_json:
        click.echo(lab.as_json(made, results))
    else:
        click.echo("\n".join([made.story, "", *lab.table(results)]))


def _progress(policy: str, share: float) -> None:
    click.echo(f"\r\x1b[K{policy} {share:.0%}", nl=False, err=True)


class Duration(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    """Seconds, or a text like 200ms."""

    name = "DURATION"

    def convert(self, value: Any, parameter: Any, context: Any) -> float:
        if isinstance(value, float):
            return value
        try:
            return read_duration(Text(value))
        except ValueError as error:
            self.fail(f"{error}, not {value!r}", parameter, context)


def numbers(least: int) -> Callable[[click.Context, click.Parameter, str | None], tuple[int, ...]]:
    """Reads "1,3"."""

    def read(context: click.Context, parameter: click.Parameter, value: str | None) -> Any:
        found = tuple(value.split(",")) if value else ()
        if not all(one.strip().isdecimal() and least <= int(one) <= 1000 for one in found):
            raise click.BadParameter(f'expected numbers from {least} on, like "1,3", not "{value}"')
        return tuple(map(int, found))

    return read


@click.command()
@click.argument("url", required=False)
@click.option("--targets", type=click.IntRange(1, 1000), help="Start so many, and a proxy.")
@click.option(
    "--compare",
    metavar="N,N",
    callback=numbers(1),
    help='The same load against so many targets, and then so many: "1,3".',
)
@click.option(
    "--command",
    metavar="COMMAND",
    help='What starts a target of yours, like "python app.py --port {port}". [default: the target'
    " of this program]",
)
@click.option("--delay", type=Duration(), help="What our target takes for a request.")
@click.option("--at-once", type=click.IntRange(1), help="Requests that it works on side by side.")
@click.option("--policy", help="The policy of the proxy. [default: hash_ring]")
@click.option(
    "--config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Its settings, but for where it listens and its targets.",
)
@click.option("--path", help="What is asked of targets started here. [default: /]")
@click.option(
    "--users", default=10, show_default=True, type=click.IntRange(1, 100_000), help="At once."
)
@click.option("--spawn-rate", type=SECONDS, help="Users that begin a second. [default: all]")
@click.option(
    "--duration",
    type=Duration(),
    help="Of a run. [default: 10s; with --kill 10s after the last of --at, --restore]",
)
@click.option("--pause", type=Duration(), help="Between two requests of a user. [default: none]")
@click.option(
    "--locustfile",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="What users do. [default: GET the same again and again]",
)
@click.option(
    "--kill", metavar="N,N", callback=numbers(1), help="Kill this target, or these, with --at."
)
@click.option("--at", type=Duration(), help="When, since the load began.")
@click.option("--restore", type=Duration(), help="When to start what was killed again.")
@click.option(
    "--admin", metavar="URL", help="The admin API of the proxy at URL: who served, states."
)
@click.option("--user", default="admin", envvar="PYPROXY_ADMIN__USER", help="[default: admin]")
@click.option("--password", envvar="PYPROXY_ADMIN__PASSWORD", help="For the admin API.")
@click.option("--max-failures", type=click.IntRange(0), help="More of them: exit status 1.")
@click.option("--p50", type=Duration(), help="Slower than this: exit status 1.")
@click.option("--p90", type=Duration(), help="The same.")
@click.option("--p99", type=Duration(), help="The same.")
@click.option("--min-rate", type=SECONDS, help="Fewer requests a second: exit status 1.")
@click.option(
    "--json", "json_file", metavar="FILE", help="Write all figures; - is standard output."
)
@click.option(
    "--html", type=click.Path(dir_okay=False, path_type=Path), help="Write a report with plots."
)
@click.option(
    "--png", type=click.Path(dir_okay=False, path_type=Path), help="Write the plots as a picture."
)
def bench(
    json_file: str | None,
    html: Path | None,
    png: Path | None,
    max_failures: int | None,
    p50: float | None,
    p90: float | None,
    p99: float | None,
    min_rate: float | None,
    **said: Any,
) -> None:
    """Load URL, or targets started here with a proxy in front (--targets, --compare), through
    Locust, and tell requests a second and response times.

    Times are like 200ms, 10s, 5m; a number alone is seconds.

    The exit status is 1 if a threshold (--max-failures, --p50, --p90, --p99, --min-rate) is broken,
    130 after Ctrl-C, which ends the load early and still tells.
    """
    from pyproxy.lab.bench import Bench
    from pyproxy.lab.bench_results import Thresholds, circumstances
    from pyproxy.lab.report import check_for_matplotlib

    plan = _plan(**said)
    for name in [name for name in os.environ if name.startswith("PYPROXY_")]:
        del os.environ[name]  # the proxy's settings are what is said here
    signals = Signals("SIGINT", "SIGTERM")
    try:
        if png:
            check_for_matplotlib()
        for file in (html, png, None if json_file in (None, "-") else Path(str(json_file))):
            if file and not file.absolute().parent.is_dir():
                raise click.UsageError(f"{file}: there is no folder {file.absolute().parent}")
            if file and file.is_dir():
                raise click.UsageError(f"{file} is a folder: say a file in it")
        going = Bench(plan, signals)
        told = {"command": shlex.join(["python", "-m", "pyproxy", *sys.argv[1:]])}
        told.update(circumstances())
        _show_progress(going)
        thresholds = Thresholds(max_failures, p50, p90, p99, min_rate)
        _report(going, thresholds, told, json_file, html, png)
    except PyproxyError as error:
        raise Refused(error) from None


def _plan(
    url: str | None,
    targets: int | None,
    compare: tuple[int, ...],
    command: str | None,
    user: str,
    password: str | None,
    **said: Any,
) -> "Plan":
    """What is asked for, checked. Raises ``click.UsageError``."""
    from pyproxy.lab.bench_results import Plan

    counts = compare or ((targets,) if targets else ())
    if sum(map(bool, (url, targets, compare))) != 1:
        raise click.UsageError("say one of URL, --targets N, --compare N,N")
    if url and url.isdigit():
        url = f"http://localhost:{url}/"
    if url and not _is_url(url):
        raise click.UsageError(f'expected a URL like "http://localhost:8000/", not "{url}"')
    own = ("command", "delay", "at_once", "policy", "config", "path", "kill")
    given = {**said, "command": command}
    if url and (wrong := [name for name in own if given[name]]):
        raise click.UsageError(f"{_options(wrong)} only with --targets or --compare")
    if said["admin"] and not url:
        raise click.UsageError("--admin only with URL: the proxy that is started here has its own")
    if said["admin"] and not _is_url(said["admin"]):
        told = f'--admin: expected a URL like "http://127.0.0.1:8404", not "{said["admin"]}"'
        raise click.UsageError(told)
    if said["path"] and not re.fullmatch(r"/\S*", said["path"]):
        raise click.UsageError(f'--path: expected one like "/search?q=a", not "{said["path"]}"')
    if command and (said["delay"] or said["at_once"]):
        raise click.UsageError("--delay, --at-once: not with --command")
    if said["at_once"] and not said["delay"]:
        raise click.UsageError("--at-once only with --delay: a target that takes no time has room")
    if said["locustfile"] and (wrong := [name for name in ("pause", "path") if said[name]]):
        raise click.UsageError(f"{_options(wrong)}: not with --locustfile, which says that")
    _check_kills(counts, said)
    words = _words(command or "")
    _check_settings(said["config"], said["policy"])
    if said["duration"] is None:
        said["duration"] = Plan.duration + max(said["at"] or 0.0, said["restore"] or 0.0)
    said = {name: value for name, value in said.items() if value is not None}
    credentials = (user, password) if password else None
    return Plan(url or "", counts, words, credentials=credentials, **said)


def _words(command: str) -> tuple[str, ...]:
    try:
        words = tuple(shlex.split(command))
    except ValueError as error:
        raise click.UsageError(f"--command: {error}") from None
    if words and not any("{port}" in word for word in words):
        raise click.UsageError("--command: {port} has to stand where the target's port is said")
    return words


def _check_settings(config: Path | None, policy: str | None) -> None:
    over = {"targets": "1", **({"policy": policy} if policy else {})}
    try:
        if config:
            settings.load(config, {}, over)
        else:
            settings.parse(over, "command line")
    except SettingsError as error:
        raise BadSettings(error) from None


def _is_url(text: str) -> bool:
    try:
        found = urlsplit(text)
        return (
            not re.search(r"\s", text)
            and found.scheme in ("http", "https")
            and bool(found.hostname)
            and found.port != 0
        )
    except ValueError:  # no such port
        return False


def _options(names: list[str]) -> str:
    return ", ".join(f"--{name.replace('_', '-')}" for name in names)


def _check_kills(counts: tuple[int, ...], said: dict[str, Any]) -> None:
    at, restore = said["at"], said["restore"]
    if not said["kill"]:
        if at or restore:
            raise click.UsageError("--at, --restore: only with --kill")
        return
    if at is None:
        raise click.UsageError("--kill: say when, like --at 5s")
    if len({*said["kill"]}) < len(said["kill"]):
        raise click.UsageError("--kill: each target once")
    if max(said["kill"]) > min(counts):
        raise click.UsageError(f"--kill {max(said['kill'])}: there are {min(counts)} targets")
    for name, when in (("at", at), ("restore", restore)):
        if when and said["duration"] and when >= said["duration"]:
            raise click.UsageError(f"--{name} is after the end: say a longer --duration")
    if restore and restore <= at:
        raise click.UsageError("--restore must be after --at: both are since the load began")


def _show_progress(going: "Bench") -> None:
    """On a terminal a line that changes, else a line each second."""
    from pyproxy.lab.bench_results import progress

    live = sys.stderr.isatty()
    for run in going.go():
        click.echo(f"\r\x1b[K{progress(run)}" if live else progress(run), err=True, nl=not live)
    if live:
        click.echo("\r\x1b[K", err=True, nl=False)


def _report(
    going: "Bench",
    thresholds: "Thresholds",
    told: dict[str, str],
    json_file: str | None,
    html: Path | None,
    png: Path | None,
) -> None:
    from pyproxy.lab.bench_results import as_json, table
    from pyproxy.lab.report import draw, page

    runs = [run for run in going.runs if run.seconds]
    if not runs:
        click.echo("stopped before anything was measured", err=True)
        sys.exit(130)
    broken = [one for run in runs for one in thresholds.broken(run)]
    if json_file != "-":  # first: the files may not be to be had
        click.echo("\n".join(table(runs)))
    try:
        if json_file:
            text = json.dumps({**as_json(runs, told), "broken": broken}, indent=1)
            if json_file == "-":
                click.echo(text)
            else:
                Path(json_file).write_text(text + "\n", encoding="utf-8")
        if html:
            html.write_text(page(runs, told, broken), encoding="utf-8")
        if png:
            draw(runs, png)
    except OSError as error:
        what = f"{error.filename}: " if error.filename else "a report can't be written: "
        raise click.ClickException(f"{what}{error.strerror}") from None
    for one in broken:
        click.echo(f"threshold broken: {one}", err=True)
    if going.stopped:
        click.echo("stopped before its end", err=True)
    sys.exit(130 if going.stopped else 1 if broken else 0)


COMMANDS = (simulate, bench)
