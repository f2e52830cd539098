"""Writes safetensors files to any file object."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch.nn.parameter import is_lazy

from fsspec_csx.formats import check_little_endian
from fsspec_csx.formats.io_wrappers import TrackingWriter
from fsspec_csx.formats.safetensors.header import (
    HEADER_MAX,
    LABELS,
    LENGTH,
    LITTLE_ENDIAN,
    METADATA,
    PAIRS,
    TENSORS_MAX,
    is_text,
)
from fsspec_csx.formats.writer import expect_size
from fsspec_csx.tensors.memory import address, check, is_freed
from fsspec_csx.tensors.names import quoted
from fsspec_csx.tensors.tiling import extent, memories, memory

PLAIN = (torch.Tensor, torch.nn.Parameter)
"""The tensor classes that hold only their elements."""

_PIECE = 16 * 2**20
_NAMES_SHOWN = 5
_RANKS = {dtype: rank for rank, dtype in enumerate(LABELS)}
_TORCH_FILE = "Save under another suffix, such as .mdl: a torch file holds it."


class Prepared(NamedTuple):
    """A file to write: the bytes before the first tensor, and the tensors in the order of the file."""

    header: bytes
    tensors: list[torch.Tensor]

    @property
    def nbytes(self) -> int:
        """The size of the file in bytes."""
        return len(self.header) + sum(each.nbytes for each in self.tensors)

    def write(self, file: Any, *, advance: Callable[[int], object]) -> None:
        """Write what ``safetensors.torch.save_file(…, {"format": "pt"})`` writes; tensors need not be contiguous.

        If the file has ``write_borrowed``, it receives the tensors' memory, which must not change until it is closed.
        """
        expect_size(file, self.nbytes, copied=not all(map(_lies_as_saved, self.tensors)))
        writer = TrackingWriter(file, advance)
        writer.write(self.header)
        staging = torch.empty(_PIECE, dtype=torch.uint8, device="cpu")
        for tensor in self.tensors:
            if not tensor.nbytes:
                continue
            if not _lies_as_saved(tensor):
                for piece in memories(tensor.detach(), tensor.dtype, staging):
                    writer.write(piece)
            else:
                writer.borrow(memory(tensor))


def checked(obj: object) -> dict[str, torch.Tensor]:
    """Return the tensors of an object by name; raise a ValueError that names an entry which the format cannot hold."""
    check_little_endian(*LITTLE_ENDIAN)
    tensors = named_tensors(obj)
    check([*tensors.items()])
    _check_sharing(tensors)
    return tensors


def named_tensors(obj: object) -> dict[str, torch.Tensor]:
    """Return the tensors of an object by name; they may share memory. Raise a ValueError for unsupported ones."""
    if not isinstance(obj, Mapping):
        msg = f"A safetensors file holds a mapping of names to tensors, not a {type(obj).__name__}. {_TORCH_FILE}"
        raise ValueError(msg)
    for name, value in obj.items():
        _check(name, value)
    return dict(obj)


def file_of(tensors: Mapping[str, torch.Tensor]) -> Prepared:
    """Return the file of tensors that were checked."""
    ordered = _in_order([*tensors.items()])
    return Prepared(_header(ordered), [tensor for _, tensor in ordered])


def without_duplicates(tensors: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Leave out duplicates, such as tied weights: tensors with the same memory, shape and dtype.

    Returns:
        The first of each; and the names of the others, each with the name of the first.
    """
    kept: dict[str, torch.Tensor] = {}
    aliases: dict[str, str] = {}
    first: dict[Any, str] = {}
    for name in sorted(tensors, key=lambda name: name != "format"):  # metadata of that name is no alias
        tensor = tensors[name]
        place = str(tensor.device), address(tensor), tensor.dtype, tensor.shape, tensor.stride(), tensor.is_conj()
        other = first.setdefault((*place, tensor.is_neg()), name) if tensor.numel() and address(tensor) else name
        if other == name:
            kept[name] = tensor
        else:
            aliases[name] = other
    return kept, aliases


def header_and_order(
    tensors: Mapping[str, torch.Tensor],
    dtype_of: Callable[[torch.Tensor], torch.dtype],
    extra: Mapping[str, str],
) -> tuple[bytes, list[str]]:
    """Return the header of a file of tensors, which may share memory, since each is written separately.

    Args:
        tensors: by name; their data is not read.
        dtype_of: returns the dtype to cast a tensor to.
        extra: metadata for the header.

    Returns:
        The bytes before the first tensor, and the names in the order of the file.
    """
    check_little_endian(*LITTLE_ENDIAN)
    forms = []
    for name, tensor in tensors.items():
        _check(name, tensor)
        forms.append((name, torch.empty(tensor.shape, dtype=dtype_of(tensor), device="meta")))
    forms = _in_order(forms)
    return _header(forms, extra), [name for name, _ in forms]


