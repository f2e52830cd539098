"""Reads checkpoints of any format: as a whole, in part, into an existing object, or only their structure."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from fsspec_csx.errors import CheckpointLimitError
from fsspec_csx.formats import placeholders, registry, structure_limits
from fsspec_csx.formats.base import FileFormat, Format, ReadOptions
from fsspec_csx.formats.damage import wrong_checksum
from fsspec_csx.tensors import names
from fsspec_csx.tensors.fill import Casts, fill, fill_into
from fsspec_csx.tensors.lazy_object import LazyObject
from fsspec_csx.tensors.match import Match
from fsspec_csx.tensors.names import Choice, Keys, place_of
from fsspec_csx.tensors.source import Source

if TYPE_CHECKING:
    from torch.serialization import MAP_LOCATION


def begin(source: Source, keys: Keys | None, name: str) -> tuple[Keys | None, Format[Any]]:
    """Prepare to read ``keys``; return them and the format. ``source.verify_whole`` checks a file without checksums."""
    keys = source.select_keys(keys, name)
    format = registry.format_of(source)
    if keys is None and not format.has_checksums:
        source.start_checksum()
    return keys, format


def read(
    source: Source,
    *,
    name: str,
    keys: Keys | None = None,
    map_location: MAP_LOCATION = None,
    weights_only: bool = True,
) -> Any:
    """Read a checkpoint or a part of it. A part may be read beside objects of unknown classes."""
    keys, format = begin(source, keys, name)
    loaded = format.load(source, keys, ReadOptions(map_location, weights_only))
    if loaded is not NotImplemented:
        return loaded

    def structure(wanted: Collection[int] | None) -> LazyObject:
        return format.structure(source, name, ReadOptions(map_location, weights_only, wanted, keys is not None))

    found = structure(None if keys is None else ())
    if keys is not None:
        structure_limits.check_entries(found.obj, name)
        choice = Choice(found.obj, keys, name)
        chosen = _part(found, choice)
        placeholders.refuse(chosen.obj, name)
        if found.has_unplaced:
            # Only now is it known which tensors go to other devices.
            chosen = _part(structure({record.offset for record in chosen.records}), choice)
        found = chosen
    format.refuse_unread(found.obj, name)
    complete(source, found, name=name)
    source.verify_whole(name)
    return found.obj


def read_into(source: Source, into: Any, *, name: str, keys: Keys | None = None, weights_only: bool = True) -> None:
    """Fill an object from a checkpoint or a part of it; raise a CheckpointError if it does not fit."""
    keys, format = begin(source, keys, name)
    found = format.structure(source, name, ReadOptions(weights_only=weights_only, partial=keys is not None))
    structure_limits.check_use(found.obj, name)
    choice = Choice(found.obj, keys, name)
    chosen = names.select(found.obj, choice)
    placeholders.refuse(chosen, name)
    format.refuse_unread(chosen, name)
    match = Match(found.obj, into, choice, partial=keys is not None, path=name, flattened=format.flattened)
    casts = Casts()
    if wrong := fill_into(source, found, match.pairs, casts):
        raise wrong_checksum(name, names.of_records(found.obj, wrong))
    source.verify_whole(name)
    match.replace_values()
    casts.warn()


def complete(source: Source, found: LazyObject, *, name: str) -> None:
    """Fill the tensors of a lazy object. Raise an InvalidCheckpointError if checksums do not match."""
    wrong = fill(source, found.records)
    if not wrong:
        return
    try:
        structure_limits.check_entries(found.obj, name)
    except CheckpointLimitError:
        raise wrong_checksum(name, names.shown([record.name for record in wrong])) from None
    raise wrong_checksum(name, names.of_records(found.obj, wrong))


def structure(source: Source, name: str, *, bounded: bool = False) -> LazyObject:
    """Read the structure of a checkpoint to the CPU. Its tensors are filled only if the file has to be read whole.

    Objects of unknown classes become a ``Placeholder``. With ``bounded``, tensors of a file that would be read whole
    may have no data, to save memory.
    """
    format = registry.format_of(source)
    if bounded and isinstance(format, FileFormat) and not format.can_defer(source, name):
        found = LazyObject(format.without_data(source, name), [])
    else:
        found = format.structure(source, name, ReadOptions(partial=True))
    if isinstance(format, FileFormat):
        structure_limits.check_use(found.obj, name)
    return found


def _part(found: LazyObject, choice: Choice) -> LazyObject:
    obj = names.select(found.obj, choice)
    used = {place_of(value) for value in structure_limits.values(obj, attributes=True)}
    return LazyObject(obj, [each for each in found.records if each.place in used])
