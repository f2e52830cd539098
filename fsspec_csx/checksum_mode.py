"""Reads that ask for checksums, but not of a server that refuses to be asked.

botocore asks with each GetObject, by the header ``x-amz-checksum-mode``; Backblaze B2, for one, refused all requests
that have it. https://docs.aws.amazon.com/AmazonS3/latest/userguide/checking-object-integrity.html
"""

from __future__ import annotations

import logging
from typing import Any

logger = logging.getLogger("fsspec_csx")

_HEADER = "x-amz-checksum-mode"
_WITHOUT = "fsspec_csx_without_checksum_mode"
# The codes of a refusal; an answer to HEAD has none but its status.
_REFUSALS = {"400", "501", "InvalidArgument", "InvalidRequest", "NotImplemented"}


class ChecksumMode:
    """Whether a server takes the header.

    The first read settles it: if it is refused, it is made again without the header, and if that is not refused, all
    later ones are made without.

    Attributes:
        supported: None before the first read is answered.
    """

    def __init__(self) -> None:
        self.supported: bool | None = None

    def watch(self, client: Any) -> None:
        """Let the reads of a client be made so."""
        for operation in ("GetObject", "HeadObject"):
            client.meta.events.register_first(f"request-created.s3.{operation}", self._before_signing)
            client.meta.events.register_first(f"needs-retry.s3.{operation}", self._answered)

    def _before_signing(self, request: Any, **_: Any) -> None:
        if self.supported is False or request.context.get(_WITHOUT):
            del request.headers[_HEADER]

    def _answered(self, response: Any = None, request_dict: Any = None, **_: Any) -> float | None:
        """0 if the request is to be made again at once."""
        if response is None or self.supported is not None or _HEADER not in request_dict["headers"]:
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
            logger.warning("Reads ask for no checksums, as the server refuses the header %s.", _HEADER)
        return None
