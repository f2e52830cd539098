"""Reads safetensors files from any file object; they cannot contain code."""

from __future__ import annotations

import json
from collections.abc import Container, Iterable, Mapping
from typing import Any, NamedTuple

import torch

from fsspec_csx.errors import InvalidCheckpointError
from fsspec_csx.formats import check_little_endian
from fsspec_csx.formats.damage import AGAIN
from fsspec_csx.formats.safetensors.header import (
    DTYPES,
    HEADER_MAX,
    LENGTH,
    LITTLE_ENDIAN,
    METADATA,
    PAIRS,
    TENSORS_MAX,
    is_text,
)
from fsspec_csx.tensors.lazy_object import LazyObject, Record
from fsspec_csx.tensors.names import quoted
from fsspec_csx.tensors.source import Source

# Parsed JSON takes up to 30 times its size in memory. In a header of more bytes than _UNCHECKED, these are the most
# parts allowed for each of TENSORS_MAX tensors; valid headers need less than half of them.
_UNCHECKED = 4 * 2**20
_PER_TENSOR = ((b"{", 2), (b"[", 4), (b",", 16), (b'"', 24))
_NUMBER_MAX = 2**63 - 1


class _Entry(NamedTuple):
    """A tensor in the header; its span in bytes counts from the end of the header."""

    dtype: torch.dtype
    shape: list[int]
    start: int
    end: int


def structure(source: Source, *, name: str) -> LazyObject:
    """Read the header, and reserve the memory of the tensors.

    Returns:
        The tensors by name, in the order of the header, on the CPU, and then those that ``aliases`` names.
    """
    check_little_endian(*LITTLE_ENDIAN)
    try:
        header = _read_header(source)
        entries, extra = _parsed(header)
        begin = LENGTH + len(header)
        _check_spans(entries, source.size - begin)
    except InvalidCheckpointError as error:
        raise InvalidCheckpointError(f"{name} {error.reason}", error.remedy) from error.__cause__
    obj, records = {}, []
    for key, entry in entries.items():
        tensor = obj[key] = torch.empty(entry.shape, dtype=entry.dtype, device="cpu")
        if tensor.nbytes:
            records.append(Record(key, begin + entry.start, tensor.untyped_storage()))
    obj.update((alias, obj[kept]) for alias, kept in aliases(entries, extra).items())
    return LazyObject(obj, records)


def aliases(names: Container[str], metadata: Mapping[str, str]) -> dict[str, str]:
    """Return the names of tied tensors that a file leaves out, each with the name that it keeps.

    ``safetensors.torch.save_model`` writes one of the tensors that share memory, and metadata of the form ``{"name that
    was left out": "name that was kept"}``: https://huggingface.co/docs/safetensors/torch_shared_tensors
    """
    found = metadata.items()
    return {alias: kept for alias, kept in found if kept in names and alias not in names and alias != "format"}


def metadata(source: Source) -> dict[str, str]:
    """Return the metadata in the header of a valid file."""
    return _parsed(_read_header(source))[1]


def _read_header(source: Source) -> bytes:
    """Return the JSON of the header; most headers are already in memory."""
    (head,) = source.bytes_of([(0, min(source.size, LENGTH + 1))])
    length = int.from_bytes(head[:LENGTH], "little")
    if head[LENGTH:] != b"{":
        reason = f"is no safetensors file, or cut short: {source.size} bytes without the start of a header."
        raise InvalidCheckpointError(reason, AGAIN)
    if length > HEADER_MAX:
        reason = f"is a damaged safetensors file: a header of {length} bytes, more than the {HEADER_MAX} allowed."
        raise InvalidCheckpointError(reason, AGAIN)
    if source.size < LENGTH + length:
        reason = f"is a safetensors file cut short: {source.size} bytes of at least {LENGTH + length}."
        raise InvalidCheckpointError(reason, AGAIN)
    (header,) = source.bytes_of([(LENGTH, length)])
    return header


