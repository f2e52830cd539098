"""Resumable downloads: a file beside the target keeps the bytes that have arrived until all have."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import re
from collections.abc import Iterator
from typing import Any

from fsspec.callbacks import Callback
from s3fs.utils import FileExpired

from fsspec_csx.errors import ChecksumError
from fsspec_csx.s3.consistent_read import (
    ObjectMetadata,
    PinnedObject,
    compare_checksum,
    object_metadata,
    retry_if_changed,
)
from fsspec_csx.s3.transport.byte_range import FileRange
from fsspec_csx.s3.transport.checksum import CRC64NVME, Algorithm
from fsspec_csx.s3.transport.range_planning import MIN_REQUEST, size_for
from fsspec_csx.s3.transport.threads import ThreadedContext, in_thread
from fsspec_csx.storage.atomic import add_filename, publish, resolve_target, temporary_path
from fsspec_csx.storage.owned_files import digest, lock, open_owned

# Determines the part size; constant, so that the next run resumes with the same parts.
_IN_FLIGHT = 10
# Bytes of each mark, which follow those of the object: a 1 when the part has arrived, and the part's CRC64NVME.
_MARK = 9
_READ = 2**20


async def resume(fs: Any, rpath: str, version: str | None, lpath: str, callback: Callback, *, exclusive: bool) -> bool:
    """Download an object, resuming an interrupted download if there is one.

    Returns False, with nothing done, if the object is small or has no ETag, or another process downloads it.

    Args:
        exclusive: whether to refuse to replace a local file.
    """
    target, mode = resolve_target(lpath)

    async def fetch() -> bool:
        stamp = await object_metadata(fs, rpath, version)
        if stamp.size <= MIN_REQUEST or not stamp.etag:
            return False
        found = PinnedObject(fs, rpath, version, stamp.etag)
        async with ThreadedContext(_opened((fs._endpoint, str(found)), stamp, target, mode, exclusive)) as file:
            if file is None:
                return False
            callback.set_size(stamp.size)
            kept = await in_thread(file.kept)
            callback.absolute_update(sum(file.span(number)[1] for number in kept))
            await fs.transfer.fetch(found.get, file.missing(kept), callback.relative_update)
            await in_thread(file.finish, found, stamp)
        return True

    return await retry_if_changed(fetch)


class PartialFile:
    """A file with the bytes of an object, which are ``size``, followed by a mark for each part that has arrived."""

    def __init__(self, descriptor: int, size: int) -> None:
        self.descriptor = descriptor
        self._size = size
        self._part = size_for(size, _IN_FLIGHT)
        self._parts = range(-(-size // self._part))
        self.whole = size + _MARK * len(self._parts)
        """The size of the file with the marks, in bytes."""

    def span(self, number: int) -> tuple[int, int]:
        start = number * self._part
        return start, min(self._part, self._size - start)

    def mark(self, number: int, checksum: int) -> None:
        mark = b"\1" + checksum.to_bytes(CRC64NVME.size, "big")
        os.pwrite(self.descriptor, mark, self._size + _MARK * number)

    def marked(self) -> dict[int, int]:
        """Return the numbers of the parts that have arrived, with their checksums."""
        marks = os.pread(self.descriptor, _MARK * len(self._parts), self._size)
        found = {number: marks[_MARK * number :][:_MARK] for number in self._parts}
        return {number: int.from_bytes(mark[1:], "big") for number, mark in found.items() if mark[:1] == b"\1"}

    def kept(self) -> dict[int, int]:
        """Return the marked parts with correct checksums: a power failure may have damaged some."""
        return {number: crc for number, crc in self.marked().items() if self._computed(CRC64NVME, number) == crc}

    def missing(self, kept: dict[int, int]) -> list[FileRange]:
        return [_MarkedRange(self, number) for number in self._parts if number not in kept]

    def _computed(self, algorithm: Algorithm, number: int, checksum: int = 0) -> int:
        """Return the checksum of a part, continued from that of preceding bytes."""
        start, length = self.span(number)
        position, end = start, start + length
        while data := os.pread(self.descriptor, min(_READ, end - position), position):
            position, checksum = position + len(data), algorithm.compute(memoryview(data), checksum)
        return checksum

    def finish(self, name: object, stamp: ObjectMetadata) -> None:
        """Verify the bytes by the server's checksum, or raise ChecksumError; remove the marks, and flush the file."""
        algorithm, crc = stamp.algorithm, 0
        if algorithm is CRC64NVME:
            known = [(crc, self.span(number)[1]) for number, crc in sorted(self.marked().items())]
            crc = functools.reduce(lambda before, part: CRC64NVME.combine(before, *part), known, 0)
        elif algorithm is not None:
            for number in self._parts:
                crc = self._computed(algorithm, number, crc)
        if algorithm is not None:
            compare_checksum(name, algorithm, crc, stamp.checksum)
        os.ftruncate(self.descriptor, self._size)
        os.fsync(self.descriptor)


class _MarkedRange(FileRange):
    """A part of a partial file, marked when it has arrived."""

    def __init__(self, file: PartialFile, number: int) -> None:
        start, length = file.span(number)
        super().__init__(file.descriptor, start, length, check=CRC64NVME.compute)
        self._file, self._number = file, number

    def advance(self, count: int) -> None:
        super().advance(count)
        if self.complete:
            try:
                self._file.mark(self._number, self.checksums()[0][2])
            except OSError as error:
                self.failure = error
                raise


@contextlib.contextmanager
def _opened(
    name: tuple[str, str], stamp: ObjectMetadata, target: str, mode: int | None, exclusive: bool
) -> Iterator[PartialFile | None]:
    """Open the partial file; it becomes the target if the block succeeds, and otherwise stays for the next call."""
    of_object = digest(*name, target)[:8]
    path = temporary_path(target, of_object + digest(stamp.etag, str(stamp.size))[:8])
    _remove_others(path)
    try:
        descriptor = open_owned(path, 0o666 if mode is None else mode)
    except OSError as error:
        if not os.path.lexists(path):
            add_filename(error, target, path)
            raise
        # Another user has put something there; do not write to it, and download everything again.
        yield None
        return
    try:
        if not lock(descriptor):
            yield None
            return
        file = PartialFile(descriptor, stamp.size)
        try:
            if mode is not None:
                os.fchmod(descriptor, mode)
            if os.fstat(descriptor).st_size != file.whole:
                _begin(file, path)
            yield file
            publish(path, target, exclusive=exclusive)
        except BaseException as error:
            if isinstance(error, (ChecksumError, FileExpired)) or not file.marked():
                os.unlink(path)
            add_filename(error, target, path)
            raise
    finally:
        os.close(descriptor)


def _begin(file: PartialFile, path: str) -> None:
    os.ftruncate(file.descriptor, 0)
    status = os.fstatvfs(file.descriptor)
    if status.f_blocks and status.f_bavail * status.f_frsize < file.whole:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.path.dirname(path))
    os.ftruncate(file.descriptor, file.whole)


def _remove_others(path: str) -> None:
    """Remove the partial files of former states of the object, unless another process uses them."""
    folder, name = os.path.split(path)
    kind = re.compile(re.escape(name[: -len("00000000.tmp")]) + r"[0-9a-f]{8}\.tmp")
    for entry in os.scandir(folder):
        if entry.name != name and kind.fullmatch(entry.name):
            with contextlib.suppress(OSError):
                descriptor = os.open(entry.path, os.O_RDWR)
                try:
                    if lock(descriptor):
                        os.unlink(entry.path)
                finally:
                    os.close(descriptor)
