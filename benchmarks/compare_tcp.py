"""Measure TCP mode against nginx's stream module and HAProxy's mode tcp, as compare.py does HTTP.

Every proxy relays connections to the same five targets (ports of one nginx worker), one worker
each, and wrk drives HTTP through them: to the proxies it is just bytes. In each round every case
is run on every proxy in turn, and a number is the median of the rounds. The peer nginx has
buffers of 256 KiB, as pyproxy has; nginx-default has its own defaults, 16 KiB.

    python benchmarks/compare_tcp.py
    python benchmarks/compare_tcp.py --only small-16 --rounds 1 --seconds 1

Needs Linux, wrk and nginx with its stream module (Debian: libnginx-mod-stream).
"""

import argparse
import http.client
import os
import platform
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from compare import PEERS, SPARE, TARGETS, Bench, installed, measure, report, say, version
from contestants import (
    HOST,
    HUGE,
    LARGE,
    SMALL,
    Broken,
    free_ports,
    running,
    targets_command,
    tcp_command,
)
from load import Case, Proxy

CASES = [
    Case("small-1", "small round trips, 1 connection", 1),
    Case("small-16", "small round trips, 16 connections", 16),
    Case("small-64", "small round trips, 64 connections", 64),
    Case("close-16", "a connection a round trip, 16 connections", 16, closing=True),
    Case("large-8", "1 MiB answers, 8 connections", 8, "/large"),
    Case("huge-2", "100 MiB answers, 2 connections", 2, "/huge"),
]
NAMES = ("nginx", "nginx-default", "haproxy")


def check(port: int) -> None:
    """Raise Broken unless all is relayed well, from all targets."""
    seen = set()
    for path, length in [("/", len(SMALL)), ("/large", LARGE)] * TARGETS + [("/huge", HUGE)]:
        connection = http.client.HTTPConnection(HOST, port, timeout=10)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            if (answer.status, len(answer.read())) != (200, length):
                raise Broken(f"answers {path} wrongly")
        except (OSError, http.client.HTTPException) as error:
            raise Broken(f"does not answer {path}: {error!r}") from None
        finally:
            connection.close()
        seen.add(answer.headers["X-Target"])
    if len(seen) != TARGETS:
        raise Broken(f"uses {len(seen)} of {TARGETS} targets")


class TCPBench(Bench):
    @contextmanager
    def proxy(self, name: str) -> Iterator[Proxy]:
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        [port] = free_ports(1)
        argv = tcp_command(name, self.python, folder, port, self.targets, SPARE)
        with running(argv, folder, port) as pid:
            check(port)
            proxy = Proxy(name, port, pid)
            self.busy(0, CASES[1], proxy)
            yield proxy


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    every = ",".join(case.name for case in CASES)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=3, help="of each measurement")
    parser.add_argument("--only", default=every, metavar="CASE,...", help=f"of {every}")
    parser.add_argument("--peers", default=",".join(NAMES), metavar="NAME,...")
    parser.add_argument("--python", default=sys.executable, help="the one that runs pyproxy")
    options = parser.parse_args()
    cases = [case for case in CASES if case.name in options.only.split(",")]
    peers = [name for name in options.peers.split(",") if name]
    if not cases or set(peers) - set(NAMES):
        parser.error("no such case or peer")
    for tool in ("wrk", "nginx"):
        if not shutil.which(tool):
            say(f"{tool} is needed")
            return 2
    peers = [name for name in peers if installed(name)]
    contestants = ["pyproxy", *peers]
    names = contestants.copy()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        targets = free_ports(TARGETS)
        with running(targets_command(folder, targets), folder, targets[-1]):
            bench = TCPBench(folder, options.python, targets, options.seconds, 0)
            samples = measure(bench, cases, names, options.rounds)
    versions = {name: version(PEERS[name]) for name in peers}
    versions |= {"Python": version([options.python, "-V"])}
    print(
        f"Rounds of {options.seconds} s: {options.rounds}. Processors: {os.cpu_count()}.",
        f"Linux {platform.release().partition('-')[0]},",
        ", ".join(map(" ".join, versions.items())) + "\n",
    )
    for line in report(samples, cases, names, 0):
        print(line)
    return int(names != contestants)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that all is cleaned up
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
