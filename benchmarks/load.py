"""The load that compare.py puts on a server: requests by wrk, and idle connections.

Run as a script with a port and a number it is the process that holds idle connections.
"""

import json
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from contestants import HOST, SMALL, Broken, processor_time

UPLOAD = 64 * 1024
OPENING = 120.0  # seconds for opening all idle connections


@dataclass(frozen=True)
class Case:
    name: str
    title: str
    connections: int
    path: str = "/"
    closing: bool = False


@dataclass(frozen=True)
class Sample:
    """What one case gave for one proxy in one round."""

    round: int
    case: str
    proxy: str
    rate: float  # requests a second
    cpu_us: float  # the proxy's processor time for one of them
    p50_ms: float
    p99_ms: float
    errors: dict[str, int]
    idle: dict[str, float] = field(default_factory=dict)


# wrk calls init before it builds its one request, and done at the end: in between nothing runs,
# but for the varied requests.
WRK_SCRIPT = f"""
function init(args)
  if args[1] == "close" then wrk.headers["Connection"] = "close" end
  if wrk.path == "/upload" then wrk.method = "POST"; wrk.body = string.rep("x", {UPLOAD}) end
  if wrk.path == "/varied" then
    local count = 0
    request = function()
      count = count + 1
      wrk.headers["X-Request-Id"] = string.format("%032x", count)
      return wrk.format()
    end
  end
end
function done(s, latency, requests)
  local e = s.errors
  io.write(string.format('{{"requests": %d, "us": %d, "p50": %d, "p99": %d, "errors": {{'
    .. '"connect": %d, "read": %d, "write": %d, "timeout": %d, "non-2xx": %d}}}}\\n',
    s.requests, s.duration, latency:percentile(50), latency:percentile(99),
    e.connect, e.read, e.write, e.timeout, e.status))
end
"""


@dataclass(frozen=True)
class Proxy:
    name: str
    port: int
    pid: int


def wrk(turn: int, case: Case, proxy: Proxy, seconds: int, folder: Path) -> Sample:
    """Run the case for some seconds; the folder is for wrk's script."""
    script = folder / "wrk.lua"
    script.write_text(WRK_SCRIPT)
    argv = ["wrk", "-t1", f"-c{case.connections}", f"-d{seconds}", f"-s{script}"]
    argv += [f"http://{HOST}:{proxy.port}{case.path}", "--", "close" if case.closing else ""]
    before = processor_time(proxy.pid)
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    cpu = (processor_time(proxy.pid) - before) * 1e6
    if done.returncode:
        raise Broken(f"fails under wrk: {done.stdout.strip()}")
    got = json.loads(done.stdout.splitlines()[-1])
    rate = got["requests"] / got["us"] * 1e6
    errors = {kind: number for kind, number in got["errors"].items() if number}
    cpu /= max(1, got["requests"])
    p50, p99 = got["p50"] / 1e3, got["p99"] / 1e3
    return Sample(turn, case.name, proxy.name, rate, cpu, p50, p99, errors)


def hold(port: int, count: int) -> None:
    """Hold idle connections: tell how many were refused, and when asked how many were closed."""
    request = f"GET / HTTP/1.1\r\nHost: {HOST}:{port}\r\n\r\n".encode()
    deadline = time.monotonic() + OPENING
    held = []
    for _ in range(count):
        with suppress(OSError):
            patience = min(10.0, max(0.001, deadline - time.monotonic()))
            client = socket.create_connection((HOST, port), patience)
            client.sendall(request)
            answer = b""
            while not answer.endswith(SMALL.encode()):
                piece = client.recv(4096)
                if not piece:
                    raise ConnectionError
                answer += piece
            held.append(client)
    print(count - len(held), flush=True)
    sys.stdin.readline()
    poll = select.poll()
    for client in held:
        poll.register(client, select.POLLIN)
    print(len(poll.poll(0)), flush=True)


@contextmanager
def holding(port: int, count: int) -> Iterator[tuple[int, Callable[[], int]]]:
    """Idle connections: how many were refused, and a function that counts those closed since."""
    argv = [sys.executable, __file__, str(port), str(count)]
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin
    assert process.stdout
    ask, tell = process.stdin, process.stdout

    def closed() -> int:
        ask.write("\n")
        ask.flush()
        return int(tell.readline())

    try:
        yield int(tell.readline()), closed
    finally:
        process.kill()
        process.communicate()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # compare.py ends this process, or its input does
    hold(int(sys.argv[1]), int(sys.argv[2]))
