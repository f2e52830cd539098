"""A filesystem that is used for long, while its credentials change, keeps only its latest client."""

from __future__ import annotations

import asyncio
import gc
import os
import time

import fsspec
import pytest
from aiobotocore.client import AioBaseClient
from aiohttp import ClientSession
from conftest import recorded_requests

from fsspec_csx.s3.filesystem import CSXFileSystem
from fsspec_csx.testing import LocalS3


def count() -> tuple[int, int, int]:
    """Clients, open sessions of aiohttp, and open files of the process."""
    gc.collect()
    found = gc.get_objects()
    clients = sum(issubclass(type(each), AioBaseClient) for each in found)
    sessions = sum(issubclass(type(each), ClientSession) and not each.closed for each in found)
    return clients, sessions, len(os.listdir("/proc/self/fd"))


@pytest.mark.slow
def test_many_renewals(server: LocalS3, bucket: str) -> None:
    """Fifty renewals leave one client, with its connections."""
    fs = fsspec.filesystem("s3", **server.storage_options(), use_listings_cache=False, skip_instance_cache=True)
    fs.pipe_file(f"{bucket}/key", b"data")
    fs.ls(bucket)
    before = count()
    for _ in range(50):
        fs.connect(refresh=True)
        assert fs.ls(bucket) == [f"{bucket}/key"]
        assert fs.cat_file(f"{bucket}/key") == b"data"
    deadline = time.monotonic() + 60
    while (after := count())[:2] != before[:2] or after[2] > before[2] + 4:
        assert time.monotonic() < deadline, (before, after)
        time.sleep(0.1)


def test_body_that_is_read_during_a_renewal(server: LocalS3, fs: CSXFileSystem, bucket: str) -> None:
    """What is still being read keeps the connection that it comes by."""
    data = os.urandom(3_000_000)
    fs.pipe_file(f"{bucket}/key", data)
    far = fsspec.filesystem("s3", **server.storage_options(), skip_instance_cache=True)

    async def read() -> bytes:
        answer = await far._call_s3("get_object", Bucket=bucket, Key="key")
        first: bytes = await answer["Body"].read(10)
        await far.set_session(refresh=True)
        gc.collect()
        await asyncio.sleep(0.2)
        rest: bytes = await answer["Body"].read()
        return first + rest

    assert asyncio.run_coroutine_threadsafe(read(), far.loop).result(60) == data


def test_clients_of_regions(moto: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a client is kept for each region, large transfers take one request too."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", moto)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "k")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
    fsspec.filesystem("s3", skip_instance_cache=True).mkdir("europe", region_name="eu-west-1")
    fs = fsspec.filesystem("s3", cache_regions=True, skip_instance_cache=True)
    data = os.urandom(2_000_000)
    fs.pipe_file("europe/key", data)
    with recorded_requests() as operations:
        assert fs.cat_file("europe/key") == data
    assert operations == ["GetObject"]
    assert fs.cache_regions
    assert len(fs._watched) == 2