def _parsed(header: bytes) -> tuple[dict[str, _Entry], dict[str, str]]:
    """Return the tensors' entries, and the metadata."""
    found: dict[str, _Entry] = {}
    extra: dict[str, str] = {}
    try:
        for key, value in _items(header):
            if key != METADATA:
                found[key] = _entry(key, value)
            elif value is not None and not _is_metadata(value):
                raise _damaged(f"{METADATA} is not a mapping of text to text")
            else:
                extra = value or {}
            if len(found) > TENSORS_MAX:
                raise _damaged(f"its header has more than {TENSORS_MAX} tensors")
    except InvalidCheckpointError:
        raise
    except (ValueError, RecursionError) as error:
        raise _damaged(f"its header is not valid JSON ({error})") from error
    return found, extra


def _items(header: bytes) -> Iterable[tuple[str, Any]]:
    """Parse a header; raise a ValueError if that would take too much memory."""
    if len(header) > _UNCHECKED and any(header.count(each) > most * TENSORS_MAX for each, most in _PER_TENSOR):
        msg = f"it has more parts than {TENSORS_MAX} tensors need"
        raise ValueError(msg)
    found: dict[str, Any] = json.loads(header.decode(), object_pairs_hook=_without_repeats, parse_constant=_no_constant)
    return found.items()


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        msg = "a name occurs twice"
        raise ValueError(msg)
    if not all(map(is_text, found)):
        msg = "a name is no valid Unicode"
        raise ValueError(msg)
    return found


def _no_constant(text: str) -> None:
    msg = f"{text} is no number of JSON"
    raise ValueError(msg)


def _is_metadata(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())


def _entry(key: str, value: object) -> _Entry:
    if not isinstance(value, dict) or not value.keys() >= {"dtype", "shape", "data_offsets"}:
        raise _damaged(f"the entry of {quoted(key)} lacks dtype, shape or data_offsets")
    label, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(label, str) or label not in DTYPES:
        reason = f"holds {quoted(key)} with dtype {quoted(str(label))}, which torch {torch.__version__} does not have."
        raise InvalidCheckpointError(reason, "Load it with a newer torch, or save it with another dtype.")
    if not _are_counts(shape):
        raise _damaged(f"the shape of {quoted(key)} is not a list of whole numbers")
    if not _are_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _damaged(f"the data_offsets of {quoted(key)} are not a start and an end")
    if label == PAIRS:
        if not shape or shape[-1] % 2:
            raise _damaged(f"the shape of {quoted(key)} does not fill whole bytes")
        shape = [*shape[:-1], shape[-1] // 2]
    taken = _elements(key, shape) * DTYPES[label].itemsize
    if taken != offsets[1] - offsets[0]:
        raise _damaged(f"{quoted(key)} takes {taken} bytes, and its data_offsets span {offsets[1] - offsets[0]}")
    return _Entry(DTYPES[label], shape, *offsets)


def _are_counts(values: object) -> bool:
    # Not isinstance: True is an int.
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _elements(key: str, shape: list[int]) -> int:
    """Return the number of elements. Refuse shapes that torch cannot count, even if they contain a 0."""
    product = 1
    for count in shape:
        product *= max(count, 1)
        if product > _NUMBER_MAX:
            raise _damaged(f"the shape of {quoted(key)} is too large to be counted")
    return 0 if 0 in shape else product


def _check_spans(entries: dict[str, _Entry], available: int) -> None:
    """Check that the tensors fill the file without gaps, from the end of the header to the end of the file."""
    end = 0
    for key, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].end)):
        if entry.start != end:
            raise _damaged(f"{quoted(key)} begins at {entry.start} and not at {end}, where the one before it ends")
        end = entry.end
    if end > available:
        raise InvalidCheckpointError(
            f"is a safetensors file cut short: {available} bytes of tensors, and its header promises {end}.",
            AGAIN,
        )
    if end < available:
        raise _damaged(f"{available - end} bytes follow its last tensor")


def _damaged(what: str) -> InvalidCheckpointError:
    return InvalidCheckpointError(f"is a damaged safetensors file: {what}.", AGAIN)
