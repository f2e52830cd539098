"""Shard: a file of items that follow each other, each a file of torch.save."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.nn import Parameter
from zlib_ng import zlib_ng

from fsspec_csx.formats.dcp.manifest import ItemLocation, Plain, place
from fsspec_csx.formats.io_wrappers import TrackingWriter
from fsspec_csx.formats.torch_zip.single_tensor_archive import frame
from fsspec_csx.tensors.source import memory_at

# Tensors below so many bytes are joined with what is around them, up to about so many.
_SMALL, _JOINED = 64 * 1024, 2**20
_STAGED = 16 * 2**20


class Shard:
    """A shard that is being written.

    Args:
        file: a binary file object; ``write_borrowed`` is used where it has one.
        name: its name in the folder of the checkpoint.
        held: whether the tensors stay as they are until the file is closed, so that their memory may be sent later.
        advance: called many times with the number of bytes that were written.
    """

    def __init__(
        self, file: Any, name: str, *, held: bool, advance: Callable[[int], object] = lambda count: None
    ) -> None:
        self._file = TrackingWriter(file, advance)
        self._name = name
        self._held = held
        self._position = 0
        self._joined = bytearray()
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
        self._hand_on()

    def _add_plain(self, tensor: torch.Tensor) -> ItemLocation:
        around = frame(tensor.dtype, tuple(tensor.shape))
        ready = tensor.resolve_conj().resolve_neg().contiguous()
        if around is None:
            return self._placed(lambda: self._save(ready))
        start = self._position
        self._write(around.before)
        crc = self._write_memory(ready, held=self._held and ready.data_ptr() == tensor.data_ptr())
        self._write(around.after(crc))
        plain = Plain(len(around.before), tensor.dtype, tuple(tensor.shape), crc)
        return place(self._name, start, around.size, plain)

    def _write_memory(self, tensor: torch.Tensor, *, held: bool) -> int:
        """Write the bytes of a row-major tensor, and return their CRC-32."""
        if tensor.device.type == "cpu":
            memory = memory_at(tensor.data_ptr(), tensor.nbytes, tensor)
            self._write(memory, held=held)
            return int(zlib_ng.crc32(memory))
        crc = 0
        for piece in _staged(tensor):
            crc = zlib_ng.crc32(piece, crc)
            self._write(piece)
        return crc

    def _save(self, tensor: torch.Tensor) -> None:
        """As torch.save has it: for tensors that are more than their elements, and those without any."""
        self._hand_on()
        sink = _Counting(self._file.write)
        torch.save(tensor.cpu(), sink)  # type: ignore[arg-type]  # all that torch calls is there
        self._position += sink.position

    def _placed(self, write: Callable[[], object]) -> ItemLocation:
        start = self._position
        write()
        return place(self._name, start, self._position - start)

    def _write(self, data: Any, *, held: bool = False) -> None:
        self._position += len(data)
        if len(data) < _SMALL:
            self._joined += data
            if len(self._joined) >= _JOINED:
                self._hand_on()
            return
        self._hand_on()
        (self._file.borrow if held else self._file.write)(data)

    def _hand_on(self) -> None:
        if self._joined:
            self._file.write(bytes(self._joined))
            self._joined.clear()


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


def _staged(tensor: torch.Tensor) -> Iterator[memoryview]:
    """The bytes of a tensor of another device, in pieces whose memory is used again."""
    there = tensor.reshape(-1).view(torch.uint8)
    size = min(_STAGED, len(there))
    here = torch.empty(size, dtype=torch.uint8, device="cpu", pin_memory=there.device.type == "cuda")
    for start in range(0, len(there), _STAGED):
        piece = there[start : start + _STAGED]
        here[: len(piece)].copy_(piece)
        yield memory_at(here.data_ptr(), len(piece), here)
