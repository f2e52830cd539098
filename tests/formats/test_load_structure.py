"""load reads the structure of a torch file, then its tensors by one vectored read; the result is that of torch.load."""

from __future__ import annotations

import contextlib
import io
import struct
import sys
import tracemalloc
import types
import warnings
import zipfile
import zlib
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Any

import fsspec
import pytest
import torch
from checkpoints import MIB, Point, put, saved, unzipped, zipped
from conftest import recorded_requests
from torch_files import equal, loaded, source_of

from fsspec_csx.checkpoint.api import load
from fsspec_csx.errors import InvalidCheckpointError
from fsspec_csx.formats import reader
from fsspec_csx.formats.torch_zip import archive as torch_archive
from fsspec_csx.formats.torch_zip import zip_directory
from fsspec_csx.s3.transport.transfer import PART
from fsspec_csx.tensors import fill, source
from fsspec_csx.tensors.lazy_object import Record
from fsspec_csx.tensors.memory import reserved
from fsspec_csx.tensors.source import HEAD, TAIL, Source, memory_of

SIZES = [0, 1, 15, 16, 17, 16383, 16384, 65537, HEAD, TAIL - 1, HEAD + TAIL + 1, PART + 1, 2 * PART + 3]


def structured(data: bytes) -> bool:
    """Whether a file is loaded structure first."""
    return torch_archive.read(source_of(data), "file") is not None


def with_attribute() -> torch.Tensor:
    """A Parameter with an attribute of its own."""
    parameter = torch.nn.Parameter(torch.randn(3))
    parameter.tag = ["a"]  # type: ignore[attr-defined]
    return parameter


def state_dict() -> Any:
    """A model's, with the versions of its modules."""
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)).state_dict()


# What is loaded structure first.
PLAIN: dict[str, Callable[[], Any]] = {
    "tensor": lambda: torch.randn(100, 7),
    "scalar": lambda: torch.tensor(2.5),
    "empty": lambda: [torch.empty(0), torch.empty(3, 0), torch.ones(2)],
    "no tensor": lambda: {"a": [1, (2.5, None), "text", b"\x00\xff", {1, 2}], "b": -(2**70), "c": 1 + 2j},
    "kinds": lambda: (torch.Size([2, 3]), torch.bfloat16, torch.device("cpu"), torch.strided, Counter("aab")),
    "ordered": lambda: OrderedDict(b=torch.ones(2), a=OrderedDict()),
    "state dict": state_dict,
    "parameters": lambda: [torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2), requires_grad=False)],
    "attribute": with_attribute,
    "requires_grad": lambda: torch.randn(5, requires_grad=True),
    "transposed": lambda: torch.randn(4, 5).t(),
    "strided": lambda: torch.arange(100)[3::7],
    "expanded": lambda: torch.randn(1, 3).expand(4, 3),
    "conjugate": lambda: torch.randn(3, dtype=torch.complex64).conj(),
    "negative": lambda: torch._neg_view(torch.randn(3)),
    "meta": lambda: {"x": torch.empty(2, 3, device="meta")},
    "storages": lambda: [torch.randn(3).untyped_storage(), torch.arange(3).untyped_storage()],
    "names": lambda: {"c" * 300: torch.ones(1), "\n".join("torch"): torch.ones(2), "ctorch\nSize\n": 1, "é\n": "c\n"},
    **{
        f"{dtype}"[6:]: lambda dtype=dtype: torch.randint(0, 2, (3, 32), dtype=torch.uint8).view(dtype)
        for dtype in (torch.bool, torch.bfloat16, torch.float8_e4m3fn, torch.complex128, torch.uint64, torch.float16)
    },
}
# What is loaded as torch.load does it.
OTHER: dict[str, Callable[[], Any]] = {
    "sparse": lambda: {"x": torch.eye(3).to_sparse(), "y": torch.ones(3)},
    "compressed rows": lambda: torch.eye(3).to_sparse_csr(),
    "quantized": lambda: torch.quantize_per_tensor(torch.randn(5), scale=0.1, zero_point=3, dtype=torch.qint8),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
}


