"""diff compares bytes or checksums of the server, never checksums that the files themselves contain."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch

from fsspec_csx import distributed, save
from fsspec_csx.errors import InvalidCheckpointError
from fsspec_csx.manage import diff as manage_diff
from fsspec_csx.manage.diff import compare

FIRST, SECOND = torch.arange(4.0), torch.tensor([9.0, 8.0, 7.0, 6.0])


def forged(path: Path, *, crc32: bool) -> None:
    """A torch file whose directory claims the checksum of other bytes, or none at all."""
    save({"w": FIRST}, path)
    with zipfile.ZipFile(path) as archive:
        crc = archive.getinfo(f"{archive.namelist()[0].partition('/')[0]}/data/0").CRC.to_bytes(4, "little")
    data = path.read_bytes().replace(FIRST.numpy().tobytes(), SECOND.numpy().tobytes())
    path.write_bytes(data if crc32 else data.replace(crc, bytes(4)))


def test_forged_checksums(tmp_path: Path) -> None:
    """Other bytes with the same checksum in the directory are damage, and without one a difference."""
    save({"w": FIRST}, tmp_path / "honest.mdl")
    forged(tmp_path / "forged.mdl", crc32=True)
    with pytest.raises(InvalidCheckpointError, match="checksum of 'w'"):
        compare(tmp_path / "honest.mdl", tmp_path / "forged.mdl")
    forged(tmp_path / "without.mdl", crc32=False)
    (difference,) = compare(tmp_path / "honest.mdl", tmp_path / "without.mdl").differences
    assert (difference.name, difference.elements) == ("w", 4)


def test_forged_manifest(tmp_path: Path) -> None:
    """The checksums in a manifest prove nothing either."""
    for name in ("honest", "forged"):
        distributed.save({"w": FIRST}, tmp_path / name)
    (shard,) = (tmp_path / "forged").glob("*.distcp")
    shard.write_bytes(shard.read_bytes().replace(FIRST.numpy().tobytes(), SECOND.numpy().tobytes()))
    with pytest.raises(InvalidCheckpointError, match="checksum of 'w'"):
        compare(tmp_path / "honest", tmp_path / "forged")


@pytest.mark.usefixtures("environment")
def test_objects_of_one_checksum_of_the_server(bucket: str) -> None:
    """Objects are equal unread by a checksum that the server has of the whole; ETags of parts are no such."""
    save({"w": FIRST}, f"s3://{bucket}/first.safetensors")
    save({"w": FIRST}, f"s3://{bucket}/second.safetensors")
    report = compare(f"s3://{bucket}/first.safetensors", f"s3://{bucket}/second.safetensors")
    assert (report.differences, report.skipped) == ((), 1)
    save({"w": SECOND}, f"s3://{bucket}/second.safetensors")
    report = compare(f"s3://{bucket}/first.safetensors", f"s3://{bucket}/second.safetensors")
    assert ([each.name for each in report.differences], report.skipped) == (["w"], 0)


def test_etags_of_parts_decide_nothing() -> None:
    """An ETag that is the digest of parts depends on where they were cut; that of one request is the MD5."""
    digest = "0123456789abcdef0123456789abcdef"
    assert manage_diff._MD5.fullmatch(f'"{digest}"')
    assert not manage_diff._MD5.fullmatch(f'"{digest}-2"')
