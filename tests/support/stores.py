"""A bucket as another program sees it, to check what the filesystem did."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from typing import Any

import boto3

from fsspec_csx.s3.filesystem import CSXFileSystem


class Store:
    """A new bucket, a filesystem for it, and a client of another kind.

    Args:
        options: arguments of the filesystem: ``key``, ``secret`` and ``endpoint_url``.
        keeps_all_keys: whether the server keeps keys with empty segments and similar ones as they are.
    """

    def __init__(self, options: Mapping[str, Any], keeps_all_keys: bool) -> None:
        self.bucket = f"field-{uuid.uuid4().hex[:12]}"
        self.options = dict(options)
        self.keeps_all_keys = keeps_all_keys
        self.fs = CSXFileSystem(**self.options)
        self.client = boto3.client(
            "s3",
            endpoint_url=options["endpoint_url"],
            aws_access_key_id=options["key"],
            aws_secret_access_key=options["secret"],
            region_name="us-east-1",
        )
        self.client.create_bucket(Bucket=self.bucket)

    def filesystem(self, **options: Any) -> CSXFileSystem:
        """Another filesystem for the bucket."""
        return CSXFileSystem(**self.options, **options)

    def make_versioned(self) -> None:
        """Enable versions in the bucket."""
        self.client.put_bucket_versioning(Bucket=self.bucket, VersioningConfiguration={"Status": "Enabled"})

    def put(self, key: str, body: bytes = b"") -> str:
        """Make an object.

        Returns:
            Its version; empty if the bucket keeps none.
        """
        return str(self.client.put_object(Bucket=self.bucket, Key=key, Body=body).get("VersionId", ""))

    def can_copy(self, key: str, contents: Mapping[str, bytes]) -> bool:
        """Whether the server copies an object of this name, and that object."""
        self.fill(contents)
        source = {"Bucket": self.bucket, "Key": key}
        try:
            self.client.copy_object(Bucket=self.bucket, Key="copied", CopySource=source)
        except self.client.exceptions.ClientError:
            return False
        copied = self.client.get_object(Bucket=self.bucket, Key="copied")["Body"].read()
        self.client.delete_object(Bucket=self.bucket, Key="copied")
        return bool(copied == contents[key])

    def contents(self) -> dict[str, bytes]:
        """Each key and its body."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket)
        keys = [each["Key"] for page in pages for each in page.get("Contents", [])]
        return {key: self.client.get_object(Bucket=self.bucket, Key=key)["Body"].read() for key in keys}

    def fill(self, wanted: Mapping[str, bytes]) -> None:
        """Replace the objects of the bucket by these."""
        found = self.contents()
        for key in sorted(found.keys() - wanted.keys(), reverse=True):
            self.client.delete_object(Bucket=self.bucket, Key=key)
        for key, body in wanted.items():
            if found.get(key) != body:
                self.put(key, body)
        assert self.contents() == wanted, "the server does not keep these keys"

    def path(self, key: str) -> str:
        """The path of a key."""
        return f"{self.bucket}/{key}"


def uploads_below(fs: CSXFileSystem, folder: str) -> list[str]:
    """The ids of the multipart uploads that are unfinished in a folder; one of another test must not fail this."""
    bucket, _, prefix = folder.partition("/")
    return [each["UploadId"] for each in fs.list_multipart_uploads(bucket) if each["Key"].startswith(f"{prefix}/")]


def uploads(fs: CSXFileSystem, bucket: str, expected: int = 0) -> int:
    """How many multipart uploads are unfinished; an abort in the background is given some seconds."""
    deadline = time.monotonic() + 60
    while (count := len(fs.list_multipart_uploads(bucket))) != expected and time.monotonic() < deadline:
        time.sleep(0.05)
    return count
