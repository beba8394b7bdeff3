"""Channel: messages between a process and one that it has started, with open files beside them."""

import pickle
import socket
import struct
from collections.abc import Sequence
from typing import Any, Self

_HEAD = struct.Struct("!IB")  # bytes of the message, files
_MOST_FILES = 250  # the kernel passes at most 253 at once
_NO_CHILDS = getattr(socket, "MSG_CMSG_CLOEXEC", 0)  # no other program gets what is received


class Channel:
    """One end. Each method is called from one thread at a time; raises ``EOFError`` when the other
    end is gone, ``TimeoutError`` when it takes or says nothing. That is the end of the channel, and
    ``EOFError`` from then on: what comes late would be taken for the answer to another question.
    Only for processes of one user that trust each other: messages are pickles."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    @classmethod
    def pair(cls) -> tuple[Self, socket.socket]:
        """One end for this process, and a socket to hand to the other."""
        own, other = socket.socketpair()
        return cls(own), other

    def send(self, message: Any, files: Sequence[int] = ()) -> None:
        """``files`` are descriptors; the other end gets others for the same files."""
        data = pickle.dumps(message)
        try:
            for at in range(0, len(files) or 1, _MOST_FILES):
                some = files[at : at + _MOST_FILES]
                last = at + _MOST_FILES >= len(files)
                socket.send_fds(self._sock, [_HEAD.pack(len(data) if last else 0, len(some))], some)
            self._sock.sendall(data)
        except TimeoutError:
            self.close()
            raise
        except OSError as error:
            raise EOFError(str(error)) from None

    def receive(self, timeout: float | None = None) -> tuple[Any, list[int]]:
        """A message, and descriptors that belong to the caller now. Raises ``TimeoutError`` after
        ``timeout`` seconds."""
        files: list[int] = []
        try:
            self._sock.settimeout(timeout)
            while True:
                head, fds, _, _ = socket.recv_fds(self._sock, _HEAD.size, _MOST_FILES, _NO_CHILDS)
                if not head:
                    raise EOFError
                files += fds
                head += self._exactly(_HEAD.size - len(head))
                size, _ = _HEAD.unpack(head)
                if size:
                    return pickle.loads(self._exactly(size)), files
        except TimeoutError:
            self.close()
            raise
        except OSError as error:
            raise EOFError(str(error)) from None

    def _exactly(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            received = self._sock.recv(min(size - len(data), 1 << 20))
            if not received:
                raise EOFError
            data += received
        return bytes(data)

    def stay_open(self) -> None:
        """Until this process ends: the other end sees that."""
        self._sock.detach()

    def close(self) -> None:
        self._sock.close()
