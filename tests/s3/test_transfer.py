"""Large reads fill memory directly by parallel requests, and are as safe as small ones."""

from __future__ import annotations

import os
import time
from pathlib import Path

import fsspec
import pytest
import torch
from conftest import recorded_requests
from proxy import Fault, fault_proxy
from s3fs.utils import FileExpired

import fsspec_csx
from fsspec_csx.errors import AccessDeniedError, EndpointError
from fsspec_csx.s3.file import CSXFile
from fsspec_csx.s3.filesystem import CSXFileSystem
from fsspec_csx.s3.transport.concurrency import MIN_REQUESTS
from fsspec_csx.s3.transport.transfer import PART
from fsspec_csx.testing import LocalS3

DATA = os.urandom(3 * PART + 12345)


@pytest.fixture(scope="module")
def path(server: LocalS3) -> str:
    """An object of three parts and a bit."""
    fsspec.filesystem("s3", **server.storage_options()).pipe_file("transfer/object", DATA)
    return "transfer/object"


@pytest.mark.parametrize("start", [0, PART - 1, len(DATA) - PART, len(DATA) - 1, len(DATA)])
@pytest.mark.parametrize("length", [1, PART + 1, len(DATA)])
def test_readinto(fs: CSXFileSystem, path: str, start: int, length: int) -> None:
    """Any range is read as a local file would: the bytes up to the end, and the position moves on."""
    buffer = bytearray(b"?" * length)
    expected = DATA[start : start + length]
    with fs.open(path, "rb", block_size=1000) as file:
        file.seek(start)
        assert file.readinto(buffer) == len(expected)
        assert buffer[: len(expected)] == expected
        assert buffer[len(expected) :] == b"?" * (length - len(expected))
        assert file.tell() == start + len(expected)
        assert file.read(10) == DATA[start + len(expected) :][:10]


def test_one_request_a_part(fs: CSXFileSystem, path: str) -> None:
    """A large read from a near store requests each part once, and nothing else."""
    with fs.open(path, "rb") as file, fs.transfer.slots.fixed(MIN_REQUESTS), recorded_requests() as operations:
        file.readinto(bytearray(len(DATA)))
    assert operations == ["GetObject"] * 6