# -- as torch.load -----------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated:UserWarning")
@pytest.mark.parametrize("kind", PLAIN)
def test_as_torch(kind: str) -> None:
    """What is loaded structure first is what torch.load gives."""
    data = saved(PLAIN[kind]())
    assert structured(data)
    assert equal(loaded(data), torch.load(io.BytesIO(data)))


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")  # torch's, of its own doings
@pytest.mark.parametrize("kind", OTHER)
def test_others_go_torchs_way(kind: str) -> None:
    """Tensors that torch looks at while it puts them together are left to it."""
    data = saved(OTHER[kind]())
    assert not structured(data)
    assert equal(loaded(data), torch.load(io.BytesIO(data)))


def test_classes_of_the_users_go_torchs_way() -> None:
    """A class that the user allows may do anything with a tensor."""
    data = saved({"x": Point(), "y": torch.ones(2)})
    with torch.serialization.safe_globals([Point]):
        assert not structured(data)
        assert isinstance(loaded(data)["x"], Point)


def test_code_goes_torchs_way() -> None:
    """With weights_only=False any code may read the tensors."""

    seen = []

    class Curious:
        def __reduce__(self) -> Any:
            return print_sum, (torch.ones(3),)

    def print_sum(tensor: torch.Tensor) -> str:
        seen.append(float(tensor.sum()))
        return "seen"

    sys.modules[__name__].print_sum = print_sum  # type: ignore[attr-defined]
    print_sum.__qualname__ = "print_sum"
    assert loaded(saved(Curious()), weights_only=False) == "seen"
    assert seen == [3.0]


@pytest.mark.parametrize("numel", SIZES)
def test_sizes(root: str, numel: int) -> None:
    """Tensors of no bytes, of less than a read, and of several parts come back bit for bit."""
    tensors = {"x": torch.randint(0, 255, (numel,), dtype=torch.uint8), "y": torch.arange(5)}
    path = put(root, saved(tensors))
    assert equal(load(path), tensors)


def test_ties_and_views(root: str) -> None:
    """What shares memory shares it again, and is the same object again."""
    base = torch.randn(1000)
    weight = torch.nn.Parameter(torch.randn(3))
    state = load(
        put(root, saved({"row": base[10:20], "all": base, "a": weight, "b": weight, "as": base.view(10, 100)}))
    )
    state["all"].zero_()
    assert not state["row"].any()
    assert not state["as"].any()
    assert state["a"] is state["b"]


@pytest.mark.parametrize("alignment", [1, 64, 100, 4096])
def test_alignment(alignment: int) -> None:
    """Whatever alignment torch was configured to write, the tensors are found without another read."""
    from torch.utils.serialization import config

    with config.patch({"save.storage_alignment": alignment}):  # type: ignore[attr-defined]  # torch adds it at run time
        data = saved(state := {"x": torch.randn(100), "y": torch.randn(5), "e": torch.empty(0)})
    archive = torch_archive.read(source_of(data), "file")
    assert archive is not None
    assert [offset % alignment for entry, offset in archive.data if entry.size] == [0, 0]
    assert equal(loaded(data), state)


def test_files_of_older_torch() -> None:
    """A file without the records that newer releases write is loaded the same way."""
    state = {"x": torch.randn(100), "y": torch.randn(3)}
    entries = unzipped(saved(state))
    for record in (".format_version", ".storage_alignment", "byteorder", ".data/serialization_id"):
        del entries[f"archive/{record}"]
    assert structured(zipped(entries))
    assert equal(loaded(zipped(entries)), state)


def test_other_byte_order_goes_torchs_way() -> None:
    """Bytes in another order are swapped by torch."""
    other = b"big" if sys.byteorder == "little" else b"little"
    data = zipped({**unzipped(saved({"x": torch.tensor([1, 256])})), "archive/byteorder": other})
    assert not structured(data)
    assert equal(loaded(data), torch.load(io.BytesIO(data)))


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
def test_repacked_archives(method: int) -> None:
    """An archive that another tool packed again is loaded, if torch.load can."""
    state = {f"t{number}": torch.arange(number) for number in range(20)}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in unzipped(saved(state)).items():
            archive.writestr(name, data)
    if method == zipfile.ZIP_BZIP2:
        with pytest.raises(InvalidCheckpointError):
            loaded(buffer.getvalue())
        return
    assert structured(buffer.getvalue()) == (method == zipfile.ZIP_STORED)
    assert equal(loaded(buffer.getvalue()), state)


