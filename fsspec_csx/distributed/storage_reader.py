"""StorageReader: the storage that torch.distributed.checkpoint loads from."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from fsspec.callbacks import Callback
from torch.distributed.checkpoint import storage
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, ReadItem
from torch.futures import Future

from fsspec_csx.distributed.huggingface import metadata_of
from fsspec_csx.distributed.paths import FolderStorage, Path
from fsspec_csx.errors import MismatchError
from fsspec_csx.formats.dcp import manifest
from fsspec_csx.formats.dcp.folder import MANIFEST, Folder
from fsspec_csx.formats.dcp.full_state_dict import ShardedStateDict
from fsspec_csx.formats.dcp.reader import TensorRead, load_bytes, read_bytes, read_tensors
from fsspec_csx.group.filesystem import shared
from fsspec_csx.group.processes import Processes, together
from fsspec_csx.storage.progress import ProgressMeter


class StorageReader(FolderStorage, storage.StorageReader):
    """The storage of ``dcp.load`` at any fsspec URL, for checkpoints of ``StorageWriter`` or of torch's writers.

    It also reads folders of Hugging Face, of which each rank reads its own parts.

    With ``process_group``, as ``distributed.load`` passes it, what all ranks need is read once for all of them, but not
    from a local path.

    Args:
        path: a folder: a local path or an fsspec URL.
        storage_options: arguments for the filesystem, such as ``{"profile": "my-profile"}``.
        weights_only: if False, values may run any code: only for checkpoints of authors whom you trust.
        callback: receives the bytes of this rank: the total by ``set_size``, and increments by ``relative_update``.
        process_group: the ranks of the load, the same as that of ``dcp.load``; by default each reads for itself.

    Attributes:
        failure: the error of the manifest; torch passes on only its text.

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
        self.failure: Exception | None = None

    @property
    def _group(self) -> dist.ProcessGroup | None:
        """The ranks that read once for all; None on a local disk, which is faster than what goes between processes."""
        return None if self._folder.fs is None else self._process_group

    def reset(self, checkpoint_id: Path | None = None) -> None:
        """Start another load, from another path if one is given."""
        super().reset(checkpoint_id)
        self._metadata = Metadata({})
        self.failure = None

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Read the manifest, or that of one rank (``rank=``) if the ranks did not wait for each other."""
        try:
            metadata = self._read_manifest(kwargs.get("rank"))
        except Exception as error:
            self.failure = self.failure or error
            raise
        self.failure = None
        return metadata

    def _read_manifest(self, rank: int | None) -> Metadata:
        with contextlib.nullcontext() if rank is not None or self._group is None else together(self._group) as ranks:
            folder = self._shared(ranks)
            try:
                return manifest.read(folder, MANIFEST if rank is None else f"__{rank}{MANIFEST}")
            except FileNotFoundError:
                with contextlib.suppress(FileNotFoundError):
                    if (found := metadata_of(folder)) is not None:
                        return found
                raise

    def _shared(self, ranks: Processes | None) -> Folder:
        """The folder, of which all ranks make the same reads."""
        if ranks is None:
            return self._folder
        fs, path = shared(self._folder.fs, self._folder.path, ranks)
        return Folder(fs, path, self._folder.name)

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        self._metadata = metadata

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """Note in each plan the numbers of the items that all ranks need, in the same order in all."""
        if self._group is None or len(plans) == 1 or any(plan.storage_data for plan in plans):
            return plans
        numbered = [{_key(item): number for number, item in enumerate(plan.items)} for plan in plans]
        common = [key for key in numbered[0] if all(key in each for each in numbered)]
        return [
            replace(plan, storage_data=[each[key] for key in common])
            for plan, each in zip(plans, numbered, strict=True)
        ]

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        numbers = (plan.storage_data or []) if self._group is not None else []
        common = [plan.items[number] for number in numbers]
        noted = set(numbers)
        own = [item for number, item in enumerate(plan.items) if number not in noted]
        meter = self._meter(sum(_nbytes(item, self._metadata) for item in plan.items))
        if common and self._group is not None:
            with together(self._group) as ranks:
                self._read(self._shared(ranks), common, planner, meter, ranks)
        self._read(self._folder, own, planner, meter)
        meter.finish()
        future: Future[None] = Future()
        future.set_result(None)
        return future

    def _read(
        self,
        folder: Folder,
        items: list[ReadItem],
        planner: LoadPlanner,
        meter: ProgressMeter,
        ranks: Processes | None = None,
    ) -> None:
        state = ShardedStateDict(folder, self._metadata)
        values = [item for item in items if item.type == LoadItemType.BYTE_IO]
        places = [state.item(item.storage_index) for item in values]
        for item, data in zip(values, read_bytes(folder, places), strict=True):
            planner.load_bytes(item, self._value(item, data))
        tensors = [item for item in items if item.type != LoadItemType.BYTE_IO]
        wanted = [_target(item, state.item(item.storage_index), planner) for item in tensors]
        if ranks is not None:
            kinds = [(each.dtype, each.device.type, each.stride()) for each, _ in wanted]
            if any(other != kinds for other in ranks.gather("fill tensors", kinds)):
                folder = self._folder  # each rank has to read in a way of its own
        read_tensors(folder, [each for _, each in wanted], advance=meter.advance)
        for item, (target, _) in zip(tensors, wanted, strict=True):
            planner.commit_tensor(item, target)

    def _value(self, item: ReadItem, data: bytes) -> io.BytesIO:
        """A value as a file; planners load it with ``weights_only=False``, so it is made of what was read safely."""
        if not self._weights_only:
            return io.BytesIO(data)
        file = io.BytesIO()
        torch.save(load_bytes(data, name=f"{item.storage_index.fqn!r} in {self._folder.name}"), file)
        file.seek(0)
        return file


def _target(item: ReadItem, place: Any, planner: LoadPlanner) -> tuple[torch.Tensor, TensorRead]:
    """The tensor that an item goes to, and how it is read."""
    name, target = item.storage_index.fqn, planner.resolve_tensor(item)
    if target.shape != item.lengths:
        reason = f"{name!r} has {tuple(item.lengths)} to fill {tuple(target.shape)} with."
        raise MismatchError(reason, "Let the planner resolve tensors of the shapes that it plans.")
    return target, TensorRead(name, place, tuple(item.storage_offsets), target.detach())


def _key(item: ReadItem) -> tuple[Any, ...]:
    """What an item has to be read of a checkpoint."""
    return item.type, item.storage_index, tuple(item.storage_offsets), tuple(item.lengths)


def _nbytes(item: ReadItem, metadata: Metadata) -> int:
    stored = metadata.state_dict_metadata.get(item.storage_index.fqn)
    return item.lengths.numel() * stored.properties.dtype.itemsize if isinstance(stored, TensorStorageMetadata) else 0
