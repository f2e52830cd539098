"""fsspec's own conformance classes, on the real server."""

from __future__ import annotations

import uuid
from typing import Any

import fsspec.tests.abstract as abstract
import pytest

from fsspec_csx.filesystem import CSXFileSystem


class CSXFixtures(abstract.AbstractFixtures):  # type: ignore[misc]
    """What the conformance classes ask of a filesystem."""

    @pytest.fixture(scope="class")
    def fs(self, server: Any) -> CSXFileSystem:
        return CSXFileSystem(**server.storage_options())

    @pytest.fixture
    def fs_path(self, fs: CSXFileSystem) -> str:
        bucket = f"abstract-{uuid.uuid4().hex[:12]}"
        fs.mkdir(bucket)
        return bucket

    @pytest.fixture
    def supports_empty_directories(self) -> bool:
        return False


class TestCopy(abstract.AbstractCopyTests, CSXFixtures):  # type: ignore[misc]
    """cp within S3."""


class TestGet(abstract.AbstractGetTests, CSXFixtures):  # type: ignore[misc]
    """get from S3."""


class TestPut(abstract.AbstractPutTests, CSXFixtures):  # type: ignore[misc]
    """put to S3."""


class TestPipe(abstract.AbstractPipeTests, CSXFixtures):  # type: ignore[misc]
    """pipe in its modes."""


class TestOpen(abstract.AbstractOpenTests, CSXFixtures):  # type: ignore[misc]
    """open in mode x."""
