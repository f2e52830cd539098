"""The servers to measure against, with the checkpoints to load in place."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import s3fs
import torch
from cases import WARM_UP, Case
from nginx import Nginx
from target import BUCKET, Target

from fsspec_csx.testing import LocalS3

_MEMORY = Path("/dev/shm")


@contextmanager
def running(server: str, cases: Sequence[Case], space: int) -> Iterator[Target]:
    """A server that runs within the block.

    Args:
        server: "nginx" or "local".
        cases: what can be loaded from it.
        space: bytes that it may come to store.

    Raises:
        FileNotFoundError: the server is not installed; the message says how to get it.
        RuntimeError: the server does not start.
    """
    if server == "nginx":
        with Nginx(_directory(space)) as nginx:
            for case in (WARM_UP, *cases):
                torch.save(case.state(), nginx.folder / case.key)
                _save_raw(case, nginx.folder / case.raw_key)
            yield nginx.target
        return
    with LocalS3(directory=_directory(space)) as local:
        target = target_of(local)
        fill(target, cases)
        yield target


def target_of(local: LocalS3) -> Target:
    """How to reach a server that is running."""
    return Target("local", local.endpoint_url, local.identity.access_key, local.identity.secret_key)


def fill(target: Target, cases: Sequence[Case]) -> None:
    """Put the checkpoints to load into a server that stores what it gets."""
    options = {"key": target.access_key, "secret": target.secret_key, "endpoint_url": target.endpoint}
    fs = s3fs.S3FileSystem(**options, skip_instance_cache=True)
    fs.mkdir(BUCKET)
    for case in (WARM_UP, *cases):
        with fs.open(f"{BUCKET}/{case.key}", "wb") as file:
            torch.save(case.state(), file)


def _save_raw(case: Case, path: Path) -> None:
    with path.open("wb") as file:
        for tensor in case.state().values():
            file.write(memoryview(tensor.numpy()).cast("B"))


def _directory(space: int) -> str | None:
    """Where the data is kept in memory, if that has room for it twice; None for a disk."""
    roomy = os.access(_MEMORY, os.W_OK) and shutil.disk_usage(_MEMORY).free > 2 * space
    return str(_MEMORY) if roomy else None
