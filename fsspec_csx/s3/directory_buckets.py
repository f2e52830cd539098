"""Directory buckets; a module of its own, as the command asks without importing botocore."""

from __future__ import annotations


def is_directory_bucket(bucket: str) -> bool:
    """Whether a name is that of a directory bucket of S3 Express One Zone.

    Its listings are in no order and take only prefixes that end in a slash, and its ETags are no checksums:
    https://docs.aws.amazon.com/AmazonS3/latest/userguide/s3-express-differences.html
    """
    return bucket.endswith("--x-s3")
