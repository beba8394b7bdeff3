"""Admin servers for tests."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import requests

from pyproxy import Proxy
from pyproxy.control.api import AdminServer
from pyproxy.control.control import Control, Verbs
from pyproxy.errors import ControlError, SettingsError
from pyproxy.sections import Admin
from pyproxy.sockets import bind
from tests.support import DEADLINE


class Loading(Control):
    """Its settings are what a test says."""

    def __init__(self, proxy: Proxy, load: Callable[[], list[str]]) -> None:
        super().__init__(proxy)
        self._load = load

    def reload(self) -> list[str]:
        try:
            return self._load()
        except SettingsError as error:
            raise ControlError(422, str(error)) from None


@contextlib.contextmanager
def admin_of(
    proxy: Proxy,
    said: Admin | None = None,
    load: Callable[[], list[str]] | None = None,
    verbs: Verbs | None = None,
) -> Iterator[AdminServer]:
    """One that serves, of this proxy or with these ``verbs``."""
    verbs = verbs or (Loading(proxy, load) if load else Control(proxy))
    server = AdminServer(bind("127.0.0.1", 0), said or Admin(), verbs)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def ask_admin(server: AdminServer, method: str, path: str, **said: Any) -> requests.Response:
    with requests.Session() as session:
        return session.request(method, server.url + path, timeout=DEADLINE, **said)
