"""Archives are those of torch.save, bit for bit; if torch's layout is unknown, torch.save itself writes the file."""

from __future__ import annotations

import copyreg
import gc
import io
import itertools
import os
import subprocess
import sys
import warnings
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.serialization import config

import fsspec_csx
from fsspec_csx.formats.torch_zip import archive_writer, pickled, single_tensor_archive
from fsspec_csx.formats.torch_zip.archive_writer import plan_archive
from fsspec_csx.formats.torch_zip.pickled import Pickled
from fsspec_csx.tensors import torch_compat

STATE = {"a": torch.arange(6.0), "b": [torch.ones(3, 2, dtype=torch.int8)], "n": 5}


def bytes_of_torch(obj: Any) -> bytes:
    """What torch.save itself writes."""
    buffer = io.BytesIO()
    torch.save(obj, buffer)
    return buffer.getvalue()


def digits(data: bytes) -> bytes:
    """The archive with another identity, as another rule for it would make it."""
    at = data.find(b".data/serialization_id")
    if at < 0:
        return data
    at = data.index(b"PK\x07\x08", at) - 1
    return data[:at] + (b"0" if data[at : at + 1] != b"0" else b"1") + data[at + 1 :]


CHANGES: dict[str, Callable[[bytes], bytes]] = {
    "descriptor": lambda data: data.replace(b"PK\x07\x08", b"PK\x07\x09"),
    "no identity": lambda data: data.replace(b".data/serialization_id", b".data/serialization_no"),
    "identity": digits,
    "directory": lambda data: data.replace(b"PK\x01\x02", b"PK\x01\x03"),
    "end": lambda data: data.replace(b"PK\x06\x07", b"PK\x06\x08"),
    "last": lambda data: data.replace(b"PK\x05\x06", b"PK\x05\x07"),
    "names": lambda data: data.replace(b"data/0", b"data/x"),
    "longer": lambda data: data + b"x" if b"PK\x05\x06" in data else data,
}


