"""Shard: a file of items that follow each other, each a file of torch.save."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import Parameter

from fsspec_csx.formats.dcp.manifest import ItemLocation, Plain, place
from fsspec_csx.formats.io_wrappers import JoiningWriter, TrackingWriter
from fsspec_csx.formats.torch_zip.single_tensor_archive import frame
from fsspec_csx.tensors.crc32 import RunningCrc32
from fsspec_csx.tensors.tiling import memory, staged


class Shard:
    """A shard that is being written, under its name in the folder of the checkpoint.

    Args:
        file: a binary file object; ``write_borrowed`` is used where it has one.
        held: whether the tensors stay as they are until the file is closed, so that their memory may be sent later.
    """

    def __init__(
        self, file: Any, name: str, *, held: bool, advance: Callable[[int], object] = lambda count: None
    ) -> None:
        self._file = TrackingWriter(file, advance)
        self._name = name
        self._held = held
        self._position = 0
        self._joining = JoiningWriter(self._file.write)
        self._known: dict[tuple[Any, ...], ItemLocation] = {}

    def add_bytes(self, data: memoryview) -> ItemLocation:
        """Write an item of bytes."""
        return self._placed(lambda: self._write(data))

    def add_tensor(self, tensor: torch.Tensor) -> ItemLocation:
        """Write a tensor, of any device; one that shares all its memory with another is written once."""
        tensor = tensor.detach()
        if not _is_plain(tensor):
            return self._placed(lambda: self._save(tensor))
        identity = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        known = self._known.get(identity)
        if known is not None and self._held and tensor.nbytes:
            return known
        made = self._add_plain(tensor)
        self._known[identity] = made
        return made

    def finish(self) -> None:
        """Hand the last bytes to the file, which is still to be closed."""
        self._joining.flush()

    def _add_plain(self, tensor: torch.Tensor) -> ItemLocation:
        around = frame(tensor.dtype, tuple(tensor.shape))
        ready = tensor.resolve_conj().resolve_neg().contiguous()
        if around is None:
            return self._placed(lambda: self._save(ready))
        start = self._position
        self._write(around.before)
        here = ready.device.type == "cpu"
        held = here and self._held and ready.data_ptr() == tensor.data_ptr()
        crc = RunningCrc32()
        for piece in [memory(ready)] if here else staged(ready):
            crc.add(piece)
            self._write(piece, held=held)
        self._write(around.after(crc.value))
        plain = Plain(len(around.before), tensor.dtype, tuple(tensor.shape), crc.value)
        return place(self._name, start, around.size, plain)

    def _save(self, tensor: torch.Tensor) -> None:
        """As torch.save has it: for tensors that are more than their elements, and those without any."""
        self._joining.flush()
        sink = _Counting(self._file.write)
        torch.save(tensor.cpu(), sink)  # type: ignore[arg-type]  # all that torch calls is there
        self._position += sink.position

    def _placed(self, write: Callable[[], object]) -> ItemLocation:
        start = self._position
        write()
        return place(self._name, start, self._position - start)

    def _write(self, data: Any, *, held: bool = False) -> None:
        self._position += len(data)
        self._joining.write(data, self._file.borrow if held else None)


class _Counting:
    """A file that torch.save writes to, whatever was written before."""

    def __init__(self, write: Callable[[Any], int]) -> None:
        self._write = write
        self.position = 0

    def write(self, data: Any) -> int:
        """Hand on a buffer."""
        size = self._write(data)
        self.position += size
        return size

    def flush(self) -> None:
        """Nothing to do: the file is flushed when it is closed."""


def _is_plain(tensor: torch.Tensor) -> bool:
    """Whether its elements in order, its dtype and its shape are all that it is."""
    return type(tensor) in (torch.Tensor, Parameter) and tensor.layout == torch.strided and not tensor.is_quantized
