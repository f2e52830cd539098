"""Converted checkpoints: as torch or safetensors would write them, in bounded memory, with verified checksums."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import fsspec
import pytest
import safetensors
import safetensors.torch as official
import torch
from checkpoints import Leaving, names, saved
from fsspec.callbacks import Callback
from proxy import Fault, FaultProxy

from fsspec_csx.checkpoint.api import load, save
from fsspec_csx.errors import CheckpointError, InvalidCheckpointError, MissingEntryError, UnsafeCheckpointError
from fsspec_csx.formats.torch_zip import archive_writer
from fsspec_csx.manage.convert import ConvertResult, convert
from fsspec_csx.tensors import tensor_stream
from fsspec_csx.testing import LocalS3

MODEL = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.BatchNorm1d(5), torch.nn.Linear(5, 2))
COMPLEX = torch.randn(5, dtype=torch.complex64)
SHARED = torch.arange(100_000.0)


def attributed() -> torch.Tensor:
    """A tensor with an attribute of its own."""
    tensor = torch.ones(3)
    tensor.note = "kept"  # type: ignore[attr-defined]
    return tensor


STATES: dict[str, Any] = {
    "nothing": {},
    "a tensor": torch.arange(5.0),
    "values": {"x": 1, "y": [None, "text", (1.5, b"bytes")], 3: {4, 5}},
    "model": OrderedDict(MODEL.state_dict()),
    "parameters": dict(MODEL.named_parameters()),
    "nested": {"model": [{"w": torch.randn(70, 30)}, (torch.arange(4), "t")], "step": 3},
    "tied": {"a": SHARED, "b": SHARED, "c": SHARED[10:20], "d": SHARED.view(100, 1000).t()},
    "zero-size": {"a": torch.empty(0), "b": torch.empty(2, 0), "c": torch.ones(1), "d": torch.tensor(1.5)},
    "kinds": {
        "f8": torch.ones(9).to(torch.float8_e4m3fn),
        "c": torch.ones(2, dtype=torch.complex64),
        "b": torch.tensor(True),
    },
    "views": {
        "conj": torch.randn(5, dtype=torch.complex64).conj(),
        "imag": torch.randn(5, dtype=torch.complex64).conj().imag,
    },
    "attributes": {"x": attributed()},
    "many": {f"x{number}": torch.full((number,), float(number)) for number in range(300)},
    "large": {"a": torch.randn(3 * 2**20 + 1), "b": torch.randn(5), "c": torch.randn(2**20, dtype=torch.float64)},
}
"""Each can be compared with what torch.save writes of it."""

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32, "float64": torch.float64}
STRIDED = {
    "plain": torch.randn(50, 40),
    "transposed": torch.randn(50, 40).t(),
    "permuted": torch.randn(6, 7, 8, 9).permute(2, 0, 3, 1),
    "columns": torch.randn(50, 40)[:, 3:7],
    "rows": torch.randn(50, 40)[::7],
    "every third": torch.randn(500)[1::3],
    "expanded": torch.randn(40).expand(50, 40),
    "expanded inside": torch.randn(50, 1).expand(50, 40),
    "windows": torch.randn(500).as_strided((100, 9), (4, 1)),
    "one row": torch.randn(1, 300).t().t(),
    "a number": torch.randn(5)[3],
    "conj": torch.randn(20, 30, dtype=torch.complex64).t().conj(),
    "imag": torch.randn(300, dtype=torch.complex64).conj().imag,
}


@pytest.fixture
def put(tmp_path: Path) -> Any:
    """Writes bytes to a file, and returns its path."""

    def write(data: bytes, name: str = "source.mdl") -> str:
        (tmp_path / name).write_bytes(data)
        return str(tmp_path / name)

    return write


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few numbers are much already."""
    monkeypatch.setattr(tensor_stream, "_PIECE", 256)
    monkeypatch.setattr(tensor_stream, "_BATCH", 1024)


def cast(value: Any, dtype: torch.dtype) -> Any:
    """A flat mapping with its tensors of floating-point numbers cast."""
    return {name: each.to(dtype) if each.is_floating_point() else each for name, each in value.items()}


