"""Closing a file publishes it, unless an ``__exit__`` that received an exception closes it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import io
import queue
import subprocess
import sys
import threading
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import fsspec
import pandas
import pyarrow
import pyarrow.parquet
import pytest
from forked import python

from fsspec_csx.errors import DiscardedFileWarning
from fsspec_csx.s3 import exit_calls
from fsspec_csx.s3.filesystem import CSXFileSystem
from fsspec_csx.testing import LocalS3

Open = Callable[[], Any]
"""Opens the file for writing, in binary mode."""


class StopError(Exception):
    """Leaves the blocks."""


class Owner:
    """A manager of Python code that closes the file that it owns."""

    def __init__(self, file: Any) -> None:
        self.file = file

    def __enter__(self) -> Owner:
        return self

    def __exit__(self, *details: object) -> None:
        self.file.close()


class Careless(Owner):
    """One whose ``__exit__`` deletes its arguments first."""

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        del kind, error, trace
        self.file.close()


class Renamed(Owner):
    """One whose ``__exit__`` is a function of another name."""

    def done(self, *details: object) -> None:
        """Close the file."""
        self.file.close()

    __exit__ = done


class Footer(Owner):
    """One that fails before it closes the file."""

    def __exit__(self, *details: object) -> None:
        try:
            raise OSError("no footer")
        finally:
            self.file.close()


class Stacked(Owner):
    """One that closes a stack of its own, without handing the exception on."""

    def __init__(self, file: Any) -> None:
        self.stack = contextlib.ExitStack()
        self.stack.enter_context(file)

    def __exit__(self, *details: object) -> None:
        self.stack.close()


class AsyncOwner:
    """A manager of asynchronous code."""

    def __init__(self, file: Any) -> None:
        self.file = file

    async def __aenter__(self) -> None:
        """Do nothing."""

    async def __aexit__(self, *details: object) -> None:
        await asyncio.sleep(0)
        self.file.close()


@contextlib.contextmanager
def owning(file: Any) -> Iterator[Any]:
    """A manager made of a generator function."""
    try:
        yield file
    finally:
        file.close()


@contextlib.contextmanager
def translating(file: Any) -> Iterator[Any]:
    """One that raises another exception in the place of the one that it gets."""
    try:
        yield file
    except StopError:
        raise OSError("stopped") from None
    finally:
        file.close()


@contextlib.asynccontextmanager
async def owning_async(file: Any) -> AsyncIterator[Any]:
    """The same for asynchronous code."""
    try:
        yield file
    finally:
        await asyncio.sleep(0)
        file.close()


def in_stack(file: Any) -> contextlib.ExitStack:
    """A stack that closes the file."""
    stack = contextlib.ExitStack()
    stack.enter_context(file)
    return stack


MANAGERS: dict[str, Callable[[Any], Any]] = {
    "the file": lambda file: file,
    "TextIOWrapper": io.TextIOWrapper,
    "BufferedWriter": io.BufferedWriter,
    "closing": contextlib.closing,
    "closing of text": lambda file: contextlib.closing(io.TextIOWrapper(file)),
    "ExitStack": in_stack,
    "ExitStack of text": lambda file: in_stack(io.TextIOWrapper(file)),
    "Python class": Owner,
    "arguments deleted": Careless,
    "another name": Renamed,
    "stack of its own": Stacked,
    "contextmanager": owning,
}


def write(open_file: Open) -> Any:
    """Open the file and write to it."""
    file = open_file()
    file.write(b"new")
    return file


@pytest.fixture
def open_file(fs: CSXFileSystem, path: str) -> Open:
    """Opens the object for writing."""
    return lambda: fs.open(path, "wb")


# -- blocks that an exception leaves ----------------------------------------------------------------------------------


@pytest.mark.parametrize("manager", MANAGERS)
def test_block_left_by_an_exception(fs: CSXFileSystem, path: str, open_file: Open, manager: str) -> None:
    """Whatever manager closes the file for a block that an exception leaves, the old object stays."""
    with pytest.raises(StopError), MANAGERS[manager](write(open_file)):
        raise StopError
    assert fs.cat_file(path) == b"old"


@pytest.mark.parametrize("manager", MANAGERS)
def test_block_left_in_good_order(fs: CSXFileSystem, path: str, open_file: Open, manager: str) -> None:
    """The same managers publish the file when the block ends well, in a handler of another exception too."""
    with MANAGERS[manager](write(open_file)):
        pass
    assert fs.cat_file(path) == b"new"
    fs.pipe_file(path, b"old")
    try:
        raise StopError
    except StopError:
        with MANAGERS[manager](write(open_file)):
            pass
    assert fs.cat_file(path) == b"new"


@pytest.mark.parametrize("manager", MANAGERS)
def test_reraised_within_the_block(fs: CSXFileSystem, path: str, open_file: Open, manager: str) -> None:
    """An exception that was handled when the file was opened leaves its block: the file is discarded all the same."""
    with pytest.raises(StopError):
        try:
            raise StopError
        except StopError:
            with MANAGERS[manager](write(open_file)):
                raise
    assert fs.cat_file(path) == b"old"


@pytest.mark.parametrize("manager", [Footer, translating])
def test_another_exception_of_the_manager(fs: CSXFileSystem, path: str, open_file: Open, manager: Any) -> None:
    """An ``__exit__`` that got an exception and closes the file while it raises another one discards it."""
    with pytest.raises(OSError, match=r"footer|stopped"), manager(write(open_file)):
        raise StopError
    assert fs.cat_file(path) == b"old"


def test_callback_of_a_stack_raises(fs: CSXFileSystem, path: str, open_file: Open) -> None:
    """A stack whose later callback raises gives the exception to the managers before it."""

    def fail() -> None:
        raise StopError

    with pytest.raises(StopError), contextlib.ExitStack() as stack:
        stack.enter_context(io.TextIOWrapper(write(open_file)))
        stack.callback(fail)
    assert fs.cat_file(path) == b"old"


@pytest.mark.parametrize("wrapped", [False, True])
def test_suppressed_within_a_stack(fs: CSXFileSystem, path: str, open_file: Open, wrapped: bool) -> None:
    """An exception that an inner manager of the stack suppresses does not reach the file, which is published."""
    with contextlib.ExitStack() as stack:
        file = write(open_file)
        stack.enter_context(io.TextIOWrapper(file) if wrapped else file)
        stack.enter_context(contextlib.suppress(StopError))
        raise StopError
    assert fs.cat_file(path) == b"new"


@pytest.mark.parametrize("manager", [AsyncOwner, owning_async])
@pytest.mark.parametrize("leaving", [None, StopError])
def test_asynchronous_block(
    fs: CSXFileSystem, path: str, open_file: Open, manager: Any, leaving: type[Exception] | None
) -> None:
    """Asynchronous managers do the same."""

    async def main() -> None:
        async with manager(write(open_file)):
            if leaving:
                raise leaving

    with pytest.raises(StopError) if leaving else contextlib.nullcontext():
        asyncio.run(main())
    assert fs.cat_file(path) == (b"old" if leaving else b"new")


def test_pandas_and_pyarrow(environment: LocalS3, fs: CSXFileSystem, path: str, open_file: Open) -> None:
    """pandas' handles and a ParquetWriter that an exception leaves keep the old object; else they write it."""
    with pytest.raises(UnicodeEncodeError):
        pandas.DataFrame({"a": ["x", "ä"]}).to_csv(f"s3://{path}", encoding="ascii")
    assert fs.cat_file(path) == b"old"
    table = pyarrow.table({"a": [1, 2]})
    with pytest.raises(StopError), pyarrow.parquet.ParquetWriter(path, table.schema, filesystem=fs) as writer:
        writer.write_table(table)
        raise StopError
    assert fs.cat_file(path) == b"old"
    with pyarrow.parquet.ParquetWriter(path, table.schema, filesystem=fs) as writer:
        writer.write_table(table)
    assert pandas.read_parquet(f"s3://{path}")["a"].tolist() == [1, 2]


