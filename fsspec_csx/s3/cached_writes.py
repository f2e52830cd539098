"""Files that fsspec's caches write: ``simplecache::s3://…`` and ``filecache::s3://…`` put a local file at its close.

They do so too when an exception leaves the block, which would publish what is there of it.
"""

from __future__ import annotations

from types import FrameType

from fsspec.implementations import cached

from fsspec_csx.s3.unwinding import Opening, innermost_error


def is_discarded(caller: FrameType | None, paths: object) -> bool:
    """Whether a cache puts a file because its block was left by an exception: then its local copy is removed too.

    When the file was opened is not known, so the innermost ``__exit__`` decides.
    """
    if caller is None or caller.f_globals.get("__name__") != cached.__name__:
        return False
    error = innermost_error()
    if error is None:
        return False
    file = caller.f_locals.get("self")
    if isinstance(file, cached.LocalTempFile):
        file.discard()
    for path in paths if isinstance(paths, (list, tuple)) else [paths]:
        Opening(str(path)).report(error)
    return True
