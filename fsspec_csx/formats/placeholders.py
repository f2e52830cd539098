"""Placeholders for objects whose classes are not loaded, because that could run code."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from fsspec_csx.errors import UnsafeCheckpointError
from fsspec_csx.formats import structure_limits
from fsspec_csx.tensors import names, torch_compat

_TRUST = "pass weights_only=False only if you trust its author"
_LONGEST = 200
_WITH_DATA = (torch.Tensor, torch.UntypedStorage, torch.TypedStorage)


class Placeholder:
    """Stands for an object of a class that is not loaded, or for a name in a pickle; its repr shows the name.

    Attributes:
        path: the class or function, with its module.
        parts: what the pickle has of it, in order: arguments, state and items.
    """

    __slots__ = ("parts", "path")

    path: str
    parts: Any

    def __new__(cls, path: str = "", *parts: Any) -> Any:
        made = object.__new__(cls)
        made.path = path
        made.parts = list(parts)
        return made

    def __repr__(self) -> str:
        return f"<{self.path}, not loaded>"


def found_in(obj: Any) -> dict[str, Placeholder]:
    """Return the placeholders among the entries of an object, by name."""
    return {name: value for name, value in names.walk(obj) if isinstance(value, Placeholder)}


def refuse(obj: Any, name: str) -> None:
    """Raise an UnsafeCheckpointError if an object has placeholders; it names them and their classes."""
    if found := found_in(obj):
        reason = f"{name} has {names.shown(list(found))} of {classes(found)}, which could run code when loaded."
        raise UnsafeCheckpointError(reason, f"Choose other entries by keys, or load it and {_TRUST}.")


def is_free(obj: Any) -> bool:
    """Return whether an object contains no placeholder."""
    return not any(isinstance(each, Placeholder) for each in structure_limits.values(obj))


def classes(found: Mapping[str, Placeholder]) -> str:
    """List a few of the placeholders' classes, and how many more there are."""
    paths = list(dict.fromkeys(each.path for each in found.values()))
    return names.few(paths, lambda path: path[:_LONGEST])


def equal(first: Placeholder, second: Placeholder) -> bool:
    """Return whether two placeholders stand for equal objects; the values of tensors are not compared."""
    stack: list[tuple[Any, Any]] = [(first, second)]
    seen: set[tuple[int, int]] = set()
    while stack:
        one, other = stack.pop()
        if type(one) is not type(other):
            return False
        if isinstance(one, _WITH_DATA) or (id(one), id(other)) in seen:
            continue
        seen.add((id(one), id(other)))
        inner = _inside(one), _inside(other)
        if inner[0] is None or inner[1] is None:
            if not (one == other or one != one):
                return False
        elif len(inner[0]) != len(inner[1]) or (isinstance(one, Placeholder) and one.path != other.path):
            return False
        else:
            stack += zip(inner[0], inner[1], strict=True)
    return True


def tensors(value: Placeholder) -> Iterator[torch.Tensor]:
    """Yield the tensors in a placeholder."""
    stack: list[Any] = [value]
    seen: set[int] = set()
    while stack:
        each = stack.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        if isinstance(each, torch.Tensor):
            yield each
        elif isinstance(each, (torch.UntypedStorage, torch.TypedStorage)):
            untyped = each if isinstance(each, torch.UntypedStorage) else torch_compat.untyped(each)
            yield torch.empty(0, dtype=torch.uint8, device=untyped.device).set_(untyped)
        stack += reversed(_inside(each) or [])


def _inside(value: Any) -> list[Any] | None:
    if isinstance(value, Placeholder):
        return list(value.parts)
    if isinstance(value, dict):
        return [each for item in dict.items(value) for each in item]
    return list(value) if isinstance(value, (list, tuple)) else None
