"""async_save saves the object as it was at the call, whatever happens to it, to the process and to other saves."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from checkpoints import MIB, Leaving, Point, names, saved
from commands import running
from forked import python
from fsspec.callbacks import Callback
from proxy import Fault, fault_proxy
from stores import uploads

from fsspec_csx import backends, distributed
from fsspec_csx.checkpoint import save_future, save_queue
from fsspec_csx.checkpoint.api import load, save
from fsspec_csx.checkpoint.async_save import async_save
from fsspec_csx.checkpoint.save_future import SaveFuture
from fsspec_csx.errors import AccessDeniedError, CheckpointPathError, NoCredentialsError
from fsspec_csx.formats.torch_zip import pickled
from fsspec_csx.s3.filesystem import CSXFileSystem
from fsspec_csx.testing import LocalS3

pytestmark = pytest.mark.adaptive

BLOCK = 5 * MIB
SECONDS = 60


class Gate(Callback):  # type: ignore[misc]
    """Holds a save up when so many bytes have moved, until it is opened."""

    def __init__(self, at: int = MIB) -> None:
        super().__init__()
        self.at = at
        self.reached = threading.Event()
        self.opened = threading.Event()

    def relative_update(self, inc: int = 1) -> None:
        super().relative_update(inc)
        if self.value >= self.at:
            self.reached.set()
            assert self.opened.wait(SECONDS)

    def __enter__(self) -> Gate:
        return self

    def __exit__(self, *_: object) -> None:
        self.opened.set()


def wait_for_all() -> None:
    """Wait until no save is left, its callbacks and its log included, which a future does not wait for."""
    deadline = time.monotonic() + SECONDS
    while not save_queue._saves._is_idle():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """No save of a test reaches into the next, or into the exit status of all."""
    yield
    wait_for_all()
    save_future._reset()


def state(value: float) -> dict[str, Any]:
    """Three tensors of 2 MiB, which all say which state it is."""
    return {"step": value, **{name: torch.full((MIB // 2,), float(value)) for name in "abc"}}


def bytes_at(path: str) -> bytes:
    """What a file holds."""
    fs, inner = fsspec.url_to_fs(path)
    return bytes(fs.cat_file(inner))


def run(code: str, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a program to its end."""
    command = [*python(), "-c", code, *arguments]
    return subprocess.run(command, check=False, timeout=100, capture_output=True, text=True, **options)


# -- the snapshot ------------------------------------------------------------------------------------------------------


class Tagged(torch.Tensor):
    """A tensor subclass with an attribute of its own."""


def trained() -> dict[str, Any]:
    """A model with batch statistics, its optimizer and its schedule, after a step."""
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4))
    optimizer = torch.optim.AdamW(model.parameters())
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    model(torch.randn(3, 4)).sum().backward()
    optimizer.step()
    schedule.step()
    parts = {"model": model, "optimizer": optimizer, "schedule": schedule}
    return {**{name: part.state_dict() for name, part in parts.items()}, "whole": model}


def shared() -> dict[str, Any]:
    """Tensors that share memory in all ways."""
    base = torch.randn(100)
    parameter = torch.nn.Parameter(base)
    return {"base": base, "view": base[3:7], "strided": base[::3], "same": base, "parameter": parameter}


def subclass() -> torch.Tensor:
    """A tensor of a class of the user's own."""
    tensor = torch.randn(3).as_subclass(Tagged)
    tensor.tag = "mine"  # type: ignore[attr-defined]
    return tensor


