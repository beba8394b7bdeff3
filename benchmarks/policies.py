"""Measure what each policy of pyproxy costs: alone, and in a proxy beside hash_ring.

    python benchmarks/policies.py               # nanoseconds a pick; a few seconds
    python benchmarks/policies.py --paired      # requests a second as well; some minutes

Alone: a pool of 5, 100 and 1,000 targets, each with one to three requests under way, so that no
policy can stop at an idle one; requests of many clients in turn. "choose" is the policy's own part;
"pool" is all that a request costs there: pick, and release (with the time of the answer, for a
policy that wants to hear of it). A number is the best of the repetitions, since what the machine
does besides only adds.
Paired: for each policy two proxies at once, one with it and one with hash_ring, on one processor
and in front of the same five targets; wrk drives them in turn, with 16 connections, and the order
changes from round to round. What counts are the ratios of the medians: of the requests a second,
and of the processor time that the proxy takes for one, which other programs disturb less.
round_robin is another name for hash_ring: how far its ratios are from 1 is the noise.

Markdown goes to stdout, progress to stderr. --paired needs Linux, wrk and nginx.
"""

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from compare import TARGETS, row, say
from contestants import Broken, free_ports, proxy_command, running, targets_command
from load import Case, Proxy, Sample, wrk

from pyproxy.balancing.hashes import ConsistentHash, RendezvousHash
from pyproxy.balancing.policies import POLICIES
from pyproxy.balancing.policy import Policy
from pyproxy.balancing.pool import TargetPool
from pyproxy.balancing.target import Target

SIZES = (5, 100, 1000)
CLIENTS = 1000
CASE = Case("small-16", "small answers, 16 connections", 16)


@dataclass
class Ask:
    """A request as policies see it."""

    address: str
    number: int
    method: str = "GET"
    uri: str = "/"

    def header(self, name: str) -> str | None:
        return None

    cookie = query = header


def pool_of(policy: Policy, size: int) -> TargetPool:
    targets = [Target(f"http://10.0.0.1:{at}", "10.0.0.1", at) for at in range(1, size + 1)]
    for at, target in enumerate(targets):
        target.in_flight = 1 + at % 3
    return TargetPool(targets, policy=policy)


def nanoseconds(call: Callable[[Ask], object], asks: Sequence[Ask], repeats: int) -> float:
    """Of one call; the best of some rounds."""
    best = float("inf")
    for _ in range(repeats):
        begin = time.perf_counter_ns()
        for ask in asks:
            call(ask)
        best = min(best, (time.perf_counter_ns() - begin) / len(asks))
    return best


class NewKeys(RendezvousHash):
    """Remembers nothing: the clients come in turn."""

    REMEMBERED = 1


def picks(make: Callable[[], Policy], size: int, repeats: int) -> tuple[float, float]:
    """Nanoseconds that the policy takes, and the pool with it."""
    pool = pool_of(make(), size)
    # Fewer of them where each takes long.
    asks = [Ask(f"10.0.{at >> 8}.{at & 255}", at) for at in range(CLIENTS if size < 1000 else 200)]
    now = 1000.0
    for target in pool.targets:
        pool.answered(target, 0.001 + target.port * 1e-6, 200, now)
    choose = pool.policy.choose

    def serve(ask: Ask) -> None:
        target = pool.pick(ask, (), now)
        if pool.timed:
            pool.release(target, 0.001, 200, now)
        else:
            pool.release(target)

    own = nanoseconds(lambda ask: choose(ask, (), now), asks, repeats)
    return own, nanoseconds(serve, asks, repeats)


def alone(names: list[str], repeats: int) -> Iterator[str]:
    sizes = [f"{size:,}" for size in SIZES]
    titles = [f"choose, {size}" for size in sizes] + ["1,000 / 5"]
    titles += [f"pool, {size}" for size in sizes] + ["more than hash_ring, 5"]
    yield row("nanoseconds a request, at so many targets", *titles)
    yield row("---", *["---:"] * len(titles))
    base = picks(POLICIES["hash_ring"], 5, repeats)[1]
    kinds: dict[str, Callable[[], Policy]] = {}
    for name in names:
        kinds[name] = POLICIES[name]
        if name == "rendezvous_hash":
            kinds["rendezvous_hash, a new key each time"] = NewKeys
    for name, make in kinds.items():
        own, whole = zip(*(picks(make, size, repeats) for size in SIZES), strict=True)
        cells = [f"{each:,.0f}" for each in own] + [f"{own[-1] / own[0]:.1f}"]
        yield row(name, *cells, *(f"{each:,.0f}" for each in whole), f"{whole[0] - base:,.0f}")


