"""Parts that are signed from a template are requests that botocore would have made, and fail as those do."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import re
import uuid
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from typing import Any

import botocore.auth
import pytest
from aiobotocore.awsrequest import AioAWSResponse
from botocore.auth import AUTH_TYPE_MAPS, S3SigV4Auth
from botocore.compat import get_current_datetime
from conftest import recorded_requests
from fsspec.asyn import sync
from proxy import Fault, FaultProxy, error_answer, fault_proxy, through

from fsspec_csx.s3.filesystem import CSXFileSystem
from fsspec_csx.s3.transport import request_template
from fsspec_csx.s3.transport.checksum import CRC64NVME
from fsspec_csx.s3.transport.learned_template import LearnedTemplate
from fsspec_csx.s3.transport.queued_requests import QueuedPart
from fsspec_csx.s3.transport.request_body import MemoryBody
from fsspec_csx.s3.transport.request_queue import RequestQueue
from fsspec_csx.s3.transport.request_template import PartTemplate, PutTemplate
from fsspec_csx.s3.transport.signature import SignedRequest
from fsspec_csx.testing import LocalS3

PART = 5 * 2**20
DATA = os.urandom(4 * PART + 1234)
PARTS = 5
CUSTOMER_KEY = {"SSECustomerAlgorithm": "AES256", "SSECustomerKey": b"k" * 32}
ENDPOINTS = ("http://127.0.0.1:1", "https://127.0.0.1:1", "https://s3.eu-central-1.amazonaws.com", None)
CREDENTIALS: tuple[dict[str, str], ...] = ({}, {"token": "session/token+="})
EXTRAS: tuple[dict[str, Any], ...] = (
    {},
    {"RequestPayer": "requester", "ExpectedBucketOwner": "123456789012"},
    CUSTOMER_KEY,
)
STYLES: tuple[dict[str, Any], ...] = (
    {},
    {"s3": {"addressing_style": "virtual"}},
    {"s3": {"addressing_style": "path"}, "user_agent_extra": "mine/1"},
    {"retries": {"mode": "standard", "max_attempts": 3}},
)


class Empty:
    """The body of a response that has none."""

    async def read(self) -> bytes:
        """Nothing."""
        return b""


@pytest.fixture
def steady(monkeypatch: pytest.MonkeyPatch) -> None:
    """All requests are made at the same moment and have the same number, so that equal ones are signed alike."""
    moment = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)
    monkeypatch.setattr(botocore.auth, get_current_datetime.__name__, lambda *_, **__: moment)
    monkeypatch.setattr(uuid, "uuid4", lambda: uuid.UUID(int=1))
    monkeypatch.setattr(request_template, "invocation_id", lambda: str(uuid.UUID(int=1)))


def key(number: int) -> str:
    """A key with characters that URLs write in other ways."""
    return f"a key/ü+1~{number}"


def made_by_botocore(
    fs: CSXFileSystem, bodies: Mapping[int, MemoryBody], *, whole: bool = False, **parameters: Any
) -> list[Any]:
    """The requests for some parts, or for whole objects, as botocore would send them."""
    made: list[Any] = []

    async def exchanged(request: Any, body: Any) -> AioAWSResponse:
        made.append(request)
        return AioAWSResponse(request.url, 200, {"ETag": '"etag"'}, Empty())

    fs.connect()
    fs.transfer.exchanged = exchanged  # type: ignore[method-assign]
    for number, body in bodies.items():
        checksum = {"ChecksumCRC64NVME": CRC64NVME.encoded(body.crc64nvme)} if body.crc64nvme else {}
        named: dict[str, Any] = {"Bucket": "bucket", "Body": body, **checksum, **parameters}
        if whole:
            sync(fs.loop, fs._call_s3, "put_object", Key=key(number), ContentType=f"text/{number}", **named)
        else:
            sync(fs.loop, fs._call_s3, "upload_part", Key=key(1), UploadId="id/+=~", PartNumber=number, **named)
    return made


@pytest.mark.usefixtures("steady")
@pytest.mark.parametrize("signer", [S3SigV4Auth, AUTH_TYPE_MAPS["s3v4"]])
def test_same_requests_as_botocore(signer: type, monkeypatch: pytest.MonkeyPatch) -> None:
    """URL, headers, signature and body are those of botocore, whatever the endpoint, the options and the keys.

    botocore signs in Python or by awscrt, which has a clock of its own.
    """
    monkeypatch.setitem(AUTH_TYPE_MAPS, "s3v4", signer)
    monkeypatch.setitem(AUTH_TYPE_MAPS, "v4", signer)
    for number, endpoint in enumerate(2 * ENDPOINTS):
        options = {"key": "AKIDEXAMPLE", "secret": "secret", **CREDENTIALS[number // 2 % 2], "endpoint_url": endpoint}
        options["client_kwargs"] = {"region_name": "eu-central-1"}
        style = STYLES[(number + number // len(ENDPOINTS)) % len(STYLES)]
        fs = CSXFileSystem(**options, config_kwargs=style, skip_instance_cache=True)
        for extra, checked in itertools.product(EXTRAS, (True, False)):
            if extra is CUSTOMER_KEY and endpoint == ENDPOINTS[0]:
                continue  # botocore refuses to send a key without TLS
            bodies = {1: MemoryBody([memoryview(b"one")]), 23: MemoryBody([memoryview(b"two"), memoryview(b"-three")])}
            for body in bodies.values():
                if checked:
                    body.prepare()
            first, wanted = made_by_botocore(fs, bodies, **extra)
            template = sync(fs.loop, fs.transfer.signer.template, PartTemplate, first)
            assert template is not None
            found = template.request(23, bodies[23])
            assert (found.method, found.url) == (wanted.method, wanted.url)
            assert headers(found, signer) == headers(wanted, signer)
            first, wanted = made_by_botocore(fs, bodies, whole=True, **extra)
            whole = sync(fs.loop, fs.transfer.signer.template, PutTemplate, first, key(1))
            assert whole is not None
            found = whole.request(key(23), "text/23", bodies[23])
            assert (found.method, found.url) == (wanted.method, wanted.url)
            assert headers(found, signer) == headers(wanted, signer)


def headers(request: Any, signer: type) -> dict[str, str]:
    """The headers of a request, as they are sent; what depends on the time is left out if awscrt signed it."""
    named: Any = request.headers.items()
    if isinstance(request, SignedRequest):
        named = [line.partition(": ")[::2] for line in request.head().decode().split("\r\n")[1:-2]]
    found = {name.lower(): value for name, value in named if name.lower() not in ("host", "accept-encoding")}
    found = {name: value.decode() if isinstance(value, bytes) else str(value) for name, value in found.items()}
    if signer is not S3SigV4Auth:
        del found["x-amz-date"]
        found["authorization"] = re.sub(r"/\d{8}/", "/date/", found["authorization"].partition("Signature=")[0])
    return found


@pytest.mark.usefixtures("steady")
def test_left_to_botocore() -> None:
    """Hashed bodies, bodies in chunks, other signers, foreign handlers and anonymous requests have no template."""
    body = MemoryBody([memoryview(b"one")])
    named = {"key": "AKIDEXAMPLE", "secret": "secret", "endpoint_url": "https://127.0.0.1:1"}
    hashed = {"config_kwargs": {"s3": {"payload_signing_enabled": True}}}
    for options in (
        {**named, **hashed},
        {**named, "config_kwargs": {"signature_version": "s3"}},
        {"anon": True, "endpoint_url": named["endpoint_url"]},
    ):
        fs = CSXFileSystem(**options, skip_instance_cache=True)
        (request,) = made_by_botocore(fs, {1: body})
        assert sync(fs.loop, fs.transfer.signer.template, PartTemplate, request) is None
    fs = CSXFileSystem(**named, skip_instance_cache=True)
    (request,) = made_by_botocore(fs, {1: body})
    for name, value in (
        ("X-Amz-Trailer", "x-amz-checksum-crc32"),
        ("Content-MD5", "abc"),
        ("x-amz-checksum-crc32", "a"),
    ):
        request.headers[name] = value
        assert sync(fs.loop, fs.transfer.signer.template, PartTemplate, request) is None
        del request.headers[name]
    assert sync(fs.loop, fs.transfer.signer.template, PartTemplate, request) is not None
    for event in ("before-sign.s3", "request-created.s3.UploadPart", "needs-retry.s3.UploadPart"):
        handler = lambda **_: None  # noqa: E731
        fs._s3.meta.events.register(event, handler)
        assert sync(fs.loop, fs.transfer.signer.template, PartTemplate, request) is None
        fs._s3.meta.events.unregister(event, handler)
    assert sync(fs.loop, fs.transfer.signer.template, PartTemplate, request) is not None


@pytest.fixture
def proxy(server: LocalS3, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """A proxy before the server, and retries that do not wait."""
    monkeypatch.setattr("botocore.retryhandler.random.random", lambda: 0.01)
    with fault_proxy(server.endpoint_url) as running:
        yield running


def written(fs: CSXFileSystem, bucket: str, *, opened: bool = False) -> None:
    """Write an object of five parts, and check it."""
    if opened:
        with fs.open(f"{bucket}/object", "wb", block_size=PART) as file:
            for start in range(0, len(DATA), PART):
                file.write(DATA[start : start + PART])
    else:
        fs.pipe_file(f"{bucket}/object", DATA, chunksize=PART)
    assert fs.cat_file(f"{bucket}/object") == DATA


def test_one_part_is_botocores(fs: CSXFileSystem, bucket: str, caplog: pytest.LogCaptureFixture) -> None:
    """All parts but one are signed from the first, and none is sent twice."""
    caplog.set_level("DEBUG", "fsspec_csx")
    for opened in (False, True):
        caplog.clear()
        with recorded_requests() as requests:
            written(fs, bucket, opened=opened)
        assert requests.count("UploadPart") == PARTS
        assert sum(record.message.startswith("Sending UploadPart") for record in caplog.records) == PARTS - 1


def test_parts_one_by_one(fs: CSXFileSystem, bucket: str, caplog: pytest.LogCaptureFixture) -> None:
    """Parts that come when no other is in flight follow the same template, and the file still publishes them all."""
    caplog.set_level("DEBUG", "fsspec_csx")
    with fs.open(f"{bucket}/object", "wb", block_size=PART) as file:
        for start in range(0, len(DATA), PART):
            file.write(DATA[start : start + PART])
            file._writer._wait_until(lambda: not file._writer._in_flight)
    assert fs.cat_file(f"{bucket}/object") == DATA
    assert sum(record.message.startswith("Sending UploadPart") for record in caplog.records) == PARTS - 1


def test_a_write_on_the_event_loop_fails(fs: CSXFileSystem, bucket: str) -> None:
    """Code on the event loop that sends the parts cannot wait for them: an error, where it would wait for ever."""

    async def write(file: Any) -> None:
        file.write(DATA)

    with fs.open(f"{bucket}/object", "wb", block_size=PART) as file:
        file.write(DATA)
        with pytest.raises(RuntimeError, match="event loop"):
            sync(fs.loop, write, file)
    assert not fs.exists(f"{bucket}/object")


@pytest.mark.parametrize(
    "fault",
    [
        {"answer": error_answer(503, "SlowDown")},
        {"answer": error_answer(500, "InternalError")},
        {"answer": error_answer(400, "RequestTimeout")},
        {"answer": (200, {"ETag": '"bad"'}, error_answer(200, "InternalError")[2])},
        {"stall_up": PART // 2},
        {"cut_down": 0},
        {"cut_up": PART // 2},
    ],
    ids=["503", "500", "400", "200 with an error", "stall", "no answer", "cut"],
)
def test_one_failure_costs_one_request(server: LocalS3, proxy: FaultProxy, bucket: str, fault: Any) -> None:
    """A failed attempt is botocore's first, which makes the second: no third, and the object is whole."""
    # A busy machine takes long for parts that do not stall, too, and each is to be sent once.
    far = through(proxy, server, config_kwargs={"read_timeout": 5 if "stall_up" in fault else 100})
    proxy.faults = [Fault("PUT", query="partNumber=3", **fault)]
    written(far, bucket)
    assert len(proxy.made("PUT", "partNumber=3")) == 2
    assert len(proxy.made("PUT", "partNumber")) == PARTS + 1


