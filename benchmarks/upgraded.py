"""Idle WebSockets through pyproxy: memory for each, and what throughput goes on beside them.

    python benchmarks/upgraded.py --count 2000

Their target is this program; the other requests go to five servers of one nginx. Needs wrk and
nginx.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import threading
from contextlib import ExitStack
from pathlib import Path

from contestants import HOST, free_ports, resident, running, targets_command
from load import Case, Proxy, wrk

ASK = b"GET /ws HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
BESIDE = Case("beside", "small answers, 16 connections", 16)


async def switch(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(SWITCH)
    await reader.read()
    writer.close()


async def hold(port: int, count: int, opened: threading.Event, end: threading.Event) -> None:
    held = []
    for _ in range(count):
        reader, writer = await asyncio.open_connection(HOST, port)
        writer.write(ASK)
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101"), head
        held.append(writer)
    opened.set()
    await asyncio.to_thread(end.wait)
    for writer in held:
        writer.close()


def main() -> None:
    parser = argparse.ArgumentParser(description="Idle WebSockets, and requests beside them.")
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seconds", type=int, default=2)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as text, ExitStack() as stack:
        folder = Path(text)
        targets, [port, ws] = free_ports(5), free_ports(2)
        start = targets_command(folder, targets)
        stack.enter_context(running(start, folder, targets[0]))
        loop = asyncio.new_event_loop()
        threading.Thread(target=loop.run_forever, daemon=True).start()
        target = asyncio.start_server(switch, HOST, ws, backlog=4096)
        asyncio.run_coroutine_threadsafe(target, loop).result()
        settings = {
            "listen": f"http://{HOST}:{port}",
            "targets": targets,
            "routes": [{"path": "/ws", "targets": [ws]}],
            "limits": {"connections": given.count + 100},
        }
        (folder / "config").write_text(json.dumps(settings))
        command = [sys.executable, "-m", "pyproxy", "--config", str(folder / "config")]
        pid = stack.enter_context(running(command, folder, port))
        proxy = Proxy("pyproxy", port, pid)
        wrk(0, BESIDE, proxy, given.seconds, folder)  # warm
        alone = wrk(0, BESIDE, proxy, given.seconds, folder).rate
        before = resident(pid)
        opened, end = threading.Event(), threading.Event()
        holding = asyncio.run_coroutine_threadsafe(hold(port, given.count, opened, end), loop)
        if not opened.wait(120):
            raise SystemExit(f"they didn't open: {holding}")
        after = resident(pid)
        beside = wrk(0, BESIDE, proxy, given.seconds, folder).rate
        end.set()
        holding.result(30)
        closing = asyncio.sleep(1)  # the target hears of the ends
        asyncio.run_coroutine_threadsafe(closing, loop).result()
        loop.call_soon_threadsafe(loop.stop)
    each = (after - before) * 1024 / given.count
    print("| idle | MiB before | MiB with them | KiB each | req/s without | req/s beside |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: |")
    memory = f"{before:.1f} | {after:.1f} | {each:.1f}"
    print(f"| {given.count} | {memory} | {alone:,.0f} | {beside:,.0f} |")


if __name__ == "__main__":
    main()
