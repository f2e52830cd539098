"""What a new client does in the background."""

from __future__ import annotations

import asyncio
import os
import threading
import warnings
from typing import Any

import pytest

from fsspec_csx.s3.filesystem import CSXFileSystem
from fsspec_csx.s3.transport import compat
from fsspec_csx.testing import LocalS3


def test_fork_waits_for_certificates(server: LocalS3, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process is not forked while a thread loads certificates, as the child could wait for its locks forever."""
    go, loaded = threading.Event(), []

    async def slow(client: Any) -> None:
        await asyncio.to_thread(go.wait, 60)
        loaded.append(client)

    monkeypatch.setattr(compat, "make_connector", slow)
    monkeypatch.setattr("fsspec_csx.s3.client.clients._LOADING_SECONDS", 60.0)
    CSXFileSystem(**server.storage_options(), skip_instance_cache=True).connect()
    threading.Timer(0.2, go.set).start()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads
        child = os.fork()
    if not child:
        os._exit(0)
    assert loaded
    assert os.waitpid(child, 0)[1] == 0


def test_nothing_is_left_on_the_callers_event_loop(server: LocalS3) -> None:
    """A loop that is closed right after connecting has no task left, about which asyncio would complain."""

    async def connected() -> int:
        await CSXFileSystem(**server.storage_options(), asynchronous=True, skip_instance_cache=True).set_session()
        return len(asyncio.all_tasks())

    assert asyncio.run(connected()) == 1
