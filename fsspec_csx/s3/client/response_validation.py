"""Validation of responses: malformed ones raise clear errors, instead of causing empty listings or endless loops.

https://docs.aws.amazon.com/AmazonS3/latest/API/API_Operations_Amazon_Simple_Storage_Service.html
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, NoReturn

from botocore.parsers import ResponseParserError

from fsspec_csx.s3.client import retries
from fsspec_csx.s3.transport.failures import InvalidResponseError
from fsspec_csx.s3.transport.request_context import current

# The name of the root element of a document, after its byte order mark, declaration and comments.
_ROOT = re.compile(rb"(?:\xef\xbb\xbf)?\s*(?:<\?.*?\?>\s*|<!--.*?-->\s*)*<(?:[\w.-]+:)?([\w.-]+)", re.DOTALL)
_DAMAGED = "its body is no XML, or damaged"
# Operations, besides the listings in ``_NEEDED``, whose response must have a root element that ends in Result.
_WITH_RESULT = frozenset({"CompleteMultipartUpload", "CopyObject", "DeleteObjects", "UploadPartCopy"})
# The root element for operations that a store may not know, and answer with the object itself.
_OTHER_ROOTS = {"GetObjectTagging": b"Tagging"}
# The members that each entry of a response must have, by the name of its list; "" is the response itself.
_OBJECT = ("Key", "Size", "LastModified")
_NEEDED: dict[str, dict[str, tuple[str, ...]]] = {
    "CreateMultipartUpload": {"": ("UploadId",)},
    "GetObject": {"": ("ETag",)},  # without it, the bytes may be a proxy's page
    "HeadObject": {"": ("ContentLength",)},
    "ListBuckets": {"Buckets": ("Name",)},
    "ListMultipartUploads": {"Uploads": ("Key", "UploadId", "Initiated")},
    "ListObjectVersions": {"Versions": _OBJECT, "CommonPrefixes": ("Prefix",)},
    "ListObjects": {"Contents": _OBJECT, "CommonPrefixes": ("Prefix",)},
    "ListObjectsV2": {"Contents": _OBJECT, "CommonPrefixes": ("Prefix",)},
    "ListParts": {"Parts": ("PartNumber", "Size", "LastModified")},
    "PutObject": {"": ("ETag",)},  # without it, the answer may be a proxy's page, with nothing stored
    "UploadPart": {"": ("ETag",)},
}
# The member that names the next page.
NEXT = {"ListObjectsV2": "NextContinuationToken", "ListObjectVersions": "NextKeyMarker"}
# How many pages of a listing may bring nothing new.
_IDLE_PAGES = 1000


class Listing:
    """The pages of one listing."""

    def __init__(self) -> None:
        self._names: set[Any] = set()
        self._first_and_last: set[tuple[str, str]] = set()
        self._idle = 0

    def add(self, following: Any, entries: list[str]) -> None:
        """Add a page; raise InvalidResponseError if the listing is endless."""
        page = (entries[0], entries[-1]) if entries else ("", "")
        self._idle += not entries or page in self._first_and_last
        self._first_and_last.add(page)
        if following in self._names or self._idle > _IDLE_PAGES:
            _refuse("a listing that repeats itself")
        self._names.add(following)


class Parsers:
    """Wraps botocore's factory of parsers; its parsers describe briefly what they cannot read."""

    def __init__(self, made: Any) -> None:
        self._made = made

    def create_parser(self, protocol: str) -> SimpleNamespace:
        return SimpleNamespace(parse=functools.partial(_parse, self._made.create_parser(protocol)))


async def _parse(parser: Any, response: dict[str, Any], shape: Any) -> Any:
    if isinstance(response["body"], bytes) and response["status_code"] < 300:
        _check_root(response["context"]["operation_name"], response["body"])
    try:
        return await parser.parse(response, shape)
    except ResponseParserError:
        retries.note_unclear()
        raise ResponseParserError(_DAMAGED) from None
    except Exception as error:
        retries.note_unclear()
        msg = f"it has an invalid number or date, or is nested too deeply ({type(error).__name__})"
        raise InvalidResponseError(msg) from error


def _check_root(operation: str, body: bytes) -> None:
    if operation == "DeleteObjects" and not body.strip():  # some stores list only failures, so that nothing is left
        return
    with_result = operation in _WITH_RESULT or (operation.startswith("List") and operation in _NEEDED)
    end = b"Result" if with_result else _OTHER_ROOTS.get(operation, b"")
    root = _ROOT.match(body) if end else None
    if end and not (root and root[1].endswith(end)):
        _refuse(f"a document whose root is {root[1].decode()!r}" if root else "a body without XML")


async def explain_damage(operation: Any, response: Any = None, **_: Any) -> None:
    """Explain a status 500 that botocore sets for a response 200 it cannot read; a handler of ``needs-retry``."""
    if response is not None and getattr(response[0].raw, "status", None) == 200:
        details = response[1].get("Error", {})
        if details.get("Code") == "500":
            if operation.name in _OTHER_ROOTS:
                _check_root(operation.name, await response[0].content)
            details["Message"] = f"the status was 200, but {_DAMAGED}"


def note_request(params: Mapping[str, Any], context: dict[str, Any], **_: Any) -> None:
    """Keep the parameters of a listing; a handler of ``before-parameter-build``."""
    context["fsspec_csx_asked"] = dict(params)  # before botocore adds to them


def validate(http_response: Any, parsed: Mapping[str, Any], model: Any, context: Mapping[str, Any], **_: Any) -> None:
    """Raise InvalidResponseError for a response that S3 would not give; a handler of ``after-call``."""
    if http_response.status_code >= 300:
        return
    for name, needed in _NEEDED.get(model.name, {}).items():
        for entry in parsed.get(name, []) if name else [parsed]:
            for member in needed:
                if (value := entry.get(member)) in (None, ""):
                    _refuse(f"{name or 'a response'} without {member}")
                if isinstance(value, int) and value < 0:
                    _refuse(f"a {member} of {value}")
    if model.name in NEXT:
        _check_page(parsed, context["fsspec_csx_asked"], NEXT[model.name])


def _check_page(parsed: Mapping[str, Any], asked: Mapping[str, Any], name: str) -> None:
    entries = [
        *(each["Prefix"] for each in parsed.get("CommonPrefixes", [])),
        *(each["Key"] for each in (*parsed.get("Contents", []), *parsed.get("Versions", []))),
    ]
    prefix = asked.get("Prefix") or ""
    if "EncodingType" not in asked and (foreign := next((e for e in entries if not e.startswith(prefix)), None)):
        _refuse(f"{foreign!r} in a listing of what begins with {prefix!r}")
    if parsed.get("IsTruncated"):
        following = parsed.get(name)
        if not following:
            _refuse(f"a listing that goes on, without {name}")
        following = following, parsed.get("NextVersionIdMarker", "")
        if following == (asked.get("ContinuationToken") or asked.get("KeyMarker"), asked.get("VersionIdMarker", "")):
            _refuse("a listing that repeats itself")
        if (pages := current().listing) is not None:
            pages.add(following, entries)


def _refuse(what: str) -> NoReturn:
    retries.note_unclear()
    raise InvalidResponseError(what)
