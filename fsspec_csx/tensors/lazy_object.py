"""What a file holds, with its tensors' memory reserved but not filled yet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Record:
    """Where the bytes of a storage lie in its file.

    Attributes:
        name: what errors call it, where no tensor's name is known.
        offset: of the first byte, in bytes.
        storage: what they are to fill, all of it; on any device.
        crc32: the CRC-32 that the bytes must have; None where the format has none.
    """

    name: str
    offset: int
    storage: torch.UntypedStorage
    crc32: int | None = None

    @property
    def place(self) -> tuple[torch.device, int]:
        """The place of a tensor on the storage, see ``names.place_of``."""
        return self.storage.device, self.storage.data_ptr()

    def differs(self, crc32: int) -> bool:
        """Whether the record must have another CRC-32."""
        return self.crc32 not in (None, crc32)


@dataclass(frozen=True)
class LazyObject:
    """An object as it was saved, whose tensors' storages are still to be filled.

    Attributes:
        obj: the object; its tensors have their dtypes, shapes and strides.
        records: one for each storage that has bytes.
        left: whether there are storages on the CPU, as they were not wanted, that belong on other devices.
    """

    obj: Any
    records: list[Record]
    left: bool = False
