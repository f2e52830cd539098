"""Credentials that change, expire or are not renewed during a long job."""

from __future__ import annotations

import datetime
import gc
import json
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import fsspec
import pytest
import torch
from proxy import Fault, FaultProxy, Request, error_answer, fault_proxy

import fsspec_csx
from fsspec_csx.errors import CredentialsError, ExpiredCredentialsError
from fsspec_csx.s3.filesystem import CSXFileSystem
from fsspec_csx.testing import Identity, LocalS3

MIB = 2**20
BLOCK = 5 * MIB
DATA = os.urandom(4 * BLOCK + 1234)
BUCKET = "rotation"
EXPIRED = error_answer(400, "ExpiredToken")
NAMES = ["first", "second", "third", "fourth"]

# Prints the keys that are valid now, and counts how often it is called.
PROCESS = """
[ -e {0}/broken ] && cat {0}/broken >&2 && exit 1
echo >> {0}/asked
cat {0}/keys
"""


@dataclass
class Source:
    """Where the keys come from that are good now.

    Attributes:
        give: makes the keys of an identity those.
        good: the access key.
        profile: whose keys they are; None for the environment.
        folder: of the AWS files.
    """

    give: Callable[[Identity], None]
    good: str
    profile: str | None
    folder: Path


@pytest.fixture(scope="module")
def store() -> Iterator[LocalS3]:
    """A server with several identities that may do all."""
    with LocalS3(identities=[Identity.full(name) for name in NAMES]) as running:
        fsspec.filesystem("s3", **running.storage_options()).mkdir(BUCKET)
        yield running


@pytest.fixture
def proxy(store: LocalS3, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """A proxy before it, which is the endpoint that the environment names."""
    with fault_proxy(store.endpoint_url) as running:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", running.url)
        yield running


@pytest.fixture
def admin(store: LocalS3) -> CSXFileSystem:
    """A filesystem with credentials that do not change."""
    made = fsspec.filesystem("s3", **store.storage_options(), use_listings_cache=False)
    assert isinstance(made, CSXFileSystem)
    return made


def write_atomically(path: Path, text: str) -> None:
    """Let a file have a text at once: it may be read at any moment."""
    new = path.with_name(f"{path.name}-{threading.get_ident()}")
    new.write_text(text)
    new.replace(path)


def printed(identity: Identity, seconds: float) -> str:
    """What a program prints that gives the keys of an identity, which end so many seconds from now."""
    ends = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=seconds)
    keys = {"AccessKeyId": identity.access_key, "SecretAccessKey": identity.secret_key}
    return json.dumps({"Version": 1, **keys, "Expiration": ends.isoformat()})


def running_program(folder: Path) -> None:
    """Let the profile "work" get its keys from a program, which gives what the file "keys" has."""
    (folder / "give").write_text(PROCESS.format(folder))
    (folder / "config").write_text(f"[profile work]\ncredential_process = sh {folder / 'give'}\n")


@pytest.fixture(params=["process", "file", "environment"])
def source(request: pytest.FixtureRequest, store: LocalS3, aws_files: Path, monkeypatch: pytest.MonkeyPatch) -> Source:
    """Each place that keys can be changed in."""
    if request.param == "process":
        running_program(aws_files)

    def give(identity: Identity) -> None:
        if request.param == "process":
            write_atomically(aws_files / "keys", printed(identity, 60))
        elif request.param == "file":
            keys = f"aws_access_key_id = {identity.access_key}\naws_secret_access_key = {identity.secret_key}\n"
            write_atomically(aws_files / "credentials", f"[work]\n{keys}")
        else:
            monkeypatch.setenv("AWS_ACCESS_KEY_ID", identity.access_key)
            monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", identity.secret_key)
        made.good = identity.access_key

    made = Source(give, "", None if request.param == "environment" else "work", aws_files)
    give(store.identities[0])
    return made


@pytest.fixture
def fs(source: Source, proxy: FaultProxy) -> CSXFileSystem:
    """A filesystem with the keys that are good now."""
    made = fsspec.filesystem("s3", profile=source.profile, use_listings_cache=False, skip_instance_cache=True)
    assert isinstance(made, CSXFileSystem)
    return made


def signer_of(request: Request) -> str:
    """The access key that a request is signed by."""
    return request.headers["authorization"].partition("Credential=")[2].partition("/")[0]


