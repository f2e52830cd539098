"""Every error this package raises on purpose.

Each says in one sentence what went wrong and in one what to do, and inherits the builtin that a caller would catch:

    CSXError
    ├── CredentialsError (PermissionError)      who we are could not be settled, or is not accepted
    │   ├── NoCredentialsError
    │   ├── IncompleteCredentialsError (ValueError)
    │   ├── UnknownProfileError (LookupError)
    │   ├── RejectedCredentialsError
    │   └── ExpiredCredentialsError
    ├── AccessDeniedError (PermissionError)     who we are is known, and may not do this
    ├── BucketNotFoundError (FileNotFoundError)
    ├── ObjectNotFoundError (FileNotFoundError)
    ├── ObjectExistsError (FileExistsError)     only a new object was to be written
    ├── ObjectChangedError (OSError)            an object changed while it was copied or appended to
    ├── InvalidBucketNameError (ValueError)
    ├── ClockSkewError (PermissionError)
    ├── WrongRegionError (OSError)
    ├── NoSpaceError (OSError)                  the server has no room, or a quota is used up
    ├── EndpointError (ConnectionError)         nobody we trust answers at the endpoint
    │   ├── UntrustedCertificateError
    │   └── UnavailableError                it answers, and cannot do what it is asked for now
    ├── RefusedError (OSError)              the server has a reason of its own
    ├── ChecksumError (OSError)                 bytes were damaged on the way, also when asked for again
    ├── TooLargeError (MemoryError)             there is no memory for what the server says an object has
    ├── DeleteError (OSError)                   some of many objects were not deleted
    ├── LostProcessError (RuntimeError)         another process of the job is gone
    ├── UnknownFlagError (AttributeError, LookupError)
    ├── CheckpointPathError (ValueError)
    ├── FreedTensorError (ValueError)       a tensor has no memory that could be saved or filled
    ├── ConfigError (ValueError)                what configures a training cannot be made
    └── CheckpointError (ValueError)            the file was read, and is not what it should be
        ├── InvalidCheckpointError
        ├── CheckpointLimitError        the file may be whole, and exceeds a limit of this package
        ├── UnsafeCheckpointError
        ├── MissingEntryError (KeyError)    a name that was asked for is not in the file
        └── MismatchError                   the file does not fit what it was to fill

and two warnings:

    DiscardedFileWarning (RuntimeWarning)   what was written to a file is lost, and no exception says so
    DtypeCastWarning (UserWarning)          tensors were cast to other dtypes while they were loaded
"""

from __future__ import annotations

import errno
import typing

__all__ = [
    "AccessDeniedError",
    "BucketNotFoundError",
    "CSXError",
    "CheckpointError",
    "CheckpointLimitError",
    "CheckpointPathError",
    "ChecksumError",
    "ClockSkewError",
    "ConfigError",
    "CredentialsError",
    "DeleteError",
    "DiscardedFileWarning",
    "DtypeCastWarning",
    "EndpointError",
    "ExpiredCredentialsError",
    "FreedTensorError",
    "IncompleteCredentialsError",
    "InvalidBucketNameError",
    "InvalidCheckpointError",
    "LostProcessError",
    "MismatchError",
    "MissingEntryError",
    "NoCredentialsError",
    "NoSpaceError",
    "ObjectChangedError",
    "ObjectExistsError",
    "ObjectNotFoundError",
    "RefusedError",
    "RejectedCredentialsError",
    "TooLargeError",
    "UnavailableError",
    "UnknownFlagError",
    "UnknownProfileError",
    "UnsafeCheckpointError",
    "UntrustedCertificateError",
    "WrongRegionError",
]


class CSXError(Exception):
    """Base of all errors of this package.

    Attributes:
        reason: one sentence that says what went wrong.
        remedy: one sentence that says what to do; empty if there is nothing to say.
        maybe_applied: whether the server may have applied the request: no answer to it arrived.

    Those that are an OSError of which the system has a number have it as ``errno``.
    """

    maybe_applied = False
    _number: typing.ClassVar[int | None] = None

    def __init__(self, reason: str, remedy: str = "") -> None:
        super().__init__(f"{reason} {remedy}".rstrip())
        self.reason = reason
        self.remedy = remedy
        if isinstance(self, OSError):
            _set_number(self, self._number)

    def __reduce__(self) -> tuple[typing.Any, ...]:
        state = dict(vars(self))
        if isinstance(self, OSError):  # which keeps these elsewhere
            state |= {"errno": self.errno, "filename": self.filename}
        return type(self), (self.reason, self.remedy), state

    def mark_maybe_applied(self, what: str) -> None:
        """Set ``maybe_applied``, and add a clause that names what may have been done."""
        if not self.maybe_applied:
            self.maybe_applied = True
            self.reason = f"{self.reason.rstrip('.')}; {what} may have been done all the same."

    def __str__(self) -> str:
        # KeyError would print its repr, OSError its errno.
        return f"{self.reason} {self.remedy}".rstrip()


