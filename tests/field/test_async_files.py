"""Files of ``open_async``, on a filesystem of the running event loop."""

from __future__ import annotations

import asyncio
import errno
import functools
import gc
import os
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import fsspec
import pytest
from conftest import recorded_requests
from proxy import Fault, FaultProxy, error_answer, fault_proxy, through

from fsspec_csx.errors import AccessDeniedError, DiscardedFileWarning, ObjectExistsError, ObjectNotFoundError
from fsspec_csx.s3 import writer
from fsspec_csx.s3.filesystem import CSXFileSystem
from fsspec_csx.s3.transport.call_scope import Scope, within
from fsspec_csx.testing import LocalS3

MIB = 2**20
BLOCK = 5 * MIB
DATA = os.urandom(3 * BLOCK + 17)
SIZES = [0, 3, BLOCK, len(DATA)]


def run(server: LocalS3, work: Callable[[CSXFileSystem], Awaitable[Any]], **options: Any) -> Any:
    """Run a coroutine function with a filesystem of its event loop."""

    async def main() -> Any:
        fs = fsspec.filesystem(
            "s3", **{**server.storage_options(), **options}, asynchronous=True, skip_instance_cache=True
        )
        session = await fs.set_session()
        try:
            return await work(fs)
        finally:
            await session.close()

    return asyncio.run(main())


def left(fs: CSXFileSystem, path: str) -> tuple[bytes, list[Any]]:
    """What the object holds, and the uploads that are unfinished."""
    return fs.cat_file(path), fs.list_multipart_uploads(path.split("/")[0])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("piece", [1000, 2 * MIB, 100 * MIB])
def test_written_and_read(server: LocalS3, fs: CSXFileSystem, path: str, size: int, piece: int) -> None:
    """What is written in pieces of any size becomes the object at close, and not before, and is read back."""
    size = min(size, 1000 * piece)

    async def work(afs: CSXFileSystem) -> None:
        file = await afs.open_async(path, "wb", block_size=BLOCK)
        for start in range(0, size, piece):
            written = DATA[start : min(start + piece, size)]
            assert await file.write(written if start else bytearray(written)) == len(written)
            assert file.tell() == start + len(written)
        assert await afs._cat_file(path) == b"old"
        await file.close()
        assert file.closed
        await file.close()
        back = await afs.open_async(path, "rb")
        read = b""
        while chunk := await back.read(3 * MIB):
            read += chunk
        assert read == DATA[:size]
        await back.close()
        async with await afs.open_async(path) as back:
            assert await back.read() == DATA[:size]

    run(server, work)
    assert left(fs, path) == (DATA[:size], [])


def test_requests(server: LocalS3, path: str) -> None:
    """A small object is written by one request, and read by one."""

    async def work(afs: CSXFileSystem) -> None:
        with recorded_requests() as operations:
            async with await afs.open_async(path, "wb") as file:
                await file.write(b"new")
            async with await afs.open_async(path, "rb") as file:
                assert await file.read() == b"new"
        assert operations == ["PutObject", "GetObject"]

    run(server, work)


def test_first_write_far_from_the_store(server: LocalS3, fs: CSXFileSystem, path: str) -> None:
    """A first write of more than the smaller parts of a far store does not stop the event loop for ever."""
    data = DATA[: 9 * MIB]

    async def work(afs: CSXFileSystem) -> None:
        with afs.transfer.slots.fixed(64):
            async with await afs.open_async(path, "wb") as file:
                await file.write(data[: 7 * MIB])
                await file.write(data[7 * MIB :])

    writing = threading.Thread(target=run, args=(server, work), daemon=True)
    writing.start()
    writing.join(60)
    assert not writing.is_alive()
    assert left(fs, path) == (data, [])


def test_many_tasks_write(server: LocalS3, fs: CSXFileSystem, path: str) -> None:
    """Writes of tasks that run side by side each stay whole."""
    pieces = [bytes([number]) * 2 * MIB for number in range(8)]

    async def work(afs: CSXFileSystem) -> None:
        async with await afs.open_async(path, "wb", block_size=BLOCK) as file:
            await asyncio.gather(*map(file.write, pieces))

    run(server, work)
    data = fs.cat_file(path)
    assert sorted(data[start : start + 2 * MIB] for start in range(0, len(data), 2 * MIB)) == pieces