def flipped(data: bytes, record: str) -> bytes:
    """A torch file with one bit of a record changed."""
    archive = zipfile.ZipFile(io.BytesIO(data))
    content = archive.read(f"archive/{record}")
    position = data.index(content) + len(content) // 2
    return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]


# -- torch files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", STATES.values(), ids=STATES)
def test_same_bytes_as_torch_save(state: Any, put: Any, tmp_path: Path) -> None:
    """A torch file that is converted to one is the file that torch.save would write, byte for byte."""
    data = saved(state)
    assert convert(put(data), tmp_path / "target.mdl").size == len(data)
    assert (tmp_path / "target.mdl").read_bytes() == data


@pytest.mark.parametrize("wanted", DTYPES)
@pytest.mark.parametrize("name", ["model", "kinds", "many", "zero-size", "large"])
def test_same_bytes_as_of_cast_tensors(name: str, wanted: str, put: Any, tmp_path: Path) -> None:
    """With a dtype the file is the one that torch.save writes of the tensors cast, integers and others as they are."""
    state = dict(STATES[name])
    converted = convert(put(saved(state)), tmp_path / "target.mdl", dtype=wanted)
    assert (tmp_path / "target.mdl").read_bytes() == saved(cast(state, DTYPES[wanted]))
    changed = [each for each in state.values() if each.is_floating_point() and each.dtype != DTYPES[wanted]]
    assert converted.cast == len(changed)
    assert converted.tensors == len(state)


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("name", ["model", "tied", "kinds", "many"])
def test_pieces_and_batches_join(name: str, put: Any, tmp_path: Path) -> None:
    """Where the pieces and batches end makes no difference."""
    source = put(saved(STATES[name]))
    convert(source, tmp_path / "same.mdl")
    assert (tmp_path / "same.mdl").read_bytes() == saved(STATES[name])
    convert(source, tmp_path / "cast.mdl", dtype="float64")
    found = load(tmp_path / "cast.mdl")
    for key, value in cast(STATES[name], torch.float64).items():
        assert torch.equal(found[key], value)


def test_sharing_survives_a_cast(put: Any, tmp_path: Path) -> None:
    """Tensors that share memory share it when they are cast too, and views stay views."""
    convert(put(saved(STATES["tied"])), tmp_path / "target.mdl", dtype="bfloat16")
    found = load(tmp_path / "target.mdl")
    assert len({value.untyped_storage().data_ptr() for value in found.values()}) == 1
    assert found["d"].stride() == (1, 1000)
    for name, value in STATES["tied"].items():
        assert torch.equal(found[name], value.to(torch.bfloat16))
    assert (tmp_path / "target.mdl").stat().st_size < 210_000


def test_views_of_several_dtypes(put: Any, tmp_path: Path) -> None:
    """Of tensors that share memory under different dtypes only those of floating-point numbers are cast, apart."""
    eighths = torch.arange(8, dtype=torch.uint8).view(torch.float8_e5m2)
    state = {"f": eighths, "u": eighths.view(torch.uint16), "g": eighths[2:4]}
    convert(put(saved(state)), tmp_path / "target.mdl", dtype="float32")
    found = load(tmp_path / "target.mdl")
    assert torch.equal(found["f"], eighths.float())
    assert torch.equal(found["g"], eighths[2:4].float())
    assert torch.equal(found["u"], state["u"])


def test_parameters_and_attributes_survive_a_cast(put: Any, tmp_path: Path) -> None:
    """Parameters stay such, as do requires_grad, attributes and the versions that a state dict says."""
    state = {"p": torch.nn.Parameter(torch.ones(3)), "frozen": torch.nn.Parameter(torch.ones(3), requires_grad=False)}
    state["note"] = attributed()  # type: ignore[assignment]
    model = MODEL.state_dict()
    convert(put(saved({"state": state, "model": model})), tmp_path / "target.mdl", dtype=torch.float16)
    found = load(tmp_path / "target.mdl")
    assert [type(each) for each in found["state"].values()] == [torch.nn.Parameter] * 2 + [torch.Tensor]
    assert [each.requires_grad for each in found["state"].values()] == [True, False, False]
    assert {each.dtype for each in found["state"].values()} == {torch.float16}
    assert found["state"]["note"].note == "kept"
    assert found["model"]._metadata == model._metadata


