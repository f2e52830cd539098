"""walk: a folder that cannot be listed is never treated as empty."""

from __future__ import annotations

import os
from typing import Any

import fsspec
import pytest
from proxy import Fault, FaultProxy, error_answer

from fsspec_csx.errors import AccessDeniedError, EndpointError, NoCredentialsError
from fsspec_csx.s3.filesystem import CSXFileSystem
from fsspec_csx.testing import LocalS3

TREE = {"a": b"1", "d/b": b"2", "d/e/c": b"3", "f/g": b"4"}


def names(fs: Any, path: str, *args: Any, **kwargs: Any) -> list[tuple[str, list[str], list[str]]]:
    """What walk yields, with paths below the path."""
    return [
        (os.path.relpath(each, path), list(down), list(files)) for each, down, files in fs.walk(path, *args, **kwargs)
    ]


def test_order_and_depth(fs: CSXFileSystem, bucket: str) -> None:
    """As with os.walk, folders come before or after what they contain, and the caller may skip some."""
    fs.pipe({f"{bucket}/{name}": data for name, data in TREE.items()})
    down = [(".", ["d", "f"], ["a"]), ("d", ["e"], ["b"]), ("d/e", [], ["c"]), ("f", [], ["g"])]
    assert names(fs, bucket) == names(fs, bucket, detail=True) == down
    assert names(fs, bucket, topdown=False) == [down[2], down[1], down[3], down[0]]
    assert names(fs, bucket, 1) == down[:1]
    assert names(fs, bucket, maxdepth=2) == [down[0], down[1], down[3]]
    assert names(fs, f"{bucket}/a") == [(".", [], [""])]
    steps = []
    for path, folders, _ in fs.walk(f"s3://{bucket}"):
        steps.append(path)
        folders[:] = [each for each in folders if each != "d"]
    assert steps == [bucket, f"{bucket}/f"]
    for path in ("", "s3://", "*"):
        with pytest.raises(ValueError, match="bucket"):
            list(fs.walk(path))
    ((root, buckets, _),) = fs.walk("/", maxdepth=1)
    assert root == ""
    assert bucket in buckets
    with pytest.raises(ValueError, match="maxdepth"):
        list(fs.walk(bucket, maxdepth=0))


def test_missing_folder_is_empty(fs: CSXFileSystem, bucket: str, new_bucket: str) -> None:
    """As in fsspec, unless all errors are to be raised."""
    for path in (f"{bucket}/missing", new_bucket):
        assert names(fs, path) == [(".", [], [])]
        with pytest.raises(FileNotFoundError):
            list(fs.walk(path, on_error="raise"))


def test_other_errors_are_raised(server: LocalS3, bucket: str, closed_port: int) -> None:
    """Without credentials, a permission or a server, nothing seems to be empty."""
    options = server.storage_options()
    cases: dict[type[Exception], dict[str, Any]] = {
        NoCredentialsError: {"endpoint_url": server.endpoint_url},
        AccessDeniedError: server.storage_options("blind"),
        EndpointError: {**options, "endpoint_url": f"http://127.0.0.1:{closed_port}"},
    }
    for error, given in cases.items():
        with pytest.raises(error):
            list(fsspec.filesystem("s3", **given).walk(bucket))


def test_error_in_a_folder(server: LocalS3, fs: CSXFileSystem, bucket: str, proxy: FaultProxy) -> None:
    """An error below the first folder is raised, or given to the function; the other folders are walked."""
    fs.pipe({f"{bucket}/{name}": data for name, data in TREE.items()})
    options = {**server.storage_options(), "endpoint_url": proxy.url, "use_listings_cache": False}
    walker = fsspec.filesystem("s3", **options)
    answer = error_answer(403, "AccessDenied")
    for on_error in ("omit", "raise"):
        proxy.faults = [Fault("GET", query="prefix=d%2F&", answer=answer)]
        with pytest.raises(AccessDeniedError):
            list(walker.walk(bucket, on_error=on_error))
    proxy.faults, errors = [Fault("GET", query="prefix=d%2F&", answer=answer)], []
    assert names(walker, bucket, on_error=errors.append) == [(".", ["d", "f"], ["a"]), ("d", [], []), ("f", [], ["g"])]
    assert [type(each) for each in errors] == [AccessDeniedError]
