"""The front door: ``python -m pyproxy``."""

import contextlib
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pyproxy import __version__, commands, lab_commands, settings
from pyproxy.app import Proxy
from pyproxy.commands import BadSettings, Refused
from pyproxy.errors import PyproxyError, SettingsError
from pyproxy.program import Program, Signals, in_background, inheritance
from pyproxy.readers import few
from pyproxy.sections import PoolSettings
from pyproxy.watching import Watcher

if TYPE_CHECKING:
    from pyproxy.lab.demo import Told


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
            multiple=True,
            callback=_once,
            help=f"{option.help[0].upper()}{option.help[1:]}{unit}.{says}",
        )(command)
    return click.option(
        "--config",
        type=click.Path(path_type=Path),
        help="The settings file. [default: appsettings.json in the current folder]",
    )(command)


def _once(_: click.Context, option: click.Parameter, values: tuple[str, ...]) -> str | None:
    if len(values) > 1:
        raise click.BadParameter(f"said {len(values)} times: several values are one list, like 1,2")
    return values[0] if values else None


def _brief(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(_brief(one) for one in value)
    return value if isinstance(value, str) else json.dumps(value)


def read_settings(config: Path | None, given: dict[str, str | None]) -> settings.Settings:
    """All layers of them. Raises ``SettingsError``."""
    said = {key.replace("__", "."): value for key, value in given.items() if value is not None}
    return settings.load(config, command_line=said)


def load_settings(config: Path | None, given: dict[str, str | None]) -> settings.Settings:
    """The same for a command that ends when they are bad."""
    try:
        return read_settings(config, given)
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


for _command in (*commands.COMMANDS, *lab_commands.COMMANDS):
    main.add_command(_command)


def build(chosen: settings.Settings) -> Proxy:
    try:
        return Proxy(chosen)
    except SettingsError as error:
        raise BadSettings(error) from None


def serve(config: Path | None, given: dict[str, str | None], watch: bool) -> None:
    """Until a signal ends it."""

    def load() -> settings.Settings:
        return read_settings(config, given)

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
        at = " ".join([f"{route.host or '*'}{route.path}", *route.endings])
        _tell(chosen, f"  {at}: {_served(route)}")
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
        with contextlib.suppress(OSError):  # who has looked may have gone
            click.echo(text, err=True)


def _served(said: PoolSettings) -> str:
    if isinstance(said, settings.Route) and not said.has_targets:
        return said.redirect or said.files or f"denied with {said.deny}"
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

    signals = Signals("SIGINT", "SIGTERM")
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
    for one in settings.parse(found.settings).certificate_files:
        if not one.is_file():
            click.echo(f"{one} isn't here: nothing starts without it", err=True)
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
    signal.signal(signal.SIGTERM, signal.default_int_handler)
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
