"""A file is published completely or not at all: the old object stays, and no upload is left behind."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import gzip
import itertools
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Any

import fsspec
import pytest
from commands import running
from ctrl_c import ctrl_c
from forked import python
from proxy import Fault, fault_proxy
from stores import uploads
from thinning import thinned

from fsspec_csx.errors import DiscardedFileWarning
from fsspec_csx.s3 import multipart
from fsspec_csx.s3.filesystem import CSXFileSystem
from fsspec_csx.s3.transport.event_loop import Work
from fsspec_csx.testing import LocalS3

pytestmark = pytest.mark.adaptive

MIB = 2**20
BLOCK = 5 * MIB
SIZES = [3, 2 * BLOCK + 1]  # one request, and a multipart upload that is under way when the block is left
LEAVING = [ValueError, KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError, StopIteration]
SILENT = (SystemExit, GeneratorExit)  # Python shows them to nobody


Opener = Callable[[CSXFileSystem, str, LocalS3], object]
OPENERS: dict[str, Opener] = {
    "fsspec.open": lambda fs, path, server: fsspec.open(
        f"s3://{path}", "wb", default_block_size=BLOCK, **fs.storage_options
    ),
    "fs.open": lambda fs, path, server: fs.open(path, "wb", block_size=BLOCK),
    "text": lambda fs, path, server: Encoded(fs.open(path, "wt", block_size=BLOCK)),
    "gzip": lambda fs, path, server: fs.open(path, "wb", block_size=BLOCK, compression="gzip"),
}


class Encoded:
    """A text file that takes bytes, so that all openers are written to alike."""

    def __init__(self, file: object) -> None:
        self.file = file

    def __enter__(self) -> Encoded:
        self.file.__enter__()  # type: ignore[attr-defined]
        return self

    def __exit__(self, *args: object) -> None:
        self.file.__exit__(*args)  # type: ignore[attr-defined]

    def write(self, data: bytes) -> None:
        self.file.write(data.decode())  # type: ignore[attr-defined]


@pytest.mark.parametrize("opener", OPENERS)
def test_closed_in_good_order(fs: CSXFileSystem, path: str, server: LocalS3, opener: str) -> None:
    """A block left without an exception replaces the object."""
    with OPENERS[opener](fs, path, server) as file:  # type: ignore[attr-defined]
        file.write(b"n" * SIZES[1])
    data = fs.cat_file(path)
    assert (gzip.decompress(data) if opener == "gzip" else data) == b"n" * SIZES[1]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("leaving", thinned(LEAVING, KeyboardInterrupt))
@pytest.mark.parametrize("opener", OPENERS)
def test_left_by_an_exception(
    fs: CSXFileSystem, path: str, server: LocalS3, opener: str, leaving: type[BaseException], size: int
) -> None:
    """A block left by any exception keeps the old object, leaves no upload, and lets the exception through."""
    warned = pytest.warns(DiscardedFileWarning) if leaving in SILENT else contextlib.nullcontext()
    with warned, pytest.raises(leaving), OPENERS[opener](fs, path, server) as file:  # type: ignore[attr-defined]
        file.write(b"n" * size)
        raise leaving
    assert fs.cat_file(path) == b"old"
    assert uploads(fs, path.split("/")[0]) == 0


def test_exception_of_an_outer_block_is_no_reason(fs: CSXFileSystem, path: str) -> None:
    """A file opened and closed while an exception is handled is published."""
    try:
        raise ValueError
    except ValueError:
        with fs.open(path, "wt") as file:
            file.write("new")
    assert fs.cat_file(path) == b"new"


def test_opened_in_a_handler_closed_after_it(fs: CSXFileSystem, path: str) -> None:
    """A file opened while an exception was handled and closed after it is published."""
    try:
        raise ValueError
    except ValueError:
        file = fs.open(path, "wb")
    file.write(b"new")
    file.close()
    assert fs.cat_file(path) == b"new"


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("opener", ["fs.open", "text", "gzip"])
def test_dropped_unclosed(fs: CSXFileSystem, path: str, server: LocalS3, opener: str, size: int) -> None:
    """A file dropped without close keeps the old object, leaves no upload, and is warned of."""
    file = OPENERS[opener](fs, path, server)
    file.write(b"n" * size)  # type: ignore[attr-defined]
    with pytest.warns(DiscardedFileWarning, match="It was not closed"):
        del file
        gc.collect()
    assert uploads(fs, path.split("/")[0]) == 0
    assert fs.cat_file(path) == b"old"


@pytest.mark.parametrize("mode", ["ab", "xb"])
def test_dropped_in_other_modes(fs: CSXFileSystem, path: str, mode: str) -> None:
    """So does a file dropped in the modes that add to an object or create one."""
    target = path if mode == "ab" else path + "-new"
    file = fs.open(target, mode)
    file.write(b"n")
    with pytest.warns(DiscardedFileWarning):
        del file
        gc.collect()
    assert fs.find(path.split("/")[0]) == [path]
    assert fs.cat_file(path) == b"old"


def test_dropped_at_exit(environment: LocalS3, fs: CSXFileSystem, path: str) -> None:
    """A process that ends with a file open keeps the old object, leaves no upload, and is warned of it."""
    code = f"""
