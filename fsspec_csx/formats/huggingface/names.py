"""The names of files in Hugging Face folders. This module does not import torch.

transformers' names: https://huggingface.co/docs/transformers/big_models
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Collection

SUFFIX = ".safetensors"
INDEX_SUFFIX = f"{SUFFIX}.index.json"
MODEL = "model"
STEMS = (MODEL, "diffusion_pytorch_model", "adapter_model")
"""The names of the models of transformers, diffusers and PEFT, without suffixes."""

SHARD = re.compile(r".+-[0-9a-f]{8}-\d{5}-of-\d{5}\.safetensors", re.DOTALL)
"""The name of a shard that this package has written."""


def is_index(name: str) -> bool:
    """Return whether a file name is that of an index."""
    return name.endswith(INDEX_SUFFIX) and name != INDEX_SUFFIX


def models(names: Collection[str]) -> list[str]:
    """Return the file to load as the model of a folder: a single file or an index.

    ``model.safetensors`` takes precedence over an index of that stem, as in transformers. For other stems the index
    does, as in diffusers. If all names are others, return all indexes.
    """
    for stem in STEMS:
        both = [f"{stem}{SUFFIX}", f"{stem}{INDEX_SUFFIX}"]
        if found := [name for name in (both if stem == MODEL else both[::-1]) if name in names]:
            return found[:1]
    return sorted(filter(is_index, names))


def index_of(path: str) -> tuple[str, str]:
    """Return the folder and the stem of the files for the path of a folder or an index."""
    folder, _, name = path.rpartition("/")
    return (folder, name.removesuffix(INDEX_SUFFIX)) if is_index(name) else (path, MODEL)


def shard_names(stem: str, count: int) -> list[str]:
    """Return unique names for the shards of a save."""
    save = secrets.token_hex(4)
    return [f"{stem}-{save}-{number:05d}-of-{count:05d}{SUFFIX}" for number in range(1, count + 1)]
