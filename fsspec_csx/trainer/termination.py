"""SIGTERM, which spot machines and schedulers send, as a wish to end in good order."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any


class Termination:
    """Whether this process was told to end.

    Attributes:
        asked: whether SIGTERM has come while it was ``noted``.
    """

    STATUS = 128 + signal.SIGTERM
    """With which the process then exits."""

    def __init__(self) -> None:
        self.requested = False

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Note SIGTERM instead of dying of it; in the main thread only, as others cannot handle signals."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def note(number: int, frame: Any) -> None:
            self.requested = True

        before = signal.signal(signal.SIGTERM, note)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)
