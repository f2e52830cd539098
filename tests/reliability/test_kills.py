"""Processes and servers that are killed: a short form of ``kills``, and its assumptions."""

from __future__ import annotations

import threading
import time

import fsspec
import pytest
from kills import ENDS, SERVER_KILLED, SERVER_PAUSED, kills

from fsspec_csx.testing import LocalS3

SEED, COUNT = 6, 12
"""With these, each operation is done once, and nearly all are ended."""


def test_kills() -> None:
    """Whatever is killed, and whenever: nothing is lost, and the same operation, given again, does the rest."""
    outcomes = [*kills(SEED, COUNT)]
    assert [each.detail for each in outcomes if each.result == "lost"] == []
    assert len(outcomes) == COUNT
    ended = [kind for each in outcomes for kind in each.faults]
    assert ended  # the others were over before
    assert {*ended} <= {*ENDS, SERVER_KILLED, SERVER_PAUSED}


def test_what_the_server_acknowledged_is_there(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Objects that the tests' server has acknowledged survive its kill, so the tests may rely on them."""
    known: dict[str, bytes] = {}
    with LocalS3() as server:
        fs = fsspec.filesystem("s3", **server.storage_options(), use_listings_cache=False)
        fs.mkdir("kept")

        def write() -> None:
            for number in range(10_000):
                data = f"{number} ".encode() * 50_000
                try:
                    fs.pipe_file(f"kept/{number}", data)
                except OSError:
                    return
                known[f"kept/{number}"] = data

        writer = threading.Thread(target=write)
        writer.start()
        while len(known) < 20:
            time.sleep(0.01)
        server.kill()
        server_gone = len(known)
        writer.join()
        server.restart()
        assert server_gone >= 20
        assert {path: fs.cat_file(path) == data for path, data in known.items()} == dict.fromkeys(known, True)
