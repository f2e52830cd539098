"""Two checkpoints compared, in bounded memory."""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

from fsspec.callbacks import Callback

from fsspec_csx.checkpoint import _opened, _size, locate
from fsspec_csx.inspection import Difference
from fsspec_csx.paths import checkpoint_path, redacted
from fsspec_csx.progress import Meter, reporting

if TYPE_CHECKING:
    from fsspec_csx.formats.source import Source

OPERATIONS = ("equal", "allclose")
"""How the elements of tensors can be compared."""

RTOL, ATOL = 1e-5, 1e-8
"""The tolerances of ``allclose`` that torch has too."""

# The digest of an object, or that of the digests of its parts and their number.
_DIGEST = re.compile(r'"?[0-9a-f]{32}(-\d+)?"?')


@dataclass(frozen=True)
class Comparison:
    """What a comparison found.

    Attributes:
        differences: in the order of the first checkpoint; empty if they are equal.
        tensors: how many tensors both have.
        values: how many other values both have.
        skipped: how many of the tensors were not read, as the checksums of both say that they are equal.
    """

    differences: tuple[Difference, ...]
    tensors: int
    values: int
    skipped: int


def compare(
    first: str | os.PathLike[str],
    second: str | os.PathLike[str],
    *,
    op: str = "equal",
    rtol: float = RTOL,
    atol: float = ATOL,
    storage_options: Mapping[str, Any] | None = None,
    callback: Callback | None = None,
) -> Comparison:
    """Compare two checkpoints: names, types, shapes, dtypes and values, by the dotted names of ``load``.

    Both are read at the same time, piece by piece; sparse, quantized and nested tensors, and the files in which they
    are, whole. NaN equals NaN. Whole numbers are always compared exactly. A Parameter equals a plain tensor. What two
    files have checksums of, and these are equal, is not read.

    Args:
        first: a local path or an fsspec URL, as of ``load``.
        second: the like.
        op: ``equal``, or ``allclose``: then floating-point numbers may be apart by ``atol + rtol * |second|``, and
            tensors of different dtypes, which are a difference in any case, are compared too.
        rtol: the relative tolerance of ``allclose``.
        atol: its absolute tolerance.
        storage_options: arguments for the filesystem of each, such as ``{"profile": "my-profile"}``.
        callback: as of ``load``.

    Raises:
        ValueError: if ``op`` is no such, or a tolerance is negative.
        CheckpointPathError: a ValueError, if a path cannot name a checkpoint.
        InvalidCheckpointError: a ValueError, if a file is empty, cut short, damaged, or of another format.
        UnsafeCheckpointError: a ValueError, if a file names what may run code.
        OSError: whatever a filesystem raised, as it raised it.
    """
    _check_operation(op, rtol, atol)
    texts = checkpoint_path(first), checkpoint_path(second)
    from fsspec_csx.formats import compared  # only here, as it imports torch
    from fsspec_csx.formats.deviation import Closeness
    from fsspec_csx.formats.source import Source

    with contextlib.ExitStack() as stack:
        files = [
            stack.enter_context(_opened(*locate(path, text, storage_options)))
            for path, text in zip((first, second), texts, strict=True)
        ]
        sizes = [_size(file) for file in files]
        if sizes[0] == sizes[1] and _same_object(files[0], files[1]):
            return _unread(Source(files[0], sizes[0]), redacted(texts[0]))
        progress = stack.enter_context(reporting(callback, texts[0]))
        meter, lock = Meter(progress, sum(sizes)), threading.Lock()

        def advance(count: int) -> None:
            with lock:  # both files are read at the same time
                meter.advance(count)

        one, other = (Source(file, size, advance) for file, size in zip(files, sizes, strict=True))
        closeness = Closeness(rtol, atol) if op == "allclose" else None
        found = compared.compare((one, other), (redacted(texts[0]), redacted(texts[1])), closeness)
        meter.finish()
    return Comparison(tuple(found.differences), found.tensors, found.values, found.skipped)


def _check_operation(op: str, rtol: float, atol: float) -> None:
    if op not in OPERATIONS:
        msg = f"Tensors cannot be compared by {op!r}. Name one of {', '.join(OPERATIONS)}."
        raise ValueError(msg)
    if not (rtol >= 0 and atol >= 0):
        msg = f"A tolerance cannot be negative: rtol is {rtol}, and atol {atol}. Give numbers of 0 or more."
        raise ValueError(msg)


def _same_object(first: IO[bytes], second: IO[bytes]) -> bool:
    """Whether the servers tell that two objects have the same bytes."""
    tell: list[Any] = [getattr(file, "object_checksum", None) for file in (first, second)]
    if None in tell:
        return False
    etag = str(first.details.get("ETag"))  # type: ignore[attr-defined]  # what has object_checksum is a CSXFile
    if _DIGEST.fullmatch(etag) and etag == second.details.get("ETag"):  # type: ignore[attr-defined]
        return True
    checksum = tell[0]()
    return checksum is not None and checksum == tell[1]()


def _unread(source: Source, name: str) -> Comparison:
    """Of two files with the same bytes, of which one shows what is in both."""
    from fsspec_csx.formats import reading

    info = reading.describe(source, name=name)
    return Comparison((), len(info.tensors), len(info.values), len(info.tensors))
