"""Examples of all kinds of tensors and values that a checkpoint may hold, and functions that compare them."""

from __future__ import annotations

import argparse
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import numpy
import torch
from torch.nn.parameter import is_lazy

DTYPES = {
    name: dtype
    for name in (
        *("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"),
        *("float16", "bfloat16", "float32", "float64", "complex32", "complex64", "complex128"),
        *("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu", "float4_e2m1fn_x2"),
    )
    if (dtype := getattr(torch, name, None)) is not None
}


class Subclass(torch.Tensor):
    """A tensor of a user's own class."""


def of_dtype(dtype: torch.dtype) -> torch.Tensor:
    """Return a tensor of four elements of a dtype, with arbitrary bytes."""
    data = torch.arange(4 * dtype.itemsize, dtype=torch.uint8)
    return (data % 2 if dtype == torch.bool else data).view(dtype)


def _parameter() -> torch.nn.Parameter:
    made = torch.nn.Parameter(torch.arange(4.0))
    made.partition = "rows"  # type: ignore[attr-defined]
    return made


def _views() -> dict[str, torch.Tensor]:
    whole = torch.arange(12.0)
    return {"head": whole[:4], "tail": whole[2:]}


def _tied() -> dict[str, torch.Tensor]:
    weight = torch.arange(6.0).reshape(2, 3)
    return {"embedding": weight, "head": weight}


def _conjugate() -> torch.Tensor:
    return torch.tensor([1 + 2j, 3 - 4j]).conj()


def _deep(depth: int) -> Any:
    made: Any = torch.ones(1)
    for _ in range(depth):
        made = {"k": made}
    return made


def _nested(layout: torch.layout) -> torch.Tensor:
    return torch.nested.nested_tensor([torch.ones(2, 3), torch.zeros(4, 3)], layout=layout)


def _per_channel() -> torch.Tensor:
    scales, points = torch.tensor([0.1, 0.2]), torch.tensor([0, 1])
    return torch.quantize_per_channel(torch.ones(2, 3), scales, points, 0, torch.qint8)


TENSORS: dict[str, Callable[[], Any]] = {
    **{name: lambda dtype=dtype: of_dtype(dtype) for name, dtype in DTYPES.items()},  # type: ignore[misc]
    "of no dimension": lambda: torch.tensor(3.5),
    "empty": lambda: torch.empty(0),
    "empty in a dimension": lambda: torch.empty(2, 0, 3, dtype=torch.int16),
    "every third": lambda: torch.arange(12)[::3],
    "expanded": lambda: torch.ones(1).expand(4),
    "transposed": lambda: torch.arange(12.0).reshape(3, 4).t(),
    "channels last": lambda: torch.arange(24.0).reshape(1, 2, 3, 4).to(memory_format=torch.channels_last),
    "a part of its storage": lambda: torch.arange(100.0)[10:14],
    "views of one storage": _views,
    "tied": _tied,
    "conjugated": _conjugate,
    "negative": lambda: _conjugate().imag,
    "a parameter": _parameter,
    "a frozen parameter": lambda: torch.nn.Parameter(torch.ones(2), requires_grad=False),
    "requires grad": lambda: torch.ones(2, requires_grad=True),
    "a buffer": lambda: torch.nn.Buffer(torch.ones(2)),
    "sparse": lambda: torch.eye(3).to_sparse(),
    "sparse rows": lambda: torch.eye(3).to_sparse_csr(),
    "quantized": lambda: torch.quantize_per_tensor(torch.ones(2, 2), 0.1, 2, torch.qint8),
    "quantized per channel": _per_channel,
    "nested": lambda: _nested(torch.strided),
    "jagged": lambda: _nested(torch.jagged),
    "without data": lambda: torch.empty(3, device="meta"),
    "a subclass": lambda: torch.arange(3.0).as_subclass(Subclass),
    "a parameter without a shape": lambda: torch.nn.LazyLinear(2).weight,
}
"""Tensors, and containers of related tensors."""