@pytest.mark.parametrize("size", [3, len(DATA)])
@pytest.mark.parametrize("way", ["exception", "discard", "cancelled", "dropped"])
def test_not_published(server: LocalS3, fs: CSXFileSystem, path: str, size: int, way: str) -> None:
    """What is left by an exception, discarded, cancelled or dropped leaves the old object, and no upload behind."""

    async def write(afs: CSXFileSystem, started: asyncio.Event) -> None:
        async with await afs.open_async(path, "wb", block_size=BLOCK) as file:
            await file.write(DATA[:size])
            if way == "discard":
                await file.discard()
                return
            started.set()
            if way == "exception":
                raise ValueError("stop")
            await asyncio.sleep(60)

    async def work(afs: CSXFileSystem) -> None:
        if way == "dropped":
            file = await afs.open_async(path, "wb", block_size=BLOCK)
            await file.write(DATA[:size])
            while size > BLOCK and not await afs._list_multipart_uploads(path.split("/")[0]):
                await asyncio.sleep(0.05)  # the upload is created in the background
            with pytest.warns(DiscardedFileWarning, match="It was not closed"):
                del file
                gc.collect()
            while await afs._list_multipart_uploads(path.split("/")[0]):
                await asyncio.sleep(0.05)
            return
        started = asyncio.Event()
        task = asyncio.create_task(write(afs, started))
        if way == "cancelled":
            await started.wait()
            task.cancel()
            with pytest.warns(DiscardedFileWarning, match="CancelledError"), pytest.raises(asyncio.CancelledError):
                await task
        elif way == "exception":
            with pytest.raises(ValueError, match="stop"):
                await task
        else:
            await task

    run(server, work)
    assert left(fs, path) == (b"old", [])


@pytest.mark.filterwarnings("ignore::fsspec_csx.errors.DiscardedFileWarning")
@pytest.mark.parametrize("when", ["while it aborts", "in its block", "in a write"])
def test_abort_at_a_silent_server(
    server: LocalS3, path: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, when: str
) -> None:
    """A task that is cancelled, as at the end of the event loop, does not wait for a server that is silent."""
    monkeypatch.setattr("fsspec_csx.s3.async_file._ABORT_SECONDS", 0.1)
    silence, written, ended = threading.Event(), threading.Event(), list[bool]()

    async def write(afs: CSXFileSystem) -> None:
        async with await afs.open_async(path, "wb", block_size=BLOCK) as file:
            await file.write(DATA)
            if when == "while it aborts":
                raise ValueError("stop")
            written.set()
            while when == "in a write":
                await file.write(DATA)
                await asyncio.sleep(0)
            await asyncio.sleep(3600)

    async def work(proxy: FaultProxy, afs: CSXFileSystem) -> None:
        task = asyncio.create_task(write(afs))
        while not written.is_set() and not proxy.made("DELETE"):
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not ended

    with fault_proxy(server.endpoint_url) as proxy:
        proxy.faults = [Fault("DELETE", times=9, before=lambda: ended.append(silence.wait(60)))]
        try:
            run(server, functools.partial(work, proxy), endpoint_url=proxy.url)
        finally:
            silence.set()
    assert "could not be aborted: it took more than 0.1 s" in caplog.text


