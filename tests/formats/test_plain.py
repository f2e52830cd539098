"""Plain state dicts, made without torch's unpickler: as torch would make them, or not at all."""

from __future__ import annotations

import io
import pickle as pickle_module
import tracemalloc
import zlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from checkpoints import saved
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch_files import equal, loaded, source_of

from fsspec_csx.errors import CheckpointError
from fsspec_csx.formats import reader as formats_reader
from fsspec_csx.formats import structure_limits
from fsspec_csx.formats.base import ON_CPU, ReadOptions
from fsspec_csx.formats.torch_zip import archive as torch_archive
from fsspec_csx.formats.torch_zip import outline, reader, rebuilding
from fsspec_csx.formats.torch_zip.pickle_bounds import Bounds, ScanError
from fsspec_csx.tensors.lazy_object import LazyObject
from fsspec_csx.tensors.names import Choice


def trained() -> dict[str, Any]:
    """The states of a model, an optimizer and a schedule after a step."""
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    model(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    scheduler.step()
    states = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}
    return {**states, "step": 1, "text": "é", "none": None, "many": 2**70, "list": [1, (True, -1.5, 300, -7)]}


def shared() -> dict[str, Any]:
    """Tensors that share memory, objects that are there twice, and memory without bytes."""
    memory, twice = torch.arange(12.0), [1]
    views = {"all": memory, "rest": memory[3:], "columns": memory.view(3, 4).t(), "one": memory[5]}
    return {**views, "twice": [twice, twice], "empty": torch.ones(0, 3), "none of it": memory[:0]}


DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16]
DTYPES += [torch.int8, torch.uint8, torch.bool]
STATES: dict[str, Callable[[], Any]] = {
    "trained": trained,
    "shared": shared,
    "parameter": lambda: [torch.nn.Parameter(torch.ones(2)), torch.ones(3, requires_grad=True)],
    "dtypes": lambda: {str(each): torch.ones(3, 2).to(each) for each in DTYPES},
}
# Of the opcodes of a pickle that torch.save writes, and the arguments that are likely.
BYTES = [*b"}]()XKMJG\x88\x89NtRQusaeqrhjcb.\x85\x86\x87\x8a", *range(8), 255]


def archive_of(data: bytes) -> torch_archive.Archive:
    """What a file with these bytes consists of."""
    found = torch_archive.read(source_of(data), "file")
    assert found is not None
    return found


def built(data: bytes, options: ReadOptions = ON_CPU) -> LazyObject | None:
    """What is built without torch's unpickler of a file with these bytes."""
    return built_of(archive_of(data), data, options)


