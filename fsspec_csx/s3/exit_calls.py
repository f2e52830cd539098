"""Finds running ``__exit__`` calls that received an exception: a ``close`` within one does not publish a file.

An ``__exit__`` written in Python has a frame on the stack, with the exception among its arguments. One written in C,
such as that of ``io.TextIOWrapper`` or ``gzip.GzipFile``, has no frame. But the frame of its ``with`` statement is at
the instruction that calls it.
"""

from __future__ import annotations

import inspect
import logging
import opcode
import sys
import warnings
from collections.abc import Iterator
from types import FrameType
from typing import Any, TypeAlias

from fsspec_csx.errors import DiscardedFileWarning

logger = logging.getLogger("fsspec_csx")

Error: TypeAlias = BaseException | type[BaseException]

# The instruction that calls __exit__ with an exception. If Python has none of this name, every frame counts as such a
# call: a file that is closed while an exception is being handled is then discarded, and not published in part.
_WITH_EXCEPT_START = opcode.opmap.get("WITH_EXCEPT_START")


class Opening:
    """The moment when a file was opened for writing; logs and warns when the file is discarded."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._cleanups = [frame for frame, error in _running_exits() if error is not None]

    def leaving_exception(self) -> Error | None:
        """Return the exception of an ``__exit__`` that began after the opening and is running, if any."""
        for frame, error in _running_exits():
            if error is not None and not any(frame is earlier for earlier in self._cleanups):
                return error
        return None

    def report(self, error: Error) -> None:
        """Log that an exception passed to another context manager's ``__exit__`` discarded the file."""
        logger.warning("s3://%s was not written: %s left the block that closes it", self._path, _kind(error).__name__)
        self.warn_if_silent(error)

    def warn_if_silent(self, error: Error) -> None:
        """Warn if Python lets the exception end a generator, a task or the process silently."""
        if not issubclass(_kind(error), (Exception, KeyboardInterrupt)):
            self.warn(f"{_kind(error).__name__} left its with block.")

    def warn(self, reason: str) -> None:
        """Warn that the file was discarded."""
        text = f"s3://{self._path} was not written: {reason} Close the file, or leave its with block, when it is whole."
        warnings.warn(text, DiscardedFileWarning, stacklevel=4)

    def forget(self) -> None:
        """Release the frames."""
        self._cleanups = []


def innermost_error() -> Error | None:
    """Return the exception passed to the innermost running ``__exit__``, if it received one."""
    return next((error for _, error in _running_exits()), None)


def _running_exits() -> Iterator[tuple[FrameType, Error | None]]:
    """Yield the running ``__exit__`` calls of this thread, the innermost first, by their outermost frames.

    Each comes with the exception that it received, or its class, or None. A call that is written in C is only found if
    it received one.
    """
    handled = sys.exc_info()[1]
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        caller = frame.f_back
        arguments = _arguments(frame) if frame.f_code.co_name in ("__exit__", "__aexit__") else None
        if arguments is not None:
            # ExitStack clears its arguments when one of its context managers has suppressed the exception.
            errors = [each for each in arguments if issubclass(_kind(each), BaseException)]
            yield frame, errors[-1] if errors else None
        elif handled is not None and caller is not None and _calls_exit(caller):
            yield frame, handled
        frame = caller


def _arguments(frame: FrameType) -> list[Any] | None:
    """Return the positional arguments of a call without ``self``; None if the function has deleted one."""
    code, values = frame.f_code, frame.f_locals
    names = code.co_varnames[: code.co_argcount]
    rest = code.co_varnames[code.co_argcount + code.co_kwonlyargcount :][: bool(code.co_flags & inspect.CO_VARARGS)]
    if not {*names, *rest}.issubset(values):
        return None
    found = [values[name] for name in names]
    for name in rest:
        found += values[name] or ()
    return found[1:]


def _kind(value: Any) -> type[Any]:
    return value if isinstance(value, type) else type(value)


def _calls_exit(frame: FrameType) -> bool:
    """Return whether the frame's ``with`` statement is calling ``__exit__`` with an exception."""
    if _WITH_EXCEPT_START is None:
        return True
    return frame.f_lasti >= 0 and frame.f_code.co_code[frame.f_lasti] == _WITH_EXCEPT_START
