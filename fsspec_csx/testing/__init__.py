"""A real S3 server for tests. ``pytest_plugins = ["fsspec_csx.testing"]`` adds the pytest fixture ``local_s3``."""

import sys
from collections.abc import Iterator

from fsspec_csx.testing.server import Identity, LocalS3

__all__ = ["Identity", "LocalS3"]

if "pytest" in sys.modules:  # importing pytest is slow
    import pytest

    @pytest.fixture(scope="session")
    def local_s3() -> Iterator[LocalS3]:
        """A running `LocalS3` that all tests of the session share."""
        with LocalS3() as server:
            yield server
