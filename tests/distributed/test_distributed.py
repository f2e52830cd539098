"""Sharded checkpoints of torch.distributed.checkpoint, on any filesystem."""

from __future__ import annotations

import contextlib
import copyreg
import os
import pickle
import random
import signal
import subprocess
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import distributed_job
import fsspec
import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from forked import python
from proxy import Fault, FaultProxy
from torch.distributed.checkpoint._fsspec_filesystem import FsspecReader, FsspecWriter
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, StorageMeta, TensorProperties
from torch.distributed.checkpoint.planner import WriteItem

import fsspec_csx
from fsspec_csx import distributed
from fsspec_csx.distributed import StorageReader, StorageWriter
from fsspec_csx.errors import (
    DtypeCastWarning,
    InvalidCheckpointError,
    MismatchError,
    MissingEntryError,
    UnsafeCheckpointError,
)
from fsspec_csx.formats.dcp import manifest
from fsspec_csx.formats.dcp.boxes import Box
from fsspec_csx.formats.dcp.full_state_dict import ShardedStateDict
from fsspec_csx.formats.dcp.layout import ShardedFolder
from fsspec_csx.formats.dcp.reader import TensorRead, read_tensors
from fsspec_csx.manage.convert import convert
from fsspec_csx.s3.filesystem import CSXFileSystem
from fsspec_csx.tensors import fill, tiling
from fsspec_csx.tensors.lazy_object import Record
from fsspec_csx.testing import LocalS3

SEED = 20261123
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn)
OTHERS = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.complex64)


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    """torch warns of a process that is alone, where it is called itself."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        warnings.filterwarnings("ignore", "Detected an existing checkpoint", UserWarning)
        yield


def state() -> dict[str, Any]:
    """What a trainer has, and tensors of every kind."""
    torch.manual_seed(SEED)
    tied = torch.randn(300, 200)
    return {
        "model": {"embedding": tied, "head": tied, "bias": torch.randn(7), "large": torch.randn(3, 100_000)},
        "kinds": {str(dtype): torch.arange(6).to(dtype).reshape(2, 3) for dtype in (*FLOATS, *OTHERS)},
        "shapes": {
            "scalar": torch.tensor(2.5),
            "empty": torch.empty(0, 4),
            "turned": torch.randn(5, 4).t(),
            "part": torch.arange(100)[10:20],
            "expanded": torch.ones(1, 3).expand(4, 3),
            "conjugate": torch.randn(3, dtype=torch.complex64).conj(),
        },
        "list": [torch.ones(2), {"inner": torch.zeros(1)}],
        "step": 7,
        "values": [1, 2.5, "text", None],
    }


def emptied(value: Any) -> Any:
    """The same with other numbers."""
    if isinstance(value, dict):
        return {key: emptied(each) for key, each in value.items()}
    if isinstance(value, list):
        return [emptied(each) for each in value]
    return torch.zeros_like(value.clone()) if isinstance(value, torch.Tensor) else None


def difference(found: Any, wanted: Any, name: str = "") -> str | None:
    """What is not the same, or None."""
    if isinstance(wanted, dict):
        if found.keys() != wanted.keys():
            return f"{name}: {list(found)}"
        return next(filter(None, (difference(found[key], each, f"{name}.{key}") for key, each in wanted.items())), None)
    if isinstance(wanted, list) and any(isinstance(each, (dict, torch.Tensor)) for each in wanted):
        return difference(dict(enumerate(found)), dict(enumerate(wanted)), name)
    if not isinstance(wanted, torch.Tensor):
        return None if found == wanted else f"{name}: {found}"
    alike = (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
    same = alike and bool((found.to(torch.complex128) == wanted.to(torch.complex128)).all())
    return None if same else f"{name}: {found}"


def files(root: str) -> dict[str, bytes]:
    """What lies in a folder."""
    fs, path = fsspec.url_to_fs(root)
    fs.invalidate_cache()
    return {name.rpartition("/")[2]: fs.cat_file(name) for name in fs.find(path)}


def shard_of(root: str) -> tuple[str, bytes]:
    """The name and the bytes of the only shard in a folder."""
    (found,) = ((name, data) for name, data in files(root).items() if name.endswith(".distcp"))
    return found


def put(root: str, name: str, data: bytes) -> None:
    """Write a file into a folder."""
    with fsspec.open(f"{root}/{name}", "wb") as file:
        file.write(data)


def folder(root: str) -> ShardedFolder:
    """A folder of ours."""
    fs, path = fsspec.url_to_fs(root)
    return ShardedFolder(fs, path, root)


# -- one process -------------------------------------------------------------------------------------------------------


def test_round_trip(root: str) -> None:
    """What is saved is loaded, into tensors that are there and as a whole."""
    distributed.save(state(), f"{root}/a")
    found = emptied(state())
    weight = found["model"]["large"]
    distributed.load(found, f"{root}/a")
    assert difference(found, state()) is None
    assert found["model"]["large"] is weight
    assert difference(distributed.whole(f"{root}/a"), state()) is None
    assert distributed.leftovers(f"{root}/a") == []


def test_torch_reads_ours(root: str) -> None:
    """torch's own reader loads what ours wrote."""
    distributed.save(state(), f"{root}/a")
    found = emptied(state())
    dcp.load(found, storage_reader=FsspecReader(f"{root}/a"))
    assert difference(found, state()) is None


