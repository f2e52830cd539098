"""Errors that are an OSError have the errno of the system."""

from __future__ import annotations

import copy
import errno
import inspect
import pickle

import fsspec
import pytest
from answers import answering, s3_error

from fsspec_csx import errors
from fsspec_csx.s3.filesystem import CSXFileSystem
from fsspec_csx.testing import LocalS3

KINDS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.CSXError)]
# What Python itself raises for these numbers.
NUMBERS: dict[type[OSError], set[int]] = {
    FileNotFoundError: {errno.ENOENT},
    FileExistsError: {errno.EEXIST},
    PermissionError: {errno.EACCES, errno.EPERM},
}


@pytest.mark.parametrize("kind", KINDS)
def test_number_fits_the_builtin(kind: type[errors.CSXError]) -> None:
    """Where a builtin stands for a number, what inherits it has the number; the text stays a sentence."""
    error = kind("What happened.", "What to do.")
    for builtin, numbers in NUMBERS.items():
        if issubclass(kind, builtin):
            assert isinstance(error, OSError)
            assert error.errno in numbers
    assert str(error) == "What happened. What to do."
    assert "What happened. What to do." in repr(error)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if issubclass(kind, OSError)])
@pytest.mark.parametrize("way", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))], ids=["copy", "pickle"])
def test_number_and_name_are_kept(kind: type[errors.CSXError], way: object) -> None:
    """What another process is sent has them too."""
    error = kind("What happened.", "What to do.")
    assert isinstance(error, OSError)
    error.filename = "s3://bucket/key"
    error.mark_maybe_applied("PutObject")
    assert callable(way)
    back = way(error)
    assert (back.errno, back.filename, back.maybe_applied) == (error.errno, "s3://bucket/key", True)
    assert str(back) == str(error)


@pytest.mark.parametrize("code", ["InsufficientStorage", "QuotaExceeded", "XMinioStorageFull"])
def test_full_server(code: str) -> None:
    """A server without room is found by the number by which a full disk is found."""
    with answering(507, s3_error(code)) as url:
        fs = fsspec.filesystem("s3", key="k", secret="s", endpoint_url=url)
        fs.retries = 1
        with pytest.raises(errors.NoSpaceError, match="no space") as caught:
            fs.pipe_file("bucket/key", b"data")
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == "s3://bucket/key"


def test_missing_and_refused(server: LocalS3, fs: CSXFileSystem, bucket: str) -> None:
    """So are a missing object, a missing bucket and a refusal."""
    with pytest.raises(FileNotFoundError) as missing:
        fs.cat_file(f"{bucket}/nothing")
    with pytest.raises(PermissionError) as refused:
        fsspec.filesystem("s3", **server.storage_options("reader")).pipe_file(f"{bucket}/key", b"data")
    assert (missing.value.errno, refused.value.errno) == (errno.ENOENT, errno.EACCES)
