"""Which memory save lends to a file until it is closed: that of tensors that the caller holds, and no other."""

from __future__ import annotations

import gc
import io
import weakref
from collections import OrderedDict
from typing import Any

import pytest
import torch
from checkpoints import MIB
from conftest import recorded_requests

from fsspec_csx.checkpoint.api import load, save
from fsspec_csx.formats.torch_zip import archive_writer
from fsspec_csx.formats.torch_zip.format import TorchWriter


class Borrowing(io.BytesIO):
    """A file that copies what it borrows only when it is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[Any] = []
        self.borrowed: list[int] = []

    def write(self, data: Any) -> int:
        self.pieces.append(bytes(data))
        return memoryview(data).nbytes

    def write_borrowed(self, data: Any) -> int:
        self.pieces.append(data)
        self.borrowed.append(memoryview(data).nbytes)
        return self.borrowed[-1]

    def content(self) -> bytes:
        """All that was written, as it is now."""
        return b"".join(self.pieces)


class Making:
    """Makes a tensor while it is pickled, which is gone afterwards."""

    def __init__(self, value: float, numel: int) -> None:
        self.value, self.numel = value, numel

    def __reduce__(self) -> Any:
        return OrderedDict, ([("made", torch.full((self.numel,), self.value))],)


class Holder:
    """Holds a tensor in an attribute, which is not traversed."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor

    def __reduce__(self) -> Any:
        return OrderedDict, ([("made", self.tensor.clone())],)


def written(obj: Any) -> tuple[Borrowing, TorchWriter]:
    """The file after all was written to it, and what must not be dropped yet."""
    file, saving = Borrowing(), TorchWriter(obj)
    saving.write(file, advance=lambda count: None)
    return file, saving


def overwritten_heap() -> None:
    """Take the memory that was freed, and write other values to it."""
    gc.collect()
    held = [torch.full((size,), -7.0) for size in (20_000, MIB, 2 * MIB) for _ in range(4)]
    del held


def read(file: Borrowing) -> Any:
    """What torch.load makes of the file."""
    return torch.load(io.BytesIO(file.content()), weights_only=False)


def test_what_is_held_is_borrowed() -> None:
    """Large tensors of the CPU are lent, however deep they lie; views lend all of their memory, once."""
    base = torch.randn(MIB)
    state = {"a": [base, base[5:10]], "b": ({"c": torch.nn.Parameter(torch.randn(MIB))},), "small": torch.ones(100)}
    file, _held = written(state)
    assert sorted(file.borrowed) == [4 * MIB, 4 * MIB]
    loaded = read(file)
    assert torch.equal(loaded["a"][0], base)
    assert torch.equal(loaded["small"], torch.ones(100))


@pytest.mark.parametrize(
    "obj",
    [Making(3.0, MIB), Making(3.0, 20_000), Holder(torch.full((MIB,), 3.0)), torch.full((1000, 1000), 3.0).to_sparse()],
    ids=["made", "made small", "cloned", "sparse"],
)
def test_what_nobody_else_holds(obj: Any) -> None:
    """What is made while an object is pickled is held until the file is closed."""
    file, _held = written({"x": obj, "y": torch.full((MIB,), 5.0)})
    overwritten_heap()
    assert file.borrowed[-1] == 4 * MIB
    loaded = read(file)
    value = loaded["x"]["made"] if isinstance(loaded["x"], OrderedDict) else loaded["x"].to_dense()
    assert bool((value == 3).all())
    assert bool((loaded["y"] == 5).all())


def test_borrowed_means_not_copied() -> None:
    """The test file does see a change of what was lent, so that the tests above could fail."""
    tensor = torch.zeros(MIB)
    file, _held = written({"x": tensor})
    tensor.fill_(1)
    data = file.content()
    assert data.count(torch.ones(1000).numpy().tobytes()) > 0


