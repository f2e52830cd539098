"""The first request to a server that is starting, refuses connections, has moved, or lacks the bucket."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import pytest
from conftest import recorded_requests
from proxy import Fault, fault_proxy, through

from fsspec_csx.errors import BucketNotFoundError, EndpointError, ObjectNotFoundError
from fsspec_csx.s3.client import retries
from fsspec_csx.s3.filesystem import CSXFileSystem
from fsspec_csx.testing import LocalS3


@contextlib.contextmanager
def listening_later(server: LocalS3, listener: socket.socket, seconds: float) -> Iterator[None]:
    """Within the block, from so many seconds on, pass connections on to a server."""

    def serve() -> None:
        time.sleep(seconds)
        host, _, real = server.endpoint_url.removeprefix("http://").partition(":")
        listener.settimeout(60)
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            listener.listen()
            while True:
                client, _ = listener.accept()
                stack.enter_context(client)
                upstream = stack.enter_context(socket.create_connection((host, int(real))))
                for pair in ((client, upstream), (upstream, client)):
                    thread = threading.Thread(target=pump, args=pair)
                    thread.start()
                    stack.callback(thread.join)
                    stack.callback(pair[0].shutdown, socket.SHUT_RDWR)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def pump(source: socket.socket, target: socket.socket) -> None:
    """Pass bytes on until there are no more."""
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)


@pytest.mark.slow
def test_server_that_is_just_starting(
    server: LocalS3,
    fs: CSXFileSystem,
    bucket: str,
    closed: socket.socket,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Requests of every kind succeed once the server takes connections, after more attempts than botocore makes."""
    monkeypatch.setattr(retries, "FIRST_CONTACT_SECONDS", 60.0)
    fs.pipe_file(f"{bucket}/key", b"data")
    options = {**server.storage_options(), "endpoint_url": f"http://127.0.0.1:{closed.getsockname()[1]}"}
    calls = [("ls", bucket), ("cat_file", f"{bucket}/key"), ("pipe_file", f"{bucket}/new", b"x" * 2**20)]
    calls += [("get_file", f"{bucket}/key", str(tmp_path / "key")), ("exists", f"{bucket}/key")]

    def call(name: str, *arguments: object) -> None:
        far = fsspec.filesystem("s3", **options, use_listings_cache=False, skip_instance_cache=True)
        getattr(far, name)(*arguments)

    with listening_later(server, closed, 2.4), ThreadPoolExecutor(len(calls)) as threads:
        for each in [threads.submit(call, *each) for each in calls]:
            each.result()
    assert fs.size(f"{bucket}/new") == 2**20


@pytest.mark.parametrize("url", ["http://127.0.0.1:{}", "http://no-such-host.invalid"])
def test_server_that_never_starts(closed_port: int, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An address that refuses connections, or is unknown, is tried for some seconds; a configuration may set one try.

    The error names the endpoint, and for how long it was tried.
    """
    monkeypatch.setattr(retries, "FIRST_CONTACT_SECONDS", 1.0)
    url = url.format(closed_port)
    once = {"retries": {"total_max_attempts": 1}}
    for config, least, clause in (({}, 1, r"retried for \d+ seconds"), (once, 0, "")):
        fs = fsspec.filesystem("s3", key="k", secret="s", endpoint_url=url, config_kwargs=config)
        for call in (fs.cat_file, fs.ls):
            began = time.monotonic()
            with pytest.raises(EndpointError, match=f"{url}.* cannot be reached.*{clause}") as caught:
                call("bucket/key")
            assert time.monotonic() - began >= least
            assert ("retried" in str(caught.value)) == bool(clause)


@pytest.fixture
def full() -> Iterator[str]:
    """The URL of a listener whose queue is full: connections to it neither come about nor are refused."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        waiting = []
        for _ in range(8):
            one = socket.socket()
            one.setblocking(False)
            one.connect_ex(listener.getsockname())
            waiting.append(one)
        time.sleep(0.1)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        for one in waiting:
            one.close()


@pytest.mark.parametrize("way", ["ls", "cat_file"])
def test_connect_timeout(full: str, way: str) -> None:
    """The time to connect is that of the configuration, for requests of every kind, without TLS too."""
    config = {"connect_timeout": 1, "read_timeout": 100}
    fs = fsspec.filesystem("s3", key="k", secret="s", endpoint_url=full, config_kwargs=config, skip_instance_cache=True)
    began = time.monotonic()
    with pytest.raises(EndpointError, match="in time"):
        getattr(fs, way)("bucket/key")
    assert 0.9 < time.monotonic() - began < 60


@pytest.mark.slow
def test_slow_answer_is_no_slow_connection(server: LocalS3, fs: CSXFileSystem, bucket: str) -> None:
    """The time to connect does not limit how long a body takes, either way."""
    data = b"x" * 3_000_000
    with fault_proxy(server.endpoint_url) as proxy:
        far = through(proxy, server, config_kwargs={"connect_timeout": 0.5, "read_timeout": 20})
        proxy.faults = [Fault(times=100, when=lambda request: request.method in ("GET", "PUT"), rate=1_500_000)]
        far.pipe_file(f"{bucket}/key", data)
        assert far.cat_file(f"{bucket}/key") == data


def test_server_that_moves(server: LocalS3, fs: CSXFileSystem, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a server has another address under the same name, requests of every kind go there."""
    resolve, addresses = socket.getaddrinfo, ["127.0.0.1", "127.0.0.2"]

    def look_up(host: str, *args: Any, **options: Any) -> Any:
        return resolve(addresses[0] if host == "s3.test" else host, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    with socket.create_server(("127.0.0.1", 0)) as former:
        port = former.getsockname()[1]
        options = {**server.storage_options(), "endpoint_url": f"http://s3.test:{port}", "use_listings_cache": False}
        moving = fsspec.filesystem("s3", **options, skip_instance_cache=True)
        with listening_later(server, former, 0):
            moving.pipe_file(f"{bucket}/key", b"data")
            assert moving.cat_file(f"{bucket}/key") == b"data"
            assert moving.ls(bucket) == [f"{bucket}/key"]
    del addresses[0]
    with socket.create_server(("127.0.0.2", port)) as latter, listening_later(server, latter, 0):
        assert moving.ls(bucket) == [f"{bucket}/key"]
        assert moving.cat_file(f"{bucket}/key") == b"data"
        moving.pipe_file(f"{bucket}/key", b"new")
    assert fs.cat_file(f"{bucket}/key") == b"new"


def test_missing_bucket_at_a_head(fs: CSXFileSystem, bucket: str, new_bucket: str) -> None:
    """A HEAD in a bucket that is not there says so, and one more request finds that out; looking up makes none."""
    with pytest.raises(BucketNotFoundError, match=new_bucket), recorded_requests() as operations:
        fs.call_s3("head_object", Bucket=new_bucket, Key="key")
    assert operations == ["HeadObject", "GetObject"]
    with pytest.raises(ObjectNotFoundError):
        fs.call_s3("head_object", Bucket=bucket, Key="key")
    with recorded_requests() as operations:
        assert not fs.exists(f"{bucket}/key")
    assert "GetObject" not in operations
