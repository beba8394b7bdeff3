"""The front door: ``python -m pyproxy``."""

import contextlib
import json
import logging
import os
import re
import shlex
import signal
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pyproxy import __version__, commands, settings
from pyproxy.app import Proxy
from pyproxy.errors import PyproxyError, SettingsError
from pyproxy.program import Program, Signals, catch_signals, in_background, inheritance
from pyproxy.readers import Text, few
from pyproxy.readers import duration as read_duration
from pyproxy.sections import PoolSettings
from pyproxy.watching import Watcher

if TYPE_CHECKING:
    from pyproxy.lab.bench import Bench, Plan, Thresholds
    from pyproxy.lab.demo import Told


class Refused(click.ClickException):
    """Ends the program with lines that say what is wrong, and exit status 1."""

    def __init__(self, error: PyproxyError) -> None:
        super().__init__(str(error))

    def show(self, file: Any = None) -> None:
        click.echo(self.message, file=file, err=True)


class BadSettings(Refused):
    """The same with exit status 2, as for any other wrong argument."""

    exit_code = 2


def setting_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """An option for each setting, explained as it is declared."""
    for path, option, default in reversed(settings.options()):
        unit = f" ({option.unit})" if option.unit else ""
        shown = settings.plain(default)
        says = "" if shown in ([], None) else f" [default: {_brief(shown)}]"
        command = click.option(
            f"--{path.replace('_', '-')}",
            path.replace(".", "__"),
            metavar="VALUE",
            help=f"{option.help[0].upper()}{option.help[1:]}{unit}.{says}",
        )(command)
    return click.option(
        "--config",
        type=click.Path(path_type=Path),
        help="The settings file. [default: appsettings.json in the current folder]",
    )(command)


