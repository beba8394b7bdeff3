"""The dashboard in a real Chromium: what it shows, what its buttons do, and for whom."""

import contextlib
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests

from pyproxy import Proxy
from pyproxy.balancing.counters import TIMES, Totals
from pyproxy.control.api import AdminServer
from pyproxy.control.control import Control, Verbs, target_id
from pyproxy.errors import ControlError, SettingsError
from pyproxy.sections import Admin
from tests.support import Gate, RawTarget, eventually, get, letters

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
pytestmark = [
    pytest.mark.skipif(not CHROMIUM, reason="Chromium is not on PATH"),
    pytest.mark.skipif(not DRIVER, reason="chromedriver is not on PATH (Debian: chromium-driver)"),
]
pytest.importorskip("selenium", reason="steers the browser (extra test)")

from selenium import webdriver  # noqa: E402
from selenium.common.exceptions import (  # noqa: E402
    ElementClickInterceptedException,
    NoSuchElementException,
    StaleElementReferenceException,
    WebDriverException,
)
from selenium.webdriver.chrome.options import Options  # noqa: E402
from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.remote.webelement import WebElement  # noqa: E402
from selenium.webdriver.support.select import Select  # noqa: E402

CONTRASTS = """
const luminance = ([r, g, b]) => [r, g, b].map(one => one / 255)
  .map(one => one <= 0.03928 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4)
  .reduce((sum, one, at) => sum + one * [0.2126, 0.7152, 0.0722][at], 0);
const numbers = colour => colour.match(/[\\d.]+/g).map(Number);
const behind = node => {
  const found = numbers(getComputedStyle(node).backgroundColor);
  return found[3] === 0 && node.parentElement ? behind(node.parentElement) : found;
};
return [...document.querySelectorAll("main *, header *")]
  .filter(node => node.checkVisibility() && [...node.childNodes].some(
    one => one.nodeType === Node.TEXT_NODE && one.data.trim()))
  .map(node => {
    const both = [numbers(getComputedStyle(node).color), behind(node)].map(luminance);
    return [(Math.max(...both) + 0.05) / (Math.min(...both) + 0.05), node.textContent];
  });
"""

TOO_WIDE = """
const root = document.documentElement;
const unseen = node => node.closest("thead")?.offsetWidth === 1;
return [root, ...document.querySelectorAll("button, th, td, td b")].filter(node =>
  node.checkVisibility() && !unseen(node) && (node.getBoundingClientRect().right > innerWidth
    || getComputedStyle(node).display !== "inline" && node.scrollWidth > node.clientWidth + 1)
).map(node => `${node.nodeName} ${node.textContent}`);
"""


