"""safetensors files over any file object: a header that says all, then the tensors' bytes; nothing that could run.

Format: https://huggingface.co/docs/safetensors#format
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch.nn.parameter import is_lazy

from fsspec_csx.errors import InvalidCheckpointError
from fsspec_csx.formats import json_entries, sniff
from fsspec_csx.formats.in_order import memories, memory
from fsspec_csx.formats.skeleton import Record, Skeleton
from fsspec_csx.formats.source import Source
from fsspec_csx.formats.watched import WatchedWriter

_LENGTH = 8
_HEADER_MAX = 100_000_000  # bytes; the format's own limit
_AT_ONCE_MAX = 4 * 2**20  # bytes of a header; Python takes up to 30 times as many for what is forged
_TENSORS_MAX = 250_000
_PIECE = 16 * 2**20
_METADATA = "__metadata__"
_NUMBER_MAX = 2**63 - 1
_NAMES_SHOWN = 5
_NAME_SHOWN = 80
# In the order in which the format has them written: those of the largest alignment first.
_NAMES = {
    "U64": "uint64",
    "I64": "int64",
    "F64": "float64",
    "C64": "complex64",
    "F32": "float32",
    "U32": "uint32",
    "I32": "int32",
    "BF16": "bfloat16",
    "F16": "float16",
    "U16": "uint16",
    "I16": "int16",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "I8": "int8",
    "U8": "uint8",
    "F4": "float4_e2m1fn_x2",
    "BOOL": "bool",
}
_DTYPES: dict[str, torch.dtype] = {
    label: getattr(torch, name) for label, name in _NAMES.items() if hasattr(torch, name)
}
_LABELS = {dtype: label for label, dtype in _DTYPES.items()}
_RANKS = {dtype: rank for rank, dtype in enumerate(_LABELS)}
_PAIRS = "F4"  # two values to the byte: the format counts the values, torch the bytes
_TORCH_FILE = "Save under another suffix, such as .mdl: a torch file holds it."


class _Entry(NamedTuple):
    """What a header says of a tensor; the span in bytes counts from the end of the header."""

    dtype: torch.dtype
    shape: list[int]
    start: int
    end: int


def is_safetensors(head: bytes, size: int) -> bool:
    """Whether a file that begins like this is a safetensors file, be it whole or not.

    Args:
        head: its first ``sniff.HEAD`` bytes.
        size: its size in bytes.
    """
    length = int.from_bytes(head[:_LENGTH], "little")
    return head[_LENGTH : _LENGTH + 1] == b"{" and 2 <= length <= max(_HEADER_MAX, size - _LENGTH)


# -- writing -----------------------------------------------------------------------------------------------------------


def write(obj: object, file: Any, *, advance: Callable[[int], object]) -> None:
    """Write what ``safetensors.torch.save_file(obj, …, {"format": "pt"})`` writes; tensors need not be contiguous.

    Args:
        obj: a mapping of names to tensors.
        file: a binary file object. If it has ``write_borrowed``, that gets memoryviews of the tensors' own memory, and
            ``obj`` must not change until the file is closed.
        advance: is told how many bytes were written, many times.

    Raises:
        ValueError: before anything is written, if ``obj`` holds what the format cannot.
        NotImplementedError: on a big-endian machine.
        Exception: what the file or ``advance`` raised.
    """
    _check_byte_order()
    tensors = _checked(obj)
    header = _header(tensors)
    writer = WatchedWriter(file, advance)
    writer.write(header)
    staging = torch.empty(_PIECE, dtype=torch.uint8, device="cpu")
    for _, tensor in tensors:
        if not tensor.nbytes:
            continue
        if not _lies_as_saved(tensor):
            for piece in memories(tensor.detach(), tensor.dtype, staging):
                writer.write(piece)
        else:
            writer.borrow(memory(tensor))


def outlined(
    tensors: Mapping[str, torch.Tensor],
    dtype_of: Callable[[torch.Tensor], torch.dtype],
    told: Mapping[str, str],
) -> tuple[bytes, list[str]]:
    """The header of a file of tensors, which may share memory, as each is written apart.

    Args:
        tensors: by name; their data is not looked at.
        dtype_of: tells what a tensor's dtype is to be.
        told: metadata for the header.

    Returns:
        The bytes in front of the first tensor's, and the names in the order in which the tensors follow.

    Raises:
        ValueError: if the format cannot hold some.
        NotImplementedError: on a big-endian machine.
    """
    _check_byte_order()
    forms = []
    for name, tensor in tensors.items():
        _check(name, tensor)
        forms.append((name, torch.empty(tensor.shape, dtype=dtype_of(tensor), device="meta")))
    forms = _in_order(forms)
    return _header(forms, told), [name for name, _ in forms]


def overlapping(tensors: Mapping[str, torch.Tensor]) -> list[tuple[str, str]]:
    """The names of tensors that overlap in memory, each with another such."""
    spans = sorted((str(tensor.device), *_span(tensor), name) for name, tensor in tensors.items() if tensor.numel())
    found, last = [], ("", 0, 0, "")
    for span in spans:
        device, start, end, name = span
        if device == last[0] and start < last[2]:
            found.append((last[3], name))
        if device != last[0] or end > last[2]:
            last = span
    return found


def _checked(obj: object) -> list[tuple[str, torch.Tensor]]:
    """The tensors in the order of the file; a ValueError if the format cannot hold them."""
    if not isinstance(obj, Mapping):
        msg = f"A safetensors file holds a mapping of names to tensors, not a {type(obj).__name__}. {_TORCH_FILE}"
        raise ValueError(msg)
    tensors = []
    for name, value in obj.items():
        _check(name, value)
        tensors.append((name, value))
    _check_sharing(dict(tensors))
    return _in_order(tensors)


def _in_order(tensors: list[tuple[str, torch.Tensor]]) -> list[tuple[str, torch.Tensor]]:
    return sorted(tensors, key=lambda item: (_RANKS[item[1].dtype], item[0]))


def _check(name: object, value: object) -> None:
    _check_name(name)
    if flaw := _flaw(value):
        msg = f"A safetensors file cannot hold {_shown(name)}: {flaw[0]}. {flaw[1]}"
        raise ValueError(msg)


def _check_name(name: object) -> None:
    if not isinstance(name, str):
        msg = f"The names in a safetensors file are strings, and {name!r} is none. Rename it."
        raise ValueError(msg)
    if name == _METADATA:
        msg = f"The name {name!r} has a meaning of its own in a safetensors file. Rename the tensor."
        raise ValueError(msg)
    if not _is_text(name):
        msg = f"The name {name!r} is no valid Unicode, as a safetensors file needs it. Rename the tensor."
        raise ValueError(msg)


def _flaw(value: object) -> tuple[str, str] | None:
    """Why the format cannot hold a value, and what to do."""
    if not isinstance(value, torch.Tensor):
        return f"it is a {type(value).__name__}, not a tensor", _TORCH_FILE
    if is_lazy(value):
        return "it is a parameter without a shape yet", "Run the model once before it is saved."
    if value.is_nested or value.layout != torch.strided:
        kind = "nested" if value.is_nested else f"of layout {value.layout}"
        return f"it is {kind}", _TORCH_FILE
    if value.dtype not in _LABELS or (_LABELS[value.dtype] == _PAIRS and value.dim() == 0):
        return f"the format has no such tensors of {value.dtype}", _TORCH_FILE
    if value.numel() and not _address(value):
        whole = "Save a plain one, such as its cpu() or full_tensor()."
        return f"this {type(value).__name__} on {value.device} has no memory of its own", whole
    return None


def _address(tensor: torch.Tensor) -> int:
    try:
        return tensor.data_ptr()
    except RuntimeError:  # of a tensor that only stands for others
        return 0


def _check_sharing(tensors: Mapping[str, torch.Tensor]) -> None:
    """A ValueError if any overlap in memory: after loading they would be apart."""
    found = [f"{_shown(first)} and {_shown(second)}" for first, second in overlapping(tensors)]
    if found:
        more = f" and {len(found) - _NAMES_SHOWN} more pairs" if len(found) > _NAMES_SHOWN else ""
        msg = f"A safetensors file cannot hold tensors that overlap in memory: {'; '.join(found[:_NAMES_SHOWN])}{more}."
        msg += " Save only one of each, or a clone() of the other, or save under another suffix, such as .mdl."
        raise ValueError(msg)


def _span(tensor: torch.Tensor) -> tuple[int, int]:
    """From its first address to behind its last."""
    last = sum((count - 1) * stride for count, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.itemsize


def _header(tensors: list[tuple[str, torch.Tensor]], told: Mapping[str, str] | None = None) -> bytes:
    entries: dict[str, Any] = {_METADATA: {"format": "pt", **(told or {})}}
    end = 0
    for name, tensor in tensors:
        start, end = end, end + tensor.nbytes
        label, shape = _LABELS[tensor.dtype], list(tensor.shape)
        if label == _PAIRS:
            shape[-1] *= 2
        entries[name] = {"dtype": label, "shape": shape, "data_offsets": [start, end]}
    header = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    if len(tensors) > _TENSORS_MAX:
        msg = f"A safetensors file of {len(tensors)} tensors would be refused by load, which takes {_TENSORS_MAX}."
        msg += " Save in several files, or under another suffix, such as .mdl."
        raise ValueError(msg)
    if len(header) > _HEADER_MAX:
        msg = f"The header of the safetensors file would take {len(header)} bytes, more than the {_HEADER_MAX} allowed."
        msg += " Shorten the names, or save in several files."
        raise ValueError(msg)
    return len(header).to_bytes(_LENGTH, "little") + header


def _lies_as_saved(tensor: torch.Tensor) -> bool:
    """Whether the bytes of the tensor's memory are those of the file."""
    lazy = tensor.is_conj() or tensor.is_neg()
    return tensor.device.type == "cpu" and tensor.is_contiguous() and not lazy


