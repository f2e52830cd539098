"""ResponseHead: the status and headers of a response, parsed strictly; http.client would take 0.25 ms.

https://www.rfc-editor.org/rfc/rfc9112
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from fsspec_csx.s3.transport.failures import UnusualResponseError

MOST_BYTES = 64 * 1024
"""The most bytes of a head."""

_TEXT = r"[\t\x20-\x7e\x80-\xff]*"
# One pattern for the whole head, as one for each line would take several times as long.
_HEAD = re.compile(rf"HTTP/1\.1 ([1-9][0-9][0-9])(?: {_TEXT})?(?:\r\n[!#$%&'*+.^_`|~0-9A-Za-z-]+:{_TEXT})*")
_LENGTH = re.compile(r"[0-9]{1,18}")
# Headers that may occur only once, as repeated ones could contradict each other.
_ONCE = ("content-length", "content-range", "etag")


class Headers(dict[str, str]):
    """Headers of a response, with names in lower case; ``get`` ignores the case of names."""

    def get(self, name: str, default: Any = None) -> Any:
        """Return the value of a header."""
        return super().get(name.lower(), default)


@dataclass(frozen=True)
class ResponseHead:
    """The status line and the headers of a response.

    Attributes:
        status_code: such as 200.
        length: of the body in bytes; None for an error in chunked encoding, which AWS uses for errors.
        reusable: whether the connection can serve another request.
    """

    status_code: int
    headers: Headers
    length: int | None
    reusable: bool


def response_head(data: bytes) -> ResponseHead:
    """Parse the head of a response to a GET or a PUT, given without the empty line at its end.

    Raises:
        UnusualResponseError: if it is malformed, or ``Content-Length`` does not give the length of the body.
    """
    text = data.decode("latin-1")
    if (found := _HEAD.fullmatch(text)) is None:
        raise _unusual("invalid status line or header line")
    headers = Headers()
    for line in text.split("\r\n")[1:]:
        name, _, value = line.partition(":")
        name, value = name.lower(), value.strip(" \t")
        if name in headers:
            if name in _ONCE:
                raise _unusual(f"it has {name} twice")
            value = f"{headers[name]}, {value}"
        headers[name] = value
    status = int(found[1])
    length = headers.get("Content-Length", "0" if status < 200 or status in (204, 304) else "")
    reusable = "close" not in headers.get("Connection", "").lower()
    if status >= 300 and headers.get("Transfer-Encoding", "").lower() == "chunked" and not length:
        return ResponseHead(status, headers, None, reusable=False)
    if status >= 200 and ("transfer-encoding" in headers or not _LENGTH.fullmatch(length)):
        raise _unusual("no valid Content-Length")
    return ResponseHead(status, headers, int(length) if status >= 200 else 0, reusable)


def _unusual(why: str) -> UnusualResponseError:
    return UnusualResponseError(f"The head of a response is unusual: {why}.")
