"""Saves with ``local``: to a folder on the local disk, and from there to the remote path."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import CancelledError, wait
from dataclasses import dataclass
from typing import Any

from fsspec.callbacks import NoOpCallback

from fsspec_csx.checkpoint import save_queue
from fsspec_csx.checkpoint.local_tier import LocalTier, name_of
from fsspec_csx.checkpoint.save_future import SaveFuture, SaveProgress
from fsspec_csx.errors import ChecksumError, text_of
from fsspec_csx.formats import registry
from fsspec_csx.formats.writer import CheckpointWriter, FileWriter, Target
from fsspec_csx.storage.atomic import atomic_write
from fsspec_csx.storage.files import chunks, is_csx, resolve_path, unwrap_filesystem
from fsspec_csx.storage.owned_files import digest
from fsspec_csx.storage.paths import checkpoint_path, redacted
from fsspec_csx.storage.progress import AdvanceCallback

logger = logging.getLogger("fsspec_csx")

_tiers: dict[str, LocalTier] = {}
os.register_at_fork(after_in_child=_tiers.clear)


def check_local(local: str | os.PathLike[str], keep: int = 1) -> None:
    """Raise a ValueError for an invalid local folder, or an invalid number of checkpoints to keep."""
    text = os.fspath(local)
    if not text or "://" in text:
        msg = f"A local folder is a path on this machine, not {redacted(text)!r}. Give one such as '/nvme/checkpoints'."
        raise ValueError(msg)
    if type(keep) is not int or keep < 1:
        msg = f"keep_local must be an integer of at least 1, not {keep!r}. Give how many checkpoints to keep."
        raise ValueError(msg)


def tier_of(
    path: str, local: str | os.PathLike[str], options: Mapping[str, Any] | None = None
) -> tuple[LocalTier, Target]:
    """Return the local tier for a remote checkpoint, and the remote target. Each remote folder has its own tier."""
    check_local(local)
    text = checkpoint_path(path)
    fs, inner = resolve_path(path, text, options)
    if not text.endswith(name_of(inner)):  # such as zip://name::URL
        msg = f"No local folder is for {redacted(text)!r}, which does not end in the checkpoint's name. Leave it out."
        raise ValueError(msg)
    behind, place, _ = unwrap_filesystem(fs, inner if fs is not None else os.path.abspath(inner))
    if connect := getattr(behind, "connect", None):
        connect()
    parent = place.rpartition("/")[0]
    kept = digest(type(behind).__name__, *_store(behind, text), parent)[:8]
    shown = re.sub(r"[^\w.-]+", "_", parent.rpartition("/")[2])[:80]
    folder = os.path.join(os.path.realpath(local), f"{shown}-{kept}")  # one tier for all symbolic links to it
    return _tiers.setdefault(folder, LocalTier(folder)), Target(fs, inner, redacted(text))


def _store(fs: Any, text: str) -> list[str]:
    """Distinguish stores with equal paths: by the endpoint of S3, or else by the URL and the account."""
    if fs is None or hasattr(fs, "_endpoint"):
        return [getattr(fs, "_endpoint", "")]
    known = (getattr(fs, name, "") for name in ("account_name", "host", "port", "endpoint_url"))
    return [redacted(text.rpartition("/")[0]), *(str(each) for each in known)]


def find(path: str, local: str | os.PathLike[str], options: Mapping[str, Any] | None = None) -> str:
    """Return the path to read a checkpoint from: its local copy if that is valid, or else ``path``."""
    tier, target = tier_of(path, local, options)
    return tier.find(name_of(target.path), target) or path


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
        reason, uploader = f" ({redacted(text_of(error))})", "next save"
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
    if is_csx(fs) and not caches:
        fs.put_file(path, inner, resumable=True, ready=commit, callback=AdvanceCallback(advance))
        return
    with open(path, "rb") as file, atomic_write(target.fs, target.path) as written:
        for chunk in chunks(file):
            written.write(chunk)
            advance(len(chunk))
        commit()
