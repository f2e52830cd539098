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
_HEAD = re.compile(rf"HTTP/1\.([01]) ([1-9][0-9][0-9])(?: {_TEXT})?(?:\r\n[!#$%&'*+.^_`|~0-9A-Za-z-]+:{_TEXT})*")
_LENGTH = re.compile(r"[0-9]{1,18}")
# Headers whose repeated values must be equal.
_ONCE = ("content-length", "content-range", "etag")


class Headers(dict[str, str]):
    """Headers of a response, with names in lower case; ``get`` ignores the case of names."""

    def get(self, name: str, default: Any = None) -> Any:
        """Return the value of a header."""
        return super().get(name.lower(), default)


@dataclass(slots=True)
class ResponseHead:
    """The status line and the headers of a response.

    Attributes:
        status_code: such as 200.
        length: of the body in bytes; None if the body has chunks, or ends with the connection.
        reusable: whether the connection can serve another request.
        chunked: whether the body has chunks, as errors of AWS.
    """

    status_code: int
    headers: Headers
    length: int | None
    reusable: bool
    chunked: bool = False


def response_head(data: bytes) -> ResponseHead:
    """Parse the head of a response to a GET or a PUT, given without the empty line at its end.

    Raises:
        UnusualResponseError: if it is malformed, or does not give the length of the body clearly.
    """
    text = data.decode("latin-1")
    if (found := _HEAD.fullmatch(text)) is None:
        raise _unusual("an invalid status line or header line")
    headers = Headers()
    for line in text.split("\r\n")[1:]:
        name, _, value = line.partition(":")
        name, value = name.lower(), value.strip(" \t")
        if name in headers:
            if name in _ONCE:
                if value != headers[name]:
                    raise _unusual(f"{name} twice")
                continue
            value = f"{headers[name]}, {value}"
        headers[name] = value
    status, length = int(found[2]), headers.get("Content-Length", "")
    kept = headers.get("Connection", "").lower()
    reusable = "close" not in kept and (found[1] == "1" or "keep-alive" in kept)
    if status < 200 or status in (204, 304):
        return ResponseHead(status, headers, 0, reusable)
    if (coding := headers.get("Transfer-Encoding")) is not None:
        if coding.lower() != "chunked" or "content-length" in headers:
            raise _unusual("no clear length of the body")
        return ResponseHead(status, headers, None, reusable and found[1] == "1", chunked=True)
    if "content-length" not in headers:
        return ResponseHead(status, headers, None, reusable=False)
    if not _LENGTH.fullmatch(length):
        raise _unusual("no valid Content-Length")
    return ResponseHead(status, headers, int(length), reusable)


def _unusual(why: str) -> UnusualResponseError:
    return UnusualResponseError(f"its head has {why}")
