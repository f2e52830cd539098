"""The planner of saves: torch's default planner that also refuses what would be lost, and keeps empty dicts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.planner import WriteItem
from torch.nn.parameter import is_lazy

from fsspec_csx.errors import text_of
from fsspec_csx.formats import structure_limits
from fsspec_csx.formats.torch_zip.pickled import Pickled
from fsspec_csx.tensors import torch_compat
from fsspec_csx.tensors.names import listed, shown

_Path = tuple[str | int, ...]
_SIMPLE = (str, int, float, bool, bytes, type(None), torch_compat.sharded_tensor())
_PLAIN = (torch.Tensor, torch.nn.Parameter)
_REMEDY = "Leave it out, or save to one file, such as one that ends in .mdl: a torch file holds it."


class Planner(DefaultSavePlanner):
    """Plans a save as torch's default planner does, after a check of the state dict.

    Empty dicts, which torch leaves out, become items like values, so that a load restores them. torch converts integer
    keys to text; ``integer_keys`` returns their positions.
    """

    def set_up_planner(self, state_dict: Any, storage_meta: Any = None, is_coordinator: bool = False) -> None:
        """Check and flatten the state dict; raise a ValueError or TypeError for an entry that cannot be saved."""
        self._integers: set[_Path] = set()
        paths = _paths(state_dict, self._integers)
        super().set_up_planner(state_dict, storage_meta, is_coordinator)
        flat = dict(self.state_dict)
        # In the order of the state dict, including what torch left out.
        self.state_dict = {name: flat.pop(name, {}) for name in paths} | flat
        self.mappings |= {name: path for name, path in paths.items() if name not in self.mappings}
        for name, value in self.state_dict.items():
            if isinstance(value, torch.Tensor):
                if flaw := _flaw(value):
                    raise _refused(name, flaw)
            elif not isinstance(value, _SIMPLE):
                self.check_value(name, value)

    def integer_keys(self, name: str) -> tuple[int, ...]:
        """Return the positions of integers among the keys of an entry."""
        path = self.mappings.get(name, ())
        return tuple(number for number in range(len(path)) if path[: number + 1] in self._integers)

    def check_value(self, name: str, value: Any) -> None:
        """Refuse a value that cannot be pickled."""
        try:
            Pickled(value)
        except Exception as error:  # the value's class may raise anything
            kind = ValueError if isinstance(error, (ValueError, RuntimeError)) else TypeError
            what = f"it cannot be pickled ({text_of(error, named=True)})"
            raise kind(f"A sharded checkpoint cannot hold {shown([name])}: {what}. Leave it out.") from error


def check_item(item: WriteItem) -> None:
    """Raise a ValueError for a sparse or quantized tensor, which the manifest cannot describe."""
    properties = item.tensor_data.properties if item.tensor_data else None
    if properties is not None and (flaw := _flaw_of(properties.layout, properties.dtype)):
        raise _refused(item.index.fqn, flaw)


def _paths(state_dict: Any, integers: set[_Path]) -> dict[str, _Path]:
    """Return the keys of each leaf and each empty dict, by joined name; add paths of integer keys to ``integers``."""
    structure_limits.check_depth(state_dict)
    found: dict[str, _Path] = {}

    def add(path: _Path, value: object = None) -> None:
        name = ".".join(map(str, path))
        if name in found:
            keys = f"the keys {listed(found[name])} and {listed(path)}"
            msg = f"A sharded checkpoint cannot hold two entries of the name {shown([name])}, of {keys}. Rename one."
            raise ValueError(msg)
        found[name] = path

    for key, value in state_dict.items():
        torch_compat.traverse_state_dict({key: value}, add)
        for path in _empty({key: value}, integers):
            add(path)
    _check_keys(state_dict, ())
    return found


def _empty(value: Any, integers: set[_Path], path: _Path = ()) -> Iterator[_Path]:
    """Yield the paths of empty dicts in mappings and lists; add paths of integer keys to ``integers``."""
    if isinstance(value, Mapping):
        if not value:
            yield path
        _check_keys(value, path)
        for key, each in value.items():
            below = (*path, str(key))
            if isinstance(key, int):
                integers.add(below)
            yield from _empty(each, integers, below)
    elif isinstance(value, list):
        for number, each in enumerate(value):
            yield from _empty(each, integers, (*path, number))


def _check_keys(mapping: Mapping[Any, Any], path: _Path) -> None:
    """Refuse keys that a load would not restore, or that have the same text as another."""
    texts: set[str] = set()
    for key in mapping:
        kept = str(key) == key if isinstance(key, str) else type(key) is int
        if not kept or str(key) in texts:
            why = "another key has the same text" if kept else "its keys are strings and integers"
            msg = f"A sharded checkpoint cannot hold the key {key!r} of {shown(['.'.join(map(str, path))])}: {why}."
            raise ValueError(f"{msg} Rename it, or save to one file, such as one that ends in .mdl.")
        texts.add(str(key))


def _refused(name: str, flaw: str) -> ValueError:
    return ValueError(f"A sharded checkpoint cannot hold {shown([name])}: {flaw}. {_REMEDY}")


def _flaw(tensor: torch.Tensor) -> str:
    """Describe why a sharded checkpoint cannot hold a tensor; empty if it can."""
    if hasattr(tensor, "__create_write_items__"):  # DTensor, and other classes that split themselves
        return ""
    if is_lazy(tensor):
        return "it is a parameter without a shape yet"
    if tensor.is_nested:
        return "it is a nested tensor"
    if flaw := _flaw_of(tensor.layout, tensor.dtype):
        return flaw
    if tensor.device.type == "meta":
        return "it is on the meta device, and has no data"
    if type(tensor) not in _PLAIN:
        return f"it is a {type(tensor).__name__}, whose class would be lost"
    return ""


def _flaw_of(layout: torch.layout, dtype: torch.dtype) -> str:
    if layout != torch.strided:
        return f"it is of the layout {layout}"
    if str(dtype).startswith(("torch.qint", "torch.quint")):
        return f"it is quantized, of {dtype}"
    try:
        _ = dtype.is_floating_point or dtype.is_complex or dtype == torch.bool or torch.iinfo(dtype)
    except TypeError:
        return f"it is of {dtype}, whose size torch.distributed.checkpoint does not know"
    return ""
