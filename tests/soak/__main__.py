"""``python -m tests.soak [--minutes 30] [--seed N] [--workers 2]``: a real proxy under load, while
random faults happen to its targets, workers, settings and clients (Linux).

What must hold is checked all the time: no GET fails while a target lives, no POST reaches two
targets, no answer is wrong, nothing grows (``clients.py`` says exactly what counts). Prints which
faults were injected and survived. The exit status is 1 if something didn't hold; then the files of
the run are kept.
"""

import argparse
import contextlib
import json
import random
import shutil
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.programs import Program, program
from tests.soak.clients import KINDS, Client
from tests.soak.faults import PATIENCE, Faults, Group, Target
from tests.soak.ledger import Ledger
from tests.support import eventually, held_port

TARGETS = 6


@dataclass
class Sample:
    """What all processes of the proxy have at a moment."""

    processes: int
    memory: float  # MiB
    threads: int
    descriptors: int


# What a measure may grow by between two quarters of a phase without being a leak: a share, and an
# amount. Faults that happen to be under way make that much.
SLACK = {"memory": (0.1, 8), "threads": (0.2, 12), "descriptors": (0.2, 40)}


def measure(group: Group) -> Sample:
    memory, threads, descriptors = 0, 0, 0
    pids = group.pids
    for pid in pids:
        with contextlib.suppress(OSError, KeyError):  # it has ended
            status = dict(
                line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
            )
            memory += int(status["VmRSS"].split()[0])
            threads += int(status["Threads"])
            descriptors += len(list(Path(f"/proc/{pid}/fd").iterdir()))
    return Sample(len(pids), memory / 1024, threads, descriptors)


def growth(samples: list[Sample], processes: int, ledger: Ledger, phase: str) -> list[str]:
    """Compares the second quarter of a phase with its last; the lines of a table. Moments with
    more ``processes`` or fewer, as when one takes the place of another, are left out."""
    samples = [one for one in samples if one.processes == processes]
    quarter = len(samples) // 4
    if not quarter:
        return [f"{phase + ': too short to compare':40}"]
    lines = []
    for name, (share, amount) in SLACK.items():
        before, after = (
            statistics.median(getattr(one, name) for one in part)
            for part in (samples[quarter : 2 * quarter], samples[3 * quarter :])
        )
        lines.append(f"{name + ', ' + phase:40} {before:10.1f} {after:10.1f}")
        if after > before * (1 + share) + amount:
            ledger.violate(f"{name} grew from {before:.1f} to {after:.1f} ({phase})")
    return lines


