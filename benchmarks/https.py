"""pyproxy and nginx with TLS 1.3 clients, in turn: kept-alive connections, and full handshakes.

    python benchmarks/https.py --rounds 5 --seconds 2

Both show the same certificate (P-256) and choose the same cipher. wrk drives kept-alive
connections; four `openssl s_time -new` at once make one handshake after the other, and ask for
nothing. A table of medians goes to standard output. Needs wrk, nginx, openssl, and the extra
tls-tools.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

from contestants import FOREVER, HOST, NGINX_PROXY, NGINX_TUNED, nginx
from pairs import measure

from pyproxy.lab.certificate import make_certificate

HANDSHAKES = 4  # programs at once
CASES = {
    "1 connection": 1,
    "16 connections": 16,
    "64 connections": 64,
    "full handshakes": 0,
}


def command(name: str, folder: Path, port: int, targets: list[int]) -> list[str]:
    pair = folder.parent / "cert.pem", folder.parent / "key.pem"
    if not pair[0].exists():
        make_certificate([HOST], *pair)
    if name == "nginx":
        servers = " ".join(f"server {HOST}:{target};" for target in targets)
        tls = f" ssl backlog=4096; ssl_certificate {pair[0]}; ssl_certificate_key {pair[1]};"
        text = NGINX_PROXY.format(
            host=HOST, port=port, servers=servers, forever=FOREVER, tuned=NGINX_TUNED
        )
        return nginx(folder, text.replace(" backlog=4096;", tls), 1024)
    settings = {
        "listen": f"https://{HOST}:{port}",
        "tls": {"certificate": str(pair[0]), "key": str(pair[1])},
        "targets": [f"http://{HOST}:{target}" for target in targets],
    }
    (folder / "config").write_text(json.dumps(settings))
    return [sys.executable, "-m", "pyproxy", "--config", str(folder / "config")]


def load(port: int, connections: int, seconds: float) -> float:
    """Requests a second, or handshakes."""
    if not connections:
        words = ["openssl", "s_time", "-connect", f"{HOST}:{port}", "-new", "-time", str(seconds)]
        running = [
            subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            for _ in range(HANDSHAKES)
        ]
        told = "".join(one.communicate()[0] for one in running)
        found = re.findall(r"^(\d+) connections in (\d+) real seconds", told, re.MULTILINE)
        return sum(int(count) / seconds for count, _ in found)
    words = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}", f"https://{HOST}:{port}/"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True)
    if "Non-2xx" in done.stdout or "Socket errors" in done.stdout:
        raise SystemExit(f"requests failed:\n{done.stdout}")
    match = re.search(r"Requests/sec:\s+([\d.]+)", done.stdout)
    assert match
    return float(match[1])


if __name__ == "__main__":
    measure("HTTPS beside nginx, driven by wrk and openssl s_time.", CASES, command, load)
