"""LazyObject: the content of a file whose tensors are reserved but not filled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Record:
    """The position of a storage's bytes in its file.

    Attributes:
        name: what errors call it, if no tensor's name is known.
        offset: of the first byte, in bytes.
        storage: the storage to fill completely, on any device.
        crc32: the expected CRC-32 of the bytes; None if the format has none.
    """

    name: str
    offset: int
    storage: torch.UntypedStorage
    crc32: int | None = None

    @property
    def place(self) -> tuple[torch.device, int]:
        """The key of the storage, see ``names.place_of``."""
        return self.storage.device, self.storage.data_ptr()

    def differs(self, crc32: int) -> bool:
        """Return whether the record should have another CRC-32."""
        return self.crc32 not in (None, crc32)


@dataclass(frozen=True)
class LazyObject:
    """A saved object whose tensors' storages are not filled yet.

    Attributes:
        obj: the object; its tensors have their dtypes, shapes and strides.
        records: one for each storage that is not empty.
        has_unplaced: whether storages that were not wanted are on the CPU, but belong on other devices.
    """

    obj: Any
    records: list[Record]
    has_unplaced: bool = False
