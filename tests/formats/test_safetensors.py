"""The safetensors format: save writes the same bytes as the official library, and load reads its files."""

from __future__ import annotations

import ctypes
import io
import json
import sys
import tracemalloc
from collections import OrderedDict
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import fsspec
import pytest
import safetensors.torch as official
import torch
from checkpoints import MIB
from conftest import recorded_requests
from proxy import Fault, Request, fault_proxy
from safetensors import SafetensorError

from fsspec_csx.checkpoint.api import load, save, stream
from fsspec_csx.errors import CheckpointError, InvalidCheckpointError
from fsspec_csx.formats import sniff
from fsspec_csx.formats.safetensors import header as safetensors_header
from fsspec_csx.formats.safetensors import reader as safetensors_reader
from fsspec_csx.formats.safetensors import writer as safetensors_writer
from fsspec_csx.formats.safetensors.format import SafetensorsWriter
from fsspec_csx.tensors.lazy_object import LazyObject
from fsspec_csx.tensors.source import Source
from fsspec_csx.testing import LocalS3

NAMES = [
    *("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"),
    *("float16", "bfloat16", "float32", "float64", "complex64"),
    *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu", "float4_e2m1fn_x2"),
]
DTYPES = [getattr(torch, name) for name in NAMES if hasattr(torch, name)]
STATES: dict[str, dict[str, torch.Tensor]] = {
    "nothing": {},
    "one": {"x": torch.arange(5.0)},
    "0-d": {"x": torch.tensor(3.0), "y": torch.tensor(True)},
    "zero-size": {"b": torch.empty(0), "a": torch.empty(2, 0, 3), "c": torch.ones(1), "d": torch.empty(2, 0, 3)},
    "all dtypes": {str(dtype): torch.arange(8, dtype=torch.uint8).view(dtype) for dtype in DTYPES if dtype.itemsize},
    "names": {
        name: torch.ones(1) for name in ("", "b", "a", "B", "é", "\x00\x1f\x7f", '"\\/', "\n\t", "\u2028", "😀", "￿")
    },
    "model": torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.BatchNorm1d(5)).state_dict(),
    "parameters": {"x": torch.nn.Parameter(torch.ones(2)), "y": torch.ones(2, requires_grad=True)},
    "parts of one memory": dict(zip("abc", torch.arange(6.0).split(2), strict=True)),
    "header that needs no padding": {"x" * 44: torch.ones(1)},
}


def ignore(count: int) -> None:
    """Of no progress."""


def written(obj: object) -> bytes:
    """The bytes that write makes of an object."""
    buffer = io.BytesIO()
    SafetensorsWriter(obj).write(buffer, advance=ignore)
    return buffer.getvalue()


def skeleton_of(data: bytes) -> LazyObject:
    """What skeleton makes of a file that is named x."""
    return safetensors_reader.structure(Source(io.BytesIO(data), len(data)), name="x")


def read(data: bytes) -> Any:
    """The tensors of a file, filled."""
    return filled(skeleton_of(data), io.BytesIO(data))


def filled(found: LazyObject, file: Any) -> Any:
    """The object of a skeleton, with the bytes of its file."""
    for record in found.records:
        file.seek(record.offset)
        data = bytearray(file.read(record.storage.nbytes()))
        torch.empty(0, dtype=torch.uint8).set_(record.storage).copy_(torch.frombuffer(data, dtype=torch.uint8))
    return found.obj


