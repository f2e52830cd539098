"""CheckpointWriter: writes an object to a file, in the format of the file's suffix; ``writer_of`` any format."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import fsspec

from fsspec_csx.formats.cerebras.writer import CerebrasWriter
from fsspec_csx.formats.io_wrappers import TrackingWriter
from fsspec_csx.formats.safetensors import writer as safetensors_writer
from fsspec_csx.formats.safetensors.writer import Prepared
from fsspec_csx.formats.torch_zip import structure_limits
from fsspec_csx.formats.torch_zip.layout import Layout, plan_archive
from fsspec_csx.formats.torch_zip.pickled import Pickled
from fsspec_csx.storage.atomic import atomic_write


class CheckpointWriter:
    """An object that is to be written: as ``torch.save`` does it, or under the suffix ``.safetensors`` in that format.

    Args:
        obj: it must not change until the file is closed, unless it is copied.
        path: whose suffix counts.
        copied: whether to copy what is to be saved.

    Attributes:
        nbytes: about how many bytes will be written.

    Raises:
        ValueError: if the format cannot hold the object; it names the entry.
        Exception: what pickle raised for an object that cannot be saved.
    """

    def __init__(self, obj: Any, path: str, *, copied: bool = False) -> None:
        self._prepared: Prepared | None = None
        self._pickled: Pickled | None = None
        self._layout: Layout | None = None
        self._safetensors = path.endswith(".safetensors")
        if self._safetensors:
            self._prepared = safetensors_writer.prepared(obj)
            self.nbytes = len(self._prepared.header) + sum(each.nbytes for each in self._prepared.tensors)
            if not copied:
                return
        else:
            structure_limits.check_depth(obj)
        self._prepared = None
        self._pickled = Pickled(obj, copied=copied)
        self._layout = None if copied else plan_archive(self._pickled)
        if not self._safetensors:
            self.nbytes = (self._layout or self._pickled).nbytes

    def save(
        self,
        fs: fsspec.AbstractFileSystem | None,
        path: str,
        *,
        name: str,
        advance: Callable[[int], object],
        commit: Callable[[], object] = lambda: None,
    ) -> None:
        """Write to a new file, which replaces the old one when it is complete.

        Args:
            fs: the filesystem; None for the local one.
            path: the path on it.
            name: the path for errors.
            advance: called many times with the number of bytes that were written.
            commit: called before the file is published.

        Raises:
            OSError: an error of the filesystem.
        """
        with atomic_write(fs, path) as file:
            self.write(file, advance=advance)
            commit()

    def write(self, file: Any, *, advance: Callable[[int], object]) -> None:
        """Write to a file, which may use the tensors' own memory until it is closed, while this object lives.

        Args:
            file: a binary file object; its ``expect_size`` and ``write_borrowed`` are used where it has them.
            advance: called many times with the number of bytes that were written.

        Raises:
            Exception: what the file or ``advance`` raised.
        """
        if hasattr(file, "expect_size"):
            file.expect_size(self.nbytes)
        if self._safetensors:
            parts = self._prepared or safetensors_writer.prepared(self._pickled.thawed() if self._pickled else {})
            safetensors_writer.write_prepared(parts, file, advance=advance)
            return
        pickled = self._pickled
        assert pickled is not None
        writer = TrackingWriter(file, advance)
        self._layout = self._layout or plan_archive(pickled)
        if self._layout is None:
            writer.unmasked(lambda: pickled.torch_save(writer))
        else:
            self._layout.write(writer.write, writer.borrow)

    def free(self) -> None:
        """Let go of the object, or its copy."""
        self._prepared = self._pickled = self._layout = None


def writer_of(
    obj: Any, path: str, *, format: str | None = None, copied: bool = False
) -> CheckpointWriter | CerebrasWriter:
    """The writer of an object in a format.

    Args:
        obj: see ``CheckpointWriter``.
        path: see ``CheckpointWriter``.
        format: "cerebras", or None to choose by the suffix of the path.
        copied: see ``CheckpointWriter``.

    Raises:
        ValueError: if there is no such format, or it cannot hold the object.
    """
    if format is None:
        return CheckpointWriter(obj, path, copied=copied)
    if format != "cerebras":
        msg = f"There is no format {format!r} to save in. Pass 'cerebras', or None to choose by the name's suffix."
        raise ValueError(msg)
    return CerebrasWriter(obj, copied=copied)
