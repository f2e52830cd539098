"""Appends, copies and new metadata keep the attributes of an object that the call does not set."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

import fsspec
import pytest
from conftest import recorded_requests
from proxy import Fault, FaultProxy, error_answer, through
from s3fs.utils import FileExpired
from thinning import thinned

from fsspec_csx.errors import ObjectChangedError, ObjectNotFoundError, RefusedError
from fsspec_csx.s3 import appending, server_copy
from fsspec_csx.s3.filesystem import CSXFileSystem
from fsspec_csx.testing import LocalS3

MIB = 2**20
PART = 5 * MIB
SMALL, LARGE = os.urandom(1000), os.urandom(2 * PART + 1234)

NAMED: dict[str, Any] = {
    "CacheControl": "max-age=60",
    "ContentDisposition": 'attachment; filename="x.csv"',
    "ContentEncoding": "gzip",
    "ContentLanguage": "de",
    "ContentType": "text/csv",
    "Expires": datetime(2030, 1, 2, 3, 4, 5, tzinfo=timezone.utc),
    "Metadata": {"of": "a run", "step": "100"},
    "StorageClass": "STANDARD_IA",
}
TAGS = {"team": "vision + speech", "cost": "a=b"}
TAGGING = "team=vision+%2B+speech&cost=a%3Db"


@pytest.fixture(params=thinned(["server", "moto"], "server"))
def stored(request: pytest.FixtureRequest) -> tuple[CSXFileSystem, str]:
    """A filesystem on the real server and one on moto, each with an empty bucket."""
    if request.param == "server":
        return request.getfixturevalue("fs"), request.getfixturevalue("bucket")
    options = {"endpoint_url": request.getfixturevalue("moto"), "key": "k", "secret": "s"}
    made = fsspec.filesystem("s3", **options, use_listings_cache=False, client_kwargs={"region_name": "us-east-1"})
    assert isinstance(made, CSXFileSystem)
    name = request.getfixturevalue("new_bucket")
    made.mkdir(name)
    return made, name


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has more than one part of the least size is copied in parts."""
    monkeypatch.setattr(server_copy, "_COPIED_WHOLE", PART)


def head_of(fs: CSXFileSystem, path: str) -> dict[str, Any]:
    """What the server says of an object."""
    bucket, _, key = path.partition("/")
    return dict(fs.call_s3("head_object", Bucket=bucket, Key=key))


def make(fs: CSXFileSystem, path: str, data: bytes, **more: Any) -> None:
    """Make an object that has something of each kind."""
    fs.pipe_file(path, data, chunksize=PART, Tagging=TAGGING, **{**NAMED, **more})
    assert fs.get_tags(path) == TAGS


def append(fs: CSXFileSystem, path: str) -> str:
    """Add a byte."""
    with fs.open(path, "ab", block_size=PART) as file:
        file.write(b"1")
    return path


def copy(**options: Any) -> Callable[[CSXFileSystem, str], str]:
    """What copies an object to another name, and returns that."""

    def copied(fs: CSXFileSystem, path: str) -> str:
        fs.cp_file(path, f"{path}.copy", **options)
        return f"{path}.copy"

    return copied


def move(fs: CSXFileSystem, path: str) -> str:
    """Give an object another name."""
    fs.mv(path, f"{path}.moved")
    return f"{path}.moved"


def set_field(fs: CSXFileSystem, path: str) -> str:
    """Change one field of the metadata, to what it was."""
    fs.setxattr(path, of="a run")
    return path


WAYS = {
    "append": append,
    "copy": copy(),
    "copy that keeps the ETag": copy(preserve_etag=True),
    "move": move,
    "setxattr": set_field,
}


