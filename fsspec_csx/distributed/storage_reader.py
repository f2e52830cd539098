"""StorageReader: the storage from which torch.distributed.checkpoint loads."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from fsspec.callbacks import Callback
from torch.distributed.checkpoint import storage
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, ReadItem
from torch.futures import Future

from fsspec_csx.distributed.paths import FolderStorage, Path
from fsspec_csx.errors import MismatchError
from fsspec_csx.formats import registry
from fsspec_csx.formats.dcp import manifest
from fsspec_csx.formats.dcp.full_state_dict import ShardedStateDict
from fsspec_csx.formats.dcp.layout import MANIFEST, ShardedFolder
from fsspec_csx.formats.dcp.reader import TensorRead, load_bytes, read_bytes, read_tensors
from fsspec_csx.formats.huggingface.source import HuggingFaceSource
from fsspec_csx.group.filesystem import shared
from fsspec_csx.group.processes import Processes, together
from fsspec_csx.storage.folder import Folder
from fsspec_csx.storage.progress import ProgressMeter


class StorageReader(FolderStorage, storage.StorageReader):
    """The storage of ``dcp.load`` at any fsspec URL, for checkpoints of ``StorageWriter`` or of torch's writers.

    It also reads Hugging Face folders; each rank reads its own parts.

    With ``process_group``, as ``distributed.load`` passes it, data that all ranks need is read once for all of them,
    except from a local path.

    Args:
        path: a folder: a local path or an fsspec URL.
        storage_options: arguments for the filesystem, such as ``{"profile": "my-profile"}``.
        weights_only: if False, values may run any code: only for checkpoints of authors whom you trust.
        callback: receives the bytes of this rank: the total by ``set_size``, and increments by ``relative_update``.
        process_group: the ranks of the load, as for ``dcp.load``; by default each rank reads for itself.

    Attributes:
        ranks: the same ranks, if the caller already shares their errors.

    Raises:
        CheckpointPathError: a ValueError, if the path cannot name a checkpoint.
    """

    def __init__(
        self,
        path: Path,
        *,
        storage_options: Mapping[str, Any] | None = None,
        weights_only: bool = True,
        callback: Callback | None = None,
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__(path, storage_options, callback)
        self._process_group = process_group
        self._weights_only = weights_only
        self._metadata = Metadata({})
        self._is_common = True
        self.ranks: Processes | None = None

    @contextlib.contextmanager
    def _sharing(self, *, is_common: bool) -> Iterator[Processes | None]:
        """Yield the ranks that read together; None for a local disk, which is faster than sending between processes."""
        if self._folder.fs is None or self._process_group is None or not is_common:
            yield None
        elif self.ranks is not None:
            yield self.ranks
        else:
            with together(self._process_group) as ranks:
                yield ranks

    def reset(self, checkpoint_id: Path | None = None) -> None:
        """Start another load, from another path if one is given."""
        super().reset(checkpoint_id)
        self._metadata = Metadata({})

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Read the manifest, or that of one rank (``rank=``) if the ranks saved without collectives."""
        rank = kwargs.get("rank")
        with self._sharing(is_common=rank is None) as ranks:
            folder = self._shared(ranks)
            try:
                return manifest.read(folder, MANIFEST if rank is None else f"__{rank}{MANIFEST}")
            except FileNotFoundError:
                with contextlib.suppress(FileNotFoundError):
                    if (found := metadata_of(folder)) is not None:
                        return found
                raise

    def _shared(self, ranks: Processes | None) -> ShardedFolder:
        """Return the folder, on which all ranks make the same reads."""
        if ranks is None:
            return self._folder
        fs, path = shared(self._folder.fs, self._folder.path, ranks)
        return ShardedFolder(fs, path, self._folder.name)

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        self._metadata = metadata
        self._is_common = kwargs.get("use_collectives", True)

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        own = dict(enumerate(plan.items))
        meter = self._meter(sum(_nbytes(item, self._metadata) for item in plan.items))
        with torch.no_grad(), self._sharing(is_common=self._is_common) as ranks:
            common = [own.pop(number) for number in _common(plan.items, ranks)]
            if common:
                self._read(self._shared(ranks), common, planner, meter, ranks)
            self._read(self._folder, [*own.values()], planner, meter)
        meter.finish()
        future: Future[None] = Future()
        future.set_result(None)
        return future

    def _read(
        self,
        folder: ShardedFolder,
        items: list[ReadItem],
        planner: LoadPlanner,
        meter: ProgressMeter,
        ranks: Processes | None = None,
    ) -> None:
        state = ShardedStateDict(folder, self._metadata)
        values = [item for item in items if item.type == LoadItemType.BYTE_IO]
        places = [state.item(item.storage_index) for item in values]
        for item, data in zip(values, read_bytes(folder, places), strict=True):
            _load_value(planner, item, self._value(item, data))
        tensors = [item for item in items if item.type != LoadItemType.BYTE_IO]
        wanted = [_target(item, state.item(item.storage_index), planner) for item in tensors]
        if ranks is not None:
            kinds = [(each.dtype, each.device.type, each.stride()) for each, _ in wanted]
            if any(other != kinds for other in ranks.gather("fill tensors", kinds)):
                folder = self._folder  # each rank reads for itself
        read_tensors(folder, [each for _, each in wanted], advance=meter.advance)
        for item, (target, _) in zip(tensors, wanted, strict=True):
            planner.commit_tensor(item, target)

    def _value(self, item: ReadItem, data: bytes) -> io.BytesIO:
        """Return a value as a file. Planners load it unsafely, so it is read safely and saved again."""
        if not self._weights_only:
            return io.BytesIO(data)
        file = io.BytesIO()
        torch.save(load_bytes(data, name=f"{item.storage_index.fqn!r} in {self._folder.name}"), file)
        file.seek(0)
        return file


