"""Faults between a client and the server are repaired or reported; they never change data."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest
from conftest import TENANT_BUCKET, recorded_requests
from ctrl_c import ctrl_c
from forked import python
from fsspec.callbacks import Callback
from proxy import Fault, FaultProxy, Request, error_answer, fault_proxy, through
from s3fs.utils import FileExpired
from stores import uploads_below
from thinning import thinned

from fsspec_csx.errors import ChecksumError, EndpointError, ExpiredCredentialsError, ObjectExistsError
from fsspec_csx.s3.filesystem import CSXFileSystem
from fsspec_csx.s3.transport.range_planning import MIN_REQUEST
from fsspec_csx.testing import LocalS3

MIB = 2**20
BUCKET = "faults"
BLOCK = 5 * MIB
DATA = os.urandom(3 * MIN_REQUEST + 4321)
OTHER = os.urandom(2 * MIN_REQUEST + 1234)
PATH = "faults/object"

Read = Callable[[CSXFileSystem, str, Path], bytes]
Write = Callable[[CSXFileSystem, str, bytes, Path], object]


def read_file(fs: CSXFileSystem, path: str, folder: Path) -> bytes:
    """Read through a file, straight into memory."""
    with fs.open(path, "rb") as file:
        buffer = bytearray(file.size)
        assert file.readinto(buffer) == len(buffer)
    return bytes(buffer)


def get_file(fs: CSXFileSystem, path: str, folder: Path) -> bytes:
    """Read by way of a local file."""
    (folder / "local").write_bytes(b"old")
    fs.get_file(path, str(folder / "local"))
    return (folder / "local").read_bytes()


READS: dict[str, Read] = {
    "open": lambda fs, path, folder: fs.open(path, "rb").read(),
    "readinto": read_file,
    "cat_file": lambda fs, path, folder: fs.cat_file(path),
    "cat_range": lambda fs, path, folder: fs.cat_file(path, start=0, end=10**9),
    "cat_ranges": lambda fs, path, folder: b"".join(
        fs.cat_ranges([path] * 2, [0, MIN_REQUEST], [MIN_REQUEST, None], on_error="raise")
    ),
    "get_file": get_file,
}
WHOLE = {name: READS[name] for name in ("cat_file", "get_file")}


def read_objects(fs: CSXFileSystem, path: str, folder: Path) -> bytes:
    """Read into memory, without a file."""
    memory = bytearray(len(DATA))
    assert fs.readinto_objects([(path, 0, memoryview(memory), len(memory))]) == [len(memory)]
    return bytes(memory)


def write_file(fs: CSXFileSystem, path: str, data: bytes, folder: Path) -> None:
    """Write through a file."""
    with fs.open(path, "wb", block_size=BLOCK) as file:
        file.write(data)


def put_file(fs: CSXFileSystem, path: str, data: bytes, folder: Path) -> None:
    """Write by way of a local file."""
    (folder / "local").write_bytes(data)
    fs.put_file(str(folder / "local"), path, chunksize=BLOCK)


WRITES: dict[str, Write] = {
    "open": write_file,
    "pipe_file": lambda fs, path, data, folder: fs.pipe_file(path, data, chunksize=BLOCK),
    "put_file": put_file,
}
SMALL, LARGE = DATA[:1000], DATA[: BLOCK + 1000]


@pytest.fixture
def folder() -> str:
    """A folder of the test's own, in a bucket that they share: the first write of a bucket takes the server long."""
    return f"{BUCKET}/{uuid.uuid4().hex[:12]}"


@pytest.fixture(scope="module", autouse=True)
def objects(server: LocalS3) -> None:
    """An object of several parts."""
    fsspec.filesystem("s3", **server.storage_options()).pipe_file(PATH, DATA)


@pytest.fixture(scope="module")
def proxy(server: LocalS3) -> Iterator[FaultProxy]:
    """A proxy before the server."""
    with fault_proxy(server.endpoint_url) as running:
        yield running


@pytest.fixture(scope="module")
def far(server: LocalS3, proxy: FaultProxy) -> CSXFileSystem:
    """A filesystem behind the proxy."""
    return through(proxy, server)


@pytest.fixture(scope="module")
def hasty(server: LocalS3, proxy: FaultProxy) -> CSXFileSystem:
    """One that soon notices when nothing comes any more; on a busy machine it makes requests again without need."""
    return through(
        proxy, server, config_kwargs={"read_timeout": 1, "connect_timeout": 1, "retries": {"total_max_attempts": 20}}
    )


@pytest.fixture(scope="module")
def impatient(server: LocalS3, proxy: FaultProxy) -> CSXFileSystem:
    """A filesystem behind the proxy, which makes each request at most twice."""
    fs = through(proxy, server, config_kwargs={"retries": {"total_max_attempts": 2}})
    fs.retries = 1
    return fs


