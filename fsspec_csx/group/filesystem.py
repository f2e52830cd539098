"""SharedFileSystem: a filesystem whose files the processes of a group read together, once."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import IO, Any

from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from fsspec_csx.errors import ObjectChangedError
from fsspec_csx.group.exchange import Piece, exchange, share_size
from fsspec_csx.group.processes import Processes
from fsspec_csx.storage.files import file_size, open_file, unwrap_filesystem
from fsspec_csx.storage.paths import redacted
from fsspec_csx.tensors.crc32 import RunningCrc32
from fsspec_csx.tensors.source import BareSource, SpanReader, Spans
from fsspec_csx.tensors.staging import batches

_BUFFER = 2**20
_READERS = 3
# The details of a file that change with its content.
_CHANGING = ("size", "ETag", "etag", "VersionId", "LastModified", "last_modified", "mtime", "generation")


def shared(fs: AbstractFileSystem | None, path: str, processes: Processes) -> tuple[SharedFileSystem, str]:
    """Return a shared filesystem without fsspec's caches, and the path on it; ``fs`` is None for the local one."""
    fs, path, _ = unwrap_filesystem(fs, path)
    if fs is None:
        fs, path = LocalFileSystem(), os.path.abspath(path)  # LocalFileSystem would expand '~'
    return SharedFileSystem(fs, processes), path


class SharedFileSystem(AbstractFileSystem):  # type: ignore[misc]
    """A filesystem for reading: all processes of a group make the same calls, in the same order.

    Args:
        fs: the same in all processes.
    """

    cachable = False

    def __init__(self, fs: AbstractFileSystem, processes: Processes) -> None:
        super().__init__()
        self._fs = fs
        self._processes = processes
        self.protocol = fs.protocol
        self._strip_protocol = fs._strip_protocol
        if hasattr(fs, "readinto_objects"):
            self.readinto_objects = self._readinto_objects

    def open(self, path: str, mode: str = "rb", **kwargs: Any) -> SharedFile:
        """Open a file. The first process opens the current version, and all others that version."""
        opened: list[IO[bytes]] = []

        def begin() -> tuple[int, dict[str, Any]]:
            opened.append(open_file(self._fs, path))
            return file_size(opened[0]), self._state(path, opened[0])

        try:
            size, state = self._processes.first(f"open {redacted(path)}", begin)
        except BaseException:
            for each in opened:
                each.close()
            raise
        reader = _Reader(self._processes, path, size, lambda: opened[0] if opened else self._again(path, state))
        return SharedFile(reader)

    def _again(self, path: str, state: dict[str, Any]) -> IO[bytes]:
        """Open a file in the version that another process has seen."""
        if hasattr(self._fs, "open_state"):
            known: IO[bytes] = self._fs.open_state(path, state)
            return known
        file = open_file(self._fs, path)
        here = self._state(path, file)
        if any(here.get(key) != state.get(key) for key in _CHANGING):
            file.close()
            reason = f"{redacted(path)} is not the same file in all processes, or was replaced."
            raise ObjectChangedError(reason, "Load it again.")
        return file

    def _state(self, path: str, file: Any) -> dict[str, Any]:
        return _plain(getattr(file, "details", None) or self._fs.info(path))

    def exists(self, path: str, **kwargs: Any) -> bool:
        return bool(self._now(f"look for {redacted(path)}", lambda: bool(self._fs.exists(path))))

    def info(self, path: str, **kwargs: Any) -> Any:
        return self._now(f"ask for {redacted(path)}", lambda: _plain(self._fs.info(path)))

    def ls(self, path: str, detail: bool = False, **kwargs: Any) -> Any:

        def operation() -> Any:
            found = self._fs.ls(path, detail=detail)
            return [_plain(each) for each in found] if detail else found

        return self._now(f"list {redacted(path)}", operation)

    def _now(self, step: str, operation: Callable[[], Any]) -> Any:
        """Return the result of the first process, without cached listings."""

        def fresh() -> Any:
            self._fs.invalidate_cache()
            return operation()

        return self._processes.first(step, fresh)

    def _readinto_objects(self, wanted: Sequence[Any], advance: Callable[[int], object]) -> list[int]:
        """Fill memory from many small objects; see the ``readinto_objects`` of the filesystem."""
        order = sorted(range(len(wanted)), key=lambda number: wanted[number][:2])
        pieces = [Piece(wanted[number][:2], wanted[number].memory) for number in order]
        most = share_size(sum(len(piece.memory) for piece in pieces), self._processes.size)
        read_from = dict(zip((id(piece.memory) for piece in pieces), (wanted[number] for number in order), strict=True))

        def read(share: Sequence[Piece], advance: Callable[[int], object]) -> list[int]:
            found: list[int] = self._fs.readinto_objects([read_from[id(piece.memory)] for piece in share], advance)
            return found

        shares = list(batches(pieces, lambda piece: len(piece.memory), most))
        sizes = exchange(self._processes, "read objects", shares, read, advance=advance, threads=1)
        return [size for _, size in sorted(zip(order, sizes, strict=True))]


