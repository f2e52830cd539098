"""After a redirect, nothing is sent to the other host: no token, no key, no signature and no data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest
from aiobotocore.session import AioSession
from answers import s3_error
from listener import Answer, Heard, Listener, listening

from fsspec_csx.errors import CredentialsError, EndpointError, WrongRegionError
from fsspec_csx.s3.filesystem import CSXFileSystem

SECRETS = {"key": "AKIA0000000000WXYZ", "secret": "a-secret-of-ours", "token": "the-session-token-of-ours"}
DATA = b"data-that-is-ours"
STATUSES = [301, 302, 307, 308]


def write(fs: CSXFileSystem) -> None:
    """Write through a file."""
    with fs.open("bucket/run/key", "wb") as file:
        file.write(DATA)


OPERATIONS: dict[str, Callable[[CSXFileSystem], object]] = {
    "cat": lambda fs: fs.cat_file("bucket/run/key"),
    "read": lambda fs: fs.open("bucket/run/key", "rb").read(),
    "write": write,
    "pipe": lambda fs: fs.pipe_file("bucket/run/key", DATA),
    "pipe_parts": lambda fs: fs.pipe_file("bucket/run/key", bytes(6 * 2**20), chunksize=5 * 2**20),
    "info": lambda fs: fs.info("bucket/run/key"),
    "exists": lambda fs: fs.exists("bucket/run/key"),
    "exists_bucket": lambda fs: fs.exists("bucket"),
    "ls": lambda fs: fs.ls("bucket/run"),
    "buckets": lambda fs: fs.ls(""),
    "rm": lambda fs: fs.rm(["bucket/run/key", "bucket/run/other"]),
    "cp": lambda fs: fs.cp_file("bucket/run/key", "bucket/run/other"),
    "mkdir": lambda fs: fs.mkdir("another"),
}


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[Listener]:
    """A server that is not the configured endpoint."""
    with listening() as running:
        yield running


@pytest.fixture(scope="module")
def endpoint() -> Iterator[Listener]:
    """A server that is named as the endpoint."""
    with listening() as running:
        yield running


@pytest.fixture(autouse=True)
def unheard(endpoint: Listener, elsewhere: Listener) -> None:
    """Nothing is remembered from test to test."""
    endpoint.heard.clear()
    elsewhere.heard.clear()


def sending_on(status: int, elsewhere: Listener, body: bytes | None = None) -> Callable[[Heard], Answer]:
    """Answers of a status that name another host in every way there is."""
    host = elsewhere.url.replace("127.0.0.1", "localhost").removeprefix("http://")
    report = s3_error("TemporaryRedirect", "Elsewhere", f"<Endpoint>{host}</Endpoint>") if body is None else body
    return lambda heard: (status, {"Location": f"http://{host}{heard.path}"}, report)


@pytest.mark.parametrize("status", STATUSES)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_redirect_to_another_host(endpoint: Listener, elsewhere: Listener, operation: str, status: int) -> None:
    """It is an error that names the host, which receives nothing, whatever the operation."""
    endpoint.answer = sending_on(status, elsewhere)
    fs = fsspec.filesystem("s3", **SECRETS, endpoint_url=endpoint.url, skip_instance_cache=True)
    with pytest.raises(EndpointError, match=r"redirects to http://localhost:\d+"):
        OPERATIONS[operation](fs)
    assert endpoint.heard
    assert all(one.headers["x-amz-security-token"] == SECRETS["token"] for one in endpoint.heard)
    assert not elsewhere.heard


def test_redirect_of_a_session_of_the_caller(endpoint: Listener, elsewhere: Listener) -> None:
    """A session that the call brings along is held to it too."""
    session = AioSession()
    session.set_credentials(SECRETS["key"], SECRETS["secret"], SECRETS["token"])
    endpoint.answer = sending_on(307, elsewhere)
    fs = fsspec.filesystem("s3", session=session, endpoint_url=endpoint.url, skip_instance_cache=True)
    for operation in ("info", "ls", "rm", "pipe"):
        with pytest.raises(EndpointError, match="redirects to"):
            OPERATIONS[operation](fs)
    assert not elsewhere.heard


def test_redirect_to_a_page(endpoint: Listener, elsewhere: Listener) -> None:
    """A page for people that a network shows in place of the server is reported as what it is, and holds no objects."""
    endpoint.answer = sending_on(302, elsewhere, b"<html>Log in</html>")
    elsewhere.answer = lambda heard: (200, {"Content-Type": "text/html"}, b"<html>Log in here</html>")
    fs = fsspec.filesystem("s3", **SECRETS, endpoint_url=endpoint.url, skip_instance_cache=True)
    for operation in ("info", "ls", "rm", "cat"):
        with pytest.raises(EndpointError, match="redirects to"):
            OPERATIONS[operation](fs)
    assert not elsewhere.heard


def test_redirect_from_https_to_http(endpoint: Listener, elsewhere: Listener) -> None:
    """A user's name, a password and a query in the address sent to are not reported."""
    address = "http://user:password-of-someone@localhost:1/key?X-Amz-Signature=0123456789abcdef"
    endpoint.answer = lambda heard: (307, {"Location": address}, b"")
    fs = fsspec.filesystem("s3", **SECRETS, endpoint_url=endpoint.url, skip_instance_cache=True)
    with pytest.raises(EndpointError, match="redirects to http://localhost:1,") as caught:
        fs.info("bucket/run/key")
    assert "password-of-someone" not in str(caught.value)
    assert "0123456789abcdef" not in str(caught.value)


