"""stream: the tensors of a checkpoint of any format, one after the other, in little memory."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from conftest import recorded_requests

from fsspec_csx import distributed, inspect, save, stream
from fsspec_csx.errors import CheckpointPathError, InvalidCheckpointError, MissingEntryError
from fsspec_csx.formats import tensor_iterator
from fsspec_csx.testing import LocalS3

TIED = torch.arange(12.0).reshape(3, 4)
NESTED = {
    "model": {"b": torch.ones(5), "a": torch.full((2, 3), 2.0, dtype=torch.bfloat16), "list": [torch.zeros(1)]},
    "step": 3,
    "tied": (TIED, TIED[1:]),
    "last": torch.nn.Parameter(torch.ones(4, 2).t()),
    "empty": torch.empty(0, 2),
}
FLAT = {f"w{number}": torch.full((number + 1, 3), float(number)) for number in (3, 1, 2, 0)}


def saved(root: str) -> dict[str, tuple[str, list[str]]]:
    """A checkpoint in each format, with the names that it is to give."""
    nested = ["model.b", "model.a", "model.list.0", "tied.0", "tied.1", "last", "empty"]
    places: dict[str, tuple[str, list[str]]] = {}
    for name, state, options, names in (
        ("x.mdl", NESTED, {}, nested),
        ("x.safetensors", FLAT, {}, ["w0", "w1", "w2", "w3"]),
        ("hf", FLAT, {"format": "huggingface", "max_shard_size": 50}, [*FLAT]),
        ("cerebras", NESTED, {"format": "cerebras"}, nested),
    ):
        if name == "cerebras" and not root.startswith("s3://"):
            continue
        save(state, f"{root}/{name}", **options)
        places[name] = f"{root}/{name}", names
    with fsspec.open(f"{root}/old.pt", "wb") as file:
        torch.save(NESTED, file, _use_new_zipfile_serialization=False)
    places["old.pt"] = f"{root}/old.pt", nested
    distributed.save(dict(FLAT), f"{root}/dcp")
    places["dcp"] = f"{root}/dcp", [*FLAT]
    return places


def value(name: str) -> torch.Tensor:
    """The tensor of a name in the states."""
    found: Any = FLAT | NESTED
    for key in name.split("."):
        found = found[int(key) if key.isdecimal() else key]
    assert isinstance(found, torch.Tensor)
    return found


def test_each_format(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All tensors of inspect come, in its order, whatever is read at a time; to another device too."""
    for format, (path, names) in saved(root).items():
        for batch in (1, 30, 2**20):
            monkeypatch.setattr(tensor_iterator, "_BATCH", batch)
            found = list(stream(path))
            assert [name for name, _ in found] == names, format
            assert names == [*inspect(path).tensors]
            for name, tensor in found:
                assert tensor.dtype == value(name).dtype
                assert torch.equal(tensor, value(name)), (format, name)
                assert type(tensor) is torch.Tensor
                assert not tensor.requires_grad
        assert [(name, each.shape) for name, each in stream(path, device="meta")] == [
            (n, value(n).shape) for n in names
        ]


def test_keys(root: str) -> None:
    """Names give the order, also of what is below them; a function leaves it as it is; nothing else is read."""
    for format, (path, names) in saved(root).items():
        wanted = [names[-2], names[0], names[1]]
        assert [name for name, _ in stream(path, iter([*wanted, names[0]]))] == wanted, format
        assert [name for name, _ in stream(path, keys={*wanted}.__contains__)] == [n for n in names if n in wanted]
        with pytest.raises(MissingEntryError, match="'w9'"):
            stream(path, keys=[names[0], "w9"])
    path = f"{root}/x.mdl"
    assert [name for name, _ in stream(path, ["tied", "model", "model.a"])] == [
        *("tied.0", "tied.1", "model.b", "model.a", "model.list.0")
    ]
    assert [*stream(path, [])] == []
    assert [*stream(path, ["step"])] == []
    with pytest.raises(TypeError, match="list of names"):
        stream(path, "model")


