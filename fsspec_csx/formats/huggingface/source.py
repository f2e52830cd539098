"""HuggingFaceSource: reads several safetensors files as one source, and opens each on demand."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any

from fsspec_csx.errors import InvalidCheckpointError
from fsspec_csx.formats.damage import AGAIN
from fsspec_csx.formats.huggingface.layout import Index
from fsspec_csx.formats.safetensors import reader
from fsspec_csx.storage.files import file_size
from fsspec_csx.storage.folder import Folder
from fsspec_csx.storage.threads import run_in_threads
from fsspec_csx.tensors.lazy_object import LazyObject
from fsspec_csx.tensors.names import Choice, shown
from fsspec_csx.tensors.source import Source, Spans

_STRIDE = 2**44  # bytes from the start of one shard to the next; larger than any shard
_THREADS = 4


class HuggingFaceSource(Source):
    """The shards of a checkpoint, one after the other.

    Args:
        index: maps tensors to shards; None if there is one file without an index.
        manifest: the name of the index, or of the single file.
    """

    format = "huggingface"
    _summing = False

    def __init__(self, folder: Folder, index: Index | None, manifest: str) -> None:
        # Not super().__init__: there is no single file to read the ends of.
        self.file = None
        self.advance: Callable[[int], object] = lambda count: None
        self.folder = folder
        self.manifest = manifest
        self.shards = index.shards if index else [manifest]
        self._index = index
        self._chosen: Collection[str] | None = None
        self._opened: dict[str, Source] = {}
        self._numbers = {shard: number for number, shard in enumerate(self.shards)}

    @property
    def size(self) -> int:  # type: ignore[override]
        """The size of all tensors in bytes; from the index, if it has it."""
        total = self._index.total_size if self._index else None
        return self.stored if total is None else total

    @property
    def files(self) -> set[str]:
        return {self.manifest, *self.shards}

    @property
    def stored(self) -> int:
        """The total size of the shards that exist, in bytes."""
        missing = self._open(self.shards)
        return sum(self._opened[each].size for each in self.shards if each not in missing)

    @property
    def index(self) -> Index:
        """Maps tensors to shards; for a single file, made from its header."""
        if self._index is None:
            (opened,) = self.open_shards(self.shards)
            held = reader.structure(opened, name=self.folder.name).obj
            texts = reader.metadata(opened)
            aliases = reader.aliases({record for record in held if record not in texts}, texts)
            names = [name for name in held if name not in aliases]
            self._index = Index(dict.fromkeys(names, self.manifest), aliases, texts)
        return self._index

    def select_keys(self, keys: Any, name: str) -> Any:
        """Read only the shards with these keys."""
        keys = super().select_keys(keys, name)
        if keys is not None:
            present = dict.fromkeys([*self.index.weight_map, *self.index.aliases])
            choice = Choice(present, keys, name)
            self._chosen = {each for each in present if each in choice}
        return keys

    def tensors(self) -> LazyObject:
        """Return the tensors, or those that ``select_keys`` chose, with records of where their bytes are."""
        weight_map, aliases = self.index.weight_map, self.index.aliases
        chosen = [name for name in (*weight_map, *aliases) if self._chosen is None or name in self._chosen]
        stored = {aliases.get(name, name): None for name in chosen}
        shards = list(dict.fromkeys(weight_map[name] for name in stored))
        held: dict[str, Any] = {}
        records = []
        for shard, opened in zip(shards, self.open_shards(shards), strict=True):
            found = reader.structure(opened, name=self.name_of(shard))
            mine = {name for name in stored if weight_map[name] == shard}
            if lacking := sorted(mine - found.obj.keys()):
                reason = f"{self.name_of(shard)} lacks {shown(lacking)}, which {self.manifest} names."
                raise InvalidCheckpointError(reason, AGAIN)
            held |= {name: found.obj[name] for name in mine}
            start = self._numbers[shard] * _STRIDE
            records += [replace(each, offset=start + each.offset) for each in found.records if each.name in mine]
        return LazyObject({name: held[aliases.get(name, name)] for name in chosen}, records)

    def locate(self, position: int) -> tuple[str, int]:
        """Return the shard at a position of the source, and the position in the shard."""
        number, offset = divmod(position, _STRIDE)
        return self.shards[number], offset

    def open_shards(self, shards: Sequence[str]) -> list[Source]:
        """Open shards, each once; raise an InvalidCheckpointError that names missing ones."""
        if missing := self._open(shards):
            reason = f"{self.folder.name} is incomplete: it lacks {shown(missing)}, which {self.manifest} names."
            raise InvalidCheckpointError(reason, "Copy it again, or load it again if it was being saved.")
        return [self._opened[each] for each in shards]

    def _open(self, shards: Sequence[str]) -> list[str]:
        """Open shards, each once; return the names of missing ones."""
        missing: list[str] = []

        def open_one(shard: str, advance: Callable[[int], object]) -> None:
            try:
                file = self.folder.open(shard)
            except FileNotFoundError:
                missing.append(shard)
                return
            opened = Source(file, file_size(file), tail=0)
            if self._summing:
                opened.start_checksum()
            self._opened[shard] = opened

        self._in_threads(open_one, [each for each in shards if each not in self._opened])
        return sorted(missing)

    def name_of(self, shard: str) -> str:
        """Return what errors call a shard."""
        return f"{shard} in {self.folder.name}" if len(self.files) > 1 else self.folder.name

    def read(self, spans: Spans, *, crc32: bool = False) -> list[int]:
        """Read several shards at a time."""
        by_shard: dict[int, list[int]] = {}
        for number, (start, _) in enumerate(spans):
            by_shard.setdefault(start // _STRIDE, []).append(number)
        crcs = [0] * len(spans)

        def read_one(shard: int, advance: Callable[[int], object]) -> None:
            (opened,) = self.open_shards([self.shards[shard]])
            opened.advance = advance
            mine = by_shard[shard]
            found = opened.read([(spans[each][0] % _STRIDE, spans[each][1]) for each in mine], crc32=crc32)
            for each, crc in zip(mine, found, strict=False):
                crcs[each] = crc

        self._in_threads(read_one, sorted(by_shard))
        return crcs if crc32 else []

    def start_checksum(self) -> None:
        """Sum up each shard."""
        self._summing = True
        for each in self._opened.values():
            each.start_checksum()

    def verify_whole(self, name: str) -> None:
        """Verify each shard that was read whole."""
        for shard, each in self._opened.items():
            each.verify_whole(self.name_of(shard))

    def close(self) -> None:
        for each in self._opened.values():
            each.file.close()
        self._opened.clear()

    def _in_threads(self, work: Callable[[Any, Callable[[int], object]], object], items: Sequence[Any]) -> None:
        threads = _THREADS if self.folder.threads else 1
        run_in_threads(work, items, self.advance, threads=threads, name="fsspec_csx huggingface")
