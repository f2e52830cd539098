"""Stores that lack a feature of S3: after one refusal, the feature is not used again."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from proxy import Fault, FaultProxy, Request, error_answer, through
from thinning import thinned

import fsspec_csx as cstorch
from fsspec_csx.errors import ObjectNotFoundError, RefusedError
from fsspec_csx.s3.filesystem import CSXFileSystem
from fsspec_csx.testing import LocalS3

MIB = 2**20
PART = 5 * MIB
SMALL, LARGE = os.urandom(1000), os.urandom(2 * PART + 17)
MODE = "x-amz-checksum-mode"
REFUSALS = [
    (400, "InvalidRequest"),
    *(
        pytest.param(*refusal, marks=pytest.mark.slow)
        for refusal in ((400, "InvalidArgument"), (501, "NotImplemented"))
    ),
]


def has_checksum(request: Request) -> bool:
    """Whether a request has a header about checksums."""
    return any(name.startswith(("x-amz-checksum", "x-amz-sdk-checksum")) for name in request.headers)


# -- reads -------------------------------------------------------------------------------------------------------------


def get(fs: CSXFileSystem, path: str, local: Path) -> bytes:
    """Through a local file."""
    fs.get_file(path, str(local / "x"))
    return (local / "x").read_bytes()


def read_many(fs: CSXFileSystem, path: str, local: Path) -> bytes:
    """Into memory, with 20 others."""
    memories = [memoryview(bytearray(fs.size(path))) for _ in range(20)]
    fs.readinto_objects([(path, 0, memory, len(memory)) for memory in memories])
    return bytes(memories[-1])


def resumed(fs: CSXFileSystem, path: str, local: Path) -> bytes:
    """Through a local file whose download may be resumed."""
    fs.get_file(path, str(local / "x"), resumable=True)
    return (local / "x").read_bytes()


def appended(fs: CSXFileSystem, path: str, local: Path) -> bytes:
    """What is there when something was appended."""
    with fs.open(path, "ab") as file:
        file.write(b"more")
    return fs.cat_file(path).removesuffix(b"more")


def copied(fs: CSXFileSystem, path: str, local: Path) -> bytes:
    """What a copy holds."""
    fs.cp_file(path, f"{path}.copy")
    fs.take_file(fs, path, f"{path}.copy")
    return fs.cat_file(f"{path}.copy")


READS: dict[str, Callable[[CSXFileSystem, str, Path], Any]] = {
    "cat_file": lambda fs, path, local: fs.cat_file(path),
    "cat_file in parts": lambda fs, path, local: fs.cat_file(path, start=0, end=10**9),
    "cat": lambda fs, path, local: fs.cat([path])[path],
    "cat_ranges": lambda fs, path, local: b"".join(fs.cat_ranges([path] * 2, [0, 500], [500, 10**9])),
    "get_file": get,
    "get_file, resumable": resumed,
    "open": lambda fs, path, local: fs.open(path).read(),
    "readinto_objects": read_many,
    "append": appended,
    "copy": copied,
}


@pytest.mark.parametrize(("status", "code"), REFUSALS)
@pytest.mark.parametrize("data", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("way", READS)
def test_checksums_of_reads_are_refused(
    server: LocalS3,
    fs: CSXFileSystem,
    bucket: str,
    proxy: FaultProxy,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    way: str,
    data: bytes,
    status: int,
    code: str,
) -> None:
    """Every way to read works, and requests checksums until they are refused, and then no more; that is logged once."""
    fs.pipe_file(f"{bucket}/x", data)
    asked = through(proxy, server, max_concurrency=1)
    proxy.faults = [Fault(when=has_checksum, times=10**6, answer=error_answer(status, code))]
    assert READS[way](asked, f"{bucket}/x", tmp_path) == data
    assert sum(MODE in each.headers for each in proxy.requests) == 1
    assert asked.cat_file(f"{bucket}/x").startswith(data)
    assert asked.info(f"{bucket}/x", refresh=True)["size"] >= len(data)
    assert sum(MODE in each.headers for each in proxy.requests) == 1
    assert caplog.text.count("GetObject and HeadObject have no checksum headers") == 1


def test_refused_head_is_found_out(server: LocalS3, fs: CSXFileSystem, bucket: str, proxy: FaultProxy) -> None:
    """An answer to HEAD has no code; another read settles nothing for what is missing or forbidden."""
    fs.pipe_file(f"{bucket}/x", SMALL)
    asked = through(proxy, server)
    proxy.faults = [Fault(when=has_checksum, times=10**6, answer=(400, {}, b""))]
    assert asked.object_metadata(f"{bucket}/x").size == len(SMALL)
    with pytest.raises(ObjectNotFoundError):
        asked.cat_file(f"{bucket}/missing")
    assert sum(MODE in each.headers for each in proxy.requests) == 1


def test_errors_that_are_not_about_checksums(
    server: LocalS3, fs: CSXFileSystem, bucket: str, proxy: FaultProxy, caplog: pytest.LogCaptureFixture
) -> None:
    """A refusal that is the same without the header is an error, and later reads request checksums."""
    fs.pipe_file(f"{bucket}/x", SMALL)
    asked = through(proxy, server)
    proxy.faults = [Fault("GET", times=2, answer=error_answer(400, "InvalidArgument"))]
    with pytest.raises(RefusedError, match="InvalidArgument"):
        asked.cat_file(f"{bucket}/x")
    assert asked.cat_file(f"{bucket}/x") == SMALL
    assert MODE in proxy.requests[-1].headers
    proxy.requests, proxy.faults = [], [Fault("GET", answer=error_answer(400, "InvalidArgument"))]
    with pytest.raises(RefusedError, match="InvalidArgument"):  # the server takes the header
        asked.cat_file(f"{bucket}/x")
    assert len(proxy.requests) == 1
    assert "no checksum headers" not in caplog.text


@pytest.mark.parametrize(("status", "code"), [*REFUSALS, (400, "MissingContentMD5")])
def test_small_requests_with_checksums_are_refused(
    server: LocalS3, bucket: str, proxy: FaultProxy, status: int, code: str
) -> None:
    """Deletions, tags and ACLs have a Content-MD5 there instead, once that was found out."""
    asked = through(proxy, server)
    asked.pipe({f"{bucket}/{number}": SMALL for number in range(6)})
    proxy.faults = [Fault(when=has_checksum, times=10**6, answer=error_answer(status, code))]
    proxy.requests = []
    asked.put_tags(f"{bucket}/5", {"a": "b"})
    assert asked.get_tags(f"{bucket}/5") == {"a": "b"}
    asked.chmod(f"{bucket}/5", "private")
    for numbers in ((0, 1), (2, 3)):
        asked.rm([f"{bucket}/{number}" for number in numbers])
    asked.mv(f"{bucket}/4", f"{bucket}/6")
    assert asked.find(bucket) == [f"{bucket}/5", f"{bucket}/6"]
    assert sum(has_checksum(each) for each in proxy.requests if MODE not in each.headers) == 1


# -- writes ------------------------------------------------------------------------------------------------------------


def write(fs: CSXFileSystem, path: str, data: bytes, way: str, local: Path) -> None:
    """In one of three ways."""
    if way == "open":
        with fs.open(path, "wb", block_size=PART) as file:
            file.write(data)
    elif way == "pipe_file":
        fs.pipe_file(path, data, chunksize=PART)
    else:
        (local / "y").write_bytes(data)
        fs.put_file(str(local / "y"), path, chunksize=PART)


@pytest.mark.parametrize("way", ["open", "pipe_file", "put_file"])
@pytest.mark.parametrize("data", [SMALL, LARGE], ids=["small", "large"])
def test_checksums_of_writes_are_refused(
    server: LocalS3,
    bucket: str,
    proxy: FaultProxy,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    way: str,
    data: bytes,
) -> None:
    """The first request settles that writes go without; it is logged once."""
    asked = through(proxy, server)
    proxy.faults = [Fault(when=has_checksum, times=10**6, answer=error_answer(400, "InvalidRequest"))]
    for _ in range(2):
        write(asked, f"{bucket}/x", data, way, tmp_path)
    assert sum(has_checksum(each) for each in proxy.requests) == 1
    assert [each.levelno for each in caplog.records if "carry no checksums" in each.message] == [logging.WARNING]
    assert asked.cat_file(f"{bucket}/x") == data


@pytest.mark.parametrize("way", ["open", "pipe_file", "put_file"])
@pytest.mark.parametrize(
    "code",
    ["InvalidRequest", *(pytest.param(code, marks=pytest.mark.slow) for code in ("NotImplemented", "MalformedXML"))],
)
@pytest.mark.parametrize("what", ["partNumber=2", "uploadId="])
def test_refused_part_is_an_error(
    server: LocalS3, fs: CSXFileSystem, bucket: str, proxy: FaultProxy, tmp_path: Path, way: str, code: str, what: str
) -> None:
    """A part, or an end, that is refused is not sent again without its checksum."""
    fs.pipe_file(f"{bucket}/x", b"old")
    asked = through(proxy, server)
    proxy.faults = [Fault("PUT" if "part" in what else "POST", query=what, answer=error_answer(400, code))]
    with pytest.raises(RefusedError, match=code):
        write(asked, f"{bucket}/x", LARGE, way, tmp_path)
    assert len(proxy.made("PUT" if "part" in what else "POST", what)) == 1
    assert all("x-amz-checksum-crc64nvme" in each.headers for each in proxy.made("PUT", "partNumber="))
    assert fs.cat_file(f"{bucket}/x") == b"old"
    assert fs.list_multipart_uploads(bucket) == []
    write(asked, f"{bucket}/x", LARGE, way, tmp_path)
    assert all("x-amz-checksum-crc64nvme" in each.headers for each in proxy.made("PUT", "partNumber="))


def test_refused_write_after_one_that_was_taken(server: LocalS3, bucket: str, proxy: FaultProxy) -> None:
    """Once a store has taken a checksum, a write that it refuses is an error."""
    asked = through(proxy, server)
    asked.pipe_file(f"{bucket}/x", SMALL)
    proxy.requests, proxy.faults = [], [Fault("PUT", answer=error_answer(400, "InvalidRequest"))]
    with pytest.raises(RefusedError, match="InvalidRequest"):
        asked.pipe_file(f"{bucket}/x", b"new")
    assert len(proxy.requests) == 1
    assert asked.cat_file(f"{bucket}/x") == SMALL


# -- parts of one size -------------------------------------------------------------------------------------------------


def lengths(proxy: FaultProxy) -> list[int]:
    """Bytes of each part, by their numbers."""
    parts = {int(each.query.split("partNumber=")[1].split("&")[0]): each for each in proxy.made("PUT", "partNumber=")}
    return [int(parts[number].headers["content-length"]) for number in sorted(parts)]


STATE = {f"t{number}": torch.full((5_000_000,), float(number)) for number in range(15)}  # 300 MB


@pytest.mark.slow
@pytest.mark.parametrize(
    ("way", "suffix"),
    thinned(
        [("save", "mdl"), ("save", "safetensors"), ("torch.save", "mdl"), ("small writes", "mdl"), ("put_file", "mdl")],
        ("save", "mdl"),
    ),
)
def test_parts_are_of_one_size(
    server: LocalS3, bucket: str, proxy: FaultProxy, tmp_path: Path, way: str, suffix: str
) -> None:
    """However the bytes of a checkpoint come, all parts but the last have the same size."""
    options = {**server.storage_options(), "endpoint_url": proxy.url}
    path = f"s3://{bucket}/x.{suffix}"
    if way == "save":
        cstorch.save(STATE, path, storage_options=options)
    elif way == "put_file":
        torch.save(STATE, tmp_path / "x")
        fsspec.filesystem("s3", **options).put_file(str(tmp_path / "x"), path)
    else:
        with fsspec.open(path, "wb", **options) as file:
            if way == "torch.save":
                torch.save(STATE, file)
            else:
                data = io.BytesIO()
                torch.save({name: STATE[name] for name in ("t0", "t1")}, data)
                for start in range(0, len(data.getbuffer()), 777_777):
                    file.write(data.getbuffer()[start : start + 777_777])
    parts = lengths(proxy)
    assert len(parts) > 1
    assert len(set(parts[:-1])) == 1
    least = {"save": 16, "put_file": 8}.get(way, 5) * MIB
    assert least <= parts[0] < least + 2 * MIB
    assert 0 < parts[-1] <= parts[0]


def test_save_keeps_to_a_block_size_that_was_chosen(server: LocalS3, bucket: str, proxy: FaultProxy) -> None:
    """``default_block_size`` is the size of the parts of a checkpoint."""
    options = {**server.storage_options(), "endpoint_url": proxy.url, "default_block_size": 6 * MIB}
    options["config_kwargs"] = {"read_timeout": 100}  # a busy machine may not answer sooner
    cstorch.save({"t": STATE["t1"]}, f"s3://{bucket}/x.mdl", storage_options=options)
    assert set(lengths(proxy)[:-1]) == {6 * MIB}
