"""A path on its filesystem, and patterns of paths."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

from fsspec.asyn import sync
from fsspec.implementations.local import LocalFileSystem

from fsspec_csx.errors import CheckpointPathError
from fsspec_csx.manage import contents
from fsspec_csx.manage.directory import Directory, explain_missing, strip_slashes
from fsspec_csx.storage.atomic import is_temporary
from fsspec_csx.storage.files import (
    file_state,
    invalidate_listings,
    is_csx,
    open_file,
    path_exists,
    resolve_path,
    unwrap_filesystem,
)
from fsspec_csx.storage.paths import checkpoint_path, redacted

if TYPE_CHECKING:
    from fsspec_csx.s3.consistent_read import ObjectMetadata
    from fsspec_csx.tensors.source import Source

_WILDCARD = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class Location:
    """A path on its filesystem."""

    text: str  # as for ``load``
    fs: Any  # the filesystem, behind any caches; None for the local one
    path: str  # the path on this filesystem
    through: tuple[Any, str]  # the filesystem and the path in front of the caches, which must see writes

    @classmethod
    def of(cls, path: str | os.PathLike[str], options: Mapping[str, Any] | None = None) -> Location:
        """Return the location of a path without trailing slashes; raise a CheckpointPathError for impossible ones."""
        text = checkpoint_path(strip_slashes(path))
        fs, inner = resolve_path(path, text, options)
        bare, inner_path, _ = unwrap_filesystem(fs, inner)
        return cls(text, bare, inner_path, (fs, inner))

    @classmethod
    def below(cls, root: Directory, name: str) -> Location:
        """Return the location of a name below a folder."""
        return cls(root.path_of(name), root.fs, root.at(name), (root.fs, root.at(name)))

    @property
    def display_path(self) -> str:
        """The path for messages."""
        return redacted(self.text)

    @property
    def name(self) -> str:
        """The last part of the path, without the version in an S3 URL."""
        path = self.fs.split_path(self.path)[1] if self.version else self.text
        return str(path).rpartition("/")[2]

    @property
    def version(self) -> str | None:
        """The version of an object in the path, if any."""
        return self.fs.split_path(self.path)[2] if hasattr(self.fs, "split_path") else None

    @property
    def is_csx(self) -> bool:
        """Whether the filesystem is this package's, which resumes interrupted transfers of whole files."""
        return is_csx(self.fs)

    def exists(self) -> bool:
        return path_exists(self.fs, self.path)

    def is_folder(self) -> bool:
        """Return whether the path is a folder; raise a FileNotFoundError if it does not exist."""
        with explain_missing("checkpoint", self.text):
            if self.fs is None:
                os.stat(self.path)
                return os.path.isdir(self.path)
            invalidate_listings(self.fs, self.path)
            return bool(self.fs.info(self.path)["type"] == "directory")

    def state(self) -> dict[str, Any]:
        """Return the details of the file that change with its content, and its ``size`` in bytes."""
        return file_state(self.fs, self.path)

    def check_state(self, before: Mapping[str, Any]) -> None:
        """Compare the state with an earlier one; raise an OSError if the file changed or is gone."""
        try:
            changed = self.state() != before
        except FileNotFoundError as error:
            msg = f"{self.display_path} was removed while it was copied. Check what moved or deleted it."
            raise FileNotFoundError(msg) from error
        if changed:
            msg = f"{self.display_path} changed while it was copied. Copy it again when nothing writes to it any more."
            raise OSError(msg)

    def stamp(self) -> ObjectMetadata | None:
        """Return the metadata of an object on S3; None on other filesystems."""
        if not self.is_csx:
            return None
        stamp: ObjectMetadata = self.fs.object_metadata(self.path)
        return stamp

    def opened(self) -> IO[bytes]:
        return open_file(self.fs, self.path)

    @contextlib.contextmanager
    def source(self, file: IO[bytes] | None = None) -> Iterator[Source]:
        """Open a checkpoint of any format, a file or a folder, for the block; a CheckpointError if it is not one.

        An already open ``file`` is closed after the block.
        """
        from fsspec_csx.formats import opening  # only here, as it imports torch

        with opening.source(
            lambda: file or open_file(*self.through), self.fs, self.path, name=self.display_path
        ) as source:
            yield source

    def is_same_file(self, other: Location) -> bool:
        """Return whether both paths name the same file."""
        if self.fs is None and other.fs is None:
            with contextlib.suppress(FileNotFoundError):
                return os.path.samefile(self.path, other.path)
            return os.path.realpath(self.path) == os.path.realpath(other.path)
        if self.is_csx and other.is_csx:
            (endpoint, *place), (other_endpoint, *other_place) = self._address(), other._address()
            return place == other_place and (endpoint == other_endpoint or self._is_same_state(other))
        return bool(self.fs == other.fs and self.path.rstrip("/") == other.path.rstrip("/"))

    def _address(self) -> tuple[str, ...]:
        self.fs.connect()
        bucket, key, version = self.fs.split_path(self.path)
        return self.fs._endpoint.rstrip("/"), bucket, key, version or ""

    def _is_same_state(self, other: Location) -> bool:
        """Return whether two endpoints show one object, with its time of writing: one store may have several names."""
        try:
            return self.state() == other.state()
        except (FileNotFoundError, PermissionError):
            return False

    def make_parents(self) -> None:
        """Create the parent folders on the local filesystem."""
        if self.fs is None:
            folder = os.path.dirname(os.path.realpath(self.path))
            try:
                os.makedirs(folder, exist_ok=True)
            except FileExistsError as error:
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), folder) from error

    def remove_unchanged(self, before: Mapping[str, Any]) -> None:
        """Remove the file; raise an OSError if its state is another than before."""
        if self.is_csx:
            from fsspec_csx.s3.delete import delete_unchanged

            sync(self.fs.loop, delete_unchanged, self.fs, {self.path: before["ETag"]})
        else:
            self.check_state(before)
            self.remove()

    def remove(self) -> None:
        if self.fs is None:
            os.unlink(self.path)
        else:
            self.fs.rm_file(self.path)
            invalidate_listings(self.fs, self.path)


