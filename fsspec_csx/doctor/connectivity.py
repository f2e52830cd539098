"""Checks whether the endpoint responds, whether its clock agrees, and whether it accepts the credentials."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from email.utils import parsedate_to_datetime

from botocore.awsrequest import AWSRequest

from fsspec_csx.doctor.check import Check, failed, lacking, passed, skipped
from fsspec_csx.doctor.effective_config import EffectiveConfig, ProbeFileSystem
from fsspec_csx.errors import AccessDeniedError
from fsspec_csx.s3.client.error_mapping import FailedRequest, code_of, explain
from fsspec_csx.s3.transport.compat import BlockingSession

# https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-authenticating-requests.html
_LARGEST_SKEW = timedelta(minutes=15)
_SHOWN_SKEW = timedelta(seconds=3)
_UNAVAILABLE = (502, 503, 504)
_NO_S3 = "Check that the endpoint is that of an S3 service, not of a web page, and ask who runs it."
NOT_THERE = ("405", "MethodNotAllowed", "NotImplemented")
"""The error codes of servers for requests that they do not support."""


def check_endpoint(effective: EffectiveConfig) -> Iterator[Check]:
    """Check the endpoint and its clock with one unsigned request."""
    client = effective.unsigned._s3
    config = client.meta.config
    session = BlockingSession(
        verify=effective.verify,
        proxies=effective.proxies,
        timeout=(config.connect_timeout, config.read_timeout),
        client_cert=config.client_cert,
        proxies_config=config.proxies_config,
    )
    began, at = time.monotonic(), datetime.now(timezone.utc)
    try:
        answer = session.send(AWSRequest("GET", effective.endpoint).prepare())
    except Exception as error:
        asked = FailedRequest("Get", "", "", False, effective.endpoint, client.meta.region_name, "nobody")
        yield failed("reachable", explain(error, asked), _NO_S3)
        yield skipped("clock", "the endpoint cannot be reached")
        return
    finally:
        session.close()
    took = time.monotonic() - began
    yield _answered(effective.endpoint, answer.status_code, answer.headers.get("Content-Type", ""), took)
    yield _clock(answer.headers.get("Date", ""), at + timedelta(seconds=took / 2))


def _answered(endpoint: str, status: int, kind: str, seconds: float) -> Check:
    if status in _UNAVAILABLE:
        problem = f"{endpoint} answers with status {status}: the server behind it is not available."
        return failed("reachable", problem, "Check the server behind it, and the proxy if there is one.")
    if status == 200 and kind.startswith("text/html"):
        return failed("reachable", f"{endpoint} answers with a web page, as no S3 service does.", _NO_S3)
    tls = " by TLS" if endpoint.startswith("https:") else ""
    return passed("reachable", f"{endpoint} answers{tls} in {1000 * seconds:.0f} ms")


def _clock(date: str, here: datetime) -> Check:
    try:
        there = parsedate_to_datetime(date)
    except (TypeError, ValueError):
        return skipped("clock", "the server does not send the time")
    there = there if there.tzinfo else there.replace(tzinfo=timezone.utc)
    skew = here - there - timedelta(seconds=0.5)  # the server sends whole seconds
    if abs(skew) < _SHOWN_SKEW:
        return passed("clock", "that of this machine agrees with the server's")
    text = f"that of this machine is {abs(skew).total_seconds():.0f} s {'ahead of' if skew > timedelta() else 'behind'}"
    if abs(skew) < _LARGEST_SKEW:
        return passed("clock", f"{text} the server's; S3 allows {_LARGEST_SKEW.seconds} s")
    return failed("clock", f"{text} the server's: it refuses requests.", "Set the clock, for instance by NTP.")


def check_credentials(fs: ProbeFileSystem) -> Check:
    """Check whether the server accepts the credentials."""
    if fs.anon:
        return skipped("signed in", "access is anonymous")
    try:
        answer = fs.call_s3("list_buckets")
    except AccessDeniedError:
        return passed("signed in", f"as {fs._identity}, who may not list the buckets, which is fine")
    except Exception as error:
        if code_of(error) in NOT_THERE:
            return lacking("signed in", "the server does not list buckets, which is fine")
        return failed("signed in", error, _NO_S3)
    return passed("signed in", f"as {fs._identity}; buckets to see: {len(answer.get('Buckets') or ())}")