VALUES: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "a truth": lambda: True,
    "an int": lambda: -3,
    "a long int": lambda: -(2**100),
    "a very long int": lambda: 2**20000,
    "a float": lambda: 0.1,
    "not a number": lambda: math.nan,
    "infinite": lambda: -math.inf,
    "complex": lambda: 1 + 2j,
    "text": lambda: "a\n\0ä€\U0001f600'\"\\",
    "half a surrogate pair": lambda: "\ud800",
    "bytes": lambda: b"\x00\xff",
    "a bytearray": lambda: bytearray(b"ab"),
    "a tuple": lambda: (1, "two", (3,)),
    "a tuple of tensors": lambda: (torch.ones(2), 1),
    "an empty tuple": lambda: (),
    "a list": lambda: [1, "two", None],
    "a list of tensors": lambda: [torch.ones(2), torch.zeros(3), "text"],
    "an empty list": list,
    "a list of empty ones": lambda: [[], {}, 1, {}],
    "an empty dict": dict,
    "empty dicts": lambda: {"a": {}, "b": {"c": {}}, "d": [{"e": {}}]},
    "an OrderedDict": lambda: OrderedDict([("b", torch.ones(1)), ("a", 2)]),
    "an optimizer": lambda: {
        "state": {0: {"step": torch.tensor(1.0)}, 1: {"step": torch.tensor(2.0)}},
        "param_groups": [{"lr": 0.1, "betas": (0.9, 0.99), "params": [0, 1]}],
    },
    "an optimizer without state": lambda: {"state": {}, "param_groups": [{"lr": 0.1, "params": [0]}]},
    "keys of other types": lambda: {1: "int", True + 1: "int too", None: "none", 2.5: "float"},
    "keys of one text": lambda: {1: torch.ones(1), "1": torch.zeros(1)},
    "a tuple as a key": lambda: {(1, 2): torch.ones(1)},
    "odd keys": lambda: {"": torch.ones(1), "ä/b": torch.ones(2), "\n": torch.ones(3), "__metadata__": torch.ones(4)},
    "a key of half a surrogate pair": lambda: {"\ud800": torch.ones(1)},
    "a dotted key": lambda: {"a.b": torch.ones(1)},
    "a dotted clash": lambda: {"a.b": torch.ones(1), "a": {"b": torch.zeros(1)}},
    "a set": lambda: {1, 2},
    "a torch.Size": lambda: torch.Size([2, 3]),
    "a torch.dtype": lambda: torch.bfloat16,
    "a torch.device": lambda: torch.device("cpu"),
    "a NumPy array": lambda: numpy.arange(3, dtype=numpy.int16),
    "a NumPy number": lambda: numpy.float32(1.5),
    "a NumPy integer": lambda: numpy.int64(5),
    "deeply nested": lambda: _deep(60),
    "too deeply nested": lambda: _deep(400),
    "a class": lambda: argparse.Namespace(lr=0.1, layers=[1, 2]),
}
"""Other values, and containers."""

KINDS = {**TENSORS, **VALUES}
"""All kinds by name, as functions that make an example."""


def same(first: Any, second: Any) -> bool:
    """Return whether two objects have equal types, values and bits; NaN equals NaN."""
    if type(first) is not type(second):
        return False
    if isinstance(first, torch.Tensor):
        return _same_tensors(first, second)
    if isinstance(first, Mapping):
        keys = {key: type(key) for key in first}
        return keys == {key: type(key) for key in second} and all(same(first[key], second[key]) for key in keys)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(same, first, second))
    if isinstance(first, numpy.ndarray):
        return bool(first.dtype == second.dtype and numpy.array_equal(first, second))
    if isinstance(first, float) and math.isnan(first):
        return math.isnan(second)
    return bool(first == second)


def _same_tensors(first: torch.Tensor, second: torch.Tensor) -> bool:
    if is_lazy(first):
        return is_lazy(second)
    if first.layout != second.layout or first.dtype != second.dtype or first.is_nested != second.is_nested:
        return False
    if first.is_nested:
        return same([*first.unbind()], [*second.unbind()])
    if first.shape != second.shape or first.device.type != second.device.type:
        return False
    kept = first.requires_grad == second.requires_grad and _attributes(first) == _attributes(second)
    return kept and _same_elements(first.detach(), second.detach())


def _attributes(tensor: torch.Tensor) -> dict[str, Any]:
    return {name: value for name, value in vars(tensor).items() if not name.startswith("_")}


def _same_elements(first: torch.Tensor, second: torch.Tensor) -> bool:
    if first.device.type == "meta":
        return True
    if first.is_quantized:
        return repr(first) == repr(second)
    if first.layout != torch.strided:
        return torch.equal(first.to_dense(), second.to_dense())
    return torch.equal(_bits(first), _bits(second))


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    plain = tensor.as_subclass(torch.Tensor).resolve_conj().resolve_neg().contiguous()
    return plain.reshape(-1).view(torch.uint8)


def plain(value: Any, *, dicts: bool = False) -> Any:
    """Return a value as formats without parameters and gradients load it: with plain tensors.

    Args:
        value: the value that is saved.
        dicts: whether all mappings become dicts.
    """
    if isinstance(value, torch.Tensor):
        if is_lazy(value) or value.is_nested or value.layout != torch.strided or value.is_quantized:
            return value
        return value.detach().as_subclass(torch.Tensor).resolve_conj().resolve_neg().clone()
    if isinstance(value, Mapping):
        items = {key: plain(each, dicts=dicts) for key, each in value.items()}
        return items if dicts else type(value)(items)  # type: ignore[call-arg]
    if type(value) is list:
        return [plain(each, dicts=dicts) for each in value]
    return value
