"""Writers of checkpoints by way of a local disk: to the disk, and from there to the remote path."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable

from fsspec.callbacks import Callback

from fsspec_csx.checkpoint.local_tier import LocalTier
from fsspec_csx.checkpoint.summed_file import chunks
from fsspec_csx.formats.writer import CheckpointWriter, FileWriter, Target
from fsspec_csx.storage.atomic import atomic_write
from fsspec_csx.storage.files import unwrap_filesystem

logger = logging.getLogger("fsspec_csx")


class LocalWriter(CheckpointWriter):
    """Writes a checkpoint to the tier, or where that fails to its remote path.

    Args:
        tier: the tier.
        name: of the checkpoint.
        writer: what is to be written.
        upload: called with the ``Upload`` when the local file is whole.
        end: called when the remote path was written to in its place.

    Raises:
        ValueError: if the format is of more than one file.
    """

    def __init__(
        self,
        tier: LocalTier,
        name: str,
        writer: CheckpointWriter,
        upload: Callable[[Upload], object],
        end: Callable[[], object],
    ) -> None:
        if not isinstance(writer, FileWriter):
            msg = "A local disk takes checkpoints of one file. Leave out the local folder, or the format."
            raise ValueError(msg)
        self.nbytes = writer.nbytes
        self._name = name
        self._tier = tier
        self._writer = writer
        self._upload = upload
        self._end = end

    def save(
        self, target: Target, *, advance: Callable[[int], object], commit: Callable[[], object] = lambda: None
    ) -> None:
        """See ``CheckpointWriter``."""
        try:
            self._tier.write(self._writer, target, advance, commit)
        except OSError as error:
            logger.warning("%s is saved without a copy in %s: %s", target.name, self._tier.folder, error)
            self._writer.save(target, advance=advance, commit=commit)
            self._end()
        else:
            self._upload(Upload(self._tier, self._name))

    def free(self) -> None:
        """See ``CheckpointWriter``."""
        self._writer.free()


class Upload(CheckpointWriter):
    """Uploads a checkpoint from the tier; an interrupted upload to S3 resumes.

    Args:
        tier: the tier.
        name: of the checkpoint.
        pass_over: if an earlier process left the checkpoint: called where it is not to be uploaded.
    """

    def __init__(self, tier: LocalTier, name: str, *, pass_over: Callable[[], object] | None = None) -> None:
        self.nbytes = os.path.getsize(tier.path_of(name))
        self._tier = tier
        self._name = name
        self._pass_over = pass_over

    def save(
        self, target: Target, *, advance: Callable[[int], object], commit: Callable[[], object] = lambda: None
    ) -> None:
        """See ``CheckpointWriter``."""
        path = self._tier.path_of(self._name)
        if self._pass_over is not None:
            if self._tier.find(self._name, target) is None:
                self._pass_over()
                return
            if self._name not in self._tier.pending():  # the end of its upload was not noted
                return
        try:
            _upload(path, target, advance)
        except Exception:
            logger.warning("%s is only at %s, from where the next run uploads it.", target.name, path)
            raise
        commit()
        self._tier.note_uploaded(self._name, target)

    def free(self) -> None:
        """See ``CheckpointWriter``."""


def _upload(path: str, target: Target, advance: Callable[[int], object]) -> None:
    fs, inner, caches = unwrap_filesystem(target.fs, target.path)
    if hasattr(fs, "take_file") and not caches:  # S3
        fs.put_file(path, inner, resumable=True, callback=_Advance(advance))
        return
    with open(path, "rb") as file, atomic_write(target.fs, target.path) as written:
        for chunk in chunks(file):
            written.write(chunk)
            advance(len(chunk))


class _Advance(Callback):  # type: ignore[misc]
    """Passes the number of bytes on."""

    def __init__(self, advance: Callable[[int], object]) -> None:
        super().__init__()
        self._advance = advance

    def relative_update(self, inc: int = 1) -> None:
        self._advance(inc)
