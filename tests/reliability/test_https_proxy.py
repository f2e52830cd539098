"""An https proxy before an http endpoint must have a trusted certificate."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from handshakes import Handshakes
from proxy import FaultProxy, fault_proxy

from fsspec_csx.doctor.run import checks
from fsspec_csx.errors import UntrustedCertificateError
from fsspec_csx.s3.filesystem import CSXFileSystem
from fsspec_csx.s3.transport.concurrency import MIN_REQUESTS
from fsspec_csx.testing import LocalS3


@pytest.fixture
def handshakes(tmp_path: Path) -> Handshakes:
    """The certificates of the proxy."""
    return Handshakes(tmp_path)


@pytest.fixture
def proxy(server: LocalS3, handshakes: Handshakes) -> Iterator[FaultProxy]:
    """A proxy by https."""
    with fault_proxy(server.endpoint_url, handshakes) as running:
        yield running


def through(server: LocalS3, proxy: FaultProxy, **config: Any) -> CSXFileSystem:
    """A filesystem whose requests go by a proxy."""
    config["proxies"] = {"http": proxy.url}
    return CSXFileSystem(**server.storage_options(), config_kwargs=config, skip_instance_cache=True)


def test_stranger(server: LocalS3, proxy: FaultProxy, bucket: str) -> None:
    """No request is sent to a proxy whose certificate is not trusted, whichever way it would go."""
    objects = {f"{bucket}/{number}": b"%d" % number for number in range(20)}
    for call in (
        lambda fs: fs.ls(bucket),
        lambda fs: fs.pipe_file(f"{bucket}/x", b"data"),
        lambda fs: fs.pipe(objects),
        lambda fs: fs.cat_file(f"{bucket}/x"),
        lambda fs: fs.cat(list(objects)),
    ):
        for requests in (MIN_REQUESTS, 16):
            fs = through(server, proxy, retries={"max_attempts": 1})
            fs.connect()
            with fs.transfer.slots.fixed(requests), pytest.raises(UntrustedCertificateError):
                call(fs)
    options = {**server.storage_options(), "config_kwargs": {"proxies": {"http": proxy.url}}}
    (reachable,) = (check for check in checks(None, storage_options=options, speed=False) if check.name == "reachable")
    assert reachable.ok is False
    assert not proxy.requests


@pytest.mark.parametrize("way", ["AWS_CA_BUNDLE", "proxy_ca_bundle"])
def test_trusted(
    server: LocalS3,
    proxy: FaultProxy,
    handshakes: Handshakes,
    bucket: str,
    monkeypatch: pytest.MonkeyPatch,
    way: str,
) -> None:
    """The certificates of the endpoint, or of the proxy alone, make it trusted."""
    config: dict[str, Any] = {}
    if way == "proxy_ca_bundle":
        config["proxies_config"] = {way: str(handshakes.trusted)}
    else:
        monkeypatch.setenv(way, str(handshakes.trusted))
    fs = through(server, proxy, **config)
    objects = {f"{bucket}/{number}": b"%d" % number for number in range(20)}
    fs.pipe(objects)
    assert fs.cat(list(objects)) == objects
    assert sorted(fs.ls(bucket, detail=False)) == sorted(objects)
    assert len(proxy.requests) > 40
