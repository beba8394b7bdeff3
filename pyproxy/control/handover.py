"""Handover: a new program takes the place of this one, on the same sockets.

hand_over     here: starts the new program, gives it all it needs, waits until it serves
inherited     there: what it was given
"""

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pyproxy.control.channel import Channel
from pyproxy.control.control import Deed
from pyproxy.control.ledger import Ledger, Memory
from pyproxy.errors import PyproxyError
from pyproxy.readers import Json
from pyproxy.sockets import Sockets

_VARIABLE = "PYPROXY_HANDOVER"  # the descriptor of a channel
_PATIENCE = 60.0  # seconds until the new program serves
_LAST = 5.0  # seconds until one that won't has ended by itself


class Inheritance:
    """What somebody has left to a proxy that begins; without anything, nothing."""

    def __init__(
        self,
        sockets: Sockets | None = None,
        ledger: Ledger | None = None,
        journal: Sequence[Deed] = (),
        secret: bytes = b"",
        targets: Mapping[str, Json] | None = None,
        scaling: Mapping[str, Any] | None = None,
    ) -> None:
        """Sockets that listen, what has been counted, what was done by hand, the secret that
        cookies are made with where the settings name none, and what the settings said of targets
        when that was done (None: the same as now); what ``Fleets.leave`` has told."""
        self.sockets = sockets or Sockets()
        self.ledger = ledger or Ledger()
        self.journal = journal
        self.secret = secret
        self.targets = targets
        self.scaling = scaling or {}
        self._channel: Channel | None = None  # ends with the program before

    def serves(self) -> None:
        """Tells the program before, if there was one, that it may end."""
        if self._channel:
            with contextlib.suppress(EOFError):
                self._channel.send("serves")
            name = "pyproxy-heir"
            ends = threading.Thread(
                target=self._settle, args=(self._channel,), name=name, daemon=True
            )
            ends.start()
            self._channel = None

    def _settle(self, channel: Channel) -> None:
        """When that program has ended, its memories are read for the last time."""
        with contextlib.suppress(EOFError):
            channel.receive()
        channel.close()
        self.ledger.settle()


def inherited(unnamed: Sequence[int] = ()) -> Inheritance:
    """What the program before has left. ``unnamed`` are descriptors of sockets that come from
    elsewhere. Raises ``EOFError`` or ``TimeoutError`` if that program doesn't tell."""
    number = os.environ.pop(_VARIABLE, "")
    if not number:
        return Inheritance(Sockets(unnamed=unnamed), Ledger(shared=True))
    channel = Channel(socket.socket(fileno=int(number)))
    said, files = channel.receive(_PATIENCE)
    names = said["sockets"]
    named = {name: socket.socket(fileno=file) for name, file in zip(names, files, strict=False)}
    rest = len(names) + said["unnamed"]
    sockets = Sockets(named, files[len(names) : rest], said["lent"])
    memories = [Memory(file) for file in files[rest:]]
    ledger = Ledger(memories, shared=True)
    found = Inheritance(
        sockets, ledger, said["journal"], said["secret"], said["targets"], said.get("scaling")
    )
    found._channel = channel
    return found


def hand_over(
    sockets: Sockets,
    ledger: Ledger,
    journal: Iterable[Deed],
    secret: bytes,
    targets: Mapping[str, Json],
    scaling: Mapping[str, Any],
) -> int:
    """Starts this program again, with the same arguments, and returns when it serves: its process.
    Raises ``PyproxyError`` if it doesn't come to that; then it has ended."""
    channel: Channel | None = None
    try:
        channel, other = Channel.pair()
        with other:
            process = subprocess.Popen(
                [sys.executable, *sys.orig_argv[1:]],
                pass_fds=[other.fileno()],
                env={**os.environ, _VARIABLE: str(other.fileno())},
            )
    except OSError as error:
        if channel:
            channel.close()
        raise PyproxyError(f"the new program can't be started, this one goes on: {error}") from None
    opened, unnamed = sockets.all(), sockets.unnamed()
    said: dict[str, Any] = {
        "sockets": list(opened),
        "unnamed": len(unnamed),
        "lent": sockets.lent,
        "journal": list(journal),
        "secret": secret,
        "targets": targets,
        "scaling": scaling,
    }
    listening = [sock.fileno() for sock in (*opened.values(), *unnamed)]
    try:
        channel.send(said, [*listening, *ledger.files()])
        channel.receive(_PATIENCE)
    except (EOFError, OSError) as error:  # TimeoutError is one
        channel.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_LAST)
        process.kill()
        code = process.wait()
        why = str(error)  # this machine is out of something
        if isinstance(error, TimeoutError):
            why = "it was too slow"
        elif isinstance(error, EOFError):
            why = f"it ended with {code}"
        raise PyproxyError(f"the new program doesn't serve, this one goes on: {why}") from None
    channel.stay_open()
    return process.pid