def test_retries_end_as_botocores(server: LocalS3, proxy: FaultProxy, bucket: str) -> None:
    """A store that is busy for good gets as many attempts of a part as the configuration says, and a clear error."""
    fs = through(proxy, server, config_kwargs={"retries": {"total_max_attempts": 2}})
    proxy.faults = [Fault("PUT", query="partNumber=3", times=99, answer=error_answer(500, "InternalError"))]
    with pytest.raises(OSError, match="InternalError"):
        written(fs, bucket)
    attempts = len(proxy.made("PUT", "partNumber=3"))
    proxy.requests.clear()
    fs._s3.meta.events.register("before-sign.s3.UploadPart", lambda **_: None)  # so that botocore makes all requests
    with pytest.raises(OSError, match="InternalError"):
        written(fs, bucket)
    assert len(proxy.made("PUT", "partNumber=3")) == attempts


def test_a_second_cancellation_leaves_no_part_running(fs: CSXFileSystem) -> None:
    """An upload whose tasks end by an error is cancelled twice; it ends only after the part that botocore sends."""
    fs.connect()

    async def cancelled(pauses: int) -> None:
        begun, ended = asyncio.Event(), False

        async def send(_: Any) -> None:
            nonlocal ended
            begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                for _ in range(20):
                    await asyncio.sleep(0)
                ended = True

        part = QueuedPart(1, MemoryBody([memoryview(b"one")]), lambda _: None)
        task = asyncio.ensure_future(RequestQueue(fs.transfer, LearnedTemplate(), [part], send).run())
        await begun.wait()
        task.cancel()
        for _ in range(pauses):
            await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        assert task.cancelled()
        assert ended

    for pauses in range(8):
        sync(fs.loop, cancelled, pauses)