def metadata_of(folder: Folder) -> Metadata | None:
    """Return a manifest for a Hugging Face folder, with each tensor in one part; None if it is no such folder."""
    with registry.get_format("huggingface").open_folder(folder, functools.cache(folder.names)) as source:
        if source is None:
            return None
        assert isinstance(source, HuggingFaceSource)
        found = source.tensors()
        records = {record.storage.data_ptr(): record for record in found.records}
        metadata = Metadata({}, planner_data={name: (name,) for name in found.obj}, storage_data={})
        for name, tensor in found.obj.items():
            record = records.get(tensor.untyped_storage().data_ptr()) if tensor.nbytes else None
            shard, offset = source.locate(record.offset) if record else (source.shards[0], 0)
            chunk = ChunkStorageMetadata(torch.Size([0] * tensor.dim()), tensor.shape)
            properties = TensorProperties(dtype=tensor.dtype)
            metadata.state_dict_metadata[name] = TensorStorageMetadata(properties, tensor.shape, [chunk])
            plain = manifest.Plain(0, tensor.dtype, tuple(tensor.shape), None)
            metadata.storage_data[MetadataIndex(name, chunk.offsets)] = manifest.place(
                shard, offset, tensor.nbytes, plain
            )
        return metadata


def _load_value(planner: LoadPlanner, item: ReadItem, file: io.BytesIO) -> None:
    """Have a planner load a value. torch's default planner would write it beside an integer key, under its text."""
    if isinstance(planner, DefaultLoadPlanner) and type(planner).load_bytes is DefaultLoadPlanner.load_bytes:
        container: Any = planner.original_state_dict
        path = planner.mappings.get(item.dest_index.fqn, ())
        own = _own_path(container, path)
        if own != [*path]:
            for key in own[:-1]:
                container = container[key]
            container[own[-1]] = torch.load(file, weights_only=False)  # as ``_value`` made it
            return
    planner.load_bytes(item, file)


def _own_path(state: Any, path: Sequence[str | int]) -> list[str | int]:
    """Return the path of an entry with the integer keys of its mappings, which torch's path has as text."""
    found: list[str | int] = []
    for key in path:
        if isinstance(state, Mapping):
            own = int(key) if str(key).removeprefix("-").isdecimal() else key
            key = own if key not in state and own in state else key
            state = state.get(key)
        else:
            state = state[key] if isinstance(key, int) and isinstance(state, (list, tuple)) else None
        found.append(key)
    return found


def _target(item: ReadItem, place: Any, planner: LoadPlanner) -> tuple[torch.Tensor, TensorRead]:
    name, target = item.storage_index.fqn, planner.resolve_tensor(item)
    if target.shape != item.lengths:
        reason = f"{name!r} has {tuple(item.lengths)} to fill {tuple(target.shape)} with."
        raise MismatchError(reason, "Let the planner resolve tensors of the shapes that it plans.")
    return target, TensorRead(name, place, tuple(item.storage_offsets), target.detach())


def _common(items: Sequence[ReadItem], ranks: Processes | None) -> list[int]:
    """Return the numbers of the items that all ranks need, in the same order on all ranks."""
    if ranks is None or ranks.size == 1:
        return []
    numbers = {_digest(item): number for number, item in enumerate(items)}
    first, *others = ranks.gather("read items", [*numbers])
    needed = set(first).intersection(*others)
    return [numbers[digest] for digest in first if digest in needed]


def _digest(item: ReadItem) -> bytes:
    """Identify what an item reads from a checkpoint."""
    index = item.storage_index
    key = item.type.name, index.fqn, index.offset and tuple(index.offset), (*item.storage_offsets,), (*item.lengths,)
    return hashlib.blake2b(repr(key).encode(), digest_size=16).digest()


def _nbytes(item: ReadItem, metadata: Metadata) -> int:
    stored = metadata.state_dict_metadata.get(item.storage_index.fqn)
    return item.lengths.numel() * stored.properties.dtype.itemsize if isinstance(stored, TensorStorageMetadata) else 0
