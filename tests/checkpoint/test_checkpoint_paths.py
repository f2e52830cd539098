"""Which paths can name a checkpoint, and the errors for others; names are used unchanged."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from checkpoints import names

from fsspec_csx.checkpoint.api import load, save
from fsspec_csx.doctor.run import parse_url
from fsspec_csx.errors import CheckpointPathError
from fsspec_csx.manage.list import checkpoints
from fsspec_csx.storage.paths import checkpoint_path, redacted

NAMES = [
    "a#b.pt",
    "a?b=c.pt",
    "a b.pt",
    " .pt",
    "a%20b%2Fc.pt",
    "größe ∞ 模型.pt",
    "a*.pt",
    "a[1].pt",
    "[!a].pt",
    "{a,b}.pt",
    "a&b+c=d@e;f.pt",
    "a:b.pt",
    "~a.pt",
    "$HOME.pt",
    "a'\"b.pt",
    ".hidden",
    "a\nb.pt",
    "n" * 255,
]
BAD_S3 = {
    "{0}://": "lacks the bucket and object path",
    "{0}:///": "lacks the bucket and object path",
    "{0}://bucket": "lacks the object path",
    "{0}://bucket/": "lacks the object path",
    "{0}:///key": "lacks the bucket",
    "{0}:/bucket/key": "'{0}:' must be followed by two slashes, here there is one slash",
    "{0}:bucket/key": "'{0}:' must be followed by two slashes, here there is none",
    "{0}:": "must be followed by two slashes",
    "{0}://bucket/run/": "names a folder",
    "{0}://bucket//": "names a folder",
    "{0}://bucket/a::b": "'::' in its object path",
    "simplecache::{0}://bucket": "lacks the object path",
    "simplecache::{0}://bucket/run/": "names a folder",
    "{0}://arn:aws:s3:us-west-2:123456789012:accesspoint/name": "lacks the object path",
}
BAD = {
    "": "is empty",
    "run/": "names a folder",
    "/": "names a folder",
    "memory://run/": "names a folder",
    "memory:/run/x.pt": "pathlib.Path makes one slash of the two",
    "memry://x.pt": "no protocol 'memry'",
    "S3://bucket/key": "Write 's3'",
    "simplecache::memry://x.pt": "no protocol 'memry'",
    "a/b://c": "no protocol 'a/b'",
}
GOOD = [
    "x.pt",
    "./s3:/x.pt",
    "/s3://x.pt",
    "/a::b.pt",
    "file:///a/x.pt",
    "s3://bucket/key",
    "s3a://bucket/a b#c?d%20é",
    "csx://bucket//key",
    "s3://arn:aws:s3:us-west-2:123456789012:accesspoint/name/key",
    "s3://arn:aws:s3-outposts:us-west-2:123456789012:outpost/op-1/accesspoint/name/key",
    "simplecache::s3://bucket/key",
    "zip://x.pt::s3://bucket/all.zip",
    "dir://x.pt::s3://bucket/run/",
    "dir://x.pt::s3://bucket",
]


@pytest.mark.parametrize("name", NAMES)
def test_names_are_taken_as_they_are(root: str, name: str) -> None:
    """Every character of a name is part of it: nothing is decoded, expanded or cut off."""
    for number in range(2):
        save([number], f"{root}/{name}")
        assert load(f"{root}/{name}") == [number]
    assert names(root) == [name]


@pytest.mark.parametrize("name", NAMES)
def test_folders_are_taken_as_they_are(root: str, name: str) -> None:
    """A folder's name too."""
    save([1], f"{root}/{name}/x.pt")
    assert load(f"{root}/{name}/x.pt") == [1]
    assert names(root) == [name]


@pytest.mark.parametrize("root", ["local", "memory"], indirect=True)
def test_backslash(root: str) -> None:
    """So is a backslash (the embedded S3 server makes a slash of it; S3 does not)."""
    save([1], f"{root}/a\\b.pt")
    assert load(f"{root}/a\\b.pt") == [1]
    assert names(root) == ["a\\b.pt"]


def test_patterns_match_nothing_else(root: str) -> None:
    """A name that would be a pattern reads neither its matches nor replaces them."""
    save([1], f"{root}/ab.pt")
    with pytest.raises(FileNotFoundError):
        load(f"{root}/a*.pt")
    save([2], f"{root}/a*.pt")
    assert load(f"{root}/ab.pt") == [1]
    assert load(f"{root}/a*.pt") == [2]


