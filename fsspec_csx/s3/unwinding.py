"""The ``__exit__`` calls that clean up after an exception: a ``close`` that one of them makes does not publish.

An ``__exit__`` of Python code is a frame on the stack, with the exception among its arguments. One of C code, such as
that of ``io.TextIOWrapper`` or ``gzip.GzipFile``, has no frame; but the frame of its ``with`` statement stands at the
instruction that calls it.
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

# The instruction by which a with statement calls __exit__ with an exception. Without it each frame counts as one that
# does, so that a file closed while an exception is being handled is discarded rather than published in part.
_WITH_EXCEPT_START = opcode.opmap.get("WITH_EXCEPT_START")


class Opening:
    """The moment at which a file was opened for writing; logs and warns when the file is discarded."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._cleanups = [frame for frame, _ in running_cleanups()]

    def left_by(self) -> Error | None:
        """The exception that was given to an ``__exit__`` which calls this, directly or not, since the opening."""
        for frame, error in running_cleanups():
            if not any(frame is earlier for earlier in self._cleanups):
                return error
        return None

    def report(self, error: Error) -> None:
        """Say that the file was discarded for an exception that was given to another manager's ``__exit__``."""
        logger.warning("s3://%s was not written: %s left the block that closes it", self._path, _kind(error).__name__)
        self.warn_if_silent(error)

    def warn_if_silent(self, error: Error) -> None:
        """Warn if Python lets the exception end a generator, a task or the process without a word."""
        if not issubclass(_kind(error), (Exception, KeyboardInterrupt)):
            self.warn(f"{_kind(error).__name__} left its with block.")

    def warn(self, reason: str) -> None:
        """Warn that the file was discarded."""
        text = f"s3://{self._path} was not written: {reason} Close the file, or leave its with block, when it is whole."
        warnings.warn(text, DiscardedFileWarning, stacklevel=4)

    def forget(self) -> None:
        """Let go of the frames."""
        self._cleanups = []


def running_cleanups() -> list[tuple[FrameType, Error]]:
    """The calls of ``__exit__`` with an exception that the caller is part of, in its thread, the innermost first.

    Each has the outermost frame of its own, and the exception or its class.
    """
    return [(frame, error) for frame, error in _running_exits() if error is not None]


def innermost_error() -> Error | None:
    """The exception that was given to the innermost ``__exit__`` that the caller is part of, if it was given one."""
    return next((error for _, error in _running_exits()), None)


def _running_exits() -> Iterator[tuple[FrameType, Error | None]]:
    """The calls of ``__exit__`` that are under way, with what each was given; those of C code only if it was one."""
    handled = sys.exc_info()[1]
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        caller = frame.f_back
        arguments = _arguments(frame) if frame.f_code.co_name in ("__exit__", "__aexit__") else None
        if arguments is not None:
            # ExitStack clears its arguments when one of its managers has suppressed the exception.
            errors = [each for each in arguments if issubclass(_kind(each), BaseException)]
            yield frame, errors[-1] if errors else None
        elif handled is not None and caller is not None and _calls_exit(caller):
            yield frame, handled
        frame = caller


def _arguments(frame: FrameType) -> list[Any] | None:
    """The positional arguments of a call, less ``self``; None if the function has deleted one."""
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
    """Whether the frame's ``with`` statement is calling ``__exit__`` with an exception."""
    if _WITH_EXCEPT_START is None:
        return True
    return frame.f_lasti >= 0 and frame.f_code.co_code[frame.f_lasti] == _WITH_EXCEPT_START
