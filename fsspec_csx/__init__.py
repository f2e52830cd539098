"""S3 for fsspec with clear credential rules and safe writes, and checkpoints on any fsspec URL.

``import fsspec_csx as cstorch`` gives ``cstorch.save``, ``cstorch.load`` and
``cstorch.backends.csx.storage.s3.profile``.
"""

from typing import TYPE_CHECKING, Any

from fsspec_csx.checkpoint.api import inspect, load, save, stream
from fsspec_csx.checkpoint.async_save import async_save, release_buffers
from fsspec_csx.checkpoint.save_future import SaveFuture
from fsspec_csx.manage.copy import copy, move
from fsspec_csx.settings import backends

if TYPE_CHECKING:
    from fsspec_csx.s3.filesystem import CSXFileSystem

__all__ = [
    "CSXFileSystem",
    "SaveFuture",
    "async_save",
    "backends",
    "copy",
    "inspect",
    "load",
    "move",
    "release_buffers",
    "save",
    "stream",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import the filesystem on first use, because the import of s3fs is slow."""
    if name != "CSXFileSystem":
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    from fsspec_csx.s3.filesystem import CSXFileSystem

    return CSXFileSystem
