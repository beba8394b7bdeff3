"""An operator's day: everything that is done to a proxy while it serves, and no request fails."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.programs import Program, program, run
from tests.support import DEADLINE, Load, eventually, letters

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


def said(served: Program, *words: str) -> str:
    """What a command answers that talks to the proxy."""
    done = run(*words, "--admin", served.wait_for(r"admin: (http://\S+)")[1])
    assert done.returncode == 0, done.stderr
    return done.stdout


def status(served: Program) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(said(served, "status", "--json"))
    return found


def state_of(served: Program, url: str) -> str:
    targets = status(served)["pools"][0]["targets"]
    return next(str(one["state"]) for one in targets if one["url"] == url)


def replaced(served: Program, gone: int) -> bool:
    now = [one["pid"] for one in status(served)["workers"] if one["pid"]]
    return len(now) == 2 and gone not in now


def test_an_operators_day(tmp_path: Path) -> None:
    file = tmp_path / "appsettings.json"
    with letters("abc") as [a, b, c]:
        settings = {
            "listen": "http://127.0.0.1:0",
            "admin": {"listen": "http://127.0.0.1:0"},
            "targets": [a.url, b.url],
            "workers": 2,
        }
        file.write_text(json.dumps(settings))
        with program(cwd=tmp_path) as served:
            with Load(served.url) as load:
                load.goes_on()

                file.write_text(json.dumps({**settings, "targets": [a.url, b.url, c.url]}))
                served.wait_for("settings: targets: with ")
                eventually(lambda: len(c.requests) > 5)

                assert "draining" in said(served, "drain", b.url)
                asked = len(b.requests)
                load.goes_on()
                assert len(b.requests) <= asked + 4, "at most what was under way"

                victim = status(served)["workers"][0]["pid"]
                os.kill(victim, signal.SIGTERM)
                eventually(lambda: replaced(served, victim))
                assert state_of(served, b.url) == "draining", "the new worker knows it too"
                load.goes_on()

                assert said(served, "restart") == "restarting\n"
                new = int(served.wait_for(r"process (\d+) takes the place of this one")[1])
                assert served.process.wait(DEADLINE) == 0
                load.goes_on()
                assert state_of(served, b.url) == "draining", "and the new program"

                said(served, "ready", b.url)
                asked = len(b.requests)
                eventually(lambda: len(b.requests) > asked)

            assert load.failures == []
            assert set(load.statuses) == {200}
            assert status(served)["requests"] == load.count
            assert sum(len(one.requests) for one in (a, b, c)) == load.count
            api = served.wait_for(r"admin: (http://\S+)")[1]
            metrics = requests.get(f"{api}/metrics", timeout=DEADLINE).text
            counted = [
                float(line.split()[-1])
                for line in metrics.splitlines()
                if line.startswith("pyproxy_requests_total{")
            ]
            assert sum(counted) == load.count
            os.kill(new, signal.SIGTERM)
            eventually(lambda: not served._open)
