"""Reads files of torch.save from any file object: zip archives, and the format before torch 1.6.

Format: https://docs.pytorch.org/docs/stable/notes/serialization.html
"""

from __future__ import annotations

import io
import pickle
import pickletools
import re
import struct
import traceback
import zipfile
import zlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from fsspec_csx.errors import CheckpointError, InvalidCheckpointError, UnsafeCheckpointError, text_of
from fsspec_csx.formats import sniff, structure_limits
from fsspec_csx.formats.base import ON_CPU, ReadOptions
from fsspec_csx.formats.damage import AGAIN, damaged
from fsspec_csx.formats.io_wrappers import TrackingReader
from fsspec_csx.formats.torch_zip import archive as torch_archive
from fsspec_csx.formats.torch_zip import outline, rebuilding
from fsspec_csx.formats.torch_zip.archive import Archive
from fsspec_csx.formats.torch_zip.outline import Outline
from fsspec_csx.formats.torch_zip.pickle_bounds import BUILTINS, ScanError
from fsspec_csx.tensors import names, torch_compat
from fsspec_csx.tensors.lazy_object import LazyObject
from fsspec_csx.tensors.source import Source

if TYPE_CHECKING:
    from torch.serialization import MAP_LOCATION

_GIST_SHOWN = 200
_LEGACY_PICKLES = 5  # at the start of a file of the format before torch 1.6
_PROTOCOLS = (2, 3)  # that torch reads with weights_only
_VERSION, _PROTOCOL = b"3", b"\x80\x02"  # of the archives and pickles of torch.save
# The memory that a valid file may need: a constant, plus a multiple of its size.
_ROOM, _HELD = 2**20, 4
_DECODING = {"collections", "fsspec_csx", "torch"}
_OF_JAGGED = "torch._dynamo.decorators._DimRange"  # in the pickle of each nested jagged tensor
_NO_LAYOUT = "rebuilding sparse tensor for layout"
# torch moves storages to devices in these functions. Errors in them come from the machine, not from the file.
_PLACING = {"restore_location", "default_restore_location"}
_NOT_THE_FILE = (ImportError, NotImplementedError, OSError, Warning, torch.cuda.OutOfMemoryError)
# Errors of zipfile and pickletools for an incomplete file. The warning, of a backslash, may be raised as an error.
_NOT_WHOLE = (
    DeprecationWarning,
    EOFError,
    LookupError,
    OverflowError,
    RuntimeError,
    ValueError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)
# Errors of torch.load for a complete file with invalid content. Others may come from a class that the file names.
_NONSENSE = (AssertionError, EOFError, RuntimeError, pickle.UnpicklingError)


def structure(source: Source, name: str, options: ReadOptions = ON_CPU) -> LazyObject:
    """Read the structure of a torch file; as ``torch.load``, without the tensors' bytes.

    An archive of plain tensors, as torch.save writes it today, takes a few range requests. Any other file is read whole
    by torch.load: then the lazy object has no records, and its tensors are filled.

    Raises:
        InvalidCheckpointError: if the file is empty, truncated, damaged, or of another format.
        UnsafeCheckpointError: if ``weights_only`` and the file names code that could run.
    """
    head = source.head(sniff.HEAD)
    if not (sniff.is_zip(head) or sniff.is_legacy(head)):
        what, remedy = sniff.describe(head, source.size)
        raise InvalidCheckpointError(f"{name} {what}", remedy)
    weights_only, map_location = options.weights_only, options.map_location
    in_order = weights_only and sniff.is_zip(head) and not _is_fake_mode()
    archive = torch_archive.read(source, name) if in_order else None
    if in_order and archive is None and torch_archive.records(source) is None:
        raise _without_directory(source, name)
    reader = None
    try:
        if archive is not None and (found := _without_torch(archive, source, name, options)):
            source.advance(source.kept)
            structure_limits.check(found.obj, name)
            return found
        if archive is None and weights_only and sniff.is_zip(head):
            data = _pickle_of(TrackingReader(source.file, source.size))
            if data is not None:
                _check_names(outline.read(data, name), source, name)
        reader = torch_archive.CheckedReader(source, name)
        reader.seek(0)
        obj = reader.unmasked(
            lambda: torch.load(reader, map_location=map_location, weights_only=weights_only, mmap=False)  # type: ignore[arg-type]
        )
        if weights_only:
            structure_limits.check(obj, name)
        return LazyObject(obj, [])
    except ScanError:
        raise _unreadable(TrackingReader(source.file, source.size), name) from None
    except Exception as error:
        if (reader is not None and reader.failure is error) or isinstance(error, CheckpointError):
            raise
        explained = _explain(error, TrackingReader(source.file, source.size), name, map_location, weights_only)
        if explained is None:
            raise
        raise explained from error


