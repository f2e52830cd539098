"""Blocking methods made from coroutines: Ctrl-C, or an exit that a callback raises, ends their work, and only that."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from fsspec import AbstractFileSystem
from fsspec.asyn import AsyncFileSystem, sync_wrapper
from fsspec.callbacks import Callback

from fsspec_csx.s3.transport.call_scope import contained
from fsspec_csx.s3.transport.event_loop import carry, is_on_loop, run_and_wait

# Coroutines that run many tasks, by fsspec's names.
_OF_MANY = ("_cat", "_cat_ranges", "_copy", "_get", "_pipe", "_put", "_rm")
# The code of the blocking methods that fsspec makes from coroutines.
_SYNC_WRAPPER = sync_wrapper(lambda: None).__code__


class _CarriedCallback(Callback):  # type: ignore[misc]  # fsspec has no types
    """Passes the calls on the event loop on to the caller's callback, and has its attributes."""

    def __init__(self, callback: Callback) -> None:
        self._callback = callback

    def __getattr__(self, name: str) -> Any:
        return getattr(self._callback, name)

    def set_size(self, size: int) -> None:
        carry(self._callback.set_size, size)

    def absolute_update(self, value: int) -> None:
        carry(self._callback.absolute_update, value)

    def relative_update(self, inc: int = 1) -> None:
        carry(self._callback.relative_update, inc)

    def branched(self, path_1: str, path_2: str, **kwargs: Any) -> Callback:
        return _CarriedCallback(carry(self._callback.branched, path_1, path_2, **kwargs))

    def __enter__(self) -> Callback:
        return _CarriedCallback(carry(self._callback.__enter__))

    def __exit__(self, *error: object) -> Any:
        return carry(self._callback.__exit__, *error)


class _CarriedFunction:
    """Passes the calls on the event loop on to a function of the caller, and has its attributes."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return carry(self._function, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._function, name)


def _carried(argument: Any) -> Any:
    if isinstance(argument, Callback):
        return _CarriedCallback(argument)
    return _CarriedFunction(argument) if callable(argument) and not isinstance(argument, type) else argument


def interruptible(coroutine: Callable[..., Any]) -> Callable[..., Any]:
    """Make a blocking method from a coroutine, as fsspec does; with this one, Ctrl-C also ends the work."""

    @functools.wraps(coroutine)
    def call(self: Any, *args: Any, timeout: float | None = None, **kwargs: Any) -> Any:
        if is_on_loop(self):
            msg = "Calling sync() from within a running loop"
            raise NotImplementedError(msg)
        carried = {name: _carried(value) for name, value in kwargs.items()}
        return run_and_wait(self, functools.partial(coroutine, self, *map(_carried, args), **carried), timeout)

    call.of_coroutine = coroutine  # type: ignore[attr-defined]
    return call


def make_interruptible(cls: type[Any]) -> None:
    """Give a filesystem class interruptible blocking methods, and coroutines that leave no tasks running."""
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
    """Return whether a blocking method was made from the coroutine of that name, by fsspec or here."""
    if hasattr(plain, "of_coroutine") or getattr(plain, "__code__", None) is _SYNC_WRAPPER:
        return True
    # fsspec replaces such a method of its synchronous base class in each instance.
    return hasattr(AsyncFileSystem, name) and plain is getattr(AbstractFileSystem, name[1:], None)
