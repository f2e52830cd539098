"""The device of this process, and collective operations of the processes that train together.

torch cannot use CSX, the Cerebras hardware. For an unsharded checkpoint, all processes gather and scatter sharded
tensors (FSDP2's DTensors). So the checkpoint is the same for any number of processes. The operations are those of
https://docs.pytorch.org/docs/stable/distributed.html
"""

from __future__ import annotations

import atexit
import contextlib
import os
import time
import warnings
from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.distributed as dist

from fsspec_csx.tensors.torch_compat import tree_map
from fsspec_csx.trainer import random_states


def select_device(device: str | torch.device | None, backend: Any) -> torch.device:
    """Return this process's device for a device or a backend (see ``Trainer``); by default a GPU if there is one.

    Raises a ValueError if both are given, the backend is unknown, or the device does not exist.
    """
    named = device if backend is None else _of_backend(device, backend)
    if isinstance(named, torch.device):
        return named
    if named is not None and named.upper() == "CSX":
        warnings.warn("CSX is not available here: the training runs on this machine's GPU or CPU.", stacklevel=3)
        named = None
    named = named or ("GPU" if torch.cuda.is_available() else "CPU")
    if named.upper() != "GPU":
        try:
            return torch.device(named.lower())
        except RuntimeError as error:
            msg = f"There is no device {named!r}. Give 'CPU', 'GPU' or one that torch knows, such as 'cuda:1'."
            raise ValueError(msg) from error
    if not torch.cuda.is_available():
        msg = "This machine has no GPU that torch can use. Give the device 'CPU', or install torch for this GPU."
        raise ValueError(msg)
    number = int(os.environ.get("LOCAL_RANK", "0"))
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


def _of_backend(device: Any, backend: Any) -> str:
    """Return the name of a backend: the string itself, or the ``backend_type`` of a mapping or an object."""
    if device is not None:
        msg = "The Trainer takes a device or a backend, not both. Remove one of them."
        raise ValueError(msg)
    kind = backend.get("backend_type") if isinstance(backend, Mapping) else getattr(backend, "backend_type", backend)
    name = getattr(kind, "name", kind)
    if not isinstance(name, str) or name.upper() not in ("CSX", "CPU", "GPU"):
        msg = f"There is no backend {name!r}. Give 'CPU' or 'GPU'."
        raise ValueError(msg)
    return name


def join(device: torch.device) -> None:
    """Join the other processes if ``torchrun`` started this one and it has not joined yet."""
    started = {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()
    if started and dist.is_available() and not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        atexit.register(_leave)


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def count() -> int:
    return dist.get_world_size() if _joined() else 1


def is_first() -> bool:
    """Return whether this is the first process, which writes."""
    return not _joined() or dist.get_rank() == 0


def broadcast(value: Any) -> Any:
    """Return the first process's value, which must be picklable."""
    if count() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def all_gather(value: Any) -> list[Any]:
    """Return the values of all processes by rank; they must be picklable."""
    if count() == 1:
        return [value]
    values: list[Any] = [None] * count()
    dist.all_gather_object(values, value)
    return values


def select_own(values: list[Any]) -> Any:
    """Return this process's gathered value, or the first one's if the number of processes has changed."""
    return values[dist.get_rank() if len(values) == count() > 1 else 0]


def reseed() -> None:
    """Seed all processes but the first again, so that each draws different random numbers."""
    if count() > 1 and dist.get_rank():
        seed = int(torch.empty((), dtype=torch.int64).random_().item()) + dist.get_rank()
        random_states.seed(seed)


def any_process(*flags: bool) -> list[bool]:
    """Return for each flag whether it is true in any process; all processes must call it."""
    return [bool(each) for each in _maximum(*flags)]


def _maximum(*numbers: int) -> list[int]:
    if count() == 1:
        return [*numbers]
    device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else "cpu"
    found = torch.tensor(numbers, dtype=torch.int64, device=device)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return [int(each) for each in found.tolist()]


class PeriodicSync:
    """Synchronizes flags at the same step in all processes, about once a second, as at each step it would be slow.

    A single process needs no synchronization.
    """

    _SECONDS = 1.0
    _STEPS_MAX = 64

    def __init__(self) -> None:
        self._steps = self._left = 1
        self._since = time.monotonic()

    def any_process(self, *flags: bool) -> list[bool]:
        """Call it at each step; it is like the function ``any_process``, but all False between synchronizations."""
        if count() == 1:
            return [*flags]
        self._left -= 1
        if self._left:
            return [False for _ in flags]
        now = time.monotonic()
        fitting = int(self._SECONDS * self._steps / max(now - self._since, 1e-9))
        *found, steps = _maximum(*flags, -max(1, min(fitting, 2 * self._steps, self._STEPS_MAX)))
        self._steps = self._left = -steps
        self._since = now
        return [bool(each) for each in found]


def mean(value: torch.Tensor) -> float:
    if count() > 1:
        value = value.detach().clone()
        dist.all_reduce(value)
    return float(value / count())


def distribute(model: torch.nn.Module, device: torch.device) -> torch.nn.Module:
    """Wrap a model in DistributedDataParallel, unless it is sharded or wrapped already."""
    from torch.nn.parallel import DistributedDataParallel

    parameters = [*model.parameters()]
    if count() == 1 or isinstance(model, DistributedDataParallel) or any(map(is_sharded, parameters)):
        return model
    if not any(each.requires_grad for each in parameters):
        return model
    return DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)


def no_sync(model: torch.nn.Module) -> contextlib.AbstractContextManager[Any]:
    """Do not synchronize gradients within the block, for batches that do not complete a step."""
    context: Any = getattr(model, "no_sync", contextlib.nullcontext)
    return cast("contextlib.AbstractContextManager[Any]", context())


def unwrap(model: torch.nn.Module) -> torch.nn.Module:
    from torch.nn.parallel import DistributedDataParallel

    return model.module if isinstance(model, DistributedDataParallel) else model


def is_sharded(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and hasattr(value, "full_tensor")


def has_shards(model: torch.nn.Module) -> bool:
    return any(is_sharded(each) and cast("Any", each).device_mesh.size() > 1 for each in model.parameters())


def gather_shards(state: Any) -> Any:
    """Gather the sharded tensors of a state dict in the first process; all processes must call it."""

    def gather(value: Any) -> Any:
        if not is_sharded(value):
            return value
        full = value.full_tensor()
        return full.cpu() if is_first() else None

    return tree_map(gather, state)


def shard_like(value: Any, like: Any) -> Any:
    if not is_sharded(like) or not isinstance(value, torch.Tensor) or value.shape != like.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)


def _joined() -> bool:
    return dist.is_available() and dist.is_initialized()
