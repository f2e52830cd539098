"""Every error says what was requested, what refused it, and what to do, and can be caught as a builtin."""

from __future__ import annotations

import datetime
import errno
import inspect
import pickle
import socket
from pathlib import Path
from unittest.mock import patch

import botocore.auth
import botocore.compat
import fsspec
import pytest
from answers import answering, s3_error
from botocore.crt import auth as signers
from conftest import TENANT_BUCKET, recorded_requests
from thinning import thinned

from fsspec_csx import errors
from fsspec_csx.s3.filesystem import CSXFileSystem
from fsspec_csx.testing import LocalS3

CLASSES = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if kind.__module__ == errors.__name__]
OPERATIONS = ["open-read", "open-write", "exists", "info", "ls", "cat", "pipe"]


def perform(operation: str, fs: CSXFileSystem, path: str) -> object:
    """One of the ways to use a path."""
    if operation == "open-read":
        with fs.open(path, "rb") as file:
            return file.read()
    if operation == "open-write":
        with fs.open(path, "wb") as file:
            return file.write(b"data")
    if operation == "ls":
        return fs.ls(path.rpartition("/")[0] or path)
    if operation == "cat":
        return fs.cat_file(path)
    if operation == "pipe":
        return fs.pipe_file(path, b"data")
    return getattr(fs, operation)(path)


@pytest.mark.parametrize("kind", [kind for kind in CLASSES if issubclass(kind, errors.CSXError)])
def test_every_error_inherits_a_builtin(kind: type[errors.CSXError]) -> None:
    """A caller who knows nothing of this package can catch the error, and it survives a pickle."""
    error = kind("What happened.", "What to do.")
    back = pickle.loads(pickle.dumps(error))
    assert str(error) == str(back) == "What happened. What to do."
    assert (back.reason, back.remedy) == ("What happened.", "What to do.")
    assert kind is errors.CSXError or any(base.__module__ == "builtins" and base not in (Exception, BaseException)
                                          and base is not object for base in kind.__mro__)  # fmt: skip


def test_errors_have_the_numbers_of_the_system() -> None:
    """A caller who looks at ``errno`` finds that of the builtin error, after a pickle too."""
    numbers = {PermissionError: errno.EACCES, FileNotFoundError: errno.ENOENT, FileExistsError: errno.EEXIST}
    for base, number in numbers.items():
        kinds = [kind for kind in CLASSES if issubclass(kind, base)]
        assert kinds
        for kind in kinds:
            error = kind("What happened.")
            assert error.errno == pickle.loads(pickle.dumps(error)).errno == number, kind


def test_few_of_many() -> None:
    """A message lists a few items and counts the others, and counts nothing if there are none."""
    assert errors.few([]) == ""
    assert errors.few(range(5)) == "0, 1, 2, 3, 4"
    assert errors.few(range(6)) == "0, 1, 2, 3, 4 and 1 more"
    assert errors.few({"a": 1, "b": 2, "c": 3}, repr, separator="; ", most=1) == "'a' and 2 more"


def test_tree_in_the_docstring_is_the_tree() -> None:
    """The drawing at the top of errors.py names every class."""
    for kind in CLASSES:
        assert kind.__name__ in str(errors.__doc__)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_wrong_secret(server: LocalS3, bucket: str, fs: CSXFileSystem, operation: str) -> None:
    """A wrong secret is reported as such, never as a missing file or a refused right."""
    fs.pipe_file(f"{bucket}/run/key", b"data")
    wrong = fsspec.filesystem("s3", **{**server.storage_options(), "secret": "not-the-secret-of-anybody"})
    with pytest.raises(errors.RejectedCredentialsError, match=server.identity.access_key[-4:]) as caught:
        perform(operation, wrong, f"{bucket}/run/key")
    assert "not-the-secret" not in str(caught.value)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_unknown_access_key(server: LocalS3, bucket: str, operation: str) -> None:
    """An access key that the server does not know is reported as such."""
    wrong = fsspec.filesystem("s3", key="nobodys-access-key", secret="a-secret", endpoint_url=server.endpoint_url)
    with pytest.raises(errors.RejectedCredentialsError, match="access key"):
        perform(operation, wrong, f"{bucket}/run/key")


