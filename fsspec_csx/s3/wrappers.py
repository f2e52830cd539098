"""Support for text and compressing wrappers around a file."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable
from types import CodeType
from typing import Any, TypeAlias

from fsspec.compression import compr

Instruction: TypeAlias = tuple[int, CodeType, int]


def calling_instruction() -> Instruction:
    """Return the Python instruction that calls the caller of this function, as frame, code and position.

    The constructor of ``io.TextIOWrapper`` calls ``writable()`` and then ``seekable()``, both within one instruction of
    the calling Python code; that identifies it. It writes a byte order mark only at the beginning of a seekable file.
    """
    frame = sys._getframe(2)
    return id(frame), frame.f_code, frame.f_lasti


def close_together(wrapper: Any, file: Any) -> Any:
    """Make a compressor's ``close`` publish the file below it, which fsspec leaves to the garbage collector."""
    finish = wrapper.close

    def close() -> None:
        if getattr(wrapper, "_finalizing", False):  # io sets it when the wrapper is dropped unclosed
            file.drop()
            return
        with file.discarded_on_failure():
            finish()
        file.close()

    with contextlib.suppress(AttributeError):  # extension types allow no attributes, and close the file themselves
        wrapper.close = close
        wrapper._dealloc_warn = file._dealloc_warn  # called first by a dropped text wrapper around it
    return wrapper


def close_below(kind: type[Any]) -> None:
    """Make all compressors of fsspec close the file below them, if it is a file of this kind.

    ``fsspec.open(url, "wb", compression="gzip").open()`` returns only the compressor, so its ``close`` must publish.
    """

    def closing(make: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(make, updated=())
        def made(infile: Any, *args: Any, **kwargs: Any) -> Any:
            wrapper = make(infile, *args, **kwargs)
            return close_together(wrapper, infile) if isinstance(infile, kind) and infile.mode != "rb" else wrapper

        return made

    compr.update({name: closing(make) for name, make in compr.items() if name is not None})
