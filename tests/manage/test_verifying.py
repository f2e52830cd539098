"""verify finds and names all damage in a checkpoint of any format."""

from __future__ import annotations

import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from broken import begin_of, flip, sparse_safetensors
from checkpoints import Point
from proxy import Fault, fault_proxy, through

from fsspec_csx.checkpoint.api import save
from fsspec_csx.formats import verify_report
from fsspec_csx.manage.verify import VerifyResult, verify
from fsspec_csx.s3.filesystem import CSXFileSystem
from fsspec_csx.testing import LocalS3

STATE = {"model": {"w": torch.arange(2000.0), "b": torch.ones(300)}, "step": 7}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A checkpoint of this torch."""
    save(STATE, tmp_path / "x.mdl")
    return tmp_path / "x.mdl"


@pytest.fixture(params=[32 * 2**20, 1000, 77])
def pieces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of many sizes."""
    monkeypatch.setattr(verify_report, "_PIECE", request.param)


def records_of(path: Path) -> int:
    """How many records an archive has."""
    with zipfile.ZipFile(path) as archive:
        return len(archive.infolist())


@pytest.mark.usefixtures("pieces")
def test_whole(path: Path) -> None:
    """A whole checkpoint has all of its records checked, and no damage."""
    report = verify(path)
    assert report == VerifyResult(str(path), path.stat().st_size, records_of(path), 0, False, (), "")


def test_whole_anywhere(root: str, server: LocalS3) -> None:
    """So has one on any filesystem, under any name; on S3 the server's checksum of the object is compared too."""
    save(STATE, f"{root}/a #1 ?*[x] %20 é.mdl")
    report = verify(f"{root}/a #1 ?*[x] %20 é.mdl")
    assert (report.damage, report.unchecked) == ((), 0)
    assert report.records > 3
    assert report.object_checked == root.startswith("s3:")


@pytest.mark.usefixtures("pieces")
def test_all_damage_is_named(path: Path) -> None:
    """Every record that was damaged is named, by its tensor where there is one."""
    for record in ("data/0", "data/1"):
        flip(path, begin_of(path, record))
    first, second = verify(path).damage
    assert first.startswith("the checksum of 'model.w' (record ")
    assert second.startswith("the checksum of 'model.b' (record ")
    flip(path, begin_of(path, "byteorder"))
    assert len(verify(path).damage) == 3


@pytest.mark.usefixtures("pieces")
def test_every_byte_of_a_tensor(tmp_path: Path) -> None:
    """Wherever the byte lies, a flip is found."""
    path = tmp_path / "x.mdl"
    save({"w": torch.zeros(500)}, path)
    whole, begin = path.read_bytes(), begin_of(path, "data/0")
    for position in (0, 1, 999, 1000, 1999):
        flip(path, begin + position)
        (text,) = verify(path).damage
        assert "'w' (record " in text
        path.write_bytes(whole)


def test_tied_tensors_are_named(tmp_path: Path) -> None:
    """A record of several tensors is named by all of them."""
    tied = torch.ones(100)
    save({"a": tied, "b": tied[:5]}, tmp_path / "x.mdl")
    flip(tmp_path / "x.mdl", begin_of(tmp_path / "x.mdl", "data/0"))
    assert "'a', 'b' (record" in verify(tmp_path / "x.mdl").damage[0]


def test_damaged_pickle(path: Path) -> None:
    """Of a damaged pickle nothing is loaded, and it is reported once, with the records that are damaged besides."""
    flip(path, begin_of(path, "data.pkl") + 20)
    flip(path, begin_of(path, "data/1"))
    assert [each.rpartition("/")[2] for each in verify(path).damage] == ["data.pkl' is wrong", "1' is wrong"]


def test_damaged_local_header(path: Path) -> None:
    """A local header that is not that of its record is damage."""
    flip(path, begin_of(path, "data/0") - 70)
    with zipfile.ZipFile(path) as archive:
        header = next(each.header_offset for each in archive.infolist() if each.filename.endswith("data/0"))
    flip(path, header + 31)  # of the name
    assert any("local header" in each and "data/0" in each for each in verify(path).damage)


def test_damaged_directory(path: Path) -> None:
    """So is a zip directory that claims what cannot be, or is none."""
    data = path.read_bytes()
    at = data.rindex(b"PK\x01\x02")
    path.write_bytes(data[: at + 42] + struct.pack("<L", len(data) - 10) + data[at + 46 :])
    assert verify(path).damage
    flip(path, data.index(b"PK\x01\x02"))
    assert verify(path).damage


