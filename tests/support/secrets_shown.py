"""Secrets that no output may show, and all output."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager

TOKEN = "FwoGZXIvYXdzEBYaDH//secret+session/token=="


CUSTOMER_KEY = "0123456789abcdef0123456789abcdef"


class Seen(logging.Handler):
    """All that is logged, by any logger, with the tracebacks, as a file of a log would have it."""

    def __init__(self) -> None:
        super().__init__(logging.NOTSET)
        self.text = io.StringIO()
        self.loggers: set[str] = set()
        self.setFormatter(logging.Formatter("%(name)s %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        self.loggers.add(record.name)
        self.text.write(f"{self.format(record)}\n")

    def note(self, *shown: object) -> None:
        """Keep what was shown elsewhere too."""
        self.text.write("\n".join(map(str, shown)) + "\n")


@contextmanager
def all_logs() -> Iterator[Seen]:
    """What is logged within the block, at every level."""
    handler, root = Seen(), logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(1)
    try:
        yield handler
    finally:
        root.setLevel(level)
        root.removeHandler(handler)
