"""LocalTier: checkpoints that are written to a local disk first, and uploaded from there.

A local checkpoint is used only if its bytes match its record, and the remote file is the one that was uploaded. If the
upload never ended, there must be no remote file, or the one that was uploaded from here before. In doubt, the remote
file is used.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, wait
from dataclasses import asdict, replace
from typing import Any

from fsspec_csx.checkpoint.local_record import SUFFIX, LocalRecord, SummedFile
from fsspec_csx.checkpoint.save_future import SaveFuture
from fsspec_csx.errors import ChecksumError
from fsspec_csx.formats.writer import FileWriter, Target
from fsspec_csx.s3.transport.checksum import CRC64NVME
from fsspec_csx.storage.atomic import atomic_write
from fsspec_csx.storage.files import file_state, is_csx, unwrap_filesystem

logger = logging.getLogger("fsspec_csx")

# A save that waits longer for other uploads logs a warning; in seconds.
_SILENT = 60.0
# The most saves of a tier in flight; the next one waits.
_OUTSTANDING = 2
_LOCK = ".lock"


class LocalTier:
    """The newest checkpoints of one remote folder, in their own folder on a local disk.

    Attributes:
        keep: how many checkpoints to keep there.
        resumed: whether the uploads that an earlier process left were started.
        order: a lock to hold until a save that waits for earlier ones is in the queue.
        uploading: the name of a checkpoint whose own save has ended, and that another save uploads; empty for none.
        ended: whether checkpoints that a later save handled, or that were deleted or given up, are uploaded; by name.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.keep = 1
        self.resumed = False
        self._locked = False
        self.uploading = ""
        self.ended: dict[str, bool] = {}
        self._outstanding: dict[SaveFuture, str] = {}
        self.order = threading.RLock()
        self._changing = threading.RLock()

    # -- contents ---------------------------------------------------------------------------------------------------

    def path_of(self, name: str) -> str:
        return os.path.join(self.folder, name)

    def pending(self) -> list[str]:
        """Return the names of the checkpoints that are not uploaded, the newest last."""
        return [name for name, record in self._records() if record.remote is None]

    def pending_from_earlier(self, *, again: bool = False) -> list[str]:
        """Return the names of checkpoints that no running save will upload; with ``again``, also those given up before.

        Empty if the folder cannot be used.
        """
        try:
            self._prepare()
        except OSError as error:
            logger.warning("Nothing is uploaded from %s: %s", self.folder, error)
            return []
        self.resumed = True
        outstanding = self._busy()
        return [name for name in self.pending() if name not in outstanding and (again or name not in self.ended)]

    def find(self, name: str, target: Target) -> str | None:
        """Return the path of the local copy of a checkpoint; None if there is none, or the remote file must be read."""
        path = self.path_of(name)
        noted = LocalRecord.read(path)
        if noted is None:
            return None
        record = noted.matching(path)
        flaw = "its bytes have changed" if record is None else self._difference(record, path, target)
        if flaw:
            logger.warning("The local copy %s is not used: %s", path, flaw)
        return None if flaw else path

    def _difference(self, record: LocalRecord, path: str, target: Target) -> str:
        """Describe why the remote file is a different one; empty if it is the same."""
        state = _remote_state(target)
        if record.remote is None and state in (None, record.before):
            return ""
        if state is None:
            return f"{target.name} was deleted"
        if record.remote:
            return "" if state == record.remote else f"{target.name} was replaced"
        # Another process uploaded it, or ended before it could record the upload.
        if (state.get("size"), state.get("crc64nvme")) != (record.size, record.crc64nvme):
            return f"{target.name} is another checkpoint"
        with self._changing, contextlib.suppress(OSError):
            # Without the lock, another process may be replacing it.
            if self._locked and LocalRecord.read(path) == record:
                replace(record, remote=state).write(path)
        return ""

    def _records(self) -> list[tuple[str, LocalRecord]]:
        """Return the checkpoints and their records, the newest last."""
        with contextlib.suppress(OSError):
            names = [name.removesuffix(SUFFIX) for name in os.listdir(self.folder) if name.endswith(SUFFIX)]
            found = [(name, record) for name in names if (record := LocalRecord.read(self.path_of(name))) is not None]
            return sorted(found, key=lambda each: each[1].number)
        return []

    # -- saves ------------------------------------------------------------------------------------------------------

    def _busy(self) -> set[str]:
        """Return the names of the saves in flight, and of the checkpoint that another save uploads."""
        return {self.uploading, *(name for save, name in self._outstanding.copy().items() if not save.done())}

    def _others(self) -> dict[SaveFuture, str]:
        """Return the saves in flight, except those that the current signal handler interrupts: they cannot continue."""
        own = threading.get_ident()
        return {save: name for save, name in self._outstanding.copy().items() if save.waiting_thread != own}

    def wait_for_room(self, name: str) -> None:
        """Wait until fewer than two saves are in flight, and none of this name."""
        while saves := self._others():
            if len(saves) < _OUTSTANDING and name not in saves.values():
                return
            done, _ = wait([*saves], _SILENT, return_when=FIRST_COMPLETED)
            if not done:
                logger.warning("The save of %s waits for those of %s, which have not ended", name, [*saves.values()])

    def add(self, name: str, save: SaveFuture) -> dict[SaveFuture, str]:
        """Add a save that has begun; return the earlier saves in flight, with their names."""
        with self.order:
            earlier = self._others()
            self._outstanding[save] = name
            self.ended.pop(name, None)
        save.add_done_callback(lambda _: self._outstanding.pop(save, None))
        return earlier

    def write(self, writer: FileWriter, target: Target, advance: Callable[[int], object]) -> None:
        """Write a checkpoint, with its record before it appears; delete checkpoints beyond ``keep``.

        Raises:
            OSError: if the disk is full or not writable, another process uses the folder, or the name is reserved.
        """
        path = self.path_of(name_of(target.path))
        if path == self.path_of(_LOCK) or path.endswith(SUFFIX):
            raise OSError(errno.EINVAL, "Such names are those of the folder's own files", path)
        self._prepare()
        self.ended.pop(name_of(target.path), None)
        with atomic_write(None, path) as file:
            summed = SummedFile(file)
            writer.write(summed, advance=advance)
            with self._changing:
                self._following(path, LocalRecord(target.name, 1, summed.size, summed.checksum)).write(path)
            advance(0)  # it may have been cancelled meanwhile
        self._prune(waiting=True)

    def _following(self, path: str, record: LocalRecord) -> LocalRecord:
        """Return a record with the next number, and with the state of the checkpoint that it replaces."""
        record = replace(record, number=max((each.number for _, each in self._records()), default=0) + 1)
        old = LocalRecord.read(path)
        if old is not None and old.former:  # a cancelled or failed save may not have replaced it
            old = old.matching(path)
        if old is None:
            return record
        return replace(record, before=old.remote or old.before, former=asdict(replace(old, former=None)))

    def note_uploaded(self, name: str, target: Target) -> None:
        """Record the state of the remote file after an upload, and delete checkpoints beyond ``keep``.

        Raises:
            ChecksumError: if the remote file has other bytes.
        """
        path = self.path_of(name)
        record = LocalRecord.read(path)
        if record is None:
            return  # deleted meanwhile
        try:
            state = _remote_state(target)
        except OSError as error:  # the credentials may only allow writes
            logger.warning("The state of %s is not noted beside its local copy: %s", target.name, error)
            state = None
        size, checksum = record.size, record.crc64nvme
        if state is not None and (state.get("size") != size or state.get("crc64nvme", checksum) != checksum):
            reason = f"{target.name} was uploaded from {path}, but has other bytes."
            raise ChecksumError(reason, "Check the local disk, and who else writes to this path.")
        try:
            with self._changing:
                replace(record, remote=state or {}, former=None).write(path)
        except OSError as error:  # a full disk; the next run compares the checksums
            logger.warning("%s is not noted as uploaded: %s", path, error)
        self._prune(waiting=False)

    def never_upload(self, name: str) -> None:
        """Never upload a checkpoint that an earlier process left."""
        path = self.path_of(name)
        if record := LocalRecord.read(path):
            try:
                replace(record, remote={}).write(path)
            except OSError:  # a full disk: without a record the file is not used
                os.unlink(path + SUFFIX)

    def delete(self, name: str) -> None:
        for path in (self.path_of(name), self.path_of(name) + SUFFIX):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                os.unlink(path)

    def _prune(self, *, waiting: bool) -> None:
        """Delete the oldest checkpoints beyond ``keep`` that are uploaded, or older than an uploaded one.

        With ``waiting``, also delete others whose upload has failed.
        """
        records = self._records()
        busy = self._busy()
        uploaded = max((record.number for _, record in records if record.remote is not None), default=0)
        free = [(name, record) for name, record in records if record.remote is not None or name not in busy]
        free = [each for each in free if waiting or each[1].number <= uploaded]
        free.sort(key=lambda each: (each[1].number > uploaded, each[1].number))
        for name, record in free[: max(0, len(records) - self.keep)]:
            self.ended[name] = record.remote is not None
            if record.remote is None:
                reason = f"the folder keeps the newest {self.keep} (keep_local)"
                logger.warning("%s was not uploaded, and is deleted from %s: %s", record.path, self.folder, reason)
            with contextlib.suppress(OSError):  # a read-only disk
                self.delete(name)

    def _prepare(self) -> None:
        """Lock the folder and delete remains of killed processes; raise an OSError if another process uses it."""
        with self._changing:
            os.makedirs(self.folder, exist_ok=True)
            if not self._locked:
                _lock(self.path_of(_LOCK))
                self._locked = True
                self._clean_up()

    def _clean_up(self) -> None:
        records = self._records()
        known = {each for name, _ in records for each in (name, name + SUFFIX)}
        for name in os.listdir(self.folder):
            if name not in known and (name.endswith(SUFFIX) or (name.startswith(".") and name.endswith(".tmp"))):
                os.unlink(self.path_of(name))
        for name, record in records:
            if record.former and (found := record.matching(self.path_of(name))) not in (None, record):
                found.write(self.path_of(name))  # the process was killed before the new file replaced the old one


def _remote_state(target: Target) -> dict[str, Any] | None:
    """Return the size and the version, such as the ETag, of a remote file; None if it does not exist."""
    fs, path, _ = unwrap_filesystem(target.fs, target.path)
    try:
        if not is_csx(fs):
            return {key: value if key == "size" else str(value) for key, value in file_state(fs, path).items()}
        found = fs.object_metadata(path)
    except FileNotFoundError:
        return None
    checksum = {"crc64nvme": found.checksum} if found.algorithm is CRC64NVME else {}
    return {"size": found.size, "etag": found.etag, **checksum}


def _lock(path: str) -> None:
    """Lock a file until this process ends; forked children do not hold the lock."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise BlockingIOError(errno.EAGAIN, "Another process uses this folder", os.path.dirname(path)) from error
        raise


def name_of(path: str) -> str:
    return path.rpartition("/")[2]
