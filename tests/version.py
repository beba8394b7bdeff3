"""A version of a target: ``python tests/version.py PORT NAME [MODE]`` answers with its name.

MODE: good; crash (ends at once); hang (never listens); 500 (says so to all but /health); shy (after
one answer to another request than /health it takes no connections, but stays).
"""

import http.server
import sys
import threading
from typing import ClassVar


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body at once
    said: ClassVar[tuple[bytes, str]]

    def do_GET(self) -> None:
        name, mode = self.said
        self.send_response(500 if mode == "500" and self.path != "/health" else 200)
        self.send_header("Content-Length", str(len(name)))
        self.end_headers()
        self.wfile.write(name)
        if mode == "shy" and self.path != "/health":
            self.close_connection = True
            threading.Thread(target=self.server.shutdown).start()

    def log_message(self, format: str, *arguments: object) -> None:
        pass


class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 128


def main(port: str, name: str, mode: str = "good") -> None:
    if mode == "crash":
        sys.exit("there is a hole in it")
    if mode == "hang":
        threading.Event().wait()
    Handler.said = name.encode(), mode
    with Server(("127.0.0.1", int(port)), Handler) as server:
        server.daemon_threads = True
        server.serve_forever()
    threading.Event().wait()


if __name__ == "__main__":
    main(*sys.argv[1:])
