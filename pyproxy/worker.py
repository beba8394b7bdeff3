"""A worker: one of several processes that serve. ``python -m pyproxy.worker FD``, where FD is a
channel to the ``Supervisor`` that has started it and tells it what to do.

It ends when that says so, when the channel ends (the supervisor is gone), and at SIGTERM; each
time it finishes what is under way. Other signals are for the supervisor.
"""

import contextlib
import pickle
import signal
import socket
import sys
import threading
from typing import Any

from pyproxy import logs, net
from pyproxy.app import Proxy
from pyproxy.control.channel import Channel
from pyproxy.control.handover import Inheritance
from pyproxy.control.ledger import Memory
from pyproxy.errors import ControlError, PyproxyError
from pyproxy.settings import Settings
from pyproxy.sockets import Sockets


class Worker:
    """A proxy, and how it answers the supervisor. Runs in one thread."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._proxy: Proxy | None = None
        self._end: tuple[float | None, bool] | None = None  # how to stop

    def run(self) -> None:
        """Until the end."""
        with contextlib.suppress(EOFError):
            self._channel.send("awake")
            while self._end is None:
                (verb, arguments), files = self._channel.receive()
                try:
                    answer = (True, getattr(self, f"_{verb}")(*arguments, files=files))
                except ControlError as error:
                    answer = (False, error)
                except PyproxyError as error:
                    answer = (False, ControlError(422, str(error)))
                except Exception as error:  # noqa: BLE001 - a fault of ours: it is told there
                    answer = (False, ControlError(500, f"{type(error).__name__}: {error}"))
                if self._end is None:
                    self._channel.send(answer)
        if self._proxy:
            drain, handed_over = self._end or (None, True)
            self._proxy.stop(drain, handed_over=handed_over)

    def _begin(self, start: dict[str, Any], files: list[int]) -> None:
        settings: Settings = pickle.loads(start["settings"])
        self._number: int = start["number"]
        logs.configure(settings.log, self._number)
        self._proxy = proxy = Proxy(
            settings,
            inheritance=Inheritance(
                _sockets(start["sockets"], start["lent"], files[1:]),
                journal=start["journal"],
                secret=start["secret"],
            ),
            memory=Memory(files[0]),
            worker=self._number,
        )
        proxy.start()

    def _reload(self, settings: bytes, names: list[str], lent: set[str], files: list[int]) -> None:
        assert self._proxy
        said: Settings = pickle.loads(settings)
        net.raise_file_limit(said.limits.connections)
        self._proxy.adopt(_sockets(names, lent, files))
        self._proxy.reload(said)
        logs.configure(said.log, self._number)

    def _stop(self, drain: float | None, handed_over: bool, files: list[int]) -> None:
        self._end = (drain, handed_over)

    def _reopen_logs(self, files: list[int]) -> None:
        assert self._proxy
        self._proxy.reopen_logs()

    def __getattr__(self, name: str) -> Any:
        """All other verbs are Control's."""
        assert self._proxy
        verb = getattr(self._proxy.control, name.removeprefix("_"))
        return lambda *arguments, files: verb(*arguments)


def _sockets(names: list[str], lent: set[str], files: list[int]) -> Sockets:
    return Sockets(
        {name: socket.socket(fileno=file) for name, file in zip(names, files, strict=True)},
        lent=lent & {*names},
    )


def main() -> None:
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    # Blocked in all threads but the one that waits for it.
    signal.pthread_sigmask(signal.SIG_SETMASK, {signal.SIGTERM})
    own = socket.socket(fileno=int(sys.argv[1]))

    def end_at_sigterm() -> None:
        signal.sigwait({signal.SIGTERM})
        with contextlib.suppress(OSError):
            own.shutdown(socket.SHUT_RDWR)

    threading.Thread(target=end_at_sigterm, name="pyproxy-signals", daemon=True).start()
    Worker(Channel(own)).run()


if __name__ == "__main__":
    main()
