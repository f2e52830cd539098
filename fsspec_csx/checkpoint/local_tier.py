"""LocalTier: checkpoints that are written to a local disk first, and uploaded from there.

Beside each checkpoint is its record, a JSON file: the size and the CRC64NVME of its bytes, and the state of the remote
file after the upload (on S3, its ETag). A local checkpoint is used only if its bytes are those of the record, and the
remote file is the one that was uploaded; or, if the upload never ended, there is none, or the one that was uploaded
from here before. In doubt the remote one is used.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import errno
import json
import logging
import os
import re
from collections.abc import Callable, Mapping
from typing import Any

from fsspec_csx.checkpoint.summed_file import SummedFile, checksum_of
from fsspec_csx.errors import ChecksumError
from fsspec_csx.formats.writer import FileWriter, Target
from fsspec_csx.s3.transport.checksum import CRC64NVME
from fsspec_csx.s3.upload_journal import digest
from fsspec_csx.storage.atomic import atomic_write
from fsspec_csx.storage.files import file_state, resolve_path, unwrap_filesystem
from fsspec_csx.storage.paths import checkpoint_path, redacted

logger = logging.getLogger("fsspec_csx")

_RECORD = ".json"
# Seconds after which a save that waits for the uploads of others says so.
_SILENT = 60.0
# Saves of a tier that have not ended; the next one waits.
_OUTSTANDING = 2


class LocalTier:
    """The newest checkpoints of one remote folder, in a folder of its own on a local disk.

    Args:
        folder: on the local disk.

    Attributes:
        folder: the same.
        keep: how many checkpoints to keep there, besides those that are still to be uploaded.
        resumed: whether the uploads that an earlier process left were started.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.keep = 1
        self.resumed = False
        self._locked = False
        self._outstanding: dict[concurrent.futures.Future[None], str] = {}

    # -- what is there ----------------------------------------------------------------------------------------------

    def names(self) -> list[str]:
        """The names of the checkpoints, the newest last."""
        return [name for name, _ in self._records()]

    def pending(self) -> list[str]:
        """The names of those that are not uploaded, the newest last."""
        return [name for name, record in self._records() if record["remote"] is None]

    def left(self) -> list[str]:
        """The names of those that are not uploaded, and that no save of this process is to upload."""
        outstanding = {*self._outstanding.copy().values()}
        return [name for name in self.pending() if name not in outstanding]

    def take_left(self) -> list[str]:
        """The same, but empty for all calls but the first, and if the folder cannot be used."""
        if self.resumed:
            return []
        self.resumed = True
        try:
            self.prepare()
        except OSError as error:
            logger.warning("Nothing is uploaded from %s: %s", self.folder, error)
            return []
        return self.left()

    def find(self, name: str, target: Target) -> str | None:
        """The path of the local copy of a checkpoint; None if there is none, or the remote file is to be read.

        Raises:
            OSError: raised by the remote filesystem.
        """
        record = self._record(name)
        if record is None:
            return None
        flaw = "its bytes have changed" if not self._is_whole(name, record) else ""
        flaw = flaw or self._difference(name, record, target)
        if flaw:
            logger.warning("The local copy %s is passed over: %s", self.path_of(name), flaw)
        return None if flaw else self.path_of(name)

    def path_of(self, name: str) -> str:
        """The path of a checkpoint on the local disk."""
        return os.path.join(self.folder, name)

    def _difference(self, name: str, record: dict[str, Any], target: Target) -> str:
        """Why the remote file is another one; empty if it is not."""
        state = _remote_state(target)
        if record["remote"] is not None:
            gone = f"{target.name} was deleted" if state is None else f"{target.name} was replaced"
            return "" if state == record["remote"] else gone
        if state is None or state == record.get("before"):
            return ""
        # Uploaded by a process that ended before it could note it, or by another one.
        if all(state.get(key) == record[key] for key in ("size", "crc64nvme")):
            with contextlib.suppress(OSError):
                self._write_record(name, record | {"remote": state})
            return ""
        return f"{target.name} is another checkpoint"

    def _is_whole(self, name: str, record: dict[str, Any]) -> bool:
        with contextlib.suppress(OSError), open(self.path_of(name), "rb") as file:
            return (os.fstat(file.fileno()).st_size, checksum_of(file)) == (record["size"], record["crc64nvme"])
        return False

    def _records(self) -> list[tuple[str, dict[str, Any]]]:
        with contextlib.suppress(OSError):
            names = [name.removesuffix(_RECORD) for name in os.listdir(self.folder) if name.endswith(_RECORD)]
            found = [(name, record) for name in names if (record := self._record(name)) is not None]
            return sorted(found, key=lambda each: each[1]["number"])
        return []

    def _record(self, name: str) -> dict[str, Any] | None:
        """The record of a checkpoint that is there; None if it, or the checkpoint, is missing or damaged."""
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError, RecursionError):
            with open(self.path_of(name) + _RECORD, "rb") as file:
                record = json.load(file)
            kinds: dict[str, Any] = {"number": int, "size": int, "crc64nvme": str, "remote": (dict, type(None))}
            if all(isinstance(record[key], kind) for key, kind in kinds.items()) and os.path.isfile(self.path_of(name)):
                return dict(record)
        return None

    # -- changes ----------------------------------------------------------------------------------------------------

    def wait_for_room(self, name: str) -> None:
        """Wait until fewer than two saves are outstanding, and none of this name."""
        while saves := self._outstanding.copy():
            if len(saves) < _OUTSTANDING and name not in saves.values():
                return
            done, _ = concurrent.futures.wait([*saves], _SILENT, return_when=concurrent.futures.FIRST_COMPLETED)
            if not done:
                logger.warning("The save of %s waits for those of %s, which have not ended", name, [*saves.values()])

    def add(self, name: str, save: concurrent.futures.Future[None]) -> None:
        """Note a save that has begun."""
        self._outstanding[save] = name
        save.add_done_callback(lambda ended: self._outstanding.pop(ended, None))

    def write(
        self, writer: FileWriter, target: Target, advance: Callable[[int], object], commit: Callable[[], object]
    ) -> None:
        """Write a checkpoint, and before it appears its record.

        Raises:
            OSError: if the disk is full, or not writable, or another process uses the folder.
        """
        self.prepare()
        name = _name_of(target.path)
        number = max((record["number"] for _, record in self._records()), default=0) + 1
        old = self._record(name) or {}
        with atomic_write(None, self.path_of(name)) as file:
            summed = SummedFile(file)
            writer.write(summed, advance=advance)
            record = {"path": target.name, "number": number, "size": summed.size, "crc64nvme": summed.checksum}
            self._write_record(name, record | {"remote": None, "before": old.get("remote") or old.get("before")})
            commit()

    def note_uploaded(self, name: str, target: Target) -> None:
        """Note the state of the remote file after an upload, and delete old local ones.

        Raises:
            ChecksumError: an OSError, if the remote file has other bytes.
        """
        record = self._record(name)
        if record is None:
            return  # deleted meanwhile
        try:
            state = _remote_state(target)
        except OSError as error:  # the credentials may allow only to write
            logger.warning("The state of %s is not noted beside its local copy: %s", target.name, error)
            state = None
        if state is None:
            self._prune(record["number"])
            return
        if state["size"] != record["size"] or state.get("crc64nvme", record["crc64nvme"]) != record["crc64nvme"]:
            reason = f"{target.name} was uploaded from {self.path_of(name)}, but has other bytes."
            raise ChecksumError(reason, "Check the local disk, and who else writes to this path.")
        try:
            self._write_record(name, record | {"remote": state})
            self._prune(record["number"])
        except OSError as error:  # a full disk; the next run compares the checksums
            logger.warning("%s is not noted as uploaded: %s", self.path_of(name), error)

    def delete(self, name: str) -> None:
        """Delete a local checkpoint, if it exists."""
        for path in (self.path_of(name), self.path_of(name) + _RECORD):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                os.unlink(path)

    def _prune(self, uploaded: int) -> None:
        """Delete all but the newest; of those not uploaded only the ones up to an uploaded number."""
        for name, record in self._records()[: -self.keep]:
            if record["remote"] is not None or record["number"] <= uploaded:
                self.delete(name)

    def _write_record(self, name: str, record: Mapping[str, Any]) -> None:
        with atomic_write(None, self.path_of(name) + _RECORD) as file:
            file.write(json.dumps(record).encode())

    def prepare(self) -> None:
        """Take the folder for this process, and delete what killed ones left.

        Raises:
            OSError: if it cannot be written to, or another process uses it.
        """
        os.makedirs(self.folder, exist_ok=True)
        if self._locked:
            return
        _lock(self.path_of(".lock"))
        self._locked = True
        known = {each for name in self.names() for each in (name, name + _RECORD)}
        for name in os.listdir(self.folder):
            if name not in known and (name.endswith(_RECORD) or (name.startswith(".") and name.endswith(".tmp"))):
                os.unlink(self.path_of(name))


