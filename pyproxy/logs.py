"""The program's own log, on standard error: a text a line, or an object in JSON a line."""

import json
import logging
import sys
from datetime import datetime

from pyproxy.sections import Log

_TEXT = "%(asctime)s %(levelname)s %(message)s"
# These tell of single requests, which is the access log's business.
_TALKATIVE = ("handler", "http2", "http2_stream")


class _JsonFormatter(logging.Formatter):
    def __init__(self, worker: int | None) -> None:
        super().__init__()
        self._worker = {} if worker is None else {"worker": worker}

    def format(self, record: logging.LogRecord) -> str:
        told: dict[str, str | int] = {
            "time": datetime.fromtimestamp(record.created).astimezone().isoformat(),
            "level": record.levelname.lower(),
            "logger": record.name,
            "process": record.process or 0,
            **self._worker,
            "message": record.getMessage(),
        }
        if record.exc_info:
            told["exception"] = self.formatException(record.exc_info)
        return json.dumps(told)


def configure(said: Log, worker: int | None = None) -> None:
    """Logs as the settings say, from now on; may be called again with others. ``worker`` is the
    number of one of several processes, which each of its lines tells. At the level ``info`` single
    requests are told of from ``warning`` on, at ``debug`` always."""
    logging.basicConfig(stream=sys.stderr)  # only the first time does it anything
    root = logging.getLogger()
    who = "" if worker is None else f"worker {worker}: "
    for handler in root.handlers:
        text = logging.Formatter(_TEXT.replace("%(message)s", f"{who}%(message)s"))
        handler.setFormatter(_JsonFormatter(worker) if said.format == "json" else text)
    root.setLevel(said.level.upper())
    for name in _TALKATIVE:
        level = logging.WARNING if said.level == "info" else logging.NOTSET
        logging.getLogger(f"pyproxy.http.{name}").setLevel(level)
