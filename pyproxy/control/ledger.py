"""Ledger: what has been counted, by the processes there are and those there were."""

import mmap
import os
import tempfile
import threading
from collections.abc import Iterable

from pyproxy.balancing.counters import Counters, Reader, Totals, total

SIZE = 16 << 20  # bytes; the system gives them as they are used


class Memory:
    """Memory that several processes can map: an open file without a name."""

    def __init__(self, file: int | None = None) -> None:
        """``file`` is a descriptor of one that another process has made."""
        if file is None:
            file = self._new_file()
            os.ftruncate(file, SIZE)
        self.file = file
        self.map = mmap.mmap(file, SIZE)
        self.read = Reader(self.map)

    @staticmethod
    def _new_file() -> int:
        if hasattr(os, "memfd_create"):
            return os.memfd_create("pyproxy-counters")
        with tempfile.TemporaryFile() as file:  # macOS
            return os.dup(file.fileno())

    def close(self) -> None:
        """The map goes when nobody uses it any more."""
        os.close(self.file)


class Ledger:
    """May be used from any thread."""

    def __init__(self, inherited: Iterable[Memory] = ()) -> None:
        """``inherited`` are those of a program that this one replaces, and that ends soon."""
        self._open = list(inherited)
        self._past: Totals = {}  # of those that are closed
        # Protects both.
        self._lock = threading.Lock()

    def open(self) -> Memory:
        memory = Memory()
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

    def totals(self) -> Totals:
        with self._lock:
            return total([self._past, *(memory.read() for memory in self._open)])

    def files(self) -> list[int]:
        """Of all that is known, for a program that replaces this one. One of them is new, with what
        is known of those that are closed; they belong to this process."""
        with self._lock:
            past = Memory()
            Counters(past.map).keep(self._past)
            self._past = {}
            self._open.append(past)
            return [memory.file for memory in self._open]
