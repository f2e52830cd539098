"""info, verify and diff of checkpoints that are folders: of torch.distributed.checkpoint, and of Cerebras."""

from __future__ import annotations

import json
import os
import pickle
import warnings
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
import torch.distributed.checkpoint as dcp
from broken import flip
from cerebras import DATA, upload
from commands import run
from proxy import fault_proxy
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from fsspec_csx import distributed
from fsspec_csx.checkpoint.api import load, save
from fsspec_csx.formats.dcp import manifest
from fsspec_csx.formats.dcp.boxes import Box, boxes_of
from fsspec_csx.formats.dcp.layout import ShardedFolder
from fsspec_csx.manage.diff import compare
from fsspec_csx.manage.info import describe
from fsspec_csx.manage.verify import verify
from fsspec_csx.s3.filesystem import CSXFileSystem
from fsspec_csx.tensors import tensor_stream
from fsspec_csx.testing import LocalS3


def state() -> dict[str, Any]:
    """Tensors with and without elements, and values."""
    torch.manual_seed(20261123)
    model = {"w": torch.randn(300, 200), "half": torch.ones(7).half(), "scalar": torch.tensor(2.5)}
    return {"model": {**model, "empty": torch.empty(0, 4)}, "list": [torch.ones(2), 1], "step": 7}


def by_torch(path: str, **changes: Any) -> str:
    """The path of a folder that torch's own writer wrote."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        dcp.save({**state(), **changes}, checkpoint_id=path)
    return path


def by_us(path: str, **changes: Any) -> str:
    """The path of a folder that this package wrote."""
    distributed.save({**state(), **changes}, path)
    return path


# -- info --------------------------------------------------------------------------------------------------------------


def test_info_sharded(root: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A sharded checkpoint has the size of its files, on any filesystem; what a stopped save left is not counted."""
    by_us(f"{root}/a #1?")
    fs, path = fsspec.url_to_fs(root)
    size = fs.du(f"{path}/a #1?")
    fs.pipe_file(f"{path}/a #1?/__0_0.0000000000000000.distcp", b"of a save that was stopped")
    assert run("info", "--json", "-l", f"{root}/a #1?/") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["format"], report["written_by"], report["size"]) == (
        "distributed",
        "torch.distributed.checkpoint",
        size,
    )
    assert report["dtypes"]["float32"] == {"tensors": 4, "bytes": 4 * (300 * 200 + 2 + 1)}
    assert report["dtypes"]["float16"] == {"tensors": 1, "bytes": 14}
    assert [each["name"] for each in report["objects"] if "dtype" not in each] == ["list.1", "step"]


def test_info_time_of_the_newest_file(tmp_path: Path) -> None:
    """A folder was changed when the newest of its files was."""
    folder = by_torch(str(tmp_path / "x"))
    os.utime(tmp_path / "x" / ".metadata", (1e9, 1e9))
    os.utime(tmp_path / "x" / "__0_0.distcp", (2e9, 2e9))
    modified = describe(folder).modified
    assert modified is not None
    assert modified.timestamp() == 2e9