def test_strides() -> None:
    """A view of every other element is saved with the memory that it is a view of."""
    tensor = torch.arange(MIB)
    file, _held = written({"x": tensor[::2]})
    assert torch.equal(read(file)["x"], tensor[::2])
    assert file.borrowed == [8 * MIB]


def test_held_while_it_may_be_used() -> None:
    """The memory stays alive as long as the saving, or what was lent of it, whatever becomes of the object."""
    state = {"x": torch.full((MIB,), 3.0)}
    file, held = written(state)
    kept = weakref.ref(state["x"].untyped_storage())
    state.clear()
    overwritten_heap()
    assert kept() is not None
    held.free()
    overwritten_heap()
    assert bool((read(file)["x"] == 3).all())
    del file
    gc.collect()
    assert kept() is None


def test_saved_over_s3(environment: Any, bucket: str) -> None:
    """A save to S3 of what is held and what is not comes back right, in parts and whole."""
    path = f"s3://{bucket}/x.pt"
    state = {"large": torch.randn(6 * MIB), "tensors": [torch.randn(30_000) for _ in range(20)], "view": None}
    state["view"] = state["large"][7:9]  # type: ignore[index]
    save({**state, "made": Making(3.0, 3 * MIB)}, path)
    loaded = load(path)
    assert torch.equal(loaded["large"], state["large"])  # type: ignore[arg-type]
    assert torch.equal(loaded["view"], state["view"])  # type: ignore[arg-type]
    assert all(map(torch.equal, loaded["tensors"], state["tensors"]))  # type: ignore[arg-type]
    assert bool((loaded["made"]["made"] == 3).all())


def test_many_small_tensors_take_few_requests(environment: Any, bucket: str) -> None:
    """5,000 tensors of 4 KiB are saved by a handful of requests."""
    state = {f"layer.{number}": torch.full((1024,), float(number)) for number in range(5000)}
    with recorded_requests() as operations:
        save(state, f"s3://{bucket}/x.pt")
    assert len(operations) <= 6
    assert set(operations) == {"CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload"}


@pytest.mark.parametrize("size", [0, 1, 16 * MIB, 16 * MIB + 1, 40 * MIB])
def test_other_devices(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Storages that are not the CPU's are written through memory of a bounded size, and none of it is lent."""
    monkeypatch.setattr(archive_writer, "HERE", "nowhere")
    tensor = torch.randint(0, 255, (size,), dtype=torch.uint8)
    file, _held = written({"x": tensor, "y": 1})
    assert file.borrowed == []
    assert max(map(len, file.pieces)) <= 16 * MIB
    assert torch.equal(read(file)["x"], tensor)


def test_equal_to_what_torch_saves() -> None:
    """The file is torch.save's, byte for byte."""
    model = torch.nn.Sequential(torch.nn.Linear(10, 10), torch.nn.BatchNorm1d(10))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.rand(4, 10)).sum().backward()
    optimizer.step()
    base = torch.arange(1000.0)
    objects = [
        {},
        [1, None, "text"],
        {"empty": torch.empty(0), "scalar": torch.tensor(1), "none": None},
        {"tied": [base, base], "view": base[3:9], "turned": base.reshape(10, 100).T},
        {"model": model.state_dict(), "optimizer": optimizer.state_dict()},
        model,
        [torch.rand(5).to(dtype) for dtype in (torch.bfloat16, torch.complex64, torch.bool, torch.float8_e4m3fn)],
        torch.eye(4).to_sparse(),
        base.untyped_storage(),
        {f"layer.{number}": torch.full((number,), 1.0) for number in range(300)},
    ]
    for obj in objects:
        expected = io.BytesIO()
        torch.save(obj, expected)
        assert written(obj)[0].content() == expected.getvalue()


def test_without_a_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the layout is not as it is known to be, torch writes the same file itself."""
    state = {"x": torch.arange(100_000.0), "y": [1, 2]}
    expected = written(state)[0].content()
    monkeypatch.setattr(archive_writer, "_is_known", lambda alignment, save: False)
    file, _held = written(state)
    assert file.borrowed == []
    assert file.content() == expected
