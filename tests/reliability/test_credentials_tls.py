"""A server without a valid certificate gets no credentials, from botocore's connections or this package's."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import socketserver
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import trustme
from botocore.awsrequest import AWSRequest
from botocore.exceptions import InvalidConfigError, SSLError
from listener import listening
from urllib3.exceptions import InsecureRequestWarning

from fsspec_csx.doctor.run import checks
from fsspec_csx.errors import EndpointError, UntrustedCertificateError
from fsspec_csx.s3.client.no_redirects import BoundedHTTPSession
from fsspec_csx.s3.filesystem import CSXFileSystem
from fsspec_csx.testing import LocalS3

LARGE = bytes(6 * 2**20)
BUCKET = "certificates"


def write(fs: CSXFileSystem) -> None:
    """Write through a file."""
    with fs.open(f"{BUCKET}/key", "wb") as file:
        file.write(b"data")


# By aiohttp, and by threads of our own.
OPERATIONS: dict[str, Callable[[CSXFileSystem], object]] = {
    "buckets": lambda fs: fs.ls(""),
    "info": lambda fs: fs.info(f"{BUCKET}/key"),
    "cat": lambda fs: fs.cat_file(f"{BUCKET}/key"),
    "write": write,
    "pipe": lambda fs: fs.pipe_file(f"{BUCKET}/key", b"data"),
    "pipe_parts": lambda fs: fs.pipe_file(f"{BUCKET}/key", LARGE, chunksize=5 * 2**20),
}


def client(url: str, server: LocalS3, **options: object) -> CSXFileSystem:
    """A filesystem of its own with this endpoint."""
    more = {"endpoint_url": url, "use_listings_cache": False, "skip_instance_cache": True, **options}
    made = fsspec.filesystem("s3", **{**server.storage_options(), **more})
    assert isinstance(made, CSXFileSystem)
    return made


@pytest.fixture(scope="module")
def expired(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The URL of a server whose certificate was good until yesterday, and who signed it."""
    authority, folder = trustme.CA(), tmp_path_factory.mktemp("expired")
    yesterday = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(days=1)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1", not_after=yesterday).configure_cert(context)
    (folder / "ca.pem").write_bytes(authority.cert_pem.bytes())
    with listening(tls=context) as running:
        yield running.url, folder / "ca.pem"
        assert not running.heard


@pytest.mark.parametrize("operation", OPERATIONS)
def test_unknown_authority(secure_server: tuple[LocalS3, Path], operation: str) -> None:
    """Whoever signed its own certificate is refused, with the remedy."""
    server, _ = secure_server
    with pytest.raises(UntrustedCertificateError, match=f"{server.endpoint_url}.*AWS_CA_BUNDLE"):
        OPERATIONS[operation](client(server.endpoint_url, server))


@pytest.mark.parametrize("operation", OPERATIONS)
def test_other_name(secure_server: tuple[LocalS3, Path], monkeypatch: pytest.MonkeyPatch, operation: str) -> None:
    """A certificate of somebody else is refused, whoever signed it; to trust more authorities is not the remedy."""
    server, authority = secure_server
    monkeypatch.setenv("AWS_CA_BUNDLE", str(authority))
    url = server.endpoint_url.replace("127.0.0.1", "localhost")
    with pytest.raises(UntrustedCertificateError, match=f"{url}.*Name the endpoint as its certificate does"):
        OPERATIONS[operation](client(url, server))


