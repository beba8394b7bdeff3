"""A target in a process of its own that keeps what it was asked: ``recorder.py PORT FILE``.

The id of each POST is written to FILE before it is answered, so that it is there even if the
process is killed right after.
"""

import os
import sys
from typing import Any

from pyproxy.lab.target import HelloHandler, HelloServer

log = os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND | os.O_CREAT)


class Recorder(HelloHandler):
    def answer(self) -> None:
        if self.command == "POST":
            os.write(log, self.headers["X-Id"].encode() + b"\n")
        super().answer()

    do_POST = answer


class RecorderServer(HelloServer):
    def finish_request(self, request: Any, client_address: Any) -> None:
        Recorder(request, client_address, self)


RecorderServer("127.0.0.1", int(sys.argv[1])).serve_forever()
