"""Failures of a request that botocore does not know; error_mapping makes errors of this package of them."""

from __future__ import annotations


class GaveUpError(Exception):
    """The endpoint has never answered and its connection failed: there is no use in botocore's retries."""


class RedirectedError(Exception):
    """The endpoint sends to another address, of which it tells no more than that."""

    def __init__(self, location: str) -> None:
        super().__init__(f"sent on to {location}")
        self.location = location


class UnguardedResponseError(RuntimeError):
    """A response did not pass the guard against redirects and endless bodies: the library has changed."""


class InvalidResponseError(Exception):
    """The endpoint answered with what no server of S3 answers, so that there is no use in asking again."""
