"""The kinds of faults: which requests each can affect, and what it does to them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from random import Random

from handshakes import Oddity
from proxy import Fault, Request, error_answer

_SLOW = 6 * 2**20
"""Bytes in a second."""


@dataclass(frozen=True)
class Keys:
    """The credentials that a client begins with, and can have later.

    Attributes:
        first: the access key that expires.
        renew: puts another one, that is valid, where the client finds it.
    """

    first: str
    renew: Callable[[], object]


@dataclass(frozen=True)
class Kind:
    """A kind of fault.

    Attributes:
        fits: whether it can happen to a request.
        made: a fault of this kind, which happens to any request.
        burst: the most requests, one after the other, that it happens to.
        lasting: whether it goes on, once it has begun.
        tls: whether it can only happen to TLS.
    """

    fits: Callable[[Request], bool]
    made: Callable[[Random, Keys], Fault]
    burst: int = 1
    lasting: bool = False
    tls: bool = False


def is_any(request: Request) -> bool:
    """Every request."""
    return True


def brings_data(request: Request) -> bool:
    """One with the bytes of an object, or of a part of it."""
    return request.method == "PUT" and _length(request) > 0


def brings_body(request: Request) -> bool:
    """One with anything in its body."""
    return _length(request) > 0


def is_checked(request: Request) -> bool:
    """One whose body the server compares with a checksum; the tested one does not for names that are to be deleted."""
    return brings_data(request) or _completes(request)


def asks_for_data(request: Request) -> bool:
    """One for the bytes of an object, or of a part of it."""
    return request.method == "GET" and request.path.strip("/").count("/") > 0 and not request.query


def asks_for_body(request: Request) -> bool:
    """One whose answer has a body."""
    return request.method == "GET" or (request.method == "POST" and bool(request.query))


def asks_for_range(request: Request) -> bool:
    """One for some bytes of an object."""
    return asks_for_data(request) and request.span is not None


def makes_object(request: Request) -> bool:
    """The end of an upload, or a copy: S3 may answer it with the status of a success, and an error in the body."""
    return _completes(request) or (request.method == "PUT" and "x-amz-copy-source" in request.headers)


def _completes(request: Request) -> bool:
    return request.method == "POST" and "uploadId" in request.query


def _length(request: Request) -> int:
    return int(request.headers.get("content-length", 0))


def _share(random: Random) -> float:
    """A place in a body: often close to its beginning or its end."""
    return random.choice([0.0001, 0.9999, random.uniform(0.01, 0.99)])


def _expired(random: Random, keys: Keys) -> Fault:
    return Fault(when=_signed_by(keys.first), answer=error_answer(400, "ExpiredToken"), before=keys.renew)


def _expired_for_good(random: Random, keys: Keys) -> Fault:
    return Fault(answer=error_answer(400, "ExpiredToken"))


def _signed_by(key: str) -> Callable[[Request], bool]:
    return lambda request: key in request.headers.get("authorization", "")


def _skewed(random: Random, keys: Keys) -> Fault:
    there = format_datetime(datetime.now(timezone.utc) + timedelta(hours=3), usegmt=True)
    return Fault(answer=error_answer(403, "RequestTimeTooSkewed", {"Date": there}))


def _elsewhere(random: Random, keys: Keys) -> Fault:
    report = random.choice(["bytes 3-12/20", "bytes 0-0/1", "nonsense", "bytes 5-4/3"])
    return Fault(headers={"Content-Range": report}, status=206)


def _later(random: Random, keys: Keys) -> Fault:
    return Fault(answer=error_answer(503, "SlowDown", {"Retry-After": random.choice(["0", "1"])}))


def _odd(how: Oddity, random: Random) -> list[Oddity]:
    return [how] * random.randint(1, 2)


KINDS: dict[str, Kind] = {
    "cut on the way up": Kind(brings_body, lambda random, keys: Fault(cut_up=_share(random))),
    "cut on the way down": Kind(asks_for_body, lambda random, keys: Fault(cut_down=_share(random))),
    "stalled on the way up": Kind(brings_body, lambda random, keys: Fault(stall_up=_share(random))),
    "stalled on the way down": Kind(asks_for_body, lambda random, keys: Fault(stall_down=_share(random))),
    "slow": Kind(lambda each: brings_data(each) or asks_for_data(each), lambda random, keys: Fault(rate=_SLOW)),
    "500 InternalError": Kind(is_any, lambda random, keys: Fault(answer=error_answer(500, "InternalError")), burst=5),
    "503 SlowDown": Kind(is_any, lambda random, keys: Fault(answer=error_answer(503, "SlowDown")), burst=5),
    "503 with Retry-After": Kind(is_any, _later, burst=2),
    "error in an answer 200": Kind(
        makes_object, lambda random, keys: Fault(answer=error_answer(200, "InternalError")), burst=2
    ),
    "shorter, as its Content-Length says": Kind(
        asks_for_data, lambda random, keys: Fault(shorten=random.choice([1, 100]))
    ),
    "shorter than its Content-Length": Kind(asks_for_data, lambda random, keys: Fault(cut_down=0.999999)),
    "bit flipped on the way up": Kind(is_checked, lambda random, keys: Fault(flip_up=_share(random))),
    "bit flipped on the way down": Kind(asks_for_data, lambda random, keys: Fault(flip_down=_share(random))),
    "delivered twice": Kind(is_any, lambda random, keys: Fault(twice=True)),
    "answer lost": Kind(is_any, lambda random, keys: Fault(cut_down=0), burst=2),
    "connection reset": Kind(is_any, lambda random, keys: Fault(resets=random.randint(1, 2))),
    "closed after the answer": Kind(is_any, lambda random, keys: Fault(closes=True), burst=3),
    "credentials expired, then renewed": Kind(is_any, _expired, lasting=True),
    "credentials expired": Kind(is_any, _expired_for_good, lasting=True),
    "clock skew": Kind(is_any, _skewed),
    "wrong Content-Range": Kind(asks_for_range, _elsewhere),
    "200 in place of 206": Kind(asks_for_range, lambda random, keys: Fault(status=200)),
    "garbage among the records of TLS": Kind(
        asks_for_body, lambda random, keys: Fault(garbage=_share(random)), tls=True
    ),
    "handshake of TLS stalled": Kind(is_any, lambda random, keys: Fault(odd=_odd("stalled", random)), tls=True),
    "handshake of TLS broken off": Kind(is_any, lambda random, keys: Fault(odd=_odd("broken off", random)), tls=True),
    "certificate of a stranger": Kind(is_any, lambda random, keys: Fault(odd=_odd("of a stranger", random)), tls=True),
    "416": Kind(asks_for_data, lambda random, keys: Fault(answer=error_answer(416, "InvalidRange"))),
}
