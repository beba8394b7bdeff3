"""Measure pyproxy against nginx, HAProxy and Caddy on the machine it runs on.

Every proxy gets one worker (or --workers), stands in front of the same five targets (ports of one
nginx worker), keeps its connections to them alive, balances round robin and writes no access log.
wrk drives them over loopback: in each round every case is run on every proxy in turn, and the
order changes from round to round, so that whatever else the machine does hits them alike.
A number is the median of the rounds, and ± is half of the distance from the least to the most.
Before anything is measured each proxy must answer each kind of request correctly and use all
targets.  In the idle case a fresh proxy serves, then is made to hold many connections that
have made one request each, and then serves again beside them; memory is its resident set.

    python benchmarks/compare.py                            # all cases: ten minutes or more
    python benchmarks/compare.py --only small-16,idle --rounds 1 --seconds 1

A Markdown report goes to stdout, progress to stderr, raw rounds to the file given by --json.
The peer nginx has larger buffers than nginx's own defaults, which --peers nginx-default keeps;
pyproxy-unbound is pyproxy with cpu_affinity off; aiohttp and stdlib are in python_proxies.py.
Needs Linux, wrk and nginx; the others are compared with if installed.  The exit status
is 1 if a proxy had to be left out because it did not work, 2 if the run is not possible.
pyproxy remembers how it read a head, and wrk repeats its request to the byte: in varied-16 every
request and every answer has an id of its own, as much real traffic has.
wrk and the targets use the processors too: the numbers compare proxies, they are no capacity.
pyproxy's threads may keep more than one processor busy, which the peers' single one cannot:
the table of processor time a request (of the proxy's processes) shows what that costs.
"""

import argparse
import http.client
import json
import os
import platform
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

from contestants import (
    HOST,
    HUGE,
    LARGE,
    SMALL,
    Broken,
    free_ports,
    proxy_command,
    resident,
    running,
    targets_command,
)
from load import UPLOAD, Case, Proxy, Sample, holding, wrk

TARGETS = 5
SPARE = 2000  # connections a proxy must allow besides the idle ones
CASES = [
    *(
        Case(f"small-{n}", f"small answers, {n} connection{'s' * (n > 1)}", n)
        for n in (1, 16, 64, 256)
    ),
    Case("varied-16", "small answers, no two heads alike, 16 connections", 16, "/varied"),
    Case("close-16", "a connection a request, 16 connections", 16, closing=True),
    Case("large-8", "1 MiB answers, 8 connections", 8, "/large"),
    Case("upload-16", "64 KiB uploads, 16 connections", 16, "/upload"),
    Case("idle", "small answers, 16 connections, beside idle ones", 16),
]
SIZES = {"/large": LARGE, "/huge": HUGE}
PEERS = {  # and what tells their version
    "nginx": ["nginx", "-v"],
    "nginx-default": ["nginx", "-v"],
    "haproxy": ["haproxy", "-v"],
    "caddy": ["caddy", "version"],
    "aiohttp": [sys.executable, "-c", "import aiohttp; print(aiohttp.__version__)"],
    "stdlib": [sys.executable, "-c", "import requests; print(requests.__version__)"],
    "pyproxy-unbound": [sys.executable, "-m", "pyproxy", "--version"],
}


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def check(port: int, targets: int) -> None:
    """Raise Broken unless all is answered well, on one connection, with the help of all targets."""
    connection = http.client.HTTPConnection(HOST, port, timeout=10)
    seen = set()
    lengths = {"/": len(SMALL), "/varied": len(SMALL), "/large": LARGE, "/upload": len(SMALL)}
    for path, length in [*lengths.items()] * 10:
        body = bytes(UPLOAD) if path == "/upload" else None
        try:
            connection.request("POST" if body else "GET", path, body)
            answer = connection.getresponse()
            got = answer.status, len(answer.read()), connection.sock is not None
        except (OSError, http.client.HTTPException) as error:
            raise Broken(f"does not answer {path}: {error!r}") from None
        if got != (200, length, True):
            raise Broken(f"answers {path} with (status, length, kept alive) = {got}")
        seen.add(answer.headers["X-Target"])
    connection.close()
    if len(seen) != targets:
        raise Broken(f"uses {len(seen)} of {targets} targets")


