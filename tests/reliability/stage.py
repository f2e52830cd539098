"""The setting of operations that are killed, and their common code."""

from __future__ import annotations

import functools
import random
import tempfile
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import torch
from victims import CleanProcess, state

from fsspec_csx import load, save
from fsspec_csx.errors import InvalidCheckpointError
from fsspec_csx.manage.convert import convert

OLD, NEW = 1, 2


@dataclass
class Stage:
    """Where a scene plays.

    Attributes:
        remote: the URL of an empty folder on S3.
        local: an empty folder.
        store: the storage options for the URL.
        near: the endpoint of the server itself; that of the victim's environment may be another one.
        clean: the process from which others are forked.
        choice: the source of all that is random.
        is_remote: whether anything is on S3.
    """

    remote: str
    local: Path
    store: dict[str, str]
    near: str
    clean: CleanProcess
    choice: random.Random
    is_remote: bool = False

    def place(self, name: str, *, remote: bool | None = None) -> str:
        """A path of this name, on S3 or local as it comes."""
        remote = self.choice.random() < 0.7 if remote is None else remote
        self.is_remote = self.is_remote or remote
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

    def options(self, path: str) -> dict[str, str] | None:
        """The storage options for a path."""
        return self.store if "://" in path else None

    def seed(self, path: str, *, besides: AbstractSet[str] = frozenset()) -> int | None:
        """That of the checkpoint of any kind that is there, each tensor of which is compared; None if there is none.

        Args:
            path: of the checkpoint.
            besides: the names of values that the old one alone has.
        """
        try:
            loaded = load(path, storage_options=self.options(path))
        except FileNotFoundError:
            return None
        except InvalidCheckpointError as error:
            if "not finish" in str(error):
                return None
            raise
        expected = state(loaded["step"])
        assert loaded.keys() == expected.keys() | (besides if loaded["step"] == OLD else set())
        assert torch.equal(loaded["large"], expected["large"])
        assert loaded["small"].keys() == expected["small"].keys()
        assert all(torch.equal(loaded["small"][name], each) for name, each in expected["small"].items())
        return int(loaded["step"])


@dataclass
class Scene:
    """One operation, and what must be.

    Attributes:
        name: what it is called.
        job: the operation of a victim, and its arguments.
        intact: raises AssertionError, if what there was before has been lost, and nothing whole is in its place.
        right: the same, if the operation has not done all that it should.
        stays: the names of all files that are there when it is done; None if their names are random.
        again: the same as ``job`` for a second time; None if nothing is left to be done.
        orphans: the sharded checkpoint that may have shards that nothing names.
        ranks: how many processes do it together; then its operation is one of ``ranks``.
        seconds: in which most of it is over.
        requests: the number of those of which any may be the last.
    """

    name: str
    job: tuple[Any, ...]
    intact: Callable[[], None]
    right: Callable[[], None]
    stays: list[str] | None
    again: Callable[[], tuple[Any, ...] | None]
    orphans: str = ""
    ranks: int = 1
    seconds: float = 0.7
    requests: int = 12


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
        report = "nothing" if found is None else f"{len(found)} bytes that are none of those expected"
        raise AssertionError(f"There is {report}.")


@functools.cache
def save_small() -> bytes:
    """The bytes of a small checkpoint."""
    with tempfile.TemporaryDirectory() as folder:
        save({"w": torch.ones(3)}, f"{folder}/x.mdl")
        return Path(folder, "x.mdl").read_bytes()