class Passing:
    """An object that makes its memory for the pickle alone."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __getstate__(self) -> torch.UntypedStorage:
        return torch.full((1000,), self.number).untyped_storage()


def cyclic() -> list[Any]:
    """A list that holds itself."""
    made: list[Any] = [torch.randn(2)]
    made.append(made)
    return made


OBJECTS: dict[str, Callable[[], Any]] = {
    "trained": trained,
    "shared": shared,
    "plain": lambda: {"n": 1, "l": [1, (2, {3})], "o": OrderedDict(b=1), "c": Counter("aab"), "t": torch.float16},
    "numpy": lambda: np.arange(5),
    "random state": lambda: [torch.get_rng_state(), np.random.default_rng(0)],
    "own class": Point,
    "not a leaf": lambda: torch.randn(3, requires_grad=True) * 2,
    "gradient": lambda: torch.nn.Linear(2, 2).requires_grad_(False),
    "conjugated": lambda: torch.randn(3, dtype=torch.complex64).conj(),
    "sparse": lambda: torch.eye(300).to_sparse(),
    "compressed": lambda: torch.eye(300).to_sparse_csr(),
    "meta": lambda: torch.empty(3, device="meta"),
    "float8": lambda: torch.ones(3).to(torch.float8_e4m3fn),
    "unsigned": lambda: torch.ones(3, dtype=torch.uint16),
    "empty": lambda: [torch.empty(0), torch.empty(2, 0)],
    "expanded": lambda: torch.ones(1).expand(4),
    "storages": lambda: [torch.arange(3).untyped_storage(), shared()["view"].untyped_storage()],
    "passing memory": lambda: [Passing(number) for number in range(20)],
    "subclass": subclass,
    "cyclic": cyclic,
}


@pytest.mark.filterwarnings("ignore:Sparse:UserWarning")
@pytest.mark.parametrize("name", OBJECTS)
def test_file_is_that_of_torch_save(tmp_path: Path, name: str) -> None:
    """The file is the one that torch.save writes, byte for byte."""
    obj = OBJECTS[name]()
    future = async_save(obj, tmp_path / "x.pt")
    assert future.result(SECONDS) is None
    assert (tmp_path / "x.pt").read_bytes() == saved(obj)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")  # torch's, of its own doings
def test_quantized(tmp_path: Path) -> None:
    """A quantized tensor, too, is saved as by torch.save."""
    obj = torch.quantize_per_tensor(torch.randn(5), scale=0.1, zero_point=3, dtype=torch.qint8)
    async_save(obj, tmp_path / "x.pt").result(SECONDS)
    assert (tmp_path / "x.pt").read_bytes() == saved(obj)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu(tmp_path: Path) -> None:
    """Tensors on a GPU are saved as they are at the call, and as tensors of that GPU."""
    tensor = torch.arange(MIB, device="cuda")
    expected = saved([tensor, tensor[3:]])
    with Gate() as gate:
        future = async_save([tensor, tensor[3:]], tmp_path / "x.pt", callback=gate)
        tensor.zero_()
    future.result(SECONDS)
    assert (tmp_path / "x.pt").read_bytes() == expected


def test_everywhere(root: str) -> None:
    """A checkpoint goes to any path, and load reads it."""
    future = async_save(state(1), f"{root}/a/b/x.pt")
    future.result(SECONDS)
    assert bytes_at(f"{root}/a/b/x.pt") == saved(state(1))
    assert load(f"{root}/a/b/x.pt")["step"] == 1
    assert (future.done(), future.cancelled(), future.exception()) == (True, False, None)


def test_changes_after_the_call(root: str) -> None:
    """What happens to the object after the call is not saved."""
    array, counts, nested = np.zeros(3), Counter("aab"), [[1], {"k": [2]}]
    obj = {**state(1), "array": array, "counts": counts, "nested": nested, "own": Point(), "removed": 1}
    expected = saved(obj)
    with Gate() as gate:
        future = async_save(obj, f"{root}/x.pt", callback=gate)
        assert gate.reached.wait(SECONDS)
        obj["a"].zero_()
        obj["b"].resize_(0)
        obj["c"].untyped_storage().fill_(7)
        array[:] = 9
        counts["a"] = 9
        nested[0].append(9)  # type: ignore[attr-defined]
        nested[1]["k"].clear()  # type: ignore[call-overload]
        obj["own"].x = 9
        del obj["removed"]
        obj["added"] = 9
    future.result(SECONDS)
    assert bytes_at(f"{root}/x.pt") == expected


def test_ties_and_views(tmp_path: Path) -> None:
    """Tied tensors are tied after loading, and so are a tensor and a view of it."""
    async_save(shared(), tmp_path / "x.pt").result(SECONDS)
    loaded = load(tmp_path / "x.pt")
    loaded["base"][3] = 42
    assert (loaded["same"][3], loaded["view"][0], loaded["strided"][1], loaded["parameter"][3]) == (42, 42, 42, 42)


def test_safetensors(tmp_path: Path) -> None:
    """A path of the other format gets that format, from the moment of the call, too."""
    tensors = {name: tensor for name, tensor in state(1).items() if name != "step"}
    with Gate() as gate:
        future = async_save(tensors, tmp_path / "x.safetensors", callback=gate)
        tensors["c"].zero_()
    future.result(SECONDS)
    from safetensors.torch import load_file

    loaded = load_file(tmp_path / "x.safetensors")
    assert sorted(loaded) == ["a", "b", "c"]
    assert all((tensor == 1).all() for tensor in loaded.values())


@pytest.mark.parametrize(
    ("obj", "error"),
    [
        (threading.Lock(), TypeError),
        ([torch.zeros(2), lambda: None], (AttributeError, pickle.PicklingError)),
        ((lambda tensor: [tensor, tensor.view(torch.int32)])(torch.zeros(2)), RuntimeError),
    ],
    ids=["a lock", "a function", "two dtypes"],
)
def test_what_cannot_be_saved(root: str, obj: object, error: type[Exception]) -> None:
    """An object that save refuses is refused at once."""
    save([1], f"{root}/x.pt")
    with pytest.raises(error):
        saved(obj)
    with pytest.raises(error):
        async_save(obj, f"{root}/x.pt")
    assert load(f"{root}/x.pt") == [1]
    assert names(root) == ["x.pt"]


@pytest.mark.parametrize("fails", [False, True])
def test_memory_is_freed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool) -> None:
    """The copies are gone when the save is over, though its future is still there; the originals were never held."""
    copies: list[weakref.ref[Any]] = []
    copied = pickled.copy_storages

    def noting(storages: Sequence[torch.UntypedStorage]) -> list[torch.UntypedStorage]:
        made = copied(storages)
        copies.extend(map(weakref.ref, made))
        return made

    monkeypatch.setattr(pickled, "copy_storages", noting)
    obj = state(1)
    original = weakref.ref(obj["a"])
    gc.disable()
    try:
        with Gate() as gate:
            future = async_save(obj, tmp_path / "x.pt", callback=gate)
            assert gate.reached.wait(SECONDS)
            del obj
            assert original() is None
            assert [copy() is None for copy in copies] == [False] * 3
            if fails:
                gate.reached = None  # type: ignore[assignment]  # the next update raises
        assert isinstance(future.exception(SECONDS), AttributeError if fails else type(None))
        assert [copy() is None for copy in copies] == [True] * 3
    finally:
        gc.enable()


# -- what holds is what held at the call -------------------------------------------------------------------------------


def test_wrong_path(tmp_path: Path) -> None:
    """A path that cannot name a checkpoint is refused at once."""
    with pytest.raises(CheckpointPathError):
        async_save([1], "s3://bucket-without-a-key")


def test_no_credentials() -> None:
    """So is one for which there are no credentials."""
    with pytest.raises(NoCredentialsError):
        async_save([1], "s3://bucket/x.pt")


@pytest.mark.parametrize("prefix", ["", "simplecache::", "dir://run::"])
def test_environment_of_the_call(
    environment: LocalS3, fs: CSXFileSystem, bucket: str, monkeypatch: pytest.MonkeyPatch, prefix: str
) -> None:
    """A save that begins when the environment is another one uses the credentials of its call."""
    path = f"s3://{bucket}" if prefix.startswith("dir") else f"s3://{bucket}/x.pt"
    with Gate() as gate:
        for name in "12":
            async_save(state(1), f"memory://blocking/{bucket}/{name}", callback=gate)
        future = async_save([1], f"{prefix}{path}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "another")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
        assert not future.running()
    future.result(SECONDS)
    assert fs.cat_file(f"{bucket}/{'run' if prefix.startswith('dir') else 'x.pt'}") == saved([1])


def test_profile_of_the_call(server: LocalS3, fs: CSXFileSystem, bucket: str, aws_files: Path) -> None:
    """A save that begins when the setting is another one uses the profile of its call."""
    admin = server.identity
    lines = f"aws_access_key_id={admin.access_key}\naws_secret_access_key={admin.secret_key}\n"
    (aws_files / "credentials").write_text(f"[mine]\n{lines}")
    (aws_files / "config").write_text(f"[profile mine]\nendpoint_url={server.endpoint_url}\n")
    with Gate() as gate:
        with backends.scoped_flags({"csx.storage.s3.profile": "mine"}):
            for name in "12":
                async_save(state(1), f"memory://blocking/{bucket}/{name}", callback=gate)
            future = async_save([1], f"s3://{bucket}/x.pt")
        assert not future.running()
    future.result(SECONDS)
    assert fs.cat_file(f"{bucket}/x.pt") == saved([1])


def test_folder_of_the_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative path is one of the folder in which the process was at the call."""
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    with Gate() as gate:
        blocking = [async_save(state(1), tmp_path / name, callback=gate) for name in "12"]
        late = [async_save([1], Path("x.pt")), async_save([1], "y.pt")]
        monkeypatch.chdir(tmp_path / "other")
    for future in [*blocking, *late]:
        future.result(SECONDS)
    assert names(str(tmp_path)) == ["1", "2", "home", "other", "x.pt", "y.pt"]
    assert names(str(tmp_path / "other")) == []


