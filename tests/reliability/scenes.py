"""What is done to checkpoints while something is killed, and what must be there then."""

from __future__ import annotations

import functools
import itertools
import random
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import torch
from victims import state

from fsspec_csx import distributed, load, save
from fsspec_csx.manage.converting import convert

OLD, NEW = 1, 2


@dataclass
class Stage:
    """Where a scene plays.

    Attributes:
        remote: the URL of an empty folder on S3.
        local: an empty folder.
        store: the storage options for the URL.
        near: the endpoint of the server itself; that of the victim's environment may be another one.
        choice: the source of all that is random.
    """

    remote: str
    local: Path
    store: dict[str, str]
    near: str
    choice: random.Random

    def place(self, name: str, *, remote: bool | None = None) -> str:
        """A path of this name, on S3 or local as it comes."""
        remote = self.choice.random() < 0.7 if remote is None else remote
        return f"{self.remote}/{name}" if remote else str(self.local / name)

    def filesystem(self, path: str) -> tuple[Any, str]:
        """The filesystem of a path, and the path there."""
        options = {**self.store, "use_listings_cache": False} if "://" in path else {}
        return fsspec.url_to_fs(path, **options)  # type: ignore[no-any-return]

    def put(self, path: str, data: bytes) -> str:
        """The path, at which there is a file by then."""
        fs, inner = self.filesystem(path)
        fs.makedirs(fs._parent(inner), exist_ok=True)
        fs.pipe_file(inner, data)
        return path

    def data(self, path: str) -> bytes | None:
        """What is in a file; None if there is none."""
        fs, inner = self.filesystem(path)
        try:
            return bytes(fs.cat_file(inner))
        except FileNotFoundError:
            return None

    def files(self) -> list[str]:
        """The names of all files, on S3 and local."""
        fs, inner = self.filesystem(self.remote)
        # The server keeps empty folders.
        there = [name[len(inner) + 1 :] for name in fs.find(inner) if name != inner and not name.endswith("/")]
        here = [str(path.relative_to(self.local)) for path in self.local.rglob("*") if path.is_file()]
        return sorted([*there, *here])

    def whole(self, path: str) -> int:
        """The seed of a sharded checkpoint."""
        loaded = distributed.whole(path, storage_options=self.store if "://" in path else None)
        assert torch.equal(loaded["large"], state(loaded["step"])["large"])
        return int(loaded["step"])


@dataclass
class Scene:
    """One operation, and what must be.

    Attributes:
        name: what it is called.
        job: the operation of a victim, and its arguments.
        intact: raises AssertionError, if what there was before has been lost, and nothing whole is in its place.
        right: the like, if the operation has not done all that it should.
        stays: the names of all files that are there when it is done; None if their names are random.
        again: the like of ``job`` for a second time; None if nothing is left to be done.
        orphans: the sharded checkpoint that may have shards that nothing names.
    """

    name: str
    job: tuple[Any, ...]
    intact: Callable[[], None]
    right: Callable[[], None]
    stays: list[str] | None
    again: Callable[[], tuple[Any, ...] | None]
    orphans: str = ""


@functools.cache
def blob(seed: int) -> bytes:
    """The bytes of a checkpoint."""
    with tempfile.TemporaryDirectory() as folder:
        save(state(seed), f"{folder}/x.mdl")
        return Path(folder, "x.mdl").read_bytes()


