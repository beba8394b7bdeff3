"""Source: where the settings come from, and what became of the last attempt to read them again."""

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from pyproxy.errors import ControlError, ListenError, SettingsError
from pyproxy.settings import Settings, differences

log = logging.getLogger(__name__)


class Source:
    """``reload`` may be called from any thread: a signal, a changed file, the admin API."""

    def __init__(
        self,
        load: Callable[[], Settings],
        apply: Callable[[Settings], None],
        current: Settings,
        file: str,
    ) -> None:
        """``load`` raises ``SettingsError``, ``apply`` that and ``ListenError``, having changed
        nothing."""
        self._load, self._apply = load, apply
        self._current = current
        self._file = file
        self._loaded = time.time()
        self._error: dict[str, Any] | None = None
        self._doubtful = False  # whether the current ones, or some of others, are in effect
        # One reload at a time, and none while the sockets are handed over.
        self.lock = threading.Lock()

    def reload(self) -> list[str]:
        """Reads the settings and applies them; what has changed. Bad ones are logged, change
        nothing, and raise ``ControlError`` 422."""
        with self.lock:
            try:
                settings = self._load()
                changes = differences(self._current, settings)
                if changes or self._doubtful:
                    self._apply(settings)
            except (SettingsError, ListenError) as error:
                problems = getattr(error, "problems", [str(error)])
                self._error = {"at": time.time(), "problems": problems}
                for problem in problems:
                    log.error("the settings stay as they were: %s", problem)
                raise ControlError(422, "\n".join(problems)) from None
            except Exception:  # halfway through
                self._doubtful = True
                raise
            self._current, self._doubtful = settings, False
            self._loaded, self._error = time.time(), None
        for change in changes:
            log.info("settings: %s", change)
        if not changes:
            log.info("settings: read again, nothing has changed")
        return changes

    def describe(self) -> dict[str, Any]:
        """In JSON's terms. ``error`` is what was wrong the last time, if it was."""
        return {"file": self._file, "loaded": self._loaded, "error": self._error}