@pytest.mark.parametrize("operation", ["info", "cat", "pipe"])
def test_expired_certificate(
    expired: tuple[str, Path], server: LocalS3, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    """A certificate that has expired is reported as that."""
    url, authority = expired
    monkeypatch.setenv("AWS_CA_BUNDLE", str(authority))
    with pytest.raises(UntrustedCertificateError, match=r"has expired.*renewed"):
        OPERATIONS[operation](client(url, server))


@pytest.mark.parametrize("operation", ["info", "cat", "pipe"])
def test_server_without_tls(server: LocalS3, operation: str) -> None:
    """A server that speaks plain HTTP at an https:// endpoint is reported as such, and receives nothing."""
    url = server.endpoint_url.replace("http:", "https:")
    with pytest.raises(EndpointError, match=r"does not speak TLS.*http://") as caught:
        OPERATIONS[operation](client(url, server))
    assert not isinstance(caught.value, UntrustedCertificateError)


@pytest.mark.parametrize("named", ["AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "profile", "verify", "unverified"])
def test_ways_to_trust(
    secure_server: tuple[LocalS3, Path], aws_files: Path, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    """Each way to name an authority holds for everything, and doctor says which it was."""
    server, authority = secure_server
    options: dict[str, object] = dict(server.storage_options())
    report = f"{authority}, named by {named}"
    if named == "profile":
        (aws_files / "config").write_text(f"[default]\nca_bundle = {authority}\n")
        report = f"{authority}, ca_bundle of profile 'default'"
    elif named in ("verify", "unverified"):
        options["client_kwargs"] = {"verify": str(authority) if named == "verify" else False}
        report = f"{authority}, named by client_kwargs" if named == "verify" else "none are checked, as verify is False"
    else:
        monkeypatch.setenv(named, str(authority))
    unverified = pytest.warns(InsecureRequestWarning)
    with unverified if named == "unverified" else contextlib.nullcontext():
        fs = fsspec.filesystem("s3", skip_instance_cache=True, use_listings_cache=False, **options)
        write(fs)
        for operation in OPERATIONS.values():
            operation(fs)
        assert fs.cat_file(f"{BUCKET}/key") == LARGE
        seen = {check.name: check for check in checks(storage_options=options)}
    assert report in seen["certificates"].text
    assert seen["certificates"].ok is (None if named == "unverified" else True)
    assert seen["reachable"].ok


def test_change_of_trust(secure_server: tuple[LocalS3, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bundle that is named later counts at the next open, and so does one that is named no more."""
    server, authority = secure_server
    for name in ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE"):
        with pytest.raises(UntrustedCertificateError):
            fsspec.filesystem("s3", **server.storage_options()).ls("")
        monkeypatch.setenv(name, str(authority))
        fsspec.filesystem("s3", **server.storage_options()).ls("")
        monkeypatch.delenv(name)


def test_http_loads_no_certificates(server: LocalS3, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests by http do not load certificates, which takes as long as several requests."""
    loaded: list[object] = []
    load = ssl.SSLContext.load_verify_locations

    def note(context: ssl.SSLContext, *args: Any, **kwargs: Any) -> None:
        loaded.append(args)
        load(context, *args, **kwargs)

    monkeypatch.setattr(ssl.SSLContext, "load_verify_locations", note)
    client(server.endpoint_url, server).ls("")
    assert not loaded


def test_https_after_http(server: LocalS3, secure_server: tuple[LocalS3, Path]) -> None:
    """The connections of one client verify the certificate by https, also after requests by http."""
    secure, authority = secure_server

    async def ask(url: str, verify: bool | str) -> None:
        async with BoundedHTTPSession(verify=verify) as session:
            for each in (server.endpoint_url, url):
                await session.send(AWSRequest("GET", f"{each}/", stream_output=True).prepare())

    asyncio.run(ask(secure.endpoint_url, str(authority)))
    with pytest.raises(SSLError):
        asyncio.run(ask(secure.endpoint_url, True))


def test_empty_name_of_a_bundle(secure_server: tuple[LocalS3, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """A bundle whose name is empty is refused, not taken for the wish to verify nothing."""
    server, _ = secure_server
    with pytest.raises(UntrustedCertificateError, match="AWS_CA_BUNDLE"):
        BoundedHTTPSession(verify="")
    monkeypatch.setenv("AWS_CA_BUNDLE", "")
    for operation in OPERATIONS.values():
        with pytest.raises((UntrustedCertificateError, InvalidConfigError)):  # newer releases of botocore refuse it
            operation(client(server.endpoint_url, server))


def test_certificate_behind_a_proxy(server: LocalS3) -> None:
    """Certificates are verified through a proxy too, for requests by aiohttp and by threads."""
    context, heard = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), []
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)

    class Tunnel(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            while self.rfile.readline().strip():
                pass
            self.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
            with contextlib.suppress(OSError), context.wrap_socket(self.request, server_side=True) as secured:
                heard.append(secured.recv(9))

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Tunnel) as proxy:
        thread = threading.Thread(target=proxy.serve_forever, args=(0.05,))
        thread.start()
        options = {"proxies": {"https": f"http://127.0.0.1:{proxy.server_address[1]}"}}
        try:
            for operation in ("buckets", "info", "cat", "pipe"):
                with pytest.raises(UntrustedCertificateError):
                    OPERATIONS[operation](client("https://127.0.0.1:9", server, config_kwargs=options))
        finally:
            proxy.shutdown()
            thread.join()
    assert not any(heard)