@pytest.mark.parametrize("state", [STATES["nested"], STATES["tied"]], ids=["nested", "tied"])
def test_some_entries(state: Any, put: Any, tmp_path: Path) -> None:
    """With keys the file has what load returns for them."""
    keys = [next(iter(state))]
    source = put(saved(state))
    convert(source, tmp_path / "target.mdl", keys=keys)
    assert (tmp_path / "target.mdl").read_bytes() == saved(load(source, keys=keys))


@pytest.mark.parametrize("format", ["torch", "safetensors", "huggingface", "distributed", "cerebras"])
def test_no_entries(environment: LocalS3, bucket: str, put: Any, format: str) -> None:
    """An empty list of keys selects nothing, and not all."""
    assert convert(put(saved({"w": torch.ones(3)})), f"s3://{bucket}/x", keys=[], format=format).tensors == 0


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")  # torch's, of its own doings
def test_other_files_are_loaded_whole(put: Any, tmp_path: Path) -> None:
    """Files of torch before 1.6, and those of sparse and quantized tensors, are converted too."""
    sparse = torch.eye(4).to_sparse()
    quantized = torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)
    old = put(saved({"x": torch.arange(10.0), "y": 1}, _use_new_zipfile_serialization=False), "old.pt")
    convert(old, tmp_path / "new.mdl", dtype="float16")
    assert (tmp_path / "new.mdl").read_bytes() == saved({"x": torch.arange(10.0).half(), "y": 1})
    convert(put(saved({"s": sparse, "q": quantized, "x": torch.ones(2)})), tmp_path / "other.mdl", dtype="bfloat16")
    found = load(tmp_path / "other.mdl")
    assert torch.equal(found["s"].to_dense(), torch.eye(4, dtype=torch.bfloat16))
    assert torch.equal(found["q"].int_repr(), quantized.int_repr())
    assert found["x"].dtype == torch.bfloat16