def overlapping(tensors: Mapping[str, torch.Tensor]) -> list[tuple[str, str]]:
    """Return pairs of names of tensors that overlap in memory."""
    spans = sorted(
        (str(tensor.device), tensor.data_ptr(), tensor.data_ptr() + extent(tensor), name)
        for name, tensor in tensors.items()
        if tensor.numel()
    )
    found, last = [], ("", 0, 0, "")
    for span in spans:
        device, start, end, name = span
        if device == last[0] and start < last[2]:
            found.append((last[3], name))
        if device != last[0] or end > last[2]:
            last = span
    return found


def _in_order(tensors: list[tuple[str, torch.Tensor]]) -> list[tuple[str, torch.Tensor]]:
    return sorted(tensors, key=lambda item: (_RANKS[item[1].dtype], item[0]))


def _check(name: object, value: object) -> None:
    _check_name(name)
    if flaw := _flaw(value):
        msg = f"A safetensors file cannot hold {quoted(name)}: {flaw[0]}. {flaw[1]}"
        raise ValueError(msg)


def _check_name(name: object) -> None:
    if not isinstance(name, str):
        msg = f"The names in a safetensors file are strings, and {name!r} is not. Rename it."
        raise ValueError(msg)
    if name == METADATA:
        msg = f"The name {name!r} is reserved in safetensors files. Rename the tensor."
        raise ValueError(msg)
    if not is_text(name):
        msg = f"The name {name!r} is not valid Unicode, which a safetensors file needs. Rename the tensor."
        raise ValueError(msg)


def _flaw(value: object) -> tuple[str, str] | None:
    """Return why the format cannot hold a value, and the remedy; None if it can."""
    if not isinstance(value, torch.Tensor):
        return f"its type is {type(value).__name__}, not Tensor", _TORCH_FILE
    if is_lazy(value):
        return "it is a parameter without a shape yet", "Run the model once before it is saved."
    if value.is_nested or value.layout != torch.strided:
        kind = "nested" if value.is_nested else f"of layout {value.layout}"
        return f"it is {kind}", _TORCH_FILE
    if value.dtype not in LABELS or (LABELS[value.dtype] == PAIRS and value.dim() == 0):
        return f"the format has no such tensors of {value.dtype}", _TORCH_FILE
    if value.numel() and not address(value) and not is_freed(value):
        whole = "Save a plain one, such as its cpu() or full_tensor()."
        return f"this {type(value).__name__} on {value.device} has no memory of its own", whole
    if type(value) not in PLAIN:
        return f"the format does not keep its class, {type(value).__name__}", "Save its as_subclass(torch.Tensor)."
    return None


def _check_sharing(tensors: Mapping[str, torch.Tensor]) -> None:
    """Raise a ValueError if tensors overlap in memory: after loading they would be separate."""
    found = [f"{quoted(first)} and {quoted(second)}" for first, second in overlapping(tensors)]
    if found:
        more = f" and {len(found) - _NAMES_SHOWN} more pairs" if len(found) > _NAMES_SHOWN else ""
        msg = f"A safetensors file cannot hold tensors that overlap in memory: {'; '.join(found[:_NAMES_SHOWN])}{more}."
        msg += " Save only one of each, or a clone() of the other, or save under another suffix, such as .mdl."
        raise ValueError(msg)


def _header(tensors: list[tuple[str, torch.Tensor]], extra: Mapping[str, str] | None = None) -> bytes:
    entries: dict[str, Any] = {METADATA: {"format": "pt", **(extra or {})}}
    end = 0
    for name, tensor in tensors:
        start, end = end, end + tensor.nbytes
        label, shape = LABELS[tensor.dtype], list(tensor.shape)
        if label == PAIRS:
            shape[-1] *= 2
        entries[name] = {"dtype": label, "shape": shape, "data_offsets": [start, end]}
    header = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    if len(tensors) > TENSORS_MAX:
        msg = f"load would refuse a safetensors file of {len(tensors)} tensors: the limit is {TENSORS_MAX}."
        msg += " Save in several files, or under another suffix, such as .mdl."
        raise ValueError(msg)
    if len(header) > HEADER_MAX:
        msg = f"The header of the safetensors file would take {len(header)} bytes, more than the {HEADER_MAX} allowed."
        msg += " Shorten the names, or save in several files."
        raise ValueError(msg)
    return len(header).to_bytes(LENGTH, "little") + header


def _lies_as_saved(tensor: torch.Tensor) -> bool:
    """Return whether the tensor's memory has the bytes of the file."""
    lazy = tensor.is_conj() or tensor.is_neg()
    return tensor.device.type == "cpu" and tensor.is_contiguous() and not lazy
