"""Compares the entries of two checkpoints."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch

from fsspec_csx.formats import placeholders
from fsspec_csx.formats.cerebras.leaf import UnreadValue
from fsspec_csx.formats.cerebras.source import CerebrasSource, refuse_unread
from fsspec_csx.formats.checkpoint_info import Difference
from fsspec_csx.formats.damage import wrong_checksum
from fsspec_csx.formats.placeholders import Placeholder
from fsspec_csx.formats.reader import structure
from fsspec_csx.tensors import compare_tensors, names, summaries, torch_compat
from fsspec_csx.tensors.compare_tensors import Closeness, ComparedFile, ComparedPair, NumericError
from fsspec_csx.tensors.source import Source
from fsspec_csx.tensors.tensor_stream import StreamedTensor

_TEXT_MAX = 200
_Name = tuple[str, int]  # the dotted name, and a counter for equal names


class _Side:
    """One of the two checkpoints, with unread tensors."""

    def __init__(self, source: Source, name: str) -> None:
        found = structure(source, name)
        self.records = {record.storage.data_ptr(): record for record in found.records}
        self.containers = dict(_containers(found.obj))
        self.leaves: dict[_Name, Any] = {}
        counts: dict[str, int] = {}
        for key, value in names.walk(found.obj):
            counts[key] = number = counts.get(key, -1) + 1
            self.leaves[key, number] = _as_tensor(value)
            if isinstance(value, Placeholder):
                inner = enumerate(placeholders.tensors(value))
                self.leaves.update(((f"{key}: tensor {each}", number), tensor) for each, tensor in inner)
        self._source = source
        others = {key: leaf for (key, _), leaf in self.leaves.items() if isinstance(leaf, UnreadValue)}
        refuse_unread({key: leaf for key, leaf in others.items() if not leaf.runs_code}, name)
        self.file = ComparedFile(source, lambda wrong: wrong_checksum(name, names.of_records(found.obj, [wrong])))

    def pickle_of(self, value: UnreadValue) -> bytes:
        """Return the bytes of a pickle."""
        assert isinstance(self._source, CerebrasSource)
        return self._source.pickle_of(value)

    def stored(self, tensor: torch.Tensor) -> StreamedTensor:
        """Return a strided tensor with the record of its bytes."""
        record = self.records.get(tensor.untyped_storage().data_ptr()) if self.records else None
        if record is None:
            return StreamedTensor(tensor.detach().resolve_conj().resolve_neg(), tensor.dtype)
        return StreamedTensor(tensor.detach(), tensor.dtype, record)


def compare(
    sources: tuple[Source, Source], paths: tuple[str, str], closeness: Closeness | None
) -> tuple[tuple[Difference, ...], int, int]:
    """Compare two checkpoints; ``paths`` are for error messages.

    Return the differences, and the numbers of tensors and of other values in both. Without a closeness they must be
    equal, and elements of different dtypes are not compared.
    """
    sides = (_Side(sources[0], paths[0]), _Side(sources[1], paths[1]))
    comparison = _Comparison(sides, closeness)
    for name, first in sides[0].containers.items():
        second = sides[1].containers.get(name, first)
        if second != first:
            comparison.report(name, "type", first, second)
    for key in {**sides[0].leaves, **sides[1].leaves}:
        found = [side.leaves[key] for side in sides if key in side.leaves]
        if len(found) == 2:
            comparison.compare(key[0], *found)
            continue
        is_first = key in sides[0].leaves
        other = sides[1 if is_first else 0].containers.get(key[0])
        what = "type" if other else f"only in the {'first' if is_first else 'second'}"
        if other is None or _type(found[0]) != other:
            texts = summaries.entry(found[0]), other
            comparison.report(key[0], what, *(texts if is_first else texts[::-1]))
    return comparison.finish()


def _containers(value: Any, name: str = "", above: tuple[int, ...] = ()) -> Iterator[tuple[str, str]]:
    """Yield the names and kinds of the containers that are not empty."""
    inner = None if id(value) in above else names.children(value)
    if not inner:
        return
    yield name, _kind(value)
    for key, each in inner:
        yield from _containers(each, names.below(name, key), (*above, id(value)))


def _kind(value: Any) -> str:
    return "mapping" if isinstance(value, Mapping) else "tuple" if isinstance(value, tuple) else "list"


def _as_tensor(value: Any) -> Any:
    """Wrap a storage that was saved alone as a tensor."""
    if isinstance(value, torch.UntypedStorage):
        return torch.empty(0, dtype=torch.uint8, device=value.device).set_(value)
    if isinstance(value, torch.TypedStorage):
        untyped = torch_compat.untyped(value)
        return torch.empty(0, dtype=value.dtype, device=untyped.device).set_(untyped)
    return value


class _Comparison:
    """The differences so far, and the pairs of tensors to read."""

    def __init__(self, sides: tuple[_Side, _Side], closeness: Closeness | None) -> None:
        self._sides = sides
        self._closeness = closeness
        # In place of a difference of values, a function that returns it, if there is one, after the tensors are read.
        self._found: list[Difference | Callable[[], Difference | None]] = []
        self._tensors = self._values = 0
        self._pairs: list[ComparedPair] = []
        self._known: dict[Any, NumericError] = {}

    def report(self, name: str, what: str, first: str | None, second: str | None) -> None:
        self._found.append(Difference(name, what, first, second))

    def compare(self, name: str, first: Any, second: Any) -> None:
        """Compare two entries of one name; ``finish`` reads the tensors."""
        tensors = isinstance(first, torch.Tensor), isinstance(second, torch.Tensor)
        if all(tensors):
            self._tensors += 1
            self._add_tensors(name, first, second)
            return
        self._values += 1
        held = first, second
        if any(tensors) or _type(first) != _type(second):
            self.report(name, "type", *map(summaries.entry, held))
            return
        if isinstance(first, UnreadValue):
            first, second = self._sides[0].pickle_of(first), self._sides[1].pickle_of(second)
        if not _equal(first, second):
            self.report(name, "value", *map(summaries.entry, held))

    def _add_tensors(self, name: str, first: torch.Tensor, second: torch.Tensor) -> None:
        comparable = True
        for what, describe in (("layout", summaries.layout), ("shape", summaries.shape), ("dtype", summaries.dtype)):
            texts = describe(first), describe(second)
            if texts[0] != texts[1]:
                self.report(name, what, *(text[:_TEXT_MAX] for text in texts))
                near = what == "dtype" and self._closeness is not None
                comparable &= near and compare_tensors.can_compare(first.dtype, second.dtype)
        if not comparable or first.device.type == "meta":
            return
        found, times = NumericError(), 1
        total = sum(each.numel() for each in first.unbind()) if first.is_nested else first.numel()
        if first.layout != torch.strided or first.is_nested or first.is_quantized:
            self._pairs += [
                ComparedPair((StreamedTensor(one, one.dtype), StreamedTensor(other, other.dtype)), found)
                for one, other in _strided(first, second)
            ]
        else:
            first, second, times = _without_repeats(first, second)
            stored = self._sides[0].stored(first), self._sides[1].stored(second)
            found = self._add_stored(stored, found)
        self._found.append(partial(_difference, name, total, found, times))

    def _add_stored(self, stored: tuple[StreamedTensor, StreamedTensor], found: NumericError) -> NumericError:
        identities = tuple(_identity(each) for each in stored)
        if all(each.record is not None for each in stored) and identities in self._known:
            return self._known[identities]  # the tensors share memory in both files
        self._known[identities] = found
        self._pairs.append(ComparedPair(stored, found))
        return found

    def finish(self) -> tuple[tuple[Difference, ...], int, int]:
        """Read and compare the tensors, and return the result of ``compare``."""
        files = self._sides[0].file, self._sides[1].file
        self._pairs.sort(key=lambda pair: pair.sides[0].record.offset if pair.sides[0].record else -1)
        compare_tensors.compare(files, self._pairs, self._closeness or Closeness())
        found = (each if isinstance(each, Difference) else each() for each in self._found)
        return tuple(each for each in found if each), self._tensors, self._values


def _difference(name: str, total: int, found: NumericError, times: int) -> Difference | None:
    """Return the difference of two tensors of ``total`` elements, each of which is repeated; None if they are equal."""
    if not found.elements:
        return None
    return Difference(name, "value", None, None, times * found.elements, total, found.absolute, found.relative)


def _without_repeats(first: torch.Tensor, second: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Drop elements that both tensors repeat by stride 0, perhaps very often; return also the number of repeats."""
    times = 1
    for dimension, size in enumerate(first.shape):
        if size > 1 and not first.stride(dimension) and not second.stride(dimension):
            first, second = first.narrow(dimension, 0, 1), second.narrow(dimension, 0, 1)
            times *= size
    return first, second, times


