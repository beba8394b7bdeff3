"""The benchmarks still run: numbers are for docs/benchmarks.md, not for a test."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyproxy import __version__

ROOT = Path(__file__).parents[1]
PATH = f"{os.environ['PATH']}:/usr/sbin"
STREAM_MODULE = Path("/usr/lib/nginx/modules/ngx_stream_module.so")
missing = [tool for tool in ("wrk", "nginx") if not shutil.which(tool, path=PATH)]


@pytest.fixture(autouse=True)
def on_one_processor() -> Iterator[None]:
    """What loads a proxy for a second takes all that it may: the others are for other tests."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    yield
    os.sched_setaffinity(0, before)


@pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")
def test_the_comparison_measures_each_case_it_is_asked_for() -> None:
    script = str(ROOT / "benchmarks" / "compare.py")
    cases = "large-8,upload-16"
    done = subprocess.run(
        [
            sys.executable,
            script,
            "--rounds=1",
            "--seconds=1",
            "--only",
            cases,
            "--peers=nginx,stdlib",
        ],
        env={**os.environ, "PATH": PATH, "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    for name in ("1 MiB answers", "64 KiB uploads"):
        [row, *_] = [line for line in done.stdout.splitlines() if line.startswith(f"| {name}")]
        for cell in row.split("|")[2:5]:
            assert float(cell.split()[0].replace(",", "")) > 0


def test_the_cost_of_policies_is_measured() -> None:
    script = str(ROOT / "benchmarks" / "policies.py")
    done = subprocess.run(
        [sys.executable, script, "--repeats=1", "--only=hash_ring,consistent_hash"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    for name in ("hash_ring", "consistent_hash"):
        [row] = [line for line in done.stdout.splitlines() if line.startswith(f"| {name} ")]
        cells = [float(cell.replace(",", "")) for cell in row.split("|")[2:9]]
        assert max(cells) > 0  # a single repetition on a busy machine may find the others below
    assert "1,000 targets of 100 virtual nodes is built in" in done.stdout


@pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")
def test_a_policy_is_measured_in_a_proxy_beside_hash_ring() -> None:
    script = str(ROOT / "benchmarks" / "policies.py")
    done = subprocess.run(
        [sys.executable, script, "--paired", "--rounds=1", "--repeats=1", "--only=random"],
        env={**os.environ, "PATH": PATH, "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    *_, row = done.stdout.splitlines()
    assert row.startswith("| random |")
    assert all(float(cell.replace(",", "")) > 0 for cell in row.split("|")[2:8])


@pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")
def test_the_cost_of_counting_is_measured_alone_and_in_a_proxy() -> None:
    script = str(ROOT / "benchmarks" / "counting.py")
    done = subprocess.run(
        [sys.executable, script, "--paired", "--seconds=2", "--repeats=1"],
        env={**os.environ, "PATH": PATH, "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    for name in ("pool, 5 targets", "requests a second", "µs of processor time"):
        [row] = [line for line in done.stdout.splitlines() if line.startswith(f"| {name} ")]
        assert all(float(cell.replace(",", "")) > 0 for cell in row.split("|")[2:4])


@pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")
@pytest.mark.skipif(
    not STREAM_MODULE.exists(),  # Debian's; elsewhere it may be built in
    reason="not installed: nginx's stream module",
)
def test_the_comparison_of_tcp_mode_measures_too() -> None:
    script = str(ROOT / "benchmarks" / "compare_tcp.py")
    done = subprocess.run(
        [sys.executable, script, "--rounds=1", "--seconds=1", "--only=large-8", "--peers=nginx"],
        env={**os.environ, "PATH": PATH, "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    [row, *_] = [line for line in done.stdout.splitlines() if line.startswith("| 1 MiB answers")]
    assert all(int(cell.split()[0].replace(",", "")) > 0 for cell in row.split("|")[2:4])


@pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")
def test_growth_is_measured_told_and_drawn_by_the_command_for_all(tmp_path: Path) -> None:
    sizes = "--targets=7 --connections=3 --bodies=100000 --policies=first,random"
    done = subprocess.run(
        [
            *(sys.executable, str(ROOT / "benchmarks" / "all.py"), str(tmp_path / "results")),
            *("--quick", "--only=growth", f"--more={sizes} --peers="),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    [result] = json.loads((tmp_path / "results" / "results.json").read_text())["results"]
    start, targets, connections, responses, uploads, policies = result["tables"]
    assert [row[0] for row in start[1:]] == ["5"]
    assert [row[0] for row in targets[1:]] == ["7"]
    assert [row[0] for row in connections[1:]] == ["3"]
    for table, column in ((targets, 6), (connections, 2), (responses, 2), (uploads, 2)):
        for row in table[1:]:
            assert row[1] == "pyproxy"
            assert float(row[column].replace(",", "")) > 0, row
    assert [row[0] for row in responses[1:]] == [row[0] for row in uploads[1:]]
    assert [row[0] for row in policies[1:]] == ["first", "random"]
    text = (tmp_path / "results" / "results.md").read_text()
    assert f"```sh\n{result['command']}\n```" in text
    assert f"- pyproxy: {__version__}\n" in text
    assert "- Python: " in text
    if importlib.util.find_spec("matplotlib"):
        picture = (tmp_path / "results" / "growth.png").read_bytes()
        assert picture.startswith(b"\x89PNG")