# -- failures ----------------------------------------------------------------------------------------------------------


def test_refused(server: LocalS3, fs: CSXFileSystem, bucket: str) -> None:
    """The result of a save that the server refuses raises, as save does, and the old checkpoint stays."""
    fs.pipe_file(f"{bucket}/x.pt", b"old")
    future = async_save([1], f"s3://{bucket}/x.pt", storage_options=server.storage_options("reader"))
    with pytest.raises(AccessDeniedError, match=bucket):
        future.result(SECONDS)
    assert isinstance(future.exception(), AccessDeniedError)
    assert not future.cancel()
    assert fs.cat_file(f"{bucket}/x.pt") == b"old"


def failing(path: str, message: str = "stop") -> SaveFuture:
    """A failed save, whose result is never retrieved."""
    future = async_save(state(1), path, callback=Leaving(ValueError(message)))
    while not future.done():
        time.sleep(0.001)
    return future


@pytest.mark.parametrize(
    ("message", "shown"),
    [("", "ValueError"), ("ftp://me:password@host is down", "ValueError: ftp://me:***@host is down")],
)
def test_unasked_failure_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture, message: str, shown: str) -> None:
    """A failure that is never retrieved is logged once when the future is dropped, without the password of a URL."""
    gc.disable()
    try:
        future = failing(str(tmp_path / "x.pt"), message)
        assert not caplog.records
        del future
        deadline = time.monotonic() + SECONDS
        while not caplog.records and time.monotonic() < deadline:
            time.sleep(0.01)  # the thread lets go of it last
        (record,) = caplog.records
    finally:
        gc.enable()
    assert (record.name, record.levelno) == ("fsspec_csx", logging.ERROR)
    assert record.getMessage() == f"{tmp_path}/x.pt was not saved: {shown}"


