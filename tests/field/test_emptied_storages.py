"""A tensor whose storage is too small for it is refused by name, wherever its memory would be read or written."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp

import fsspec_csx
import fsspec_csx.distributed
from fsspec_csx.errors import FreedTensorError
from fsspec_csx.s3.filesystem import CSXFileSystem
from fsspec_csx.tensors import memory


def emptied() -> torch.Tensor:
    """A tensor without memory, as FSDP leaves its shards."""
    made = torch.ones(1000)
    made.untyped_storage().resize_(0)
    return made


def cut() -> torch.Tensor:
    """A tensor with memory for half of its elements."""
    made = torch.ones(1000)
    made.untyped_storage().resize_(2000)
    return made


def view() -> torch.Tensor:
    """A view that lies behind the end of its storage."""
    base = torch.ones(1000)
    made = base[900:].view(10, 10).t()
    base.untyped_storage().resize_(3600)
    return made


FREED: dict[str, Callable[[], torch.Tensor]] = {
    "emptied": emptied,
    "cut": cut,
    "view": view,
    "parameter": lambda: torch.nn.Parameter(emptied()),
    "conjugate": lambda: torch.view_as_complex(cut().view(500, 2)).conj(),
}


def saved(obj: Any, path: str, **options: Any) -> None:
    """Save in the background."""
    fsspec_csx.async_save(obj, path, **options).result()


def distributed(obj: Any, path: str) -> None:
    """Save in shards."""
    fsspec_csx.distributed.save(obj, path)


SAVES: dict[str, tuple[Callable[[Any, str], Any], str]] = {
    "torch": (fsspec_csx.save, "x.mdl"),
    "safetensors": (fsspec_csx.save, "x.safetensors"),
    "async torch": (saved, "x.mdl"),
    "async safetensors": (saved, "x.safetensors"),
    "cerebras": (lambda obj, path: fsspec_csx.save(obj, path, format="cerebras"), "x.mdl"),
    "distributed": (distributed, "folder"),
}


@pytest.mark.parametrize("how", SAVES)
@pytest.mark.parametrize("kind", FREED)
def test_save(environment: object, fs: CSXFileSystem, bucket: str, how: str, kind: str) -> None:
    """Nothing is written, and what was there stays."""
    save, name = SAVES[how]
    if how == "cerebras" and kind == "conjugate":
        pytest.skip("the format has no complex numbers")
    path = f"s3://{bucket}/{name}"
    fs.pipe_file(f"{bucket}/untouched", b"1")
    with pytest.raises(ValueError, match=r"layer\.w"):
        save({"a": torch.ones(3), "layer.w": FREED[kind]()}, path)
    assert fs.find(bucket) == [f"{bucket}/untouched"]


def test_names_are_dotted_and_all_are_checked(tmp_path: Path) -> None:
    """A tensor is named by its path in the object, also where it hides in an object of one's own."""
    path = tmp_path / "x.mdl"
    with pytest.raises(FreedTensorError, match=r"'model\.0\.w'"):
        fsspec_csx.save({"model": [{"w": emptied()}]}, path)
    with pytest.raises(FreedTensorError):
        fsspec_csx.save({"model": Holder(emptied())}, path)
    assert not path.exists()


class Holder:
    """Holds a tensor in an attribute."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


def test_what_is_not_freed(tmp_path: Path) -> None:
    """Empty tensors, views, expanded, sparse and meta tensors are saved as before."""
    base = torch.arange(12.0)
    state = [torch.ones(0, 3), base[5:], base.view(3, 4).t(), base[:1].expand(7), torch.eye(3).to_sparse(), base[12:]]
    state += [torch.empty(3, device="meta"), torch.tensor(1.5), base.as_strided((2, 3), (1, 2))]
    gone = torch.ones(5)[:0]
    gone.untyped_storage().resize_(0)
    assert not any(map(memory.is_freed, [*state, gone]))
    fsspec_csx.save(state, tmp_path / "x.mdl")
    assert torch.equal(fsspec_csx.load(tmp_path / "x.mdl")[2], state[2])


@pytest.mark.parametrize("kind", [*FREED, "meta"])
@pytest.mark.parametrize("suffix", ["mdl", "safetensors"])
def test_into(tmp_path: Path, kind: str, suffix: str) -> None:
    """A target without memory is refused before any other is filled."""
    make = FREED.get(kind, lambda: torch.empty(1000, device="meta"))
    shape, dtype = make().shape, make().dtype
    path = tmp_path / f"x.{suffix}"
    fsspec_csx.save({"a": torch.ones(3), "w": torch.ones(shape, dtype=dtype)}, path)
    target = {"a": torch.zeros(3), "w": make()}
    with pytest.raises(FreedTensorError, match="'w'"):
        fsspec_csx.load(path, into=target)
    assert target["a"].sum() == 0
    fsspec_csx.load(path, into=target, keys=["a"])
    assert target["a"].sum() == 3


@pytest.mark.parametrize("kind", ["emptied", "cut"])
def test_distributed_load(tmp_path: Path, kind: str) -> None:
    """So it is where shards are read."""
    path = str(tmp_path / "folder")
    fsspec_csx.distributed.save({"a": torch.ones(3), "w": torch.ones(1000)}, path)
    target = {"a": torch.zeros(3), "w": FREED[kind]()}
    with pytest.raises((FreedTensorError, dcp.CheckpointException), match="'w'"):
        fsspec_csx.distributed.load(target, path)
    assert target["a"].sum() == 0


def test_into_expanded(tmp_path: Path) -> None:
    """A target whose elements share memory is refused before any is filled; one that only looks like it is not."""
    path = tmp_path / "x.mdl"
    fsspec_csx.save({"a": torch.ones(3), "w": torch.arange(6.0).view(2, 3)}, path)
    for shared in (torch.zeros(3).expand(2, 3), torch.zeros(4).as_strided((2, 3), (1, 1))):
        target = {"a": torch.zeros(3), "w": shared}
        with pytest.raises(FreedTensorError, match="'w'"):
            fsspec_csx.load(path, into=target)
        assert target["a"].sum() == 0
    apart = {"a": torch.zeros(3), "w": torch.zeros(20).as_strided((2, 3), (3, 2))}
    fsspec_csx.load(path, into=apart)
    assert torch.equal(apart["w"], torch.arange(6.0).view(2, 3))


def test_file_of_torch_itself(tmp_path: Path) -> None:
    """A file in which torch.save itself wrote such a tensor is refused."""
    buffer = io.BytesIO()
    torch.save({"w": emptied(), "a": torch.ones(3)}, buffer)
    path = tmp_path / "x.mdl"
    path.write_bytes(buffer.getvalue())
    for keys in (None, ["w"]):
        with pytest.raises(ValueError, match=r"x\.mdl is damaged"):
            fsspec_csx.load(path, keys=keys)
