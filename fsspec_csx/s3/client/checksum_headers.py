"""Leaves botocore's checksum headers out for servers that refuse them.

botocore requests checksums with each GetObject, by the header ``x-amz-checksum-mode``. It adds one to each
DeleteObjects and PutObjectTagging request, which require one. Backblaze B2 has refused all requests with such headers.
https://docs.aws.amazon.com/AmazonS3/latest/userguide/checking-object-integrity.html
"""

from __future__ import annotations

import base64
import hashlib
import logging
from typing import Any

logger = logging.getLogger("fsspec_csx")

_HEADERS = ("x-amz-checksum-", "x-amz-sdk-checksum-")
_WITHOUT = "fsspec_csx_without_checksums"
# Error codes of a refusal; a response to HEAD has only its status.
_REFUSALS = {"400", "InvalidArgument", "InvalidRequest", "MissingContentMD5", "NotImplemented"}
# Small requests that require a checksum; older servers know only Content-MD5.
CHECKED = ("DeleteObjects", "PutBucketAcl", "PutBucketVersioning", "PutObjectAcl", "PutObjectTagging")


class ChecksumHeaders:
    """Whether a server accepts the checksum headers of some operations.

    The first request decides. If it is refused, it is repeated without the headers; if that succeeds, all later
    requests omit them.

    Args:
        operations: their names.
        checked: whether their requests require a checksum.

    Attributes:
        supported: whether the server accepts the headers; None until that is known.
    """

    def __init__(self, operations: tuple[str, ...], *, checked: bool = False) -> None:
        self.operations, self._checked = operations, checked
        self.supported: bool | None = None

    def before_signing(self, request: Any, **_: Any) -> None:
        """Remove the headers if the server refuses them; a handler of ``request-created``."""
        found = _checksums_in(request.headers)
        if found and (self.supported is False or request.context.get(_WITHOUT)):
            request.context[_WITHOUT] = True
            for name in found:
                del request.headers[name]
            if self._checked:
                digest = hashlib.md5(request.data or b"", usedforsecurity=False).digest()
                request.headers["Content-MD5"] = base64.b64encode(digest).decode()

    def answered(self, response: Any = None, request_dict: Any = None, **_: Any) -> float | None:
        """Return 0 to repeat the request at once; a handler of ``needs-retry``."""
        if response is None or self.supported or not _checksums_in(request_dict["headers"]):
            return None
        answer, parsed = response
        refused = answer.status_code == 501 or str(parsed.get("Error", {}).get("Code")) in _REFUSALS
        if not request_dict["context"].get(_WITHOUT):  # perhaps sent before another one was refused
            request_dict["context"][_WITHOUT] = refused
            if self.supported is None and answer.status_code < 300:
                self.supported = True
            return 0.0 if refused else None
        if self.supported is None and not refused and answer.status_code < 500:
            self.supported = False
            logger.warning("%s have no checksum headers, as the server refuses them.", " and ".join(self.operations))
        return None


def _checksums_in(headers: Any) -> list[str]:
    return [name for name in headers if name.lower().startswith(_HEADERS)]
