"""The filesystem that s3:// opens, with all methods of s3fs."""

from __future__ import annotations

import asyncio
import gc
import io
import json
import os
import pickle
import subprocess
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pandas
import pytest
import s3fs
import torch
from fsspec.callbacks import Callback
from thinning import thinned

from fsspec_csx.s3.filesystem import CSXFileSystem
from fsspec_csx.testing import LocalS3

pytestmark = pytest.mark.adaptive


@pytest.mark.parametrize("protocol", thinned(["s3", "s3a", "csx"], "s3"))
def test_protocols_are_taken_over(protocol: str) -> None:
    """After installation alone each protocol is ours, and importing s3fs before or after does not undo it."""
    for code in (
        f"import fsspec, s3fs; cls = fsspec.get_filesystem_class('{protocol}')",
        f"import fsspec; fsspec.get_filesystem_class('{protocol}'); import s3fs; import s3fs.core; "
        f"cls = fsspec.get_filesystem_class('{protocol}')",
    ):
        check = f"{code}; assert cls.__name__ == 'CSXFileSystem', cls; assert issubclass(cls, s3fs.S3FileSystem)"
        subprocess.run([sys.executable, "-c", check], check=True, timeout=100)


def test_plain_s3fs_stays_plain() -> None:
    """s3fs by its own name is still s3fs."""
    assert type(s3fs.S3FileSystem(anon=True)) is s3fs.S3FileSystem


@pytest.mark.parametrize("protocol", ["s3", "s3a", "csx"])
def test_url_in_each_protocol(environment: LocalS3, bucket: str, protocol: str) -> None:
    """The same object under each protocol."""
    with fsspec.open(f"{protocol}://{bucket}/key", "wb") as file:
        file.write(b"data")
    with fsspec.open(f"s3://{bucket}/key", "rb") as file:
        assert file.read() == b"data"


def test_pandas(environment: LocalS3, bucket: str) -> None:
    """pandas writes and reads csv and parquet by URL alone, and with storage_options."""
    frame = pandas.DataFrame({"a": [1, 2, 3], "b": ["x", "y", "z"]})
    frame.to_csv(f"s3://{bucket}/table.csv", index=False)
    frame.to_parquet(f"s3://{bucket}/table.parquet", storage_options=environment.storage_options())
    assert pandas.read_csv(f"s3://{bucket}/table.csv").equals(frame)
    back = pandas.read_parquet(f"s3://{bucket}/table.parquet", storage_options=environment.storage_options())
    assert back.equals(frame)


def test_pandas_write_that_fails(environment: LocalS3, bucket: str) -> None:
    """A table that pandas cannot finish leaves the old one, although pandas itself closes the file."""
    url = f"s3://{bucket}/table.csv"
    good = pandas.DataFrame({"a": ["old"]})
    good.to_csv(url, index=False)
    with pytest.raises(UnicodeEncodeError):
        pandas.DataFrame({"a": ["x"] * 100_000 + ["ä"]}).to_csv(url, index=False, encoding="ascii", chunksize=1000)
    assert pandas.read_csv(url).equals(good)


def test_torch_save_on_a_file(environment: LocalS3, bucket: str) -> None:
    """torch.save and torch.load work on what fsspec.open gives."""
    tensor = torch.arange(5_000_000, dtype=torch.float32)
    with fsspec.open(f"s3://{bucket}/x.pt", "wb") as file:
        torch.save({"x": tensor}, file)
    with fsspec.open(f"s3://{bucket}/x.pt", "rb") as file:
        assert torch.equal(torch.load(file, weights_only=True)["x"], tensor)


def test_info_has_the_keys_of_s3fs(server: LocalS3, fs: CSXFileSystem, bucket: str) -> None:
    """info answers as s3fs's does."""
    fs.pipe_file(f"{bucket}/run/key", b"data")
    plain = s3fs.S3FileSystem(**server.storage_options())
    for path in (f"{bucket}/run/key", f"{bucket}/run", bucket):
        ours, theirs = ({"VersionId": None, **each.info(path)} for each in (fs, plain))
        # Older releases write a slash behind the name of a bucket, and no version of it.
        assert ours == {**theirs, "name": theirs["name"].rstrip("/")}