def needs_source_name(target: str | os.PathLike[str]) -> bool:
    """Return whether the source's name must be added to a target."""
    text = os.fspath(target)
    return text.endswith("/") or os.path.isdir(text)


def with_name(target: str | os.PathLike[str], name: str) -> str | os.PathLike[str]:
    """Return the target, with the source's name added if needed."""
    text = os.fspath(target)
    if not needs_source_name(target):
        return target
    named = f"{text}{name}" if text.endswith("/") else f"{text}/{name}"
    return named if isinstance(target, str) else type(target)(named)  # type: ignore[call-arg]


def already_exists(path: str) -> FileExistsError:
    """Return the error for a target that may not be replaced."""
    msg = f"{redacted(path)} exists already. Choose another name, or replace it with --force or overwrite=True."
    return FileExistsError(msg)


def refuse_index(path: str) -> None:
    """Raise a CheckpointPathError for the index of a Hugging Face checkpoint, as the whole folder is needed."""
    if contents.is_index(path.rpartition("/")[2]):
        raise CheckpointPathError(f"{redacted(path)} is only the index of a checkpoint.", "Name its folder.")


def expand_pattern(
    path: str | os.PathLike[str], options: Mapping[str, Any] | None = None, *, folders: bool = False
) -> list[str] | None:
    """Return the files and checkpoint folders, or with ``folders`` the folders, that match a pattern.

    ``*`` matches any characters but a slash, ``**`` any characters, ``?`` one, ``[abc]`` one of these. Returns None if
    the path exists or is not a pattern. Raises a FileNotFoundError if nothing matches.
    """
    matches = pattern_matches(path, options)
    if matches is None:
        return None
    found = [
        name for name, is_folder in matches.items() if (is_folder if folders else _is_match(name, is_folder, options))
    ]
    if not found:
        what, remedy = "checkpoint", "Check the path."
        if folders:
            what, remedy = "folder", "Check that the pattern is for roots, not for checkpoints."
        msg = f"No {what} matches {redacted(os.fspath(path))}. {remedy}"
        raise FileNotFoundError(msg)
    return sorted(found)


def pattern_matches(path: str | os.PathLike[str], options: Mapping[str, Any] | None = None) -> dict[str, bool] | None:
    """Return the matching paths, as for ``load``, and whether each is a folder; None as for ``expand_pattern``."""
    place = Location.of(path, options) if _WILDCARD.search(os.fspath(path)) else None
    if place is None or not _WILDCARD.search(place.path) or place.version or place.exists():
        return None
    fs = place.fs or LocalFileSystem()
    fs.invalidate_cache()
    found = fs.glob(place.path, detail=True)
    return {_given_path(place, name.rstrip("/")): info["type"] == "directory" for name, info in found.items()}


def _given_path(place: Location, path: str) -> str:
    """Return a path on the filesystem in the form of the given path, as for ``load``."""
    if place.path.endswith(place.text):  # the given path is relative to the working directory
        return path[len(place.path) - len(place.text) :]
    inner = place.path.lstrip("/")
    return place.text.removesuffix(inner) + path.lstrip("/") if place.text.endswith(inner) else path


def _is_match(path: str, is_folder: bool, options: Mapping[str, Any] | None) -> bool:
    if not is_folder:
        return not is_temporary(path.rpartition("/")[2])
    return contents.is_checkpoint_folder(file.base for file in Directory(path, options).scan()[0])
