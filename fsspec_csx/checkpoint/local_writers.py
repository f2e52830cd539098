"""Writers for saves with ``local``: to the local disk, and from there to the remote path."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import CancelledError, wait
from dataclasses import dataclass
from typing import Any

from fsspec.callbacks import NoOpCallback

from fsspec_csx.checkpoint import save_queue
from fsspec_csx.checkpoint.local_folder import check_local, tier_of
from fsspec_csx.checkpoint.local_record import chunks
from fsspec_csx.checkpoint.local_tier import LocalTier, name_of
from fsspec_csx.checkpoint.save_future import SaveFuture, SaveProgress
from fsspec_csx.errors import ChecksumError
from fsspec_csx.formats import registry
from fsspec_csx.formats.writer import CheckpointWriter, FileWriter, Target
from fsspec_csx.storage.atomic import atomic_write
from fsspec_csx.storage.files import unwrap_filesystem
from fsspec_csx.storage.paths import redacted
from fsspec_csx.storage.progress import AdvanceCallback

logger = logging.getLogger("fsspec_csx")


def open_tier(
    text: str, local: str | os.PathLike[str], keep: int, format: str | None, options: Mapping[str, Any] | None
) -> tuple[LocalTier, str]:
    """Return the tier for a save, when it has room for one, and the checkpoint's name there; see ``async_save``.

    Raises:
        ValueError: if the folder or the number is invalid, or the format has many files.
    """
    check_local(local, keep)
    if registry.is_folder(registry.get_format(format or registry.name_for(text)).name):
        msg = "local works only with single-file formats. Leave out local, or the format."
        raise ValueError(msg)
    tier, target = tier_of(text, local, options)
    tier.keep = keep
    name = name_of(target.path)
    with tier.order:
        for left in [] if tier.resumed else tier.pending_from_earlier():
            try:
                upload_left(text.removesuffix(name) + left, local, options)
            except (OSError, RuntimeError) as error:  # an error must not end this save
                logger.warning("%s is not uploaded now: %s", tier.path_of(left), error)
    tier.wait_for_room(name)
    return tier, name


def upload_left(path: str, local: str | os.PathLike[str], options: Mapping[str, Any] | None = None) -> SaveFuture:
    """Upload in the background a checkpoint that a save left on the local disk.

    The save is cancelled, with a warning, if the local file is damaged, or the path has another checkpoint.
    """
    tier, target = tier_of(path, local, options)
    name = name_of(target.path)
    progress = SaveProgress(NoOpCallback(), os.path.getsize(tier.path_of(name)))
    future = SaveFuture(progress, local=True)
    future.end_local()
    logger.warning("%s is uploaded from %s, where an earlier save left it", target.name, tier.folder)
    with tier.order:
        upload = Upload(tier, name, tier.add(name, future), on_skip=progress.cancel)
        save_queue.add(save_queue.Save(future, target, tier.folder, upload, order_key=tier.folder))
    return future


@dataclass(eq=False)
class LocalFirst(CheckpointWriter):
    """Writes a checkpoint to the tier, and from there to its remote path; if the disk fails, to that path directly.

    The writer is freed when the local file is complete. Then ``future.local`` ends, or if the disk failed, when the
    remote file is complete.
    """

    tier: LocalTier
    name: str
    writer: CheckpointWriter
    future: SaveFuture

    def __post_init__(self) -> None:
        self.nbytes = self.writer.nbytes
        self._earlier = self.tier.add(self.name, self.future)

    def save(
        self, target: Target, *, advance: Callable[[int], object], commit: Callable[[], object] = lambda: None
    ) -> None:
        """See ``CheckpointWriter``; the bytes written to the remote path count."""
        upload = None
        # Do not replace a file that an earlier save uploads.
        is_left = self.name in self.tier.pending()
        others = [save if is_left or name == self.name else save.local for save, name in self._earlier.items()]
        wait([save for save in others if save is not None])
        advance(0)  # it may have been cancelled meanwhile
        assert isinstance(self.writer, FileWriter)
        try:
            self.tier.write(self.writer, target, lambda _: advance(0))
            upload = Upload(self.tier, self.name, self._earlier)
        except OSError as error:
            logger.warning("%s is saved without a local copy in %s: %s", target.name, self.tier.folder, error)
            self.writer.save(target, advance=advance, commit=commit)
        self.free()
        self.future.end_local()
        if upload is not None:
            upload.save(target, advance=advance, commit=commit)

    def free(self) -> None:
        self.writer.free()


@dataclass(eq=False)
class Upload(CheckpointWriter):
    """Uploads a checkpoint from the tier, after the saves in ``earlier``; an interrupted upload to S3 resumes.

    For a checkpoint that an earlier save left, ``on_skip`` is called if it must not be uploaded.
    """

    tier: LocalTier
    name: str
    earlier: Collection[SaveFuture]
    on_skip: Callable[[], object] | None = None

    def __post_init__(self) -> None:
        self.nbytes = os.path.getsize(self.tier.path_of(self.name))

    def save(
        self, target: Target, *, advance: Callable[[int], object], commit: Callable[[], object] = lambda: None
    ) -> None:
        path = self.tier.path_of(self.name)
        try:
            wait(self.earlier)
            advance(0)  # it may have been cancelled meanwhile
            if self.on_skip is None:
                self._upload_left(target, advance)
            if not self._is_wanted(target):
                return
            _upload(path, target, advance, commit)
        except BaseException as error:
            self._report(target, path, error)
            raise
        self.tier.note_uploaded(self.name, target)

    def _report(self, target: Target, path: str, error: BaseException) -> None:
        reason, uploader = f" ({redacted(str(error) or type(error).__name__)})", "next save"
        if isinstance(error, CancelledError):
            reason, uploader = ", as its save was cancelled", "next process that saves"
            if self.on_skip is None:
                self.tier.ended[self.name] = False  # no other save of this process uploads it
        logger.warning(
            "%s is not uploaded%s. It is complete at %s: load(path, local=%r) reads it, and the %s with this local "
            "folder and remote folder uploads it.",
            *(target.name, reason, path, os.path.dirname(self.tier.folder), uploader),
        )

    def _upload_left(self, target: Target, advance: Callable[[int], object]) -> None:
        """Upload the checkpoints that earlier saves left, the oldest first, until one fails."""
        for left in self.tier.pending_from_earlier():
            paths = (each.removesuffix(self.name) + left for each in (target.path, target.name))
            self.tier.uploading = left
            try:
                upload = Upload(self.tier, left, (), on_skip=lambda: None)
                upload.save(Target(target.fs, *paths), advance=lambda _: advance(0))
            except ChecksumError as error:
                logger.warning("%s", error)
                self.tier.ended[left] = False
            except OSError:  # already logged
                return
            finally:
                self.tier.uploading = ""
            self.tier.ended.setdefault(left, True)

    def _is_wanted(self, target: Target) -> bool:
        if self.on_skip is None:
            return True
        if self.tier.find(self.name, target) is None:
            self.tier.ended[self.name] = False
            self.on_skip()
            return False
        return self.name in self.tier.pending()  # if not, it was uploaded, but not recorded as such

    def free(self) -> None:
        """See ``CheckpointWriter``."""


def _upload(path: str, target: Target, advance: Callable[[int], object], commit: Callable[[], object]) -> None:
    fs, inner, caches = unwrap_filesystem(target.fs, target.path)
    if hasattr(fs, "take_file") and not caches:  # S3
        fs.put_file(path, inner, resumable=True, ready=commit, callback=AdvanceCallback(advance))
        return
    with open(path, "rb") as file, atomic_write(target.fs, target.path) as written:
        for chunk in chunks(file):
            written.write(chunk)
            advance(len(chunk))
        commit()
