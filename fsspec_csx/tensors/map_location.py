"""Where ``map_location`` has storages go, by the rules of torch.load."""

from __future__ import annotations

from typing import Any

import torch
from torch import serialization


class LocationMapper:
    """Where storages go."""

    def __init__(self, map_location: Any = None) -> None:
        self._map = map_location
        self._devices: dict[str, torch.device] = {}

    def stays(self, location: str) -> bool:
        """Whether a storage of this location is one of the CPU, and the caller's map need not see it."""
        return self._target(location) == "cpu"

    def device(self, location: str) -> torch.device | None:
        """The device that a storage of this location goes to; None if ``placed`` has to see its bytes."""
        target = self._target(location)
        if target is None:
            return None
        if target not in self._devices:
            self._devices[target] = _restored(reserved(0, torch.device("cpu")), target).device
        device = self._devices[target]
        return None if device.type == "cpu" else device  # one of a kind that torch was taught

    def placed(self, storage: torch.UntypedStorage, location: str) -> Any:
        """What torch.load makes of a storage that has its bytes."""
        target = self._target(location)
        if target is not None:
            return _restored(storage, target)
        result = self._map(storage, location)
        return _restored(storage, location) if result is None else result

    def _target(self, location: str) -> str | None:
        """Another location in place of this; None if the caller's map is a callable."""
        if self._map is None:
            return location
        if isinstance(self._map, dict):
            return str(self._map.get(location, location))
        return str(self._map) if isinstance(self._map, (str, torch.device)) else None


def reserved(size: int, device: torch.device) -> torch.UntypedStorage:
    """A storage of a size in bytes, not filled."""
    return torch.UntypedStorage(size, device=device)  # type: ignore[no-untyped-call]


def _restored(storage: torch.UntypedStorage, location: str) -> Any:
    return serialization.default_restore_location(storage, location)  # type: ignore[no-untyped-call]
