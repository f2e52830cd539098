"""Source: reads many spans of a file at once, directly into memory, and caches its first and last bytes."""

from __future__ import annotations

import ctypes
import io
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

import torch

from fsspec_csx.errors import InvalidCheckpointError
from fsspec_csx.tensors.crc32 import RunningCrc32, crc32_of

HEAD = 256 * 2**10
"""How many bytes at the start of a file are read first."""

TAIL = 2**20
"""How many bytes at its end are read with them."""

_PIECE = 16 * 2**20
Spans = Sequence[tuple[int, memoryview]]


def memory_of(storage: torch.UntypedStorage) -> memoryview:
    """Return the writable bytes of a CPU storage; they keep it alive."""
    return memory_at(storage.data_ptr(), storage.nbytes(), storage)


def memory_at(address: int, size: int, owner: object) -> memoryview:
    """Return the writable memory at an address; it keeps its owner alive."""
    array = (ctypes.c_ubyte * size).from_address(address)
    array.owner = owner  # type: ignore[attr-defined]
    return memoryview(array).cast("B") if size else memoryview(bytearray())


class WholeChecksum:
    """The checksum of a file.

    Args:
        algorithm: an ``Algorithm`` of ``s3.transport.checksum``.
        expected: the server's checksum of the file, as text.
    """

    def __init__(self, algorithm: Any, expected: str) -> None:
        self.algorithm = algorithm
        self.expected = expected
        self._parts: dict[int, tuple[int, int]] = {}

    def add(self, spans: Spans, checksums: Iterable[int]) -> None:
        """Add the checksums of spans that were read."""
        for (start, memory), checksum in zip(spans, checksums, strict=True):
            if len(memory) > self._parts.get(start, (0, 0))[0]:
                self._parts[start] = len(memory), checksum

    def of_file(self, size: int, kept: Spans) -> str | None:
        """Return the checksum of the file as text; None if some bytes were not read.

        Args:
            size: of the file, in bytes.
            kept: spans that were also read, without a checksum.
        """
        position = whole = 0
        starts = [*sorted(self._parts), size]
        for start in starts:
            if start < position:
                continue  # read before
            while position < start:
                found = _find(kept, position, start)
                if not found:
                    return None
                whole = self.algorithm.combine(whole, self.algorithm.compute(found, 0), len(found))
                position += len(found)
            if start < size:
                length, checksum = self._parts[start]
                whole = self.algorithm.combine(whole, checksum, length)
                position += length
        encoded: str = self.algorithm.encoded(whole)
        return encoded


def _find(kept: Spans, position: int, end: int) -> memoryview:
    """Return the kept bytes from ``position`` up to ``end`` at most; empty if there are none."""
    found = (
        memory[position - start : end - start] for start, memory in kept if start <= position < start + len(memory)
    )
    return next(found, memoryview(b""))


