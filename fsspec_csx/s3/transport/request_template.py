"""Templates: similar requests are made and signed from the first one, which botocore made.

botocore takes some milliseconds for a request, mostly to recompute what all of them share.
"""

from __future__ import annotations

import os
import random
import re
from typing import Any
from urllib.parse import quote, urlsplit

from fsspec_csx.s3.transport.checksum import CRC64NVME
from fsspec_csx.s3.transport.request_body import RequestBody
from fsspec_csx.s3.transport.signature import Signature, SignedRequest

_INVOCATION, _ATTEMPT = "amz-sdk-invocation-id", "amz-sdk-request"
_CRC64NVME, _TYPE = "x-amz-checksum-crc64nvme", "content-type"
_HASH, _UNSIGNED = "x-amz-content-sha256", "UNSIGNED-PAYLOAD"
# Headers that differ in each request: its range, its signature and its body.
_OWN = {"range", "authorization", "x-amz-date", "x-amz-security-token", "content-length"}
_OWN |= {_INVOCATION, _ATTEMPT}
# Headers that botocore computes from a body, or that show a transformed body.
_OF_BODY = ("x-amz-checksum-", "x-amz-trailer", "x-amz-decoded-content-length", "content-md5", "transfer-encoding")


# A generator of its own, as the global one's state belongs to the user.
_numbers = random.Random()
os.register_at_fork(after_in_child=_numbers.seed)


class Template:
    """What all requests have in common.

    Args:
        request: one of them, as it was sent.
        credentials: the frozen credentials that signed it.
        own: further headers that differ in each request, in lower case.
        key: of the object that the request was for.

    Attributes:
        operation: of the requests.
        url: of all requests, or its beginning.

    Raises:
        ValueError: if these credentials did not sign the request, or similar ones cannot be made from it.
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
        headers = {name: _text(value) for name, value in request.headers.items() if name.lower() not in own}
        hashed = _text(request.headers.get(_HASH, ""))
        self._numbered = re.sub(r"attempt=\d+", "attempt=1", _text(request.headers.get(_ATTEMPT, "")))
        self._signature = Signature(parts[-3], parts[-2], request.url, headers, hashed)
        self.use = self._signature.use
        self.use(credentials)

    def _signed(self, method: str, url: str, headers: dict[str, str]) -> SignedRequest:
        made = self._signature.signed(method, url, headers)
        if self._numbered:  # botocore numbers each request and its attempts
            made.headers[_INVOCATION], made.headers[_ATTEMPT] = invocation_id(), self._numbered
        return made


def invocation_id() -> str:
    """Return a new id of a request; not from the system, whose random numbers threads would wait for."""
    digits = f"{_numbers.getrandbits(128):032x}"  # with the version and the variant of a random UUID
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-a{digits[17:20]}-{digits[20:]}"


class ReadTemplate(Template):
    """What all read requests for a bucket have in common; or for ranges of one object, if ``key`` is None."""

    operation = "GetObject"

    def __init__(self, request: Any, credentials: Any, key: str | None = None) -> None:
        # A condition on one object does not apply to others.
        super().__init__(request, credentials, set() if key is None else {"if-match"})
        self.url = request.url if key is None else _above(request.url, key)

    def request(self, key: str | None, span: str | None) -> SignedRequest:
        """Return a signed request for an object, or for a range of it by the header ``Range``."""
        return self._signed("GET", self.url + quote(key or "", safe="/~"), {"Range": span} if span else {})


class _BodyTemplate(Template):
    """What all requests with bodies have in common."""

    def __init__(self, request: Any, credentials: Any, own: set[str]) -> None:
        super().__init__(request, credentials, own | {_CRC64NVME})
        names = {name.lower() for name in request.headers}
        hashed = _text(request.headers.get(_HASH, "")) != _UNSIGNED
        if hashed or any(name.startswith(_OF_BODY) for name in names - {_CRC64NVME}):
            msg = "The request has headers valid only for its own body."
            raise ValueError(msg)
        self._checked = _CRC64NVME in names

    def _with_body(self, url: str, headers: dict[str, str], body: RequestBody) -> SignedRequest:
        if self._checked:
            headers[_CRC64NVME] = CRC64NVME.encoded(body.crc64nvme)
        made = self._signed("PUT", url, headers)
        made.headers["Content-Length"] = str(len(body))
        return made


class PartTemplate(_BodyTemplate):
    """What all parts of an upload have in common."""

    operation = "UploadPart"

    def __init__(self, request: Any, credentials: Any) -> None:
        super().__init__(request, credentials, set())
        before, *after = re.split(r"(?<=[?&]partNumber=)\d+(?=&|$)", request.url)
        if len(after) != 1 or not urlsplit(before).query:
            msg = "The request's URL has no number of a part."
            raise ValueError(msg)
        self.url, self._end = before, after[0]

    def request(self, number: int, body: RequestBody) -> SignedRequest:
        """Return a signed request for a part."""
        return self._with_body(f"{self.url}{number}{self._end}", {}, body)


class PutTemplate(_BodyTemplate):
    """What all requests that write objects of a bucket have in common, except the content type."""

    operation = "PutObject"

    def __init__(self, request: Any, credentials: Any, key: str) -> None:
        super().__init__(request, credentials, {_TYPE})
        self.url = _above(request.url, key)

    def request(self, key: str, content_type: str | None, body: RequestBody) -> SignedRequest:
        """Return a signed request for an object."""
        headers = {} if content_type is None else {_TYPE: content_type}
        return self._with_body(self.url + quote(key, safe="/~"), headers, body)


def _above(url: str, key: str) -> str:
    """Return the URL of a bucket, from that of an object in it."""
    tail = quote(key, safe="/~")
    if not url.endswith(f"/{tail}"):
        msg = "The request's URL does not end in the key."
        raise ValueError(msg)
    return url.removesuffix(tail)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