def test_versions(server: LocalS3, bucket: str) -> None:
    """A version-aware filesystem reads former versions, by argument and by URL."""
    fs = fsspec.filesystem("s3", **server.storage_options(), version_aware=True)
    fs.make_bucket_versioned(bucket)
    for data in (b"first", b"second"):
        fs.pipe_file(f"{bucket}/key", data)
    latest, former = sorted(fs.object_version_info(f"{bucket}/key"), key=lambda info: not info["IsLatest"])
    assert fs.cat_file(f"{bucket}/key", version_id=former["VersionId"]) == b"first"
    url = f"s3://{bucket}/key?versionId={former['VersionId']}"
    with fsspec.open(url, "rb", **server.storage_options()) as file:
        assert file.read() == b"first"
    with fs.open(f"{bucket}/key", "rb", version_id=latest["VersionId"]) as file:
        assert file.read() == b"second"
    with pytest.raises(ValueError, match="version_aware=True"):
        fsspec.filesystem("s3", **server.storage_options()).open(f"{bucket}/key", version_id="x")


def test_callbacks_count(fs: CSXFileSystem, bucket: str, tmp_path: Path) -> None:
    """put and get report to a callback how many bytes moved."""
    local = str(tmp_path / "file")
    Path(local).write_bytes(b"x" * 100_000)
    up, down = Callback(), Callback()
    fs.put_file(local, f"{bucket}/key", callback=up)
    fs.get_file(f"{bucket}/key", local, callback=down)
    assert (up.size, up.value) == (down.size, down.value) == (100_000, 100_000)


def test_async_use(server: LocalS3, bucket: str) -> None:
    """An asynchronous instance is awaited on the caller's own loop."""

    async def work() -> bytes:
        fs = CSXFileSystem(asynchronous=True, skip_instance_cache=True, **server.storage_options())
        session = await fs.set_session()
        try:
            await fs._pipe_file(f"{bucket}/key", b"data")
            stream = await fs.open_async(f"{bucket}/key", "rb")
            assert await stream.read() == b"data"
            return await fs._cat_file(f"{bucket}/key")
        finally:
            await session.close()

    assert asyncio.run(work()) == b"data"


def test_use_within_a_running_loop(server: LocalS3, bucket: str) -> None:
    """The blocking calls work where another loop runs, as in a notebook."""

    async def work() -> bytes:
        with fsspec.open(f"s3://{bucket}/key", "wb", **server.storage_options()) as file:
            file.write(b"data")
        return fsspec.filesystem("s3", **server.storage_options()).cat_file(f"{bucket}/key")  # type: ignore[no-any-return]

    assert asyncio.run(work()) == b"data"


def test_pickle_and_json(fs: CSXFileSystem) -> None:
    """A pickle is the same filesystem; JSON is one without secrets."""
    assert pickle.loads(pickle.dumps(fs)) == fs
    text = fs.to_json()
    assert fs.secret not in text
    assert fs.key not in text
    back = fsspec.AbstractFileSystem.from_json(text)
    assert isinstance(back, CSXFileSystem)
    assert json.loads(text)["endpoint_url"] == back.endpoint_url == fs.endpoint_url


@pytest.mark.parametrize("size", [1, 20 * 2**20])
def test_file_of_another_process(server: LocalS3, bucket: str, size: int) -> None:
    """A file that a filesystem without a connection gets, as that of a worker process does, can be read."""
    fs = CSXFileSystem(**server.storage_options(), skip_instance_cache=True)
    data = os.urandom(20 * 2**20)
    fs.pipe_file(f"{bucket}/x", data)
    details = fs.info(f"{bucket}/x")
    for method in ("read", "readinto"):
        new = CSXFileSystem(**server.storage_options(), skip_instance_cache=True)
        file, memory = new.open_state(f"{bucket}/x", details), bytearray(size)
        found = file.read(size) if method == "read" else memory[: file.readinto(memory)]
        assert found == data[:size]