@dataclass(frozen=True)
class Bench:
    folder: Path
    python: str
    targets: list[int]
    seconds: int
    idle: int
    workers: int = 1

    @contextmanager
    def proxy(self, name: str) -> Iterator[Proxy]:
        """A proxy that works and is warm."""
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        [port] = free_ports(1)
        connections = self.idle + SPARE
        argv = proxy_command(
            name, self.python, folder, port, self.targets, connections, workers=self.workers
        )
        with running(argv, folder, port) as pid:
            check(port, TARGETS)
            proxy = Proxy(name, port, pid)
            self.busy(0, CASES[1], proxy)
            yield proxy

    def busy(self, turn: int, case: Case, proxy: Proxy) -> Sample:
        return wrk(turn, case, proxy, self.seconds, self.folder)

    def beside_idle(self, turn: int, case: Case, name: str) -> Sample:
        """The case without and with idle connections, on a proxy of its own."""
        with self.proxy(name) as proxy:
            alone = self.busy(turn, case, proxy)
            before = resident(proxy.pid)
            with holding(proxy.port, self.idle) as (refused, closed):
                after = resident(proxy.pid)
                beside = self.busy(turn, case, proxy)
                idle = {"alone": alone.rate, "before": before, "after": after}
                return replace(beside, idle={**idle, "refused": refused, "closed": closed()})


def measure(bench: Bench, cases: list[Case], names: list[str], rounds: int) -> list[Sample]:
    """All samples; a proxy that does not work is taken from the names and told of."""
    samples: list[Sample] = []
    with ExitStack() as stack:
        proxies = {}
        for name in names.copy():
            with leaving_out(name, names):
                proxies[name] = stack.enter_context(bench.proxy(name))
        for turn in range(rounds):
            for case in cases:
                shift = turn // 2 % max(1, len(names))
                order = names[shift:] + names[:shift]
                for name in order[:: -1 if turn % 2 else 1]:
                    with leaving_out(name, names):
                        if case.name == "idle":
                            sample = bench.beside_idle(turn, case, name)
                        else:
                            sample = bench.busy(turn, case, proxies[name])
                        samples.append(sample)
                        errors = f"  errors: {sample.errors}" if sample.errors else ""
                        say(f"{turn + 1} {case.name:9} {name:7} {sample.rate:9.0f}/s{errors}")
    return samples


@contextmanager
def leaving_out(name: str, names: list[str]) -> Iterator[None]:
    try:
        yield
    except Broken as error:
        names.remove(name)
        say(f"{name} is left out: {error}")


def row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def report(samples: list[Sample], cases: list[Case], names: list[str], idle: int) -> Iterator[str]:
    """The Markdown tables, line by line."""
    peers = [name for name in names if name != "pyproxy"]
    ratios = [*peers, "best"] if peers and "pyproxy" in names else []
    yield row("requests a second", *names, *(f"pyproxy / {name}" for name in ratios))
    yield row("---", *["---:"] * (len(names) + len(ratios)))
    for case in cases:
        taken = {n: [s for s in samples if (s.case, s.proxy) == (case.name, n)] for n in names}
        middle = {name: median(sample.rate for sample in taken[name]) for name in names}
        cells = []
        for name in names:
            rates = [sample.rate for sample in taken[name]]
            spread = (max(rates) - min(rates)) / 2 / (middle[name] or 1)
            errors = sum(sum(sample.errors.values()) for sample in taken[name])
            digits = 1 if middle[name] < 100 else 0
            cell = f"{middle[name]:,.{digits}f}" + f" ±{spread:.0%}" * (len(rates) > 1)
            cells.append(cell + f" ({errors} errors)" * bool(errors))
        best = max((middle[name] for name in peers), default=0)
        for name in ratios:
            cells.append(f"{middle['pyproxy'] / (middle.get(name, best) or 1):.2f}")
        yield row(case.title, *cells)
        if case.path in SIZES:
            speeds = [f"{middle[name] * SIZES[case.path] / 1e6:,.0f}" for name in names]
            yield row("the same in MB/s", *speeds, *[""] * len(ratios))
    yield "\n" + row("processor time a request, in µs", *names)
    yield row("---", *["---:"] * len(names))
    for case in cases:
        times = [[s.cpu_us for s in samples if (s.case, s.proxy) == (case.name, n)] for n in names]
        yield row(case.title, *(f"{median(each):,.0f}" for each in times))
    kinds = Counter[str]()
    for sample in samples:
        kinds.update({f"{sample.proxy} {sample.case} {k}": n for k, n in sample.errors.items()})
    if kinds:
        yield "\nErrors: " + ", ".join(f"{kind} {number}" for kind, number in kinds.items())
    if not any(sample.idle for sample in samples):
        return
    titles = ["MiB before", "MiB with them", "KiB each", "refused", "closed"]
    yield "\n" + row(f"{idle:,} idle", *titles, "req/s without", "req/s beside", "beside / without")
    yield row("---", *["---:"] * 8)
    for name in names:
        held = [sample for sample in samples if sample.proxy == name and sample.idle]
        got = {key: median(sample.idle[key] for sample in held) for key in held[0].idle}
        beside, each = median(s.rate for s in held), (got["after"] - got["before"]) * 1024
        each /= max(1, idle - got["refused"])
        cells = [f"{got['before']:.1f}", f"{got['after']:.1f}", f"{each:.2f}"]
        cells += [f"{max(s.idle[key] for s in held):.0f}" for key in ("refused", "closed")]
        cells += [f"{got['alone']:,.0f}", f"{beside:,.0f}", f"{beside / got['alone']:.2f}"]
        yield row(name, *cells)