class Changed:
    """A file that gets other bytes than torch wrote.

    Args:
        file: that file.
        change: what is done to all that is written between two seeks.
    """

    def __init__(self, file: Any, change: Callable[[bytes], bytes]) -> None:
        self._file = file
        self._change = change
        self._held = b""

    def write(self, data: Any) -> int:
        """Hold bytes until the next seek."""
        self._held += bytes(data)
        return len(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        """Hand on what is held, and pass over bytes."""
        self.flush()
        return int(self._file.seek(offset, whence))

    def flush(self) -> None:
        """Hand on what is held."""
        self._file.write(self._change(self._held))
        self._held = b""


@pytest.fixture
def forgotten() -> Iterator[None]:
    """Check again whether torch's archives are known, also after the test."""

    def forget() -> None:
        archive_writer._is_known.cache_clear()
        single_tensor_archive.frame.cache_clear()

    forget()
    yield
    forget()


@dataclass
class Own:
    """A class of a user, with a tensor."""

    weight: torch.Tensor
    name: str = "data.pkl"


class OwnTensor(torch.Tensor):
    """A tensor of a class of a user."""


def laid_out(obj: Any) -> bytes:
    """The archive that is put together here."""
    layout = plan_archive(Pickled(obj))
    assert layout is not None
    written = bytearray()

    def keep(memory: memoryview) -> int:
        written.extend(memory)
        return zlib.crc32(memory)

    layout.write(written.extend, keep)
    assert len(written) == layout.nbytes
    return bytes(written)


DTYPES = (torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.complex64, torch.uint16, torch.float8_e5m2)
SHARED = torch.arange(24.0).reshape(4, 6)
BYTES = SHARED.view(torch.uint8)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    COMPRESSED = SHARED.to_sparse_csr()
    QUANTIZED = torch.quantize_per_tensor(SHARED, 0.1, 3, torch.qint8)
HOOKED = torch.zeros(3, requires_grad=True)
HOOKED.register_hook(lambda gradient: gradient)


def with_attribute(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor with an attribute of its own."""
    tensor.note = "mine"  # type: ignore[attr-defined]
    return tensor


def trained() -> dict[str, Any]:
    """The states of a model, its optimizer and its schedule after a step."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    optimizer = torch.optim.Adam(model.parameters())
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}


TRAINED = trained()
SPECIAL: list[Any] = [
    *(SHARED, SHARED, SHARED.T, SHARED[1:, ::2], SHARED[:0], SHARED.expand(2, 4, 6), BYTES),
    *(torch.nn.Parameter(SHARED), torch.nn.Parameter(SHARED[2], requires_grad=False), SHARED.requires_grad_(False)),
    *(with_attribute(torch.ones(2)), with_attribute(torch.nn.Parameter(torch.ones(2))), HOOKED),
    *(SHARED.clone().untyped_storage(), SHARED.to_sparse(), COMPRESSED, torch.empty(3, device="meta")),
    *(torch.ones(2, dtype=torch.complex64).conj(), torch.ones(2, dtype=torch.complex64).conj().imag),
    *(torch.ones(3).as_subclass(OwnTensor), torch.nn.Buffer(torch.ones(3)), torch.nn.Linear(2, 2), QUANTIZED),
    *(torch.device("cpu"), torch.float32, torch.Size([1, 2]), b"bytes", None, True, 2.5, 10**30, range(3)),
    *("0", "1", "cpu", "storage", "a" * 300, TRAINED, TRAINED["model"], Own, Own(SHARED)),
]


def made(dtype: torch.dtype, shape: list[int]) -> torch.Tensor:
    """A new tensor."""
    return torch.arange(float(torch.Size(shape).numel())).reshape(shape).to(dtype)


LEAVES = st.one_of(
    st.sampled_from(SPECIAL),
    st.builds(made, st.sampled_from(DTYPES), st.lists(st.integers(0, 40), max_size=3)),
    st.integers(),
    st.text(max_size=4),
)
KEYS = st.one_of(st.sampled_from(["0", "1", "cpu", "storage"]), st.integers(0, 9), st.text(max_size=4))
STATES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=6),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(KEYS, inner, max_size=6),
        st.dictionaries(KEYS, inner, max_size=6).map(OrderedDict),
        inner.map(lambda value: [value, value]),
        inner.map(lambda value: Own(value)),
    ),
    max_leaves=25,
)


@given(STATES, st.sampled_from([64, 64, 1, 8, 4096]))
@settings(max_examples=60, deadline=None)
@pytest.mark.filterwarnings("ignore")
def test_known_layout(state: Any, alignment: int) -> None:
    """An archive is that of torch.save, whatever is in it; what torch refuses is refused."""
    with config.patch("save.storage_alignment", alignment):
        try:
            expected = bytes_of_torch(state)
        except RuntimeError:  # memory of two dtypes
            with pytest.raises(RuntimeError):
                laid_out(state)
            return
        assert laid_out(state) == expected


@pytest.mark.filterwarnings("ignore")
def test_known_kinds() -> None:
    """Each kind of value by itself, and beside a tensor that shares its memory."""
    for value in [*SPECIAL, {number: torch.ones(number % 7) for number in range(300)}]:
        if value is not BYTES:  # memory of two dtypes
            assert laid_out([value, SHARED, value]) == bytes_of_torch([value, SHARED, value])


def test_under_modes(forgotten: None) -> None:
    """Modes of torch, under which the first save of a process may be, change nothing."""
    state = {"a": torch.ones(3), "c": [1.5, None]}
    expected = bytes_of_torch(state)
    for mode in (torch.inference_mode(), torch.device("meta"), FakeTensorMode(), torch.serialization.skip_data()):
        archive_writer._is_known.cache_clear()
        pickled._are_reductions_known.cache_clear()
        with mode:
            assert laid_out(state) == expected
    pickled._are_reductions_known.cache_clear()


@pytest.mark.slow
def test_many_records() -> None:
    """An archive of more records than 16 bits count."""
    state = [torch.ones(1) for _ in range(66_000)]
    assert laid_out(state) == bytes_of_torch(state)


