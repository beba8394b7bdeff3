"""A target for tests of scaling: ``python made.py PORT [NAME [MODE]]``. Answers with its name.

Modes: ``good``; ``crash`` at once; ``brief``: answers, and ends after half a second; ``deaf``:
takes connections and never answers; ``stubborn``: ignores SIGTERM; ``bad``: 500 to all but /health.
"""

import os
import signal
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PORT, NAME, MODE = sys.argv[1:] + ["made", "good"][len(sys.argv) - 2 :]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        if MODE == "deaf":
            threading.Event().wait()
        bad = MODE == "bad" and self.path != "/health"
        body = f"{NAME} {os.getpid()}".encode()
        self.send_response(500 if bad else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


sys.stdout.write(f"{NAME} begins\n")
sys.stdout.flush()
if MODE == "crash":
    sys.exit(f"{NAME} can't go on")
if MODE == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if MODE == "brief":
    threading.Timer(0.5, os._exit, (3,)).start()
ThreadingHTTPServer.daemon_threads = True
ThreadingHTTPServer.request_queue_size = 128
ThreadingHTTPServer(("127.0.0.1", int(PORT)), Handler).serve_forever()
