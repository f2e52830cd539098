"""Text is written as to a local file, including the byte order mark."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import fsspec
import pandas
import pytest

from fsspec_csx.s3.filesystem import CSXFileSystem
from fsspec_csx.testing import LocalS3

ENCODINGS = ["utf-16", "utf-16-le", "utf-32", "utf-32-be", "utf-8-sig", "utf-8", "latin-1", "cp037"]


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("compression", [None, "gzip"])
def test_like_a_local_file(
    environment: LocalS3, fs: CSXFileSystem, bucket: str, tmp_path: Path, encoding: str, compression: str | None
) -> None:
    """Written, created, and added to in each encoding, an object has the bytes that a local file has."""
    local, url = str(tmp_path / "text"), f"s3://{bucket}/text"
    for mode in ("w", "a", "a"):
        with open(local, mode, encoding=encoding) as file, fsspec.open(url, mode, encoding=encoding) as remote:
            assert file.write("ä text\n") == remote.write("ä text\n") == 7
    assert fs.cat_file(url) == Path(local).read_bytes()
    with fs.open(url, encoding=encoding) as file:
        assert file.read() == 3 * "ä text\n"
    with fs.open(f"{url}.gz", "w", encoding=encoding, compression=compression) as file:
        file.write("text")
    with fs.open(f"{url}.gz", "r", encoding=encoding, compression=compression) as file:
        assert file.read() == "text"


@pytest.mark.parametrize("size", [1, 6 * 2**20])
def test_append_adds_no_second_mark(fs: CSXFileSystem, bucket: str, size: int) -> None:
    """What is added to an object, one that the server copies too, begins without a mark; a new object with one."""
    for mode in ("x", "a"):
        with fs.open(f"{bucket}/text", mode, encoding="utf-16") as file:
            file.write(size // 2 * "a" + "b")
    with fs.open(f"{bucket}/text", "a", encoding="utf-16") as file:
        file.write("end")
    data = fs.cat_file(f"{bucket}/text")
    assert data.decode("utf-16") == 2 * (size // 2 * "a" + "b") + "end"
    assert data.count("\ufeff".encode("utf-16-le")) == 1


@pytest.mark.parametrize("wrap", [lambda file: file, io.BufferedWriter])
def test_wrapped_by_hand(fs: CSXFileSystem, bucket: str, wrap: Any) -> None:
    """Whoever puts a text wrapper around the binary file gets the mark; the file stays one that cannot seek."""
    file = fs.open(f"{bucket}/text", "wb")
    with io.TextIOWrapper(wrap(file), encoding="utf-16") as text:
        text.write("ä")
        assert not file.seekable()
        assert not text.seekable()
        with pytest.raises(OSError, match=r"(?:Seek|seekable)"):
            text.seek(0)
    assert fs.cat_file(f"{bucket}/text").decode("utf-16") == "ä"
    assert fs.cat_file(f"{bucket}/text")[:2] in (b"\xff\xfe", b"\xfe\xff")


def test_pandas(environment: LocalS3, bucket: str) -> None:
    """pandas reads back the UTF-16 that it writes."""
    frame = pandas.DataFrame({"a": ["ä", "b"]})
    frame.to_csv(f"s3://{bucket}/table.csv", index=False, encoding="utf-16")
    assert pandas.read_csv(f"s3://{bucket}/table.csv", encoding="utf-16").equals(frame)


def test_mode_by_the_arguments(fs: CSXFileSystem, bucket: str) -> None:
    """Without a mode a file is opened for reading bytes, and with an encoding for reading text."""
    fs.pipe_file(f"{bucket}/text", "ä".encode())
    with fs.open(f"{bucket}/text") as file, fs.open(f"{bucket}/text", encoding="utf-8") as text:
        assert file.read() == "ä".encode()
        assert text.read() == "ä"
