"""The dashboard of targets that are made: how many, why, and a rollout; in a real Chromium."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import pytest

from pyproxy import Proxy
from pyproxy.control.control import Control
from tests import test_dashboard
from tests.fleets import line, made, needs_fork, scaling, state, version
from tests.support import eventually
from tests.test_dashboard import CONTRASTS, TOO_WIDE, Page, administered

pytestmark = [*test_dashboard.pytestmark, needs_fork]
chrome, page = test_dashboard.chrome, test_dashboard.page

PANEL = ".scaling"


@contextlib.contextmanager
def shown(page: Page, **rules: Any) -> Iterator[Control]:
    """A proxy whose one target is made, and the page open."""
    with (
        Proxy(scaling=made(**rules), sleeping=60) as proxy,
        administered(proxy.control) as admin,
    ):
        page.open(admin.url)
        eventually(lambda: "of 1–3" in page.text(PANEL))
        yield proxy.control


def press(page: Page, name: str) -> None:
    """The button of this name, as a screen reader knows it."""
    found = [one for one in page.all(f"{PANEL} button") if one.accessible_name == name]
    assert len(found) == 1, [one.accessible_name for one in page.all(f"{PANEL} button")]
    found[0].click()


def says(page: Page, *words: str) -> None:
    eventually(lambda: all(word in page.text(PANEL) for word in words))


def test_targets_are_added_and_taken_away_by_a_click(page: Page) -> None:
    with shown(page) as control:
        says(page, "1 of 1–3", "by hand", line(version("old")))
        press(page, "One target more in the pool default")
        says(page, "2 of 1–3", "1 → 2: by the operator", "sec ago")
        eventually(lambda: scaling(control)["wanted"] == 2)
        eventually(lambda: len(page.all("tr.live")) == 2)
        one = scaling(control)["instances"][1]
        page.says(one["url"], "default-2")
        press(page, "One target less in the pool default")
        says(page, "1 of 1–3", "2 → 1: by the operator")
        eventually(lambda: len(page.all("tr.live")) == 1)
        fewer = page.find(f"{PANEL} button")
        eventually(lambda: not fewer.is_enabled())
        page.find(".remove").click()
        assert "Another one is made in its place" in page.text("dialog")


def test_a_rollout_is_seen_held_and_taken_back(page: Page) -> None:
    with shown(page) as control:
        new = version("new", "hang")
        control.roll_out({"command": new})
        says(page, f"Rollout of {line(new)}: 0 of 1", "default-2 starting")
        bar = page.find(f"{PANEL} progress")
        assert (bar.aria_role, bar.accessible_name) == ("progressbar", "Rollout")
        press(page, "Pause: Rollout default")
        says(page, "is paused: 0 of 1")
        assert state(control) == "paused"
        press(page, "Resume: Rollout default")
        says(page, f"Rollout of {line(new)}: 0 of 1")
        press(page, "Abort: Rollout default")
        says(page, "went back: aborted by the operator", "sec ago")
        assert not bar.is_displayed()
        assert page.find(f"{PANEL} [role=status]").text.endswith("by the operator")


def test_what_hinders_it_is_told(page: Page) -> None:
    with shown(page, command=version("old", "crash")):
        says(page, "1 of 1–3", "ended with status 1: there is a hole in it")
        assert page.find(f"{PANEL} .problem").aria_role == "alert"


class Seen(Control):
    """Tells of a pool whose targets are made all that can be told, with much text."""

    def snapshot(self) -> dict[str, Any]:
        found = super().snapshot()
        now = time.time()
        long = "python -m some.application " * 5 + "x" * 100
        decision = {"at": now - 90, "from": 2, "to": 3, "reason": f"<b>slow</b> {long}"}
        signals = {"targets": 2, "coming": 1, "rate": 9.5, "response_time": 0.25, "others": 0}
        rollout = {"from": long, "to": long, "state": "paused", "reason": "", "began": now}
        found["pools"][0]["scaling"] = {
            **{"launcher": "docker", "min": 1, "max": 10, "auto": True, "wanted": 3},
            **{"version": long, "problem": long, "decisions": [decision] * 4, "instances": []},
            "signals": {**signals, "in_flight": 1.5, "cpu": 35.0},
            "rollout": {**rollout, "ended": None, "done": 1, "of": 3},
        }
        return found


@contextlib.contextmanager
def told(page: Page) -> Iterator[None]:
    with Proxy(targets=[1], sleeping=60) as proxy, administered(Seen(proxy)) as admin:
        page.open(admin.url)
        eventually(lambda: page.find(PANEL).is_displayed())
        yield


def test_the_load_and_the_last_decisions_are_told_as_text(page: Page) -> None:
    with told(page):
        says(page, "3 of 1–10", "by the load", "Response time 250 ms", "Processor 35%")
        says(page, "In flight 1.5", "2 → 3: <b>slow</b>", "1 min ago", "Rollout of")
        assert page.text(PANEL).count("2 → 3") == 3, "of four"
        assert page.run("return document.querySelector('.scaling progress').position") == 1 / 3


@pytest.mark.parametrize("language", ["en", "ru"])
@pytest.mark.parametrize("width", [320, 1181])
def test_it_fits_and_can_be_read(page: Page, width: int, language: str) -> None:
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 2, "mobile": width < 500}
    page.emulate("setDeviceMetricsOverride", **metrics)
    page.emulate("setUserAgentOverride", userAgent="", acceptLanguage=language)
    with told(page):
        assert page.run(TOO_WIDE) == []
        wide = "return document.querySelector('.scaling').scrollWidth > innerWidth"
        assert not page.run(wide)
        buttons = [one for one in page.all(f"{PANEL} button") if one.is_displayed()]
        assert all(one.accessible_name for one in buttons)
        assert len(buttons) == 4
        for scheme in ("light", "dark"):
            feature = {"name": "prefers-color-scheme", "value": scheme}
            page.emulate("setEmulatedMedia", features=[feature])
            assert [found for found in page.run(CONTRASTS) if found[0] < 4.5] == []