@pytest.mark.parametrize("operation", OPERATIONS)
def test_bucket_of_someone_else(server: LocalS3, bucket: str, fs: CSXFileSystem, operation: str) -> None:
    """Without the right to a bucket every use is a PermissionError that names it, never "not found"."""
    fs.pipe_file(f"{bucket}/run/key", b"data")
    tenant = fsspec.filesystem("s3", **server.storage_options("tenant"))
    with pytest.raises(PermissionError, match=bucket) as caught:
        perform(operation, tenant, f"{bucket}/run/key")
    assert isinstance(caught.value, errors.AccessDeniedError)


@pytest.mark.parametrize("operation", ["open-write", "pipe"])
def test_read_only_credentials(server: LocalS3, bucket: str, fs: CSXFileSystem, operation: str) -> None:
    """A write with read-only credentials is a PermissionError that names the object."""
    reader = fsspec.filesystem("s3", **server.storage_options("reader"))
    with pytest.raises(errors.AccessDeniedError, match=f"s3://{bucket}/run/key"):
        perform(operation, reader, f"{bucket}/run/key")
    assert not fs.exists(f"{bucket}/run/key")


@pytest.mark.parametrize("operation", ["open-read", "info", "ls", "cat"])
def test_missing_bucket(fs: CSXFileSystem, new_bucket: str, operation: str) -> None:
    """Reading from a bucket that is not there names it and the endpoint."""
    with pytest.raises(errors.BucketNotFoundError, match=f"{new_bucket}.*127.0.0.1"):
        perform(operation, fs, f"{new_bucket}/run/key")


@pytest.mark.parametrize("operation", ["open-read", "info", "ls", "cat"])
def test_missing_object(fs: CSXFileSystem, bucket: str, operation: str) -> None:
    """Reading an object that is not there names it."""
    with pytest.raises(errors.ObjectNotFoundError, match=f"s3://{bucket}/run"):
        perform(operation, fs, f"{bucket}/run/key")


def test_prefix_is_not_an_object(fs: CSXFileSystem, bucket: str) -> None:
    """A name under which there are objects, but that is none itself, does not open as an empty file."""
    fs.pipe_file(f"{bucket}/run/key", b"data")
    with pytest.raises(errors.ObjectNotFoundError, match="below"):
        fs.open(f"{bucket}/run", "rb")


def test_exists_tells_absent_from_refused(server: LocalS3, fs: CSXFileSystem, bucket: str, new_bucket: str) -> None:
    """exists is False only for what is not there."""
    tenant = fsspec.filesystem("s3", **server.storage_options("tenant"))
    assert fs.exists(bucket)
    assert not fs.exists(new_bucket)
    assert not fs.exists(f"{bucket}/nothing")
    assert not fs.exists(f"{new_bucket}/nothing")
    with pytest.raises(errors.AccessDeniedError, match=bucket):
        tenant.exists(bucket)


@pytest.mark.parametrize("mode", ["rb", "wb"])
def test_endpoint_down(closed_port: int, mode: str) -> None:
    """An endpoint that refuses connections is named after some seconds, in which it may have started."""
    url = f"http://127.0.0.1:{closed_port}"
    fs = fsspec.filesystem("s3", key="k", secret="s", endpoint_url=url)
    with pytest.raises(ConnectionError, match=url) as caught, fs.open("bucket/key", mode) as file:
        file.write(b"data")
    assert isinstance(caught.value, errors.EndpointError)


def test_proxy_down(server: LocalS3, closed_port: int) -> None:
    """A proxy that cannot be reached is named, not the endpoint behind it alone, and its password is not."""
    proxies = {"http": f"http://user:password-of-proxy@127.0.0.1:{closed_port}"}
    fs = fsspec.filesystem("s3", **server.storage_options(), config_kwargs={"proxies": proxies})
    with pytest.raises(errors.EndpointError, match=f"proxy.*127.0.0.1:{closed_port}.*{server.endpoint_url}") as caught:
        fs.ls("")
    assert "password-of-proxy" not in str(caught.value)