@pytest.mark.parametrize("operation", ["cat", "pipe", "info", "ls"])
def test_redirect_by_region(endpoint: Listener, elsewhere: Listener, operation: str) -> None:
    """An answer that names a region is an error about the wrong region; the endpoint stays the one that was named."""
    report = {"x-amz-bucket-region": "eu-west-3", "Location": elsewhere.url}
    endpoint.answer = lambda heard: (301, report, s3_error("PermanentRedirect", "Elsewhere"))
    fs = fsspec.filesystem("s3", **SECRETS, endpoint_url=endpoint.url, skip_instance_cache=True)
    with pytest.raises(WrongRegionError):
        OPERATIONS[operation](fs)
    assert not elsewhere.heard


@pytest.fixture
def pod(endpoint: Listener, elsewhere: Listener, aws_files: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The token of a pod that may assume a role, at an endpoint that redirects."""
    (aws_files / "token").write_text("the-token-of-the-pod")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(aws_files / "token"))
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/trainer")
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint.url)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    endpoint.answer = sending_on(307, elsewhere, b"")
    return "the-token-of-the-pod"


def test_redirect_of_what_gives_credentials(endpoint: Listener, elsewhere: Listener, pod: str) -> None:
    """The token with which a role is assumed goes only to the configured endpoint."""
    with pytest.raises(PermissionError, match="gives no credentials"):
        fsspec.filesystem("s3", skip_instance_cache=True).ls("bucket")
    assert any(pod.encode() in one.body for one in endpoint.heard)
    assert not elsewhere.heard


@pytest.fixture
def container(endpoint: Listener, monkeypatch: pytest.MonkeyPatch) -> str:
    """A container's metadata service, which requires a token; the token."""
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{endpoint.url}/role")
    monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN", "the-token-of-the-container")
    return "the-token-of-the-container"


@pytest.fixture
def instance(endpoint: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    """An instance's metadata service."""
    monkeypatch.delenv("AWS_EC2_METADATA_DISABLED")
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", endpoint.url)


@pytest.mark.parametrize("own", [False, True], ids=["made", "of_the_caller"])
@pytest.mark.parametrize("status", STATUSES)
def test_redirect_of_a_container(
    endpoint: Listener, elsewhere: Listener, container: str, status: int, own: bool
) -> None:
    """The token of a container goes to the address that was named alone, once; where it sends to is reported."""
    endpoint.answer = sending_on(status, elsewhere, b"")
    options = {"session": AioSession()} if own else {}
    with pytest.raises(CredentialsError, match=r"redirects to http://localhost:\d+"):
        fsspec.filesystem("s3", **options, skip_instance_cache=True).ls("bucket")
    assert [one.headers["authorization"] for one in endpoint.heard] == [container]
    assert not elsewhere.heard


@pytest.mark.parametrize("redirected", ["PUT", "GET"], ids=["token", "role"])
@pytest.mark.parametrize("status", STATUSES)
def test_redirect_of_an_instance(
    endpoint: Listener, elsewhere: Listener, instance: None, status: int, redirected: str
) -> None:
    """The same holds for an instance that redirects requests for its token, or with it."""
    sent = sending_on(status, elsewhere, b"")
    endpoint.answer = lambda heard: sent(heard) if heard.method == redirected else (200, {}, b"token-of-the-instance")
    with pytest.raises(CredentialsError, match=r"redirects to http://localhost:\d+"):
        fsspec.filesystem("s3", skip_instance_cache=True).ls("bucket")
    assert [one.method for one in endpoint.heard] == (["PUT"] if redirected == "PUT" else ["PUT", "GET"])
    assert not elsewhere.heard


def test_redirect_of_an_instance_that_tells_its_region(
    endpoint: Listener, elsewhere: Listener, instance: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same holds for the request for the instance's region, without which the call continues."""
    monkeypatch.setenv("AWS_DEFAULTS_MODE", "auto")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", SECRETS["key"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRETS["secret"])
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    sent = sending_on(307, elsewhere, b"")
    entry = b"<Contents><Key>key</Key><Size>1</Size><LastModified>2026-01-01T00:00:00Z</LastModified></Contents>"
    report = b"<ListBucketResult>" + entry + b"</ListBucketResult>"
    endpoint.answer = lambda heard: sent(heard) if heard.path.startswith("/latest/") else (200, {}, report)
    fs = fsspec.filesystem("s3", endpoint_url=endpoint.url, skip_instance_cache=True)
    assert fs.ls("bucket", detail=False) == ["bucket/key"]
    assert [one.path for one in endpoint.heard][:1] == ["/latest/api/token"]
    assert not elsewhere.heard


def test_redirect_of_a_session_of_the_caller_that_asks_for_a_role(
    endpoint: Listener, elsewhere: Listener, pod: str
) -> None:
    """The token of a pod stays with the endpoint also where the call brings the session along."""
    session = AioSession()
    for _ in range(2):
        with pytest.raises(PermissionError, match="gives no credentials"):
            fsspec.filesystem("s3", session=session, skip_instance_cache=True).ls("bucket")
    assert any(pod.encode() in one.body for one in endpoint.heard)
    assert not elsewhere.heard