@pytest.mark.usefixtures("environment")
def test_info_cerebras(fs: CSXFileSystem, bucket: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A Cerebras checkpoint on S3 has the size of all of its objects, and the endpoint is reported."""
    url = upload(fs, "nested", f"{bucket}/x.mdl")
    fs.pipe_file(f"{bucket}/x.mdl0", b"of another")
    assert run("info", "--json", url) == 0
    report = json.loads(capsys.readouterr().out)
    size = sum(each["size"] for each in json.loads((DATA / "nested" / "objects.json").read_text()).values())
    assert (report["format"], report["size"]) == ("cerebras", size)
    assert report["written_by"].startswith("cerebras_pytorch 2.")
    assert report["modified"]
    assert report["endpoint"]


def test_info_hdf5(capsys: pytest.CaptureFixture[str]) -> None:
    """So is one in an HDF5 file, with the size of that."""
    path = DATA / "bf16" / "local.mdl"
    assert run("info", "--json", str(path)) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["format"], report["size"], report["tensors"]) == ("cerebras", path.stat().st_size, 3)


def test_info_of_no_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder that is no checkpoint is refused, and so is a Cerebras checkpoint that was not finished."""
    assert run("info", str(tmp_path)) == 3
    assert "Is a directory" in capsys.readouterr().err
    assert run("info", str(DATA / "partial" / "s3")) == 3
    assert "was not finished" in capsys.readouterr().err


def test_unfinished_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder of shards without a manifest is recognized as one, by each verb in its way."""
    folder = by_torch(str(tmp_path / "x"))
    (tmp_path / "x" / ".metadata").unlink()
    for verb in (("info", folder), ("diff", folder, folder)):
        assert run(*verb) == 3
        cause, remedy = capsys.readouterr().err.splitlines()
        assert "has shards but no manifest" in cause
        assert "Save it again, or delete it." in remedy
    assert run("verify", folder) == 1
    assert "  it has shards but no manifest: a save or a deletion did not finish" in capsys.readouterr().out


# -- diff --------------------------------------------------------------------------------------------------------------


def test_diff_equal(root: str, tmp_path: Path) -> None:
    """Sharded checkpoints of either writer equal each other, and the file of the same state, whichever is first."""
    save(state(), tmp_path / "x.mdl")
    paths = [by_us(f"{root}/ours"), by_torch(str(tmp_path / "torch")), str(tmp_path / "x.mdl")]
    for first, second in zip(paths, [*paths[1:], paths[0]], strict=True):
        found = compare(first, second)
        assert (found.differences, found.tensors, found.values) == ((), 5, 2)
    assert not compare(paths[0], paths[2]).skipped  # what the manifest claims proves nothing


@pytest.mark.parametrize("piece", [16 * 2**20, 128])
def test_diff_reported(tmp_path: Path, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What differs is reported with the number of elements, in whatever pieces it is read."""
    monkeypatch.setattr(tensor_stream, "_PIECE", piece)
    small = torch.arange(60.0).reshape(5, 4, 3)
    other = small.clone()
    other[2, 1:] += 1
    first = by_torch(str(tmp_path / "a"), t=small, model=1)
    second = by_us(str(tmp_path / "b"), t=other, model=1, step=8)
    report = {each.name: (each.what, each.elements, each.absolute) for each in compare(first, second).differences}
    assert report == {"t": ("value", 9, 1.0), "step": ("value", None, None)}


def test_diff_exit_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A difference has the exit status of one, and what only one has is reported."""
    first, second = by_torch(str(tmp_path / "a")), by_us(str(tmp_path / "b"), more=torch.ones(1))
    assert run("diff", first, first) == 0
    assert run("diff", first, second) == 1
    assert "more: only in the second (tensor float32 (1,))" in capsys.readouterr().out


@pytest.mark.usefixtures("environment")
def test_shards_are_opened_once(bucket: str, server: LocalS3, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many pieces of a shard are read, the shard is requested once."""
    monkeypatch.setattr(tensor_stream, "_PIECE", 2**14)
    monkeypatch.setattr(tensor_stream, "_BATCH", 2**15)
    first = by_us(f"s3://{bucket}/a")
    second = by_us(f"s3://{bucket}/b", model={"w": torch.zeros(300, 200)})
    with fault_proxy(server.endpoint_url) as proxy:
        options = {**server.storage_options(), "endpoint_url": proxy.url}
        assert compare(first, second, storage_options=options).differences
        asked = [one.path for one in proxy.made("HEAD") if one.path.endswith(".distcp")]
        read = [one.path for one in proxy.made("GET") if one.path.endswith(".distcp")]
    assert len(asked) == len(set(asked)) == 2
    assert len(read) > 10


def test_runs_are_boxes() -> None:
    """A run of elements of a tensor is so many boxes as it takes, one after the other."""
    numbers = torch.arange(3 * 4 * 5).reshape(3, 4, 5)
    for first in range(60):
        for end in range(first, 61):
            found = list(boxes_of((3, 4, 5), first, end))
            parts = [numbers]
            for box in found:
                part = numbers
                for dimension, (start, length) in enumerate(zip(box.start, box.lengths, strict=True)):
                    part = part.narrow(dimension, start, length)
                parts.append(part)
            assert [int(each) for part in parts[1:] for each in part.flatten()] == list(range(first, end))
            assert len(found) <= 5


@pytest.mark.usefixtures("environment")
def test_diff_cerebras(fs: CSXFileSystem, bucket: str) -> None:
    """A Cerebras checkpoint on S3 equals its HDF5 form and the file of the same state; its pickles by their bytes."""
    url = upload(fs, "nested", f"{bucket}/x.mdl")
    found = compare(url, DATA / "nested" / "local.mdl")
    assert (found.differences, found.tensors, found.values) == ((), 22, 29)
    assert compare(upload(fs, "bf16", f"{bucket}/b.mdl"), DATA / "bf16" / "state.pt").differences == ()
    fs.pipe_file(f"{bucket}/x.mdl/objs.complex", fs.cat_file(f"{bucket}/x.mdl/objs.complex")[::-1])
    (difference,) = compare(url, DATA / "nested" / "local.mdl").differences
    assert (difference.name, difference.what) == ("objs.complex", "value")


def test_diff_of_what_cannot_be_read(capsys: pytest.CaptureFixture[str]) -> None:
    """What lies in a checkpoint that is not there is not said to be equal."""
    folder = str(DATA / "external_link" / "s3")
    assert run("diff", folder, folder) == 3
    assert "has what cannot be read: 'w'" in capsys.readouterr().err


# -- verify ------------------------------------------------------------------------------------------------------------


def cut(folder: Path, whole: torch.Tensor, boxes: list[Box], *, ours: bool) -> str:
    """The path of a folder with a tensor ``t`` in these parts."""
    parts = {}
    for number, box in enumerate(boxes):
        part = whole
        for dimension, (start, length) in enumerate(zip(box.start, box.lengths, strict=True)):
            part = part.narrow(dimension, start, length)
        parts[f"part{number}"] = part.clone()
    write = distributed.save if ours else dcp.save
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        write(parts, **({"path": str(folder)} if ours else {"checkpoint_id": str(folder)}))
    at = ShardedFolder(None, str(folder), str(folder))
    found = manifest.read(at)
    chunks = [ChunkStorageMetadata(torch.Size(box.start), torch.Size(box.lengths)) for box in boxes]
    entry = TensorStorageMetadata(TensorProperties(whole.dtype), whole.shape, chunks)
    places = {index.fqn: place for index, place in found.storage_data.items()}
    found.state_dict_metadata, found.planner_data = {"t": entry}, {"t": ("t",)}
    found.storage_data = {
        MetadataIndex("t", chunk.offsets): places[f"part{number}"] for number, chunk in enumerate(chunks)
    }
    (folder / ".metadata").write_bytes(pickle.dumps(found))
    return str(folder)


ROWS = [Box((6, 4), (0, 0), (2, 4)), Box((6, 4), (2, 0), (4, 4))]
GRID = [Box((6, 4), (row, column), (3, 2)) for row in (0, 3) for column in (0, 2)]


@pytest.mark.parametrize("ours", [True, False], ids=["ours", "torch"])
@pytest.mark.parametrize("boxes", [ROWS, GRID], ids=["rows", "grid"])
def test_tensor_in_parts(tmp_path: Path, boxes: list[Box], ours: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tensor in parts is whole, and equals the same in other parts or in none."""
    whole = torch.arange(24.0).reshape(6, 4)
    folder = cut(tmp_path / "x", whole, boxes, ours=ours)
    assert verify(folder).damage == ()
    save({"t": whole}, tmp_path / "x.mdl")
    monkeypatch.setattr(tensor_stream, "_PIECE", 20)
    found = compare(folder, tmp_path / "x.mdl")
    assert found.differences == ()
    # Checksums of rows are those of the whole together.
    assert found.skipped == 0
    save({"t": whole + (whole == 13)}, tmp_path / "y.mdl")
    (difference,) = compare(folder, tmp_path / "y.mdl").differences
    assert (difference.elements, difference.absolute) == (1, 1.0)


@pytest.mark.parametrize(
    ("boxes", "report"),
    [
        (ROWS[:1], "the parts of 't' have 8 of its 24 elements"),
        ([*GRID[:3], Box((6, 4), (2, 1), (3, 2))], "the parts of 't' overlap"),
    ],
)
def test_verify_parts(tmp_path: Path, boxes: list[Box], report: str) -> None:
    """Parts that do not make up their tensor are damage, and so is one of which the manifest says another shape."""
    assert verify(cut(tmp_path / "x", torch.ones(6, 4), boxes, ours=True)).damage == (report,)
    folder = Path(cut(tmp_path / "y", torch.ones(6, 4), ROWS, ours=False))
    at = ShardedFolder(None, str(folder), str(folder))
    found = manifest.read(at)
    first, second = found.storage_data
    found.storage_data = {first: found.storage_data[second], second: found.storage_data[first]}
    (folder / ".metadata").write_bytes(pickle.dumps(found))
    assert tuple(sorted(verify(folder).damage, reverse=True)) == (
        "'t': it is a tensor float32 (4, 4), and in the manifest one of float32 (2, 4)",
        "'t': it is a tensor float32 (2, 4), and in the manifest one of float32 (4, 4)",
    )


def test_verify_sharded(root: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each item of a whole sharded checkpoint is compared with its checksums, on any filesystem."""
    found = verify(by_us(f"{root}/a #1?"))
    assert (found.damage, found.note, found.unchecked) == ((), "", 0)
    assert found.records > 20
    assert run("verify", f"{root}/a #1?") == 0
    assert "a #1?: whole (" in capsys.readouterr().out


@pytest.mark.parametrize("write", [by_us, by_torch])
def test_verify_all_damage(tmp_path: Path, write: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Every item that was damaged is named, tensors as well as values."""
    folder = tmp_path / "x"
    write(str(folder))
    items = manifest.read(ShardedFolder(None, str(folder), "x")).storage_data.items()
    places = {index.fqn: place for index, place in items}
    for name in ("model.w", "step"):
        flip(folder / places[name].relative_path, places[name].offset + places[name].length // 2)
    assert run("verify", str(folder)) == 1
    damage = sorted(line for line in capsys.readouterr().out.splitlines() if line.startswith("  "))
    assert [line.partition(":")[0] for line in damage] == ["  'model.w'", "  'step'"]
    assert damage[0] == "  'model.w': the checksum of record 'archive/data/0' is wrong"


def test_verify_shards(tmp_path: Path) -> None:
    """A shard that is cut short or missing is reported, with what it should have."""
    folder = Path(by_torch(str(tmp_path / "x")))
    shard = folder / "__0_0.distcp"
    places = manifest.read(ShardedFolder(None, str(folder), "x")).storage_data
    last = max(places, key=lambda index: places[index].offset)
    data = shard.read_bytes()
    shard.write_bytes(data[:-1])
    (damage,) = verify(folder).damage
    report = f"it has {len(data) - 1} of at least {len(data)} bytes, and not all of {last.fqn!r}"
    assert damage == f"the shard __0_0.distcp is cut short: {report}"
    shard.unlink()
    (damage,) = verify(folder).damage
    assert damage.startswith("the shard __0_0.distcp is missing, with ")


@pytest.mark.parametrize("data", [b"", b"text", pickle.dumps({})])
def test_verify_manifest(tmp_path: Path, data: bytes) -> None:
    """A manifest that is damaged makes the checkpoint damaged; so does one of another checksum."""
    folder = Path(by_us(str(tmp_path / "x")))
    found = manifest.read(ShardedFolder(None, str(folder), "x"))
    place = next(place for index, place in found.storage_data.items() if index.fqn == "model.w")
    place.plain = (*place.plain[:3], place.plain[3] ^ 1)
    (folder / ".metadata").write_bytes(pickle.dumps(found))
    assert verify(folder).damage == ("'model.w': its checksum is not the one that the manifest has",)
    (folder / ".metadata").write_bytes(data)
    (damage,) = verify(folder).damage
    assert damage.startswith(f"The manifest of {folder} is damaged")


@pytest.mark.usefixtures("environment")
def test_verify_cerebras(fs: CSXFileSystem, bucket: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a Cerebras checkpoint all is compared that has a checksum; what has none, and pickles, are reported."""
    save({"w": torch.ones(1000), "b": torch.ones(3)}, f"s3://{bucket}/x.mdl", format="cerebras")
    found = verify(f"s3://{bucket}/x.mdl")
    assert (found.damage, found.records, found.unchecked) == ((), 2, 0)
    fs.pipe_file(f"{bucket}/x.mdl/w", b"\0" * 4000)
    assert verify(f"s3://{bucket}/x.mdl").damage == ("the checksum of 'w' is wrong",)
    fs.rm_file(f"{bucket}/x.mdl/w")
    fs.pipe_file(f"{bucket}/x.mdl/b", b"\0" * 11)
    missing, short = verify(f"s3://{bucket}/x.mdl").damage
    assert missing.startswith("'w': an object of it is missing")
    assert short.startswith("'b': the object ")
    assert short.endswith("does not have the 12 bytes that it should")
    found = verify(upload(fs, "nested", f"{bucket}/y.mdl"))
    assert (found.damage, found.records, found.unchecked) == ((), 0, 30)
    assert found.note.startswith("'objs.bytes', 'objs.complex'")
    fs.rm_file(f"{bucket}/y.mdl/objs.complex")
    (damage,) = verify(f"s3://{bucket}/y.mdl").damage
    assert damage.startswith("'objs.complex': an object of it is missing")
    assert run("verify", f"s3://{bucket}/y.mdl") == 1
    assert "'objs.complex': an object of it is missing" in capsys.readouterr().out


def test_verify_what_is_no_whole_cerebras_checkpoint() -> None:
    """One that was not finished is damaged, and so is one whose tensors lie in another that cannot be reached."""
    (damage,) = verify(DATA / "partial" / "s3").damage
    assert "was not finished" in damage
    damages = verify(DATA / "external_link" / "s3").damage
    assert [each.partition(":")[0] for each in damages] == ["'w' cannot be read", "'z' cannot be read"]


# -- copy --------------------------------------------------------------------------------------------------------------


def test_copy_leaves_checkpoints_below_the_target(root: str) -> None:
    """A checkpoint that replaces another one in a folder of checkpoints leaves those in the folders below."""
    by_us(f"{root}/run", step=1)
    by_us(f"{root}/run/step_2", step=2)
    by_us(f"{root}/other", step=3)
    assert run("copy", f"{root}/other", f"{root}/run", "--force") == 0
    assert load(f"{root}/run")["step"] == 3
    assert load(f"{root}/run/step_2")["step"] == 2
