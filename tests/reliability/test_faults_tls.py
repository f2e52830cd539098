"""Operations under faults of TLS connections; the long form is ``run.py --tls``."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from conftest import TENANT_BUCKET
from handshakes import Handshakes, Oddity
from kinds import KINDS
from place import direct_client
from proxy import Fault, FaultProxy, fault_proxy, through
from scenarios import SCENARIOS
from schedule import one, schedule
from trial import Bench, bench

from fsspec_csx.errors import EndpointError, UntrustedCertificateError
from fsspec_csx.s3.filesystem import CSXFileSystem
from fsspec_csx.testing import LocalS3

# Python leaves a socket to the collector whose connection was reset before its handshake began.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <(ssl.SSLSocket|.*TLSSocket):pytest.PytestUnraisableExceptionWarning"
)
_SEED = 1
_OPERATIONS = ("save", "load", "copy up", "distributed.save")
_OF_TLS = [name for name, kind in KINDS.items() if kind.tls]
LARGE = bytes(11 * 2**20)


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    """What a test leaves to the collector is collected before the next one."""
    yield
    gc.collect()


@pytest.fixture(scope="module")
def trials(server: LocalS3) -> Iterator[Bench]:
    """Where trials are made."""
    client = direct_client(server)
    if TENANT_BUCKET not in {each["Name"] for each in client.list_buckets()["Buckets"]}:
        client.create_bucket(Bucket=TENANT_BUCKET)
    with bench(server, TENANT_BUCKET, ("admin", "tenant"), tls=True) as made:
        yield made


@pytest.fixture(scope="module")
def fitting(trials: Bench) -> dict[str, dict[str, int]]:
    """For each operation, how many of its requests each kind of fault could happen to."""
    return {name: trials.fitting(SCENARIOS[name], f"tls-unharmed-{name.replace(' ', '-')}") for name in _OPERATIONS}


@pytest.mark.parametrize("name", _OPERATIONS)
def test_scenario(
    trials: Bench, fitting: dict[str, dict[str, int]], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever happens to an operation, it is done or clearly refused."""
    monkeypatch.setattr(logging.root.manager, "disable", logging.CRITICAL)
    faults = schedule(f"{_SEED}-{name}", fitting[name])
    outcome = trials.tried(SCENARIOS[name], faults, f"tls-scenario-{_OPERATIONS.index(name)}")
    assert outcome.result != "lost", outcome.detail
    assert outcome.faults


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *((kind, name) for kind in _OF_TLS for name in ("save", "load")),
        ("cut on the way down", "load"),
        ("connection reset", "save"),
    ],
)
def test_kind(trials: Bench, fitting: dict[str, dict[str, int]], kind: str, name: str) -> None:
    """Each kind of fault happens, and what it happens to is done or clearly refused."""
    planned = one(kind, fitting[name], Random(f"{_SEED}-{kind}"), always=False)
    outcome = trials.tried(SCENARIOS[name], [planned], f"tls-{name}-{list(KINDS).index(kind)}")
    assert outcome.result != "lost", outcome.detail
    assert outcome.faults == (kind,)


@pytest.fixture
def proxy(server: LocalS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """A proxy that speaks TLS, and whose authority is trusted."""
    handshakes = Handshakes(tmp_path)
    monkeypatch.setenv("AWS_CA_BUNDLE", str(handshakes.trusted))
    with fault_proxy(server.endpoint_url, handshakes) as running:
        yield running


@pytest.mark.parametrize(
    ("odd", "kind", "report"),
    [
        ("of a stranger", UntrustedCertificateError, "certificate .* is not trusted.*AWS_CA_BUNDLE"),
        ("stalled", EndpointError, "did not answer in time"),
        ("broken off", EndpointError, "The TLS connection to .* failed"),
    ],
    ids=["of a stranger", "stalled", "broken off"],
)
def test_change_in_the_middle_of_an_upload(
    server: LocalS3, fs: CSXFileSystem, bucket: str, proxy: FaultProxy, odd: Oddity, kind: type[Exception], report: str
) -> None:
    """Whoever has another certificate from the second part on gets nothing more, and the old object stays."""
    assert proxy.handshakes
    fs.pipe_file(f"{bucket}/key", b"former")
    soon = {"connect_timeout": 1, "read_timeout": 1, "retries": {"max_attempts": 1}}
    far = through(proxy, server, config_kwargs=soon, max_concurrency=1)
    far.retries = 1
    far.pipe_file(f"{bucket}/other", b"data")  # it is in touch with the one whom it trusts
    proxy.faults = [Fault("PUT", "partNumber=", skip=1, times=100, odd=[odd] * 100)]
    with pytest.raises(kind, match=report) as caught:
        far.pipe_file(f"{bucket}/key", LARGE, chunksize=5 * 2**20)
    assert type(caught.value) is kind
    assert fs.cat_file(f"{bucket}/key") == b"former"
    assert len(proxy.made("PUT", "partNumber=")) == 2


def test_damage_within_tls(server: LocalS3, bucket: str, proxy: FaultProxy) -> None:
    """What was damaged on the way is reported as that, and not as a matter of certificates."""
    far = through(proxy, server, config_kwargs={"retries": {"max_attempts": 1}})
    far.retries = 1
    far.pipe_file(f"{bucket}/key", b"data")
    for attempt in (far.ls, far.cat_file):
        proxy.faults = [Fault(times=100, garbage=0)]
        with pytest.raises(EndpointError, match=r"damaged in transit.*Try again") as caught:
            attempt(f"{bucket}/key" if attempt == far.cat_file else bucket)
        assert type(caught.value) is EndpointError
        proxy.faults = []
        assert far.cat_file(f"{bucket}/key") == b"data"
