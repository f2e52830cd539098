"""Reads zstd frames, in which compressed Cerebras checkpoints store objects.

Format: https://www.rfc-editor.org/rfc/rfc8878
"""

from __future__ import annotations

import sys
from typing import Any


def unpacked(data: bytes, size: int | None = None) -> Any:
    """Decompress a zstd frame, up to ``size`` bytes; return None if it is incomplete or has another size."""
    zstd = _zstd()
    decompressor = zstd.ZstdDecompressor()
    try:
        found = decompressor.decompress(data, -1 if size is None else size + 1)
    except zstd.ZstdError:
        return None
    whole = decompressor.eof and not decompressor.unused_data and size in (None, len(found))
    return found if whole else None


def _zstd() -> Any:
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        try:
            from backports import zstd
        except ImportError as error:
            msg = "The checkpoint is compressed by zstd, which this Python cannot read. Install 'fsspec-csx[cerebras]'."
            raise ModuleNotFoundError(msg, name="backports.zstd") from error
    return zstd
