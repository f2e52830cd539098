"""What a checkpoint is among the files of a folder, by names alone."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable

SUFFIXES = (".mdl", ".pt", ".pth", ".bin", ".ckpt", ".safetensors")
"""Of files that are checkpoints."""

MANIFESTS = (".metadata", "*.index.json")
"""Of folders that are checkpoints: the file that is written last, and without which it is none.

torch.distributed.checkpoint writes the first, Hugging Face's sharded files have the second.
"""

LEFTOVER = re.compile(r"\..+\.[0-9a-f]{16}\.tmp|\.[0-9a-f]{16}\.tmp")
"""The name of a file that is not whole yet, or never will be."""


def is_checkpoint(name: str) -> bool:
    """Whether a file of this name (without its folders) is taken for a checkpoint."""
    return name.endswith(SUFFIXES) and not LEFTOVER.fullmatch(name)


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
    stem = name.rpartition("/")[2]
    for suffix in SUFFIXES:
        stem = stem.removesuffix(suffix)
    stem = re.sub(r"_\d{8}_\d{6}$", "", stem)
    found = re.search(r"step[=_-]?(\d+)", stem) or re.search(r"(?:^|[^0-9a-z])(\d+)$", stem, re.IGNORECASE)
    return int(found[1]) if found and len(found[1]) < 19 else None
