"""Fills the tensors of an object that exists with those of a file, in place."""

from __future__ import annotations

import time
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator

import torch

from fsspec_csx.errors import DtypeCastWarning
from fsspec_csx.tensors.fill import PIECE, Transfer, run
from fsspec_csx.tensors.lazy_object import LazyObject, Record
from fsspec_csx.tensors.match import MatchedPair
from fsspec_csx.tensors.names import place_of
from fsspec_csx.tensors.source import Source, memory_at, memory_of

_STACK = 4  # frames from the warning to the caller of load


class Casts:
    """How many tensors were cast, from which dtype to which, and how long that took."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[torch.dtype, torch.dtype]] = Counter()
        self._seconds = 0.0

    def count(self, pair: MatchedPair) -> None:
        """Take a pair into account, once."""
        if pair.source.dtype != pair.target.dtype:
            self._counts[pair.source.dtype, pair.target.dtype] += 1

    def copy(self, source: torch.Tensor, target: torch.Tensor) -> None:
        """Copy the values of one tensor to another."""
        started = time.perf_counter()
        target.copy_(source)
        if source.dtype != target.dtype:
            self._seconds += time.perf_counter() - started

    def warn(self) -> None:
        """Issue a ``DtypeCastWarning`` if there is something to say."""
        if not self._counts:
            return
        kinds = ", ".join(f"{count} from {old} to {new}" for (old, new), count in self._counts.items())
        what = f"Tensors were cast while they were loaded ({kinds}), which took {self._seconds:.2g} s."
        warnings.warn(f"{what} Save them in the dtype in which they are used.", DtypeCastWarning, stacklevel=_STACK)


def fill_into(source: Source, found: LazyObject, pairs: Iterable[MatchedPair], casts: Casts) -> list[Record]:
    """Fill tensors with others of a lazy object, which itself stays unfilled.

    Args:
        source: the file.
        found: the lazy object.
        pairs: tensors of the lazy object, each with the one that takes its values.
        casts: learns what had to be cast.

    Returns:
        The records whose bytes do not have the checksum that they must have.

    Raises:
        OSError: what the file raised.
    """
    records = {(record.storage.device, record.storage.data_ptr()): record for record in found.records}
    straight: dict[tuple[int, int, int], tuple[Transfer, MatchedPair]] = {}
    staged: list[Transfer] = []
    filled: list[MatchedPair] = []
    pinned = False
    with torch.no_grad():
        for pair in pairs:
            casts.count(pair)
            place = place_of(pair.source)
            record = None if place is None else records.get(place)
            if record is None or not pair.source.numel():
                filled.append(pair)
            elif pair.source.is_conj() or pair.source.is_neg():
                staged.append(Transfer(record, 0, record.storage.nbytes(), memory_of(record.storage)))
                filled.append(pair)
            elif _same_memory(pair):
                address, size = pair.target.data_ptr(), pair.source.nbytes
                transfer = Transfer(record, _start(pair.source), size, memory_at(address, size, pair.target))
                straight[address, size, transfer.record.offset + transfer.start] = transfer, pair
            else:
                pinned |= pair.target.device.type == "cuda"
                staged += _staged(record, pair, casts)
        whole, meeting = _apart(straight)
        for transfer, pair in meeting:
            staged += _staged(transfer.record, pair, casts)
        damaged = run(source, whole + staged, pinned=pinned)
        for pair in filled:
            casts.copy(pair.source, pair.target)
    return damaged


def _start(tensor: torch.Tensor) -> int:
    """Where a tensor begins in its storage, in bytes."""
    return int(tensor.storage_offset()) * tensor.element_size()


def _same_memory(pair: MatchedPair) -> bool:
    """Whether the bytes of one tensor are those of the other, in the same order."""
    source, target = pair
    plain = type(target) in (torch.Tensor, torch.nn.Parameter) and place_of(target) is not None
    if not plain or target.device.type != "cpu" or target.dtype != source.dtype:
        return False
    if target.is_conj() or target.is_neg():
        return False
    if source.is_contiguous() and target.is_contiguous():
        return True
    return source.stride() == target.stride() and _is_dense(source)


def _is_dense(tensor: torch.Tensor) -> bool:
    """Whether a tensor takes each element between its first and its last once."""
    expected = 1
    for stride, size in sorted((tensor.stride(each), tensor.size(each)) for each in range(tensor.dim())):
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True


def _apart(
    straight: dict[tuple[int, int, int], tuple[Transfer, MatchedPair]],
) -> tuple[list[Transfer], list[tuple[Transfer, MatchedPair]]]:
    """Those whose memories meet no other, and the rest, which must be filled one after the other."""
    alone: list[Transfer] = []
    meeting: list[tuple[Transfer, MatchedPair]] = []
    end = 0
    for (address, size, _), entry in sorted(straight.items(), key=lambda item: item[0]):
        if address >= end:
            alone.append(entry[0])
        else:
            meeting.append(entry)
        end = max(end, address + size)
    return alone, meeting


def _staged(record: Record, pair: MatchedPair, casts: Casts) -> Iterator[Transfer]:
    for source, target in _pieces(*pair):

        def deliver(data: torch.Tensor, source: torch.Tensor = source, target: torch.Tensor = target) -> None:
            casts.copy(data.view(source.dtype).as_strided(source.shape, source.stride()), target)

        yield Transfer(record, _start(source), _extent(source), deliver=deliver)


def _pieces(source: torch.Tensor, target: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Two tensors of the same shape, cut alike, so that no piece of the first stretches over more than ``PIECE``."""
    if _extent(source) <= PIECE:
        yield source, target
        return
    cut = max(range(source.dim()), key=lambda each: source.stride(each) if source.shape[each] > 1 else -1)
    step = source.stride(cut) * source.element_size()
    inner = _extent(source.narrow(cut, 0, 1))
    count = 1 + max(0, PIECE - inner) // step
    for start in range(0, source.size(cut), count):
        length = min(count, source.size(cut) - start)
        yield from _pieces(source.narrow(cut, start, length), target.narrow(cut, start, length))


def _extent(tensor: torch.Tensor) -> int:
    """How many bytes lie between the first of a tensor and the last, those included."""
    steps = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (int(steps) + 1) * tensor.element_size()
