"""Reports the progress of a save or a load to an fsspec callback; by default a progress bar on a terminal."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from typing import Any

from fsspec.callbacks import Callback, NoOpCallback, TqdmCallback

from fsspec_csx.storage.paths import redacted

_DELAY = 1.0
_STEP = 256 * 1024


class ProgressMeter:
    """Updates a callback so that its value never exceeds its size, and equals it at the end.

    Args:
        callback: receives the total by ``set_size``, and combined increments by ``relative_update``, in bytes.
        estimated: whether the true total may differ; the callback's size is then corrected.
    """

    def __init__(self, callback: Callback, size: int, *, estimated: bool = False) -> None:
        self._callback = callback
        self._size = size
        self._estimated = estimated
        self._reported = 0
        self._pending = 0
        callback.set_size(size)

    def advance(self, count: int) -> None:
        """Count bytes that moved."""
        self._pending += count
        if self._pending >= _STEP:
            self._report()

    def check(self) -> None:
        """Let the callback raise although no bytes moved, as one of a cancelled save does."""
        self._callback.relative_update(0)

    def finish(self) -> None:
        """Report that all bytes have moved."""
        self._report()
        if self._estimated:
            self._resize(self._reported)
        else:
            self._pending = self._size - self._reported
            self._report()

    def _report(self) -> None:
        count, self._pending = self._pending, 0
        if self._estimated and self._reported + count > self._size:
            self._resize(self._reported + count)
        count = min(count, self._size - self._reported)
        if count:
            self._reported += count
            self._callback.relative_update(count)

    def _resize(self, size: int) -> None:
        if size != self._size:
            self._size = size
            self._callback.set_size(size)


class AdvanceCallback(Callback):  # type: ignore[misc]  # fsspec has no types
    """Passes the progress of one file on to a function; bytes that are fetched again after damage count only once."""

    def __init__(self, advance: Callable[[int], object]) -> None:
        super().__init__()
        self._advance = advance
        self._reported = 0

    def call(self, *args: Any, **kwargs: Any) -> None:
        self._advance(max(0, self.value - self._reported))
        self._reported = max(self._reported, self.value)


@contextlib.contextmanager
def report_progress(callback: Callback | None, path: str) -> Iterator[Callback]:
    """Yield the caller's callback, or a progress bar named after the path's last part, which is closed at the end.

    The bar needs tqdm and a terminal on stderr, and shows after a second. ``TQDM_DISABLE=1`` disables it.
    """
    if callback is not None:
        yield callback
        return
    bar = _bar(redacted(path).rpartition("/")[2])
    try:
        yield bar
    finally:
        bar.close()


def _bar(name: str) -> Callback:
    # A TqdmCallback that fails in its constructor fails again when it is deleted.
    stderr = sys.stderr
    on_terminal = stderr is not None and not getattr(stderr, "closed", False) and stderr.isatty()
    if not on_terminal or importlib.util.find_spec("tqdm") is None:
        return NoOpCallback()
    options = {
        "desc": name,
        "delay": _DELAY,
        "dynamic_ncols": True,
        "miniters": 1,  # tqdm's own estimate expects increments of similar size
        "unit": "B",
        "unit_divisor": 1024,
        "unit_scale": True,
    }
    return TqdmCallback(tqdm_kwargs=options)
