"""Match: pairs the entries of a file with those of an existing object."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, MutableMapping, MutableSequence
from typing import Any, NamedTuple

import torch

from fsspec_csx.errors import MismatchError
from fsspec_csx.tensors import memory
from fsspec_csx.tensors.names import Choice, below, children, listed, shown, walk

_REMEDY = "Pass an object of the same structure, or only the keys that both have."


class MatchedPair(NamedTuple):
    """A tensor of the file, and the one to fill with its values."""

    source: torch.Tensor
    target: torch.Tensor


class Match:
    """Matches the entries of a file with those of an object.

    Args:
        into: a mapping or list.
        choice: the entries of the file to match.
        partial: whether the object may have more entries.
        flattened: whether the file has strings in place of other keys, and may lack empty containers, as folders do.

    Attributes:
        pairs: tensors that match.

    Raises:
        MismatchError: lists all entries that are missing, unexpected, or of another shape or kind.
        FreedTensorError: names tensors of the object that have no memory, or whose elements overlap.
    """

    def __init__(
        self, found: Any, into: Any, choice: Choice, *, partial: bool, path: str, flattened: bool = False
    ) -> None:
        self.pairs: list[MatchedPair] = []
        self._targets: list[tuple[str, torch.Tensor]] = []
        self._values: list[tuple[Any, Any, Any]] = []
        self._missing: list[str] = []
        self._unexpected: list[str] = []
        self._different: list[str] = []
        self._choice = choice
        self._partial = partial
        self._flattened = flattened
        self._open: set[int] = set()
        if not isinstance(into, (MutableMapping, MutableSequence)) or children(found) is None:
            msg = f"A {type(found).__name__} cannot be loaded into a {type(into).__name__}. Pass a state dict."
            raise TypeError(msg)
        self._add_container(found, into, "")
        self._check(path)
        memory.check_targets(self._targets)

    def replace_values(self) -> None:
        """Store the values that are not tensors in the object."""
        for container, key, value in self._values:
            container[key] = value

    def _add_container(self, found: Any, into: Any, name: str) -> None:
        if id(found) in self._open:
            return
        self._open.add(id(found))
        theirs, ours = dict(children(found) or ()), dict(children(into) or ())
        if self._flattened and isinstance(into, Mapping):
            theirs = _renamed(theirs, ours)
        for key, value in theirs.items():
            if key in ours:
                self._add(value, ours[key], below(name, key), into, key)
            else:
                self._unexpected += [each for each, _ in walk(value, below(name, key)) if each in self._choice]
        if not self._partial:
            for key, value in ours.items():
                if key not in theirs and not (self._flattened and _is_empty(value)):
                    self._missing += [each for each, _ in walk(value, below(name, key))]
        self._open.remove(id(found))

    def _add(self, found: Any, into: Any, name: str, container: Any, key: Any) -> None:
        chosen = [each in self._choice for each, _ in walk(found, name)]
        if not any(chosen):
            return
        if isinstance(found, torch.Tensor) and isinstance(into, torch.Tensor):
            if fits(found, into):
                self.pairs.append(MatchedPair(found, into))
                if found.device.type != "meta":
                    self._targets.append((name, into))
            else:
                self._different.append(f"{name!r} ({form(found)} in the file, {form(into)} to fill)")
        elif _both_containers(found, into) and (_has_tensors(found) or _has_tensors(into) or not all(chosen)):
            self._add_container(found, into, name)
        elif _has_tensors(found) or _has_tensors(into):
            self._different.append(f"{name!r} ({form(found)} in the file, {form(into)} to fill)")
        elif isinstance(container, (MutableMapping, MutableSequence)):
            self._values.append((container, key, _adapted(found, into) if self._flattened else found))
        elif found != into:
            self._different.append(f"{name!r} (in a {type(container).__name__}, where nothing can be replaced)")

    def _check(self, path: str) -> None:
        lacks = f"lacks {listed(self._missing)}" if self._missing else ""
        has = f"has {listed(self._unexpected)}, which the object lacks" if self._unexpected else ""
        differs = f"differs in {', '.join(self._different)}" if self._different else ""
        if problems := [problem for problem in (lacks, has, differs) if problem]:
            raise MismatchError(f"{path} does not fit: it {', and '.join(problems)}.", _REMEDY)


def _renamed(theirs: Mapping[Any, Any], ours: Mapping[Any, Any]) -> dict[Any, Any]:
    """Return the entries of a file under the keys of an object: '0' becomes 0 if the object has no '0'."""
    keys = {str(key): key for key in ours if key not in theirs}
    return {key if key in ours else keys.get(str(key), key): value for key, value in theirs.items()}


def _adapted(found: Any, into: Any) -> Any:
    """Return a value with the keys and the empty containers of another."""
    if isinstance(found, list) and isinstance(into, list) and len(found) == len(into):
        return [_adapted(*both) for both in zip(found, into, strict=True)]
    if not isinstance(found, Mapping) or not isinstance(into, Mapping):
        return found
    theirs = _renamed(found, into)
    made: dict[Any, Any] = OrderedDict() if isinstance(found, OrderedDict) else {}
    made.update((key, _adapted(value, into[key]) if key in into else value) for key, value in theirs.items())
    made.update((key, value) for key, value in into.items() if key not in theirs and _is_empty(value))
    return made


def _is_empty(value: Any) -> bool:
    """Return whether a value is nested containers with nothing in them."""
    inner = children(value)
    return inner is not None and all(_is_empty(each) for _, each in inner)


def _both_containers(found: Any, into: Any) -> bool:
    first, second = children(found), children(into)
    return first is not None and second is not None and isinstance(found, Mapping) == isinstance(into, Mapping)


def _has_tensors(value: Any) -> bool:
    return any(isinstance(each, torch.Tensor) for _, each in walk(value))


def fits(found: torch.Tensor, into: torch.Tensor) -> bool:
    """Return whether a tensor can take the values of another, cast to its dtype."""
    if found.is_nested or into.is_nested:
        return found.is_nested == into.is_nested and _shapes(found) == _shapes(into)
    if found.shape != into.shape or found.layout != into.layout:
        return False
    floats = found.dtype == torch.float32 and found.is_contiguous()  # torch quantizes these
    quantized = found.is_quantized == into.is_quantized or (into.is_quantized and floats)
    empty = found.device.type == "meta" and into.device.type != "meta"
    return quantized and not empty


def form(tensor: Any) -> str:
    """Describe what must match for a tensor to take the values of another: its shape, and anything unusual."""
    if not isinstance(tensor, torch.Tensor):
        return f"a {type(tensor).__name__}"
    if tensor.is_nested:
        return f"nested, shapes {shown([*map(tuple, _shapes(tensor))])}"
    unusual = [str(tensor.layout)] if tensor.layout != torch.strided else []
    unusual += [str(tensor.dtype)] if tensor.is_quantized or tensor.is_complex() else []
    unusual += ["without data"] if tensor.device.type == "meta" else []
    return ", ".join([f"shape {tuple(tensor.shape)}", *unusual])


def _shapes(nested: torch.Tensor) -> list[torch.Size]:
    return [each.shape for each in nested.unbind()]
