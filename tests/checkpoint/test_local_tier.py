"""Checkpoints that go to a local disk first, and are uploaded from there."""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import signal
import subprocess
import threading
import time
import zipfile
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from commands import running
from conftest import recorded_requests
from forked import python
from fsspec.callbacks import Callback
from fsspec.implementations.memory import MemoryFileSystem
from proxy import Fault, fault_proxy

from fsspec_csx import async_save, load, save
from fsspec_csx.checkpoint import local_saves, local_tier
from fsspec_csx.manage.s3 import unfinished_uploads
from fsspec_csx.s3.filesystem import CSXFileSystem
from fsspec_csx.testing import LocalS3

MIB = 2**20
# Saves steps by way of a local disk: ROOT DISK FIRST LAST MIB. It prints those that are whole there.
JOB = """
import sys, torch
from fsspec_csx import async_save
root, disk, first, last, size = sys.argv[1:]
for step in range(int(first), int(last) + 1):
    state = {"w": torch.full((int(size) * 2**18,), float(step)), "step": step}
    future = async_save(state, f"{root}/{step}.mdl", local=disk)
    future.local.result()
    print(step, flush=True)
"""
# The same by save, whose uploads wait until they are cancelled: ROOT DISK FIRST LAST MIB.
BLOCKING = """
import sys, time, torch
from fsspec_csx import save
from fsspec_csx.s3.filesystem import CSXFileSystem
root, disk, first, last, size = sys.argv[1:]
def blocked(*arguments, callback, **options):
    print("uploading", flush=True)
    while True:
        callback.relative_update(0)
        time.sleep(0.01)
CSXFileSystem.put_file = blocked
for step in range(int(first), int(last) + 1):
    state = {"w": torch.full((int(size) * 2**18,), float(step)), "step": step}
    save(state, f"{root}/{step}.mdl", local=disk)
    print(step, flush=True)
"""
# A forked child waits for the result of its parent's local half, which is delayed: PATH DISK.
FORKING = """
import os, sys, threading
from fsspec_csx import async_save
from fsspec_csx.checkpoint.local_tier import LocalTier
write, opened = LocalTier.write, threading.Event()
LocalTier.write = lambda *arguments: opened.wait() and write(*arguments)
future = async_save([1], sys.argv[1], local=sys.argv[2])
child = os.fork()
if not child:
    assert not future.local.cancel()
    try:
        future.local.result()
    except RuntimeError as error:
        os._exit("the process that started it" not in str(error))
    os._exit(2)
assert not future.local.cancel() and os.waitpid(child, 0)[1] == 0
opened.set()
future.local.result()
future.result()
"""


def state(step: int, count: int = 1000) -> dict[str, Any]:
    return {"w": torch.full((count,), float(step)), "step": step}


def is_step(loaded: dict[str, Any], step: int) -> bool:
    return loaded["step"] == step and bool((loaded["w"] == step).all())


def local_steps(disk: Path) -> list[int]:
    return sorted(int(path.stem) for path in disk.glob("*/*.mdl"))


def command(
    root: str, disk: Path, first: int, last: int, size: int = 1, before: str = "", program: str = JOB
) -> list[str]:
    return [*python(), "-c", f"{before}\n{program}", root, str(disk), str(first), str(last), str(size)]


def job(*arguments: Any, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments, **options),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )


def says_where(logged: str, disk: Path, step: int) -> bool:
    """Whether a log says where the local copy of a step is, and how to load it."""
    (path,) = disk.glob(f"*/{step}.mdl")
    return f"It is complete at {path}: load(path, local={str(disk)!r}) reads it" in logged


@pytest.fixture
def run(environment: LocalS3, bucket: str) -> str:
    return f"s3://{bucket}/run"


def test_saved_on_both_sides(root: str, tmp_path: Path) -> None:
    """The local file is whole first, the remote one is the same, and the newest stay on the disk."""
    disk = tmp_path / "disk"
    for step, name in enumerate(("1.mdl", "2.safetensors", "3.mdl", "4.mdl")):
        saved = {"w": torch.full((1000,), float(step))}
        future = async_save(saved, f"{root}/{name}", local=disk)
        assert future.local is not None
        future.local.result()
        assert load(f"{root}/{name}", local=disk)["w"][0] == step
    future.result()
    assert future.bytes_written == future.bytes_total > 4000
    assert local_steps(disk) == [3, 4]
    assert load(f"{root}/2.safetensors")["w"][0] == 1
    assert (load(f"{root}/4.mdl")["w"] == saved["w"]).all()


