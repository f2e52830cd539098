"""What a checkpoint is among the files of a folder, by names alone."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable

SUFFIXES = (".mdl", ".pt", ".pth", ".bin", ".ckpt", ".safetensors")
"""Of files that are checkpoints."""

CEREBRAS = "__METADATA__"
"""The object that makes a Cerebras checkpoint of those beside and below it."""

MANIFESTS = (".metadata", "*.index.json", CEREBRAS)
"""Of folders that are checkpoints: the file that is written last, and without which it is none.

torch.distributed.checkpoint writes the first, Hugging Face's sharded files have the second, and Cerebras checkpoints on
S3 the third.
"""

LEFTOVER = re.compile(r".*\.[0-9a-f]{16}\.tmp", re.DOTALL)
"""The name of a file that is not whole yet, or never will be."""

SHARD = re.compile(r".+\.distcp|.+-\d{5}-of-\d{5}\.(?:safetensors|bin)", re.DOTALL)
"""The name of a file that is a part of a checkpoint, and of no use alone."""

_STAMP = re.compile(r"(?:^|_)(\d{8}_\d{6})$")


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


def step_of(name: str) -> int | None:
    """The step that a checkpoint's name tells; None if it tells none.

    Known are ``checkpoint_100.mdl``, ``checkpoint_100_20260101_120000.mdl``, ``checkpoint-100`` and the like, and
    ``epoch=1-step=100.ckpt``.
    """
    stem = _STAMP.sub("", _stem(name))
    found = re.search(r"step[=_-]?(\d+)", stem) or re.search(r"(?:^|[^0-9a-z])(\d+)$", stem, re.IGNORECASE)
    return int(found[1]) if found and len(found[1]) < 19 else None


def stamp_of(name: str) -> str:
    """The moment that a checkpoint's name ends in, as ``20260101_120000``; empty if there is none."""
    found = _STAMP.search(_stem(name))
    return found[1] if found else ""


def _stem(name: str) -> str:
    stem = name.rpartition("/")[2]
    for suffix in SUFFIXES:
        stem = stem.removesuffix(suffix)
    return stem
