"""Ledger: what has been counted, by the processes there are and those there were."""

import mmap
import os
import tempfile
import threading
from collections.abc import Iterable
from typing import Self

from pyproxy.balancing.counters import Counters, Reader, Totals, total

SIZE = 16 << 20  # bytes; the system gives them as they are used


class Memory:
    """Memory to count in; with a ``file`` (open, without a name) several processes can map it."""

    def __init__(self, file: int = -1) -> None:
        self.file = file
        self.map = mmap.mmap(file, SIZE)
        self.read = Reader(self.map)

    @classmethod
    def shared(cls) -> Self:
        """New, and for several processes."""
        if hasattr(os, "memfd_create"):
            file = os.memfd_create("pyproxy-counters")
        else:  # macOS
            with tempfile.TemporaryFile() as named:
                file = os.dup(named.fileno())
        try:
            os.ftruncate(file, SIZE)
            return cls(file)
        except OSError:
            os.close(file)
            raise

    def close(self) -> None:
        """The map goes when nobody uses it any more."""
        if self.file >= 0:
            os.close(self.file)


class Ledger:
    """May be used from any thread."""

    def __init__(self, inherited: Iterable[Memory] = (), *, shared: bool = False) -> None:
        """``inherited`` are those of a program that this one replaces, and that ends soon;
        ``shared`` ones can be handed to another process."""
        self._make = Memory.shared if shared else Memory
        self._open = list(inherited)
        self._inherited = list(self._open)
        self._given: Memory | None = None  # with what was past, for another program
        self._past: Totals = {}  # of those that are closed
        # Protects both.
        self._lock = threading.Lock()

    def open(self) -> Memory:
        memory = self._make()
        with self._lock:
            self._open.append(memory)
        return memory

    def close(self, memory: Memory) -> None:
        """The process that counted there has ended: what it has counted stays known. Does nothing
        the second time, or with a memory of others."""
        with self._lock:
            if memory not in self._open:
                return
            self._open.remove(memory)
            self._past = total([self._past, memory.read()])
        memory.close()

    def settle(self) -> None:
        """That program has ended."""
        for memory in self._inherited:
            self.close(memory)
        self._inherited.clear()

    def totals(self) -> Totals:
        with self._lock:
            return total([self._past, *(memory.read() for memory in self._open)])

    def files(self) -> list[int]:
        """Of all that is known, for a program that replaces this one. One of them is new, with what
        is known of those that are closed; they belong to this process."""
        if self._given:  # to a program that didn't come up
            self.close(self._given)
        with self._lock:
            self._given = past = Memory.shared()
            Counters(past.map).keep(self._past)
            self._past = {}
            self._open.append(past)
            return [memory.file for memory in self._open]
