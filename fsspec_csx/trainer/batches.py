"""Batches: an endless iterator over a data loader with a position that can be saved."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

from fsspec_csx.trainer import random_states
from fsspec_csx.trainer.dataloader_state import DataLoaderState, seed_each_epoch
from fsspec_csx.trainer.loop import length_of
from fsspec_csx.trainer.state_validation import to_count

_MOST = 2**40  # batches, more than any training has


class Batches:
    """The batches of a data loader, epoch after epoch, of at most ``limit`` batches.

    After a resume the rest of the epoch is the same as without the interruption. A loader with ``state_dict`` and
    ``load_state_dict``, such as torchdata's ``StatefulDataLoader``, uses these to resume. Other loaders draw the used
    batches again, from the saved random states, and drop them. So the order, the augmentation and the workers' draws
    are the same. The data have separate random states for this.
    """

    def __init__(self, dataloader: Any, limit: int | None = None, processes: int = 1) -> None:
        self._loader = dataloader
        self._length = min((each for each in (limit, length_of(dataloader)) if each is not None), default=None)
        self._limit = limit
        self._processes = processes
        self._stateful = hasattr(dataloader, "state_dict") and hasattr(dataloader, "load_state_dict")
        self._workers = seed_each_epoch(dataloader)
        self._random = random_states.IsolatedRandomStates()
        self._iterator: Iterator[Any] | None = None
        self._start: dict[str, Any] | None = None
        self._first: dict[str, Any] | None = None
        self.objects = DataLoaderState(dataloader)
        self.epoch = 0
        self.index = 0  # of the next batch in the epoch

    def next(self) -> Any:
        """Return the next batch; raise a ValueError if the loader has none."""
        with self._random.active():
            return self._next()

    def _next(self) -> Any:
        for _ in range(2):
            iterator = self._begin() if self._iterator is None else self._iterator
            try:
                batch = next(iterator)
            except StopIteration:
                if not self.index:
                    break
                self._end_epoch()
                continue
            self.index += 1
            if self.index == self._length:
                # The random numbers that the loader draws at its end belong to this epoch.
                if self._limit is None:
                    next(iterator, None)
                self._end_epoch()
            return batch
        msg = "The data loader has no batches. Check the dataset, and drop_last with few samples."
        raise ValueError(msg)

    def _begin(self) -> Iterator[Any]:
        self._start = self._capture()
        self._first = self._first or self._start
        self._iterator = self._new_iterator(self.epoch)
        return self._iterator

    def _new_iterator(self, epoch: int) -> Iterator[Any]:
        for holder in self.objects.samplers:
            if hasattr(holder, "set_epoch"):
                holder.set_epoch(epoch)
                break
        return iter(self._loader)

    def _end_epoch(self) -> None:
        self.epoch += 1
        self.index = 0
        self._iterator = self._start = None

    def _capture(self) -> dict[str, Any]:
        return {**random_states.capture(), "objects": self.objects.capture()}

    def _restore(self, states: dict[str, Any]) -> None:
        random_states.restore(states)
        self.objects.restore(states["objects"])

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = {"epoch": self.epoch, "index": self.index, "processes": self._processes}
        with self._random.active():
            if self._stateful:
                if self._iterator is None:  # the saved state must be of the next pass, not of the end of the last one
                    self._begin()
                state |= {"loader": self._loader.state_dict(), "start": self._start, "now": self._capture()}
                return state
            state["start"] = self._start if self.index else self._capture()
            if self._workers and self._first:
                state["first"] = self._first
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a position.

        With another number of processes it continues after the same number of samples, in another order. An invalid
        position raises a ValueError, a LookupError or another error of Python.
        """
        epoch, index, processes = (to_count(state[name], _MOST) for name in ("epoch", "index", "processes"))
        self.epoch, self.index = epoch, 0
        self._iterator = None
        with self._random.active():
            if self._stateful and "loader" in state:
                self._resume_loader(state, index)
            else:
                self._draw_again(state, index * processes // self._processes)

    def _resume_loader(self, state: dict[str, Any], index: int) -> None:
        self._restore(state["start"])  # a sampler without a state must draw its order again
        self._loader.load_state_dict(state["loader"])
        self._begin()
        self._restore(state["now"])
        self.index = index

    def _draw_again(self, state: dict[str, Any], count: int) -> None:
        if self._workers and self.epoch and "first" in state:
            self._first = state["first"]
            self._restore(state["first"])
            self._workers.second = self.epoch
            self._new_iterator(0)
        self._restore(state["start"])
        if count:
            self.index = sum(1 for _ in islice(self._begin(), count))
