"""The layout of Cerebras checkpoints: a metadata object that lists the objects beside and below it."""

from __future__ import annotations

from collections.abc import Collection

from fsspec_csx.errors import CheckpointError
from fsspec_csx.formats.cerebras import metadata
from fsspec_csx.formats.cerebras.metadata import LARGEST, NAME, SUCCESS
from fsspec_csx.formats.folder_layout import FolderLayout, OwnFiles
from fsspec_csx.storage.files import file_size
from fsspec_csx.storage.folder import Folder

_TAIL = 4096


class CerebrasLayout(FolderLayout):
    """Prefixes of objects."""

    manifest = NAME
    lists_files = True
    has_user_metadata = True

    def is_finished(self, folder: Folder) -> bool:
        try:
            with folder.open(NAME) as file:
                size = file_size(file)
                file.seek(max(0, size - _TAIL))
                if SUCCESS.encode() in file.read(_TAIL):  # a save writes this last
                    return True
                file.seek(0)
                return size <= LARGEST and bool(metadata.decoded(file.read(), name=folder.name).get(SUCCESS))
        except (FileNotFoundError, CheckpointError):
            return False
        except PermissionError:
            return True

    def own_files(self, folder: Folder, names: Collection[str], *, strict: bool = False) -> OwnFiles:
        try:
            data = _read(folder, LARGEST + 1) or b""
        except PermissionError:
            if strict:
                raise
            data = b""
        own, unclear = metadata.split_owned(data, names, path=folder.name, strict=strict)
        return OwnFiles(own, unclear, metadata.unclear_owner(unclear) if unclear else "")

    def is_below_other(self, held: Collection[str], names: Collection[str]) -> bool:
        return any(map(metadata.other_owner_test(held), names))

    def mark_unfinished(self, folder: Folder, names: Collection[str]) -> bytes | None:
        former = _read(folder)
        self.restore(folder, metadata.unfinished(names))
        return former

    def is_marked(self, folder: Folder) -> bool:
        try:
            return {*metadata.decoded(_read(folder, LARGEST) or b"", name=folder.name)} == {metadata.OWN}
        except CheckpointError:
            return False

    def restore(self, folder: Folder, manifest: bytes) -> None:
        with folder.atomic_write(NAME) as file:
            file.write(manifest)


def _read(folder: Folder, size: int = -1) -> bytes | None:
    """Read the metadata; None if there is none."""
    try:
        with folder.open(NAME) as file:
            return file.read(size)
    except FileNotFoundError:
        return None


LAYOUT = CerebrasLayout()