import fsspec
file = fsspec.open("s3://{path}", "wb", default_block_size={BLOCK}).open()
file.write(b"n" * {SIZES[1]})
"""
    ended = subprocess.run([*python(), "-c", code], check=True, timeout=100, capture_output=True, text=True)
    assert "DiscardedFileWarning: s3://" in ended.stderr
    assert uploads(fs, path.split("/")[0]) == 0
    assert fs.cat_file(path) == b"old"


@pytest.mark.slow
@pytest.mark.parametrize("moment", thinned([0.0, 0.05, 0.15, 0.4], 0.15))
def test_ctrl_c_while_uploading(environment: LocalS3, fs: CSXFileSystem, path: str, moment: float) -> None:
    """Ctrl-C that strikes while parts are on their way keeps the old object and leaves no upload."""
    code = f"""
import fsspec
with fsspec.open("s3://{path}", "wb", default_block_size={BLOCK}) as file:
    print("writing", flush=True)
    while True:
        file.write(bytes({BLOCK}))
"""
    command = [*python(), "-c", code]
    with running(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "writing\n"
        time.sleep(moment)
        writer.send_signal(signal.SIGINT)
        _, errors = writer.communicate(timeout=100)
    assert "KeyboardInterrupt" in errors
    assert uploads(fs, path.split("/")[0]) == 0
    assert fs.cat_file(path) == b"old"


WRITES = {
    "pipe_file": f"fs.pipe_file(path, bytes({3 * BLOCK}), chunksize={BLOCK})",
    "file": f"with fs.open(path, 'wb', block_size={BLOCK}) as file: file.write(bytes({3 * BLOCK}))",
}


@pytest.mark.slow
@pytest.mark.parametrize("write", WRITES)
def test_second_ctrl_c(environment: LocalS3, path: str, write: str) -> None:
    """While the server does not say whether it created an upload, a message says that a second Ctrl-C ends the wait."""
    asked = threading.Event()
    code = f"import fsspec\nfs, path = fsspec.filesystem('s3'), {path!r}\nfs.exists(path)\n{WRITES[write]}"
    with fault_proxy(environment.endpoint_url) as proxy:
        proxy.faults = [Fault("POST", query="uploads", before=asked.set, delay=300)]
        variables = {**os.environ, "AWS_ENDPOINT_URL_S3": proxy.url}
        with running([*python(), "-c", code], stderr=subprocess.PIPE, text=True, env=variables) as writer:
            assert asked.wait(100)
            writer.send_signal(signal.SIGINT)
            assert writer.stderr is not None
            assert "Ctrl-C ends the wait" in writer.stderr.readline()
            writer.send_signal(signal.SIGINT)
            _, errors = writer.communicate(timeout=100)
    assert "KeyboardInterrupt" in errors
    assert "Ctrl-C ends the wait" not in errors


@pytest.mark.parametrize("number", range(2))
def test_ctrl_c_as_work_begins(fs: CSXFileSystem, path: str, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Ctrl-C just after a request was handed to the event loop leaves no upload, and no part on its way."""
    real, count = Work.schedule, itertools.count()

    def schedule(work: Work) -> None:
        real(work)
        if next(count) == number:  # the creation, and the sending of the parts
            raise KeyboardInterrupt

    file = fs.open(path, "wb", block_size=BLOCK)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt), file:
        patched.setattr(Work, "schedule", schedule)
        for _ in range(4):
            file.write(b"n" * BLOCK)
    assert uploads(fs, path.split("/")[0]) == 0
    assert fs.cat_file(path) == b"old"


def test_ctrl_c_while_the_upload_is_created(fs: CSXFileSystem, server: LocalS3, path: str) -> None:
    """Ctrl-C that strikes while the server is creating the upload aborts it once it is there."""
    file = fs.open(path, "wb", block_size=BLOCK)
    file.write(b"n" * (BLOCK - 1))
    server.pause()
    with pytest.raises(KeyboardInterrupt), ctrl_c(0.3, server.resume):
        file.write(b"nn")
        file.close()
    assert file.closed
    assert uploads(fs, path.split("/")[0]) == 0
    assert fs.cat_file(path) == b"old"


def test_end_of_a_loop_while_the_upload_is_created(fs: CSXFileSystem, server: LocalS3, path: str) -> None:
    """A loop that ends cancels all of its tasks, and yet the upload is aborted once it is there."""

    own = CSXFileSystem(asynchronous=True, skip_instance_cache=True, **server.storage_options())

    async def write() -> None:
        client = await own.set_session()
        try:
            await own._pipe_file(path, b"n" * (4 * BLOCK), chunksize=BLOCK)
        finally:
            await client.close()

    async def leave() -> None:
        server.pause()
        threading.Timer(0.5, server.resume).start()
        await asyncio.wait([asyncio.create_task(write())], timeout=0.2)

    asyncio.run(leave())
    assert uploads(fs, path.split("/")[0]) == 0
    assert fs.cat_file(path) == b"old"


