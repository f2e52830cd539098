"""A resumed training gets the batches and random numbers of an uninterrupted one, whatever its data."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from thinning import thinned
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, RandomSampler, Sampler, Subset
from torch.utils.data.distributed import DistributedSampler
from torchdata.stateful_dataloader import StatefulDataLoader

from fsspec_csx.errors import InvalidCheckpointError
from fsspec_csx.trainer import Checkpoint, Trainer, TrainingLoop
from fsspec_csx.trainer.batches import Batches

STEPS = 14
SAMPLES = torch.arange(24.0)


class Model(torch.nn.Module):
    """Notes each batch, and draws from every random generator."""

    def __init__(self) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[list[float]] = []

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.seen.append([*batch.tolist(), torch.rand(()).item(), random.random(), numpy.random.random()])
        return (self.w * batch).sum()


class Noisy(Dataset):  # type: ignore[type-arg]
    """Samples with noise from all random generators, which workers and the main process draw."""

    def __len__(self) -> int:
        return 22

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor(index + torch.rand(()).item() + random.random() + numpy.random.random())


class OwnGenerators(Dataset):  # type: ignore[type-arg]
    """Draws from generators that it holds."""

    def __init__(self) -> None:
        self.python = random.Random(1)
        self.numpy = numpy.random.default_rng(1)
        self.older = numpy.random.RandomState(1)

    def __len__(self) -> int:
        return 22

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor(index + self.python.gauss(0, 1) + self.numpy.random() + self.older.normal())


class Shuffled(IterableDataset):  # type: ignore[type-arg]
    """A stream through a buffer: which samples come depends on each draw."""

    def __iter__(self) -> Iterator[torch.Tensor]:
        held: list[int] = []
        for number in range(24):
            held.append(number)
            if len(held) > 6:
                yield torch.tensor(float(held.pop(int(torch.randint(len(held), ())))))
        yield from map(torch.tensor, map(float, held))


class Positioned(IterableDataset):  # type: ignore[type-arg]
    """A stream with a state, as torchdata has it: the passes differ."""

    def __init__(self) -> None:
        self.passes = self.position = 0

    def __iter__(self) -> Iterator[torch.Tensor]:
        while self.position < 22:
            self.position += 1
            yield torch.tensor(100.0 * self.passes + self.position)
        self.passes, self.position = self.passes + 1, 0

    def state_dict(self) -> dict[str, int]:
        return {"passes": self.passes, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.passes, self.position = state["passes"], state["position"]


class Sized(Positioned):
    """The same, of a known length."""

    def __len__(self) -> int:
        return 22


class Counting(Sampler[int]):
    """Orders each pass by how many there were."""

    def __init__(self) -> None:
        self.passes = 0

    def __len__(self) -> int:
        return 22

    def __iter__(self) -> Iterator[int]:
        self.passes += 1
        yield from torch.randperm(22, generator=torch.Generator().manual_seed(self.passes)).tolist()


class Lazy(Sampler[int]):
    """Draws each index when it is requested."""

    def __len__(self) -> int:
        return 24

    def __iter__(self) -> Iterator[int]:
        yield from (random.randrange(24) for _ in range(24))


class Plain:
    """An iterable of batches that is no DataLoader."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(3)

    def __len__(self) -> int:
        return 6

    def __iter__(self) -> Iterator[torch.Tensor]:
        yield from (torch.randn(2, generator=self.generator) + torch.rand(()) for _ in range(6))


def generator() -> torch.Generator:
    """A generator of the loader's own."""
    return torch.Generator().manual_seed(5)


def distributed() -> DataLoader[Any]:
    """Of which the order of each pass depends on ``set_epoch``, below a batch sampler."""
    sampler = DistributedSampler(SAMPLES, num_replicas=2, rank=1, shuffle=True)  # type: ignore[arg-type]
    return DataLoader(SAMPLES, batch_sampler=BatchSampler(sampler, 2, drop_last=False))  # type: ignore[arg-type]


def loader(dataset: Any = SAMPLES, **options: Any) -> DataLoader[Any]:
    """Batches of 4 samples."""
    return DataLoader(dataset, batch_size=4, **options)


