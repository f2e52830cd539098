"""Index: maps the tensors of a sharded Hugging Face checkpoint to files.

Format: https://huggingface.co/docs/huggingface_hub/package_reference/serialization
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fsspec_csx.errors import InvalidCheckpointError
from fsspec_csx.formats.sniff import AGAIN

LARGEST = 256 * 2**20
"""The maximum size of an index in bytes."""

_SHOWN = 80


@dataclass(frozen=True)
class Index:
    """An index.

    Attributes:
        weight_map: the name of the file of each tensor.
        aliases: other names of tied tensors, each with the name that is stored.
        metadata: its other metadata.
    """

    weight_map: Mapping[str, str]
    aliases: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def shards(self) -> list[str]:
        """The names of the files, in the order of the first tensor of each."""
        return list(dict.fromkeys(self.weight_map.values()))

    @property
    def total_size(self) -> int | None:
        """The size of all tensors in bytes, if the index has it."""
        size = self.metadata.get("total_size")
        return int(size) if isinstance(size, (int, float)) and 0 <= size < 2**63 else None

    def encoded(self) -> bytes:
        """Return the text of the file."""
        data = {"metadata": {**self.metadata, **self.aliases}, "weight_map": dict(self.weight_map)}
        return (json.dumps(data, indent=2, ensure_ascii=False) + "\n").encode()


def decoded(text: bytes, name: str) -> Index:
    """Parse an index; raise an InvalidCheckpointError if it is damaged, or names a file outside its folder."""
    try:
        data = json.loads(text.decode(), object_pairs_hook=_without_repeats)
        weight_map, metadata = data["weight_map"], data.get("metadata") or {}
        if not isinstance(weight_map, dict) or not isinstance(metadata, dict):
            raise TypeError(name)
        if not all(isinstance(each, str) for each in weight_map.values()):
            raise TypeError(name)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise InvalidCheckpointError(f"The index {name} is damaged: {_flaw(error)}.", AGAIN) from error
    for tensor, shard in weight_map.items():
        if not is_plain(shard):
            reason = f"The index {name} names {shard[:_SHOWN]!r} for {tensor[:_SHOWN]!r}, which is no file beside it."
            raise InvalidCheckpointError(reason, "Do not load it, and ask its author.")
    texts = {key: value for key, value in metadata.items() if isinstance(value, str)}
    aliases = {alias: kept for alias, kept in texts.items() if kept in weight_map and alias not in weight_map}
    aliases.pop("format", None)
    return Index(weight_map, aliases, {key: value for key, value in metadata.items() if key not in aliases})


def is_plain(shard: str) -> bool:
    """Return whether a name is that of a file directly in the folder."""
    return bool(shard) and not {"/", "\\", "\0"} & set(shard) and shard not in (".", "..")


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        msg = "a name occurs twice"
        raise ValueError(msg)
    return found


def _flaw(error: Exception) -> str:
    return str(error) if type(error) is ValueError else "it is not JSON with a weight_map of names to files"
