"""CheckpointWriter: saves an object in any format."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fsspec import AbstractFileSystem

from fsspec_csx.storage.atomic import atomic_write


@dataclass(frozen=True)
class Target:
    """Where to write a checkpoint.

    Attributes:
        fs: the filesystem; None for the local one.
        path: the path on it.
        name: what errors call it.
    """

    fs: AbstractFileSystem | None
    path: str
    name: str


class CheckpointWriter(ABC):
    """Saves an object that its format can hold.

    Attributes:
        nbytes: about how many bytes will be written.
    """

    nbytes: int

    @abstractmethod
    def save(
        self, target: Target, *, advance: Callable[[int], object], commit: Callable[[], object] = lambda: None
    ) -> None:
        """Write the checkpoint; until this returns, the files may use the tensors' own memory.

        Args:
            target: where to write.
            advance: called many times with the number of bytes written.
            commit: called before the last step, which makes the checkpoint visible.

        Raises:
            Exception: any error of the filesystem, ``advance`` or ``commit``; the old checkpoint is untouched then.
        """

    @abstractmethod
    def free(self) -> None:
        """Release the object or its copy."""


class FileWriter(CheckpointWriter):
    """Saves an object to one file."""

    def save(
        self, target: Target, *, advance: Callable[[int], object], commit: Callable[[], object] = lambda: None
    ) -> None:
        with atomic_write(target.fs, target.path) as file:
            self.write(file, advance=advance)
            send_written(file, lambda: advance(0))
            commit()

    @abstractmethod
    def write(self, file: Any, *, advance: Callable[[int], object]) -> None:
        """Write to a file. Until the file is closed, it may use the tensors' own memory, and this object must live.

        Args:
            file: a binary file object; its ``expect_size``, ``write_borrowed`` and ``write_summed`` are used if it has
                them.
            advance: see ``save``.
        """


def expect_size(file: Any, size: int, *, copied: bool) -> None:
    """Announce about how many bytes a file will get, and whether it must copy many, if it has a method for that."""
    if hasattr(file, "expect_size"):
        file.expect_size(size, copied=copied)


def send_written(file: Any, check: Callable[[], object]) -> None:
    """Wait until a complete file is sent, if it sends in the background; ``check`` is called meanwhile, and may raise.

    Otherwise closing it would wait for that, and could not be cancelled.
    """
    if hasattr(file, "send_written"):
        file.send_written(check)