class Soak:
    """One run, in a folder of its own."""

    def __init__(self, folder: Path, seed: int, workers: int, ports: list[int]) -> None:
        self._folder, self._seed = folder, seed
        self.ledger = Ledger()
        self._port, admin, *others = ports
        self._targets = [Target(f"t{at}", port, folder) for at, port in enumerate(others)]
        self.settings: dict[str, Any] = {
            "listen": f"http://127.0.0.1:{self._port}",
            "targets": [one.url for one in self._targets],
            "admin": {"listen": f"http://127.0.0.1:{admin}"},
            "workers": workers,
            "sleeping": "500ms",
            "health": {"interval": "1s", "timeout": "10s"},
            "timeouts": {"read": 15, "connect": 10, "header": 30},
            "retry": {"attempts": 10, "statuses": [500]},
            "http2": {"prior_knowledge": True},
            "access_log": {"path": "access.log", "format": "json"},
        }
        self._samples: list[Sample] = []

    def run(self, seconds: float, pace: float) -> list[str]:
        """The lines of the report."""
        try:
            for target in self._targets:
                target.order("good")
            (self._folder / "appsettings.json").write_text(json.dumps(self.settings))
            with program(cwd=self._folder) as running:
                return self._under_load(running, seconds, pace)
        finally:
            for target in self._targets:
                target.process.send_signal(signal.SIGCONT)
                target.end()

    def _under_load(self, running: Program, seconds: float, pace: float) -> list[str]:
        running.wait_for("listens on")
        group = Group(running)
        faults = Faults(self._targets, group, self.ledger, self._folder, self.settings, self._seed)
        eventually(lambda: set(faults.states().values()) == {"live"}, PATIENCE)
        over, healed = threading.Event(), threading.Event()
        clients = [
            Client(self._port, self.ledger, over, pace * 0.1)
            for kind, count in KINDS.items()
            for _ in range(count)
        ]
        kinds = [kind for kind, count in KINDS.items() for _ in range(count)]
        numbers = range(self._seed, self._seed + len(kinds))
        threads = [
            client.start(kind, number)
            for client, kind, number in zip(clients, kinds, numbers, strict=True)
        ]
        injector = threading.Thread(target=self._inject, args=(faults, healed), name="faults")
        injector.start()
        begun = time.monotonic()
        steady = 0
        try:
            while (now := time.monotonic()) < begun + seconds and injector.is_alive():
                if not faults.steady and now > begun + seconds / 2:
                    faults.steady, steady = True, len(self._samples)
                self._samples.append(measure(group))
                over.wait(max(min(1.0, seconds / 200), 0.1))
        finally:
            healed.set()
            injector.join()
            over.set()
            for thread in threads:
                thread.join()
        lines = self._faults_table()
        lines += ["", f"{'of all processes, median':40} {'quarter 2':>10} {'quarter 4':>10}"]
        count = self.settings["workers"]
        processes = 1 if count == 1 else count + 1
        lines += growth(self._samples[:steady], processes, self.ledger, "processes ended")
        lines += growth(self._samples[steady:], processes, self.ledger, "processes left alone")
        if len(group.pids) != processes:
            self.ledger.violate(f"{len(group.pids)} processes are there, not {processes}")
        self._check_calm(faults)
        self._check_posts([name for client in clients for name in client.posted])
        self._check_end(group, running)
        (self._folder / "stderr.log").write_text(running.text)
        (self._folder / "faults.log").write_text(self.ledger.log())
        return lines

    def _inject(self, faults: Faults, healed: threading.Event) -> None:
        try:
            faults.run(healed, 0.5)
            faults.heal()
        except Exception as error:  # noqa: BLE001 - whatever it is, it must be seen
            self.ledger.violate(f"faults: {type(error).__name__}: {error}")

    def _faults_table(self) -> list[str]:
        lines = [f"{'fault':40} {'injected':>10} {'survived':>10}"]
        found = self.ledger.survived()
        lines += [f"{kind:40} {one:10} {two:10}" for kind, (one, two) in found.items()]
        total = [sum(pair) for pair in zip(*found.values(), strict=True)] or [0, 0]
        lines += [f"{'all':40} {total[0]:10} {total[1]:10}", ""]
        lines += [f"{'what clients saw':40} {'times':>10}"]
        counts = sorted(self.ledger.counts.items())
        return lines + [f"{what:51} {count:10}" for what, count in counts]

    def _check_calm(self, faults: Faults) -> None:
        """Without clients nothing is under way any more."""

        def calm() -> bool:
            told = faults.status()
            left = [told["connections"]["open"], *(one["waiting"] for one in told["pools"])]
            left += [target["in_flight"] for target in told["pools"][0]["targets"]]
            return not any(left) and set(faults.states().values()) == {"live"}

        try:
            eventually(calm, PATIENCE)
        except AssertionError:
            self.ledger.violate(f"something is left when all is over: {faults.status()}")

    def _check_posts(self, answered: list[str]) -> None:
        posted = Counter(
            name for target in self._targets for name in target.file.read_text().splitlines()
        )
        for name, count in posted.items():
            if count > 1:
                self.ledger.violate(f"POST {name} reached targets {count} times")
        for name in answered:
            if not posted[name]:
                self.ledger.violate(f"POST {name} was answered, and reached no target")

    def _check_end(self, group: Group, running: Program) -> None:
        group.signal(signal.SIGTERM)
        try:
            eventually(lambda: not group.pids, PATIENCE)
        except AssertionError:
            self.ledger.violate(f"processes are left: {group.pids}")
        if "Traceback" in running.text:
            self.ledger.violate("a traceback in the log")
        for path in self._folder.glob("access*.log"):
            for line in path.read_text("utf-8").splitlines():
                try:
                    json.loads(line)
                except ValueError:
                    self.ledger.violate(f"a line of {path.name} is torn: {line[:200]}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--workers", type=int, default=2, help="processes that serve")
    parser.add_argument("--pace", type=float, default=1, help="above 1 the clients pause longer")
    said = parser.parse_args()
    print(f"seed {said.seed}, {said.workers} workers, {said.minutes:g} minutes", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="pyproxy-soak-"))
    with contextlib.ExitStack() as stack:
        ports = [stack.enter_context(held_port()) for _ in range(TARGETS + 2)]
        soak = Soak(folder, said.seed, said.workers, ports)
        lines = soak.run(said.minutes * 60, said.pace)
    print("\n".join(lines))
    violations = soak.ledger.violations
    print(f"\n{len(violations)} violations", *violations[:50], sep="\n")
    if violations:
        again = f"--seed {said.seed} --workers {said.workers} --minutes {said.minutes:g}"
        print(f"its files are in {folder}; the same faults again: python -m tests.soak {again}")
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
