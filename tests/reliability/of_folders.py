"""Scenarios of checkpoints that are folders, and of a training that makes several."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from place import Place, equal, state, torch_state
from scenario import BETWEEN, NEW, OLD, Scenario, read, which
from torch.utils.data import DataLoader

import fsspec_csx
from fsspec_csx import distributed
from fsspec_csx.errors import CSXError
from fsspec_csx.storage.atomic import is_temporary
from fsspec_csx.trainer import Checkpoint, Trainer, TrainingLoop

# -- torch.distributed.checkpoint and Cerebras -------------------------------------------------------------------------

_SHARDED, _CEREBRAS = "sharded", "cerebras.mdl"


def _url_past_the_proxy(place: Place, name: str) -> tuple[str, dict[str, Any]]:
    options = {**place.server.storage_options(), "skip_instance_cache": True, "use_listings_cache": False}
    return f"{place.url}/{name}", {"storage_options": options}


def _put_sharded(place: Place) -> None:
    path, options = _url_past_the_proxy(place, _SHARDED)
    distributed.save(dict(state(1)), path, **options)
    place.notes["former"] = place.names()


def _sharded_found(place: Place, _: Any) -> str:
    path, options = _url_past_the_proxy(place, _SHARDED)
    found = which(distributed.whole(path, **options), state(1), state(2), equal)
    return BETWEEN if found == OLD and place.names() != place.notes["former"] else found


def _load_sharded(place: Place) -> Any:
    target = {"model": {name: torch.zeros_like(each) for name, each in state(1)["model"].items()}, "step": 0}
    distributed.load(target, f"{place.url}/{_SHARDED}")
    return target


def _put_cerebras(place: Place) -> None:
    path, options = _url_past_the_proxy(place, _CEREBRAS)
    fsspec_csx.save(state(1), path, format="cerebras", **options)


def _cerebras_found(place: Place, _: Any) -> str:
    path, options = _url_past_the_proxy(place, _CEREBRAS)
    try:
        return which(fsspec_csx.load(path, **options), state(1), state(2), equal)
    except CSXError:
        return BETWEEN  # there is no checkpoint from the first object on to the last


FOLDERS = [
    Scenario(
        "distributed.save",
        _put_sharded,
        lambda place: distributed.save(dict(state(2)), f"{place.url}/{_SHARDED}"),
        _sharded_found,
    ),
    Scenario(
        "distributed.load",
        _put_sharded,
        _load_sharded,
        lambda place, value: read(state(1), value, equal),
    ),
    Scenario(
        "save for Cerebras",
        _put_cerebras,
        lambda place: fsspec_csx.save(state(2), f"{place.url}/{_CEREBRAS}", format="cerebras"),
        _cerebras_found,
    ),
    Scenario(
        "load of Cerebras",
        _put_cerebras,
        lambda place: fsspec_csx.load(f"{place.url}/{_CEREBRAS}"),
        lambda place, value: read(state(1), value, equal),
    ),
]


# -- the Trainer -------------------------------------------------------------------------------------------------------

_WIDTH = 700
_BETWEEN, _LAST = 2, 4


class _Model(torch.nn.Linear):
    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        """The loss."""
        return (super().forward(batch) - batch).square().mean()


def _train(root: str, folder: Path, steps: int) -> None:
    trainer = Trainer(
        device="CPU",
        model_dir=str(folder / "model_dir"),
        model=lambda: _Model(_WIDTH, _WIDTH),
        optimizer=lambda model: torch.optim.AdamW(model.parameters(), lr=0.01),
        loop=TrainingLoop(max_steps=steps, eval_frequency=0),
        checkpoint=Checkpoint(steps=_BETWEEN, checkpoint_root=root),
        loggers=[],
        seed=3,
    )
    samples = torch.randn(8, _WIDTH, generator=torch.Generator().manual_seed(1))
    trainer.fit(DataLoader(samples, batch_size=4, shuffle=True))


@cache
def _unharmed() -> dict[str, bytes]:
    """The checkpoints of a training on this machine to which nothing happens."""
    with TemporaryDirectory() as name:
        _train(name, Path(name), _LAST)
        return {each.name: each.read_bytes() for each in Path(name).glob("checkpoint_*.mdl")}


def _put_first(place: Place) -> None:
    place.put(f"checkpoint_{_BETWEEN}.mdl", _unharmed()[f"checkpoint_{_BETWEEN}.mdl"])


def _trained(place: Place, _: Any) -> str:
    """Whatever is there must be what the training to which nothing happened has at that step."""
    expected = _unharmed()
    # The file by which it is tried whether a folder can be written to stays where it cannot be deleted, until gc comes.
    left = {name for name in place.notes["not deleted"] if is_temporary(name)}
    found = {name: torch_state(place.get(name)) for name in place.names() - left}
    for name, value in found.items():
        if name not in expected:
            return f"there is {name} besides"
        if not isinstance(value, dict):
            return f"{name}: {value}"
        for entry in ("model", "optimizer"):
            if not equal(value[entry], torch_state(expected[name])[entry]):
                return f"{name} is not that of a training to which nothing happens"
    whole = {f"checkpoint_{step}.mdl" for step in (_BETWEEN, _LAST)}
    return NEW if found.keys() == whole else BETWEEN


TRAININGS = [
    Scenario(
        "training",
        lambda place: None,
        lambda place: _train(place.url, place.folder, _LAST),
        _trained,
    ),
    Scenario(
        "training resumed",
        _put_first,
        lambda place: _train(place.url, place.folder, _LAST),
        lambda place, _: _trained(place, _) if place.names() else "the checkpoint that was there is gone",
    ),
]
