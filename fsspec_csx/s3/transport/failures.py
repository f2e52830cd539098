"""Failures of requests that botocore has no exceptions for; error_mapping maps them to this package's errors."""

from __future__ import annotations

import errno

_OF_MACHINE = {errno.EADDRNOTAVAIL, errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


def lacking(error: BaseException | None) -> int | None:
    """Return the system's number if this machine lacks something for a connection, such as a file descriptor."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _OF_MACHINE:
            return error.errno
        error = getattr(error, "kwargs", {}).get("error") or error.__cause__
    return None


class GaveUpError(Exception):
    """The endpoint has never answered, and its connection failed; botocore's retries would not help."""


class NotStartedError(GaveUpError):
    """The endpoint has never answered, and refuses connections; it may be starting."""

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds = seconds  # how long to wait before repeating the request


class RedirectedError(Exception):
    """The endpoint redirects to another address without naming a region."""

    def __init__(self, location: str) -> None:
        super().__init__(f"redirected to {location}")
        self.location = location


class UnguardedResponseError(RuntimeError):
    """A response bypassed the guard against redirects and endless bodies, because the library has changed."""


class InvalidResponseError(Exception):
    """The endpoint gave a response that no S3 server gives; a retry would not help."""


class UnusualResponseError(OSError):
    """A response that is malformed, so that its end is not certain; another attempt may get a better one."""
