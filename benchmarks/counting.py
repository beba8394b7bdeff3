"""Measure what it costs to count requests and their times.

    python benchmarks/counting.py               # nanoseconds a request; a few seconds
    python benchmarks/counting.py --paired      # in a proxy as well; half a minute

Alone: all that a request costs in a pool of 5 targets (pick, and release with the answer's status
and time), with counters and without, in turn. A number is the best of the repetitions, since what
the machine does besides only adds.
Paired: one proxy, in this process and on one processor, that counts in every other twentieth of a
second, while wrk drives it with 16 connections. What counts are the medians of the ratios within a
pair of such moments, which other programs disturb alike: of the requests a second, and of the
processor time for one.

Markdown goes to stdout, progress to stderr. --paired needs Linux, wrk and nginx.
"""

import argparse
import mmap
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

from compare import TARGETS, row, say
from contestants import HOST, Broken, free_ports, running, targets_command
from policies import CASE, Ask, nanoseconds, on_one_processor, pool_of

from pyproxy import Proxy
from pyproxy.balancing.counters import Counters, Tally
from pyproxy.balancing.policies import POLICIES
from pyproxy.balancing.pool import TargetPool

Moment = tuple[float, float]

REQUEST = 26_000  # nanoseconds of processor time, of a small one
MOMENT = 0.05  # seconds


def serving(pool: TargetPool) -> Callable[[Ask], None]:
    """All that a request costs there."""

    def serve(ask: Ask) -> None:
        pool.release(pool.pick(ask), 0.0003, 200, 0.0, b"GET")

    return serve


def alone(repeats: int) -> Iterator[str]:
    counting, plain = (pool_of(POLICIES["hash_ring"](), TARGETS) for _ in range(2))
    counters = Counters(mmap.mmap(-1, 1 << 20))
    for target in counting.targets:
        target.tally = Tally(counters, "default", target.url)
    asks = [Ask("10.0.0.1", at) for at in range(1000)]
    calls = {True: serving(counting), False: serving(plain)}
    best = {True: float("inf"), False: float("inf")}
    for _ in range(repeats):
        for counts, call in calls.items():
            best[counts] = min(best[counts], nanoseconds(call, asks, 1))
    more = best[True] - best[False]
    yield row("nanoseconds a request", "counting", "not counting", "difference", "of a request")
    yield row("---", *["---:"] * 4)
    cells = [f"{ns:,.0f}" for ns in (best[True], best[False], more)]
    yield row("pool, 5 targets", *cells, f"{more / REQUEST:.1%}")


def moment(pool: TargetPool) -> Moment:
    """Requests a second, and seconds of processor time for one."""
    ask = Ask("10.0.0.1", 0)
    pool.peek(ask)  # tells the number of the next one
    first, began, used = ask.number, time.perf_counter(), time.process_time()
    time.sleep(MOMENT)
    pool.peek(ask)
    count = max(ask.number - first, 1)
    return count / (time.perf_counter() - began), (time.process_time() - used) / count


def moments(proxy: Proxy, seconds: int) -> Iterator[tuple[Moment, Moment]]:
    """Pairs of them: counting, and not."""
    tallies = [target.tally for target in proxy.pool.targets]
    argv = ["wrk", "-t1", f"-c{CASE.connections}", f"-d{seconds}", proxy.url]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as wrk:
        time.sleep(1)  # it warms
        for turn in range(int((seconds - 1.5) / MOMENT / 2)):
            found = {}
            for counts in (True, False)[:: -1 if turn % 2 else 1]:
                for target, tally in zip(proxy.pool.targets, tallies, strict=True):
                    target.tally = tally if counts else None
                found[counts] = moment(proxy.pool)
            yield found[True], found[False]
        told = wrk.communicate()[0]
    if "errors" in told or "Non-2xx" in told:
        raise Broken(f"errors under load: {told}")


def paired(seconds: int) -> Iterator[str]:
    yield row("5 targets, 16 connections", "counting", "not counting", "median of the ratios")
    yield row("---", *["---:"] * 3)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        targets = free_ports(TARGETS)
        proxy = Proxy(targets=[f"http://{HOST}:{port}" for port in targets])
        with running(targets_command(folder, targets), folder, targets[-1]):
            with on_one_processor():
                proxy.start()
            try:
                found = list(moments(proxy, seconds))
            finally:
                proxy.stop()
    for title, at, unit, form in (
        ("requests a second", 0, 1.0, ",.0f"),
        ("µs of processor time", 1, 1e-6, ".1f"),
    ):
        values = [(counting[at] / unit, plain[at] / unit) for counting, plain in found]
        both = (format(median(column), form) for column in zip(*values, strict=True))
        yield row(title, *both, f"{median(a / b for a, b in values):.3f}")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=200, help="of the measurement alone")
    parser.add_argument("--paired", action="store_true", help="in a proxy, too")
    parser.add_argument("--seconds", type=int, default=30, help="in the proxy")
    options = parser.parse_args()
    if options.repeats < 1 or options.seconds < 2:
        parser.error("repeats must be at least 1, and seconds 2")
    if options.paired and (missing := [one for one in ("wrk", "nginx") if not shutil.which(one)]):
        say(f"--paired needs {' and '.join(missing)}, as in: apt install wrk nginx")
        return 2
    for line in alone(options.repeats):
        print(line)
    if options.paired:
        print()
        for line in paired(options.seconds):
            print(line, flush=True)
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that all is cleaned up
    try:
        sys.exit(main())
    except Broken as error:
        sys.exit(f"the proxy has {error}")
    except KeyboardInterrupt:
        sys.exit(130)