class Source:
    """A file that is read in spans.

    Its first and last bytes are read first, concurrently, and kept.

    Args:
        file: a seekable binary file object; its ``readinto_many`` is used if it has one, like a ``CSXFile``.
        advance: called many times with the number of bytes read; bytes that are kept do not count.
        tail: how many bytes at its end are read and kept.

    Attributes:
        format: the format of the checkpoint; None for a file, whose first bytes show its format.
    """

    format: ClassVar[str | None] = None
    _sums: WholeChecksum | None = None

    def __init__(
        self, file: Any, size: int, advance: Callable[[int], object] = lambda count: None, *, tail: int = TAIL
    ) -> None:
        self.file = file
        self.size = size
        self.advance = advance
        self._kept: list[tuple[int, memoryview]] = []
        if size <= HEAD + tail:
            self._keep([(0, size)])
        else:
            self._keep([(0, HEAD), (size - tail, tail)])

    @property
    def files(self) -> set[str] | None:
        """The names of the checkpoint's files in its folder; None for a file, or if all files belong to it."""
        return None

    @property
    def stored(self) -> int:
        """The stored size in bytes."""
        return self.size

    def select_keys(self, keys: Any, name: str) -> Any:
        """Choose the files to read for some keys, if the checkpoint has many files.

        Return the keys, which can be iterated several times; see ``checkpoint.load``.

        Raises:
            MissingEntryError: if a checkpoint of many files has no entry with a name in ``keys``.
        """
        return keys if keys is None or callable(keys) or isinstance(keys, str) else list(keys)

    @property
    def kept(self) -> int:
        """The number of bytes kept in memory."""
        return sum(len(memory) for _, memory in self._kept)

    def _keep(self, ranges: Sequence[tuple[int, int]]) -> None:
        spans = [(start, memoryview(bytearray(length))) for start, length in ranges if length]
        self._read(spans, lambda count: None, crc32=False)
        self._kept += spans

    def start_checksum(self) -> None:
        """Compute the checksum of all further reads, if the server has one of the whole file."""
        known = self.file.object_checksum() if hasattr(self.file, "object_checksum") else None
        if known is not None:
            self._sums = WholeChecksum(*known)

    def verify_whole(self, name: str) -> None:
        """Compare the checksum since ``start_checksum`` with that of the server, if the whole file was read.

        Raises:
            InvalidCheckpointError: if they differ.
        """
        if self._sums is None:
            return
        actual = self._sums.of_file(self.size, self._kept)
        if actual not in (None, self._sums.expected):
            if hasattr(self.file, "forget_cached"):
                self.file.forget_cached()
            reason = f"{name} is damaged: the checksum of all that was read is {actual}; the server has "
            remedy = "Load it again; if that does not help, the network or the server damages data."
            raise InvalidCheckpointError(f"{reason}{self._sums.expected}.", remedy)

    def close(self) -> None:
        """Close the files that it opened itself."""

    def head(self, size: int) -> bytes:
        """Return the first bytes, fewer if the file is smaller."""
        (found,) = self.bytes_of([(0, min(self.size, size))])
        return found

    def bytes_of(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Return the bytes of many ranges, each given by start and length in bytes."""
        spans = [(start, memoryview(bytearray(length))) for start, length in ranges]
        self.read(spans)
        return [memory.tobytes() for _, memory in spans]

    def read(self, spans: Spans, *, crc32: bool = False) -> list[int]:
        """Fill memory from many positions.

        Args:
            spans: positions in bytes, each with writable memory to fill (contiguous bytes), in any order.

        Returns:
            The CRC-32 of each span, in order; an empty list unless ``crc32``.
        """
        missing = []
        crcs = [0] * len(spans)
        for number, (start, memory) in enumerate(spans):
            kept = self._find(start, len(memory))
            if kept is None:
                missing.append(number)
                continue
            memory[:] = kept
            if crc32:
                crcs[number] = crc32_of(kept)
        if missing:
            answers = self._read([spans[number] for number in missing], self.advance, crc32=crc32)
            for number, crc in zip(missing, answers, strict=False):
                crcs[number] = crc
        return crcs if crc32 else []

    def _find(self, start: int, length: int) -> memoryview | None:
        for position, memory in self._kept:
            if position <= start and start + length <= position + len(memory):
                return memory[start - position : start - position + length]
        return None

    def _read(self, spans: Spans, advance: Callable[[int], object], *, crc32: bool) -> list[int]:
        if self._sums is not None and not crc32:
            found = self.file.readinto_many(spans, advance=advance, algorithm=self._sums.algorithm)
            self._sums.add(spans, found)
            return []
        if hasattr(self.file, "readinto_many"):
            crcs: list[int] = self.file.readinto_many(spans, advance=advance, crc32=crc32)
            return crcs
        crcs = [0] * len(spans)
        for number in sorted(range(len(spans)), key=lambda number: spans[number][0]):  # in file order, for read-ahead
            crcs[number] = self._read_one(*spans[number], advance, crc32=crc32)
        return crcs

    def _read_one(self, start: int, memory: memoryview, advance: Callable[[int], object], *, crc32: bool) -> int:
        self.file.seek(start)
        done, crc = 0, RunningCrc32()
        while done < len(memory):
            piece = memory[done : done + _PIECE]
            count = read_some(self.file, piece)
            if not count:
                msg = f"The file ended at byte {start + done}, and had {self.size} bytes when it was opened. Try again."
                raise OSError(msg)
            if crc32:
                crc.add(piece[:count])
            advance(count)
            done += count
        return crc.value


def read_some(file: Any, buffer: Any) -> int:
    """Fill a buffer from a file by one read, and return the number of bytes; the file may have no ``readinto``."""
    if hasattr(file, "readinto"):
        return int(file.readinto(buffer) or 0)
    memory = memoryview(buffer).cast("B")
    data = file.read(len(memory))
    memory[: len(data)] = data
    return len(data)


class SpanReader(io.RawIOBase):
    """An unbuffered file for reading, of ``size`` bytes; subclasses define how to read them."""

    size: int
    _position = 0

    def readinto_many(self, spans: Spans) -> list[int]:
        """Fill memory from many positions, see ``CSXFile.readinto_many``."""
        raise NotImplementedError

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self._position = max(0, offset + (0, self._position, self.size)[whence])
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer; only at the end of the file it is not filled."""
        memory = memoryview(buffer).cast("B")[: max(0, self.size - self._position)]
        self.readinto_many([(self._position, memory)])
        self._position += len(memory)
        return len(memory)


class BareSource(Source):
    """A file whose first and last bytes are not needed, because all positions are known."""

    def _keep(self, ranges: Sequence[tuple[int, int]]) -> None:
        pass
