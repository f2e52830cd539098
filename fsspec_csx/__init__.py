"""S3 for fsspec with clear credential rules and safe writes, and checkpoints on any fsspec URL.

``import fsspec_csx as cstorch`` gives ``cstorch.save``, ``cstorch.load`` and
``cstorch.backends.csx.storage.s3.profile``.
"""

from fsspec_csx.background import async_save
from fsspec_csx.checkpoint import inspect, load, save
from fsspec_csx.manage.copying import copy, move
from fsspec_csx.save_future import SaveFuture
from fsspec_csx.settings import backends

__all__ = ["SaveFuture", "async_save", "backends", "copy", "inspect", "load", "move", "save"]
__version__ = "0.1.0"
