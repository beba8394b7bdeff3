"""Runs a copy of the application on each port that appsettings.json names; Ctrl-C ends them all."""

import json
import signal
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent


def start(port: int) -> "subprocess.Popen[bytes]":
    arguments = ["--app-dir", str(FOLDER), "internal_app:app", "--port", str(port)]
    return subprocess.Popen([sys.executable, "-m", "uvicorn", *arguments])


def main() -> None:
    ports = json.loads((FOLDER / "appsettings.json").read_text(encoding="utf-8"))["targets"]
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # Children inherit this: one that still imports would end by Ctrl-C, which a terminal sends to
    # all, with a traceback; by terminate() it ends without a word.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    copies = [start(port) for port in ports]
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for copy in copies:
            copy.wait()
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        for copy in copies:
            copy.terminate()
        for copy in copies:
            copy.wait()


if __name__ == "__main__":
    main()
