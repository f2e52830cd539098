"""Torch files that are read whole, their pickles gone through first."""

from __future__ import annotations

from typing import Any

import torch

from fsspec_csx.formats import rehearsal, torch_archive
from fsspec_csx.formats.source import Source
from fsspec_csx.formats.watched import WatchedReader

LEGACY_PICKLES = 5
"""With how many pickles a file of the format before torch 1.6 begins."""


def check_file(source: Source, name: str, *, legacy: bool) -> None:
    """Refuse a file of whose pickles torch.load would make far more than they hold.

    Args:
        source: the file.
        name: what errors call it.
        legacy: whether it is of the format before torch 1.6.

    Raises:
        InvalidCheckpointError: if it would.
        OSError: what the file raised.
    """
    if legacy:
        rehearsal.check_start(
            lambda count: source.bytes_of([(0, min(count, source.size))])[0], LEGACY_PICKLES, name, size=source.size
        )
        return
    file = WatchedReader(source.file, source.size)
    file.unmasked(lambda: check_archive(file, name, size=source.size))


def check_archive(file: Any, name: str, *, size: int) -> None:
    """Refuse such an archive; one that torch cannot read is left to torch.load.

    Args:
        file: a binary file object that can seek.
        name: what errors call it.
        size: in bytes.

    Raises:
        InvalidCheckpointError: if torch would make far more of its pickle than it holds.
        OSError: what the file raised.
    """
    file.seek(0)
    archive: Any = torch._C.PyTorchFileReader  # torch tells too narrow a type of file
    try:
        data: bytes = archive(file).get_record(torch_archive.PICKLE)
    except RuntimeError:
        return
    rehearsal.check(data, name, size=size)
