"""systemd: sockets that it has bound, and how it is told of the program. Without it: nothing.

Sources: sd_listen_fds(3), sd_notify(3).
"""

import contextlib
import os
import socket
from collections.abc import MutableMapping

_FIRST = 3  # descriptor


def listen_fds(environment: MutableMapping[str, str] = os.environ) -> range:
    """The descriptors of sockets that are for this process. Takes the variables that say so away,
    so that no other process believes them."""
    pid, count = environment.pop("LISTEN_PID", ""), environment.pop("LISTEN_FDS", "")
    environment.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or not count.isdigit():
        return range(0)
    for number in (found := range(_FIRST, _FIRST + int(count))):
        os.set_inheritable(number, False)
    return found


def notify(*lines: str) -> None:
    """``READY=1``, ``STOPPING=1``, ``MAINPID=…``"""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with (
        contextlib.suppress(OSError),
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock,
    ):
        sock.connect(f"\0{address[1:]}" if address.startswith("@") else address)
        sock.send("\n".join(lines).encode())
