"""Attributes of objects (headers, storage class, encryption, locks, tags), and which of them a copy keeps.

https://docs.aws.amazon.com/AmazonS3/latest/userguide/UsingMetadata.html
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime, timezone
from typing import Any
from urllib.parse import urlencode

from fsspec_csx.errors import AccessDeniedError
from fsspec_csx.s3.client.error_mapping import code_of
from fsspec_csx.s3.transport.failures import InvalidResponseError

logger = logging.getLogger("fsspec_csx")

HEADERS = (
    "CacheControl",
    "ContentDisposition",
    "ContentEncoding",
    "ContentLanguage",
    "ContentType",
    "Expires",
    "Metadata",
    "WebsiteRedirectLocation",
)
"""The headers of an object, as botocore names them."""

_ENCRYPTION = ("ServerSideEncryption", "SSEKMSKeyId", "BucketKeyEnabled")
# Storage classes that a copy does not get: the default, those of special buckets, and those of archives, whose objects
# must be restored before they can be read.
_NOT_COPIED = {"STANDARD", "EXPRESS_ONEZONE", "FSX_ONTAP", "FSX_OPENZFS", "OUTPOSTS", "SNOW", "DEEP_ARCHIVE", "GLACIER"}
# Errors of stores that do not support tags.
_NO_TAGS = {"400", "405", "InvalidArgument", "InvalidRequest", "MethodNotAllowed", "NoSuchTagSet", "NotImplemented"}


def of_copy(head: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attributes in a HeadObject response that a copy gets; tags need a request of their own."""
    kept = {name: head[name] for name in HEADERS if name in head}
    storage = head.get("StorageClass")
    return kept | ({"StorageClass": storage} if storage and storage not in _NOT_COPIED else {})


def of_new_state(head: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attributes in a HeadObject response that a replaced object keeps, its storage and encryption too."""
    return {name: head[name] for name in (*HEADERS, "StorageClass", *_ENCRYPTION) if name in head}


def locks(head: Mapping[str, Any]) -> dict[str, Any]:
    """Return the locks in a HeadObject response that have not expired."""
    on = head.get("ObjectLockLegalHoldStatus") == "ON"
    kept: dict[str, Any] = {"ObjectLockLegalHoldStatus": "ON"} if on else {}
    until = head.get("ObjectLockRetainUntilDate")
    if isinstance(until, datetime) and until > datetime.now(timezone.utc):
        kept |= {"ObjectLockMode": head["ObjectLockMode"], "ObjectLockRetainUntilDate": until}
    return kept


def unless_named(kept: Mapping[str, Any], *named: Mapping[str, Any]) -> dict[str, Any]:
    """Return the kept attributes that no option overrides; an encryption option overrides all of that kind."""
    names = {name for options in named for name in options}
    if any(name.startswith(("SSE", "ServerSideEncryption", "BucketKeyEnabled")) for name in names):
        names |= set(_ENCRYPTION)
    return {name: value for name, value in kept.items() if name not in names}


def source_key(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the key that decrypts the source of a copy, if the options of the filesystem or the call have one."""
    names = ("SSECustomerAlgorithm", "SSECustomerKey", "SSECustomerKeyMD5")
    return {f"CopySource{name}": options[name] for name in names if name in options}


async def tagging(call: Callable[..., Awaitable[Any]], shown: str, **version: str) -> dict[str, str]:
    """Return the tags of an object in the form that PutObject and CreateMultipartUpload take."""
    try:
        found = (await call("get_object_tagging", **version)).get("TagSet", ())
    except AccessDeniedError:
        logger.warning("The tags of %s are not kept, if it has any: s3:GetObjectTagging is not allowed.", shown)
        return {}
    except OSError as error:
        if isinstance(error.__cause__, InvalidResponseError):  # the store may not know this request
            logger.warning("The tags of %s are not kept, if it has any: the response has none.", shown)
        elif code_of(error) not in _NO_TAGS:
            raise
        return {}
    return {"Tagging": urlencode([(tag["Key"], tag["Value"]) for tag in found])} if found else {}
