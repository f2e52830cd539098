"""Fixtures of the whole suite: a real S3 server, and an environment without credentials."""

from __future__ import annotations

import gc
import logging
import os
import signal
import socket
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import fsspec
import fsspec.config
import pytest
import trustme
from botocore import retryhandler
from botocore.handlers import BUILTIN_HANDLERS
from hypothesis import HealthCheck, settings
from moto.core.botocore_stubber import BotocoreStubber
from moto.server import ThreadedMotoServer
from proxy import FaultProxy, fault_proxy
from stores import Store
from thinning import thinned

from fsspec_csx import backends
from fsspec_csx.s3.client import retries
from fsspec_csx.s3.filesystem import CSXFileSystem
from fsspec_csx.s3.transport import concurrency, slow_connections
from fsspec_csx.s3.transport.concurrency import ConcurrencyLimit
from fsspec_csx.testing import Identity, LocalS3

TENANT_BUCKET = "tenant-bucket"
# What changes the number of requests in flight.
_ADAPTING = {name: getattr(ConcurrencyLimit, name) for name in ("answered", "measured", "throttled")}


def pytest_configure() -> None:
    """Receive Ctrl-C, even if the shell started the suite in the background with SIGINT ignored.

    Also remove moto's handler of requests, which is for programs that run moto in their own process; set no deadline
    for hypothesis, as other programs use the machine; and ignore the warning of forks beside threads (Python 3.12).
    """
    os.environ["PYTHONWARNINGS"] = "ignore:This process:DeprecationWarning"
    settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("suite")
    BUILTIN_HANDLERS[:] = [each for each in BUILTIN_HANDLERS if not isinstance(each[1], BotocoreStubber)]
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Do not import the tests of reliability if none would run: that takes seconds in each process."""
    return True if collection_path.name == "reliability" and "not slow" in config.option.markexpr else None


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark the tests of reliability as slow: they are many, and each starts processes or repeats operations."""
    if item.path.parent.name == "reliability" and not item.get_closest_marker("long"):
        item.add_marker(pytest.mark.slow)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark all cases of a test as slow, except the last, which every run includes."""
    cases: dict[str, list[pytest.Item]] = {}
    for item in items:
        if not any(item.get_closest_marker(name) for name in ("slow", "long")):
            cases.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for each in cases.values():
        for item in each[:-1]:
            item.add_marker(pytest.mark.slow)


def pytest_collection_finish() -> None:
    """Let the garbage collector skip torch and the suite, which would take it a quarter of a second each time."""
    gc.freeze()


@pytest.fixture(scope="session")
def server() -> Iterator[LocalS3]:
    """The S3 server of the suite, with an identity of each kind."""
    identities = [
        Identity.full("admin"),
        Identity.read_only("reader"),
        Identity.one_bucket("tenant", TENANT_BUCKET),
        Identity("blind", ("Read:nothing",)),
    ]
    with LocalS3(identities=identities) as running:
        yield running


@pytest.fixture(scope="session")
def secure_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LocalS3, Path]]:
    """A server with TLS, and the certificate of its authority, which is not trusted by default."""
    folder = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    certificate, key, trusted = folder / "cert.pem", folder / "key.pem", folder / "ca.pem"
    certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    key.write_bytes(issued.private_key_pem.bytes())
    trusted.write_bytes(authority.cert_pem.bytes())
    with LocalS3(tls=(certificate, key)) as running:
        yield running, trusted


@pytest.fixture(scope="session")
def moto() -> Iterator[str]:
    """The URL of a moto server, for features that SeaweedFS lacks, or that differ from AWS."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(autouse=True)
def nobodys_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the credentials of the machine from tests, and those of a test from the next one."""
    for name in list(os.environ):
        if name.startswith(("AWS_", "FSSPEC_", "REQUESTS_CA_BUNDLE")):
            monkeypatch.delenv(name)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setattr(fsspec.config, "conf", {})
    backends.csx.storage.s3.profile = None


@pytest.fixture(autouse=True)
def short_first_contact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let an endpoint count as down after half a second."""
    monkeypatch.setattr(retries, "FIRST_CONTACT_SECONDS", 0.5)


@pytest.fixture(scope="session", autouse=True)
def short_retries() -> Iterator[None]:
    """Let botocore wait for a tenth of a second before its first retry, rather than up to a second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retryhandler, "random", SimpleNamespace(random=lambda: 0.1))
        yield


@pytest.fixture(scope="session", autouse=True)
def steady_concurrency() -> Iterator[None]:
    """Keep the number of requests in flight, and so their sizes, constant, and never replace slow connections."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slow_connections, "_LEAST_SECONDS", 3600.0)
        for name in _ADAPTING:
            patch.setattr(ConcurrencyLimit, name, lambda *_, **__: None)
        yield


