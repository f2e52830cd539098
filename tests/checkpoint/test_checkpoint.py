"""load and torch.load read the files of save; load reads those of torch.save."""

from __future__ import annotations

import copy
import ctypes
import io
import subprocess
import sys
import zipfile
from collections import OrderedDict
from typing import Any

import fsspec
import pytest
import torch
from checkpoints import MIB, Point

from fsspec_csx.checkpoint.api import load, save
from fsspec_csx.formats import reader
from fsspec_csx.formats.io_wrappers import TrackingReader, TrackingWriter
from fsspec_csx.formats.torch_zip.format import TorchWriter
from fsspec_csx.tensors.source import Source

pytestmark = pytest.mark.adaptive

DTYPES = [
    *(
        torch.bool,
        torch.uint8,
        torch.uint16,
        torch.uint32,
        torch.uint64,
        torch.int8,
        torch.int16,
        torch.int32,
        torch.int64,
    ),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex32, torch.complex64, torch.complex128),
    *(torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz),
]
VALUES = [
    "text é",
    None,
    -(2**80),
    1.5,
    True,
    2 + 3j,
    b"\x00\xff",
    bytearray(b"ab"),
    (1, ("two", None)),
    [1, [2]],
    {1, 2},
    {"a": {"b": 3}},
    OrderedDict(b=1, a=2),
    torch.Size([2, 3]),
    torch.bfloat16,
    torch.device("cpu"),
    torch.strided,
]


