"""Signatures of requests, version 4. botocore takes half a millisecond for each, mostly to recompute shared values.

https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any
from urllib.parse import urlsplit

from botocore import auth

_PORTS = {"http": 80, "https": 443}
_UNSIGNED = frozenset(auth.SIGNED_HEADERS_BLACKLIST)


@dataclass
class SignedRequest:
    """A request in the form that the connections of botocore and of this package send.

    Attributes:
        target: the path and the query of its URL.
        host: with the port, unless that is the default.
        stream_output: whether the caller reads the body of the response.
    """

    method: str
    url: str
    target: str
    host: str
    headers: dict[str, Any] = field(repr=False)  # with the signature and the session token
    body: Any = None
    stream_output: bool = False

    def head(self) -> bytes:
        """Return the request up to its body, in HTTP/1.1.

        Raises:
            ValueError: if a header has a line break, which would begin another header.
        """
        lines = [f"{self.method} {self.target} HTTP/1.1", f"Host: {self.host}", "Accept-Encoding: identity"]
        sent = [line.encode() for line in lines]
        for name, value in self.headers.items():
            if name.lower() != "host":
                sent.append(b"%b: %b" % (name.encode(), value if isinstance(value, bytes) else value.encode()))
        if any(b"\n" in line or b"\r" in line for line in sent):
            msg = "A header of a request has a line break. Remove it from the credentials or the options."
            raise ValueError(msg)
        return b"\r\n".join((*sent, b"", b""))


class Signature:
    """Signs requests for a region and a service, such as ``s3``."""

    def __init__(self, region: str, service: str) -> None:
        self._region, self._service = region, service
        self._credentials: Any = None
        self._key: tuple[Any, str, bytes] = (None, "", b"")

    def use(self, credentials: Any) -> None:
        """Sign the following requests with these frozen credentials."""
        self._credentials = credentials

    def signed(self, method: str, url: str, headers: Mapping[str, str], hashed: str) -> SignedRequest:
        """Return a signed request.

        Args:
            hashed: the value that represents its body in the signature.
        """
        credentials, moment = self._credentials, auth.get_current_datetime().strftime(auth.SIGV4_TIMESTAMP)
        own = {**headers, "X-Amz-Date": moment}
        if credentials.token:
            own["X-Amz-Security-Token"] = credentials.token
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2].lower()
        host = host.removesuffix(f":{_PORTS[parts.scheme]}")
        signed = {name.lower(): " ".join(value.split()) for name, value in own.items()}
        signed = {name: value for name, value in sorted({"host": host, **signed}.items()) if name not in _UNSIGNED}
        names, lines = ";".join(signed), "\n".join(f"{name}:{value}" for name, value in signed.items())
        query = "&".join(f"{name}={value}" for name, _, value in sorted(_pairs(parts.query)))
        canonical = "\n".join((method, parts.path, query, lines, "", names, hashed))
        day = moment[:8]
        scope = f"{day}/{self._region}/{self._service}/aws4_request"
        text = "\n".join(("AWS4-HMAC-SHA256", moment, scope, sha256(canonical.encode()).hexdigest()))
        signature = hmac.digest(self._key_of(credentials, day), text.encode(), "sha256").hex()
        by = f"Credential={credentials.access_key}/{scope}, SignedHeaders={names}, Signature={signature}"
        sent: dict[str, Any] = {**own, "Authorization": f"AWS4-HMAC-SHA256 {by}"}
        for name, value in own.items():
            if not value.isascii():  # it was signed as UTF-8, but http.client would send it in Latin-1
                sent[name] = value.encode()
        target = parts.path + (f"?{parts.query}" if parts.query else "")
        return SignedRequest(method, url, target, host, sent)

    def _key_of(self, credentials: Any, day: str) -> bytes:
        found, of, key = self._key
        if found is not credentials or of != day:
            key = f"AWS4{credentials.secret_key}".encode()
            for each in (day, self._region, self._service, "aws4_request"):
                key = hmac.digest(key, each.encode(), "sha256")
            self._key = credentials, day, key
        return key


def _pairs(query: str) -> list[tuple[str, str, str]]:
    return [each.partition("=") for each in query.split("&")] if query else []
