"""Maps exceptions of botocore and s3fs to this package's errors: what was requested, what failed, what to do.

Error codes: https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html
"""

from __future__ import annotations

import errno
import os
import ssl
from dataclasses import dataclass
from typing import Any

from botocore import exceptions as boto
from botocore.parsers import ResponseParserError

from fsspec_csx import errors
from fsspec_csx.s3.transport.failures import (
    GaveUpError,
    InvalidResponseError,
    RedirectedError,
    UnusualResponseError,
    lacking,
)
from fsspec_csx.s3.transport.threads import SHUTDOWN, TOO_LATE

_OF_NUMBERS = {"408", "429", "500", "502", "503", "504", "520", "521", "522", "523", "524"}
BUSY = _OF_NUMBERS | {"InternalError", "RequestTimeout", "ServiceUnavailable", "SlowDown", "TooManyRequests"}
"""Error codes of servers that are overloaded or temporarily failing."""
_INVALID_NAME = "InvalidBucketName"
# OpenSSL's messages for records that were changed on the way, or not encrypted by the peer.
_SPOILT = ("BAD_RECORD_MAC", "bad record mac")
# The messages of OpenSSL, and of libraries on it, for servers that answer in plain text, and for bad certificates.
_NO_TLS = ("WRONG_VERSION_NUMBER", "wrong version number", "RECORD_LAYER_FAILURE", "record layer failure")
_OTHER_NAME = "Name the endpoint as its certificate does, or have a certificate issued for this name."
_BAD_CERTIFICATES = {
    "certificate has expired": "Have the server's certificate renewed, and check this machine's clock.",
    "certificate is not valid for": _OTHER_NAME,
    "doesn't match": _OTHER_NAME,
}


@dataclass(frozen=True)
class FailedRequest:
    """One request, as error messages describe it."""

    operation: str
    bucket: str
    key: str
    exclusive: bool  # whether the object must not exist yet
    endpoint: str
    region: str | None
    identity: str
    pinned: bool = False  # whether the object that is copied or replaced must have a certain ETag
    retried_seconds: float = 0.0

    @property
    def target(self) -> str:
        return f"s3://{self.bucket}/{self.key}" if self.key else f"s3://{self.bucket}" if self.bucket else "S3"


def code_of(error: BaseException) -> str:
    """Return the S3 error code of an exception of botocore, or of s3fs's form of it; empty if there is none.

    It is NotImplemented for all errors of status 501, as stores have other codes for it, such as XNotImplemented.
    """
    response = _response(error)
    if response.get("ResponseMetadata", {}).get("HTTPStatusCode") == 501:
        return "NotImplemented"
    return str(response.get("Error", {}).get("Code", ""))


def explain(error: Exception, request: FailedRequest) -> Exception:
    """Return this package's error for an exception, or the exception itself if there is none."""
    if isinstance(error, errors.CSXError):
        return error
    if number := lacking(error):
        return _lack(number, request)
    if isinstance(error, GaveUpError):
        return _unreachable(error.__cause__ or error, request)
    if isinstance(error, RedirectedError):
        reason = f"The endpoint {request.endpoint} redirects to {error.location}, which is not followed."
        return errors.EndpointError(
            reason, "Name the right endpoint (endpoint_url, AWS_ENDPOINT_URL_S3, or the profile)."
        )
    if isinstance(error, (InvalidResponseError, ResponseParserError)):
        return _meaningless(request, str(error))
    if isinstance(error, boto.ParamValidationError):
        return _invalid(error, request)
    if isinstance(cause := getattr(error, "kwargs", {}).get("error"), UnusualResponseError):
        return _meaningless(request, str(cause))
    if isinstance(error, (boto.ConnectionError, boto.ConnectionClosedError, boto.ReadTimeoutError)):
        return _unreachable(error, request)
    if isinstance(error, boto.HTTPClientError) and str(error).endswith(SHUTDOWN):
        return RuntimeError(TOO_LATE)
    # The error of a library that cannot parse an answer, rather than of this machine.
    unparsed = isinstance(cause, UnicodeError) or type(cause).__module__.startswith(("aiohttp.", "http.", "urllib3."))
    if isinstance(error, boto.HTTPClientError) and unparsed:
        return _meaningless(request, f"no HTTP response ({type(cause).__name__})")
    details, code = _response(error).get("Error", {}), code_of(error)
    if request.exclusive and code in ("PreconditionFailed", "412"):
        return errors.ObjectExistsError(f"{request.target} exists already.", "Choose another name, or overwrite it.")
    if request.pinned and code in ("ConditionalRequestConflict", "PreconditionFailed", "412"):
        return object_changed_error(request.target)
    if (known := _by_table(request, details)) or not code or type(error) is not OSError:
        return known or error
    # s3fs raises a plain OSError for codes that it does not translate.
    reason = f"{request.operation} on {request.target} was refused with {details.get('Code') or code}{_said(details)}."
    refused = errors.RefusedError(reason, "Look up the code in the server's documentation, or ask its administrators.")
    refused.errno = error.errno
    return refused


