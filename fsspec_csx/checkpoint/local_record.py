"""LocalRecord: the size, the checksum and the remote state of a checkpoint on the local disk."""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import asdict, dataclass
from typing import Any

from fsspec_csx.s3.transport.checksum import CRC64NVME
from fsspec_csx.storage.atomic import atomic_write
from fsspec_csx.storage.files import checksum_of

SUFFIX = ".json"


@dataclass(frozen=True)
class LocalRecord:
    """The record of a local checkpoint, in a JSON file beside it.

    Attributes:
        path: of the remote file, for people.
        number: of the save; later saves have larger numbers.
        size: in bytes.
        crc64nvme: of the bytes, as S3 writes it.
        remote: the state of the remote file after the upload, on S3 its ETag; None before the upload. Empty if unknown,
            or if the file is not to be uploaded any more.
        before: the state of the remote file after the upload of an earlier checkpoint of this name.
        former: the record of the checkpoint that the file has until it is replaced.
    """

    path: str
    number: int
    size: int
    crc64nvme: str
    remote: dict[str, Any] | None = None
    before: dict[str, Any] | None = None
    former: dict[str, Any] | None = None

    @staticmethod
    def read(path: str) -> LocalRecord | None:
        """Read the record of the checkpoint at a path; None if the record or the checkpoint is missing or damaged."""
        with contextlib.suppress(OSError, ValueError, TypeError, RecursionError), open(path + SUFFIX, "rb") as file:
            record = LocalRecord(**json.load(file))
            kinds = {int: (record.number, record.size), str: (record.path, record.crc64nvme)}
            states = (record.remote, record.before, record.former)
            right = all(isinstance(value, kind) for kind, values in kinds.items() for value in values)
            if right and all(isinstance(state, (dict, type(None))) for state in states) and os.path.isfile(path):
                return record
        return None

    def write(self, path: str) -> None:
        with atomic_write(None, path + SUFFIX) as file:
            file.write(json.dumps(asdict(self)).encode())

    def matching(self, path: str) -> LocalRecord | None:
        """Return this record or the former one, whichever matches the bytes at a path; None if neither does."""
        with contextlib.suppress(OSError, TypeError), open(path, "rb") as file:
            checksum = CRC64NVME.encoded(checksum_of(file, CRC64NVME.compute))
            found = os.fstat(file.fileno()).st_size, checksum
            records = [self, *([LocalRecord(**self.former)] if self.former else [])]
            return next((each for each in records if (each.size, each.crc64nvme) == found), None)
        return None


class SummedFile:
    """A file to write to, which computes the size and the CRC64NVME of its bytes."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._crc = 0
        self.size = 0

    def write(self, data: Any) -> int:
        memory = memoryview(data).cast("B")
        self._crc = CRC64NVME.compute(memory, self._crc)
        self.size += len(memory)
        self._file.write(memory)
        return len(memory)

    def flush(self) -> None:
        self._file.flush()

    @property
    def checksum(self) -> str:
        return CRC64NVME.encoded(self._crc)
