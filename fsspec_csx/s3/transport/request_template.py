"""Requests that are alike: made and signed from the first of them, which botocore made.

botocore takes some milliseconds to make a request, most of them for what is the same in all.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest

# Of each request by itself: what it asks for, the signature, and what botocore counts by.
_OWN = ("range", "authorization", "x-amz-date", "x-amz-content-sha256", "x-amz-security-token")
_OF_BOTOCORE = ("amz-sdk-invocation-id", "amz-sdk-request")


class RequestTemplate:
    """What is the same in all requests for objects of a bucket, or for ranges of one object.

    Args:
        request: one of them, as it was sent.
        credentials: those that it was signed with, frozen.
        key: of the object that it was for; None if all are for the same.

    Raises:
        ValueError: if it is not one that can be made for another key, or was not signed so.
    """

    def __init__(self, request: Any, credentials: Any, key: str | None = None) -> None:
        kind, _, scope = _text(request.headers.get("Authorization", "")).partition(" Credential=")
        parts = scope.partition(",")[0].split("/")
        if (
            kind != "AWS4-HMAC-SHA256"
            or parts[-1] != "aws4_request"
            or credentials is None
            or parts[0] != credentials.access_key
        ):
            msg = "The request is not signed by these credentials."
            raise ValueError(msg)
        tail = "" if key is None else quote(key, safe="/~")
        if key is not None and not request.url.endswith(f"/{tail}"):
            msg = "The request's URL does not end in the key."
            raise ValueError(msg)
        self._base = request.url.removesuffix(tail)
        # The condition of one object is not that of others.
        left_out = {*_OWN, *_OF_BOTOCORE} | (set() if key is None else {"if-match"})
        self._headers = {name: _text(value) for name, value in request.headers.items() if name.lower() not in left_out}
        self._auth = S3SigV4Auth(credentials, parts[-2], parts[-3])

    def request(self, key: str | None, span: str | None) -> Any:
        """A signed request for an object, or for a range of it by its header ``Range``."""
        headers = {**self._headers, "Range": span} if span else self._headers
        url = self._base + quote(key or "", safe="/~")
        made = AWSRequest("GET", url, headers=headers, stream_output=True)
        self._auth.add_auth(made)
        return made.prepare()


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