_tiers: dict[str, LocalTier] = {}
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_tiers.clear)


def check_local(local: str | os.PathLike[str], keep: int = 1) -> None:
    """Refuse what is no local folder, or no number of checkpoints to keep there.

    Raises:
        ValueError: for either.
    """
    text = os.fspath(local)
    if not text or "://" in text:
        msg = f"A local folder is a path on this machine, not {redacted(text)!r}. Give one such as '/nvme/checkpoints'."
        raise ValueError(msg)
    if type(keep) is not int or keep < 1:
        msg = f"keep_local is a whole number from 1 on, not {keep!r}. Give how many checkpoints to keep."
        raise ValueError(msg)


def tier_of(
    path: str, local: str | os.PathLike[str], options: Mapping[str, Any] | None = None
) -> tuple[LocalTier, Target]:
    """The tier of a remote checkpoint, one for each remote folder, and where that is.

    Args:
        path: of the remote checkpoint.
        local: the folder for tiers on the local disk.
        options: arguments for the remote filesystem.

    Raises:
        ValueError: if ``local`` is no local folder.
    """
    check_local(local)
    text = checkpoint_path(path)
    fs, inner = resolve_path(path, text, options)
    if not text.endswith(_name_of(inner)):  # such as zip://name::URL
        msg = f"No local folder is for {redacted(text)!r}, which does not end in the checkpoint's name. Leave it out."
        raise ValueError(msg)
    behind, place, _ = unwrap_filesystem(fs, inner if fs is not None else os.path.abspath(inner))
    if connect := getattr(behind, "connect", None):
        connect()
    parent = place.rpartition("/")[0]
    kept = digest(type(behind).__name__, *_store(behind, text), parent)[:8]
    shown = re.sub(r"[^\w.-]+", "_", parent.rpartition("/")[2])[:80]
    folder = os.path.join(os.path.realpath(local), f"{shown}-{kept}")  # one tier, whatever link names it
    return _tiers.setdefault(folder, LocalTier(folder)), Target(fs, inner, redacted(text))


