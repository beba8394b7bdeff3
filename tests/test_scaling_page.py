"""docs/scaling.md: its settings and commands do what it says."""

import json
import os
import re
import signal
from pathlib import Path

import requests

from tests.conftest import alone_on_this_machine
from tests.programs import ROOT, program, run
from tests.support import DEADLINE, eventually

PAGE = (ROOT / "docs/scaling.md").read_text(encoding="utf-8")


def test_the_first_settings_and_commands_work_as_written(tmp_path: Path) -> None:
    block = re.search(r"```json\n(.*?)```", PAGE, re.DOTALL)
    assert block
    (tmp_path / "appsettings.json").write_text(block[1])
    commands = re.findall(r"^\$ (.*)$", PAGE, re.MULTILINE)[:4]
    assert commands == [
        "python -m pyproxy",
        "curl http://127.0.0.1:8000/",
        "python -m pyproxy status",
        "python -m pyproxy scale 4",
    ]
    with alone_on_this_machine("ports"), program(cwd=tmp_path) as proxy:
        assert proxy.url == json.loads(block[1])["listen"]
        answer = requests.get("http://127.0.0.1:8000/", timeout=DEADLINE)
        assert answer.text == "Hello, world!"
        status = run("status", cwd=tmp_path)
        assert (status.returncode, status.stdout.count(" live ")) == (0, 2), status.stdout
        assert run("scale", "4", cwd=tmp_path).returncode == 0

        def live() -> list[int]:
            told = requests.get("http://127.0.0.1:8404/status", timeout=DEADLINE).json()
            made = told["pools"][0]["scaling"]["instances"]
            return [int(one["handle"]) for one in made if one["phase"] == "live"]

        eventually(lambda: len(live()) == 4)
        os.kill(live()[0], signal.SIGKILL)
        eventually(lambda: len(live()) == 3)
        eventually(lambda: len(live()) == 4)
        assert proxy.stop() == 0
