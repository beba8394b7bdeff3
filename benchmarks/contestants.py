"""The servers that compare.py measures: how they are configured, started and ended."""

import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

HOST = "127.0.0.1"
SMALL = "Hello, world!"
LARGE = 1024 * 1024
HUGE = 100 * LARGE
FOREVER = 1_000_000_000  # requests on one connection: no proxy shall cut it
START = 20.0  # seconds a process may take to accept connections, or to end


class Broken(Exception):
    """A server does not start or does not answer as it should."""


# All of the temporary paths are named because the built-in ones may not be writable.
NGINX = """
daemon off; {processes} pid nginx.pid; error_log stderr error;
events {{ worker_connections {connections}; }}
http {{
  access_log off; default_type text/plain; sendfile on; tcp_nopush on;
  keepalive_timeout 600s; keepalive_requests {forever};
  client_max_body_size 100m;
  client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi;
  uwsgi_temp_path uwsgi; scgi_temp_path scgi;
  {servers}
}}
"""

# With "return" alone nginx would answer an upload before it has read it: mirroring makes it
# read the body first, and the 404 for a file that is not there becomes the small answer.
TARGET = """
  server {{
    listen {host}:{port} backlog=4096; root {root}; add_header X-Target {port};
    client_body_buffer_size 128k;
    location / {{ return 200 "{small}"; }}
    location = /varied {{
      add_header X-Target {port}; add_header X-Request-Id $request_id; return 200 "{small}";
    }}
    location = /large {{ }}
    location = /huge {{ }}
    location = /upload {{ mirror /ignored; log_not_found off; error_page 404 =200 /; }}
    location = /ignored {{ internal; return 204; }}
  }}
"""

# Buffers that make large answers and uploads faster than nginx's own defaults do.
NGINX_TUNED = "client_body_buffer_size 128k; proxy_buffer_size 16k; proxy_buffers 16 64k;"

NGINX_PROXY = """
  upstream targets {{ {servers} keepalive 300; keepalive_requests {forever};
    keepalive_timeout 600s; }}
  server {{ listen {host}:{port} backlog=4096;
    location / {{ proxy_pass http://targets; proxy_http_version 1.1;
      proxy_set_header Connection ""; {tuned} }} }}
"""

# The ratios are of open files: at more than 25 % HAProxy would stop keeping targets' connections,
# so that with many idle clients it would be measured opening connections.
HAPROXY = """
global
  nbthread 1
  maxconn {connections}
  no strict-limits
  tune.pool-high-fd-ratio 95
  tune.pool-low-fd-ratio 90
defaults
  mode http
  timeout connect 10s
  timeout client 600s
  timeout server 600s
frontend clients
  bind {host}:{port} backlog 4096
  maxconn {connections}
  default_backend targets
backend targets
  balance roundrobin
  http-reuse always
{servers}
"""

CADDY = """
{{
  admin off
  auto_https off
}}
http://:{port} {{
  bind {host}
  reverse_proxy {servers} {{
    lb_policy round_robin
    transport http {{
      keepalive_idle_conns_per_host 300
    }}
  }}
}}
"""


# TCP mode. Debian's nginx loads what it needs for it; elsewhere it may be built in.
STREAM_MODULE = Path("/usr/lib/nginx/modules/ngx_stream_module.so")
NGINX_STREAM = """
{module}
daemon off; master_process off; worker_processes 1; pid nginx.pid; error_log stderr error;
events {{ worker_connections {connections}; }}
stream {{
  upstream targets {{ {servers} }}
  server {{ listen {host}:{port} backlog=4096; proxy_pass targets; {tuned} }}
}}
"""


def nginx(folder: Path, servers: str, connections: int, workers: int = 1) -> list[str]:
    processes = f"master_process {'on' if workers > 1 else 'off'}; worker_processes {workers};"
    text = NGINX.format(
        processes=processes, servers=servers, connections=connections, forever=FOREVER
    )
    (folder / "nginx.conf").write_text(text)
    return ["nginx", "-p", f"{folder}/", "-e", "stderr", "-c", "nginx.conf"]


def targets_command(folder: Path, ports: list[int]) -> list[str]:
    """Prepare the targets in the folder; the command line that starts them all."""
    (folder / "large").write_bytes(bytes(LARGE))
    with (folder / "huge").open("wb") as file:
        file.truncate(HUGE)
    servers = [TARGET.format(host=HOST, port=port, root=folder, small=SMALL) for port in ports]
    return nginx(folder, "".join(servers), 16384)


def proxy_command(
    name: str,
    python: str,
    folder: Path,
    port: int,
    targets: Sequence[int | str],
    connections: int,
    policy: str = "hash_ring",
    workers: int = 1,
) -> list[str]:
    """Configure the proxy of that name in the folder; the command line that starts it. ``targets``
    are ports of HOST, or addresses with a port; ``policy`` is for pyproxy; ``workers`` are
    processes, or threads where it has those instead."""
    config = folder / "config"
    addresses = [one if isinstance(one, str) else f"{HOST}:{one}" for one in targets]
    if name.startswith("nginx"):
        servers = " ".join(f"server {address};" for address in addresses)
        tuned = NGINX_TUNED if name == "nginx" else ""
        text = NGINX_PROXY.format(
            host=HOST, port=port, servers=servers, forever=FOREVER, tuned=tuned
        )
        return nginx(folder, text, connections, workers)
    if name == "haproxy":
        servers = "\n".join(f"  server t{n} {address}" for n, address in enumerate(addresses))
        text = HAPROXY.format(host=HOST, port=port, servers=servers, connections=connections)
        text = text.replace("nbthread 1", f"nbthread {workers}")
        start = ["haproxy", "-db", "-f"]
    elif name == "caddy":
        text = CADDY.format(host=HOST, port=port, servers=" ".join(addresses))
        start = ["env", f"GOMAXPROCS={workers}", "caddy", "run"]
        start += ["--adapter", "caddyfile", "--config"]
    elif name in ("aiohttp", "stdlib"):
        program = str(Path(__file__).with_name("python_proxies.py"))
        return [python, program, name, f"{HOST}:{port}", *addresses]
    else:
        settings = {
            "listen": f"http://{HOST}:{port}",
            "targets": [f"http://{address}" for address in addresses],
            "policy": policy,
            "access_log": None,
            "limits": {"connections": connections},
            "timeouts": {"keep_alive": 600},
            "workers": workers,
            "cpu_affinity": name != "pyproxy-unbound",
        }
        text = json.dumps(settings)
        start = [python, "-m", "pyproxy", "--config"]
    config.write_text(text)
    return [*start, str(config)]


