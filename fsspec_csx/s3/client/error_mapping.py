"""What botocore and s3fs raise, told as errors of ours: what was asked, what refused it, and what to do.

Error codes: https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from botocore import exceptions as boto
from botocore.parsers import ResponseParserError

from fsspec_csx.errors import (
    AccessDeniedError,
    BucketNotFoundError,
    ChecksumError,
    ClockSkewError,
    CSXError,
    EndpointError,
    ExpiredCredentialsError,
    InvalidBucketNameError,
    NoSpaceError,
    ObjectChangedError,
    ObjectExistsError,
    ObjectNotFoundError,
    RefusedError,
    RejectedCredentialsError,
    UnavailableError,
    UntrustedCertificateError,
    WrongRegionError,
)
from fsspec_csx.s3.transport.event_loop import SHUTDOWN, TOO_LATE
from fsspec_csx.s3.transport.failures import GaveUpError, InvalidResponseError, RedirectedError

_OF_NUMBERS = {"429", "500", "502", "503", "504"}
BUSY = _OF_NUMBERS | {"InternalError", "RequestTimeout", "ServiceUnavailable", "SlowDown", "TooManyRequests"}
"""What servers answer that may do better later."""
# What OpenSSL says of records that nobody sealed, or that were changed on the way.
_SPOILT = ("BAD_RECORD_MAC", "bad record mac")
# What OpenSSL, and the libraries on it, say of servers that answer in plain text, and of certificates.
_NO_TLS = ("WRONG_VERSION_NUMBER", "wrong version number", "RECORD_LAYER_FAILURE", "record layer failure")
_OTHER_NAME = "Name the endpoint as its certificate does, or have a certificate issued for this name."
_BAD_CERTIFICATES = {
    "certificate has expired": "Have the server's certificate renewed, and check this machine's clock.",
    "certificate is not valid for": _OTHER_NAME,
    "doesn't match": _OTHER_NAME,
}


@dataclass(frozen=True)
class Request:
    """One request, as an error tells of it."""

    operation: str
    bucket: str
    key: str
    exclusive: bool  # only if there is no such object yet
    endpoint: str
    region: str | None
    identity: str
    pinned: bool = False  # only if the object that is copied or replaced has a certain ETag

    @property
    def target(self) -> str:
        """The URL of what was asked for."""
        return f"s3://{self.bucket}/{self.key}" if self.key else f"s3://{self.bucket}" if self.bucket else "S3"


def code_of(error: BaseException) -> str:
    """The S3 error code of what botocore raised or s3fs made of it; empty if there is none."""
    return str(_details(error).get("Code", ""))


def explain(error: Exception, request: Request) -> Exception:
    """The error of ours that tells this one better; itself where there is none."""
    if isinstance(error, CSXError):
        return error
    if isinstance(error, GaveUpError):
        return _unreachable(error.__cause__ or error, request)
    if isinstance(error, RedirectedError):
        reason = f"The endpoint {request.endpoint} sends on to {error.location}, which is not followed."
        return EndpointError(reason, "Name the right endpoint (endpoint_url, AWS_ENDPOINT_URL_S3, or the profile).")
    if isinstance(error, (InvalidResponseError, ResponseParserError)):
        return _meaningless(request, str(error))
    if isinstance(error, boto.ParamValidationError):
        return _invalid_name(request, {}) if "bucket name" in str(error) else error
    if isinstance(error, (boto.ConnectionError, boto.ConnectionClosedError, boto.ReadTimeoutError)):
        return _unreachable(error, request)
    if isinstance(error, boto.HTTPClientError) and str(error).endswith(SHUTDOWN):
        return RuntimeError(TOO_LATE)
    if isinstance(error, boto.HTTPClientError) and _is_of_http(cause := error.kwargs.get("error")):
        return _meaningless(request, f"no answer of HTTP, as {type(cause).__name__} tells")
    code = code_of(error)
    if request.exclusive and code in ("PreconditionFailed", "412"):
        return ObjectExistsError(f"{request.target} exists already.", "Choose another name, or overwrite it.")
    if request.pinned and code in ("ConditionalRequestConflict", "PreconditionFailed", "412"):
        return changed(request.target)
    if tell := _BY_CODE.get(code):
        return tell(request, _details(error))
    # What s3fs makes of other codes; it is told apart by type where it is some builtin in particular.
    return _refused(request, _details(error), error.errno) if code and type(error) is OSError else error


def changed(target: str) -> ObjectChangedError:
    """The error for an object that another program replaced between two requests."""
    return ObjectChangedError(f"{target} changed meanwhile.", "Try again when no other program writes to it.")


def _details(error: BaseException) -> dict[str, Any]:
    for candidate in (error, error.__cause__):
        response = getattr(candidate, "response", None)
        if isinstance(response, dict):
            return dict(response.get("Error", {}))
    return {}


def _said(details: dict[str, Any]) -> str:
    message = str(details.get("Message", "")).strip().rstrip(".")
    return f" ({message})" if message and message not in ("Forbidden", "Not Found") else ""


def _unreachable(error: BaseException, request: Request) -> EndpointError:
    endpoint = getattr(error, "kwargs", {}).get("endpoint_url", "")
    # botocore names the whole URL of the request; what counts is whom it was sent to.
    endpoint = "/".join(endpoint.split("/")[:3]) or request.endpoint
    said = str(getattr(error, "kwargs", {}).get("error", error))
    if any(sign in said for sign in _SPOILT):
        reason = f"What came by TLS from or to {endpoint} was damaged on the way: {said}."
        return EndpointError(reason, "Try again; if that does not help, have what is on the way there checked.")
    if isinstance(error, boto.SSLError):
        return _insecure(endpoint, said)
    if isinstance(error, boto.ProxyConnectionError):
        reason = f"The proxy {error.kwargs.get('proxy_url', '')} on the way to {endpoint} cannot be reached."
        return EndpointError(reason, "Check HTTP_PROXY and HTTPS_PROXY, or name the endpoint's host in NO_PROXY.")
    if isinstance(error, (boto.ConnectTimeoutError, boto.ReadTimeoutError)):
        reason = f"The endpoint {endpoint} did not answer in time."
        return EndpointError(reason, "Check that it is up and that no firewall or proxy is in the way.")
    if isinstance(error, boto.ConnectionClosedError):
        reason = f"The endpoint {endpoint} broke the connection off, also when asked again."
        return EndpointError(reason, "Check that it is well, and that nothing on the way ends long transfers.")
    reason = f"The endpoint {endpoint} cannot be reached."
    remedy = "Check the address (endpoint_url, AWS_ENDPOINT_URL_S3, or endpoint_url in the profile) and that it is up."
    return EndpointError(reason, remedy)


def _meaningless(request: Request, what: str) -> EndpointError:
    reason = f"{request.endpoint} answered {request.operation} on {request.target} as no server of S3 does: {what}."
    return EndpointError(reason, "Check that the address is that of S3, and that no proxy answers in its place.")


def _is_of_http(error: object) -> bool:
    """Whether this is what a library says of an answer that it cannot read, rather than of this machine."""
    return isinstance(error, UnicodeError) or type(error).__module__.partition(".")[0] in ("aiohttp", "http", "urllib3")


def _insecure(endpoint: str, said: str) -> EndpointError:
    if any(sign in said for sign in _NO_TLS):
        reason = f"The endpoint {endpoint} does not speak TLS: {said}."
        return EndpointError(reason, "Name it with http:// if the network is to be trusted, or check the port.")
    if not any(sign in said for sign in ("certificate verify failed", *_BAD_CERTIFICATES)):
        reason = f"No connection by TLS to {endpoint} came about: {said}."
        return EndpointError(reason, "Try again; if that does not help, check that it speaks TLS 1.2 or later.")
    remedy = "Point AWS_CA_BUNDLE, or ca_bundle in the profile, at the certificate of the authority that signed it."
    for sign, instead in _BAD_CERTIFICATES.items():
        if sign in said:
            remedy = instead
    return UntrustedCertificateError(f"The TLS certificate of {endpoint} is not trusted: {said}.", remedy)


def _denied(request: Request, details: dict[str, Any]) -> CSXError:
    reason = f"{request.operation} on {request.target} was refused to {request.identity}{_said(details)}."
    if request.key:
        remedy = "Ask for the right, or use other credentials; without s3:ListBucket a missing object is refused too."
    else:
        remedy = f"The bucket {request.bucket!r} may be someone else's: ask for the right, or use other credentials."
    return AccessDeniedError(reason, remedy if request.bucket else "Ask for the right, or use other credentials.")


def _rejected(request: Request, details: dict[str, Any]) -> CSXError:
    reason = f"{request.endpoint} does not accept {request.identity}{_said(details)}."
    return RejectedCredentialsError(reason, "Check the access key, its secret, and that they are of this endpoint.")


def _expired(request: Request, details: dict[str, Any]) -> CSXError:
    reason = f"{request.identity[:1].upper()}{request.identity[1:]} has expired{_said(details)}."
    return ExpiredCredentialsError(reason, "Renew the credentials, and open the file again.")


def _no_bucket(request: Request, details: dict[str, Any]) -> CSXError:
    reason = f"There is no bucket {request.bucket!r} at {request.endpoint}."
    return BucketNotFoundError(reason, "Check its name and the endpoint; a write makes it where that is allowed.")


def _no_object(request: Request, details: dict[str, Any]) -> CSXError:
    return ObjectNotFoundError(f"There is no object {request.target} at {request.endpoint}.", "Check its name.")


def _invalid_name(request: Request, details: dict[str, Any]) -> CSXError:
    reason = f"{request.bucket!r} cannot be the name of a bucket{_said(details)}."
    remedy = "A bucket's name has 3 to 63 characters: lower-case letters, digits, dots and hyphens."
    return InvalidBucketNameError(reason, remedy)


def _someone_elses(request: Request, details: dict[str, Any]) -> CSXError:
    reason = f"The bucket {request.bucket!r} belongs to someone else."
    return AccessDeniedError(reason, "Choose another name: names are shared by all users of an endpoint.")


def _skewed(request: Request, details: dict[str, Any]) -> CSXError:
    reason = f"This machine's clock is too far from that of {request.endpoint}{_said(details)}."
    return ClockSkewError(reason, "Set the clock, for instance by NTP.")


def _wrong_region(request: Request, details: dict[str, Any]) -> CSXError:
    wanted = details.get("Region")
    reason = f"{request.target} was asked of region {request.region!r}, which is the wrong one{_said(details)}."
    region = repr(str(wanted)) if wanted else "the bucket's"
    return WrongRegionError(reason, f"Set the region to {region} (AWS_DEFAULT_REGION, or region in the profile).")


def _no_room(request: Request, details: dict[str, Any]) -> CSXError:
    reason = f"{request.endpoint} has no room for {request.target}{_said(details)}."
    remedy = "Free some there, for instance by deleting old checkpoints, or ask for a larger quota."
    error = NoSpaceError(reason, remedy)
    error.filename = request.target
    return error


def _unavailable(request: Request, details: dict[str, Any]) -> CSXError:
    code = details.get("Code")
    reason = f"{request.endpoint} answered {request.operation} on {request.target} with {code}{_said(details)}."
    return UnavailableError(reason, "Try again later; if that does not help, ask those who run it.")


def _damaged(request: Request, details: dict[str, Any]) -> CSXError:
    reason = f"What {request.operation} sent to {request.target} was damaged on the way{_said(details)}."
    return ChecksumError(reason, "Send it again; if that does not help, the network or the server damages data.")


def _no_upload(request: Request, details: dict[str, Any]) -> CSXError:
    reason = f"The multipart upload to {request.target} is gone from {request.endpoint}{_said(details)}."
    return ObjectNotFoundError(reason, "Write the object again, and see that nothing else ends its uploads.")


def _refused(request: Request, details: dict[str, Any], number: int | None) -> CSXError:
    reason = f"{request.operation} on {request.target} was refused with {details.get('Code')}{_said(details)}."
    error = RefusedError(reason, "Look the code up in the manual of the endpoint, or ask those who run it.")
    error.errno = number
    return error


_BY_CODE: dict[str, Callable[[Request, dict[str, Any]], CSXError]] = {
    "403": _denied,
    "AccessDenied": _denied,
    "AccountProblem": _denied,
    "AllAccessDisabled": _denied,
    "404": _no_object,
    "NoSuchBucket": _no_bucket,
    "NoSuchKey": _no_object,
    "NoSuchVersion": _no_object,
    "InvalidAccessKeyId": _rejected,
    "InvalidSecurity": _rejected,
    "InvalidToken": _rejected,
    "SignatureDoesNotMatch": _rejected,
    "ExpiredToken": _expired,
    "ExpiredTokenException": _expired,
    "TokenRefreshRequired": _expired,
    "RequestExpired": _expired,
    "RequestTimeTooSkewed": _skewed,
    "507": _no_room,
    "InsufficientStorage": _no_room,
    "QuotaExceeded": _no_room,  # of Ceph
    "XMinioAdminBucketQuotaExceeded": _no_room,
    "XMinioStorageFull": _no_room,
    "InvalidBucketName": _invalid_name,
    "BucketAlreadyExists": _someone_elses,
    "AuthorizationHeaderMalformed": _wrong_region,
    "IllegalLocationConstraintException": _wrong_region,
    "InvalidLocationConstraint": _wrong_region,
    "PermanentRedirect": _wrong_region,
    "301": _wrong_region,
    "BadDigest": _damaged,
    "InvalidDigest": _damaged,
    "XAmzContentChecksumMismatch": _damaged,
    "XAmzContentSHA256Mismatch": _damaged,
    "NoSuchUpload": _no_upload,
    **dict.fromkeys(BUSY, _unavailable),
}