def test_theirs(root: str) -> None:
    """What torch's own writer wrote is loaded, large tensors and small, turned ones and values."""
    given = state()
    given["model"]["huge"] = torch.randn(700, 1000)
    given["model"]["huge, turned"] = torch.randn(1000, 700).t()
    dcp.save(given, storage_writer=FsspecWriter(f"{root}/a", sync_files=False))
    found = emptied(given)
    dcp.load(found, storage_reader=StorageReader(f"{root}/a"))
    assert difference(found, given) is None
    assert difference(distributed.whole(f"{root}/a"), given) is None


def test_items_are_torchs(tmp_path: Path) -> None:
    """The items of a shard are those that torch's own writer makes, byte for byte."""
    tensors = {f"{number}": torch.randn(number, 30) for number in range(1, 4)}
    distributed.save(tensors, tmp_path / "ours")
    dcp.save(tensors, storage_writer=FsspecWriter(str(tmp_path / "theirs"), sync_files=False))
    (ours,) = (tmp_path / "ours").glob("*.distcp")
    (theirs,) = (tmp_path / "theirs").glob("*.distcp")
    assert ours.read_bytes() == theirs.read_bytes()


def test_shards_are_not_reused(root: str) -> None:
    """A second save has shards of other names, and those of the first, of torch's writer too, are gone after it."""
    dcp.save({"x": torch.zeros(3)}, storage_writer=FsspecWriter(f"{root}/a", sync_files=False))
    distributed.save({"x": torch.ones(3)}, f"{root}/a")
    first = files(f"{root}/a").keys()
    distributed.save({"x": torch.ones(3) * 2}, f"{root}/a")
    second = files(f"{root}/a").keys()
    assert len(first) == len(second) == 2
    assert first & second == {".metadata"}
    assert distributed.whole(f"{root}/a")["x"].tolist() == [2, 2, 2]


def test_cached_plans_do_not_reuse_shards(tmp_path: Path) -> None:
    """A planner that keeps its plans does not make a save overwrite the shards of the one before."""
    for number in range(2):
        planner = dcp.DefaultSavePlanner(enable_plan_caching=True)
        distributed.save({"x": torch.full((3,), number)}, tmp_path / f"{number}", planner=planner)
    names = [next((tmp_path / f"{number}").glob("*.distcp")).name for number in range(2)]
    assert names[0] != names[1]
    assert distributed.whole(tmp_path / "1")["x"].tolist() == [1, 1, 1]


class Failing(dcp.DefaultSavePlanner):
    """Fails at a tensor."""

    def resolve_data(self, write_item: WriteItem) -> Any:
        if write_item.index.fqn == "y":
            raise RuntimeError("no y")
        return super().resolve_data(write_item)


def test_failed_save(root: str) -> None:
    """A save that fails raises what went wrong, and leaves the former checkpoint and nothing else."""
    distributed.save({"x": torch.ones(3), "y": torch.ones(1)}, f"{root}/a")
    before = files(f"{root}/a")
    with pytest.raises(RuntimeError, match="no y"):
        distributed.save({"x": torch.zeros(3), "y": torch.ones(1)}, f"{root}/a", planner=Failing())
    assert files(f"{root}/a") == before