def test_streamed_archive() -> None:
    """So is one whose writer could not go back to its headers."""

    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

        def seek(self, *args: Any) -> int:
            raise io.UnsupportedOperation

        def tell(self) -> int:
            raise io.UnsupportedOperation

    state = {f"t{number}": torch.arange(number) for number in range(20)}
    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w") as archive:
        for name, data in unzipped(saved(state)).items():
            archive.writestr(name, data)
    assert structured(pipe.getvalue())
    assert equal(loaded(pipe.getvalue()), state)


def test_without_checksums() -> None:
    """A file that was saved without checksums is loaded."""
    torch.serialization.set_crc32_options(False)
    try:
        data = saved(state := {"x": torch.randn(100)})
    finally:
        torch.serialization.set_crc32_options(True)
    assert structured(data)
    assert equal(loaded(data), state)


@pytest.mark.parametrize(
    "map_location", [None, "cpu", torch.device("cpu"), {"cpu": "cpu"}, {}, "meta", {"cpu": "meta"}]
)
def test_map_location(map_location: Any) -> None:
    """A map_location that names places does what it does in torch.load."""
    data = saved(state_dict())
    assert equal(loaded(data, map_location=map_location), torch.load(io.BytesIO(data), map_location=map_location))


@pytest.mark.parametrize("answer", [lambda storage: None, lambda storage: storage, lambda storage: storage.clone()])
def test_callable_map_location(answer: Callable[[Any], Any]) -> None:
    """A map_location that is called sees each storage filled, and its answer is taken."""
    seen = []

    def map_location(storage: Any, location: str) -> Any:
        seen.append((bytes(storage), location))
        return answer(storage)

    state = {"x": torch.arange(3.0), "y": torch.arange(5)}
    assert equal(loaded(saved(state), map_location=map_location), state)
    assert seen == [(bytes(tensor.untyped_storage()), "cpu") for tensor in state.values()]


def test_callable_map_location_is_called_once() -> None:
    """Also where torch reads the file after all, as of a storage by itself."""
    seen = []

    def map_location(storage: Any, location: str) -> Any:
        seen.append(bytes(storage))
        return storage

    tensor, storage = torch.ones(2), torch.ones(3).untyped_storage()
    loaded(saved([tensor, storage]), map_location=map_location)
    assert seen == [bytes(tensor.untyped_storage()), bytes(storage)]


def test_meta_reads_no_tensors(environment: Any, bucket: str) -> None:
    """A load to the meta device fetches the structure alone."""
    path = put(f"s3://{bucket}", saved({"x": torch.zeros(16 * MIB)}))
    with recorded_requests() as operations:
        load(path, map_location="meta")
    assert operations.count("GetObject") <= 2


def test_skip_data() -> None:
    """torch's own way to load the structure alone is honoured."""
    data = saved({"x": torch.ones(3)})
    with torch.serialization.skip_data():
        assert loaded(data)["x"].shape == (3,)


def test_fake_tensors() -> None:
    """In torch's fake mode the tensors are fake."""
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

    data = saved({"x": torch.ones(3)})
    with FakeTensorMode():
        assert isinstance(loaded(data)["x"], FakeTensor)


# -- how it is read ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def many() -> bytes:
    """A file of 5,000 small tensors."""
    return saved({f"model.layers.{number}.weight": torch.full((1024,), float(number)) for number in range(5000)})


def test_many_small_tensors(environment: Any, bucket: str, many: bytes) -> None:
    """5,000 tensors take 20 requests at most."""
    path = put(f"s3://{bucket}", many)
    with recorded_requests() as operations:
        state = load(path)
    assert len(operations) <= 20
    assert [int(tensor[7]) for tensor in state.values()] == list(range(5000))


def test_a_small_file(environment: Any, bucket: str) -> None:
    """A small file takes one request beside that for its size."""
    path = put(f"s3://{bucket}", saved({"x": torch.randn(1000), "y": torch.randn(1000)}))
    with recorded_requests() as operations:
        load(path)
    assert operations == ["HeadObject", "GetObject"]