@pytest.mark.parametrize("ask", [SaveFuture.exception, SaveFuture.result])
def test_asked_failure_is_not_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, ask: Callable[[SaveFuture], object]
) -> None:
    """One that was retrieved is not logged, and the future is freed as soon as it is dropped."""
    gc.disable()
    try:
        future = failing(str(tmp_path / "x.pt"))
        with contextlib.suppress(ValueError):
            ask(future)
        dropped = weakref.ref(future)
        del future
        deadline = time.monotonic() + SECONDS
        while dropped() is not None and time.monotonic() < deadline:
            time.sleep(0.01)  # the thread lets go of it last
        assert dropped() is None
    finally:
        gc.enable()
    assert not caplog.records


def test_waiting_is_not_asking(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A wait that ended before the save did is no question for its result."""
    with Gate() as gate:
        future = async_save(state(1), tmp_path / "x.pt", callback=gate)
        assert gate.reached.wait(SECONDS)
        with pytest.raises(futures.TimeoutError):
            future.result(0.01)
        gate.reached = None  # type: ignore[assignment]  # the next update raises
    futures.wait([future], SECONDS)
    del future
    deadline = time.monotonic() + SECONDS
    while "AttributeError" not in caplog.text:
        assert time.monotonic() < deadline
        gc.collect()
        time.sleep(0.01)


def test_callback_that_fails(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A done callback that ends its thread does not keep other saves from being written."""

    def leave(_: object) -> None:
        raise SystemExit

    with Gate() as gate:
        saves = [async_save(state(1), tmp_path / name, callback=gate) for name in "12"]
        for future in saves:
            future.add_done_callback(leave)
        saves += [async_save([1], tmp_path / name) for name in "345"]
    for future in saves:
        future.result(SECONDS)
    wait_for_all()
    assert names(str(tmp_path)) == ["1", "2", "3", "4", "5", "home"]
    assert len(caplog.records) == 2


# -- cancelling --------------------------------------------------------------------------------------------------------


def test_cancelled_midway(fs: CSXFileSystem, server: LocalS3, bucket: str) -> None:
    """A save cancelled midway leaves the old checkpoint and no upload, and says so in its future."""
    fs.pipe_file(f"{bucket}/x.pt", b"old")
    options = {**server.storage_options(), "default_block_size": BLOCK}
    with Gate(at=4 * BLOCK) as gate:
        future = async_save([state(1)] * 3 + [state(2)] * 3 + [state(n) for n in range(4)], f"s3://{bucket}/x.pt",
                            storage_options=options, callback=gate)  # fmt: skip
        assert gate.reached.wait(SECONDS)
        assert uploads(fs, bucket, expected=1) == 1
        assert future.running()
        assert future.cancel()
        assert not future.cancelled()
        assert not future.done()
    with pytest.raises(futures.CancelledError):
        future.result(SECONDS)
    with pytest.raises(futures.CancelledError):
        future.exception()
    assert future.cancelled()
    assert future.cancel()
    assert future.bytes_written < 5 * BLOCK < future.bytes_total
    assert uploads(fs, bucket) == 0
    assert fs.cat_file(f"{bucket}/x.pt") == b"old"


@pytest.mark.parametrize("way", ["x.pt", "x.safetensors", "huggingface", "sharded"])
def test_cancelled_while_the_last_parts_are_sent(server: LocalS3, fs: CSXFileSystem, bucket: str, way: str) -> None:
    """A save whose bytes are all written, but not sent, can be cancelled, and ends at once."""
    tensors, opened = {name: torch.ones(5 * MIB) for name in "abc"}, threading.Event()
    with fault_proxy(server.endpoint_url) as proxy:
        options = {**server.storage_options(), "endpoint_url": proxy.url}
        proxy.faults = [Fault("PUT", times=1000, before=lambda: opened.wait(SECONDS))]
        if way == "sharded":
            future = distributed.async_save(tensors, f"s3://{bucket}/{way}", storage_options=options)
        else:
            kind = {"format": way} if way == "huggingface" else {}
            future = async_save(tensors, f"s3://{bucket}/{way}", storage_options=options, **kind)
        deadline = time.monotonic() + SECONDS
        while future.bytes_written < 60 * MIB and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.2)
        assert future.cancel()
        try:
            with pytest.raises(futures.CancelledError):
                future.result(SECONDS / 2)
        finally:
            opened.set()
    assert fs.find(bucket) == []
    assert uploads(fs, bucket) == 0


