"""Parts of an upload that the server copies from another object.

https://docs.aws.amazon.com/AmazonS3/latest/API/API_UploadPartCopy.html
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

COPIED_PART = 32 * 2**20
"""Bytes of a copied part; copying a larger one may exceed ``read_timeout``, and would then be retried."""


@dataclass(frozen=True)
class CopySource:
    """One state of an object, as the source of copied parts.

    Attributes:
        version: None for the current one.
        etag: identifies the state; parts of another state are not copied.
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
        """The object, as botocore's parameter ``CopySource``."""
        version = {"VersionId": self.version} if self.version else {}
        return {"Bucket": self.bucket, "Key": self.key, **version}

    @property
    def pinned(self) -> dict[str, str]:
        """The parameter that limits a copy to this state."""
        return {"CopySourceIfMatch": self.etag} if self.etag else {}

    def spans(self, part: int) -> list[CopiedSpan]:
        """Return spans of ``part`` bytes that cover the object; the last may be shorter."""
        return [CopiedSpan(self, start, min(start + part, self.size)) for start in range(0, self.size, part)]


@dataclass(frozen=True)
class CopiedSpan:
    """The bytes of a source between two positions."""

    source: CopySource
    start: int
    end: int

    @property
    def length(self) -> int:
        return self.end - self.start

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters of UploadPartCopy."""
        whole = self.length == self.source.size
        span = {} if whole else {"CopySourceRange": f"bytes={self.start}-{self.end - 1}"}
        return {"CopySource": self.source.named, **span, **self.source.pinned}