@pytest.mark.parametrize("data", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("way", WAYS)
def test_what_is_not_named_stays(stored: tuple[CSXFileSystem, str], way: str, data: bytes) -> None:
    """Headers, metadata, tags and the storage class are those of the source."""
    fs, bucket = stored
    make(fs, f"{bucket}/x", data)
    before = fs.info(f"{bucket}/x")
    path = WAYS[way](fs, f"{bucket}/x")
    head = head_of(fs, path)
    assert {name: head.get(name) for name in NAMED} == NAMED
    assert fs.get_tags(path) == TAGS
    assert fs.cat_file(path) == data + b"1" * (way == "append")
    if "ETag" in way and (data is SMALL or fs.key == "k"):  # the real server's parts have ETags of chunks
        assert fs.info(path)["ETag"] == before["ETag"]
    assert fs.list_multipart_uploads(bucket) == []


@pytest.mark.parametrize(
    "data", [pytest.param(SMALL, id="small"), pytest.param(LARGE, id="large", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("way", ["append", "copy", "setxattr"])
@pytest.mark.parametrize(
    ("name", "value"), [("ContentType", "text/plain"), ("CacheControl", "no-store"), ("Metadata", {"only": "this"})]
)
def test_what_is_named_wins(fs: CSXFileSystem, bucket: str, way: str, data: bytes, name: str, value: Any) -> None:
    """A header that the call names is as it says, and the others stay."""
    path = f"{bucket}/x"
    make(fs, path, data)
    if way == "append":
        with fs.open(path, "ab", block_size=PART, **{name: value}) as file:
            file.write(b"1")
    elif way == "copy":
        fs.cp_file(path, f"{path}.copy", **{name: value})
        path = f"{path}.copy"
    else:
        fs.setxattr(path, copy_kwargs={name: value})
    head = head_of(fs, path)
    assert {each: head.get(each) for each in NAMED} == {**NAMED, name: value}
    assert fs.get_tags(path) == TAGS


@pytest.mark.parametrize("data", [SMALL, LARGE], ids=["small", "large"])
def test_setxattr(fs: CSXFileSystem, bucket: str, data: bytes) -> None:
    """Fields are set and removed by name, whatever their case; the others are not renamed."""
    path = f"s3://{bucket}/x"
    fs.pipe_file(path, data, chunksize=PART, Metadata={"first_one": "1", "second-one": "2", "third": "3"})
    fs.setxattr(path, second_one="zwei", Third=None, new_one="4")
    assert head_of(fs, f"{bucket}/x")["Metadata"] == {"first_one": "1", "second-one": "zwei", "new-one": "4"}
    assert fs.getxattr(path, "second_one") == "zwei"
    assert fs.getxattr(path, "third") is None
    assert fs.cat_file(path) == data


KMS = {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": "arn:aws:kms:us-east-1:123456789012:key/abc"}


@pytest.fixture
def encrypted(moto: str, new_bucket: str) -> CSXFileSystem:
    """A filesystem on moto, which knows encryption, with a bucket."""
    region = {"region_name": "us-east-1"}
    fs = fsspec.filesystem("s3", endpoint_url=moto, key="k", secret="s", client_kwargs=region, use_listings_cache=False)
    fs.mkdir(new_bucket)
    assert isinstance(fs, CSXFileSystem)
    return fs


@pytest.mark.parametrize("data", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("way", ["append", "setxattr"])
def test_encryption_stays(encrypted: CSXFileSystem, new_bucket: str, way: str, data: bytes) -> None:
    """A new state of an object is encrypted by the key of the former one."""
    encrypted.pipe_file(f"{new_bucket}/x", data, chunksize=PART, **KMS)
    WAYS[way](encrypted, f"{new_bucket}/x")
    head = head_of(encrypted, f"{new_bucket}/x")
    assert {name: head.get(name) for name in KMS} == KMS


@pytest.mark.parametrize("way", ["append", "setxattr"])
def test_encryption_of_the_filesystem_wins(encrypted: CSXFileSystem, moto: str, new_bucket: str, way: str) -> None:
    """What the filesystem says of encryption holds for each new state, as a whole."""
    encrypted.pipe_file(f"{new_bucket}/x", SMALL, **KMS)
    own = {**encrypted.storage_options, "s3_additional_kwargs": {"ServerSideEncryption": "AES256"}}
    WAYS[way](fsspec.filesystem("s3", **own), f"{new_bucket}/x")
    head = head_of(encrypted, f"{new_bucket}/x")
    assert (head["ServerSideEncryption"], head.get("SSEKMSKeyId")) == ("AES256", None)


@pytest.mark.parametrize("way", ["append", "copy", "setxattr"])
def test_customer_keys(server: LocalS3, bucket: str, way: str) -> None:
    """What is encrypted by a key of the user's own is so afterwards, and the source is read by that key."""
    key = {"SSECustomerAlgorithm": "AES256", "SSECustomerKey": os.urandom(32).hex()[:32]}
    fs = fsspec.filesystem("s3", **server.storage_options(), s3_additional_kwargs=key, skip_instance_cache=True)
    fs.pipe_file(f"{bucket}/x", SMALL)
    path = WAYS[way](fs, f"{bucket}/x")
    assert fs.cat_file(path) == SMALL + b"1" * (way == "append")
    plain = fsspec.filesystem("s3", **server.storage_options(), use_listings_cache=False)
    with pytest.raises(OSError, match=r"(?i)encrypt|key|bad request"):
        plain.cat_file(path)


# -- what changes meanwhile --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", ["replaced", "removed"])
@pytest.mark.parametrize(
    "way",
    ["copy in parts", "copy that keeps the ETag", "copy with another type", "merge", "setxattr", "setxattr in parts"],
)
def test_source_that_changes(
    server: LocalS3, fs: CSXFileSystem, bucket: str, proxy: FaultProxy, way: str, change: str
) -> None:
    """It is a clear error; the target is as it was, and no upload is left."""
    source, target = f"{bucket}/x", f"{bucket}/target"
    fs.pipe_file(source, SMALL if way in ("setxattr", "copy with another type") else LARGE, chunksize=PART)
    fs.pipe_file(target, b"old")

    def interfere() -> None:
        if change == "replaced":
            fs.pipe_file(source, b"other")
        else:
            fs.rm_file(source)

    proxy.faults = [Fault("PUT", before=interfere)]
    asked = through(proxy, server, max_concurrency=1)
    with pytest.raises((ObjectChangedError, ObjectNotFoundError), match=f"s3://{source}"):
        if way == "merge":
            asked.merge(target, [source, source])
        elif way.startswith("setxattr"):
            asked.setxattr(source, a="b")
        else:
            options = {"ContentType": "text/csv"} if "type" in way else {}
            asked.cp_file(source, target, preserve_etag="ETag" in way, **options)
    assert proxy.faults[0].done == 1
    assert fs.cat_file(target) == b"old"
    assert fs.exists(source) == (change == "replaced")
    assert change == "removed" or fs.cat_file(source) == b"other"
    assert fs.list_multipart_uploads(bucket) == []


def test_source_of_a_copy_through_memory(server: LocalS3, fs: CSXFileSystem, bucket: str, proxy: FaultProxy) -> None:
    """An object of equal size that replaces the source meanwhile does not get the attributes of the former."""
    source, target = f"{bucket}/x", f"{bucket}/target"
    fs.pipe_file(source, SMALL, ContentType="text/csv")
    fs.pipe_file(target, b"old")
    proxy.faults = [Fault("GET", before=lambda: fs.pipe_file(source, bytes(len(SMALL))))]
    asked = through(proxy, server)
    with pytest.raises(FileExpired):
        asked.take_file(asked, source, target)
    assert fs.cat_file(target) == b"old"


@pytest.mark.parametrize("data", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("change", ["replaced", "removed", "appended to"])
def test_append_to_what_changes(fs: CSXFileSystem, bucket: str, data: bytes, change: str) -> None:
    """What another program wrote between the opening and the closing stays, and closing is an error."""
    path = f"{bucket}/x"
    fs.pipe_file(path, data, chunksize=PART)
    file = fs.open(path, "ab", block_size=PART)
    file.write(b"mine")
    if change == "removed":
        fs.rm_file(path)
    else:
        fs.pipe_file(path, (data if change == "appended to" else b"") + b"theirs", chunksize=PART)
    with pytest.raises((ObjectChangedError, ObjectNotFoundError), match=f"s3://{path}"):
        file.close()
    assert fs.exists(path) == (change != "removed")
    assert change == "removed" or fs.cat_file(path).endswith(b"theirs")
    assert fs.list_multipart_uploads(bucket) == []


def test_append_to_what_is_made_meanwhile(fs: CSXFileSystem, bucket: str) -> None:
    """An object that was not there when the file was opened is not overwritten."""
    with pytest.raises(FileExistsError), fs.open(f"{bucket}/x", "ab") as file:
        file.write(b"mine")
        fs.pipe_file(f"{bucket}/x", b"theirs")
    assert fs.cat_file(f"{bucket}/x") == b"theirs"


def test_append_after_a_listing(server: LocalS3, fs: CSXFileSystem, bucket: str) -> None:
    """What another program wrote after the folder was listed is appended to."""
    listing = fsspec.filesystem("s3", **server.storage_options(), use_listings_cache=True, skip_instance_cache=True)
    fs.pipe_file(f"{bucket}/d/other", b"1")
    listing.ls(f"{bucket}/d")
    fs.pipe_file(f"{bucket}/d/log", b"precious\n")
    with listing.open(f"{bucket}/d/log", "ab") as file:
        file.write(b"more\n")
    listing.ls(f"{bucket}/d")
    fs.pipe_file(f"{bucket}/d/log", LARGE, chunksize=PART)
    with listing.open(f"{bucket}/d/log", "ab") as file:
        file.write(b"more\n")
    assert fs.cat_file(f"{bucket}/d/log") == LARGE + b"more\n"


def test_append_of_nothing(fs: CSXFileSystem, bucket: str) -> None:
    """A file that is opened and closed writes nothing over what is there, and makes what is not."""
    fs.pipe_file(f"{bucket}/x", SMALL)
    with recorded_requests() as operations:
        fs.open(f"{bucket}/x", "ab").close()
    assert "PutObject" not in operations
    fs.open(f"{bucket}/y", "ab").close()
    assert fs.cat_file(f"{bucket}/y") == b""


@pytest.mark.parametrize("data", [b"", SMALL, LARGE], ids=["new", "small", "large"])
@pytest.mark.parametrize("changed", [False, True])
def test_append_where_no_condition_is_taken(
    server: LocalS3, fs: CSXFileSystem, bucket: str, proxy: FaultProxy, data: bytes, changed: bool
) -> None:
    """On a store that refuses conditions of writes, the object is looked at once more before it is replaced."""
    path = f"{bucket}/x"
    if data:
        fs.pipe_file(path, data, chunksize=PART)
    conditional = Fault(
        when=lambda request: (
            {"if-match", "if-none-match"} & request.headers.keys() != set() and request.method in ("PUT", "POST")
        ),
        times=99,
        answer=error_answer(501, "NotImplemented"),
    )
    proxy.faults = [conditional]
    file = through(proxy, server).open(path, "ab", block_size=PART)
    file.write(b"mine")
    if changed:
        fs.pipe_file(path, b"theirs")
        with pytest.raises(ObjectChangedError):
            file.close()
    else:
        file.close()
    assert conditional.done >= 1 or (changed and data is LARGE)  # its parts are not copied
    assert fs.cat_file(path) == (b"theirs" if changed else data + b"mine")


@pytest.mark.parametrize("way", ["append", "copy", "setxattr"])
def test_customer_keys_of_parts(server: LocalS3, bucket: str, proxy: FaultProxy, way: str) -> None:
    """The key is sent with each part that is copied, for both sides; that this server takes none leaves no upload."""
    key = {"SSECustomerAlgorithm": "AES256", "SSECustomerKey": os.urandom(32).hex()[:32]}
    fs = through(proxy, server, s3_additional_kwargs=key)
    fs.pipe_file(f"{bucket}/x", LARGE, chunksize=PART)
    with pytest.raises(RefusedError, match="UploadPartCopy"):
        WAYS[way](fs, f"{bucket}/x")
    name = "server-side-encryption-customer-algorithm"
    copied = [each for each in proxy.made("PUT", "partNumber=") if "x-amz-copy-source" in each.headers]
    assert copied
    for each in copied:
        assert each.headers[f"x-amz-{name}"] == each.headers[f"x-amz-copy-source-{name}"] == "AES256"
    assert fs.cat_file(f"{bucket}/x") == LARGE
    assert fs.list_multipart_uploads(bucket) == []


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, PART - 1, PART, 3 * PART, 3 * PART + 17])
def test_append_in_parts_of_one_size(
    server: LocalS3, fs: CSXFileSystem, bucket: str, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """The server copies what fills a part; the new object has parts of one size, but for the last."""
    data = os.urandom(size)
    fs.pipe_file(f"{bucket}/x", data)
    with fs.open(f"{bucket}/x", "ab", block_size=PART) as file:
        file.write(LARGE)
    assert fs.cat_file(f"{bucket}/x") == data + LARGE
    count = -(-(size + len(LARGE)) // PART)
    lengths = [
        fs.call_s3("head_object", Bucket=bucket, Key="x", PartNumber=number)["ContentLength"]
        for number in range(1, count + 1)
    ]
    assert lengths == [*[PART] * (count - 1), size + len(LARGE) - (count - 1) * PART]


def test_many_parts_of_what_is_appended_to(fs: CSXFileSystem, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is there takes few of the parts that an object may have."""
    monkeypatch.setattr(appending, "_COPIED_PARTS", 2)
    fs.pipe_file(f"{bucket}/x", LARGE)
    with recorded_requests() as operations, fs.open(f"{bucket}/x", "ab", block_size=PART) as file:
        file.write(b"1")
    assert operations.count("UploadPartCopy") <= 2
    assert fs.cat_file(f"{bucket}/x") == LARGE + b"1"


# -- tags that cannot be had -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("code", "status"), [("NotImplemented", 501), ("AccessDenied", 403)])
@pytest.mark.parametrize("way", ["append", "copy"])
def test_without_tags(
    server: LocalS3,
    bucket: str,
    proxy: FaultProxy,
    caplog: pytest.LogCaptureFixture,
    way: str,
    code: str,
    status: int,
) -> None:
    """A store that has no tags, or does not show them, is no hindrance; the latter is logged."""
    fs = through(proxy, server)
    fs.pipe_file(f"{bucket}/x", LARGE)
    proxy.faults = [Fault("GET", query="tagging", times=9, answer=error_answer(status, code))]
    assert fs.exists(WAYS[way](fs, f"{bucket}/x"))
    assert proxy.faults[0].done == 1
    assert ("s3:GetObjectTagging" in caplog.text) == (code == "AccessDenied")