def stateful(dataset: Any = SAMPLES, **options: Any) -> Any:
    """The same by torchdata."""
    return StatefulDataLoader(dataset, batch_size=4, **options)


KEPT = {"num_workers": 2, "persistent_workers": True}
LOADERS: dict[str, Callable[[], Any]] = {
    "in order": lambda: loader(),
    "shuffled": lambda: loader(shuffle=True),
    "shuffled by a generator": lambda: loader(shuffle=True, generator=generator()),
    "noise": lambda: loader(Noisy(), shuffle=True),
    "noise, drop_last": lambda: loader(Noisy(), shuffle=True, drop_last=True),
    "noise of generators of its own": lambda: loader(Subset(OwnGenerators(), range(20)), shuffle=True),
    "with replacement": lambda: loader(sampler=RandomSampler(range(24), replacement=True)),
    "sampler that counts": lambda: loader(range(24), sampler=Counting()),
    "sampler that draws late": lambda: loader(sampler=Lazy()),
    "set_epoch": distributed,
    "stream": lambda: loader(Shuffled()),
    "no DataLoader": Plain,
    "a list": lambda: [*SAMPLES.split(4)],
    "stateful, in order": lambda: stateful(),
    "stateful, shuffled": lambda: stateful(shuffle=True),
    "stateful, shuffled by a generator": lambda: stateful(shuffle=True, generator=generator()),
    "stateful, noise": lambda: stateful(Noisy(), shuffle=True),
    "stateful, stream with a state": lambda: stateful(Positioned()),
    "stateful, sampler of torch": lambda: stateful(sampler=RandomSampler(range(24), generator=generator())),
}
WITH_WORKERS: dict[str, Callable[[], Any]] = {
    "workers": lambda: loader(Noisy(), shuffle=True, num_workers=2),
    "workers, by a generator": lambda: loader(Noisy(), shuffle=True, num_workers=2, generator=generator()),
    "workers that stay": lambda: loader(Noisy(), shuffle=True, **KEPT),
    "workers that stay, by a generator": lambda: loader(Noisy(), shuffle=True, generator=generator(), **KEPT),
    "workers that stay, stream": lambda: loader(Shuffled(), **KEPT),
    "stateful workers": lambda: stateful(shuffle=True, num_workers=2),
    "stateful workers that stay": lambda: stateful(shuffle=True, generator=generator(), **KEPT),
    "stateful workers, stream with a state": lambda: stateful(Sized(), num_workers=1),
}
MORE = ["shuffled", "noise", "stream", "stateful, shuffled by a generator"]
"""Of which each kind of loop is tried."""
LOOPS: dict[str, dict[str, Any]] = {
    "plain": {},
    "validated": {"eval_frequency": 2},
    "short": {"steps_per_epoch": 3},
    "accumulated": {"grad_accum_steps": 2},
}


def seen(root: Path, data: Any, steps: int, loop: dict[str, Any], every: int = 1, seed: int = 1) -> list[list[float]]:
    """What the model of a training saw and drew, from where the checkpoints of a folder end."""
    trainer = Trainer(
        device="CPU",
        model=Model,
        optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.0),
        seed=seed,
        loggers=[],
        loop=TrainingLoop(max_steps=steps, **{"eval_frequency": 0, **loop}),
        checkpoint=Checkpoint(steps=every, checkpoint_root=str(root)),
        model_dir=root,
    )
    trainer.fit(data(), loader(Noisy(), shuffle=True) if "eval_frequency" in loop else None)
    model: Any = trainer.model
    return [*model.seen]