def _invalid(error: Exception, request: FailedRequest) -> Exception:
    if "bucket name" in str(error):
        return _by_table(request, {"Code": _INVALID_NAME}) or error
    if request.key or "parameter Key" not in str(error):
        return error
    reason, remedy = f"{request.target} names no object.", "Give a bucket and a name, as in s3://bucket/name."
    if request.operation == "GetObject":
        return errors.ObjectNotFoundError(reason, remedy)
    return ValueError(f"{reason} {remedy}")


def object_changed_error(target: str) -> errors.ObjectChangedError:
    """Return the error for an object that another program replaced between two requests."""
    return errors.ObjectChangedError(f"{target} changed meanwhile.", "Try again when no other program writes to it.")


def _response(error: BaseException) -> dict[str, Any]:
    for candidate in (error, error.__cause__):
        response = getattr(candidate, "response", None)
        if isinstance(response, dict):
            return response
    return {}


def _said(details: dict[str, Any]) -> str:
    message = str(details.get("Message", "")).strip().rstrip(".")
    return f" ({message})" if message and message not in ("Forbidden", "Not Found") else ""


def _unreachable(error: BaseException, request: FailedRequest) -> errors.EndpointError:
    endpoint = getattr(error, "kwargs", {}).get("endpoint_url", "")
    # botocore gives the whole URL of the request; only the host matters here.
    endpoint = "/".join(endpoint.split("/")[:3]) or request.endpoint
    cause = getattr(error, "kwargs", {}).get("error", error)
    said = str(cause)
    if any(sign in said for sign in _SPOILT):
        reason = f"TLS data from or to {endpoint} was damaged in transit: {said}."
        return errors.EndpointError(reason, "Try again; if that does not help, check the network and the proxies.")
    ended = (ssl.SSLEOFError, ssl.SSLZeroReturnError)
    if isinstance(error, boto.SSLError) or (isinstance(cause, ssl.SSLError) and not isinstance(cause, ended)):
        return _insecure(endpoint, said)
    if isinstance(error, boto.ProxyConnectionError):
        reason = f"The proxy {error.kwargs.get('proxy_url', '')} on the way to {endpoint} cannot be reached."
        return errors.EndpointError(
            reason, "Check HTTP_PROXY and HTTPS_PROXY, or name the endpoint's host in NO_PROXY."
        )
    if isinstance(error, (boto.ConnectTimeoutError, boto.ReadTimeoutError)):
        reason = f"The endpoint {endpoint} did not answer in time."
        return errors.EndpointError(reason, "Check that it is up, and that no firewall or proxy blocks it.")
    if isinstance(error, boto.ConnectionClosedError):
        reason = f"The endpoint {endpoint} closed the connection, also after retries."
        return errors.EndpointError(reason, "Check the server, and that no proxy or firewall ends long transfers.")
    seconds = request.retried_seconds
    clause = f", though it was retried for {max(seconds, 1):.0f} seconds" if seconds else ""
    reason = f"The endpoint {endpoint} cannot be reached{clause}."
    remedy = "Check the address (endpoint_url, AWS_ENDPOINT_URL_S3, or endpoint_url in the profile) and that it is up."
    return errors.EndpointError(reason, remedy)


def _lack(number: int, request: FailedRequest) -> errors.EndpointError:
    reason = f"This machine can open no connection to {request.endpoint}: {os.strerror(number)}."
    remedy = "Free memory, or make fewer requests at a time (max_concurrency)."
    if number in (errno.EMFILE, errno.ENFILE):
        remedy = "Raise the limit of open files (ulimit -n), or keep fewer files open."
    elif number == errno.EADDRNOTAVAIL:
        remedy = "Check the address; if it is right, wait until closed connections have freed their local ports."
    error = errors.EndpointError(reason, remedy)
    error.errno = number
    return error


def _meaningless(request: FailedRequest, what: str) -> errors.EndpointError:
    reason = f"{request.endpoint} gave an invalid S3 response to {request.operation} on {request.target}: {what}."
    return errors.EndpointError(reason, "Check that the address is that of S3, and that no proxy answers in its place.")


def _insecure(endpoint: str, said: str) -> errors.EndpointError:
    if any(sign in said for sign in _NO_TLS):
        reason = f"The endpoint {endpoint} does not speak TLS: {said}."
        return errors.EndpointError(reason, "Use http:// if you trust the network, or check the port.")
    if not any(sign in said for sign in ("certificate verify failed", *_BAD_CERTIFICATES)):
        reason = f"The TLS connection to {endpoint} failed: {said}."
        return errors.EndpointError(reason, "Try again; if that does not help, check that it speaks TLS 1.2 or later.")
    remedy = "Point AWS_CA_BUNDLE, or ca_bundle in the profile, at the certificate of the authority that signed it."
    for sign, instead in _BAD_CERTIFICATES.items():
        if sign in said:
            remedy = instead
    return errors.UntrustedCertificateError(f"The TLS certificate of {endpoint} is not trusted: {said}.", remedy)


