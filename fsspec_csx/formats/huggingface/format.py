"""The format of Hugging Face: folders of safetensors files with an index."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Collection, Iterator

from fsspec.callbacks import Callback

from fsspec_csx.errors import InvalidCheckpointError
from fsspec_csx.formats import verify_report
from fsspec_csx.formats.base import ON_CPU, Converted, ConvertOptions, Format, ReadOptions
from fsspec_csx.formats.conversion import Conversion
from fsspec_csx.formats.damage import damage_of
from fsspec_csx.formats.huggingface.layout import LARGEST, Index, decoded, is_index, models
from fsspec_csx.formats.huggingface.source import HuggingFaceSource
from fsspec_csx.formats.huggingface.writer import FolderReplacement, HuggingFaceWriter, split
from fsspec_csx.formats.storage_placement import placed
from fsspec_csx.formats.verify_report import Report, Sum
from fsspec_csx.formats.writer import Target
from fsspec_csx.storage.folder import Folder
from fsspec_csx.storage.progress import ProgressMeter
from fsspec_csx.tensors import names
from fsspec_csx.tensors.lazy_object import LazyObject
from fsspec_csx.tensors.source import Source


class HuggingFaceFormat(Format[HuggingFaceSource]):
    """Folders of safetensors files."""

    name = "huggingface"
    has_shard_size = True
    has_checksums = False
    writer_class = HuggingFaceWriter

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
        """Check the structure of the safetensors files, and compare them with the server's checksums."""
        found = Report()
        source.start_checksum()
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
            try:
                opened.verify_whole(shard)
            except InvalidCheckpointError as error:
                report.damage.append(damage_of(error, shard))
            found.add(report, shard if len(source.files) > 1 else "")
        return found

    def convert(self, source: Source, options: ConvertOptions, target: Target, progress: Callback) -> Converted:
        """Write the shards one after the other, because all tensors come from one source."""
        conversion = Conversion(source, options)
        parts, aliases = conversion.safetensors_files(lambda sizes: split(sizes, options.max_shard_size))
        meter = ProgressMeter(progress, sum(file.nbytes for _, file in parts), estimated=True)
        size = 0
        with FolderReplacement(target, [names for names, _ in parts]) as replacing:
            for shard, (_, file) in zip(replacing.names, parts, strict=True):
                with replacing.folder.creating(shard) as opened:
                    size += conversion.stream(file, opened, meter.advance)
            conversion.verify_whole()
            size += replacing.publish(aliases, size - sum(len(file.header) for _, file in parts))
        meter.finish()
        return conversion.converted(size)


def _misfit(held: LazyObject, *, mine: set[str], index: Index) -> str:
    """Describe how a shard differs from the index; empty if it does not."""
    if lacking := sorted(mine - held.obj.keys()):
        return f"it lacks {names.shown(lacking)}, which the index names"
    if more := sorted(held.obj.keys() - mine - index.aliases.keys()):
        return f"it has {names.shown(more)}, which the index does not name"
    return ""


FORMAT = HuggingFaceFormat()
