"""Sets the exit status after a background save failed and its result was not retrieved."""

from __future__ import annotations

import io
import os
import sys
import threading
from typing import Any

_MESSAGE = (
    "A background save failed and nobody retrieved its result: the exit status is 120. "
    "Call result() of the future that async_save returns."
)
_failed = False


def note_failure() -> None:
    """Make this process exit with status 120, or 1 if an exception ends it."""
    global _failed
    _failed = True


def _reset() -> None:
    """Forget the parent's failures in a forked child."""
    global _failed
    _failed = False


class _FailingStream:
    """A sys.stderr that fails at the interpreter's last flush, after all exit functions have run.

    Python exits with status 120 after such an error: https://docs.python.org/3/library/sys.html#sys.exit
    """

    closed = False

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._is_reported = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def flush(self) -> None:
        if sys.is_finalizing() and not self._is_reported:
            self._is_reported = True
            print(_MESSAGE, file=self._stream, flush=True)
            raise OSError(_MESSAGE)
        self._stream.flush()


def _replace_stderr() -> None:
    if _failed and not hasattr(sys, "last_value"):  # an exception ended the main thread
        sys.stderr = _FailingStream(sys.stderr or io.StringIO())


os.register_at_fork(after_in_child=_reset)
# Runs after functions that are registered later, such as the wait for saves.
threading._register_atexit(_replace_stderr)  # type: ignore[attr-defined]
