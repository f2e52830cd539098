"""A root with thousands of checkpoints: only the requests of the listing, and none for each checkpoint."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from checkpoints import MIB
from memory import little_memory
from null_server import PAGE, NullServer, null_server

import fsspec_csx as cstorch
from fsspec_csx.manage.delete import delete, targets
from fsspec_csx.manage.gc import leftovers
from fsspec_csx.manage.list import checkpoints, latest_of
from fsspec_csx.manage.prune import prune
from fsspec_csx.trainer import Checkpoint

ROOT = "many/run"


@pytest.fixture(params=[5_000, pytest.param(100_000, marks=[pytest.mark.long, pytest.mark.timeout(900)])])
def count(request: pytest.FixtureRequest) -> int:
    """How many checkpoints there are."""
    number: int = request.param
    return number


@pytest.fixture
def full(count: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[NullServer]:
    """A server with so many checkpoints, all of one content, in the environment."""
    with null_server() as server:
        report = {"ENDPOINT_URL_S3": server.url, "ACCESS_KEY_ID": "nobody", "SECRET_ACCESS_KEY": "nothing"}
        for name, value in report.items():
            monkeypatch.setenv(f"AWS_{name}", value)
        cstorch.save({"w": torch.ones(3)}, f"s3://{ROOT}/checkpoint_0.mdl")
        server.objects |= dict.fromkeys(map(path_of, range(count)), server.objects[path_of(0)])
        server.objects |= dict.fromkeys((f"many/other/{number}" for number in range(10)), server.objects[path_of(0)])
        server.requests.clear()
        yield server


def path_of(step: int) -> str:
    """Bucket and key of the checkpoint of a step."""
    return f"{ROOT}/checkpoint_{step}.mdl"


@contextmanager
def asking(server: NullServer, **requests: int) -> Iterator[None]:
    """Within the block the server gets at most this many requests of the named kinds, and no others."""
    server.requests.clear()
    began = time.monotonic()
    yield
    asked = Counter(each.operation for each in server.requests)
    print(f"{time.monotonic() - began:.1f} s, {dict(asked)}")
    assert all(asked[operation] <= requests.get(operation, 0) for operation in asked), asked


def pages(count: int) -> int:
    """Requests that list so many."""
    return -(-count // PAGE)


WAYS: dict[str, Callable[[NullServer], object]] = {
    "ls": lambda server: len(server.filesystem().ls(ROOT, detail=True)),
    "find": lambda server: len(server.filesystem().find(ROOT)),
    "glob": lambda server: len(server.filesystem().glob(f"{ROOT}/checkpoint_*.mdl")),
    "du": lambda server: server.filesystem().du(ROOT) // server.objects[path_of(0)].size,
    "checkpoints": lambda server: len(checkpoints(f"s3://{ROOT}")),
    "recursive": lambda server: len(checkpoints(f"s3://{ROOT}", recursive=True)),
    "prune_dry": lambda server: len(prune(f"s3://{ROOT}", 1, dry_run=True).to_delete) + 1,
    "trainer": lambda server: len(Checkpoint(steps=1).get_all_checkpoints(f"s3://{ROOT}")),
}


@pytest.mark.parametrize("way", WAYS)
def test_listing(full: NullServer, count: int, way: str) -> None:
    """All are found, by as many requests as there are pages, and in little memory for each."""
    # A name with characters of patterns is looked up first; prune reads the newest to see whether it is whole.
    with (
        asking(full, list_objects_v2=pages(count), head_object=1, get_object=1),
        little_memory(32 * MIB + 4000 * count),
    ):
        assert WAYS[way](full) == count


def test_newest(full: NullServer, count: int) -> None:
    """The newest is the one of the last step, whatever order their names have."""
    with asking(full, list_objects_v2=pages(count)):
        found = latest_of(checkpoints(f"s3://{ROOT}"))
    assert found is not None
    assert found.step == count - 1


def test_one_of_many(full: NullServer, count: int) -> None:
    """One is loaded, saved and deleted without a look at the others."""
    path = f"s3://{path_of(count // 2)}"
    with asking(full, get_object=4, head_object=2, put_object=1):
        cstorch.load(path)
        cstorch.save({"w": torch.ones(3)}, path)
    with asking(full, head_object=2, delete_object=1, list_objects_v2=1):
        assert delete(targets([path])) == {}
    assert len(full.objects) == count + 9


def test_pruned(full: NullServer, count: int) -> None:
    """All but the newest are deleted a thousand by a request, and nothing beside them."""
    with asking(full, list_objects_v2=pages(count), delete_objects=pages(count), get_object=6, head_object=6):
        pruned = prune(f"s3://{ROOT}", 2)
    assert pruned.failed == {}
    assert [each.step for each in pruned.kept] == [count - 2, count - 1]
    assert len(full.objects) == 12


def test_leftovers(full: NullServer) -> None:
    """Objects are listed once in search of files that were left, and none is looked at by itself."""
    with asking(full, list_multipart_uploads=1, list_objects_v2=pages(len(full.objects))):
        assert leftovers(f"s3://{ROOT}") == []