def same_bits(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Equal in dtype, shape and every bit, NaNs too."""
    if (first.dtype, first.shape) != (second.dtype, second.shape):
        return False
    return bytes(first.contiguous().untyped_storage()) == bytes(second.contiguous().untyped_storage())


def round_trip(obj: Any, root: str) -> Any:
    """What load makes of what save wrote."""
    save(obj, f"{root}/x.pt")
    return load(f"{root}/x.pt")


# -- what is kept ------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:ComplexHalf support:UserWarning")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes(dtype: torch.dtype, root: str) -> None:
    """A tensor of each dtype comes back bit for bit."""
    tensor = torch.randint(0, 2, (3, 32), dtype=torch.uint8).view(dtype)
    assert same_bits(round_trip({"x": tensor}, root)["x"], tensor)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")  # torch's, of its own doings
def test_quantized(root: str) -> None:
    """A quantized tensor keeps its scale and its values."""
    tensor = torch.quantize_per_tensor(torch.randn(5), scale=0.1, zero_point=3, dtype=torch.qint8)
    loaded = round_trip(tensor, root)
    assert (loaded.q_scale(), loaded.q_zero_point()) == (tensor.q_scale(), tensor.q_zero_point())
    assert torch.equal(loaded.int_repr(), tensor.int_repr())


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_values(value: Any, root: str) -> None:
    """What is no tensor comes back equal and of its type."""
    loaded = round_trip({"x": value}, root)["x"]
    assert loaded == value
    assert type(loaded) is type(value)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor(3.0),
        torch.empty(0),
        torch.empty(2, 0, 3),
        torch.arange(12).reshape(3, 4).t(),
        torch.arange(12)[::3],
        torch.ones(1).expand(4),
    ],
    ids=["0-d", "empty", "empty 3-d", "transposed", "strided", "expanded"],
)
def test_layouts(tensor: torch.Tensor, root: str) -> None:
    """Shape and strides are kept."""
    loaded = round_trip(tensor, root)
    assert torch.equal(loaded, tensor)
    assert loaded.stride() == tensor.stride()


def test_sparse(root: str) -> None:
    """A sparse tensor stays sparse."""
    tensor = torch.eye(3).to_sparse()
    assert torch.equal(round_trip(tensor, root).to_dense(), tensor.to_dense())


def test_ties(root: str) -> None:
    """Tied weights and views share memory again."""
    weight = torch.nn.Parameter(torch.randn(4, 4), requires_grad=False)
    loaded = round_trip({"in": weight, "out": weight, "row": weight[1]}, root)
    loaded["in"].zero_()
    assert loaded["out"] is loaded["in"]
    assert not loaded["row"].any()


def test_parameters(root: str) -> None:
    """A Parameter stays one and keeps requires_grad."""
    loaded = round_trip([torch.nn.Parameter(torch.ones(1)), torch.ones(1, requires_grad=True)], root)
    assert [type(tensor) for tensor in loaded] == [torch.nn.Parameter, torch.Tensor]
    assert all(tensor.requires_grad for tensor in loaded)


def test_training_state(root: str) -> None:
    """A model and its optimizer train on as if they had not been saved."""

    def step(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> torch.Tensor:
        optimizer.zero_grad()
        model(torch.ones(1, 3)).sum().backward()
        optimizer.step()
        return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])

    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    optimizer = torch.optim.AdamW(model.parameters())
    step(model, optimizer)
    state = round_trip({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": 1}, root)
    twin = copy.deepcopy(model)
    twin.load_state_dict(state["model"])
    twin_optimizer = torch.optim.AdamW(twin.parameters())
    twin_optimizer.load_state_dict(state["optimizer"])
    assert torch.equal(step(twin, twin_optimizer), step(model, optimizer))


# -- torch's own files -------------------------------------------------------------------------------------------------


def test_torch_load_reads(root: str) -> None:
    """torch.load reads what save wrote, and finds the bytes of torch.save but for the identity of the writing."""
    state: dict[str, Any] = {"x": torch.arange(1000), "y": "z"}
    save(state, f"{root}/x.pt")
    with fsspec.open(f"{root}/x.pt") as file:
        data = file.read()
    own = io.BytesIO()
    torch.save(state, own)
    assert torch.equal(torch.load(io.BytesIO(data))["x"], state["x"])
    assert zipfile.ZipFile(io.BytesIO(data)).namelist() == zipfile.ZipFile(own).namelist()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("weights_only", [True, False])
def test_load_reads_torch_save(root: str, zipped: bool, weights_only: bool) -> None:
    """Load reads what torch.save wrote, in today's format and in that before 1.6."""
    state: dict[str, Any] = {"x": torch.randn(300, 300), "y": [1, "z"]}
    state["view"] = state["x"][1]
    with fsspec.open(f"{root}/x.pt", "wb") as file:
        torch.save(state, file, _use_new_zipfile_serialization=zipped)
    loaded = load(f"{root}/x.pt", weights_only=weights_only)
    assert torch.equal(loaded["x"], state["x"])
    assert loaded["view"].data_ptr() == loaded["x"][1].data_ptr()


@pytest.mark.parametrize("map_location", ["meta", torch.device("meta"), {"cpu": "meta"}], ids=str)
def test_map_location(root: str, map_location: Any) -> None:
    """map_location reaches torch."""
    save({"x": torch.ones(3)}, f"{root}/x.pt")
    assert load(f"{root}/x.pt", map_location=map_location)["x"].device.type == "meta"


def test_weights_only_false(root: str) -> None:
    """weights_only=False loads any class."""
    save(Point(), f"{root}/x.pt")
    assert isinstance(load(f"{root}/x.pt", weights_only=False), Point)


def test_mmap_setting_is_not_in_the_way(root: str) -> None:
    """torch's global setting for mmap, which takes only paths, does not break load."""
    from torch.utils.serialization import config

    with config.patch({"load.mmap": True}):  # type: ignore[attr-defined]  # torch adds it at run time
        assert round_trip([1], root) == [1]


@pytest.mark.filterwarnings("ignore:The given buffer is not writable:UserWarning")
def test_no_copies() -> None:
    """The file gets the tensor's own memory on save, and the new tensor's on load."""
    tensor = torch.randn(MIB)
    written, filled = [], []

    class Buffer(io.BytesIO):
        def write(self, data: Any) -> int:
            written.append(torch.frombuffer(data, dtype=torch.uint8).data_ptr())
            return super().write(data)

        def readinto(self, buffer: Any) -> int:
            filled.append(ctypes.addressof(ctypes.c_char.from_buffer(buffer)))
            return super().readinto(buffer)

    buffer = Buffer()
    TorchWriter({"x": tensor}).write(buffer, advance=lambda count: None)
    loaded = reader.read(Source(buffer, buffer.tell()), name="buffer")
    assert tensor.data_ptr() in written
    assert loaded["x"].data_ptr() in filled


class Short(io.BytesIO):
    """Takes and gives at most 1000 bytes at a time, as an unbuffered file may."""

    def write(self, data: Any) -> int:
        return super().write(memoryview(data)[:1000])

    def read(self, size: int | None = -1) -> bytes:
        return super().read(1000 if size is None or size < 0 else min(size, 1000))

    def readinto(self, buffer: Any) -> int:
        return super().readinto(memoryview(buffer)[:1000])


@pytest.mark.parametrize("zipped", [True, False])
def test_short_reads_and_writes(zipped: bool) -> None:
    """A file that accepts or returns fewer bytes than requested is called again."""
    state = {"x": torch.randn(10000)}
    file = Short()
    torch.save(state, TrackingWriter(file, lambda count: None), _use_new_zipfile_serialization=zipped)  # type: ignore[arg-type]
    loaded = reader.read(Source(file, len(file.getvalue())), name="file")
    assert torch.equal(loaded["x"], state["x"])


def test_a_file_without_readinto() -> None:
    """A file that can only read is read all the same."""

    class Plain:
        def __init__(self, data: bytes) -> None:
            file = io.BytesIO(data)
            self.read, self.seek, self.tell = file.read, file.seek, file.tell

    reader = TrackingReader(Plain(b"abc"), 3)
    buffer = bytearray(2)
    assert reader.readinto(buffer) == 2
    assert buffer == b"ab"


def test_import_is_light() -> None:
    """Importing the module imports neither torch nor what it does not need yet."""
    check = (
        "import fsspec_csx.checkpoint.api, sys; "
        "print({'torch', 's3fs', 'aiobotocore', 'tqdm'} & set(sys.modules) or '')"
    )
    printed = subprocess.run([sys.executable, "-c", check], check=True, timeout=100, capture_output=True, text=True)
    assert not printed.stdout.strip()