@pytest.fixture(scope="module")
def own_loop(server: LocalS3) -> Iterator[CSXFileSystem]:
    """A filesystem whose event loop serves no other."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield fsspec.filesystem("s3", **server.storage_options(), loop=loop)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture(autouse=True)
def unharmed(proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test begins without faults and without recorded requests; botocore's random waits are short."""
    proxy.faults, proxy.requests = [], []
    monkeypatch.setattr("botocore.retryhandler.random.random", lambda: 0.01)


# -- reads that break off, or bring something else --------------------------------------------------------------------


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("after", thinned([0, 1, MIB + 7], MIB + 7))
def test_cut_read_goes_on_where_it_was_cut(
    far: CSXFileSystem, proxy: FaultProxy, tmp_path: Path, read: str, after: int
) -> None:
    """Each of the three times, exactly the missing bytes are requested again."""
    proxy.faults = [Fault("GET", times=3, cut_down=after)]
    assert READS[read](far, PATH, tmp_path) == DATA
    assert proxy.faults[0].times == 0
    gets = proxy.made("GET")
    asked = [one.span for one in gets]
    for one in gets[:3]:
        first, end = one.span or (0, MIN_REQUEST)
        missing = (first + one.sent, end) if one.sent else one.span
        assert one.sent == end - first or asked.count(missing) == 1 or (not one.sent and asked.count(missing) > 1)


@pytest.mark.parametrize("read", [*WHOLE.values(), read_objects])
def test_other_ranges_do_not_wait_for_the_first(
    far: CSXFileSystem, proxy: FaultProxy, tmp_path: Path, read: Read
) -> None:
    """The other ranges of an object are requested when the first response has begun, which gives the size."""
    others, came = threading.Event(), list[bool]()
    proxy.faults = [
        Fault("GET", begun=lambda: came.append(others.wait(20))),
        Fault("GET", times=100, before=others.set),
    ]
    assert read(far, PATH, tmp_path) == DATA
    assert came == [True]
    first, *ranges = sorted(one.span or (0, MIN_REQUEST) for one in proxy.made("GET"))
    assert [first[0], *(end for _, end in (first, *ranges))] == [*(start for start, _ in (first, *ranges)), len(DATA)]


@pytest.mark.parametrize("read", [*WHOLE.values(), read_objects])
def test_error_of_another_range_ends_the_first(
    far: CSXFileSystem, proxy: FaultProxy, tmp_path: Path, read: Read
) -> None:
    """A range that is refused ends the read, though the first bytes do not arrive."""
    proxy.faults = [Fault("GET", stall_down=MIB), Fault("GET", times=100, answer=error_answer(403, "AccessDenied"))]
    began = time.monotonic()
    with pytest.raises(PermissionError):
        read(far, PATH, tmp_path)
    assert time.monotonic() - began < 25


WRONG = {
    "shorter": Fault("GET", shorten=10),
    "elsewhere": Fault("GET", headers={"Content-Range": f"bytes 10-{len(DATA)}/{len(DATA)}"}, status=206),
    "nowhere": Fault("GET", headers={"Content-Range": "nonsense"}, status=206),
    "whole": Fault("GET", when=lambda request: "range" in request.headers, status=200, headers={"Content-Range": ""}),
}


@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.parametrize("read", thinned(["readinto", "cat_file", "cat_range", "get_file"], "cat_file"))
def test_wrong_answer_is_no_data(
    impatient: CSXFileSystem, proxy: FaultProxy, tmp_path: Path, read: str, kind: str
) -> None:
    """A response with other bytes than requested is requested again, and then is an error."""
    fault = WRONG[kind]
    fault.times = 1
    proxy.faults = [fault]
    assert READS[read](impatient, PATH, tmp_path) == DATA
    assert fault.times == 0
    fault.times = 1000
    with pytest.raises(OSError, match=r"closed the connection|checksum"):
        READS[read](impatient, PATH, tmp_path)
    if read == "get_file":
        assert (tmp_path / "local").read_bytes() == b"old"
        assert sorted(os.listdir(tmp_path)) == ["home", "local"]


FAILING = """
import fsspec, gc, sys

def read():
    try:
        fs.cat_file(sys.argv[1])
    except OSError as error:
        last = error  # a cycle, through its traceback
        print(last)

fs = fsspec.filesystem("s3", config_kwargs={"retries": {"total_max_attempts": 2}})
fs.retries = 1
read()
gc.collect()
"""