def test_torch_that_lays_nothing_out(put: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With torch before 2.6 the result is the same."""
    monkeypatch.setattr(archive_writer, "_is_known", lambda alignment, save: False)
    source = put(saved(STATES["tied"]))
    assert convert(source, tmp_path / "same.mdl").size == len(saved(STATES["tied"]))
    assert (tmp_path / "same.mdl").read_bytes() == saved(STATES["tied"])
    convert(source, tmp_path / "cast.mdl", dtype="float16")
    assert torch.equal(load(tmp_path / "cast.mdl")["d"], STATES["tied"]["d"].half())


# -- safetensors files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model", "kinds", "many", "large"])
def test_same_bytes_as_safetensors(name: str, put: Any, tmp_path: Path) -> None:
    """A torch file becomes the file that the safetensors library writes of the same tensors."""
    convert(put(saved(STATES[name])), tmp_path / "target.safetensors")
    assert (tmp_path / "target.safetensors").read_bytes() == official.save(dict(STATES[name]), {"format": "pt"})
    convert(tmp_path / "target.safetensors", tmp_path / "back.mdl")
    found = load(tmp_path / "back.mdl")
    assert sorted(found) == sorted(STATES[name])
    for key, value in found.items():
        assert torch.equal(value.view(-1).view(torch.uint8), STATES[name][key].reshape(-1).view(torch.uint8))


@pytest.mark.parametrize("pieces", ["small", "as they are"])
@pytest.mark.parametrize("wanted", [None, "float16", "float64"])
def test_strides(wanted: str | None, pieces: str, put: Any, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Tensors that do not lie in memory as in a safetensors file are put in order, whatever their strides."""
    if pieces == "small":
        request.getfixturevalue("small_pieces")
    convert(put(saved(STRIDED)), tmp_path / "target.safetensors", dtype=wanted)
    found = official.load_file(tmp_path / "target.safetensors")
    for name, value in (cast(STRIDED, DTYPES[wanted]) if wanted else STRIDED).items():
        assert torch.equal(found[name], value), name


def test_nested_and_shared(put: Any, tmp_path: Path) -> None:
    """Names are joined by dots, what shares memory is copied, and what is no tensor is left out if that is wished."""
    state = {"m": {"w": SHARED, "tied": SHARED, "part": SHARED[5:9]}, "l": [torch.ones(2), {}], "step": 3}
    source, target = put(saved(state)), tmp_path / "target.safetensors"
    with pytest.raises(ValueError, match=r"these entries are not: 'l\.1', 'step'\. Leave them out"):
        convert(source, target)
    assert not target.exists()
    converted = convert(source, target, drop_values=True)
    found = official.load_file(target)
    assert sorted(found) == ["l.0", "m.part", "m.tied", "m.w"]
    assert all(torch.equal(found[f"m.{name}"], value) for name, value in state["m"].items())  # type: ignore[attr-defined]
    assert converted.dropped == ("l.1", "step")
    assert converted.separated == ("m.part", "m.w")  # apart from "m.tied"


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ([torch.ones(1)], "it holds a list, not a mapping of names to tensors. Write a torch file"),
        (torch.ones(1), "it holds a Tensor, not a mapping"),
        ({"a": {"b": torch.ones(1)}, "a.b": torch.ones(1)}, "two tensors named 'a.b'. Rename one"),
        ({"__metadata__": torch.ones(1)}, "'__metadata__' is reserved"),
        ({"x": torch.eye(2).to_sparse()}, "cannot hold 'x': it is of layout torch.sparse_coo"),
        ({"x": torch.ones(2, dtype=torch.complex128)}, "no such tensors of torch.complex128"),
        ({"x": torch.ones(2, device="meta")}, "has no memory of its own"),
    ],
)
def test_what_safetensors_cannot_hold(state: Any, said: str, put: Any, tmp_path: Path) -> None:
    """What the format cannot hold is refused by name, and nothing is written."""
    with pytest.raises(ValueError, match=said.replace(".", r"\.")):
        convert(put(saved(state)), tmp_path / "target.safetensors")
    assert names(str(tmp_path)) == ["home", "source.mdl"]


def test_metadata_stays(put: Any, tmp_path: Path) -> None:
    """What the header of a safetensors file says besides the tensors is said by the next one too."""
    source = put(official.save({"x": torch.ones(2)}, {"format": "pt", "trained": "ä"}), "source.safetensors")
    convert(source, tmp_path / "target.safetensors", dtype="float16")
    with safetensors.safe_open(tmp_path / "target.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "trained": "ä"}
        assert file.get_tensor("x").dtype == torch.float16


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError("disk full")])
def test_broken_off(error: BaseException, root: str) -> None:
    """What ends halfway leaves nothing, and what was at the target as it was."""
    save(STATES["large"], f"{root}/source.mdl")
    before = {"y": torch.ones(1)}
    save(before, f"{root}/target.safetensors")
    with pytest.raises(type(error)):
        convert(f"{root}/source.mdl", f"{root}/target.safetensors", overwrite=True, callback=Leaving(error))
    assert load(f"{root}/target.safetensors") == before
    assert names(root) == ["source.mdl", "target.safetensors"]


def test_nothing_in_safetensors(put: Any, tmp_path: Path) -> None:
    """An empty state dict becomes a file without tensors."""
    convert(put(saved({})), tmp_path / "target.safetensors")
    assert (tmp_path / "target.safetensors").read_bytes() == official.save({}, {"format": "pt"})