def _identity(stored: StreamedTensor) -> tuple[Any, ...]:
    """Return a key that is the same for equal tensors of one file."""
    tensor, offset = stored.tensor, stored.record.offset if stored.record else None
    lazy = tensor.is_conj(), tensor.is_neg()
    return (offset, tensor.dtype, tensor.shape, tensor.stride(), tensor.storage_offset(), *lazy)


def _strided(first: torch.Tensor, second: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Convert two tensors of one layout to pairs of strided ones, without elements that are missing in both."""
    first, second = first.detach(), second.detach()
    if first.is_nested:
        return list(zip(first.unbind(), second.unbind(), strict=True))
    if first.is_quantized:
        return [(first.dequantize(), second.dequantize())]
    one, other = first.to_sparse().coalesce(), second.to_sparse().coalesce()
    if not torch.equal(one.indices(), other.indices()):
        one, other = (one + _zeros(other)).coalesce(), (other + _zeros(one)).coalesce()
    return [(one.values().contiguous(), other.values().contiguous())]


def _zeros(sparse: torch.Tensor) -> torch.Tensor:
    values = torch.zeros_like(sparse.values())
    return torch.sparse_coo_tensor(sparse.indices(), values, sparse.shape, check_invariants=False)


def _type(value: Any) -> Any:
    return _kind(value) if names.children(value) is not None else type(value)


def _equal(first: Any, second: Any) -> bool:
    """Return whether two values of one type are equal; NaN equals NaN."""
    if names.children(first) is not None:  # it is empty, or contains itself
        return len(first) == len(second)
    if isinstance(first, Placeholder):
        return placeholders.equal(first, second)
    if isinstance(first, complex):
        return _equal(first.real, second.real) and _equal(first.imag, second.imag)
    if isinstance(first, float) and math.isnan(first):
        return math.isnan(second)
    try:
        same = first == second
        return bool(same.all()) if callable(getattr(same, "all", None)) else bool(same)
    except Exception:  # a class that the caller allowed may raise anything
        return False
