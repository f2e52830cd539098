"""save and load raise the errors of storage, of torch and of the caller's own code unchanged."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import fsspec
import pytest
import torch
from checkpoints import STATE, Point, put, saved, unzipped, zipped
from fsspec.callbacks import Callback
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem

from fsspec_csx.checkpoint.api import load, save
from fsspec_csx.errors import InvalidCheckpointError


def test_missing_file(root: str) -> None:
    """A missing file is a FileNotFoundError."""
    with pytest.raises(FileNotFoundError):
        load(f"{root}/x.pt")


def test_missing_device(root: str) -> None:
    """That a device is not there is torch's to say."""
    path = put(root, saved())
    with pytest.raises(RuntimeError, match="don't know how to restore data location"):
        load(path, map_location="nowhere")


def test_map_location_of_ones_own(root: str) -> None:
    """What the caller's map_location raises comes out as it is."""

    def nowhere(storage: Any, location: str) -> Any:
        raise LookupError(location)

    with pytest.raises(LookupError, match="cpu"):
        load(put(root, saved()), map_location=nowhere)


def test_class_that_cannot_be_loaded(root: str) -> None:
    """What a class of the user's raises where code may run comes out as it is."""
    data = unzipped(saved(Point()))
    pickled = data["archive/data.pkl"].replace(b"Point", b"Ghost")
    with pytest.raises(AttributeError, match="Ghost"):
        load(put(root, zipped({**data, "archive/data.pkl": pickled})), weights_only=False)


def test_full_device() -> None:
    """A device without space is an OSError that says so, not what torch makes of it."""
    with pytest.raises(OSError, match="No space left on device"):
        save({"x": torch.zeros(2**20)}, "/dev/full")


class Faulty(MemoryFileSystem):  # type: ignore[misc]
    """A filesystem whose files fail at a given call, by a given error."""

    protocol = "faulty"
    countdown: int
    error: BaseException | None = None

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.removeprefix("faulty://")))

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        file = super()._open(path, mode, **kwargs)
        made = FaultyFile(self, path, file.getvalue())
        if mode == "wb":
            self.store[path] = made
        return made

    def count(self) -> None:
        self.countdown -= 1
        if self.countdown == 0 and self.error is not None:
            raise self.error


class FaultyFile(MemoryFile):  # type: ignore[misc]
    """Counts the calls that move bytes."""

    def write(self, data: Any) -> int:
        self.fs.count()
        return int(super().write(data))

    def read(self, size: int | None = -1) -> bytes:
        self.fs.count()
        return bytes(super().read(size))

    def readinto(self, buffer: Any) -> int:
        self.fs.count()
        return int(super().readinto(buffer))

    def readline(self, size: int | None = -1) -> bytes:
        self.fs.count()
        return bytes(super().readline(size))


@pytest.fixture
def faulty() -> Iterator[Faulty]:
    """The filesystem behind ``faulty://``."""
    fsspec.register_implementation("faulty", Faulty, clobber=True)
    fs: Faulty = fsspec.filesystem("faulty")
    fs.store.clear()
    yield fs
    fs.store.clear()


ERRORS = [PermissionError(13, "no"), TimeoutError("late"), LookupError("custom"), KeyboardInterrupt(), SystemExit(3)]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_errors_of_writing(faulty: Faulty, error: BaseException) -> None:
    """Whichever write fails, its error comes out as itself and nothing is left behind."""
    faulty.countdown, faulty.error = 0, None
    save(STATE, "faulty://old.pt")
    writes = -faulty.countdown
    for call in range(1, writes + 1):
        faulty.countdown, faulty.error = call, error
        with pytest.raises(type(error)) as caught:
            save(STATE, "faulty://old.pt")
        assert caught.value is error
        assert caught.value.__context__ is None
        assert list(faulty.store) == ["/old.pt"]


@pytest.mark.parametrize("zip_format", [True, False])
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_errors_of_reading(faulty: Faulty, error: BaseException, zip_format: bool) -> None:
    """Whichever read fails, its error comes out as itself."""
    faulty.pipe_file("/x.pt", saved(_use_new_zipfile_serialization=zip_format))
    faulty.countdown, faulty.error = 0, None
    load("faulty://x.pt")
    reads = -faulty.countdown
    for call in range(1, reads + 1):
        faulty.countdown, faulty.error = call, error
        with pytest.raises(type(error)) as caught:
            load("faulty://x.pt")
        assert caught.value is error


def test_errors_while_looking_into_a_bad_file(faulty: Faulty) -> None:
    """An error of storage met while finding out what is wrong with a file comes out as itself."""
    faulty.pipe_file("/x.pt", saved()[:-1000])
    faulty.countdown, faulty.error = 0, None
    with pytest.raises(InvalidCheckpointError):
        load("faulty://x.pt")
    faulty.countdown, faulty.error = -faulty.countdown, PermissionError("no")
    with pytest.raises(PermissionError):
        load("faulty://x.pt")


def test_errors_of_a_callback(root: str) -> None:
    """What the caller's callback raises comes out as itself."""

    class Failing(Callback):  # type: ignore[misc]
        def relative_update(self, inc: int = 1) -> None:
            raise LookupError("callback")

    path = put(root, saved({"x": torch.zeros(2**20)}))
    with pytest.raises(LookupError, match="callback"):
        load(path, callback=Failing())
