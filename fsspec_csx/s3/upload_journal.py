"""Journals of uploads: the record that a later run needs to resume an interrupted upload."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fsspec_csx.s3.transport.threads import ThreadedContext
from fsspec_csx.storage.owned_files import digest, lock, open_owned

_LARGEST = 4 * 2**20  # bytes; 10,000 parts take less than a quarter


@dataclass(frozen=True)
class SourceFingerprint:
    """Identifies the source of an upload by its name, and by a state that changes when its content does."""

    name: str
    state: str


class UploadJournal:
    """The record of an upload: a file with a JSON object in its first line, and one line for each part.

    Args:
        descriptor: of the file, open for reading and writing, and locked.
        state: the present state of the source.
        target: the endpoint and the URL that is written to.

    Attributes:
        id: the server's id of the upload; None if there is none.
        part: bytes of each of its parts.
        current: whether the source has not changed since.
        checksums: whether its parts carry checksums.
        parts: ETag, and CRC64NVME or None, of each part on the server, by its number.
    """

    def __init__(self, descriptor: int, state: str, target: str) -> None:
        self._descriptor = descriptor
        self._target = target
        self._state = state
        self._lock = threading.Lock()  # threads of several parts write to the file
        self.id: str | None = None
        self.part = 0
        self.current = False
        self.checksums = True
        self.parts: dict[int, tuple[str, int | None]] = {}
        with contextlib.suppress(ValueError, LookupError, TypeError, RecursionError):  # the file is truncated
            self._read()

    def _read(self) -> None:
        size = os.fstat(self._descriptor).st_size
        if size > _LARGEST:
            return
        line, *parts = os.pread(self._descriptor, size, 0).split(b"\n")
        head = json.loads(line)
        if not isinstance(head["upload"], str) or type(head["part"]) is not int or head["part"] < 1:
            return
        self.id, self.part, self.current = head["upload"], head["part"], head["state"] == self._state
        self.checksums = head.get("checksums") is not False
        for part in parts:
            with contextlib.suppress(ValueError, TypeError, RecursionError):
                number, etag, checksum = json.loads(part)
                is_checksum = checksum is None or (type(checksum) is int and 0 <= checksum < 2**64)
                if type(number) is int and isinstance(etag, str) and is_checksum:
                    self.parts[number] = etag, checksum

    def start(self, upload: str, part: int, *, checksums: bool = True) -> None:
        """Record a new upload in parts of ``part`` bytes."""
        self.forget()
        head = {"upload": upload, "part": part, "state": self._state, "target": self._target, "checksums": checksums}
        with self._lock:
            self.id, self.part, self.current, self.checksums = upload, part, True, checksums
            self._append(head)

    def add(self, number: int, etag: str, checksum: int | None) -> None:
        """Record that the server has a part."""
        with self._lock:
            if self.id is not None:
                self._append([number, etag, checksum])

    def forget(self) -> None:
        """Record that the upload has ended."""
        with self._lock, contextlib.suppress(OSError):  # only a later run needs it
            self.id, self.parts = None, {}
            os.ftruncate(self._descriptor, 0)

    def _append(self, value: Any) -> None:
        with contextlib.suppress(OSError):
            first = os.lseek(self._descriptor, 0, os.SEEK_END) == 0
            # Begin with the line feed, as the line before may be truncated.
            os.write(self._descriptor, f"{'' if first else chr(10)}{json.dumps(value)}".encode())


@contextlib.contextmanager
def locked_journal(origin: SourceFingerprint, target: str) -> Iterator[UploadJournal | None]:
    """Open and lock the journal of the uploads from one source to one target, which is an endpoint and a URL.

    Yields None if another process has locked it, or the folder is not writable.
    """
    descriptor = None
    with contextlib.suppress(OSError, RuntimeError):  # RuntimeError if the user has no home folder
        path = _folder() / f"{digest(origin.name, target)}.json"
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = open_owned(path, 0o600)
    if descriptor is None:
        yield None
        return
    record = None
    try:
        if lock(descriptor):
            record = UploadJournal(descriptor, origin.state, target)
        yield record
    finally:
        if record is not None and record.id is None:
            path.unlink(missing_ok=True)
        os.close(descriptor)


def open_journal(
    origin: SourceFingerprint | None, target: str
) -> contextlib.AbstractAsyncContextManager[UploadJournal | None]:
    """Open the journal of ``locked_journal`` without blocking the event loop; yield None if ``origin`` is None."""
    return contextlib.nullcontext() if origin is None else ThreadedContext(locked_journal(origin, target))


def all_journals() -> list[tuple[Path, str]]:
    """Return the paths of all journals that name their target, with the endpoint and URL of each target."""
    found = []
    with contextlib.suppress(OSError, RuntimeError):  # the folder is missing, or the user has no home folder
        for path in sorted(_folder().iterdir()):
            with (
                contextlib.suppress(OSError, ValueError, LookupError, TypeError, RecursionError),
                path.open("rb") as file,
            ):
                target = json.loads(file.readline(_LARGEST))["target"]
                if isinstance(target, str):
                    found.append((path, target))
    return found


def _folder() -> Path:
    # https://specifications.freedesktop.org/basedir-spec/latest/
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "fsspec_csx" / "uploads"
