"""pyproxy and nginx with HTTP/2 clients (h2load, clear text), in turn.

    python benchmarks/http2.py --rounds 5 --seconds 2

Both have the same targets, five servers of one nginx. A table of medians goes to standard output.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

from contestants import FOREVER, HOST, NGINX_PROXY, NGINX_TUNED, nginx
from pairs import measure

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


if __name__ == "__main__":
    measure("HTTP/2 beside nginx, driven by h2load.", CASES, command, load)
