"""DtypeCast: plans the cast of a file's tensors before their data is read."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from fsspec_csx.tensors import torch_compat
from fsspec_csx.tensors.lazy_object import Record
from fsspec_csx.tensors.memory import reserved
from fsspec_csx.tensors.names import place_of
from fsspec_csx.tensors.tensor_stream import StreamedTensor

_PACKED = getattr(torch, "float4_e2m1fn_x2", None)  # two values per byte; torch cannot cast it


class DtypeCast:
    """Replaces the floating-point tensors of a file with tensors of another dtype, to pickle in their place.

    Tensors that share a storage still share one, unless only some of them are cast.
    """

    def __init__(self, records: Iterable[Record], dtype: torch.dtype | None) -> None:
        self._records = {record.storage.data_ptr(): record for record in records}
        self._dtype = dtype
        self._storages: dict[tuple[int, torch.dtype], torch.UntypedStorage] = {}
        self._streamed: dict[int, StreamedTensor] = {}

    def dtype_of(self, tensor: torch.Tensor) -> torch.dtype:
        """Return the dtype that a tensor will have."""
        if self._dtype is None or not tensor.dtype.is_floating_point or tensor.dtype == _PACKED:
            return tensor.dtype
        return self._dtype

    def record_of(self, storage: torch.UntypedStorage) -> Record | None:
        """Return the record of a storage of the file; None if its bytes are in memory."""
        return self._records.get(storage.data_ptr())

    def replaced(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """Return the tensor that replaces one to cast; None if the tensor stays as it is."""
        dtype = self.dtype_of(tensor)
        if dtype == tensor.dtype:
            return None
        is_parameter = type(tensor) is torch.nn.Parameter
        if not (is_parameter or type(tensor) is torch.Tensor) or place_of(tensor) is None:
            return tensor.detach().to(dtype).requires_grad_(tensor.requires_grad)
        made = torch.empty(0, dtype=dtype, device="cpu")
        made.set_(self._storage(tensor, dtype), tensor.storage_offset(), tensor.shape, tensor.stride())
        made = torch_compat.neg_view(made) if tensor.is_neg() else made
        made = torch.nn.Parameter(made) if is_parameter else made
        vars(made).update(vars(tensor))
        return made.requires_grad_(tensor.requires_grad)

    def streamed(self, storage: torch.UntypedStorage) -> StreamedTensor:
        """Return what to write for a storage, which may be of the file, of a replacement, or in memory."""
        if found := self._streamed.get(torch_compat.address(storage)):
            return found
        whole = torch.empty(0, dtype=torch.uint8, device="cpu").set_(storage)
        return StreamedTensor(whole, torch.uint8, self.record_of(storage))

    def _storage(self, tensor: torch.Tensor, dtype: torch.dtype) -> torch.UntypedStorage:
        old = tensor.untyped_storage()
        key = torch_compat.address(old), tensor.dtype
        if key not in self._storages:
            count = old.nbytes() // tensor.element_size()
            new = reserved(count * dtype.itemsize, torch.device("cpu"))
            whole = torch.empty(0, dtype=tensor.dtype, device="cpu").set_(old, 0, (count,), (1,))
            self._storages[key] = new
            self._streamed[torch_compat.address(new)] = StreamedTensor(whole, dtype, self.record_of(old))
        return self._storages[key]