# -- close, called on purpose -----------------------------------------------------------------------------------------


def close_in_except(open_file: Open) -> None:
    """The end of a queue is no failure."""
    items: queue.Queue[bytes] = queue.Queue()
    items.put(b"new")
    file = open_file()
    while True:
        try:
            item = items.get_nowait()
        except queue.Empty:
            file.close()
            break
        file.write(item)


def close_in_finally(open_file: Open) -> None:
    """The exception propagates after the file is closed."""
    with contextlib.suppress(StopError):
        file = write(open_file)
        try:
            raise StopError
        finally:
            file.close()


def close_of_wrapper_in_except(open_file: Open) -> None:
    """Text that is closed in a handler."""
    text = io.TextIOWrapper(open_file())
    text.write("new")
    try:
        raise StopError
    except StopError:
        text.close()


def close_in_nested_handlers(open_file: Open) -> None:
    """A function called in a handler closes it in another one."""

    def end(file: Any) -> None:
        try:
            raise KeyError
        except KeyError:
            file.close()

    file = write(open_file)
    try:
        raise StopError
    except StopError:
        end(file)


def close_in_generator(open_file: Open) -> None:
    """A generator that is closed runs its ``finally``."""

    def items(file: Any) -> Iterator[int]:
        try:
            yield 1
        finally:
            file.close()

    running = items(write(open_file))
    next(running)
    running.close()


