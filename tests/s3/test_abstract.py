"""fsspec's own conformance classes, on moto: SeaweedFS keeps empty folders, and S3 has none."""

from __future__ import annotations

import fsspec.tests.abstract as abstract
import pytest

from fsspec_csx.s3.filesystem import CSXFileSystem

pytestmark = pytest.mark.adaptive


class CSXFixtures(abstract.AbstractFixtures):  # type: ignore[misc]
    """What the conformance classes require of a filesystem."""

    @pytest.fixture
    def fs(self, moto: str) -> CSXFileSystem:
        return CSXFileSystem(key="key", secret="secret", endpoint_url=moto)

    @pytest.fixture
    def fs_path(self, fs: CSXFileSystem, new_bucket: str) -> str:
        fs.mkdir(new_bucket)
        return new_bucket

    @pytest.fixture
    def supports_empty_directories(self) -> bool:
        return False


@pytest.mark.slow
class TestCopy(abstract.AbstractCopyTests, CSXFixtures):  # type: ignore[misc]
    """cp within S3."""


@pytest.mark.slow
class TestGet(abstract.AbstractGetTests, CSXFixtures):  # type: ignore[misc]
    """get from S3."""


@pytest.mark.slow
class TestPut(abstract.AbstractPutTests, CSXFixtures):  # type: ignore[misc]
    """put to S3."""


class TestPipe(abstract.AbstractPipeTests, CSXFixtures):  # type: ignore[misc]
    """pipe in its modes."""


class TestOpen(abstract.AbstractOpenTests, CSXFixtures):  # type: ignore[misc]
    """open in mode x."""
