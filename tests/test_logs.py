"""The program's own log: texts or JSON, from a level on, and other settings while it runs."""

import json
import re
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest

from tests.programs import ROOT, program
from tests.support import client, closed_port, get, letters


def lines(code: str) -> list[str]:
    """What a program says that logs to ``pyproxy.x`` and ``pyproxy.http.handler``."""
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import logging\n"
            "from pyproxy.logs import configure\nfrom pyproxy.sections import Log\n"
            "log = logging.getLogger('pyproxy.x')\n"
            "handler = logging.getLogger('pyproxy.http.handler')\n" + code,
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stderr.splitlines()


def test_a_line_is_a_text_unless_json_is_asked_for() -> None:
    [line] = lines("configure(Log()); log.info('a %s', 'b')")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO a b", line)


def test_in_json_each_line_is_an_object() -> None:
    code = """
configure(Log(format="json"))
log.warning('a\\n"%s"', 'д')
try:
    1 / 0
except ZeroDivisionError:
    log.exception('failed')
"""
    one, other = (json.loads(line) for line in lines(code))
    when = datetime.fromisoformat(one.pop("time"))
    assert when.tzinfo
    assert abs((datetime.now(when.tzinfo) - when).total_seconds()) < 60
    assert one.pop("process") > 0
    assert one == {"level": "warning", "logger": "pyproxy.x", "message": 'a\n"д"'}
    assert other["exception"].startswith("Traceback (most recent call last):\n")
    assert other["exception"].endswith("ZeroDivisionError: division by zero")


@pytest.mark.parametrize(
    ("level", "told"),
    [
        ("debug", "debug info warning error handler-info handler-warning handler-error"),
        ("info", "info warning error handler-warning handler-error"),
        ("warning", "warning error handler-warning handler-error"),
        ("error", "error handler-error"),
    ],
)
def test_the_level_is_the_least_that_is_told(level: str, told: str) -> None:
    code = f"""
configure(Log(level="{level}"))
for name in ("debug", "info", "warning", "error"):
    getattr(log, name)(name)
for name in ("info", "warning", "error"):
    getattr(handler, name)("handler-" + name)
"""
    assert [line.split()[-1] for line in lines(code)] == told.split()


def test_it_can_be_configured_again_while_it_runs() -> None:
    code = """
configure(Log(level="error")); handler.warning("no")
configure(Log(format="json", level="debug")); handler.info("yes")
configure(Log()); handler.info("no"); log.info("again")
"""
    first, second = lines(code)
    assert json.loads(first)["message"] == "yes"
    assert second.endswith(" INFO again")


def test_the_program_says_nothing_but_json_when_that_is_asked_for() -> None:
    route = json.dumps([{"path": "/gone", "targets": [closed_port()]}])
    options = ("--listen", "0", "--log.format", "json", "--routes", route)
    with (
        letters("a") as [target],
        program(*options, "--targets", target.url) as proxy,
    ):
        assert get(proxy.url, "/gone").status == 503
        proxy.wait_for("evicted")
        assert proxy.stop() == 0
    told = [json.loads(line) for line in proxy.stderr]
    messages = [one["message"] for one in told]
    assert messages[0].startswith("pyproxy ")
    assert messages[1].startswith("*/gone: 1 target")
    assert messages[-1].startswith("stopping: ")
    assert "warning" in {one["level"] for one in told}


def test_what_the_program_says_is_json_from_the_reload_on_that_asks_for_it(tmp_path: Path) -> None:
    file = tmp_path / "appsettings.json"
    settings = {"listen": "http://127.0.0.1:0", "targets": [1], "log": {"format": "text"}}
    file.write_text(json.dumps(settings))
    with program(cwd=tmp_path) as proxy:
        assert proxy.url
        file.write_text(json.dumps({**settings, "log": {"format": "json"}}))
        proxy.wait_for("settings: log.format")
        assert proxy.stop() == 0
    assert json.loads(proxy.stderr[-1])["message"].startswith("stopping: ")


def test_each_line_of_a_worker_tells_its_number() -> None:
    text, in_json = lines(
        "configure(Log(), 3); log.info('a'); configure(Log(format='json'), 3); log.info('a')"
    )
    assert text.endswith(" INFO worker 3: a")
    assert json.loads(in_json)["worker"] == 3


def test_at_debug_single_requests_are_told_of() -> None:
    with (
        letters("a") as [target],
        program("--listen", "0", "--targets", target.url, "--log.level", "debug") as proxy,
        client(proxy.url) as wire,
    ):
        wire.send(b"GARBAGE\r\n\r\n")
        wire.read_message()
        proxy.wait_for("INFO answered 400 to 127.0.0.1: ")
