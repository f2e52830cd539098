"""How the structure of a checkpoint is read."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ReadOptions:
    """How the structure of a checkpoint is read.

    Attributes:
        map_location: as for ``torch.load``; a sharded checkpoint has the CPU alone.
        weights_only: as for ``torch.load``; if False, the checkpoint may run any code.
        wanted: the offsets of the records whose storages go where ``map_location`` has them; others stay on the CPU.
            None for all.
        partial: whether objects of unknown classes become placeholders.
    """

    map_location: Any = "cpu"
    weights_only: bool = True
    wanted: Collection[int] | None = None
    partial: bool = False


ON_CPU = ReadOptions()
"""All of a checkpoint, on the CPU, without running code."""