# -- damage, and what is lost ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["target.mdl", "target.safetensors"])
@pytest.mark.parametrize(
    ("record", "named"), [("data/0", "'large'"), ("data/1", "'small'"), ("data/2", "'part', 'other part'")]
)
def test_a_flipped_bit(record: str, named: str, target: str, put: Any, tmp_path: Path) -> None:
    """A bit that changed since the file was saved is an error that names the tensor, and what is there stays."""
    shared = torch.randn(5 * 2**20)
    state = {
        "large": torch.randn(5 * 2**20),
        "small": torch.randn(50),
        "part": shared[:10],
        "other part": shared[20:25],
    }
    (tmp_path / target).write_bytes(b"old")
    with pytest.raises(InvalidCheckpointError, match=f"the checksum of {named} is wrong"):
        convert(put(flipped(saved(state), record)), tmp_path / target, dtype="float16", overwrite=True)
    assert (tmp_path / target).read_bytes() == b"old"
    assert names(str(tmp_path)) == sorted(["home", "source.mdl", target])


def test_what_becomes_infinite_is_reported(put: Any, tmp_path: Path) -> None:
    """Numbers that overflow the new dtype are reported by the names of their tensors, but not infinite ones."""
    state = {"small": torch.ones(3), "large": torch.tensor([1.0, 7e4]), "inf": torch.tensor([float("inf"), 1.0])}
    source = put(saved(state))
    for target in ("target.mdl", "target.safetensors"):
        converted = convert(source, tmp_path / target, dtype="float16")
        assert converted.overflowed == ("large",)
        assert load(tmp_path / target)["large"].tolist() == [1.0, float("inf")]
    assert convert(source, tmp_path / "bfloat16.mdl", dtype="bfloat16").overflowed == ()


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", InvalidCheckpointError),
        (saved(STATES["model"])[:-100], InvalidCheckpointError),
        (saved(Path), UnsafeCheckpointError),
    ],
    ids=["empty", "cut short", "unsafe"],
)
def test_what_is_no_checkpoint(data: bytes, error: type[Exception], put: Any, tmp_path: Path) -> None:
    """What load refuses is refused, and nothing is written."""
    with pytest.raises(error):
        convert(put(data), tmp_path / "target.mdl")
    assert not (tmp_path / "target.mdl").exists()


def test_missing_names(put: Any, tmp_path: Path) -> None:
    """A name that is not there is an error before anything is written."""
    with pytest.raises(MissingEntryError, match="has no 'modle'"):
        convert(put(saved(STATES["nested"])), tmp_path / "target.mdl", keys=["modle"])
    assert not (tmp_path / "target.mdl").exists()


def test_bad_arguments(put: Any, tmp_path: Path) -> None:
    """An unknown format, and a dtype that is none or not one of floating-point numbers, are refused."""
    source, target = put(saved({})), tmp_path / "target.mdl"
    for options in ({"format": "onnx"}, {"dtype": "int8"}, {"dtype": torch.int32}, {"dtype": "save"}):
        with pytest.raises(ValueError, match="Choose one of"):
            convert(source, target, **options)  # type: ignore[arg-type]


# -- paths -------------------------------------------------------------------------------------------------------------


def test_every_filesystem(root: str) -> None:
    """Source and target may be anywhere; what is at the target stays unless it may be overwritten."""
    save(STATES["tied"], f"{root}/a#b [1].mdl")
    converted = convert(f"{root}/a#b [1].mdl", f"{root}/out/ä?.safetensors", dtype="bfloat16")
    assert isinstance(converted, ConvertResult)
    assert (converted.path, converted.format) == (f"{root}/out/ä?.safetensors", "safetensors")
    with fsspec.open(converted.path, "rb") as file:
        data = file.read()
    assert official.load(data).keys() == STATES["tied"].keys()
    assert converted.size == len(data)
    with pytest.raises(FileExistsError, match="exists already"):
        convert(f"{root}/a#b [1].mdl", converted.path)
    convert(f"{root}/a#b [1].mdl", converted.path, overwrite=True, keys=["a"])
    assert list(load(converted.path)) == ["a"]
    assert names(f"{root}/out") == ["ä?.safetensors"]


