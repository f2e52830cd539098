"""Once a call has returned or raised, none of its work continues.

No thread writes to the caller's memory or files, and no request is made any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest
from conftest import recorded_requests
from ctrl_c import ctrl_c, interrupted
from fsspec.callbacks import Callback
from proxy import Fault, FaultProxy, fault_proxy, through

from fsspec_csx.checkpoint import save_queue
from fsspec_csx.checkpoint.async_save import async_save
from fsspec_csx.checkpoint.save_future import SaveFuture
from fsspec_csx.s3.filesystem import CSXFileSystem
from fsspec_csx.s3.transport.event_loop import Work
from fsspec_csx.testing import LocalS3

BUCKET = "interrupts"
LARGE = 10 * 2**20
SMALL = 1000
COUNT = 24
NAMES = [f"{BUCKET}/many/{number:02}" for number in range(COUNT)]
# How long something that went on would need to be seen, in seconds.
SEEN = 0.3


@pytest.fixture(scope="module", autouse=True)
def objects(server: LocalS3) -> None:
    """A large object, and many small ones."""
    fs = fsspec.filesystem("s3", **server.storage_options())
    fs.pipe_file(f"{BUCKET}/large", b"x" * LARGE)
    fs.pipe(dict.fromkeys(NAMES, b"x" * SMALL))


@pytest.fixture(scope="module")
def proxy(server: LocalS3) -> Iterator[FaultProxy]:
    """A proxy before the server."""
    with fault_proxy(server.endpoint_url) as running:
        yield running


@pytest.fixture
def far(server: LocalS3, proxy: FaultProxy) -> CSXFileSystem:
    """A filesystem behind the proxy, that has been used."""
    proxy.faults, proxy.requests = [], []
    fs = through(proxy, server, use_listings_cache=False)
    fs.cat_file(NAMES[0])
    proxy.faults = [Fault(times=10_000, delay=0.05)]
    return fs


def wanted(view: memoryview) -> list[tuple[str, int, memoryview, int]]:
    """What is read of many small objects, and where it goes."""
    return [(name, 0, view[number * SMALL :][:SMALL], SMALL) for number, name in enumerate(NAMES)]


class Call:
    """A call that writes to memory or files of the caller, or changes objects.

    Args:
        fs: the filesystem.
        local: a folder for files.
    """

    def __init__(self, fs: CSXFileSystem, local: Path) -> None:
        self.fs = fs
        self.local = local
        self.memory = bytearray(b"-" * LARGE)
        self.target = f"{BUCKET}/{uuid.uuid4().hex[:12]}"
        local.mkdir(exist_ok=True)
        (local / "source").mkdir(exist_ok=True)
        for number in range(COUNT):
            (local / "source" / str(number)).write_bytes(b"y" * SMALL)

    def readinto(self) -> None:
        """One large read."""
        with fsspec.core.OpenFile(self.fs, f"{BUCKET}/large") as file:
            file.readinto(self.memory)

    def readinto_many(self) -> None:
        """Many spans of an object."""
        view = memoryview(self.memory)
        step = LARGE // 50
        with self.fs.open(f"{BUCKET}/large", size=LARGE) as file:
            file.readinto_many([(start, view[start : start + 1000]) for start in range(0, LARGE, step)])

    def readinto_objects(self) -> None:
        """Many small objects."""
        view = memoryview(self.memory)
        self.fs.readinto_objects(wanted(view))

    def cat(self) -> None:
        """Many objects, as bytes."""
        self.fs.cat(NAMES)

    def cat_ranges(self) -> None:
        """Ranges of many objects."""
        self.fs.cat_ranges(NAMES, 0, 10)

    def get_file(self) -> None:
        """One large object, as a file."""
        self.fs.get_file(f"{BUCKET}/large", str(self.local / "file"))

    def get(self) -> None:
        """Many objects, as files."""
        self.fs.get(NAMES, [str(self.local / str(number)) for number in range(COUNT)])

    def put(self) -> None:
        """Many files, as objects."""
        self.fs.put(str(self.local / "source"), self.target, recursive=True)

    def pipe(self) -> None:
        """Many objects."""
        self.fs.pipe({f"{self.target}/{number}": b"z" for number in range(COUNT)})

    def pipe_file(self) -> None:
        """A large object."""
        self.fs.pipe_file(f"{self.target}/large", bytes(self.memory), chunksize=5 * 2**20)

    def copy(self) -> None:
        """Copies by the server."""
        self.fs.copy(f"{BUCKET}/many", self.target, recursive=True)

    def find(self) -> None:
        """A listing."""
        self.fs.find(f"{BUCKET}/many")

    def walk(self) -> None:
        """Listings, one after the other."""
        list(self.fs.walk(BUCKET))

    def touched(self) -> tuple[object, ...]:
        """All that the call may have changed on this machine."""
        files = sorted(path for path in self.local.rglob("*") if path.is_file())
        return bytes(self.memory), [(str(path), path.read_bytes()) for path in files]


CALLS = sorted(name for name, value in vars(Call).items() if callable(value) and name not in ("__init__", "touched"))
# Those that take ``timeout=``.
TIMED = ("readinto_objects", "cat", "cat_ranges", "get_file", "get", "put", "pipe", "copy")


def check_nothing_goes_on(call: Call) -> None:
    """Neither a request nor a byte comes after control has returned."""
    call.memory[:] = b"+" * LARGE
    before = call.touched()
    with recorded_requests() as sent:
        time.sleep(SEEN)
    assert call.touched() == before
    assert sent == []


@contextlib.contextmanager
def busy(fs: CSXFileSystem) -> Iterator[None]:
    """The event loop is busy with something else until the block ends."""
    over, held = threading.Event(), list[bool]()
    fs.loop.call_soon_threadsafe(lambda: held.append(over.wait(60)))
    try:
        yield
    finally:
        over.set()
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0), fs.loop).result(60)
    assert held == [True], "the block waited for the event loop"


@pytest.mark.parametrize("name", CALLS)
def test_loop_that_is_busy(far: CSXFileSystem, proxy: FaultProxy, tmp_path: Path, name: str) -> None:
    """Ctrl-C before the event loop has come to a call ends it at once, and it never begins."""
    call = Call(far, tmp_path / "local")
    proxy.requests = []
    with busy(far):
        interrupted(getattr(call, name), 0.1)
    check_nothing_goes_on(call)
    assert proxy.requests == []


@pytest.mark.parametrize("name", TIMED)
def test_timeout_with_a_loop_that_is_busy(
    far: CSXFileSystem, proxy: FaultProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """So does ``timeout=``."""
    call = Call(far, tmp_path / "local")
    proxy.requests = []
    monkeypatch.setattr(far, name, functools.partial(getattr(far, name), timeout=0.1))
    with busy(far), pytest.raises(fsspec.FSTimeoutError):
        getattr(call, name)()
    check_nothing_goes_on(call)
    assert proxy.requests == []


@pytest.mark.parametrize("after", [0.07, *(pytest.param(after, marks=pytest.mark.slow) for after in (0.01, 0.16))])
@pytest.mark.parametrize("name", CALLS)
def test_ctrl_c_at_any_time(far: CSXFileSystem, tmp_path: Path, name: str, after: float) -> None:
    """Wherever a call is when Ctrl-C comes, none of its work continues."""
    call = Call(far, tmp_path / "local")
    interrupted(getattr(call, name), after)
    check_nothing_goes_on(call)
    assert [name for name in os.listdir(tmp_path / "local") if name.endswith(".tmp")] == []


WAITS: dict[str, Callable[[CSXFileSystem, SaveFuture], object]] = {
    "cat_file": lambda fs, saving: fs.cat_file(f"{BUCKET}/large"),
    "readinto": lambda fs, saving: fs.open(f"{BUCKET}/large", size=LARGE).readinto(bytearray(LARGE)),
    "read": lambda fs, saving: fs.open(f"{BUCKET}/large", size=LARGE).read(),
    "saving": lambda fs, saving: saving.result(),
    "exit": lambda fs, saving: save_queue._saves._close(),
}


@pytest.mark.parametrize("name", WAITS)
def test_ctrl_c_that_another_thread_receives(server: LocalS3, far: CSXFileSystem, proxy: FaultProxy, name: str) -> None:
    """Ctrl-C ends a wait, though the system may give the signal to a thread that does not wait."""
    over = threading.Event()
    proxy.faults = [Fault(times=10_000, before=lambda: over.wait(60))]
    options = {**server.storage_options(), "endpoint_url": proxy.url}
    saving = async_save([1], f"s3://{BUCKET}/saved.pt", storage_options=options)
    began = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt), ctrl_c(0.3, elsewhere=True):
            WAITS[name](far, saving)
        assert time.monotonic() - began < 30
    finally:
        over.set()
        saving.result(60)


@pytest.mark.parametrize("twice", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.parametrize("after", [pytest.param(0.0, marks=pytest.mark.slow), 0.1])
@pytest.mark.parametrize("name", ["_readinto_objects", "_cat", "_get", "_put", "_pipe", "_copy", "_cat_file"])
def test_cancelled_coroutine(
    server: LocalS3, proxy: FaultProxy, tmp_path: Path, name: str, after: float, twice: bool
) -> None:
    """A coroutine that is cancelled, once or several times, has ended when that is known."""
    proxy.faults = []

    async def work() -> Call:
        options = {**server.storage_options(), "endpoint_url": proxy.url}
        fs = fsspec.filesystem("s3", **options, asynchronous=True, skip_instance_cache=True)
        session = await fs.set_session()
        await fs._cat_file(NAMES[0])
        call = Call(fs, tmp_path / "local")
        arguments = {
            "_readinto_objects": (wanted(memoryview(call.memory)),),
            "_cat": (NAMES,),
            "_get": (NAMES, [str(call.local / str(number)) for number in range(COUNT)]),
            "_put": (str(call.local / "source"), call.target),
            "_pipe": ({f"{call.target}/{number}": b"z" for number in range(COUNT)},),
            "_copy": (f"{BUCKET}/many", call.target),
            "_cat_file": (f"{BUCKET}/large",),
        }[name]
        proxy.faults = [Fault(times=10_000, delay=0.05)]
        options = {"recursive": True} if name in ("_put", "_copy") else {}
        task = asyncio.ensure_future(getattr(fs, name)(*arguments, **options))
        await asyncio.sleep(after)
        task.cancel()
        if twice:
            await asyncio.sleep(0)
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        call.memory[:] = b"+" * LARGE
        before = call.touched()
        with recorded_requests() as sent:
            await asyncio.sleep(SEEN)
        assert call.touched() == before
        assert sent == []
        assert {each for each in asyncio.all_tasks() if each is not asyncio.current_task()} == set()
        await session.close()
        return call

    asyncio.run(work())


def test_unfinished_uploads_are_aborted(far: CSXFileSystem, proxy: FaultProxy, tmp_path: Path) -> None:
    """What ends an upload leaves none on the server."""
    call = Call(far, tmp_path / "local")
    for after in (0.02, 0.08, 0.12, 0.17):
        interrupted(call.pipe_file, after)
    proxy.faults = []
    assert far.list_multipart_uploads(BUCKET) == []


def test_plain_methods_can_all_be_interrupted(far: CSXFileSystem) -> None:
    """Whatever fsspec makes of coroutines can be interrupted, in this class and those made of it."""

    class Own(CSXFileSystem):
        async def _cat_file(self, path: str, *args: object, **kwargs: object) -> bytes:
            return b"own"

    for cls in (CSXFileSystem, Own):
        for name in ("cat", "get", "pipe", "rm", "cp_file", "info", "ls", "find", "glob", "expand_path", "du"):
            made = getattr(cls, name)
            assert made.of_coroutine is getattr(cls, f"_{name}"), name
    assert Own(key=far.key, secret=far.secret).cat_file("bucket/key") == b"own"


def test_arguments_keep_their_attributes(far: CSXFileSystem) -> None:
    """A coroutine sees the attributes of the callbacks, callable objects and classes that a caller gives."""

    class Doubled:
        factor = 2

        def __call__(self, value: int) -> int:
            return self.factor * value

    class Own(CSXFileSystem):
        async def _cat_file(self, path: str, callback: Callback, each: Doubled, kind: type) -> object:
            callback.absolute_update(3)
            return callback.size, callback.value, each.factor, each(4), isinstance(each(4), kind)

    fs = Own(key=far.key, secret=far.secret)
    assert fs.cat_file("bucket/key", Callback(size=9), each=Doubled(), kind=int) == (9, 3, 2, 8, True)


def test_work_that_is_over_before_it_began(far: CSXFileSystem) -> None:
    """A coroutine that is given up before the event loop came to it is never run, and its result is a cancellation."""
    ran = []

    async def run() -> None:
        ran.append(1)

    with busy(far):
        work = Work(far.loop, run)
        work.schedule()
        assert work.cancel()
        assert work.cancelled()
        work.end()
    assert ran == []


def test_errors_and_results_are_as_they_were(far: CSXFileSystem) -> None:
    """What coroutines return and raise reaches the caller."""
    assert far.cat(NAMES[:2]) == dict.fromkeys(NAMES[:2], b"x" * SMALL)
    with pytest.raises(FileNotFoundError):
        far.cat([f"{BUCKET}/many/nothing", *NAMES])
    with pytest.raises(TypeError):
        far.cat_file()
    with pytest.raises(fsspec.FSTimeoutError):
        far.cat(NAMES, timeout=0.01)

    async def on_loop() -> None:
        far.cat(NAMES)

    with pytest.raises(NotImplementedError):
        asyncio.run_coroutine_threadsafe(on_loop(), far.loop).result()