def test_unclear_end(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the manifest was written and the server's answer was lost, the new checkpoint is whole."""
    distributed.save({"x": torch.ones(3)}, f"{root}/a")
    replacing = ShardedFolder.atomic_write

    @contextlib.contextmanager
    def lost(self: ShardedFolder, name: str) -> Iterator[Any]:
        with replacing(self, name) as file:
            yield file
        raise ConnectionError("lost")

    monkeypatch.setattr(ShardedFolder, "atomic_write", lost)
    with pytest.raises(ConnectionError, match="lost"):
        distributed.save({"x": torch.zeros(3)}, f"{root}/a")
    assert distributed.whole(f"{root}/a")["x"].tolist() == [0, 0, 0]


def test_crash_before_the_manifest(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between shards and manifest, the former checkpoint is there; the new shards are found by their names."""
    distributed.save({"x": torch.ones(3)}, f"{root}/a")
    before = files(f"{root}/a")
    writer = StorageWriter(f"{root}/a")
    monkeypatch.setattr(writer, "finish", lambda metadata, results: 1 / 0)
    with pytest.raises(CheckpointException):
        dcp.save({"x": torch.zeros(3)}, storage_writer=writer)
    left = distributed.leftovers(f"{root}/a")
    assert len(left) == 1
    assert files(f"{root}/a").keys() - before.keys() == {*left}
    assert distributed.whole(f"{root}/a")["x"].tolist() == [1, 1, 1]


def test_crash_after_the_manifest(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between manifest and clean-up, the new checkpoint is there; the old shards are found by their names."""
    distributed.save({"x": torch.ones(3)}, f"{root}/a")
    old = files(f"{root}/a").keys() - {".metadata"}
    monkeypatch.setattr(ShardedFolder, "remove", lambda *_: None)
    distributed.save({"x": torch.zeros(3)}, f"{root}/a")
    assert distributed.whole(f"{root}/a")["x"].tolist() == [0, 0, 0]
    assert {*distributed.leftovers(f"{root}/a")} == old


@pytest.mark.slow
def test_lost_answers(environment: LocalS3, bucket: str, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shard that the server has, though the client did not hear so, is removed when the save fails."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
    proxy.faults = [Fault("PUT", cut_down=0.0, times=100)]
    with pytest.raises(OSError, match="distcp"):
        distributed.save({"x": torch.ones(3)}, f"s3://{bucket}/a")
    assert proxy.faults[0].done
    assert distributed.leftovers(f"s3://{bucket}/a") == []


def test_replaced_while_it_is_saved(root: str) -> None:
    """A save that ends while another one writes its shard leaves no shards: the later one removes them."""
    distributed.save({"x": torch.ones(3)}, f"{root}/a")

    class Saving(fsspec.Callback):  # type: ignore[misc]
        done = False

        def relative_update(self, inc: int = 1) -> None:
            if not self.done:
                self.done = True
                distributed.save({"x": torch.full((3,), 2.0)}, f"{root}/a")

    large = {"x": torch.zeros(2**20)}
    distributed.save(large, f"{root}/a", callback=Saving())
    assert torch.equal(distributed.whole(f"{root}/a")["x"], large["x"])
    assert distributed.leftovers(f"{root}/a") == []


def test_no_manifest_no_checkpoint(root: str) -> None:
    """A folder of shards without a manifest is no checkpoint."""
    distributed.save({"x": torch.ones(3)}, f"{root}/a")
    fs, path = fsspec.url_to_fs(f"{root}/a/.metadata")
    fs.rm(path)
    with pytest.raises(FileNotFoundError):
        distributed.load({"x": torch.zeros(3)}, f"{root}/a")
    with pytest.raises(FileNotFoundError):
        distributed.whole(f"{root}/a")


def test_not_overwritten(root: str) -> None:
    """A checkpoint that may not be replaced is not."""
    distributed.save({"x": torch.ones(3)}, f"{root}/a", overwrite=False)
    before = files(f"{root}/a")
    with pytest.raises(FileExistsError, match="has a checkpoint already"):
        distributed.save({"x": torch.zeros(3)}, f"{root}/a", overwrite=False)
    assert files(f"{root}/a") == before


def test_ranks_must_wait(tmp_path: Path) -> None:
    """A save whose ranks do not wait for each other is refused."""
    writer = StorageWriter(tmp_path)
    with pytest.raises(ValueError, match="Leave use_collectives=False out"):
        writer.set_up_storage_writer(True, rank=0, use_collectives=False)


def test_tied_tensors_are_stored_once(tmp_path: Path) -> None:
    """Tensors of the same memory take its space once, and come back under each name."""
    tied = torch.randn(100, 1000)
    distributed.save({"a": tied, "b": tied, "c": tied[:50]}, tmp_path / "a")
    (shard,) = (tmp_path / "a").glob("*.distcp")
    assert shard.stat().st_size < 1.6 * tied.nbytes
    found = distributed.whole(tmp_path / "a")
    assert torch.equal(found["a"], tied)
    assert torch.equal(found["b"], tied)
    assert torch.equal(found["c"], tied[:50])


class Doubling(dcp.DefaultSavePlanner):
    """Saves twice the numbers, in memory of its own for each."""

    def transform_object(self, write_item: WriteItem, object: Any) -> Any:
        given = super().transform_object(write_item, object)
        return given * 2 if isinstance(given, torch.Tensor) else given


@pytest.mark.parametrize("ours", [True, False])
def test_views_that_change_the_sign(tmp_path: Path, ours: bool) -> None:
    """Negated and conjugated views are loaded as such, beside others of the same memory and when read in parts."""
    large, numbers = torch.ones(2**21), torch.ones(3, dtype=torch.complex64) * 1j
    saved = {"large": large, "negated": torch._neg_view(large), "complex": numbers, "conjugated": numbers.conj()}
    dcp.save(saved, storage_writer=(StorageWriter if ours else FsspecWriter)(str(tmp_path / "x")))
    found = fsspec_csx.load(tmp_path / "x")
    assert difference(found, {name: each.resolve_conj().resolve_neg() for name, each in saved.items()}) is None


def test_planner_with_memory_of_its_own(root: str) -> None:
    """What a planner makes for a moment is saved, though its memory goes at once."""
    given = {str(number): torch.full((50_000,), float(number)) for number in range(20)}
    distributed.save(given, f"{root}/a", planner=Doubling())
    found = distributed.whole(f"{root}/a")
    assert all(torch.equal(found[name], each * 2) for name, each in given.items())


def test_writer_is_used_again(root: str) -> None:
    """A writer and a reader serve for several paths, as torch uses them."""
    writer, reader = StorageWriter(f"{root}/a"), StorageReader(f"{root}/a")
    dcp.save({"x": torch.ones(1)}, storage_writer=writer)
    dcp.save({"x": torch.ones(1) * 2}, storage_writer=writer, checkpoint_id=f"{root}/b")
    for name, number in (("b", 2), ("a", 1)):
        found = {"x": torch.zeros(1)}
        dcp.load(found, storage_reader=reader, checkpoint_id=f"{root}/{name}")
        assert found["x"].item() == number


def test_async_save(root: str) -> None:
    """What is saved in the background is what was there at the call."""
    given = {"x": torch.ones(1000)}
    going = dcp.async_save(given, storage_writer=StorageWriter(f"{root}/a"))
    given["x"].zero_()
    assert not isinstance(going, dcp.state_dict_saver.AsyncSaveResponse)
    going.result()
    assert distributed.whole(f"{root}/a")["x"].sum() == 1000


def test_writer_and_reader_pickle(root: str) -> None:
    """A writer and a reader reach other processes, as torch sends them to one that saves in the background."""
    writer, reader = (pickle.loads(pickle.dumps(kind(f"{root}/a"))) for kind in (StorageWriter, StorageReader))
    dcp.save({"x": torch.ones(2)}, storage_writer=writer)
    found = {"x": torch.zeros(2)}
    dcp.load(found, storage_reader=reader)
    assert found["x"].tolist() == [1, 1]


def test_part_by_keys(root: str) -> None:
    """Some entries of the whole, by their names."""
    distributed.save(state(), f"{root}/a")
    assert distributed.whole(f"{root}/a", keys=["model.bias", "step"]).keys() == {"model", "step"}
    with pytest.raises(MissingEntryError, match=r"model\.bias"):
        distributed.whole(f"{root}/a", keys=["model.bais"])


def test_load_and_inspect(root: str) -> None:
    """fsspec_csx.load and inspect take the folder of a sharded checkpoint."""
    distributed.save(state(), f"{root}/a")
    assert difference(fsspec_csx.load(f"{root}/a"), state()) is None
    assert fsspec_csx.load(f"{root}/a", keys=["step"]) == {"step": 7}
    assert fsspec_csx.load(f"{root}/a", keys=["model"], map_location="meta")["model"]["bias"].shape == (7,)
    info = fsspec_csx.inspect(f"{root}/a")
    assert info.format == "distributed"
    assert info.tensors["model.large"].shape == (3, 100_000)
    assert info.tensors["model.large"].nbytes == 1_200_000
    assert info.values == {"step": 7, "values": [1, 2.5, "text", None]}
    assert info.size == len(shard_of(f"{root}/a")[1])
    with pytest.raises(FileNotFoundError):
        fsspec_csx.load(f"{root}/b")


@pytest.mark.parametrize("ours", [True, False])
def test_load_into(tmp_path: Path, ours: bool) -> None:
    """A sharded checkpoint fills tensors that are there, keeps their memory, casts, and says what does not fit."""
    writer = StorageWriter(tmp_path / "a") if ours else FsspecWriter(str(tmp_path / "a"), sync_files=False)
    dcp.save(state(), storage_writer=writer)
    into = emptied(state())
    bias = into["model"]["bias"]
    assert fsspec_csx.load(tmp_path / "a", into=into) is into
    assert difference(into, state()) is None
    assert bias is into["model"]["bias"]
    half = {"model": {"large": torch.zeros(3, 100_000, dtype=torch.float16), "bias": torch.zeros(7)}}
    with pytest.warns(DtypeCastWarning, match="1 from torch.float32 to torch.float16"):
        fsspec_csx.load(tmp_path / "a", into=half, keys=["model.large", "model.bias"])
    assert torch.equal(half["model"]["large"], state()["model"]["large"].half())
    with pytest.raises(MismatchError, match=r"model\.bias"):
        fsspec_csx.load(tmp_path / "a", into={"model": {"bias": torch.zeros(8)}}, keys=["model.bias"])


def test_load_into_of_damage(tmp_path: Path) -> None:
    """A flipped bit is an error that names the tensor when it is loaded into one that is there, too."""
    distributed.save({"x": torch.full((1000,), 1.5), "y": torch.zeros(2)}, tmp_path / "a")
    name, data = shard_of(str(tmp_path / "a"))
    position = data.index(torch.full((1000,), 1.5).numpy().tobytes()) + 2000
    put(str(tmp_path / "a"), name, data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
    with pytest.raises(InvalidCheckpointError, match="'x'"):
        fsspec_csx.load(tmp_path / "a", into={"x": torch.zeros(1000), "y": torch.zeros(2)})


def test_incomplete_folder(root: str) -> None:
    """A folder of shards without a manifest is named as such by whatever reads it; an empty place is not."""
    distributed.save({"x": torch.ones(3)}, f"{root}/a")
    fs, path = fsspec.url_to_fs(f"{root}/a")
    fs.rm_file(f"{path}/.metadata")
    for read in (fsspec_csx.load, fsspec_csx.inspect, lambda path: fsspec_csx.load(path, into={"x": torch.zeros(3)})):
        with pytest.raises(InvalidCheckpointError, match="has shards but no manifest"):
            read(f"{root}/a")


def test_shard_that_is_not_whole(tmp_path: Path) -> None:
    """Nor is one in which a save was killed with its first shard."""
    (tmp_path / ".__0_0.0123456789abcdef.distcp.0123456789abcdef.tmp").touch()
    with pytest.raises(InvalidCheckpointError, match="has shards but no manifest"):
        fsspec_csx.load(tmp_path)


def test_converted_to_one_file_and_back(root: str) -> None:
    """A sharded checkpoint becomes a file that torch.load reads, and that file a sharded checkpoint, of the same."""
    given = state()
    distributed.save(given, f"{root}/a")
    convert(f"{root}/a", f"{root}/a.pt")
    with fsspec.open(f"{root}/a.pt", "rb") as file:
        assert difference(torch.load(file, weights_only=True), given) is None
    convert(f"{root}/a.pt", f"{root}/b", format="distributed")
    assert difference(distributed.whole(f"{root}/b"), given) is None
    found = emptied(given)
    dcp.load(found, storage_reader=FsspecReader(f"{root}/b"))
    assert difference(found, given) is None


def test_one_file_with_tied_tensors(tmp_path: Path) -> None:
    """Tensors that share memory in a file, also parts of it, become sharded with their numbers."""
    memory = torch.randn(100, 1000)
    torch.save({"a": memory, "b": memory, "c": memory[10:20], "n": 3}, tmp_path / "x.pt")
    convert(tmp_path / "x.pt", tmp_path / "a", format="distributed")
    found = distributed.whole(tmp_path / "a")
    assert torch.equal(found["a"], memory)
    assert torch.equal(found["b"], memory)
    assert torch.equal(found["c"], memory[10:20])
    assert found["n"] == 3


def test_damaged_file_is_not_sharded(tmp_path: Path) -> None:
    """A file with a flipped bit is an error that names the tensor, and no checkpoint comes of it."""
    torch.save({"x": torch.full((100_000,), 1.5)}, tmp_path / "x.pt")
    data = bytearray((tmp_path / "x.pt").read_bytes())
    data[200_000] ^= 1
    (tmp_path / "x.pt").write_bytes(data)
    with pytest.raises(InvalidCheckpointError, match="'x'"):
        convert(tmp_path / "x.pt", tmp_path / "a", format="distributed")
    assert not (tmp_path / "a" / ".metadata").exists()
    torch.save([1, 2], tmp_path / "x.pt")
    with pytest.raises(InvalidCheckpointError, match="holds a list"):
        convert(tmp_path / "x.pt", tmp_path / "a", format="distributed")


# -- damaged and hostile -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ours", [True, False])
def test_flipped_bit(root: str, ours: bool) -> None:
    """One flipped bit in the bytes of a tensor is an error that names it; another tensor still loads."""
    given = {"model": {"weight": torch.full((1000,), 1.5), "bias": torch.zeros(2)}}
    writer = StorageWriter(f"{root}/a") if ours else FsspecWriter(f"{root}/a", sync_files=False)
    dcp.save(given, storage_writer=writer)
    name, data = shard_of(f"{root}/a")
    position = data.index(given["model"]["weight"].numpy().tobytes()) + 2000
    put(f"{root}/a", name, data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
    with pytest.raises(InvalidCheckpointError, match=r"model\.weight|'data/0'"):
        distributed.whole(f"{root}/a")
    with pytest.raises(InvalidCheckpointError, match="is damaged"):
        distributed.load(emptied(given), f"{root}/a")
    assert distributed.whole(f"{root}/a", keys=["model.bias"])["model"]["bias"].sum() == 0


def test_flipped_bit_in_a_value(root: str) -> None:
    """One flipped bit in a value that is no tensor is an error that names it."""
    distributed.save({"text": "a" * 100}, f"{root}/a")
    name, data = shard_of(f"{root}/a")
    put(f"{root}/a", name, data.replace(b"aaaa", b"aaab", 1))
    with pytest.raises(InvalidCheckpointError, match="'text'"):
        distributed.whole(f"{root}/a")


def test_shard_cut_short(root: str) -> None:
    """A shard that is cut short is named."""
    distributed.save({"x": torch.ones(1000)}, f"{root}/a")
    name, data = shard_of(f"{root}/a")
    put(f"{root}/a", name, data[:-100])
    with pytest.raises(InvalidCheckpointError, match=f"{name} of .* is cut short"):
        distributed.load({"x": torch.zeros(1000)}, f"{root}/a")


class Exploit:
    """Runs code when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_hostile_manifest(tmp_path: Path) -> None:
    """A manifest that would run code does not."""
    distributed.save({"x": torch.ones(1)}, tmp_path / "a")
    found = manifest.read(folder(str(tmp_path / "a")))
    found.planner_data = Exploit(tmp_path / "ran")
    (tmp_path / "a" / ".metadata").write_bytes(pickle.dumps(found))
    for attempt in (distributed.whole, lambda path: distributed.load({"x": torch.zeros(1)}, path)):
        with pytest.raises(UnsafeCheckpointError, match=r"posix\.mkdir"):
            attempt(str(tmp_path / "a"))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "named",
    [
        *("builtins.getattr", "torch.load", "torch._C", "copyreg._reconstructor"),
        "torch.distributed.checkpoint.metadata.os",
    ],
)
def test_other_names_are_refused(tmp_path: Path, named: str) -> None:
    """Nothing may be named but what a manifest needs."""
    module, _, name = named.rpartition(".")
    (tmp_path / ".metadata").write_bytes(f"c{module}\n{name}\n.".encode())
    with pytest.raises(UnsafeCheckpointError, match=named):
        manifest.read(folder(str(tmp_path)))


def test_manifest_cannot_change_classes(tmp_path: Path) -> None:
    """A manifest that sets attributes of the classes that it names does not reach torch's."""
    change = b"c%s\nMetadata\n(N}V__init__\nc%s\nStorageMeta\nst b." % ((b"torch.distributed.checkpoint.metadata",) * 2)
    before = Metadata.__init__
    (tmp_path / ".metadata").write_bytes(change.replace(b" ", b""))
    with pytest.raises(InvalidCheckpointError, match="is damaged"):
        manifest.read(folder(str(tmp_path)))
    assert Metadata.__init__ is before


@pytest.mark.parametrize("path", ["../secret", "/etc/passwd", "a/../../b", "", "C:\\x", "s3://other/x"])
def test_manifest_cannot_name_other_folders(tmp_path: Path, path: str) -> None:
    """A manifest names files of its folder only."""
    distributed.save({"x": torch.ones(1)}, tmp_path / "a")
    found = manifest.read(folder(str(tmp_path / "a")))
    (place,) = found.storage_data.values()
    place.relative_path = path
    (tmp_path / "a" / ".metadata").write_bytes(pickle.dumps(found))
    with pytest.raises(InvalidCheckpointError, match="is damaged"):
        distributed.whole(tmp_path / "a")


def _claims_much(found: Metadata) -> None:
    found.state_dict_metadata["x"].size = torch.Size([2**50])  # type: ignore[union-attr]
    found.state_dict_metadata["x"].chunks[0].sizes = torch.Size([2**50])  # type: ignore[union-attr]


def _lies_outside(found: Metadata) -> None:
    found.state_dict_metadata["x"].chunks[0].offsets = torch.Size([5])  # type: ignore[union-attr]


def _has_no_place(found: Metadata) -> None:
    found.storage_data = {}


def _has_nothing(found: Metadata) -> None:
    found.state_dict_metadata = None  # type: ignore[assignment]


@pytest.mark.parametrize("damage", [_claims_much, _lies_outside, _has_no_place, _has_nothing])
def test_damaged_manifest(tmp_path: Path, damage: Any) -> None:
    """A manifest that makes no sense is an error, before memory is reserved for what it claims."""
    distributed.save({"x": torch.ones(3)}, tmp_path / "a")
    found = manifest.read(folder(str(tmp_path / "a")))
    damage(found)
    (tmp_path / "a" / ".metadata").write_bytes(pickle.dumps(found))
    with pytest.raises(InvalidCheckpointError):
        distributed.whole(tmp_path / "a")


@pytest.mark.parametrize("ours", [True, False])
@pytest.mark.parametrize("shape", [(4,), (2, 2), ()])
def test_item_of_another_shape(tmp_path: Path, ours: bool, shape: tuple[int, ...]) -> None:
    """A tensor whose item has another shape than the manifest says is an error."""
    writer = StorageWriter(tmp_path) if ours else FsspecWriter(str(tmp_path), sync_files=False)
    dcp.save({"x": torch.ones(3)}, storage_writer=writer)
    found = manifest.read(folder(str(tmp_path)))
    sized: Any = found.state_dict_metadata["x"]
    sized.size = sized.chunks[0].sizes = torch.Size(shape)
    sized.chunks[0].offsets = torch.Size([0] * len(shape))
    found.storage_data = {MetadataIndex("x", sized.chunks[0].offsets): next(iter(found.storage_data.values()))}
    (tmp_path / ".metadata").write_bytes(pickle.dumps(found))
    with pytest.raises(InvalidCheckpointError, match="it has no"):
        distributed.whole(tmp_path)


def test_any_bytes_as_manifest(tmp_path: Path) -> None:
    """A manifest of which some bytes are others, or which is cut short, raises no error but ours."""
    distributed.save(state(), tmp_path / "a")
    data = (tmp_path / "a" / ".metadata").read_bytes()
    draw = random.Random(SEED)
    loaded = 0
    for _ in range(300):
        changed = bytearray(data[: draw.randrange(len(data))] if draw.random() < 0.2 else data)
        for _ in range(draw.randrange(1, 4)):
            changed[draw.randrange(len(changed))] = draw.randrange(256)
        (tmp_path / ".metadata").write_bytes(changed)
        try:
            manifest.read(folder(str(tmp_path)))
            loaded += 1
        except (InvalidCheckpointError, UnsafeCheckpointError):
            pass
    assert loaded < 300


def test_hostile_value(root: str, tmp_path: Path) -> None:
    """A value that would run code does not, also where torch's planner would let it."""
    distributed.save({"x": Exploit(tmp_path / "ran")}, f"{root}/a")
    with pytest.raises(UnsafeCheckpointError, match=r"'x' in .* names posix\.mkdir"):
        distributed.whole(f"{root}/a")
    with pytest.raises(UnsafeCheckpointError, match=r"posix\.mkdir"):
        distributed.load({"x": None}, f"{root}/a")
    with pytest.raises(CheckpointException, match=r"posix\.mkdir"):
        dcp.load({"x": None}, storage_reader=StorageReader(f"{root}/a"))
    assert not (tmp_path / "ran").exists()
    distributed.load({"x": None}, f"{root}/a", weights_only=False)
    assert (tmp_path / "ran").exists()


def test_manifest_of_older_torch(tmp_path: Path) -> None:
    """Manifests have paths as objects, and properties of another module, in releases before."""
    from torch.distributed._shard.sharded_tensor.metadata import TensorProperties as Older

    distributed.save({"x": torch.ones(3)}, tmp_path / "a")
    found = manifest.read(folder(str(tmp_path / "a")))
    found.storage_meta = StorageMeta(checkpoint_id=tmp_path)
    found.state_dict_metadata["x"].properties = Older(dtype=torch.float32)  # type: ignore[union-attr,assignment]
    (tmp_path / "a" / ".metadata").write_bytes(pickle.dumps(found))
    assert distributed.whole(tmp_path / "a")["x"].tolist() == [1, 1, 1]


class _Newer:
    """Stands for the properties of a tensor in a manifest of torch 2.15, which says the strides, too."""

    __class__ = TensorProperties  # type: ignore[assignment]  # as what it is to be pickled

    def __reduce__(self) -> Any:
        named = TensorProperties(dtype=torch.float32).__getstate__()[:5]
        return copyreg.__newobj__, (TensorProperties,), (*named, (1,))  # type: ignore[attr-defined]


def test_manifest_of_newer_torch(tmp_path: Path) -> None:
    """Manifests of later releases say more of a tensor."""
    distributed.save({"x": torch.ones(3)}, tmp_path / "a")
    found = manifest.read(folder(str(tmp_path / "a")))
    found.state_dict_metadata["x"].properties = _Newer()  # type: ignore[union-attr,assignment]
    (tmp_path / "a" / ".metadata").write_bytes(pickle.dumps(found))
    assert distributed.whole(tmp_path / "a")["x"].tolist() == [1, 1, 1]
    state_dict = {"x": torch.zeros(3)}
    distributed.load(state_dict, tmp_path / "a")
    assert state_dict["x"].tolist() == [1, 1, 1]


def test_properties_are_those_that_torch_tells(tmp_path: Path) -> None:
    """The manifest of torch's own writer reads as torch reads it."""
    dcp.save(state(), storage_writer=FsspecWriter(str(tmp_path), sync_files=False))
    theirs = FsspecReader(str(tmp_path)).read_metadata()
    ours = manifest.read(folder(str(tmp_path)))
    assert ours.state_dict_metadata == theirs.state_dict_metadata
    assert isinstance(ours.state_dict_metadata["model.bias"].properties, TensorProperties)  # type: ignore[union-attr]
    assert ours.planner_data == theirs.planner_data
    assert ours.storage_data == theirs.storage_data


def test_memory_of_other_devices() -> None:
    """What is written of another device goes through memory of a bounded size, piece by piece."""
    tensor = torch.arange(9 * 2**20, dtype=torch.float32).reshape(9, -1)
    pieces = [piece.tobytes() for piece in tiling.staged(tensor)]
    assert max(map(len, pieces)) <= 16 * 2**20
    assert b"".join(pieces) == tensor.numpy().tobytes()


# -- parts of tensors --------------------------------------------------------------------------------------------------


def slices(start: Sequence[int], lengths: Sequence[int]) -> tuple[slice, ...]:
    """A box as an index."""
    return tuple(slice(first, first + length) for first, length in zip(start, lengths, strict=True))


def place_of_x(path: str, offsets: tuple[int, ...]) -> manifest.ItemLocation:
    """Where a part of the tensor x of a checkpoint lies."""
    return ShardedStateDict(folder(path), manifest.read(folder(path))).item(MetadataIndex("x", offsets))


def test_pieces_cover_a_box(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pieces of a part of a stored tensor are all of it, and their bytes mostly its own."""
    monkeypatch.setattr(tiling, "GAP", 64)
    draw = random.Random(SEED)
    for _ in range(300):
        shape = tuple(draw.randrange(1, 12) for _ in range(draw.randrange(0, 5)))
        start = tuple(draw.randrange(size) for size in shape)
        lengths = tuple(draw.randrange(1, size - first + 1) for size, first in zip(shape, start, strict=True))
        stored = torch.arange(int(np.prod(shape))).reshape(shape)
        wanted = Box(shape, start, lengths).of(stored)
        assert torch.equal(wanted, stored[slices(start, lengths)])
        record = Record("x", 0, stored.untyped_storage())
        found = torch.full(lengths, -1)
        data = stored.flatten().view(torch.uint8)
        most = draw.choice([8, 64, 4096])
        monkeypatch.setattr(fill, "PIECE", most)
        copied: list[torch.Tensor] = []

        def copy(part: torch.Tensor, target: torch.Tensor, copied: list[torch.Tensor] = copied) -> None:
            copied.append(target.copy_(part))

        for each in fill.copies(record, wanted, found, copy):
            assert each.deliver is not None
            each.deliver(data[each.start : each.start + each.size])
            own = copied[-1]
            assert each.size <= min(most, max(2 * own.nbytes, own.nbytes + 64 * own.numel()))
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("ours", [True, False])
def test_parts_of_tensors(root: str, ours: bool) -> None:
    """Any part of a tensor comes into a target of any layout and dtype."""
    draw = random.Random(SEED)
    tensor = torch.arange(120 * 80 * 50, dtype=torch.float32).reshape(120, 80, 50)
    writer = StorageWriter(f"{root}/a") if ours else FsspecWriter(f"{root}/a", sync_files=False)
    dcp.save({"x": tensor}, storage_writer=writer)
    place = ShardedStateDict(folder(f"{root}/a"), manifest.read(folder(f"{root}/a"))).item(
        MetadataIndex("x", (0, 0, 0))
    )
    asked, wanted = [], []
    for number in range(12):
        start = tuple(draw.randrange(size) for size in tensor.shape)
        lengths = [draw.randrange(1, size - first + 1) for size, first in zip(tensor.shape, start, strict=True)]
        turned = torch.zeros(lengths[::-1], dtype=torch.float64).permute(2, 1, 0)
        target = torch.zeros(lengths) if number % 3 else turned
        asked.append(TensorRead("x", place, start, target))
        wanted.append(tensor[slices(start, lengths)])
    read_tensors(folder(f"{root}/a"), asked)
    assert all(torch.equal(each.target, part.to(each.target.dtype)) for each, part in zip(asked, wanted, strict=True))


def test_only_what_is_needed_is_read(bucket: str, environment: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of a tensor are read alone, columns with what lies between them, and two shards side by side."""
    from fsspec_csx.s3.file import CSXFile

    tensor = torch.randn(4000, 1000)
    distributed.save({"x": tensor}, f"s3://{bucket}/a")
    place = place_of_x(f"s3://{bucket}/a", (0, 0))
    read: list[int] = []
    original = CSXFile.readinto_many

    def counted(self: Any, spans: Any, **kwargs: Any) -> Any:
        read.extend(len(memory) for _, memory in spans)
        return original(self, spans, **kwargs)

    monkeypatch.setattr(CSXFile, "readinto_many", counted)
    target = torch.zeros(10, 1000)
    read_tensors(folder(f"s3://{bucket}/a"), [TensorRead("x", place, (100, 0), target)])
    assert torch.equal(target, tensor[100:110])
    assert sum(read) == target.nbytes
    read.clear()
    columns = torch.zeros(4000, 500)
    read_tensors(folder(f"s3://{bucket}/a"), [TensorRead("x", place, (0, 500), columns)])
    assert torch.equal(columns, tensor[:, 500:])
    assert columns.nbytes <= sum(read) <= tensor.nbytes


# -- many processes ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_many_processes(bucket: str, environment: object, fs: CSXFileSystem) -> None:
    """Saved by four processes in all ways, a checkpoint is loaded by four, by two and by one, and by torch's reader."""
    root = f"s3://{bucket}/run"
    saved = distributed_job.run("save", root, 4)
    assert saved.returncode == 0, saved.stderr
    for name, step in (("ours", 1), ("twice", 3), ("async", 4), ("theirs", 5)):
        distributed_job.check(distributed.whole(f"{root}/{name}"), step)
    sizes = [info["size"] for name, info in fs.find(f"{bucket}/run/ours", detail=True).items() if "distcp" in name]
    assert len(sizes) == 4
    assert max(sizes) < 1.3 * min(sizes)
    assert len(fs.ls(f"{bucket}/run/twice")) == 5
    loaded = distributed_job.run("load", root, 2)
    assert loaded.returncode == 0, loaded.stderr


LOSING = """
import os, signal, sys
from datetime import timedelta
import torch, torch.distributed as dist
from fsspec_csx import distributed
from fsspec_csx.distributed.async_save import background_group
from fsspec_csx.errors import LostProcessError

verb, rank, lost, number = sys.argv[2], *map(int, sys.argv[3:])
meeting = f"file://{sys.argv[1]}/meeting"
limit = timedelta(seconds=200)  # a busy machine may take many for what is not lost
dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2, timeout=limit)
dist.barrier()
if verb == "async_save":  # which makes a group of its own
    distributed.async_save({"x": torch.zeros(3)}, f"{sys.argv[1]}/checkpoint").result()
if number == signal.SIGSTOP:  # only a process that hangs is noticed by the time limit
    for group in {None, background_group(None) if verb == "async_save" else None}:
        dist.distributed_c10d._set_pg_timeout(timedelta(seconds=6), group)
if rank == lost and verb == "load":
    os.kill(os.getpid(), number)
if rank == lost:  # when all have begun to save, as before nothing can have been written
    distributed.StorageWriter.storage_meta = lambda *_: os.kill(os.getpid(), number)
try:
    saving = getattr(distributed, verb)({"x": torch.ones(3)}, f"{sys.argv[1]}/checkpoint")
    if saving is not None:
        saving.result()
except LostProcessError as error:
    print(error.maybe_applied, error)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("verb", "lost", "number", "maybe_applied"),
    [
        ("save", 1, signal.SIGKILL, False),
        ("save", 0, signal.SIGKILL, True),
        ("save", 1, signal.SIGSTOP, False),
        ("async_save", 0, signal.SIGKILL, True),
        ("async_save", 1, signal.SIGSTOP, False),
        ("load", 1, signal.SIGKILL, False),
    ],
)
def test_lost_process(tmp_path: Path, verb: str, lost: int, number: int, maybe_applied: bool) -> None:
    """Another process that was killed, or hangs, is an error of ours; the old checkpoint stays."""
    distributed.save({"x": torch.zeros(3)}, tmp_path / "checkpoint")
    (tmp_path / "losing.py").write_text(LOSING)
    command = [*python(), str(tmp_path / "losing.py"), str(tmp_path), verb]
    started = [
        subprocess.Popen([*command, *map(str, (rank, lost, int(number)))], stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    try:
        output, _ = started[1 - lost].communicate(timeout=250)
    finally:
        for process in started:
            with process:
                process.kill()
    assert output.startswith(f"{maybe_applied} Another process of this job has ended, or"), output
    assert ("may have been applied" in output) == maybe_applied
    assert distributed.whole(tmp_path / "checkpoint")["x"].sum() == 0
    assert distributed.leftovers(tmp_path / "checkpoint") == []


@pytest.mark.slow
def test_killed_process(bucket: str, environment: object) -> None:
    """A process that is killed while it saves leaves the former checkpoint; the new shards are found by name."""
    root = f"s3://{bucket}/run"
    done = distributed_job.run("killed", root, 2)
    assert "SIGKILL" in done.stderr
    distributed_job.check(distributed.whole(f"{root}/killed"), 1)
    assert len(distributed.leftovers(f"{root}/killed")) == 1
    distributed.save({"x": torch.ones(1)}, f"{root}/killed")
    assert distributed.whole(f"{root}/killed")["x"].item() == 1