def test_cancelled_everywhere(root: str, caplog: pytest.LogCaptureFixture) -> None:
    """On any path nothing is left of a save that was cancelled, and nothing is logged."""
    save([1], f"{root}/x.pt")
    with Gate() as gate:
        future = async_save(state(2), f"{root}/x.pt", callback=gate)
        assert gate.reached.wait(SECONDS)
        assert future.cancel()
    assert futures.wait([future], SECONDS).done == {future}
    del future
    gc.collect()
    assert load(f"{root}/x.pt") == [1]
    assert names(root) == ["x.pt"]
    assert not caplog.records


def test_cancelled_before_it_began(tmp_path: Path) -> None:
    """A save that is cancelled before it began ends at once, and those before and after it continue."""
    with Gate() as gate:
        first = async_save(state(1), tmp_path / "x.pt", callback=gate)
        assert gate.reached.wait(SECONDS)
        second, third = async_save(state(2), tmp_path / "x.pt"), async_save(state(3), tmp_path / "x.pt")
        assert third.cancel()
        assert third.cancelled()
        assert futures.wait([first, third], return_when=futures.FIRST_COMPLETED).done == {third}
        assert not second.done()
    second.result(SECONDS)
    assert first.done()
    assert load(tmp_path / "x.pt")["step"] == 2


