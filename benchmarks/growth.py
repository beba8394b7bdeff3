"""Measure how pyproxy grows: with targets, connections, the size of bodies, and policies.

    python benchmarks/growth.py                                     # all: a quarter of an hour
    python benchmarks/growth.py --only targets --rounds 1 --seconds 1 --targets 5,1000

    start        from the command to the first connection, and what the proxy then has, at rest
    targets      5 to 10,000, each an address of its own (127.x.y.z, a few nginx processes),
                 driven by wrk with 16 connections
    connections  1 to 10,000, all of them busy (wrk), and as many idle beside 16 busy ones
    bodies       1 byte to 1 GiB, down and up, one after another on one connection (bodies.py)
    policies     a request's share in the pool, and taking a target out and back, with 5 to 10,000
                 busy targets (pyproxy alone, as in policies.py)

In each round every proxy is measured in turn; a number is the median of the rounds, and what counts
are the ratios within one run. Memory: at rest it is the proportional share (PSS), under load the
most that was resident. Processor time is of the proxy's processes.

Markdown goes to stdout, progress to stderr, raw rounds to the file given by --json, and a picture
to the one given by --plot (needs matplotlib). Needs Linux, wrk and nginx; haproxy and caddy are
started and measured at rest if installed. The exit status is 1 if something had to be left out.
"""

import argparse
import json
import logging
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from bodies import transfer
from compare import PEERS, SPARE, TARGETS, installed, raise_file_limit, row, say
from contestants import (
    HOST,
    TARGET,
    Broken,
    free_ports,
    most_resident,
    nginx,
    processor_time,
    proportional,
    proxy_command,
    running,
    targets_command,
)
from load import Case, Proxy, holding, wrk
from policies import picks, pool_of

from pyproxy.balancing.policies import POLICIES

FEW = 16  # busy connections where their number isn't what grows
OPENED = 500  # connections for each second of a measurement
PER_PROCESS = 2500  # targets: each needs two open files there
WARM = 30.0  # seconds until each target must have been asked
SIZES = {"targets": (5, 10, 100, 1000, 10_000), "connections": (1, 10, 100, 1000, 10_000)}
BODIES = (1, 1 << 10, 1 << 16, 1 << 20, 1 << 26, 1 << 30)
UNITS = {1 << 30: "GiB", 1 << 20: "MiB", 1 << 10: "KiB", 1: "B"}


@dataclass
class Growth:
    """What all parts are given, and what they find: one entry a measurement."""

    folder: Path
    rounds: int
    seconds: int
    names: list[str]
    sizes: dict[str, tuple[int, ...]]
    policies: list[str]
    found: list[dict[str, Any]] = field(default_factory=list)
    broken: bool = False

    def note(self, part: str, name: str, size: int | str, **values: Any) -> None:
        self.found.append({"part": part, "proxy": name, "size": size, **values})
        told = "  ".join(
            f"{key} {value:,.2f}" if isinstance(value, float) else f"{key} {value}"
            for key, value in values.items()
            if value not in ({}, None)
        )
        say(f"{part} {name} {size}: {told}")

    def turns(self, names: Sequence[str]) -> Iterator[str]:
        """The names in each round, in another order each time."""
        for turn in range(self.rounds):
            yield from names[:: -1 if turn % 2 else 1]

    @contextmanager
    def leaving_out(self, part: str, name: str, size: object) -> Iterator[None]:
        try:
            yield
        except Broken as error:
            self.broken = True
            say(f"{part} {name} {size} is left out: {error}")

    @contextmanager
    def proxy(
        self, name: str, targets: Sequence[int | str], connections: int = SPARE
    ) -> Iterator[Proxy]:
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        [port] = free_ports(1)
        argv = proxy_command(name, sys.executable, folder, port, targets, connections)
        if name.startswith("nginx"):  # as many as it takes, and bodies as they come
            config = folder / "nginx.conf"
            text = config.read_text().replace("keepalive 300;", f"keepalive {2 * len(targets)};")
            text = text.replace("client_max_body_size 100m", "client_max_body_size 0")
            text = text.replace("proxy_http_version", f"{STREAMED} proxy_http_version")
            text = text.replace(
                f"worker_connections {connections};",
                f"worker_connections {2 * (connections + len(targets))};",
            )
            config.write_text(text)
        with running(argv, folder, port) as pid:
            yield Proxy(name, port, pid)

    @contextmanager
    def targets(self, count: int) -> Iterator[list[str]]:
        """So many, each on an address of its own; a few processes."""
        [port] = free_ports(1)
        hosts = [
            f"127.{1 + at // 62500}.{at // 250 % 250}.{1 + at % 250}" for at in range(1, count)
        ]
        hosts = [HOST, *hosts]
        with ExitStack() as stack:
            for at in range(0, count, PER_PROCESS):
                folder = Path(tempfile.mkdtemp(dir=self.folder))
                ports = free_ports(1)  # where it tells that it has started
                servers = TARGET.format(host=HOST, port=ports[0], root=folder, small="{small}")
                listens = "".join(
                    f"listen {host}:{port} backlog=511; " for host in hosts[at : at + PER_PROCESS]
                )
                servers = servers.replace("root ", f"{listens} root ", 1)
                servers = servers.replace("{small}", "Hello, world!")
                stack.enter_context(running(nginx(folder, servers, 16384), folder, ports[0]))
            yield [f"{host}:{port}" for host in hosts]


