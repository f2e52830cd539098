"""Directory buckets. This module is separate so that the ``cszoo`` command can use it without importing botocore."""

from __future__ import annotations


def is_directory_bucket(bucket: str) -> bool:
    """Return whether a name is that of a directory bucket of S3 Express One Zone.

    Its listings are unsorted and take only prefixes that end with a slash, and its ETags are not checksums:
    https://docs.aws.amazon.com/AmazonS3/latest/userguide/s3-express-differences.html
    """
    return bucket.endswith("--x-s3")