@pytest.mark.filterwarnings("ignore::fsspec_csx.errors.DiscardedFileWarning")
@pytest.mark.parametrize("way", ["exception", "cancelled", "cancelled twice", "dropped", "dropped in a call"])
def test_left_while_the_upload_is_created(server: LocalS3, fs: CSXFileSystem, path: str, way: str) -> None:
    """An upload whose creation is answered only after its file was left is aborted then."""
    answered = threading.Event()

    async def until(condition: Callable[[], object]) -> None:
        async def wait() -> None:
            while not condition():
                await asyncio.sleep(0.01)

        await asyncio.wait_for(wait(), 60)

    async def leave(file: Any) -> None:
        async with file:
            if way == "exception":
                raise ValueError("stop")
            await asyncio.sleep(600)

    async def work(proxy: FaultProxy, afs: CSXFileSystem) -> None:
        files = [await afs.open_async(path, "wb", block_size=BLOCK)]
        await files[0].write(DATA)
        await until(lambda: proxy.made("POST", "uploads"))

        async def drop() -> None:
            files.clear()
            gc.collect()
            await asyncio.sleep(0)

        if way == "dropped":
            await drop()
        elif way == "dropped in a call":  # as when Python collects it while another call runs
            await within(Scope(), drop)
        else:
            leaving = asyncio.create_task(leave(files[0]))
            await asyncio.sleep(0)
            for _ in range({"cancelled": 1, "cancelled twice": 2}.get(way, 0)):
                leaving.cancel()
                await until(lambda: files[0].closed)
            await until(lambda: files[0].closed)
            answered.set()
            await asyncio.wait([leaving])
            with pytest.raises((ValueError, asyncio.CancelledError)):
                leaving.result()
        answered.set()
        await until(lambda: any(one.heard for one in proxy.made("POST", "uploads")))
        await until(lambda: any(one.status for one in proxy.made("DELETE", "uploadId")))

    with fault_proxy(server.endpoint_url) as proxy:
        proxy.faults = [Fault("POST", query="uploads", before=lambda: answered.wait(60))]
        try:
            run(server, functools.partial(work, proxy), endpoint_url=proxy.url)
        finally:
            answered.set()
    assert left(fs, path) == (b"old", [])


def test_cancelled_while_it_writes(server: LocalS3, fs: CSXFileSystem, path: str) -> None:
    """A write that is cancelled while it waits for the server ends soon, and aborts the upload."""

    async def work(afs: CSXFileSystem) -> None:
        file = await afs.open_async(path, "wb", block_size=BLOCK)
        await file.write(DATA)
        server.pause()
        try:
            writing = asyncio.create_task(file.write(bytes(150 * MIB)))
            await asyncio.sleep(0.3)
            writing.cancel()
            asyncio.get_running_loop().call_later(0.3, server.resume)
            with pytest.raises(asyncio.CancelledError):
                await writing
        finally:
            server.resume()  # other tests use it
        assert file.closed
        with pytest.raises(ValueError, match="closed"):
            await file.write(b"more")

    run(server, work)
    assert left(fs, path) == (b"old", [])


@pytest.mark.parametrize("kind", [None, ValueError])
def test_closed_by_a_stack(server: LocalS3, fs: CSXFileSystem, path: str, kind: type[Exception] | None) -> None:
    """A file that another manager closes is discarded if that was given an exception; a plain close publishes."""

    class Owner:
        def __init__(self, file: Any) -> None:
            self.file = file

        async def __aenter__(self) -> None:
            """Do nothing."""

        async def __aexit__(self, *details: object) -> None:
            await self.file.close()

    async def work(afs: CSXFileSystem) -> None:
        file = await afs.open_async(path, "wb")
        await file.write(b"new")
        async with Owner(file):
            if kind:
                raise kind

    if kind:
        with pytest.raises(kind):
            run(server, work)
        assert left(fs, path) == (b"old", [])
    else:
        run(server, work)
        assert left(fs, path) == (b"new", [])


def test_close_in_a_handler(server: LocalS3, fs: CSXFileSystem, path: str) -> None:
    """An explicit close publishes in a handler too."""

    async def work(afs: CSXFileSystem) -> None:
        file = await afs.open_async(path, "wb")
        await file.write(b"new")
        try:
            raise LookupError
        except LookupError:
            await file.close()

    run(server, work)
    assert left(fs, path) == (b"new", [])


def test_exclusive_creation(server: LocalS3, fs: CSXFileSystem, path: str) -> None:
    """Mode x makes an object and replaces none, one that was made meanwhile neither."""

    async def work(afs: CSXFileSystem) -> None:
        async with await afs.open_async(path + "-new", "xb") as file:
            await file.write(b"new")
        with pytest.raises(ObjectExistsError):
            await afs.open_async(path, "xb")
        with pytest.raises(ObjectExistsError):
            async with await afs.open_async(path + "-late", "xb") as file:
                await file.write(b"new")
                await afs._pipe_file(path + "-late", b"old")

    run(server, work)
    assert left(fs, path) == (b"old", [])
    assert fs.cat_file(path + "-new") == b"new"
    assert fs.cat_file(path + "-late") == b"old"


