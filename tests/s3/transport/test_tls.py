"""Bodies that are sent and received by TLS are as safe as those without it."""

from __future__ import annotations

import os
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from ctrl_c import ctrl_c
from proxy import Fault, FaultProxy, proxy_by, through

from fsspec_csx.errors import EndpointError, UntrustedCertificateError
from fsspec_csx.s3.filesystem import CSXFileSystem
from fsspec_csx.s3.transport import compat
from fsspec_csx.testing import LocalS3

MIB = 2**20
DATA = os.urandom(10 * MIB + 4321)
PATH = "tls/object"


@pytest.fixture(scope="module", autouse=True)
def objects(server: LocalS3) -> None:
    """An object of several parts."""
    fsspec.filesystem("s3", **server.storage_options()).pipe_file(PATH, DATA)


@pytest.fixture
def proxy(server: LocalS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """A proxy that speaks TLS, and whose authority is trusted."""
    monkeypatch.setattr("botocore.retryhandler.random.random", lambda: 0.01)
    with proxy_by("https", server, tmp_path) as running:
        yield running


@pytest.fixture
def far(server: LocalS3, proxy: FaultProxy) -> CSXFileSystem:
    """A filesystem behind the proxy."""
    return through(proxy, server)


def read(fs: CSXFileSystem) -> bytes:
    """Read the object straight into memory."""
    with fs.open(PATH, "rb") as file:
        buffer = bytearray(file.size)
        assert file.readinto(buffer) == len(buffer)
    return bytes(buffer)


@pytest.mark.parametrize("known", [True, False])
def test_reads_of_any_shape(far: CSXFileSystem, monkeypatch: pytest.MonkeyPatch, known: bool) -> None:
    """Short buffers, long ones and gaps get their bytes, also those that come with the head of the response.

    So they do where Python's TLS has other private names.
    """
    monkeypatch.setattr(compat, "KNOWS_TLS", known)
    sizes = [10, 5, 8192, 70_000, 3, 100_000, 3 * MIB, 16_384, 1]
    for gap in (0, 7, 70_000):
        spans, position = [], gap
        for size in sizes:
            spans.append((position, memoryview(bytearray(size))))
            position += size + gap
        with far.open(PATH, "rb", size=len(DATA)) as file:
            file.readinto_many(spans)
        assert all(memory == DATA[start : start + len(memory)] for start, memory in spans)
    assert far.cat_file(PATH) == DATA


@pytest.mark.parametrize("fault", ["stall_down", "cut_down"])
def test_resumes_at_the_last_byte(server: LocalS3, proxy: FaultProxy, fault: str) -> None:
    """A connection that ends or stalls within a body costs none of the bytes before that."""
    far = through(proxy, server, config_kwargs={"read_timeout": 2 if fault == "stall_down" else 100})
    assert far.cat_file(PATH) == DATA
    for after in (1, 5000, MIB + 7) if fault == "cut_down" else (MIB + 7,):
        proxy.requests, broken = [], []
        proxy.faults = [Fault("GET", when=lambda one, broken=broken: not broken.append(one), **{fault: after})]
        assert far.cat_file(PATH) == DATA
        first, end = broken[0].span or (0, 4 * MIB)
        assert (first + after, end) in [one.span for one in proxy.made("GET")[1:]]


@pytest.mark.parametrize("closes", [False, True])
@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_ctrl_c_while_nothing_moves(server: LocalS3, proxy: FaultProxy, method: str, closes: bool) -> None:
    """Ctrl-C ends a stalled read or write at once, also if the connection is to be closed after it."""
    fs = through(proxy, server, config_kwargs={"read_timeout": 100, "connect_timeout": 100})
    fs.pipe_file("tls/other", b"former")
    stall = {"stall_down": MIB} if method == "GET" else {"stall_up": MIB}
    proxy.faults = [Fault(method, times=1000, headers={"Connection": "close"} if closes else {}, **stall)]  # type: ignore[arg-type]
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt), ctrl_c(0.5):
        if method == "GET":
            read(fs)
        else:
            fs.pipe_file("tls/other", DATA)
    assert time.monotonic() - began < 25
    proxy.faults = []
    assert fs.cat_file("tls/other") == b"former"


def test_sessions_are_resumed(far: CSXFileSystem, proxy: FaultProxy) -> None:
    """Only the first of the connections for bodies has a full handshake, where the server gives tickets."""
    assert proxy.handshakes
    for version, tickets in (
        (ssl.TLSVersion.TLSv1_3, True),
        (ssl.TLSVersion.TLSv1_3, False),
        (ssl.TLSVersion.TLSv1_2, True),
    ):
        proxy.handshakes.limit(version, tickets=tickets)
        proxy.faults = [Fault("GET", cut_down=0)]  # so that there is a new one
        assert far.cat_file(PATH) == DATA
        proxy.handshakes.resumed.clear()
        proxy.faults = [Fault("GET", times=3, cut_down=0)]
        assert far.cat_file(PATH) == DATA
        assert proxy.handshakes.resumed
        if version == ssl.TLSVersion.TLSv1_3:
            assert set(proxy.handshakes.resumed) == {tickets}


def test_new_certificates_are_trusted(far: CSXFileSystem, proxy: FaultProxy) -> None:
    """Authorities are loaded once, and again when their file has changed; one of a stranger is refused."""
    assert proxy.handshakes
    assert far.cat_file(PATH) == DATA
    proxy.handshakes.renew()
    proxy.faults = [Fault("GET", times=100, cut_down=0)]
    with pytest.raises((UntrustedCertificateError, EndpointError)):
        far.cat_file(PATH)
    proxy.faults = []
    proxy.handshakes.trusted.write_bytes(proxy.handshakes.authority.cert_pem.bytes() + b"\n")
    assert far.cat_file(PATH) == DATA


def test_stall_of_an_endpoint_in_capitals(server: LocalS3, bucket: str, proxy: FaultProxy) -> None:
    """The time limit of TLS does not depend on how the scheme of the endpoint is written."""
    soon = {"read_timeout": 1, "retries": {"total_max_attempts": 1}}
    far = through(proxy, server, endpoint_url=proxy.url.replace("https", "HTTPS"), config_kwargs=soon)
    far.retries = 1
    proxy.faults = [Fault("PUT", delay=10, times=100)]
    with pytest.raises(EndpointError, match="did not answer in time"):
        far.pipe_file(f"{bucket}/key", b"data")
