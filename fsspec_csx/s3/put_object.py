"""Uploads by a single request, and checksums for servers that accept them.

https://docs.aws.amazon.com/AmazonS3/latest/API/API_PutObject.html
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from fsspec_csx.errors import ObjectChangedError, ObjectExistsError
from fsspec_csx.s3.client.error_mapping import code_of
from fsspec_csx.s3.transport.checksum import CRC64NVME
from fsspec_csx.s3.transport.request_body import RequestBody
from fsspec_csx.s3.transport.transfer import Transfer

logger = logging.getLogger("fsspec_csx")

Call = Callable[..., Awaitable[Any]]
"""Makes a request for one object, given the name of botocore's method and its parameters."""

# The errors of servers that do not support checksums.
_REFUSALS = {"InvalidArgument", "InvalidRequest", "MalformedXML", "NotImplemented"}


async def put(call: Call, transfer: Transfer, payload: RequestBody, *, checked: bool = True, **conditions: str) -> Any:
    """Upload a payload by a single request, with conditions of PutObject, and return the server's answer."""

    async def send() -> Any:
        await transfer.prepare(payload)
        checksum = {"ChecksumCRC64NVME": CRC64NVME.encoded(payload.crc64nvme)} if checked else {}
        answer, _ = await with_checksum(call, transfer, "put_object", checksum, Body=payload, **conditions)
        return answer

    try:
        return await transfer.send(send, payload)
    except (ObjectExistsError, ObjectChangedError) as error:
        found: Any = {}
        if error.maybe_applied:
            with contextlib.suppress(OSError):
                found = await call("head_object", ChecksumMode="ENABLED")
        if found.get("ChecksumCRC64NVME") != CRC64NVME.encoded(payload.crc64nvme):
            raise
        return found  # an earlier attempt created it, but its answer was lost


async def with_checksum(
    call: Call, transfer: Transfer, method: str, checksum: dict[str, str], **parameters: Any
) -> tuple[Any, bool]:
    """Make the first request of a write, with a checksum unless the server refuses checksums.

    The first such request of a client decides for all later ones of its kind. Later requests of a write, such as parts,
    are never repeated without their checksum.

    Returns:
        The answer, and whether the request carried the checksum.
    """
    if not checksum or transfer.takes_checksums(method) is False:
        return await call(method, **parameters), False
    try:
        answer = await call(method, **parameters, **checksum)
    except Exception as error:
        if transfer.takes_checksums(method) or code_of(error) not in _REFUSALS:
            raise
        refusal = str(error)
    else:
        transfer.checksums[method] = True
        return answer, True
    answer = await call(method, **parameters)
    if transfer.takes_checksums(method) is None:
        transfer.checksums[method] = False
        logger.warning("Uploads carry no checksums, as the server refuses them: %s", refusal)
    return answer, False
