"""pyproxy and nginx with HTTP/2 clients (h2load, clear text), in turn.

    python benchmarks/http2.py --rounds 5 --seconds 2

Both have the same targets, five servers of one nginx. A table of medians goes to standard output.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from contestants import (
    FOREVER,
    HOST,
    NGINX_PROXY,
    NGINX_TUNED,
    free_ports,
    nginx,
    processor_time,
    running,
    targets_command,
)

CASES = {
    "1 connection, 1 stream": (1, 1, "/"),
    "1 connection, 16 streams": (1, 16, "/"),
    "1 connection, 100 streams": (1, 100, "/"),
    "16 connections, 16 streams each": (16, 16, "/"),
    "1 MiB answers, 1 connection, 4 streams": (1, 4, "/large"),
}


def command(name: str, folder: Path, port: int, targets: list[int]) -> list[str]:
    if name == "nginx":
        servers = " ".join(f"server {HOST}:{target};" for target in targets)
        text = NGINX_PROXY.format(
            host=HOST, port=port, servers=servers, forever=FOREVER, tuned=NGINX_TUNED
        )
        return nginx(folder, text.replace(" backlog=", " http2 backlog="), 1024)
    settings = {
        "listen": f"http://{HOST}:{port}",
        "targets": [f"http://{HOST}:{target}" for target in targets],
        "http2": {"prior_knowledge": True},
    }
    (folder / "config").write_text(json.dumps(settings))
    return [sys.executable, "-m", "pyproxy", "--config", str(folder / "config")]


def load(port: int, case: tuple[int, int, str], seconds: float) -> float:
    """Requests a second."""
    connections, streams, path = case
    words = ["h2load", "-c", str(connections), "-m", str(streams), "-D", str(seconds)]
    words += ["-w", "20", "-W", "24", f"http://{HOST}:{port}{path}"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True)
    if not re.search(r" 0 failed, 0 errored", done.stdout):
        raise SystemExit(f"requests failed:\n{done.stdout}")
    match = re.search(r"([\d.]+) req/s", done.stdout)
    assert match
    return float(match[1])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=2)
    given = parser.parse_args()
    names = ("pyproxy", "nginx")
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as text:
        folders = {name: Path(text) / name for name in (*names, "targets")}
        for folder in folders.values():
            folder.mkdir()
        targets, ports = free_ports(5), dict(zip(names, free_ports(2), strict=True))
        start = targets_command(folders["targets"], targets)
        pyproxy, peer = (command(name, folders[name], ports[name], targets) for name in names)
        with (
            running(start, folders["targets"], targets[0]),
            running(pyproxy, folders["pyproxy"], ports["pyproxy"]) as first,
            running(peer, folders["nginx"], ports["nginx"]) as second,
        ):
            pids = {"pyproxy": first, "nginx": second}
            for number in range(given.rounds):
                for case, what in CASES.items():
                    for name in names:
                        before = processor_time(pids[name])
                        rate = load(ports[name], what, given.seconds)
                        used = processor_time(pids[name]) - before
                        each = used / (rate * given.seconds) * 1e6
                        found.setdefault((case, name), []).append((rate, each))
                print(f"round {number + 1} of {given.rounds}", file=sys.stderr)
    print("| requests a second | pyproxy | nginx | pyproxy / nginx | µs of processor each |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for case in CASES:
        ours, theirs = (
            [statistics.median(values) for values in zip(*found[case, name], strict=True)]
            for name in names
        )
        print(
            f"| {case} | {ours[0]:,.0f} | {theirs[0]:,.0f} | {ours[0] / theirs[0]:.2f} "
            f"| {ours[1]:.0f} / {theirs[1]:.0f} |"
        )


if __name__ == "__main__":
    main()
