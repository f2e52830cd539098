"""What text and compressing wrappers need of the file below them."""

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
    """The instruction of Python code that calls the method that calls this: a frame, its code and the place in it.

    ``io.TextIOWrapper`` asks a file ``writable()`` and then ``seekable()`` while it is made, by one instruction of the
    Python code that makes it. That recognizes it. It writes a byte order mark only if the file is seekable and at its
    beginning.
    """
    frame = sys._getframe(2)
    return id(frame), frame.f_code, frame.f_lasti


def close_together(wrapper: Any, file: Any) -> Any:
    """Let a compressor's ``close`` publish the file below it, which fsspec leaves to the garbage collector."""
    finish = wrapper.close

    def close() -> None:
        if getattr(wrapper, "_finalizing", False):  # io sets it on what is dropped unclosed
            file.drop()
            return
        with file.discarded_on_failure():
            finish()
        file.close()

    with contextlib.suppress(AttributeError):  # extension types take no attribute, and close the file themselves
        wrapper.close = close
        wrapper._dealloc_warn = file._dealloc_warn  # a text wrapper around it that is dropped calls this first
    return wrapper


def close_below(kind: type[Any]) -> None:
    """Let every compressor that fsspec knows close the file below it, where that is a file of this kind.

    ``fsspec.open(url, "wb", compression="gzip").open()`` gives the compressor alone: its ``close`` has to publish.
    """

    def closing(make: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(make, updated=())
        def made(infile: Any, *args: Any, **kwargs: Any) -> Any:
            wrapper = make(infile, *args, **kwargs)
            return close_together(wrapper, infile) if isinstance(infile, kind) and infile.mode != "rb" else wrapper

        return made

    compr.update({name: closing(make) for name, make in compr.items() if name is not None})