def test_large_records(forgotten: None) -> None:
    """Of records and archives beyond 4 GiB all is as torch.save writes it, but for the bytes of the tensors."""
    full = 2**32 - 1
    for sizes in ([full], [full - 1, 1], [full - 800, 3, 0, 5], [2**33, 0, 2**40, 1], [0, full + 1, 7]):
        large = Pickled([torch.UntypedStorage(size, device="meta") for size in sizes])
        own, by_torch = bytearray(), archive_writer._BytesRecorder()
        with torch.serialization.skip_data():
            large.torch_save(by_torch)
        layout = plan_archive(large)
        assert layout is not None
        layout.write_around(own.extend, lambda storage: 0)
        assert own == by_torch.written
        assert layout.nbytes == len(own) + sum(sizes)


def test_without_checksums(tmp_path: Path) -> None:
    """If torch is configured to write no checksums, torch writes the archives."""
    with config.patch("save.compute_crc32", False):
        assert plan_archive(Pickled(STATE)) is None
        fsspec_csx.save(STATE, tmp_path / "x.mdl")
        assert (tmp_path / "x.mdl").read_bytes() == bytes_of_torch(STATE)


@pytest.mark.parametrize("case", CHANGES)
def test_other_layout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, case: str, forgotten: None) -> None:
    """Where torch writes archives in another way, save has torch.save write the file."""
    real = Pickled.torch_save

    def changed(self: Pickled, file: Any) -> None:
        if type(file).__name__ != "_BytesRecorder":  # the file itself
            real(self, file)
            return
        between = Changed(file, CHANGES[case])
        real(self, between)
        between.flush()

    monkeypatch.setattr(Pickled, "torch_save", changed)
    assert plan_archive(Pickled(STATE)) is None
    assert single_tensor_archive.frame(torch.float32, (3,)) is None
    path = tmp_path / "x.mdl"
    fsspec_csx.save(STATE, path)
    assert path.read_bytes() == bytes_of_torch(STATE)
    fsspec_csx.async_save(STATE, path).result()
    assert path.read_bytes() == bytes_of_torch(STATE)


def test_frames() -> None:
    """A frame around a tensor's bytes is what torch.save writes around them."""
    for dtype in (torch.float32, torch.bfloat16, torch.bool, torch.float8_e4m3fn):
        for shape in ((64, 256), (), (3, 5, 7)):
            for _ in range(3):
                tensor = torch.randint(0, 2, shape).to(dtype)
                frame = single_tensor_archive.frame(dtype, shape)
                assert frame is not None
                content = tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
                written = frame.before + content + frame.after(zlib.crc32(content))
                assert written == bytes_of_torch(tensor)
                assert len(written) == frame.size


@pytest.mark.slow
@pytest.mark.parametrize(("version", "accepted"), [("2.9.1", False), ("2.10.0+cpu", True), ("3.0.0a1", True)])
def test_release_of_torch(tmp_path: Path, version: str, accepted: bool) -> None:
    """torch before 2.10, of which weights_only lets a file run code, is refused with what to do."""
    folder = tmp_path / f"torch-{version}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n")
    code = "import fsspec_csx; fsspec_csx.save({}, 'x.mdl')"
    root = str(Path(fsspec_csx.__file__).parent.parent)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), root])}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert (done.returncode == 0) == accepted
    if not accepted:
        assert f"ImportError: torch {version}" in done.stderr
        assert "pip install" in done.stderr


def _listed(self: torch.Tensor, protocol: int) -> Any:
    """How a program may have tensors pickled."""
    return torch.tensor, (self.tolist(),)