@pytest.mark.parametrize("left", [0, 1, 100, 3000, -1, -30, -2000])
@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
def test_cut_short(tmp_path: Path, form: str, left: int) -> None:
    """A file that was cut short is damaged."""
    path = written(tmp_path, form)
    path.write_bytes(path.read_bytes()[:left])
    (text,) = verify(path).damage
    assert text


def written(folder: Path, form: str) -> Path:
    """A checkpoint of a format."""
    tensors = {"w": torch.arange(2000.0), "b": torch.ones(3)}
    if form == "safetensors":
        safetensors.torch.save_file(tensors, folder / "x")
    else:
        torch.save(tensors, folder / "x", _use_new_zipfile_serialization=form == "zip")
    return folder / "x"


def test_formats_without_checksums(tmp_path: Path) -> None:
    """Of those the structure is checked, and the report counts the tensors without a checksum."""
    report = verify(written(tmp_path, "safetensors"))
    assert (report.records, report.unchecked, report.damage, report.note) == (0, 2, (), "")
    report = verify(written(tmp_path, "legacy"))
    assert (report.records, report.unchecked, report.damage) == (0, 2, ())
    assert "before torch 1.6" in report.note


@pytest.mark.parametrize("data", [b"", b"text", b"PK\x03\x04", b"\x89HDF\r\n\x1a\n" + bytes(1000), bytes(5000)])
def test_no_checkpoint(tmp_path: Path, data: bytes) -> None:
    """A file that is something else is damaged, and the error says what it is."""
    (tmp_path / "x.mdl").write_bytes(data)
    report = verify(tmp_path / "x.mdl")
    assert len(report.damage) == 1
    assert str(tmp_path) not in report.damage[0]


@pytest.mark.usefixtures("pieces")
@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
def test_compressed(path: Path, tmp_path: Path, method: int) -> None:
    """Deflated records are inflated and checked, in pieces; those that torch cannot read are reported."""
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(tmp_path / "y.mdl", "w", method) as packed:
        for name in archive.namelist():
            packed.writestr(name, archive.read(name))
    report = verify(tmp_path / "y.mdl")
    if method == zipfile.ZIP_DEFLATED:
        assert (report.records, report.unchecked, report.damage) == (records_of(path), 0, ())
        flip(tmp_path / "y.mdl", begin_of(tmp_path / "y.mdl", "data/0") + 200)
        assert any("data/0" in each for each in verify(tmp_path / "y.mdl").damage)
    else:
        assert (report.records, report.unchecked) == (0, records_of(path))
        assert report.damage


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.eye(40).to_sparse(),
        lambda: torch.quantize_per_tensor(torch.ones(40), 0.1, 0, torch.qint8),
        lambda: torch.nested.nested_tensor([torch.ones(20), torch.ones(30)]),
    ],
    ids=["sparse", "quantized", "nested"],
)
def test_other_layouts(tmp_path: Path, make: Callable[[], torch.Tensor]) -> None:
    """Tensors that are read whole are checked too."""
    save({"w": make()}, tmp_path / "x.mdl")
    assert verify(tmp_path / "x.mdl").damage == ()
    flip(tmp_path / "x.mdl", begin_of(tmp_path / "x.mdl", "data/0"))
    assert "data/0" in verify(tmp_path / "x.mdl").damage[0]


def test_no_code_runs(tmp_path: Path) -> None:
    """What names code is not loaded; its checksums are checked, and what has none cannot be vouched for."""
    torch.save({"p": Point(), "w": torch.ones(100)}, tmp_path / "x.mdl")
    report = verify(tmp_path / "x.mdl")
    assert report.damage == ()
    assert "Point, which could run code when loaded, and so was not loaded" in report.note
    flip(tmp_path / "x.mdl", begin_of(tmp_path / "x.mdl", "data/0"))
    assert "data/0" in verify(tmp_path / "x.mdl").damage[0]
    torch.save({"p": Point()}, tmp_path / "old.mdl", _use_new_zipfile_serialization=False)
    assert "could run code" in verify(tmp_path / "old.mdl").damage[0]