def built_of(archive: torch_archive.Archive, data: bytes, options: ReadOptions = ON_CPU) -> LazyObject | None:
    """The same of an archive that was changed."""
    try:
        return reader._without_torch(archive, source_of(data), "file", options)
    except (CheckpointError, ScanError):
        return None


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated:UserWarning")
@pytest.mark.parametrize("kind", STATES)
def test_as_torch(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """A plain state dict is what torch.load gives, and is built without it."""
    data = saved(STATES[kind]())
    theirs = torch.load(io.BytesIO(data))
    monkeypatch.setattr(torch, "load", None)
    ours = loaded(data)
    assert equal(ours, theirs)
    if kind == "shared":
        assert ours["twice"][0] is ours["twice"][1]
        assert ours["all"].untyped_storage()._cdata == ours["columns"].untyped_storage()._cdata
        assert ours["columns"].stride() == (1, 4)


@pytest.mark.parametrize(
    "make",
    [
        lambda: OrderedDict,
        lambda: [torch.Size],
        lambda: torch.ones(2).untyped_storage(),
    ],
    ids=["class", "classes", "storage"],
)
def test_what_is_not_plain(make: Callable[[], Any]) -> None:
    """Of anything else nothing is built."""
    assert built(saved(make())) is None


@pytest.mark.parametrize("map_location", ["meta", {"cpu": "meta"}])
def test_other_places(map_location: Any) -> None:
    """Tensors are made where they belong, without records if they have no data."""
    found = built(saved(torch.ones(2)), ReadOptions(map_location))
    assert found is not None
    assert (found.obj.is_meta, found.records) == (True, [])


def test_a_function_that_fails() -> None:
    """The error of a function that places storages is raised, and the function is not called again."""
    calls = []

    def place(storage: Any, location: str) -> Any:
        calls.append(location)
        raise ValueError(location)

    with pytest.raises(ValueError, match="cpu"):
        loaded(saved([torch.ones(2), torch.ones(3)]), map_location=place)
    assert calls == ["cpu"]


DATA = saved(trained())
PICKLE = archive_of(DATA).pickle


def with_pickle(pickle: bytes) -> bytes:
    """The file with another pickle of the same length, and its checksum."""
    before, after = (zlib.crc32(each).to_bytes(4, "little") for each in (PICKLE, pickle))
    return DATA.replace(PICKLE, pickle).replace(before, after)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")  # torch's, of its own doings
@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, len(PICKLE) - 1), st.sampled_from(BYTES) | st.integers(0, 255)),
        min_size=1,
        max_size=3,
    )
)
@example([(PICKLE.index(b"X\x05\0\0\0model"), 0x8D)])  # a length beyond all positions
@example([(232, 150)])
def test_changed_pickles(changes: list[tuple[int, int]]) -> None:
    """Of a pickle with some other bytes nothing is built, or what torch builds unless it minds what is changed."""
    pickle = bytearray(PICKLE)
    for position, value in changes:
        pickle[position] = value
    data = with_pickle(bytes(pickle))
    if built(data) is None:
        return
    try:
        ours = loaded(data)
    except CheckpointError:  # refused by what looks at it later
        return
    try:
        theirs = torch.load(io.BytesIO(data))
    except pickle_module.UnpicklingError as error:
        # It does not know all opcodes of later protocols.
        known = ("Can only append", "Can only extend", "Can only SETITEM", "Unsupported operand")
        if not any(said in str(error) for said in known):
            raise
        return
    assert equal(ours, theirs)


@pytest.mark.parametrize("change", ["an offset", "a size", "a stride", "a count", "a key", "a version"])
def test_forged(change: str) -> None:
    """Tensors that do not fit their storages, storages that do not fit their records, and other layouts are torch's."""
    data = saved(torch.ones(2, 3))
    archive = archive_of(data)
    stored = b"X\x07\x00\x00\x00storageq\x01ctorch\nFloatStorage\nq\x02X\x01\x00\x00\x000q\x03X\x03\x00\x00\x00cpuq\x04"
    whole = stored + b"K\x06tq\x05QK\x00K\x02K\x03\x86q\x06K\x03K\x01\x86q\x07"
    assert whole in archive.pickle
    changed = {
        "an offset": whole.replace(b"QK\x00", b"QK\x01"),
        "a size": whole.replace(b"QK\x00K\x02", b"QK\x00K\x03"),
        "a stride": whole.replace(b"K\x03K\x01\x86", b"K\x04K\x01\x86"),
        "a count": whole.replace(b"K\x06tq", b"K\x07tq"),
        "a key": whole.replace(b"\x000q", b"\x001q"),
        "a version": whole,
    }[change]
    pickle = archive.pickle.replace(whole, changed)
    version = b"4" if change == "a version" else archive.version
    forged = replace(archive, pickle=pickle, version=version)
    assert (pickle == archive.pickle) == (change == "a version")
    assert built(data) is not None
    assert built_of(forged, data) is None


