"""A place on the real server for an operation, and its contents, read without the proxy and this package."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from fsspec_csx.testing import LocalS3

MIB = 2**20
PART = 5 * MIB
"""The least bytes of a part of an upload that S3 takes."""


@cache
def direct_client(server: LocalS3) -> Any:
    """botocore's own client, which reaches the server without the proxy."""
    from botocore.session import Session

    options = server.storage_options()
    return Session().create_client(
        "s3",
        endpoint_url=server.endpoint_url,
        region_name="us-east-1",
        aws_access_key_id=options["key"],
        aws_secret_access_key=options["secret"],
    )


@dataclass
class Place:
    """A folder of a bucket, and one of this machine.

    Attributes:
        server: the real one.
        bucket: which exists.
        prefix: of the keys.
        folder: of this machine; empty at first.
        notes: what a scenario wants to remember.
    """

    server: LocalS3
    bucket: str
    prefix: str
    folder: Path
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """Of the folder on S3."""
        return f"s3://{self.bucket}/{self.prefix}"

    @property
    def path(self) -> str:
        """The same without the protocol."""
        return f"{self.bucket}/{self.prefix}"

    def put(self, name: str, data: bytes) -> None:
        """Make bytes an object."""
        direct_client(self.server).put_object(Bucket=self.bucket, Key=f"{self.prefix}/{name}", Body=data)

    def names(self) -> set[str]:
        """Of the objects that there are."""
        pages = direct_client(self.server).get_paginator("list_objects_v2")
        found = pages.paginate(Bucket=self.bucket, Prefix=f"{self.prefix}/")
        return {each["Key"][len(self.prefix) + 1 :] for page in found for each in page.get("Contents", ())}

    def get(self, name: str) -> bytes | None:
        """The bytes of an object; None if there is none."""
        client = direct_client(self.server)
        try:
            data: bytes = client.get_object(Bucket=self.bucket, Key=f"{self.prefix}/{name}")["Body"].read()
        except client.exceptions.NoSuchKey:
            return None
        return data

    def uploads(self) -> set[str]:
        """The ids of the multipart uploads that are not ended."""
        answer = direct_client(self.server).list_multipart_uploads(Bucket=self.bucket, Prefix=f"{self.prefix}/")
        return {each["UploadId"] for each in answer.get("Uploads", ()) if each["Key"].startswith(f"{self.prefix}/")}

    def local(self) -> set[str]:
        """The files in the folder of this machine, hidden ones too."""
        return {str(each.relative_to(self.folder)) for each in self.folder.rglob("*") if each.is_file()}


@cache
def state(number: int) -> dict[str, Any]:
    """A checkpoint of several parts; its numbers differ from those of every other."""
    generator = torch.Generator().manual_seed(number)
    sizes = {"first": 1_300_000, "second": 1_100_003, "third": 1000, "fourth": 7}
    tensors = {name: torch.randn(size, generator=generator) for name, size in sizes.items()}
    return {"model": tensors, "step": number}


def data(number: int) -> bytes:
    """Bytes of several parts, which differ likewise."""
    tensors: dict[str, torch.Tensor] = state(number)["model"]
    return b"".join(tensor.numpy().tobytes() for tensor in tensors.values())


@cache
def as_torch(number: int) -> bytes:
    """A state as torch.save writes it."""
    buffer = io.BytesIO()
    torch.save(state(number), buffer)
    return buffer.getvalue()


@cache
def as_safetensors(number: int) -> bytes:
    """The tensors of a state as safetensors writes them."""
    return bytes(safetensors.torch.save(state(number)["model"]))


def equal(one: Any, other: Any) -> bool:
    """Whether two nestings hold the same, bit for bit."""
    if isinstance(one, torch.Tensor):
        same = isinstance(other, torch.Tensor) and one.dtype == other.dtype and one.shape == other.shape
        return same and one.contiguous().numpy().tobytes() == other.contiguous().numpy().tobytes()
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(equal(one[k], other[k]) for k in one)
    if isinstance(one, (list, tuple)):
        return type(one) is type(other) and len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


def torch_state(written: bytes | None) -> Any:
    """What torch loads from these bytes; why it does not, if it does not."""
    try:
        return torch.load(io.BytesIO(written or b""), weights_only=True)
    except Exception as error:
        return f"torch does not load it: {error}"


def safetensors_state(written: bytes | None) -> Any:
    """The same for safetensors."""
    try:
        return safetensors.torch.load(written or b"")
    except Exception as error:
        return f"safetensors does not load it: {error}"