def test_memory_of_other_kinds(fs: CSXFileSystem, path: str) -> None:
    """The memory may be a tensor's, of any item size."""
    tensor = torch.empty(len(DATA) // 4, dtype=torch.int32)
    with fs.open(path, "rb") as file:
        assert file.readinto(tensor.numpy()) == tensor.nbytes
    assert tensor.numpy().tobytes() == DATA[: tensor.nbytes]


@pytest.mark.parametrize("after", [1000, PART // 4])
@pytest.mark.parametrize("cuts", [1, 3])
def test_cut_connections_are_made_good(server: LocalS3, path: str, cuts: int, after: int) -> None:
    """Requests whose responses end early are repeated, and no truncated response counts as complete."""
    with fault_proxy(server.endpoint_url) as proxy:
        fs = fsspec.filesystem("s3", **{**server.storage_options(), "endpoint_url": proxy.url})
        with fs.open(path, "rb") as file:
            proxy.faults = [Fault("GET", times=cuts, cut_down=after)]
            buffer = bytearray(len(DATA))
            assert file.readinto(buffer) == len(DATA)
        assert proxy.faults[0].times == 0
    assert buffer == DATA


def test_connection_that_is_always_cut(server: LocalS3, path: str) -> None:
    """A read that cannot be made good is an error that names the endpoint."""
    with fault_proxy(server.endpoint_url) as proxy:
        options = {**server.storage_options(), "endpoint_url": proxy.url}
        fs = fsspec.filesystem("s3", **options, config_kwargs={"retries": {"max_attempts": 1}})
        fs.retries = 1
        with fs.open(path, "rb") as file:
            proxy.faults = [Fault("GET", times=1000, cut_down=1000)]
            with pytest.raises(EndpointError, match=f"{proxy.url} closed the connection"):
                file.readinto(bytearray(len(DATA)))


def test_replaced_object_is_never_mixed(fs: CSXFileSystem, bucket: str) -> None:
    """An object replaced after the file was opened is an error, not a mixture."""
    fs.pipe_file(f"{bucket}/object", DATA)
    with fs.open(f"{bucket}/object", "rb") as file:
        file.readinto(bytearray(PART))
        fs.pipe_file(f"{bucket}/object", DATA[::-1])
        with pytest.raises(FileExpired):
            file.readinto(bytearray(2 * PART))


def test_memory_is_the_callers_again_after_an_error(fs: CSXFileSystem, bucket: str) -> None:
    """Once a read has failed, nothing writes to the buffer any more."""
    fs.pipe_file(f"{bucket}/object", DATA)
    buffer = bytearray(3 * PART)
    with fs.open(f"{bucket}/object", "rb") as file:
        fs.rm_file(f"{bucket}/object")
        fs.pipe_file(f"{bucket}/object", DATA[: PART + 1])
        file.read_kw = {}  # unpinned, so that some parts come before others fail
        with pytest.raises(OSError, match=r"range|no longer exists"):
            file.readinto(buffer)
        after = bytes(buffer)
        time.sleep(0.3)
    assert buffer == after


def test_refused_read_is_reported(server: LocalS3, fs: CSXFileSystem, path: str) -> None:
    """A refusal of a part is reported as that of any request."""
    blind = fsspec.filesystem("s3", **server.storage_options("blind"))
    with CSXFile(blind, path, size=fs.size(path)) as file, pytest.raises(AccessDeniedError, match=path):
        file.readinto(bytearray(2 * PART))


def test_versions(server: LocalS3, bucket: str) -> None:
    """A large read of a former version reads that version."""
    fs = fsspec.filesystem("s3", **server.storage_options(), version_aware=True)
    fs.make_bucket_versioned(bucket)
    fs.pipe_file(f"{bucket}/object", DATA)
    former = fs.object_version_info(f"{bucket}/object")[0]["VersionId"]
    fs.pipe_file(f"{bucket}/object", DATA[::-1])
    buffer = bytearray(len(DATA))
    with fs.open(f"{bucket}/object", "rb", version_id=former) as file:
        file.readinto(buffer)
    assert buffer == DATA


def test_tls(secure_server: tuple[LocalS3, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The bulk connections trust the authorities that the others trust."""
    server, authority = secure_server
    monkeypatch.setenv("AWS_CA_BUNDLE", str(authority))
    fs = fsspec.filesystem("s3", **server.storage_options())
    fs.pipe_file("bucket/object", DATA)
    buffer = bytearray(len(DATA))
    with fs.open("bucket/object", "rb") as file:
        file.readinto(buffer)
    assert buffer == DATA


def test_other_clients_are_served_too(server: LocalS3, path: str) -> None:
    """With a client for each region, which bulk reads do not know, the bytes come all the same."""
    options = {**server.storage_options(), "cache_regions": True}
    del options["endpoint_url"]
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("AWS_ENDPOINT_URL_S3", server.endpoint_url)
        fs = fsspec.filesystem("s3", **options)
        buffer = bytearray(len(DATA))
        with fs.open(path, "rb") as file:
            file.readinto(buffer)
    assert buffer == DATA


def test_load_reads_little_more_than_the_file(environment: LocalS3, bucket: str) -> None:
    """A checkpoint of large tensors is loaded by few requests, none of them for a long read-ahead."""
    state = {str(number): torch.full((PART // 4,), float(number)) for number in range(4)}
    fsspec_csx.save(state, f"s3://{bucket}/x.mdl")
    with recorded_requests() as operations:
        loaded = fsspec_csx.load(f"s3://{bucket}/x.mdl")
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())
    assert len(operations) <= 2 * len(state) + 8
