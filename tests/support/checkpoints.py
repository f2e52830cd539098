"""Helpers of the checkpoint tests."""

from __future__ import annotations

import io
import zipfile
from typing import Any

import fsspec
import torch
from fsspec.callbacks import Callback

MIB = 2**20
STATE = {"x": torch.arange(1000.0), "y": torch.randn(10), "z": ["text", 1, None]}


def names(root: str) -> list[str]:
    """What lies in a folder, hidden files too; a folder without any is no folder on S3."""
    fs, path = fsspec.url_to_fs(root)
    fs.invalidate_cache()
    found = fs.ls(path, detail=False) if fs.isdir(path) else []
    return sorted(name.rpartition("/")[2] for name in found)


class Leaving(Callback):  # type: ignore[misc]
    """Leaves a save or load by an exception when a megabyte has moved."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    def relative_update(self, inc: int = 1) -> None:
        super().relative_update(inc)
        if self.value >= MIB:
            raise self.error


def put(root: str, data: bytes) -> str:
    """The path of a file that holds this."""
    with fsspec.open(f"{root}/x.pt", "wb") as file:
        file.write(data)
    return f"{root}/x.pt"


def saved(obj: Any = STATE, **options: Any) -> bytes:
    """The bytes that torch.save writes."""
    buffer = io.BytesIO()
    torch.save(obj, buffer, **options)
    return buffer.getvalue()


def zipped(entries: dict[str, bytes]) -> bytes:
    """A zip archive."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def unzipped(data: bytes) -> dict[str, bytes]:
    """The entries of a zip archive."""
    archive = zipfile.ZipFile(io.BytesIO(data))
    return {name: archive.read(name) for name in archive.namelist()}


class Point:
    """A class of the user's own."""

    x = 1
