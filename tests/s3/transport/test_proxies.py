"""Transfers through proxies are as without them; only the proxy gets its own credentials."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import pytest
from handshakes import Handshakes
from proxy import FaultProxy, fault_proxy
from relay import relaying

from fsspec_csx import errors
from fsspec_csx.s3.filesystem import CSXFileSystem
from fsspec_csx.testing import LocalS3

USER = base64.b64encode(b"someone:a password").decode()


def behind(proxy: str, endpoint: FaultProxy, server: LocalS3) -> CSXFileSystem:
    """A filesystem whose requests go through a proxy."""
    scheme, _, place = proxy.partition("://")
    proxies = dict.fromkeys(("http", "https"), f"{scheme}://someone:a%20password@{place}")
    options = {**server.storage_options(), "endpoint_url": endpoint.url}
    return CSXFileSystem(**options, config_kwargs={"proxies": proxies}, skip_instance_cache=True)


@pytest.mark.parametrize("by", ["http", "https"])
@pytest.mark.parametrize("to", ["http", "https"])
def test_objects(
    server: LocalS3, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str, to: str
) -> None:
    """Large and small objects are written and read, and connections are used again."""
    handshakes = Handshakes(tmp_path)
    monkeypatch.setenv("AWS_CA_BUNDLE", str(handshakes.trusted))
    objects = {f"{bucket}/{number} é+%": os.urandom(100 + number) for number in range(20)}
    large = os.urandom(12 * 2**20)
    with (
        fault_proxy(server.endpoint_url, handshakes if to == "https" else None) as endpoint,
        relaying(handshakes if by == "https" else None) as relay,
    ):
        fs = behind(relay.url, endpoint, server)
        fs.pipe_file(f"{bucket}/large", large)
        assert fs.cat_file(f"{bucket}/large", start=0, end=11 * 2**20) == large[: 11 * 2**20]
        with fs.transfer.slots.fixed(16):
            fs.pipe(objects)
            assert fs.cat(list(objects)) == objects
        heads = list(relay.heads)
        assert len(heads) < len(endpoint.requests)
        for head in heads:
            method, target = head.split(" ")[:2]
            assert f"Proxy-Authorization: Basic {USER}" in head
            assert (method == "CONNECT") == (to == "https")
            assert target.startswith(endpoint.url) or to == "https"
            assert "Authorization: AWS4" not in head or to == "http"
        if to == "https":
            assert not any("proxy-authorization" in each.headers for each in endpoint.requests)
        assert not any("//" in each.path for each in endpoint.requests)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_refusals(server: LocalS3, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    """A proxy that refuses to connect, talks nonsense or has a wrong certificate is named, without its password."""
    monkeypatch.setattr("botocore.retryhandler.random.random", lambda: 0.01)
    handshakes = Handshakes(tmp_path) if scheme == "https" else None
    if handshakes:
        monkeypatch.setenv("AWS_CA_BUNDLE", str(handshakes.trusted))
    for refusal in (b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n", b"nonsense\r\n\r\n"):
        with (
            fault_proxy(server.endpoint_url, Handshakes(tmp_path / "..")) as endpoint,
            relaying(handshakes, refusal) as relay,
        ):
            fs = behind(relay.url, endpoint, server)
            with pytest.raises(errors.EndpointError, match=f"proxy {relay.url}.*{endpoint.url}") as caught:
                fs.cat_file(f"{bucket}/key")
            assert "password" not in str(caught.value)
            assert not endpoint.requests