def changing(store: LocalS3, source: Source, every: int) -> list[Fault]:
    """After every so many requests that move data the next identity's keys are the good ones, and others expired."""
    lock, seen = threading.Lock(), [0]

    def refused(request: Request) -> bool:
        with lock:
            moves = request.method in ("PUT", "GET") and signer_of(request) == source.good
            seen[0] += moves
            if moves and seen[0] % every == 0 and seen[0] // every < len(NAMES):
                source.give(store.identities[seen[0] // every])
            return signer_of(request) != source.good

    return [Fault(when=refused, times=1000, answer=EXPIRED)]


def write(fs: CSXFileSystem, path: str) -> None:
    """Write through a file, bit by bit."""
    with fs.open(path, "wb", block_size=BLOCK) as file:
        for start in range(0, len(DATA), MIB):
            file.write(DATA[start : start + MIB])


WRITES: dict[str, Callable[[CSXFileSystem, str], object]] = {
    "open": write,
    "pipe": lambda fs, path: fs.pipe_file(path, DATA, chunksize=BLOCK),
}


@pytest.mark.parametrize("name", WRITES)
def test_upload_goes_on_with_new_keys(
    store: LocalS3, source: Source, proxy: FaultProxy, fs: CSXFileSystem, admin: CSXFileSystem, name: str
) -> None:
    """Keys that change three times are used from then on; each part is taken once, and few are sent twice."""
    proxy.faults = changing(store, source, every=2)
    WRITES[name](fs, f"{BUCKET}/{name}")
    assert admin.cat_file(f"{BUCKET}/{name}") == DATA
    assert admin.list_multipart_uploads(BUCKET) == []
    parts = proxy.made("PUT", "partNumber")
    taken = [one.query for one in parts if one.status == 200]
    assert len(taken) == len(set(taken)) == 5
    assert {signer_of(one) for one in parts if one.status == 200} == {one.access_key for one in store.identities}
    refused = [one for one in proxy.requests if one.status == 400]
    assert 0 < len(refused) <= 3 * fs.max_concurrency


def test_download_goes_on_with_new_keys(
    store: LocalS3, source: Source, proxy: FaultProxy, fs: CSXFileSystem, admin: CSXFileSystem
) -> None:
    """The same holds for reads; no byte that has arrived is requested again."""
    admin.pipe_file(f"{BUCKET}/source", DATA)
    proxy.faults = changing(store, source, every=2)
    with fs.open(f"{BUCKET}/source", "rb") as file:
        buffer = bytearray(len(DATA))
        assert file.readinto(buffer) == len(DATA)
    assert buffer == DATA
    came = [one for one in proxy.made("GET") if one.status in (200, 206)]
    assert sum(one.sent for one in came) == len(DATA)
    assert len({signer_of(one) for one in came}) >= 3


def test_checkpoints_with_new_keys(
    store: LocalS3, source: Source, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that saves and loads for long, while its keys change, keeps neither threads nor filesystems of old ones."""
    state = {"w": torch.arange(10_000)}
    fsspec_csx.backends.csx.storage.s3.profile = source.profile
    used: list[weakref.ref[object]] = []
    for number in range(7):
        source.give(store.identities[number % len(NAMES)])
        good = source.good
        proxy.faults = [Fault(when=lambda request, good=good: signer_of(request) != good, times=1000, answer=EXPIRED)]
        fsspec_csx.save(state, f"s3://{BUCKET}/run/checkpoint_1.mdl")
        assert torch.equal(fsspec_csx.load(f"s3://{BUCKET}/run/checkpoint_1.mdl")["w"], state["w"])
        used.append(weakref.ref(fsspec.filesystem("s3").transfer))
    gc.collect()
    assert used[-1]() is not None
    assert len({id(each()) for each in used if each() is not None}) <= 4
    assert len({made._environment for made in CSXFileSystem._cache.values()}) <= 4


def test_renewals_keep_nothing_of_former_ones(
    store: LocalS3, proxy: FaultProxy, aws_files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A filesystem that is used for long keeps its threads and connections, whatever its credentials."""
    running_program(aws_files)
    (aws_files / "keys").write_text(printed(store.identity, 3600))
    fs = fsspec.filesystem("s3", profile="work", use_listings_cache=False, skip_instance_cache=True)
    fs.pipe_file(f"{BUCKET}/long", DATA)
    session = fs.transfer.exchange.session
    for number in range(1, 5):
        former = store.identities[number - 1].access_key
        (aws_files / "keys").write_text(printed(store.identities[number % len(NAMES)], 3600))
        proxy.faults = [Fault(when=lambda request, key=former: signer_of(request) == key, times=99, answer=EXPIRED)]
        fs.pipe_file(f"{BUCKET}/long", DATA[:number])
        assert fs.cat_file(f"{BUCKET}/long") == DATA[:number]
        assert 0 < 99 - proxy.faults[0].times < 4
    assert fs.transfer.exchange.session is session
    fs.pipe_file(f"{BUCKET}/long", DATA, chunksize=BLOCK)
    assert len(fs.transfer._threads) <= fs.max_concurrency
    assert fs.cat_file(f"{BUCKET}/long") == DATA


@pytest.mark.parametrize("source", ["file", "environment"], indirect=True)
def test_expired_for_good(source: Source, proxy: FaultProxy, fs: CSXFileSystem, admin: CSXFileSystem) -> None:
    """Without new keys the error says whose have expired and what to do; the object stays, and no upload does."""
    admin.pipe_file(f"{BUCKET}/old", b"old")
    for write in WRITES.values():
        proxy.faults = [Fault("PUT", query="partNumber", skip=2, times=1000, answer=EXPIRED)]
        with pytest.raises(ExpiredCredentialsError) as caught:
            write(fs, f"{BUCKET}/old")
        assert f"...{source.good[-4:]}" in caught.value.reason
        assert ("Profile 'work'" if source.profile else "The environment") in caught.value.reason
        assert "has expired" in caught.value.reason
        assert caught.value.remedy.startswith("Renew the credentials")
        assert admin.cat_file(f"{BUCKET}/old") == b"old"
        assert admin.list_multipart_uploads(BUCKET) == []
    proxy.faults = [Fault("GET", times=1000, answer=EXPIRED)]
    with pytest.raises(ExpiredCredentialsError, match="has expired"):
        fs.cat_file(f"{BUCKET}/old")


@pytest.mark.parametrize("source", ["process"], indirect=True)
def test_process_that_fails_later(
    source: Source, proxy: FaultProxy, fs: CSXFileSystem, admin: CSXFileSystem, store: LocalS3
) -> None:
    """A program that gives no more keys is an error of the credentials that names the profile and what it said."""
    admin.pipe_file(f"{BUCKET}/old", b"old")
    for write in WRITES.values():
        (source.folder / "broken").unlink(missing_ok=True)
        said = "log in again; SecretAccessKey: 'the-secret-that-it-tells'"
        fail = (source.folder / "broken").write_text
        proxy.faults = [Fault("PUT", query="partNumber", skip=1, before=lambda fail=fail, said=said: fail(said))]
        with pytest.raises(CredentialsError, match=r"'work' gives no credentials.*log in again") as caught:
            write(fs, f"{BUCKET}/old")
        chain: BaseException | None = caught.value
        while chain is not None:
            assert "the-secret-that-it-tells" not in f"{chain} {chain!r}"
            chain = chain.__cause__ or (None if chain.__suppress_context__ else chain.__context__)
        assert admin.cat_file(f"{BUCKET}/old") == b"old"
    with pytest.raises(CredentialsError, match="'work'"):
        fs.exists(f"{BUCKET}/old")
    (source.folder / "broken").unlink()
    assert fs.cat_file(f"{BUCKET}/old") == b"old"
    for upload in admin.list_multipart_uploads(BUCKET):  # without keys they could not be ended
        admin.abort_mpu(BUCKET, upload["Key"], upload["UploadId"])


def test_process_that_gives_expired_keys(store: LocalS3, proxy: FaultProxy, aws_files: Path) -> None:
    """Keys that have expired when they are given are reported as that."""
    running_program(aws_files)
    (aws_files / "keys").write_text(printed(store.identity, -5))
    with pytest.raises(ExpiredCredentialsError, match=r"'work' gives credentials that have expired.*Renew"):
        fsspec.filesystem("s3", profile="work").ls(BUCKET)
    assert not proxy.requests


PROGRAMS = {
    "missing": "/nowhere/program",
    "no-program": "{folder}/config",
    "no-json": f"{sys.executable} -I -S -c print(1+)",
    "other": f"{sys.executable} -I -S -c print(111)",
}


@pytest.mark.parametrize("kind", PROGRAMS)
def test_process_that_does_not_work(proxy: FaultProxy, aws_files: Path, kind: str) -> None:
    """A program that cannot be run, or prints something else, is an error that names the profile, not "not found"."""
    command = PROGRAMS[kind].format(folder=aws_files)
    (aws_files / "config").write_text(f"[profile work]\ncredential_process = {command}\n")
    fs = fsspec.filesystem("s3", profile="work")
    for ask in (fs.exists, fs.info, fs.ls, fs.cat_file):
        with pytest.raises(CredentialsError, match="'work' gives no credentials"):
            ask(f"{BUCKET}/run")
    with pytest.raises(CredentialsError), fs.open(f"{BUCKET}/run", "wb"):
        pytest.fail("opened without credentials")
    assert not proxy.requests


def test_process_is_asked_no_more_than_needed(store: LocalS3, proxy: FaultProxy, aws_files: Path) -> None:
    """Keys that are valid for long are requested once, however many requests use them."""
    running_program(aws_files)
    (aws_files / "keys").write_text(printed(store.identity, 3600))
    fs = fsspec.filesystem("s3", profile="work")
    write(fs, f"{BUCKET}/once")
    assert fs.cat_file(f"{BUCKET}/once") == DATA
    assert (aws_files / "asked").read_text() == "\n"
