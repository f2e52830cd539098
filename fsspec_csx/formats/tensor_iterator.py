"""TensorIterator: yields the tensors of a checkpoint in order, and reads ahead."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from fsspec_csx.formats import reader
from fsspec_csx.formats.damage import wrong_checksum
from fsspec_csx.storage.threads import result_of
from fsspec_csx.tensors import fill, names, torch_compat
from fsspec_csx.tensors.lazy_object import Record
from fsspec_csx.tensors.memory import reserved
from fsspec_csx.tensors.names import Choice, Keys, place_of
from fsspec_csx.tensors.source import Source

_BATCH = 64 * 2**20  # bytes in one read
_READERS = 3


class _Entry(NamedTuple):
    """A tensor to yield; ``place`` identifies its storage, None if it has none."""

    name: str
    tensor: torch.Tensor
    place: Any


class _Batch(NamedTuple):
    """Tensors that were read together, and the CUDA event after which they are copied; None on other devices."""

    tensors: deque[tuple[str, torch.Tensor]]
    copied: Any = None


class TensorIterator:
    """Reads tensors in order, and some batches ahead. It can be iterated once."""

    def __init__(
        self, source: Source, *, name: str, keys: Keys | None = None, device: torch.device | str | None = None
    ) -> None:
        keys, _ = reader.begin(source, keys, name)
        found = reader.structure(source, name)
        choice = Choice(found.obj, keys, name)
        tensors = ((key, each) for key, each in names.walk(found.obj) if isinstance(each, torch.Tensor))
        chosen = [(key, each) for key, each in tensors if key in choice]
        self._entries = deque(_Entry(key, each.detach(), place_of(each)) for key, each in _in_order(chosen, keys))
        self._records = {each.place: each for each in found.records}
        self._uses = Counter(each.place for each in self._entries)
        self._source, self._name = source, name
        self._device = torch.device(device or "cpu")
        self._stream: Any = None
        if self._device.type == "cuda":
            self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        # A CSXFile can read several batches at a time. Batches for other devices are moved in order.
        self._readers = _READERS if self._device.type == "cpu" and hasattr(source.file, "readinto_many") else 1
        self._moved: dict[Any, torch.UntypedStorage] = {}
        self._stopped = False

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield names and verified tensors; closing the generator stops the reading ahead."""
        self._source.advance = self._advance
        pending: deque[Future[_Batch]] = deque()
        with ThreadPoolExecutor(self._readers, thread_name_prefix="fsspec_csx stream") as pool:
            try:
                self._refill(pending, pool)
                while pending:
                    batch = result_of(pending.popleft())
                    self._refill(pending, pool)
                    self._take_over(batch)
                    while batch.tensors:
                        yield batch.tensors.popleft()
                self._source.verify_whole(self._name)
            finally:
                self._stopped = True
                for each in pending:
                    each.cancel()

    def _refill(self, pending: deque[Future[_Batch]], pool: ThreadPoolExecutor) -> None:
        while self._entries and len(pending) < self._readers:
            pending.append(pool.submit(self._read, *self._next()))

    def _advance(self, count: int) -> None:
        if self._stopped:
            raise InterruptedError

    def _read(self, entries: list[_Entry], records: list[Record]) -> _Batch:
        """Fill the tensors of a batch from these records."""
        own = [replace(each, storage=self._buffer(each.storage)) for each in records]
        if wrong := fill.fill(self._source, own):
            damaged = [record for record, each in zip(records, own, strict=True) if any(each is it for it in wrong)]
            owners = names.of_records({each.name: each.tensor for each in entries}, damaged)
            raise wrong_checksum(self._name, owners)
        filled = {r.place: each.storage for r, each in zip(records, own, strict=True)}
        if self._stream is None:
            return _Batch(deque((each.name, self._placed(each, filled)) for each in entries))
        with torch.cuda.stream(self._stream):
            tensors = deque((each.name, self._placed(each, filled)) for each in entries)
            return _Batch(tensors, self._stream.record_event())

    def _next(self) -> tuple[list[_Entry], list[Record]]:
        """Take the entries of the next batch, at least one, and their records."""
        entries: list[_Entry] = []
        records: list[Record] = []
        size = 0
        while self._entries:
            record = self._records.get(self._entries[0].place)
            size += record.storage.nbytes() if record else 0
            if entries and size > _BATCH:
                break
            entry = self._entries.popleft()
            entries.append(entry)
            if record:
                records.append(self._records.pop(entry.place))
        return entries, records

    def _buffer(self, storage: torch.UntypedStorage) -> torch.UntypedStorage:
        """Return the memory to read a storage into: pinned for CUDA, so that copies overlap with reads."""
        return (
            storage
            if self._stream is None
            else torch.empty(storage.nbytes(), dtype=torch.uint8, pin_memory=True).untyped_storage()
        )

    def _placed(self, entry: _Entry, filled: dict[Any, torch.UntypedStorage]) -> torch.Tensor:
        """Return a tensor on the device, where tensors that share a storage still share it."""
        tensor = entry.tensor
        if self._device.type == "cpu":
            return tensor
        if entry.place is None:
            return tensor.to(self._device)
        self._uses[entry.place] -= 1
        storage = self._moved.pop(entry.place, None)
        if storage is None:
            storage = _copied(filled.get(entry.place, tensor.untyped_storage()), self._device)
        if self._uses[entry.place]:
            self._moved[entry.place] = storage
        made = torch.empty(0, dtype=tensor.dtype, device=self._device)
        made.set_(storage, tensor.storage_offset(), tensor.shape, tensor.stride())
        made = made.conj() if tensor.is_conj() else made
        return torch_compat.neg_view(made) if tensor.is_neg() else made

    def _take_over(self, batch: _Batch) -> None:
        """Make the caller's stream wait for the copies."""
        if batch.copied is not None:
            stream = torch.cuda.current_stream(self._device)
            stream.wait_event(batch.copied)
            for _, tensor in batch.tensors:
                if tensor.layout is torch.strided:
                    tensor.record_stream(stream)


def _copied(storage: torch.UntypedStorage, device: torch.device) -> torch.UntypedStorage:
    """Copy a storage to a device; the copy may still be running."""
    made = reserved(storage.nbytes(), device)
    source = torch.empty(0, dtype=torch.uint8).set_(storage)
    torch.empty(0, dtype=torch.uint8, device=device).set_(made).copy_(source, non_blocking=True)
    return made


def _in_order(entries: Iterable[tuple[str, torch.Tensor]], keys: Keys | None) -> Iterable[tuple[str, torch.Tensor]]:
    """Sort entries by the order of names in ``keys``; entries below one name keep their order."""
    if keys is None or callable(keys):
        return entries
    order: dict[str, int] = {}
    for number, key in enumerate(keys):
        order.setdefault(key, number)
    return sorted(entries, key=lambda entry: min(order[each] for each in names.above(entry[0]) if each in order))
