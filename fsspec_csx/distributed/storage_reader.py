"""StorageReader: the storage that torch.distributed.checkpoint loads from."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import torch
from fsspec.callbacks import Callback
from torch.distributed.checkpoint import storage
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, ReadItem
from torch.futures import Future

from fsspec_csx.distributed.huggingface import metadata_of
from fsspec_csx.distributed.paths import FolderStorage, Path
from fsspec_csx.errors import MismatchError
from fsspec_csx.formats.dcp import manifest
from fsspec_csx.formats.dcp.folder import MANIFEST
from fsspec_csx.formats.dcp.full_state_dict import ShardedStateDict
from fsspec_csx.formats.dcp.reader import TensorRead, load_bytes, read_bytes, read_tensors


class StorageReader(FolderStorage, storage.StorageReader):
    """The storage of ``dcp.load`` at any fsspec URL, for checkpoints of ``StorageWriter`` or of torch's writers.

    It also reads folders of Hugging Face, of which each rank reads its own parts.

    Args:
        path: a folder: a local path or an fsspec URL.
        storage_options: arguments for the filesystem, such as ``{"profile": "my-profile"}``.
        weights_only: if False, values may run any code: only for checkpoints of authors whom you trust.
        callback: receives the bytes of this rank: the total by ``set_size``, and increments by ``relative_update``.

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
    ) -> None:
        super().__init__(path, storage_options, callback)
        self._weights_only = weights_only
        self._metadata = Metadata({})
        self.failure: Exception | None = None

    def reset(self, checkpoint_id: Path | None = None) -> None:
        """Start another load, from another path if one is given."""
        super().reset(checkpoint_id)
        self._metadata = Metadata({})
        self.failure = None

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Read the manifest, or that of one rank (``rank=``) if the ranks did not wait for each other.

        Raises:
            CheckpointError: if it is invalid.
            OSError: any error of the filesystem, such as FileNotFoundError.
        """
        try:
            metadata = self._read_manifest(kwargs.get("rank"))
        except Exception as error:
            self.failure = self.failure or error
            raise
        self.failure = None
        return metadata

    def _read_manifest(self, rank: int | None) -> Metadata:
        try:
            return manifest.read(self._folder, MANIFEST if rank is None else f"__{rank}{MANIFEST}")
        except FileNotFoundError:
            try:
                found = metadata_of(self._folder)
            except FileNotFoundError:
                found = None
            if found is None:
                raise
            return found

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Store the manifest."""
        self._metadata = metadata

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """Leave the plan as it is."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """Leave the plans as they are."""
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Read the entries of this rank."""
        self._read_values([item for item in plan.items if item.type == LoadItemType.BYTE_IO], planner)
        self._read_tensors([item for item in plan.items if item.type != LoadItemType.BYTE_IO], planner)
        future: Future[None] = Future()
        future.set_result(None)
        return future

    def _read_values(self, items: list[ReadItem], planner: LoadPlanner) -> None:
        state = ShardedStateDict(self._folder, self._metadata)
        places = [state.item(item.storage_index) for item in items]
        for item, data in zip(items, read_bytes(self._folder, places), strict=True):
            file = io.BytesIO(data)
            if self._weights_only:
                # Planners load it with weights_only=False: they get what was made of it without running anything.
                name = f"{item.storage_index.fqn!r} in {self._folder.name}"
                value = load_bytes(data, name=name)
                file = io.BytesIO()
                torch.save(value, file)
                file.seek(0)
            planner.load_bytes(item, file)

    def _read_tensors(self, items: list[ReadItem], planner: LoadPlanner) -> None:
        state, wanted = ShardedStateDict(self._folder, self._metadata), []
        for item in items:
            name = item.storage_index.fqn
            place = state.item(item.storage_index)
            target = planner.resolve_tensor(item)
            if target.shape != item.lengths:
                reason = f"{name!r} has {tuple(item.lengths)} to fill {tuple(target.shape)} with."
                raise MismatchError(reason, "Let the planner resolve tensors of the shapes that it plans.")
            wanted.append((target, TensorRead(name, place, tuple(item.storage_offsets), target.detach())))
        meter = self._meter(sum(target.nbytes for target, _ in wanted))
        read_tensors(self._folder, [each for _, each in wanted], advance=meter.advance)
        meter.finish()
        for item, (target, _) in zip(items, wanted, strict=True):
            planner.commit_tensor(item, target)
