"""A target in a process of its own that keeps what it was asked: ``recorder.py PORT FILE``.

The id of each POST is written to FILE before it is answered, so that it is there even if the
process is killed right after. Nearly all the time of a request is spent waiting here: that is where
requests are when the process is killed, and many clients at once cost little. Nothing but the
standard library, so that it is soon there again.
"""

import os
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

log = os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND | os.O_CREAT)


class Recorder(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        time.sleep(0.05)
        # In one call: of an answer that has begun, clients would see the end.
        self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\nHello, world!")

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        os.write(log, self.headers["X-Id"].encode() + b"\n")
        self.do_GET()

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


class RecorderServer(ThreadingHTTPServer):
    request_queue_size = 128
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a connection broke


RecorderServer(("127.0.0.1", int(sys.argv[1])), Recorder).serve_forever()
