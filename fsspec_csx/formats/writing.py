"""Saving: an object on its way into a file, in the format that the file's name asks for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fsspec_csx.formats import safetensors_writing
from fsspec_csx.formats.pickled import Pickled
from fsspec_csx.formats.torch_layout import laid_out
from fsspec_csx.formats.watched import WatchedWriter


class Saving:
    """An object that is to be written: as ``torch.save`` does it, or under the suffix ``.safetensors`` in that format.

    Args:
        obj: it must not change until the file is closed, unless it is copied.
        path: whose suffix counts.
        copied: whether to copy what is to be saved.

    Attributes:
        nbytes: about how many bytes will be written.

    Raises:
        Exception: what pickle raised for an object that cannot be saved.
    """

    def __init__(self, obj: Any, path: str, *, copied: bool = False) -> None:
        self._safetensors = path.endswith(".safetensors")
        self._obj = obj if self._safetensors and not copied else None
        self._pickled = None if self._obj is obj else Pickled(obj, copied=copied)
        self._layout = None if self._pickled is None or copied else laid_out(self._pickled)
        self.nbytes = _nbytes(obj) if self._pickled is None else (self._layout or self._pickled).nbytes

    def write(self, file: Any, *, advance: Callable[[int], object]) -> None:
        """Write to a file, which may use the tensors' own memory until it is closed, while this object lives.

        Args:
            file: a binary file object; its ``expect_size`` and ``write_borrowed`` are used where it has them.
            advance: is told how many bytes were written, many times.

        Raises:
            Exception: what the file or ``advance`` raised, or torch and pickle for an object that cannot be saved.
        """
        if hasattr(file, "expect_size"):
            file.expect_size(self.nbytes)
        if self._safetensors:
            safetensors_writing.write(
                self._obj if self._pickled is None else self._pickled.thawed(), file, advance=advance
            )
            return
        pickled = self._pickled
        assert pickled is not None
        writer = WatchedWriter(file, advance)
        self._layout = self._layout or laid_out(pickled)
        if self._layout is None:
            writer.unmasked(lambda: pickled.torch_save(writer))
        else:
            self._layout.write(writer.write, writer.borrow)

    def free(self) -> None:
        """Let go of the object, or its copy."""
        self._obj = self._pickled = self._layout = None


def _nbytes(obj: Any) -> int:
    values = obj.values() if hasattr(obj, "values") else ()
    return sum(value.nbytes for value in values if isinstance(value, torch.Tensor) and value.layout == torch.strided)
