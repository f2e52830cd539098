"""Checksum headers of botocore, left out for a server that refuses them.

botocore asks for checksums with each GetObject, by the header ``x-amz-checksum-mode``, and adds one to each
DeleteObjects and PutObjectTagging, which must have one. Backblaze B2 has refused all requests with such headers.
https://docs.aws.amazon.com/AmazonS3/latest/userguide/checking-object-integrity.html
"""

from __future__ import annotations

import base64
import hashlib
import logging
from typing import Any

logger = logging.getLogger("fsspec_csx")

_HEADER = "x-amz-checksum-mode"
_WITHOUT = "fsspec_csx_without_checksum_mode"
# The codes of a refusal; a response to HEAD has none but its status.
_REFUSALS = {"400", "501", "InvalidArgument", "InvalidRequest", "MissingContentMD5", "NotImplemented"}
# Small requests that must have a checksum; older servers know only Content-MD5.
_CHECKED = ("DeleteObjects", "PutBucketAcl", "PutBucketVersioning", "PutObjectAcl", "PutObjectTagging")
_CHECKSUMS = ("x-amz-checksum-", "x-amz-sdk-checksum-")


class ChecksumHeaders:
    """Which checksum headers a server accepts.

    The first request of a kind finds out: if it is refused, it is made again without the headers, and if that is
    accepted, all later ones are made without.

    Attributes:
        kinds: of requests that have such headers.
    """

    def __init__(self) -> None:
        self.kinds: tuple[_Kind, ...] = (_OfReads(), _OfChecked())


class _Kind:
    """Requests that have checksum headers.

    Attributes:
        operations: their names.
        supported: whether the server accepts the headers; None until that is known.
    """

    operations: tuple[str, ...]

    def __init__(self) -> None:
        self.supported: bool | None = None

    def _is_concerned(self, headers: Any) -> bool:
        raise NotImplementedError

    def _strip(self, request: Any) -> None:
        raise NotImplementedError

    def before_signing(self, request: Any, **_: Any) -> None:
        """Remove the headers if the server refuses them; a handler of ``request-created``."""
        if (self.supported is False or request.context.get(_WITHOUT)) and self._is_concerned(request.headers):
            self._strip(request)

    def answered(self, response: Any = None, request_dict: Any = None, **_: Any) -> float | None:
        """Return 0 to make the request again at once; a handler of ``needs-retry``."""
        if response is None or self.supported is not None or not self._is_concerned(request_dict["headers"]):
            return None
        answer, parsed = response
        refused = str(parsed.get("Error", {}).get("Code")) in _REFUSALS
        if not request_dict["context"].get(_WITHOUT):
            request_dict["context"][_WITHOUT] = refused
            if answer.status_code < 300:
                self.supported = True
            return 0.0 if refused else None
        if not refused and answer.status_code < 500:
            self.supported = False
            logger.warning("%s have no checksum headers, as the server refuses them.", " and ".join(self.operations))
        return None


class _OfReads(_Kind):
    operations = ("GetObject", "HeadObject")

    def _is_concerned(self, headers: Any) -> bool:
        return _HEADER in headers

    def _strip(self, request: Any) -> None:
        del request.headers[_HEADER]


class _OfChecked(_Kind):
    operations = _CHECKED

    def _is_concerned(self, headers: Any) -> bool:
        return any(name.lower().startswith(_CHECKSUMS) for name in headers)

    def _strip(self, request: Any) -> None:
        for name in [name for name in request.headers if name.lower().startswith(_CHECKSUMS)]:
            del request.headers[name]
        digest = hashlib.md5(request.data or b"", usedforsecurity=False).digest()
        request.headers["Content-MD5"] = base64.b64encode(digest).decode()