def test_save_on_both_sides(root: str, tmp_path: Path) -> None:
    """``save`` returns when both are whole; the bytes that are uploaded are counted."""

    disk = tmp_path / "disk"
    for step, name in enumerate(("1.mdl", "2.safetensors", "3.mdl")):
        counting = Callback()
        save({"w": torch.full((1000,), float(step))}, f"{root}/{name}", local=disk, callback=counting)
        size = next(disk.glob(f"*/{name}")).stat().st_size
        assert counting.value == counting.size == size
        assert load(f"{root}/{name}")["w"][0] == load(f"{root}/{name}", local=disk)["w"][0] == step
    assert sorted(path.name for path in disk.glob("*/*") if not path.name.endswith((".json", ".lock"))) == [
        "2.safetensors",
        "3.mdl",
    ]


def test_save_after_another_version(run: str, tmp_path: Path) -> None:
    """A local copy of before neither hides what was saved elsewhere since, nor is in the way of the next save."""
    path = f"{run}/latest.mdl"
    save(state(1), path, local=tmp_path)
    save(state(2), path)
    assert is_step(load(path, local=tmp_path), 2)
    save(state(3), path, local=tmp_path)
    with recorded_requests() as requests:
        assert is_step(load(path, local=tmp_path), 3)
    assert requests == ["HeadObject"]
    assert is_step(load(path), 3)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_save_stopped_between_the_halves(run: str, tmp_path: Path, number: signal.Signals) -> None:
    """The local copy is whole, is loaded, and is uploaded by the next process."""
    disk, pipe = tmp_path / "disk", subprocess.PIPE
    arguments = command(run, disk, 1, 1, program=BLOCKING)
    with running(arguments, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "uploading\n"
        process.send_signal(number)
        output, errors = process.communicate(timeout=100)
    assert (process.returncode != 0, output) == (True, "")
    if number == signal.SIGINT:
        assert says_where(errors, disk, 1)
        assert errors.endswith("KeyboardInterrupt\n")
    with pytest.raises(FileNotFoundError):
        load(f"{run}/1.mdl")
    assert is_step(load(f"{run}/1.mdl", local=disk), 1)
    save(state(2), f"{run}/2.mdl", local=disk)
    async_save(state(3), f"{run}/3.mdl", local=disk).result()  # after the upload of the first
    assert [is_step(load(f"{run}/{step}.mdl"), step) for step in (1, 2, 3)] == [True] * 3


def test_save_failed_upload(server: LocalS3, run: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The error is raised unchanged, and a warning says where the checkpoint is."""
    with pytest.raises(PermissionError):
        save(state(1), f"{run}/1.mdl", local=tmp_path, storage_options=server.storage_options("reader"))
    assert says_where(caplog.text, tmp_path, 1)
    save(state(1), f"{run}/1.mdl", local=tmp_path)  # the same again
    assert is_step(load(f"{run}/1.mdl"), 1)


def test_killed_before_the_new_file_replaces_the_old(server: LocalS3, run: str, tmp_path: Path) -> None:
    """The old one, which is not uploaded yet, counts."""
    path = f"{run}/latest.mdl"
    with pytest.raises(PermissionError):
        save(state(1), path, local=tmp_path, storage_options=server.storage_options("reader"))
    (local,) = tmp_path.glob("*/latest.mdl")
    old = local.read_bytes()
    with pytest.raises(PermissionError):
        save(state(2), path, local=tmp_path, storage_options=server.storage_options("reader"))
    assert is_step(load(path, local=tmp_path), 2)
    local.write_bytes(old)
    assert is_step(load(path, local=tmp_path), 1)
    local_saves._tiers.clear()  # as in another process
    save(state(9), f"{run}/9.mdl", local=tmp_path)
    async_save(state(10), f"{run}/10.mdl", local=tmp_path).result()  # after the upload of what was left
    assert is_step(load(path), 1)


def test_same_path(run: str, tmp_path: Path) -> None:
    """Each save to a path waits for the upload of the one before."""
    for step in range(4):
        last = async_save(state(step), f"{run}/latest.mdl", local=tmp_path)
    last.result()
    assert load(f"{run}/latest.mdl")["step"] == 3
    with recorded_requests() as requests:
        assert load(f"{run}/latest.mdl", local=tmp_path)["step"] == 3
    assert requests == ["HeadObject"]


def test_uploads_slower_than_saves(
    run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The third save waits for the first upload, so that neither memory nor disk fills; a warning says so."""
    monkeypatch.setattr(local_tier, "_SILENT", 0.1)
    go, sent = threading.Event(), list[str]()
    put_file = CSXFileSystem.put_file

    def slow(fs: CSXFileSystem, local: str, *args: Any, **kwargs: Any) -> Any:
        assert go.wait(60)
        sent.append(Path(local).name)
        return put_file(fs, local, *args, **kwargs)

    monkeypatch.setattr(CSXFileSystem, "put_file", slow)
    futures = [async_save(state(step), f"{run}/{step}.mdl", local=tmp_path) for step in (1, 2)]
    for future in futures:
        assert future.local is not None
        future.local.result()
    assert is_step(load(f"{run}/2.mdl", local=tmp_path), 2)
    third = threading.Thread(target=lambda: save(state(3), f"{run}/3.mdl", local=tmp_path))
    third.start()
    deadline = time.monotonic() + 60
    while "The save of 3.mdl waits for those of ['1.mdl', '2.mdl']" not in caplog.text:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert local_steps(tmp_path) == [1, 2]
    go.set()
    third.join(60)
    assert (local_steps(tmp_path), sent) == ([2, 3], ["1.mdl", "2.mdl", "3.mdl"])
    assert [is_step(load(f"{run}/{step}.mdl"), step) for step in (1, 2, 3)] == [True] * 3


def test_failed_upload(server: LocalS3, run: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is an error, and the local file stays; a later save with better credentials uploads it."""
    options = server.storage_options("reader")
    future = async_save(state(1), f"{run}/1.mdl", local=tmp_path, storage_options=options)
    with pytest.raises(PermissionError):
        future.result()
    assert (
        f"It is complete at {next(tmp_path.glob('*/1.mdl'))}: load(path, local={str(tmp_path)!r}) reads it"
        in caplog.text
    )
    assert is_step(load(f"{run}/1.mdl", local=tmp_path), 1)
    local_saves._tiers.clear()  # as in another process
    async_save(state(2), f"{run}/2.mdl", local=tmp_path).result()
    assert is_step(load(f"{run}/1.mdl"), 1)


def test_uploaded_by_a_later_save(
    server: LocalS3, run: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What earlier saves of the process left goes first, in their order; what is damaged is passed over once."""
    options: Any = {"local": tmp_path, "keep_local": 9}
    for step in (1, 2, 3):
        with pytest.raises(PermissionError):
            async_save(
                state(step), f"{run}/{step}.mdl", storage_options=server.storage_options("reader"), **options
            ).result()
    (damaged,) = tmp_path.glob("*/2.mdl")
    damaged.write_bytes(damaged.read_bytes()[:-1])
    sent, put_file = [], CSXFileSystem.put_file

    def noted(fs: Any, source: str, path: str, **arguments: Any) -> Any:
        sent.append(path.rpartition("/")[2])
        return put_file(fs, source, path, **arguments)

    monkeypatch.setattr(CSXFileSystem, "put_file", noted)
    future = async_save(state(4), f"{run}/4.mdl", **options)
    future.result()
    assert future.bytes_written == future.bytes_total
    save(state(5), f"{run}/5.mdl", **options)
    assert sent == ["1.mdl", "3.mdl", "4.mdl", "5.mdl"]
    assert all(is_step(load(f"{run}/{step}.mdl"), step) for step in (1, 3, 4, 5))
    assert caplog.text.count("2.mdl is not used") == 1


@pytest.mark.parametrize("blocking", [True, False])
def test_uploads_that_go_on_failing(
    server: LocalS3, run: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, blocking: bool
) -> None:
    """The newest stay on the disk, uploaded ones go first, and a warning names each that is given up."""
    reader = server.storage_options("reader")
    async_save(state(1), f"{run}/1.mdl", local=tmp_path).result()
    for step in range(2, 6):
        options: Any = {"local": tmp_path, "keep_local": 2, "storage_options": reader}
        with pytest.raises(PermissionError):
            if blocking:
                save(state(step), f"{run}/{step}.mdl", **options)
            else:
                async_save(state(step), f"{run}/{step}.mdl", **options).result()
        assert is_step(load(f"{run}/{step}.mdl", local=tmp_path), step)
        assert local_steps(tmp_path) == [step - 1, step]
    given_up = [f"{run}/{step}.mdl was not uploaded, and is deleted from" in caplog.text for step in range(1, 6)]
    assert given_up == [False, True, True, False, False]
    async_save(state(6), f"{run}/6.mdl", local=tmp_path).result()  # older ones are of no use to a restart any more
    assert local_steps(tmp_path) == [5, 6]
    assert f"{run}/4.mdl was not uploaded" in caplog.text


def test_deleted_before_it_is_opened(run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A local copy that makes room for newer ones while it is to be loaded: the object is loaded."""
    save(state(1), f"{run}/1.mdl", local=tmp_path)
    find = local_saves.find

    def deleting(*arguments: Any) -> str:
        found = find(*arguments)
        Path(found).unlink()
        return found

    monkeypatch.setattr(local_saves, "find", deleting)
    assert is_step(load(f"{run}/1.mdl", local=tmp_path), 1)


def test_left_are_uploaded_though_too_many(
    server: LocalS3, run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end of the first of several uploads deletes no file whose upload is about to be queued."""
    for step in (1, 2, 3):
        with pytest.raises(PermissionError):
            options = server.storage_options("reader")
            save(state(step), f"{run}/{step}.mdl", local=tmp_path, keep_local=3, storage_options=options)
    local_saves._tiers.clear()  # as in another process
    upload_left = local_saves.upload_left
    monkeypatch.setattr(local_saves, "upload_left", lambda *arguments: upload_left(*arguments).result())
    save(state(4), f"{run}/4.mdl", local=tmp_path, keep_local=1)
    assert [is_step(load(f"{run}/{step}.mdl"), step) for step in (1, 2, 3, 4)] == [True] * 4
    assert local_steps(tmp_path) == [4]


def test_left_and_damaged(run: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What was not uploaded, and is damaged, is not uploaded later: a warning says so."""
    async_save(state(1), f"{run}/1.mdl", local=tmp_path).result()
    fs, path = fsspec.url_to_fs(f"{run}/1.mdl")
    fs.rm_file(path)
    (local,) = tmp_path.glob("*/1.mdl")
    record = Path(f"{local}.json")
    record.write_text(json.dumps({**json.loads(record.read_text()), "remote": None}))
    local.write_bytes(local.read_bytes()[:-1] + b"x")
    local_saves._tiers.clear()  # as in another process
    async_save(state(2), f"{run}/2.mdl", local=tmp_path).result()
    assert "its bytes have changed" in caplog.text
    with pytest.raises(FileNotFoundError):
        load(f"{run}/1.mdl", local=tmp_path)


def test_cancelled(run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before its upload a save is cancelled like any other."""
    go = threading.Event()
    put_file = CSXFileSystem.put_file
    monkeypatch.setattr(CSXFileSystem, "put_file", lambda *args, **kwargs: go.wait(60) and put_file(*args, **kwargs))
    first, second = (async_save(state(step), f"{run}/{step}.mdl", local=tmp_path) for step in (1, 2))
    assert second.local is not None
    second.local.result()
    assert second.cancel()
    go.set()
    first.result()
    with pytest.raises(CancelledError):
        second.result()
    with pytest.raises(FileNotFoundError):
        load(f"{run}/2.mdl")


@pytest.mark.parametrize("count", [2**20, 2**22])
def test_cancelled_at_the_last_moment(
    run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, count: int
) -> None:
    """What cancel returns is so, whether one request or many upload it; the warning says that it was cancelled."""
    go, answers, path = threading.Event(), list[bool](), f"{run}/1.mdl"
    put_file = CSXFileSystem.put_file
    monkeypatch.setattr(CSXFileSystem, "put_file", lambda *args, **kwargs: go.wait(60) and put_file(*args, **kwargs))

    class CancelLast(Callback):
        def relative_update(self, inc: int = 1) -> None:
            super().relative_update(inc)
            if self.value > 4 * count:
                answers.append(future.cancel())

    future = async_save(state(1, count), path, local=tmp_path, callback=CancelLast())
    go.set()
    error = None
    with contextlib.suppress(CancelledError):
        error = CancelledError()
        future.result()
        error = None
    fs, inner = fsspec.url_to_fs(path)
    assert {*answers} == {error is not None} == {not fs.exists(inner)}
    assert ("is not uploaded, as its save was cancelled" in caplog.text) == (error is not None)


def test_left_of_a_path_with_an_older_one(server: LocalS3, run: str, tmp_path: Path) -> None:
    """The newer one is loaded and uploaded, unless somebody has replaced the older."""
    latest, reader = f"{run}/latest.mdl", server.storage_options("reader")

    def leave(step: int) -> None:
        with pytest.raises(PermissionError):
            async_save(state(step), latest, local=tmp_path, storage_options=reader).result()

    async_save(state(1), latest, local=tmp_path).result()
    for step in (2, 3):
        leave(step)
        assert is_step(load(latest, local=tmp_path), step)
    local_saves._tiers.clear()  # as in another process
    async_save(state(9), f"{run}/9.mdl", local=tmp_path).result()
    assert is_step(load(latest), 3)
    leave(4)
    save(state(5), latest)
    assert is_step(load(latest, local=tmp_path), 5)
    local_saves._tiers.clear()
    async_save(state(9), f"{run}/9.mdl", local=tmp_path).result()
    assert is_step(load(latest), 5)


def test_stores_with_the_same_paths(tmp_path: Path) -> None:
    """Each host, and each account, has a folder of its own; links to one folder have the same."""

    class Hosted(MemoryFileSystem):
        protocol = "hosted"

        def __init__(self, host: str = "", account_name: str = "") -> None:
            super().__init__()
            self.account_name = account_name

        @classmethod
        def _strip_protocol(cls, path: str) -> str:
            return "/run/1.mdl"

    fsspec.register_implementation("hosted", Hosted, clobber=True)
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    found = [
        local_saves.tier_of(f"hosted://{host}/run/1.mdl", tmp_path / name, {"account_name": account})[0]
        for name in ("disk", "link")
        for host, account in (("one", "x"), ("two", "x"), ("two", "y"))
    ]
    assert found[:3] == found[3:]
    assert len({id(each) for each in found}) == 3


def test_ctrl_c_between_the_halves(run: str, tmp_path: Path) -> None:
    """No upload begins after Ctrl-C: what is whole on the disk is left to the next save, and the status is an error."""
    before = """
import sys, threading, time, traceback
from fsspec_csx.checkpoint import save_queue
from fsspec_csx.checkpoint.local_tier import LocalTier
write, main = LocalTier.write, threading.main_thread().ident
def slow(*arguments):
    write(*arguments)
    while "_close" not in [each.name for each in traceback.extract_stack(sys._current_frames()[main])]:
        time.sleep(0.01)  # until it waits for the saves
    print("written", flush=True)
    while not all(save.future.progress.cancelled for save in save_queue._saves._running):
        time.sleep(0.01)
LocalTier.write = slow
"""
    arguments = command(run, tmp_path, 1, 1, before=before)
    arguments[arguments.index("-c") + 1] = arguments[arguments.index("-c") + 1].replace("future.local.result()", "")
    with running(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        while process.stdout.readline() != "written\n":
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=100)
    assert process.returncode == 120, errors
    assert "1.mdl was not saved: interrupted" in errors
    with pytest.raises(FileNotFoundError):
        load(f"{run}/1.mdl")
    async_save(state(2), f"{run}/2.mdl", local=tmp_path).result()
    assert is_step(load(f"{run}/1.mdl"), 1)


@pytest.mark.slow
def test_disk_full(run: str, tmp_path: Path) -> None:
    """What the disk does not take goes straight to the path, with a warning, and nothing is left on the disk."""
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({MIB // 2}, {MIB // 2}))"
    for first, program in ((1, JOB), (3, BLOCKING)):
        done = job(run, tmp_path / "disk", first, first + 1, before=limit, program=program)
        assert done.stderr.count("is saved without a local copy in") == 2
    assert [is_step(load(f"{run}/{step}.mdl"), step) for step in range(1, 5)] == [True] * 4
    assert {path.name for path in tmp_path.glob("disk/*/*")} == {".lock"}


def test_refused(run: str, tmp_path: Path) -> None:
    """Formats of several files, before anything is written."""
    for options in ({"format": "huggingface"}, {"format": "cerebras"}, {"keep_local": 0}):
        for each in (save, async_save):
            with pytest.raises(ValueError, match="local"):
                each({"w": torch.ones(3)}, f"{run}/x.mdl", local=tmp_path / "disk", **options)
    with pytest.raises(ValueError, match="single-file formats"):
        save({"w": torch.ones(3)}, f"{run}/x/model.safetensors.index.json", local=tmp_path / "disk")
    with pytest.raises(ValueError, match="local"):
        async_save({"w": torch.ones(3)}, f"{run}/x.mdl", local="s3://bucket/disk")
    zipfile.ZipFile(tmp_path / "x.zip", "w").close()
    with pytest.raises(ValueError, match="does not end in the checkpoint's name"):
        async_save({"w": torch.ones(3)}, f"zip://x.mdl::{tmp_path}/x.zip", local=tmp_path / "disk")
    assert not (tmp_path / "disk").exists()


def test_one_process_at_a_time(run: str, tmp_path: Path) -> None:
    """Another process does not touch the files of one that runs; it saves to the path alone."""
    async_save(state(1), f"{run}/1.mdl", local=tmp_path).result()
    for step, program in ((2, JOB), (3, BLOCKING)):
        assert "Another process uses this folder" in job(run, tmp_path, step, step, program=program).stderr
        assert is_step(load(f"{run}/{step}.mdl"), step)
    assert local_steps(tmp_path) == [1]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_forked(tmp_path: Path) -> None:
    """A child does not wait for ever for the local half of its parent's save."""
    command = [*python(), "-c", FORKING, str(tmp_path / "x.mdl"), str(tmp_path / "disk")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert load(tmp_path / "x.mdl") == [1]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_killed(run: str, tmp_path: Path, seed: int) -> None:
    """kill -9 at any moment loses nothing that was whole on the disk, and later runs upload all of it, in parts."""
    moments, step, whole = random.Random(seed), 1, 0
    for _ in range(5):
        with running(command(run, tmp_path, step, step + 3, 20), stdout=subprocess.PIPE, text=True) as process:
            time.sleep(moments.uniform(0.3, 2.0))
            process.kill()
            lines = process.communicate()[0].split()
        whole = int(lines[-1]) if lines else whole
        if whole:
            assert is_step(load(f"{run}/{whole}.mdl", local=tmp_path), whole)
        step = whole + 1
    last = job(run, tmp_path, step, step, 20)
    assert "is not used" not in last.stderr
    for each in range(1, step + 1):
        assert is_step(load(f"{run}/{each}.mdl"), each)
    assert local_steps(tmp_path) == sorted({max(1, step - 1), step})
    assert not [*tmp_path.glob("*/.*.tmp")]
    # One that was killed when its upload had just ended leaves the journal, but no upload. One that was killed while
    # the server created its upload cannot know its id: that upload has no parts, and gc deletes it.
    assert [each for each in unfinished_uploads(*fsspec.url_to_fs(run)) if each.size] == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_stopped_upload(
    server: LocalS3, run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """An upload that was stopped is continued by the next save, or done again after Ctrl-C; the status is an error."""
    journals, pipe, go = tmp_path / "home" / ".cache" / "fsspec_csx" / "uploads", subprocess.PIPE, threading.Event()
    with fault_proxy(server.endpoint_url) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        proxy.faults = [Fault("PUT", query="partNumber", skip=2, times=99, before=go.wait)]
        with running(command(run, tmp_path, 1, 1, 80), stdout=pipe, stderr=pipe) as process:
            while not any(path.read_bytes().count(b"\n") > 1 for path in journals.glob("*.json")):
                assert process.poll() is None
                time.sleep(0.01)
            process.send_signal(number)
            select.select([process.stderr], [], [], 60)  # it says that it was interrupted, or has ended
            go.set()
            process.communicate(timeout=100)
        assert process.returncode not in (0, None)
        _check_next_save(run, tmp_path, number)


def _check_next_save(run: str, tmp_path: Path, number: signal.Signals) -> None:
    """Whether the next save continues the upload of a killed process, and uploads all again after Ctrl-C."""
    with recorded_requests() as requests:
        async_save(state(2), f"{run}/2.mdl", local=tmp_path).result()
    assert is_step(load(f"{run}/1.mdl"), 1)
    assert ("ListParts" in requests) == (number == signal.SIGKILL)
    assert requests.count("CreateMultipartUpload") == (number == signal.SIGINT)