def _without_torch(archive: Archive, source: Source, name: str, options: ReadOptions) -> LazyObject | None:
    """Read the structure of an archive without torch, if torch.load would make the same; None leaves it to torch."""
    found = outline.read(archive.pickle, name)
    _check_names(found, source, name)
    known = archive.version == _VERSION and archive.pickle.startswith(_PROTOCOL) and not torch_compat.skips_data()
    whole = replace(options, partial=False)
    # Try without a callable map_location first. It must run once for each storage, but torch would run it again.
    if known and callable(options.map_location):
        trial = replace(whole, map_location="cpu")
        known = rebuilding.structure(found, archive, source, name, trial) is not None
        found = outline.read(archive.pickle, name)
    return rebuilding.structure(found, archive, source, name, whole) if known else None


def partial_structure(source: Source, name: str, options: ReadOptions = ON_CPU) -> LazyObject | None:
    """Read the structure of a torch file, with placeholders for unknown classes; None if the archive is unusual."""
    archive = torch_archive.read(source, name)
    if archive is None:
        return None
    try:
        read = outline.read(archive.pickle, name)
    except ScanError:
        return None
    found = rebuilding.structure(read, archive, source, name, replace(options, partial=True))
    if found is not None:
        structure_limits.check(found.obj, name)
    return found


def _check_names(found: Outline, source: Source, name: str) -> None:
    """Refuse names that torch.load refuses: it would read tensors before that."""
    if _OF_JAGGED in found.named:
        torch_compat.allow_jagged()
    if not _allowed().union(BUILTINS).issuperset(found.named):
        raise _damaged(source, name) or _unsafe(name, _PROTOCOLS[0], found.named)


def _pickle_of(file: TrackingReader) -> bytes | None:
    """Read the pickle of an archive; return None if torch cannot read it."""
    file.seek(0)
    try:
        return file.unmasked(lambda: torch_compat.read_record(file, torch_archive.PICKLE))
    except RuntimeError:
        return None


def _without_directory(source: Source, name: str) -> InvalidCheckpointError:
    """Return the error for an archive whose directory cannot be checked: torch would trust its records."""
    remedy = "Load it with torch.load if you trust its author, and save it again."
    unknown = f"{name} is a zip archive with a directory that torch.save does not write."
    return _damaged(source, name) or InvalidCheckpointError(unknown, remedy)


def _damaged(source: Source, name: str) -> InvalidCheckpointError | None:
    """Return the error for damage in the structure of a file; None if there is none."""
    reader = TrackingReader(source.file, source.size)
    found = reader.unmasked(lambda: _damage(reader))
    return InvalidCheckpointError(f"{name} {found[0]}", found[1]) if found else None


def _is_fake_mode() -> bool:
    """Return whether a mode such as FakeTensorMode is active, in which torch.load reads no tensor data."""
    return type(torch.empty(0, device="cpu")) is not torch.Tensor


def _explain(
    error: Exception, file: TrackingReader, name: str, map_location: MAP_LOCATION, weights_only: bool
) -> CheckpointError | None:
    """Return our error in place of one of torch.load; None if the file is not at fault."""
    if isinstance(error, _NOT_THE_FILE) and _NO_LAYOUT not in str(error):
        return None
    if _while_placing(error):
        named = map_location is None and "don't know how to restore data location" in str(error)  # by the file
        if not (named or isinstance(error, TypeError)):
            return None
        reason = f"{name} has a storage on a device of which torch {torch.__version__} does not know the kind."
        return InvalidCheckpointError(reason, "Load it with map_location='cpu', or save it again from a CPU.")
    if _out_of_memory(error):
        too_much = f"it asks for much more memory than its {file.size} bytes can fill"
        return damaged(name, too_much) if weights_only and _is_room(file.size) else None
    if found := file.unmasked(lambda: _damage(file)):
        return InvalidCheckpointError(f"{name} {found[0]}", found[1])
    if weights_only and isinstance(error, pickle.UnpicklingError):
        return _unsafe(name, *_pickles(file))
    if _raised_while_decoding(error) and (weights_only or isinstance(error, _NONSENSE)):
        return InvalidCheckpointError(f"{name} is damaged ({_gist(error)}).", AGAIN)
    return None


def _unreadable(file: TrackingReader, name: str) -> CheckpointError:
    """Return the error for an archive with a pickle that torch.save does not write."""

    def explain() -> CheckpointError:
        if found := _damage(file):
            return InvalidCheckpointError(f"{name} {found[0]}", found[1])
        protocol, named = _pickles(file)
        if protocol not in _PROTOCOLS or not _allowed().issuperset(named):
            return _unsafe(name, protocol, named)
        what = "its pickle has memo indexes beyond its length, or is none that torch.save writes"
        return damaged(name, what)

    return file.unmasked(explain)