@pytest.mark.slow
def test_memory_of_a_failed_read(environment: LocalS3, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """The collector frees it without an error, which Python 3.13 would print, and older ones in development mode."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
    begin = "bytes=0-"
    fault = Fault("GET", times=1000, when=lambda request: begin not in request.headers.get("range", begin))
    fault.status, fault.headers = 206, {"Content-Range": "nonsense"}
    proxy.faults = [fault]
    command = [sys.executable, "-X", "dev", "-W", "ignore", "-c", FAILING, PATH]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
    assert "closed the connection" in done.stdout
    assert "BufferError" not in done.stderr


@pytest.mark.parametrize("read", thinned(WHOLE, "cat_file"))
@pytest.mark.parametrize("other", [SMALL, OTHER, b"", DATA + OTHER])
@pytest.mark.parametrize("moment", ["between", "within"])
def test_replaced_while_it_is_read(
    fs: CSXFileSystem,
    far: CSXFileSystem,
    proxy: FaultProxy,
    folder: str,
    tmp_path: Path,
    read: str,
    other: bytes,
    moment: str,
) -> None:
    """A whole read of an object that is replaced meanwhile is of the new one."""
    path = f"{folder}/object"
    fs.pipe_file(path, DATA)
    if moment == "between":
        proxy.faults = [Fault("GET", skip=1, before=lambda: fs.pipe_file(path, other))]
    else:
        proxy.faults = [Fault("GET", cut_down=3 * MIB, after=lambda: fs.pipe_file(path, other))]
    callback = Callback()
    if read == "get_file":
        far.get_file(path, str(tmp_path / "local"), callback=callback)
        assert (tmp_path / "local").read_bytes() == other
        assert (callback.size, callback.value) == (len(other), len(other))
    else:
        assert far.cat_file(path) == other
    assert proxy.faults[0].times == 0


def test_range_of_an_object_that_is_replaced(
    fs: CSXFileSystem, far: CSXFileSystem, proxy: FaultProxy, folder: str
) -> None:
    """An interrupted range, whose rest would come from another object, is read again if that object has it."""
    fs.pipe_file(f"{folder}/object", SMALL)
    proxy.faults = [Fault("GET", cut_down=300, after=lambda: fs.pipe_file(f"{folder}/object", OTHER))]
    assert far.cat_file(f"{folder}/object", start=10, end=5000) == OTHER[10:5000]


@pytest.mark.slow
@pytest.mark.parametrize("read", WHOLE)
def test_replaced_again_and_again(
    fs: CSXFileSystem, far: CSXFileSystem, proxy: FaultProxy, folder: str, tmp_path: Path, read: str
) -> None:
    """An object that does not stay as it is for one read is an error."""
    path = f"{folder}/object"
    fs.pipe_file(path, DATA)
    states = [bytes([number]) + DATA for number in range(20)]
    proxy.faults = [Fault("GET", skip=1, times=20, before=lambda: fs.pipe_file(path, states.pop()))]
    with pytest.raises(FileExpired):
        WHOLE[read](far, path, tmp_path)
    assert sorted(set(os.listdir(tmp_path)) - {"local"}) == ["home"]


@pytest.mark.parametrize("read", WHOLE)
@pytest.mark.parametrize(("data", "part"), [(SMALL, 0), (DATA, 0), (DATA, 2)])
def test_bit_flipped_on_the_way_down(
    fs: CSXFileSystem,
    far: CSXFileSystem,
    proxy: FaultProxy,
    folder: str,
    tmp_path: Path,
    read: str,
    data: bytes,
    part: int,
) -> None:
    """A whole object is compared with the server's checksum, read again if it is damaged, and then refused."""
    path = f"{folder}/object"
    fs.pipe_file(path, data)
    proxy.faults = [Fault("GET", skip=part, flip_down=len(data) // 4 % 1000)]
    assert WHOLE[read](far, path, tmp_path) == data
    assert proxy.faults[0].times == 0
    proxy.faults = [Fault("GET", skip=part, times=1000, flip_down=len(data) // 4 % 1000)]
    with pytest.raises(ChecksumError, match=path):
        WHOLE[read](far, path, tmp_path)
    if read == "get_file":
        assert (tmp_path / "local").read_bytes() == b"old"


# -- servers that are busy, or silent ---------------------------------------------------------------------------------

BUSY = [(503, "SlowDown"), (429, "TooManyRequests"), (500, "InternalError"), (400, "RequestTimeout")]


@pytest.mark.parametrize("refusal", BUSY)
@pytest.mark.parametrize("read", ["readinto", "cat_file"])
def test_busy_server_is_asked_again(
    far: CSXFileSystem, proxy: FaultProxy, tmp_path: Path, refusal: tuple[int, str], read: str
) -> None:
    """Answers that say "not now" are ridden out while reading."""
    proxy.faults = [Fault("GET", times=4, answer=error_answer(*refusal))]
    assert READS[read](far, PATH, tmp_path) == DATA
    assert proxy.faults[0].times == 0


@pytest.mark.parametrize("refusal", BUSY)
@pytest.mark.parametrize(("write", "data"), [("open", LARGE), ("pipe_file", SMALL)])
def test_busy_server_is_written_to_again(
    far: CSXFileSystem,
    proxy: FaultProxy,
    folder: str,
    tmp_path: Path,
    refusal: tuple[int, str],
    write: str,
    data: bytes,
) -> None:
    """So they are while writing, whatever the request is."""
    busy = error_answer(*refusal)
    proxy.faults = [Fault("PUT", times=3, answer=busy), *(Fault("POST", skip=n, answer=busy) for n in (0, 0))]
    WRITES[write](far, f"{folder}/object", data, tmp_path)
    assert proxy.faults[0].times == 0
    assert far.cat_file(f"{folder}/object") == data


@pytest.mark.parametrize("method", ["GET", "PUT"])
@pytest.mark.parametrize("status", [429, 503])
def test_server_says_when_to_come_back(
    far: CSXFileSystem, proxy: FaultProxy, folder: str, method: str, status: int
) -> None:
    """No request is made before the time that Retry-After gives."""
    far.pipe_file(f"{folder}/object", SMALL)
    proxy.requests = []
    proxy.faults = [Fault(method, answer=error_answer(status, "SlowDown", {"Retry-After": "1"}))]
    far.pipe_file(f"{folder}/object", LARGE[:500])
    assert far.cat_file(f"{folder}/object") == LARGE[:500]
    first, second = proxy.made(method)
    assert second.began - first.ended >= 1


@pytest.mark.parametrize(("stop", "times"), [("stall_down", 1), ("cut_down", 1), ("cut_down", 100)])
def test_error_of_which_half_came(server: LocalS3, proxy: FaultProxy, stop: str, times: int) -> None:
    """An answer that says an error, and ends in the midst of it, is a failure of the connection."""
    seconds = 2 if stop == "stall_down" else 100
    far = through(proxy, server, config_kwargs={"read_timeout": seconds, "retries": {"max_attempts": 1}})
    far.info(PATH)
    harm = Fault("GET", when=lambda request: request.span is not None, status=500, times=times)
    setattr(harm, stop, 0.5)
    proxy.faults = [harm]
    refused = pytest.raises(EndpointError, match="closed the connection")
    with refused if times > 1 else contextlib.nullcontext():
        assert far.cat_file(PATH, start=0, end=1000) == DATA[:1000]
    assert harm.done


@pytest.mark.parametrize("read", ["readinto", "cat_file", "get_file"])
def test_stalled_read(hasty: CSXFileSystem, proxy: FaultProxy, tmp_path: Path, read: str) -> None:
    """A read that stalls is abandoned after the time limit, and the missing bytes are requested again."""
    proxy.faults = [Fault("GET", when=lambda one: not one.span or one.span[1] - one.span[0] > MIB, stall_down=MIB)]
    began = time.monotonic()
    assert READS[read](hasty, PATH, tmp_path) == DATA
    assert 0.9 < time.monotonic() - began < 25  # the proxy would give it up after 30


@pytest.mark.parametrize("fault", [Fault("PUT", stall_up=MIB), Fault("PUT", stall_down=0), Fault("PUT", cut_up=MIB)])
@pytest.mark.parametrize(("write", "data"), [("open", LARGE), ("pipe_file", LARGE[:BLOCK]), ("put_file", LARGE)])
def test_stalled_or_cut_write(
    hasty: CSXFileSystem, proxy: FaultProxy, folder: str, tmp_path: Path, fault: Fault, write: str, data: bytes
) -> None:
    """An upload that does not get through, or is not answered, is sent again."""
    fault.times = 1
    proxy.faults = [fault]
    WRITES[write](hasty, f"{folder}/object", data, tmp_path)
    assert fault.times == 0
    assert hasty.cat_file(f"{folder}/object") == data


# -- the end of an upload ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("write", WRITES)
def test_completion_that_is_not_heard_of(
    far: CSXFileSystem, proxy: FaultProxy, folder: str, tmp_path: Path, write: str
) -> None:
    """A connection that ends after the server has completed an upload makes it no failure."""
    proxy.faults = [Fault("POST", query="uploadId", cut_down=0)]
    WRITES[write](far, f"{folder}/object", LARGE, tmp_path)
    assert len(proxy.made("POST", "uploadId")) == 2
    assert far.cat_file(f"{folder}/object") == LARGE
    assert uploads_below(far, folder) == []


def test_upload_of_someone_else_is_not_ours(
    fs: CSXFileSystem, far: CSXFileSystem, proxy: FaultProxy, folder: str, tmp_path: Path
) -> None:
    """An upload that is gone is an error, if the object is another one."""
    path = f"{folder}/object"
    fs.pipe_file(path, b"old")

    def end() -> None:
        fs.abort_mpu(BUCKET, path.partition("/")[2], uploads_below(fs, folder)[0])

    proxy.faults = [Fault("POST", query="uploadId", before=end)]
    with pytest.raises(FileNotFoundError):
        write_file(far, path, LARGE, tmp_path)
    assert fs.cat_file(path) == b"old"


@pytest.mark.parametrize("write", WRITES)
def test_completion_that_fails_after_its_head(
    far: CSXFileSystem, impatient: CSXFileSystem, proxy: FaultProxy, folder: str, tmp_path: Path, write: str
) -> None:
    """An error in a response with status 200 is an error: the request is repeated, and then the error is reported."""
    path = f"{folder}/object"
    fault = Fault("POST", query="uploadId", answer=error_answer(200, "InternalError"))
    proxy.faults = [fault]
    WRITES[write](far, path, LARGE, tmp_path)
    assert far.cat_file(path) == LARGE
    fault.times = 1000
    with pytest.raises(OSError, match="InternalError"):
        WRITES[write](impatient, path, DATA, tmp_path)
    assert far.cat_file(path) == LARGE
    assert uploads_below(far, folder) == []


def test_creation_that_is_not_heard_of(far: CSXFileSystem, proxy: FaultProxy, folder: str) -> None:
    """An object that is only to be created, and was by a request that is not answered, is not taken for another's."""
    proxy.faults = [Fault("POST", query="uploadId", cut_down=0)]
    far.pipe_file(f"{folder}/object", LARGE, mode="create", chunksize=BLOCK)
    assert far.cat_file(f"{folder}/object") == LARGE
    proxy.faults = [Fault("POST", query="uploadId", cut_up=0)]
    with pytest.raises(ObjectExistsError):
        far.pipe_file(f"{folder}/object", LARGE, mode="create", chunksize=BLOCK)
    assert uploads_below(far, folder) == []


# -- credentials that expire ------------------------------------------------------------------------------------------


@pytest.fixture(params=["file", "process"])
def renewable(
    request: pytest.FixtureRequest,
    server: LocalS3,
    fs: CSXFileSystem,
    proxy: FaultProxy,
    aws_files: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[str], str]:
    """Makes the keys of an identity those that the default profile names, and returns its access key."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
    fs.makedirs(TENANT_BUCKET, exist_ok=True)

    def renew(name: str) -> str:
        options = server.storage_options(name)
        new = aws_files / uuid.uuid4().hex  # several requests are refused at a time
        if request.param == "file":
            lines = [
                "[default]",
                f"aws_access_key_id = {options['key']}",
                f"aws_secret_access_key = {options['secret']}",
            ]
            new.write_text("\n".join(lines))
            new.replace(aws_files / "credentials")
        else:
            report = {"Version": 1, "AccessKeyId": options["key"], "SecretAccessKey": options["secret"]}
            new.write_text(json.dumps(report))
            new.replace(aws_files / "keys")  # it may be read at this moment
            if not (aws_files / "config").exists():
                (aws_files / "config").write_text(f"[default]\ncredential_process = cat {aws_files / 'keys'}\n")
        return options["key"]

    return renew


def signed_by(key: str) -> Callable[[Request], bool]:
    """Whether a request is signed by an access key."""
    return lambda request: key in request.headers["authorization"]


def test_many_objects_with_keys_that_expire(
    renewable: Callable[[str], str], fs: CSXFileSystem, proxy: FaultProxy
) -> None:
    """Keys that expire in the middle of many objects cost a refused request for each connection at most."""
    objects = {f"{TENANT_BUCKET}/many/{number}": b"%d" % number for number in range(100)}
    fs.pipe(objects)
    for method in ("GET", "PUT"):
        proxy.faults = []
        former = renewable("admin")
        mine = fsspec.filesystem("s3", max_concurrency=4, use_listings_cache=False, skip_instance_cache=True)
        assert mine.cat_file(next(iter(objects))) == b"0"
        proxy.requests = []
        expired = error_answer(400, "ExpiredToken")
        proxy.faults = [
            Fault(when=signed_by(former), skip=25, times=1000, answer=expired, before=lambda: renewable("tenant"))
        ]
        if method == "GET":
            assert mine.cat(list(objects)) == objects
        else:
            mine.pipe({path: data + b"!" for path, data in objects.items()})
        assert len(objects) < len(proxy.made(method)) <= len(objects) + 2 * 4
    assert fs.cat(list(objects)) == {path: data + b"!" for path, data in objects.items()}


def test_parts_with_keys_that_expire(renewable: Callable[[str], str], fs: CSXFileSystem, proxy: FaultProxy) -> None:
    """Keys that expire in the middle of an upload cost a refused request for each connection at most."""
    parts, path = 8, f"{TENANT_BUCKET}/of parts"
    data = os.urandom((parts - 1) * BLOCK + 1)
    former = renewable("admin")
    mine = fsspec.filesystem("s3", max_concurrency=1, use_listings_cache=False, skip_instance_cache=True)
    mine.connect()
    expired = error_answer(400, "ExpiredToken")
    proxy.faults = [
        Fault(when=signed_by(former), skip=3, times=1000, answer=expired, before=lambda: renewable("tenant"))
    ]
    mine.pipe_file(path, data, chunksize=BLOCK)
    assert len(proxy.made("PUT", "partNumber")) == parts + 1
    assert fs.cat_file(path) == data


@pytest.mark.parametrize("what", thinned([*WRITES, "readinto", "cat_file"], "pipe_file", "cat_file"))
def test_credentials_that_expire(
    renewable: Callable[[str], str], fs: CSXFileSystem, proxy: FaultProxy, tmp_path: Path, what: str
) -> None:
    """Requests that are refused as expired are signed again with the credentials that there are now."""
    fs.pipe_file(f"{TENANT_BUCKET}/source", DATA)
    former = renewable("admin")
    # An upload that is created again, since a busy machine did not answer in time, would be left.
    patient = {"read_timeout": 100, "connect_timeout": 100}
    mine = fsspec.filesystem("s3", use_listings_cache=False, skip_instance_cache=True, config_kwargs=patient)
    assert mine.cat_file(f"{TENANT_BUCKET}/source", start=0, end=3) == DATA[:3]
    proxy.requests = []
    expired = error_answer(400, "ExpiredToken")
    proxy.faults = [
        Fault(when=signed_by(former), skip=2, times=1000, answer=expired, before=lambda: renewable("tenant"))
    ]
    if what in WRITES:
        WRITES[what](mine, f"{TENANT_BUCKET}/expired/object", DATA, tmp_path)
        assert fs.cat_file(f"{TENANT_BUCKET}/expired/object") == DATA
        assert uploads_below(fs, f"{TENANT_BUCKET}/expired") == []
    else:
        assert READS[what](mine, f"{TENANT_BUCKET}/source", tmp_path) == DATA
    assert 0 < 1000 - proxy.faults[0].times < 12
    assert {one.status for one in proxy.requests[-1:]} <= {200, 206}


def test_credentials_that_stay_expired(server: LocalS3, proxy: FaultProxy, folder: str) -> None:
    """Keys that the call names cannot be renewed: an error says that they have expired."""
    fs = through(proxy, server)
    proxy.faults = [Fault(times=1000, answer=error_answer(400, "ExpiredToken"))]
    for attempt in (lambda: fs.pipe_file(f"{folder}/object", SMALL), lambda: fs.cat_file(PATH)):
        with pytest.raises(ExpiredCredentialsError):
            attempt()


# -- other ways to reach the server, and to be called -----------------------------------------------------------------


def round_trip(fs: CSXFileSystem, folder: str, local: Path) -> None:
    """Each way to write and to read, once."""
    for name, write in WRITES.items():
        write(fs, f"{folder}/{name}", LARGE, local)
    for name, read in READS.items():
        assert read(fs, f"{folder}/pipe_file", local) == LARGE, name
    fs.cp_file(f"{folder}/open", f"{folder}/copy")
    assert fs.cat([f"{folder}/{name}" for name in (*WRITES, "copy")]).values()
    assert set(fs.cat([f"{folder}/{name}" for name in (*WRITES, "copy")]).values()) == {LARGE}


@pytest.mark.slow
def test_tls(secure_server: tuple[LocalS3, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Everything goes over TLS too, with checksums of the user's choice as well."""
    server, authority = secure_server
    monkeypatch.setenv("AWS_CA_BUNDLE", str(authority))
    round_trip(fsspec.filesystem("s3", **server.storage_options()), "faults/tls", tmp_path)
    chosen = {"ChecksumAlgorithm": "SHA256"}
    fs = fsspec.filesystem("s3", **server.storage_options(), s3_additional_kwargs=chosen, skip_instance_cache=True)
    for data in (SMALL, LARGE):
        write_file(fs, "faults/chosen", data, tmp_path)
        assert fs.cat_file("faults/chosen") == data


def test_untrusted_certificate(secure_server: tuple[LocalS3, Path]) -> None:
    """Bulk requests do not trust an untrusted certificate."""
    server, _ = secure_server
    with pytest.raises(EndpointError, match="not trusted"):
        fsspec.filesystem("s3", **server.storage_options()).cat_file("faults/object")


def test_proxy_of_the_environment(
    server: LocalS3, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folder: str
) -> None:
    """A proxy that the environment names is used by all requests."""
    for name in ("NO_PROXY", "no_proxy", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTP_PROXY", proxy.url)
    fs = fsspec.filesystem("s3", **server.storage_options(), skip_instance_cache=True)
    round_trip(fs, folder, tmp_path)
    assert {"PUT", "POST", "GET", "HEAD"} <= {one.method for one in proxy.requests}
    assert len(proxy.made("PUT", "partNumber")) == 6


@pytest.mark.slow
def test_many_threads(far: CSXFileSystem, folder: str, tmp_path: Path) -> None:
    """Many threads read and write at a time."""

    def work(number: int) -> bool:
        data = DATA[number : number + BLOCK + number]
        write_file(far, f"{folder}/{number}", data, tmp_path)
        return far.cat_file(f"{folder}/{number}") == read_file(far, f"{folder}/{number}", tmp_path) == data

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))


def test_asynchronous_use(server: LocalS3, tmp_path: Path, folder: str) -> None:
    """The coroutines serve a program with an event loop of its own."""

    async def work() -> None:
        fs = fsspec.filesystem("s3", **server.storage_options(), asynchronous=True, skip_instance_cache=True)
        session = await fs.set_session()
        await fs._pipe_file(f"{folder}/object", LARGE, chunksize=BLOCK)
        assert await fs._cat_file(f"{folder}/object") == LARGE
        await fs._get_file(f"{folder}/object", str(tmp_path / "local"))
        await fs._put_file(str(tmp_path / "local"), f"{folder}/copy")
        both = await asyncio.gather(*(fs._cat_file(f"{folder}/copy", start=start) for start in (0, 1)))
        assert both == [LARGE, LARGE[1:]]
        await session.close()

    asyncio.run(work())


def test_within_a_running_loop(fs: CSXFileSystem, folder: str, tmp_path: Path) -> None:
    """As in a notebook, the plain calls work where an event loop runs."""

    async def work() -> None:
        round_trip(fs, folder, tmp_path)

    asyncio.run(work())


FORKED = """
import os, sys, fsspec

path, size = sys.argv[1], 6 * 2**20
fs = fsspec.filesystem("s3")
fs.pipe_file(path, bytes(size))
with fs.open(path, "rb") as file:
    file.read(10)
    child = os.fork()
    if not child:
        assert file.readinto(bytearray(size)) == size - 10
        assert fs.cat_file(path) == bytes(size)
        with fs.open(path + "-child", "wb", block_size=5 * 2**20) as other:
            other.write(bytes(size))
        fs.get_file(path + "-child", sys.argv[2])
        os._exit(0)
    assert file.readinto(bytearray(size)) == size - 10
    assert os.waitpid(child, 0)[1] == 0
assert os.path.getsize(sys.argv[2]) == size
"""


@pytest.mark.slow
def test_fork_after_use(environment: LocalS3, folder: str, tmp_path: Path) -> None:
    """A forked child reads and writes, also with a file that its parent opened, while its parent continues."""
    command = [*python(), "-c", FORKED, f"{folder}/object", str(tmp_path / "local")]
    subprocess.run(command, check=True, timeout=100)


# -- Ctrl-C -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [Fault("GET", delay=0.2), Fault("GET", stall_down=MIB)])
def test_ctrl_c_while_reading(server: LocalS3, proxy: FaultProxy, fault: Fault) -> None:
    """Ctrl-C ends a read soon, also one on which nothing comes, and nothing writes to the memory any more."""
    fs = through(proxy, server, config_kwargs={"read_timeout": 100})
    with fs.open(PATH, "rb") as file:
        file.read(1)
        fault.times = 1000
        proxy.faults = [fault]
        buffer = bytearray(file.size - 1)
        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt), ctrl_c(0.3):
            while True:
                file.seek(1)
                file.readinto(buffer)
        assert time.monotonic() - began < 25
        left = bytes(buffer)
        time.sleep(0.3)
        assert buffer == left


@pytest.mark.parametrize(
    "fault",
    [
        Fault("GET", delay=30),
        Fault("GET", stall_down=MIB),
        Fault("GET", skip=1, times=100, stall_down=MIB),
        Fault("GET", times=100, stall_down=MIB),
    ],
    ids=["before the size", "in the first bytes", "in the others", "in all"],
)
def test_ctrl_c_while_reading_an_object(server: LocalS3, proxy: FaultProxy, fault: Fault) -> None:
    """Ctrl-C ends the read of a whole object at any time, and nothing writes to the memory any more."""
    fs = through(proxy, server, config_kwargs={"read_timeout": 100})
    fs.cat_file(PATH, start=0, end=1)
    proxy.faults = [fault]
    memory = bytearray(len(DATA))
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt), ctrl_c(0.5):
        fs.readinto_objects([(PATH, 0, memoryview(memory), len(memory))])
    assert time.monotonic() - began < 25
    left = bytes(memory)
    with recorded_requests() as sent:
        time.sleep(0.3)
    assert (memory, sent) == (left, [])


@pytest.mark.parametrize("fault", [Fault("PUT", delay=0.2), Fault("PUT", stall_up=MIB)])
def test_ctrl_c_while_writing(server: LocalS3, proxy: FaultProxy, folder: str, fault: Fault) -> None:
    """Ctrl-C ends a write soon, also one that does not get through, and leaves nothing behind."""
    fs = through(proxy, server, config_kwargs={"read_timeout": 100, "connect_timeout": 100})
    with fs.open(f"{folder}/first", "wb", block_size=BLOCK) as file:
        file.write(LARGE)
    fault.times = 1000
    proxy.faults = [fault]
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt), ctrl_c(0.3), fs.open(f"{folder}/object", "wb", block_size=BLOCK) as file:
        while True:
            file.write(LARGE)
    assert time.monotonic() - began < 25
    assert uploads_below(fs, folder) == []
    assert not fs.exists(f"{folder}/object")


@pytest.mark.parametrize("way", ["cat_file", "get_file", "pipe_file", "put_file"])
def test_ctrl_c_ends_the_work(far: CSXFileSystem, proxy: FaultProxy, folder: str, tmp_path: Path, way: str) -> None:
    """Work that Ctrl-C ends does not continue in the background: neither object nor local file is replaced later."""
    far.pipe_file(f"{folder}/object", b"old")
    ended = threading.Event()
    proxy.faults = [
        Fault(when=lambda request: request.method in ("GET", "PUT"), times=100, before=lambda: ended.wait(60))
    ]
    with pytest.raises(KeyboardInterrupt), ctrl_c(0.2):
        if way in READS:
            READS[way](far, PATH, tmp_path)
        else:
            WRITES[way](far, f"{folder}/object", DATA, tmp_path)
    proxy.faults = []
    ended.set()
    with recorded_requests() as sent:
        time.sleep(0.3)
    assert sent == []
    if way == "get_file":
        assert (tmp_path / "local").read_bytes() == b"old"
        assert sorted(os.listdir(tmp_path)) == ["home", "local"]
    assert far.cat_file(f"{folder}/object") == b"old"
    assert uploads_below(far, folder) == []


def test_ctrl_c_while_many_uploads_are_created(
    far: CSXFileSystem, proxy: FaultProxy, folder: str, tmp_path: Path
) -> None:
    """Ctrl-C during an upload of several large files aborts the uploads that the server is creating."""
    for name in "123":
        (tmp_path / name).write_bytes(LARGE)
    proxy.faults = [Fault("POST", delay=0.8, times=3)]
    with pytest.raises(KeyboardInterrupt), ctrl_c(0.4):
        far.put([str(tmp_path / name) for name in "123"], f"{folder}/", chunksize=BLOCK)
    assert [request.heard for request in proxy.requests if request.method == "POST"] == [True] * 3
    assert uploads_below(far, folder) == []


class Leaving(Callback):
    """A callback, also for each file of many, that raises when bytes have moved."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    def branched(self, path_1: str, path_2: str, **kwargs: object) -> Leaving:
        return self

    def call(self, *args: object, **kwargs: object) -> None:
        if self.value:
            raise self.error


def resume_file(fs: CSXFileSystem, path: str, local: Path, callback: Callback) -> None:
    """Get a large object by a download that can be resumed."""
    fs.get_file(PATH, f"{local}/new", callback=callback, resumable=True)


REPORTING: dict[str, Callable[[CSXFileSystem, str, Path, Callback], object]] = {
    "put_file": lambda fs, path, local, callback: fs.put_file(f"{local}/1", path, callback, chunksize=BLOCK),
    "put": lambda fs, path, local, callback: fs.put(f"{local}/*", path, callback=callback),
    "put_chunks": lambda fs, path, local, callback: fs.put(f"{local}/*", path, callback=callback, chunksize=BLOCK),
    "get_file": lambda fs, path, local, callback: fs.get_file(PATH, f"{local}/new", callback),
    "get": lambda fs, path, local, callback: fs.get([PATH] * 3, [f"{local}/new{n}" for n in "123"], callback=callback),
    "resume": resume_file,
    "cp_file": lambda fs, path, local, callback: fs.cp_file(PATH, path, callback=callback),
    "take_file": lambda fs, path, local, callback: fs.take_file(fs, PATH, path, callback=callback),
    "ready": lambda fs, path, local, callback: fs.put_file(
        f"{local}/1", path, chunksize=BLOCK, resumable=True, ready=lambda: callback.relative_update(1)
    ),
    "advance": lambda fs, path, local, callback: fs.readinto_objects(
        [(PATH, 0, memoryview(bytearray(9)), 9)], callback.relative_update
    ),
}


@pytest.mark.parametrize("error", [KeyboardInterrupt("mine"), SystemExit(3)], ids=repr)
@pytest.mark.parametrize("way", REPORTING)
def test_exit_by_a_callback(
    own_loop: CSXFileSystem, folder: str, tmp_path: Path, way: str, error: BaseException
) -> None:
    """A callback that raises KeyboardInterrupt or SystemExit ends the call, and neither the loop nor other calls."""
    for name in "123":
        (tmp_path / name).write_bytes(LARGE)
    with pytest.raises(type(error)) as raised:
        REPORTING[way](own_loop, f"{folder}/object", tmp_path, Leaving(error))
    assert raised.value is error
    assert own_loop.cat_file(PATH, start=0, end=9) == DATA[:9]
    if way != "ready":  # one that can be resumed is kept
        assert uploads_below(own_loop, folder) == []


@pytest.mark.slow
def test_vanished_server(server: LocalS3, bucket: str) -> None:
    """Idle connections to a server that has vanished cost one time limit, not one for each of them."""
    objects = {f"{bucket}/{number}": b"%d" % number for number in range(64)}
    with fault_proxy(server.endpoint_url) as proxy:
        fs = through(proxy, server, config_kwargs={"read_timeout": 1, "connect_timeout": 30})
        fs.pipe(objects)
        proxy.vanish()
        proxy.requests = []
        assert fs.cat_file(f"{bucket}/1") == b"1"
        fs.pipe(objects)
        assert fs.cat(list(objects)) == objects
        assert sum(not each.status for each in proxy.requests) == 1
