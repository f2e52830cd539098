"""A real S3 server for tests; with ``pytest_plugins = ["fsspec_csx.testing"]``, pytest has the fixture ``local_s3``."""

from fsspec_csx.testing.local_s3 import Identity, LocalS3

__all__ = ["Identity", "LocalS3"]
