"""What a checkpoint is among the files of a folder, by names alone."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable

from fsspec_csx.manage.naming import SUFFIXES

CEREBRAS = "__METADATA__"
"""The object that makes a Cerebras checkpoint of those beside and below it."""

MANIFESTS = (".metadata", "*.index.json", CEREBRAS)
"""Of folders that are checkpoints: the file that is written last, and without which it is none.

torch.distributed.checkpoint writes the first, Hugging Face's sharded files have the second, and Cerebras checkpoints on
S3 the third.
"""

LOADED = (".metadata", CEREBRAS)
"""The manifests of the folders that ``load`` reads."""

LEFTOVER = re.compile(r".*\.[0-9a-f]{16}\.tmp", re.DOTALL)
"""The name of a file that is not whole yet, or never will be."""

SHARD = re.compile(r".+\.distcp|.+-\d{5}-of-\d{5}\.(?:safetensors|bin)", re.DOTALL)
"""The name of a file that is a part of a checkpoint, and of no use alone."""


def is_checkpoint(name: str) -> bool:
    """Whether a file of this name (without its folders) is taken for a checkpoint."""
    return name.endswith(SUFFIXES) and not is_shard(name)


def is_leftover(name: str) -> bool:
    """Whether a file of this name is not whole yet, or never will be."""
    return LEFTOVER.fullmatch(name) is not None


def is_shard(name: str) -> bool:
    """Whether a file of this name is a part of a checkpoint."""
    return SHARD.fullmatch(name) is not None


def is_manifest(name: str) -> bool:
    """Whether a file of this name makes its folder a checkpoint."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in MANIFESTS)


def is_sharded(names: Iterable[str]) -> bool:
    """Whether a folder with files of these names is a checkpoint."""
    return any(map(is_manifest, names))


def is_loaded(names: Iterable[str]) -> bool:
    """Whether a folder with files of these names is a checkpoint that ``load`` reads."""
    return not {*LOADED}.isdisjoint(names)
