"""Malicious servers and local users: nothing is written to another place, and nothing hangs."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

import fsspec
import pytest
from answers import answering
from fsspec.implementations.memory import MemoryFile
from hostile import archive, little_memory, pickled, tensor

from fsspec_csx.cli import main
from fsspec_csx.errors import CheckpointPathError
from fsspec_csx.manage import s3
from fsspec_csx.manage.copy import copy
from fsspec_csx.s3 import resumable_download, upload_journal
from fsspec_csx.s3.filesystem import CSXFileSystem
from fsspec_csx.s3.transport.range_planning import MIN_REQUEST
from fsspec_csx.s3.upload_journal import SourceFingerprint, locked_journal

ORIGIN = SourceFingerprint("source", "state")
ESCAPE = "\x1b[31m"

# -- what is remembered of uploads -------------------------------------------------------------------------------------


@pytest.fixture
def remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file with what is remembered of an upload; there is none yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with locked_journal(ORIGIN, "target") as found:
        assert found is not None
        found.start("id", 5)
        (path,) = (tmp_path / "cache" / "fsspec_csx" / "uploads").iterdir()
        found.forget()
    assert not path.exists()
    return path


HEAD = {"upload": "id", "part": 5, "state": "state"}


@pytest.mark.parametrize(
    "data",
    [
        b"[" * 100_000,
        b"[]",
        b"5",
        b"\xff",
        b"{}",
        json.dumps({**HEAD, "upload": ["id"]}).encode(),
        json.dumps({**HEAD, "part": -5}).encode(),
        json.dumps({**HEAD, "part": "5"}).encode(),
        json.dumps({**HEAD, "part": True}).encode(),
        json.dumps(HEAD).encode() + b" " * (5 * 2**20),
    ],
    ids=["deep", "list", "number", "bytes", "empty", "id", "negative", "text", "truth", "large"],
)
def test_record_that_makes_no_sense(remembered: Path, data: bytes) -> None:
    """What is remembered in a way that makes no sense is forgotten."""
    remembered.write_bytes(data)
    with locked_journal(ORIGIN, "target") as found:
        assert found is not None
        assert (found.id, found.parts) == (None, {})


def test_parts_that_make_no_sense(remembered: Path) -> None:
    """Of the parts that are remembered, those count that can be parts."""
    lines = [HEAD, [1, "etag", 7], ["2", "etag", 7], [3, 5, 7], [4, "etag", -1], [5, "etag", 2**70], [6, "etag", None]]
    remembered.write_text("\n".join([*map(json.dumps, lines), "[" * 100_000]))
    with locked_journal(ORIGIN, "target") as found:
        assert found is not None
        assert (found.id, found.part, found.current) == ("id", 5, True)
        assert found.parts == {1: ("etag", 7), 6: ("etag", None)}


def _link(path: Path, victim: Path) -> None:
    path.symlink_to(victim)


def _hard_link(path: Path, victim: Path) -> None:
    os.link(victim, path)


def _pipe(path: Path, victim: Path) -> None:
    os.mkfifo(path)


@pytest.mark.parametrize("plant", [_link, _hard_link, _pipe])
def test_record_in_the_place_of_another_file(
    remembered: Path, tmp_path: Path, plant: Callable[[Path, Path], None]
) -> None:
    """A link, or something that is no file, in the place of what is remembered is not touched."""
    victim = tmp_path / "victim"
    victim.write_text("mine")
    plant(remembered, victim)
    with locked_journal(ORIGIN, "target") as found:
        assert found is None
    assert victim.read_text() == "mine"
    assert os.path.lexists(remembered)


@pytest.mark.parametrize("plant", [_link, _hard_link, _pipe])
def test_download_in_the_place_of_another_file(
    fs: CSXFileSystem,
    bucket: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    plant: Callable[[Path, Path], None],
) -> None:
    """A link that waits where a download is to be resumed is not written to, and the download succeeds."""
    data = os.urandom(MIN_REQUEST + 1000)
    fs.pipe_file(f"{bucket}/x", data)
    names: list[str] = []

    def noted(path: str, mode: int) -> int:
        names.append(path)
        return upload_journal.open_owned(path, mode)

    monkeypatch.setattr(resumable_download, "open_owned", noted)
    target, victim = tmp_path / "target", tmp_path / "victim"
    fs.get_file(f"{bucket}/x", str(target), resumable=True)
    assert target.read_bytes() == data
    target.unlink()
    victim.write_text("mine")
    plant(Path(names[0]), victim)
    fs.get_file(f"{bucket}/x", str(target), resumable=True)
    assert names[1:] == names[:1]
    assert target.read_bytes() == data
    assert victim.read_text() == "mine"


def test_files_of_other_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that another user has put there is not taken for one's own."""
    (tmp_path / "x").write_text("theirs")
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(PermissionError):
        upload_journal.open_owned(tmp_path / "x", 0o600)
    assert (tmp_path / "x").read_text() == "theirs"


