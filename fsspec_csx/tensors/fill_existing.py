"""Fills the tensors of an existing object with those of a file, in place."""

from __future__ import annotations

import time
import warnings
from collections import Counter
from collections.abc import Iterable

import torch

from fsspec_csx.errors import DtypeCastWarning
from fsspec_csx.tensors.fill import RecordPart, copies, direct, run
from fsspec_csx.tensors.lazy_object import LazyObject, Record
from fsspec_csx.tensors.match import MatchedPair
from fsspec_csx.tensors.names import place_of
from fsspec_csx.tensors.source import Source, memory_of

_STACK = 4  # from the warning to the caller of load


class Casts:
    """Counts casts of tensors by dtypes, and measures their time."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[torch.dtype, torch.dtype]] = Counter()
        self._seconds = 0.0

    def count(self, pair: MatchedPair) -> None:
        """Count a pair, once."""
        if pair.source.dtype != pair.target.dtype:
            self._counts[pair.source.dtype, pair.target.dtype] += 1

    def copy(self, source: torch.Tensor, target: torch.Tensor) -> None:
        started = time.perf_counter()
        target.copy_(source)
        if source.dtype != target.dtype:
            self._seconds += time.perf_counter() - started

    def warn(self) -> None:
        """Issue a ``DtypeCastWarning`` if tensors were cast."""
        if not self._counts:
            return
        kinds = ", ".join(f"{count} from {old} to {new}" for (old, new), count in self._counts.items())
        what = f"Tensors were cast while they were loaded ({kinds}), which took {self._seconds:.2g} s."
        warnings.warn(f"{what} Save them in the dtype in which they are used.", DtypeCastWarning, stacklevel=_STACK)


def fill_into(source: Source, found: LazyObject, pairs: Iterable[MatchedPair], casts: Casts) -> list[Record]:
    """Fill tensors from those of a lazy object, which itself stays unfilled; ``casts`` counts the casts.

    Return the records with a wrong checksum.
    """
    records = {record.place: record for record in found.records}
    straight: dict[tuple[int, int, int], tuple[RecordPart, MatchedPair]] = {}
    staged: list[RecordPart] = []
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
                staged.append(RecordPart(record, 0, record.storage.nbytes(), memory_of(record.storage)))
                filled.append(pair)
            elif transfer := direct(record, *pair):
                straight[pair.target.data_ptr(), transfer.size, record.offset + transfer.start] = transfer, pair
            else:
                pinned |= pair.target.device.type == "cuda"
                staged += copies(record, *pair, casts.copy)
        whole, meeting = _apart(straight)
        for transfer, pair in meeting:
            staged += copies(transfer.record, *pair, casts.copy)
        damaged = run(source, whole + staged, pinned=pinned)
        for pair in filled:
            casts.copy(pair.source, pair.target)
    return damaged


def _apart(
    straight: dict[tuple[int, int, int], tuple[RecordPart, MatchedPair]],
) -> tuple[list[RecordPart], list[tuple[RecordPart, MatchedPair]]]:
    """Return the transfers whose memory overlaps no other, and the rest, which must run one after the other."""
    alone: list[RecordPart] = []
    meeting: list[tuple[RecordPart, MatchedPair]] = []
    end = 0
    for (address, size, _), entry in sorted(straight.items(), key=lambda item: item[0]):
        if address >= end:
            alone.append(entry[0])
        else:
            meeting.append(entry)
        end = max(end, address + size)
    return alone, meeting
