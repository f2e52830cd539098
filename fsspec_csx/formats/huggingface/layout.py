"""The layout of Hugging Face checkpoints: an index and its shards, or one model, beside configurations.

Names: https://huggingface.co/docs/transformers/big_models
Index: https://huggingface.co/docs/huggingface_hub/package_reference/serialization
"""

from __future__ import annotations

import json
import re
import secrets
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fsspec_csx.errors import InvalidCheckpointError
from fsspec_csx.formats.damage import AGAIN
from fsspec_csx.formats.folder_layout import FolderLayout, incomplete
from fsspec_csx.formats.registry import SUFFIXES
from fsspec_csx.storage.atomic import is_temporary
from fsspec_csx.storage.files import file_size
from fsspec_csx.storage.folder import Folder

SUFFIX = ".safetensors"
INDEX_SUFFIX = f"{SUFFIX}.index.json"
MODEL = "model"
STEMS = (MODEL, "diffusion_pytorch_model", "adapter_model")
"""The names of the models of transformers, diffusers and PEFT, without suffixes."""

SHARD = re.compile(r".+-[0-9a-f]{8}-\d{5}-of-\d{5}\.safetensors", re.DOTALL)
"""The name of a shard that this package has written."""

LARGEST = 256 * 2**20
"""The maximum size of an index in bytes."""

_SHOWN = 80
_INDEX = ".index.json"  # also of files of torch.save
_NUMBERED = re.compile(r"(.+)-([0-9]{5})-of-([0-9]{5})(\.[^.]+)", re.DOTALL)
# Files with the suffix of a checkpoint that these tools and Accelerate write beside a model.
_BESIDE = re.compile(
    rf"(?:(?:{'|'.join(STEMS)}|pytorch_model|optimizer|scheduler|scaler|sampler|dl_state_dict|rng_state|training_args)"
    r"(?:_\d+)?|.+-\d{5}-of-\d{5})\.(?:safetensors|bin|pth?)"
)
# Their configurations, tokenizers, states and descriptions.
_NOTE = re.compile(
    r".+\.(?:json|jinja|spm|tiktoken)|(?:vocab|merges)\.txt|(?:README|LICENSE|NOTICE)(?:\.md|\.txt)?"
    r"|(?:configuration|modeling|tokenization|processing|generation)_\w+\.py|(?:tokenizer|spiece|sentencepiece\.bpe)\.model"
    r"|random_states_\d+\.pkl|\.gitattributes|latest"
)


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
            reason = f"The index {name} names {shard[:_SHOWN]!r} for {tensor[:_SHOWN]!r}, not a file beside it."
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


class HuggingFaceLayout(FolderLayout):
    """Folders of safetensors files."""

    def manifests(self, names: Collection[str]) -> list[str]:
        return [name for name in names if name.endswith(_INDEX)] + _lone(names)

    def is_checkpoint(self, names: Collection[str]) -> bool:
        """Return whether there is an index, or one model and no file that these tools do not write beside it."""
        return any(name.endswith(_INDEX) for name in names) or bool(_lone(names) and _is_of_one_model(names))

    def is_loadable(self, names: Collection[str]) -> bool:
        found = models(names)
        if len(found) != 1 or not all(_BESIDE.fullmatch(name) for name in names if name.endswith(SUFFIXES)):
            return False
        return is_index(found[0]) or _is_of_one_model(names)

    def is_unfinished(self, names: Collection[str]) -> bool:
        return any(map(SHARD.fullmatch, names))

    def is_index(self, name: str) -> bool:
        return is_index(name)

    def is_shard(self, name: str) -> bool:
        numbered = _NUMBERED.fullmatch(name)
        return numbered is not None and numbered[4] in (SUFFIX, ".bin")

    def is_leftover(self, name: str, *, shared: bool) -> bool:
        return SHARD.fullmatch(name) is not None

    def check_complete(
        self, folder: Folder, sizes: Mapping[str, int | None], below: Callable[[], Mapping[str, int | None]]
    ) -> None:
        """Compare names with the index, and the size of a lone model with its header."""
        lone = _lone(sizes)
        replaced = [name.removesuffix(SUFFIX) + INDEX_SUFFIX for name in lone]
        indexes = [name for name in sizes if name.endswith(_INDEX) and name not in replaced]
        # Files that an index does not name come from an unfinished save, and are not needed.
        counted = {*(name.removesuffix(_INDEX).rpartition(".")[2] for name in (*indexes, *replaced))}
        if missing := _missing_shards(name for name in sizes if name.rpartition(".")[2] not in counted):
            raise incomplete(folder.name, missing, "its shards count")
        for name in indexes:
            if missing := sorted(each for each in _named(folder, name) if not sizes.get(each)):
                raise incomplete(folder.name, missing, f"{name} names")
        if lone:
            _check_header(folder, lone[0])

    def unnamed(self, folder: Folder, names: Collection[str]) -> set[str]:
        shards = {name for name in names if SHARD.fullmatch(name) and "/" not in name}
        indexes = [*filter(is_index, names)] if shards else []
        return shards.difference(*(_named(folder, name) for name in indexes)) if indexes else set()


def _lone(names: Collection[str]) -> list[str]:
    """Return the model that is one file without an index, if ``load`` prefers it; at most one."""
    return [name for name in models(names) if not is_index(name)]


def _is_of_one_model(names: Iterable[str]) -> bool:
    """Return whether Hugging Face's tools write all these files beside a model."""
    return all(_BESIDE.fullmatch(name) or _NOTE.fullmatch(name) or is_temporary(name) for name in names)


def _missing_shards(names: Iterable[str]) -> list[str]:
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


def _named(folder: Folder, index: str) -> set[str]:
    """Return the shards that an index names."""
    with folder.open(index) as file:
        return {*decoded(file.read(LARGEST + 1), f"{index} of {folder.name}").shards}


def _check_header(folder: Folder, name: str) -> None:
    from fsspec_csx.formats.safetensors import reader  # only here, as this imports torch
    from fsspec_csx.tensors.source import Source

    with folder.open(name) as file:
        reader.structure(Source(file, file_size(file), tail=0), name=folder.name)


LAYOUT = HuggingFaceLayout()
