"""Requests that are alike: made and signed from the first of them, which botocore made.

botocore takes some milliseconds to make a request, most of them for what is the same in all.
"""

from __future__ import annotations

import os
import random
import re
import uuid
from typing import Any
from urllib.parse import quote, urlsplit

from fsspec_csx.s3.transport.checksum import CRC64NVME
from fsspec_csx.s3.transport.request_body import RequestBody
from fsspec_csx.s3.transport.signature import Signature, SignedRequest

_INVOCATION, _ATTEMPT = "amz-sdk-invocation-id", "amz-sdk-request"
_CRC64NVME, _TYPE = "x-amz-checksum-crc64nvme", "content-type"
_HASH, _UNSIGNED = "x-amz-content-sha256", "UNSIGNED-PAYLOAD"
# Of each request by itself: what it asks for, its signature and its body.
_OWN = {"range", "authorization", "x-amz-date", "x-amz-security-token", "content-length"}
_OWN |= {_INVOCATION, _ATTEMPT}
# Of a body, and computed by botocore; or the body is not sent as it is.
_OF_BODY = ("x-amz-checksum-", "x-amz-trailer", "x-amz-decoded-content-length", "content-md5", "transfer-encoding")


# Not the random numbers of the program, whose state is the user's.
_numbers = random.Random()
os.register_at_fork(after_in_child=_numbers.seed)


class Template:
    """What is the same in all requests.

    Args:
        request: one of them, as it was sent.
        credentials: those that it was signed with, frozen.
        own: further headers that each request has for itself, in lower case.

    Attributes:
        operation: of the requests.
        url: of all, or the beginning of it.

    Raises:
        ValueError: if it was not signed so.
    """

    operation: str
    url: str

    def __init__(self, request: Any, credentials: Any, own: set[str]) -> None:
        kind, _, scope = _text(request.headers.get("Authorization", "")).partition(" Credential=")
        parts = scope.partition(",")[0].split("/")
        if (
            kind != "AWS4-HMAC-SHA256"
            or parts[-1] != "aws4_request"
            or "Date" in request.headers
            or _HASH not in request.headers
            or credentials is None
            or parts[0] != credentials.access_key
        ):
            msg = "The request is not signed by these credentials."
            raise ValueError(msg)
        own = _OWN | own
        self._headers = {name: _text(value) for name, value in request.headers.items() if name.lower() not in own}
        self._hashed = _text(request.headers.get(_HASH, ""))
        self._numbered = re.sub(r"attempt=\d+", "attempt=1", _text(request.headers.get(_ATTEMPT, "")))
        self._signature = Signature(parts[-3], parts[-2])
        self.use = self._signature.use
        self.use(credentials)

    def _signed(self, method: str, url: str, headers: dict[str, str]) -> SignedRequest:
        made = self._signature.signed(method, url, {**self._headers, **headers}, self._hashed)
        if self._numbered:  # as botocore numbers each request and its attempts
            made.headers[_INVOCATION], made.headers[_ATTEMPT] = invocation_id(), self._numbered
        return made

    def _with_body(self, url: str, headers: dict[str, str], body: RequestBody) -> SignedRequest:
        made = self._signed("PUT", url, headers)
        made.body, made.headers["Content-Length"] = body, str(len(body))
        return made


def invocation_id() -> str:
    """A new number of a request; not by the system, for which all threads would wait."""
    return str(uuid.UUID(int=_numbers.getrandbits(128), version=4))


class ReadTemplate(Template):
    """What is the same in all requests for objects of a bucket, or for ranges of one object.

    Args:
        request: a GetObject request, as it was sent.
        credentials: those that it was signed with, frozen.
        key: of the object that it was for; None if all are for the same.

    Raises:
        ValueError: if it is not one that can be made for another key, or was not signed so.
    """

    operation = "GetObject"

    def __init__(self, request: Any, credentials: Any, key: str | None = None) -> None:
        # The condition of one object is not that of others.
        super().__init__(request, credentials, set() if key is None else {"if-match"})
        self.url = request.url if key is None else _above(request.url, key)

    def request(self, key: str | None, span: str | None) -> SignedRequest:
        """A signed request for an object, or for a range of it by its header ``Range``."""
        made = self._signed("GET", self.url + quote(key or "", safe="/~"), {"Range": span} if span else {})
        made.stream_output = True
        return made


class PartTemplate(Template):
    """What is the same in all parts of an upload.

    Args:
        request: an UploadPart request, as it was sent.
        credentials: those that it was signed with, frozen.

    Raises:
        ValueError: if it was not signed so, or what it says of its body cannot be said of another.
    """

    operation = "UploadPart"

    def __init__(self, request: Any, credentials: Any) -> None:
        super().__init__(request, credentials, {_CRC64NVME})
        self._checked = _says_nothing_else(request)
        before, *after = re.split(r"(?<=[?&]partNumber=)\d+(?=&|$)", request.url)
        if len(after) != 1 or not urlsplit(before).query:
            msg = "The request's URL has no number of a part."
            raise ValueError(msg)
        self.url, self._end = before, after[0]

    def request(self, number: int, body: RequestBody) -> SignedRequest:
        """A signed request for a part."""
        checksum = {_CRC64NVME: CRC64NVME.encoded(body.crc64nvme)} if self._checked else {}
        return self._with_body(f"{self.url}{number}{self._end}", checksum, body)


class PutTemplate(Template):
    """What is the same in all requests that make objects of a bucket; not what type their contents have.

    Args:
        request: a PutObject request, as it was sent.
        credentials: those that it was signed with, frozen.
        key: of the object that it was for.

    Raises:
        ValueError: if it was not signed so, or says of its object or its body what cannot be said of another.
    """

    operation = "PutObject"

    def __init__(self, request: Any, credentials: Any, key: str) -> None:
        super().__init__(request, credentials, {_CRC64NVME, _TYPE})
        self._checked = _says_nothing_else(request)
        self.url = _above(request.url, key)

    def request(self, key: str, content_type: str | None, body: RequestBody) -> SignedRequest:
        """A signed request for an object."""
        headers = {_CRC64NVME: CRC64NVME.encoded(body.crc64nvme)} if self._checked else {}
        if content_type is not None:
            headers[_TYPE] = content_type
        return self._with_body(self.url + quote(key, safe="/~"), headers, body)


def _above(url: str, key: str) -> str:
    """The URL of a bucket, from that of an object in it."""
    tail = quote(key, safe="/~")
    if not url.endswith(f"/{tail}"):
        msg = "The request's URL does not end in the key."
        raise ValueError(msg)
    return url.removesuffix(tail)


def _says_nothing_else(request: Any) -> bool:
    """Whether a request with a body has the checksum of this package.

    Raises:
        ValueError: if it says more of its body.
    """
    names = {name.lower() for name in request.headers}
    if _text(request.headers.get(_HASH, "")) != _UNSIGNED or any(
        name.startswith(_OF_BODY) for name in names - {_CRC64NVME}
    ):
        msg = "The request says of its body what cannot be said of another."
        raise ValueError(msg)
    return _CRC64NVME in names


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
