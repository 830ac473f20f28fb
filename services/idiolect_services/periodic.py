"""A thread of a server that does one thing again and again, and goes on whatever that meets."""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod

from idiolect.errors import IdiolectError


class Periodic(ABC):
    """`begins`: whether the first time is at the start, or `seconds` after it."""

    def __init__(self, name: str, seconds: float, *, begins: bool = False) -> None:
        self._name, self._seconds, self._begins = name, seconds, begins
        self._log = logging.getLogger(f"idiolect.{name}")
        self._stop = threading.Event()
        self._in_trouble = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @abstractmethod
    def run_once(self) -> object:
        """Raises what it likes."""

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """What is being done is finished first, unless it asks `goes_on`."""
        self._stop.set()
        self._thread.join()

    def goes_on(self) -> bool:
        return not self._stop.is_set()

    def _run(self) -> None:
        if self._begins:
            self.try_once()
        while not self._stop.wait(self._seconds):
            self.try_once()

    def try_once(self) -> None:
        try:
            self.run_once()
        except IdiolectError as error:  # said once per trouble: it may be tried every second
            self._log.log(logging.INFO if self._in_trouble else logging.WARNING, "%s is put off: %s", self._name, error)
            self._in_trouble = True
        except Exception:
            self._log.exception("%s failed; it is tried again in %.0f s", self._name, self._seconds)
        else:
            self._in_trouble = False
