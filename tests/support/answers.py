"""A server with one response to all requests: recorded responses of AWS that neither server gives."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from listener import listening


@contextmanager
def answering(status: int, body: bytes, content_type: str = "application/xml") -> Iterator[str]:
    """Yield the URL of a server that answers every request so; a HEAD gets no body, as everywhere in HTTP."""
    with listening(lambda heard: (status, {"Content-Type": content_type}, body)) as server:
        yield server.url


def s3_error(code: str, message: str = "", extra: str = "") -> bytes:
    """The body of an error answer, as S3 gives it."""
    head = '<?xml version="1.0" encoding="UTF-8"?>'
    return f"{head}<Error><Code>{code}</Code><Message>{message}</Message>{extra}</Error>".encode()
