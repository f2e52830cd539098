"""The errors of this package, grouped by what a handler would do.

Each message has one sentence for the cause and one for the remedy. Each class inherits a matching builtin exception:

    CSXError
    │   give other credentials
    ├── CredentialsError (PermissionError)
    │   ├── NoCredentialsError
    │   ├── IncompleteCredentialsError (ValueError)
    │   ├── UnknownProfileError (LookupError)
    │   ├── RejectedCredentialsError
    │   └── ExpiredCredentialsError
    ├── AccessDeniedError (PermissionError)     the credentials are valid, but lack a permission
    │   correct the name, the setting or the object
    ├── BucketNotFoundError (FileNotFoundError)
    ├── ObjectNotFoundError (FileNotFoundError)
    ├── ObjectExistsError (FileExistsError)
    ├── InvalidBucketNameError (ValueError)
    ├── CheckpointPathError (ValueError)
    ├── UnknownFlagError (AttributeError, LookupError)
    ├── ConfigError (ValueError)
    ├── FreedTensorError (ValueError)
    │   correct the machine or the server
    ├── ClockSkewError (PermissionError)
    ├── WrongRegionError (OSError)
    ├── NoSpaceError (OSError)
    ├── RefusedError (OSError)
    ├── TooLargeError (MemoryError)
    │   try again, later
    ├── EndpointError (ConnectionError)
    │   ├── UntrustedCertificateError           not before the certificate is replaced or trusted
    │   └── UnavailableError
    ├── ObjectChangedError (OSError)
    ├── ChecksumError (OSError)
    ├── DeleteError (OSError)
    ├── LostProcessError (RuntimeError)
    │   use another file
    └── CheckpointError (ValueError)
        ├── InvalidCheckpointError
        ├── CheckpointLimitError
        ├── UnsafeCheckpointError
        ├── MissingEntryError (KeyError)
        └── MismatchError

and two warnings:

    DiscardedFileWarning (RuntimeWarning)
    DtypeCastWarning (UserWarning)
"""

from __future__ import annotations

import errno
import itertools
import typing
from collections.abc import Callable, Collection

# The system's numbers of builtin exceptions, unless a class has another.
_NUMBERS = {PermissionError: errno.EACCES, FileNotFoundError: errno.ENOENT, FileExistsError: errno.EEXIST}


def few(
    items: Collection[typing.Any], text: Callable[[typing.Any], str] = str, *, separator: str = ", ", most: int = 5
) -> str:
    """List a few items in a message, and how many more there are."""
    found = separator.join(map(text, itertools.islice(items, most)))
    return f"{found} and {len(items) - most} more" if len(items) > most else found


def text_of(error: BaseException, *, named: bool = False) -> str:
    """Return the text of an error, or its class if it has none, as a MemoryError; with ``named``, class and text."""
    name, text = type(error).__name__, str(error)
    return f"{name}: {text}" if named and text else text or name


class CSXError(Exception):
    """The base of all errors of this package.

    Attributes:
        reason: one sentence about the cause.
        remedy: one sentence about what to do; may be empty.
        maybe_applied: whether the server may have applied the request, because no response arrived.

    An OSError has the system's number as ``errno``, if there is one.
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
        if isinstance(self, OSError):  # vars() lacks the attributes of OSError
            state |= {"errno": self.errno, "filename": self.filename}
        return type(self), (self.reason, self.remedy), state

    def mark_maybe_applied(self, what: str) -> None:
        """Set ``maybe_applied``, and name in the message what may have been done."""
        if not self.maybe_applied:
            self.maybe_applied = True
            self.reason = f"{self.reason.rstrip('.')}; {what} may have been applied."

    def __str__(self) -> str:
        # KeyError would print its repr, OSError its errno.
        return f"{self.reason} {self.remedy}".rstrip()


def _set_number(error: OSError, number: int | None) -> None:
    error.errno = number or next((each for kind, each in _NUMBERS.items() if isinstance(error, kind)), None)


class CredentialsError(CSXError, PermissionError):
    """The credentials could not be found, or the server does not accept them."""


class NoCredentialsError(CredentialsError):
    """No source has credentials."""


class IncompleteCredentialsError(CredentialsError, ValueError):
    """There is an access key without a secret key, or the reverse."""


class UnknownProfileError(CredentialsError, LookupError):
    """The AWS files have no profile of this name."""


class RejectedCredentialsError(CredentialsError):
    """The server does not know the access key, or the secret key does not belong to it."""


class ExpiredCredentialsError(CredentialsError):
    """The credentials have expired."""


class AccessDeniedError(CSXError, PermissionError):
    """The server accepts the credentials, but they lack a permission."""


class BucketNotFoundError(CSXError, FileNotFoundError):
    """The bucket does not exist."""


class ObjectNotFoundError(CSXError, FileNotFoundError):
    """The object does not exist."""


class ObjectExistsError(CSXError, FileExistsError):
    """An object to create already exists."""


class ObjectChangedError(CSXError, OSError):
    """An object changed while it was copied, appended to, or given new metadata."""


class InvalidBucketNameError(CSXError, ValueError):
    """S3 does not allow this bucket name."""


class ClockSkewError(CSXError, PermissionError):
    """This machine's clock is too far from the server's."""


class WrongRegionError(CSXError, OSError):
    """The bucket is in another region than the request."""


class NoSpaceError(CSXError, OSError):
    """The server has no space for the object, or a quota is exhausted."""

    _number = errno.ENOSPC


class EndpointError(CSXError, ConnectionError):
    """The endpoint cannot be reached, or does not respond in time."""


class UntrustedCertificateError(EndpointError):
    """The endpoint's TLS certificate is not trusted."""


class UnavailableError(EndpointError):
    """The endpoint is still busy or failing after all retries."""

    _number = errno.EBUSY


class RefusedError(CSXError, OSError):
    """The server refuses the request for another reason; ``errno`` is the closest system number."""


class ChecksumError(CSXError, OSError):
    """The data does not match its checksum after all retries."""

    _number = errno.EIO


class TooLargeError(CSXError, MemoryError):
    """There is too little memory for the size that the server reports."""


class DeleteError(CSXError, OSError):
    """The server deleted only some of the objects."""

    _number = errno.EIO


class LostProcessError(CSXError, RuntimeError):
    """Another process of a distributed job has ended, or does not respond in time."""


class UnknownFlagError(CSXError, AttributeError, LookupError):
    """``backends`` has no flag of this name."""


class CheckpointPathError(CSXError, ValueError):
    """The path cannot name a checkpoint."""


class FreedTensorError(CSXError, ValueError):
    """A tensor has too little memory to be saved or filled."""


class ConfigError(CSXError, ValueError):
    """The configuration of a training is invalid."""


class CheckpointError(CSXError, ValueError):
    """The file cannot be loaded as a checkpoint."""


class InvalidCheckpointError(CheckpointError):
    """The file is empty, truncated, damaged or of another format."""


class CheckpointLimitError(CheckpointError):
    """The file exceeds a limit of this package; it may be intact."""


class UnsafeCheckpointError(CheckpointError):
    """Loading the file could run code that it names."""


class MissingEntryError(CheckpointError, KeyError):
    """The file has no entry of this name."""


class MismatchError(CheckpointError):
    """The file does not fit ``into``, which is unchanged."""


class DiscardedFileWarning(RuntimeWarning):
    """A file was discarded without an exception; the old object stays."""


class DtypeCastWarning(UserWarning):
    """Tensors were cast to other dtypes during a load, which takes time and may lose precision."""