class SharedFile(io.BufferedReader):
    """A file that the processes of a group read once; all make the same reads, in the same order."""

    def __init__(self, reader: _Reader) -> None:
        super().__init__(reader, _BUFFER)
        self.readinto_many = reader.readinto_many


class _Reader(SpanReader):
    """The unbuffered file behind ``SharedFile``."""

    def __init__(self, processes: Processes, path: str, size: int, open_it: Callable[[], IO[bytes]]) -> None:
        self._processes = processes
        self._path = path
        self.size = size
        self._open = open_it
        self._file: Any = open_it() if not processes.rank else None

    def readall(self) -> bytes:
        """Read the rest of the file at once; Python's method would read small pieces."""
        rest = bytearray(max(0, self.size - self._position))
        self.readinto(rest)
        return bytes(rest)

    def readinto_many(
        self, spans: Spans, *, advance: Callable[[int], object] = lambda count: None, crc32: bool = False
    ) -> list[int]:
        """Fill memory from many positions; return the CRC-32 of each span if ``crc32``."""
        # In the order of the file, which is the same in all processes.
        order = sorted(range(len(spans)), key=lambda number: (spans[number][0], len(spans[number][1])))
        total = sum(len(memory) for _, memory in spans)
        shares, numbers = _cut(spans, order, share_size(total, self._processes.size))
        if len(shares) > self._processes.rank and self._file is None:
            with self._processes.failing():
                self._file = self._open()
        own = hasattr(self._file, "readinto_many")

        def read(share: Sequence[Piece], advance: Callable[[int], object]) -> list[int]:
            if own:
                crcs: list[int] = self._file.readinto_many(share, advance=advance, crc32=crc32, total=total)
            else:
                crcs = BareSource(self._file, self.size, advance).read(share, crc32=crc32)
            return crcs or [0] * len(share)

        step, threads = f"read {redacted(self._path)}", _READERS if own else 1
        found = exchange(self._processes, step, shares, read, advance=advance, threads=threads)
        if not crc32:
            return []
        crcs = [RunningCrc32() for _ in spans]
        for number, piece, crc in zip(numbers, (piece for share in shares for piece in share), found, strict=True):
            crcs[number].join(crc, len(piece.memory))
        return [each.value for each in crcs]

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        super().close()


def _plain(info: Mapping[str, Any]) -> dict[str, Any]:
    """Return the details of a file with simple types, which any process can unpickle."""
    kinds = (str, int, float, datetime, type(None))
    return {key: value for key, value in info.items() if isinstance(value, kinds)}


def _cut(spans: Spans, order: Sequence[int], size: int) -> tuple[list[list[Piece]], list[int]]:
    """Divide spans into shares of ``size`` bytes; also return the number of the span of each piece."""
    shares: list[list[Piece]] = []
    numbers: list[int] = []
    left = 0
    for number in order:
        start, memory = spans[number]
        while memory:
            if not left:
                shares.append([])
                left = size
            piece = Piece(start, memory[:left])
            shares[-1].append(piece)
            numbers.append(number)
            start, memory, left = start + len(piece.memory), memory[left:], left - len(piece.memory)
    return shares, numbers
