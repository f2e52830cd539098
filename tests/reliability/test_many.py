"""Concurrent writers: one complete state remains; a reader gets one state, or a clear error."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from proxy import Fault, fault_proxy, through
from roots import fill, left
from s3fs.utils import FileExpired
from stage import save_small
from victims import CleanProcess, state

from fsspec_csx import copy, distributed, load, move, save
from fsspec_csx.manage.gc import clear, leftovers
from fsspec_csx.manage.prune import prune
from fsspec_csx.s3.filesystem import CSXFileSystem
from fsspec_csx.testing import LocalS3

NUMBERS = 9 * 2**18
"""Of a checkpoint of 9 MiB: two parts of an upload."""
WRITERS = [2, 20]
NOW = timedelta(0)


@pytest.fixture(scope="module")
def clean() -> Iterator[CleanProcess]:
    """The process from which others are forked."""
    with CleanProcess() as running:
        yield running


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path, environment: LocalS3, bucket: str) -> str:
    """A folder, on this machine and on S3."""
    return str(tmp_path) if request.param == "local" else f"s3://{bucket}/run"


def at_once(*functions: Callable[[], object]) -> list[Any]:
    """What each gives, or raises, when all begin at the same moment, in threads."""
    found: list[Any] = [None] * len(functions)
    start = threading.Barrier(len(functions))

    def run(number: int) -> None:
        start.wait()
        try:
            found[number] = functions[number]()
        except Exception as error:
            found[number] = error

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def seed_of(loaded: dict[str, Any]) -> int:
    """The seed of a checkpoint, all of which is of it."""
    expected = state(loaded["step"], len(loaded["large"]))
    assert torch.equal(loaded["large"], expected["large"])
    assert all(torch.equal(tensor, expected["small"][name]) for name, tensor in loaded["small"].items())
    return int(loaded["step"])


@pytest.mark.parametrize("writers", WRITERS)
def test_threads_write_one_path(place: str, writers: int) -> None:
    """Of threads that save to one path one wins; a reader meanwhile has one state, or an error that it changed."""
    path = f"{place}/x.mdl"
    save(state(0, NUMBERS), path)
    over = threading.Event()
    seen: Counter[object] = Counter()

    def read() -> None:
        while not over.is_set():
            try:
                seen[seed_of(load(path))] += 1
            except FileExpired as error:
                seen[type(error)] += 1

    reader = threading.Thread(target=read)
    reader.start()
    results = at_once(*[lambda seed=seed: save(state(seed, NUMBERS), path) for seed in range(1, writers + 1)])
    over.set()
    reader.join()
    assert results == [None] * writers
    assert seed_of(load(path)) in range(1, writers + 1)
    assert {*seen} <= {*range(writers + 1), FileExpired}
    assert sum(seen.values()), "the reader has seen nothing"
    assert [name for name in left(place) if name != "home"] == ["x.mdl"]
    assert leftovers(place, older_than=NOW) == []


@pytest.mark.parametrize("writers", [2, 20])
def test_processes_write_one_path(place: str, environment: LocalS3, clean: CleanProcess, writers: int) -> None:
    """So it is with processes."""
    path = f"{place}/x.mdl"
    with contextlib.ExitStack() as stack:
        started = [
            stack.enter_context(clean.started("save", path, seed, NUMBERS, environment=environment.environment()))
            for seed in range(1, writers + 1)
        ]
        assert [(each.wait(), each.said()) for each in started] == [(0, "")] * writers
    assert seed_of(load(path)) in range(1, writers + 1)
    assert leftovers(place, older_than=NOW) == []


CREATING: dict[str, Callable[[CSXFileSystem, str, bytes], object]] = {
    "pipe": lambda fs, path, data: fs.pipe_file(path, data, mode="create"),
    "open": lambda fs, path, data: _written(fs, path, data),
}


def _written(fs: CSXFileSystem, path: str, data: bytes) -> None:
    with fs.open(path, "xb") as file:
        file.write(data)


@pytest.mark.parametrize("way", CREATING)
def test_one_creates(fs: CSXFileSystem, bucket: str, way: str) -> None:
    """Of twenty that create an object one does, and the others are reported that it is there."""
    data = [bytes([number]) * 1000 for number in range(20)]
    path = f"{bucket}/x"
    results = at_once(*[lambda each=each: CREATING[way](fs, path, each) for each in data])
    failed = [result for result in results if isinstance(result, Exception)]
    assert [type(error) for error in failed if not isinstance(error, FileExistsError)] == []
    assert len(failed) == 19
    winner = next(number for number, result in enumerate(results) if not isinstance(result, Exception))
    assert fs.cat_file(path) == data[winner]


@pytest.mark.parametrize("way", ["pipe", "open"])
def test_one_creates_by_parts(server: LocalS3, fs: CSXFileSystem, bucket: str, way: str) -> None:
    """So it is with uploads, as far as the server goes: those succeed, and only those, that it has said yes to."""
    data = [bytes([number]) * (10 * 2**20) for number in range(20)]
    path = f"{bucket}/x"
    with fault_proxy(server.endpoint_url) as proxy:
        far = through(proxy, server)
        results = at_once(*[lambda each=each: CREATING[way](far, path, each) for each in data])
        completed = [one for one in proxy.made("POST", "uploadId=") if one.status == 200]
    failed = [result for result in results if isinstance(result, Exception)]
    assert [type(error) for error in failed if not isinstance(error, FileExistsError)] == []
    # The condition of a completion is not looked at in one step with it by the server of these tests.
    assert 20 - len(failed) == len(completed) in range(1, 20)
    winners = [number for number, result in enumerate(results) if not isinstance(result, Exception)]
    assert fs.cat_file(path) in [data[winner] for winner in winners]
    assert fs.list_multipart_uploads(bucket) == []


def test_one_copies(place: str, tmp_path: Path) -> None:
    """Of twenty that copy to a path where nothing was one does."""
    sources = [str(tmp_path / f"source_{number}.mdl") for number in range(20)]
    for number, source in enumerate(sources):
        save(state(number, 1000), source)
    results = at_once(*[lambda source=source: copy(source, f"{place}/x.mdl") for source in sources])
    failed = [result for result in results if isinstance(result, Exception)]
    assert [type(error) for error in failed if not isinstance(error, FileExistsError)] == []
    assert len(failed) == 19
    winner = next(number for number, result in enumerate(results) if not isinstance(result, Exception))
    assert seed_of(load(f"{place}/x.mdl")) == winner


def test_deleted_while_it_is_read(server: LocalS3, fs: CSXFileSystem, bucket: str) -> None:
    """What is deleted in the middle of a load is reported as missing, and nothing half is loaded."""
    save(state(1), f"s3://{bucket}/x.mdl", storage_options=server.storage_options())
    with fault_proxy(server.endpoint_url) as proxy:
        far = through(proxy, server)
        for skip in range(8):
            save(state(1), f"s3://{bucket}/x.mdl", storage_options=server.storage_options())
            proxy.faults = [Fault("GET", skip=skip, before=lambda: fs.rm_file(f"{bucket}/x.mdl"))]
            file = far.open(f"{bucket}/x.mdl", "rb", block_size=2**20)
            with pytest.raises((FileNotFoundError, FileExpired)), file:
                while file.read(2**20):
                    pass


def test_two_prune(place: str) -> None:
    """Two that prune at once delete the same, and neither fails."""
    names = [f"checkpoint_{number}.mdl" for number in range(1, 13)]
    fill(f"{place}/c", *names, data=save_small())
    for found in at_once(*[lambda: prune(f"{place}/c", 2)] * 2):
        assert not isinstance(found, Exception), found
        assert found.failed == {}
    assert left(f"{place}/c") == ["checkpoint_11.mdl", "checkpoint_12.mdl"]


def test_two_clear(place: str, fs: CSXFileSystem) -> None:
    """Two that clear up at once clear the same, and neither fails."""
    fill(f"{place}/c", "x.mdl", *(f".{number}.mdl.0123456789abcdef.tmp" for number in range(5)))
    if "://" in place:
        for number in range(5):
            bucket, key, _ = fs.split_path(f"{place}/c/{number}.mdl")
            fs.call_s3("create_multipart_upload", Bucket=bucket, Key=key)
    found = leftovers(f"{place}/c", older_than=NOW)
    assert len(found) == (10 if "://" in place else 5)
    assert at_once(*[lambda: clear(found)] * 2) == [{}, {}]
    assert left(f"{place}/c") == ["x.mdl"]
    assert leftovers(f"{place}/c", older_than=NOW) == []


@pytest.mark.parametrize("targets", [1, 2])
def test_two_move(place: str, environment: LocalS3, bucket: str, targets: int) -> None:
    """Of two that move one checkpoint at least one does; whoever did has it whole, and the source is gone."""
    save(state(1, NUMBERS), f"{place}/m/x.mdl")
    named = [f"s3://{bucket}/to/{number % targets}.mdl" for number in range(2)]
    results = at_once(*[lambda target=target: move(f"{place}/m/x.mdl", target) for target in named])
    failed = [result for result in results if isinstance(result, Exception)]
    assert all(isinstance(error, (FileNotFoundError, FileExistsError, FileExpired)) for error in failed), failed
    assert len(failed) < 2
    for target, result in zip(named, results, strict=True):
        if not isinstance(result, Exception):
            assert seed_of(load(target)) == 1
    assert left(f"{place}/m") == []


def test_two_sharded_saves(place: str, environment: LocalS3, clean: CleanProcess) -> None:
    """Of two sharded saves to one folder one is there, whole; what is left of the other is cleared."""
    path = f"{place}/d"
    distributed.save(state(0), path)
    with contextlib.ExitStack() as stack:
        started = [
            stack.enter_context(clean.started("distributed_save", path, seed, environment=environment.environment()))
            for seed in (1, 2)
        ]
        assert [(each.wait(), each.said()) for each in started] == [(0, "")] * 2
    assert seed_of(distributed.whole(path)) in (1, 2)
    clear(leftovers(path if "://" in path else place, older_than=NOW))
    assert distributed.leftovers(path) == []
    assert seed_of(distributed.whole(path)) in (1, 2)


def test_two_trainings(place: str, environment: LocalS3, clean: CleanProcess) -> None:
    """Two trainings in one folder leave complete checkpoints alone, and a third resumes from the last."""
    with contextlib.ExitStack() as stack:
        started = [
            stack.enter_context(clean.started("train", f"{place}/t", 6, environment=environment.environment()))
            for _ in range(2)
        ]
        assert [each.wait() for each in started] == [0, 0], [each.said() for each in started]
    fs, path = fsspec.url_to_fs(f"{place}/t")
    fs.invalidate_cache()
    names = [name.rpartition("/")[2] for name in fs.ls(path, detail=False)]
    assert {name.split("_")[1].removesuffix(".mdl") for name in names} == {"2", "4", "6"}
    for name in names:
        assert load(f"{place}/t/{name}")["global_step"] == int(name.split("_")[1].removesuffix(".mdl"))
    status, said = clean.run("train", f"{place}/t", 8, environment=environment.environment())
    assert not status, said
    assert load(f"{place}/t/checkpoint_8.mdl")["global_step"] == 8
