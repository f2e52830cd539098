"""Checks that a checkpoint has all files that its manifest, index or shard names require."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from fsspec_csx.checkpoint.api import inspect
from fsspec_csx.errors import InvalidCheckpointError, few
from fsspec_csx.formats.huggingface import names as huggingface
from fsspec_csx.formats.huggingface.index import LARGEST, decoded
from fsspec_csx.manage import naming
from fsspec_csx.manage.directory import Directory
from fsspec_csx.manage.location import Location
from fsspec_csx.storage.paths import redacted

_NUMBERED = re.compile(r"(.+)-([0-9]{5})-of-([0-9]{5})(\.[^.]+)", re.DOTALL)
_REMEDY = "Copy it again, or delete it."


def check_complete(path: str, storage_options: Mapping[str, Any] | None = None) -> None:
    """Raise an InvalidCheckpointError unless a checkpoint folder has all its files; they are not read.

    It compares names with the manifest or index, and for torch.distributed.checkpoint also sizes. It compares the size
    of a lone ``model.safetensors`` with the header. The metadata of a Cerebras checkpoint must be complete.
    """
    root = Directory(path, storage_options)
    files, _ = root.scan()
    sizes = {file.name: file.size for file in files}
    display_path = redacted(path)
    lone = [name for name in huggingface.models(sizes) if not huggingface.is_index(name)]
    replaced = [name.removesuffix(huggingface.SUFFIX) + huggingface.INDEX_SUFFIX for name in lone]
    indexes = [name for name in sizes if name.endswith(".index.json") and name not in replaced]
    # Files that an index does not name come from an unfinished save, and are not needed.
    counted = {*(name.removesuffix(".index.json").rpartition(".")[2] for name in (*indexes, *replaced))}
    if missing := missing_shards(name for name in sizes if name.rpartition(".")[2] not in counted):
        raise _incomplete(display_path, missing, "its shards count")
    for name in indexes:
        if missing := sorted(each for each in shards_of_index(root, name) if not sizes.get(each)):
            raise _incomplete(display_path, missing, f"{name} names")
    if lone:
        inspect(path, storage_options=storage_options)
    if ".metadata" in sizes:
        _check_manifest(root, sizes, display_path)
    if naming.METADATA in sizes:
        from fsspec_csx.manage import cerebras_folders

        if not cerebras_folders.is_complete(root, ""):
            raise InvalidCheckpointError(f"{display_path} was not finished.", "Save it again, or delete it.")


def missing_shards(names: Iterable[str]) -> list[str]:
    """Return the missing shards of numbered sets, such as ``model-00001-of-00002.safetensors``."""
    found: dict[tuple[str, int, str], set[int]] = defaultdict(set)
    for name in names:
        if numbered := _NUMBERED.fullmatch(name):
            found[numbered[1], int(numbered[3]), numbered[4]].add(int(numbered[2]))
    missing = []
    for (stem, count, suffix), numbers in found.items():
        lacking = (number for number in range(1, count + 1) if number not in numbers)
        missing += [f"{stem}-{number:05d}-of-{count:05d}{suffix}" for number in lacking]
    return missing


def shards_of_index(root: Directory, name: str) -> set[str]:
    """Return the shards in a Hugging Face index; raise an InvalidCheckpointError if it is damaged."""
    with Location.below(root, name).opened() as file:
        return {*decoded(file.read(LARGEST + 1), f"{name} of {redacted(root.path)}").shards}


def _check_manifest(root: Directory, sizes: Mapping[str, int | None], display_path: str) -> None:
    """Check that the shards in a manifest exist and are long enough."""
    from fsspec_csx.formats.dcp import manifest  # imported here, as this imports torch
    from fsspec_csx.formats.dcp.folder import ShardedFolder

    ends: dict[str, int] = defaultdict(int)
    for place in manifest.read(ShardedFolder(root.fs, root.inner(), display_path)).storage_data.values():
        ends[place.relative_path] = max(ends[place.relative_path], place.offset + place.length)
    held = sizes
    if any("/" in name for name in ends):
        held = {name: file.size for name, file in root.files().items()}
    if missing := sorted(name for name in ends if name not in held):
        raise _incomplete(display_path, missing, "its manifest names")
    if short := sorted(name for name, end in ends.items() if (size := held[name]) is not None and size < end):
        reason = f"{display_path} is incomplete: {few(short)} {'is' if len(short) == 1 else 'are'} truncated."
        raise InvalidCheckpointError(reason, _REMEDY)


def _incomplete(display_path: str, missing: list[str], what: str) -> InvalidCheckpointError:
    return InvalidCheckpointError(f"{display_path} is incomplete: it lacks {few(missing)}, which {what}.", _REMEDY)
