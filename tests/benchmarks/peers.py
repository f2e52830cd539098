"""The peers: each saves and loads a state dict as its own documentation advises, with its own default settings."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from amazon import Boto3, Crt, S3TorchConnector
from cases import Case, State, loaded
from sockets import Sockets
from target import Target

# Libraries are imported where they are used: a process has only the one that it measures, and some may be missing.
_MIB = 2**20


class Client(Protocol):
    """A library, ready to use a server; ``settings`` are its part size and how many requests it has in flight."""

    @property
    def settings(self) -> str: ...

    def save(self, state: State, key: str) -> None: ...

    def load(self, case: Case) -> State: ...


@dataclass(frozen=True)
class Peer:
    """A library that can be measured.

    Attributes:
        modules: what has to be installed for it.
        connect: makes its client.
        distributions: of whose versions its results depend.
        unsigned: whether it can use only a server that wants no signature.
    """

    modules: tuple[str, ...]
    connect: Callable[[Target], Client]
    distributions: tuple[str, ...] = ()
    unsigned: bool = False


class Ours:
    """``fsspec_csx.save`` and ``fsspec_csx.load``."""

    def __init__(self, target: Target) -> None:
        import fsspec

        import fsspec_csx

        self._library = fsspec_csx
        self._options = {"key": target.access_key, "secret": target.secret_key, "endpoint_url": target.endpoint}
        self._fs = fsspec.filesystem("s3", **self._options)
        self._root = f"s3://{target.bucket}"

    @property
    def settings(self) -> str:
        """Block size, and how many it writes at a time."""
        return f"{self._fs.default_block_size // _MIB} MiB blocks, {self._fs.max_concurrency} in flight"

    def save(self, state: State, key: str) -> None:
        """Save."""
        self._library.save(state, f"{self._root}/{key}", storage_options=self._options)

    def load(self, case: Case) -> State:
        """Load."""
        state: State = self._library.load(f"{self._root}/{case.key}", storage_options=self._options)
        return state


class S3fs:
    """``torch.save`` and ``torch.load`` on the file of ``s3fs.S3FileSystem.open``."""

    def __init__(self, target: Target) -> None:
        import s3fs

        self._fs = s3fs.S3FileSystem(
            key=target.access_key, secret=target.secret_key, endpoint_url=target.endpoint, use_listings_cache=False
        )
        self._bucket = target.bucket

    @property
    def settings(self) -> str:
        """Block size, and how many it writes at a time."""
        return f"{self._fs.default_block_size // _MIB} MiB blocks, {self._fs.max_concurrency} in flight"

    def save(self, state: State, key: str) -> None:
        """Save."""
        with self._fs.open(f"{self._bucket}/{key}", "wb") as file:
            torch.save(state, file)

    def load(self, case: Case) -> State:
        """Load."""
        with self._fs.open(f"{self._bucket}/{case.key}", "rb") as file:
            return loaded(file)


class Obstore:
    """``obstore.open_writer``, and ``obstore.get`` into memory, both with what obstore chooses itself.

    What is written is copied first: the writer sends the memory that it is given later on, and ``torch.save`` reuses
    some of it at once, so that without the copy the object is damaged. (``obstore.put`` of a BytesIO takes longer.)
    """

    def __init__(self, target: Target) -> None:
        import obstore
        from obstore.store import S3Store

        self._obstore = obstore
        self._store = S3Store(
            target.bucket,
            endpoint=target.endpoint,
            region=target.region,
            access_key_id=target.access_key,
            secret_access_key=target.secret_key,
            virtual_hosted_style_request=False,
            client_options={"allow_http": True},
        )

    @property
    def settings(self) -> str:
        """Those of ``open_writer``; a ``get`` is one request."""
        return "save: 10 MiB parts, 12 in flight; load: one request"

    def save(self, state: State, key: str) -> None:
        """Save."""
        with self._obstore.open_writer(self._store, key) as writer:
            torch.save(state, _Copying(writer))

    def load(self, case: Case) -> State:
        """Load."""
        return loaded(io.BytesIO(self._obstore.get(self._store, case.key).bytes()))


class _Copying:
    """A file to write to that hands on a copy."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def write(self, data: bytes | memoryview) -> int:
        self._file.write(bytes(data))
        return len(data)

    def flush(self) -> None:
        self._file.flush()


PEERS: dict[str, Peer] = {
    "ours": Peer(("fsspec_csx",), Ours, ("fsspec-csx", "s3fs", "aiobotocore", "urllib3")),
    "s3fs": Peer(("s3fs",), S3fs, ("s3fs", "aiobotocore", "aiohttp")),
    "s3torchconnector": Peer(("s3torchconnector",), S3TorchConnector, ("s3torchconnector", "s3torchconnectorclient")),
    "obstore": Peer(("obstore",), Obstore, ("obstore",)),
    "boto3": Peer(("boto3",), Boto3, ("boto3", "s3transfer", "urllib3")),
    "crt": Peer(("awscrt", "s3transfer"), Crt, ("awscrt", "s3transfer")),
    "sockets": Peer((), Sockets, (), unsigned=True),
}