# -- keys --------------------------------------------------------------------------------------------------------------


def test_folder_with_keys_that_lead_out_of_it(tmp_path: Path) -> None:
    """A sharded checkpoint with keys that lead upwards is not copied to this machine."""
    memory = fsspec.filesystem("memory")
    folder = f"/{tmp_path.name}/run"
    for name in (".metadata", "__0_0.distcp", "../../outside.distcp"):
        memory.store[f"{folder}/{name}"] = MemoryFile(memory, f"{folder}/{name}", b"data")
    target = tmp_path / "a" / "b" / "run"
    with pytest.raises(CheckpointPathError, match="outside"):
        copy(f"memory:/{folder}", target)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_object_whose_key_leads_upwards(fs: CSXFileSystem, bucket: str, tmp_path: Path) -> None:
    """An object is not fetched to where its own key leads."""
    target = tmp_path / "a" / "run"
    with pytest.raises(ValueError, match="leads out of the target folder"):
        fs.get_file(f"{bucket}/run/../../outside", f"{target}/../../outside")
    assert not (tmp_path / "outside").exists()
    fs.pipe_file(f"{bucket}/run", b"data")
    fs.get_file(f"{bucket}/run", f"{tmp_path}/../{tmp_path.name}/chosen")
    assert (tmp_path / "chosen").read_bytes() == b"data"


# -- what is printed ---------------------------------------------------------------------------------------------------


def test_control_characters_are_not_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What a file or its name says to the terminal is printed as text."""
    path = tmp_path / f"checkpoint_1{ESCAPE}.mdl"
    data = archive(pickled({f"x{ESCAPE}": tensor(), "value": f"\x9b{ESCAPE}"}))
    path.write_bytes(data.replace(b"3\n", b"\x1b\x07"))
    verbs = [["list", str(tmp_path)], ["list", "--latest", str(tmp_path)], ["info", "-l", str(path)]]
    verbs += [["verify", str(path)], ["diff", str(path), str(path)], ["info", str(path), "--json"]]
    verbs += [["info", f"{path}.missing"], ["copy", str(path), str(tmp_path / f"copy{ESCAPE}.mdl")]]
    for verb in verbs:
        main(["checkpoint", *verb])
        printed = capsys.readouterr()
        assert "checkpoint_1" in printed.out + printed.err or verb[0] == "diff", verb
        for text in (printed.out, printed.err):
            assert all(line.isprintable() for line in text.splitlines()), verb


# -- servers -----------------------------------------------------------------------------------------------------------


def client(url: str) -> CSXFileSystem:
    """A filesystem on a server."""
    found = fsspec.filesystem("s3", key="k", secret="s", endpoint_url=url, skip_instance_cache=True)
    assert isinstance(found, CSXFileSystem)
    return found


def test_parts_without_end() -> None:
    """A server that always reports more parts is not asked endlessly."""
    body = b"<ListPartsResult><IsTruncated>true</IsTruncated><NextPartNumberMarker>1</NextPartNumberMarker>"
    body += b"<Part><PartNumber>1</PartNumber><Size>5</Size><ETag>x</ETag>"
    body += b"<LastModified>2020-01-01T00:00:00Z</LastModified></Part></ListPartsResult>"
    with answering(200, body) as url:
        begun = datetime(2020, 1, 1, tzinfo=timezone.utc)
        found = s3._upload(client(url), "bucket", {"Key": "x", "UploadId": "id", "Initiated": begun})
    assert found is not None
    assert found.size == 10


def test_entities_that_grow() -> None:
    """A listing whose entities stand for gigabytes is an error, and takes no memory."""
    entities = b'<!ENTITY a0 "aaaaaaaaaa">' + b"".join(
        b'<!ENTITY a%d "%s">' % (number, b"&a%d;" % (number - 1) * 10) for number in range(1, 10)
    )
    body = b"<!DOCTYPE x [" + entities + b"]><ListBucketResult><Name>&a9;</Name></ListBucketResult>"
    with answering(200, body) as url, little_memory(), pytest.raises(OSError, match=r"."):
        client(url).ls("bucket")