def _gist(error: Exception) -> str:
    """Return the first sentence of torch's message, without the source location."""
    text = re.sub(r"^\[enforce fail at [^\]]*\] \. ", "", str(error)).partition("\n")[0].partition(". ")[0].rstrip(".")
    said = "".join(character if character.isprintable() else "?" for character in text)
    said = said[:_GIST_SHOWN]
    return said if isinstance(error, RuntimeError) and said else f"{type(error).__name__}: {said}".rstrip(": ")


def _frames(error: Exception) -> list[Any]:
    return [frame for frame, _ in traceback.walk_tb(error.__traceback__)]


def _while_placing(error: Exception) -> bool:
    return any(frame.f_code.co_name in _PLACING for frame in _frames(error))


def _out_of_memory(error: Exception) -> bool:
    """Return whether memory ran out; for main memory, torch raises a plain RuntimeError."""
    allocating = isinstance(error, RuntimeError) and "you tried to allocate" in str(error)
    return allocating or isinstance(error, MemoryError)


def _is_room(size: int) -> bool:
    """Return whether much more memory than a file of this size needs can be reserved; it is not touched."""
    try:
        torch.empty(_ROOM + _HELD * size, dtype=torch.uint8, device="cpu")
    except RuntimeError:
        return False
    return True


def _raised_while_decoding(error: Exception) -> bool:
    """Return whether torch or this package raised the error, and not a class that the file names.

    Counter counts as torch: torch allows it, and it is written in Python.
    """
    packages = [str(frame.f_globals.get("__name__")).partition(".")[0] for frame in _frames(error)]
    return packages[-1] in ("torch", "fsspec_csx") or (packages[-1] == "collections" and {*packages} <= _DECODING)


def _damage(file: TrackingReader) -> tuple[str, str] | None:
    """Describe damage in the structure of a torch file, and the remedy; None if there is none."""
    file.seek(0)
    if sniff.is_zip(file.read(sniff.HEAD)):
        try:
            names = zipfile.ZipFile(file).namelist()
        except _NOT_WHOLE:
            what = "looks like a torch checkpoint cut short"
            return f"{what}: {file.size} bytes without the zip directory that ends one.", AGAIN
        root = names[0].partition("/")[0] if names else ""
        if f"{root}/constants.pkl" in names:
            return "is a TorchScript archive.", "Load it with torch.jit.load."
        if f"{root}/data.pkl" not in names:
            first = f" (its first entry is {names[0]!r})" if names else ""
            return f"is a zip archive that is not a torch checkpoint{first}.", "Check that the path is that of one."
    try:
        _pickles(file)
    except _NOT_WHOLE as error:
        return f"is cut short or damaged: its pickle is not whole ({text_of(error)}).", AGAIN
    return None


def _pickles(file: TrackingReader) -> tuple[int, list[str]]:
    """Return the protocol and the globals of a file's pickles, without running them."""
    file.seek(0)
    if sniff.is_zip(file.read(sniff.HEAD)):
        archive = zipfile.ZipFile(file)
        root = archive.namelist()[0].partition("/")[0]
        stream: Any = io.BytesIO(archive.read(f"{root}/data.pkl"))
        count = 1
    else:
        file.seek(0)
        stream, count = file, _LEGACY_PICKLES
    protocol, names = 0, []
    for _ in range(count):
        for opcode, argument, _position in pickletools.genops(stream):
            if opcode.name == "PROTO":
                protocol = int(argument or 0)
            elif opcode.name in ("GLOBAL", "INST"):
                names.append(".".join(torch_compat.renamed(*str(argument).split(" ", 1))))
    return protocol, list(dict.fromkeys(names))


def _allowed() -> set[str]:
    return set.union(*torch_compat.allowed_globals())


def _unsafe(name: str, protocol: int, named: list[str]) -> UnsafeCheckpointError:
    trust = "pass weights_only=False only if you trust its author"
    allowed = _allowed()
    refused = [each for each in named if each not in allowed]
    if refused:
        reason = f"{name} names {names.few(refused)}, which could run code when loaded."
        remedy = "Load the other entries by keys=[...], allow classes that you trust with"
        remedy += f" torch.serialization.add_safe_globals([...]), or {trust}."
    elif protocol not in _PROTOCOLS:
        reason = f"{name} is pickled with protocol {protocol}, which torch reads only with weights_only=False."
        remedy = f"Save it with the default protocol, or {trust}."
    else:
        reason = f"{name} has content that torch reads only with weights_only=False."
        remedy = f"See torch's error above for the reason, and {trust}."
    return UnsafeCheckpointError(reason, remedy)
