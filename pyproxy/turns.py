"""Turns: when the interpreter is in short supply, requests go on first come, first served.

It runs one thread at a time, and who gets it next is chance: of a thousand busy connections some
are served ten times before others. So in a crush a request waits here before it asks for a target,
and its turn ends when it is on its way there. Few have one at once: the others, which wait here
instead of for the interpreter, don't take it from those.
"""

import threading
import time
from collections import deque

_AT_ONCE = 2  # enough: who has a turn waits for nothing but the interpreter
_FEW = 100  # waiting: with fewer a turn costs more than it brings
_SETTLED = 0.2  # seconds until a crush has gathered all who are in it


class Turn:
    """What a thread holds until ``end``, which may be called again. Meanwhile it must wait for
    nobody: the others wait for it."""

    __slots__ = ("_turns",)

    def __init__(self, turns: "Turns") -> None:
        self._turns: Turns | None = turns

    def end(self) -> None:
        if turns := self._turns:
            self._turns = None
            turns.pass_on()


class Turns:
    """Those of a process. Called from any thread."""

    # Seconds for what waits for nothing but the interpreter: that tells of a crush. Windows' clock
    # moves in steps of 16 ms.
    LATE = max(0.01, 3 * time.get_clock_info("monotonic").resolution)

    def __init__(self) -> None:
        self.crush = False  # without one nobody needs a turn
        # Protects what is below, and changes of that.
        self._lock = threading.Lock()
        # Fewer than none, while those who were let go at the end of a crush are on their way.
        self._free = _AT_ONCE
        self._waiting: deque[threading.Lock] = deque()
        self._since = 0.0  # time.monotonic()

    def begin(self) -> None:
        """A crush does. It ends when few are left in it."""
        with self._lock:
            if not self.crush:
                self.crush, self._since = True, time.monotonic()

    def take(self) -> Turn:
        """Returns when it is this thread's turn."""
        with self._lock:
            if self._free > 0:
                self._free -= 1
                return Turn(self)
            called = threading.Lock()
            called.acquire()
            self._waiting.append(called)
        called.acquire()
        return Turn(self)

    def pass_on(self) -> None:
        """A turn has ended."""
        with self._lock:
            if self._waiting and self._free >= 0:
                self._waiting.popleft().release()
            else:
                self._free += 1
            if self.crush and len(self._waiting) < _FEW:
                self._end_if_settled()

    def _end_if_settled(self) -> None:
        if time.monotonic() - self._since > _SETTLED:
            self.crush = False
            self._free -= len(self._waiting)
            while self._waiting:
                self._waiting.popleft().release()


turns = Turns()
