"""Limits on the object that a pickle makes, checked before it is traversed: a small pickle can make a huge object."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch

from fsspec_csx.errors import CheckpointLimitError
from fsspec_csx.formats.damage import damaged
from fsspec_csx.tensors import torch_compat
from fsspec_csx.tensors.names import entries

DEPTH_LOADED = 500
"""How deeply the containers of a file may be nested: more than pickle itself writes by default."""

DEPTH = 200
"""How deeply they may be nested where entries have names, as for ``keys`` and ``into``, which recurse."""

_BY_ROW, _BY_COLUMN = (torch.sparse_csr, torch.sparse_bsr), (torch.sparse_csc, torch.sparse_bsc)
_MANY = 10**6
_REPEATED = 8
_NAME_SHOWN = 80
_ELSEWHERE = "Load it with torch.load(…, weights_only=True)."
_WHOLE = "Load it without keys and into."
_OF_MAPPINGS = {"get", "items", "keys", "update", "values"}
# The methods of tensors that are needed to fill, compare and convert them.
_METHODS = {
    *("as_strided", "coalesce", "contiguous", "copy_", "cpu", "data_ptr", "detach", "dim", "element_size", "flatten"),
    *("is_coalesced", "is_complex", "is_conj", "is_contiguous", "is_floating_point", "is_neg", "narrow", "numel"),
    *("qscheme", "reshape", "resolve_conj", "resolve_neg", "set_", "size", "sparse_dim", "storage_offset", "stride"),
    *("to", "tolist", "unbind", "untyped_storage", "values", "view"),
}


def check(obj: Any, name: str) -> None:
    """Check the depth and the sparse tensors of an object that torch.load considers safe, each object once."""
    for container, path in _containers(obj, once=True):
        if len(path) >= DEPTH_LOADED:
            raise _too_deep(name, DEPTH_LOADED, _ELSEWHERE)
        _check_sparse((value for _, value in entries(container) or ()), name)
    _check_sparse([obj], name)


def _check_sparse(values: Iterable[Any], name: str) -> None:
    for value in values:
        if isinstance(value, torch.Tensor) and not _is_sound(value):
            raise damaged(name, "a sparse tensor of it has invalid indices")


def _is_sound(tensor: torch.Tensor) -> bool:
    """Return whether the indices of a sparse tensor are valid; torch does not check them."""
    if tensor.layout not in (torch.sparse_coo, *_BY_ROW, *_BY_COLUMN) or tensor.device.type == "meta":
        return True
    tensor = torch.Tensor.detach(tensor)  # a plain tensor: attributes may hide methods
    try:
        if tensor.layout == torch.sparse_coo:
            coo: Any = tensor._indices(), tensor._values(), tensor.size()
            torch.sparse_coo_tensor(*coo, check_invariants=True, is_coalesced=tensor.is_coalesced())
        else:
            by_row = tensor.layout in _BY_ROW
            ends, indices = ("crow_indices", "col_indices") if by_row else ("ccol_indices", "row_indices")
            parts: Any = getattr(tensor, ends)(), getattr(tensor, indices)(), tensor.values(), tensor.size()
            torch.sparse_compressed_tensor(*parts, layout=tensor.layout, check_invariants=True)
    except (IndexError, RuntimeError, ValueError):
        return False
    return True


def check_entries(obj: Any, name: str) -> None:
    """Check an object whose entries get names, each in every place where it occurs.

    Raises:
        CheckpointLimitError: if the object is nested too deeply, or containers shared by others multiply its entries.
    """
    seen: set[int] = set()
    visited = own = 0
    for container, path in _containers(obj, once=False):
        if id(container) not in seen:
            seen.add(id(container))
            own += len(container)
        visited += len(container)
        if len(path) >= DEPTH:
            raise _too_deep(name, DEPTH, _WHOLE)
        if visited > max(_MANY, _REPEATED * own):
            reason = f"The {own} entries of {name} lie in each other more than {_MANY} times, the limit."
            raise CheckpointLimitError(reason, _WHOLE)


def check_use(obj: Any, name: str) -> None:
    """As ``check_entries``, for entries to fill, compare or convert: no attribute may hide a needed method."""
    check_entries(obj, name)
    for value in values(obj):
        hidden = [each for each in getattr(value, "__dict__", ()) if _is_needed(value, each)]
        if hidden:
            what = f"A {type(value).__name__} of {name} has the attribute {hidden[0]!r}"
            raise CheckpointLimitError(f"{what}, which hides a method that is needed here.", _WHOLE)


def _is_needed(value: Any, attribute: str) -> bool:
    if attribute == "_values" and type(value) is torch_compat.NestedTensor:  # torch's own, of jagged tensors
        return False
    needed = attribute in (_METHODS if isinstance(value, torch.Tensor) else _OF_MAPPINGS) or attribute.startswith("_")
    return needed and callable(getattr(type(value), attribute, None))


def values(obj: Any, *, attributes: bool = False) -> Iterator[Any]:
    """Yield an object and everything in it, including keys, and attributes if asked for; each container once."""
    stack = [obj]
    seen: set[int] = set()
    while stack:
        value = stack.pop()
        yield value
        is_container = isinstance(value, (Mapping, list, tuple, set, frozenset))
        held = attributes and isinstance(value, (torch.Tensor, OrderedDict)) and getattr(value, "__dict__", None)
        if not (is_container or held) or id(value) in seen:
            continue
        seen.add(id(value))
        if held:
            stack.append(held)
        if is_container:
            stack.extend(itertools.chain.from_iterable(entries(value) or ()) if isinstance(value, Mapping) else value)


def _too_deep(name: str, most: int, remedy: str) -> CheckpointLimitError:
    return CheckpointLimitError(f"{name} is nested deeper than {most}, the limit.", remedy)


def check_depth(obj: Any) -> None:
    """Raise a ValueError for an object that ``check_entries`` would refuse for its depth."""
    for _, path in _containers(obj, once=False):
        if len(path) >= DEPTH:
            name = ".".join(map(str, path))[:_NAME_SHOWN]
            what = f"The entry {name!r}… is nested deeper than {DEPTH}, where load takes no keys and no into."
            raise ValueError(f"{what} Save it less deeply nested.")


def _containers(obj: Any, *, once: bool) -> Iterator[tuple[Any, list[object]]]:
    """Yield each container in an object that is not empty, itself included, with the keys that lead to it.

    With ``once``, a shared container is yielded once; else in each place, but not within itself.
    """
    inside = entries(obj)
    if inside is None or not obj:
        return
    path: list[object] = []
    yield obj, path
    # Not recursive: the remaining entries of each level, and its identity. No copies: a list may have many numbers.
    levels, met = [(iter(inside), id(obj))], {id(obj)}
    while levels:
        left, identity = levels[-1]
        for key, value in left:
            if id(value) not in met and (inside := entries(value)) is not None and value:
                path.append(key)
                yield value, path
                met.add(id(value))
                levels.append((iter(inside), id(value)))
                break
        else:
            levels.pop()
            path[-1:] = []
            if not once:
                met.discard(identity)
