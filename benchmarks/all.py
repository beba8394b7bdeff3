"""Everything that docs/benchmarks.md shows, by one command.

    python benchmarks/all.py results                 # about an hour
    python benchmarks/all.py results --quick         # each of them once and shortly: ten minutes
    python benchmarks/all.py results --only growth,policies

Runs the other programs of this folder, one after another, and writes into the folder: results.md,
with the machine, the versions and the load average, and the command above each result; the same in
results.json, each table as rows; growth.png, where matplotlib is there. The exit status is 1 if one
of them failed: the others run nevertheless.
Needs Linux, wrk, nginx, h2load and openssl, and the extra all; haproxy and caddy are compared with
if installed.
"""

import argparse
import importlib.util
import json
import os
import platform
import re
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compare import PEERS, say, version

ROOT = Path(__file__).resolve().parent.parent
LONGEST = 7200.0  # seconds that one of them may take

# The name: the arguments, and those for a quick run.
RUNS = {
    "compare": (
        "compare.py --rounds 5 --seconds 2 --peers nginx,nginx-default,haproxy,caddy",
        "compare.py --rounds 1 --seconds 1",
    ),
    "workers": (
        "compare.py --workers 2 --only small-16,small-64,small-256,close-16 --rounds 5 --seconds 2",
        "compare.py --workers 2 --only small-16,close-16 --rounds 1 --seconds 1",
    ),
    "python": (
        "compare.py --peers aiohttp,stdlib --only small-1,small-16,small-64,close-16,large-8"
        " --rounds 5 --seconds 2",
        "compare.py --peers aiohttp,stdlib --only small-16 --rounds 1 --seconds 1",
    ),
    "affinity": (
        "compare.py --peers pyproxy-unbound,nginx --only small-1,small-16,small-64,close-16,large-8"
        " --rounds 5 --seconds 2",
        "compare.py --peers pyproxy-unbound --only small-16 --rounds 1 --seconds 1",
    ),
    "policies": (
        "policies.py --repeats 30 --paired --rounds 7",
        "policies.py --repeats 3 --paired --rounds 1",
    ),
    "counting": ("counting.py --paired --seconds 20", "counting.py --paired --seconds 3"),
    "https": ("https.py --rounds 3 --seconds 2", "https.py --rounds 1 --seconds 1"),
    "upgraded": ("upgraded.py --count 2000", "upgraded.py --count 500 --seconds 1"),
    "http2": ("http2.py --rounds 5 --seconds 2", "http2.py --rounds 1 --seconds 1"),
    "tcp": (
        "compare_tcp.py --rounds 4 --seconds 1 --only small-16,large-8,huge-2",
        "compare_tcp.py --rounds 1 --seconds 1 --only small-16,large-8",
    ),
    "growth": (
        "growth.py --rounds 3 --seconds 3",
        "growth.py --rounds 1 --seconds 1",
    ),
}


@dataclass(frozen=True)
class Result:
    name: str
    command: str
    status: int
    seconds: float
    load: tuple[float, float]  # averages before and after
    text: str


def machine() -> dict[str, str]:
    """What was measured on."""
    memory = re.search(r"MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text())
    model = re.search(r"^model name\s*: (.*)", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    found = {
        "processors": str(os.cpu_count()),
        "model": model[1] if model else platform.machine(),
        "memory": f"{int(memory[1]) / 2**20:.1f} GiB" if memory else "?",
        "system": f"{platform.system()} {platform.release().partition('-')[0]}",
        "pyproxy": version([sys.executable, "-m", "pyproxy", "--version"]),
        "Python": platform.python_version(),
    }
    tools = {**PEERS, "wrk": ["wrk", "-v"], "h2load": ["h2load", "--version"]}
    tools["openssl"] = ["openssl", "version"]
    del tools["nginx-default"], tools["pyproxy-unbound"], tools["stdlib"]
    for name, argv in tools.items():
        try:
            found[name] = version(argv)
        except OSError:
            found[name] = "not installed"
    return found


def run(name: str, line: str) -> Result:
    before, begin = os.getloadavg()[0], time.monotonic()
    program, *arguments = shlex.split(line)
    words = [sys.executable, str(ROOT / "benchmarks" / program), *arguments]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        text, _ = process.communicate(timeout=LONGEST)
    except subprocess.TimeoutExpired:
        say(f"{name} takes too long")
        process.terminate()
        text, _ = process.communicate()
    except BaseException:
        process.terminate()  # it ends what it has started
        process.wait()
        raise
    seconds = time.monotonic() - begin
    load = before, os.getloadavg()[0]
    command = f"python benchmarks/{line}"
    return Result(name, command, process.returncode, seconds, load, text.strip())


def tables(text: str) -> list[list[list[str]]]:
    """The Markdown tables in it: rows of cells, the head first."""
    found: list[list[list[str]]] = [[]]
    for line in text.splitlines():
        if line.startswith("|"):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            if not all(re.fullmatch("-+:?", cell) for cell in cells):
                found[-1].append(cells)
        elif found[-1]:
            found.append([])
    return [one for one in found if one]


def write(folder: Path, about: dict[str, str], results: list[Result]) -> None:
    parts = ["# Results\n", "".join(f"- {key}: {value}\n" for key, value in about.items())]
    told: list[dict[str, Any]] = []
    for one in results:
        state = f"It took {one.seconds:.0f} s; load average {one.load[0]:.1f} to {one.load[1]:.1f}."
        if one.status:
            state += f" It failed: exit status {one.status}."
        parts.append(f"## {one.name}\n\n```sh\n{one.command}\n```\n\n{state}\n\n{one.text}\n")
        told.append(
            {
                "name": one.name,
                "command": one.command,
                "status": one.status,
                "seconds": round(one.seconds, 1),
                "load": one.load,
                "tables": tables(one.text),
            }
        )
    (folder / "results.md").write_text("\n".join(parts))
    data = {"machine": about, "results": told}
    (folder / "results.json").write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    every = ",".join(RUNS)
    parser.add_argument("folder", type=Path, help="for the results; made if it isn't there")
    parser.add_argument("--only", default=every, metavar="NAME,...", help=f"of {every}")
    parser.add_argument("--quick", action="store_true", help="each once and shortly")
    parser.add_argument("--more", default="", metavar="ARGUMENTS", help="for each of them")
    options = parser.parse_args()
    wanted = options.only.split(",")
    if unknown := set(wanted) - set(RUNS):
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}")
    options.folder.mkdir(parents=True, exist_ok=True)
    # So that the programs find pyproxy, and are found where a user's path doesn't lead.
    paths = [str(ROOT), *os.environ.get("PYTHONPATH", "").split(":")]
    os.environ["PYTHONPATH"] = ":".join(path for path in paths if path)
    os.environ["PATH"] += ":/usr/sbin"
    about, results = machine(), []
    for name in wanted:
        line = f"{RUNS[name][options.quick]} {options.more}".strip()
        if name == "growth" and importlib.util.find_spec("matplotlib"):
            line += f" --plot {shlex.quote(str((options.folder / 'growth.png').resolve()))}"
        say(f"== {name}: {line}")
        results.append(run(name, line))
        write(options.folder, about, results)
    failed = [one.name for one in results if one.status]
    if failed:
        say(f"failed: {', '.join(failed)}")
    return int(bool(failed))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that all is cleaned up
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