def close_in_thread(open_file: Open) -> None:
    """A thread closes it while the block that waits for the thread is being left by an exception."""

    class Joined(Owner):
        def __exit__(self, *details: object) -> None:
            thread = threading.Thread(target=close_in_nested_handlers, args=(open_file,))
            thread.start()
            thread.join()

    with contextlib.suppress(StopError), Joined(None):
        raise StopError


def close_in_cancelled_task(open_file: Open) -> None:
    """A task that is cancelled runs its ``finally``."""

    async def work() -> None:
        file = write(open_file)
        try:
            await asyncio.sleep(60)
        finally:
            file.close()

    async def main() -> None:
        task = asyncio.create_task(work())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(main())


def whole_file_in_exit(open_file: Open) -> None:
    """A manager writes a report of the exception that it got."""

    class Report(Owner):
        def __exit__(self, *details: object) -> None:
            close_in_nested_handlers(open_file)

    with contextlib.suppress(StopError), Report(None):
        raise StopError


def text_in_exit(open_file: Open) -> None:
    """The same, in a ``with`` block of text."""

    class Report(Owner):
        def __exit__(self, *details: object) -> None:
            with io.TextIOWrapper(open_file()) as text:
                text.write("new")

    with contextlib.suppress(StopError), Report(None):
        raise StopError


def opened_in_handler(open_file: Open) -> None:
    """Opened in a handler, closed after it."""
    try:
        raise StopError
    except StopError:
        file = write(open_file)
    file.close()


def exit_without_exception(open_file: Open) -> None:
    """A manager that is ended by hand in a handler, as without an exception."""
    owner = Owner(write(open_file))
    try:
        raise StopError
    except StopError:
        owner.__exit__(None, None, None)


CLOSES = [
    close_in_except,
    close_in_finally,
    close_of_wrapper_in_except,
    close_in_nested_handlers,
    close_in_generator,
    close_in_thread,
    close_in_cancelled_task,
    whole_file_in_exit,
    text_in_exit,
    opened_in_handler,
    exit_without_exception,
]


@pytest.mark.parametrize("close", CLOSES)
def test_explicit_close_publishes(fs: CSXFileSystem, path: str, open_file: Open, close: Callable[[Open], None]) -> None:
    """``close()`` publishes as with every other file, whatever is being handled meanwhile."""
    close(open_file)
    assert fs.cat_file(path) == b"new"


def test_opened_in_exit_and_left_by_another_exception(fs: CSXFileSystem, path: str, open_file: Open) -> None:
    """A file that a manager opens while it cleans up is discarded when its own block is left by an exception."""

    class Report(Owner):
        def __exit__(self, *details: object) -> None:
            with contextlib.suppress(KeyError), io.TextIOWrapper(open_file()) as text:
                text.write("half")
                raise KeyError

    with pytest.raises(StopError), Report(None):
        raise StopError
    assert fs.cat_file(path) == b"old"


