"""The metadata of single values of a Cerebras checkpoint, as JSON.

The keys are those that cerebras_pytorch 2.10 writes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

from fsspec_csx.formats.cerebras.metadata import LEAF
from fsspec_csx.formats.damage import damaged
from fsspec_csx.tensors.names import quoted

_NAMES = ["bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float16", "bfloat16"]
_NAMES += ["float32", "float64", "complex64", "complex128"]
_DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in _NAMES}
# dtypes that NumPy does not have are stored as others of the same size.
_STORED_AS = {"bfloat16": "int16"}
_NUMBER_MAX = 2**63 - 1
_DIMENSIONS = 1000
_SHOWN = 80


MOST_PACKED = 50_000
"""The maximum compression ratio of zstd: a block has at most 128 KiB, and takes at least four bytes."""


@dataclass(frozen=True)
class TensorLeaf:
    """A tensor or array whose bytes are an object, in C order.

    Attributes:
        stored: the size of the object in bytes.
        compressed: whether it is one zstd frame.
        is_array: whether it becomes a NumPy array.
        elsewhere: the path of another checkpoint that has it, and its name there; None if it is in this one.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    stored: int
    compressed: bool = False
    is_array: bool = False
    elsewhere: tuple[str, str] | None = None

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class ConstantLeaf:
    """A tensor filled with one number; no bytes are stored."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    number: float

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Value:
    """A number, a text, a bool or None."""

    value: Any


@dataclass(frozen=True)
class Alias:
    """A link to another value: both are the same object."""

    name: str


@dataclass(frozen=True)
class UnreadValue:
    """Stands for a value that is not read; its repr says why.

    Attributes:
        kind: its type in the metadata.
        stored: the size of its object in bytes; 0 if unknown.
        compressed: whether the object is one zstd frame.
        runs_code: whether it is a pickle, so that reading it may run any code.
    """

    kind: str
    stored: int = 0
    compressed: bool = False
    runs_code: bool = False

    def __repr__(self) -> str:
        what = f"a pickle of {self.stored} bytes" if self.runs_code else f"a {self.kind}"
        return f"<{what}, not read>"


Form: TypeAlias = Callable[[], dict[str, Any]]
Leaf: TypeAlias = "TensorLeaf | ConstantLeaf | Value | Alias | UnreadValue"


def parsed(key: str, text: object, *, name: str, form: Form | None = None) -> Leaf:
    """Parse the metadata of a value.

    ``form`` returns the shape and the NumPy dtype of a value in HDF5, where the JSON lacks them.
    """
    try:
        serialized = json.loads(text) if isinstance(text, str) else {}
        own = serialized.get(key + LEAF)
        if own is None and f"{key}.0{LEAF}" in serialized:
            return _nested(key, serialized)
        return _plain(_of_type(own, dict), form)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        what = f"what it says of {quoted(key)} is no description of a value ({str(error)[:_SHOWN]})"
        raise damaged(name, what) from error


def _plain(serialized: dict[str, Any], form: Form | None = None) -> Leaf:
    kind = serialized["__TYPE__"]
    if kind in ("TorchTensorSerializer", "NumpyArraySerializer"):
        return _body(serialized, form)
    if kind == "ScalarSerializer":
        return Value(_of_type(serialized["scalar_value"], bool, int, float))
    if kind == "StringSerializer":
        return Value(_of_type(serialized["string_value"], str))
    if kind == "NoneSerializer":
        return Value(None)
    if kind == "LinkedObject":
        return Alias(_of_type(serialized["key"], str))
    if kind == "DeferredFullTensor":
        return _full(serialized)
    if kind == "ObjectSerializer":
        return UnreadValue(
            kind, _count(serialized.get("boundaries", [0])), bool(serialized.get("compressed")), runs_code=True
        )
    return UnreadValue(str(kind)[:_SHOWN])


def _full(serialized: dict[str, Any]) -> ConstantLeaf:
    dtype, number = _dtype(serialized["dtype"]), _of_type(serialized["fill_value"], bool, int, float)
    try:
        torch.full((), number, dtype=dtype)
    except (RuntimeError, OverflowError) as error:
        msg = f"no {dtype} can be the number that it is full of"
        raise ValueError(msg) from error
    return ConstantLeaf(dtype, _shape(serialized["shape"]), number)


def _nested(key: str, serialized: dict[str, Any]) -> Leaf:
    """Parse a tensor that was loaded lazily from another checkpoint, and saved unread."""
    first, second = serialized[f"{key}.0{LEAF}"], serialized.get(f"{key}.1{LEAF}", {})
    if (first.get("__TYPE__"), second.get("__TYPE__")) != ("DeferredNumpyArray", "DeferredTorchTensor"):
        return UnreadValue(str(first.get("__TYPE__"))[:_SHOWN])
    if first["index"] != 0:
        return UnreadValue("part of an object of another checkpoint")
    elsewhere = _of_type(first["path"], str), _of_type(first["key"], str)
    return _body(first["metadata"], None, elsewhere)


def _body(
    serialized: dict[str, Any], form: Form | None, elsewhere: tuple[str, str] | None = None
) -> TensorLeaf | UnreadValue:
    is_array = serialized["__TYPE__"] == "NumpyArraySerializer"
    stored_form = form() if form else serialized["__NUMPY__"]
    shape, stored_as = _shape(stored_form["shape"]), str(stored_form["dtype"])
    if is_array:
        if stored_as not in _DTYPES or serialized.get("is_bfloat16"):
            return UnreadValue(f"NumPy array of {stored_as[:_SHOWN]}")
        dtype = _dtype(stored_as)
    else:
        (own_shape,), (own_dtype,) = serialized["shapes"], serialized["dtypes"]
        dtype = _dtype(own_dtype)
        plain = str(own_dtype).removeprefix("torch.")
        if _shape(own_shape) != shape or _STORED_AS.get(plain, plain) != stored_as:
            msg = f"a tensor {own_dtype} {own_shape} is stored as {stored_as} {list(shape)}"
            raise ValueError(msg)
    compressed = bool(serialized.get("compressed")) and form is None
    nbytes = math.prod(shape) * dtype.itemsize
    stored = _count(serialized.get("boundaries", [nbytes]))
    if _count(serialized.get("data_sizes", [nbytes])) != nbytes or (stored != nbytes and not compressed):
        msg = f"it takes {nbytes} bytes, and has {serialized.get('data_sizes')} in an object of {stored}"
        raise ValueError(msg)
    if nbytes > MOST_PACKED * stored:
        msg = f"it takes {nbytes} bytes, which cannot be in {stored}"
        raise ValueError(msg)
    return TensorLeaf(dtype, shape, stored, compressed, is_array, elsewhere)


def _of_type(value: Any, *types: type) -> Any:
    if type(value) not in types:
        msg = f"a {type(value).__name__}"
        raise TypeError(msg)
    return value


def _dtype(serialized: object) -> torch.dtype:
    return _DTYPES[str(serialized).removeprefix("torch.")]


def _shape(serialized: Any) -> tuple[int, ...]:
    shape = tuple(_of_type(size, int) for size in serialized)
    # Also limit shapes with a 0: torch multiplies the other sizes.
    if (
        len(shape) > _DIMENSIONS
        or any(size < 0 for size in shape)
        or math.prod(max(size, 1) for size in shape) > _NUMBER_MAX // 16
    ):
        msg = f"a shape of {str(serialized)[:_SHOWN]}"
        raise ValueError(msg)
    return shape


def _count(serialized: Any) -> int:
    (count,) = serialized
    if _of_type(count, int) < 0:
        msg = f"a size of {count}"
        raise ValueError(msg)
    return int(count)
