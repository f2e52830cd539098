"""The pieces in which bodies are sent."""

from __future__ import annotations

import os

import pytest

from fsspec_csx.s3.transport import request_body
from fsspec_csx.s3.transport.request_body import MemoryBody

_DATA = os.urandom(100)


@pytest.mark.parametrize("quick", [True, False])
def test_pieces(quick: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces grow up to a size, but only while they are used quickly; together they are the bytes."""
    monkeypatch.setattr(request_body, "_QUICK_SECONDS", 1e9 if quick else -1.0)
    body = MemoryBody([memoryview(_DATA)[:40], memoryview(b""), memoryview(_DATA)[40:]])
    pieces = list(body.pieces(4, 16))
    assert b"".join(pieces) == _DATA
    assert [len(each) for each in pieces] == ([4, 8, 16, 12, 16, 16, 16, 12] if quick else [4] * 25)
    assert [len(each) for each in body.pieces(32)] == [32, 8, 32, 28]
    body.give_up()
    with pytest.raises(OSError, match="given up"):
        next(body.pieces(4))