@pytest.fixture(scope="module")
def chrome() -> Iterator[webdriver.Chrome]:
    assert CHROMIUM
    assert DRIVER
    options = Options()
    options.binary_location = CHROMIUM
    for argument in (
        *("--headless=new", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
        *("--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    ):
        options.add_argument(argument)
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        options.add_argument("--no-sandbox")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, Service(DRIVER))
    driver.set_window_size(1280, 900)
    yield driver
    driver.quit()


class Page:
    """The dashboard in the browser."""

    def __init__(self, chrome: webdriver.Chrome) -> None:
        self.chrome = chrome
        self.complaints()  # forgets what others have said

    def open(self, url: str) -> None:
        def loaded() -> bool:
            # Chromium drops what it loads when a network comes or goes: Docker's, for example.
            with contextlib.suppress(WebDriverException):
                self.chrome.get(url)
                return True
            return False

        eventually(loaded)
        eventually(lambda: self.text("#connection") in ("Live", "На связи"))

    def find(self, selector: str) -> WebElement:
        return self.chrome.find_element("css selector", selector)

    def all(self, selector: str) -> list[WebElement]:
        return self.chrome.find_elements("css selector", selector)

    def text(self, selector: str) -> str:
        """Of what may be drawn anew at any moment; nothing while it is not there."""
        with contextlib.suppress(StaleElementReferenceException, NoSuchElementException):
            return self.find(selector).text
        return ""

    @property
    def announcement(self) -> str:
        """What a screen reader has been told last."""
        return self.find("#announcement").get_attribute("textContent") or ""

    def run(self, script: str) -> Any:
        return self.chrome.execute_script(script)

    def emulate(self, command: str, **arguments: Any) -> None:
        self.chrome.execute_cdp_cmd(f"Emulation.{command}", arguments)

    def seen(self, selector: str) -> list[str]:
        """What those that can be seen say. In one step: none goes while another is read."""
        found: list[str] = self.run(
            f"return [...document.querySelectorAll({selector!r})]"
            ".filter(one => one.checkVisibility()).map(one => one.innerText)"
        )
        return found

    def says(self, url: str, *words: str) -> None:
        """Waits until the row of a target is there and has these words."""

        def said() -> bool:
            rows = self.seen(".targets tbody tr")
            return any(url in row and all(word in row for word in words) for row in rows)

        eventually(said)

    def click(self, selector: str) -> None:
        """As soon as it is there and has done what it was clicked for before, and nothing is before
        it, such as a dialog that closes."""

        def clicked() -> bool:
            with contextlib.suppress(
                NoSuchElementException,
                StaleElementReferenceException,
                ElementClickInterceptedException,
            ):
                found = self.find(selector)
                if found.get_attribute("aria-busy") != "true":
                    found.click()
                    return True
            return False

        eventually(clicked)

    def act(self, verb: str, url: str) -> None:
        """A button of a target."""
        self.click(f'button[aria-label^="{verb} {url}"]')

    def answer(self, button: str) -> None:
        """In the dialog."""
        self.click(f"dialog[open] .choice button[type={button}]")

    def press(self, *keys: str) -> None:
        webdriver.ActionChains(self.chrome).send_keys(*keys).perform()

    def complaints(self) -> list[str]:
        """Of the console, but for connections that could not be made."""
        log: Any = self.chrome.get_log("browser")  # type: ignore[no-untyped-call]
        said = [str(one["message"]) for one in log]
        return [one for one in said if "Failed to load resource" not in one]


@pytest.fixture
def page(chrome: webdriver.Chrome) -> Iterator[Page]:
    """Every test ends with a silent console: no script failed, the policy forbade nothing."""
    page = Page(chrome)
    yield page
    assert page.complaints() == []
    chrome.get("about:blank")
    page.emulate("clearDeviceMetricsOverride")
    page.emulate("setEmulatedMedia", features=[])
    page.emulate("setUserAgentOverride", userAgent="", acceptLanguage="")


@contextlib.contextmanager
def administered(verbs: Verbs, admin: Admin | None = None, port: int = 0) -> Iterator[AdminServer]:
    server = AdminServer(socket.create_server(("127.0.0.1", port)), admin or Admin(), verbs)
    server.start()
    try:
        yield server
    finally:
        server.stop()


@contextlib.contextmanager
def shown(
    page: Page, names: str = "ab", control: Callable[[Proxy], Control] = Control, **settings: Any
) -> Iterator[tuple[list[RawTarget], Proxy, Control]]:
    """Lettered targets, a proxy before them, and the page open."""
    with contextlib.ExitStack() as stack:
        targets = stack.enter_context(letters(names))
        known = {"sleeping": 0.2, **settings}
        proxy = stack.enter_context(Proxy(targets=[one.url for one in targets], **known))
        verbs = control(proxy)
        page.open(stack.enter_context(administered(verbs)).url)
        yield targets, proxy, verbs


class Adding(Control):
    """Tells more than there is."""

    def __init__(self, proxy: Proxy, **more: Any) -> None:
        super().__init__(proxy)
        self.more = more

    def snapshot(self) -> dict[str, Any]:
        return super().snapshot() | self.more


def test_it_shows_every_pool_and_target_and_what_they_do(page: Page) -> None:
    route = {"path": "/api", "targets": [{"url": "http://127.0.0.1:9", "backup": True}]}
    with shown(page, routes=[route]) as ([a, b], proxy, _):
        for _ in range(4):
            get(proxy.url)
        page.says(a.url, "live", "2 requests", "p50", "p99", "ms", "50%")
        page.says(b.url, "live", "2 requests")
        page.says("http://127.0.0.1:9", "0 requests · backup")
        assert page.seen("h2 .fold") == ["default", "/api"]
        assert page.text("#tiles").startswith("Live targets\n3 of 3")
        assert proxy.url in page.text("#facts")
        eventually(lambda: page.run("return document.querySelector('.low').getAttribute('d')"))
        page.click(".fold")
        eventually(lambda: page.find(".fold").get_attribute("aria-expanded") == "false")
        assert [one.is_displayed() for one in page.all("table.targets")] == [False, True]


def test_it_needs_nothing_from_elsewhere_and_may_run_nothing_else(page: Page) -> None:
    with shown(page):
        said = requests.get(page.chrome.current_url).headers["Content-Security-Policy"]
        assert said.startswith("default-src 'none'; script-src 'sha256-")
        assert "unsafe" not in said
        loaded = "return performance.getEntriesByType('resource').map(one => one.name)"
        assert [one for one in page.run(loaded) if not one.endswith(("/events", "/status"))] == []


def test_every_text_is_there_in_both_languages(page: Page) -> None:
    with shown(page):
        texts = page.run("return Object.entries(TEXTS)")
        assert len(texts) > 50
        for key, (english, russian) in texts:
            assert re.findall(r"{\w+}", english) == re.findall(r"{\w+}", russian), key
        for forms in page.run("return Object.values(COUNTS).flat()"):
            assert all("{n}" in one for one in forms.values())


def test_an_eviction_and_the_return_are_seen_within_two_seconds(page: Page) -> None:
    with shown(page) as ([a, _], proxy, _):

        def seconds(act: Callable[[], object], *words: str) -> float:
            act()
            begun = time.monotonic()
            page.says(a.url, *words)
            return time.monotonic() - begun

        def die() -> None:
            a.stop()
            get(proxy.url)
            get(proxy.url)

        # The machine may be busy for some of them, not for all.
        assert any(
            max(seconds(die, "evicted", "connection refused"), seconds(a.start, "live")) < 2
            for _ in range(10)
        )
        told = f"{a.url} evicted: connect: connection refused"
        eventually(lambda: told in page.text("#events"))
        eventually(lambda: "restored" in page.announcement)


def test_a_click_drains_disables_and_enables(page: Page) -> None:
    with shown(page) as ([a, b], proxy, _):
        page.act("Drain", a.url)
        page.says(a.url, "draining", "by the operator")
        assert {get(proxy.url).body for _ in range(4)} == {b"b"}
        page.act("Disable", a.url)
        page.says(a.url, "maintenance")
        page.act("Enable", a.url)
        page.says(a.url, "live")
        assert {get(proxy.url).body for _ in range(4)} == {b"a", b"b"}
        page.says(b.url, "live")


def test_what_hurts_is_asked_first(page: Page) -> None:
    with shown(page) as ([a, b], proxy, _):
        page.act("Remove", a.url)
        page.answer("button")
        assert len(proxy.pool.targets) == 2
        page.act("Remove", a.url)
        page.answer("submit")
        eventually(lambda: a.url not in page.text("#pools"))
        assert [one.url for one in proxy.pool.targets] == [b.url]
        page.act("Drain", b.url)
        eventually(lambda: "the last live target of the pool default" in page.text("dialog"))
        page.press(Keys.ESCAPE)
        assert proxy.pool.live
        page.act("Disable", b.url)
        page.answer("submit")
        page.says(b.url, "maintenance")


def test_a_target_is_added_and_weighed(page: Page) -> None:
    with shown(page) as ([a, b], proxy, _):
        page.click(".add")
        page.press(a.url)
        page.answer("submit")
        eventually(lambda: "is in the pool default already" in page.text("dialog"))
        page.find("dialog [name=url]").clear()
        page.find("dialog [name=url]").send_keys("http://127.0.0.1:9")
        page.answer("submit")
        page.says("http://127.0.0.1:9", "live")
        page.act("Weight of", b.url)
        page.press("7")  # what was there is selected
        page.answer("submit")
        eventually(lambda: proxy.pool.targets[1].weight == 7)
        eventually(lambda: page.all(f'button[aria-label="Weight of {b.url}: 7"]'))


def test_the_keyboard_is_enough(page: Page) -> None:
    with shown(page) as ([_, b], proxy, _):
        eventually(lambda: page.all(f'button[aria-label="Drain {b.url}"]'))

        def focused() -> str | None:
            return page.chrome.switch_to.active_element.get_attribute("aria-label")

        for _ in range(40):
            page.press(Keys.TAB)
            if focused() == f"Drain {b.url}":
                break
        outline = "return getComputedStyle(document.activeElement).outlineStyle"
        assert page.run(outline) == "solid"
        page.press(Keys.ENTER)
        page.says(b.url, "draining")
        eventually(lambda: focused() == f"Enable {b.url}")
        # It has its new name before all is done that it was pressed for.
        eventually(lambda: page.run("return document.activeElement.ariaBusy") != "true")
        page.press(Keys.ENTER)
        page.says(b.url, "live")
        assert len(proxy.pool.live) == 2


def test_targets_are_found_by_text_and_state(page: Page) -> None:
    with shown(page, "abc") as ([a, b, _], _, control):
        control.drain(target_id("default", b.url))

        def found() -> list[str]:
            rows = page.all(".targets tbody tr")
            with contextlib.suppress(StaleElementReferenceException):
                return [one.text for one in rows if one.is_displayed()]
            return []

        page.says(b.url, "draining")
        Select(page.find("#state")).select_by_visible_text("draining")
        eventually(lambda: [b.url in one for one in found()] == [True])
        Select(page.find("#state")).select_by_visible_text("Any state")
        page.find("#text").send_keys(a.url.upper())
        eventually(lambda: [a.url in one for one in found()] == [True])
        page.find("#text").send_keys("x")
        eventually(lambda: "No target matches" in page.text("#pools"))


def test_a_wrong_password_shows_nothing_and_is_told(page: Page) -> None:
    with letters("a") as [a], Proxy(targets=[a.url]) as proxy, contextlib.ExitStack() as stack:
        control = Control(proxy)
        admin = stack.enter_context(administered(control, Admin(password="right")))
        page.chrome.get(admin.url.replace("//", "//admin:wrong@"))
        assert page.text("body") == ""  # the browser asks for them
        page.open(admin.url.replace("//", "//admin:right@"))
        page.says(a.url, "live")
        admin.configure(Admin(password="changed"))
        page.click(".weight")
        page.answer("submit")
        eventually(lambda: "The user or the password is not accepted" in page.text("dialog"))
        page.answer("button")
        admin.stop()
        changed = Admin(password="changed")
        stack.enter_context(administered(control, changed, admin.server_port))
        eventually(lambda: "Reload the page to sign in again" in page.text("#told"))
        eventually(lambda: "Connection lost" in page.text("#connection"))


def test_a_lost_connection_is_told_with_the_age_of_the_figures_and_comes_back(page: Page) -> None:
    with letters("a") as [a]:
        with Proxy(targets=[a.url]) as proxy, administered(Control(proxy)) as admin:
            page.open(admin.url)
            page.act("Disable", a.url)
            page.answer("submit")
            page.says(a.url, "maintenance")
        eventually(lambda: "Connection lost, the figures are 1 sec old" in page.text("#connection"))
        assert page.announcement == "Connection lost"
        page.act("Enable", a.url)
        eventually(lambda: "The proxy can't be reached" in page.text("#told"))
        # Another process, which knows nothing of what was.
        with Proxy(targets=[a.url]) as new, administered(Control(new), port=admin.server_port):
            eventually(lambda: page.text("#connection") == "Live")
            page.says(a.url, "live")
            assert page.text("#events") == "none"


def test_a_page_without_a_stream_asks_for_the_status(
    page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyproxy.control.feed.Feed.MOST", 0)
    with shown(page, "a") as ([a], proxy, _):
        page.says(a.url, "live")
        get(proxy.url)
        page.says(a.url, "1 request")


def test_markup_is_text(page: Page) -> None:
    evil = "<img src=x onerror='window.broken = 1'><script>window.broken = 1</script>"

    class Evil(Adding):
        def snapshot(self) -> dict[str, Any]:
            found = super().snapshot()
            found["pools"][0] |= {"name": evil, "policy": evil}
            found["pools"][0]["targets"][0] |= {"url": evil, "reason": evil, "state": "evicted"}
            return found

    event = {"at": 1.0, "pool": evil, "target": evil, "what": evil, "reason": evil}
    more = {
        "events": [event],
        "urls": [evil],
        "settings": {"file": evil, "loaded": 1.0, "error": {"at": 1.0, "problems": [evil]}},
        "workers": [{"number": 1, "pid": 2, "state": evil, "started": 1.0, "restarts": 0}],
    }
    with shown(page, "a", lambda proxy: Evil(proxy, **more)):
        for place in (".url", ".why", ".fold", "#events", "#facts", "#refused", "#workers"):
            eventually(lambda place=place: evil in page.text(place))  # type: ignore[misc]
        page.click(".remove")
        eventually(lambda: evil in page.text("dialog"))
        assert page.run("return [window.broken, document.images.length]") == [None, 0]


def test_a_refused_reload_is_told_until_one_is_not(page: Page) -> None:
    problems = ["appsettings.json: sleping: unknown setting", "appsettings.json: targets: expected"]
    settings = {"file": "appsettings.json", "loaded": time.time(), "error": None}

    class Reloading(Adding):
        def reload(self) -> list[str]:
            if problems:
                settings["error"] = {"at": time.time(), "problems": list(problems)}
                raise ControlError(422, str(SettingsError(problems)))
            settings["error"] = None
            return ["sleeping"]

    with shown(page, "a", lambda proxy: Reloading(proxy, settings=settings)):
        page.click("#reload")
        eventually(lambda: "old ones are in effect" in page.text("#refused"))
        assert all(one in page.text("#refused") for one in problems)
        problems.clear()
        page.click("#reload")
        eventually(lambda: not page.find("#refused").is_displayed())
        said = "The settings have been read again\nsleeping"
        eventually(lambda: page.text("#told").startswith(said))


def test_worker_processes_and_where_they_disagree_are_shown(page: Page) -> None:
    class Several(Adding):
        def snapshot(self) -> dict[str, Any]:
            found = super().snapshot()
            found["pools"][0]["targets"][0]["states"] = {"evicted": 1, "live": 2}
            return found

    worker = {"number": 2, "pid": 4711, "state": "running", "started": time.time() - 7300}
    workers = [{**worker, "restarts": 3}]
    with shown(page, "a", lambda proxy: Several(proxy, workers=workers)) as ([a], _, _):
        page.says(a.url, "evicted in 1 of 3 workers")
        eventually(lambda: page.text("#workers tbody") == "2 4711 running 2 hr 3")


def test_a_target_that_is_to_drain_can_be_enabled_also_while_it_is_evicted(page: Page) -> None:
    with shown(page, "ab") as ([a, _], proxy, control):
        a.stop()
        for _ in range(2):
            get(proxy.url)
        page.says(a.url, "evicted")
        control.drain(target_id("default", a.url))
        page.says(a.url, "evicted", "draining", "Enable")
        page.act("Enable", a.url)
        page.says(a.url, "evicted", "Drain")


def test_dark_and_light_can_be_read(page: Page) -> None:
    with shown(page, "abc") as ([a, b, _], proxy, control):
        control.drain(target_id("default", b.url))
        a.stop()
        for _ in range(2):
            get(proxy.url)
        page.says(a.url, "evicted")
        page.says(b.url, "draining")
        background = "return getComputedStyle(document.body).backgroundColor"
        colours = set()
        for scheme in ("light", "dark"):
            feature = {"name": "prefers-color-scheme", "value": scheme}
            page.emulate("setEmulatedMedia", features=[feature])
            colours.add(page.run(background))
            # What WCAG asks of text.
            assert [found for found in page.run(CONTRASTS) if found[0] < 4.5] == []
        assert len(colours) == 2


@pytest.mark.parametrize("language", ["en", "ru"])
@pytest.mark.parametrize("width", [320, 375, 800, 1181])
def test_nothing_is_wider_than_the_screen(page: Page, width: int, language: str) -> None:
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 2, "mobile": width < 500}
    page.emulate("setDeviceMetricsOverride", **metrics)
    page.emulate("setUserAgentOverride", userAgent="", acceptLanguage=language)
    with shown(page) as ([a, _], _, control):
        control.add(f"http://{'long-name.' * 20}example:8000")
        control.drain(target_id("default", a.url))
        eventually(lambda: len(page.all("tr.live")) == 2)
        assert page.run(TOO_WIDE) == []


def test_it_speaks_russian_to_those_who_do(page: Page) -> None:
    page.emulate("setUserAgentOverride", userAgent="", acceptLanguage="fr,ru-RU,en")
    with shown(page) as ([a, b], proxy, _):
        for _ in range(4):
            get(proxy.url)
        page.says(a.url, "работает", "2 запроса", "Вывести")
        page.act("Вывести", a.url)
        page.says(a.url, "выводится", "оператором")
        for _ in range(3):
            get(proxy.url)
        page.says(b.url, "5 запросов")
        assert page.find("html").get_attribute("lang") == "ru"
        page.act("Отключить", b.url)
        eventually(lambda: "последняя работающая цель пула default" in page.text("dialog"))


def test_a_screen_reader_hears_rows_names_and_changes(page: Page) -> None:
    with shown(page, sleeping=60) as ([a, _], proxy, _):
        page.says(a.url, "live")
        roles = {one: page.find(one).aria_role for one in (".targets", "tbody tr", "td.url")}
        assert roles == {".targets": "table", "tbody tr": "row", "td.url": "rowheader"}
        assert page.find(".targets").accessible_name == "default"
        buttons = [one for one in page.all("button, input, select") if one.is_displayed()]
        assert all(one.accessible_name for one in buttons)
        proxy.pool.evict(proxy.pool.targets[0], "it is tired")
        assert page.find("#announcement").aria_role == "status"
        eventually(lambda: page.announcement.strip() == f"{a.url} evicted: it is tired")


class Busy(Control):
    """Every target has got requests since the last time."""

    times = 0

    def totals(self) -> Totals:
        self.times += 1
        found: Totals = {}
        for pool in self.snapshot()["pools"]:
            for at, target in enumerate(pool["targets"]):
                name = (pool["name"], target["url"])
                served = [0] * TIMES
                served[4 + at % 9] = served[-1] = self.times * (1 + (at + self.times) % 7)
                found["times", *name] = served
                found["answers", *name, "GET", "200"] = [sum(served[:-1])]
        return found


def test_a_thousand_targets_are_no_burden(page: Page) -> None:
    urls = [f"http://127.0.0.1:{port}" for port in range(10000, 11000)]
    with contextlib.ExitStack() as stack:
        gate = stack.enter_context(RawTarget(Gate()))
        proxy = stack.enter_context(Proxy(targets=[*urls[:-1], gate.url], sleeping=60))
        page.open(stack.enter_context(administered(Busy(proxy))).url)
        eventually(lambda: len(page.all(".targets tbody tr")) == 1000)

        def update() -> list[float]:
            """When the page was last brought up to date, and how long that took."""
            found: list[float] = page.run(
                "return performance.getEntriesByName('update').slice(0, 1)"
                ".flatMap(one => [one.startTime, one.duration])"
            )
            return found

        def milliseconds() -> float:
            seen: list[list[float]] = [update()]

            def another() -> bool:
                seen.append(update())
                return bool(seen[-1]) and seen[-1] != seen[0]

            eventually(another)
            return seen[-1][1]

        # An idle machine needs a twentieth of that.
        assert any(milliseconds() < 500 for _ in range(20))
        page.find("#text").send_keys(gate.url)
        eventually(lambda: len(page.all("tbody tr:not([hidden])")) == 1)
        page.act("Drain", gate.url)
        eventually(lambda: page.all("tr.draining"))
