"""Parts of an upload that the server copies from an object.

https://docs.aws.amazon.com/AmazonS3/latest/API/API_UploadPartCopy.html
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

COPIED_PART = 32 * 2**20
"""Bytes of a part that is copied: larger ones may take longer than ``read_timeout``, and then are asked for again."""


@dataclass(frozen=True)
class CopySource:
    """One state of an object that parts are copied from.

    Attributes:
        version: None for the current one.
        etag: of the state; a part of another one is not copied.
        size: in bytes.
    """

    bucket: str
    key: str
    version: str | None
    etag: str
    size: int

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.key}"

    @property
    def named(self) -> dict[str, str]:
        """Which object it is, as the parameter ``CopySource`` of botocore takes it."""
        version = {"VersionId": self.version} if self.version else {}
        return {"Bucket": self.bucket, "Key": self.key, **version}

    @property
    def pinned(self) -> dict[str, str]:
        """The parameter by which no other state than this one is copied."""
        return {"CopySourceIfMatch": self.etag} if self.etag else {}

    def spans(self, part: int) -> list[CopiedSpan]:
        """All of it, in parts of so many bytes but for the last."""
        return [CopiedSpan(self, start, min(start + part, self.size)) for start in range(0, self.size, part)]


@dataclass(frozen=True)
class CopiedSpan:
    """Bytes between two positions of a source."""

    source: CopySource
    start: int
    end: int

    @property
    def length(self) -> int:
        """In bytes."""
        return self.end - self.start

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters of UploadPartCopy."""
        whole = self.length == self.source.size
        span = {} if whole else {"CopySourceRange": f"bytes={self.start}-{self.end - 1}"}
        return {"CopySource": self.source.named, **span, **self.source.pinned}