def test_end_of_a_loop_while_the_server_does_not_answer(
    server: LocalS3, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loop that ends does not wait for all attempts to create an upload, which take more than a minute."""
    monkeypatch.setattr(multipart, "_ANSWER_SECONDS", 0.2)
    own = CSXFileSystem(asynchronous=True, skip_instance_cache=True, **server.storage_options())
    errors = []

    async def write(client: Any) -> None:
        try:
            await own._pipe_file(path, b"n" * (4 * BLOCK), chunksize=BLOCK)
        except asyncio.CancelledError as error:
            errors.append(error)
        finally:
            await client.close()

    async def leave() -> None:
        client = await own.set_session()
        server.pause()
        await asyncio.wait([asyncio.create_task(write(client))], timeout=0.2)

    began = time.monotonic()
    try:
        asyncio.run(leave())
    finally:
        server.resume()
    assert time.monotonic() - began < 40
    assert len(errors) == 1


@pytest.mark.parametrize("size", SIZES)
def test_transaction_rolled_back(fs: CSXFileSystem, path: str, size: int) -> None:
    """A transaction left by an exception publishes none of its files."""
    with pytest.raises(ValueError, match="stop"), fs.transaction:
        with fs.open(path, "wb", block_size=BLOCK) as file:
            file.write(b"n" * size)
        raise ValueError("stop")
    assert fs.cat_file(path) == b"old"
    assert uploads(fs, path.split("/")[0]) == 0


@pytest.mark.parametrize("size", [0, *SIZES])
def test_transaction_committed(fs: CSXFileSystem, path: str, size: int) -> None:
    """A transaction publishes its files at its end, not before, less those that were left by an exception."""
    with fs.transaction:
        with fs.open(path, "wb", block_size=BLOCK) as file:
            file.write(b"n" * size)
        with pytest.raises(ValueError, match="stop"), fs.open(path + "2", "wb") as other:
            other.write(b"half")
            raise ValueError("stop")
        assert fs.cat_file(path) == b"old"
    assert fs.cat_file(path) == b"n" * size
    assert not fs.exists(path + "2")
    assert uploads(fs, path.split("/")[0]) == 0


@pytest.mark.parametrize("write", ["write", "write_borrowed", "write_summed"])
def test_memory_after_a_transaction(fs: CSXFileSystem, path: str, write: str) -> None:
    """A file of a transaction holds what was written, whatever the caller does with its memory after closing it."""
    for size in SIZES:
        memory = bytearray(b"n" * size)
        with fs.transaction:
            with fs.open(path, "wb", block_size=BLOCK) as file:
                file.write(b"small")
                getattr(file, write)(memory)
            memory[:] = b"x" * size
        assert fs.cat_file(path) == b"small" + b"n" * size


def test_failed_upload_is_aborted(fs: CSXFileSystem, server: LocalS3, path: str) -> None:
    """A file whose upload fails raises, keeps the old object and leaves no upload."""
    file = fs.open(path, "wb", block_size=BLOCK)
    file.write(b"n" * SIZES[1])
    file._writer._creating.result()
    fs.abort_mpu(*path.split("/", 1), file._writer.upload.id)
    with pytest.raises(FileNotFoundError):
        file.close()
    assert file.closed
    assert fs.cat_file(path) == b"old"
    assert uploads(fs, path.split("/")[0]) == 0
    file.close()
    assert fs.cat_file(path) == b"old"


@pytest.mark.parametrize("size", [0, *SIZES])
def test_exclusive_creation(fs: CSXFileSystem, path: str, size: int) -> None:
    """Mode x creates an object, and never replaces one."""
    with fs.open(path + "-new", "xb", block_size=BLOCK) as file:
        file.write(b"n" * size)
    assert fs.cat_file(path + "-new") == b"n" * size
    with pytest.raises(FileExistsError):
        fs.open(path, "xb")
    with pytest.raises(FileExistsError), fs.open(path + "-late", "xb", block_size=BLOCK) as file:
        file.write(b"n" * size)
        fs.pipe_file(path + "-late", b"old")
    assert fs.cat_file(path + "-late") == b"old"
    assert fs.cat_file(path) == b"old"
    assert uploads(fs, path.split("/")[0]) == 0


@pytest.mark.parametrize("compression", ["gzip", "bz2", "xz", "zip"])
def test_compressed_file_is_published_by_its_close(fs: CSXFileSystem, path: str, compression: str) -> None:
    """Every compressor's close publishes the object; no garbage collection is needed for it."""
    gc.disable()
    try:
        file = fs.open(path, "wb", compression=compression)
        file.write(b"new")
        file.close()
        with fs.open(path, "rb", compression=compression) as back:
            assert back.read() == b"new"
    finally:
        gc.enable()