@pytest.mark.parametrize("state", [b"}X\x04\x00\x00\x00madectorch\nbfloat16\ns", b"N}X\x01\x00\x00\x00xK\x01s\x86"])
def test_no_name_has_a_state(state: bytes) -> None:
    """No pickle sets an attribute of what a name stands for: all later pickles would have it, too."""
    names = [
        *Bounds(9).functions,
        *rebuilding._BUILDERS,
        *outline._REBUILT,
        "torch.HalfStorage",
        "torch.float16",
        "a.b",
    ]
    for name in names:
        pickle = b"\x80\x02c%b\n%b\n%bb." % (*map(str.encode, name.rsplit(".", 1)), state)
        with pytest.raises(ScanError):
            outline.read(pickle, "file")
    assert loaded(saved(torch.ones(2, dtype=torch.float16))).dtype == torch.float16


@pytest.mark.parametrize("factory", [b"ccollections\nCounter\n", b"ctorch\nfloat16\n", b"]"])
def test_no_state_sets_a_factory(factory: bytes) -> None:
    """The factory of a mapping is one that pickle wrote as an argument, so that a missing key makes such a value."""
    made = b"\x80\x02ccollections\ndefaultdict\nc__builtin__\nlist\n\x85R"
    state = b"N}X\x0f\x00\x00\x00default_factory%bs\x86b" % factory
    data = saved({})
    archive = archive_of(data)
    found = built_of(replace(archive, pickle=made + b"."), data)
    assert found is not None
    assert found.obj.default_factory is list
    assert built_of(replace(archive, pickle=made + state + b"."), data) is None


def test_a_part_has_all_its_tensors() -> None:
    """Also those that are attributes: without their bytes, they would have those of freed memory."""
    parameter, tensor, mapping = torch.nn.Parameter(torch.ones(2)), torch.ones(3), OrderedDict(w=torch.ones(4))
    parameter.tag, tensor.tag, mapping.tag = torch.ones(5), [{"x": torch.ones(6)}], torch.ones(7)  # type: ignore[attr-defined]
    obj = {"p": parameter, "t": tensor, "m": mapping, "other": torch.ones(8)}
    found = formats_reader.structure(source_of(saved(obj)), "file")
    part = formats_reader._part(found, Choice(found.obj, ["p", "t", "m"], "file"))
    assert sorted(record.storage.nbytes() for record in part.records) == [4 * size for size in range(2, 8)]
    assert torch.equal(loaded(saved(obj), keys=["t"])["t"].tag[0]["x"], torch.ones(6))


def test_tensors_are_keys() -> None:
    """A mapping with tensors and devices as keys is read as by torch; beside unknown classes, a part of it is."""
    first, second = torch.ones(2), torch.nn.Parameter(torch.ones(3))
    keys = [first, "x", (second, 1), torch.device("cpu"), torch.float16, second]
    obj: dict[str, Any] = {"k": {key: [second] for key in keys}, "o": OrderedDict.fromkeys(keys, 1)}
    expected = torch.load(io.BytesIO(saved(obj)), weights_only=True)
    assert equal(loaded(saved(obj)), expected)
    found = loaded(saved({**obj, "unknown": io.StringIO}), keys=["k", "o"])
    assert equal(found, expected)
    assert next(iter(found["k"])) is next(iter(found["o"]))


def test_long_lists_are_not_copied() -> None:
    """Numbers in a list, such as of a sampler, take no more memory while they are looked at than pickle needs."""
    count = 100_000
    data = saved({"order": list(range(1000, 1000 + count))})
    found = outline.read(archive_of(data).pickle, "file")
    tracemalloc.start()
    try:
        made = rebuilding.structure(found, archive_of(data), source_of(data), "file")
        assert made is not None
        structure_limits.check_use(made.obj, "file")
        structure_limits.check(made.obj, "file")
        highest = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert highest < len(data) + 24 * count


def test_skip_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's own way to load the structure alone is torch's."""
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: pytest.fail("as it should"))
    with torch.serialization.skip_data(), pytest.raises(pytest.fail.Exception):
        loaded(saved(torch.ones(2)))
