"""The exit status of a process in which something failed that nobody asked for."""

from __future__ import annotations

import io
import os
import sys
import threading
from typing import Any

_TOLD = (
    "A checkpoint was not saved in the background, and nobody asked for the result: so the exit status is 120. "
    "Call result() of what async_save returns."
)
_failed = False


def note_failure() -> None:
    """Let this process end with status 120, or with 1 if an exception ends it."""
    global _failed
    _failed = True


def _forget() -> None:
    """What failed in a process is nothing to its children."""
    global _failed
    _failed = False


class _Failing:
    """Takes the place of sys.stderr, and fails when the interpreter flushes it after all that is done at the exit.

    So no other way to end is cut short. To Python this is an error in its cleanup, for which it has a status:
    https://docs.python.org/3/library/sys.html#sys.exit

    Args:
        stream: what it takes the place of.
    """

    closed = False

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._is_told = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def flush(self) -> None:
        if sys.is_finalizing() and not self._is_told:
            self._is_told = True
            print(_TOLD, file=self._stream, flush=True)
            raise OSError(_TOLD)
        self._stream.flush()


def _settle() -> None:
    if _failed and not hasattr(sys, "last_value"):  # the exception that ended the main thread
        sys.stderr = _Failing(sys.stderr or io.StringIO())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
# It runs after what was registered later: the wait for saves.
threading._register_atexit(_settle)  # type: ignore[attr-defined]
