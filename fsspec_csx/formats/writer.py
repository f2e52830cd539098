"""CheckpointWriter: an object that is to be saved, in any format."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fsspec import AbstractFileSystem

from fsspec_csx.storage.atomic import atomic_write


@dataclass(frozen=True)
class Target:
    """Where a checkpoint is written.

    Attributes:
        fs: the filesystem; None for the local one.
        path: the path on it.
        name: what errors call it.
    """

    fs: AbstractFileSystem | None
    path: str
    name: str


class CheckpointWriter(ABC):
    """An object that is to be saved, checked already: what its format cannot hold was refused.

    Attributes:
        nbytes: about how many bytes will be written.
    """

    nbytes: int

    @abstractmethod
    def save(
        self, target: Target, *, advance: Callable[[int], object], commit: Callable[[], object] = lambda: None
    ) -> None:
        """Write the checkpoint; the files may use the tensors' own memory until this returns.

        Args:
            target: where to.
            advance: called many times with the number of bytes that were written.
            commit: called when only the step is left that makes the checkpoint visible.

        Raises:
            Exception: raised by the filesystem, ``advance`` or ``commit``; the old checkpoint is untouched then.
        """

    @abstractmethod
    def free(self) -> None:
        """Let go of the object, or its copy."""


class FileWriter(CheckpointWriter):
    """An object that is to be saved to one file."""

    def save(
        self, target: Target, *, advance: Callable[[int], object], commit: Callable[[], object] = lambda: None
    ) -> None:
        with atomic_write(target.fs, target.path) as file:
            self.write(file, advance=advance)
            commit()

    @abstractmethod
    def write(self, file: Any, *, advance: Callable[[int], object]) -> None:
        """Write to a file, which may use the tensors' own memory until it is closed, while this object lives.

        Args:
            file: a binary file object; its ``expect_size`` and ``write_borrowed`` are used where it has them.
            advance: see ``save``.
        """


def expect_size(file: Any, size: int) -> None:
    """Prepare a file for about so many bytes, where it can be."""
    if hasattr(file, "expect_size"):
        file.expect_size(size)
