"""Upload: a request body too long to keep, streamed while the response may already come back."""

import threading
import time

from pyproxy import net
from pyproxy.errors import ClientGone, HTTPError, TargetError
from pyproxy.http.body import BodyReader
from pyproxy.http.upstream import TargetConnection


class Upload:
    """Copies a body from the client to a target in a thread of its own, so that the request's
    thread can read the response, early or late, without a deadlock. Memory: one piece.
    """

    def __init__(self, reader: BodyReader) -> None:
        self.reader = reader
        self.error: ClientGone | HTTPError | None = None  # the client's fault
        self.ended_at: float | None = None  # time.monotonic()
        self.complete = False  # all of it has been sent
        self._thread: threading.Thread | None = None
        self._connection: TargetConnection | None = None
        # Protects `ended_at` and `_dropped`: the last of the two threads closes the connection.
        self._lock = threading.Lock()
        self._dropped = False

    @property
    def running(self) -> bool:
        return self._thread is not None and self.ended_at is None

    def start(self, connection: TargetConnection) -> None:
        """Raises ``HTTPError`` 503 when the system gives no more threads."""
        self._connection = connection
        thread = threading.Thread(target=self._run, name="pyproxy-upload", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            raise HTTPError(503, f"the proxy {error}") from None
        self._thread = thread

    def _run(self) -> None:
        reader, connection = self.reader, self._connection
        assert connection
        try:
            while piece := reader.read():
                connection.send(reader.frame(piece))
            if ending := reader.ending():
                connection.send(ending)
            self.complete = True
        except TargetError:
            pass  # the request's thread sees it too, or reads an early answer
        except (ClientGone, HTTPError) as error:
            self.error = error
            net.shut(connection.sock)  # wakes the request's thread
        finally:
            with self._lock:
                self.ended_at = time.monotonic()
                if self._dropped:
                    connection.close()

    def drop(self, connection: TargetConnection) -> None:
        """Closes the connection, as soon as the thread no longer uses it."""
        with self._lock:
            self._dropped = self.running
            if not self._dropped:
                connection.close()
                return
        net.shut(connection.sock)

    def finish(self, seconds: float) -> bool:
        """Waits for the end; False if it doesn't come in time."""
        if self._thread is None:
            return True
        self._thread.join(seconds)
        return not self._thread.is_alive()