def test_cancelled_too_late(root: str) -> None:
    """A save that is published cannot be cancelled any more."""
    with Gate(at=1) as gate:
        future = async_save(
            [1], f"{root}/x.pt", callback=gate
        )  # so small that progress is reported only at the very end
        assert gate.reached.wait(SECONDS)
        assert not future.cancel()
    future.result(SECONDS)
    assert not future.cancel()
    assert not future.cancelled()
    assert load(f"{root}/x.pt") == [1]


# -- several saves -----------------------------------------------------------------------------------------------------


def test_order(root: str) -> None:
    """Of several saves to one path the last one started stays, be the first ever so slow."""
    ended: list[int] = []
    with Gate() as gate:
        started = [async_save(state(0), f"{root}/x.pt", callback=gate)]
        started += [async_save(state(number), f"{root}/x.pt") for number in range(1, 5)]
        for number, future in enumerate(started):
            future.add_done_callback(lambda _, number=number: ended.append(number))
        assert gate.reached.wait(SECONDS)
        time.sleep(0.05)
        assert not ended
    wait_for_all()
    assert ended == [0, 1, 2, 3, 4]
    assert bytes_at(f"{root}/x.pt") == saved(state(4))


def test_order_after_a_failure(tmp_path: Path) -> None:
    """A save that fails does not keep the next one to its path from being written."""
    first = async_save(state(1), tmp_path / "x.pt", callback=Leaving(ValueError("stop")))
    async_save(state(2), tmp_path / "x.pt").result(SECONDS)
    assert isinstance(first.exception(0), ValueError)
    assert load(tmp_path / "x.pt")["step"] == 2


def test_order_through_a_link(tmp_path: Path) -> None:
    """Two names of one file count as one path."""
    (tmp_path / "link.pt").symlink_to(tmp_path / "x.pt")
    with Gate() as gate:
        async_save(state(1), tmp_path / "link.pt", callback=gate)
        assert gate.reached.wait(SECONDS)
        second = async_save(state(2), (tmp_path / "x.pt").as_uri())
        with pytest.raises(futures.TimeoutError):
            second.result(0.1)
    second.result(SECONDS)
    assert load(tmp_path / "x.pt")["step"] == 2


def test_two_side_by_side(tmp_path: Path) -> None:
    """Saves to different paths run side by side, but two at a time."""
    with Gate() as first, Gate() as second, Gate() as third:
        started = [async_save(state(1), tmp_path / gate, callback=each)
                   for gate, each in (("1", first), ("2", second), ("3", third))]  # fmt: skip
        assert first.reached.wait(SECONDS)
        assert second.reached.wait(SECONDS)
        assert not third.reached.wait(0.1)
        first.opened.set()
        assert third.reached.wait(SECONDS)
        assert not started[1].done()
    assert futures.wait(started, SECONDS).not_done == set()


def test_many_threads(root: str) -> None:
    """Many threads may save at a time, to their own paths and to a common one; every checkpoint is whole."""

    def save_often(number: int) -> list[SaveFuture]:
        return [
            async_save({"x": torch.full((50000,), number)}, f"{root}/{name}") for name in (f"{number}", "common") * 3
        ]

    with futures.ThreadPoolExecutor(4) as threads:
        for future in [each for made in threads.map(save_often, range(4)) for each in made]:
            future.result(SECONDS)
    for number in range(4):
        assert (load(f"{root}/{number}")["x"] == number).all()
    common = load(f"{root}/common")["x"]
    assert (common == common[0]).all()
    assert names(root) == ["0", "1", "2", "3", "common"]


# -- progress ----------------------------------------------------------------------------------------------------------


def test_progress(root: str) -> None:
    """The future and the callback hear of the bytes as they go, and end at the size of the file."""
    with Gate() as gate:
        future = async_save(state(1), f"{root}/x.pt", callback=gate)
        assert gate.reached.wait(SECONDS)
        assert MIB <= future.bytes_written < 6 * MIB
        assert 6 * MIB < future.bytes_total < 7 * MIB
    future.result(SECONDS)
    size = len(bytes_at(f"{root}/x.pt"))
    assert (future.bytes_written, future.bytes_total) == (size, size)
    assert (gate.value, gate.size) == (size, size)


