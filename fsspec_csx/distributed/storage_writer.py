"""StorageWriter: the storage to which torch.distributed.checkpoint saves."""

from __future__ import annotations

import copy
import dataclasses
import io
import pickle
import secrets
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from fsspec.callbacks import Callback
from torch.distributed.checkpoint import storage
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem, WriteItemType
from torch.distributed.checkpoint.staging import AsyncStager, DefaultStager, StagingOptions
from torch.distributed.checkpoint.stateful import Stateful
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from fsspec_csx.distributed.paths import FolderStorage, Path, shards_of
from fsspec_csx.distributed.planner import Planner, check_item
from fsspec_csx.errors import CheckpointError
from fsspec_csx.formats.dcp import manifest
from fsspec_csx.formats.dcp.layout import MANIFEST, MOST_PREFIXES, ShardedFolder, shard_name
from fsspec_csx.formats.dcp.writer import Shard
from fsspec_csx.formats.writer import send_written
from fsspec_csx.storage.folder import logger
from fsspec_csx.tensors import memory, torch_compat
from fsspec_csx.tensors.snapshot import copies_of


class StorageWriter(FolderStorage, storage.StorageWriter, AsyncStager):
    """The storage of ``dcp.save`` and ``dcp.async_save`` at any fsspec URL.

    ``dcp.async_save`` also uses it as the default stager, see ``stage``.

    Args:
        path: a folder: a local path or an fsspec URL.
        storage_options: arguments for the filesystem, such as ``{"profile": "my-profile"}``.
        overwrite: whether to replace an existing checkpoint.
        prefix_count: over how many folders with hashed names to spread the shards; 0 for none. S3 serves about 3,500
            writes and 5,500 reads a second below one key prefix, and splits busy prefixes only gradually. Thousands of
            ranks that begin at once need some, such as one for each hundred ranks.
        callback: receives the bytes of this rank: the total by ``set_size``, and increments by ``relative_update``.

    Raises:
        CheckpointPathError: a ValueError, if the path cannot name a checkpoint.
        ValueError: if ``prefix_count`` is not from 0 to 4096.
    """

    def __init__(
        self,
        path: Path | ShardedFolder,
        *,
        storage_options: Mapping[str, Any] | None = None,
        overwrite: bool = True,
        prefix_count: int = 0,
        callback: Callback | None = None,
    ) -> None:
        if type(prefix_count) is not int or not 0 <= prefix_count <= MOST_PREFIXES:
            msg = f"prefix_count must be an integer from 0 to {MOST_PREFIXES}, not {prefix_count!r}. Omit it for none."
            raise ValueError(msg)
        super().__init__(path, storage_options, callback)
        self._overwrite = overwrite
        self._prefix_count = prefix_count
        self._synchronize_after_execute = False  # stage() is complete when it returns
        self._save_id = secrets.token_hex(8)
        self._is_coordinator = False
        self._finishing = False
        self._written: list[str] = []

    def reset(self, checkpoint_id: Path | None = None) -> None:
        """Start another save, at another path if one is given."""
        super().reset(checkpoint_id)
        self._save_id = secrets.token_hex(8)
        self._written = []

    def stage(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """Copy a state dict, into the memory of earlier copies; see ``fsspec_csx.release_buffers``."""
        return copy_state_dict(state_dict)

    def synchronize_staging(self) -> None:
        """Do nothing: ``stage`` waits for all copies."""

    def close(self) -> None:
        """Do nothing: the next save reuses the memory."""

    def storage_meta(self) -> StorageMeta:
        return StorageMeta(checkpoint_id=self.checkpoint_id, save_id=self._save_id)

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Set the role of this rank; raise a ValueError if the ranks do not wait for each other."""
        if not kwargs.get("use_collectives", True):
            msg = "A checkpoint is whole only when all ranks have written theirs. Leave use_collectives=False out."
            raise ValueError(msg)
        self._is_coordinator = is_coordinator
        self._finishing = False
        self._written = []

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """Check the plan, and return it unchanged.

        Raises:
            ValueError: if it has a sparse or quantized tensor, whose indices or scale would be lost.
            FileExistsError: if a checkpoint exists and ``overwrite`` is False.
        """
        if self._is_coordinator and not self._overwrite and self._folder.exists(MANIFEST):
            msg = f"{self._folder.name} has a checkpoint already. Choose another path, or allow it to be overwritten."
            raise FileExistsError(msg)
        for item in plan.items:
            check_item(item)
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        return [dataclasses.replace(plan, storage_data=rank) for rank, plan in enumerate(plans)]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write the entries of this rank to a shard with a new name; no shard if there are none."""
        future: Future[list[WriteResult]] = Future()
        with torch.no_grad():
            future.set_result(self._write(plan, planner) if plan.items else [])
        return future

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Write the manifest, and remove the shards of the old one."""
        metadata.version = manifest.VERSION
        metadata.storage_data = {each.index: each.storage_data for of_rank in results for each in of_rank}
        metadata.storage_meta = self.storage_meta()
        old = self._old_shards()
        self._finishing = True
        with self._folder.atomic_write(MANIFEST) as file:
            pickle.dump(metadata, file)
        self._folder.remove(sorted(old - shards_of(metadata)))

    def discard(self, failed: Collection[int] = ()) -> bool:
        """Remove the shards of this rank after a failed save, unless the manifest may have been written.

        ``failed`` are the numbers of the failed ranks. Return whether this save certainly wrote no manifest.
        """
        # Only rank 0 writes the manifest, and only when no other rank has failed.
        is_none = not self._finishing if self._is_coordinator else any(failed)
        if is_none:
            self._folder.remove(self._written)
            self._written = []
        return is_none

    def _write(self, plan: SavePlan, planner: SavePlanner) -> list[WriteResult]:
        held = _returns_originals(planner)  # others may create tensors when they are written
        kinds = (WriteItemType.TENSOR, WriteItemType.SHARD)
        ready = [planner.resolve_data(item) if held and item.type in kinds else None for item in plan.items]
        given = zip(plan.items, ready, strict=True)
        memory.check((item.index.fqn, data) for item, data in given if isinstance(data, torch.Tensor))
        name = shard_name(plan.storage_data, self._prefix_count)
        results = []
        meter = self._meter(sum(map(_nbytes, plan.items)), estimated=True)
        self._written.append(name)  # now: after an error the shard may have been written
        with self._folder.creating(name) as file:
            shard = Shard(file, name, held=held, advance=meter.advance)
            for item, resolved in zip(plan.items, ready, strict=True):
                data = planner.resolve_data(item) if resolved is None else resolved
                if item.type == WriteItemType.BYTE_IO:
                    assert isinstance(data, io.BytesIO)
                    place = shard.add_bytes(data.getvalue())
                else:
                    assert isinstance(data, torch.Tensor)
                    memory.check([(item.index.fqn, data)])
                    place = shard.add_tensor(data)
                if isinstance(planner, Planner):
                    place = manifest.with_integer_keys(place, planner.integer_keys(item.index.fqn))
                results.append(WriteResult(item.index, place.length, place))
            shard.finish()
            send_written(file, meter.check)
        meter.finish()
        return results

    def _old_shards(self) -> set[str]:
        try:
            return shards_of(manifest.read(self._folder))
        except FileNotFoundError:
            return set()
        except (CheckpointError, PermissionError) as error:  # the user may have no permission to read
            logger.warning("The shards of the old checkpoint stay: its manifest cannot be read: %s", error)
            return set()


def _nbytes(item: WriteItem) -> int:
    """Estimate the size of an item in bytes."""
    data = item.tensor_data
    return 0 if data is None else data.chunk.sizes.numel() * data.properties.dtype.itemsize


def _returns_originals(planner: SavePlanner) -> bool:
    """Return whether a planner returns the state dict's own tensors, which live until the save ends."""
    default, kind = DefaultSavePlanner, type(planner)
    names = ("resolve_data", "lookup_object", "transform_object")
    return isinstance(planner, default) and all(getattr(kind, name) is getattr(default, name) for name in names)


def copy_state_dict(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Copy a state dict, with objects replaced by their ``state_dict()``; the copy is complete when this returns.

    Of DTensors, only this process's part is copied. Tensors that share memory share it in the copy.
    """
    given = {key: each.state_dict() if isinstance(each, Stateful) else each for key, each in state_dict.items()}
    tensors = {id(each): each for each in _tensors(given)}
    parts = {id(part): part for each in tensors.values() for part in _parts(each)}
    copies = copies_of(parts)
    staged = {key: _staged(each, copies) for key, each in tensors.items()}
    found: dict[str, Any] = copy.deepcopy(given, staged)  # deepcopy takes the copies from this memo
    return found


def nbytes(state_dict: Mapping[str, Any]) -> int:
    """Return the size in bytes of this process's tensors in a state dict."""
    parts = {id(part): part for each in _tensors(state_dict) for part in _parts(each)}
    return sum(part.nbytes for part in parts.values() if part.layout == torch.strided and not part.is_nested)


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (Mapping, list, tuple)):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(each)


def _parts(tensor: torch.Tensor) -> list[torch.Tensor]:
    """Return this process's parts of a tensor, such as a DTensor; for a plain tensor, the tensor itself."""
    if isinstance(tensor, torch_compat.sharded_tensor()):
        return []
    if not _is_wrapper(tensor):
        return [tensor]
    names, _ = tensor.__tensor_flatten__()  # type: ignore[attr-defined]
    return [part for name in names if isinstance(part := getattr(tensor, name), torch.Tensor)]


def _is_wrapper(tensor: torch.Tensor) -> bool:
    return hasattr(tensor, "__tensor_flatten__") and not tensor.is_nested


def _staged(tensor: torch.Tensor, copies: Mapping[int, torch.Tensor]) -> Any:
    if isinstance(tensor, torch_compat.sharded_tensor()):
        return DefaultStager(StagingOptions(*(False,) * 4)).stage({"": tensor})[""]  # type: ignore[index]
    if not _is_wrapper(tensor):
        return copies[id(tensor)]
    wrapper: Any = tensor
    names, context = wrapper.__tensor_flatten__()
    parts = {name: getattr(tensor, name) for name in names}
    parts = {name: copies.get(id(part), part) for name, part in parts.items()}
    return type(wrapper).__tensor_unflatten__(parts, context, tensor.shape, tensor.stride())
