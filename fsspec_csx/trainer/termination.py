"""SIGTERM, which spot machines and schedulers send, ends a training in an orderly way."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any


class Termination:
    """A deferred SIGTERM.

    Attributes:
        requested: whether SIGTERM has arrived while ``deferred``.
    """

    STATUS = 128 + signal.SIGTERM
    """The exit status of the process."""

    def __init__(self) -> None:
        self.requested = False

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Within the block SIGTERM sets ``requested``; only in the main thread, as others cannot handle signals."""
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