def test_open_files_pickle(server: LocalS3, bucket: str) -> None:
    """An OpenFile and a file open for reading survive a pickle."""
    opened = fsspec.open(f"s3://{bucket}/key", "wb", **server.storage_options())
    with pickle.loads(pickle.dumps(opened)) as file:
        file.write(b"data")
    with fsspec.open(f"s3://{bucket}/key", "rb", **server.storage_options()) as file:
        file.seek(1)
        assert pickle.loads(pickle.dumps(file)).read() == b"ata"


def test_text_mode_append_and_block_size(fs: CSXFileSystem, bucket: str) -> None:
    """Text, append and a block size mean what they mean in s3fs."""
    path = f"{bucket}/text"
    with fs.open(path, "w", encoding="utf-8") as file:
        file.write("ä\n")
    with fs.open(path, "ab") as file:
        file.write(b"b\n")
    with fs.open(path, "r", encoding="utf-8", block_size=1) as file:
        assert file.readlines() == ["ä\n", "b\n"]
    with pytest.raises(ValueError, match="Block size"):
        fs.open(path, "wb", block_size=1)


@pytest.mark.parametrize("name", ["a b", "a#b", "a?b", "a%20b", "ä/ö", "a+b", "a&b", "a=b", "*[x]"])
def test_names_are_taken_as_they_are(fs: CSXFileSystem, bucket: str, name: str) -> None:
    """No character of a name means anything but itself."""
    with fs.open(f"{bucket}/{name}", "wb") as file:
        file.write(name.encode())
    assert fs.cat_file(f"{bucket}/{name}") == name.encode()
    assert fs.find(bucket) == [f"{bucket}/{name}"]


def test_name_is_not_a_prefix(fs: CSXFileSystem, bucket: str) -> None:
    """Deleting one name leaves those that begin with it."""
    for number in (1, 10, 100):
        fs.pipe_file(f"{bucket}/checkpoint_{number}", b"data")
    fs.rm(f"{bucket}/checkpoint_1", recursive=True)
    assert fs.find(bucket) == [f"{bucket}/checkpoint_10", f"{bucket}/checkpoint_100"]


def test_many_threads(server: LocalS3, bucket: str) -> None:
    """Threads that open the same URL work side by side."""
    barrier = threading.Barrier(8)

    def work(number: int) -> bytes:
        barrier.wait(60)
        with fsspec.open(f"s3://{bucket}/key-{number}", "wb", **server.storage_options()) as file:
            file.write(str(number).encode())
        with fsspec.open(f"s3://{bucket}/key-{number}", "rb", **server.storage_options()) as file:
            return file.read()  # type: ignore[no-any-return]

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(8))) == [str(number).encode() for number in range(8)]


def test_dropped_while_another_loop_runs(server: LocalS3, bucket: str) -> None:
    """Connections close on the filesystem's event loop, whatever loop runs in the thread that drops the filesystem."""
    errors: list[dict[str, object]] = []

    async def work() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, error: errors.append(error))
        fs = CSXFileSystem(skip_instance_cache=True, **server.storage_options())
        await asyncio.to_thread(fs.ls, bucket)
        client = weakref.ref(fs._s3)
        del fs
        gc.collect()
        await asyncio.sleep(0.1)
        gc.collect()
        assert client() is None

    asyncio.run(work())
    assert errors == []


def test_file_is_an_s3_file(fs: CSXFileSystem, bucket: str) -> None:
    """The file is an s3fs file and an io object, as tools require."""
    with fs.open(f"{bucket}/key", "wb") as file:
        assert isinstance(file, s3fs.S3File)
        assert isinstance(file, io.IOBase)
        assert file.writable()
        assert not file.readable()
