"""Saves through one local disk in several threads, and after failures: none hangs, and nothing is lost."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from fsspec_csx import async_save, load, save
from fsspec_csx.checkpoint import local_saves, local_tier, save_queue
from fsspec_csx.checkpoint.local_record import LocalRecord, SummedFile
from fsspec_csx.checkpoint.local_tier import LocalTier
from fsspec_csx.s3.filesystem import CSXFileSystem
from fsspec_csx.testing import LocalS3

SECONDS = 60
# How long something waits for what must not happen meanwhile.
PAUSE = 0.3


@pytest.fixture
def run(environment: LocalS3, bucket: str) -> str:
    return f"s3://{bucket}/run"


def state(step: int) -> dict[str, Any]:
    return {"w": torch.full((1000,), float(step)), "step": step}


def no_room_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let saves begin as they do where two threads have looked for room at the same time."""
    monkeypatch.setattr(LocalTier, "wait_for_room", lambda *_: None)


def pending(folder: Path) -> list[str]:
    records = {path.name.removesuffix(".json"): json.loads(path.read_bytes()) for path in folder.glob("*/*.json")}
    return [name for name, record in records.items() if record["remote"] is None]


def test_order_of_the_queue(run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No save gets before one that it waits for, which would then never begin."""
    no_room_needed(monkeypatch)
    add, both, numbers = save_queue.add, threading.Event(), iter((1, 2))

    def late(entry: save_queue.Save) -> None:
        if next(numbers) == 1:
            both.wait(PAUSE)
        else:
            both.set()
        add(entry)

    monkeypatch.setattr(save_queue, "add", late)
    with ThreadPoolExecutor(2) as threads:
        begun = [threads.submit(async_save, state(step), f"{run}/latest.mdl", local=tmp_path) for step in (1, 2)]
        for each in begun:
            each.result(SECONDS).result(SECONDS)
    assert load(f"{run}/latest.mdl", local=tmp_path)["step"] == load(f"{run}/latest.mdl")["step"]


@pytest.mark.parametrize("left", [False, True])
def test_file_that_is_uploaded(
    server: LocalS3, run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: bool
) -> None:
    """It is not replaced meanwhile: by a thread that saves to its path, or where the save of another uploads it."""
    if left:
        with pytest.raises(PermissionError):
            save(state(1), f"{run}/latest.mdl", local=tmp_path, storage_options=server.storage_options("reader"))
    no_room_needed(monkeypatch)
    written, uploading, sent = threading.Event(), threading.Event(), list[int]()
    put_file, write = CSXFileSystem.put_file, LocalTier.write

    def held(fs: CSXFileSystem, local: str, *args: Any, **kwargs: Any) -> Any:
        if local.endswith("latest.mdl"):
            written.clear()
            uploading.set()
            written.wait(PAUSE)
            sent.append(load(local)["step"])
        return put_file(fs, local, *args, **kwargs)

    def noted(*args: Any) -> None:
        write(*args)
        written.set()

    monkeypatch.setattr(CSXFileSystem, "put_file", held)
    monkeypatch.setattr(LocalTier, "write", noted)
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(save, state(1), f"{run}/{'other' if left else 'latest'}.mdl", local=tmp_path)
        assert uploading.wait(SECONDS)
        second = threads.submit(save, state(2), f"{run}/latest.mdl", local=tmp_path)
        first.result(SECONDS)
        second.result(SECONDS)
    assert sent == [1, 2]
    assert load(f"{run}/latest.mdl")["step"] == 2


def test_cleaned_up_before_it_is_used(run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What killed processes left is deleted before a thread writes there, not what a thread writes."""
    cleaning, writing, cleaned = threading.Event(), threading.Event(), threading.Event()
    listdir = local_tier.os.listdir

    def listed(folder: str) -> list[str]:
        if threading.current_thread() is cleaner:
            cleaning.set()
            writing.wait(PAUSE)
        return listdir(folder)

    class Signalling(SummedFile):
        def write(self, data: Any) -> int:
            writing.set()
            cleaned.wait(PAUSE)
            return super().write(data)

    tier, _ = local_saves.tier_of(f"{run}/1.mdl", tmp_path)
    cleaner = threading.Thread(target=lambda: (tier.pending_from_earlier(), cleaned.set()))
    monkeypatch.setattr(local_tier.os, "listdir", listed)
    monkeypatch.setattr(local_tier, "SummedFile", Signalling)
    cleaner.start()
    assert cleaning.wait(SECONDS)
    tier.resumed = True
    save(state(1), f"{run}/1.mdl", local=tmp_path)
    cleaner.join(SECONDS)
    assert [path.name for path in tmp_path.glob("*/*.mdl")] == ["1.mdl"]
    assert pending(tmp_path) == []


def test_no_saves_any_more(run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A save that is refused, as the interpreter ends, is none that later ones wait for."""
    saves = save_queue._Saves()
    saves._closed = True
    monkeypatch.setattr(save_queue, "_saves", saves)
    with ThreadPoolExecutor(1) as threads:
        for _ in range(2):
            refused = threads.submit(async_save, state(1), f"{run}/1.mdl", local=tmp_path)
            with pytest.raises(RuntimeError, match="starts no saves"):
                refused.result(SECONDS)
        threads.submit(save, state(2), f"{run}/1.mdl", local=tmp_path).result(SECONDS)
    assert load(f"{run}/1.mdl")["step"] == 2


def test_left_that_cannot_be_queued(
    server: LocalS3, run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is no error of the save that comes after it."""
    with pytest.raises(PermissionError):
        save(state(1), f"{run}/1.mdl", local=tmp_path, storage_options=server.storage_options("reader"))
    local_saves._tiers.clear()  # as in another process

    def refused(*_: Any) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(local_saves, "upload_left", refused)
    save(state(2), f"{run}/2.mdl", local=tmp_path)
    assert "1.mdl is not uploaded now: can't start new thread" in caplog.text
    assert load(f"{run}/2.mdl")["step"] == 2


def test_left_while_another_process_ends(
    server: LocalS3, run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it left is uploaded by the first save that can use the folder."""
    with pytest.raises(PermissionError):
        save(state(1), f"{run}/1.mdl", local=tmp_path, storage_options=server.storage_options("reader"))
    local_saves._tiers.clear()  # as in another process

    def locked(path: str) -> None:
        raise BlockingIOError(path)

    with monkeypatch.context() as patched:
        patched.setattr(local_tier, "_lock", locked)
        save(state(2), f"{run}/2.mdl", local=tmp_path)
    assert pending(tmp_path) == ["1.mdl"]
    save(state(3), f"{run}/3.mdl", local=tmp_path)
    async_save(state(4), f"{run}/4.mdl", local=tmp_path).result(SECONDS)  # after the upload of the first
    assert [load(f"{run}/{step}.mdl")["step"] for step in (1, 2, 3, 4)] == [1, 2, 3, 4]


def test_record_of_another_process(run: str, tmp_path: Path) -> None:
    """``load`` changes no record of a process that may be replacing it."""
    save(state(1), f"{run}/1.mdl", local=tmp_path)
    (record,) = tmp_path.glob("*/1.mdl.json")
    left = json.dumps({**json.loads(record.read_bytes()), "remote": None})
    record.write_text(left)
    local_saves._tiers.clear()  # as in another process
    assert load(f"{run}/1.mdl", local=tmp_path)["step"] == 1
    assert record.read_text() == left
    async_save(state(2), f"{run}/2.mdl", local=tmp_path).result(SECONDS)
    assert pending(tmp_path) == []


def test_disk_that_fails_twice(server: LocalS3, run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file that was not replaced keeps its record, however many saves have failed since."""
    path, options = f"{run}/latest.mdl", server.storage_options("reader")
    with pytest.raises(PermissionError):
        save(state(1), path, local=tmp_path, storage_options=options)
    write = LocalRecord.write

    def full(record: LocalRecord, path: str) -> None:
        write(record, path)
        raise OSError("No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(LocalRecord, "write", full)
        for step in (2, 3):
            with pytest.raises(PermissionError):
                save(state(step), path, local=tmp_path, storage_options=options)
    assert load(path, local=tmp_path)["step"] == 1
    local_saves._tiers.clear()  # as in another process
    async_save(state(9), f"{run}/9.mdl", local=tmp_path).result(SECONDS)
    assert load(path)["step"] == 1


def test_names_of_the_folder_itself(run: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Checkpoints with names of records or of the lock are saved without a copy, which would replace these."""
    save(state(1), f"{run}/a", local=tmp_path)
    for step, name in enumerate((".lock", "a.json"), 2):
        async_save(state(step), f"{run}/{name}", local=tmp_path).result(SECONDS)
        assert load(f"{run}/{name}", local=tmp_path)["step"] == step
        assert f"{run}/{name} is saved without a local copy" in caplog.text
    assert pending(tmp_path) == []
    caplog.clear()
    assert load(f"{run}/a", local=tmp_path)["step"] == 1
    assert "is not used" not in caplog.text


@pytest.mark.parametrize("name", ["other.mdl", "latest.mdl"])
def test_save_within_a_save(run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A handler of a signal saves, and does not wait for ever for the save that it interrupts."""
    save(state(1), f"{run}/latest.mdl", local=tmp_path)
    write, handlers = LocalTier.write, [lambda: save(state(3), f"{run}/{name}", local=tmp_path)]

    def interrupted(*args: Any) -> None:
        while handlers:
            handlers.pop()()
        write(*args)

    monkeypatch.setattr(LocalTier, "write", interrupted)
    with ThreadPoolExecutor(1) as threads:
        threads.submit(save, state(2), f"{run}/latest.mdl", local=tmp_path).result(SECONDS)
    assert load(f"{run}/latest.mdl", local=tmp_path)["step"] == load(f"{run}/latest.mdl")["step"] == 2
    assert load(f"{run}/{name}")["step"] == (3 if name == "other.mdl" else 2)
