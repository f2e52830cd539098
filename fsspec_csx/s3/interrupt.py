"""Plain methods of coroutines: Ctrl-C ends the work, not only the wait for it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

from fsspec import AbstractFileSystem
from fsspec.asyn import AsyncFileSystem, sync_wrapper

from fsspec_csx.s3.transport.call_scope import contained, uncancelled
from fsspec_csx.s3.transport.event_loop import finished, is_on_loop

# Coroutines of many tasks, by the names that fsspec gives them.
_OF_MANY = ("_cat", "_cat_ranges", "_copy", "_get", "_pipe", "_put", "_rm")
# The code of what fsspec makes of a coroutine.
_SYNC_WRAPPER = sync_wrapper(lambda: None).__code__


def interruptible(coroutine: Callable[..., Any]) -> Callable[..., Any]:
    """Make a blocking method of a coroutine, as fsspec does; Ctrl-C ends the work too."""

    @functools.wraps(coroutine)
    def call(self: Any, *args: Any, timeout: float | None = None, **kwargs: Any) -> Any:
        if is_on_loop(self):
            msg = "Calling sync() from within a running loop"
            raise NotImplementedError(msg)
        return finished(self, functools.partial(coroutine, self, *args, **kwargs), timeout)

    call.of_coroutine = coroutine  # type: ignore[attr-defined]
    return call


def walk(fs: Any, *args: Any, **kwargs: Any) -> Iterator[Any]:
    """The folders below a path and what is in them; as fsspec's, but each step can be interrupted.

    Args:
        args: the path, and ``maxdepth``, ``topdown`` and ``on_error`` of ``fsspec.AbstractFileSystem.walk``.
        kwargs: the same by name, and those of ``ls``.

    Returns:
        For each folder its path, and the names of the folders and of the files in it; dicts of entries with ``detail``.
    """
    steps = fs._walk(*args, **kwargs)
    with contextlib.suppress(StopAsyncIteration):
        while True:
            yield finished(fs, steps.__anext__)


async def run_in_thread(work: Callable[[], Any], stop: Callable[[], object]) -> None:
    """Do work that waits for the event loop; whatever ends this stops the work and waits for its end."""
    running = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        await asyncio.shield(running)
    except BaseException:
        stop()
        await uncancelled(asyncio.wait([running]))
        running.exception()
        raise


def make_interruptible(cls: type[Any]) -> None:
    """Give a filesystem class blocking methods that can be interrupted; its coroutines leave no tasks running."""
    for name in _OF_MANY:
        if not hasattr(getattr(cls, name), "contained"):
            setattr(cls, name, contained(getattr(cls, name)))
    for name in dir(cls):
        if not name.startswith("_") or name.startswith("__"):
            continue
        coroutine, plain = getattr(cls, name), getattr(cls, name[1:], None)
        if not inspect.iscoroutinefunction(coroutine) or not _is_made_of_coroutine(name, plain):
            continue
        if getattr(plain, "of_coroutine", None) is coroutine:
            continue
        made = interruptible(coroutine)
        made.__doc__ = coroutine.__doc__ or getattr(getattr(AbstractFileSystem, name[1:], None), "__doc__", "")
        setattr(cls, name[1:], made)


def _is_made_of_coroutine(name: str, plain: Any) -> bool:
    """Whether a blocking method is made of a coroutine of that name, by fsspec or here."""
    if hasattr(plain, "of_coroutine") or getattr(plain, "__code__", None) is _SYNC_WRAPPER:
        return True
    # What each instance would be given in place of what fsspec does without coroutines.
    return hasattr(AsyncFileSystem, name) and plain is getattr(AbstractFileSystem, name[1:], None)
