"""Requests with wrong or missing responses, which the server may have applied."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from proxy import Fault, FaultProxy, error_answer, fault_proxy, through

from fsspec_csx.errors import CSXError, EndpointError, ObjectExistsError, RefusedError, UnavailableError
from fsspec_csx.s3.filesystem import CSXFileSystem
from fsspec_csx.testing import LocalS3

MIB = 2**20
BUCKET = "doubts"
ALWAYS = 10**6


@pytest.fixture(scope="module")
def proxy(server: LocalS3) -> Iterator[FaultProxy]:
    """A proxy before the server."""
    with fault_proxy(server.endpoint_url) as running:
        yield running


@pytest.fixture
def far(server: LocalS3, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> CSXFileSystem:
    """A filesystem behind the proxy, with few attempts for each request."""
    monkeypatch.setattr("botocore.retryhandler.random.random", lambda: 0.01)
    proxy.faults = []
    made = through(proxy, server, config_kwargs={"retries": {"total_max_attempts": 2}})
    made.retries = 1
    made.makedirs(BUCKET, exist_ok=True)
    proxy.requests = []
    return made


@pytest.fixture
def path() -> str:
    """Of an object of the test's own."""
    return f"{BUCKET}/{uuid.uuid4().hex[:12]}"


@pytest.mark.parametrize("way", ["pipe", "open"])
def test_new_object_whose_creation_is_not_heard_of(far: CSXFileSystem, proxy: FaultProxy, path: str, way: str) -> None:
    """A small object that was to be created, and was by a request without an answer, is not taken for another's."""
    proxy.faults = [Fault("PUT", cut_down=0)]
    if way == "pipe":
        far.pipe_file(path, b"mine", mode="create")
    else:
        with far.open(path, "xb") as file:
            file.write(b"mine")
    assert len(proxy.made("PUT")) == 2
    assert far.cat_file(path) == b"mine"


def test_object_of_someone_else(far: CSXFileSystem, fs: CSXFileSystem, proxy: FaultProxy, path: str) -> None:
    """An object with other bytes is another's, also where an answer was not heard; so is any, where all were."""
    fs.pipe_file(path, b"theirs")
    proxy.faults = [Fault("PUT", cut_down=0)]
    with pytest.raises(ObjectExistsError):
        far.pipe_file(path, b"mine", mode="create")
    with pytest.raises(ObjectExistsError):
        far.pipe_file(path, b"theirs", mode="create")
    assert fs.cat_file(path) == b"theirs"


@pytest.mark.parametrize(
    ("fault", "maybe_applied"),
    [
        (Fault(cut_down=0), True),
        (Fault(answer=error_answer(500, "InternalError")), True),
        (Fault(answer=error_answer(503, "SlowDown")), False),
    ],
)
@pytest.mark.parametrize("size", [4, 6 * MIB])
def test_error_says_what_may_have_been_done(
    far: CSXFileSystem, proxy: FaultProxy, path: str, size: int, fault: Fault, maybe_applied: bool
) -> None:
    """An error says that the object may have been written, where no answer excludes it."""
    method, query = ("PUT", "") if size < MIB else ("POST", "uploadId")
    proxy.faults = [Fault(method, query=query, times=ALWAYS, cut_down=fault.cut_down, answer=fault.answer)]
    with pytest.raises(EndpointError) as caught:
        far.pipe_file(path, bytes(size), chunksize=5 * MIB)
    operation = "PutObject" if size < MIB else "CompleteMultipartUpload"
    assert caught.value.maybe_applied == maybe_applied
    assert (f"; {operation} on s3://{path} may have been applied." in str(caught.value)) == maybe_applied
    assert isinstance(caught.value, UnavailableError) == (fault.answer is not None)
    assert caught.value.remedy


def test_read_is_never_in_doubt(far: CSXFileSystem, proxy: FaultProxy, path: str) -> None:
    """What changes nothing cannot have been done."""
    far.pipe_file(path, b"data")
    proxy.faults = [Fault("GET", times=ALWAYS, cut_down=0)]
    with pytest.raises(EndpointError) as caught:
        far.cat_file(path)
    assert not caught.value.maybe_applied


def test_code_that_is_not_known(far: CSXFileSystem, proxy: FaultProxy, path: str) -> None:
    """A refusal for any other reason says its code, and keeps the system's number for it."""
    proxy.faults = [Fault("PUT", answer=error_answer(400, "EntityTooLarge"))]
    with pytest.raises(RefusedError, match=r"PutObject on s3://\S+ .*EntityTooLarge") as caught:
        far.pipe_file(path, b"data")
    assert caught.value.errno
    assert caught.value.remedy


@pytest.mark.parametrize("what", ["info", "ls", "cat_file"])
def test_first_request_finds_its_credentials_expired(
    server: LocalS3, far: CSXFileSystem, proxy: FaultProxy, path: str, aws_files: Path, what: str
) -> None:
    """Credentials are also renewed if the first request is refused, or one whose response has no error code."""

    def write(identity: str) -> str:
        options = server.storage_options(identity)
        lines = ["[default]", f"aws_access_key_id={options['key']}", f"aws_secret_access_key={options['secret']}"]
        (aws_files / "credentials").write_text("\n".join(lines))
        return str(options["key"])

    far.pipe_file(path, b"data")
    former = write("admin")
    proxy.faults = [
        Fault(
            when=lambda request: former in request.headers["authorization"],
            times=ALWAYS,
            answer=error_answer(400, "ExpiredToken"),
            before=lambda: write("reader"),
        )
    ]
    mine = fsspec.filesystem("s3", endpoint_url=proxy.url, use_listings_cache=False, skip_instance_cache=True)
    assert getattr(mine, what)(path)
    assert proxy.faults[0].done


def test_wrong_answers_are_given_up(server: LocalS3, far: CSXFileSystem, proxy: FaultProxy, path: str) -> None:
    """A response with other bytes each time is requested three times, and an interrupted one far more often."""
    far.pipe_file(path, bytes(1000))
    patient = through(proxy, server)
    proxy.requests = []
    proxy.faults = [Fault("GET", times=ALWAYS, headers={"Content-Range": "bytes 3-12/20"}, status=206)]
    with pytest.raises(EndpointError, match="3 responses did not bring"):
        patient.cat_file(path, start=100, end=200)
    assert len(proxy.made("GET")) == 3


def test_range_that_is_refused(far: CSXFileSystem, proxy: FaultProxy, path: str) -> None:
    """A range behind the end is empty; one that the server wrongly says is behind the end is an error."""
    far.pipe_file(path, b"data")
    assert far.cat_file(path, start=4, end=10) == b""
    proxy.faults = [Fault("GET", answer=error_answer(416, "InvalidRange"))]
    with pytest.raises(CSXError, match="InvalidRange"):
        far.cat_file(path, start=2, end=10)


def test_small_object_that_is_cut(far: CSXFileSystem, proxy: FaultProxy, path: str) -> None:
    """A small object is read whole by the request that follows one that was cut."""
    far.pipe_file(path, b"0123456789")
    proxy.faults = [Fault("GET", cut_down=4)]
    assert far.cat_file(path) == b"0123456789"
    assert len(proxy.made("GET")) == 2
