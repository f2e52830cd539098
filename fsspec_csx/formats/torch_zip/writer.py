"""TorchWriter: saves an object as ``torch.save`` does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fsspec_csx.formats.io_wrappers import TrackingWriter
from fsspec_csx.formats.torch_zip import structure_limits
from fsspec_csx.formats.torch_zip.layout import Layout, plan_archive
from fsspec_csx.formats.torch_zip.pickled import Pickled
from fsspec_csx.formats.writer import FileWriter, expect_size


class TorchWriter(FileWriter):
    """Writes a torch file.

    Args:
        obj: unless it is copied, it must not change until the file is closed.

    Raises:
        ValueError: if ``load`` would refuse the object.
    """

    def __init__(self, obj: Any, *, copied: bool = False) -> None:
        structure_limits.check_depth(obj)
        self._pickled: Pickled | None = Pickled(obj, copied=copied)
        self._layout: Layout | None = None if copied else plan_archive(self._pickled)
        self.nbytes = (self._layout or self._pickled).nbytes

    def write(self, file: Any, *, advance: Callable[[int], object]) -> None:
        expect_size(file, self.nbytes)
        pickled = self._pickled
        assert pickled is not None
        writer = TrackingWriter(file, advance)
        self._layout = self._layout or plan_archive(pickled)
        if self._layout is None:
            writer.unmasked(lambda: pickled.torch_save(writer))
        else:
            self._layout.write(writer.write, writer.borrow_summed)

    def free(self) -> None:
        self._pickled = self._layout = None
