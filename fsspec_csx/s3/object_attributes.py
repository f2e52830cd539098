"""Attributes: what an object has besides its bytes, and which of it stays when its bytes are copied.

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
# Storage classes of a kind of bucket, which the target need not be of.
_OF_BUCKETS = {"EXPRESS_ONEZONE", "FSX_ONTAP", "FSX_OPENZFS", "OUTPOSTS", "SNOW"}
# Objects of these cannot be read before they are restored: whoever copies one wants to use it.
_ARCHIVES = {"DEEP_ARCHIVE", "GLACIER"}
# The answers of stores that have no tags.
_NO_TAGS = {"400", "405", "501", "InvalidArgument", "InvalidRequest", "MethodNotAllowed", "NoSuchTagSet"}


def of_copy(head: Mapping[str, Any]) -> dict[str, Any]:
    """What a copy of an object gets of it, tags aside.

    Args:
        head: the answer to HeadObject.
    """
    return {name: head[name] for name in HEADERS if name in head} | storage_class(head)


def storage_class(info: Mapping[str, Any]) -> dict[str, Any]:
    """The storage class that a copy of an object gets, if it is another than the default."""
    found = info.get("StorageClass") or "STANDARD"
    return {} if found in {"STANDARD", *_OF_BUCKETS, *_ARCHIVES} else {"StorageClass": found}


def of_new_state(head: Mapping[str, Any]) -> dict[str, Any]:
    """What an object keeps when it gets other bytes or other metadata: its storage and encryption too.

    Args:
        head: the answer to HeadObject.
    """
    return {name: head[name] for name in (*HEADERS, "StorageClass", *_ENCRYPTION) if name in head}


def locks(head: Mapping[str, Any]) -> dict[str, Any]:
    """The locks of an object that hold on.

    Args:
        head: the answer to HeadObject.
    """
    on = head.get("ObjectLockLegalHoldStatus") == "ON"
    kept: dict[str, Any] = {"ObjectLockLegalHoldStatus": "ON"} if on else {}
    until = head.get("ObjectLockRetainUntilDate")
    if isinstance(until, datetime) and until > datetime.now(timezone.utc):
        kept |= {"ObjectLockMode": head["ObjectLockMode"], "ObjectLockRetainUntilDate": until}
    return kept


def unless_named(kept: Mapping[str, Any], *named: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept, less what the options of the call or of the filesystem name; they name an encryption as a whole."""
    names = {name for options in named for name in options}
    if any(name.startswith(("SSE", "ServerSideEncryption", "BucketKeyEnabled")) for name in names):
        names |= set(_ENCRYPTION)
    return {name: value for name, value in kept.items() if name not in names}


def source_key(options: Mapping[str, Any]) -> dict[str, Any]:
    """The key with which the source of a copy is decrypted: that of all objects of the filesystem, if it names one.

    Args:
        options: of the filesystem and the call.
    """
    names = ("SSECustomerAlgorithm", "SSECustomerKey", "SSECustomerKeyMD5")
    return {f"CopySource{name}": options[name] for name in names if name in options}


async def tagging(call: Callable[..., Awaitable[Any]], shown: str, **version: str) -> dict[str, str]:
    """The tags of an object, as PutObject and CreateMultipartUpload take them.

    Args:
        call: makes requests for the object.
        shown: its URL.
        version: its version, if it has one.
    """
    try:
        found = (await call("get_object_tagging", **version)).get("TagSet", ())
    except AccessDeniedError:
        logger.warning("The tags of %s are not kept, if it has any: s3:GetObjectTagging is not allowed.", shown)
        return {}
    except OSError as error:
        if code_of(error) not in _NO_TAGS | {"NotImplemented"}:
            raise
        return {}
    return {"Tagging": urlencode([(tag["Key"], tag["Value"]) for tag in found])} if found else {}
