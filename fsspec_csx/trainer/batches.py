"""Batches: a data loader read epoch after epoch, from where a former run left off."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fsspec_csx.trainer import checking, random_states
from fsspec_csx.trainer.loop import length_of

_MOST = 2**40  # batches, more than any training has
_END = object()


class Batches:
    """The batches of a data loader, without end.

    After a resume the rest of the epoch is the same as it would have been. A loader that has ``state_dict`` and
    ``load_state_dict``, as torchdata's ``StatefulDataLoader``, goes on by these. From others the batches that were
    trained with are drawn again and dropped, in the random states of that time; so their order, their augmentation and
    their workers' draws are the same.

    Args:
        dataloader: an iterable of batches, whose iterations may differ by what they draw from random generators.
        limit: batches after which an epoch is over; None for all.
        processes: among which the samples are shared out.

    Attributes:
        epoch: passes that are over.
        index: batches of the current pass that were handed out.
    """

    def __init__(self, dataloader: Any, limit: int | None = None, processes: int = 1) -> None:
        self._loader = dataloader
        self._length = min((each for each in (limit, length_of(dataloader)) if each is not None), default=None)
        self._limit = limit
        self._processes = processes
        self._stateful = hasattr(dataloader, "state_dict") and hasattr(dataloader, "load_state_dict")
        self._iterator: Iterator[Any] | None = None
        self._start: dict[str, Any] | None = None
        self.generators = random_states.generators_of(dataloader)
        self.epoch = 0
        self.index = 0

    def next(self) -> Any:
        """The next batch.

        Raises:
            ValueError: if the loader has none.
        """
        for _ in range(2):
            if self._iterator is None:
                self._start = random_states.taken(self.generators)
                self._iterator = self._begun()
            try:
                batch = next(self._iterator)
            except StopIteration:
                if not self.index:
                    break
                self._over()
                continue
            self.index += 1
            if self.index == self._length:
                # Whatever the loader draws at its end belongs to this epoch.
                if self._limit is None:
                    next(self._iterator, None)
                self._over()
            return batch
        msg = "The data loader has no batches. Check the dataset, and drop_last with few samples."
        raise ValueError(msg)

    def _begun(self) -> Iterator[Any]:
        for name in ("", "sampler", "batch_sampler"):
            holder: Any = getattr(self._loader, name, None) if name else self._loader
            if hasattr(holder, "set_epoch"):
                holder.set_epoch(self.epoch)
                break
        return iter(self._loader)

    def _over(self) -> None:
        self.epoch += 1
        self.index = 0
        self._iterator = self._start = None

    def state_dict(self) -> dict[str, Any]:
        """Where it is."""
        state: dict[str, Any] = {"epoch": self.epoch, "index": self.index, "processes": self._processes}
        if self._stateful:
            state["loader"] = self._loader.state_dict()
        elif self.index:
            state["start"] = self._start
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to where another one was.

        That changes the random states, so those of the moment that is gone back to must be restored after it. Among
        another number of processes it goes on after as many samples, which are others than they would have been.

        Raises:
            ValueError: if a number of it is none.
            LookupError: if it lacks one; or another error of Python's, if it is of other types.
        """
        epoch, index, processes = (checking.count_in(state[name], _MOST) for name in ("epoch", "index", "processes"))
        self.epoch, self.index = epoch, 0
        self._iterator = None
        if self._stateful and "loader" in state:
            self._loader.load_state_dict(state["loader"])
            self.index = index
        elif index:
            self._start = state["start"]
            random_states.restore(state["start"], self.generators)
            self._iterator = self._begun()
            for _ in range(index * processes // self._processes):
                if next(self._iterator, _END) is _END:
                    break
                self.index += 1