def test_straight_into_place(tmp_path: Any) -> None:
    """Tensors take no memory beside their own."""
    path = tmp_path / "x.pt"
    torch.save({f"x{number}": torch.ones(2 * MIB) for number in range(4)}, path)
    tracemalloc.start()
    try:
        load(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 6 * MIB


class Counting(io.BytesIO):
    """Counts the bytes that are read."""

    count = 0

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        self.count += len(data)
        return data

    def readinto(self, buffer: Any) -> int:
        count = super().readinto(buffer)
        self.count += count
        return count


def test_each_byte_once() -> None:
    """Nothing is read twice, but for the file's two ends."""
    file = Counting(saved({f"x{number}": torch.randn(MIB) for number in range(3)}))
    size = len(file.getvalue())
    reader.read(Source(file, size), name="file")
    assert file.count <= size + HEAD + TAIL


def test_a_long_directory(monkeypatch: pytest.MonkeyPatch, many: bytes) -> None:
    """A zip directory that is longer than the first read is read on."""
    monkeypatch.setattr(source, "TAIL", 1000)
    monkeypatch.setattr(torch_archive, "TAIL", 1000)
    assert structured(many)
    assert len(loaded(many)) == 5000


def test_a_file_that_shrinks() -> None:
    """A file that ends before the size that it had is an error of storage."""
    data = saved({"x": torch.randn(MIB)})

    class Shrinking(io.BytesIO):
        def readinto(self, buffer: Any) -> int:
            at, size = self.tell(), len(buffer)
            return 0 if HEAD + MIB < at + size < len(data) else super().readinto(buffer)

    with pytest.raises(OSError, match="The file ended at byte"):
        reader.read(Source(Shrinking(data), len(data)), name="file")


def test_a_file_without_readinto() -> None:
    """A file that can only read and seek is loaded."""

    class Plain:
        def __init__(self, data: bytes) -> None:
            file = io.BytesIO(data)
            self.read, self.seek, self.tell = file.read, file.seek, file.tell

    data = saved(state := {"x": torch.randn(MIB)})
    assert equal(reader.read(Source(Plain(data), len(data)), name="file"), state)


@pytest.mark.parametrize("size", [1, 63, 64, 65, 640, 1000])
@pytest.mark.parametrize("crc32", [None, "right", "wrong"])
def test_through_staging(size: int, crc32: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes to another device (here it is the CPU) goes there by pieces, and is checked all the same."""
    monkeypatch.setattr(fill, "PIECE", 100)
    monkeypatch.setattr(fill, "_STAGING", 256)
    data = bytes(number % 251 for number in range(2000))
    expected = zlib.crc32(data[7 : 7 + size]) ^ (crc32 == "wrong")
    record = Record("x", 7, reserved(size, torch.device("cpu")), None if crc32 is None else expected)
    other = Record("y", 1000, reserved(50, torch.device("cpu")))
    transfers = [transfer for each in (other, record) for transfer in fill._transfers(each)]
    assert fill.run(source_of(data), transfers) == ([record] if crc32 == "wrong" else [])
    assert bytes(memory_of(record.storage)) == data[7 : 7 + size]
    assert bytes(memory_of(other.storage)) == data[1000:1050]


# -- damage ------------------------------------------------------------------------------------------------------------

NESTED = {"model": {"a": torch.randn(700), "b": [torch.randn(900)]}, "opt": {"c": torch.randn(5)}}


def spans(data: bytes) -> dict[str, tuple[int, int]]:
    """Where the bytes of each entry begin and end."""
    found = {}
    for info in zipfile.ZipFile(io.BytesIO(data)).infolist():
        name, extra = struct.unpack_from("<2H", data, info.header_offset + 26)
        start = info.header_offset + 30 + name + extra
        found[info.filename.partition("/")[2]] = (start, start + info.file_size)
    return found


@pytest.mark.parametrize(
    ("record", "report"),
    [
        ("data/0", "'model.a'"),
        ("data/1", "'model.b.0'"),
        ("data/2", "'opt.c'"),
        ("data.pkl", "record 'data.pkl'"),
        ("version", "record 'version'"),
        ("byteorder", "record 'byteorder'"),
        (".format_version", "record '.format_version'"),
        (".storage_alignment", "record '.storage_alignment'"),
    ],
)
def test_flipped_bits_are_named(root: str, record: str, report: str) -> None:
    """A bit flipped anywhere in a record is an error that says where."""
    data = saved(NESTED)
    start, end = spans(data)[record]
    for position in {start, (start + end) // 2, end - 1}:
        flipped = bytearray(data)
        flipped[position] ^= 16
        with pytest.raises(InvalidCheckpointError, match="checksum") as caught:
            load(put(root, bytes(flipped)))
        assert report in str(caught.value)


def test_flipped_bits_with_a_callable() -> None:
    """A callable map_location is not given what is damaged."""
    flipped = bytearray(saved(NESTED))
    flipped[spans(bytes(flipped))["data/1"][0]] ^= 1
    with pytest.raises(InvalidCheckpointError, match="'archive/data/1' is wrong"):
        loaded(bytes(flipped), map_location=lambda storage, location: storage)


@pytest.mark.parametrize("obj", [NESTED, [torch.eye(40).to_sparse()]], ids=["any", "sparse"])
def test_flipped_bits_that_torch_reads(root: str, obj: Any) -> None:
    """What torch.load reads by itself is compared as well: any object, and tensors that are not plain."""
    data = saved(obj)
    for record, (start, end) in spans(data).items():
        if not record.startswith("data/") or start == end:
            continue
        flipped = bytearray(data)
        flipped[(start + end) // 2] ^= 1
        path = put(root, bytes(flipped))
        with pytest.raises(InvalidCheckpointError, match=f"checksum of its record '[^']*{record}' is wrong"):
            load(path, weights_only=obj is not NESTED)


def test_ends_cut_off() -> None:
    """A file cut short anywhere is an error of the file."""
    data = saved(NESTED)
    for length in range(100, len(data), 61):
        with pytest.raises(InvalidCheckpointError):
            loaded(data[:length])


# -- forged archives ---------------------------------------------------------------------------------------------------

CENTRAL = {"method": (10, "<H"), "crc": (16, "<L"), "compressed": (20, "<L"), "size": (24, "<L"), "header": (42, "<L")}
END = {"here": (8, "<H"), "count": (10, "<H"), "length": (12, "<L"), "start": (16, "<L"), "comment": (20, "<H")}


def forged(data: bytes, record: str, **changes: int) -> bytes:
    """An archive whose directory says something else of an entry."""
    made = bytearray(data)
    at = made.rindex(f"archive/{record}".encode()) - 46
    for field, value in changes.items():
        offset, form = CENTRAL[field]
        struct.pack_into(form, made, at + offset, value)
    return bytes(made)


def tolerant(data: bytes) -> None:
    """Load a file that may be valid or not; one that makes torch request too much memory is an error."""
    with warnings.catch_warnings(), contextlib.suppress(InvalidCheckpointError):
        warnings.simplefilter("ignore")
        loaded(data)


@pytest.mark.parametrize("field", CENTRAL)
def test_forged_entries(field: str) -> None:
    """Whatever the directory claims of an entry, the file is loaded or refused, without memory for what it lacks."""
    for record in ("data/0", "data.pkl", "version"):
        for value in (0, 1, 255, 2**16 - 1, 2**31, 2**32 - 1):
            value = min(value, 2 ** (8 * struct.calcsize(CENTRAL[field][1])) - 1)
            tolerant(forged(saved(NESTED), record, **{field: value}))


@pytest.mark.parametrize("field", END)
def test_forged_end(field: str) -> None:
    """Whatever the end of the directory claims, the file is loaded or refused."""
    offset, form = END[field]
    for value in (0, 1, 255, 2**16 - 1, 2**31, 2**32 - 1):
        data = bytearray(saved(NESTED))
        struct.pack_into(form, data, len(data) - 22 + offset, min(value, 2 ** (8 * struct.calcsize(form)) - 1))
        tolerant(bytes(data))


@pytest.mark.parametrize("field", [8, 16, 24, 32, 40, 48])
def test_forged_end_of_64_bits(field: int) -> None:
    """So with the end that has numbers of 64 bits."""
    for value in (0, 1, 2**40, 2**64 - 1):
        data = bytearray(saved(NESTED))
        struct.pack_into("<Q", data, data.rindex(b"PK\x06\x06") + field, value)
        tolerant(bytes(data))


def test_terabytes_are_refused() -> None:
    """An archive that claims more than it has is refused before any memory is reserved."""
    with pytest.raises(InvalidCheckpointError, match="claims more than the"):
        loaded(forged(saved(NESTED), "data/0", size=2**31 - 1, method=8))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", allowZip64=True) as archive:
        for name, data in unzipped(saved({"x": torch.randn(1000)})).items():
            archive.writestr(name, data)
        archive.getinfo("archive/data/0").file_size = 2**41
    with pytest.raises(InvalidCheckpointError, match="claims more than the"):
        loaded(buffer.getvalue())


def test_entries_on_top_of_each_other() -> None:
    """Entries that share their bytes do not multiply them."""
    tensors = {f"t{number}": torch.zeros(4000, dtype=torch.uint8) for number in range(50)}
    data = saved(tensors)
    first = zipfile.ZipFile(io.BytesIO(data)).getinfo("archive/data/10").header_offset
    for number in range(11, 50):
        data = forged(data, f"data/{number}", header=first, size=150_000, compressed=150_000)
    with pytest.raises(InvalidCheckpointError, match="claims more than the"):
        loaded(data)


def test_a_tensor_larger_than_its_record() -> None:
    """A pickle that needs more bytes than its record has is refused."""
    data = saved({"x": torch.zeros(100, dtype=torch.uint8)})
    entries = unzipped(data)
    entries["archive/data.pkl"] = entries["archive/data.pkl"].replace(b"Kdt", b"K\xf0t")
    assert entries["archive/data.pkl"] != unzipped(data)["archive/data.pkl"]
    with pytest.raises(InvalidCheckpointError):
        loaded(zipped(entries))


# -- the zip directory -------------------------------------------------------------------------------------------------


def entries_of(data: bytes) -> list[zip_directory.ZipEntry]:
    """The directory of an archive."""
    span = zip_directory.locate(data, len(data))
    assert span is not None
    found = zip_directory.entries(data[span.start : span.start + span.size], span)
    assert found is not None
    return found


@pytest.mark.slow
def test_directory_of_many_entries() -> None:
    """Over 65,535 entries are found, as zipfile finds them."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for number in range(2**16 + 5):
            archive.writestr(str(number), b"")
    found = entries_of(buffer.getvalue())
    assert [(entry.name.decode(), entry.header) for entry in found] == [
        (info.filename, info.header_offset) for info in zipfile.ZipFile(buffer).infolist()
    ]


def test_directory_of_large_entries() -> None:
    """Sizes and positions over 4 GiB come from the extra fields."""
    extra = struct.pack("<2H3Q", 1, 24, 2**33 + 5, 2**33, 2**34)
    full = 2**32 - 1
    directory = struct.pack("<4s6H3L5H2L", b"PK\x01\x02", 45, 45, 0, 0, 0, 0, 7, full, full, 1, 28, 0, 0, 0, 0, full)
    span = zip_directory.Span(2**35, len(directory) + 29, 1)
    found = zip_directory.entries(directory + b"x" + extra, span)
    assert found == [zip_directory.ZipEntry(b"x", 0, 7, 2**33, 2**33 + 5, 2**34)]
    assert zip_directory.entries(directory + b"x" + extra[:-1] + b"", span) is None


def test_no_directory() -> None:
    """What does not end as an archive does has no directory."""
    assert zip_directory.locate(b"", 0) is None
    assert zip_directory.locate(bytes(100), 100) is None
    assert zip_directory.locate(b"PK\x05\x06", 4) is None


def test_torch_files_over_s3_equal_local_ones(environment: Any, bucket: str, tmp_path: Any) -> None:
    """The same file gives the same object from everywhere."""
    data = saved({"x": [torch.randn(300_000), torch.randn(2_500_000)], "y": state_dict()})
    paths = [put(f"s3://{bucket}", data), put(str(tmp_path), data), put("memory://same", data)]
    first, *others = [load(path) for path in paths]
    assert all(equal(first, other) for other in others)
    assert fsspec.filesystem("memory").exists("/same/x.pt")


def test_allowed_class_of_a_module_like_one_of_python_2(monkeypatch: pytest.MonkeyPatch) -> None:
    """A class that is allowed loads, also from a module whose name was another's in Python 2."""
    module: Any = types.ModuleType("commands")
    module.Allowed = type("Allowed", (), {"__module__": "commands"})
    monkeypatch.setitem(sys.modules, "commands", module)
    data = saved([module.Allowed(), ValueError])
    with torch.serialization.safe_globals([module.Allowed, (ValueError, "exceptions.ValueError")]):
        found = loaded(data)
    assert (type(found[0]), found[1]) == (module.Allowed, ValueError)