def version(argv: list[str]) -> str:
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    found = re.search(r"\d+\.\d[\w.+-]*", done.stdout)
    return found[0] if found else "?"


def installed(peer: str) -> bool:
    program, *arguments = PEERS[peer]
    if program == sys.executable:
        return not subprocess.run([program, *arguments], capture_output=True).returncode
    return bool(shutil.which(program))


def raise_file_limit(wanted: int) -> int:
    """Allow this process, and so those it starts, the open files wanted or all that can be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for top in (max(hard, wanted), hard):
        with suppress(ValueError, OSError):  # only root may go above the hard limit
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(wanted, top)), top))
            break
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    every = ",".join(case.name for case in CASES)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=3, help="of each measurement")
    parser.add_argument("--only", default=every, metavar="CASE,...", help=f"of {every}")
    parser.add_argument("--peers", default="nginx,haproxy,caddy", metavar="NAME,...")
    parser.add_argument("--python", default=sys.executable, help="the one that runs pyproxy")
    parser.add_argument("--workers", type=int, default=1, help="of each proxy")
    parser.add_argument("--idle", type=int, default=10_000, help="idle connections")
    parser.add_argument("--json", type=Path, metavar="FILE", help="for the raw rounds")
    options = parser.parse_args()
    if min(options.rounds, options.seconds, options.idle, options.workers) < 1:
        parser.error("rounds, seconds, idle and workers must be at least 1")
    if not shutil.which(options.python):
        parser.error(f"no such interpreter: {options.python}")
    for tool in ("wrk", "nginx"):
        if not shutil.which(tool):
            say(f"{tool} is needed: install the package {tool}, as in: apt install wrk nginx")
            return 2
    cases = [case for case in CASES if case.name in options.only.split(",")]
    if unknown := set(options.only.split(",")) - {case.name for case in cases}:
        parser.error(f"no such case: {', '.join(sorted(unknown))}")
    peers = [name for name in options.peers.split(",") if name]
    if unknown := set(peers) - set(PEERS):
        parser.error(f"no such peer: {', '.join(sorted(unknown))}")
    for name in [name for name in peers if not installed(name)]:
        say(f"{name} is not installed: skipped")
        peers.remove(name)
    files = raise_file_limit(2 * (options.idle + SPARE) + 1000)  # HAProxy wants two for each
    if files < options.idle + SPARE:
        say(f"only {files} open files are allowed: not all idle connections will be possible")
    contestants = ["pyproxy", *peers]
    names = contestants.copy()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        targets = free_ports(TARGETS)
        with running(targets_command(folder, targets), folder, targets[-1]):
            for port in targets:
                check(port, 1)
            bench = Bench(
                folder, options.python, targets, options.seconds, options.idle, options.workers
            )
            samples = measure(bench, cases, names, options.rounds)
    if options.json:
        options.json.write_text(json.dumps([asdict(sample) for sample in samples], indent=1))
    versions = {name: version(PEERS[name]) for name in peers}
    versions |= {"Python": version([options.python, "-V"]), "wrk": version(["wrk", "-v"])}
    print(
        f"Rounds of {options.seconds} s: {options.rounds}. Processors: {os.cpu_count()}.",
        f"Workers: {options.workers}.",
        f"Linux {platform.release().partition('-')[0]},",
        ", ".join(map(" ".join, versions.items())) + "\n",
    )
    for line in report(samples, cases, names, options.idle):
        print(line)
    return int(names != contestants)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that all is cleaned up
    try:
        sys.exit(main())
    except Broken as error:
        sys.exit(f"a target {error}")
    except KeyboardInterrupt:
        sys.exit(130)