def _check_byte_order() -> None:
    if sys.byteorder != "little":
        msg = "safetensors files are little-endian, and this machine is not. Use another suffix, such as .mdl."
        raise NotImplementedError(msg)


# -- reading -----------------------------------------------------------------------------------------------------------


def skeleton(source: Source, *, name: str) -> Skeleton:
    """Read the header, and reserve the memory of the tensors.

    Args:
        source: the file.
        name: what errors call it.

    Returns:
        The tensors by name, in the order of the header, on the CPU; metadata is left out.

    Raises:
        InvalidCheckpointError: if the file is cut short or damaged, or has a dtype that this torch lacks.
        NotImplementedError: on a big-endian machine.
        Exception: what the file raised.
    """
    _check_byte_order()
    try:
        header = _read_header(source)
        entries, _ = _parsed(header)
        begin = _LENGTH + len(header)
        _check_spans(entries, source.size - begin)
    except InvalidCheckpointError as error:
        raise InvalidCheckpointError(f"{name} {error.reason}", error.remedy) from error.__cause__
    obj, records = {}, []
    for key, entry in entries.items():
        tensor = obj[key] = torch.empty(entry.shape, dtype=entry.dtype, device="cpu")
        if tensor.nbytes:
            records.append(Record(key, begin + entry.start, tensor.untyped_storage()))
    return Skeleton(obj, records)