def test_write_without_memory(server: LocalS3, fs: CSXFileSystem, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write for which there is no memory discards the file, so that nothing is published without its bytes."""

    def fail(size: int) -> None:
        raise OSError(errno.ENOMEM, "no memory")

    async def work(own: CSXFileSystem) -> None:
        file = await own.open_async(path, "wb")
        await file.write(b"small")
        with monkeypatch.context() as patched, pytest.raises(OSError, match="no memory"):
            patched.setattr(writer, "new_buffer", fail)
            await file.write(bytearray(2**20))
        with pytest.raises(ValueError, match="closed"):
            await file.write(b"more")
        await file.close()

    run(server, work)
    assert left(fs, path) == (b"old", [])


def test_refused_upload(server: LocalS3, fs: CSXFileSystem, path: str) -> None:
    """A part that the server refuses is an error of a later call, and the upload is aborted."""
    with fault_proxy(server.endpoint_url) as proxy:
        options = through(proxy, server).storage_options

        async def work() -> None:
            afs = fsspec.filesystem("s3", **{**options, "asynchronous": True}, skip_instance_cache=True)
            session = await afs.set_session()
            proxy.faults = [Fault("PUT", query="partNumber=1&", times=99, answer=error_answer(403, "AccessDenied"))]
            file = await afs.open_async(path, "wb", block_size=BLOCK)
            with pytest.raises(AccessDeniedError):
                await file.write(DATA)
                await file.close()
            assert file.closed
            await session.close()

        asyncio.run(work())
    assert left(fs, path) == (b"old", [])


def test_what_is_refused(server: LocalS3, path: str) -> None:
    """Text, compression, appending and buckets are refused; a missing object is one."""

    async def work(afs: CSXFileSystem) -> None:
        for options in ({"mode": "w"}, {"mode": "ab"}, {"mode": "rb", "compression": "gzip"}):
            with pytest.raises(ValueError, match="open_async opens"):
                await afs.open_async(path, **options)
        with pytest.raises(ValueError, match="names no object"):
            await afs.open_async(path.split("/")[0], "wb")
        file = await afs.open_async(path + "-missing")
        with pytest.raises(ObjectNotFoundError):
            await file.read()

    run(server, work)


def test_old_version(server: LocalS3, fs: CSXFileSystem, path: str) -> None:
    """A version in the path is read, and not written."""
    bucket = path.split("/")[0]
    fs.make_bucket_versioned(bucket)
    fs.pipe_file(path, b"first")
    fs.pipe_file(path, b"second")

    async def work(afs: CSXFileSystem) -> None:
        versions = [each["VersionId"] for each in await afs._object_version_info(path)]
        found = set()
        for version in versions:
            file = await afs.open_async(f"{path}?versionId={version}")
            found.add(await file.read())
        assert {b"first", b"second"} <= found
        with pytest.raises(ValueError, match="version"):
            await afs.open_async(f"{path}?versionId={versions[0]}", "wb")

    run(server, work, version_aware=True)


def test_cut_off(server: LocalS3, fs: CSXFileSystem, path: str) -> None:
    """A connection that ends before the object does is an error, never a short read."""
    fs.pipe_file(path, DATA)
    with fault_proxy(server.endpoint_url) as proxy:
        options = through(proxy, server).storage_options

        async def work() -> None:
            afs = fsspec.filesystem("s3", **{**options, "asynchronous": True}, skip_instance_cache=True)
            session = await afs.set_session()
            proxy.faults = [Fault("GET", cut_down=MIB, times=99)]
            file = await afs.open_async(path)
            with pytest.raises(Exception, match=r"(?i)ended|incomplete|payload|closed|reset|connection"):
                while await file.read(64 * 1024):
                    pass
            assert file.closed
            await session.close()

        asyncio.run(work())
