"""A training's state in the form of the ModelZoo's checkpoints, and back.

Names and forms are those of cerebras_pytorch 2.10. The position in the data, the random states, and what its form
cannot hold are beside it under the key ``fsspec_csx``: the bytes of a torch file. The ModelZoo ignores them, and a
training that resumes here continues exactly.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from fsspec_csx.errors import InvalidCheckpointError
from fsspec_csx.formats import reader
from fsspec_csx.formats.cerebras.plan import Plan
from fsspec_csx.storage.paths import redacted
from fsspec_csx.tensors.source import Source, memory_at
from fsspec_csx.trainer import modelzoo_optimizers, modelzoo_schedulers, state_validation

if TYPE_CHECKING:
    from fsspec_csx.trainer.trainer import Trainer

_OWN = "fsspec_csx"
_SHARED = ("model", "optimizer", "schedulers", "global_step")
_SMALLER_PACKED = ("batches", "random_states")  # a few objects of S3 rather than ten for each process


def to_modelzoo(trainer: Trainer, state: Mapping[str, Any]) -> dict[str, Any]:
    """The state of a training, see ``training_state.collect``, as the ModelZoo saves it."""
    found = dict(state)
    if trainer.optimizer is not None and "optimizer" in state:
        found["optimizer"] = modelzoo_optimizers.to_modelzoo(trainer.optimizer, state["optimizer"])
        if "schedulers" in state:
            groups = found["optimizer"]["param_groups"]
            states = [modelzoo_schedulers.to_modelzoo(each, groups) for each in trainer.schedulers]
            found["schedulers"] = [_holdable(each) for each in states]
    for key, value in state.items():
        if key not in _SHARED:
            found[key] = {_OWN: _packed(value)} if key in _SMALLER_PACKED else _holdable(value)
    return found


def from_modelzoo(trainer: Trainer, state: dict[str, Any], path: str) -> dict[str, Any]:
    """The state of a training from a checkpoint in the ModelZoo's form; one of the Trainer's own stays as it is.

    An InvalidCheckpointError if what was saved beside the ModelZoo's form is damaged.
    """
    found = {
        key: _unpacked(value, path) if key not in ("model", "optimizer") else value for key, value in state.items()
    }
    optimizer = found.get("optimizer")
    if trainer.optimizer is not None and isinstance(optimizer, Mapping):
        with state_validation.restoring(path, "optimizer"):
            step = found.get("global_step")
            found["optimizer"] = modelzoo_optimizers.from_modelzoo(trainer.optimizer, dict(optimizer), step)
    if isinstance(found.get("schedulers"), (list, tuple)):
        states = [_unpacked(each, path) for each in found["schedulers"]]
        pairs = zip([*trainer.schedulers, *(None for _ in states)], states, strict=False)
        with state_validation.restoring(path, "schedulers"):
            found["schedulers"] = [modelzoo_schedulers.from_modelzoo(own, each) for own, each in pairs]
    return found


def _holdable(value: Any) -> Any:
    """A value that the format holds: itself, or the bytes of a torch file."""
    try:
        Plan({_OWN: value})
    except ValueError:
        return {_OWN: _packed(value)}
    return value


def _packed(value: Any) -> torch.Tensor:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)


def _unpacked(value: Any, path: str) -> Any:
    return _read(value[_OWN], path) if isinstance(value, Mapping) and [*value] == [_OWN] else value


def _read(packed: Any, path: str) -> Any:
    name = redacted(path)
    if not isinstance(packed, torch.Tensor) or packed.dtype != torch.uint8:
        raise InvalidCheckpointError(f"{name} is damaged: {_OWN} holds no bytes.", "Load another checkpoint.")
    data = bytes(memory_at(packed.data_ptr(), packed.nbytes, packed)) if packed.numel() else b""
    return reader.read(Source(io.BytesIO(data), len(data)), name=name, map_location="cpu")
