"""The peers: each saves and loads a state dict as its own documentation advises, with its own default settings."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from cases import Case, State
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
        loaded: State = self._library.load(f"{self._root}/{case.key}", storage_options=self._options)
        return loaded


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
            return _load(file)


class S3TorchConnector:
    """``S3Checkpoint``: its writer, and its sequential reader, which is the default."""

    def __init__(self, target: Target) -> None:
        from s3torchconnector import S3Checkpoint, S3ClientConfig

        self._config = S3ClientConfig(force_path_style=True)
        self._checkpoint = S3Checkpoint(target.region, endpoint=target.endpoint, s3client_config=self._config)
        self._root = f"s3://{target.bucket}"

    @property
    def settings(self) -> str:
        """Part size, and the speed that it aims at."""
        return f"{self._config.part_size // _MIB} MiB parts, target {self._config.throughput_target_gbps:g} Gbit/s"

    def save(self, state: State, key: str) -> None:
        """Save."""
        with self._checkpoint.writer(f"{self._root}/{key}") as writer:
            torch.save(state, writer)

    def load(self, case: Case) -> State:
        """Load."""
        with self._checkpoint.reader(f"{self._root}/{case.key}") as reader:
            return _load(reader)


class Obstore:
    """``obstore.open_writer``, and ``obstore.get`` into memory, both with what obstore chooses itself."""

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
            torch.save(state, writer)

    def load(self, case: Case) -> State:
        """Load."""
        return _load(io.BytesIO(self._obstore.get(self._store, case.key).bytes()))


class Boto3:
    """``upload_fileobj`` and ``download_fileobj`` through ``io.BytesIO``."""

    def __init__(self, target: Target) -> None:
        import boto3
        from boto3.s3.transfer import TransferConfig

        # Its default would change with what else is installed and with the machine.
        self._config = TransferConfig(preferred_transfer_client="classic")
        self._client = boto3.client(
            "s3",
            endpoint_url=target.endpoint,
            region_name=target.region,
            aws_access_key_id=target.access_key,
            aws_secret_access_key=target.secret_key,
        )
        self._bucket = target.bucket

    @property
    def settings(self) -> str:
        """Part size and threads."""
        return f"{self._config.multipart_chunksize // _MIB} MiB parts, {self._config.max_request_concurrency} in flight"

    def save(self, state: State, key: str) -> None:
        """Save."""
        buffer = io.BytesIO()
        torch.save(state, buffer)
        buffer.seek(0)
        self._client.upload_fileobj(buffer, self._bucket, key, Config=self._config)

    def load(self, case: Case) -> State:
        """Load."""
        buffer = io.BytesIO()
        self._client.download_fileobj(self._bucket, case.key, buffer, Config=self._config)
        buffer.seek(0)
        return _load(buffer)


class Crt:
    """The AWS CRT client, as boto3's transfers use it, through ``io.BytesIO``.

    boto3's own ``preferred_transfer_client="crt"`` insists on https and on Amazon's endpoints, so the layer below it
    is used.
    """

    def __init__(self, target: Target) -> None:
        from awscrt.auth import AwsCredentialsProvider
        from botocore.session import Session
        from s3transfer.crt import BotocoreCRTRequestSerializer, CRTTransferManager, create_s3_crt_client

        credentials = AwsCredentialsProvider.new_static(target.access_key, target.secret_key)
        client = create_s3_crt_client(target.region, crt_credentials_provider=credentials, use_ssl=False)
        options = {"region_name": target.region, "endpoint_url": target.endpoint}
        self._manager = CRTTransferManager(client, BotocoreCRTRequestSerializer(Session(), options))
        self._bucket = target.bucket

    @property
    def settings(self) -> str:
        """Those of ``create_s3_crt_client``."""
        return "8 MiB parts, in flight as it chooses"

    def save(self, state: State, key: str) -> None:
        """Save."""
        buffer = io.BytesIO()
        torch.save(state, buffer)
        buffer.seek(0)
        self._manager.upload(buffer, self._bucket, key).result()

    def load(self, case: Case) -> State:
        """Load."""
        buffer = io.BytesIO()
        self._manager.download(self._bucket, case.key, buffer).result()
        buffer.seek(0)
        return _load(buffer)


def _load(file: Any) -> State:
    loaded: State = torch.load(file, weights_only=True)
    return loaded


PEERS: dict[str, Peer] = {
    "ours": Peer(("fsspec_csx",), Ours, ("fsspec-csx", "s3fs", "aiobotocore", "urllib3")),
    "s3fs": Peer(("s3fs",), S3fs, ("s3fs", "aiobotocore", "aiohttp")),
    "s3torchconnector": Peer(("s3torchconnector",), S3TorchConnector, ("s3torchconnector", "s3torchconnectorclient")),
    "obstore": Peer(("obstore",), Obstore, ("obstore",)),
    "boto3": Peer(("boto3",), Boto3, ("boto3", "s3transfer", "urllib3")),
    "crt": Peer(("awscrt", "s3transfer"), Crt, ("awscrt", "s3transfer")),
    "sockets": Peer((), Sockets, (), unsigned=True),
}
