"""The peers that Amazon makes: S3TorchConnector, Boto3 and Crt."""

from __future__ import annotations

import io
from typing import Any

import torch
from cases import Case, State, loaded
from target import UNHASHED, Target

_MIB = 2**20


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

    def load(self, key: str, case: Case) -> State:
        """Load."""
        with self._checkpoint.reader(f"{self._root}/{key}") as reader:
            return loaded(reader)


def boto3_client(target: Target) -> Any:
    """A client of boto3 with its own settings, but that it does not hash bodies."""
    import boto3
    from botocore.config import Config

    return boto3.client(
        "s3",
        endpoint_url=target.endpoint,
        region_name=target.region,
        aws_access_key_id=target.access_key,
        aws_secret_access_key=target.secret_key,
        config=Config(s3=UNHASHED),
    )


class Boto3:
    """``upload_fileobj`` and ``download_fileobj`` through ``io.BytesIO``."""

    def __init__(self, target: Target) -> None:
        from boto3.s3.transfer import TransferConfig

        # Its default would change with what else is installed and with the machine.
        self._config = TransferConfig(preferred_transfer_client="classic")
        self._client = boto3_client(target)
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

    def load(self, key: str, case: Case) -> State:
        """Load."""
        buffer = io.BytesIO()
        self._client.download_fileobj(self._bucket, key, buffer, Config=self._config)
        buffer.seek(0)
        return loaded(buffer)


class Crt:
    """The AWS CRT client, as boto3's transfers use it, through ``io.BytesIO``.

    boto3's own ``preferred_transfer_client="crt"`` insists on https and on Amazon's endpoints, so the layer below it
    is used.
    """

    settings = "8 MiB parts, in flight as it chooses"

    def __init__(self, target: Target) -> None:
        from awscrt.auth import AwsCredentialsProvider
        from botocore.session import Session
        from s3transfer.crt import BotocoreCRTRequestSerializer, CRTTransferManager, create_s3_crt_client

        credentials = AwsCredentialsProvider.new_static(target.access_key, target.secret_key)
        secure = target.endpoint.startswith("https:")
        verify = target.authority if secure else None
        client = create_s3_crt_client(
            target.region, crt_credentials_provider=credentials, use_ssl=secure, verify=verify
        )
        options = {"region_name": target.region, "endpoint_url": target.endpoint}
        self._manager = CRTTransferManager(client, BotocoreCRTRequestSerializer(Session(), options))
        self._bucket = target.bucket

    def save(self, state: State, key: str) -> None:
        """Save."""
        buffer = io.BytesIO()
        torch.save(state, buffer)
        buffer.seek(0)
        self._manager.upload(buffer, self._bucket, key).result()

    def load(self, key: str, case: Case) -> State:
        """Load."""
        buffer = io.BytesIO()
        self._manager.download(self._bucket, key, buffer).result()
        buffer.seek(0)
        return loaded(buffer)