def test_shared_memory(tmp_path: Path) -> None:
    """Tensors that share memory share it again."""
    save(NESTED, tmp_path / "x.mdl")
    found = dict(stream(tmp_path / "x.mdl"))
    assert found["tied.0"].untyped_storage().data_ptr() == found["tied.1"].untyped_storage().data_ptr()


def test_errors_before_the_loop(tmp_path: Path, bucket: str, environment: LocalS3) -> None:
    """What is wrong with the path, the names or the structure is said by the call, and no tensor is read."""
    with pytest.raises(CheckpointPathError):
        stream("s3://")
    with pytest.raises(FileNotFoundError):
        stream(tmp_path / "x.mdl")
    (tmp_path / "x.mdl").write_text("text")
    with pytest.raises(InvalidCheckpointError):
        stream(tmp_path / "x.mdl")
    path = f"s3://{bucket}/x.safetensors"
    save({"a": torch.zeros(2**20), "b": torch.zeros(2**20)}, path)
    with recorded_requests() as requests, pytest.raises(MissingEntryError):
        stream(path, ["a", "c"])
    assert len(requests) <= 3, requests  # the size, and both ends of the file
    with recorded_requests() as requests:
        assert [name for name, _ in stream(path, ["b"])] == ["b"]
    assert len(requests) <= 4, requests


def test_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies before a damaged tensor comes, and the error names the tensor."""
    monkeypatch.setattr(tensor_iterator, "_BATCH", 1)
    for number in range(2):
        state = {name: torch.full((2**20,), float(each)) for each, name in enumerate("abcd")}
        save(state, tmp_path / "x.mdl")
        data = bytearray((tmp_path / "x.mdl").read_bytes())
        at = data.index(state["c"].numpy().tobytes()[:4096])
        data[at + number * (2**22 - 1)] ^= 1
        (tmp_path / "x.mdl").write_bytes(data)
        came = []
        with pytest.raises(InvalidCheckpointError, match="'c'"):
            for name, _ in stream(tmp_path / "x.mdl"):
                came.append(name)
        assert came == ["a", "b"]


@pytest.mark.slow
def test_left_early(bucket: str, environment: LocalS3, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the loop is left, the reading ahead ends: no thread of it is there, and few requests were sent."""
    monkeypatch.setattr(tensor_iterator, "_BATCH", 2**20)
    state = {f"{number:02}": torch.zeros(2**19) for number in range(24)}
    for format, name in ((None, "x.mdl"), ("huggingface", "m")):
        path = f"s3://{bucket}/{name}"
        save(state, path, format=format)
        with recorded_requests() as all_of_them:
            assert len(list(stream(path))) == 24
        with recorded_requests() as requests:
            for _ in stream(path):
                break
        assert len(requests) < len(all_of_them) / 2
        with pytest.raises(ZeroDivisionError):
            for _ in stream(path):
                _ = 1 / 0
        tensors = stream(path)
        del tensors  # was never used
        assert not [each for each in threading.enumerate() if each.name.startswith("fsspec_csx stream")]


STREAMING = """
import sys
import torch
from fsspec_csx import stream

def highest():
    with open("/proc/self/status") as status:  # not ru_maxrss, which the process that started this one leaves to it
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))

before = highest()
count = total = 0
for name, tensor in stream(sys.argv[1]):
    count, total = count + 1, total + float(tensor[0])
print(count, total, (highest() - before) // 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["torch", "huggingface", "distributed"])
def test_memory(kind: str, tmp_path: Path) -> None:
    """A checkpoint of 1 GiB is gone through with a fraction of it in memory."""
    state = {f"{number}": torch.full((4 * 2**20,), float(number)) for number in range(64)}
    path = str(tmp_path / "x")
    if kind == "distributed":
        distributed.save(dict(state), path)
    else:
        save(state, path, format=kind)
    done = subprocess.run([sys.executable, "-c", STREAMING, path], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    count, total, mib = map(float, done.stdout.split())
    assert (count, total) == (64, sum(range(64)))
    assert mib < 300, mib