def _store(fs: Any, text: str) -> list[str]:
    """What distinguishes stores that have the same paths: the endpoint of S3; of others the URL, and the account."""
    if fs is None or hasattr(fs, "_endpoint"):
        return [getattr(fs, "_endpoint", "")]
    known = (getattr(fs, name, "") for name in ("account_name", "host", "port", "endpoint_url"))
    return [redacted(text.rpartition("/")[0]), *(str(each) for each in known)]


def find(path: str, local: str | os.PathLike[str], options: Mapping[str, Any] | None = None) -> str:
    """The path to read a checkpoint from: of its local copy, if there is a good one, or else its own.

    Raises:
        OSError: raised by the remote filesystem.
    """
    tier, target = tier_of(path, local, options)
    return tier.find(_name_of(target.path), target) or path


def _remote_state(target: Target) -> dict[str, Any] | None:
    """What changes when the remote file does, with its size; None if there is none."""
    fs, path, _ = unwrap_filesystem(target.fs, target.path)
    try:
        if not hasattr(fs, "object_metadata"):
            return {key: value if key == "size" else str(value) for key, value in file_state(fs, path).items()}
        found = fs.object_metadata(path)
    except FileNotFoundError:
        return None
    checksum = {"crc64nvme": found.checksum} if found.algorithm is CRC64NVME else {}
    return {"size": found.size, "etag": found.etag, **checksum}


def _lock(path: str) -> None:
    """Lock a file until this process ends; its forked children do not hold the lock."""
    try:
        import fcntl  # only here, as not every system has it
    except ImportError:
        return
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise BlockingIOError(errno.EAGAIN, "Another process uses this folder", os.path.dirname(path)) from error
        raise


def _name_of(path: str) -> str:
    return path.rpartition("/")[2]
