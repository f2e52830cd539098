"""Signatures of requests, version 4. botocore takes half a millisecond for each, mostly to recompute shared values.

https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, NamedTuple
from urllib.parse import SplitResult, urlsplit

from botocore import auth

_ALGORITHM = "AWS4-HMAC-SHA256"
_PORTS = {"http": 80, "https": 443}
_UNSIGNED = frozenset(auth.SIGNED_HEADERS_BLACKLIST)


@dataclass
class SignedRequest:
    """A request in the form that a Link sends.

    Attributes:
        target: the path and the query of its URL.
        host: with the port, unless that is the default.
        headers: those that are not in ``shared``.
        shared: the lines of headers that many requests have, with their end; empty if there are none.
    """

    method: str
    url: str
    target: str
    host: str
    headers: dict[str, Any] = field(repr=False)  # with the signature
    shared: str = field(default="", repr=False)  # with the session token

    def head(self) -> bytes:
        """Return the request up to its body, in HTTP/1.1.

        Raises:
            ValueError: if a header has a line break, which would begin another header.
        """
        lines = f"{self.shared}{_lines(self.headers)}" if self.shared else _first_lines(self.host, self.headers)
        return f"{self.method} {self.target} HTTP/1.1\r\n{lines}\r\n".encode()


def _first_lines(host: str, headers: Mapping[str, Any]) -> str:
    """Return the lines of headers, with that of the host."""
    sent = {"Host": host, **{name: value for name, value in headers.items() if name.lower() != "host"}}
    if "accept-encoding" not in map(str.lower, sent):
        sent["Accept-Encoding"] = "identity"
    return _lines(sent)


def _lines(headers: Mapping[str, Any]) -> str:
    text = "".join(
        [f"{name}: {value if isinstance(value, str) else value.decode()}\r\n" for name, value in headers.items()]
    )
    if not text.count("\r") == text.count("\n") == len(headers):
        msg = "A header of a request has a line break. Remove it from the credentials or the options."
        raise ValueError(msg)
    return text


def host_of(url: SplitResult) -> str:
    """Return the host of a URL, with the port unless that is the default."""
    return url.netloc.rpartition("@")[2].lower().removesuffix(f":{_PORTS[url.scheme]}")


class _Frame(NamedTuple):
    """What requests with headers of the same names have in common within a second.

    Attributes:
        canonical: the canonical request; placeholders stand for the path, the query and the headers that differ.
        order: the names of the headers that differ, in the order of their placeholders.
        signed: the beginning of the text that is signed.
        key: the HMAC that signs it, without the text.
        authorization: the header up to the signature.
        shared: the lines of the headers that are equal.
    """

    credentials: Any
    second: int
    canonical: str
    order: Sequence[str]
    signed: str
    key: hmac.HMAC
    authorization: str
    shared: str


class Signature:
    """Signs requests for a region and a service, such as ``s3``.

    Args:
        url: the beginning of the URLs of all requests.
        headers: of all requests.
        hashed: the value that represents the bodies in the signatures.
    """

    def __init__(self, region: str, service: str, url: str, headers: Mapping[str, str], hashed: str) -> None:
        self._region, self._service = region, service
        self._headers, self._hashed = headers, hashed
        parts = urlsplit(url)
        self._origin = f"{parts.scheme}://{parts.netloc}"
        self._host = host_of(parts)
        self._credentials: Any = None
        self._frames: dict[tuple[str, ...], _Frame] = {}

    def use(self, credentials: Any) -> None:
        """Sign the following requests with these frozen credentials."""
        self._credentials = credentials

    def signed(self, method: str, url: str, headers: Mapping[str, str]) -> SignedRequest:
        """Return a signed request.

        Args:
            headers: those that differ in each request.
        """
        credentials, second = self._credentials, int(time.time())
        names = (method, *headers)
        frame = self._frames.get(names)
        if frame is None or frame.second != second or frame.credentials is not credentials:
            frame = self._frames[names] = self._frame(credentials, second, *names)
        target = url.removeprefix(self._origin)
        path, _, query = target.partition("?")
        if query:
            query = "&".join(f"{name}={value}" for name, _, value in sorted(_pairs(query)))
        values = [" ".join(headers[name].split()) for name in frame.order]
        canonical = frame.canonical % (path, query, *values)
        text = f"{frame.signed}{sha256(canonical.encode()).hexdigest()}"
        signature = frame.key.copy()  # takes less time than another one made from the key
        signature.update(text.encode())
        sent = {**headers, "Authorization": f"{frame.authorization}{signature.hexdigest()}"}
        return SignedRequest(method, url, target, self._host, sent, frame.shared)

    def _frame(self, credentials: Any, second: int, method: str, *names: str) -> _Frame:
        moment = auth.get_current_datetime().strftime(auth.SIGV4_TIMESTAMP)
        own = {**self._headers, "X-Amz-Date": moment}
        if credentials.token:
            own["X-Amz-Security-Token"] = credentials.token
        of_all = {"host": self._host, **{name.lower(): " ".join(value.split()) for name, value in own.items()}}
        lines = {name: f"{name}:{value}".replace("%", "%%") for name, value in of_all.items()}
        differing = {name.lower(): name for name in names}
        lines |= {name: f"{name}:%s" for name in differing}
        signed = sorted(lines.keys() - _UNSIGNED)
        listed = ";".join(signed)
        lines_signed = (lines[name] for name in signed)
        canonical = "\n".join((method, "%s", "%s", *lines_signed, "", listed.replace("%", "%%"), self._hashed))
        order = [differing[name] for name in signed if name in differing]
        key, scope = f"AWS4{credentials.secret_key}".encode(), (moment[:8], self._region, self._service, "aws4_request")
        for each in scope:
            key = hmac.digest(key, each.encode(), "sha256")
        begin = f"{_ALGORITHM}\n{moment}\n{'/'.join(scope)}\n"
        by = f"{_ALGORITHM} Credential={credentials.access_key}/{'/'.join(scope)}, SignedHeaders={listed}, Signature="
        signing = hmac.new(key, digestmod="sha256")
        shared = _first_lines(self._host, own)
        return _Frame(credentials, second, canonical, order, begin, signing, by, shared)


def _pairs(query: str) -> list[tuple[str, str, str]]:
    return [each.partition("=") for each in query.split("&")]