@pytest.fixture(autouse=True)
def adaptive_concurrency(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the number follow the link in tests marked as adaptive, and reset it for the next test."""
    if request.node.get_closest_marker("adaptive") is None:
        yield
        return
    for name, method in _ADAPTING.items():
        monkeypatch.setattr(ConcurrencyLimit, name, method)
    yield
    for slots in concurrency._of_endpoints.values():
        slots._limit = ConcurrencyLimit(slots._limit.most)


@pytest.fixture
def aws_files(tmp_path: Path) -> Path:
    """The folder of the AWS config and credentials files."""
    folder = tmp_path / "home" / ".aws"
    folder.mkdir()
    return folder


@pytest.fixture
def environment(server: LocalS3, monkeypatch: pytest.MonkeyPatch) -> LocalS3:
    """Set the environment variables with which programs use the server, with all permissions."""
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    return server


@pytest.fixture
def proxy(server: LocalS3) -> Iterator[FaultProxy]:
    """A proxy before the server."""
    with fault_proxy(server.endpoint_url) as running:
        yield running


@pytest.fixture
def fs(server: LocalS3) -> CSXFileSystem:
    """A filesystem on the server, with all permissions."""
    made = fsspec.filesystem("s3", **server.storage_options(), use_listings_cache=False)
    assert isinstance(made, CSXFileSystem)
    return made


@pytest.fixture(scope="session")
def unused_buckets() -> list[str]:
    """Names of existing, empty buckets, which had an object: the first object of a bucket takes the longest."""
    return []


@pytest.fixture
def bucket(fs: CSXFileSystem, unused_buckets: list[str]) -> str:
    """The name of a new bucket."""

    def made(number: int) -> str:
        name = f"test-{uuid.uuid4().hex[:12]}"
        fs.mkdir(name)
        fs.pipe_file(f"{name}/first", b"1")
        fs.rm_file(f"{name}/first")
        return name

    if not unused_buckets:
        with ThreadPoolExecutor(16) as threads:
            unused_buckets += threads.map(made, range(16))
    return unused_buckets.pop()


@pytest.fixture
def path(fs: CSXFileSystem, bucket: str) -> str:
    """An object that holds b'old'."""
    fs.pipe_file(f"{bucket}/object", b"old")
    return f"{bucket}/object"


@pytest.fixture
def moto_store(moto: str) -> Store:
    """A new bucket on moto, which accepts all keys unchanged."""
    return Store({"key": "key", "secret": "secret", "endpoint_url": moto}, keeps_all_keys=True)


@pytest.fixture(params=thinned(["local", "moto"], "local"))
def store(request: pytest.FixtureRequest) -> Store:
    """A new bucket, on each server."""
    if request.param == "moto":
        made: Store = request.getfixturevalue("moto_store")
        return made
    server: LocalS3 = request.getfixturevalue("server")
    return Store(server.storage_options(), keeps_all_keys=False)


@pytest.fixture
def closed() -> Iterator[socket.socket]:
    """A socket that does not listen: its port refuses connections, and no other process can take it."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound


@pytest.fixture
def closed_port(closed: socket.socket) -> int:
    """A port at which no server listens."""
    return int(closed.getsockname()[1])


@pytest.fixture
def new_bucket() -> str:
    """A name that no bucket has."""
    return f"new-{uuid.uuid4().hex[:12]}"


@pytest.fixture(params=["local", "memory", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An existing folder, on each kind of filesystem."""
    if request.param == "local":
        (tmp_path / "run").mkdir()
        return str(tmp_path / "run")
    if request.param == "memory":
        fsspec.filesystem("memory").makedirs(f"/{tmp_path.name}", exist_ok=True)
        return f"memory://{tmp_path.name}"
    request.getfixturevalue("environment")
    return f"s3://checkpoints/{uuid.uuid4().hex[:12]}"


class Requests(logging.Handler):
    """The operation names of the requests, as botocore and fsspec_csx log them."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.operations: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if message.startswith("Making request for OperationModel"):
            self.operations.append(message.split("name=")[1].split(")")[0])
        elif message.startswith(("Sending GetObject", "Sending PutObject", "Sending UploadPart")):
            self.operations.append(message.split()[1])


@contextmanager
def recorded_requests() -> Iterator[list[str]]:
    """The operations sent to S3 within the block, in order."""
    handler = Requests()
    loggers = [logging.getLogger(name) for name in ("botocore.endpoint", "aiobotocore.endpoint", "fsspec_csx")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.DEBUG)
    try:
        yield handler.operations
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)
