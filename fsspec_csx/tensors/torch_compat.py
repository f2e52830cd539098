"""All uses of private names of torch, checked at import.

Names in pickles, such as ``torch._utils._rebuild_tensor_v2``, are part of the format, and are not called.
"""

from __future__ import annotations

import contextlib
import copyreg
import functools
import importlib
import os
from collections import OrderedDict
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any

import torch
from torch import _weights_only_unpickler, serialization
from torch.nested._internal.nested_tensor import NestedTensor
from torch.utils._pytree import tree_leaves, tree_map

from fsspec_csx.private_names import check

check(
    {
        "torch:Tensor": ("_backward_hooks", "_indices", "_reduce_ex_internal", "_values"),
        "torch:TypedStorage": ("_untyped_storage", "_pickle_storage_type"),
        "torch:UntypedStorage": ("_cdata",),
        "torch:_neg_view": (),
        "torch._C:PyTorchFileReader": ("get_record",),
        "torch._C:PyTorchFileWriter": ("serialization_id", "write_end_of_file", "write_record"),
        "torch._utils:IMPORT_MAPPING": (),
        "torch._utils:NAME_MAPPING": (),
        "torch._utils:_rebuild_parameter": (),
        "torch._utils:_rebuild_tensor_v2": (),
        "torch._utils:set_tensor_metadata": (),
        "torch._weights_only_unpickler:_get_allowed_globals": (),
        "torch._weights_only_unpickler:_get_user_allowed_globals": (),
        "torch.serialization:_serialization_tls": (),
        "torch.serialization:location_tag": (),
        "torch.storage:_dtype_to_storage_type_map": (),
        "torch.utils.data:DataLoader": ("_iterator",),
    }
)

__all__ = ["NestedTensor", "location_tag", "neg_view", "tree_leaves", "tree_map"]

_torch: Any = torch  # torch types these not at all, or too narrowly

rebuild_tensor: Callable[..., torch.Tensor] = _torch._utils._rebuild_tensor_v2
rebuild_parameter: Callable[..., torch.nn.Parameter] = _torch._utils._rebuild_parameter
location_tag: Callable[[Any], str] = serialization.location_tag
neg_view: Callable[[torch.Tensor], torch.Tensor] = torch._neg_view
set_tensor_metadata: Callable[[torch.Tensor, Any], None] = _torch._utils.set_tensor_metadata


has_names: Callable[[torch.Tensor], bool] = getattr(torch.Tensor, "has_names", lambda tensor: False)
"""Return whether dimensions have names; torch before 2.13 cannot save such tensors."""


def are_reductions_torchs() -> bool:
    """Return whether torch's own methods pickle plain tensors, and the program has not replaced them."""
    tensor: Any = torch.Tensor
    own = (
        (tensor.__reduce_ex__, _torch._tensor),
        (tensor._reduce_ex_internal, _torch._tensor),
        (torch.nn.Parameter.__reduce_ex__, torch.nn.parameter),
    )
    replaced = any(getattr(function, "__globals__", None) is not vars(module) for function, module in own)
    return not replaced and "__getstate__" not in vars(tensor) and OrderedDict not in copyreg.dispatch_table


def address(storage: torch.UntypedStorage) -> int:
    """Return the address of the storage object, which is the same for all tensors on it."""
    return int(storage._cdata)


def untyped(storage: torch.TypedStorage) -> torch.UntypedStorage:
    """Return the untyped storage; the public method warns."""
    return storage._untyped_storage


def typed(storage: torch.UntypedStorage, dtype: torch.dtype) -> torch.TypedStorage:
    """Return a storage with a dtype; made without a warning."""
    made: torch.TypedStorage = _torch.TypedStorage(wrap_storage=storage, dtype=dtype, _internal=True)
    return made


def storage_type(storage: torch.TypedStorage) -> Any:
    """Return the type that a pickle names, such as torch.FloatStorage."""
    return getattr(torch, _torch.TypedStorage._pickle_storage_type(storage))


@functools.cache
def storage_types() -> dict[str, torch.dtype]:
    """Return the dtypes of storage types, by full name."""
    return {f"torch.{name}": dtype for dtype, name in _torch.storage._dtype_to_storage_type_map().items()}


def unquantized_storage_types() -> dict[torch.dtype, Any]:
    """Return storage types, such as torch.FloatStorage, by dtype."""
    types = _torch.storage._dtype_to_storage_type_map().items()
    return {dtype: getattr(torch, name) for dtype, name in types if not name.startswith("Q")}


def renamed(module: str, name: str) -> tuple[str, str]:
    """Return torch's renaming of a name in a pickle; it renames fewer names of Python 2 than pickle."""
    utils = _torch._utils
    found: tuple[str, str] = utils.NAME_MAPPING.get((module, name), (utils.IMPORT_MAPPING.get(module, module), name))
    return found


def allowed_globals() -> tuple[set[str], set[str]]:
    """Return the globals that torch.load accepts: its own, which the public list lacks, and those that were added."""
    unpickler: Any = _weights_only_unpickler
    return {*unpickler._get_allowed_globals()}, {*unpickler._get_user_allowed_globals()}


def allow_jagged() -> None:
    """Let torch.load accept nested jagged tensors: it asks for this import, which takes a second."""
    importlib.import_module("torch._dynamo")


def skips_data() -> bool:
    """Return whether torch.load runs under ``torch.serialization.skip_data``."""
    return bool(getattr(serialization._serialization_tls, "skip_data", False))


def read_record(file: Any, name: str) -> bytes:
    """Read a record of an archive at the start of a file; raise a RuntimeError if torch cannot read it."""
    record: bytes = _torch._C.PyTorchFileReader(file).get_record(name)
    return record


def serialization_id(names: Iterable[str]) -> str:
    """Return the serialization id of an archive with empty records of these names, and torch's own."""
    writer = _torch._C.PyTorchFileWriter(os.devnull)
    for name in names:
        writer.write_record(name, b"", 0)
    writer.write_end_of_file()
    identity: str = writer.serialization_id()
    return identity


def sharded_tensor() -> type[Any]:
    """Return the class of sharded tensors; torch.distributed is imported only here."""
    from torch.distributed._shard.sharded_tensor.api import ShardedTensor

    return ShardedTensor


def traverse_state_dict(state_dict: Any, visit: Callable[[Any, Any], None]) -> None:
    """Call a function with the path and the value of each entry, as torch.distributed.checkpoint flattens them."""
    from torch.distributed.checkpoint import _traverse

    _traverse.traverse_state_dict(state_dict, visit)


def forget_workers(dataloader: torch.utils.data.DataLoader[Any]) -> None:
    """Make a data loader with persistent workers start new ones."""
    dataloader._iterator = None


def group_timeout(group: Any) -> timedelta | None:
    """Return the timeout of a process group; None if it is unknown."""
    for device in ("cpu", "cuda"):
        with contextlib.suppress(AttributeError, RuntimeError):  # a group without that device
            timeout: timedelta = group._get_backend(torch.device(device)).options._timeout
            return timeout
    return None