def same(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> bool:
    """Equal in names, dtypes, shapes and every bit."""
    return first.keys() == second.keys() and all(
        (first[name].dtype, first[name].shape) == (second[name].dtype, second[name].shape)
        and torch.equal(bits(first[name]), bits(second[name]))
        for name in first
    )


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """The bytes of a tensor's values."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def file_of(header: object, data: int = 0) -> bytes:
    """A file with this header, as text or to be made JSON, and so many bytes of tensors."""
    text = header if isinstance(header, bytes) else header.encode() if isinstance(header, str) else dumped(header)
    return len(text).to_bytes(8, "little") + text + bytes(data)


def dumped(header: object) -> bytes:
    """As JSON."""
    return json.dumps(header).encode()


def entry(dtype: object = "F32", shape: object = (1,), offsets: object = (0, 4)) -> dict[str, object]:
    """What a header says of a tensor."""
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


# -- against the official library --------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", STATES.values(), ids=list(STATES))
def test_bytes_are_those_of_the_official_library(state: dict[str, torch.Tensor]) -> None:
    """What we write is what the official library writes, byte for byte."""
    assert written(state) == official.save(dict(state), {"format": "pt"})


@pytest.mark.parametrize("state", STATES.values(), ids=list(STATES))
def test_what_the_official_library_writes(state: dict[str, torch.Tensor]) -> None:
    """We read what the official library writes, with and without metadata."""
    for metadata in (None, {"format": "pt", "é": "\n"}):
        assert same(read(official.save(dict(state), metadata)), state)


@pytest.mark.parametrize("state", STATES.values(), ids=list(STATES))
def test_the_official_library_reads(tmp_path: Any, state: dict[str, torch.Tensor]) -> None:
    """The official library reads what we write, from a file."""
    with open(tmp_path / "x.safetensors", "wb") as file:
        SafetensorsWriter(state).write(file, advance=ignore)
    assert same(official.load_file(tmp_path / "x.safetensors"), state)


def test_every_dtype_is_known() -> None:
    """Both sides are tested with each dtype that torch and the format share."""
    assert set(safetensors_header.DTYPES.values()) == set(DTYPES)


@pytest.mark.parametrize("kind", [OrderedDict, MappingProxyType])
def test_other_mappings(kind: Any) -> None:
    """What counts is that it maps names to tensors."""
    assert written(kind(STATES["one"])) == written(STATES["one"])


# -- tensors that do not lie in memory as in the file ------------------------------------------------------------------

COMPLEX = torch.tensor([[1 + 2j, 3 - 4j], [5j, -6 + 0j]])
LAYOUTS = {
    "transposed": torch.arange(12.0).reshape(3, 4).t(),
    "every third": torch.arange(12)[::3],
    "expanded": torch.ones(1).expand(4),
    "a column": torch.arange(12.0).reshape(3, 4)[:, 1],
    "permuted": torch.arange(24, dtype=torch.bfloat16).reshape(2, 3, 4).permute(2, 0, 1),
    "conjugated": COMPLEX.conj(),
    "conjugated and transposed": COMPLEX.mH,
    "negative": COMPLEX.conj().imag,
    "negative, one value": COMPLEX[:1, 1].conj().imag,
    "requires grad": torch.ones(3, 4, requires_grad=True).t(),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_transposed(dtype: torch.dtype) -> None:
    """A tensor of any dtype may be transposed."""
    columns = torch.arange(48, dtype=torch.uint8).view(2, 24).view(dtype)
    plain = torch.empty(columns.t().shape, dtype=dtype).copy_(columns.t())
    assert written({"x": columns.t()}) == official.save({"x": plain}, {"format": "pt"})


@pytest.mark.parametrize("tensor", LAYOUTS.values(), ids=list(LAYOUTS))
def test_layouts(tensor: torch.Tensor) -> None:
    """A tensor is written by its values, wherever they lie."""
    plain = tensor.detach().clone().resolve_conj().resolve_neg().contiguous()
    assert written({"x": tensor}) == official.save({"x": plain}, {"format": "pt"})


class Pieces(io.BytesIO):
    """Remembers how large the pieces were that it was given, and where they lay."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []
        self.borrowed: list[int] = []

    def write(self, data: Any) -> int:
        self.sizes.append(memoryview(data).nbytes)
        return super().write(data)


class Borrowing(Pieces):
    """A file that can borrow memory, and reads what it borrowed only on demand."""

    def __init__(self) -> None:
        super().__init__()
        self.views: list[memoryview] = []

    def write_borrowed(self, data: memoryview) -> int:
        self.views.append(data)
        self.borrowed.append(ctypes.addressof(ctypes.c_char.from_buffer(data)))
        return len(data)


@pytest.mark.parametrize("shape", [(5, 2 * MIB), (2, 3, MIB), (1, 5 * MIB, 1), (9 * MIB,)], ids=str)
def test_large_copies_are_made_in_pieces(shape: tuple[int, ...]) -> None:
    """A large tensor that has to be copied never is as a whole."""
    tensor = torch.arange(2 * torch.Size(shape).numel(), dtype=torch.int32).reshape(*shape, 2)[..., 1]
    file = Pieces()
    SafetensorsWriter({"x": tensor}).write(file, advance=ignore)
    assert max(file.sizes) <= 16 * MIB
    assert len(file.sizes) > 2
    assert file.getvalue()[-tensor.nbytes :] == memoryview(tensor.contiguous().numpy()).cast("B")


def test_memory_is_handed_on_uncopied() -> None:
    """The memory of a tensor that lies as in the file is lent; copies are written."""
    lent, small, turned = torch.ones(2**15), torch.zeros(8), torch.rand(200, 100).t()
    file, report = Borrowing(), list[int]()
    SafetensorsWriter({"a": lent, "b": small, "c": turned}).write(file, advance=report.append)
    assert file.borrowed == [lent.data_ptr(), small.data_ptr()]
    assert file.sizes[1:] == [turned.nbytes]
    assert sum(report) == len(file.getvalue()) + lent.nbytes + small.nbytes


def test_lent_memory_stays() -> None:
    """What was lent is there even if the tensors have gone, and shows their changes."""
    file, tensor = Borrowing(), torch.ones(2**15)
    SafetensorsWriter({"x": tensor}).write(file, advance=ignore)
    tensor.fill_(2)
    del tensor
    again = torch.zeros(2**15)
    assert not again.any()
    assert bytes(file.views[0]) == bytes(torch.full((2**15,), 2.0).untyped_storage())


def test_memory_is_not_copied_for_a_plain_file() -> None:
    """A file that cannot borrow is given the tensor's own memory too, in one piece."""
    tensor, seen = torch.ones(5 * MIB), []

    class Seeing(io.BytesIO):
        def write(self, data: Any) -> int:
            if isinstance(data, memoryview):
                seen.append((ctypes.addressof(ctypes.c_char.from_buffer(data)), data.nbytes))
            return super().write(data)

    SafetensorsWriter({"x": tensor}).write(Seeing(), advance=ignore)
    assert seen == [(tensor.data_ptr(), tensor.nbytes)]


def test_short_writes() -> None:
    """A file that accepts fewer bytes than it was given gets the rest again."""

    class Short(io.BytesIO):
        def write(self, data: Any) -> int:
            return super().write(memoryview(data)[:100])

    file, state = Short(), {"x": torch.rand(1000), "y": torch.rand(30, 40).t()}
    SafetensorsWriter(state).write(file, advance=ignore)
    assert file.getvalue() == written(state)


# -- what the format cannot hold ---------------------------------------------------------------------------------------


def overlapping(*spans: slice) -> dict[str, torch.Tensor]:
    """Parts of one memory, named by their order."""
    whole = torch.zeros(100)
    return {str(number): whole[span] for number, span in enumerate(spans)}


class Standing(torch.Tensor):
    """A tensor without memory of its own, as a distributed one."""

    @staticmethod
    def __new__(cls) -> Standing:
        made: Standing = torch.Tensor._make_wrapper_subclass(cls, (2,))
        return made

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return cls() if function is torch.ops.aten.detach.default else NotImplemented


TIED = torch.ones(3)
REFUSED: dict[str, tuple[Any, str]] = {
    "a tensor": (torch.ones(1), "holds a mapping of names to tensors, not a Tensor"),
    "a list": ([torch.ones(1)], "holds a mapping of names to tensors, not a list"),
    "nested": ({"model": {"x": torch.ones(1)}}, "cannot hold 'model': its type is dict, not Tensor"),
    "a number": ({"x": torch.ones(1), "step": 1}, "cannot hold 'step': its type is int, not Tensor"),
    "nothing": ({"x": None}, "cannot hold 'x': its type is NoneType"),
    "a name that is no string": ({1: torch.ones(1)}, "are strings, and 1 is not"),
    "the name of the metadata": ({"__metadata__": torch.ones(1)}, "'__metadata__' is reserved"),
    "half a surrogate": ({"\ud800": torch.ones(1)}, "is not valid Unicode"),
    "sparse": ({"x": torch.eye(3).to_sparse()}, "'x': it is of layout torch.sparse_coo"),
    "complex128": ({"x": torch.ones(1, dtype=torch.complex128)}, "no such tensors of torch.complex128"),
    "meta": ({"x": torch.ones(1, device="meta")}, "Tensor on meta has no memory of its own"),
    "a tensor that stands for others": ({"x": Standing()}, "Standing on cpu has no memory of its own"),
    "without a shape": ({"x": torch.nn.UninitializedParameter()}, "a parameter without a shape yet"),
    "tied": ({"out": TIED, "in": TIED}, "overlap in memory: 'in' and 'out'"),
    "a tied parameter": ({"a": torch.nn.Parameter(TIED), "b": TIED.view(1, 3)}, "overlap in memory: 'a' and 'b'"),
    "overlapping": (overlapping(slice(0, 6), slice(5, 8), slice(8, 9)), "overlap in memory: '0' and '1'."),
    "within": (overlapping(slice(0, 50), slice(1, 2), slice(2, 3), slice(50, 60)), "'0' and '1'; '0' and '2'."),
    "two ends": (overlapping(slice(0, 100), slice(99, 100)), "overlap in memory: '0' and '1'"),
    "many": (overlapping(*[slice(0, 9)] * 9), "'0' and '5' and 3 more pairs."),
}


@pytest.mark.parametrize(("obj", "said"), REFUSED.values(), ids=list(REFUSED))
def test_refused(obj: Any, said: str) -> None:
    """What the format cannot hold is named, with what to do, before anything is written."""
    file = Pieces()
    with pytest.raises(ValueError, match=r"[.] (Save|Rename|Run)") as caught:
        SafetensorsWriter(obj).write(file, advance=ignore)
    assert said in str(caught.value)
    assert not file.sizes


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")  # torch's, of its own doings
def test_quantized_and_nested_tensors_are_refused() -> None:
    """The format has neither."""
    quantized = torch.quantize_per_tensor(torch.randn(5), scale=0.1, zero_point=3, dtype=torch.qint8)
    nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    for tensor, said in ((quantized, "no such tensors of torch.qint8"), (nested, "it is nested")):
        with pytest.raises(ValueError, match=said):
            written({"x": tensor})


@pytest.mark.skipif(not hasattr(torch, "float4_e2m1fn_x2"), reason="this torch has no such dtype")
def test_a_pair_without_shape_is_refused() -> None:
    """The format counts the values of a dtype that has two in a byte, along a dimension."""
    with pytest.raises(ValueError, match="float4_e2m1fn_x2"):
        written({"x": torch.tensor(1, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)})


def test_a_tensor_of_a_transform_is_refused() -> None:
    """Within vmap a tensor stands for many, and has no memory."""

    def save(tensor: torch.Tensor) -> torch.Tensor:
        with pytest.raises(ValueError, match="has no memory of its own"):
            written({"x": tensor})
        return tensor + 1

    assert torch.vmap(save)(torch.ones(2, 3)).sum() == 12


def test_empty_parts_share_nothing() -> None:
    """Parts without an element overlap with nothing."""
    whole = torch.ones(3)
    assert same(read(written({"a": whole, "b": whole[1:1]})), {"a": whole, "b": torch.empty(0)})


def test_a_header_too_long_to_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """More header than any reader accepts is not written."""
    monkeypatch.setattr(safetensors_writer, "HEADER_MAX", 200)
    assert written({"x": torch.ones(1)})
    with pytest.raises(ValueError, match=r"288 bytes, .* 200 allowed"):
        written({"x" * 200: torch.ones(1)})


def test_big_endian_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the bytes would be those of other numbers, nothing is read or written."""
    data = written(STATES["one"])
    monkeypatch.setattr(sys, "byteorder", "big")
    with pytest.raises(NotImplementedError, match="little-endian"):
        written(STATES["one"])
    with pytest.raises(NotImplementedError, match="little-endian"):
        skeleton_of(data)


# -- reading -----------------------------------------------------------------------------------------------------------


def test_order_and_places() -> None:
    """Tensors come in the order of the header; a record says where the bytes of each are, if it has any."""
    header = {"b": entry(offsets=(4, 8)), "z": entry(shape=[0], offsets=(4, 4)), "a": entry("I16", [2, 1], (0, 4))}
    data = file_of({"__metadata__": {"any": "text"}, **header}, 8)
    found = skeleton_of(data)
    assert list(found.obj) == ["b", "z", "a"]
    assert [(record.name, record.offset, record.crc32) for record in found.records] == [
        ("b", len(data) - 4, None),
        ("a", len(data) - 8, None),
    ]
    assert [record.storage.data_ptr() for record in found.records] == [found.obj[key].data_ptr() for key in "ba"]


def test_the_default_device_does_not_matter() -> None:
    """Tensors are on the CPU, whatever the default is."""
    with torch.device("meta"):
        found = skeleton_of(written(STATES["one"]))
    assert found.obj["x"].device.type == "cpu"


class Asked(io.BytesIO):
    """Remembers which spans were read."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.spans: list[tuple[int, int]] = []

    def readinto(self, buffer: Any) -> int:
        self.spans.append((self.tell(), len(buffer)))
        return super().readinto(buffer)


def test_no_further_read() -> None:
    """The header of most files is in what is read of any file, and the tensors are not read."""
    file = Asked(written({"x": torch.ones(MIB)}))
    source = Source(file, len(file.getvalue()))
    file.spans.clear()
    safetensors_reader.structure(source, name="x")
    assert file.spans == []


def test_a_long_header_takes_one_more_read() -> None:
    """A header of more than a megabyte is read at once."""
    state = {f"{number:01000}": torch.tensor(number) for number in range(1500)}
    data = written({**state, "long": torch.ones(MIB)})
    file = Asked(data)
    source = Source(file, len(data))
    file.spans.clear()
    found = safetensors_reader.structure(source, name="x")
    length = int.from_bytes(data[:8], "little")
    assert length > MIB
    assert file.spans == [(8, length)]
    assert found.obj.keys() == {*state, "long"}


ENTRY = json.dumps(entry())
LENIENT = {
    "trailing whitespace": file_of("{}  \n\t"),
    "no metadata": file_of('{"__metadata__":null}'),
    "empty metadata": file_of('{"__metadata__":{}}'),
    "more in an entry": file_of({"a": {**entry(), "x": [1.5, None, {"y": "z"}]}}, 4),
    "a surrogate pair": file_of('{"\\ud83d\\ude00":' + ENTRY + "}", 4),
    "tensors in any order": file_of({"a": entry(offsets=(4, 8)), "b": entry()}, 8),
    "several of size zero at one place": file_of(
        {k: entry(shape=[0], offsets=(0, 0)) for k in "cab"} | {"x": entry()}, 4
    ),
    "a header of odd length": file_of('{"a":' + ENTRY + "} ", 4),
}


@pytest.mark.parametrize("data", LENIENT.values(), ids=list(LENIENT))
def test_other_writers(data: bytes) -> None:
    """What the official library never writes, but reads, we read as it does."""
    assert same(read(data), official.load(data))
    assert safetensors_header.is_safetensors(data[: sniff.HEAD], len(data))


# Those that the official library reads all the same.
WE_ALONE = {"not beginning with a brace", "a tensor twice", "twice in the metadata", "an entry that is a list"}
SHORT = "is a safetensors file cut short: "
DAMAGED = "is a damaged safetensors file: "
MALFORMED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is no safetensors file, or cut short: 0 bytes"),
    "less than a length": (bytes(7), "is no safetensors file, or cut short: 7 bytes"),
    "only a length": (file_of("{}")[:8], "is no safetensors file, or cut short: 8 bytes"),
    "no header": (bytes(16), "is no safetensors file, or cut short: 16 bytes"),
    "header of 100 MB and more": ((100_000_001).to_bytes(8, "little") + b"{}", DAMAGED + "a header of 100000001 bytes"),
    "largest header length": (b"\xff" * 8 + b"{}", DAMAGED + "a header of 18446744073709551615 bytes"),
    "header beyond the end": ((100_000_000).to_bytes(8, "little") + b"{}", SHORT + "10 bytes of at least 100000008"),
    "header one byte beyond the end": ((3).to_bytes(8, "little") + b"{}", SHORT + "10 bytes of at least 11"),
    "not beginning with a brace": (file_of(" {}"), "is no safetensors file"),
    "a list": (file_of("[]"), "is no safetensors file"),
    "not UTF-8": (file_of(b'{"\xff":1}'), DAMAGED + "its header is not valid JSON ('utf-8' codec can't decode"),
    "UTF-16": (file_of("{}".encode("utf-16-le")), DAMAGED + "its header is not valid JSON"),
    "cut in the middle": (file_of('{"a":'), DAMAGED + "its header is not valid JSON (Expecting value"),
    "more after the end": (file_of("{}x"), DAMAGED + "its header is not valid JSON (Extra data"),
    "padded with zeros": (file_of("{}\0"), DAMAGED + "its header is not valid JSON (Extra data"),
    "NaN": (file_of('{"a":NaN}'), DAMAGED + "its header is not valid JSON (NaN is no number of JSON)"),
    "a control character": (
        file_of('{"a\n":' + ENTRY + "}", 4),
        DAMAGED + "its header is not valid JSON (Invalid control",
    ),
    "half a surrogate pair": (file_of('{"\\ud800":' + ENTRY + "}", 4), "JSON (a name is no valid Unicode)"),
    "too deep": (file_of('{"a":' + "[" * 100_000 + "]" * 100_000 + "}"), DAMAGED + "its header is not valid JSON"),
    "a number without end": (file_of('{"a":' + "1" * 10_000 + "}"), DAMAGED),
    "a tensor twice": (file_of('{"a":' + ENTRY + ',"a":' + ENTRY + "}", 4), "JSON (a name occurs twice)"),
    "metadata twice": (file_of('{"__metadata__":{},"__metadata__":{}}'), "JSON (a name occurs twice)"),
    "a dtype twice": (file_of('{"a":{"dtype":"F32",' + ENTRY[1:] + "}", 4), "JSON (a name occurs twice)"),
    "twice in the metadata": (file_of('{"__metadata__":{"a":"1","a":"2"}}'), "JSON (a name occurs twice)"),
    "metadata with a number": (file_of({"__metadata__": {"a": 1}}), "__metadata__ is not a mapping of text to text"),
    "metadata that is a list": (file_of({"__metadata__": []}), "__metadata__ is not a mapping of text to text"),
    "an entry that is a number": (file_of({"a": 1}), "the entry of 'a' lacks dtype, shape or data_offsets"),
    "an entry that is a list": (file_of({"a": ["F32", [1], [0, 4]]}, 4), "the entry of 'a' lacks"),
    "an entry without offsets": (file_of({"a": {"dtype": "F32", "shape": [1]}}, 4), "the entry of 'a' lacks"),
    "an entry without shape": (file_of({"a": {"dtype": "F32", "data_offsets": [0, 4]}}, 4), "the entry of 'a' lacks"),
    "an entry without dtype": (file_of({"a": {"shape": [1], "data_offsets": [0, 4]}}, 4), "the entry of 'a' lacks"),
    "an unknown dtype": (file_of({"a": entry("f32")}, 4), "holds 'a' with dtype 'f32', which torch"),
    "a dtype that torch lacks": (file_of({"a": entry("F6_E2M3", [4], (0, 3))}, 3), "holds 'a' with dtype 'F6_E2M3'"),
    "a dtype that is a list": (file_of({"a": entry(["F32"])}, 4), "which torch"),
    "a shape that is a number": (file_of({"a": entry(shape=1)}, 4), "the shape of 'a' is not a list of whole numbers"),
    "a shape of fractions": (file_of({"a": entry(shape=[1.0])}, 4), "the shape of 'a' is not a list of whole numbers"),
    "a shape of truths": (file_of({"a": entry(shape=[True])}, 4), "the shape of 'a' is not a list of whole numbers"),
    "a negative shape": (file_of({"a": entry(shape=[-1])}, 4), "the shape of 'a' is not a list of whole numbers"),
    "offsets that are text": (
        file_of({"a": entry(offsets="04")}, 4),
        "the data_offsets of 'a' are not a start and an end",
    ),
    "three offsets": (file_of({"a": entry(offsets=[0, 4, 4])}, 4), "the data_offsets of 'a' are not"),
    "one offset": (file_of({"a": entry(offsets=[4])}, 4), "the data_offsets of 'a' are not"),
    "fractional offsets": (file_of({"a": entry(offsets=[0, 4.0])}, 4), "the data_offsets of 'a' are not"),
    "negative offsets": (file_of({"a": entry(offsets=[-4, 0])}, 4), "the data_offsets of 'a' are not"),
    "an end before the start": (file_of({"a": entry(shape=[0], offsets=[4, 0])}, 4), "the data_offsets of 'a' are not"),
    "too small for the shape": (file_of({"a": entry(shape=[2])}, 4), "'a' takes 8 bytes, and its data_offsets span 4"),
    "too large for the shape": (
        file_of({"a": entry(shape=[])}, 4 * 0),
        SHORT + "0 bytes of tensors, and its header promises 4",
    ),
    "too large for the dtype": (file_of({"a": entry("F16")}, 4), "'a' takes 2 bytes, and its data_offsets span 4"),
    "half a byte": (file_of({"a": entry("F4", [3], [0, 2])}, 2), "'a' does not fill whole bytes"),
    "half a byte without shape": (file_of({"a": entry("F4", [], [0, 1])}, 1), "'a' does not fill whole bytes"),
    "a shape that overflows": (file_of({"a": entry(shape=[2**32, 2**32], offsets=[0, 0])}), "too large to be counted"),
    "an overflow before a zero": (file_of({"a": entry(shape=[2**32, 2**32, 0], offsets=[0, 0])}), "too large to be"),
    "a size of 65 bits": (file_of({"a": entry(shape=[2**64], offsets=[0, 0])}), "too large to be counted"),
    "a gap": (file_of({"a": entry(), "b": entry(offsets=[8, 12])}, 12), "'b' begins at 8 and not at 4"),
    "a gap at the start": (file_of({"a": entry(offsets=[4, 8])}, 8), "'a' begins at 4 and not at 0"),
    "the same place": (file_of({"a": entry(), "b": entry()}, 4), "'b' begins at 0 and not at 4"),
    "an overlap": (file_of({"a": entry(shape=[2], offsets=[0, 8]), "b": entry(offsets=[4, 8])}, 8), "'b' begins at 4"),
    "a byte too many": (file_of({"a": entry()}, 5), DAMAGED + "1 bytes follow its last tensor"),
    "a byte too few": (file_of({"a": entry()}, 3), SHORT + "3 bytes of tensors, and its header promises 4"),
    "a byte without tensors": (file_of("{}", 1), DAMAGED + "1 bytes follow its last tensor"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed(case: str) -> None:
    """A file that breaks a rule of the format is named with the rule, and the official library refuses it too."""
    data, said = MALFORMED[case]
    with pytest.raises(InvalidCheckpointError) as caught:
        skeleton_of(data)
    assert caught.value.reason.startswith("x ")
    assert said in caught.value.reason
    assert caught.value.remedy
    if case in WE_ALONE or said.startswith("holds"):
        return
    with pytest.raises(SafetensorError):
        official.load(data)


@pytest.mark.parametrize("shape", [[0, 2**32, 2**32], [2**63, 0], [0, 2**63]], ids=str)
def test_shapes_that_torch_cannot_count(shape: list[int]) -> None:
    """An empty tensor of a shape that torch could not make is refused as such, and not by an error of torch."""
    with pytest.raises(InvalidCheckpointError, match="too large to be counted"):
        skeleton_of(file_of({"a": entry(shape=shape, offsets=[0, 0])}))


@pytest.mark.parametrize("length", range(0, 200, 7))
def test_cut_short(length: int) -> None:
    """A file cut short anywhere is reported as such."""
    with pytest.raises(InvalidCheckpointError, match="cut short"):
        skeleton_of(written({"x": torch.ones(20), "y": torch.ones(10)})[:length])


def test_forged_headers_reserve_nothing() -> None:
    """A header that claims terabytes is refused before memory is reserved for the first tensor."""
    huge = {str(number): entry("U8", [2**40], (number * 2**40, (number + 1) * 2**40)) for number in range(1000)}
    real = {str(number): entry("U8", [2**20], (0, 2**20)) for number in range(1000)}
    longest = (10**8).to_bytes(8, "little") + b"{"
    tracemalloc.start()
    try:
        for data in (file_of(huge, 100), file_of(real, 2**20), longest):
            with pytest.raises(InvalidCheckpointError):
                skeleton_of(data)
        assert tracemalloc.get_traced_memory()[1] < 16 * MIB
    finally:
        tracemalloc.stop()


def test_many_dimensions_take_no_time() -> None:
    """The product of a long shape is not computed further than it can count."""
    with pytest.raises(InvalidCheckpointError, match="too large to be counted"):
        skeleton_of(file_of({"a": entry(shape=[2**60] * 100_000)}))


def test_the_error_of_the_parser_is_kept() -> None:
    """What is no JSON has the parser's own error as its cause."""
    with pytest.raises(InvalidCheckpointError) as caught:
        skeleton_of(file_of("{"))
    assert isinstance(caught.value.__cause__, json.JSONDecodeError)


def test_long_names_are_cut_in_errors() -> None:
    """A forged name does not fill the screen."""
    with pytest.raises(InvalidCheckpointError) as caught:
        skeleton_of(file_of({"a" * MIB: 1}))
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("error", [OSError("gone"), ValueError("closed"), KeyboardInterrupt()], ids=repr)
def test_errors_of_the_file_come_out_as_themselves(error: BaseException) -> None:
    """What the file below raises is not taken for damage."""

    class Failing(io.BytesIO):
        def readinto(self, buffer: Any) -> int:
            raise error

        def write(self, data: Any) -> int:
            raise error

    with pytest.raises(type(error)) as caught:
        safetensors_reader.structure(Source(Failing(), 100), name="x")
    assert caught.value is error
    with pytest.raises(type(error)) as caught:
        SafetensorsWriter({"x": torch.ones(1)}).write(Failing(), advance=ignore)
    assert caught.value is error


def test_a_header_of_any_length_is_known() -> None:
    """A safetensors file is known as one even if its header is longer than it may be."""
    assert safetensors_header.is_safetensors((10**9).to_bytes(8, "little") + b"{", 10**9 + 8)
    assert not safetensors_header.is_safetensors((10**9).to_bytes(8, "little") + b"{", 10**9)


def test_other_files_are_none() -> None:
    """Files of other formats are not taken for safetensors files."""
    buffer = io.BytesIO()
    torch.save(torch.ones(3), buffer)
    for data in (
        buffer.getvalue(),
        b"",
        b"{}",
        b'{"a": 1, "b": {"c": 2}}',
        b'{"abc": {}}',
        bytes(8) + b"{}",
        bytes(600),
    ):
        assert not safetensors_header.is_safetensors(data[: sniff.HEAD], len(data))


def test_a_file_cut_short_is_known() -> None:
    """A safetensors file is known as one even where its header has lost its end."""
    data = written(STATES["all dtypes"])
    assert safetensors_header.is_safetensors(data[:9], 9)
    assert not safetensors_header.is_safetensors(data[:8], 8)


# -- by save and load --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", STATES.values(), ids=list(STATES))
def test_save_and_load(root: str, state: dict[str, torch.Tensor]) -> None:
    """The suffix decides how an object is saved, on any filesystem; load says from what is in the file."""
    save(state, f"{root}/x.safetensors")
    with fsspec.open(f"{root}/x.safetensors", "rb") as file:
        assert file.read() == official.save(dict(state), {"format": "pt"})
    with fsspec.open(f"{root}/y.bin", "wb") as file:
        file.write(official.save(dict(state)))
    assert same(load(f"{root}/x.safetensors"), state)
    assert same(load(f"{root}/y.bin"), state)


def test_save_and_load_large_tensors(root: str) -> None:
    """Tensors that take several parts, lent and copied, come back bit for bit."""
    state = {"a": torch.rand(6 * MIB), "b": torch.rand(3000, 1000).t(), "c": torch.tensor(1), "d": torch.rand(2**15)}
    save(state, f"{root}/x.safetensors")
    assert same(load(f"{root}/x.safetensors"), state)


def test_a_refused_object_leaves_the_old_one(root: str) -> None:
    """If the format cannot hold the object, what was there before is untouched."""
    save(STATES["one"], f"{root}/x.safetensors")
    with pytest.raises(ValueError, match="cannot hold 'step': its type is int, not Tensor"):
        save({"a": torch.ones(MIB), "step": 1}, f"{root}/x.safetensors")
    assert same(load(f"{root}/x.safetensors"), STATES["one"])


def test_load_names_a_damaged_file(root: str) -> None:
    """The error begins with the path of the file."""
    path = f"{root}/x.safetensors"
    with fsspec.open(path, "wb") as file:
        file.write(official.save(STATES["one"])[:-1])
    with pytest.raises(InvalidCheckpointError) as caught:
        load(path)
    assert caught.value.reason.startswith(f"{path} is a safetensors file cut short: 19 bytes of tensors")


# -- damage on the way -------------------------------------------------------------------------------------------------


def is_of_tensors(request: Request) -> bool:
    """Whether it is no request for the index of a folder."""
    return request.path.endswith(".safetensors")


@pytest.mark.filterwarnings("ignore::fsspec_csx.errors.DtypeCastWarning")
def test_bits_flipped_on_the_way_down(server: LocalS3, bucket: str, environment: None) -> None:
    """A file that is read whole is compared with the server's checksum, by no more requests, and so is each shard."""
    state = {"a": torch.zeros(2**19), "b": torch.ones(100), "c": torch.arange(2.0**17), "d": torch.empty(0)}
    path, folder = f"s3://{bucket}/x.safetensors", f"s3://{bucket}/x"
    save(state, path)
    save(state, folder, format="huggingface", max_shard_size=2_200_000)
    with fault_proxy(server.endpoint_url) as proxy:
        options = {**server.storage_options(), "endpoint_url": proxy.url}
        into = [{key: each.to(dtype) for key, each in state.items()} for dtype in (torch.float32, torch.float64)]
        reads: list[Callable[[], Any]] = [
            lambda: load(path, storage_options=options),
            lambda: load(path, storage_options=options, into=into[0]) or into[0],
            lambda: load(path, storage_options=options, into=into[1]) or into[1],
            lambda: dict(stream(path, storage_options=options)),
            lambda: load(folder, storage_options=options),
            lambda: dict(stream(folder, storage_options=options)),
        ]
        for read in reads:
            proxy.faults = []  # the last one of the loop below has not occurred
            with recorded_requests() as operations:
                read()
            assert read in reads[-2:] or operations.count("HeadObject") == 1
            refused = 0
            for skip in range(12):
                proxy.faults = [Fault("GET", skip=skip, flip_down=0.5, when=is_of_tensors)]
                try:
                    found = read()
                except CheckpointError:
                    refused += 1
                else:  # what was damaged was not needed
                    assert all(torch.equal(found[key].float(), each) for key, each in state.items())
                if proxy.faults[0].times:
                    break
            assert refused