def building() -> str:
    seconds = float("inf")
    for _ in range(5):
        begin = time.perf_counter()
        pool_of(ConsistentHash(virtual_nodes=100), 1000)
        seconds = min(seconds, time.perf_counter() - begin)
    return f"consistent_hash with 1,000 targets of 100 virtual nodes is built in {seconds:.2f} s."


@contextmanager
def on_one_processor() -> Iterator[None]:
    """What is started within stays there."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def pair(
    name: str, targets: list[int], rounds: int, seconds: int, folder: Path
) -> dict[str, list[Sample]]:
    """What a proxy with the policy gave, and one with hash_ring."""
    samples: dict[str, list[Sample]] = {"it": [], "hash_ring": []}
    with ExitStack() as stack:
        proxies = []
        for role, policy in (("it", name), ("hash_ring", "hash_ring")):
            place = Path(tempfile.mkdtemp(dir=folder))
            [port] = free_ports(1)
            argv = proxy_command("pyproxy", sys.executable, place, port, targets, 1000, policy)
            with on_one_processor():
                pid = stack.enter_context(running(argv, place, port))
            proxies.append(Proxy(role, port, pid))
            wrk(0, CASE, proxies[-1], 1, folder)  # warms it
        for turn in range(rounds):
            for proxy in proxies[:: -1 if turn % 2 else 1]:
                sample = wrk(turn, CASE, proxy, seconds, folder)
                if sample.errors:
                    raise Broken(f"{name}: errors under load: {sample.errors}")
                samples[proxy.name].append(sample)
    return samples


def paired(names: list[str], rounds: int, seconds: int) -> Iterator[str]:
    titles = [
        "requests a second",
        "hash_ring",
        "ratio",
        "µs of processor time",
        "hash_ring",
        "ratio",
    ]
    yield row("5 targets, 16 connections", *titles)
    yield row("---", *["---:"] * len(titles))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        targets = free_ports(TARGETS)
        with running(targets_command(folder, targets), folder, targets[-1]):
            for name in names:
                samples = pair(name, targets, rounds, seconds, folder)
                it, ring = (median(s.rate for s in samples[n]) for n in ("it", "hash_ring"))
                cpu, its = (median(s.cpu_us for s in samples[n]) for n in ("it", "hash_ring"))
                cells = [f"{it:,.0f}", f"{ring:,.0f}", f"{it / ring:.3f}"]
                cells += [f"{cpu:.1f}", f"{its:.1f}", f"{cpu / its:.3f}"]
                say(f"{name:26} {it / ring:.3f} {cpu / its:.3f}")
                yield row(name, *cells)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    every = ",".join(POLICIES)
    parser.add_argument("--only", default=every, metavar="POLICY,...", help=f"of {every}")
    parser.add_argument("--repeats", type=int, default=20, help="of each measurement, alone")
    parser.add_argument("--paired", action="store_true", help="in proxies, beside hash_ring, too")
    parser.add_argument("--rounds", type=int, default=15, help="of each pair")
    parser.add_argument("--seconds", type=int, default=1, help="of each round")
    options = parser.parse_args()
    if min(options.repeats, options.rounds, options.seconds) < 1:
        parser.error("repeats, rounds and seconds must be at least 1")
    names = options.only.split(",")
    if unknown := set(names) - set(POLICIES):
        parser.error(f"no such policy: {', '.join(sorted(unknown))}")
    if options.paired and (missing := [one for one in ("wrk", "nginx") if not shutil.which(one)]):
        say(f"--paired needs {' and '.join(missing)}, as in: apt install wrk nginx")
        return 2
    for line in alone(names, options.repeats):
        print(line)
    print(f"\n{building()}")
    if options.paired:
        print()
        for line in paired(names, options.rounds, options.seconds):
            print(line, flush=True)
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that all is cleaned up
    try:
        sys.exit(main())
    except Broken as error:
        sys.exit(f"a proxy {error}")
    except KeyboardInterrupt:
        sys.exit(130)