STREAMED = "proxy_request_buffering off; proxy_max_temp_file_size 0;"


def wait_at_rest(pid: int) -> float:
    """Waits until a process does next to nothing; its processor time."""
    used = processor_time(pid)
    for _ in range(100):
        time.sleep(0.2)
        before, used = used, processor_time(pid)
        if used - before <= 0.01:
            break
    return used


def start(growth: Growth) -> None:
    """Five targets that nobody asks."""
    for name in growth.turns(growth.names):
        with growth.leaving_out("start", name, TARGETS):
            begin = time.perf_counter()
            with growth.proxy(name, free_ports(TARGETS)) as proxy:
                seconds = time.perf_counter() - begin
                cpu = wait_at_rest(proxy.pid)
                growth.note(
                    "start", name, TARGETS, start_s=seconds, cpu_s=cpu, mib=proportional(proxy.pid)
                )


def busy(growth: Growth, proxy: Proxy, connections: int) -> dict[str, Any]:
    case = Case(f"small-{connections}", "small answers", connections)
    most_resident(proxy.pid, anew=True)
    # Until wrk has opened thousands of them, some seconds are gone.
    seconds = max(growth.seconds, connections // OPENED)
    sample = wrk(0, case, proxy, seconds, growth.folder)
    return {
        "rate": sample.rate,
        "p50_ms": sample.p50_ms,
        "p99_ms": sample.p99_ms,
        "cpu_us": sample.cpu_us,
        "most_mib": most_resident(proxy.pid),
        "errors": sample.errors,
    }


def warm(growth: Growth, proxy: Proxy, count: int) -> None:
    """Until each target has been asked about twice."""
    case = Case("warm", "small answers", FEW)
    deadline, asked = time.monotonic() + WARM, 0.0
    while asked < 2 * count and time.monotonic() < deadline:
        asked += wrk(0, case, proxy, 1, growth.folder).rate


def targets(growth: Growth) -> None:
    names = [name for name in growth.names if name in ("pyproxy", "nginx")]
    for size in growth.sizes["targets"]:
        with growth.targets(size) as addresses:
            for name in growth.turns(names):
                with growth.leaving_out("targets", name, size):
                    begin = time.perf_counter()
                    with growth.proxy(name, addresses) as proxy:
                        start_s = time.perf_counter() - begin
                        rest = {"cpu_s": wait_at_rest(proxy.pid), "mib": proportional(proxy.pid)}
                        warm(growth, proxy, size)
                        loaded = busy(growth, proxy, FEW)
                        growth.note("targets", name, size, start_s=start_s, **rest, **loaded)


def connections(growth: Growth) -> None:
    folder = Path(tempfile.mkdtemp(dir=growth.folder))
    ports = free_ports(TARGETS)
    names = [name for name in growth.names if name in ("pyproxy", "nginx")]
    with running(targets_command(folder, ports), folder, ports[-1]):
        for size in growth.sizes["connections"]:
            for name in growth.turns(names):
                with (
                    growth.leaving_out("connections", name, size),
                    growth.proxy(name, ports, size + SPARE) as proxy,
                ):
                    warm(growth, proxy, TARGETS)
                    before = proportional(proxy.pid)
                    with holding(proxy.port, size) as (refused, closed):
                        held = proportional(proxy.pid)
                        beside = busy(growth, proxy, FEW)["rate"]
                        idle = {"refused": refused, "closed": closed()}
                    loaded = busy(growth, proxy, size)
                    growth.note(
                        "connections",
                        name,
                        size,
                        beside=beside,
                        idle_mib=held,
                        idle_kib=(held - before) * 1024 / size,
                        **idle,
                        **loaded,
                    )


def bodies(growth: Growth) -> None:
    folder = Path(tempfile.mkdtemp(dir=growth.folder))
    ports = free_ports(1)
    most = str(max(growth.sizes["bodies"]))
    argv = [sys.executable, str(Path(__file__).with_name("bodies.py")), str(ports[0]), most]
    names = [name for name in growth.names if name in ("pyproxy", "nginx")]
    with running(argv, folder, ports[0]), ExitStack() as stack:
        proxies = {name: stack.enter_context(growth.proxy(name, ports)) for name in names}
        for proxy in proxies.values():
            transfer(proxy.port, 1, False, 0.5)
            transfer(proxy.port, 1, True, 0.5)
        for size in growth.sizes["bodies"]:
            for part, upload in (("responses", False), ("uploads", True)):
                for name in growth.turns(names):
                    with growth.leaving_out(part, name, size):
                        carry(growth, part, proxies[name], size, upload)


def carry(growth: Growth, part: str, proxy: Proxy, size: int, upload: bool) -> None:
    used = processor_time(proxy.pid)
    most_resident(proxy.pid, anew=True)
    got = transfer(proxy.port, size, upload, growth.seconds)
    growth.note(
        part,
        proxy.name,
        size,
        rate=got.rate,
        mb_s=got.rate * size / 1e6,
        p50_ms=got.p50_ms,
        p99_ms=got.p99_ms,
        cpu_us=(processor_time(proxy.pid) - used) * 1e6 / got.count,
        most_mib=most_resident(proxy.pid),
    )


def changing(name: str, size: int, repeats: int) -> float:
    """Microseconds that it takes to take a target out, or to take it back; the best."""
    pool = pool_of(POLICIES[name](), size)
    best = float("inf")
    for target in pool.targets[: max(3, repeats)]:
        begin = time.perf_counter()
        pool.evict(target, "for the benchmark")
        pool.restore(target, "for the benchmark")
        best = min(best, time.perf_counter() - begin)
    return best / 2 * 1e6


def policies(growth: Growth) -> None:
    for name in growth.policies:
        for size in growth.sizes["targets"]:
            choose, pool = picks(POLICIES[name], size, growth.rounds)
            change = changing(name, size, growth.rounds)
            growth.note("policies", name, size, choose_ns=choose, pool_ns=pool, change_us=change)


PARTS: dict[str, Callable[[Growth], None]] = {
    "start": start,
    "targets": targets,
    "connections": connections,
    "bodies": bodies,
    "policies": policies,
}

# Of each table: its title, and the columns.
TABLES: dict[str, tuple[str, dict[str, tuple[str, str]]]] = {
    "start": (
        "Start, and at rest",
        {
            "start_s": ("s to the first connection", ".2f"),
            "cpu_s": ("s of processor time", ".2f"),
            "mib": ("MiB at rest", ".1f"),
        },
    ),
    "targets": (
        "Targets",
        {
            "start_s": ("s to start", ".2f"),
            "cpu_s": ("s of processor time", ".2f"),
            "mib": ("MiB at rest", ".1f"),
            "most_mib": ("most MiB under load", ".1f"),
            "rate": ("requests a second", ",.0f"),
            "p50_ms": ("p50 ms", ".2f"),
            "p99_ms": ("p99 ms", ".2f"),
            "cpu_us": ("µs of processor each", ".0f"),
        },
    ),
    "connections": (
        "Connections",
        {
            "rate": ("requests a second", ",.0f"),
            "p50_ms": ("p50 ms", ".2f"),
            "p99_ms": ("p99 ms", ".2f"),
            "cpu_us": ("µs of processor each", ".0f"),
            "most_mib": ("most MiB", ".1f"),
            "idle_mib": ("MiB with them idle", ".1f"),
            "idle_kib": ("KiB each", ".1f"),
            "beside": (f"requests a second of {FEW} beside", ",.0f"),
            "refused": ("refused", ".0f"),
            "closed": ("closed", ".0f"),
        },
    ),
}
for _part in ("responses", "uploads"):
    TABLES[_part] = (
        _part.title(),
        {
            "rate": ("a second", ",.1f"),
            "mb_s": ("MB/s", ",.0f"),
            "p50_ms": ("p50 ms", ",.2f"),
            "p99_ms": ("p99 ms", ",.2f"),
            "cpu_us": ("µs of processor each", ",.0f"),
            "most_mib": ("most MiB", ".1f"),
        },
    )


def titled(part: str, size: int) -> str:
    if part not in ("responses", "uploads"):
        return f"{size:,}"
    unit = next(one for one in UNITS if size % one == 0 and size >= one)
    return f"{size // unit} {UNITS[unit]}"


def middle(found: list[dict[str, Any]], part: str, name: str, size: int, key: str) -> float | None:
    """The median of the rounds; None without any."""
    values = [
        one[key] for one in found if (one["part"], one["proxy"], one["size"]) == (part, name, size)
    ]
    return median(values) if values else None


def of(found: list[dict[str, Any]], part: str, key: str) -> list[Any]:
    return list(dict.fromkeys(one[key] for one in found if one["part"] == part))


def report(found: list[dict[str, Any]]) -> Iterator[str]:
    """The Markdown tables, line by line."""
    for part, (title, columns) in TABLES.items():
        names, sizes = of(found, part, "proxy"), of(found, part, "size")
        if not names:
            continue
        ratio = "rate" in columns and {"pyproxy", "nginx"} <= set(names)
        heads = [head for head, _ in columns.values()] + ["of nginx's"] * ratio
        yield f"\n{title}:\n"
        yield row("", "", *heads)
        yield row("---:", "---", *["---:"] * len(heads))
        for size in sizes:
            for name in names:
                values = {key: middle(found, part, name, size, key) for key in columns}
                cells = [
                    "" if value is None else format(value, columns[key][1])
                    for key, value in values.items()
                ]
                if ratio:
                    its = middle(found, part, "nginx", size, "rate")
                    own = values["rate"] if name == "pyproxy" else None
                    cells.append(f"{own / its:.2f}" if own and its else "")
                yield row(titled(part, size), name, *cells)
        errors = [one for one in found if one["part"] == part and one.get("errors")]
        for one in errors:
            yield f"\nErrors: {one['proxy']} {one['size']}: {one['errors']}"
    yield from of_policies(found)


def of_policies(found: list[dict[str, Any]]) -> Iterator[str]:
    sizes = of(found, "policies", "size")
    if not sizes:
        return
    yield "\nPolicies:\n"
    heads = [f"{size:,} targets" for size in sizes]
    yield row(
        "", *(f"ns a request, {one}" for one in heads), *(f"µs a change, {one}" for one in heads)
    )
    yield row("---", *["---:"] * (2 * len(sizes)))
    for name in of(found, "policies", "proxy"):
        cells = [
            f"{middle(found, 'policies', name, size, key):,.0f}"
            for key in ("pool_ns", "change_us")
            for size in sizes
        ]
        yield row(name, *cells)


# Of each small picture: the part, what grows, and whether the nginx beside is drawn too.
PICTURES = [
    ("targets", "rate", "requests a second", "targets"),
    ("targets", "mib", "MiB at rest", "targets"),
    ("connections", "rate", "requests a second", "busy connections"),
    ("connections", "idle_mib", "MiB", "idle connections"),
    ("responses", "most_mib", "most MiB", "bytes of a response"),
    ("uploads", "most_mib", "most MiB", "bytes of an upload"),
    ("responses", "mb_s", "MB/s", "bytes of a response"),
    ("policies", "pool_ns", "ns a request", "busy targets"),
]


def draw(found: list[dict[str, Any]], path: Path) -> None:
    """All that has been measured, in one picture."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    pictures = [one for one in PICTURES if of(found, one[0], "proxy")]
    rows = -(-max(1, len(pictures)) // 2)
    # The same figures give the same file.
    with rc_context({"svg.hashsalt": "growth", "svg.fonttype": "none", "font.size": 8}):
        figure = Figure(figsize=(10, 3 * rows), layout="constrained")
        for at, (part, key, up, along) in enumerate(pictures, 1):
            axes = figure.add_subplot(rows, 2, at)
            for name in of(found, part, "proxy"):
                sizes = of(found, part, "size")
                values = [middle(found, part, name, size, key) for size in sizes]
                drawn = [(x, y) for x, y in zip(sizes, values, strict=True) if y is not None]
                axes.plot(*zip(*drawn, strict=True), marker="o", markersize=3, label=name)
            axes.set_xscale("log")
            if part == "policies":
                axes.set_yscale("log")
            else:
                axes.set_ylim(bottom=0)
            axes.set_xlabel(along)
            axes.set_ylabel(up)
            axes.grid(alpha=0.3)
            axes.legend(fontsize=6, ncols=2 if part == "policies" else 1)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=80)


def numbers(text: str) -> tuple[int, ...]:
    found = tuple(int(one) for one in text.split(","))
    if min(found) < 1:
        raise ValueError
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    every = ",".join(PARTS)
    parser.add_argument("--only", default=every, metavar="PART,...", help=f"of {every}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=3, help="of each measurement")
    parser.add_argument("--peers", default="nginx,haproxy,caddy", metavar="NAME,...")
    for part, default in (*SIZES.items(), ("bodies", BODIES)):
        text = ",".join(map(str, default))
        parser.add_argument(f"--{part}", type=numbers, default=default, help=text, metavar="N,...")
    parser.add_argument("--policies", default=",".join(POLICIES), metavar="NAME,...")
    parser.add_argument("--json", type=Path, metavar="FILE", help="for the raw rounds")
    parser.add_argument("--plot", type=Path, metavar="FILE", help=".svg or .png")
    options = parser.parse_args()
    if min(options.rounds, options.seconds) < 1:
        parser.error("rounds and seconds must be at least 1")
    wanted, chosen = options.only.split(","), options.policies.split(",")
    peers = [name for name in options.peers.split(",") if name]
    unknown = (set(wanted) - set(PARTS)) | (set(chosen) - set(POLICIES)) | (set(peers) - set(PEERS))
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    if options.plot:
        try:
            import matplotlib as mpl

            say(f"matplotlib {mpl.__version__}")
        except ImportError:
            say("--plot needs matplotlib: pip install 'pyproxy-lb[plots]'")
            return 2
    if set(wanted) - {"policies"}:
        for tool in ("wrk", "nginx"):
            if not shutil.which(tool):
                say(f"{tool} is needed: install the package {tool}, as in: apt install wrk nginx")
                return 2
    names = ["pyproxy", *(name for name in peers if installed(name))]
    files = raise_file_limit(3 * max(*options.targets, *options.connections) + SPARE)
    sizes = {"targets": options.targets, "connections": options.connections}
    sizes["bodies"] = options.bodies
    say(f"{files} open files")
    logging.getLogger("pyproxy").setLevel(logging.ERROR)  # who is taken out and back
    with tempfile.TemporaryDirectory() as temporary:
        growth = Growth(Path(temporary), options.rounds, options.seconds, names, sizes, chosen)
        loads = [os.getloadavg()[0]]
        for part in wanted:
            PARTS[part](growth)
            loads.append(os.getloadavg()[0])
    if options.json:
        options.json.write_text(json.dumps(growth.found, indent=1))
    if options.plot:
        draw(growth.found, options.plot)
    print(
        f"Rounds of {options.seconds} s: {options.rounds}. Processors: {os.cpu_count()}.",
        f"Load average: {min(loads):.1f} to {max(loads):.1f}.",
    )
    for line in report(growth.found):
        print(line)
    return int(growth.broken)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that all is cleaned up
    try:
        sys.exit(main())
    except Broken as error:
        sys.exit(f"a server {error}")
    except KeyboardInterrupt:
        sys.exit(130)