def tcp_command(
    name: str, python: str, folder: Path, port: int, targets: list[int], connections: int
) -> list[str]:
    """The same for a proxy in TCP mode."""
    config = folder / "config"
    addresses = [f"{HOST}:{target}" for target in targets]
    if name.startswith("nginx"):
        text = NGINX_STREAM.format(
            module=f"load_module {STREAM_MODULE};" if STREAM_MODULE.exists() else "",
            host=HOST,
            port=port,
            servers=" ".join(f"server {address};" for address in addresses),
            connections=2 * connections,
            tuned="proxy_buffer_size 256k;" if name == "nginx" else "",
        )
        (folder / "nginx.conf").write_text(text)
        return ["nginx", "-p", f"{folder}/", "-e", "stderr", "-c", "nginx.conf"]
    if name == "haproxy":
        servers = "\n".join(f"  server t{n} {address}" for n, address in enumerate(addresses))
        text = HAPROXY.format(host=HOST, port=port, servers=servers, connections=connections)
        text = text.replace("mode http", "mode tcp").replace("  http-reuse always\n", "")
        start = ["haproxy", "-db", "-f"]
    else:
        entry = {"listen": f"{HOST}:{port}", "targets": [f"tcp://{one}" for one in addresses]}
        text = json.dumps({"tcp": [entry], "limits": {"connections": connections}})
        start = [python, "-m", "pyproxy", "--config"]
    config.write_text(text)
    return [*start, str(config)]


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server((HOST, 0)) for _ in range(count)]
    ports: list[int] = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def family(pid: int) -> list[int]:
    """The process and all below it."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended meanwhile
            number, _, rest = path.read_text(errors="replace").partition(" ")
            parents[int(number)] = int(rest.rpartition(")")[2].split()[1])
    pids = [pid]
    for parent in pids:
        pids += [child for child, its_parent in parents.items() if its_parent == parent]
    return pids


def resident(pid: int) -> float:
    """MiB of memory that the process and all below it have in use."""
    try:
        status = "".join(Path(f"/proc/{each}/status").read_text() for each in family(pid))
    except OSError:
        raise Broken("has ended") from None
    return sum(map(int, re.findall(r"^VmRSS:\s+(\d+)", status, re.MULTILINE))) / 1024


def proportional(pid: int) -> float:
    """MiB of memory of the process and all below it; what several share is divided among them."""
    try:
        told = "".join(Path(f"/proc/{each}/smaps_rollup").read_text() for each in family(pid))
    except OSError:
        raise Broken("has ended") from None
    return sum(map(int, re.findall(r"^Pss:\s+(\d+)", told, re.MULTILINE))) / 1024


def most_resident(pid: int, *, anew: bool = False) -> float:
    """The most MiB of memory that the process and all below it have had in use, each by itself;
    ``anew`` begins from now."""
    total = 0
    try:
        for each in family(pid):
            if anew:
                Path(f"/proc/{each}/clear_refs").write_text("5")
            status = Path(f"/proc/{each}/status").read_text()
            total += sum(map(int, re.findall(r"^VmHWM:\s+(\d+)", status, re.MULTILINE)))
    except OSError:
        raise Broken("has ended") from None
    return total / 1024


def processor_time(pid: int) -> float:
    """Seconds that the process and all below it have used."""
    try:
        stats = [Path(f"/proc/{each}/stat").read_text(errors="replace") for each in family(pid)]
    except OSError:
        raise Broken("has ended") from None
    ticks = sum(sum(map(int, stat.rpartition(")")[2].split()[11:13])) for stat in stats)
    return ticks / os.sysconf("SC_CLK_TCK")


@contextmanager
def running(argv: list[str], folder: Path, port: int) -> Iterator[int]:
    """Run a server in the context; its process id is given once it accepts connections."""
    # For Caddy: no files outside of the folder.
    state = {"XDG_CONFIG_HOME": str(folder), "XDG_DATA_HOME": str(folder)}
    environment = {**os.environ, **state}
    root = Path(__file__).resolve().parent.parent
    log = folder / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(argv, stdout=out, stderr=out, env=environment, cwd=root)
    try:
        deadline = time.monotonic() + START
        while True:
            try:
                # From another address: a try before the server listens could meet itself.
                socket.create_connection((HOST, port), 1.0, ("127.0.0.2", 0)).close()
                break
            except OSError as error:
                if process.poll() is not None or time.monotonic() > deadline:
                    last = log.read_text(errors="replace").strip()[-500:]
                    raise Broken(f"does not start: {last or error}") from None
                time.sleep(0.02)
        yield process.pid
    finally:
        end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    pids = family(process.pid) if process.poll() is None else []
    process.terminate()
    try:
        process.wait(START)
    except subprocess.TimeoutExpired:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