def check(root: Path, data: Callable[[], Any], cuts: list[int], loop: dict[str, Any], steps: int = STEPS) -> None:
    """Compare an uninterrupted training with others that processes with other seeds resume."""
    whole = seen(root / "whole", data, steps, loop, every=5)
    parts: list[list[float]] = []
    for number, cut in enumerate([*cuts, steps], 1):
        parts += seen(root / "parts", data, cut, loop, every=3, seed=number)
    per_step = loop.get("grad_accum_steps", 1)
    first = next(
        (number // per_step + 1 for number, each in enumerate(whole) if parts[number : number + 1] != [each]), None
    )
    assert first is None, f"step {first} differs"
    assert len(parts) == len(whole)


@pytest.mark.parametrize(
    ("name", "loop"),
    [
        (name, loop)
        for name in LOADERS
        for loop in LOOPS
        # A pass that is left early has no end at which that stream begins the next.
        if name in MORE or loop == "plain" or (loop == "short" and name != "stateful, stream with a state")
    ],
)
def test_resumed(tmp_path: Path, name: str, loop: str) -> None:
    """In the midst of a pass, at its end and at its first batch, once and again."""
    check(tmp_path, LOADERS[name], [1, 5, 6, 8, 12], LOOPS[loop])


@pytest.mark.slow
@pytest.mark.parametrize("loop", thinned(["plain", "short"], "short"))
@pytest.mark.parametrize("name", thinned(WITH_WORKERS, "workers", "stateful workers that stay"))
def test_resumed_with_workers(tmp_path: Path, name: str, loop: str) -> None:
    """Where other processes load the samples, and draw."""
    check(tmp_path, WITH_WORKERS[name], [4, 6, 9], LOOPS[loop])


def test_by_epochs(tmp_path: Path) -> None:
    """A training of some epochs, stopped at the end of each."""
    for name in ("shuffled by a generator", "stateful, shuffled by a generator"):
        loop = {"num_epochs": 3, "eval_frequency": 0}

        def run(root: Path, loop: dict[str, Any], name: str = name) -> list[list[float]]:
            return seen(root, LOADERS[name], None, loop)  # type: ignore[arg-type]

        whole = run(tmp_path / name / "whole", loop)
        parts = [each for n in (1, 2, 3) for each in run(tmp_path / name / "parts", {**loop, "num_epochs": n})]
        assert len(whole) == 18
        assert parts == whole


def test_workers_that_stay_are_kept() -> None:
    """Workers are started once, and draw other numbers in each pass."""
    data = loader(Noisy(), **KEPT)
    batches = Batches(data)
    passes, workers = [], set()
    for _ in range(3):
        passes.append([batches.next().tolist() for _ in range(6)])
        workers.add(tuple(each.pid for each in data._iterator._workers))  # type: ignore[union-attr, attr-defined]
    assert len(workers) == 1
    assert passes[0] != passes[1] != passes[2] != passes[0]


def test_data_draw_for_themselves() -> None:
    """What data draw does not change what the model draws, and the numbers of both are different ones."""
    batches = Batches(Plain())
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    drawn = [batches.next() for _ in range(3)]
    assert torch.equal(torch.rand(3), expected)
    assert len({*torch.cat(drawn).tolist()}) == 6


def alter(objects: dict[str, Any], name: str, **changes: Any) -> None:
    """Change the state of a generator of numpy."""
    objects[name] = json.dumps({**json.loads(objects[name]), **changes})


@pytest.mark.parametrize(
    "change",
    [
        lambda objects: objects.update({"dataset1.numpy": {}}),
        lambda objects: objects.update({"dataset1.python": [3, torch.ones(2), None]}),
        lambda objects: alter(objects, "dataset1.older", state={"key": [1] * 624, "pos": 10_000_000}),
        lambda objects: alter(objects, "dataset1.older", state={"key": [1] * 3, "pos": 0}),
        lambda objects: alter(objects, "dataset1.numpy", bit_generator="MT19937"),
    ],
)
def test_states_that_make_no_sense(tmp_path: Path, change: Callable[[Any], None]) -> None:
    """States that no generator has are refused."""
    from fsspec_csx import load, save

    name = "noise of generators of its own"
    seen(tmp_path, LOADERS[name], 3, {})
    saved = load(tmp_path / "checkpoint_3.mdl")
    change(saved["batches"][0]["start"]["objects"])
    save(saved, tmp_path / "checkpoint_3.mdl")
    with pytest.raises(InvalidCheckpointError, match="batches"):
        seen(tmp_path, LOADERS[name], 5, {})
