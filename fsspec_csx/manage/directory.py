"""A folder on any filesystem, and its files."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from fsspec_csx.errors import CSXError
from fsspec_csx.storage.files import resolve_path, unwrap_filesystem
from fsspec_csx.storage.folder import Folder
from fsspec_csx.storage.paths import checkpoint_path, is_local, redacted

# The keys of the modification time in the filesystems' reports.
_TIMES = ("LastModified", "last_modified", "mtime", "modified", "updated", "created")


@dataclass(frozen=True)
class File:
    """A file below a directory."""

    name: str  # its path relative to the directory
    size: int | None  # in bytes; None if unknown
    modified: datetime | None  # the time of writing; None if unknown

    @property
    def base(self) -> str:
        """The name without the folders."""
        return self.name.rpartition("/")[2]


class Directory(Folder):
    """A folder that a local path or an fsspec URL names; an S3 URL may name only a bucket.

    ``fs`` is behind any caches, and ``text`` is the path as given, without trailing slashes. Raises a
    CheckpointPathError if the path is empty, has an unknown protocol, or is an S3 URL without a bucket.
    """

    def __init__(self, path: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None) -> None:
        self.text = checkpoint_path(strip_slashes(path), folder=True)
        fs, inner, _ = unwrap_filesystem(*resolve_path(path, self.text, storage_options))
        super().__init__(fs, inner, redacted(self.text))
        self.forget()  # other programs may have written to it

    def path_of(self, name: str) -> str:
        """Return the path of a file or folder below this one, as for ``load``."""
        protocols = () if self.fs is None else self.fs.protocol
        return _joined(self.text, (protocols,) if isinstance(protocols, str) else protocols, name)

    def below(self, name: str) -> Folder:
        """Return a folder below this one; itself for an empty name."""
        return Folder(self.fs, self.at(name), redacted(self.path_of(name))) if name else self

    def scan(self, folder: str = "") -> tuple[list[File], list[str]]:
        """Return the files directly in a folder below, and the names of its folders, with a slash at the end.

        Raises a FileNotFoundError if the folder does not exist, a NotADirectoryError if it is a file.
        """
        with explain_missing("folder", self.path_of(folder) if folder else self.text):
            return self._scan_local(folder) if self.fs is None else self._scan_remote(folder)

    def files(self) -> dict[str, File]:
        """Return all files below, by name."""
        return {file.name: file for file in (self._walk_local() if self.fs is None else self._find_remote())}

    def tree(self) -> dict[str, list[File]]:
        """Return all files below, by folder name with a slash at the end; ``""`` comes first."""
        found: dict[str, list[File]] = {"": []}
        for name, file in self.files().items():
            found.setdefault(name[: name.rfind("/") + 1], []).append(file)
        return found

    # -- the local filesystem ---------------------------------------------------------------------------------------

    def _scan_local(self, folder: str) -> tuple[list[File], list[str]]:
        files, folders = [], []
        with os.scandir(self.at(folder)) as entries:
            for entry in entries:
                try:
                    if entry.is_dir():
                        folders.append(f"{folder}{entry.name}/")
                        continue
                    status = entry.stat()
                except OSError as error:
                    if error.errno in (errno.ENOENT, errno.ELOOP):
                        continue  # deleted during the scan, or a link to nothing or to itself
                    raise
                files.append(File(folder + entry.name, status.st_size, _parse_time(status.st_mtime)))
        return files, folders

    def _walk_local(self) -> Iterator[File]:
        waiting = [""]
        while waiting:
            folder = waiting.pop()
            try:
                files, folders = self.scan(folder)
            except (FileNotFoundError, PermissionError):
                if not folder:
                    raise
                continue  # deleted during the walk, or not readable
            yield from files
            waiting += [each for each in folders if not os.path.islink(self.at(each.rstrip("/")))]

    # -- other filesystems -------------------------------------------------------------------------------------------

    def _scan_remote(self, folder: str) -> tuple[list[File], list[str]]:
        assert self.fs is not None
        path = self.at(folder.rstrip("/"))
        files, folders = [], []
        for info in self.fs.ls(path, detail=True):
            name = self._name(info)
            if info["type"] == "directory":
                folders.append(f"{name.rstrip('/')}/")
            elif info["name"].endswith("/"):
                continue  # the marker of the folder itself
            elif name == folder.rstrip("/"):
                raise NotADirectoryError(_no_folder(self.path_of(name) if name else self.text))
            else:
                files.append(file_from_info(name, info))
        folders = [each for each in folders if each not in ("/", folder)]
        return files, folders

    def _find_remote(self) -> Iterator[File]:
        assert self.fs is not None
        with explain_missing("folder", self.text):
            found = self.fs.find(self.path, detail=True)
            if not found:
                self.fs.info(self.path)
        for info in found.values():
            name = self._name(info)
            if info["type"] == "directory" or name.endswith("/") or info["name"].endswith("/"):
                continue  # or the marker of one
            if not name:
                raise NotADirectoryError(_no_folder(self.text))
            yield file_from_info(name, info)

    def _name(self, info: Mapping[str, Any]) -> str:
        name: str = info["name"]
        return name.lstrip("/") if self.path == "/" else name[len(self.path) :].removeprefix("/")


def strip_slashes(path: str | os.PathLike[str]) -> str:
    """Remove the trailing slashes of a path, except those of ``/`` and of a bare protocol."""
    text = os.fspath(path)
    stripped = text.rstrip("/")
    return text if not stripped or stripped.endswith(":") else stripped


@contextlib.contextmanager
def explain_missing(what: str, path: str) -> Iterator[None]:
    """Add sentences to a FileNotFoundError, which often has only the path."""
    try:
        yield
    except FileNotFoundError as error:
        if isinstance(error, CSXError):
            raise
        raise missing(what, path) from error


def missing(what: str, path: str) -> FileNotFoundError:
    """Return the error for a folder or checkpoint that does not exist."""
    return FileNotFoundError(f"There is no {what} {redacted(path)}. Check its name.")


def _no_folder(path: str) -> str:
    return f"{redacted(path)} is a file, not a folder. Give the folder that it is in."


def file_from_info(name: str, info: Mapping[str, Any]) -> File:
    """Return a file from the filesystem's report."""
    time = next((info[key] for key in _TIMES if info.get(key) is not None), None)
    return File(name, info.get("size"), _parse_time(time))


def _parse_time(time: Any) -> datetime | None:
    """Parse a time as filesystems report it: a datetime, seconds since 1970, or ISO 8601."""
    try:
        if isinstance(time, str):
            time = datetime.fromisoformat(time.replace("Z", "+00:00"))
        if isinstance(time, datetime):
            return time if time.tzinfo else time.replace(tzinfo=timezone.utc)
        return None if time is None else datetime.fromtimestamp(float(time), timezone.utc)
    except (TypeError, ValueError, OverflowError):
        return None


def _joined(root: str, protocols: Iterable[str], name: str) -> str:
    """Append a name to a path; in a chained URL, to the first link that has a path or one of these protocols."""
    links = [root] if is_local(root) else root.split("::")
    bare = {f"{protocol}://" for protocol in protocols}
    naming = (n for n, link in enumerate(links) if link in bare or link.partition("://")[2])
    number = next(naming, len(links) - 1)
    links[number] += name if links[number].endswith("/") else f"/{name}"
    return "::".join(links)
