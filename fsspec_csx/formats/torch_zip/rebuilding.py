"""What a pickle of tensors may call, done here: tensors on their storages, and a few types of Python and torch."""

from __future__ import annotations

import io
import pickle
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

import torch

from fsspec_csx.tensors import torch_compat

_DIMENSIONS = 64
_CODECS = ("latin1", "latin-1", "iso-8859-1", "utf-8", "ascii")


def refused(what: str) -> pickle.UnpicklingError:
    """The error for a pickle that torch.save does not write."""
    return pickle.UnpicklingError(f"the pickle has {what}")


def checked_key(value: Any) -> Any:
    """A key or an element of a set; tuples of tuples could take for ever to be hashed."""
    if type(value) is tuple and any(isinstance(each, (tuple, frozenset)) for each in value):
        raise refused("a key of nested tuples")
    return value


def known(charge: Callable[[int], None]) -> dict[str, Callable[..., Any]]:
    def sized(value: Any, kinds: tuple[type[Any], ...]) -> Any:
        if not isinstance(value, kinds):
            raise refused(f"a {type(value).__name__} out of place")
        charge(len(value))
        return value

    def encode(text: Any, codec: str = "utf-8") -> bytes:
        if codec not in _CODECS:
            raise refused("a text in an unknown encoding")
        encoded: bytes = sized(text, (str,)).encode(codec)
        return encoded

    def mapping(kind: Callable[..., Any]) -> Callable[..., Any]:
        return lambda items=(): kind(_pairs(sized(items, (dict, list, tuple))))

    return {
        "_codecs.encode": encode,
        "_io.BytesIO": lambda: io.BytesIO(),
        "builtins.bytearray": lambda data=b"": bytearray(sized(data, (bytes,))),
        "builtins.set": lambda items=(): set(map(checked_key, sized(items, (list, tuple)))),
        "builtins.complex": lambda real, imag: complex(*map(_number, (real, imag))),
        "collections.OrderedDict": mapping(OrderedDict),
        "collections.Counter": mapping(Counter),
        "torch.Size": lambda sizes: torch.Size(_counts(sized(sizes, (tuple, list)))),
        "torch.device": lambda kind, *index: torch.device(_text(kind), *map(_number, index)),
        "torch._utils._rebuild_tensor_v2": _tensor,
        "torch._utils._rebuild_tensor_v3": _tensor_v3,
        "torch._utils._rebuild_parameter": _parameter,
        "torch._utils._rebuild_parameter_with_state": _parameter_with_state,
    }


def _pairs(items: Any) -> Any:
    if isinstance(items, dict):
        return items
    return [(checked_key(key), value) for key, value in items]


def _tensor(
    storage: Any, offset: Any, size: Any, stride: Any, requires_grad: Any, hooks: Any, metadata: Any = None
) -> torch.Tensor:
    if type(storage) is not torch.TypedStorage:
        raise refused("a tensor without a storage")
    return _on(torch_compat.untyped(storage), storage.dtype, offset, size, stride, requires_grad, metadata)


def _tensor_v3(
    storage: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, metadata: Any = None
) -> torch.Tensor:
    if type(storage) is not torch.UntypedStorage or not isinstance(dtype, torch.dtype):
        raise refused("a tensor without a storage")
    return _on(storage, dtype, offset, size, stride, grad, metadata)


def _on(
    memory: torch.UntypedStorage, dtype: torch.dtype, offset: Any, size: Any, stride: Any, grad: Any, metadata: Any
) -> torch.Tensor:
    """A tensor on the memory of a storage, in which it must fit."""
    (offset,), size, stride = _counts((offset,)), _counts(size), _counts(stride)
    if len(size) != len(stride) or len(size) > _DIMENSIONS or type(grad) is not bool:
        raise refused("a tensor of no shape")
    end = 0 if 0 in size else offset + 1 + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if end * dtype.itemsize > memory.nbytes():
        raise refused("a tensor larger than its storage")
    made = torch.empty((0,), dtype=dtype, device=memory.device).set_(memory, offset, size, stride)
    if metadata:
        if type(metadata) is not dict or not {*metadata} <= {"conj", "neg"}:
            raise refused("a tensor of an unknown kind")
        made = made.conj() if metadata.get("conj") else made
        made = torch_compat.neg_view(made) if metadata.get("neg") else made
    return made.requires_grad_(grad)


def _parameter(data: Any, requires_grad: Any, hooks: Any) -> torch.nn.Parameter:
    if type(data) is not torch.Tensor or type(requires_grad) is not bool:
        raise refused("a parameter of no tensor")
    return torch.nn.Parameter(data, requires_grad)


def _parameter_with_state(data: Any, requires_grad: Any, hooks: Any, state: Any) -> torch.nn.Parameter:
    made = _parameter(data, requires_grad, hooks)
    if type(state) is dict and {*map(type, state)} <= {str}:
        vars(made).update(state)
    return made


def _counts(values: Iterable[Any]) -> tuple[int, ...]:
    if type(values) not in (tuple, list, torch.Size) or any(type(each) is not int or each < 0 for each in values):
        raise refused("a size that is none")
    return tuple(values)


def _number(value: Any) -> Any:
    if type(value) not in (int, float):
        raise refused("a number that is none")
    return value


def _text(value: Any) -> str:
    if type(value) is not str:
        raise refused("a text that is none")
    return value
