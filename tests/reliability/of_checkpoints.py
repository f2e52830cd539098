"""Scenarios of checkpoints that are one file: save, load, copy, move, delete, list."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from place import Place, as_safetensors, as_torch, equal, safetensors_state, state, torch_state
from scenario import BETWEEN, NEW, OLD, UNSEEN, Scenario, alone, read, which

import fsspec_csx
from fsspec_csx.manage.delete import delete, targets
from fsspec_csx.manage.list import checkpoints

_TORCH, _SAFETENSORS = "run/checkpoint_1.mdl", "run/model.safetensors"
_LOCAL = "checkpoint_1.mdl"


def _put(name: str, written: Callable[[int], bytes], number: int = 1) -> Callable[[Place], object]:
    return lambda place: place.put(name, written(number))


# -- save --------------------------------------------------------------------------------------------------------------


def _torch_found(place: Place, _: Any) -> str:
    return alone(place, _TORCH) or which(torch_state(place.get(_TORCH)), state(1), state(2), equal)


def _safetensors_found(place: Place, _: Any) -> str:
    there_is = safetensors_state(place.get(_SAFETENSORS))
    return alone(place, _SAFETENSORS) or which(there_is, state(1)["model"], state(2)["model"], equal)


SAVES = [
    Scenario(
        "save",
        _put(_TORCH, as_torch),
        lambda place: fsspec_csx.save(state(2), f"{place.url}/{_TORCH}"),
        _torch_found,
    ),
    Scenario(
        "save safetensors",
        _put(_SAFETENSORS, as_safetensors),
        lambda place: fsspec_csx.save(state(2)["model"], f"{place.url}/{_SAFETENSORS}"),
        _safetensors_found,
    ),
    Scenario(
        "async_save",
        _put(_TORCH, as_torch),
        lambda place: fsspec_csx.async_save(state(2), f"{place.url}/{_TORCH}").result(),
        _torch_found,
    ),
]


# -- load --------------------------------------------------------------------------------------------------------------


def _loaded_into(place: Place) -> Any:
    target = {"model": {name: torch.zeros_like(each) for name, each in state(1)["model"].items()}, "step": 0}
    return fsspec_csx.load(f"{place.url}/{_TORCH}", into=target)


_PART = {"model": {"second": state(1)["model"]["second"]}}
LOADS = [
    Scenario(
        "load",
        _put(_TORCH, as_torch),
        lambda place: fsspec_csx.load(f"{place.url}/{_TORCH}"),
        lambda place, value: read(state(1), value, equal),
    ),
    Scenario(
        "load safetensors",
        _put(_SAFETENSORS, as_safetensors),
        lambda place: fsspec_csx.load(f"{place.url}/{_SAFETENSORS}"),
        lambda place, value: read(state(1)["model"], value, equal),
    ),
    Scenario(
        "load some keys",
        _put(_TORCH, as_torch),
        lambda place: fsspec_csx.load(f"{place.url}/{_TORCH}", keys=["model.second"]),
        lambda place, value: read(_PART, value, equal),
    ),
    Scenario(
        "load some keys of safetensors",
        _put(_SAFETENSORS, as_safetensors),
        lambda place: fsspec_csx.load(f"{place.url}/{_SAFETENSORS}", keys=["second"]),
        lambda place, value: read(_PART["model"], value, equal),
        UNSEEN,
    ),
    Scenario(
        "load into tensors",
        _put(_TORCH, as_torch),
        _loaded_into,
        lambda place, value: read(state(1), value, equal),
    ),
]


# -- copy, move, delete, list ------------------------------------------------------------------------------------------


def _local_and_remote(place: Place) -> None:
    (place.folder / _LOCAL).write_bytes(as_torch(2))
    place.put(_TORCH, as_torch(1))


def _downloaded(place: Place, _: Any) -> str:
    beside = place.local() - {_LOCAL}
    if beside and not place.notes.get("goes on"):
        return f"there are {sorted(beside)} besides"
    return which((place.folder / _LOCAL).read_bytes(), as_torch(2), as_torch(1))


def _copied(place: Place, _: Any) -> str:
    if alone(place, _TORCH, "copy.mdl") or place.get(_TORCH) != as_torch(1):
        return alone(place, _TORCH, "copy.mdl") or "the source is not what it was"
    return which(place.get("copy.mdl"), None, as_torch(1))


def _moved(place: Place, _: Any) -> str:
    source, target = place.get(_TORCH), place.get("moved.mdl")
    if alone(place, _TORCH, "moved.mdl") or (source, target) == (as_torch(1), None):
        return alone(place, _TORCH, "moved.mdl") or OLD
    if target != as_torch(1) or source not in (None, as_torch(1)):
        return "neither the source nor the target is whole"
    return BETWEEN if source else NEW


def _moved_down(place: Place, _: Any) -> str:
    source, local = place.get(_TORCH), (place.folder / _LOCAL).read_bytes()
    if (beside := place.local() - {_LOCAL}) and not place.notes.get("goes on"):
        return f"there are {sorted(beside)} besides"
    if (source, local) == (as_torch(1), as_torch(2)):
        return OLD
    if local != as_torch(1) or source not in (None, as_torch(1)):
        return "neither the source nor the target is whole"
    return BETWEEN if source else NEW


_TO_DELETE = [f"run/checkpoint_{number}.mdl" for number in range(3)]
_STAYS = "run/checkpoint_20.mdl"


def _put_targets(place: Place) -> None:
    for name in (*_TO_DELETE, _STAYS):
        place.put(name, b"checkpoint")


def _deleted(place: Place) -> None:
    to_delete = targets([f"{place.url}/{name}" for name in _TO_DELETE])
    for error in delete(to_delete).values():
        raise error


def _targets_left(place: Place, _: Any) -> str:
    left = place.names() - {_STAYS}
    if place.get(_STAYS) != b"checkpoint" or left - set(_TO_DELETE):
        return "something else was deleted or made"
    return NEW if not left else OLD if left == set(_TO_DELETE) else BETWEEN


CARRIED = [
    Scenario(
        "copy up",
        _local_and_remote,
        lambda place: fsspec_csx.copy(place.folder / _LOCAL, f"{place.url}/{_TORCH}", overwrite=True),
        lambda place, _: alone(place, _TORCH) or which(place.get(_TORCH), as_torch(1), as_torch(2)),
        goes_on=True,
    ),
    Scenario(
        "copy down",
        _local_and_remote,
        lambda place: fsspec_csx.copy(f"{place.url}/{_TORCH}", place.folder / _LOCAL, overwrite=True),
        _downloaded,
        goes_on=True,
    ),
    Scenario(
        "copy from S3 to S3",
        _put(_TORCH, as_torch),
        lambda place: fsspec_csx.copy(f"{place.url}/{_TORCH}", f"{place.url}/copy.mdl"),
        _copied,
        goes_on=True,
    ),
    Scenario(
        "move from S3 to S3",
        _put(_TORCH, as_torch),
        lambda place: fsspec_csx.move(f"{place.url}/{_TORCH}", f"{place.url}/moved.mdl"),
        _moved,
        goes_on=True,
    ),
    Scenario(
        "move down",
        _local_and_remote,
        lambda place: fsspec_csx.move(f"{place.url}/{_TORCH}", place.folder / _LOCAL, overwrite=True),
        _moved_down,
        goes_on=True,
    ),
    Scenario("delete", _put_targets, _deleted, _targets_left),
    Scenario(
        "list",
        _put_targets,
        lambda place: [found.path.rpartition("/")[2] for found in checkpoints(f"{place.url}/run")],
        lambda place, value: read([name.rpartition("/")[2] for name in (*_TO_DELETE, _STAYS)], value),
    ),
]
