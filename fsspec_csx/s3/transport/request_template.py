"""Requests that are alike: made and signed from the first of them, which botocore made.

botocore takes some milliseconds to make a request, most of them for what is the same in all.
"""

from __future__ import annotations

import re
import uuid
from typing import Any
from urllib.parse import quote, urlsplit

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSPreparedRequest, AWSRequest

from fsspec_csx.s3.transport.checksum import CRC64NVME
from fsspec_csx.s3.transport.request_body import RequestBody

_INVOCATION, _ATTEMPT = "amz-sdk-invocation-id", "amz-sdk-request"
_CRC64NVME, _TYPE = "x-amz-checksum-crc64nvme", "content-type"
_HASH, _UNSIGNED = "x-amz-content-sha256", "UNSIGNED-PAYLOAD"
# Of each request by itself: what it asks for, its signature and its body.
_OWN = {"range", "authorization", "x-amz-date", _HASH, "x-amz-security-token", "content-length"}
_OWN |= {_INVOCATION, _ATTEMPT}
# Of a body, and computed by botocore; or the body is not sent as it is.
_OF_BODY = ("x-amz-checksum-", "x-amz-trailer", "x-amz-decoded-content-length", "content-md5", "transfer-encoding")


class _Template:
    """What is the same in all requests.

    Args:
        request: one of them, as it was sent.
        credentials: those that it was signed with, frozen.
        own: further headers that each request has for itself, in lower case.

    Raises:
        ValueError: if it was not signed so.
    """

    def __init__(self, request: Any, credentials: Any, own: set[str]) -> None:
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
        own = _OWN | own
        self._headers = {name: _text(value) for name, value in request.headers.items() if name.lower() not in own}
        self._numbered = re.sub(r"attempt=\d+", "attempt=1", _text(request.headers.get(_ATTEMPT, "")))
        self._scope = parts[-2], parts[-3]
        self.use(credentials)

    def use(self, credentials: Any) -> None:
        """Sign the requests to come with these, which are frozen."""
        self._auth = S3SigV4Auth(credentials, *self._scope)

    def _signed(
        self, method: str, url: str, headers: dict[str, str], *, config: Any = None, **options: Any
    ) -> AWSPreparedRequest:
        made = AWSRequest(method, url, headers={**self._headers, **headers}, **options)
        made.context["client_config"] = config
        self._auth.add_auth(made)
        if self._numbered:  # as botocore numbers each request and its attempts
            made.headers[_INVOCATION], made.headers[_ATTEMPT] = str(uuid.uuid4()), self._numbered
        prepared = made.prepare()
        for name, value in prepared.headers.items():
            if not value.isascii():  # it was signed as UTF-8, and http.client would send it in Latin-1
                prepared.headers[name] = value.encode()
        return prepared


class ReadTemplate(_Template):
    """What is the same in all requests for objects of a bucket, or for ranges of one object.

    Args:
        request: a GetObject request, as it was sent.
        credentials: those that it was signed with, frozen.
        key: of the object that it was for; None if all are for the same.

    Raises:
        ValueError: if it is not one that can be made for another key, or was not signed so.
    """

    def __init__(self, request: Any, credentials: Any, key: str | None = None) -> None:
        # The condition of one object is not that of others.
        super().__init__(request, credentials, set() if key is None else {"if-match"})
        tail = "" if key is None else quote(key, safe="/~")
        if key is not None and not request.url.endswith(f"/{tail}"):
            msg = "The request's URL does not end in the key."
            raise ValueError(msg)
        self._base = request.url.removesuffix(tail)

    def request(self, key: str | None, span: str | None) -> Any:
        """A signed request for an object, or for a range of it by its header ``Range``."""
        url = self._base + quote(key or "", safe="/~")
        return self._signed("GET", url, {"Range": span} if span else {}, stream_output=True)


class PartTemplate(_Template):
    """What is the same in all parts of an upload.

    Args:
        request: an UploadPart request, as it was sent.
        credentials: those that it was signed with, frozen.
        config: of the client, as its requests with bodies use it.

    Raises:
        ValueError: if it was not signed so, or what it says of its body cannot be said of another.
    """

    def __init__(self, request: Any, credentials: Any, config: Any) -> None:
        super().__init__(request, credentials, {_CRC64NVME})
        self._checked = _says_nothing_else(request)
        before, *after = re.split(r"(?<=[?&]partNumber=)\d+(?=&|$)", request.url)
        if len(after) != 1 or not urlsplit(before).query:
            msg = "The request's URL has no number of a part."
            raise ValueError(msg)
        self._around = before, after[0]
        self._config = config

    def request(self, number: int, body: RequestBody) -> Any:
        """A signed request for a part."""
        checksum = {_CRC64NVME: CRC64NVME.encoded(body.crc64nvme)} if self._checked else {}
        return self._signed("PUT", str(number).join(self._around), checksum, config=self._config, data=body)


class PutTemplate(_Template):
    """What is the same in all requests that make objects of a bucket; not what type their contents have.

    Args:
        request: a PutObject request, as it was sent.
        credentials: those that it was signed with, frozen.
        config: of the client, as its requests with bodies use it.
        key: of the object that it was for.

    Raises:
        ValueError: if it was not signed so, or says of its object or its body what cannot be said of another.
    """

    def __init__(self, request: Any, credentials: Any, config: Any, key: str) -> None:
        super().__init__(request, credentials, {_CRC64NVME, _TYPE})
        self._checked = _says_nothing_else(request)
        tail = quote(key, safe="/~")
        if not request.url.endswith(f"/{tail}"):
            msg = "The request's URL does not end in the key."
            raise ValueError(msg)
        self._base = request.url.removesuffix(tail)
        self._config = config

    def request(self, key: str, content_type: str | None, body: RequestBody) -> Any:
        """A signed request for an object."""
        headers = {_CRC64NVME: CRC64NVME.encoded(body.crc64nvme)} if self._checked else {}
        if content_type is not None:
            headers[_TYPE] = content_type
        return self._signed("PUT", self._base + quote(key, safe="/~"), headers, config=self._config, data=body)


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