REPLACEMENTS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "tensors": lambda patch: patch.setattr(torch.Tensor, "__reduce_ex__", _listed),
    "their part": lambda patch: patch.setattr(torch.Tensor, "_reduce_ex_internal", _listed),
    "parameters": lambda patch: patch.setattr(torch.nn.Parameter, "__reduce_ex__", _listed),
    "states": lambda patch: patch.setattr(torch.Tensor, "__getstate__", lambda self: {"x": 1}, raising=False),
    "registered": lambda patch: patch.setitem(copyreg.dispatch_table, torch.Tensor, lambda each: _listed(each, 2)),
    "hooks": lambda patch: patch.setitem(copyreg.dispatch_table, OrderedDict, lambda each: (dict, ())),
}


@pytest.mark.parametrize("case", REPLACEMENTS)
def test_replaced_reduction(monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    """What a program replaces of how torch pickles tensors, after saves, has its effect on later ones."""
    state = {"a": torch.ones(3), "p": torch.nn.Parameter(torch.ones(2), requires_grad=False)}
    usual = bytes_of_torch(state)
    assert laid_out(state) == usual
    REPLACEMENTS[case](monkeypatch)
    expected = bytes_of_torch(state)
    assert expected != usual
    assert laid_out(state) == expected


def test_interrupted_check(monkeypatch: pytest.MonkeyPatch, forgotten: None) -> None:
    """Ctrl-C while torch's archive is compared reaches the caller, and the next save compares it again."""

    real, calls = archive_writer._BytesRecorder.write, itertools.count()

    def interrupted(self: Any, data: Any) -> int:
        if next(calls) == 4:  # torch reports it as an error of its own
            raise KeyboardInterrupt
        return real(self, data)

    with monkeypatch.context() as patch:
        patch.setattr(archive_writer._BytesRecorder, "write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            plan_archive(Pickled(STATE))
    assert plan_archive(Pickled(STATE)) is not None


def test_replaced_save(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A torch.save that a program puts in the place of torch's, after saves, writes the later ones."""
    path = tmp_path / "x.mdl"
    fsspec_csx.save(STATE, path)
    real = torch.save

    def longer(obj: Any, file: Any, **options: Any) -> None:
        real(obj, file, **options)
        file.write(b"longer")

    usual = path.read_bytes()
    monkeypatch.setattr(torch, "save", longer)
    fsspec_csx.save(STATE, path)
    assert path.read_bytes() == usual + b"longer"


def test_named_dimensions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors whose dimensions have names, which torch before 2.13 refuses to save, are left to torch."""

    def refuse(tensor: torch.Tensor) -> None:
        raise RuntimeError("names")

    monkeypatch.setattr(pickled, "_reduce_other", refuse)
    laid_out(STATE)
    monkeypatch.setattr(torch_compat, "has_names", lambda tensor: tensor.dim() == 1)
    with pytest.raises(RuntimeError, match="names"):
        laid_out(STATE)


@pytest.mark.parametrize("save", [fsspec_csx.save, lambda *args: fsspec_csx.async_save(*args).result()])
def test_memory_after_save(tmp_path: Path, save: Callable[[Any, Path], object]) -> None:
    """The memory of tensors that were saved is free once the caller has none of them any more."""
    save({}, tmp_path / "first.mdl")
    gc.collect()
    gc.disable()
    try:
        state = {"a": torch.ones(1000), "p": torch.nn.Parameter(torch.ones(9))}
        storages = [StorageWeakRef(value.untyped_storage()) for value in state.values()]
        save(state, tmp_path / "x.mdl")
        del state
        assert all(storage.expired() for storage in storages)
    finally:
        gc.enable()


def test_memory_after_load(tmp_path: Path) -> None:
    """The memory of tensors that were loaded is free once the caller has none of them any more."""
    fsspec_csx.save(OrderedDict(a=torch.ones(1000), p=torch.nn.Parameter(torch.ones(9))), tmp_path / "x.mdl")
    fsspec_csx.load(tmp_path / "x.mdl")
    gc.collect()
    gc.disable()
    try:
        state = fsspec_csx.load(tmp_path / "x.mdl")
        storages = [StorageWeakRef(value.untyped_storage()) for value in state.values()]
        del state
        assert all(storage.expired() for storage in storages)
    finally:
        gc.enable()
