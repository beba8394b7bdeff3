"""benchmarks/compare.py still runs: numbers are for docs/benchmarks.md, not for a test."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PATH = f"{os.environ['PATH']}:/usr/sbin"
missing = [tool for tool in ("wrk", "nginx") if not shutil.which(tool, path=PATH)]


@pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")
def test_the_comparison_measures_each_case_it_is_asked_for() -> None:
    script = str(ROOT / "benchmarks" / "compare.py")
    cases = "small-1,large-8,upload-16"
    done = subprocess.run(
        [sys.executable, script, "--rounds=1", "--seconds=1", "--only", cases, "--peers=nginx"],
        env={**os.environ, "PATH": PATH, "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    for name in ("small answers, 1 connection", "1 MiB answers", "64 KiB uploads"):
        [row, *_] = [line for line in done.stdout.splitlines() if line.startswith(f"| {name}")]
        measured, peer = row.split("|")[2:4]
        assert int(measured.split()[0].replace(",", "")) > 0
        assert int(peer.split()[0].replace(",", "")) > 0
