"""Failures of a request that botocore does not know; error_mapping maps them to this package's errors."""

from __future__ import annotations


class GaveUpError(Exception):
    """The endpoint has never answered and its connection failed: there is no use in botocore's retries."""


class NotStartedError(GaveUpError):
    """The endpoint has never answered and refuses connections; it may be starting.

    Args:
        seconds: how long to wait before the request is made again.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds = seconds


class RedirectedError(Exception):
    """The endpoint redirects to another address without naming a region."""

    def __init__(self, location: str) -> None:
        super().__init__(f"redirected to {location}")
        self.location = location


class UnguardedResponseError(RuntimeError):
    """A response did not pass the guard against redirects and endless bodies: the library has changed."""


class InvalidResponseError(Exception):
    """The endpoint gave a response that no S3 server gives; a retry would be of no use."""


class UnusualResponseError(OSError):
    """A response that is left to botocore to read: it may be right, but not one that S3 gives to such a request."""