@pytest.mark.skipif(not hasattr(torch.serialization, "set_crc32_options"), reason="this torch always computes them")
def test_without_checksums(tmp_path: Path) -> None:
    """Records that were saved without checksums are counted as such."""
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"w": torch.ones(100)}, tmp_path / "x.mdl")
    finally:
        torch.serialization.set_crc32_options(before)
    report = verify(tmp_path / "x.mdl")
    assert report.damage == ()
    assert report.unchecked > 0
    flip(tmp_path / "x.mdl", begin_of(tmp_path / "x.mdl", "data/0"))
    assert verify(tmp_path / "x.mdl").damage == ()


@pytest.mark.parametrize(
    ("record", "old", "new", "said"),
    [
        ("data/0", bytes(1200), bytes(1196), "record size"),
        ("data.pkl", b"K\x00M,\x01\x85", b"K\x00M-\x01\x85", "resize storage"),
    ],
    ids=["storage", "tensor"],
)
def test_too_large_for_its_record(path: Path, record: str, old: bytes, new: bytes, said: str) -> None:
    """A tensor that takes more bytes than its record has is damage, though each record is as it was saved."""
    save({"w": torch.zeros(300)}, path)
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries.items():
            assert not name.endswith(record) or old in data
            archive.writestr(name, data.replace(old, new) if name.endswith(record) else data)
    (text,) = verify(path).damage
    assert said in text


# -- S3 ----------------------------------------------------------------------------------------------------------------


def test_object_checksum(server: LocalS3, fs: CSXFileSystem, bucket: str, tmp_path: Path) -> None:
    """What comes otherwise than the server has it is damage, in any format, and where versions are known."""
    safetensors.torch.save_file({"w": torch.randn(100_000)}, tmp_path / "x")
    fs.put_file(str(tmp_path / "x"), f"{bucket}/x.safetensors")
    with fault_proxy(server.endpoint_url) as proxy:
        for aware in (False, True):
            options: dict[str, Any] = through(proxy, server, version_aware=aware).storage_options
            report = verify(f"s3://{bucket}/x.safetensors", storage_options=options)
            assert (report.object_checked, report.damage) == (True, ())
            proxy.faults.append(
                Fault("GET", when=lambda request: request.path.endswith("x.safetensors"), flip_down=200_000)
            )
            (text,) = verify(f"s3://{bucket}/x.safetensors", storage_options=options).damage
            assert "the server has" in text


def test_object_checksums_of_shards(server: LocalS3, bucket: str) -> None:
    """So is what comes of a shard otherwise than the server has it."""
    path = f"s3://{bucket}/x"
    state = {"a": torch.randn(100_000), "b": torch.randn(9_000_000)}
    save(state, path, format="huggingface", max_shard_size=500_000, storage_options=server.storage_options())
    with fault_proxy(server.endpoint_url) as proxy:
        options: dict[str, Any] = through(proxy, server).storage_options
        assert verify(path, storage_options=options).damage == ()
        for number in (1, 2):
            shard = f"-0000{number}-of-00002.safetensors"
            fault = Fault("GET", when=lambda each, shard=shard: each.path.endswith(shard), flip_down=200_000, times=99)
            proxy.faults = [fault]
            (text,) = verify(path, storage_options=options).damage
            assert shard in text
            assert "the server has" in text


@pytest.mark.usefixtures("environment")
def test_other_failures(bucket: str) -> None:
    """What is missing or must not be read is no damage, but an error."""
    with pytest.raises(FileNotFoundError):
        verify(f"s3://{bucket}/missing.mdl")
    with pytest.raises(PermissionError):
        verify(f"s3://{bucket}/missing.mdl", storage_options={"key": "nobody", "secret": "nothing"})


# Not ru_maxrss, which a process inherits from the one that started it.
MEASURED = """
import sys, torch
from fsspec_csx.manage.verify import verify
from fsspec_csx.checkpoint.api import save
def most():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
save({"w": torch.ones(3)}, sys.argv[1] + ".mdl")
verify(sys.argv[1] + ".mdl")
before = most()
found = verify(sys.argv[1])
print(len(found.damage), (most() - before) // 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says how much memory a process had at most")
def test_memory(tmp_path: Path) -> None:
    """However large the checkpoint, no more than 64 MiB of it are in memory."""
    sparse_safetensors(tmp_path / "x", 400 * 2**20, b"1")
    arguments = [sys.executable, "-c", MEASURED, str(tmp_path / "x")]
    done = subprocess.run(arguments, check=True, capture_output=True, text=True, timeout=100)
    damage, mebibytes = map(int, done.stdout.split())
    assert damage == 0
    assert 32 < mebibytes < 100
