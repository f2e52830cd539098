"""Finds all damage in a Hugging Face checkpoint, not only the first."""

from __future__ import annotations

import functools

from fsspec_csx.errors import InvalidCheckpointError
from fsspec_csx.formats import verify_report
from fsspec_csx.formats.huggingface.index import Index
from fsspec_csx.formats.huggingface.source import HuggingFaceSource
from fsspec_csx.formats.verify_report import Report
from fsspec_csx.tensors import names
from fsspec_csx.tensors.lazy_object import LazyObject


def examine(source: HuggingFaceSource) -> Report:
    """Read all shards, and compare their content with the index."""
    found = Report()
    index = source.index
    for shard in source.shards:
        mine = {name for name, place in index.weight_map.items() if place == shard}
        try:
            (opened,) = source.open_shards([shard])
        except InvalidCheckpointError:
            found.damage.append(f"the shard {shard} is missing, with {names.shown(sorted(mine))}")
            continue
        opened.advance = source.advance
        misfit = functools.partial(_misfit, mine=mine, index=index)
        report = verify_report.examine(opened, name=shard, compute=lambda memory, before: 0, misfit=misfit)
        found.add(report, shard if len(source.files) > 1 else "")
    return found


def _misfit(held: LazyObject, *, mine: set[str], index: Index) -> str:
    """Describe how a shard differs from the index; empty if it does not."""
    if lacking := sorted(mine - held.obj.keys()):
        return f"it lacks {names.shown(lacking)}, which the index names"
    if more := sorted(held.obj.keys() - mine - index.aliases.keys()):
        return f"it has {names.shown(more)}, which the index does not name"
    return ""