def metadata(source: Source) -> dict[str, str]:
    """What the header of a file says besides the tensors.

    Args:
        source: the file, whose header is known to be right.

    Raises:
        OSError: what the file raised.
    """
    return _parsed(_read_header(source))[1]


def _read_header(source: Source) -> bytes:
    """The JSON of the header; of most files no further read is needed for it."""
    (head,) = source.bytes_of([(0, min(source.size, _LENGTH + 1))])
    length = int.from_bytes(head[:_LENGTH], "little")
    if head[_LENGTH:] != b"{":
        reason = f"is no safetensors file, or cut short: {source.size} bytes without the start of a header."
        raise InvalidCheckpointError(reason, sniff.AGAIN)
    if length > _HEADER_MAX:
        reason = f"is a damaged safetensors file: a header of {length} bytes, more than the {_HEADER_MAX} allowed."
        raise InvalidCheckpointError(reason, sniff.AGAIN)
    if source.size < _LENGTH + length:
        raise _cut_short(source.size, _LENGTH + length)
    (header,) = source.bytes_of([(_LENGTH, length)])
    return header


def _cut_short(size: int, wanted: int) -> InvalidCheckpointError:
    reason = f"is a safetensors file cut short: {size} bytes of at least {wanted}."
    return InvalidCheckpointError(reason, sniff.AGAIN)