def test_event_loop(environment: LocalS3, fs: CSXFileSystem, bucket: str) -> None:
    """In a running event loop saves are started and awaited, also those that fail or are cancelled."""

    async def main() -> None:
        await asyncio.wrap_future(async_save([1], f"s3://{bucket}/x.pt"))
        with pytest.raises(ValueError, match="stop"):
            await asyncio.wrap_future(async_save(state(2), f"s3://{bucket}/x.pt", callback=Leaving(ValueError("stop"))))
        with Gate() as gate:
            future = async_save(state(3), f"s3://{bucket}/x.pt", callback=gate)
            await asyncio.to_thread(gate.reached.wait, SECONDS)
            assert future.cancel()
            waiting = asyncio.wrap_future(future)
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(main())
    assert fs.cat_file(f"{bucket}/x.pt") == saved([1])


# -- processes ---------------------------------------------------------------------------------------------------------

ENDING = """
import os, sys, torch
from fsspec_csx.checkpoint.async_save import async_save
for path in sys.argv[1:]:
    async_save({"x": torch.ones(3 * 2**20)}, path)
"""
FAILING = """
import atexit, logging, sys, torch
from fsspec.callbacks import Callback
from fsspec_csx.checkpoint.async_save import async_save

class Failing(Callback):
    def relative_update(self, inc=1):
        raise ValueError("stop")

class Last:
    def __del__(self):
        print("deleted", file=sys.stderr)

def leave():
    print("left")
    print("left", file=sys.stderr, flush=True)

logging.basicConfig(filename=sys.argv[2], filemode="w", format="%(message)s")  # a log that is closed before objects go
atexit.register(leave)
written, last = open(sys.argv[1] + ".txt", "w"), Last()
written.write("not yet flushed")
print("saving")
kept = async_save({"x": torch.ones(2**20)}, sys.argv[1], callback=Failing())
"""
CHILDREN = """
import multiprocessing, os, sys
from fsspec_csx.checkpoint.async_save import async_save

def fail():
    async_save([1], sys.argv[1] + "/file/x.pt")

if __name__ == "__main__":
    open(sys.argv[1] + "/file", "w").close()
    if sys.argv[2] == "spawn":
        child = multiprocessing.get_context("spawn").Process(target=fail)
        child.start()
        child.join()
        os._exit(child.exitcode)
    future = async_save([1], sys.argv[1] + "/file/x.pt")
    while not future.done():
        pass
    del future
    child = os.fork() or sys.exit(0)
    os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
SLOW = """
import sys, threading, time, torch, traceback
from fsspec.callbacks import Callback
from fsspec_csx.checkpoint.async_save import async_save

class Slow(Callback):
    def relative_update(self, inc=1):
        time.sleep(0.3)

def watch(main):
    while "_close" not in [each.name for each in traceback.extract_stack(sys._current_frames()[main])]:
        time.sleep(0.01)
    print("waiting", flush=True)

kept = [async_save([torch.ones(2**16) for _ in range(200)], sys.argv[1], callback=Slow()) for _ in range(2)]
threading.Thread(target=watch, args=[threading.main_thread().ident], daemon=True).start()
"""
LATE = """
import atexit, sys, threading
from fsspec_csx.checkpoint.async_save import async_save

def late():
    threading.main_thread().join()
    try:
        async_save([1], sys.argv[1])
    except RuntimeError as error:
        print(error)

threading.Thread(target=late).start()
"""
FORKING = """
import os, sys, threading, torch
from fsspec.callbacks import Callback
from fsspec_csx.checkpoint.async_save import async_save
reached, opened = threading.Event(), threading.Event()

class Gate(Callback):
    def relative_update(self, inc=1):
        reached.set()
        opened.wait()

def forked(work):
    child = os.fork()
    if not child:
        work()
        sys.exit(0)  # with all that the interpreter does at its exit
    assert os.waitpid(child, 0)[1] == 0

def others():
    for future in futures:
        assert not future.cancel()
        try:
            future.result()
        except RuntimeError as error:
            assert "the process that started it" in str(error)
        else:
            raise AssertionError
    over.result()

