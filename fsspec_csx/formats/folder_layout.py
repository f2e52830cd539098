"""FolderLayout: which files make a folder a checkpoint, which of them are missing, and which are left over.

A format whose checkpoints are folders defines one in ``layout.py``. Listings ask every layout, so it does not import
torch before it reads a manifest.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import ClassVar, NamedTuple

from fsspec_csx.errors import InvalidCheckpointError, few
from fsspec_csx.storage.folder import Folder

REMEDY = "Copy it again, or delete it."


class OwnFiles(NamedTuple):
    """The files of a checkpoint among others, by name.

    Attributes:
        names: of the files that belong to it.
        unclear: of the files in folders below that may belong to it, as its manifest is damaged.
        note: describes ``unclear`` as part of a sentence; empty if there are none.
    """

    names: list[str]
    unclear: list[str]
    note: str = ""


class FolderLayout:
    """The folders of a format. Names of files are relative to the folder; by default they are directly in it.

    Attributes:
        manifest: the file that makes a folder a checkpoint; empty if it has no fixed name.
        lists_files: whether the manifest lists the files of the checkpoint. They may be in folders below, and beside
            files of others. The manifest alone may be a checkpoint. A copy or a deletion first marks it as unfinished.
        has_user_metadata: whether a copy must keep the user metadata of objects on S3.
    """

    manifest: ClassVar[str] = ""
    lists_files: ClassVar[bool] = False
    has_user_metadata: ClassVar[bool] = False

    # -- names -----------------------------------------------------------------------------------------------------

    def manifests(self, names: Collection[str]) -> list[str]:
        """Return the files that make a folder with these files a checkpoint, if it is one. They are written last."""
        return [self.manifest] if self.manifest in names else []

    def is_checkpoint(self, names: Collection[str]) -> bool:
        """Return whether a folder with these files is a checkpoint."""
        return bool(self.manifests(names))

    def is_loadable(self, names: Collection[str]) -> bool:
        """Return whether ``load`` reads a folder with these files as one checkpoint."""
        return self.is_checkpoint(names)

    def is_unfinished(self, names: Collection[str]) -> bool:
        """Return whether a folder that is no checkpoint has shards of one, complete or not."""
        return False

    def is_index(self, name: str) -> bool:
        """Return whether ``load`` takes the path of a file of this name for its folder."""
        return False

    def is_shard(self, name: str) -> bool:
        """Return whether a file of this name is a shard, which is useless alone."""
        return False

    def is_shard_folder(self, name: str) -> bool:
        """Return whether a folder of this name in a checkpoint holds its shards."""
        return False

    def is_leftover(self, name: str, *, shared: bool) -> bool:
        """Return whether a shard of this name may be deleted if no manifest names it.

        If the folder is shared with other programs, only the names that this package gives to shards count.
        """
        return False

    # -- manifests -------------------------------------------------------------------------------------------------

    def check_complete(
        self, folder: Folder, sizes: Mapping[str, int | None], below: Callable[[], Mapping[str, int | None]]
    ) -> None:
        """Raise an InvalidCheckpointError if a file of the checkpoint is missing or too short; None is a size unknown.

        ``sizes`` are those of the files directly in the folder. ``below`` lists all files below it, by further
        requests.
        """

    def unnamed(self, folder: Folder, names: Collection[str]) -> set[str]:
        """Return the shards of this package, also in shard folders, that no manifest of the folder names.

        Raises:
            CheckpointError: if a manifest is damaged.
            OSError: if a manifest cannot be read.
        """
        return set()

    # -- manifests that list files ---------------------------------------------------------------------------------

    def is_finished(self, folder: Folder) -> bool:
        """Return whether the checkpoint is complete; True if its manifest may not be read."""
        return True

    def own_files(self, folder: Folder, names: Collection[str], *, strict: bool = False) -> OwnFiles:
        """Return which of the files below a folder belong to the checkpoint.

        Raises:
            InvalidCheckpointError: with ``strict``, if the manifest names files of checkpoints below, or does not name
                all of its own.
        """
        return OwnFiles([*names], [])

    def is_below_other(self, held: Collection[str], names: Collection[str]) -> bool:
        """Return whether files of these names would be in the folder of a checkpoint below, given all files held."""
        return False

    def mark_unfinished(self, folder: Folder, names: Collection[str]) -> bytes | None:
        """Write a manifest that marks a checkpoint with these files as unfinished.

        Returns:
            The former manifest; None if there was none.
        """
        return None

    def is_marked(self, folder: Folder) -> bool:
        """Return whether ``mark_unfinished`` marked a folder that nothing has completed since."""
        return False

    def restore(self, folder: Folder, manifest: bytes) -> None:
        """Write the manifest that ``mark_unfinished`` returned."""


def incomplete(name: str, missing: Collection[str], what: str) -> InvalidCheckpointError:
    """Return the error for a checkpoint without some of its files; ``what`` says what names them."""
    return InvalidCheckpointError(f"{name} is incomplete: it lacks {few([*missing])}, which {what}.", REMEDY)