@pytest.mark.parametrize(
    ("source", "format", "name"),
    [
        ("x.pt", None, "x.pt"),
        ("x.pt", "safetensors", "x.safetensors"),
        ("x.y", "safetensors", "x.y.safetensors"),
        ("x.safetensors", None, "x.safetensors"),
        ("x.safetensors", "torch", "x.mdl"),
        (".mdl", "safetensors", ".mdl.safetensors"),
    ],
)
def test_the_name_in_a_folder(source: str, format: str | None, name: str, tmp_path: Path) -> None:
    """A target that ends in a slash takes the source's name, with a suffix of the format."""
    save({"x": torch.ones(2)}, tmp_path / source)
    converted = convert(tmp_path / source, f"{tmp_path}/out/", format=format)
    assert converted.path == f"{tmp_path}/out/{name}"
    assert (converted.format == "safetensors") == name.endswith(".safetensors")
    assert load(converted.path)["x"].tolist() == [1.0, 1.0]


def test_onto_itself(root: str) -> None:
    """A checkpoint can take its own place."""
    save(STATES["large"], f"{root}/x.mdl")
    convert(f"{root}/x.mdl", f"{root}/x.mdl", dtype="bfloat16", overwrite=True)
    assert torch.equal(load(f"{root}/x.mdl")["a"], STATES["large"]["a"].bfloat16())


def test_callback(put: Any, tmp_path: Path) -> None:
    """A callback learns how many bytes are written."""
    callback = Callback()
    converted = convert(put(saved(STATES["large"])), tmp_path / "target.mdl", callback=callback)
    assert callback.size == callback.value == converted.size


# -- memory ------------------------------------------------------------------------------------------------------------

_MEMORY = """
import sys, torch
from fsspec_csx.manage.convert import convert
from fsspec_csx import save
def most():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
save({"x": torch.ones(3)}, sys.argv[2] + "warm.mdl")
convert(sys.argv[2] + "warm.mdl", sys.argv[2] + "warm.safetensors", dtype="float64")
before = most()
for target, dtype in (("x.mdl", "bfloat16"), ("x.safetensors", "float16")):
    convert(sys.argv[1], sys.argv[2] + target, dtype=dtype)
print((most() - before) // 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="Linux reports the memory used")
def test_memory(tmp_path: Path) -> None:
    """A checkpoint of 220 MiB is converted in less than 100 MiB."""
    state = {"large": torch.zeros(25 * 2**20), **{f"x{number}": torch.zeros(2**20) for number in range(20)}}
    state["part"] = torch.zeros(2, 5 * 2**20)[:, : 2**20]
    save(state, tmp_path / "source.mdl")
    command = [sys.executable, "-c", _MEMORY, str(tmp_path / "source.mdl"), f"{tmp_path}/"]
    done = subprocess.run(command, check=True, timeout=110, capture_output=True, text=True)
    assert 0 <= int(done.stdout) < 100


@pytest.mark.parametrize("format", ["cerebras", "distributed", "huggingface", "torch"])
@pytest.mark.parametrize("folder", [False, True], ids=["file", "folder"])
def test_bits_flipped_on_the_way_down(
    environment: LocalS3, bucket: str, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, format: str, folder: bool
) -> None:
    """A safetensors source that is read whole is compared with the server's checksum, before the target appears."""
    state = {"a": torch.zeros(2**19), "b": torch.ones(100)}
    source = f"s3://{bucket}/x" if folder else f"s3://{bucket}/x.safetensors"
    save(state, source, format="huggingface" if folder else None)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
    refused = 0
    for skip in range(12):
        target = f"s3://{bucket}/{format}{skip}"
        fault = Fault("GET", skip=skip, flip_down=0.5, when=lambda request: request.path.endswith(".safetensors"))
        proxy.faults = [fault]
        try:
            convert(source, target, format=format)
        except CheckpointError:
            refused += 1
            expected: Any = (FileNotFoundError, CheckpointError)
        else:  # what was damaged was not needed
            expected = ()
        proxy.faults = []
        with pytest.raises(expected) if expected else contextlib.nullcontext():
            found = load(target)
            assert all(torch.equal(found[key], each) for key, each in state.items())
        if fault.times:
            break
    assert refused