@functools.cache
def halved(seed: int) -> bytes:
    """The bytes of one whose floating-point numbers are of another type."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "x.mdl").write_bytes(blob(seed))
        convert(f"{folder}/x.mdl", f"{folder}/y.mdl", dtype="bfloat16")
        return Path(folder, "y.mdl").read_bytes()


def among(found: bytes | None, *allowed: bytes | None) -> None:
    """Compare what was found with what may be; pytest would print all of it."""
    if found not in allowed:
        told = "nothing" if found is None else f"{len(found)} bytes that are none of those expected"
        raise AssertionError(f"There is {told}.")


def of_save(stage: Stage) -> Scene:
    """Save over a former checkpoint, or in a new place."""
    background = stage.choice.random() < 0.4
    path = stage.place("a.mdl")
    former = stage.choice.choice([OLD, None])
    if former:
        stage.put(path, blob(OLD))
    before = blob(OLD) if former else None
    name = "async_save" if background else "save"
    job = (name, path, NEW)
    return Scene(
        f"{name} {'over an old checkpoint' if former else 'to a new path'}",
        job,
        lambda: among(stage.data(path), before, blob(NEW)),
        lambda: among(stage.data(path), blob(NEW)),
        ["a.mdl"],
        lambda: job,
    )


def of_copy(stage: Stage) -> Scene:
    """Copy or move, up, down, and on S3: between one endpoint and itself, or another one."""
    verb = stage.choice.choice(["copy", "move"])
    way = stage.choice.choice(["up", "down", "within S3", "from S3 to S3"])
    source = stage.put(stage.place("a.mdl", remote=way != "up"), blob(NEW))
    target = stage.place("b.mdl", remote=way != "down")
    former = stage.choice.choice([blob(OLD), None])
    options = ["--force"] if former else []
    if former:
        stage.put(target, former)
    if way == "from S3 to S3":
        options += ["--source-endpoint-url", stage.near]

    def intact() -> None:
        if verb == "move" and stage.data(source) is None:
            among(stage.data(target), blob(NEW))
        else:
            among(stage.data(source), blob(NEW))
            among(stage.data(target), former, blob(NEW))

    def right() -> None:
        among(stage.data(target), blob(NEW))
        among(stage.data(source), None if verb == "move" else blob(NEW))

    def again() -> tuple[Any, ...] | None:
        gone, there = stage.data(source) is None, stage.data(target) == blob(NEW)
        # A copy that was made refuses to be made again, unless it is told to.
        return None if gone or (verb == "copy" and there and not former) else job

    job = ("cszoo", verb, source, target, *options)
    return Scene(f"{verb} {way}", job, intact, right, ["b.mdl"] if verb == "move" else ["a.mdl", "b.mdl"], again)


def of_delete(stage: Stage) -> Scene:
    """Delete a file and two folders, beside others whose names begin alike."""
    remote = stage.choice.random() < 0.7
    named = {
        "a": ["a.mdl"],
        "d": ["d/.metadata", "d/__0_0.distcp", "d/__1_0.distcp"],
        "h": ["h/config.json", "h/model.safetensors.index.json", *(f"h/model-{n:05}-of-00003.bin" for n in range(3))],
    }
    others = ["a.mdl2", "d2/.metadata", "d2/__0_0.distcp", "e/x/y.mdl", "h.mdl"]
    for each in itertools.chain(*named.values(), others):
        stage.put(stage.place(each, remote=remote), each.encode())
    manifests = {"a": "a.mdl", "d": "d/.metadata", "h": "h/model.safetensors.index.json"}

    def intact() -> None:
        there = stage.files()
        assert not {*others} - {*there}, there
        for name, manifest in manifests.items():
            assert manifest not in there or not {*named[name]} - {*there}, there

    def right() -> None:
        assert stage.files() == sorted(others)

    def job() -> tuple[Any, ...] | None:
        there = [name for name, files in named.items() if {*files} & {*stage.files()}]
        paths = [stage.place("a.mdl" if name == "a" else name, remote=remote) for name in there]
        return ("cszoo", "delete", *paths, "--yes") if paths else None

    first = job()
    assert first is not None
    return Scene(f"delete {'on S3' if remote else 'local'}", first, intact, right, sorted(others), job)


def of_prune(stage: Stage) -> Scene:
    """Keep the newest of several checkpoints, beside other files."""
    remote = stage.choice.random() < 0.7
    small = save_small()
    doomed = [f"checkpoint_{number}.mdl" for number in range(1, 9)]
    others = ["checkpoint_9.mdl", "notes.txt"]
    for each in [*doomed, *others]:
        stage.put(stage.place(each, remote=remote), small)
    root = stage.remote if remote else str(stage.local)

    def intact() -> None:
        assert not {*others} - {*stage.files()}
        for each in [*doomed, *others]:
            among(stage.data(stage.place(each, remote=remote)), small, *([] if each in others else [None]))

    def right() -> None:
        assert stage.files() == others

    job = ("cszoo", "prune", root, "--keep", "1", "--yes")
    return Scene(f"prune {'on S3' if remote else 'local'}", job, intact, right, others, lambda: job)


@functools.cache
def save_small() -> bytes:
    """The bytes of a small checkpoint."""
    with tempfile.TemporaryDirectory() as folder:
        save({"w": torch.ones(3)}, f"{folder}/x.mdl")
        return Path(folder, "x.mdl").read_bytes()


def of_convert(stage: Stage) -> Scene:
    """Convert over a former file."""
    source, target = stage.put(stage.place("a.mdl"), blob(NEW)), stage.put(stage.place("b.mdl"), blob(OLD))

    def intact() -> None:
        among(stage.data(source), blob(NEW))
        among(stage.data(target), blob(OLD), halved(NEW))

    job = ("cszoo", "convert", source, target, "--dtype", "bfloat16", "--force")
    right = lambda: among(stage.data(target), halved(NEW))  # noqa: E731
    return Scene("convert over an old checkpoint", job, intact, right, ["a.mdl", "b.mdl"], lambda: job)


def of_distributed(stage: Stage) -> Scene:
    """Save a sharded checkpoint over a former one."""
    path = stage.place("d")
    distributed.save(state(OLD), path, storage_options=stage.store if "://" in path else None)

    def intact() -> None:
        assert stage.whole(path) in (OLD, NEW)

    def right() -> None:
        assert stage.whole(path) == NEW

    job = ("distributed_save", path, NEW)
    return Scene("distributed.save over an old one", job, intact, right, None, lambda: job, path)


def of_training(stage: Stage) -> Scene:
    """Train with checkpoints."""
    root = stage.place("run")
    names = [f"run/checkpoint_{step}.mdl" for step in (2, 4, 6)]
    options = stage.store if "://" in root else None

    def loaded(step: int) -> Any:
        return load(f"{root}/checkpoint_{step}.mdl", storage_options=options)

    def intact() -> None:
        for name in stage.files():
            if name.endswith(".mdl"):
                step = int(name.partition("_")[2][:-4])
                assert loaded(step)["global_step"] == step

    def right() -> None:
        for name, tensor in trained().items():
            assert torch.equal(tensor, loaded(6)["model"][name]), name

    job = ("train", root, 6)
    return Scene("Trainer", job, intact, right, names, lambda: job)


@functools.cache
def trained() -> dict[str, torch.Tensor]:
    """The model of a training that nothing stops."""
    from training import loader, made

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        trainer, _ = made(folder, steps=None, loop={"max_steps": 6, "eval_frequency": 0})
        trainer.fit(loader())
    torch.set_num_threads(threads)
    return dict(trainer.model.state_dict())


SCENES = (of_save, of_copy, of_copy, of_delete, of_prune, of_convert, of_distributed, of_training)
