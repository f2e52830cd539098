"""Compares two checkpoints in bounded memory."""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fsspec.callbacks import Callback

from fsspec_csx.formats.checkpoint_info import Difference
from fsspec_csx.manage import contents
from fsspec_csx.manage.location import Location
from fsspec_csx.storage.files import file_size, open_file
from fsspec_csx.storage.progress import ProgressMeter, report_progress

if TYPE_CHECKING:
    from fsspec_csx.tensors.source import Source

OPERATIONS = ("equal", "allclose")
"""The ways to compare the elements of tensors."""

RTOL, ATOL = 1e-5, 1e-8
"""The tolerances of ``allclose``, as in torch."""

# The ETag of an object that was uploaded in one request is an MD5; that of a multipart upload depends on the parts.
_MD5 = re.compile(r'"?[0-9a-f]{32}"?')


@dataclass(frozen=True)
class Comparison:
    """The result of a comparison."""

    differences: tuple[Difference, ...]  # in the order of the first checkpoint; empty if both are equal
    tensors: int  # the number of tensors in both
    values: int  # the number of other values in both
    skipped: int  # the number of unread tensors, as the server reports equal files


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
    """Compare the names, types, shapes, dtypes and values of two checkpoints, by the dotted names of ``load``.

    Both are read in parallel, in chunks. Files with sparse, quantized or nested tensors, and tensors that are
    transposed in only one checkpoint, are read completely. NaN equals NaN. Integers are always compared exactly. A
    Parameter equals a plain tensor. Objects with the same checksum on the server are equal without a read; checksums
    inside files prove nothing. Pickles of Cerebras checkpoints are compared by their bytes, and not unpickled.

    With the op ``allclose``, floating-point numbers may differ by ``atol + rtol * |second|``. Tensors of different
    dtypes are always a difference, but ``allclose`` also compares their values.

    Raises a ValueError if ``op`` is unknown, a tolerance is negative, or a path cannot name a checkpoint.
    """
    _check_operation(op, rtol, atol)
    places = Location.of(first, storage_options), Location.of(second, storage_options)
    from fsspec_csx.manage import diff_entries  # only here, as it imports torch
    from fsspec_csx.tensors.compare_tensors import Closeness

    with contextlib.ExitStack() as stack:
        # An index alone does not say what its shards hold.
        files = [None if contents.is_index(place.name) else _file(place, stack) for place in places]
        if _same_object(*files):
            return _unread(stack.enter_context(places[0].source(files[0])), places[0].display_path)
        one, other = (stack.enter_context(place.source(file)) for place, file in zip(places, files, strict=True))
        progress = stack.enter_context(report_progress(callback, places[0].text))
        meter, lock = ProgressMeter(progress, one.size + other.size), threading.Lock()

        def advance(count: int) -> None:
            with lock:  # both threads report progress
                meter.advance(count)

        one.advance = other.advance = advance
        closeness = Closeness(rtol, atol) if op == "allclose" else None
        found = diff_entries.compare((one, other), (places[0].display_path, places[1].display_path), closeness)
        meter.finish()
    return Comparison(*found, skipped=0)


def _check_operation(op: str, rtol: float, atol: float) -> None:
    if op not in OPERATIONS:
        msg = f"Tensors cannot be compared by {op!r}. Name one of {', '.join(OPERATIONS)}."
        raise ValueError(msg)
    if not (rtol >= 0 and atol >= 0):
        msg = f"A tolerance cannot be negative: rtol is {rtol}, and atol {atol}. Give numbers of 0 or more."
        raise ValueError(msg)


def _file(place: Location, stack: contextlib.ExitStack) -> Any:
    """Return the open file at a location; None if there is no file, but perhaps a folder."""
    try:
        return stack.enter_context(open_file(*place.through))
    except (FileNotFoundError, IsADirectoryError, PermissionError):
        return None


def _same_object(first: Any, second: Any) -> bool:
    """Return whether the server's checksums say that two objects are equal."""
    checksums: list[Any] = [getattr(file, "object_checksum", None) for file in (first, second)]
    if None in checksums or file_size(first) != file_size(second):
        return False
    etag = str(first.details.get("ETag"))  # only a CSXFile has object_checksum
    if _MD5.fullmatch(etag) and etag == second.details.get("ETag"):
        return True
    checksum = checksums[0]()
    return checksum is not None and checksum == checksums[1]()


def _unread(source: Source, name: str) -> Comparison:
    """Return the result for two equal files, from the structure of one."""
    from fsspec_csx.formats import registry

    info = registry.format_of(source).info(source, name)
    return Comparison((), len(info.tensors), len(info.values), len(info.tensors))