def _brief(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(_brief(one) for one in value)
    return value if isinstance(value, str) else json.dumps(value)


def load_settings(config: Path | None, given: dict[str, str | None]) -> settings.Settings:
    said = {key.replace("__", "."): value for key, value in given.items() if value is not None}
    try:
        return settings.load(config, command_line=said)
    except SettingsError as error:
        raise BadSettings(error) from None


@click.group(
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@setting_options
@click.option("--no-watch", is_flag=True, help="Don't reload when the settings file changes.")
@click.version_option(__version__, prog_name="pyproxy")
@click.pass_context
def main(
    context: click.Context, /, config: Path | None, no_watch: bool, **given: str | None
) -> None:
    """A load-balancing HTTP and TCP reverse proxy.

    Without a command it serves, as appsettings.json in the current folder says. Environment
    variables (PYPROXY_SLEEPING=5, PYPROXY_TIMEOUTS__READ=5) stand over the file, the options below
    over both.
    """
    try:
        folder = os.getcwd()
    except OSError:
        raise click.UsageError("the current folder is gone: go to one that is there") from None
    if "" not in sys.path and folder not in sys.path:  # as with `python -m`, for policies
        sys.path.insert(0, folder)
    if context.invoked_subcommand is None:
        serve(config, given, not no_watch)
    elif config or no_watch or any(value is not None for value in given.values()):
        raise click.UsageError(
            f"options of a command stand behind it: {context.invoked_subcommand}"
        )


for _command in commands.COMMANDS:
    main.add_command(_command)


def build(chosen: settings.Settings) -> Proxy:
    try:
        return Proxy(chosen)
    except SettingsError as error:
        raise BadSettings(error) from None


def serve(config: Path | None, given: dict[str, str | None], watch: bool) -> None:
    """Until a signal ends it."""

    def load() -> settings.Settings:
        said = {key.replace("__", "."): value for key, value in given.items() if value is not None}
        return settings.load(config, command_line=said)

    def tell(text: str) -> None:
        _tell(program.runner.settings, text)  # which a reload may have changed

    try:
        left = inheritance()
        files = settings.files(config)
        watcher = Watcher(files) if watch else None
        chosen = load()
        source = ", ".join(str(one) for one in files if one.exists())
        program = Program(chosen, load, source, watcher, tell, left)
        program.start()
    except SettingsError as error:
        raise BadSettings(error) from None
    except PyproxyError as error:
        raise Refused(error) from None
    except (EOFError, OSError) as error:  # TimeoutError is one
        raise click.ClickException(f"what was left to this program can't be had: {error}") from None
    urls = ", ".join(program.runner.urls)
    workers = f" with {chosen.worker_count} workers" if chosen.worker_count > 1 else ""
    _tell(chosen, f"pyproxy {__version__} listens on {urls}{workers} and serves {_served(chosen)}")
    for route in chosen.routes:
        at = f"{route.host or '*'}{route.path}"
        _tell(chosen, f"  {at}: {route.redirect or route.files or _served(route)}")
    for entry in chosen.tcp:
        _tell(chosen, f"  {entry.listen}: {_served(entry)}")
    if program.runner.admin_url:
        _tell(chosen, f"  admin: {program.runner.admin_url}")
    sys.exit(program.run())


def _tell(chosen: settings.Settings, text: str) -> None:
    """To whom looks at the terminal; or, where each line is to be JSON, to the log."""
    if chosen.log.format == "json":
        logging.getLogger("pyproxy").info(text.strip())
    else:
        click.echo(text, err=True)


def _served(said: PoolSettings) -> str:
    if not said.has_targets:
        routes = isinstance(said, settings.Settings) and said.routes
        return "routes only" if routes else "tcp only"
    urls = [target.url for target in said.targets]
    many = f"{len(urls)} targets" if len(urls) > 1 else "1 target"
    told = [f"{many} ({said.policy.name}): {few(urls)}"] if urls else []
    if made := said.scaling:
        told.append(f"{made.min} to {made.max} targets made of {str(made.version) or made.service}")
    return " and ".join(told)


@main.command()
@setting_options
@click.option("--watch", is_flag=True, help="Check again at every change of a file, until Ctrl-C.")
def check(config: Path | None, watch: bool, **given: str | None) -> None:
    """Check the settings, and print those that are in effect."""
    if watch:
        _check_again_and_again(config, given)
    else:
        _print_checked(load_settings(config, given))


def _print_checked(chosen: settings.Settings) -> None:
    build(chosen)  # certificates are read, too
    click.echo(json.dumps(settings.plain(chosen), indent=2, ensure_ascii=False))


def _check_again_and_again(config: Path | None, given: dict[str, str | None]) -> None:
    """At every change of the settings' files, and of the certificates that they name."""
    try:
        files = settings.files(config)
    except SettingsError as error:
        raise BadSettings(error) from None
    watcher = Watcher(files)
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            try:
                chosen = load_settings(config, given)
                watcher.watch([*files, *chosen.certificate_files])
                _print_checked(chosen)
            except BadSettings as error:
                error.show()
            click.echo(f"checked at {time.strftime('%X')}, until {files[0]} changes", err=True)
            watcher.wait()


@main.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option(
    "--port",
    default=8001,
    show_default=True,
    type=click.IntRange(0, 65535),
    help="The port; 0 lets the system choose.",
)
@click.option(
    "--name",
    help="What the header X-Target says. [default: host:port; this machine's name, if HOST stands "
    "for all of its addresses]",
)
@click.option(
    "--until-eof", is_flag=True, help="End when standard input ends, as when a parent dies."
)
@click.option(
    "--delay",
    default=0.0,
    type=click.FloatRange(0, 60),
    help="Seconds that a request takes. [default: none]",
)
@click.option(
    "--at-once",
    default=1,
    show_default=True,
    type=click.IntRange(1),
    help="Requests that take their time side by side; others wait.",
)
def target(
    host: str, port: int, name: str | None, until_eof: bool, delay: float, at_once: int
) -> None:
    """Run the "Hello, world!" target."""
    from pyproxy.lab.target import HelloServer

    signals = catch_signals("SIGINT", "SIGTERM")
    try:
        server = HelloServer(host, port, name, delay, at_once)
    except PyproxyError as error:
        raise Refused(error) from None
    with server:
        click.echo(f"target {server.name} listens on {server.url}")
        in_background(server.serve_forever)
        if until_eof:
            in_background(_signal_at_eof, signals)
        signals.get()
        server.shutdown()


def _signal_at_eof(signals: Signals) -> None:
    sys.stdin.buffer.read()
    signals.put(0)


@main.command()
@click.argument("names", nargs=-1, required=True)
@click.option(
    "--certificate", default="cert.pem", show_default=True, type=click.Path(path_type=Path)
)
@click.option("--key", default="key.pem", show_default=True, type=click.Path(path_type=Path))
def certificate(names: tuple[str, ...], certificate: Path, key: Path) -> None:
    """Make a self-signed certificate for NAMES (like localhost), to try https with."""
    from pyproxy.lab.certificate import make_certificate

    try:
        make_certificate(list(names), certificate, key)
    except PyproxyError as error:
        raise Refused(error) from None
    click.echo(f"{certificate} and {key} are for {', '.join(names)}: browsers will warn of them")


@main.command()
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option(
    "--from",
    "kind",
    type=click.Choice(["nginx", "haproxy"]),
    help="Whose file it is. [default: what it looks like]",
)
@click.option(
    "-o",
    "--output",
    default="appsettings.json",
    show_default=True,
    help="The settings file to write; - is standard output.",
)
@click.option("--force", is_flag=True, help="Write over a file that exists.")
def convert(file: Path, kind: str | None, output: str, force: bool) -> None:
    """Make settings of FILE, a configuration of nginx or HAProxy.

    What pyproxy has no equivalent for is told on standard error, a line each: where it stands, and
    what to do. The exit status is 1 if nothing could be converted; nothing is written then.
    """
    from pyproxy.contrib import convert as converters
    from pyproxy.contrib.converting import ConvertError

    try:
        found = converters.convert(file, kind)
    except ConvertError as error:
        raise Refused(error) from None
    except OSError as error:
        raise click.ClickException(f"{file}: {error.strerror}") from None
    text = json.dumps(found.settings, indent=2, ensure_ascii=False) + "\n"
    if output == "-":
        click.echo(text, nl=False)
    else:
        secret = "password" in found.settings.get("admin", {})
        _write_settings(Path(output), text, force, 0o600 if secret else 0o666)
    for note in found.notes:
        click.echo(str(note), err=True)
    told = f"{len(found.notes)} notes" if len(found.notes) != 1 else "1 note"
    click.echo(f"{file} -> {output}: {told}", err=True)


def _write_settings(path: Path, text: str, force: bool, mode: int) -> None:
    flags = os.O_WRONLY | os.O_CREAT | (os.O_TRUNC if force else os.O_EXCL)
    try:
        with open(os.open(path, flags, mode), "w", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise click.ClickException(f"{path} exists: --force writes over it") from None
    except OSError as error:
        raise click.ClickException(f"{path}: {error.strerror}") from None


SECONDS = click.FloatRange(0, min_open=True)


@main.command()
@click.argument("url", default="http://localhost:8000/")
@click.option(
    "--interval", default=0.2, show_default=True, type=SECONDS, help="Seconds between requests."
)
@click.option("--duration", type=SECONDS, help="Seconds to go on for. [default: until Ctrl-C]")
@click.option("--count", type=click.IntRange(1), help="Requests to send. [default: no limit]")
def spam(url: str, interval: float, duration: float | None, count: int | None) -> None:
    """Ask URL (or a port of this machine) again and again; a line each: time, status, duration,
    target.

    The exit status is 1 if a request failed.
    """
    from pyproxy.lab.spamer import Tally
    from pyproxy.lab.spamer import spam as ask

    if url.isdigit():
        url = f"http://localhost:{url}/"
    if not url.startswith(("http://", "https://")):
        raise click.UsageError(f'expected a URL like "http://localhost:8000/", not "{url}"')
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    tally = Tally()
    with contextlib.suppress(KeyboardInterrupt):
        for answer in ask(url, interval, duration, count):
            tally.add(answer)
            click.echo(str(answer))
    for line in tally.lines():
        click.echo(line)
    sys.exit(1 if tally.failed else 0)


@main.command()
@click.option(
    "--before", default=6.0, show_default=True, type=SECONDS, help="Seconds with all five."
)
@click.option("--down", default=6.0, show_default=True, type=SECONDS, help="Seconds with four.")
@click.option(
    "--after", default=6.0, show_default=True, type=SECONDS, help="Seconds with all again."
)
@click.option(
    "--interval", default=0.05, show_default=True, type=SECONDS, help="Seconds between requests."
)
@click.option(
    "--sleeping", default=2.0, show_default=True, type=SECONDS, help="Seconds between probes."
)
@click.option(
    "--autoscale", is_flag=True, help="Another story: load rises and falls, and so do targets."
)
@click.option(
    "--duration",
    default=45.0,
    show_default=True,
    type=SECONDS,
    help="Seconds for --autoscale, about; the only one of these options that is for it.",
)
@click.pass_context
def demo(
    context: click.Context,
    before: float,
    down: float,
    after: float,
    interval: float,
    sleeping: float,
    autoscale: bool,
    duration: float,
) -> None:
    """Show failover: five targets, the proxy, a spamer; the third target dies and comes back.

    The exit status is 0 if no request failed and the target was evicted and restored; with
    --autoscale if none failed, and there were more targets when they were needed, and then fewer.
    """
    from pyproxy.lab.demo import Demo
    from pyproxy.lab.demo_scaling import ScalingDemo

    for name in ("before", "down", "after", "interval", "sleeping", "duration"):
        given = context.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT
        if given and autoscale is not (name == "duration"):
            only = "only with" if name == "duration" else "not with"
            raise click.UsageError(f"--{name} {only} --autoscale")
    logging.getLogger("pyproxy").addHandler(logging.NullHandler())  # the story tells it
    if autoscale:
        _tell_story(ScalingDemo(duration, plain=not sys.stdout.isatty()).run())
    else:
        _tell_story(Demo(before, down, after, interval, sleeping).run())


def _tell_story(run: Generator["Told", None, None]) -> None:
    live = sys.stdout.isatty()
    told = 0
    drawn = 0
    story: Told | None = None
    try:
        for story in run:
            if drawn:
                click.echo(f"\x1b[{drawn}A\x1b[J", nl=False)
                drawn = 0
            for at, text in story.events[told:]:
                click.echo(f"{at:6.2f} s  {text}")
                told += 1
            if live:
                lines = story.table()
                click.echo("\n".join(["", *lines]))
                drawn = len(lines) + 1
    except PyproxyError as error:
        raise Refused(error) from None
    except KeyboardInterrupt:
        run.close()
        click.echo("stopped before the end of the story", err=True)
        sys.exit(130)
    if story is None:
        sys.exit(1)
    if drawn:
        click.echo(f"\x1b[{drawn}A\x1b[J", nl=False)
    click.echo("\n".join(["", *story.summary()]))
    sys.exit(0 if story.went_well() else 1)


COUNT = click.IntRange(1)


@main.command()
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
    """Try policies on a fleet in simulated time: no sockets, a million requests in seconds.

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


@main.command()
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
@click.option("--duration", default="10s", show_default=True, type=Duration(), help="Of a run.")
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

    The exit status is 1 if a threshold (--max-failures, --p50, --p90, --p99, --min-rate) is broken,
    130 after Ctrl-C, which ends the load early and still tells.
    """
    from pyproxy.lab.bench import Bench, Thresholds, circumstances
    from pyproxy.lab.report import check_for_matplotlib

    plan = _plan(**said)
    for name in [name for name in os.environ if name.startswith("PYPROXY_")]:
        del os.environ[name]  # the proxy's settings are what is said here
    signals = catch_signals("SIGINT", "SIGTERM")
    try:
        if png:
            check_for_matplotlib()
        for file in (html, png, None if json_file in (None, "-") else Path(str(json_file))):
            if file and not file.absolute().parent.is_dir():
                raise click.UsageError(f"{file}: there is no folder {file.absolute().parent}")
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
    from pyproxy.lab.bench import Plan

    counts = compare or ((targets,) if targets else ())
    if sum(map(bool, (url, targets, compare))) != 1:
        raise click.UsageError("say one of URL, --targets N, --compare N,N")
    if url and url.isdigit():
        url = f"http://localhost:{url}/"
    if url and not re.match(r"https?://[^/?#\s]", url):
        raise click.UsageError(f'expected a URL like "http://localhost:8000/", not "{url}"')
    own = ("command", "delay", "at_once", "policy", "config", "path", "kill")
    given = {**said, "command": command}
    if url and (wrong := [name for name in own if given[name]]):
        raise click.UsageError(f"{_options(wrong)} only with --targets or --compare")
    if said["admin"] and not url:
        raise click.UsageError("--admin only with URL: the proxy that is started here has its own")
    if command and (said["delay"] or said["at_once"]):
        raise click.UsageError("--delay, --at-once: not with --command")
    if said["at_once"] and not said["delay"]:
        raise click.UsageError("--at-once only with --delay: a target that takes no time has room")
    if said["locustfile"] and (wrong := [name for name in ("pause", "path") if said[name]]):
        raise click.UsageError(f"{_options(wrong)}: not with --locustfile, which says that")
    _check_kills(counts, said)
    try:
        words = tuple(shlex.split(command or ""))
    except ValueError as error:
        raise click.UsageError(f"--command: {error}") from None
    if words and not any("{port}" in word for word in words):
        raise click.UsageError("--command: {port} has to stand where the target's port is said")
    try:
        over = {"targets": "1", **({"policy": said["policy"]} if said["policy"] else {})}
        if said["config"]:
            settings.load(said["config"], {}, over)
        else:
            settings.parse(over, "command line")
    except SettingsError as error:
        raise BadSettings(error) from None
    said = {name: value for name, value in said.items() if value is not None}
    credentials = (user, password) if password else None
    return Plan(url or "", counts, words, credentials=credentials, **said)


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
    if max(said["kill"]) > min(counts):
        raise click.UsageError(f"--kill {max(said['kill'])}: there are {min(counts)} targets")
    for name, when in (("at", at), ("restore", restore)):
        if when and when >= said["duration"]:
            raise click.UsageError(f"--{name} is after the end: say a longer --duration")
    if restore and restore <= at:
        raise click.UsageError("--restore must be after --at: both are since the load began")


def _show_progress(going: "Bench") -> None:
    """On a terminal a line that changes, else a line each second."""
    from pyproxy.lab.bench import progress

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
    from pyproxy.lab.bench import as_json, table
    from pyproxy.lab.report import draw, page

    runs = [run for run in going.runs if run.seconds]
    if not runs:
        click.echo("stopped before anything was measured", err=True)
        sys.exit(130)
    broken = [one for run in runs for one in thresholds.broken(run)]
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
        raise click.ClickException(f"{error.filename}: {error.strerror}") from None
    if json_file != "-":
        click.echo("\n".join(table(runs)))
    for one in broken:
        click.echo(f"threshold broken: {one}", err=True)
    if going.stopped:
        click.echo("stopped before its end", err=True)
    sys.exit(130 if going.stopped else 1 if broken else 0)
