"""Two proxies as one writes them in Python in an afternoon, to be measured beside pyproxy:

    python benchmarks/python_proxies.py stdlib 127.0.0.1:8000 127.0.0.1:8001 127.0.0.1:8002
    python benchmarks/python_proxies.py aiohttp 127.0.0.1:8000 127.0.0.1:8001 127.0.0.1:8002

``stdlib`` is a ThreadingHTTPServer that asks a target by requests.request; ``aiohttp`` a server and
one client session of that package, which streams bodies. Both take targets in turn, keep
connections where their libraries do, and lack all else that a proxy needs.
"""

import asyncio
import itertools
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import requests

HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "host", "server", "date"}


def serve_stdlib(host: str, port: int, targets: Iterator[str]) -> None:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            fields = {k: v for k, v in self.headers.items() if k.lower() not in HOP_BY_HOP}
            url = f"http://{next(targets)}{self.path}"
            answer = requests.request(self.command, url, data=body, headers=fields, timeout=60)
            self.send_response(answer.status_code)
            for name, value in answer.headers.items():
                if name.lower() not in HOP_BY_HOP:
                    self.send_header(name, value)
            if self.close_connection:
                self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(answer.content)

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        request_queue_size = 1024

    Server((host, port), Handler).serve_forever()


def serve_aiohttp(host: str, port: int, targets: Iterator[str]) -> None:
    from aiohttp import ClientSession, TCPConnector, web

    async def main() -> None:
        connector = TCPConnector(limit=0)
        async with ClientSession(connector=connector, auto_decompress=False) as session:

            async def forward(request: web.Request) -> web.StreamResponse:
                fields = {k: v for k, v in request.headers.items() if k.lower() not in HOP_BY_HOP}
                data = request.content if request.can_read_body else None
                url = f"http://{next(targets)}{request.path_qs}"
                asked = session.request(
                    request.method, url, data=data, headers=fields, allow_redirects=False
                )
                async with asked as answer:
                    kept = {k: v for k, v in answer.headers.items() if k.lower() not in HOP_BY_HOP}
                    response = web.StreamResponse(status=answer.status, headers=kept)
                    await response.prepare(request)
                    async for piece in answer.content.iter_any():
                        await response.write(piece)
                    await response.write_eof()
                    return response

            app = web.Application(client_max_size=2**30)
            app.router.add_route("*", "/{path:.*}", forward)
            runner = web.AppRunner(app, access_log=None)
            await runner.setup()
            await web.TCPSite(runner, host, port, backlog=1024).start()
            await asyncio.Event().wait()

    asyncio.run(main())


if __name__ == "__main__":
    _, kind, address, *others = sys.argv
    at, _, number = address.rpartition(":")
    serve = {"stdlib": serve_stdlib, "aiohttp": serve_aiohttp}[kind]
    try:
        serve(at, int(number), itertools.cycle(others))
    except KeyboardInterrupt:
        sys.exit(130)
