"""pyproxy and nginx in turn before the same targets: what http2.py and https.py have in common."""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from contestants import free_ports, processor_time, running, targets_command

NAMES = ("pyproxy", "nginx")

C = TypeVar("C")


def measure(
    description: str,
    cases: Mapping[str, C],
    command: Callable[[str, Path, int, list[int]], list[str]],
    load: Callable[[int, C, float], float],
) -> None:
    """Prints a table of medians. ``command(name, folder, port, targets)`` is how one is started;
    ``load(port, case, seconds)`` gives requests a second."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=2)
    given = parser.parse_args()
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as text:
        folders = {name: Path(text) / name for name in (*NAMES, "targets")}
        for folder in folders.values():
            folder.mkdir()
        targets, ports = free_ports(5), dict(zip(NAMES, free_ports(2), strict=True))
        start = targets_command(folders["targets"], targets)
        pyproxy, peer = (command(name, folders[name], ports[name], targets) for name in NAMES)
        with (
            running(start, folders["targets"], targets[0]),
            running(pyproxy, folders["pyproxy"], ports["pyproxy"]) as first,
            running(peer, folders["nginx"], ports["nginx"]) as second,
        ):
            pids = {"pyproxy": first, "nginx": second}
            for number in range(given.rounds):
                for case, what in cases.items():
                    for name in NAMES:
                        before = processor_time(pids[name])
                        rate = load(ports[name], what, given.seconds)
                        used = processor_time(pids[name]) - before
                        each = used / (rate * given.seconds) * 1e6
                        found.setdefault((case, name), []).append((rate, each))
                print(f"round {number + 1} of {given.rounds}", file=sys.stderr)
    print("| requests a second | pyproxy | nginx | pyproxy / nginx | µs of processor each |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for case in cases:
        ours, theirs = (
            [statistics.median(values) for values in zip(*found[case, name], strict=True)]
            for name in NAMES
        )
        print(
            f"| {case} | {ours[0]:,.0f} | {theirs[0]:,.0f} | {ours[0] / theirs[0]:.2f} "
            f"| {ours[1]:.0f} / {theirs[1]:.0f} |"
        )
