"""The main promise, under load: targets die and return, and no client notices."""

import itertools
import re
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from functools import partial
from pathlib import Path

from tests.programs import program
from tests.support import Wire, client, closed_port, eventually

KILLS = 10
CLIENTS = 32
POSTERS = CLIENTS // 4


class Recorder:
    """``recorder.py`` as a process that can be killed and started again."""

    def __init__(self, folder: Path, number: int) -> None:
        self.port = closed_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.file = folder / f"{number}.log"
        self.file.touch()
        self.start()

    def start(self) -> None:
        script = Path(__file__).with_name("recorder.py")
        self.process = subprocess.Popen([sys.executable, script, str(self.port), self.file])

    def answers(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
        except OSError:
            return False
        return True

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


class Clients:
    """Threads that ask without a pause: three of four GET, one POSTs with an id of its own."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.failures: list[str] = []
        self.gets = 0
        self.posted: dict[str, int] = {}
        self._ids = itertools.count()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        work = [self._post if number < POSTERS else self._get for number in range(CLIENTS)]
        self._threads = [threading.Thread(target=one) for one in work]
        for thread in self._threads:
            thread.start()

    def _get(self) -> None:
        wire: Wire | None = None
        while not self._stop.is_set():
            try:
                wire = wire or client(self.url)
                wire.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
                reply = wire.read_message()
                failure = (
                    "" if (reply.status, reply.body) == (200, b"Hello, world!") else str(reply)
                )
            except (OSError, EOFError) as error:
                failure = repr(error)
            with self._lock:
                self.gets += 1
                if failure:
                    self.failures.append(failure)
                    break
        if wire:
            wire.close()

    def _post(self) -> None:
        while not self._stop.is_set():
            with self._lock:
                name = str(next(self._ids))
            head = f"POST / HTTP/1.1\r\nHost: a\r\nX-Id: {name}\r\nContent-Length: 4\r\n\r\nbody"
            try:
                with client(self.url) as wire:
                    wire.send(head.encode())
                    status = wire.read_message().status
            except (OSError, EOFError) as error:
                with self._lock:
                    self.failures.append(repr(error))
                return
            with self._lock:
                self.posted[name] = status

    def finish(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def test_no_get_fails_and_no_post_arrives_twice_while_targets_die_and_return(
    tmp_path: Path,
) -> None:
    recorders = [Recorder(tmp_path, number) for number in range(5)]
    clients: Clients | None = None
    kills = 0
    try:
        for recorder in recorders:
            eventually(recorder.answers)
        urls = ",".join(recorder.url for recorder in recorders)
        with program("--listen", "0", "--targets", urls, "--sleeping", "0.2") as proxy:
            clients = Clients(proxy.url)

            def told_last(verb: str, url: str) -> bool:
                told = [
                    found[1]
                    for line in proxy.stderr
                    if (found := re.search(rf" (evicted|restored) {url}:", line))
                ]
                return told[-1:] == [verb]

            while not clients.failures and (kills < KILLS or clients.gets < 500):
                recorder = recorders[kills % 5]
                recorder.kill()
                kills += 1
                eventually(partial(told_last, "evicted", recorder.url))
                time.sleep(0.2)  # under way without it
                recorder.start()
                eventually(partial(told_last, "restored", recorder.url))
            clients.finish()
    finally:
        if clients:
            clients.finish()
        for recorder in recorders:
            recorder.kill()
    assert clients
    assert clients.failures == []
    arrived = Counter(name for recorder in recorders for name in recorder.file.read_text().split())
    assert max(arrived.values()) == 1
    assert set(clients.posted.values()) <= {200, 502}
    answered = [name for name, status in clients.posted.items() if status == 200]
    assert all(arrived[name] for name in answered)
    # A target's end can fail the one that each client was waiting for, no more.
    assert len(clients.posted) - len(answered) <= kills * POSTERS
    assert len(answered) > KILLS
