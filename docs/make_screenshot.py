"""Makes docs/dashboard.png: the page of a proxy that has lost one of its five targets.

    python docs/make_screenshot.py

Takes a minute, so that the charts are full. Needs Chromium, chromedriver, and the extra test.
"""

import contextlib
import os
import random
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import requests
from selenium import webdriver

from pyproxy import Proxy
from pyproxy.control.api import AdminServer
from pyproxy.control.control import Control, target_id
from pyproxy.lab.target import HelloHandler, HelloServer
from pyproxy.sections import Admin

PICTURE = Path(__file__).with_name("dashboard.png")
WIDTH, HEIGHT = 1200, 800
PORTS = range(8001, 8006)
CLIENTS = 5


class Uneven(HelloHandler):
    """Takes its time, each target another one; rarely says 503."""

    def do_GET(self) -> None:
        pace = 0.002 * (self.server.server_port - PORTS[0] + 1)
        time.sleep(random.gammavariate(3, pace))
        if random.random() < 0.002:
            self.send_error(503)
        else:
            self.answer()

    def log_error(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def running(*loops: Callable[[], None]) -> Iterator[None]:
    threads = [threading.Thread(target=loop, daemon=True) for loop in loops]
    for thread in threads:
        thread.start()
    yield


def client(url: str) -> None:
    begun = time.monotonic()
    with requests.Session() as session:
        while True:
            with contextlib.suppress(requests.RequestException):
                session.get(url)
            waves = 1.4 + random.random() if (time.monotonic() - begun) % 20 < 10 else 1.0
            time.sleep(0.02 * waves)


def take(url: str, act: Callable[[], None]) -> None:
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or shutil.which("chromium-browser") or ""
    options.add_argument("--headless=new")
    options.add_argument("--hide-scrollbars")
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        options.add_argument("--no-sandbox")
    chrome = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver") or ""))
    try:
        size = {"width": WIDTH, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": False}
        chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        chrome.get(url)
        act()
        chrome.save_screenshot(str(PICTURE))
    finally:
        chrome.quit()


def main() -> None:
    servers = [HelloServer("localhost", port) for port in PORTS]
    for server in servers:
        server.RequestHandlerClass = Uneven
    urls = [server.url for server in servers]
    proxy = Proxy(targets=urls, listen="http://127.0.0.1:0", sleeping=300)
    proxy.start()
    control = Control(proxy)
    admin = AdminServer(socket.create_server(("127.0.0.1", 0)), Admin(), control)
    admin.start()

    def story() -> None:
        time.sleep(40)
        servers[2].shutdown()
        servers[2].server_close()
        time.sleep(9)
        control.drain(target_id("default", urls[4]))
        time.sleep(11)

    with running(*(one.serve_forever for one in servers), *[lambda: client(proxy.url)] * CLIENTS):
        time.sleep(10)  # the first requests are slower
        take(admin.url, story)
    admin.stop()
    proxy.stop(1)


if __name__ == "__main__":
    main()