def _parsed(header: bytes) -> tuple[dict[str, _Entry], dict[str, str]]:
    """The tensors' entries, and the metadata."""
    found: dict[str, _Entry] = {}
    told: dict[str, str] = {}
    try:
        for key, value in _items(header):
            if key in found:
                msg = "a name is there twice"
                raise ValueError(msg)
            if not _is_text(key):
                msg = "a name is no valid Unicode"
                raise ValueError(msg)
            if key != _METADATA:
                found[key] = _entry(key, value)
            elif value is not None and not _is_metadata(value):
                raise _damaged(f"{_METADATA} is not a mapping of text to text")
            else:
                told = value or {}
            if len(found) > _TENSORS_MAX:
                raise _damaged(f"its header tells of more than {_TENSORS_MAX} tensors")
    except InvalidCheckpointError:
        raise
    except (ValueError, RecursionError) as error:
        raise _damaged(f"its header is not valid JSON ({error})") from error
    return found, told


def _items(header: bytes) -> Iterable[tuple[str, Any]]:
    """What a header holds; all at once, or one after the other if that could take much memory."""
    if len(header) > _AT_ONCE_MAX:
        return json_entries.entries(header, _without_repeats, _no_constant)
    found: dict[str, Any] = json.loads(header.decode(), object_pairs_hook=_without_repeats, parse_constant=_no_constant)
    return found.items()


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        msg = "a name is there twice"
        raise ValueError(msg)
    if not all(map(_is_text, found)):
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
        raise _damaged(f"the entry of {_shown(key)} lacks dtype, shape or data_offsets")
    label, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(label, str) or label not in _DTYPES:
        reason = f"holds {_shown(key)} with dtype {_shown(str(label))}, which torch {torch.__version__} does not have."
        raise InvalidCheckpointError(reason, "Load it with a newer torch, or save it with another dtype.")
    if not _are_counts(shape):
        raise _damaged(f"the shape of {_shown(key)} is not a list of whole numbers")
    if not _are_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _damaged(f"the data_offsets of {_shown(key)} are not a start and an end")
    if label == _PAIRS:
        if not shape or shape[-1] % 2:
            raise _damaged(f"the shape of {_shown(key)} does not fill whole bytes")
        shape = [*shape[:-1], shape[-1] // 2]
    taken = _elements(key, shape) * _DTYPES[label].itemsize
    if taken != offsets[1] - offsets[0]:
        raise _damaged(f"{_shown(key)} takes {taken} bytes, and its data_offsets span {offsets[1] - offsets[0]}")
    return _Entry(_DTYPES[label], shape, *offsets)


def _are_counts(values: object) -> bool:
    # Not isinstance: True is an int.
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _elements(key: str, shape: list[int]) -> int:
    """Their number; refused are the shapes that torch cannot count, those with a 0 among them too."""
    product = 1
    for count in shape:
        product *= max(count, 1)
        if product > _NUMBER_MAX:
            raise _damaged(f"the shape of {_shown(key)} is too large to be counted")
    return 0 if 0 in shape else product


def _check_spans(entries: dict[str, _Entry], available: int) -> None:
    """That the tensors follow each other without a gap, from the end of the header to that of the file."""
    end = 0
    for key, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].end)):
        if entry.start != end:
            raise _damaged(f"{_shown(key)} begins at {entry.start} and not at {end}, where the one before it ends")
        end = entry.end
    if end > available:
        raise InvalidCheckpointError(
            f"is a safetensors file cut short: {available} bytes of tensors, and its header promises {end}.",
            sniff.AGAIN,
        )
    if end < available:
        raise _damaged(f"{available - end} bytes follow its last tensor")


def _damaged(what: str) -> InvalidCheckpointError:
    return InvalidCheckpointError(f"is a damaged safetensors file: {what}.", sniff.AGAIN)


def _is_text(name: str) -> bool:
    """Whether UTF-8 can hold it; half a surrogate pair it cannot."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _shown(name: object) -> str:
    """A file may name its tensors as it likes, and at any length."""
    if isinstance(name, str) and len(name) > _NAME_SHOWN:
        return f"{name[:_NAME_SHOWN]!r}…"
    return repr(name)
