"""``doctor --bench`` on a store that is far away."""

from __future__ import annotations

import pytest
from far import FarStore
from target import BUCKET

from fsspec_csx.doctor.benchmark import MOST_WRITTEN, benchmark


@pytest.mark.slow
@pytest.mark.adaptive
def test_more_requests_are_found_to_help() -> None:
    """Of a link that gives each connection 10 MB/s, it finds that it is far, and that one request is too few."""
    with FarStore("far", 10e6, 0.02, keeps=True) as store:
        options = {"key": "k", "secret": "s", "endpoint_url": store.target.endpoint}
        with benchmark((BUCKET, ""), storage_options=options, seconds=20) as found:
            assert [each.requests for each in found.trials] == [1, 4, 16, 64, None]
            assert not found.is_near
            assert found.max_concurrency is not None
            assert found.max_concurrency > 1
            assert 0 < found.written <= MOST_WRITTEN + 2**21
            assert {name.name.rpartition(".")[2] for name in store.folder.iterdir()} == {"tmp"}