folder = sys.argv[1]
over = async_save([0], folder + "/over.pt")
over.result()
futures = [async_save({"x": torch.ones(2**20)}, folder + "/parent.pt", callback=Gate()) for _ in range(2)]
assert reached.wait(90)
forked(lambda: None)
forked(others)
forked(lambda: async_save([1], folder + "/child.pt"))
assert not os.path.exists(folder + "/parent.pt")
opened.set()
"""


@pytest.mark.slow
@pytest.mark.parametrize("root", ["s3"], indirect=True)
def test_process_that_ends(root: str, server: LocalS3, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that ends right after the call ends when its saves are over, though it then first meets the server."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server.endpoint_url.replace("127.0.0.1", "localhost"))
    ended = run(ENDING, *(f"{root}/{number}.pt" for number in range(4)))
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server.endpoint_url)
    for number in range(4):
        assert bytes_at(f"{root}/{number}.pt") == saved({"x": torch.ones(3 * MIB)})


@pytest.mark.parametrize(
    ("end", "status"),
    [
        ("", 120),
        ("sys.exit(0)", 120),
        ("raise KeyError", 1),
        ("sys.stderr.close()", 120),
        ("sys.stderr = None", 120),
        ("kept.exception()", 0),
    ],
)
def test_failure_at_exit(tmp_path: Path, end: str, status: int) -> None:
    """A failure that is never retrieved is reported at exit, and by the exit status; all other work is done."""
    ended = run(FAILING + end, str(tmp_path / "x.pt"), str(tmp_path / "log"))
    report = [*ended.stderr.splitlines()]
    assert ended.returncode == status, report
    assert ended.stdout == "saving\nleft\n"
    assert (tmp_path / "x.pt.txt").read_text() == "not yet flushed"
    if "stderr" not in end:
        assert report.count("left") == report.count("deleted") == 1
        assert sum("exit status is 120" in line for line in report) == (status == 120)
    failures = [f"{tmp_path}/x.pt was not saved: ValueError: stop"]
    assert (tmp_path / "log").read_text().splitlines() == (failures if status else [])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(("kind", "status"), [("fork", 0), pytest.param("spawn", 120, marks=pytest.mark.slow)])
def test_failure_and_children(tmp_path: Path, kind: str, status: int) -> None:
    """A child's exit status reports a save of its own that failed, and not of one of its parent's."""
    (tmp_path / "children.py").write_text(CHILDREN)
    command = [*python(), str(tmp_path / "children.py"), str(tmp_path), kind]
    ended = subprocess.run(command, timeout=100, capture_output=True, text=True)
    assert ended.returncode == status, ended.stderr
    assert "x.pt was not saved: " in ended.stderr


@pytest.mark.slow
def test_ctrl_c_at_exit(tmp_path: Path) -> None:
    """Ctrl-C while the process waits for its saves stops them, and the old checkpoint stays."""
    save([1], tmp_path / "x.pt")
    command = [sys.executable, "-c", SLOW, str(tmp_path / "x.pt")]
    with running(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "waiting\n"
        process.send_signal(signal.SIGINT)
        began = time.monotonic()
        _, errors = process.communicate(timeout=100)
    assert time.monotonic() - began < 40  # each save takes a minute
    *stopped, report = errors.splitlines()
    assert stopped == [f"{tmp_path}/x.pt was not saved: interrupted"] * 2
    assert "exit status is 120" in report
    assert process.returncode == 120
    assert load(tmp_path / "x.pt") == [1]
    assert names(str(tmp_path)) == ["home", "x.pt"]


def test_too_late(tmp_path: Path) -> None:
    """A thread that outlives the main thread gets an error that it cannot save in the background any more."""
    ended = run(LATE, str(tmp_path / "x.pt"))
    assert "The interpreter is ending" in ended.stdout
    assert not (tmp_path / "x.pt").exists()


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_fork(tmp_path: Path) -> None:
    """A forked child neither waits for its parent's saves nor touches them, and may save itself."""
    ended = run(FORKING, str(tmp_path))
    assert (ended.returncode, ended.stderr) == (0, "")
    assert load(tmp_path / "child.pt") == [1]
    assert load(tmp_path / "parent.pt")["x"].sum() == MIB
    assert names(str(tmp_path)) == ["child.pt", "home", "over.pt", "parent.pt"]