@pytest.mark.parametrize("name", NAMES)
def test_path_objects(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path object names a local file, a relative one too."""
    monkeypatch.chdir(tmp_path)
    save([1], Path(name))
    assert load(tmp_path / name) == [1]


def test_relative_str(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative str names a file in the working folder."""
    monkeypatch.chdir(tmp_path)
    save([1], "run/x.pt")
    assert load(tmp_path / "run" / "x.pt") == [1]


def test_home(tmp_path: Path) -> None:
    """A str that begins with ~/ names a file in the home folder, as with fsspec.open."""
    save([1], "~/x.pt")
    assert load(Path(os.environ["HOME"]) / "x.pt") == [1]


@pytest.mark.parametrize("url", BAD_S3)
def test_s3_urls_lack_nothing(url: str) -> None:
    """An S3 URL has bucket and object path, else the error says which is missing."""
    for protocol in ("s3", "s3a", "csx"):
        with pytest.raises(CheckpointPathError) as caught:
            checkpoint_path(url.format(protocol))
        assert BAD_S3[url].format(protocol) in str(caught.value)


@pytest.mark.parametrize("path", BAD)
def test_bad_paths(path: str) -> None:
    """What cannot name a checkpoint is refused with a reason and a remedy."""
    with pytest.raises(CheckpointPathError) as caught:
        checkpoint_path(path)
    assert BAD[path] in str(caught.value)
    assert caught.value.remedy


@pytest.mark.parametrize("path", GOOD)
def test_good_paths(path: str) -> None:
    """What can name a checkpoint is handed on unchanged."""
    assert checkpoint_path(path) == path


@pytest.mark.parametrize("url", ["s3://bucket/key", "memory://run/x.pt"])
def test_urls_squeezed_by_pathlib(url: str) -> None:
    """A URL that went through pathlib.Path is an error that says what happened to it."""
    with pytest.raises(CheckpointPathError, match=r"pathlib\.Path"):
        checkpoint_path(Path(url))


@pytest.mark.parametrize("path", [None, 1, b"x.pt", ["x.pt"], object()], ids=lambda path: type(path).__name__)
def test_other_types(path: Any) -> None:
    """What is no path is a TypeError."""
    with pytest.raises(TypeError, match=r"pathlib\.Path"):
        checkpoint_path(path)


def test_checked_before_anything_else() -> None:
    """Both save and load refuse a path before a filesystem is made of options that it would not take."""
    with pytest.raises(CheckpointPathError):
        save([1], "s3://bucket", storage_options={"key": object()})
    with pytest.raises(CheckpointPathError):
        load("s3://bucket", storage_options={"key": object()})


def test_error_is_a_value_error() -> None:
    """Callers may catch a ValueError."""
    with pytest.raises(ValueError, match="lacks the object path"):
        load("s3://bucket")


def test_passwords_are_not_shown() -> None:
    """The password in a URL is not repeated in messages."""
    assert redacted("sftp://user:secret@host/x.pt") == "sftp://user:***@host/x.pt"
    with pytest.raises(CheckpointPathError) as caught:
        checkpoint_path("sftp://user:secret@host/run/")
    assert "secret" not in str(caught.value)


def test_folders() -> None:
    """A folder of checkpoints may be a bucket, or end in a slash; errors have remedies for folders."""
    for path in ("s3://bucket", "s3://bucket/run/", "simplecache::s3://bucket", "memory://", "/"):
        assert checkpoint_path(path, folder=True) == path
    for wrong, remedy in (
        ("s3://", "Give a bucket, or a folder"),
        ("", "Give a folder"),
        ("no://x", "Check its spelling"),
    ):
        with pytest.raises(CheckpointPathError, match=remedy):
            checkpoint_path(wrong, folder=True)


@pytest.mark.parametrize("name", ["s3", "s3a", "csx"])
def test_local_names_of_protocols(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A relative path may have the name of a protocol; only in a chain it is one."""
    monkeypatch.chdir(tmp_path)
    for folder in (False, True):
        assert checkpoint_path(name, folder=folder) == name
        with pytest.raises(CheckpointPathError, match="lacks the bucket"):
            checkpoint_path(f"simplecache::{name}", folder=folder)
    save([1], f"{name}/checkpoint_1.mdl")
    assert [each.path for each in checkpoints(name)] == [f"{name}/checkpoint_1.mdl"]
    with pytest.raises(CheckpointPathError, match="is not an S3 URL"):
        parse_url(name)
