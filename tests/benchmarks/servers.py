"""The servers to measure with, on which the checkpoints to load are ready."""

from __future__ import annotations

import itertools
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO

import distributed
import s3fs
import torch
from cases import WARM_UP, Case, as_bytes
from far import FarStore
from nginx import Nginx
from peers import PEERS
from sockets import parts
from target import BUCKET, Target, memory_folder

from fsspec_csx.testing import LocalS3

_SCRATCH = "scratch"
# Bytes a second of a connection, and seconds before an answer.
_FAR = {"far-25": (25e6, 0.02), "far-85": (85e6, 0.03)}
SERVERS = {
    "nginx": "nginx, which discards uploads",
    "nginx-tls": "nginx, which discards uploads, by https",
    "far-25": "a store that gives each connection 25 MB/s, and answers after 20 ms; it discards uploads",
    "far-85": "a store that gives each connection 85 MB/s, and answers after 30 ms; it discards uploads",
    "local": "SeaweedFS (LocalS3), which stores it",
}


@contextmanager
def running(server: str, cases: Sequence[Case], kinds: Iterable[str]) -> Iterator[Target]:
    """A server that runs within the block.

    Args:
        server: one of ``SERVERS``.
        cases: what can be loaded from it.
        kinds: in which forms.

    Raises:
        FileNotFoundError: the server is not installed; the message says how to get it.
        RuntimeError: the server does not start.
    """
    kinds = list(kinds)
    kept = sum(case.nbytes for case in cases) * len(kinds) + max((case.nbytes for case in cases), default=0)
    if server != "local":
        with _stub(server, memory_folder(kept)) as stub:

            def create(key: str) -> IO[bytes]:
                path = stub.folder / key
                path.parent.mkdir(exist_ok=True)
                return path.open("wb")

            _store(cases, kinds, create)
            if "sharded" in kinds:
                _write_sharded(stub.folder, cases)
            yield stub.target
        return
    with LocalS3(directory=memory_folder(kept)) as local:
        target = target_of(local)
        fill(target, cases, kinds)
        yield target


def exit_on_sigterm() -> None:
    """Let SIGTERM raise SystemExit, which ends the servers; by default they would keep running."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


def _stub(server: str, directory: str | None) -> Nginx | FarStore:
    """A server that discards uploads, and serves the files of its folder."""
    if server in _FAR:
        return FarStore(server, *_FAR[server], directory)
    return Nginx(directory, tls=server == "nginx-tls")


def target_of(local: LocalS3) -> Target:
    """How to reach a server that is running."""
    return Target("local", local.endpoint_url, local.identity.access_key, local.identity.secret_key)


def fill(target: Target, cases: Sequence[Case], kinds: Iterable[str]) -> None:
    """Put the checkpoints to load into a server that stores what it gets."""
    fs = _filesystem(target)
    fs.mkdir(BUCKET)
    _store(cases, kinds, lambda key: fs.open(f"{BUCKET}/{key}", "wb"))


@contextmanager
def scratch(target: Target) -> Iterator[Target]:
    """The server with an empty bucket to save in, which is gone afterwards, and its memory with it."""
    if not target.stores:
        yield target
        return
    fs = _filesystem(target)
    fs.mkdir(_SCRATCH)
    try:
        yield replace(target, bucket=_SCRATCH)
    finally:
        fs.rm(_SCRATCH, recursive=True)


def _write_sharded(folder: Path, cases: Sequence[Case]) -> None:
    """Write the checkpoints of torch.distributed.checkpoint, and what the writers rename, as the server drops it."""
    numbers = [str(each) for case in cases for each in (case.name, case.tensors, case.size)]
    subprocess.run([sys.executable, distributed.__file__, str(folder), *numbers], check=True)
    for peer, case in itertools.product(PEERS, (WARM_UP, *cases)):
        if PEERS[peer].kind == "sharded":
            saved = folder / f"by-{peer}-{case.key('sharded')}"
            saved.mkdir()
            (saved / ".metadata.tmp").touch()


def _filesystem(target: Target) -> s3fs.S3FileSystem:
    options = {"key": target.access_key, "secret": target.secret_key, "endpoint_url": target.endpoint}
    return s3fs.S3FileSystem(**options, use_listings_cache=False)


def _store(
    cases: Sequence[Case], kinds: Iterable[str], create: Callable[[str], AbstractContextManager[IO[bytes]]]
) -> None:
    for case in (WARM_UP, *cases):
        for kind in kinds:
            if kind == "sharded":
                continue
            if kind == "files":
                for number, tensor in enumerate(case.flat().values()):
                    with create(f"{case.key(kind)}/{number}") as file:
                        file.write(as_bytes(tensor).numpy().tobytes())
                continue
            if kind == "raw":
                for number, part in enumerate(parts(case.flat().values())):
                    with create(f"{case.key(kind)}/{number}") as file:
                        file.writelines(part)
                continue
            with create(case.key(kind)) as file:
                if kind == "torch":
                    torch.save(case.state(), file)
                else:
                    from safetensors.torch import save

                    file.write(save(case.flat()))