def _set_number(error: OSError, number: int | None) -> None:
    error.errno = number


class CredentialsError(CSXError, PermissionError):
    """The credentials could not be found, or the server does not accept them."""

    _number = errno.EACCES


class NoCredentialsError(CredentialsError):
    """No rule gave any credentials."""


class IncompleteCredentialsError(CredentialsError, ValueError):
    """An access key without its secret, or the other way round."""


class UnknownProfileError(CredentialsError, LookupError):
    """The named profile is in none of the AWS files."""


class RejectedCredentialsError(CredentialsError):
    """The server does not know the access key, or the secret does not belong to it."""


class ExpiredCredentialsError(CredentialsError):
    """The credentials were good once."""


class AccessDeniedError(CSXError, PermissionError):
    """The server knows who we are and refuses what was asked."""

    _number = errno.EACCES


class BucketNotFoundError(CSXError, FileNotFoundError):
    """There is no such bucket."""

    _number = errno.ENOENT


class ObjectNotFoundError(CSXError, FileNotFoundError):
    """There is no such object."""

    _number = errno.ENOENT


class ObjectExistsError(CSXError, FileExistsError):
    """An object that was to be created is there."""

    _number = errno.EEXIST


class ObjectChangedError(CSXError, OSError):
    """An object changed while it was copied, appended to, or given other metadata."""


class InvalidBucketNameError(CSXError, ValueError):
    """No bucket can have this name."""


class ClockSkewError(CSXError, PermissionError):
    """This machine's clock is too far from the server's."""

    _number = errno.EACCES


class WrongRegionError(CSXError, OSError):
    """The bucket is in another region than the one asked."""


class NoSpaceError(CSXError, OSError):
    """The server has no room for an object, or none for us."""

    _number = errno.ENOSPC


class EndpointError(CSXError, ConnectionError):
    """The endpoint cannot be reached, or does not answer in time."""


class UntrustedCertificateError(EndpointError):
    """The endpoint's TLS certificate is not trusted."""


class UnavailableError(EndpointError):
    """The endpoint answers that it is too busy or out of order, also when asked again."""

    _number = errno.EBUSY


class RefusedError(CSXError, OSError):
    """The server refuses what was asked; its code says why, and ``errno`` is the nearest of the system's numbers."""


class ChecksumError(CSXError, OSError):
    """What came does not have the checksum that the sender tells, also when it is sent again."""

    _number = errno.EIO


class TooLargeError(CSXError, MemoryError):
    """There is no memory for as many bytes as the server says that an object has."""


class DeleteError(CSXError, OSError):
    """The server deleted only some of the objects."""

    _number = errno.EIO


class LostProcessError(CSXError, RuntimeError):
    """Another process of a job of many has ended, or does not answer in time."""


class UnknownFlagError(CSXError, AttributeError, LookupError):
    """There is no flag of this name under ``backends``."""


class CheckpointPathError(CSXError, ValueError):
    """The path cannot name a checkpoint."""


class FreedTensorError(CSXError, ValueError):
    """A tensor has no memory, or too little, that could be saved or filled."""


class ConfigError(CSXError, ValueError):
    """The configuration of a training has something in it that cannot be made, or is no YAML."""


class CheckpointError(CSXError, ValueError):
    """The file at this path is not a checkpoint that can be loaded."""


class InvalidCheckpointError(CheckpointError):
    """The file is empty, truncated, or something else than a checkpoint."""


class CheckpointLimitError(CheckpointError):
    """The file exceeds a limit of this package; it may well be whole."""


class UnsafeCheckpointError(CheckpointError):
    """Loading the file would run code that it names."""


class MissingEntryError(CheckpointError, KeyError):
    """The file has no entry of a name that was asked for."""


class MismatchError(CheckpointError):
    """The file does not fit the object that it was to fill, which is unchanged."""


class DiscardedFileWarning(RuntimeWarning):
    """What was written to a file is not published, and no exception says so: the former object stays."""


class DtypeCastWarning(UserWarning):
    """Tensors were cast to other dtypes while they were loaded, which takes time, and may lose precision."""
