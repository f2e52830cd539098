"""What a pickle was made into, checked before anybody walks through it: a few bytes can say a lot."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch

from fsspec_csx.errors import InvalidCheckpointError
from fsspec_csx.formats import sniff, sparse

DEPTH = 200
"""How deep a nesting may be: deeper than any state dict, and not so deep that recursion through it fails."""

_MANY = 10**5
_REPEATED = 8
_NAME_SHOWN = 80


def check(obj: Any, name: str) -> None:
    """Refuse an object that takes no end of time to walk through, or does not answer as one of its type.

    Args:
        obj: what was loaded, of the types that torch.load takes for safe.
        name: what errors call the file.

    Raises:
        InvalidCheckpointError: if it is nested deeper than ``DEPTH``, if containers that lie in several others make
            many more entries of it than there are, if attributes of a value hide its methods, or if a sparse tensor
            has indices that lead outside of it.
    """
    stack, above = [iter((obj,))], [0]
    seen: set[int] = set()
    visited = own = 0
    while stack:
        for value in stack[-1]:
            if isinstance(value, torch.Tensor) and id(value) not in seen:
                seen.add(id(value))
                _check_attributes(value, name)
                if not sparse.is_sound(value):
                    raise _refused(name, "a sparse tensor of it has indices that make no sense")
            inside = _inside(value)
            if inside is not None and id(value) not in seen:
                seen.add(id(value))
                own += len(inside)
                _check_attributes(value, name)
            if not inside or id(value) in above:
                continue
            visited += len(inside)
            if len(stack) > DEPTH:
                raise _refused(name, f"it is nested deeper than {DEPTH}")
            if visited > max(_MANY, _REPEATED * own):
                raise _refused(name, f"it has {own} entries, which lie in each other more than {_MANY} times")
            stack.append(iter(inside))
            above.append(id(value))
            break
        else:
            stack.pop()
            above.pop()


def _inside(value: Any) -> Collection[Any] | None:
    if isinstance(value, Mapping):
        return type(value).values(value)  # not value.values(): that may be an attribute
    return value if isinstance(value, (list, tuple)) else None


def _check_attributes(value: Any, name: str) -> None:
    for attribute in getattr(value, "__dict__", ()):
        if callable(getattr(type(value), attribute, None)):
            raise _refused(name, f"a {type(value).__name__} of it has an attribute in the place of {attribute}()")


def _refused(name: str, what: str) -> InvalidCheckpointError:
    return InvalidCheckpointError(f"{name} is damaged: {what}.", sniff.AGAIN)


def check_depth(obj: Any) -> None:
    """Refuse to save an object that ``check`` would refuse to load, as it is nested too deeply.

    Raises:
        ValueError: if it is nested deeper than ``DEPTH``; it names the entry.
    """
    stack = [iter(_entries(obj))]
    path: list[object] = []
    above = {id(obj)}
    identities = [id(obj)]
    while stack:
        for key, value in stack[-1]:
            if not isinstance(value, (Mapping, list, tuple)) or id(value) in above or not value:
                continue
            path.append(key)
            if len(stack) >= DEPTH:
                name = ".".join(map(str, path))[:_NAME_SHOWN]
                what = f"The entry {name!r}… is nested deeper than {DEPTH}, which load refuses."
                raise ValueError(f"{what} Save it less deeply nested.")
            above.add(id(value))
            identities.append(id(value))
            stack.append(iter(_entries(value)))
            break
        else:
            stack.pop()
            above.discard(identities.pop())
            if path:
                path.pop()


def _entries(value: Any) -> Iterable[tuple[object, Any]]:
    if isinstance(value, Mapping):
        return value.items()
    return enumerate(value) if isinstance(value, (list, tuple)) else ()
