"""Shard: writes a file of consecutive items, each a file of torch.save."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.nn import Parameter

from fsspec_csx.formats.dcp.manifest import ItemLocation, Plain, place
from fsspec_csx.formats.io_wrappers import JoiningWriter, TrackingWriter
from fsspec_csx.formats.torch_zip.single_tensor_archive import frame
from fsspec_csx.tensors.crc32 import RunningCrc32
from fsspec_csx.tensors.tiling import memory, staged


class Shard:
    """A shard to write, under its name in the folder of the checkpoint.

    Args:
        file: a binary file object; ``write_summed`` or ``write_borrowed`` is used if it has one.
        held: whether the tensors do not change until the file is closed, so that their memory may be sent later.
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

    def add_bytes(self, data: bytes) -> ItemLocation:
        """Write an item of bytes."""
        return self._placed(lambda: self._write(data))

    def add_tensor(self, tensor: torch.Tensor) -> ItemLocation:
        """Write a tensor of any device; equal views of the same memory are written once."""
        tensor = tensor.detach()
        if not _is_plain(tensor):
            return self._placed(lambda: self._save(tensor))
        place = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        identity = (*place, tensor.is_conj(), tensor.is_neg())
        known = self._known.get(identity)
        if known is not None and self._held and tensor.nbytes:
            return known
        made = self._add_plain(tensor)
        self._known[identity] = made
        return made

    def finish(self) -> None:
        """Write the last bytes to the file; the caller closes it."""
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
        crc = self._kept(memory(ready)) if held else self._added([memory(ready)] if here else staged(ready))
        self._write(around.after(crc))
        plain = Plain(len(around.before), tensor.dtype, tuple(tensor.shape), crc)
        return place(self._name, start, around.size, plain)

    def _save(self, tensor: torch.Tensor) -> None:
        """Let torch.save write a tensor that is empty, or more than its elements."""
        self._joining.flush()
        sink = _Counting(self._file.write)
        torch.save(tensor.cpu(), sink)  # type: ignore[arg-type]  # torch calls no other methods
        self._position += sink.position

    def _placed(self, write: Callable[[], object]) -> ItemLocation:
        start = self._position
        write()
        return place(self._name, start, self._position - start)

    def _kept(self, memory: memoryview) -> int:
        self._position += len(memory)
        return self._joining.keep(memory, self._file.borrow_summed)

    def _added(self, pieces: Iterable[memoryview]) -> int:
        crc = RunningCrc32()
        for piece in pieces:
            crc.add(piece)
            self._write(piece)
        return crc.value

    def _write(self, data: Any) -> None:
        self._position += len(data)
        self._joining.write(data)


class _Counting:
    """A file for torch.save that counts its own bytes only."""

    def __init__(self, write: Callable[[Any], int]) -> None:
        self._write = write
        self.position = 0

    def write(self, data: Any) -> int:
        size = self._write(data)
        self.position += size
        return size

    def flush(self) -> None:
        """Do nothing: the file is flushed when it is closed."""


def _is_plain(tensor: torch.Tensor) -> bool:
    """Return whether a tensor is fully described by its elements, its dtype and its shape."""
    return type(tensor) in (torch.Tensor, Parameter) and tensor.layout == torch.strided and not tensor.is_quantized
