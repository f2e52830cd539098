"""Heads of responses: accepted ones mean the same as for http.client, and unusual ones are refused."""

from __future__ import annotations

import io
from http.client import HTTPException, HTTPResponse

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsspec_csx.s3.transport.failures import UnusualResponseError
from fsspec_csx.s3.transport.response_head import response_head


class Canned:
    """A socket whose bytes have come."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, _: str) -> io.BytesIO:
        """A file of them."""
        return io.BytesIO(self._data)


STATUS_LINES = st.sampled_from(
    [
        "HTTP/1.1 200 OK",
        "HTTP/1.1 206 Partial Content",
        "HTTP/1.1 404",
        "HTTP/1.0 200 OK",
        "HTTP/1.1 204",
        "HTTP/1.1 99 x",
        "ICY 200",
    ]
)
NAMES = st.sampled_from(
    ["ETag", "etag", "Content-Length", "content-length", "Content-Range", "Transfer-Encoding", "Connection", "x-y"]
)
VALUES = st.one_of(
    st.sampled_from(["0", "5", "007", "-1", "+5", "5, 5", "1_0", "close", "keep-alive", "chunked", '"abc"', "", " 5 "]),
    st.text(st.characters(max_codepoint=255), max_size=8),
)
LINES = st.one_of(
    st.tuples(NAMES, st.sampled_from([":", ": ", " : ", ":\t", ""]), VALUES).map("".join),
    st.text(st.characters(max_codepoint=255), max_size=12),
)


@given(STATUS_LINES, st.lists(LINES, max_size=6))
def test_as_http_client(first: str, lines: list[str]) -> None:
    """A head that is accepted has the status, the headers and the length that http.client finds."""
    data = "\r\n".join((first, *lines)).encode("latin-1")
    try:
        found = response_head(data)
    except UnusualResponseError:
        return
    expected = HTTPResponse(Canned(data + b"\r\n\r\n"), method="GET")  # type: ignore[arg-type]
    try:
        expected.begin()
    except HTTPException as error:
        pytest.fail(f"http.client refuses {data!r}: {error!r}")
    assert found.status_code == expected.status
    assert found.chunked == (expected.chunked and found.status_code != 204)  # which has no body
    assert found.length == expected.length
    assert found.length is not None or found.chunked or not found.reusable
    for name in ("ETag", "Content-Range", "Content-Length", "x-y"):
        values = [value.strip(" \t") for value in expected.headers.get_all(name) or ()]
        assert found.headers.get(name) == (values[0] if values else None) or len(values) > 1
    assert not (found.reusable and expected.will_close)


def test_refused() -> None:
    """What two readers could read in two ways is refused."""
    good = "HTTP/1.1 200 OK\r\nContent-Length: 5"
    assert response_head(good.encode()).length == 5
    for odd in (
        "",
        "HTTP/2 200 OK\r\nContent-Length: 5",
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6",
        "HTTP/1.1 200 OK\r\nContent-Length: 5, 5",
        "HTTP/1.1 200 OK\r\nContent-Length: +5",
        "HTTP/1.1 200 OK\r\nContent-Length: \xb2",
        f"{good}\r\nTransfer-Encoding: chunked",
        f"{good}\r\nTransfer-Encoding: chunked".replace("200", "400"),
        "HTTP/1.1 400 Bad Request\r\nTransfer-Encoding: gzip, chunked",
        f"{good}\r\n folded: 1",
        f"{good}\r\nname : 1",
        f"{good}\r\nname: a\nb: c",
        f"{good}\r\nname: a\0",
        f'{good}\r\nETag: "a"\r\netag: "b"',
    ):
        with pytest.raises(UnusualResponseError):
            response_head(odd.encode("latin-1"))


def test_repeated() -> None:
    """Headers that say the same twice, as some gateways send them, are clear."""
    spans = "Content-Range: bytes 0-4/9\r\ncontent-range: bytes 0-4/9"
    head = f'HTTP/1.1 206 Partial\r\nETag: "a"\r\nEtag: "a"\r\nContent-Length: 5\r\ncontent-length:5\r\n{spans}'
    found = response_head(head.encode())
    assert (found.length, found.headers.get("ETag"), found.headers.get("Content-Range")) == (5, '"a"', "bytes 0-4/9")