def test_python_without_the_instruction(
    fs: CSXFileSystem, path: str, open_file: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where Python's instructions are others, a file closed while an exception is handled is discarded."""
    monkeypatch.setattr(exit_calls, "_WITH_EXCEPT_START", None)
    with pytest.raises(StopError), io.TextIOWrapper(write(open_file)):
        raise StopError
    assert fs.cat_file(path) == b"old"
    with io.TextIOWrapper(write(open_file)):
        pass
    assert fs.cat_file(path) == b"new"


# -- where no exception says it ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("manager", MANAGERS)
def test_abandoned_generator(fs: CSXFileSystem, path: str, open_file: Open, manager: str) -> None:
    """A generator that is closed within its ``with`` block discards the file, and warns."""

    def items() -> Iterator[int]:
        with MANAGERS[manager](write(open_file)):
            yield 1

    running = items()
    next(running)
    with pytest.warns(DiscardedFileWarning, match="object was not written: GeneratorExit"):
        running.close()
    assert fs.cat_file(path) == b"old"


@pytest.mark.parametrize("manager", ["the file", "TextIOWrapper", "contextmanager"])
def test_cancelled_task(fs: CSXFileSystem, path: str, open_file: Open, manager: str) -> None:
    """A task that is cancelled within its ``with`` block discards the file, and warns."""

    async def work() -> None:
        with MANAGERS[manager](write(open_file)):
            await asyncio.sleep(60)

    async def main() -> None:
        task = asyncio.create_task(work())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    with pytest.warns(DiscardedFileWarning, match="CancelledError"):
        asyncio.run(main())
    assert fs.cat_file(path) == b"old"


def test_transaction_left_by_sys_exit(fs: CSXFileSystem, path: str, open_file: Open) -> None:
    """A transaction that ``sys.exit`` leaves discards its files, and warns."""
    with pytest.warns(DiscardedFileWarning, match="SystemExit"), pytest.raises(SystemExit), fs.transaction:
        write(open_file).close()
        sys.exit(0)
    assert fs.cat_file(path) == b"old"


@pytest.mark.parametrize("wrap", [lambda file: file, io.TextIOWrapper, io.BufferedWriter])
def test_dropped(fs: CSXFileSystem, path: str, open_file: Open, wrap: Callable[[Any], Any]) -> None:
    """A file that is never closed is discarded with a warning, below a wrapper too."""
    file = wrap(write(open_file))
    with pytest.warns(DiscardedFileWarning, match="It was not closed"):
        del file
        gc.collect()
    assert fs.cat_file(path) == b"old"


@pytest.mark.parametrize(
    "wrap", [io.BufferedWriter, io.TextIOWrapper, lambda file: io.TextIOWrapper(io.BufferedWriter(file))]
)
# Python 3.13 reports that a dropped BufferedWriter, which its text wrapper has closed, is closed a second time.
@pytest.mark.filterwarnings("ignore:.*BufferedWriter:pytest.PytestUnraisableExceptionWarning")
def test_wrapper_dropped_before_the_file(
    fs: CSXFileSystem, path: str, open_file: Open, wrap: Callable[[Any], Any]
) -> None:
    """A function that wraps the file of its caller's block and forgets the wrapper loses nothing, and ends nothing."""

    def add(file: Any, text: str) -> None:
        wrapper = wrap(file)
        wrapper.write(text if isinstance(wrapper, io.TextIOWrapper) else text.encode())
        del wrapper
        gc.collect()

    with open_file() as file:
        add(file, "1")
        file.write(b"2")
        add(file, "3")
        add(file, "4")
        assert file.tell() == 4  # a zip file written next, or a byte order mark, depends on it
    assert fs.cat_file(path) == b"1234"
    with pytest.raises(KeyError), open_file() as file:
        add(file, "5")
        raise KeyError
    assert fs.cat_file(path) == b"1234"
    with fs.transaction, open_file() as file:
        add(file, "6")
    assert fs.cat_file(path) == b"6"
    with open_file() as file:
        for text in "78":
            io.TextIOWrapper(file, encoding="utf-16").write(text)
            gc.collect()
    assert fs.cat_file(path) == "78".encode("utf-16")  # with one byte order mark


@pytest.mark.parametrize("way", ["block", "close"])
def test_dropped_wrapper_does_not_close(fs: CSXFileSystem, path: str, open_file: Open, way: str) -> None:
    """A wrapper may be made so that its drop leaves the file below alone: the file's own close publishes."""

    class Kept:
        def __init__(self, file: Any) -> None:
            self.file = file

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

        def close(self) -> None:
            """Leave the file open."""

    file = open_file()
    text = io.TextIOWrapper(Kept(file))  # type: ignore[arg-type]
    text.write("1")
    del text
    gc.collect()
    file.write(b"2")
    assert file._late is None  # what follows is not kept in memory
    with file if way == "block" else contextlib.closing(file):
        file.write(b"3")
    assert fs.cat_file(path) == b"123"


def test_nothing_to_warn_of(fs: CSXFileSystem, path: str) -> None:
    """A file that was closed, discarded, or could not be opened is dropped without a warning."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fs.open(path, "wb").close()
        fs.open(path, "wb").discard()
        with pytest.raises(FileExistsError):
            fs.open(path, "xb")
        with pytest.raises(ValueError, match="non key-like"):
            fs.open(path.split("/")[0], "wb")
        gc.collect()
    assert not [each for each in caught if issubclass(each.category, DiscardedFileWarning)]


EXITS = """
import sys, warnings, fsspec
if {errors}:
    warnings.simplefilter("error")
with fsspec.open("s3://{path}", "w") as file:
    file.write("half")
    sys.exit(0)
"""
OPEN_AT_THE_END = """
import warnings, fsspec
if {errors}:
    warnings.simplefilter("error")
files = [fsspec.open("s3://{path}" + name, "w").open() for name in ("", "2")]
"""


@pytest.mark.parametrize("code", [EXITS, OPEN_AT_THE_END])
def test_end_of_the_process(environment: LocalS3, fs: CSXFileSystem, path: str, code: str) -> None:
    """A process that ends in the midst of a file, or leaves one open, warns on its standard error."""
    command = [*python(), "-c", code.format(path=path, errors=False)]
    ended = subprocess.run(command, timeout=100, check=True, capture_output=True, text=True)
    assert ended.stderr.count("DiscardedFileWarning") == (1 if code == EXITS else 2)
    assert fs.cat_file(path) == b"old"
    assert not fs.exists(path + "2")


FORKED = """
import os, sys, fsspec
file = fsspec.open(sys.argv[1], "wb").open()
child = os.fork()
if not child:
    try:
        file.write(b"of the child")
    except RuntimeError as error:
        assert "Open another" in str(error), error
        os._exit(3)
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
file.write(b"new")
file.close()
"""


def test_forked_child_cannot_write(environment: LocalS3, fs: CSXFileSystem, path: str) -> None:
    """A child that writes to its copy of the parent's file, which would never be published, gets an error."""
    subprocess.run([*python(), "-c", FORKED, f"s3://{path}"], check=True, timeout=100)
    assert fs.cat_file(path) == b"new"


def test_openfile_of_fsspec(environment: LocalS3, fs: CSXFileSystem, path: str) -> None:
    """fsspec's own OpenFile does the same, in every mode and compression; so do many files at a time."""
    for mode, options in {"wb": {}, "w": {}, "wt": {"compression": "gzip"}}.items():
        with pytest.raises(StopError), fsspec.open(f"s3://{path}", mode, **options) as file:
            file.write(b"half" if mode == "wb" else "half")
            raise StopError
    with pytest.raises(StopError), fsspec.open_files([f"s3://{path}", f"s3://{path}2"], "wb") as files:
        for each in files:
            each.write(b"half")
        raise StopError
    assert fs.cat_file(path) == b"old"
    assert not fs.exists(path + "2")


@pytest.mark.parametrize("compression", ["gzip", "bz2", "xz"])
@pytest.mark.parametrize("mode", ["wb", "w"])
def test_compressor_of_openfile(
    environment: LocalS3, fs: CSXFileSystem, path: str, compression: str, mode: str
) -> None:
    """The compressor that ``OpenFile.open`` gives publishes the object at its own close, and drops it unclosed."""
    data: Any = b"new" if mode == "wb" else "new"
    file = fsspec.open(f"s3://{path}", mode, compression=compression).open()
    file.write(data)
    file.close()
    with fsspec.open(f"s3://{path}", mode.replace("w", "r"), compression=compression) as back:
        assert back.read() == data
    with pytest.raises(StopError), fsspec.open(f"s3://{path}", mode, compression=compression) as file:
        file.write(data * 2)
        raise StopError
    file = fsspec.open(f"s3://{path}", mode, compression=compression).open()
    with pytest.warns(DiscardedFileWarning):
        del file
        gc.collect()
    with fsspec.open(f"s3://{path}", mode.replace("w", "r"), compression=compression) as back:
        assert back.read() == data