def test_endpoint_that_never_answers() -> None:
    """An endpoint that takes connections and says nothing is named after one timeout, not after many."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        fs = fsspec.filesystem("s3", key="k", secret="s", endpoint_url=url, config_kwargs={"read_timeout": 1})
        with recorded_requests() as operations, pytest.raises(errors.EndpointError, match=url):
            fs.cat_file("bucket/key")
    assert len(operations) == 1


@pytest.mark.slow
def test_endpoint_that_went_away_is_asked_again(tmp_path: Path) -> None:
    """Once an endpoint has answered, a broken connection is retried, and a restart goes unnoticed."""
    with LocalS3() as own:
        fs = fsspec.filesystem("s3", **own.storage_options())
        fs.pipe_file("bucket/key", b"data")
        own.restart()
        assert fs.cat_file("bucket/key") == b"data"


def test_untrusted_certificate(secure_server: tuple[LocalS3, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """A certificate of an unknown authority is named with the remedy, and the remedy works."""
    server, authority = secure_server
    with pytest.raises(errors.UntrustedCertificateError, match=f"{server.endpoint_url}.*AWS_CA_BUNDLE"):
        fsspec.filesystem("s3", **server.storage_options()).ls("")
    monkeypatch.setenv("AWS_CA_BUNDLE", str(authority))
    fsspec.filesystem("s3", **server.storage_options()).pipe_file("bucket/key", b"data")


def test_clock_skew(server: LocalS3, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that is an hour off is reported as such."""
    late = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(hours=1)
    fs = fsspec.filesystem("s3", **server.storage_options(), skip_instance_cache=True)

    def now(remove_tzinfo: bool = True) -> datetime.datetime:
        return late.replace(tzinfo=None) if remove_tzinfo else late

    clocks = [patch.object(module, "get_current_datetime", now) for module in (botocore.auth, signers)]
    with clocks[0], clocks[1], pytest.raises(errors.ClockSkewError, match="clock"):
        fs.cat_file(f"{bucket}/key")


@pytest.mark.parametrize("operation", thinned(OPERATIONS, "open-write", "exists"))
@pytest.mark.parametrize(
    ("status", "code", "extra", "kind"),
    [
        (400, "ExpiredToken", "", errors.ExpiredCredentialsError),
        (400, "AuthorizationHeaderMalformed", "<Region>eu-west-3</Region>", errors.WrongRegionError),
        (403, "InvalidAccessKeyId", "", errors.RejectedCredentialsError),
        (403, "RequestTimeTooSkewed", "", errors.ClockSkewError),
        (403, "AccessDenied", "", errors.AccessDeniedError),
    ],
)
def test_what_aws_answers(operation: str, status: int, code: str, extra: str, kind: type[errors.CSXError]) -> None:
    """Every operation reports each of AWS's refusals, also those that use HEAD, whose response has no body."""
    with answering(status, s3_error(code, "As AWS puts it", extra)) as url:
        fs = fsspec.filesystem("s3", key="AKIA0000000000WXYZ", secret="a-secret", endpoint_url=url)
        with pytest.raises(kind) as caught:
            perform(operation, fs, "bucket/run/key")
        assert "As AWS puts it" in str(caught.value)
        if kind is errors.WrongRegionError:
            assert "eu-west-3" in caught.value.remedy


@pytest.mark.parametrize("name", ["Bad Name!", "x" * 300])
@pytest.mark.parametrize("operation", ["open-write", "open-read", "exists", "mkdir"])
def test_invalid_bucket_name(fs: CSXFileSystem, name: str, operation: str) -> None:
    """A name that no bucket can have is a ValueError that says the rules."""
    with pytest.raises(ValueError, match="3 to 63") as caught:
        if operation == "mkdir":
            fs.mkdir(name)
        else:
            perform(operation, fs, f"{name}/key")
    assert isinstance(caught.value, errors.InvalidBucketNameError)


def test_partly_refused_delete(server: LocalS3, fs: CSXFileSystem, bucket: str) -> None:
    """A delete that left objects behind does not pass for done."""
    fs.pipe_file(f"{bucket}/key", b"data")
    reader = fsspec.filesystem("s3", **server.storage_options("reader"))
    with pytest.raises(OSError, match=r"not deleted|refused"):
        reader.rm(f"{bucket}/key")
    assert fs.exists(f"{bucket}/key")


def test_own_bucket_of_a_tenant(server: LocalS3, fs: CSXFileSystem) -> None:
    """Credentials for one bucket do everything in it."""
    fs.makedirs(TENANT_BUCKET, exist_ok=True)
    tenant = fsspec.filesystem("s3", **server.storage_options("tenant"))
    with tenant.open(f"{TENANT_BUCKET}/run/key", "wb") as file:
        file.write(b"data")
    assert tenant.cat_file(f"{TENANT_BUCKET}/run/key") == b"data"
    assert tenant.exists(TENANT_BUCKET)