def _by_table(request: FailedRequest, details: dict[str, Any]) -> errors.CSXError | None:
    """Return the error for an S3 error code; None for a code that is not in the table."""
    if (row := _BY_CODE.get(str(details.get("Code")))) is None:
        return None
    kind, reason, remedy = row
    region = details.get("Region")
    ask = "Ask for the right, or use other credentials."
    if request.key:
        ask = f"{ask[:-1]}; without s3:ListBucket a missing object is refused too."
    elif request.bucket:
        ask = f"The bucket {request.bucket!r} may be someone else's: a{ask[1:]}"
    values = {
        **vars(request),
        "target": request.target,
        "code": details.get("Code"),
        "said": _said(details),
        "Identity": request.identity[:1].upper() + request.identity[1:],
        "its_region": repr(str(region)) if region else "the bucket's",
        "ask": ask,
    }
    error = kind(reason.format(**values), remedy.format(**values))
    if isinstance(error, errors.NoSpaceError):
        error.filename = request.target
    return error


# For each group of codes: the class, the reason and the remedy of the error. QuotaExceeded is Ceph's.
_TABLE: dict[str, tuple[type[errors.CSXError], str, str]] = {
    "403 AccessDenied AccountProblem AllAccessDisabled": (
        errors.AccessDeniedError,
        "{operation} on {target} was refused to {identity}{said}.",
        "{ask}",
    ),
    "404 NoSuchKey NoSuchVersion": (
        errors.ObjectNotFoundError,
        "There is no object {target} at {endpoint}.",
        "Check its name.",
    ),
    "NoSuchBucket": (
        errors.BucketNotFoundError,
        "There is no bucket {bucket!r} at {endpoint}.",
        "Check its name and the endpoint; a write creates it if the credentials allow that.",
    ),
    "InvalidAccessKeyId InvalidSecurity InvalidToken SignatureDoesNotMatch": (
        errors.RejectedCredentialsError,
        "{endpoint} does not accept {identity}{said}.",
        "Check the access key and its secret, and that they belong to this endpoint.",
    ),
    "ExpiredToken ExpiredTokenException TokenRefreshRequired RequestExpired": (
        errors.ExpiredCredentialsError,
        "{Identity} has expired{said}.",
        "Renew the credentials, and open the file again.",
    ),
    "RequestTimeTooSkewed": (
        errors.ClockSkewError,
        "This machine's clock is too far from that of {endpoint}{said}.",
        "Set the clock, for instance by NTP.",
    ),
    "507 InsufficientStorage QuotaExceeded XMinioAdminBucketQuotaExceeded XMinioStorageFull": (
        errors.NoSpaceError,
        "{endpoint} has no space for {target}{said}.",
        "Free some space there, for instance by deleting old checkpoints, or ask for a larger quota.",
    ),
    _INVALID_NAME: (
        errors.InvalidBucketNameError,
        "{bucket!r} cannot be the name of a bucket{said}.",
        "A bucket's name has 3 to 63 characters: lower-case letters, digits, dots and hyphens.",
    ),
    "BucketAlreadyExists": (
        errors.AccessDeniedError,
        "The bucket {bucket!r} belongs to someone else.",
        "Choose another name: names are shared by all users of an endpoint.",
    ),
    "301 AuthorizationHeaderMalformed IllegalLocationConstraintException InvalidLocationConstraint PermanentRedirect": (
        errors.WrongRegionError,
        "{target} was requested from region {region!r}, which is the wrong one{said}.",
        "Set the region to {its_region} (AWS_DEFAULT_REGION, or region in the profile).",
    ),
    "BadDigest InvalidDigest XAmzContentChecksumMismatch XAmzContentSHA256Mismatch": (
        errors.ChecksumError,
        "The data that {operation} sent to {target} was damaged in transit{said}.",
        "Send it again; if that does not help, the network or the server damages data.",
    ),
    "NoSuchUpload": (
        errors.ObjectNotFoundError,
        "The multipart upload to {target} no longer exists at {endpoint}{said}.",
        "Write the object again, and check that nothing else aborts uploads.",
    ),
    "InvalidPart": (
        errors.RefusedError,
        "{endpoint} refused the parts of {target}{said}.",
        "If it accepts only parts of one size, as Cloudflare R2, pass fixed_upload_size=True and a larger block_size. "
        "Otherwise check what ended or replaced the upload.",
    ),
    " ".join(BUSY): (
        errors.UnavailableError,
        "{endpoint} answered {operation} on {target} with {code}{said}.",
        "Try again later; if that does not help, ask its administrators.",
    ),
}
_BY_CODE = {code: row for codes, row in _TABLE.items() for code in codes.split()}
