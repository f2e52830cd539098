"""The format of Hugging Face: folders of safetensors files with an index."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator
from typing import Any

from fsspec.callbacks import Callback

from fsspec_csx.errors import InvalidCheckpointError
from fsspec_csx.formats.base import ON_CPU, Converted, ConvertOptions, Format, ReadOptions
from fsspec_csx.formats.huggingface.index import LARGEST, decoded
from fsspec_csx.formats.huggingface.names import is_index, models
from fsspec_csx.formats.huggingface.source import HuggingFaceSource
from fsspec_csx.formats.huggingface.writer import SHARD_SIZE, FolderReplacement, HuggingFaceWriter, split
from fsspec_csx.formats.scan import Sum
from fsspec_csx.formats.torch_zip.storage_placement import placed
from fsspec_csx.formats.verify_report import Report
from fsspec_csx.formats.writer import Target
from fsspec_csx.storage.folder import Folder
from fsspec_csx.storage.progress import ProgressMeter
from fsspec_csx.tensors.lazy_object import LazyObject
from fsspec_csx.tensors.source import Source


class HuggingFaceFormat(Format[HuggingFaceSource]):
    """Folders of safetensors files."""

    name = "huggingface"
    has_shard_size = True
    has_checksums = False

    def open_file(self, file: Source, head: bytes, folder: Folder, name: str) -> Source | None:
        """Open the folder of an index."""
        if not is_index(name) or not head.lstrip().startswith(b"{"):
            return None
        if file.size > LARGEST:
            reason = f"{folder.name} is an index of {file.size} bytes, more than the {LARGEST} allowed."
            raise InvalidCheckpointError(reason, "Check that the path is that of a checkpoint.")
        return HuggingFaceSource(folder, decoded(file.bytes_of([(0, file.size)])[0], folder.name), name)

    @contextlib.contextmanager
    def open_folder(self, folder: Folder, names: Callable[[], Collection[str]]) -> Iterator[Source | None]:
        found = models(names())
        if not found:
            yield None
            return
        if len(found) > 1:
            reason = f"{folder.name} has the indexes of several models: {', '.join(found)}."
            raise InvalidCheckpointError(reason, "Name one of them as the path.")
        index = None
        if is_index(found[0]):
            with folder.open(found[0]) as file:
                index = decoded(file.read(LARGEST), f"{found[0]} of {folder.name}")
        with contextlib.closing(HuggingFaceSource(folder, index, found[0])) as source:
            yield source

    def structure(self, source: HuggingFaceSource, name: str, options: ReadOptions = ON_CPU) -> LazyObject:
        return placed(source, source.tensors(), name, options)

    def safetensors_metadata(self, source: HuggingFaceSource) -> dict[str, str]:
        index = source.index
        return {**{key: each for key, each in index.metadata.items() if isinstance(each, str)}, **index.aliases}

    def written_by(self, source: HuggingFaceSource) -> tuple[str, dict[str, str]]:
        count = len(source.shards)
        metadata = {key: str(each) for key, each in {**source.index.metadata, **source.index.aliases}.items()}
        return f"safetensors, {count} shard{'s' * (count != 1)}", metadata

    def examine(self, source: HuggingFaceSource, name: str, compute: Sum) -> Report:
        """Check the structure of the safetensors files, which have no checksums."""
        from fsspec_csx.formats.huggingface import verify  # only here, as it imports the reader of all formats

        return verify.examine(source)

    def writer(self, obj: Any, *, copied: bool = False, max_shard_size: int | str = SHARD_SIZE) -> HuggingFaceWriter:  # type: ignore[override]
        """See ``Format``; ``max_shard_size`` is a number of bytes, or a text such as ``5GB``."""
        return HuggingFaceWriter(obj, copied=copied, max_shard_size=max_shard_size)

    def convert(self, source: Source, options: ConvertOptions, target: Target, progress: Callback) -> Converted:
        """Write the shards one after the other, because all tensors come from one source."""
        from fsspec_csx.formats.conversion import Conversion  # only here, as it imports the reader, which imports this

        conversion = Conversion(source, options)
        parts, aliases = conversion.safetensors_files(lambda sizes: split(sizes, options.max_shard_size))
        meter = ProgressMeter(progress, sum(file.nbytes for _, file in parts), estimated=True)
        size = 0
        with FolderReplacement(target, [names for names, _ in parts]) as replacing:
            for shard, (_, file) in zip(replacing.names, parts, strict=True):
                with replacing.folder.creating(shard) as opened:
                    size += conversion.stream(file, opened, meter.advance)
            size += replacing.publish(aliases, size - sum(len(file.header) for _, file in parts))
        meter.finish()
        return conversion.converted(size)


FORMAT = HuggingFaceFormat()
